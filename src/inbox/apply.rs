//! One batch of operations: what each adds to the journal, and changes in the memory.
//!
//! Owns: the state machine of a record, duplicates. Must not know: when the batch is on disk, threads, files. What people ask
//! is in `query.rs`, room and removal are in `retention.rs`.

use bytes::Bytes;

use super::codec::{self, Stored};
use super::entries::LedgerEntry;
use super::frame::{Kind, MOST, Place};
use super::index::Index;
use super::journal::Journal;
use super::key::{Digest, is_known_by_id};
use super::ledger::Again;
use super::operation::{Arrival, Intent, Op, Past, Start, Verdict, Written};
use super::record::{Number, Record, State, to_millis};
use super::sums::Circumstances;
use super::trouble::Trouble;
use crate::message::{C2dMessage, Source, format_time};
use crate::outcome::{OutcomeKind, OutcomeReport};

/// A batch under way.
pub(super) struct Work<'w> {
    pub(super) journal: &'w mut Journal,
    pub(super) index: &'w mut Index,
    pub(super) circumstances: &'w Circumstances<'w>,
    /// The records that this batch removed.
    removed: Vec<u64>,
    pub(super) notes: Notes,
}

/// What should be logged once.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Notes {
    /// A message has the id of an earlier one, and counts as a new message.
    pub(super) reused_id: bool,
    /// A record was removed before its time, to make room.
    pub(super) forgot: bool,
    /// Whether the last new message found no room. None if there was no new message.
    pub(super) full: Option<bool>,
}

/// The result of a change of a record. An agent may be late if a person dropped the message, or if the file was
/// replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Altered {
    Done,
    EndedBefore,
    Missing,
}

impl<'w> Work<'w> {
    pub(super) fn new(
        journal: &'w mut Journal,
        index: &'w mut Index,
        circumstances: &'w Circumstances<'w>,
    ) -> Self {
        Self { journal, index, circumstances, removed: Vec::new(), notes: Notes::default() }
    }

    /// Applies all operations in order, and then removes what may be removed.
    pub(super) fn all(&mut self, ops: &[Op]) -> Result<Vec<Written>, Trouble> {
        let answers = ops.iter().map(|op| self.one(op)).collect::<Result<_, _>>()?;
        self.let_go();
        let removed = std::mem::take(&mut self.removed);
        self.put_numbers(Kind::Removed, &removed);
        Ok(answers)
    }

    /// How many records this batch removed.
    pub(super) fn gone(&self) -> usize {
        self.removed.len()
    }

    /// Adds frames of this kind with these numbers.
    fn put_numbers(&mut self, kind: Kind, numbers: &[u64]) {
        for part in numbers.chunks(MOST / size_of::<u64>()) {
            self.journal.put(kind, |out| codec::encode_numbers(out, part));
        }
    }

    fn one(&mut self, op: &Op) -> Result<Written, Trouble> {
        Ok(match op {
            Op::Accept(arrival) => {
                Written::Accepted { ticket: arrival.ticket, verdict: self.accept(arrival)? }
            }
            Op::Start { number, start } => {
                match self.alter(*number, "started", |record| started(record, *start))? {
                    Altered::EndedBefore => Written::Ended(*number),
                    Altered::Done | Altered::Missing => Written::Started(*number),
                }
            }
            Op::Again { number, made } => {
                self.alter(*number, "put back", |record| put_back(record, *made))?;
                Written::Again
            }
            Op::Origin(name) => Written::Origin(self.comes_from(name)?),
            Op::End { number, outcome, abandoned, report } => {
                self.end(*number, outcome, *abandoned, report.as_ref())?;
                Written::Ended(*number)
            }
            Op::Confirmed(numbers) => {
                let ledger = &mut self.index.ledger;
                let mut new = Vec::with_capacity(numbers.len());
                for Number(number) in numbers {
                    if ledger.get(*number).is_some_and(|entry| !entry.confirmed) {
                        ledger.change(*number, |entry| entry.confirmed = true);
                        new.push(*number);
                    }
                }
                self.put_numbers(Kind::Confirmed, &new);
                Written::Confirmed
            }
            Op::PinsOn(pins) => {
                self.index.pins_on = self.journal.put(Kind::PinsOn, |out| {
                    for (pin, since) in pins {
                        codec::encode_named(out, pin, to_millis(*since));
                    }
                });
                Written::PinsOn
            }
            Op::Reports { after, limit } => Written::Reports(self.reports(*after, *limit)?),
            Op::ReportsDone(numbers) => {
                self.reports_done(numbers);
                Written::ReportsDone
            }
            Op::Query { ticket, query } => {
                Written::Reply { ticket: *ticket, reply: Box::new(self.query(query)?) }
            }
        })
    }

    fn accept(&mut self, arrival: &Arrival) -> Result<Verdict, Trouble> {
        let mut id = Digest::NONE;
        let mut delivery = Digest::NONE;
        if let Some(message) = &arrival.message {
            (id, delivery) = (Digest::of_id_of(message), Digest::of_delivery(message));
            let by_id = is_known_by_id(message, self.circumstances.settings.known_by);
            let same_id = self.index.ledger.find(id).map(Number);
            // If the id is a key, it decides alone. If not, the whole delivery is compared.
            let known = match same_id {
                Some(number) if by_id => (!self.was_in_vain(number, delivery)?).then_some(number),
                // The note of a repeated id may have pushed out the record that has the id.
                None if by_id => self.index.ledger.find(delivery).map(Number),
                _ => {
                    // A module's inputs and calls have doors of their own, which no other hub takes away.
                    let origins = Some(&self.index.origins).filter(|_| message.source() == Source::C2d);
                    let again = self.again(arrival);
                    self.index.ledger.absorb(delivery, again, origins).map(Number)
                }
            };
            if let Some(number) = known {
                let verdict = self.came_again(number, delivery, arrival)?;
                if by_id {
                    // Last, because its record may push out that of the first message.
                    self.note_repeated_id(number, delivery, arrival);
                }
                return Ok(verdict);
            }
            self.notes.reused_id |= same_id.is_some() && !by_id;
        }
        Ok(self.add(delivery, id, arrival).map_or(Verdict::Full, Verdict::New))
    }

    /// Adds a record of a new message. None if there is no room.
    fn add(&mut self, delivery: Digest, id: Digest, arrival: &Arrival) -> Option<Number> {
        let number = Number(self.index.sums.numbers.last_record + 1);
        let message = arrival.message.as_ref();
        let record = new_record(number, message.and_then(|message| message.message_id()), arrival);
        let message = message.filter(|_| record.state != State::Finished);
        let stored = Stored { delivery, id, sequence: arrival.sequence, confirmed: false, record };
        let begun = self.journal.mark();
        let facts = stored.facts();
        let record = self.journal.put(Kind::Record, |out| stored.encode(&facts, out));
        let message = message.map(|message| {
            self.journal.put(Kind::Message, |out| codec::encode_message(out, number.0, message))
        });
        let mut entry = LedgerEntry::new(&facts, record, arrival.connection);
        entry.message = message.unwrap_or(Place::NONE);
        let room = entry.is_readable() && self.make_room(entry.size());
        self.notes.full = Some(!room);
        if !room {
            self.journal.take_back(begun);
            return None;
        }
        self.index.sums.numbers.last_record = number.0;
        self.index.ledger.insert(number.0, entry);
        self.ended_at_once(&stored.record, arrival);
        Some(number)
    }

    /// Counts a message that has ended when it came, and takes its report.
    fn ended_at_once(&mut self, record: &Record, arrival: &Arrival) {
        if let Some(outcome) = &record.outcome {
            self.count(outcome.outcome);
        }
        if let Intent::End { report: Some(report), .. } = &arrival.intent {
            self.add_report(report);
        }
    }

    fn put_message(&mut self, number: Number, message: &C2dMessage) {
        let place = self.journal.put(Kind::Message, |out| codec::encode_message(out, number.0, message));
        self.index.ledger.change(number.0, |entry| entry.message = place);
    }

    /// Whether the recorded message was never run and this arrival is another message with its id. If the first one
    /// expired, the second one is no repetition.
    fn was_in_vain(&self, number: Number, delivery: Digest) -> Result<bool, Trouble> {
        if self.index.ledger.get(number.0).is_none_or(|entry| entry.delivery == delivery) {
            return Ok(false);
        }
        let outcome = self.load(number)?.and_then(|stored| stored.record.outcome);
        Ok(outcome.is_some_and(|outcome| outcome.outcome.may_come_to_be_run()))
    }

    /// If a message has the key id of another one but other content, logs and records that it was not run. It does
    /// this only once, because the message itself may be sent again.
    fn note_repeated_id(&mut self, first: Number, delivery: Digest, arrival: &Arrival) {
        if self.index.ledger.find(delivery).is_some() {
            return;
        }
        let message_id = arrival.message.as_ref().and_then(|message| message.message_id());
        let text = format!(
            "repeated: not run, because message #{} came with the same id and other content; give each message an id of its own",
            first.0
        );
        let outcome = OutcomeReport {
            message_id: message_id.map(str::to_owned),
            rule: arrival.rule.clone(),
            ..OutcomeReport::without_action(OutcomeKind::Repeated, text, format_time(arrival.received))
        };
        tracing::warn!(
            message_id,
            rule = arrival.rule,
            number = first.0,
            outcome = outcome.text,
            "message not acted on"
        );
        let intent = Intent::End { outcome: Box::new(outcome), report: None };
        // The record has no id key, because the id is that of the first message.
        let repeated =
            Arrival { intent, message: arrival.message.clone(), rule: arrival.rule.clone(), ..*arrival };
        self.add(delivery, Digest::NONE, &repeated);
    }

    /// Decides on a message that has a record.
    fn came_again(
        &mut self,
        number: Number,
        delivery: Digest,
        arrival: &Arrival,
    ) -> Result<Verdict, Trouble> {
        let ended = self.load(number)?.filter(|stored| stored.record.state.has_ended());
        let Some(mut stored) = ended else { return Ok(Verdict::Unfinished(number)) };
        let Record { settled, outcome, abandoned, .. } = &stored.record;
        let outcome = outcome.as_ref().map(|outcome| outcome.outcome);
        let to_be_run = !matches!(arrival.intent, Intent::End { .. });
        let may_be_run = to_be_run && outcome.is_some_and(OutcomeKind::may_come_to_be_run);
        let begins_anew = (*abandoned || may_be_run) && stored.delivery == delivery;
        let Some(message) = arrival.message.as_ref().filter(|_| begins_anew) else {
            return Ok(Verdict::Ended(Past { number, settled: *settled, outcome }));
        };
        // Nothing is removed for it, because that could be this very record.
        let unfinished = self.index.bytes() - self.index.ledger.ended_bytes();
        if unfinished + message.wire_size() as u64 > self.circumstances.settings.max_size {
            self.notes.full = Some(true);
            return Ok(Verdict::Full);
        }
        // The hub sent it again after it was given back, or it was never run. So its record begins again.
        stored.record = new_record(number, message.message_id(), arrival);
        stored.confirmed = false;
        self.store(&stored);
        self.ended_at_once(&stored.record, arrival);
        if stored.record.state != State::Finished {
            self.put_message(number, message);
        }
        Ok(Verdict::New(number))
    }

    fn again(&self, arrival: &Arrival) -> Again {
        let window = self.circumstances.settings.digest_window.as_millis();
        Again {
            connection: arrival.connection,
            redelivered: arrival.redelivered,
            sequence: arrival.sequence,
            now_ms: to_millis(arrival.received),
            window_ms: u64::try_from(window).unwrap_or(u64::MAX),
        }
    }

    fn end(
        &mut self,
        number: Number,
        outcome: &OutcomeReport,
        abandoned: bool,
        report: Option<&Bytes>,
    ) -> Result<(), Trouble> {
        let is_kept = outcome.outcome != OutcomeKind::Unmatched
            || self.message(number)?.is_some_and(|message| !is_call(&message));
        let altered = self.alter(number, "ended", |record| {
            finish(record, outcome.clone(), is_kept);
            record.abandoned = abandoned && record.state == State::Dead;
        })?;
        if altered == Altered::Done {
            self.count(outcome.outcome);
        }
        match report {
            // If the message had ended before, its end was reported then.
            Some(report) if altered != Altered::EndedBefore => self.add_report(report),
            _ => {}
        }
        Ok(())
    }

    /// Changes the record of a message that has not ended.
    fn alter(
        &mut self,
        number: Number,
        what: &'static str,
        change: impl FnOnce(&mut Record),
    ) -> Result<Altered, Trouble> {
        let Some(mut stored) = self.load(number)? else {
            tracing::warn!(
                number = number.0,
                "cannot record that a message is {what}: its record was lost with a damaged file"
            );
            return Ok(Altered::Missing);
        };
        if stored.record.state.has_ended() {
            tracing::debug!(number = number.0, "cannot record that a message is {what}: it has ended before");
            return Ok(Altered::EndedBefore);
        }
        change(&mut stored.record);
        self.store(&stored);
        Ok(Altered::Done)
    }

    pub(super) fn load(&self, number: Number) -> Result<Option<Stored>, Trouble> {
        let Some(entry) = self.index.ledger.get(number.0) else { return Ok(None) };
        let mut stored = Stored::decode(&self.journal.read(entry.record)?).map_err(Trouble::Corrupt)?;
        stored.confirmed = entry.confirmed;
        Ok(Some(stored))
    }

    /// Records a change of a record.
    pub(super) fn store(&mut self, stored: &Stored) {
        let facts = stored.facts();
        let place = self.journal.put(Kind::Record, |out| stored.encode(&facts, out));
        self.index.ledger.record(&facts, place, 0);
    }

    /// Removes a record and its message.
    pub(super) fn remove(&mut self, number: u64) {
        self.index.ledger.remove(number);
        self.removed.push(number);
    }

    pub(super) fn count(&mut self, outcome: OutcomeKind) {
        let total = self.index.sums.totals.entry(outcome).or_default();
        *total = total.saturating_add(1);
    }

    fn add_report(&mut self, report: &Bytes) {
        self.index.sums.numbers.last_report += 1;
        let number = self.index.sums.numbers.last_report;
        let place = self.journal.put(Kind::Report, |out| codec::encode_report(out, number, report));
        self.index.reports.insert(number, place);
        let most = self.circumstances.settings.max_reports;
        // Reports may take at most a quarter of the room, so that they do not push out the records by which messages
        // are recognised.
        let most_bytes = self.circumstances.settings.max_size / 4;
        let is_too_much = |index: &Index| {
            index.reports.len() > most || (index.reports.bytes() > most_bytes && index.reports.len() > 1)
        };
        while is_too_much(self.index)
            && let Some(oldest) = self.index.reports.first()
        {
            self.reports_done(&[oldest]);
            let dropped = &mut self.index.sums.reports_dropped;
            *dropped = dropped.saturating_add(1);
        }
    }

    fn reports_done(&mut self, numbers: &[u64]) {
        let reports = &mut self.index.reports;
        let done: Vec<u64> = numbers.iter().copied().filter(|number| reports.remove(*number)).collect();
        self.put_numbers(Kind::ReportsDone, &done);
    }

    fn reports(&self, after: u64, limit: usize) -> Result<Vec<(u64, Bytes)>, Trouble> {
        let found = self.index.reports.after(after).take(limit);
        found.map(|(number, place)| Ok((number, codec::decode_report(&self.journal.read(place)?)))).collect()
    }
}

fn new_record(number: Number, id: Option<&str>, arrival: &Arrival) -> Record {
    let mut record = Record {
        number,
        message_id: id.map(str::to_owned),
        rule: arrival.rule.clone(),
        state: State::Accepted,
        settled: arrival.settled,
        received_ms: to_millis(arrival.received),
        attempts: 0,
        started_ms: None,
        retry_on_crash: false,
        abandoned: false,
        outcome: None,
    };
    match &arrival.intent {
        Intent::Wait => {}
        Intent::Start(start) => started(&mut record, *start),
        Intent::End { outcome, .. } => {
            let is_unmatched_call =
                outcome.outcome == OutcomeKind::Unmatched && arrival.message.as_ref().is_some_and(is_call);
            finish(&mut record, outcome.as_ref().clone(), !is_unmatched_call);
        }
    }
    record
}

fn started(record: &mut Record, start: Start) {
    record.state = State::Started;
    record.attempts = record.attempts.saturating_add(1);
    record.started_ms = Some(to_millis(start.at));
    record.retry_on_crash = start.retry_on_crash;
}

/// Sets a record back to accepted. An attempt that was not made does not count.
fn put_back(record: &mut Record, made: bool) {
    record.state = State::Accepted;
    if !made {
        record.attempts = record.attempts.saturating_sub(1);
    }
    if record.attempts == 0 {
        record.started_ms = None;
    }
}

/// Whether a message is a call. A call that no rule matches is not kept: its caller got the answer, and decides
/// whether to call again.
fn is_call(message: &C2dMessage) -> bool {
    matches!(message.source(), Source::Method(_))
}

/// Ends a record: finished, or dead if the kind of outcome says so and it is to be kept. Attempts count even if their
/// starts were not recorded.
pub(super) fn finish(record: &mut Record, outcome: OutcomeReport, is_kept: bool) {
    record.attempts = record.attempts.max(outcome.attempt);
    // The rules may have changed since the message was accepted.
    record.rule = outcome.rule.clone().or(record.rule.take());
    let is_dead = is_kept && outcome.outcome.is_dead_letter();
    record.state = if is_dead { State::Dead } else { State::Finished };
    record.outcome = Some(outcome);
}
