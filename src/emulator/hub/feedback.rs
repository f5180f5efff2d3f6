//! Feedback records on their way to the back end.
//!
//! Owns: batching, the lock of the batch that is out, age limit and delivery count; which records must be saved. Must
//! not know: devices, links.
//! Source: wire reference 4.4 and 5.4.

use std::collections::{BTreeSet, VecDeque};
use std::time::{Duration, SystemTime};

use crate::feedback::FeedbackRecord;

use super::piece::{Form, Piece, PieceChanges};
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

/// A record that waits.
#[derive(Debug)]
struct Waiting {
    /// Rises from record to record.
    number: u64,
    since: SystemTime,
    record: FeedbackRecord,
}

/// The batch that is out.
#[derive(Debug)]
struct BatchOut {
    batch: LockedBatch,
    /// The numbers of its records.
    numbers: Vec<u64>,
    /// The end of its lock; `None` if it waits to be sent again.
    locked: Option<SystemTime>,
}

#[derive(Debug)]
pub(super) struct FeedbackQueue {
    interval: Duration,
    last_sent: Option<SystemTime>,
    /// Sorted by number.
    waiting: VecDeque<Waiting>,
    /// The single batch that can be out.
    out: Option<BatchOut>,
    /// Whether a tick has already announced that a batch is due.
    announced: bool,
    last_number: u64,
    /// The numbers of the records that have come or gone since they were saved.
    unsaved: BTreeSet<u64>,
}

impl FeedbackQueue {
    pub(super) fn new(interval: Duration) -> Self {
        Self {
            interval,
            last_sent: None,
            waiting: VecDeque::new(),
            out: None,
            announced: false,
            last_number: 0,
            unsaved: BTreeSet::new(),
        }
    }

    /// The records that no back end has accepted, oldest first.
    pub(super) fn view(&self) -> impl Iterator<Item = FeedbackView<'_>> {
        let out = self.out.iter().flat_map(|out| {
            let view = |record| FeedbackView { record, locked_until: out.locked };
            out.batch.records.iter().map(view)
        });
        out.chain(
            self.waiting.iter().map(|waiting| FeedbackView { record: &waiting.record, locked_until: None }),
        )
    }

    /// Hands out the records that have come or gone since the last call. A batch that is out has not gone: if the back
    /// end has not settled it, it must get its records again.
    pub(super) fn take_changes(&mut self, changes: &mut PieceChanges) {
        for number in std::mem::take(&mut self.unsaved) {
            let piece =
                self.record(number).map(|(since, record)| Piece(Form::Feedback(since, record.clone())));
            changes.push((format!("feedback/{number}"), piece));
        }
    }

    /// A record that has not gone, and since when it waits.
    fn record(&self, number: u64) -> Option<(SystemTime, &FeedbackRecord)> {
        if let Ok(at) = self.waiting.binary_search_by_key(&number, |waiting| waiting.number) {
            return self.waiting.get(at).map(|waiting| (waiting.since, &waiting.record));
        }
        let out = self.out.as_ref()?;
        let at = out.numbers.iter().position(|own| *own == number)?;
        out.batch.records.get(at).map(|record| (out.batch.enqueued, record))
    }

    /// Takes back saved records, sorted by number.
    pub(super) fn restore(&mut self, kept: Vec<(u64, SystemTime, FeedbackRecord)>) {
        self.last_number = kept.last().map_or(self.last_number, |(number, ..)| self.last_number.max(*number));
        let waiting = |(number, since, record)| Waiting { number, since, record };
        self.waiting.extend(kept.into_iter().map(waiting));
    }

    pub(super) fn push(&mut self, record: FeedbackRecord, now: SystemTime) {
        if self.waiting.len() >= MAX_WAITING
            && let Some(Waiting { number, record: oldest, .. }) = self.waiting.pop_front()
        {
            self.unsaved.insert(number);
            let (message_id, device_id) = (oldest.original_message_id, oldest.device_id);
            tracing::warn!(
                message_id,
                device_id,
                "dropped the oldest feedback record: no back end reads them"
            );
        }
        self.last_number = self.last_number.saturating_add(1);
        self.waiting.push_back(Waiting { number: self.last_number, since: now, record });
        self.unsaved.insert(self.last_number);
        self.announced = false;
    }

    /// Drops the waiting records of a removed device. Source: wire reference 4.4.
    pub(super) fn forget(&mut self, device_id: &str) {
        let unsaved = &mut self.unsaved;
        self.waiting.retain(|waiting| {
            let stays = waiting.record.device_id != device_id;
            if !stays {
                unsaved.insert(waiting.number);
            }
            stays
        });
    }

    pub(super) fn next_batch(&mut self, lock: FeedbackLock, now: SystemTime) -> Option<LockedBatch> {
        self.tick(now);
        if self.out.is_none() && self.is_due(now) {
            let count = self.waiting.len().min(BATCH_RECORDS);
            let waiting = self.waiting.drain(..count).map(|waiting| (waiting.number, waiting.record));
            let (numbers, records) = waiting.unzip();
            let batch = LockedBatch { lock, records, enqueued: now, delivery_count: 0 };
            self.out = Some(BatchOut { batch, numbers, locked: None });
        }
        let out = self.out.as_mut()?;
        if out.locked.is_some() {
            return None;
        }
        out.batch.lock = lock;
        out.locked = Some(now + LOCK_TIME);
        self.last_sent = Some(now);
        self.announced = false;
        Some(out.batch.clone())
    }

    pub(super) fn complete(&mut self, lock: FeedbackLock) -> Result<(), LockLost> {
        self.locked(lock)?;
        self.drop_batch();
        Ok(())
    }

    pub(super) fn abandon(&mut self, lock: FeedbackLock) -> Result<(), LockLost> {
        let out = self.locked(lock)?;
        out.batch.delivery_count += 1;
        out.locked = None;
        if out.batch.delivery_count >= MAX_DELIVERY_COUNT {
            let records = out.batch.records.len();
            tracing::warn!(records, "dropped a feedback batch: it was abandoned {MAX_DELIVERY_COUNT} times");
            self.drop_batch();
        }
        Ok(())
    }

    pub(super) fn release(&mut self, lock: FeedbackLock) -> Result<(), LockLost> {
        self.locked(lock)?.locked = None;
        Ok(())
    }

    fn drop_batch(&mut self) {
        self.unsaved.extend(self.out.take().into_iter().flat_map(|out| out.numbers));
    }

    /// Unlocks and drops what is over its time. Returns whether a batch has become ready to send.
    pub(super) fn tick(&mut self, now: SystemTime) -> bool {
        let mut ready = false;
        if let Some(out) = &mut self.out {
            if out.locked.is_some_and(|until| until <= now) {
                out.locked = None;
                ready = true;
            }
            // A locked batch is not dropped, because the back end may still settle it.
            if out.locked.is_none() && out.batch.enqueued + TIME_TO_LIVE <= now {
                tracing::warn!(
                    records = out.batch.records.len(),
                    "dropped a feedback batch: no back end took it within an hour"
                );
                self.drop_batch();
            }
        }
        while let Some(old) = self.waiting.front().filter(|waiting| waiting.since + TIME_TO_LIVE <= now) {
            self.unsaved.insert(old.number);
            self.waiting.pop_front();
            tracing::debug!("dropped a feedback record: no back end read it within an hour");
        }
        // Announce a batch only once: each announcement wakes the listeners.
        if self.out.is_none() && self.is_due(now) && !self.announced {
            self.announced = true;
            ready = true;
        }
        ready
    }

    /// Lets no lock, interval or age last longer than one that begins now, because the clock may have been set back.
    pub(super) fn go_back_to(&mut self, now: SystemTime) {
        self.last_sent = self.last_sent.map(|sent| sent.min(now));
        for waiting in self.waiting.iter_mut().filter(|waiting| waiting.since > now) {
            waiting.since = now;
            self.unsaved.insert(waiting.number);
        }
        if let Some(BatchOut { locked: Some(until), .. }) = &mut self.out {
            *until = (*until).min(now + LOCK_TIME);
        }
    }

    /// When [`FeedbackQueue::tick`] has its next work.
    pub(super) fn next_deadline(&self) -> Option<SystemTime> {
        let batch = self.out.as_ref().map(|out| out.locked.unwrap_or(out.batch.enqueued + TIME_TO_LIVE));
        let oldest = self.waiting.front().map(|waiting| waiting.since);
        let due = oldest.filter(|_| self.out.is_none() && !self.announced);
        let due = due.map(|oldest| self.last_sent.map_or(oldest, |sent| sent + self.interval));
        [batch, due, oldest.map(|oldest| oldest + TIME_TO_LIVE)].into_iter().flatten().min()
    }

    fn is_due(&self, now: SystemTime) -> bool {
        let interval_over = self.last_sent.is_none_or(|sent| sent + self.interval <= now);
        self.waiting.len() >= BATCH_RECORDS || (interval_over && !self.waiting.is_empty())
    }

    fn locked(&mut self, lock: FeedbackLock) -> Result<&mut BatchOut, LockLost> {
        match &mut self.out {
            Some(out) if out.locked.is_some() && out.batch.lock == lock => Ok(out),
            _ => Err(LockLost),
        }
    }
}
