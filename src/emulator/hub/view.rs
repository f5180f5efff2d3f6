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
        self.devices.keys().map(String::as_str)
    }

    /// The same, only those after an id.
    pub fn ids_after(&self, id: Option<&str>) -> impl Iterator<Item = &str> {
        let after = id.map_or(Bound::Unbounded, Bound::Excluded);
        self.devices.range::<str, _>((after, Bound::Unbounded)).map(|(id, _)| id.as_str())
    }

    /// Whether the device is connected over a protocol that has connections.
    pub fn is_connected(&self, device_id: &str) -> bool {
        self.devices.get(device_id).is_some_and(|state| state.session.is_connected())
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

    /// Rises with every change that a viewer can see. [`Hub::version`] leaves out the changes that no listener must act
    /// on.
    pub fn changes(&self) -> u64 {
        self.version + self.quiet_changes
    }

    /// The stored D2C messages, oldest first; `None` if the device does not exist.
    pub fn events(&self, device_id: &str) -> Option<impl Iterator<Item = &D2cMessage>> {
        self.devices.get(device_id).map(|state| state.events.iter())
    }
}
