//! The readers of D2C messages: which of them share a partition in a consumer group, and which one takes it over.
//!
//! Owns: epochs, and how many readers there may be. Must not know: AMQP, the messages.
//!
//! Source: Microsoft's documents on Event Hubs, "Event consumers": an epoch takes a partition for one reader of a
//! group, a higher or equal one takes it over, and without epochs five readers may share it. Choice: every consumer
//! group exists.

/// Most readers without an epoch of one partition in one consumer group. Source: quotas of Event Hubs.
pub const MAX_READERS: usize = 5;

/// Most readers of the hub.
pub const MAX_CONSUMERS: usize = 1000;

/// One reader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConsumerId(u64);

/// Why a reader is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConsumerError {
    /// A reader with a higher epoch has the partition; its epoch.
    #[error("a reader with the epoch {0} has this partition in this consumer group")]
    Taken(i64),
    /// Too many readers.
    #[error("there are {0} readers already: end one, or read in another consumer group")]
    TooMany(usize),
}

/// All readers.
#[derive(Debug, Default)]
pub(super) struct Consumers {
    all: Vec<Consumer>,
    /// Rises with each reader that is added.
    last: u64,
}

#[derive(Debug)]
struct Consumer {
    id: ConsumerId,
    group: String,
    partition: usize,
    epoch: Option<i64>,
}

impl Consumers {
    pub(super) fn count(&self) -> u64 {
        self.last
    }

    /// Adds a reader. With an epoch it ends the other readers of the partition in the group.
    pub(super) fn begin(
        &mut self,
        group: &str,
        partition: usize,
        epoch: Option<i64>,
    ) -> Result<ConsumerId, ConsumerError> {
        let Self { all, last } = self;
        let is_here =
            |other: &Consumer| other.partition == partition && other.group.eq_ignore_ascii_case(group);
        let here = || all.iter().filter(|other| is_here(other));
        let highest = here().filter_map(|other| other.epoch).max();
        if let Some(highest) = highest.filter(|highest| epoch.is_none_or(|epoch| epoch < *highest)) {
            return Err(ConsumerError::Taken(highest));
        }
        if epoch.is_none() && here().count() >= MAX_READERS {
            return Err(ConsumerError::TooMany(MAX_READERS));
        }
        if all.len() >= MAX_CONSUMERS {
            return Err(ConsumerError::TooMany(MAX_CONSUMERS));
        }
        if epoch.is_some() {
            all.retain(|other| !is_here(other));
        }
        *last += 1;
        let id = ConsumerId(*last);
        all.push(Consumer { id, group: group.to_owned(), partition, epoch });
        Ok(id)
    }

    /// Whether the reader still has its partition.
    pub(super) fn is_reading(&self, id: ConsumerId) -> bool {
        self.all.iter().any(|own| own.id == id)
    }

    /// Removes a reader. If it has lost its partition, nothing happens.
    pub(super) fn end(&mut self, id: ConsumerId) {
        self.all.retain(|own| own.id != id);
    }
}
