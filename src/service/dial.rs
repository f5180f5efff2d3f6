//! TCP and TLS to the hub, directly or through a proxy, and why they failed.
//!
//! Owns: name lookup, the TLS handshake, sentences for their failures. Must not know: what the stream carries, tokens.

use std::io;
use std::path::Path;

use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::{HttpsWay, ServiceError};
use crate::credentials::HostPort;
use crate::tls;
use crate::websocket::{self, DialError, HubStream, SecureStream, Target};

/// A protocol of the hub.
#[derive(Debug)]
pub(super) struct Protocol {
    name: &'static str,
    /// The port, if the user gives no other.
    pub(super) port: u16,
    /// What to check if nothing listens.
    remedy: &'static str,
    /// What to check if the wrong server answers.
    elsewhere: &'static str,
}

/// Source: wire reference 2.1.
pub(super) const AMQP: Protocol = Protocol {
    name: "AMQP",
    port: 5671,
    remedy: "check HostName, and that the hub or the emulator is running",
    elsewhere: "check host and port in HostName",
};

/// Source: wire reference 3.
pub(super) const HTTPS: Protocol = Protocol {
    name: "HTTPS",
    port: 443,
    remedy: "for the emulator, give the https port of its ready line with --https-port",
    elsewhere: "check --https-port where several emulators run",
};

/// Connects to the AMQP port of `host` and checks its certificate against the name. The caller limits the time.
pub(super) async fn dial_amqp(
    host: &HostPort,
    ca_file: Option<&Path>,
) -> Result<TlsStream<TcpStream>, ServiceError> {
    let name = ServerName::try_from(host.name.clone()).map_err(|_| {
        ServiceError::Unreachable(format!("\"{}\" is not a host name that TLS can check", host.name))
    })?;
    let config = tls::client_config(ca_file, None)?;
    let port = host.port.unwrap_or(AMQP.port);
    let stream = connect(&host.name, port, &AMQP).await?;
    TlsConnector::from(config)
        .connect(name, stream)
        .await
        .map_err(|error| ServiceError::Unreachable(handshake_failure(&error, &host.name, port, &AMQP)))
}

/// Connects to the HTTPS port of `host`, for HTTP. The caller limits the time.
pub(super) async fn dial_https(
    host: &str,
    way: &HttpsWay,
    ca_file: Option<&Path>,
) -> Result<SecureStream, ServiceError> {
    let tls = tls::client_config(ca_file, None)?;
    let port = way.port;
    let dialled = websocket::secure(host, port, &tls, way.proxies.on_the_way_to(host, port)).await;
    dialled.map_err(|error| https_failure(error, host, port))
}

/// Connects to the HTTPS port of `host` over a WebSocket at `path` that carries AMQP. The caller limits the time.
pub(super) async fn dial_websocket(
    host: &str,
    path: &'static str,
    way: &HttpsWay,
    ca_file: Option<&Path>,
) -> Result<HubStream, ServiceError> {
    let tls = tls::client_config(ca_file, None)?;
    let port = way.port;
    let proxy = way.proxies.on_the_way_to(host, port);
    let target = Target { host, port, path, subprotocol: websocket::AMQP, tls: &tls, proxy };
    websocket::dial(target).await.map_err(|error| https_failure(error, host, port))
}

fn https_failure(error: DialError, host: &str, port: u16) -> ServiceError {
    ServiceError::Unreachable(match error {
        DialError::Tcp(error) => connect_failure(&error, host, port, &HTTPS),
        DialError::Tls(error) => handshake_failure(&error, host, port, &HTTPS),
        DialError::Tunnel(error) => error.to_string(),
        DialError::Name(_) => error.to_string(),
        other => format!("no WebSocket to {host} on port {port}: {other}"),
    })
}

async fn connect(name: &str, port: u16, protocol: &Protocol) -> Result<TcpStream, ServiceError> {
    let addresses: Vec<_> = tokio::net::lookup_host((name, port))
        .await
        .map_err(|error| {
            ServiceError::Unreachable(format!(
                "the host name {name} cannot be looked up ({error}): check HostName in the service connection string, \
                 and this machine's network"
            ))
        })?
        .collect();
    let stream = TcpStream::connect(&*addresses)
        .await
        .map_err(|error| ServiceError::Unreachable(connect_failure(&error, name, port, protocol)))?;
    stream.set_nodelay(true).map_err(|error| ServiceError::Lost(error.to_string()))?;
    Ok(stream)
}

fn connect_failure(error: &io::Error, name: &str, port: u16, protocol: &Protocol) -> String {
    let Protocol { name: protocol, port: standard, remedy, .. } = protocol;
    match error.kind() {
        io::ErrorKind::ConnectionRefused => {
            format!("{name} refuses connections on port {port} ({protocol}): {remedy}")
        }
        io::ErrorKind::TimedOut => format!(
            "{name} does not answer on port {port}: a firewall may block {protocol} ({standard}), or the network is down"
        ),
        io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => {
            format!("there is no route to {name}: check this machine's network")
        }
        // The standard library has no error kind for a failed look-up, only these words.
        _ if error.to_string().contains("failed to lookup address") => format!(
            "the host name {name} cannot be looked up ({error}): check HostName in the service connection string, and this \
             machine's network"
        ),
        _ => format!("no connection to {name} on port {port}: {error}"),
    }
}

/// Describes a TLS failure for a command that has the options `--ca-file` and `--https-port`.
fn describe(cause: &rustls::Error, name: &str, port: u16, protocol: &Protocol) -> String {
    if !tls::is_untrusted(cause) {
        return tls::describe(cause, name);
    }
    format!(
        "the certificate of {name} on port {port} is not signed by a root that this machine trusts: name the \
         private root with --ca-file or C2D_CA_FILE (the emulator's is ca.pem in its state directory), {}, or \
         install the ca-certificates package",
        protocol.elsewhere
    )
}

fn handshake_failure(error: &io::Error, name: &str, port: u16, protocol: &Protocol) -> String {
    match tls::tls_cause(error) {
        Some(cause) => describe(cause, name, port, protocol),
        None if matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset) => {
            format!(
                "{name} closed the connection on port {port} during the TLS handshake: check the port, or whether a proxy \
             answers in its place"
            )
        }
        None => format!("TLS with {name} failed: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_closed_port_and_an_unknown_name_each_have_their_sentence() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("an address").port();
        drop(listener);
        let error = connect("127.0.0.1", port, &HTTPS).await.expect_err("refused").to_string();
        assert!(
            error
                .contains(&format!("127.0.0.1 refuses connections on port {port} (HTTPS): for the emulator")),
            "{error}"
        );
        let error = connect("no-such-host.invalid", 1, &AMQP).await.expect_err("unknown").to_string();
        assert!(error.contains("no-such-host.invalid cannot be looked up"), "{error}");
    }

    #[tokio::test]
    async fn a_server_that_speaks_no_tls_is_named() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let host = HostPort { name: "127.0.0.1".into(), port: Some(port) };
        let server = async {
            let (mut stream, _) = listener.accept().await.expect("a client");
            tokio::io::AsyncWriteExt::write_all(&mut stream, b"HTTP/1.1 400 Bad Request\r\n\r\n")
                .await
                .expect("sent");
            stream
        };
        let (error, _stream) = tokio::join!(dial_amqp(&host, None), server);
        let error = error.expect_err("no TLS").to_string();
        assert!(error.contains("answers, but not with TLS"), "{error}");
    }
}
