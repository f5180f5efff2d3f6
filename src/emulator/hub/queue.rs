//! The C2D queue of one device.
//!
//! Owns: order, locks, expiry, delivery counts. Must not know: sessions, feedback records.
//! Source: wire reference 5.1.
//!
//! A locked message keeps its place. So a message that returns to the queue is in its old order without more work.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::encoding;
use super::session::ConnectionId;
use crate::feedback::DeliveryAck;
use crate::message::C2dMessage;

/// Most messages in one device's queue, waiting or locked.
pub const MAX_QUEUE: usize = 50;

/// Time to live of a message that has no expiry of its own. Source: wire reference 5.4.
pub const DEFAULT_TTL: Duration = Duration::from_secs(60 * 60);

/// The furthest expiry that a sender may ask for. Source: wire reference 5.1.
pub const MAX_TTL: Duration = Duration::from_secs(2 * 24 * 60 * 60);

/// How long a delivered message stays locked for its connection.
pub const LOCK_TIME: Duration = Duration::from_secs(60);

/// A message or a feedback batch that is abandoned this many times is dead lettered.
pub const MAX_DELIVERY_COUNT: u32 = 10;

/// The right to settle one delivery. A hub never uses a lock twice, nor does the next hub on this state directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Lock(pub(super) u64);

impl Lock {
    /// The lock as a number, for protocols that send it to clients.
    pub fn number(self) -> u64 {
        self.0
    }

    /// The lock with this number, whether it is held or not.
    pub fn from_number(number: u64) -> Self {
        Self(number)
    }
}

/// A settlement that came too late: the lock lapsed, the message expired, or the connection was replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the lock is no longer held")]
pub struct LockLost;

/// A message that is being delivered to a device.
#[derive(Debug, Clone)]
pub struct Locked {
    /// The lock that settles this delivery.
    pub lock: Lock,
    /// The message.
    pub message: Arc<C2dMessage>,
    /// Whether an earlier delivery was sent and not settled.
    pub redelivered: bool,
    /// How often a device has abandoned the message.
    pub delivery_count: u32,
    /// The message's number; each device counts from 1.
    pub sequence_number: u64,
    /// When the hub accepted the message.
    pub enqueued: SystemTime,
    /// Whether this is the second delivery under one lock. Only a fault causes it.
    pub copy: bool,
}

/// A message in a device's queue, as viewers see it.
#[derive(Debug)]
pub struct QueuedView<'a> {
    /// The message.
    pub message: &'a C2dMessage,
    /// The end of the lock, if the device has the message; `None` if the message waits.
    pub locked_until: Option<SystemTime>,
    /// The message's number; each device counts from 1.
    pub sequence_number: u64,
    /// How often a device has abandoned the message.
    pub delivery_count: u32,
    /// When it expires.
    pub expires: SystemTime,
}

/// A message that has left the queue.
#[derive(Debug)]
pub(super) struct Finished {
    pub(super) message: Arc<C2dMessage>,
    pub(super) ack: DeliveryAck,
    pub(super) sequence_number: u64,
}

impl From<QueueEntry> for Finished {
    fn from(QueueEntry { message, ack, sequence_number, .. }: QueueEntry) -> Self {
        Self { message, ack, sequence_number }
    }
}

/// When a message arrived, and when it expires.
#[derive(Debug, Clone, Copy)]
pub(super) struct QueueArrival {
    pub(super) enqueued: SystemTime,
    pub(super) sequence_number: u64,
    pub(super) expires: SystemTime,
}

/// What the passing of time changed in a queue.
#[derive(Debug)]
pub(super) struct Passed {
    /// The messages that have expired.
    pub(super) expired: Vec<Finished>,
    /// Whether a lock has lapsed.
    pub(super) unlocked: bool,
}

#[derive(Debug, Default)]
pub(super) struct DeviceQueue(VecDeque<QueueEntry>);

/// A message in the queue. A snapshot keeps it without its lock, because connections do not survive a restart.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct QueueEntry {
    #[serde(with = "encoding::c2d_message")]
    message: Arc<C2dMessage>,
    #[serde(with = "encoding::ack")]
    ack: DeliveryAck,
    enqueued: SystemTime,
    sequence_number: u64,
    expires: SystemTime,
    delivery_count: u32,
    #[serde(skip)]
    locked: Option<(Lock, SystemTime)>,
    /// The connection that the message was sent to last. If that connection lets its lock lapse, it does not get the
    /// message again.
    #[serde(skip)]
    offered_to: Option<ConnectionId>,
    redelivered: bool,
}

impl DeviceQueue {
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// The messages in the queue, oldest first.
    pub(super) fn view(&self) -> impl Iterator<Item = QueuedView<'_>> {
        self.0.iter().map(|entry| QueuedView {
            message: &entry.message,
            locked_until: entry.locked.map(|(_, until)| until),
            sequence_number: entry.sequence_number,
            delivery_count: entry.delivery_count,
            expires: entry.expires,
        })
    }

    pub(super) fn snapshot(&self) -> Vec<QueueEntry> {
        self.0.iter().cloned().collect()
    }

    /// Restores the queue with no message locked, because the connections are gone.
    pub(super) fn restore(kept: Vec<QueueEntry>) -> Self {
        let unlocked = |entry| QueueEntry { locked: None, offered_to: None, ..entry };
        Self(kept.into_iter().map(unlocked).collect())
    }

    /// Adds a message at the end. Returns whether there was room.
    pub(super) fn push(&mut self, message: Arc<C2dMessage>, ack: DeliveryAck, arrival: QueueArrival) -> bool {
        if self.0.len() >= MAX_QUEUE {
            return false;
        }
        self.0.push_back(QueueEntry {
            message,
            ack,
            enqueued: arrival.enqueued,
            sequence_number: arrival.sequence_number,
            expires: arrival.expires,
            delivery_count: 0,
            locked: None,
            offered_to: None,
            redelivered: false,
        });
        true
    }

    /// Locks the oldest message that may be sent, or the newest. Without faults, `delay` is zero.
    pub(super) fn lock_next(
        &mut self,
        lock: Lock,
        connection: ConnectionId,
        now: SystemTime,
        delay: Duration,
        newest_first: bool,
    ) -> Option<Locked> {
        let waits = |entry: &&mut QueueEntry| {
            let free = entry.locked.is_none() && entry.offered_to != Some(connection);
            // With a clock that was set back, a message may come from a later time. It has waited before.
            free && (delay.is_zero() || entry.enqueued > now || entry.enqueued + delay <= now)
        };
        let mut entries = self.0.iter_mut();
        let entry = if newest_first { entries.rfind(waits) } else { entries.find(waits) }?;
        entry.locked = Some((lock, now + LOCK_TIME));
        entry.offered_to = Some(connection);
        let redelivered = std::mem::replace(&mut entry.redelivered, true);
        let message = Arc::clone(&entry.message);
        Some(Locked {
            lock,
            message,
            redelivered,
            delivery_count: entry.delivery_count,
            sequence_number: entry.sequence_number,
            enqueued: entry.enqueued,
            copy: false,
        })
    }

    /// When the next message has waited for `delay`, among those that have not yet.
    pub(super) fn next_ripe(&self, delay: Duration, now: SystemTime) -> Option<SystemTime> {
        let waiting = self.0.iter().filter(|entry| entry.locked.is_none());
        waiting.map(|entry| entry.enqueued + delay).filter(|ripe| *ripe > now).min()
    }

    /// Removes a locked message.
    pub(super) fn remove(&mut self, lock: Lock) -> Result<Finished, LockLost> {
        let entry = self.position(lock).and_then(|at| self.0.remove(at)).ok_or(LockLost)?;
        Ok(entry.into())
    }

    /// Removes all messages that are not locked.
    pub(super) fn take_waiting(&mut self) -> Vec<Finished> {
        let (kept, waiting): (VecDeque<_>, VecDeque<_>) =
            self.0.drain(..).partition(|entry| entry.locked.is_some());
        self.0 = kept;
        waiting.into_iter().map(Finished::from).collect()
    }

    /// Gives a locked message back. Returns the message if it was abandoned too often.
    pub(super) fn abandon(&mut self, lock: Lock) -> Result<Option<Finished>, LockLost> {
        let at = self.position(lock).ok_or(LockLost)?;
        let entry = self.0.get_mut(at).ok_or(LockLost)?;
        entry.delivery_count += 1;
        if entry.delivery_count >= MAX_DELIVERY_COUNT {
            return self.remove(lock).map(Some);
        }
        entry.locked = None;
        entry.offered_to = None;
        Ok(None)
    }

    /// Unlocks a message that was not sent. If it is no longer locked, nothing happens.
    pub(super) fn put_back(&mut self, lock: Lock, redelivered: bool) {
        let Some(entry) = self.position(lock).and_then(|at| self.0.get_mut(at)) else { return };
        (entry.locked, entry.offered_to, entry.redelivered) = (None, None, redelivered);
    }

    /// Unlocks all messages of a connection that has ended.
    pub(super) fn release(&mut self, connection: ConnectionId) {
        for entry in self.0.iter_mut().filter(|entry| entry.offered_to == Some(connection)) {
            entry.locked = None;
            entry.offered_to = None;
        }
    }

    /// Unlocks messages that were locked too long, and removes expired ones, locked or not.
    pub(super) fn pass_time(&mut self, now: SystemTime) -> Passed {
        let mut unlocked = false;
        for entry in &mut self.0 {
            let held = entry.locked.filter(|(_, until)| *until > now);
            unlocked |= std::mem::replace(&mut entry.locked, held) != held;
        }
        if self.0.iter().all(|entry| entry.expires > now) {
            return Passed { expired: Vec::new(), unlocked };
        }
        let (expired, kept): (VecDeque<_>, VecDeque<_>) =
            self.0.drain(..).partition(|entry| entry.expires <= now);
        self.0 = kept;
        Passed { expired: expired.into_iter().map(Finished::from).collect(), unlocked }
    }

    /// Lets no lock last longer than one that begins now, because the clock may have been set back.
    pub(super) fn go_back_to(&mut self, now: SystemTime) {
        for (_, until) in self.0.iter_mut().filter_map(|entry| entry.locked.as_mut()) {
            *until = (*until).min(now + LOCK_TIME);
        }
    }

    /// When [`DeviceQueue::pass_time`] has its next work.
    pub(super) fn next_deadline(&self) -> Option<SystemTime> {
        let locks = self.0.iter().filter_map(|entry| entry.locked.map(|(_, until)| until));
        self.0.iter().map(|entry| entry.expires).chain(locks).min()
    }

    fn position(&self, lock: Lock) -> Option<usize> {
        self.0.iter().position(|entry| entry.locked.is_some_and(|(own, _)| own == lock))
    }
}
