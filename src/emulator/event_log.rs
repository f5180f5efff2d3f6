//! D2C messages in the log, written in one way for all protocols, and the limit on foreign text in a line.
//!
//! Owns: the log line. Must not know: protocols, how messages are stored.

use crate::message::{MESSAGE_ID, Properties};

/// Most characters of a D2C message's body and properties in the log.
const EXCERPT: usize = 200;

/// Writes a D2C message to the log.
pub(in crate::emulator) fn log_event(device_id: &str, properties: &Properties, body: &[u8], note: &str) {
    let message_id = properties.get(MESSAGE_ID);
    let bytes = body.len();
    let body = excerpt(&String::from_utf8_lossy(body.get(..EXCERPT * 4).unwrap_or(body)));
    let properties = excerpt(&properties.encode());
    tracing::info!(device_id, message_id, bytes, %properties, %body, "received a D2C message{note}");
}

/// The beginning of foreign text, escaped so that it stays on one line.
pub(in crate::emulator) fn excerpt(text: &str) -> String {
    let mut short: String = text.chars().take(EXCERPT).flat_map(char::escape_debug).collect();
    if text.chars().nth(EXCERPT).is_some() {
        short.push('…');
    }
    short
}
