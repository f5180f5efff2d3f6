//! Devices that ask for one message at a time, without a connection that could break.
//!
//! Owns: the lock of such a message, which ends only by time or by a settlement; and the return of a locked message
//! that was not sent. Must not know: HTTP, AMQP.
//!
//! Source: wire reference 3 and 5.1. A choice where the reference is silent: a device may poll while it is also
//! connected over another transport.

use std::time::{SystemTime, UNIX_EPOCH};

use super::queue::{Lock, Locked};
use super::session::ConnectionId;
use super::state::Hub;

impl Hub {
    /// Returns a locked message that was not sent. It waits again as before.
    pub fn put_back(&mut self, device_id: &str, locked: &Locked) {
        if locked.copy {
            // The other one of the two deliveries holds the lock.
            return;
        }
        if let Some(state) = self.devices.get_mut(device_id) {
            state.queue.put_back(locked.lock, locked.redelivered);
            self.wake(device_id);
        }
    }

    /// Locks the device's oldest waiting message for a minute, whether or not the device is connected. `None` if no
    /// message waits or the device does not exist.
    pub fn poll(&mut self, device_id: &str, now: SystemTime) -> Option<Locked> {
        self.touch(device_id, now);
        self.expire(device_id, now);
        // This connection id is never connected, so nothing displaces it, and no other delivery has it.
        let (lock, nobody) = (Lock(self.next_id()), ConnectionId(self.next_id()));
        let (locked, changed) = self.devices.get_mut(device_id)?.lock_next(lock, nobody, true, now);
        self.version += u64::from(changed || locked.is_some());
        locked
    }

    /// Starts the hub's numbers at the present time in microseconds. So a lock of an earlier hub never matches one of
    /// this hub.
    pub fn number_from(&mut self, now: SystemTime) {
        let micros = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_micros();
        self.last_id = self.last_id.max(u64::try_from(micros).unwrap_or_default());
        self.partitions.begin(now);
    }
}

#[cfg(test)]
mod tests {
    use super::super::LockLost;
    use super::super::tests::{NOW, after, connect, hub, id_of, next_id, send};
    use crate::feedback::DeliveryAck;

    #[test]
    fn a_poll_locks_for_a_minute_whatever_connections_do() {
        let mut hub = hub();
        send(&mut hub, "m1", DeliveryAck::Full);
        send(&mut hub, "m2", DeliveryAck::Full);
        let polled = hub.poll("dev1", NOW).expect("waiting");
        assert_eq!((id_of(&polled).as_str(), polled.sequence_number, polled.enqueued), ("m1", 1, NOW));
        // A connection takes the other message. The message returns to the queue when the connection ends.
        let connection = connect(&mut hub, true);
        assert_eq!(next_id(&mut hub, connection, NOW).as_deref(), Some("m2"));
        assert_eq!(next_id(&mut hub, connection, NOW), None);
        hub.disconnect("dev1", connection, NOW);
        assert_eq!(hub.poll("dev1", NOW).map(|locked| id_of(&locked)).as_deref(), Some("m2"));
        assert!(hub.poll("dev1", NOW).is_none() && hub.poll("dev9", NOW).is_none());

        // When a lock lapses, the listeners that may get the message wake up.
        let connection = connect(&mut hub, true);
        let before = hub.version();
        hub.tick(after(60));
        assert_ne!(hub.version(), before);
        assert_eq!(hub.complete("dev1", polled.lock, after(60)), Err(LockLost));
        assert_eq!(next_id(&mut hub, connection, after(60)).as_deref(), Some("m1"));
    }

    #[test]
    fn numbers_of_a_later_hub_are_higher() {
        let mut hub = hub();
        hub.number_from(after(5));
        send(&mut hub, "m1", DeliveryAck::None);
        assert!(hub.poll("dev1", NOW).expect("waiting").lock.number() > 5_000_000);
    }
}
