//! The records in memory: which messages are known, how much they count, which may be removed first.
//!
//! Owns: finding a record by its keys, the marks of connections, the order of removal. Must not know: files, the clock.
//! It is filled when the journal is opened, and changed with each batch. If a write fails, it is filled again.

use std::collections::{BTreeSet, HashMap};

use super::codec::Facts;
use super::entries::{Entries, LedgerEntry};
use super::frame::Place;
use super::key::Digest;
use super::origins::Origins;
use super::record::{Settled, State};
use crate::message::Sequence;

/// The connection of a record that came before this process began.
pub(super) const EARLIER_PROCESS: u64 = u64::MAX;

/// How many records that may not be removed yet are passed in search of some that may.
const LOOK_PAST: usize = 16;

/// How many of the newest equal records are looked at for an arrival. The hub keeps at most 50 messages for a device, so
/// a message that it sends again is among them. (Source: wire reference 5.1.)
const LOOK_AT_EQUAL: usize = 256;

/// What is known of an arrival besides its content.
#[derive(Debug, Clone, Copy)]
pub(super) struct Again {
    pub(super) connection: u64,
    pub(super) redelivered: bool,
    pub(super) sequence: Option<Sequence>,
    pub(super) now_ms: u64,
    pub(super) window_ms: u64,
}

/// The connection of each record that came in this process, by number.
pub(super) type Marks = HashMap<u64, u64>;

#[derive(Debug, Default)]
pub(super) struct Ledger {
    pub(super) entries: Entries,
    /// The beginnings of both digests of each record, with its number. Several records may share a digest.
    index: BTreeSet<(u64, u64)>,
    finished: BTreeSet<u64>,
    unmatched: BTreeSet<u64>,
    dead: BTreeSet<u64>,
    bytes: u64,
    ended_bytes: u64,
    unmatched_bytes: u64,
    frame_bytes: u64,
    /// Marks that were overwritten or removed since [`Ledger::begin`], oldest first.
    overwritten: Vec<(u64, u64)>,
}

impl Ledger {
    pub(super) fn get(&self, number: u64) -> Option<&LedgerEntry> {
        self.entries.get(number)
    }

    pub(super) fn insert(&mut self, number: u64, entry: LedgerEntry) {
        let keys = [entry.delivery, entry.id].into_iter().filter(|key| *key != Digest::NONE);
        self.index.extend(keys.map(|key| (key.beginning(), number)));
        self.count_in(number, &entry);
        self.entries.insert(number, entry);
    }

    pub(super) fn remove(&mut self, number: u64) {
        let Some(entry) = self.entries.remove(number) else { return };
        // If the batch fails, the record is still there and needs its mark. One of an earlier process has none.
        if entry.connection != EARLIER_PROCESS {
            self.overwritten.push((number, entry.connection));
        }
        for key in [entry.delivery, entry.id] {
            self.index.remove(&(key.beginning(), number));
        }
        self.count_out(number, &entry);
    }

    /// Changes an entry. Its digests must stay as they are.
    pub(super) fn change(&mut self, number: u64, change: impl FnOnce(&mut LedgerEntry)) {
        let Some(mut entry) = self.entries.get(number).copied() else { return };
        self.count_out(number, &entry);
        change(&mut entry);
        self.count_in(number, &entry);
        self.entries.get_mut(number).into_iter().for_each(|own| *own = entry);
    }

    /// Takes over a new or changed record, whose frame is at `place`. A finished one no longer has its message.
    pub(super) fn record(&mut self, facts: &Facts, place: Place, connection: u64) {
        if self.get(facts.number).is_none() {
            return self.insert(facts.number, LedgerEntry::new(facts, place, connection));
        }
        self.change(facts.number, |entry| {
            let earlier = *entry;
            *entry = LedgerEntry::new(facts, place, earlier.connection);
            if facts.state != State::Finished {
                entry.message = earlier.message;
            }
            (entry.moved_record, entry.moved_message) = (earlier.moved_record, earlier.moved_message);
        });
    }

    /// The newest record with this key.
    pub(super) fn find(&self, key: Digest) -> Option<u64> {
        self.with_key(key).next().map(|(number, _)| number)
    }

    /// Finds the record of which an arrival is a redelivery, and marks it as seen on that connection. So a record
    /// matches only one arrival per connection: two equal messages that are both sent again are two messages.
    ///
    /// If both have a sequence number, it decides. If not, the arrival can be a redelivery only if it came on another
    /// connection, or if the transport says so. The hub sends again only while it does not know of the completion. So
    /// records without a confirmed completion come first, and among them those that have not ended. Otherwise an
    /// ended record would match instead of one that has not ended, which would then never run. A record with a
    /// confirmed completion counts only within the window, because a hub may complete a little later than it answers
    /// (UNVERIFIED).
    ///
    /// A hub sends again only what came from it. So with `origins`, records of another one are passed by.
    pub(super) fn absorb(
        &mut self,
        delivery: Digest,
        again: Again,
        origins: Option<&Origins>,
    ) -> Option<u64> {
        let may_be = |entry: &LedgerEntry| {
            (again.redelivered || entry.connection != again.connection)
                && (again.sequence.is_none() || entry.sequence().is_none())
        };
        let at_the_hub =
            |entry: &LedgerEntry| !entry.state.has_ended() && entry.settled == Settled::AfterAction;
        // The difference counts in both directions. Otherwise a record from a clock that was ahead would be recent
        // for years.
        let recent = |entry: &LedgerEntry| {
            again.window_ms > 0 && again.now_ms.abs_diff(entry.since_ms) <= again.window_ms
        };
        // The lower, the more likely it is the one.
        let rank = |entry: &LedgerEntry| match entry {
            entry if again.sequence.is_some() && entry.sequence() == again.sequence => Some(0),
            entry if !may_be(entry) => None,
            entry if at_the_hub(entry) => Some(1),
            entry if !entry.confirmed => Some(2),
            entry if recent(entry) => Some(3),
            _ => None,
        };
        let from_here = |number: u64| origins.is_none_or(|origins| origins.is_present(number));
        let ranked = self.with_key(delivery).take(LOOK_AT_EQUAL).filter(|(number, _)| from_here(*number));
        // The oldest of the lowest rank.
        let (_, number) = ranked.filter_map(|(number, entry)| Some((rank(entry)?, number))).min()?;
        let entry = self.entries.get_mut(number)?;
        self.overwritten.push((number, entry.connection));
        entry.connection = again.connection;
        Some(number)
    }

    /// Records with a key, newest first.
    fn with_key(&self, key: Digest) -> impl Iterator<Item = (u64, &LedgerEntry)> {
        let beginning = key.beginning();
        let numbers = self.index.range((beginning, 0)..=(beginning, u64::MAX)).rev();
        let entries = numbers.filter_map(|(_, number)| Some((*number, self.entries.get(*number)?)));
        entries.filter(move |(_, entry)| entry.delivery == key || entry.id == key)
    }

    /// Records of messages that have an id, newest first.
    pub(super) fn numbers_with_id(&self) -> impl Iterator<Item = u64> {
        self.entries.iter().rev().filter(|(_, entry)| entry.id != Digest::NONE).map(|(number, _)| number)
    }

    /// A batch begins. Marks that are overwritten from now on may have to be restored.
    pub(super) fn begin(&mut self) {
        self.overwritten.clear();
    }

    /// The marks as they were at [`Ledger::begin`].
    pub(super) fn marks(&self) -> Marks {
        let marked = |(_, entry): &(u64, &LedgerEntry)| entry.connection != EARLIER_PROCESS;
        let mut marks: Marks =
            self.entries.iter().filter(marked).map(|(number, entry)| (number, entry.connection)).collect();
        marks.extend(self.overwritten.iter().rev().copied());
        marks
    }

    /// Restores marks after the ledger was filled again.
    pub(super) fn restore(&mut self, marks: &Marks) {
        for (number, connection) in marks {
            if let Some(entry) = self.entries.get_mut(*number) {
                entry.connection = *connection;
            }
        }
    }

    pub(super) fn records(&self) -> u64 {
        self.entries.len() as u64
    }

    pub(super) fn unfinished(&self) -> u64 {
        self.records() - self.ended()
    }

    pub(super) fn dead(&self) -> u64 {
        (self.dead.len() + self.unmatched.len()) as u64
    }

    fn ended(&self) -> u64 {
        self.finished.len() as u64 + self.dead()
    }

    /// What all records count towards `max_size`.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Bytes of all frames that are needed.
    pub(super) fn frame_bytes(&self) -> u64 {
        self.frame_bytes
    }

    /// The bytes of all ended records.
    pub(super) fn ended_bytes(&self) -> u64 {
        self.ended_bytes
    }

    /// The ended record to remove first. Finished ones go first, then those that no rule matched, then the other dead
    /// ones; oldest first.
    pub(super) fn first_to_go(&self) -> Option<u64> {
        [&self.finished, &self.unmatched, &self.dead].into_iter().find_map(BTreeSet::first).copied()
    }

    /// The oldest record that no rule matched, if such records take more than `most` bytes. The last one stays.
    pub(super) fn unmatched_beyond(&self, most: u64) -> Option<u64> {
        let first = self.unmatched.first().filter(|_| self.unmatched.len() > 1);
        first.filter(|_| self.unmatched_bytes > most).copied()
    }

    /// Up to `limit` records that ended before `before_ms`; at least `keep_at_least` ended records stay. A time in
    /// the future is not before anything, so a wrong clock keeps records and does not drop them.
    pub(super) fn too_old(&self, before_ms: u64, keep_at_least: u64, limit: usize) -> Vec<u64> {
        let spare = usize::try_from(self.ended().saturating_sub(keep_at_least)).unwrap_or(usize::MAX);
        let limit = limit.min(spare);
        let mut found = Vec::new();
        for numbers in [&self.finished, &self.unmatched, &self.dead] {
            let mut passed = 0;
            for number in numbers {
                if found.len() >= limit || passed >= LOOK_PAST {
                    break;
                }
                match self.entries.get(*number) {
                    Some(entry) if entry.since_ms < before_ms => found.push(*number),
                    _ => passed += 1,
                }
            }
        }
        found
    }

    fn count_in(&mut self, number: u64, entry: &LedgerEntry) {
        self.bytes += entry.size();
        self.frame_bytes += entry.frames();
        if let Some(numbers) = self.ended_numbers(entry) {
            numbers.insert(number);
            self.ended_bytes += entry.size();
        }
        if entry.unmatched {
            self.unmatched_bytes += entry.size();
        }
    }

    fn count_out(&mut self, number: u64, entry: &LedgerEntry) {
        self.bytes -= entry.size();
        self.frame_bytes -= entry.frames();
        if let Some(numbers) = self.ended_numbers(entry) {
            numbers.remove(&number);
            self.ended_bytes -= entry.size();
        }
        if entry.unmatched {
            self.unmatched_bytes -= entry.size();
        }
    }

    fn ended_numbers(&mut self, entry: &LedgerEntry) -> Option<&mut BTreeSet<u64>> {
        match entry.state {
            State::Accepted | State::Started => None,
            State::Finished => Some(&mut self.finished),
            State::Dead if entry.unmatched => Some(&mut self.unmatched),
            State::Dead => Some(&mut self.dead),
        }
    }
}
