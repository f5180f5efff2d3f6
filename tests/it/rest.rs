//! Bare HTTPS requests to the emulator, for tests.
//!
//! Owns: sockets and tokens of policies; `rest_ask` makes whole requests. Must not know: routes.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use c2d_agent::credentials::{SasToken, SharedAccessKey};
use c2d_agent::tls::ClientCertificate;
use rustls::{ClientConfig, ClientConnection, StreamOwned};

use crate::harness::{DEADLINE, Emulator};

pub(crate) type Tls = StreamOwned<ClientConnection, TcpStream>;

/// A TLS connection to the HTTPS side.
pub(crate) fn dial(emulator: &Emulator) -> Tls {
    dial_as(emulator, None)
}

/// As [`dial`], with a client certificate.
pub(crate) fn dial_as(emulator: &Emulator, identity: Option<&ClientCertificate>) -> Tls {
    let config = c2d_agent::tls::client_config(Some(&emulator.ca_file()), identity).expect("a configuration");
    dial_at(emulator.https, config, "localhost")
}

/// A TLS connection to any address, whose certificate must have this name.
pub(crate) fn dial_at(address: SocketAddr, config: Arc<ClientConfig>, name: &str) -> Tls {
    let socket = TcpStream::connect(address).expect("connected");
    socket.set_read_timeout(Some(DEADLINE)).expect("a socket");
    let name = name.to_owned().try_into().expect("a name");
    StreamOwned::new(ClientConnection::new(config, name).expect("a connection"), socket)
}

/// Sends bytes and reads until the emulator closes the connection.
pub(crate) fn exchange(emulator: &Emulator, request: &[u8]) -> String {
    send(dial(emulator), request)
}

/// As [`exchange`], on an existing connection.
pub(crate) fn send(mut stream: Tls, request: &[u8]) -> String {
    // The emulator may close before it has read everything.
    drop(stream.write_all(request).and_then(|()| stream.flush()));
    let mut answer = Vec::new();
    drop(stream.read_to_end(&mut answer));
    String::from_utf8_lossy(&answer).into_owned()
}

/// A token of the policy `service`.
pub(crate) fn service_token(emulator: &Emulator) -> String {
    policy_token(emulator, "service")
}

/// A token of any policy.
pub(crate) fn policy_token(emulator: &Emulator, policy: &str) -> String {
    let secrets = std::fs::read(emulator.state.join("secrets.json")).expect("read");
    let secrets: serde_json::Value = serde_json::from_slice(&secrets).expect("JSON");
    let key = secrets["policies"][policy]["primary"].as_str().expect("a key");
    let key = SharedAccessKey::from_base64(key).expect("a key");
    let expiry = SystemTime::now() + Duration::from_secs(600);
    let own = emulator.service_string();
    let host = own.strip_prefix("HostName=").and_then(|rest| rest.split([';', ':']).next()).expect("a host");
    SasToken::sign(&key, host, Some(policy), expiry).expose().to_owned()
}
