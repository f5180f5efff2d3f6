//! The records in memory, in order of their numbers.
//!
//! Owns: finding an entry by its number, without a tree's memory. Must not know: what changes an entry.
//!
//! Numbers count up and the oldest records go first, so a queue is enough. A record that goes from the middle leaves a
//! gap. When most places are gaps, all of them are closed at once.

use std::collections::VecDeque;

use super::codec::{Facts, NO_SEQUENCE};
use super::frame::{self, Place};
use super::key::Digest;
use super::record::{Settled, State};
use crate::config::RECORD_BYTES;
use crate::message::Sequence;

/// What is kept in memory of one record.
#[derive(Debug, Clone, Copy)]
pub(super) struct LedgerEntry {
    /// As in [`super::codec::Stored`].
    pub(super) delivery: Digest,
    /// As in [`super::codec::Stored`].
    pub(super) id: Digest,
    sequence: Sequence,
    /// When it arrived, or when it ended.
    pub(super) since_ms: u64,
    /// The connection on which it last came: see `Ledger::absorb`.
    pub(super) connection: u64,
    /// The newest frame of the record, and the frame of its message as long as it may have to be run.
    pub(super) record: Place,
    pub(super) message: Place,
    /// The same in the file that a compaction is writing.
    pub(super) moved_record: Place,
    pub(super) moved_message: Place,
    pub(super) state: State,
    /// Whether it is dead because no rule matched it.
    pub(super) unmatched: bool,
    pub(super) settled: Settled,
    pub(super) confirmed: bool,
    /// Whether the record has gone, and its place is left.
    is_gap: bool,
}

impl LedgerEntry {
    pub(super) fn new(facts: &Facts, record: Place, connection: u64) -> Self {
        Self {
            delivery: facts.delivery,
            id: facts.id,
            sequence: facts.sequence.unwrap_or(NO_SEQUENCE),
            since_ms: facts.since_ms,
            connection,
            record,
            message: Place::NONE,
            moved_record: Place::NONE,
            moved_message: Place::NONE,
            state: facts.state,
            unmatched: facts.unmatched,
            settled: facts.settled,
            confirmed: facts.confirmed,
            is_gap: false,
        }
    }

    pub(super) fn sequence(&self) -> Option<Sequence> {
        Some(self.sequence).filter(|sequence| *sequence != NO_SEQUENCE)
    }

    /// Bytes of its frames.
    pub(super) fn frames(&self) -> u64 {
        u64::from(self.record.size()) + u64::from(self.message.size())
    }

    /// Whether its frames can be read again.
    pub(super) fn is_readable(&self) -> bool {
        [self.record, self.message].iter().all(|place| place.size() as usize <= frame::size(frame::MOST))
    }

    /// What it counts towards `max_size`.
    pub(super) fn size(&self) -> u64 {
        self.frames().max(RECORD_BYTES)
    }
}

#[derive(Debug)]
struct Slot {
    number: u64,
    entry: LedgerEntry,
}

impl Slot {
    fn is_gap(&self) -> bool {
        self.entry.is_gap
    }
}

#[derive(Debug, Default)]
pub(super) struct Entries {
    slots: VecDeque<Slot>,
    gaps: usize,
}

impl Entries {
    pub(super) fn len(&self) -> usize {
        self.slots.len() - self.gaps
    }

    pub(super) fn get(&self, number: u64) -> Option<&LedgerEntry> {
        let at = self.find(number).ok()?;
        self.slots.get(at).filter(|slot| !slot.is_gap()).map(|slot| &slot.entry)
    }

    pub(super) fn get_mut(&mut self, number: u64) -> Option<&mut LedgerEntry> {
        let at = self.find(number).ok()?;
        self.slots.get_mut(at).filter(|slot| !slot.is_gap()).map(|slot| &mut slot.entry)
    }

    /// Inserts an entry, or replaces the one with its number.
    pub(super) fn insert(&mut self, number: u64, entry: LedgerEntry) {
        let slot = Slot { number, entry };
        match self.find(number) {
            Ok(at) => {
                if let Some(own) = self.slots.get_mut(at) {
                    self.gaps -= usize::from(own.is_gap());
                    *own = slot;
                }
            }
            // At the end: numbers count up, and a compaction copies in their order.
            Err(at) => self.slots.insert(at, slot),
        }
    }

    pub(super) fn remove(&mut self, number: u64) -> Option<LedgerEntry> {
        let at = self.find(number).ok()?;
        let slot = self.slots.get_mut(at).filter(|slot| !slot.is_gap())?;
        let entry = slot.entry;
        slot.entry.is_gap = true;
        self.gaps += 1;
        while self.slots.front().is_some_and(|slot| slot.is_gap()) {
            self.slots.pop_front();
            self.gaps -= 1;
        }
        if self.gaps > self.slots.len() / 2 {
            self.slots.retain(|slot| !slot.is_gap());
            self.gaps = 0;
        }
        Some(entry)
    }

    pub(super) fn iter(&self) -> impl DoubleEndedIterator<Item = (u64, &LedgerEntry)> {
        self.from(0)
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut LedgerEntry> {
        self.slots.iter_mut().filter(|slot| !slot.is_gap()).map(|slot| &mut slot.entry)
    }

    /// Entries with a number above `after`, in order.
    pub(super) fn after(&self, after: u64) -> impl Iterator<Item = (u64, &LedgerEntry)> {
        self.from(self.slots.partition_point(|slot| slot.number <= after))
    }

    /// The first entry with a number above `after`.
    pub(super) fn first_after(&self, after: u64) -> Option<(u64, LedgerEntry)> {
        self.after(after).next().map(|(number, entry)| (number, *entry))
    }

    fn from(&self, at: usize) -> impl DoubleEndedIterator<Item = (u64, &LedgerEntry)> {
        let slots = self.slots.range(at..).filter(|slot| !slot.is_gap());
        slots.map(|slot| (slot.number, &slot.entry))
    }

    fn find(&self, number: u64) -> Result<usize, usize> {
        // Where it is if no number is missing, as nearly always.
        let first = self.slots.front().map_or(0, |slot| slot.number);
        let guess = usize::try_from(number.wrapping_sub(first)).unwrap_or(usize::MAX);
        if self.slots.get(guess).is_some_and(|slot| slot.number == number) {
            return Ok(guess);
        }
        self.slots.binary_search_by_key(&number, |slot| slot.number)
    }
}
