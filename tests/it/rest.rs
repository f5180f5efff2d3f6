//! Bare HTTPS requests to the emulator, for tests.
//!
//! Owns: sockets, tokens, and answers taken apart. Must not know: routes. Used by: tests of the emulator's HTTPS side.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, SystemTime};

use c2d_agent::credentials::{DeviceConnectionString, DeviceSecret, SasToken, SharedAccessKey};
use c2d_agent::tls::ClientCertificate;
use rustls::{ClientConnection, StreamOwned};

use crate::harness::{DEADLINE, Emulator};

pub(crate) type Tls = StreamOwned<ClientConnection, TcpStream>;

/// A TLS connection to the HTTPS side.
pub(crate) fn dial(emulator: &Emulator) -> Tls {
    dial_as(emulator, None)
}

fn dial_as(emulator: &Emulator, identity: Option<&ClientCertificate>) -> Tls {
    let config = c2d_agent::tls::client_config(Some(&emulator.ca_file()), identity).expect("a configuration");
    let socket = TcpStream::connect(emulator.https).expect("connected");
    socket.set_read_timeout(Some(DEADLINE)).expect("a socket");
    let name = "localhost".try_into().expect("a name");
    StreamOwned::new(ClientConnection::new(config, name).expect("a connection"), socket)
}

/// Sends bytes and reads until the emulator closes the connection.
pub(crate) fn exchange(emulator: &Emulator, request: &[u8]) -> String {
    send(dial(emulator), request)
}

fn send(mut stream: Tls, request: &[u8]) -> String {
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
    SasToken::sign(&key, "localhost", Some(policy), expiry).expose().to_owned()
}

/// A token with the device's own key.
pub(crate) fn device_token(emulator: &Emulator, device_id: &str) -> String {
    let identity = DeviceConnectionString::parse(&emulator.device_string(device_id)).expect("valid");
    let DeviceSecret::Key(key) = &identity.secret else { panic!("not a key") };
    let expiry = SystemTime::now() + Duration::from_secs(600);
    SasToken::sign(key, &format!("localhost/devices/{device_id}"), None, expiry).expose().to_owned()
}

/// An answer in parts.
#[derive(Debug)]
pub(crate) struct Answer {
    /// The status; 0 when there was none.
    pub(crate) status: u16,
    head: String,
    /// The body as text.
    pub(crate) body: String,
}

impl Answer {
    /// A header; its name in lower case.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }

    /// The body as JSON.
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

/// One request on a connection of its own. `headers` end with CRLF.
pub(crate) fn ask(emulator: &Emulator, line: &str, token: &str, headers: &str, body: &[u8]) -> Answer {
    ask_as(emulator, None, line, &format!("Authorization: {token}\r\n{headers}"), body)
}

/// One request on a connection with a client certificate.
pub(crate) fn ask_as(
    emulator: &Emulator,
    identity: Option<&ClientCertificate>,
    line: &str,
    headers: &str,
    body: &[u8],
) -> Answer {
    let length = body.len();
    let head = format!(
        "{line} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\nConnection: close\r\n{headers}\r\n"
    );
    let answer = send(dial_as(emulator, identity), &[head.as_bytes(), body].concat());
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_default();
    let status = head.get(9..12).and_then(|status| status.parse().ok()).unwrap_or_default();
    Answer { status, head: head.to_owned(), body: body.to_owned() }
}
