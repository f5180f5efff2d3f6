//! Clearing a device's queue.
//!
//! Owns: which messages are removed. Must not know: HTTP.
//!
//! Source: wire reference 4.5, 5.1 and 5.2. In the table of states, a purge removes Enqueued messages but not Invisible
//! ones: the device must settle the messages that it holds, so they stay.

use std::time::SystemTime;

use super::state::Hub;
use crate::feedback::FeedbackStatus;

impl Hub {
    /// Removes every waiting message from the device's queue, with feedback `Purged` if the sender asked for it.
    /// Returns how many there were; `None` if the device does not exist.
    pub fn purge(&mut self, device_id: &str, now: SystemTime) -> Option<usize> {
        self.expire(device_id, now);
        let purged = self.devices.get_mut(device_id)?.queue.take_waiting();
        for finished in &purged {
            self.record(device_id, finished, FeedbackStatus::Purged, now);
        }
        self.version += 1;
        Some(purged.len())
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{NOW, after, connect, hub, next_id, send};
    use crate::feedback::{DeliveryAck, FeedbackStatus};

    #[test]
    fn what_waits_goes_with_feedback_where_asked_for_and_what_is_locked_stays() {
        let mut hub = hub();
        let acks = [DeliveryAck::Full, DeliveryAck::Full, DeliveryAck::None, DeliveryAck::Positive];
        for (number, ack) in (1..).zip(acks) {
            send(&mut hub, &format!("m{number}"), ack);
        }
        send(&mut hub, "m5", DeliveryAck::Negative);
        let locked = hub.poll("dev1", NOW).expect("m1");
        assert_eq!(hub.purge("dev1", after(1)), Some(4));
        assert_eq!((hub.queue_length("dev1"), hub.purge("dev1", after(1))), (Some(1), Some(0)));
        hub.complete("dev1", locked.lock, after(2)).expect("still held");
        let batch = hub.next_feedback_batch(after(2)).expect("due");
        let seen: Vec<_> = batch
            .records
            .iter()
            .map(|record| (record.original_message_id.as_str(), record.status_code))
            .collect();
        let purged = FeedbackStatus::Purged;
        assert_eq!(seen, [("m2", purged), ("m5", purged), ("m1", FeedbackStatus::Success)]);
        assert_eq!(batch.records[0].enqueued_time_utc, "1970-01-01T00:00:01.0000000Z");
    }

    #[test]
    fn what_expired_first_is_not_purged_and_a_lock_that_lapsed_holds_nothing() {
        let mut hub = hub();
        send(&mut hub, "m1", DeliveryAck::Full);
        let connection = connect(&mut hub, true);
        assert_eq!(next_id(&mut hub, connection, NOW).as_deref(), Some("m1"));
        assert_eq!(hub.purge("dev1", after(59)), Some(0));
        assert_eq!(hub.purge("dev1", after(60)), Some(1));
        send(&mut hub, "m2", DeliveryAck::Full);
        assert_eq!(hub.purge("dev1", after(3600)), Some(0));
        let batch = hub.next_feedback_batch(after(3600)).expect("due");
        assert_eq!(batch.records.last().map(|record| record.status_code), Some(FeedbackStatus::Expired));
        assert_eq!(hub.purge("dev9", NOW), None);
    }
}
