//! By what a message is known again: its id, or its content when it has none.
//!
//! Owns: the digest. Must not know: records, files. Used by: `inbox::{codec, ledger, apply}`.

use ring::digest::{Context, SHA256};

use crate::message::{C2dMessage, CONNECTION_DEVICE_ID, CONNECTION_MODULE_ID, Source};

/// Half a SHA-256: short enough to keep one per record in memory, long enough that nobody makes two messages share it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key([u8; Key::LEN]);

impl Key {
    pub(super) const LEN: usize = 16;

    /// Of a message that could not be decoded: it is not known again.
    pub(super) const NONE: Self = Self([0; Self::LEN]);

    /// Of a message with the id `id`. A module's ids are its own: they are told apart from those of others and of C2D messages,
    /// and so are two inputs to which one message is routed.
    pub(super) fn of(message: &C2dMessage, id: &str) -> Self {
        let Source::Input(input) = message.source() else { return Self::of_id(id) };
        let sender = [CONNECTION_DEVICE_ID, CONNECTION_MODULE_ID]
            .map(|name| message.property(name).unwrap_or_default());
        // No id of a device or module has a line break.
        let origin = format!("{input}\n{}\n{}\n", sender[0], sender[1]);
        Self::digest(&[b"input", &(origin.len() as u64).to_le_bytes(), origin.as_bytes(), id.as_bytes()])
    }

    /// Of a C2D message, or a call, with this id.
    pub(super) fn of_id(id: &str) -> Self {
        Self::digest(&[b"id", id.as_bytes()])
    }

    /// Of a message without an id.
    pub(super) fn of_content(bag: &str, body: &[u8]) -> Self {
        // The length keeps the end of the bag and the beginning of the body apart.
        Self::digest(&[b"content", &(bag.len() as u64).to_le_bytes(), bag.as_bytes(), body])
    }

    pub(super) fn from_bytes(bytes: [u8; Self::LEN]) -> Self {
        Self(bytes)
    }

    pub(super) fn as_bytes(&self) -> &[u8; Self::LEN] {
        &self.0
    }

    fn digest(parts: &[&[u8]]) -> Self {
        let mut context = Context::new(&SHA256);
        for part in parts {
            context.update(part);
        }
        let mut key = [0; Self::LEN];
        for (to, from) in key.iter_mut().zip(context.finish().as_ref()) {
            *to = *from;
        }
        Self(key)
    }
}
