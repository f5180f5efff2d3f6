//! The keys by which a message is recognised: all of its content, its sequence number if the transport has one, or
//! its id alone.
//!
//! Owns: the digests, and which ids are keys. Must not know: records, files.

use std::borrow::Cow;

use ring::digest::{Context, SHA256};

use super::record::to_millis;
use crate::config::KnownBy;
use crate::message::{
    C2dMessage, CONNECTION_DEVICE_ID, CONNECTION_MODULE_ID, EXPIRY, Source, contains_uuid, parse_time,
};

/// Half a SHA-256. It is short enough to keep two per record in memory, and long enough that two messages cannot be
/// made to share it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Digest([u8; Digest::LEN]);

impl Digest {
    pub(super) const LEN: usize = 16;

    /// The key of what cannot be recognised: a message that could not be decoded, or the missing id of a message.
    pub(super) const NONE: Self = Self([0; Self::LEN]);

    /// The key of a whole delivery: door, properties and body. The order of properties and the format of the expiry
    /// do not count, because they depend on the transport, and a message may come again over another one.
    pub(super) fn of_delivery(message: &C2dMessage) -> Self {
        let pairs = message.system.iter().chain(message.application.iter());
        let mut pairs: Vec<(&str, Cow<'_, str>)> = pairs
            .map(|(name, value)| match parse_time(value.unwrap_or_default()).filter(|_| name == EXPIRY) {
                Some(time) => (name, to_millis(time).to_string().into()),
                None => (name, value.unwrap_or_default().into()),
            })
            .collect();
        pairs.sort_unstable();
        // Each text has its length before it, so that two different messages never give the same bytes.
        let mut properties = Vec::with_capacity(512);
        for text in pairs.iter().flat_map(|(name, value)| [*name, value]) {
            properties.extend_from_slice(&(text.len() as u64).to_le_bytes());
            properties.extend_from_slice(text.as_bytes());
        }
        Self::of_parts(&[b"delivery", &(properties.len() as u64).to_le_bytes(), &properties, &message.body])
    }

    /// The key of a message's id. Each module numbers its own messages. So the key also covers the sender and the
    /// input, and differs from that of a C2D message with this id.
    pub(super) fn of_id_of(message: &C2dMessage) -> Self {
        let Some(id) = message.message_id() else { return Self::NONE };
        let Source::Input(input) = message.source() else { return Self::of_id(id) };
        let sender = [CONNECTION_DEVICE_ID, CONNECTION_MODULE_ID]
            .map(|name| message.property(name).unwrap_or_default());
        // Ids of devices and modules have no line breaks.
        let origin = format!("{input}\n{}\n{}\n", sender[0], sender[1]);
        Self::of_parts(&[b"input", &(origin.len() as u64).to_le_bytes(), origin.as_bytes(), id.as_bytes()])
    }

    /// The key of a C2D message, or a call, with this id.
    pub(super) fn of_id(id: &str) -> Self {
        Self::of_parts(&[b"id", id.as_bytes()])
    }

    /// Enough of it to find it among others.
    pub(super) fn beginning(self) -> u64 {
        self.0.first_chunk().map(|bytes| u64::from_le_bytes(*bytes)).unwrap_or_default()
    }

    pub(super) fn from_bytes(bytes: [u8; Self::LEN]) -> Self {
        Self(bytes)
    }

    pub(super) fn as_bytes(&self) -> &[u8; Self::LEN] {
        &self.0
    }

    fn of_parts(parts: &[&[u8]]) -> Self {
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

/// Whether a message with this id is recognised by the id alone.
pub(super) fn is_known_by_id(message: &C2dMessage, known_by: KnownBy) -> bool {
    let Some(id) = message.message_id() else { return false };
    match known_by {
        // The agent makes the id of a call itself, for this call alone.
        _ if matches!(message.source(), Source::Method(_)) => true,
        KnownBy::Auto => contains_uuid(id),
        KnownBy::Delivery => false,
        KnownBy::Id => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delivery_is_the_same_in_another_order_and_with_its_expiry_written_otherwise() {
        let of = |bag: &str, body: &'static str| {
            Digest::of_delivery(&C2dMessage::from_bag(bag, body.into()).expect("a bag"))
        };
        let one = of("%24.mid=m&%24.exp=2026-11-29T18%3A00%3A00.0000000Z&a=1&b", "x");
        assert_eq!(one, of("b=&a=1&%24.exp=2026-11-29T18%3A00%3A00Z&%24.mid=m", "x"));
        for (bag, body) in [
            ("%24.mid=m&%24.exp=2026-11-29T18%3A00%3A00.0000000Z&a=1&b", "y"),
            ("%24.mid=m&%24.exp=2026-11-29T18%3A00%3A01.0000000Z&a=1&b", "x"),
            ("%24.mid=n&%24.exp=2026-11-29T18%3A00%3A00.0000000Z&a=1&b", "x"),
            ("%24.mid=m&%24.exp=2026-11-29T18%3A00%3A00.0000000Z&a=1b", "x"),
        ] {
            assert_ne!(one, of(bag, body), "{bag} {body}");
        }
    }
}
