//! WebSockets in a build without the feature `full`: each dial fails with a sentence that says so.
//!
//! Owns: nothing. Must not know: anything.

use std::io;
use std::sync::Arc;

use crate::credentials::Proxy;
use crate::features;

/// Copies the constant in `websocket.rs`.
pub(crate) const HUB_PATH: &str = "/$iothub/websocket";

/// Copies the constant in `websocket.rs`.
pub(crate) const MQTT: &str = "mqtt";

/// Copies the constant in `websocket.rs`.
#[allow(dead_code)] // Only AMQP uses it, which needs the feature `full`.
pub(crate) const AMQP: &str = "AMQPWSB10";

/// Copies the type in `websocket/dial.rs`, for callers that compile in every build.
#[derive(Debug, Clone, Copy)]
#[allow(dead_code)] // No code dials.
pub(crate) struct Target<'a> {
    pub(crate) host: &'a str,
    pub(crate) port: u16,
    pub(crate) path: &'static str,
    pub(crate) subprotocol: &'static str,
    pub(crate) tls: &'a Arc<rustls::ClientConfig>,
    pub(crate) proxy: Option<&'a Proxy>,
}

/// Only names a type: no stream is ever made.
pub(crate) type HubStream = tokio::io::Empty;

/// Why there is no WebSocket.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DialError {
    /// The build lacks the feature.
    #[error("{}", features::FULL.lacks("WebSocket support"))]
    NotBuilt,
}

impl DialError {
    /// Always a sentence, because there is no I/O error.
    pub(crate) fn into_io(self) -> Result<io::Error, String> {
        Err(self.to_string())
    }
}

/// Fails.
///
/// # Errors
/// Always.
pub(crate) async fn dial(_target: Target<'_>) -> Result<HubStream, DialError> {
    Err(DialError::NotBuilt)
}
