//! Whole requests to the emulator's HTTPS side, and answers in parts, for tests that also need the sender.
//!
//! Owns: requests, answers, tokens of devices. Must not know: routes.

use std::time::{Duration, SystemTime};

use c2d_agent::credentials::{DeviceConnectionString, DeviceSecret, SasToken};
use c2d_agent::tls::ClientCertificate;

use crate::harness::Emulator;
use crate::rest::{dial_as, send};

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
    /// The status; 0 if there was no answer.
    pub(crate) status: u16,
    head: String,
    /// The body as text.
    pub(crate) body: String,
}

impl Answer {
    /// Takes the bytes of an answer apart.
    pub(crate) fn read(answer: &str) -> Self {
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_default();
        let status = head.get(9..12).and_then(|status| status.parse().ok()).unwrap_or_default();
        Self { status, head: head.to_owned(), body: body.to_owned() }
    }

    /// The value of a header, whatever the case of its name.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let named = |line: &&str| line.get(..name.len()).is_some_and(|own| own.eq_ignore_ascii_case(name));
        self.head.lines().filter(named).find_map(|line| line.get(name.len()..)?.strip_prefix(": "))
    }

    /// The body as JSON.
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

/// Sends one request on a new connection. `headers` end with CRLF.
pub(crate) fn ask(emulator: &Emulator, line: &str, token: &str, headers: &str, body: &[u8]) -> Answer {
    ask_as(emulator, None, line, &format!("Authorization: {token}\r\n{headers}"), body)
}

/// Sends one request on a new connection with a client certificate.
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
    Answer::read(&answer)
}
