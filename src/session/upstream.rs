//! What a device sends to the hub, and why it may not arrive.
//!
//! Owns: these words. Must not know: transports.

use bytes::Bytes;

use crate::message::Properties;

/// What a device sends to the hub.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Upstream {
    /// A D2C message. Properties are system and application properties together, in the order in which they are sent.
    Telemetry { properties: Properties, body: Bytes },
    /// A patch of the twin's reported properties: a JSON object.
    Reported { patch: Bytes },
    /// A request for the whole twin: JSON with `desired` and `reported`, each with its `$version`.
    ReadTwin,
    /// A request for a certificate, over MQTT only. It is published when the hub has it; the answers come as
    /// [`Event::CertificateAnswer`](super::Event::CertificateAnswer), if need be on another connection.
    IssueCertificate { request: String, body: Bytes },
}

/// Why something did not reach the hub.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PublishError {
    /// It was not sent (no connection, or eight already unanswered), the connection ended before the answer, or no
    /// answer came within 30 seconds. The hub may have it. Publish it again later: at the next
    /// [`Event::Subscribed`](super::Event::Subscribed), or after a pause.
    #[error("the connection was lost before the hub answered, or the hub did not answer")]
    Lost,
    /// The hub is busy (429 or 5xx): try again later.
    #[error("the hub is busy (status {0})")]
    Busy(u16),
    /// The hub will never accept it: 413 if it is too large for one packet, 403 if there is no twin.
    #[error("the hub refused it with status {0}")]
    Refused(u16),
}
