//! Why a connection of a device ends.
//!
//! Owns: the reasons in words. Must not know: packets.

use super::codec::WireError;

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum MqttEnd {
    #[error("the device sent DISCONNECT")]
    Goodbye,
    #[error("the device closed the connection without DISCONNECT")]
    Closed,
    #[error("a newer connection of the same device replaced it, or the device was deleted or disabled")]
    Displaced,
    #[error("the token expired")]
    TokenExpired,
    #[error("the device was silent for longer than its keep-alive allows")]
    Silent,
    #[error("{0}")]
    Refused(String),
    #[error("the fault drop-at drops the connection at this packet")]
    Dropped,
    #[error("the hub throttles the device (throttle)")]
    Throttled,
    #[error("the emulator is stopping")]
    Stopped,
    #[error(transparent)]
    Wire(#[from] WireError),
}
