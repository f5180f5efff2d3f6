//! A tunnel through an HTTP proxy. The connection to the proxy may use TLS.
//!
//! Owns: CONNECT, the credentials in it, and sentences for failures. Must not know: what goes through the tunnel.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::Empty;
use hyper::client::conn::http1::Builder;
use hyper::header::{HOST, HeaderValue, PROXY_AUTHORIZATION};
use hyper::upgrade::{Upgraded, on};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use rustls::client::ResolvesClientCert;
use rustls::pki_types::ServerName;
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, ClientConfig, SignatureScheme};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::socket::{Raw, connect};
use crate::credentials::{HostPort, Proxy};
use crate::tls;

/// Most bytes and headers of the proxy's answer.
const MAX_HEAD: usize = 32 * 1024;
const MAX_HEADERS: usize = 100;

/// Why there is no tunnel.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TunnelError {
    /// The proxy cannot be reached.
    #[error(
        "the proxy {proxy} of HTTPS_PROXY cannot be reached ({error}): check HTTPS_PROXY, or name the hub in NO_PROXY"
    )]
    Unreachable {
        /// The address of the proxy.
        proxy: String,
        /// The reason.
        error: io::Error,
    },
    /// TLS with an `https://` proxy failed.
    #[error("no TLS with the proxy {proxy} of HTTPS_PROXY: {reason}")]
    Tls {
        /// The proxy.
        proxy: String,
        /// The reason and the remedy.
        reason: String,
    },
    /// Status 407, and this side has no login.
    #[error(
        "the proxy {0} asks for credentials (status 407): give them in HTTPS_PROXY, as http://NAME:PASSWORD@HOST:PORT"
    )]
    Credentials(String),
    /// Status 407, although this side sent a login.
    #[error("the proxy {0} refuses the name and password of HTTPS_PROXY (status 407): check both")]
    Login(String),
    /// Any other status.
    #[error(
        "the proxy {proxy} refuses to connect to {target} (status {status}): let it allow that host and port"
    )]
    Refused {
        /// The proxy.
        proxy: String,
        /// The hub with its port.
        target: String,
        /// The status of its answer.
        status: u16,
    },
    /// There was no answer, or one that is not HTTP.
    #[error(
        "the proxy {proxy} does not answer as an HTTP proxy does ({reason}): check HTTPS_PROXY, also whether http:// or https:// is right"
    )]
    NoProxy {
        /// The proxy.
        proxy: String,
        /// What came instead.
        reason: String,
    },
    /// The host name or the login cannot stand in a request.
    #[error("a proxy cannot connect to {0}")]
    Target(String),
}

/// Makes `proxy` connect to `host`. TLS with the proxy, if its URL asks for it, trusts the same roots as TLS with the
/// hub (`tls`). The caller limits the time.
pub(super) async fn open(
    proxy: &Proxy,
    host: &str,
    port: u16,
    tls: &ClientConfig,
) -> Result<TokioIo<Upgraded>, TunnelError> {
    let shown = proxy.to_string();
    let reached = connect(&proxy.host, proxy.port).await;
    let stream = reached.map_err(|error| TunnelError::Unreachable { proxy: shown.clone(), error })?;
    if proxy.tls {
        let secured = secure(stream, &proxy.host, tls.clone()).await;
        let stream = secured.map_err(|reason| TunnelError::Tls { proxy: shown, reason })?;
        connect_through(proxy, stream, host, port).await
    } else {
        connect_through(proxy, stream, host, port).await
    }
}

async fn connect_through<S: Raw + 'static>(
    proxy: &Proxy,
    stream: S,
    host: &str,
    port: u16,
) -> Result<TokioIo<Upgraded>, TunnelError> {
    let shown = proxy.to_string();
    let target = HostPort { name: host.to_owned(), port: Some(port) }.to_string();
    let mut request = Request::connect(&target).header(HOST, &target);
    if let Some(login) = &proxy.login {
        let mut value =
            HeaderValue::from_str(&login.expose_header()).map_err(|_| TunnelError::Target(target.clone()))?;
        value.set_sensitive(true);
        request = request.header(PROXY_AUTHORIZATION, value);
    }
    let request = request.body(Empty::<Bytes>::new()).map_err(|_| TunnelError::Target(target.clone()))?;

    let no_proxy =
        |error: hyper::Error| TunnelError::NoProxy { proxy: shown.clone(), reason: error.to_string() };
    let mut builder = Builder::new();
    builder.max_buf_size(MAX_HEAD).max_headers(MAX_HEADERS);
    let (mut sender, connection) = builder.handshake(TokioIo::new(stream)).await.map_err(no_proxy)?;
    let exchange = async move {
        let answer = sender.send_request(request).await?;
        match answer.status() {
            // Every 2xx status is a success. Source: RFC 9110, 9.3.6.
            status if status.is_success() => on(answer).await.map(Ok),
            status => Ok(Err(status)),
        }
    };
    // The connection's future ends when the connection became a tunnel, or when the exchange dropped its end.
    let (exchanged, _ended) = tokio::join!(exchange, connection.with_upgrades());
    match exchanged.map_err(no_proxy)? {
        Ok(tunnel) => Ok(TokioIo::new(tunnel)),
        Err(StatusCode::PROXY_AUTHENTICATION_REQUIRED) if proxy.login.is_some() => {
            Err(TunnelError::Login(shown))
        }
        Err(StatusCode::PROXY_AUTHENTICATION_REQUIRED) => Err(TunnelError::Credentials(shown)),
        Err(status) => Err(TunnelError::Refused { proxy: shown, target, status: status.as_u16() }),
    }
}

/// Makes TLS with the proxy itself. The proxy does not get to see the device's certificate.
async fn secure(
    stream: TcpStream,
    host: &str,
    mut config: ClientConfig,
) -> Result<TlsStream<TcpStream>, String> {
    let name = ServerName::try_from(host.to_owned())
        .map_err(|_| "its name is not a name that TLS can check".to_owned())?;
    config.client_auth_cert_resolver = Arc::new(NoCertificate);
    let connected = TlsConnector::from(Arc::new(config)).connect(name, stream).await;
    connected.map_err(|error| no_tls(&error, host))
}

fn no_tls(error: &io::Error, host: &str) -> String {
    use rustls::Error::{InvalidCertificate, InvalidMessage};
    match tls::tls_cause(error) {
        Some(InvalidMessage(_)) => {
            "it answers, but not with TLS: write http:// instead of https:// in HTTPS_PROXY".to_owned()
        }
        Some(InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        )) => "its certificate is for another host name: write the name from the certificate in HTTPS_PROXY"
            .to_owned(),
        Some(cause) => tls::describe(cause, host),
        None => format!(
            "it closed the connection ({error}): write http:// instead of https:// in HTTPS_PROXY if it takes CONNECT \
             without TLS"
        ),
    }
}

#[derive(Debug)]
struct NoCertificate;

impl ResolvesClientCert for NoCertificate {
    fn resolve(&self, _issuers: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        None
    }

    fn has_certs(&self) -> bool {
        false
    }
}
