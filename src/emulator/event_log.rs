//! D2C messages in the log, written in one way for all protocols, and the limit on foreign text in a line.
//!
//! Owns: the log line. Must not know: protocols, how messages are stored.

use crate::message::{MESSAGE_ID, Properties};

/// Most characters of a D2C message's body and properties in the log.
const EXCERPT: usize = 200;

/// Most messages of one batch that the log shows. A batch has room for 20,000 empty ones.
const MAX_LOGGED: usize = 20;

/// Writes a D2C message to the log.
pub(in crate::emulator) fn log_event(device_id: &str, properties: &Properties, body: &[u8], note: &str) {
    let message_id = properties.get(MESSAGE_ID);
    let bytes = body.len();
    let body = excerpt(&String::from_utf8_lossy(body.get(..EXCERPT * 4).unwrap_or(body)));
    let properties = excerpt(&properties.encode());
    tracing::info!(device_id, message_id, bytes, %properties, %body, "received a D2C message{note}");
}

/// Writes the D2C messages of a batch to the log. A large batch has one line for what is too much.
pub(in crate::emulator) fn log_events<B: AsRef<[u8]>>(device_id: &str, events: &[(Properties, B)]) {
    for (properties, body) in events.iter().take(MAX_LOGGED) {
        log_event(device_id, properties, body.as_ref(), "");
    }
    if events.len() > MAX_LOGGED {
        let messages = events.len();
        tracing::info!(
            device_id,
            messages,
            "received a batch of D2C messages: the first {MAX_LOGGED} are shown"
        );
    }
}

/// The beginning of foreign text, escaped so that it stays on one line.
pub(in crate::emulator) fn excerpt(text: &str) -> String {
    let mut short: String = text.chars().take(EXCERPT).flat_map(char::escape_debug).collect();
    if text.chars().nth(EXCERPT).is_some() {
        short.push('…');
    }
    short
}
