//! Feedback records on their way to the back end.
//!
//! Owns: batching, the lock of the batch that is out, age limit and delivery count. Must not know: devices, links.
//! Source: wire reference 4.4 and 5.4.

use std::collections::VecDeque;
use std::time::{Duration, SystemTime};

use crate::feedback::FeedbackRecord;

use super::queue::{LOCK_TIME, LockLost, MAX_DELIVERY_COUNT};

/// Most records of one batch. A full batch is sent without waiting for the interval.
pub const BATCH_RECORDS: usize = 64;

/// Feedback that no back end reads is dropped after this time.
const TIME_TO_LIVE: Duration = Duration::from_secs(60 * 60);

/// Most waiting records; beyond that, the oldest is dropped. This is an hour of feedback at three per second.
const MAX_WAITING: usize = 10_000;

/// The right to settle one batch. A hub never uses a lock twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FeedbackLock(pub(super) u64);

impl FeedbackLock {
    /// The lock as a number, for protocols that send it to clients.
    pub fn number(self) -> u64 {
        self.0
    }

    /// The lock with this number, whether it is held or not.
    pub fn from_number(number: u64) -> Self {
        Self(number)
    }
}

/// One feedback message, which a receiver gets as one delivery.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LockedBatch {
    /// The lock that settles this delivery.
    pub lock: FeedbackLock,
    /// The records, oldest first; never empty.
    pub records: Vec<FeedbackRecord>,
    /// When the batch was made.
    pub enqueued: SystemTime,
    /// How often it was abandoned.
    pub delivery_count: u32,
}

/// A feedback record that no back end has accepted.
#[derive(Debug)]
pub struct FeedbackView<'a> {
    /// The record.
    pub record: &'a FeedbackRecord,
    /// The end of the lock, if a back end has the record; `None` if the record waits.
    pub locked_until: Option<SystemTime>,
}

#[derive(Debug)]
pub(super) struct FeedbackQueue {
    interval: Duration,
    last_sent: Option<SystemTime>,
    waiting: VecDeque<(SystemTime, FeedbackRecord)>,
    /// The single batch that can be out, and the end of its lock; `None` if it waits to be sent again.
    batch: Option<(LockedBatch, Option<SystemTime>)>,
    /// Whether a tick has already announced that a batch is due.
    announced: bool,
}

impl FeedbackQueue {
    pub(super) fn new(interval: Duration) -> Self {
        Self { interval, last_sent: None, waiting: VecDeque::new(), batch: None, announced: false }
    }

    /// The records that no back end has accepted, oldest first.
    pub(super) fn view(&self) -> impl Iterator<Item = FeedbackView<'_>> {
        let out = self.batch.iter().flat_map(|(batch, locked_until)| {
            let view = |record| FeedbackView { record, locked_until: *locked_until };
            batch.records.iter().map(view)
        });
        out.chain(self.waiting.iter().map(|(_, record)| FeedbackView { record, locked_until: None }))
    }

    /// The records, and since when each waits. This includes a batch that is out: if the back end has not settled it,
    /// the back end must get its records again.
    pub(super) fn snapshot(&self) -> Vec<(SystemTime, FeedbackRecord)> {
        let out = self
            .batch
            .iter()
            .flat_map(|(batch, _)| batch.records.iter().map(|record| (batch.enqueued, record.clone())));
        out.chain(self.waiting.iter().cloned()).collect()
    }

    pub(super) fn restore(&mut self, kept: Vec<(SystemTime, FeedbackRecord)>) {
        self.waiting.extend(kept);
    }

    pub(super) fn push(&mut self, record: FeedbackRecord, now: SystemTime) {
        if self.waiting.len() >= MAX_WAITING
            && let Some((_, oldest)) = self.waiting.pop_front()
        {
            let (message_id, device_id) = (oldest.original_message_id, oldest.device_id);
            tracing::warn!(
                message_id,
                device_id,
                "dropped the oldest feedback record: no back end reads them"
            );
        }
        self.waiting.push_back((now, record));
        self.announced = false;
    }

    /// Drops the waiting records of a removed device. Source: wire reference 4.4.
    pub(super) fn forget(&mut self, device_id: &str) {
        self.waiting.retain(|(_, record)| record.device_id != device_id);
    }

    pub(super) fn next_batch(&mut self, lock: FeedbackLock, now: SystemTime) -> Option<LockedBatch> {
        self.tick(now);
        if self.batch.is_none() && self.is_due(now) {
            let count = self.waiting.len().min(BATCH_RECORDS);
            let records = self.waiting.drain(..count).map(|(_, record)| record).collect();
            let fresh = LockedBatch { lock, records, enqueued: now, delivery_count: 0 };
            self.batch = Some((fresh, None));
        }
        let (batch, locked) = self.batch.as_mut()?;
        if locked.is_some() {
            return None;
        }
        batch.lock = lock;
        *locked = Some(now + LOCK_TIME);
        self.last_sent = Some(now);
        self.announced = false;
        Some(batch.clone())
    }

    pub(super) fn complete(&mut self, lock: FeedbackLock) -> Result<(), LockLost> {
        self.locked(lock)?;
        self.batch = None;
        Ok(())
    }

    pub(super) fn abandon(&mut self, lock: FeedbackLock) -> Result<(), LockLost> {
        let (batch, locked) = self.locked(lock)?;
        batch.delivery_count += 1;
        *locked = None;
        if batch.delivery_count >= MAX_DELIVERY_COUNT {
            let records = batch.records.len();
            tracing::warn!(records, "dropped a feedback batch: it was abandoned {MAX_DELIVERY_COUNT} times");
            self.batch = None;
        }
        Ok(())
    }

    pub(super) fn release(&mut self, lock: FeedbackLock) -> Result<(), LockLost> {
        *self.locked(lock)?.1 = None;
        Ok(())
    }

    /// Unlocks and drops what is over its time. Returns whether a batch has become ready to send.
    pub(super) fn tick(&mut self, now: SystemTime) -> bool {
        let mut ready = false;
        if let Some((batch, locked)) = &mut self.batch {
            if locked.is_some_and(|until| until <= now) {
                *locked = None;
                ready = true;
            }
            // A locked batch is not dropped, because the back end may still settle it.
            if locked.is_none() && batch.enqueued + TIME_TO_LIVE <= now {
                tracing::warn!(
                    records = batch.records.len(),
                    "dropped a feedback batch: no back end took it within an hour"
                );
                self.batch = None;
            }
        }
        while self.waiting.front().is_some_and(|(since, _)| *since + TIME_TO_LIVE <= now) {
            self.waiting.pop_front();
            tracing::debug!("dropped a feedback record: no back end read it within an hour");
        }
        // Announce a batch only once: each announcement wakes the listeners.
        if self.batch.is_none() && self.is_due(now) && !self.announced {
            self.announced = true;
            ready = true;
        }
        ready
    }

    /// Lets no lock, interval or age last longer than one that begins now, because the clock may have been set back.
    pub(super) fn go_back_to(&mut self, now: SystemTime) {
        self.last_sent = self.last_sent.map(|sent| sent.min(now));
        for (since, _) in &mut self.waiting {
            *since = (*since).min(now);
        }
        if let Some((_, Some(until))) = &mut self.batch {
            *until = (*until).min(now + LOCK_TIME);
        }
    }

    /// When [`FeedbackQueue::tick`] has its next work.
    pub(super) fn next_deadline(&self) -> Option<SystemTime> {
        let batch =
            self.batch.as_ref().map(|(batch, locked)| locked.unwrap_or(batch.enqueued + TIME_TO_LIVE));
        let oldest = self.waiting.front().map(|(since, _)| *since);
        let due = oldest.filter(|_| self.batch.is_none() && !self.announced);
        let due = due.map(|oldest| self.last_sent.map_or(oldest, |sent| sent + self.interval));
        [batch, due, oldest.map(|oldest| oldest + TIME_TO_LIVE)].into_iter().flatten().min()
    }

    fn is_due(&self, now: SystemTime) -> bool {
        let interval_over = self.last_sent.is_none_or(|sent| sent + self.interval <= now);
        self.waiting.len() >= BATCH_RECORDS || (interval_over && !self.waiting.is_empty())
    }

    fn locked(
        &mut self,
        lock: FeedbackLock,
    ) -> Result<(&mut LockedBatch, &mut Option<SystemTime>), LockLost> {
        match &mut self.batch {
            Some((batch, locked)) if locked.is_some() && batch.lock == lock => Ok((batch, locked)),
            _ => Err(LockLost),
        }
    }
}
