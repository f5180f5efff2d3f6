//! The inbox's journal with its index: opened, read, changed one batch at a time, and compacted.
//!
//! Owns: what the agent needs at its start, when a compaction is due. Must not know: threads, paths, when the inbox
//! tries again.

use std::collections::HashMap;

use super::apply::{Notes, Work};
use super::codec::{self, Stored};
use super::compaction::Compaction;
use super::file::JournalPlace;
use super::frame::Kind;
use super::index::Index;
use super::journal::{End, Journal};
use super::journal_file::JournalFile;
use super::operation::{Op, Written};
use super::origins::Origins;
use super::record::{Counts, Opened, Record, Unfinished, from_millis};
use super::retention;
use super::sums::{Circumstances, Numbers};
use super::trouble::Trouble;
use super::window::Window;
use crate::config::InboxSettings;

/// How far back [`Opened::starts`] goes, and how many starts it has of one rule at most.
const STARTS_MS: u64 = 3_600_000;
const MOST_STARTS: usize = 1_000;

/// A compaction frees at least this much, or a 16th of `max_size` if that is less.
const WORTH_IT: u64 = 1024 * 1024;

/// How many bytes one step of a compaction copies, or a 64th of `max_size` if that is less. With the wait for the disk,
/// a step takes 25 ms on a slow card.
const STEP: u64 = 256 * 1024;

/// How much of the file that a compaction has replaced is given back at once.
const RETIRED_STEP: u64 = 4 * 1024 * 1024;

/// The result of a batch.
#[derive(Debug)]
pub(super) struct Applied {
    pub(super) answers: Vec<Written>,
    pub(super) notes: Notes,
}

/// An open journal.
#[derive(Debug)]
pub(super) struct Store {
    pub(super) journal: Journal,
    pub(super) index: Index,
    compaction: Option<Compaction>,
    /// Bytes that were written since the last step of a compaction.
    since_step: u64,
    /// The file that a compaction has replaced. It is given back in parts, because the disk would be busy with the whole
    /// for longer than a message may wait.
    retired: Option<Journal>,
    /// After a compaction failed, the next one waits until the journal has this length.
    not_before: u64,
    /// Whether it must be opened again: the disk returned other data, or it is not known which file would have the
    /// inbox's name after a power cut.
    is_in_doubt: bool,
}

impl Store {
    /// Opens a journal. New numbers follow `floor`. With `until`, what comes after it does not count. Also returned is from
    /// which byte on a batch was left out because it is not whole.
    pub(super) fn open(
        file: Box<dyn JournalFile>,
        floor: Numbers,
        until: Option<End>,
    ) -> Result<(Self, Option<u64>), Trouble> {
        let (journal, mut index, cut) = super::replay::open(file, until)?;
        index.sums.numbers = index.sums.numbers.max(floor);
        let store = Self {
            journal,
            index,
            compaction: None,
            since_step: 0,
            retired: None,
            not_before: 0,
            is_in_doubt: false,
        };
        Ok((store, cut))
    }

    /// Takes over the origins of a damaged file whose place this one took, with the next batch.
    pub(super) fn take_over(&mut self, origins: &Origins) {
        if origins.are_known() && !self.index.origins.are_known() {
            self.index.origins = origins.clone();
            self.journal.put(Kind::Origins, |out| origins.encode(out));
        }
    }

    /// What the agent needs once, at its start.
    pub(super) fn opened(&self, now_ms: u64) -> Result<Opened, Trouble> {
        let mut opened = Opened { counts: self.counts(), ..Opened::default() };
        let mut latest: HashMap<String, (u64, Record)> = HashMap::new();
        let mut starts: HashMap<String, Vec<u64>> = HashMap::new();
        let mut last_received = None;
        let mut window = Window::default();
        for (_, entry) in self.index.ledger.entries.iter() {
            let record = self.journal.read_in_order(entry.record, &mut window)?;
            let record = Stored::decode(&record).map_err(Trouble::Corrupt)?.record;
            last_received = last_received.max(Some(record.received_ms));
            if let (Some(rule), Some(started)) = (&record.rule, record.started_ms) {
                match starts.get_mut(rule) {
                    Some(own) => own.push(started),
                    None => drop(starts.insert(rule.clone(), vec![started])),
                }
            }
            if !record.state.has_ended() {
                if !entry.message.is_some() {
                    let number = record.number.0;
                    return Err(Trouble::Corrupt(format!("the message of record {number} is missing")));
                }
                let message = self.journal.read(entry.message)?;
                let message = codec::decode_message(&message).map_err(Trouble::Corrupt)?;
                opened.unfinished.push(Unfinished { record, message });
            } else if let Some(rule) = &record.rule {
                match latest.get_mut(rule) {
                    Some((newest, _)) if *newest > entry.since_ms => {}
                    Some(own) => *own = (entry.since_ms, record),
                    None => drop(latest.insert(rule.clone(), (entry.since_ms, record))),
                }
            }
        }
        for (rule, mut own) in starts {
            own.sort_unstable();
            let old = own.partition_point(|at| at.saturating_add(STARTS_MS) < now_ms);
            // The last start stays, however old it is.
            let first = old.max(own.len().saturating_sub(MOST_STARTS)).min(own.len() - 1);
            opened.starts.extend(own[first..].iter().map(|at| (rule.clone(), from_millis(*at))));
        }
        opened.starts.sort_unstable_by_key(|(_, at)| *at);
        opened.latest = latest.into_values().map(|(_, record)| record).collect();
        opened.latest.sort_by_key(|record| record.number);
        opened.last_received = last_received.map(from_millis);
        if self.index.pins_on.is_some() {
            let pins = self.journal.read(self.index.pins_on)?;
            let pins = codec::decode_named(&pins, "the pins that are on").map_err(Trouble::Corrupt)?;
            opened.pins_on = pins.into_iter().map(|(pin, since)| (pin, from_millis(since))).collect();
        }
        Ok(opened)
    }

    /// Applies operations in one batch, and writes it. If this fails, the memory does not match the file: the caller
    /// must drop the store, and open it again up to its [`Journal::durable`] end.
    pub(super) fn apply(
        &mut self,
        ops: &[Op],
        circumstances: &Circumstances<'_>,
    ) -> Result<Applied, Trouble> {
        let mut work = Work::new(&mut self.journal, &mut self.index, circumstances);
        let answers = work.all(ops)?;
        let notes = work.notes;
        // Without a change there is no reason to wait for the disk.
        if self.journal.gathered() > 0 {
            if let Some(compaction) = &mut self.compaction {
                compaction.follow(&self.journal, &mut self.index);
            }
            self.since_step += self.journal.gathered() as u64;
            self.journal.commit(&self.index.sums)?;
        }
        // Marks that an answered batch has overwritten are never restored.
        self.index.ledger.begin();
        Ok(Applied { answers, notes })
    }

    /// Whether a compaction must be done before the next batch: the journal has grown so far beyond `max_size`, or its format
    /// is the earlier one.
    pub(super) fn must_compact(&self, settings: &InboxSettings) -> bool {
        let most = settings.max_size.saturating_mul(2).saturating_add(settings.max_size / 16);
        self.journal.is_earlier() || self.journal.len() > most && self.dead_bytes() > settings.max_size / 16
    }

    /// Does a part of a compaction if one is due. True if there is more to do. After an error, the journal can be used
    /// if [`Store::may_go_on`] says so.
    pub(super) fn compact<P: JournalPlace>(
        &mut self,
        place: &mut P,
        settings: &InboxSettings,
    ) -> Result<bool, Trouble> {
        if let Some(retired) = &mut self.retired {
            // It has no name any more, so what remains of it after an error goes with the process.
            if !retired.shrink(RETIRED_STEP).unwrap_or(false) {
                self.retired = None;
            }
            return Ok(true);
        }
        let came = std::mem::take(&mut self.since_step);
        if self.compaction.is_none() {
            if !self.is_compaction_due(settings) {
                return Ok(false);
            }
            let begun = place.begin().inspect_err(|_| self.not_before = self.later(settings))?;
            self.compaction = Some(Compaction::new(Journal::empty(begun)));
            return Ok(true);
        }
        let Some(compaction) = &mut self.compaction else { return Ok(false) };
        // What comes meanwhile has to be copied as well. With less than three times as much, the journal would reach its
        // bound before.
        let step = STEP.min(settings.max_size / 64).max(came.saturating_mul(3));
        let step = usize::try_from(step).unwrap_or(usize::MAX);
        match compaction.step(&self.journal, &mut self.index, step) {
            Ok(true) => Ok(true),
            Ok(false) => self.move_over(place, settings).map(|()| true),
            Err(failure) => {
                self.give_up(place, settings);
                self.is_in_doubt = matches!(failure, Trouble::Corrupt(_));
                Err(failure)
            }
        }
    }

    /// Whether the journal can be used after a compaction has failed.
    pub(super) fn may_go_on(&self, settings: &InboxSettings) -> bool {
        !self.is_in_doubt && !self.must_compact(settings)
    }

    fn move_over<P: JournalPlace>(&mut self, place: &mut P, settings: &InboxSettings) -> Result<(), Trouble> {
        if let Err(failure) = place.replace() {
            self.give_up(place, settings);
            return Err(failure);
        }
        let Some(compaction) = self.compaction.take() else { return Ok(()) };
        let old = std::mem::replace(&mut self.journal, compaction.into_journal());
        self.index.move_over();
        self.not_before = 0;
        place.sync_name().inspect_err(|_| self.is_in_doubt = true)?;
        // Only now, because before, a power cut could have brought it back.
        self.retired = Some(old);
        Ok(())
    }

    fn give_up<P: JournalPlace>(&mut self, place: &mut P, settings: &InboxSettings) {
        self.compaction = None;
        self.not_before = self.later(settings);
        place.discard();
    }

    /// From which length of the journal on a compaction is tried again.
    fn later(&self, settings: &InboxSettings) -> u64 {
        self.journal.len() + WORTH_IT.min(settings.max_size / 16)
    }

    fn is_compaction_due(&self, settings: &InboxSettings) -> bool {
        let dead = self.dead_bytes();
        self.must_compact(settings)
            || (dead >= self.index.frame_bytes().min(settings.max_size / 2)
                && dead >= WORTH_IT.min(settings.max_size / 16)
                && self.journal.len() >= self.not_before)
    }

    pub(super) fn is_compacting(&self) -> bool {
        self.compaction.is_some() || self.retired.is_some()
    }

    /// From which length of the journal on a compaction may begin, after one has failed, or its file has taken the room
    /// that the journal needs.
    pub(super) fn next_compaction(&self, settings: &InboxSettings) -> u64 {
        if self.compaction.is_some() { self.later(settings) } else { self.not_before }
    }

    pub(super) fn delay_compaction(&mut self, not_before: u64) {
        self.not_before = not_before;
    }

    fn dead_bytes(&self) -> u64 {
        self.journal.len().saturating_sub(self.index.frame_bytes())
    }

    /// Whether there are records that are old enough to be removed.
    pub(super) fn has_old(&self, settings: &InboxSettings, now_ms: u64) -> bool {
        !retention::too_old(&self.index.ledger, settings, now_ms, 1).is_empty()
    }

    pub(super) fn counts(&self) -> Counts {
        self.index.counts()
    }
}
