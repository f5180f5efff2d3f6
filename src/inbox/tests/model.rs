//! The inbox as plain maps.
//!
//! Owns: what each operation means, without a disk. Must not know: files, faults.

use std::cell::Cell;
use std::collections::BTreeMap;

use super::super::record::from_millis;
use super::*;
use crate::message::Sequence;
use crate::outcome::Totals;

pub(super) const HOUR_MS: u64 = 3_600_000;
pub(super) const WINDOW_MS: u64 = 120_000;
pub(super) const KEEP_AT_LEAST: usize = 3;
pub(super) const MAX_REPORTS: usize = 4;
/// The value of the ledger.
const LOOK_PAST: usize = 16;

thread_local! {
    pub(super) static NOW_MS: Cell<u64> = const { Cell::new(0) };
}

pub(super) fn clock() -> SystemTime {
    from_millis(NOW_MS.get())
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Kept {
    pub(super) id: Option<u8>,
    pub(super) body: u8,
    pub(super) state: State,
    pub(super) settled: Settled,
    received_ms: u64,
    since_ms: u64,
    pub(super) attempts: u32,
    pub(super) retry: bool,
    connection: Option<u64>,
    sequence: Option<Sequence>,
    /// Where it came from.
    pub(super) origin: Option<String>,
    pub(super) confirmed: bool,
    /// Whether it was passed over because of its id.
    repeated: bool,
    pub(super) outcome: Option<OutcomeKind>,
    pub(super) abandoned: bool,
}

impl Kept {
    pub(super) fn ended(&self) -> bool {
        matches!(self.state, State::Finished | State::Dead)
    }

    fn finish(&mut self, kind: OutcomeKind, now_ms: u64) {
        self.abandoned = false;
        self.state = if kind.is_dead_letter() { State::Dead } else { State::Finished };
        self.outcome = Some(kind);
        self.since_ms = now_ms;
    }
}

/// The expected answer. The numbers of new records come from the inbox.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Expected {
    Verdict(Verdict),
    Done,
    Ended,
    Left(Vec<u64>),
    Reports(Vec<(u64, Bytes)>),
    Retried(u64),
    Dropped(u64),
    Refused,
}

#[derive(Debug, Clone, Default)]
pub(super) struct Model {
    pub(super) records: BTreeMap<u64, Kept>,
    pub(super) last: u64,
    pub(super) reports: BTreeMap<u64, Bytes>,
    reports_made: u64,
    pub(super) reports_dropped: u64,
    pub(super) totals: Totals,
    pub(super) pins_on: BTreeMap<String, SystemTime>,
    pub(super) origin: Option<String>,
}

/// What the transport says of an arrival.
#[derive(Debug, Clone, Copy)]
pub(super) struct Again {
    pub(super) redelivered: bool,
    pub(super) sequence: Option<u8>,
}

/// An operation that names records by their place in the list.
#[derive(Debug, Clone)]
pub(super) enum Step {
    Accept { id: Option<u8>, body: u8, on_accept: bool, intent: u8, kind: OutcomeKind, again: Again },
    Confirmed(usize),
    Start { pick: usize, retry: bool },
    Again { pick: usize, made: bool },
    Origin(u8),
    End { pick: usize, kind: OutcomeKind, abandoned: bool, report: bool },
    PinsOn(u8),
    Reports(usize),
    ReportsDone(usize),
    Retry(usize),
    Drop(usize),
}

impl Model {
    fn number(&self, pick: usize) -> u64 {
        // The count is one too high, so that a number that does not exist is picked, too.
        let count = self.records.len() + 1;
        self.records.keys().nth(pick % count).copied().unwrap_or(9_999)
    }

    pub(super) fn op(&self, ticket: u64, step: &Step, connection: u64) -> Op {
        let number = |pick: usize| Number(self.number(pick));
        let selector = |pick: usize| match self.records.get(&self.number(pick)) {
            Some(Kept { id: Some(id), repeated: false, .. }) => Selector(id_text(*id)),
            _ => Selector(format!("#{}", self.number(pick))),
        };
        let report = |pick: usize, wanted: bool| wanted.then(|| Bytes::from(format!("report {pick}")));
        let ended = |kind| OutcomeReport { ended: crate::message::format_time(clock()), ..outcome(kind) };
        match step {
            Step::Accept { id, body, on_accept, intent, kind, again } => Op::Accept(Box::new(Arrival {
                ticket,
                message: Some(content(*id, *body)),
                connection,
                redelivered: again.redelivered,
                sequence: again.sequence.map(|number| Sequence { number: number.into(), enqueued_ms: 1 }),
                received: clock(),
                rule: Some("pump".into()),
                settled: if *on_accept { Settled::OnAccept } else { Settled::AfterAction },
                intent: match intent {
                    0 => Intent::Wait,
                    1 => Intent::Start(Start { at: clock(), retry_on_crash: *body == 0 }),
                    _ => Intent::End {
                        outcome: Box::new(ended(*kind)),
                        report: report(usize::from(*body), *body == 1),
                    },
                },
            })),
            Step::Start { pick, retry } => {
                Op::Start { number: number(*pick), start: Start { at: clock(), retry_on_crash: *retry } }
            }
            Step::Again { pick, made } => Op::Again { number: number(*pick), made: *made },
            Step::Origin(hub) => Op::Origin(format!("hub-{hub}/d").into()),
            Step::End { pick, kind, abandoned, report: wanted } => Op::End {
                number: number(*pick),
                abandoned: *abandoned,
                outcome: Box::new(ended(*kind)),
                report: report(*pick, *wanted),
            },
            Step::Confirmed(pick) => Op::Confirmed(vec![number(*pick)]),
            Step::PinsOn(pin) => Op::PinsOn(BTreeMap::from([(format!("pin{pin}"), clock())])),
            Step::Reports(limit) => Op::Reports { after: self.reports_made / 2, limit: *limit },
            Step::ReportsDone(pick) => {
                Op::ReportsDone(self.reports.keys().nth(*pick).copied().into_iter().collect())
            }
            Step::Retry(pick) => Op::Query { ticket, query: Query::Retry(selector(*pick)) },
            Step::Drop(pick) => Op::Query { ticket, query: Query::Drop(selector(*pick)) },
        }
    }

    /// `new` returns the number that the inbox gave to the next new record.
    pub(super) fn apply(&mut self, op: &Op, new: &mut dyn FnMut() -> u64) -> Expected {
        let now = NOW_MS.get();
        match op {
            Op::Accept(arrival) => Expected::Verdict(self.accept(arrival, now, new)),
            Op::Start { number, .. } if self.ended_before(*number) => Expected::Ended,
            Op::Start { number, start } => self.alter(*number, |kept| {
                kept.state = State::Started;
                kept.attempts += 1;
                kept.retry = start.retry_on_crash;
            }),
            Op::Again { number, made } => self.alter(*number, |kept| {
                kept.state = State::Accepted;
                kept.attempts = kept.attempts.saturating_sub(u32::from(!made));
            }),
            Op::Origin(name) => Expected::Left(self.comes_from(name)),
            Op::End { number, outcome, abandoned, report } => {
                if self.records.get(&number.0).is_some_and(|kept| !kept.ended()) {
                    *self.totals.entry(outcome.outcome).or_default() += 1;
                }
                let report = report.as_ref().filter(|_| !self.ended_before(*number));
                self.alter(*number, |kept| {
                    kept.attempts = kept.attempts.max(outcome.attempt);
                    kept.finish(outcome.outcome, now);
                    kept.abandoned = *abandoned && kept.state == State::Dead;
                });
                report.into_iter().for_each(|report| self.report(report.clone()));
                Expected::Ended
            }
            Op::Confirmed(numbers) => {
                for number in numbers {
                    self.records.get_mut(&number.0).into_iter().for_each(|kept| kept.confirmed = true);
                }
                Expected::Done
            }
            Op::PinsOn(pins) => {
                self.pins_on = pins.clone();
                Expected::Done
            }
            Op::Reports { after, limit } => {
                let waiting = self.reports.range(after + 1..).take(*limit);
                Expected::Reports(waiting.map(|(number, report)| (*number, report.clone())).collect())
            }
            Op::ReportsDone(numbers) => {
                self.reports.retain(|number, _| !numbers.contains(number));
                Expected::Done
            }
            Op::Query { query: Query::Retry(selector), .. } => match self.selected(selector) {
                Some((number, kept)) if kept.state == State::Dead => {
                    kept.state = State::Accepted;
                    kept.settled = Settled::OnAccept;
                    kept.attempts = 0;
                    kept.since_ms = kept.received_ms;
                    (kept.outcome, kept.abandoned) = (None, false);
                    Expected::Retried(number)
                }
                _ => Expected::Refused,
            },
            Op::Query { query: Query::Drop(selector), .. } => match self.selected(selector) {
                Some((number, kept)) if matches!(kept.state, State::Dead | State::Accepted) => {
                    kept.finish(OutcomeKind::Dropped, now);
                    *self.totals.entry(OutcomeKind::Dropped).or_default() += 1;
                    Expected::Dropped(number)
                }
                _ => Expected::Refused,
            },
            Op::Query { .. } => Expected::Done,
        }
    }

    /// What came before the first origin that is told came from there, too.
    fn comes_from(&mut self, name: &str) -> Vec<u64> {
        let before = self.origin.replace(name.to_owned());
        if before.is_none() {
            self.records.values_mut().for_each(|kept| kept.origin = Some(name.to_owned()));
        }
        if before.is_none_or(|before| before == name) {
            return Vec::new();
        }
        let at_the_hub = |kept: &Kept| !kept.ended() && kept.settled == Settled::AfterAction;
        let left = self.records.iter_mut().filter(|(_, kept)| at_the_hub(kept));
        left.map(|(number, kept)| {
            kept.settled = Settled::OnAccept;
            *number
        })
        .collect()
    }

    fn report(&mut self, report: Bytes) {
        self.reports_made += 1;
        self.reports.insert(self.reports_made, report);
        if self.reports.len() > MAX_REPORTS {
            self.reports.pop_first();
            self.reports_dropped += 1;
        }
    }

    fn ended_before(&self, number: Number) -> bool {
        self.records.get(&number.0).is_some_and(Kept::ended)
    }

    fn alter(&mut self, number: Number, change: impl FnOnce(&mut Kept)) -> Expected {
        if let Some(kept) = self.records.get_mut(&number.0).filter(|kept| !kept.ended()) {
            change(kept);
        }
        Expected::Done
    }

    fn selected(&mut self, selector: &Selector) -> Option<(u64, &mut Kept)> {
        let number = match selector.0.strip_prefix('#') {
            Some(number) => number.parse().ok()?,
            None => {
                let named = |kept: &Kept| !kept.repeated && kept.id.map(id_text) == Some(selector.0.clone());
                *self.records.iter().rev().find(|(_, kept)| named(kept))?.0
            }
        };
        self.records.get_mut(&number).map(|kept| (number, kept))
    }

    fn accept(&mut self, arrival: &Arrival, now: u64, new: &mut dyn FnMut() -> u64) -> Verdict {
        let message = arrival.message.as_ref().expect("decodable");
        let id = message.message_id().map(id_of);
        let body = message.body[0];
        let equal = move |kept: &Kept| kept.id == id && kept.body == body;
        let numbered = |kept: &Kept| arrival.sequence.is_some() && kept.sequence == arrival.sequence;
        let may_be = |kept: &Kept| {
            (arrival.redelivered || kept.connection != Some(arrival.connection))
                && (arrival.sequence.is_none() || kept.sequence.is_none())
        };
        let at_the_hub = |kept: &Kept| !kept.ended() && kept.settled == Settled::AfterAction;
        let recent = |kept: &Kept| now.abs_diff(kept.since_ms) <= WINDOW_MS;
        let first = |wanted: &dyn Fn(&Kept) -> bool| {
            self.records.iter().find(|(_, kept)| wanted(kept)).map(|(number, _)| *number)
        };
        let same = |wanted: &dyn Fn(&Kept) -> bool| {
            first(&|kept| equal(kept) && kept.origin == self.origin && wanted(kept))
        };
        let by_id = id.is_some_and(is_uuid);
        let in_vain = |kept: &Kept| !equal(kept) && kept.outcome.is_some_and(OutcomeKind::may_come_to_be_run);
        let known = if by_id {
            let mut same_id = self.records.iter().rev().filter(|(_, kept)| kept.id == id && !kept.repeated);
            match same_id.next() {
                Some((number, kept)) => (!in_vain(kept)).then_some(*number),
                // The note of a repeated id may have pushed out the record that has the id.
                None => self.records.iter().rev().find(|(_, kept)| equal(kept)).map(|(number, _)| *number),
            }
        } else {
            same(&numbered)
                .or_else(|| same(&|kept| may_be(kept) && at_the_hub(kept)))
                .or_else(|| same(&|kept| may_be(kept) && !kept.confirmed))
                .or_else(|| same(&|kept| may_be(kept) && recent(kept)))
        };
        let mut kept = Kept {
            id,
            body,
            state: State::Accepted,
            settled: arrival.settled,
            received_ms: now,
            since_ms: now,
            attempts: 0,
            retry: false,
            connection: Some(arrival.connection),
            sequence: arrival.sequence,
            origin: self.origin.clone(),
            confirmed: false,
            repeated: false,
            outcome: None,
            abandoned: false,
        };
        if by_id && known.is_some() && first(&equal).is_none() {
            let mut repeated = Kept { repeated: true, ..kept.clone() };
            repeated.finish(OutcomeKind::Repeated, now);
            *self.totals.entry(OutcomeKind::Repeated).or_default() += 1;
            self.last = new();
            self.records.insert(self.last, repeated);
        }
        if let Some((number, kept)) = known.and_then(|known| Some((known, self.records.get_mut(&known)?))) {
            if !by_id {
                kept.connection = Some(arrival.connection);
            }
            let number = Number(number);
            if !kept.ended() {
                return Verdict::Unfinished(number);
            }
            let to_be_run = !matches!(arrival.intent, Intent::End { .. });
            let may_be_run = to_be_run && kept.outcome.is_some_and(OutcomeKind::may_come_to_be_run);
            if !((kept.abandoned || may_be_run) && equal(kept)) {
                return Verdict::Ended(Past { number, settled: kept.settled, outcome: kept.outcome });
            }
        }
        let abandoned = known.and_then(|known| Some((known, self.records.get(&known)?.clone())));
        if let Some((_, before)) = &abandoned {
            // The record keeps its digests, and its number.
            (kept.sequence, kept.connection) = (before.sequence, before.connection);
            kept.origin.clone_from(&before.origin);
        }
        let mut made = None;
        match &arrival.intent {
            Intent::Wait => {}
            Intent::Start(start) => {
                (kept.state, kept.attempts, kept.retry) = (State::Started, 1, start.retry_on_crash);
            }
            Intent::End { outcome, report } => {
                kept.attempts = outcome.attempt;
                kept.finish(outcome.outcome, now);
                *self.totals.entry(outcome.outcome).or_default() += 1;
                made = report.clone();
            }
        }
        made.into_iter().for_each(|report| self.report(report));
        let number = match abandoned {
            Some((number, _)) => number,
            None => {
                let number = new();
                assert!(number > self.last, "number {number} was used before {}", self.last);
                self.last = number;
                number
            }
        };
        self.records.insert(number, kept);
        Verdict::New(Number(number))
    }

    /// Removes old records: finished ones first, then those that no rule matched.
    pub(super) fn let_go(&mut self) {
        let before = NOW_MS.get().saturating_sub(HOUR_MS);
        let mut spare =
            self.records.values().filter(|kept| kept.ended()).count().saturating_sub(KEEP_AT_LEAST);
        let unmatched = |kept: &Kept| kept.outcome == Some(OutcomeKind::Unmatched);
        for (state, of_no_rule) in [(State::Finished, false), (State::Dead, true), (State::Dead, false)] {
            let (mut passed, mut gone) = (0, Vec::new());
            let of_kind = |kept: &Kept| kept.state == state && unmatched(kept) == of_no_rule;
            for (number, kept) in self.records.iter().filter(|(_, kept)| of_kind(kept)) {
                if spare == 0 || passed == LOOK_PAST {
                    break;
                }
                if kept.since_ms < before {
                    gone.push(*number);
                    spare -= 1;
                } else {
                    passed += 1;
                }
            }
            self.records.retain(|number, _| !gone.contains(number));
        }
    }

    /// A new process knows nothing of connections.
    pub(super) fn forget_connections(&mut self) {
        self.records.values_mut().for_each(|kept| kept.connection = None);
    }
}

/// Every other id is a UUID.
fn is_uuid(id: u8) -> bool {
    id % 2 == 1
}

pub(super) fn id_text(id: u8) -> String {
    if is_uuid(id) { format!("6e9ab0f3-1b59-4c4f-8e1d-1f6a2f0a3f{id:02x}") } else { format!("m-{id:02x}") }
}

fn id_of(text: &str) -> u8 {
    u8::from_str_radix(&text[text.len() - 2..], 16).expect("an id of the test")
}

pub(super) fn content(id: Option<u8>, body: u8) -> C2dMessage {
    let id = id.map(id_text);
    let mut message = message(id.as_deref(), "");
    message.body = Bytes::copy_from_slice(&[body, 1, 2]);
    message
}

pub(super) fn actual(answer: &Written) -> Expected {
    match answer {
        Written::Accepted { verdict, .. } => Expected::Verdict(*verdict),
        Written::Ended(_) => Expected::Ended,
        Written::Origin(left) => Expected::Left(left.iter().map(|own| own.record.number.0).collect()),
        Written::Reports(reports) => Expected::Reports(reports.clone()),
        Written::Reply { reply, .. } => match &**reply {
            Reply::Retried(unfinished) => Expected::Retried(unfinished.record.number.0),
            Reply::Dropped(record) => Expected::Dropped(record.number.0),
            Reply::Refused(_) => Expected::Refused,
            _ => Expected::Done,
        },
        _ => Expected::Done,
    }
}
