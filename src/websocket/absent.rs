//! WebSockets of a build without the feature `websocket`: there are none, and whoever dials one is told.
//!
//! Owns: nothing. Must not know: anything.

use std::io;
use std::sync::Arc;

use crate::credentials::Proxy;
use crate::features;

/// As of the real one.
pub(crate) const MQTT: &str = "mqtt";

/// As of the real one.
#[allow(dead_code)] // AMQP is a feature.
pub(crate) const AMQP: &str = "AMQPWSB10";

/// As of the real one.
#[derive(Debug, Clone, Copy)]
#[allow(dead_code)] // Nobody dials.
pub(crate) struct Target<'a> {
    pub(crate) host: &'a str,
    pub(crate) port: u16,
    pub(crate) subprotocol: &'static str,
    pub(crate) tls: &'a Arc<rustls::ClientConfig>,
    pub(crate) proxy: Option<&'a Proxy>,
}

/// Never made.
pub(crate) type HubStream = tokio::io::Empty;

/// Why there is none.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DialError {
    /// Always.
    #[error("{}", features::WEBSOCKET.lacks("WebSocket support"))]
    NotBuilt,
}

impl DialError {
    /// As of the real one.
    pub(crate) fn into_io(self) -> Result<io::Error, String> {
        Err(self.to_string())
    }
}

/// # Errors
/// Always.
pub(crate) async fn dial(_target: Target<'_>) -> Result<HubStream, DialError> {
    Err(DialError::NotBuilt)
}
