//! Keeps the file open, and makes sure that a batch of operations is on disk exactly once, however the disk behaves.
//!
//! Owns: reopening after a failure, what of the file counts then, replacing a damaged file, one-time warnings. Must not know: threads, delays.

use std::time::SystemTime;

use super::apply::Notes;
use super::file::JournalPlace;
use super::journal::End;
use super::ledger::Marks;
use super::operation::{Op, Written};
use super::origins::Origins;
use super::record::{Counts, Opened, to_millis};
use super::store::{Applied, Store};
use super::sums::{Circumstances, Numbers};
use super::trouble::Trouble;
use crate::config::InboxSettings;

/// What is remembered of a store that was dropped because a write failed.
#[derive(Debug)]
struct Left {
    /// Up to where the file is on disk. What comes after it is of the write that failed.
    until: End,
    marks: Marks,
    /// As in [`Store::next_compaction`].
    next_compaction: u64,
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
    /// The origins as they were last on disk, for a file that takes the place of a damaged one.
    origins: Origins,
    told_reused_id: bool,
    forgetting: bool,
    full: bool,
    told_no_compaction: bool,
}

impl<P: JournalPlace> InboxKeeper<P> {
    pub(super) fn new(place: P, settings: InboxSettings, clock: fn() -> SystemTime) -> Self {
        Self {
            place,
            settings,
            clock,
            store: None,
            left: None,
            floor: Numbers::default(),
            origins: Origins::default(),
            told_reused_id: false,
            forgetting: false,
            full: false,
            told_no_compaction: false,
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
        self.left = None;
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
        let until = self.left.as_ref().map(|left| left.until);
        let (mut store, cut) = Store::open(self.place.open()?, self.floor, until)?;
        if let Some(at) = cut {
            tracing::warn!(
                "the last write to the inbox {} is not whole, as after a power cut: what is there from byte {at} on does \
                 not count, and the hub sends again what was not answered",
                self.place.path().display()
            );
        }
        if let Some(left) = self.left.take() {
            store.index.ledger.restore(&left.marks);
            store.delay_compaction(left.next_compaction);
        }
        store.take_over(&self.origins);
        self.floor = store.index.sums.numbers;
        self.store = Some(store);
        Ok(())
    }

    /// What the agent needs at its start.
    pub(super) fn opened(&mut self) -> Result<Opened, Trouble> {
        self.open()?;
        let now = to_millis((self.clock)());
        let read = |store: &Option<Store>| match store {
            Some(store) => store.opened(now),
            None => Err(never_open()),
        };
        match read(&self.store) {
            Err(Trouble::Corrupt(reason)) => {
                self.store = None;
                self.replace(&reason)?;
                read(&self.store)
            }
            opened => opened,
        }
    }

    /// Writes a batch. It is on disk when this returns. After a failure, the caller must pass it again.
    pub(super) fn write(&mut self, ops: &[Op]) -> Result<(Vec<Written>, Counts), Trouble> {
        self.open()?;
        self.make_short()?;
        self.write_at(ops, (self.clock)())
    }

    /// Like [`InboxKeeper::write`], if the file is open, at a given time.
    pub(super) fn write_at(
        &mut self,
        ops: &[Op],
        now: SystemTime,
    ) -> Result<(Vec<Written>, Counts), Trouble> {
        let circumstances = Circumstances { settings: &self.settings, now_ms: to_millis(now) };
        let store = self.store.as_mut().ok_or_else(never_open)?;
        let Applied { answers, notes } = match store.apply(ops, &circumstances) {
            Ok(applied) => applied,
            Err(failure) => {
                self.drop_store();
                return Err(failure);
            }
        };
        let counts = store.counts();
        self.floor = store.index.sums.numbers;
        if self.origins != store.index.origins {
            self.origins.clone_from(&store.index.origins);
        }
        self.tell(notes, counts.bytes);
        Ok((answers, counts))
    }

    /// Does a part of a compaction if one is due. True if there is more to do.
    pub(super) fn compact(&mut self) -> Result<bool, Trouble> {
        let Some(store) = &mut self.store else { return Ok(false) };
        let was_compacting = store.is_compacting();
        let failure = match store.compact(&mut self.place, &self.settings) {
            Ok(more) => {
                // One was finished, so the next failure is news again.
                self.told_no_compaction &= !was_compacting || store.is_compacting();
                return Ok(more);
            }
            // The inbox itself can still be written.
            Err(Trouble::Io(_, error)) => Trouble::Io("compact", error),
            Err(failure) => failure,
        };
        if !store.may_go_on(&self.settings) {
            self.drop_store();
            return Err(failure);
        }
        if !std::mem::replace(&mut self.told_no_compaction, true) {
            tracing::warn!(
                "{}; the agent goes on with the file as it is, which takes more room than it needs",
                failure.sentence(self.place.path())
            );
        }
        Ok(false)
    }

    /// Finishes a compaction if the file cannot be written to without.
    fn make_short(&mut self) -> Result<(), Trouble> {
        while self.store.as_ref().is_some_and(|store| store.must_compact(&self.settings)) && self.compact()? {
        }
        Ok(())
    }

    /// The counts of an open file.
    pub(super) fn counts(&self) -> Counts {
        self.store.as_ref().map(Store::counts).unwrap_or_default()
    }

    /// Drops a store whose memory no longer matches the file.
    fn drop_store(&mut self) {
        if let Some(store) = self.store.take() {
            let (until, marks) = (store.journal.durable(), store.index.ledger.marks());
            self.left = Some(Left { until, marks, next_compaction: store.next_compaction(&self.settings) });
        }
    }

    /// Removes records that have become old while nothing arrived.
    pub(super) fn tidy(&mut self) -> Result<(), Trouble> {
        let old = match &self.store {
            Some(store) => store.has_old(&self.settings, to_millis((self.clock)())),
            None => false,
        };
        if old { self.write(&[]).map(drop) } else { Ok(()) }
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

fn never_open() -> Trouble {
    Trouble::Defect("it is not open".to_owned())
}
