//! What the hub has of one device or module: its queue, session, twin and what else belongs to it.
//!
//! Owns: which of it survives a restart, and how faults change a delivery. Must not know: other devices, files.

use std::collections::VecDeque;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::calls::PendingCalls;
use super::ended::{Ended, EndedLately};
use super::events::{D2cMessage, Events};
use super::faults::{FaultName, Faults};
use super::queue::{DeviceQueue, Lock, Locked, QueueEntry};
use super::session::{ConnectionId, DeviceSession, Subscription};
use super::twin::{DesiredChange, DeviceTwin};

/// Most changes of desired properties that wait for a device that does not read. Beyond that, the device misses the
/// oldest change. It sees that by `$version`, and can get its twin.
pub const MAX_DESIRED_CHANGES: usize = 16;

/// One device or module.
#[derive(Debug, Default)]
pub(super) struct DeviceState {
    pub(super) queue: DeviceQueue,
    /// How many messages were ever queued for this device.
    pub(super) queued: u64,
    pub(super) session: DeviceSession,
    pub(super) ended: EndedLately,
    pub(super) events: Events,
    pub(super) twin: DeviceTwin,
    /// Changes that the current connection has not received yet. At most [`MAX_DESIRED_CHANGES`].
    pub(super) desired_changes: VecDeque<DesiredChange>,
    pub(super) calls: PendingCalls,
    pub(super) faults: Faults,
    /// When the device last signed in, completed or sent something.
    pub(super) last_activity: Option<SystemTime>,
    /// When the device last connected or lost its connection.
    pub(super) connection_updated: Option<SystemTime>,
    /// The model that the device named when it last named one.
    pub(super) model_id: Option<String>,
}

/// What a hub holds for one device.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct DeviceSnapshot {
    queue: Vec<QueueEntry>,
    queued: u64,
    /// Whether the session is persistent.
    stored: bool,
    subscriptions: Vec<(Subscription, u8)>,
    twin: DeviceTwin,
    events: Vec<D2cMessage>,
    ended: Vec<Ended>,
    last_activity: Option<SystemTime>,
    #[serde(skip_serializing_if = "Option::is_none")]
    connection_updated: Option<SystemTime>,
    #[serde(skip_serializing_if = "Option::is_none")]
    model_id: Option<String>,
}

impl DeviceState {
    /// What a restart keeps of the device. It shares the messages and does not copy them.
    pub(super) fn snapshot(&self) -> DeviceSnapshot {
        let (stored, subscriptions) = self.session.snapshot();
        DeviceSnapshot {
            queue: self.queue.snapshot(),
            queued: self.queued,
            stored,
            subscriptions,
            twin: self.twin.clone(),
            events: self.events.iter().cloned().collect(),
            ended: self.ended.iter().cloned().collect(),
            last_activity: self.last_activity,
            connection_updated: self.connection_updated,
            model_id: self.model_id.clone(),
        }
    }

    /// Loads what an earlier hub held of the device.
    pub(super) fn restore(&mut self, kept: DeviceSnapshot) {
        self.queue = DeviceQueue::restore(kept.queue);
        self.queued = kept.queued;
        self.session = DeviceSession::restore(kept.stored, kept.subscriptions);
        self.twin = kept.twin;
        self.events = Events::restore(kept.events);
        self.ended = kept.ended.into_iter().collect();
        self.last_activity = kept.last_activity;
        self.connection_updated = kept.connection_updated;
        self.model_id = kept.model_id;
    }

    /// The quality of service of a subscription, including the one that [`FaultName::EarlyPublish`] assumes.
    pub(super) fn granted(&self, subscription: Subscription) -> Option<u8> {
        let early = subscription == Subscription::DeviceBound && self.faults.has(FaultName::EarlyPublish);
        self.session.granted(subscription).or(early.then_some(1))
    }

    /// Locks the next message for a connection, or, with `polls`, for a device that polls. The flag says whether the
    /// hub's next deadline has changed.
    pub(super) fn lock_next(
        &mut self,
        lock: Lock,
        connection: ConnectionId,
        polls: bool,
        now: SystemTime,
    ) -> (Option<Locked>, bool) {
        let taker = (!polls).then_some(connection);
        // A copy that was made for an earlier connection is dropped here: only its own connection may get it.
        if let Some((_, copy)) =
            self.faults.copy.take_if(|(own, _)| own.is_none() == polls).filter(|(own, _)| *own == taker)
        {
            return (Some(copy), false);
        }
        let (delay, newest_first) = (self.faults.delay(), self.faults.has(FaultName::ReverseOrder));
        let Some(locked) = self.queue.lock_next(lock, connection, now, delay, newest_first) else {
            // The delay may hold a message back. Remember its time, so that the hub's timer wakes the device's link.
            let due = self.queue.next_ripe(delay, now);
            let earlier = due.is_some() && due != self.faults.due;
            if earlier {
                self.faults.due = due;
            }
            return (None, earlier);
        };
        if self.faults.use_up(FaultName::Duplicate) {
            let copy = Locked { redelivered: true, copy: true, ..locked.clone() };
            self.faults.copy = Some((taker, copy));
        }
        (Some(locked), false)
    }
}
