//! How a device gets to its hub.
//!
//! Owns: what carries the protocol, and the settings for that. Must not know: sockets, the environment.

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
    /// TLS or a WebSocket, whichever works.
    Either,
}

/// The way to the hub.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// What carries the protocol.
    pub over: Over,
    /// The port of WebSockets.
    pub https_port: u16,
    /// Proxies for WebSockets.
    pub proxies: ProxySettings,
    /// The longest silence of each side. After two of these without a sign of the other side, the connection is given
    /// up.
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
