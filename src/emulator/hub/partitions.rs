//! D2C messages as back ends read them: those of all devices together, in partitions, each one with a number.
//!
//! Owns: which partition a device has, how many messages a partition keeps, and where a reader begins. Must not know:
//! AMQP, who reads, files, the clock.
//!
//! Source: Microsoft's documents on Event Hubs (partitions, offsets, retention) and on the hub's built-in endpoint.
//! Choices: the offset of a message is its sequence number, and all partitions are only in memory. The numbers begin
//! with the time at which the hub starts, so they also rise over a restart, and a reader that comes back with an old
//! offset misses nothing that is kept.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;

use crate::emulator::identity;
use crate::emulator::listener::AMQP_PORT;
use crate::message::Properties;

/// The partitions of the hub. A new hub of Azure has as many.
pub const PARTITIONS: usize = 4;

/// Most messages that a partition keeps.
pub const MAX_PARTITION_EVENTS: usize = 10_000;

/// Most bytes that a partition keeps, with what memory needs around them. A single message always fits.
pub const MAX_PARTITION_BYTES: usize = 16 * 1024 * 1024;

/// About how many bytes of memory a message needs beside its texts and its body, and each property beside its text.
const MESSAGE_OVERHEAD: usize = 256;
const PROPERTY_OVERHEAD: usize = 96;

/// A D2C message in a partition.
#[derive(Debug, PartialEq, Eq)]
pub struct PartitionEvent {
    /// The message's number in its partition.
    pub sequence_number: u64,
    /// When the hub accepted the message.
    pub enqueued: SystemTime,
    /// The device or module that sent the message.
    pub id: String,
    /// The generation of the device or module.
    pub generation: String,
    /// Whether the device or module signs in with a certificate.
    pub has_certificate: bool,
    /// System and application properties together, as they came over the wire.
    pub properties: Properties,
    /// The body; may be empty.
    pub body: Bytes,
}

/// Where a reader begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventPosition {
    /// Behind the last message.
    End,
    /// Behind the message with this number, or with `inclusive` at it. Any number below those that are kept is the
    /// beginning.
    Number {
        /// A sequence number or an offset.
        number: i64,
        /// Whether the message with this number is read, too.
        inclusive: bool,
    },
    /// At the first message that was accepted after this time, or with `inclusive` at it.
    Time {
        /// Milliseconds since 1970.
        millis: i64,
        /// Whether messages of this time are read, too.
        inclusive: bool,
    },
}

/// What a back end can ask about a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PartitionInfo {
    /// The number of the oldest message that is kept. If none is kept, the one of the next message.
    pub first: u64,
    /// The number of the last message and the time when the hub accepted it; `None` if there was none.
    pub last: Option<(u64, SystemTime)>,
    /// Whether no message is kept.
    pub is_empty: bool,
}

/// All partitions.
#[derive(Debug)]
pub(super) struct Partitions {
    all: [Partition; PARTITIONS],
    /// Rises with each message.
    count: u64,
    /// When the hub began.
    pub(super) began: SystemTime,
    /// The port of the Event Hub-compatible endpoint.
    pub(super) port: u16,
}

/// The messages of one partition, oldest first. Their numbers have no gaps.
#[derive(Debug)]
struct Partition {
    kept: VecDeque<Arc<PartitionEvent>>,
    bytes: usize,
    next: u64,
    last: Option<(u64, SystemTime)>,
}

impl Partitions {
    /// Empty partitions. The first number in each is 0.
    pub(super) fn new() -> Self {
        let empty = || Partition { kept: VecDeque::new(), bytes: 0, next: 0, last: None };
        Self { all: std::array::from_fn(|_| empty()), count: 0, began: UNIX_EPOCH, port: AMQP_PORT }
    }

    /// Says when the hub begins, before the first message. The numbers begin with that time in microseconds.
    pub(super) fn begin(&mut self, now: SystemTime) {
        self.began = now;
        let micros = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_micros();
        for partition in &mut self.all {
            partition.next = partition.next.max(u64::try_from(micros).unwrap_or_default());
        }
    }

    pub(super) fn count(&self) -> u64 {
        self.count
    }

    /// Adds a message to the partition of its device, which gives it its number.
    pub(super) fn push(&mut self, event: PartitionEvent) {
        self.count += 1;
        if let Some(partition) = self.all.get_mut(partition_of(&event.id)) {
            partition.push(event);
        }
    }

    /// What a partition keeps; `None` if there is no such partition.
    pub(super) fn info(&self, partition: usize) -> Option<PartitionInfo> {
        let partition = self.all.get(partition)?;
        let (first, is_empty) = (partition.first(), partition.kept.is_empty());
        Some(PartitionInfo { first, last: partition.last, is_empty })
    }

    /// The number of the first message that a reader gets who begins there; it may not be there yet.
    pub(super) fn first_number(&self, partition: usize, position: EventPosition) -> u64 {
        let Some(partition) = self.all.get(partition) else { return 0 };
        match position {
            EventPosition::End => partition.next,
            EventPosition::Number { number, inclusive } => {
                let first = number.saturating_add(i64::from(!inclusive));
                u64::try_from(first).unwrap_or_default().max(partition.first())
            }
            EventPosition::Time { millis, inclusive } => {
                let fits = |event: &&Arc<PartitionEvent>| {
                    let own = millis_of(event.enqueued);
                    own > millis || (inclusive && own == millis)
                };
                partition.kept.iter().find(fits).map_or(partition.next, |event| event.sequence_number)
            }
        }
    }

    /// The first message of a partition with at least this number; `None` if it has not come yet. What the partition
    /// does not keep any more is skipped.
    pub(super) fn event_from(&self, partition: usize, number: u64) -> Option<Arc<PartitionEvent>> {
        let partition = self.all.get(partition)?;
        let at = usize::try_from(number.saturating_sub(partition.first())).ok()?;
        partition.kept.get(at).cloned()
    }
}

impl Partition {
    fn push(&mut self, event: PartitionEvent) {
        let event = PartitionEvent { sequence_number: self.next, ..event };
        self.next += 1;
        self.last = Some((event.sequence_number, event.enqueued));
        self.bytes += size(&event);
        self.kept.push_back(Arc::new(event));
        while self.kept.len() > MAX_PARTITION_EVENTS || self.bytes > MAX_PARTITION_BYTES {
            let Some(oldest) = self.kept.pop_front() else { break };
            self.bytes -= size(&oldest);
        }
    }

    fn first(&self) -> u64 {
        self.kept.front().map_or(self.next, |event| event.sequence_number)
    }
}

/// Milliseconds since 1970, as Event Hubs count time.
pub fn millis_of(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// The partition of a device and its modules: FNV-1a of the device's id. A device keeps its partition, so its messages
/// keep their order.
pub fn partition_of(id: &str) -> usize {
    let (device, _) = identity::split(id);
    let mix = |hash: u32, byte: u8| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
    let hash = device.bytes().fold(0x811c_9dc5_u32, mix);
    usize::try_from(hash).unwrap_or_default() % PARTITIONS
}

fn size(event: &PartitionEvent) -> usize {
    let text = |(name, value): (&str, Option<&str>)| name.len() + value.map_or(0, str::len);
    let properties = event.properties.iter().map(|pair| text(pair) + PROPERTY_OVERHEAD).sum::<usize>();
    event.body.len() + properties + event.id.len() + MESSAGE_OVERHEAD
}
