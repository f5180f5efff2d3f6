//! What the inbox keeps in memory: which messages are known, how much there is, what may go first.
//!
//! Owns: the index, the sums, the order in which records go. Must not know: redb, the clock.
//! It is filled by a scan at each open and changed along with the file; when a write fails it is thrown away and filled
//! anew.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::key::Key;
use super::record::{Record, Settled, State};
use crate::message::Sequence;

/// A record that came before this process began.
pub(super) const EARLIER_PROCESS: u64 = u64::MAX;

/// How many records that may not go yet are looked at in search of some that may.
const LOOK_PAST: usize = 16;

/// What is kept in memory of one record.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entry {
    /// As in [`super::codec::Stored`].
    pub(super) delivery: Key,
    /// As in [`super::codec::Stored`].
    pub(super) id: Key,
    pub(super) sequence: Option<Sequence>,
    /// When it arrived, or when it ended.
    pub(super) since_ms: u64,
    /// The connection on which it came last: see [`Ledger::absorb`].
    pub(super) connection: u64,
    /// Bytes of the record and its message.
    pub(super) size: u32,
    pub(super) state: State,
    /// Whether it is dead because no rule took it.
    pub(super) unmatched: bool,
    pub(super) settled: Settled,
    pub(super) confirmed: bool,
}

/// What is known of an arrival beside its content.
#[derive(Debug, Clone, Copy)]
pub(super) struct Again {
    pub(super) connection: u64,
    pub(super) redelivered: bool,
    pub(super) sequence: Option<Sequence>,
    pub(super) now_ms: u64,
    pub(super) window_ms: u64,
}

/// The connection of each record that came in this process.
pub(super) type Marks = HashMap<u64, u64>;

#[derive(Debug, Default)]
pub(super) struct Ledger {
    entries: BTreeMap<u64, Entry>,
    /// By both digests of each record. Several may have the same.
    index: BTreeSet<(Key, u64)>,
    finished: BTreeSet<u64>,
    unmatched: BTreeSet<u64>,
    dead: BTreeSet<u64>,
    bytes: u64,
    ended_bytes: u64,
    unmatched_bytes: u64,
    pub(super) reports: u64,
    pub(super) report_bytes: u64,
    /// Marks that were overwritten, or went, since [`Ledger::begin`], the oldest first.
    overwritten: Vec<(u64, u64)>,
}

impl Ledger {
    pub(super) fn get(&self, number: u64) -> Option<&Entry> {
        self.entries.get(&number)
    }

    pub(super) fn insert(&mut self, number: u64, entry: Entry) {
        let keys = [entry.delivery, entry.id].into_iter().filter(|key| *key != Key::NONE);
        self.index.extend(keys.map(|key| (key, number)));
        self.count_in(number, &entry);
        self.entries.insert(number, entry);
    }

    pub(super) fn remove(&mut self, number: u64) -> Option<Entry> {
        let entry = self.entries.remove(&number)?;
        // The transaction may fail, and the record be there again.
        self.overwritten.push((number, entry.connection));
        for key in [entry.delivery, entry.id] {
            self.index.remove(&(key, number));
        }
        self.count_out(number, &entry);
        Some(entry)
    }

    /// Changes an entry; its digests stay as they are.
    pub(super) fn change(&mut self, number: u64, change: impl FnOnce(&mut Entry)) {
        let Some(mut entry) = self.entries.get(&number).copied() else { return };
        self.count_out(number, &entry);
        change(&mut entry);
        self.count_in(number, &entry);
        self.entries.insert(number, entry);
    }

    /// The newest record with this key.
    pub(super) fn find(&self, key: Key) -> Option<u64> {
        self.with_key(key).next_back()
    }

    /// The record of which an arrival is the same message, sent again; marks it as seen on that connection, so that it
    /// stands for one arrival per connection only: two equal messages that are both sent again are two messages.
    ///
    /// The sequence number decides, where both have one. Else the hub sends again on another connection, or says that it does, and
    /// it does so while it does not know that the message was completed. So these come first, and of them those that have not ended:
    /// otherwise one that has ended would swallow one that has not, and that one would never run. A record whose completion the hub
    /// has counts for the window only: perhaps a hub completes a little later than it answers (UNVERIFIED).
    pub(super) fn absorb(&mut self, delivery: Key, again: Again) -> Option<u64> {
        let is_the_same = |entry: &Entry| again.sequence.is_some() && entry.sequence == again.sequence;
        let may_be = |entry: &Entry| {
            (again.redelivered || entry.connection != again.connection)
                && (again.sequence.is_none() || entry.sequence.is_none())
        };
        let at_the_hub = |entry: &Entry| {
            matches!(entry.state, State::Accepted | State::Started) && entry.settled == Settled::AfterAction
        };
        // Either way: a record from a clock that was ahead is not recent for years.
        let recent = |entry: &Entry| again.now_ms.abs_diff(entry.since_ms) <= again.window_ms;
        let first = |wanted: &dyn Fn(&Entry) -> bool| {
            self.with_key(delivery).find(|number| self.entries.get(number).is_some_and(wanted))
        };
        let number = first(&is_the_same)
            .or_else(|| first(&|entry| may_be(entry) && at_the_hub(entry)))
            .or_else(|| first(&|entry| may_be(entry) && !entry.confirmed))
            .or_else(|| first(&|entry| may_be(entry) && again.window_ms > 0 && recent(entry)))?;
        let entry = self.entries.get_mut(&number)?;
        self.overwritten.push((number, entry.connection));
        entry.connection = again.connection;
        Some(number)
    }

    fn with_key(&self, key: Key) -> impl DoubleEndedIterator<Item = u64> {
        self.index.range((key, 0)..=(key, u64::MAX)).map(|(_, number)| *number)
    }

    /// Records of messages that have an id, the newest first.
    pub(super) fn numbers_with_id(&self) -> impl Iterator<Item = u64> {
        self.entries.iter().rev().filter(|(_, entry)| entry.id != Key::NONE).map(|(number, _)| *number)
    }

    /// Numbers above `after`, in order.
    pub(super) fn numbers_after(&self, after: u64) -> impl Iterator<Item = (u64, State)> {
        let from = (std::ops::Bound::Excluded(after), std::ops::Bound::Unbounded);
        self.entries.range(from).map(|(number, entry)| (*number, entry.state))
    }

    /// A transaction begins: what is overwritten from now on may have to be taken back.
    pub(super) fn begin(&mut self) {
        self.overwritten.clear();
    }

    /// The marks, as they are; with `taken_back`, as they were at [`Ledger::begin`].
    pub(super) fn marks(&self, taken_back: bool) -> Marks {
        let marked = |entry: &&Entry| entry.connection != EARLIER_PROCESS;
        let mut marks: Marks = self
            .entries
            .iter()
            .filter(|(_, entry)| marked(entry))
            .map(|(number, entry)| (*number, entry.connection))
            .collect();
        if taken_back {
            marks.extend(self.overwritten.iter().rev().copied());
        }
        marks
    }

    /// Puts marks back after the ledger was filled anew.
    pub(super) fn restore(&mut self, marks: &Marks) {
        for (number, connection) in marks {
            if let Some(entry) = self.entries.get_mut(number) {
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

    pub(super) fn bytes(&self) -> u64 {
        self.bytes + self.report_bytes
    }

    /// What all records that have ended take.
    pub(super) fn ended_bytes(&self) -> u64 {
        self.ended_bytes
    }

    /// The ended record that goes first: finished ones, then those that no rule took, then the other dead ones; the oldest
    /// first.
    pub(super) fn first_to_go(&self) -> Option<u64> {
        [&self.finished, &self.unmatched, &self.dead].into_iter().find_map(BTreeSet::first).copied()
    }

    /// The oldest record of a message that no rule took, when those take more than `most` bytes. The last one stays.
    pub(super) fn unmatched_beyond(&self, most: u64) -> Option<u64> {
        let first = self.unmatched.first().filter(|_| self.unmatched.len() > 1);
        first.filter(|_| self.unmatched_bytes > most).copied()
    }

    /// Up to `limit` records that ended before `before_ms` and are more than `keep_at_least`. A time that lies in the
    /// future is not before anything, so a clock that was wrong keeps records rather than drops them.
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
                match self.entries.get(number) {
                    Some(entry) if entry.since_ms < before_ms => found.push(*number),
                    _ => passed += 1,
                }
            }
        }
        found
    }

    fn count_in(&mut self, number: u64, entry: &Entry) {
        self.bytes += u64::from(entry.size);
        if let Some(numbers) = self.ended_numbers(entry) {
            numbers.insert(number);
            self.ended_bytes += u64::from(entry.size);
        }
        if entry.unmatched {
            self.unmatched_bytes += u64::from(entry.size);
        }
    }

    fn count_out(&mut self, number: u64, entry: &Entry) {
        self.bytes -= u64::from(entry.size);
        if let Some(numbers) = self.ended_numbers(entry) {
            numbers.remove(&number);
            self.ended_bytes -= u64::from(entry.size);
        }
        if entry.unmatched {
            self.unmatched_bytes -= u64::from(entry.size);
        }
    }

    fn ended_numbers(&mut self, entry: &Entry) -> Option<&mut BTreeSet<u64>> {
        match entry.state {
            State::Accepted | State::Started => None,
            State::Finished => Some(&mut self.finished),
            State::Dead if entry.unmatched => Some(&mut self.unmatched),
            State::Dead => Some(&mut self.dead),
        }
    }
}

/// Since when a record is as it is: when it ended, or else when it arrived.
pub(super) fn since_ms(record: &Record) -> u64 {
    let ended = record.outcome.as_ref().and_then(|outcome| crate::message::parse_time(&outcome.ended));
    ended.map_or(record.received_ms, super::record::to_millis)
}
