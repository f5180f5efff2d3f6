//! Keeps the file open, and makes sure that a batch of operations is on disk exactly once, however the disk behaves.
//!
//! Owns: reopening after a failure, the batch that may or may not be in the file, replacing a damaged file, one-time
//! warnings. Must not know: threads, delays.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::SystemTime;

use super::apply::Notes;
use super::file::DatabasePlace;
use super::ledger::Marks;
use super::operation::{Op, Written};
use super::record::{Counts, Opened, to_millis};
use super::store::{Applied, Store};
use super::tables::{Circumstances, Numbers};
use super::trouble::Trouble;
use crate::config::InboxSettings;

/// Operations for one transaction.
#[derive(Debug)]
pub(super) struct Batch {
    ops: Vec<Op>,
    /// Recorded with the transaction. After a failure it shows whether the transaction is in the file.
    stamp: u64,
    /// The result of the last try. It is valid if the file has its stamp.
    applied: Option<Applied>,
}

impl Batch {
    pub(super) fn new(ops: Vec<Op>) -> Self {
        Self { ops, stamp: fastrand::u64(1..), applied: None }
    }
}

/// What is remembered of a store that was dropped.
#[derive(Debug)]
struct Left {
    stamp: u64,
    /// The marks if the transaction with that stamp is in the file, and the marks if it is not.
    with: Marks,
    without: Marks,
}

#[derive(Debug)]
pub(super) struct InboxKeeper<P> {
    place: P,
    settings: InboxSettings,
    clock: fn() -> SystemTime,
    pub(super) store: Option<Store>,
    left: Option<Left>,
    /// The highest numbers that were given out. New numbers follow them, whatever file is opened.
    floor: Numbers,
    told_reused_id: bool,
    forgetting: bool,
    full: bool,
}

impl<P: DatabasePlace> InboxKeeper<P> {
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

    /// Opens the file. If it is damaged, moves it aside and begins a new one.
    pub(super) fn open(&mut self) -> Result<(), Trouble> {
        let reason = match self.try_open() {
            Err(Trouble::Corrupt(reason)) => reason,
            other => return other,
        };
        self.replace(&reason)
    }

    fn replace(&mut self, reason: &str) -> Result<(), Trouble> {
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

    /// Like [`InboxKeeper::open`], but a damaged file stays where it is.
    pub(super) fn try_open(&mut self) -> Result<(), Trouble> {
        if self.store.is_some() {
            return Ok(());
        }
        let (place, floor) = (&mut self.place, self.floor);
        // redb checks what it reads, but a damaged file can still make it panic.
        let mut store = guarded(|| Store::open(place.open()?, floor)).map_err(|failure| match failure {
            Trouble::Defect(reason) => Trouble::Corrupt(reason),
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

    /// What the agent needs at its start.
    pub(super) fn opened(&mut self) -> Result<Opened, Trouble> {
        self.open()?;
        let now = to_millis((self.clock)());
        let read = |store: &Option<Store>| match store {
            Some(store) => guarded(|| store.opened(now)),
            None => Err(never_open()),
        };
        match read(&self.store) {
            Err(Trouble::Corrupt(reason) | Trouble::Defect(reason)) => {
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

    /// Writes a batch, or finds that it is written already. After a failure the caller must pass the same batch
    /// again.
    pub(super) fn write(&mut self, batch: &mut Batch) -> Result<(Vec<Written>, Counts), Trouble> {
        self.open()?;
        self.write_at(batch, (self.clock)())
    }

    /// Like [`InboxKeeper::write`], if the file is open, at a given time.
    pub(super) fn write_at(
        &mut self,
        batch: &mut Batch,
        now: SystemTime,
    ) -> Result<(Vec<Written>, Counts), Trouble> {
        let now_ms = to_millis(now);
        let Some(store) = &mut self.store else { return Err(never_open()) };
        // An earlier try may have failed although its commit reached the disk. Then the file has the stamp, and the
        // batch must not be written twice.
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

    /// The counts of an open file.
    pub(super) fn counts(&self) -> Counts {
        self.store.as_ref().map(Store::counts).unwrap_or_default()
    }

    /// Drops a store whose memory no longer matches the file.
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

impl<P: DatabasePlace> InboxKeeper<P> {
    /// Removes records that have become old while nothing arrived.
    pub(super) fn tidy(&mut self) -> Result<(), Trouble> {
        let old = match &self.store {
            Some(store) => store.has_old(&self.settings, to_millis((self.clock)())),
            None => false,
        };
        if old { self.write(&mut Batch::new(Vec::new())).map(drop) } else { Ok(()) }
    }

    /// Logs each of these when it begins, and not again while it lasts.
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
        // The limit is well below the maximum, so that the warning does not come again with every message.
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

/// Turns a panic into a failure. redb trusts what it reads. So it can panic on a damaged file, or if the disk returns
/// other data than was written. That must not end the agent, nor leave messages unanswered.
fn guarded<T>(work: impl FnOnce() -> Result<T, Trouble>) -> Result<T, Trouble> {
    // AssertUnwindSafe is right here, because the caller drops what was being changed when this fails.
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
        let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
        Err(Trouble::Defect(text.unwrap_or_else(|| "a panic".to_owned())))
    })
}

fn never_open() -> Trouble {
    Trouble::Defect("it is not open".to_owned())
}
