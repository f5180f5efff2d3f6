//! The way of a device to its hub.
//!
//! Owns: what carries the protocol, and what is to be known for that. Must not know: sockets, the environment.

use std::fmt;
use std::time::Duration;

use super::ProxySettings;

/// What carries the protocol.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Over {
    /// TLS, on the protocol's own port.
    #[default]
    Tls,
    /// A WebSocket, on the hub's HTTPS port.
    WebSocket,
    /// The one or the other, whichever works.
    Either,
}

/// The way to the hub.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// What carries the protocol.
    pub over: Over,
    /// Where WebSockets are.
    pub https_port: u16,
    /// Proxies on the way of WebSockets.
    pub proxies: ProxySettings,
    /// Each side is to hear of the other at least so often; the way is given up after two of these in silence.
    pub keep_alive: Duration,
}

impl Default for Route {
    fn default() -> Self {
        Self {
            over: Over::Tls,
            https_port: 443,
            proxies: ProxySettings::default(),
            keep_alive: Duration::from_secs(60),
        }
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.over {
            Over::Tls => f.write_str("over TLS"),
            Over::WebSocket => write!(f, "over a WebSocket on port {}", self.https_port),
            Over::Either => write!(f, "over TLS or a WebSocket on port {}", self.https_port),
        }
    }
}
