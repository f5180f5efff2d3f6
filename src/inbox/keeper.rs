//! Keeps the file open, and makes sure that a batch of operations is on disk exactly once, however the disk behaves.
//!
//! Owns: reopening after a failure, the batch whose fate is in doubt, replacing a damaged file, one-time warnings.
//! Must not know: threads, delays.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::SystemTime;

use super::apply::Notes;
use super::file::Place;
use super::ledger::Marks;
use super::operation::{Answer, Op};
use super::record::{Counts, Opened, to_millis};
use super::store::{Applied, Circumstances, Numbers, Store};
use super::trouble::Failure;
use crate::config::InboxSettings;

/// Operations for one transaction.
#[derive(Debug)]
pub(super) struct Batch {
    ops: Vec<Op>,
    /// Recorded with the transaction: after a failure it tells whether the transaction is in the file all the same.
    stamp: u64,
    /// What the last try came to; valid if its stamp is in the file.
    applied: Option<Applied>,
}

impl Batch {
    pub(super) fn new(ops: Vec<Op>) -> Self {
        Self { ops, stamp: fastrand::u64(1..), applied: None }
    }
}

/// What is remembered of a store that had to be dropped.
#[derive(Debug)]
struct Left {
    stamp: u64,
    /// If the transaction with that stamp is in the file, and if not.
    with: Marks,
    without: Marks,
}

#[derive(Debug)]
pub(super) struct Keeper<P> {
    place: P,
    settings: InboxSettings,
    clock: fn() -> SystemTime,
    store: Option<Store>,
    left: Option<Left>,
    /// Numbers that were told: they go on after these, whatever file is opened.
    floor: Numbers,
    told_reused_id: bool,
    forgetting: bool,
    full: bool,
}

impl<P: Place> Keeper<P> {
    pub(super) fn new(place: P, settings: InboxSettings, clock: fn() -> SystemTime) -> Self {
        Self {
            place,
            settings,
            clock,
            store: None,
            left: None,
            floor: Numbers::default(),
            told_reused_id: false,
            forgetting: false,
            full: false,
        }
    }

    pub(super) fn place(&self) -> &P {
        &self.place
    }

    /// Opens the file. One that is damaged is moved aside, and a new one is begun.
    pub(super) fn open(&mut self) -> Result<(), Failure> {
        let reason = match self.try_open() {
            Err(Failure::Corrupt(reason)) => reason,
            other => return other,
        };
        self.replace(&reason)
    }

    fn replace(&mut self, reason: &str) -> Result<(), Failure> {
        let aside = self.place.set_aside((self.clock)())?;
        tracing::error!(
            "the inbox {} is damaged ({reason}): the agent moved it to {} and begins a new one; messages \
             that were completed but had not ended are only in the old file, and a message that had ended is \
             acted on again if the hub sends it again",
            self.place.path().display(),
            aside.display()
        );
        self.try_open()
    }

    /// As [`Keeper::open`], but a damaged file stays where it is.
    pub(super) fn try_open(&mut self) -> Result<(), Failure> {
        if self.store.is_some() {
            return Ok(());
        }
        let (place, floor) = (&mut self.place, self.floor);
        // redb checks what it reads, but not so that no damaged file can make it panic.
        let mut store = guarded(|| Store::open(place.open()?, floor)).map_err(|failure| match failure {
            Failure::Defect(reason) => Failure::Corrupt(reason),
            failure => failure,
        })?;
        if let Some(left) = self.left.take() {
            let marks = if store.sums.stamp == left.stamp { left.with } else { left.without };
            store.ledger.restore(&marks);
        }
        self.floor = store.sums.numbers;
        self.store = Some(store);
        Ok(())
    }

    /// What the agent wants to know at its start.
    pub(super) fn opened(&mut self) -> Result<Opened, Failure> {
        self.open()?;
        let now = to_millis((self.clock)());
        let read = |store: &Option<Store>| match store {
            Some(store) => guarded(|| store.opened(now)),
            None => Err(never_open()),
        };
        match read(&self.store) {
            Err(Failure::Corrupt(reason) | Failure::Defect(reason)) => {
                self.drop_store(0);
                self.replace(&reason)?;
                read(&self.store)
            }
            Err(failure) => {
                self.drop_store(0);
                Err(failure)
            }
            opened => opened,
        }
    }

    /// Writes a batch, or finds that it is written. After a failure the same batch is to be given again.
    pub(super) fn write(&mut self, batch: &mut Batch) -> Result<(Vec<Answer>, Counts), Failure> {
        self.open()?;
        self.write_at(batch, (self.clock)())
    }

    /// As [`Keeper::write`], when the file is open, at a time that is given.
    pub(super) fn write_at(
        &mut self,
        batch: &mut Batch,
        now: SystemTime,
    ) -> Result<(Vec<Answer>, Counts), Failure> {
        let now_ms = to_millis(now);
        let Some(store) = &mut self.store else { return Err(never_open()) };
        let landed = batch.applied.take().filter(|_| store.sums.stamp == batch.stamp);
        let applied = match landed {
            Some(applied) => applied,
            None => {
                let circumstances = Circumstances { settings: &self.settings, now_ms, stamp: batch.stamp };
                let (ops, applied) = (&batch.ops, &mut batch.applied);
                if let Err(failure) = guarded(|| store.apply(ops, &circumstances, applied)) {
                    self.drop_store(batch.stamp);
                    return Err(failure);
                }
                batch.applied.take().ok_or_else(never_open)?
            }
        };
        let Applied { answers, notes } = applied;
        let counts = store.counts();
        self.floor = store.sums.numbers;
        self.tell(notes, counts.bytes);
        Ok((answers, counts))
    }

    /// Whether the hub is known to have the completion of this record; no query tells it.
    #[cfg(test)]
    pub(super) fn is_confirmed(&self, number: u64) -> bool {
        let entry = self.store.as_ref().and_then(|store| store.ledger.get(number));
        entry.is_some_and(|entry| entry.confirmed)
    }

    /// What an open file holds.
    pub(super) fn counts(&self) -> Counts {
        self.store.as_ref().map(Store::counts).unwrap_or_default()
    }

    /// Drops a store whose memory is no longer what is in the file.
    fn drop_store(&mut self, stamp: u64) {
        let Some(store) = self.store.take() else { return };
        self.left = Some(Left { stamp, with: store.ledger.marks(false), without: store.ledger.marks(true) });
        if let Err(failure) = guarded(|| {
            drop(store);
            Ok(())
        }) {
            tracing::debug!("the inbox was not closed cleanly: {failure:?}");
        }
        self.place.distrust_cache();
    }
}

impl<P: Place> Keeper<P> {
    /// Lets go what has become old while nothing arrived.
    pub(super) fn tidy(&mut self) -> Result<(), Failure> {
        let old = match &self.store {
            Some(store) => store.has_old(&self.settings, to_millis((self.clock)())),
            None => false,
        };
        if old { self.write(&mut Batch::new(Vec::new())).map(drop) } else { Ok(()) }
    }

    /// Each of these is said when it begins, not again while it lasts.
    fn tell(&mut self, notes: Notes, bytes: u64) {
        let max = self.settings.max_size;
        if notes.reused_id && !self.told_reused_id {
            self.told_reused_id = true;
            tracing::info!(
                "a message has the id of an earlier one: each counts as a message of its own, because the id \
                 has no UUID in it; [inbox] known_by = \"id\" makes every id a key (logged only once)"
            );
        }
        if notes.forgot && !self.forgetting {
            self.forgetting = true;
            tracing::warn!(
                "the inbox has reached [inbox] max_size = {max} bytes: the oldest messages that have ended are forgotten \
                 before keep = {} is over; raise max_size, or lower keep",
                humantime::format_duration(self.settings.keep)
            );
        }
        // Well below, so that this is not said again with every message at the limit.
        if bytes < max / 4 * 3 {
            self.forgetting = false;
        }
        match notes.full {
            Some(true) if !self.full => {
                self.full = true;
                tracing::error!(
                    "the inbox is full: messages that have not ended take all of [inbox] max_size = {max} bytes; new \
                     messages stay at the hub until some have ended; raise max_size if that happens often"
                );
            }
            Some(false) if self.full => {
                self.full = false;
                tracing::info!("the inbox has room again");
            }
            _ => {}
        }
    }
}

/// Turns a panic into a failure. redb trusts what it reads, so a damaged file or a disk that returns something else than
/// was written can make it panic: that must not end the agent, nor leave messages unanswered.
fn guarded<T>(work: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
    // Whatever was being changed is dropped by the caller when this fails.
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
        let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
        Err(Failure::Defect(text.unwrap_or_else(|| "a panic".to_owned())))
    })
}

fn never_open() -> Failure {
    Failure::Defect("it is not open".to_owned())
}
