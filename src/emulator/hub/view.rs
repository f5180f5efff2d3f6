//! What a viewer of the hub sees: queues with the states of their messages, messages that ended recently, D2C messages,
//! waiting feedback.
//!
//! Owns: which parts of the hub are visible. Must not know: JSON, HTTP.

use std::ops::Bound;
use std::time::SystemTime;

use super::ended::Ended;
use super::events::D2cMessage;
use super::feedback::FeedbackView;
use super::queue::QueuedView;
use super::state::Hub;

impl Hub {
    /// All devices and modules, sorted by id.
    pub fn device_ids(&self) -> impl Iterator<Item = &str> {
        self.devices.ids()
    }

    /// The same, only those after an id.
    pub fn ids_after(&self, id: Option<&str>) -> impl Iterator<Item = &str> {
        let after = id.map_or(Bound::Unbounded, Bound::Excluded);
        self.devices.ids_from(after)
    }

    /// The same, only those from an id on.
    pub fn ids_from(&self, id: &str) -> impl Iterator<Item = &str> {
        self.devices.ids_from(Bound::Included(id))
    }

    /// How many devices and modules there are.
    pub fn device_count(&self) -> usize {
        self.devices.len()
    }

    /// Whether the device is connected over a protocol that has connections.
    pub fn is_connected(&self, device_id: &str) -> bool {
        self.devices.get(device_id).is_some_and(|state| state.session.is_connected())
    }

    /// Whether the device may sign in.
    pub fn is_enabled(&self, device_id: &str) -> bool {
        self.registry.device(device_id).is_some_and(|(_, record)| record.enabled)
    }

    /// When the device last signed in, completed or sent something.
    pub fn last_activity(&self, device_id: &str) -> Option<SystemTime> {
        self.devices.get(device_id)?.last_activity
    }

    /// The device's queue, oldest first; empty if the device does not exist.
    pub fn queued(&self, device_id: &str) -> impl Iterator<Item = QueuedView<'_>> {
        self.devices.get(device_id).into_iter().flat_map(|state| state.queue.view())
    }

    /// The device's last [`super::MAX_ENDED`] ended messages, newest first; empty if the device does not exist.
    pub fn ended(&self, device_id: &str) -> impl Iterator<Item = &Ended> {
        self.devices.get(device_id).into_iter().flat_map(|state| state.ended.iter().rev())
    }

    /// The feedback that no back end has accepted, oldest first.
    pub fn feedback(&self) -> impl Iterator<Item = FeedbackView<'_>> {
        self.feedback.view()
    }

    /// Rises with every change that a viewer can see, and with every change that must be saved. [`Hub::version`] leaves
    /// out the changes that no listener must act on.
    pub fn changes(&self) -> u64 {
        self.version + self.quiet_changes + self.devices.changes()
    }

    /// Tells viewers that something beside the hub has changed that they can see, such as a registration.
    pub fn note_change(&mut self) {
        self.quiet_changes += 1;
    }

    /// The stored D2C messages, oldest first; `None` if the device does not exist.
    pub fn events(&self, device_id: &str) -> Option<impl Iterator<Item = &D2cMessage>> {
        self.devices.get(device_id).map(|state| state.events.iter())
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::super::tests::{NOW, after, hub};
    use super::*;
    use crate::message::Properties;

    #[test]
    fn d2c_messages_are_kept_by_device() {
        let mut hub = hub();
        let properties = Properties::decode("%24.cid=m1&outcome=succeeded").expect("a bag");
        let version = hub.version();
        hub.record_event("dev1", properties.clone(), Bytes::from_static(b"{}"), after(3));
        assert!(hub.version() > version, "those who wait for a report are woken");
        let event = D2cMessage { number: 1, enqueued: after(3), properties, body: Bytes::from_static(b"{}") };
        assert_eq!(hub.events("dev1").expect("a device").collect::<Vec<_>>(), [&event]);
        assert_eq!(hub.events("dev2").expect("a device").count(), 0);
        hub.record_event("nobody", Properties::default(), Bytes::new(), NOW);
        assert!(hub.events("nobody").is_none());
    }
}
