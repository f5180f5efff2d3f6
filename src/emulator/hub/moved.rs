//! What the hub does when its clock is moved.
//!
//! Owns: which waits are cut short when the clock goes back. Must not know: who moves the clock, the real time.
//!
//! Choices, because a real hub's clock does not move. Forward: what is due by then happens at once. Back: times that
//! others have seen, such as an expiry, stay as they are; what only runs for a while, such as a lock, does not take
//! longer than it would if it began now.

use std::time::SystemTime;

use super::state::Hub;
use crate::emulator::clock::ClockOffset;

impl Hub {
    /// Tells the hub that its clock now shows `now`, and by how much that differs from the real time. Clients keep to
    /// the real time; see [`crate::emulator::registry::Registry::set_clock_offset`].
    pub fn clock_moved(&mut self, offset: ClockOffset, now: SystemTime) {
        self.registry.set_clock_offset(offset);
        let all: Vec<String> = self.device_ids().map(str::to_owned).collect();
        for id in &all {
            if let Some(state) = self.devices.passing_mut(id) {
                state.queue.go_back_to(now);
                state.calls.go_back_to(now);
            }
            // Everything that waits looks at the clock again.
            self.wake(id);
        }
        self.feedback.go_back_to(now);
        self.jobs.go_back_to(now);
        self.version += 1;
        self.tick(now);
    }

    /// By how much the hub's clock differs from the real one.
    pub fn clock_offset(&self) -> ClockOffset {
        self.registry.clock_offset()
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{NOW, after, connect, hub, next_id, send};
    use super::super::{BackEndCall, CallProgress, Fault, MIN_RESPONSE_TIMEOUT, QueuedMessage, Subscription};
    use super::*;
    use crate::feedback::{DeliveryAck, FeedbackStatus};
    use crate::message::C2dMessage;
    use std::time::Duration;

    const DAY: u64 = 24 * 60 * 60;

    fn moved(hub: &mut Hub, now: SystemTime) {
        hub.clock_moved(ClockOffset::default(), now);
    }

    #[test]
    fn a_lock_of_a_clock_that_went_back_lasts_a_minute_from_then() {
        let mut hub = hub();
        moved(&mut hub, after(2 * DAY));
        let queued = QueuedMessage {
            device_id: "dev1".into(),
            message: C2dMessage::default(),
            ack: DeliveryAck::Full,
            expiry: Some(after(3 * DAY)),
        };
        hub.enqueue(queued, after(2 * DAY)).expect("queued");
        let polled = hub.poll("dev1", after(2 * DAY)).expect("waiting");
        moved(&mut hub, NOW);
        assert_eq!(hub.next_deadline(), Some(after(60)));
        hub.tick(after(59));
        assert!(hub.poll("dev1", after(59)).is_none(), "it is still locked");
        let again = hub.poll("dev1", after(60)).expect("the lock is over");
        assert_eq!((again.sequence_number, again.enqueued), (1, after(2 * DAY)), "what clients saw stays");
        assert!(hub.complete("dev1", polled.lock, after(60)).is_err());
        assert_eq!(hub.complete("dev1", again.lock, after(61)), Ok(()));
    }

    #[test]
    fn forward_what_is_due_by_then_happens_at_once_and_back_it_is_not_undone() {
        let mut hub = hub();
        send(&mut hub, "m1", DeliveryAck::Full);
        let before = hub.version();
        moved(&mut hub, after(DAY));
        assert_ne!(hub.version(), before);
        assert_eq!(hub.queue_length("dev1"), Some(0), "a message without an expiry lives for an hour");
        moved(&mut hub, NOW);
        let batch = hub.next_feedback_batch(NOW).expect("the records stay");
        assert_eq!(batch.records[0].status_code, FeedbackStatus::Expired);
        // The batch is locked for a minute by the clock that went back, and so is the interval until the next one.
        moved(&mut hub, after(DAY));
        assert_eq!(hub.complete_feedback(batch.lock), Err(super::super::LockLost));
    }

    #[test]
    fn feedback_does_not_wait_for_a_time_that_has_been_left() {
        let mut hub = hub();
        moved(&mut hub, after(2 * DAY));
        for id in ["m1", "m2"] {
            let mut message = C2dMessage::default();
            message.system.set(crate::message::MESSAGE_ID, id);
            let queued =
                QueuedMessage { device_id: "dev1".into(), message, ack: DeliveryAck::Full, expiry: None };
            hub.enqueue(queued, after(2 * DAY)).expect("queued");
        }
        let complete = |hub: &mut Hub, now| {
            let polled = hub.poll("dev1", now).expect("waiting");
            hub.complete("dev1", polled.lock, now).expect("locked");
        };
        complete(&mut hub, after(2 * DAY));
        let first = hub.next_feedback_batch(after(2 * DAY)).expect("due");
        moved(&mut hub, NOW);
        hub.tick(after(60));
        let first_again = hub.next_feedback_batch(after(60)).expect("its lock is over");
        assert_eq!(first_again.records, first.records);
        hub.complete_feedback(first_again.lock).expect("locked");
        complete(&mut hub, after(60));
        assert!(hub.next_feedback_batch(after(60)).is_none(), "the interval counts from the batch before");
        assert!(hub.next_feedback_batch(after(75)).is_some());
    }

    #[test]
    fn calls_and_delays_do_not_wait_for_a_time_that_has_been_left() {
        let mut hub = hub();
        moved(&mut hub, after(DAY));
        let connection = connect(&mut hub, true);
        assert!(hub.subscribe("dev1", connection, Subscription::Methods, 0));
        let call = || BackEndCall {
            name: "reboot".into(),
            payload: serde_json::value::to_raw_value(&()).expect("JSON"),
            response_timeout: MIN_RESPONSE_TIMEOUT,
            connect_timeout: Duration::ZERO,
        };
        let waiting = hub.call_method("dev1", call(), after(DAY)).expect("called");
        moved(&mut hub, NOW);
        let progress = hub.method_progress("dev1", waiting, after(5));
        assert!(matches!(progress, CallProgress::Done(Err(_))), "{progress:?}");

        assert!(
            hub.set_fault("dev1", Fault::new("delay".parse().expect("a fault"), "10s").expect("a value"))
        );
        moved(&mut hub, after(DAY));
        let queued = QueuedMessage {
            device_id: "dev1".into(),
            message: C2dMessage::default(),
            ack: DeliveryAck::None,
            expiry: None,
        };
        hub.enqueue(queued, after(DAY)).expect("queued");
        assert_eq!(next_id(&mut hub, connection, after(DAY)), None, "it is held back");
        moved(&mut hub, NOW);
        assert!(hub.poll("dev1", NOW).is_some(), "it was sent before");
    }
}
