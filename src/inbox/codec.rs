//! Records and messages to bytes and back: the values in the file's tables.
//!
//! Owns: the layout of values. Must not know: tables, transactions.
//!
//! A record has: the digests of its delivery and of its id (16 bytes each), its sequence number and enqueued time
//! (u64 and i64 LE; zeros if the transport has none), whether its completion is confirmed (1 byte), the length of its
//! message or 0 (u32 LE), the [`Record`] as JSON. The fields before the JSON let a scan run without hashing or
//! reading messages.
//! A message has: the length of its property bag (u32 LE), the bag, the body.

use bytes::Bytes;

use super::key::Digest;
use super::record::Record;
use crate::message::{C2dMessage, Sequence};

const LENGTH: usize = size_of::<u32>();
/// Where the byte of the confirmation is.
const CONFIRMED: usize = 2 * Digest::LEN + 2 * size_of::<u64>();
/// Means that there is none.
const NO_SEQUENCE: Sequence = Sequence { number: 0, enqueued_ms: 0 };

/// A record as it is stored.
#[derive(Debug)]
pub(super) struct Stored {
    /// The digest of the whole delivery.
    pub(super) delivery: Digest,
    /// The digest of the id. [`Digest::NONE`] if the message was passed over because another one has its id.
    pub(super) id: Digest,
    pub(super) sequence: Option<Sequence>,
    /// Whether the hub has confirmed the completion.
    pub(super) confirmed: bool,
    /// The length of its message, as stored. 0 if there is none.
    pub(super) message_len: u32,
    pub(super) record: Record,
}

impl Stored {
    pub(super) fn encode(&self) -> Result<Vec<u8>, String> {
        let mut value = Vec::with_capacity(512);
        value.extend_from_slice(self.delivery.as_bytes());
        value.extend_from_slice(self.id.as_bytes());
        let Sequence { number, enqueued_ms } = self.sequence.unwrap_or(NO_SEQUENCE);
        value.extend_from_slice(&number.to_le_bytes());
        value.extend_from_slice(&enqueued_ms.to_le_bytes());
        value.push(u8::from(self.confirmed));
        value.extend_from_slice(&self.message_len.to_le_bytes());
        serde_json::to_writer(&mut value, &self.record)
            .map_err(|error| format!("record {} cannot be written: {error}", self.record.number.0))?;
        Ok(value)
    }

    /// An error is a reason for a sentence about a damaged file.
    pub(super) fn decode(number: u64, value: &[u8]) -> Result<Self, String> {
        let broken = |reason: String| format!("record {number} cannot be read: {reason}");
        let too_short = || broken("it is too short".into());
        let (delivery, rest) = value.split_first_chunk::<{ Digest::LEN }>().ok_or_else(too_short)?;
        let (id, rest) = rest.split_first_chunk::<{ Digest::LEN }>().ok_or_else(too_short)?;
        let (sequence, rest) = rest.split_first_chunk::<8>().ok_or_else(too_short)?;
        let (enqueued, rest) = rest.split_first_chunk::<8>().ok_or_else(too_short)?;
        let (confirmed, rest) = rest.split_first().ok_or_else(too_short)?;
        let (length, json) = rest.split_first_chunk::<LENGTH>().ok_or_else(too_short)?;
        let record: Record = serde_json::from_slice(json).map_err(|error| broken(error.to_string()))?;
        if record.number.0 != number {
            return Err(broken(format!("it says that it is record {}", record.number.0)));
        }
        let sequence =
            Sequence { number: u64::from_le_bytes(*sequence), enqueued_ms: i64::from_le_bytes(*enqueued) };
        Ok(Self {
            delivery: Digest::from_bytes(*delivery),
            id: Digest::from_bytes(*id),
            sequence: Some(sequence).filter(|sequence| *sequence != NO_SEQUENCE),
            confirmed: *confirmed != 0,
            message_len: u32::from_le_bytes(*length),
            record,
        })
    }
}

/// Marks the completion in a stored record as confirmed. True if that is new. It does not decode the record, because
/// it runs for each message.
pub(super) fn confirm(value: &mut [u8]) -> bool {
    value.get_mut(CONFIRMED).is_some_and(|confirmed| std::mem::replace(confirmed, 1) == 0)
}

/// `bag` is the message's property bag, which the caller has already.
pub(super) fn encode_message(bag: &str, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(bag.len()).unwrap_or(u32::MAX);
    let mut value = Vec::with_capacity(LENGTH + bag.len() + body.len());
    value.extend_from_slice(&length.to_le_bytes());
    value.extend_from_slice(bag.as_bytes());
    value.extend_from_slice(body);
    value
}

/// An error is a reason for a sentence about a damaged file.
pub(super) fn decode_message(number: u64, value: &[u8]) -> Result<C2dMessage, String> {
    let broken = |reason: &str| format!("the message of record {number} cannot be read: {reason}");
    let (length, rest) = value.split_first_chunk::<LENGTH>().ok_or_else(|| broken("it is too short"))?;
    let length = usize::try_from(u32::from_le_bytes(*length)).unwrap_or(usize::MAX);
    let (bag, body) = rest.split_at_checked(length).ok_or_else(|| broken("its bag is cut off"))?;
    let bag = std::str::from_utf8(bag).map_err(|_| broken("its bag is not UTF-8"))?;
    C2dMessage::from_bag(bag, Bytes::copy_from_slice(body)).map_err(|error| broken(&error.to_string()))
}
