//! The address of a server that gives tokens.
//!
//! Owns: its syntax, and that only TLS leaves this machine. Must not know: requests.

use std::fmt;
use std::net::IpAddr;

use crate::credentials::HostPort;

/// `https://host[:port][/path]`. `http://` is allowed for a loopback or link-local address only: nothing listens between
/// who could read along.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenEndpoint {
    /// Whether requests go over TLS.
    pub tls: bool,
    /// The host, as in the certificate.
    pub host: String,
    /// The port.
    pub port: u16,
    /// The path, which begins with `/` or is empty.
    pub path: String,
}

/// Why a text is no such address. It may follow the name of its variable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EndpointError {
    /// Not an address.
    #[error("is not an address such as https://login.microsoftonline.com")]
    Malformed,
    /// Plain HTTP to another machine.
    #[error("begins with http://, but is not an address of this machine: use https://")]
    Plain,
}

impl TokenEndpoint {
    /// Reads an address.
    ///
    /// # Errors
    /// [`EndpointError`], which does not repeat the text.
    pub fn parse(text: &str) -> Result<Self, EndpointError> {
        let lower = text.get(..8).unwrap_or(text).to_ascii_lowercase();
        let (tls, skipped) = match lower {
            scheme if scheme == "https://" => (true, 8),
            scheme if scheme.starts_with("http://") => (false, 7),
            _ => return Err(EndpointError::Malformed),
        };
        let rest = text.get(skipped..).unwrap_or_default();
        let (host, path) = rest.find('/').map_or((rest, ""), |at| rest.split_at(at));
        let HostPort { name, port } = HostPort::parse(host).ok_or(EndpointError::Malformed)?;
        if !path.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'?' | b'#')) {
            return Err(EndpointError::Malformed);
        }
        if !tls && !is_here(&name) {
            return Err(EndpointError::Plain);
        }
        let port = port.unwrap_or(if tls { 443 } else { 80 });
        Ok(Self { tls, host: name, port, path: path.to_owned() })
    }

    /// Another path on the same server.
    #[must_use]
    pub fn at(&self, path: &str) -> Self {
        Self { path: path.to_owned(), ..self.clone() }
    }

    /// The server, for a `Host` header: without the port if it is the usual one.
    pub fn authority(&self) -> String {
        let usual = if self.tls { 443 } else { 80 };
        let port = Some(self.port).filter(|port| *port != usual);
        match port {
            None if self.host.contains(':') => format!("[{}]", self.host),
            port => HostPort { name: self.host.clone(), port }.to_string(),
        }
    }
}

impl fmt::Display for TokenEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "https" } else { "http" };
        write!(f, "{scheme}://{}{}", self.authority(), self.path)
    }
}

/// Whether a host is this machine, or its own endpoint of the cloud.
fn is_here(host: &str) -> bool {
    match host.parse::<IpAddr>().map(|address| address.to_canonical()) {
        Ok(IpAddr::V4(address)) => address.is_loopback() || address.is_link_local(),
        Ok(IpAddr::V6(address)) => address.is_loopback() || address.is_unicast_link_local(),
        Err(_) => host.eq_ignore_ascii_case("localhost"),
    }
}
