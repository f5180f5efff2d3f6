//! What the hub has of one device or module: its queue, session, twin and what else belongs to it.
//!
//! Owns: which of it survives a restart, and how faults change a delivery. Must not know: other devices, files.

use std::collections::{BTreeSet, VecDeque};
use std::time::SystemTime;

use super::calls::PendingCalls;
use super::certificate_requests::CertificateRequests;
use super::ended::EndedLately;
use super::events::Events;
use super::faults::{FaultName, Faults};
use super::piece::{
    DeviceSnapshot, Form, PieceChanges, Tracked, device_key, event_key, event_piece, piece, twin_key,
};
use super::queue::{DeviceQueue, Lock, Locked};
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
    pub(super) twin: Tracked<DeviceTwin>,
    /// Changes that the current connection has not received yet. At most [`MAX_DESIRED_CHANGES`].
    pub(super) desired_changes: VecDeque<DesiredChange>,
    pub(super) calls: PendingCalls,
    pub(super) certificates: CertificateRequests,
    pub(super) faults: Faults,
    /// When the device last signed in, completed or sent something.
    pub(super) last_activity: Option<SystemTime>,
    /// When the device last connected or lost its connection.
    pub(super) connection_updated: Option<SystemTime>,
    /// The model that the device named when it last named one.
    pub(super) model_id: Option<String>,
    /// The numbers of the D2C messages that are saved.
    pub(super) saved_events: BTreeSet<u64>,
}

impl DeviceState {
    /// Hands out the pieces that have changed since the last call.
    pub(super) fn take_changes(&mut self, id: &str, changes: &mut PieceChanges) {
        changes.push(piece(device_key(id), Form::Device(Box::new(self.own_piece()))));
        if self.twin.take_unsaved() {
            changes.push(piece(twin_key(id), Form::Twin(self.twin.clone())));
        }
        let kept: BTreeSet<u64> = self.events.iter().map(|event| event.number).collect();
        let saved = std::mem::replace(&mut self.saved_events, kept);
        let dropped = saved.difference(&self.saved_events);
        changes.extend(dropped.map(|number| (event_key(id, *number), None)));
        let new = self.events.iter().filter(|event| !saved.contains(&event.number));
        changes.extend(new.map(|event| event_piece(id, event)));
    }

    /// The piece `device/ID`.
    pub(super) fn own_piece(&self) -> DeviceSnapshot {
        let (stored, subscriptions) = self.session.snapshot();
        DeviceSnapshot {
            queue: self.queue.snapshot(),
            queued: self.queued,
            stored,
            subscriptions,
            ended: self.ended.iter().cloned().collect(),
            last_activity: self.last_activity,
            connection_updated: self.connection_updated,
            model_id: self.model_id.clone(),
            ..DeviceSnapshot::default()
        }
    }

    /// The keys of all pieces that are saved.
    pub(super) fn keys(&self, id: &str) -> impl Iterator<Item = String> {
        let events = self.saved_events.iter().map(|number| event_key(id, *number));
        events.chain([twin_key(id), device_key(id)])
    }

    /// Loads what an earlier hub held of the device.
    pub(super) fn restore(&mut self, kept: DeviceSnapshot) {
        self.queue = DeviceQueue::restore(kept.queue);
        self.queued = kept.queued;
        self.session = DeviceSession::restore(kept.stored, kept.subscriptions);
        self.events = Events::restore(kept.events);
        self.ended = kept.ended.into_iter().collect();
        self.last_activity = kept.last_activity;
        self.connection_updated = kept.connection_updated;
        self.model_id = kept.model_id;
        if kept.is_saved {
            self.twin = Tracked::saved(kept.twin);
            self.saved_events = self.events.iter().map(|event| event.number).collect();
        } else {
            *self.twin = kept.twin;
        }
    }

    /// When the passing of time next has work with this device.
    pub(super) fn next_deadline(&self) -> Option<SystemTime> {
        self.queue.next_deadline().into_iter().chain(self.faults.next_deadline()).min()
    }

    /// Whether a delivery may be possible.
    pub(super) fn has_messages(&self) -> bool {
        self.queue.len() > 0 || self.faults.copy.is_some()
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
