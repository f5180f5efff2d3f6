//! What carries the protocol: TLS alone, or a WebSocket over TLS.
//!
//! Owns: the names of the transports. Must not know: sockets.

use crate::credentials::Transport;

/// What carries the protocol on one connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Carrier {
    Tls,
    WebSocket,
}

impl Carrier {
    /// The protocol and its carrier, as the configuration names them.
    pub(super) fn name(self, transport: Transport) -> &'static str {
        match (transport, self) {
            (Transport::Mqtt, Self::Tls) => "mqtt",
            (Transport::Mqtt, Self::WebSocket) => "mqtt-ws",
            (Transport::Amqp, Self::Tls) => "amqp",
            (Transport::Amqp, Self::WebSocket) => "amqp-ws",
        }
    }
}
