//! What back ends do that read D2C messages: where they find them, who reads, and which message comes next.
//!
//! Owns: what a message takes along from the registry. Must not know: AMQP, how a partition keeps messages
//! (`partitions`), epochs (`consumers`).

use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;

use super::consumers::{ConsumerError, ConsumerId};
use super::partitions::{EventPosition, PartitionEvent, PartitionInfo};
use super::state::Hub;
use crate::emulator::event_hub::EventHub;
use crate::emulator::registry::{AuthError, DeviceCredential, Grant};
use crate::message::Properties;

impl Hub {
    /// Sets the port of the Event Hub-compatible endpoint. The standard one if nothing is set.
    pub fn serve_events_at(&mut self, port: u16) {
        self.partitions.port = port;
    }

    /// Where back ends read D2C messages.
    pub fn event_hub(&self) -> EventHub {
        EventHub::new(self.hostname(), self.partitions.port)
    }

    /// When the hub began.
    pub fn began(&self) -> SystemTime {
        self.partitions.began
    }

    /// Checks whether a back end may read D2C messages with a token for [`Hub::event_hub`].
    ///
    /// # Errors
    /// [`AuthError`] gives the reason for the log. Each protocol decides what the client is told.
    pub fn authenticate_reader(&self, token: &str, now: SystemTime) -> Result<Grant, AuthError> {
        self.registry.authenticate_reader(&self.event_hub(), token, now)
    }

    /// Adds a message of an existing device or module to its partition.
    pub(super) fn add_to_partition(
        &mut self,
        id: &str,
        properties: Properties,
        body: Bytes,
        now: SystemTime,
    ) {
        let has_certificate = self
            .registry
            .device(id)
            .is_some_and(|(device, _)| !matches!(device.credential, DeviceCredential::Keys(_)));
        let generation = self.registry.generation(id).unwrap_or_default().to_owned();
        let (sequence_number, id) = (0, id.to_owned()); // The partition gives the number.
        let event = PartitionEvent {
            sequence_number,
            enqueued: now,
            id,
            generation,
            has_certificate,
            properties,
            body,
        };
        self.partitions.push(event);
    }

    /// What a partition keeps; `None` if there is no such partition.
    pub fn partition_info(&self, partition: usize) -> Option<PartitionInfo> {
        self.partitions.info(partition)
    }

    /// The number of the first message that a reader gets who begins there; it may not be there yet.
    pub fn first_number(&self, partition: usize, position: EventPosition) -> u64 {
        self.partitions.first_number(partition, position)
    }

    /// The first message of a partition with at least this number; `None` if it has not come yet. What the partition
    /// does not keep any more is skipped.
    pub fn event_from(&self, partition: usize, number: u64) -> Option<Arc<PartitionEvent>> {
        self.partitions.event_from(partition, number)
    }

    /// Adds a reader. With an epoch it ends the other readers of the partition in the group, which
    /// [`Hub::is_reading`] tells them.
    ///
    /// # Errors
    /// [`ConsumerError`]; in this case nothing has changed.
    pub fn begin_reading(
        &mut self,
        group: &str,
        partition: usize,
        epoch: Option<i64>,
    ) -> Result<ConsumerId, ConsumerError> {
        self.consumers.begin(group, partition, epoch)
    }

    /// Whether the reader still has its partition.
    pub fn is_reading(&self, id: ConsumerId) -> bool {
        self.consumers.is_reading(id)
    }

    /// Removes a reader. If it has lost its partition, nothing happens.
    pub fn end_reading(&mut self, id: ConsumerId) {
        self.consumers.end(id);
    }

    /// Rises with every change that a reader must act on.
    pub fn event_version(&self) -> u64 {
        self.partitions.count() + self.consumers.count()
    }
}

#[cfg(test)]
mod tests {
    use super::super::consumers::{MAX_CONSUMERS, MAX_READERS};
    use super::super::partitions::{MAX_PARTITION_EVENTS, PARTITIONS, millis_of, partition_of};
    use super::super::tests::{NOW, after, hub};
    use super::*;

    fn send(hub: &mut Hub, body: &'static [u8], now: SystemTime) {
        hub.record_event("dev1", Properties::default(), Bytes::from_static(body), now);
    }

    /// The bodies that a reader gets who begins there.
    fn read(hub: &Hub, position: EventPosition) -> Vec<Bytes> {
        let partition = partition_of("dev1");
        let mut number = hub.first_number(partition, position);
        std::iter::from_fn(|| {
            let event = hub.event_from(partition, number)?;
            number = event.sequence_number + 1;
            Some(event.body.clone())
        })
        .collect()
    }

    #[test]
    fn a_reader_begins_at_a_number_at_a_time_or_at_the_end() {
        let mut hub = hub();
        hub.number_from(after(5));
        for (body, at) in [(&b"a"[..], 1), (b"b", 2), (b"c", 2), (b"d", 3)] {
            send(&mut hub, body, after(at));
        }
        let partition = partition_of("dev1");
        let first = hub.partition_info(partition).expect("a partition").first;
        assert!(first >= 5_000_000, "numbers rise over a restart");
        let number = i64::try_from(first).expect("a number");
        let at = |number, inclusive| EventPosition::Number { number, inclusive };
        let since = |seconds, inclusive| EventPosition::Time { millis: millis_of(after(seconds)), inclusive };
        for (position, bodies) in [
            (at(-1, false), &["a", "b", "c", "d"][..]),
            (at(i64::MIN, true), &["a", "b", "c", "d"]),
            (at(number, false), &["b", "c", "d"]),
            (at(number + 1, true), &["b", "c", "d"]),
            (at(i64::MAX, false), &[]),
            (since(2, true), &["b", "c", "d"]),
            (since(2, false), &["d"]),
            (since(3, false), &[]),
            (EventPosition::End, &[]),
        ] {
            assert_eq!(read(&hub, position), bodies, "{position:?}");
        }
        let info = hub.partition_info(partition).expect("a partition");
        assert_eq!((info.last, info.is_empty), (Some((first + 3, after(3))), false));
        assert_eq!(hub.partition_info(PARTITIONS), None);
        assert!((0..PARTITIONS).filter(|other| *other != partition).all(|other| {
            hub.partition_info(other).is_some_and(|info| info.is_empty && info.last.is_none())
        }));
    }

    #[test]
    fn a_partition_keeps_its_last_messages_by_count_and_by_bytes() {
        let mut hub = hub();
        for _ in 0..MAX_PARTITION_EVENTS + 3 {
            send(&mut hub, b"", NOW);
        }
        let all = EventPosition::Number { number: -1, inclusive: false };
        let number = |hub: &Hub| hub.first_number(partition_of("dev1"), all);
        let before = number(&hub);
        assert_eq!(read(&hub, all).len(), MAX_PARTITION_EVENTS);
        let body = Bytes::from(vec![0; 256 * 1024]);
        for _ in 0..100 {
            hub.record_event("dev1", Properties::default(), body.clone(), NOW);
        }
        assert_eq!(read(&hub, all).len(), 63, "16 MiB of messages with a little around them");
        assert_eq!(number(&hub), before + 10_000 + 100 - 63, "the number of a message does not change");
    }

    #[test]
    fn neighbours_have_other_partitions_and_a_module_has_that_of_its_device() {
        let partitions: Vec<usize> = ["dev1", "dev2", "dev3", "dev4"].map(partition_of).to_vec();
        let mut sorted = partitions.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, [0, 1, 2, 3]);
        assert_eq!(partition_of("dev1/filter"), partition_of("dev1"));
    }

    #[test]
    fn an_epoch_takes_a_partition_over_and_keeps_others_out() {
        let mut hub = hub();
        let plain = hub.begin_reading("$Default", 0, None).expect("the first");
        let other = hub.begin_reading("other", 0, None).expect("another group");
        let low = hub.begin_reading("$default", 0, Some(1)).expect("an epoch");
        assert!(!hub.is_reading(plain) && hub.is_reading(low) && hub.is_reading(other));
        assert_eq!(hub.begin_reading("$Default", 0, Some(0)), Err(ConsumerError::Taken(1)));
        assert_eq!(hub.begin_reading("$Default", 0, None), Err(ConsumerError::Taken(1)));
        let equal = hub.begin_reading("$Default", 0, Some(1)).expect("an equal epoch");
        assert!(!hub.is_reading(low) && hub.is_reading(equal));
        hub.end_reading(equal);
        assert!(hub.begin_reading("$Default", 0, None).is_ok());
    }

    #[test]
    fn readers_are_limited_by_partition_and_in_all() {
        let mut hub = hub();
        for _ in 0..MAX_READERS {
            hub.begin_reading("$Default", 0, None).expect("room");
        }
        assert_eq!(hub.begin_reading("$Default", 0, None), Err(ConsumerError::TooMany(MAX_READERS)));
        for group in MAX_READERS..MAX_CONSUMERS {
            hub.begin_reading(&group.to_string(), 1, None).expect("room");
        }
        assert_eq!(hub.begin_reading("$Default", 1, Some(1)), Err(ConsumerError::TooMany(MAX_CONSUMERS)));
    }
}
