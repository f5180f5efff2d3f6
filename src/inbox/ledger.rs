//! What the inbox keeps in memory: which messages are known, how many there are, which may be removed first.
//!
//! Owns: the index, the sums, the order of removal. Must not know: redb, the clock. It is filled by a scan at each
//! open and changed together with the file. If a write fails, it is thrown away and filled again.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::key::Digest;
use super::record::{Record, Settled, State};
use crate::message::Sequence;

/// The connection of a record that came before this process began.
pub(super) const EARLIER_PROCESS: u64 = u64::MAX;

/// How many records that may not be removed yet are passed in search of some that may.
const LOOK_PAST: usize = 16;

/// What is kept in memory of one record.
#[derive(Debug, Clone, Copy)]
pub(super) struct LedgerEntry {
    /// As in [`super::codec::Stored`].
    pub(super) delivery: Digest,
    /// As in [`super::codec::Stored`].
    pub(super) id: Digest,
    pub(super) sequence: Option<Sequence>,
    /// When it arrived, or when it ended.
    pub(super) since_ms: u64,
    /// The connection on which it last came: see [`Ledger::absorb`].
    pub(super) connection: u64,
    /// Bytes of the record and its message.
    pub(super) size: u32,
    pub(super) state: State,
    /// Whether it is dead because no rule matched it.
    pub(super) unmatched: bool,
    pub(super) settled: Settled,
    pub(super) confirmed: bool,
}

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
    entries: BTreeMap<u64, LedgerEntry>,
    /// Both digests of each record, with its number. Several records may share a digest.
    index: BTreeSet<(Digest, u64)>,
    finished: BTreeSet<u64>,
    unmatched: BTreeSet<u64>,
    dead: BTreeSet<u64>,
    bytes: u64,
    ended_bytes: u64,
    unmatched_bytes: u64,
    pub(super) reports: u64,
    pub(super) report_bytes: u64,
    /// Marks that were overwritten or removed since [`Ledger::begin`], oldest first.
    overwritten: Vec<(u64, u64)>,
}

impl Ledger {
    pub(super) fn get(&self, number: u64) -> Option<&LedgerEntry> {
        self.entries.get(&number)
    }

    pub(super) fn insert(&mut self, number: u64, entry: LedgerEntry) {
        let keys = [entry.delivery, entry.id].into_iter().filter(|key| *key != Digest::NONE);
        self.index.extend(keys.map(|key| (key, number)));
        self.count_in(number, &entry);
        self.entries.insert(number, entry);
    }

    pub(super) fn remove(&mut self, number: u64) -> Option<LedgerEntry> {
        let entry = self.entries.remove(&number)?;
        // If the transaction fails, the record is still there and needs its mark.
        self.overwritten.push((number, entry.connection));
        for key in [entry.delivery, entry.id] {
            self.index.remove(&(key, number));
        }
        self.count_out(number, &entry);
        Some(entry)
    }

    /// Changes an entry. Its digests must stay as they are.
    pub(super) fn change(&mut self, number: u64, change: impl FnOnce(&mut LedgerEntry)) {
        let Some(mut entry) = self.entries.get(&number).copied() else { return };
        self.count_out(number, &entry);
        change(&mut entry);
        self.count_in(number, &entry);
        self.entries.insert(number, entry);
    }

    /// The newest record with this key.
    pub(super) fn find(&self, key: Digest) -> Option<u64> {
        self.with_key(key).next_back()
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
    pub(super) fn absorb(&mut self, delivery: Digest, again: Again) -> Option<u64> {
        let is_the_same = |entry: &LedgerEntry| again.sequence.is_some() && entry.sequence == again.sequence;
        let may_be = |entry: &LedgerEntry| {
            (again.redelivered || entry.connection != again.connection)
                && (again.sequence.is_none() || entry.sequence.is_none())
        };
        let at_the_hub = |entry: &LedgerEntry| {
            matches!(entry.state, State::Accepted | State::Started) && entry.settled == Settled::AfterAction
        };
        // The difference counts in both directions. Otherwise a record from a clock that was ahead would be recent
        // for years.
        let recent = |entry: &LedgerEntry| again.now_ms.abs_diff(entry.since_ms) <= again.window_ms;
        let first = |wanted: &dyn Fn(&LedgerEntry) -> bool| {
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

    fn with_key(&self, key: Digest) -> impl DoubleEndedIterator<Item = u64> {
        self.index.range((key, 0)..=(key, u64::MAX)).map(|(_, number)| *number)
    }

    /// Records of messages that have an id, newest first.
    pub(super) fn numbers_with_id(&self) -> impl Iterator<Item = u64> {
        self.entries.iter().rev().filter(|(_, entry)| entry.id != Digest::NONE).map(|(number, _)| *number)
    }

    /// Numbers above `after`, in order.
    pub(super) fn numbers_after(&self, after: u64) -> impl Iterator<Item = (u64, State)> {
        let from = (std::ops::Bound::Excluded(after), std::ops::Bound::Unbounded);
        self.entries.range(from).map(|(number, entry)| (*number, entry.state))
    }

    /// A transaction begins. Marks that are overwritten from now on may have to be restored.
    pub(super) fn begin(&mut self) {
        self.overwritten.clear();
    }

    /// The present marks. With `taken_back`, the marks at the time of [`Ledger::begin`].
    pub(super) fn marks(&self, taken_back: bool) -> Marks {
        let marked = |entry: &&LedgerEntry| entry.connection != EARLIER_PROCESS;
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

    /// Restores marks after the ledger was filled again.
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
                match self.entries.get(number) {
                    Some(entry) if entry.since_ms < before_ms => found.push(*number),
                    _ => passed += 1,
                }
            }
        }
        found
    }

    fn count_in(&mut self, number: u64, entry: &LedgerEntry) {
        self.bytes += u64::from(entry.size);
        if let Some(numbers) = self.ended_numbers(entry) {
            numbers.insert(number);
            self.ended_bytes += u64::from(entry.size);
        }
        if entry.unmatched {
            self.unmatched_bytes += u64::from(entry.size);
        }
    }

    fn count_out(&mut self, number: u64, entry: &LedgerEntry) {
        self.bytes -= u64::from(entry.size);
        if let Some(numbers) = self.ended_numbers(entry) {
            numbers.remove(&number);
            self.ended_bytes -= u64::from(entry.size);
        }
        if entry.unmatched {
            self.unmatched_bytes -= u64::from(entry.size);
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

/// When a record got into its present state: when it ended, or if it has not, when it arrived.
pub(super) fn since_ms(record: &Record) -> u64 {
    let ended = record.outcome.as_ref().and_then(|outcome| crate::message::parse_time(&outcome.ended));
    ended.map_or(record.received_ms, super::record::to_millis)
}
