//! The inbox as plain maps, and random operations on both with faults and power cuts between them.
//!
//! Owns: what each operation means, without a disk. Must not know: redb. Used by: nobody; it is a test.

use std::cell::Cell;
use std::collections::{BTreeMap, VecDeque};

use proptest::prelude::*;

use super::super::keeper::{Batch, Keeper};
use super::super::record::{from_millis, to_millis};
use super::disk::Disk;
use super::*;
use crate::outcome::Totals;

const HOUR_MS: u64 = 3_600_000;
const WINDOW_MS: u64 = 120_000;
const KEEP_AT_LEAST: usize = 3;
const MAX_REPORTS: usize = 4;
/// As in the ledger.
const LOOK_PAST: usize = 16;

thread_local! {
    static NOW_MS: Cell<u64> = const { Cell::new(0) };
}

fn clock() -> SystemTime {
    from_millis(NOW_MS.get())
}

#[derive(Debug, Clone, PartialEq)]
struct Kept {
    id: Option<u8>,
    body: u8,
    state: State,
    settled: Settled,
    received_ms: u64,
    since_ms: u64,
    attempts: u32,
    retry: bool,
    connection: Option<u64>,
    outcome: Option<OutcomeKind>,
}

impl Kept {
    fn ended(&self) -> bool {
        matches!(self.state, State::Finished | State::Dead)
    }

    fn finish(&mut self, kind: OutcomeKind, now_ms: u64) {
        self.state = if kind.is_dead_letter() { State::Dead } else { State::Finished };
        self.outcome = Some(kind);
        self.since_ms = now_ms;
    }
}

/// What the answer must say; numbers of new records are taken from what the inbox chose.
#[derive(Debug, Clone, PartialEq)]
enum Expected {
    Verdict(Verdict),
    Done,
    Reports(Vec<(u64, Bytes)>),
    Retried(u64),
    Dropped(u64),
    Refused,
}

#[derive(Debug, Clone, Default)]
struct Model {
    records: BTreeMap<u64, Kept>,
    last: u64,
    reports: BTreeMap<u64, Bytes>,
    reports_made: u64,
    reports_dropped: u64,
    totals: Totals,
    pins_on: BTreeMap<String, SystemTime>,
}

/// An operation that names records by their place in the list.
#[derive(Debug, Clone)]
enum Step {
    Accept { id: Option<u8>, body: u8, on_accept: bool, intent: u8, kind: OutcomeKind },
    Start { pick: usize, retry: bool },
    Again { pick: usize },
    End { pick: usize, kind: OutcomeKind, report: bool },
    PinsOn(u8),
    Reports(usize),
    ReportsDone(usize),
    Retry(usize),
    Drop(usize),
}

/// What happens between and during transactions.
#[derive(Debug, Clone)]
enum Event {
    Batch(Vec<Step>),
    /// The same while the disk fails; in the end it works again, or the power goes.
    Faulty {
        steps: Vec<Step>,
        after: u32,
        faults: u32,
        cut: bool,
    },
    PowerCut,
    /// Closed in good order and opened.
    Restart,
    Connection,
    /// The clock goes on, in seconds, or jumps back.
    Clock(i32),
}

impl Model {
    fn number(&self, pick: usize) -> u64 {
        // One more than there are: a number that does not exist.
        let count = self.records.len() + 1;
        self.records.keys().nth(pick % count).copied().unwrap_or(9_999)
    }

    fn op(&self, ticket: u64, step: &Step, connection: u64) -> Op {
        let number = |pick: usize| Number(self.number(pick));
        let selector = |pick: usize| match self.records.get(&self.number(pick)) {
            Some(Kept { id: Some(id), .. }) => Selector(format!("m-{id}")),
            _ => Selector(format!("#{}", self.number(pick))),
        };
        let report = |pick: usize, wanted: bool| wanted.then(|| Bytes::from(format!("report {pick}")));
        let ended = |kind| OutcomeReport { ended: crate::message::format_time(clock()), ..outcome(kind) };
        match step {
            Step::Accept { id, body, on_accept, intent, kind } => Op::Accept(Box::new(Arrival {
                ticket,
                message: Some(content(*id, *body)),
                connection,
                received: clock(),
                rule: Some("pump".into()),
                settled: if *on_accept { Settled::OnAccept } else { Settled::AfterAction },
                intent: match intent {
                    0 => Intent::Wait,
                    1 => Intent::Start(Start { at: clock(), retry_on_crash: *body == 0 }),
                    _ => Intent::End(Box::new(ended(*kind))),
                },
            })),
            Step::Start { pick, retry } => {
                Op::Start { number: number(*pick), start: Start { at: clock(), retry_on_crash: *retry } }
            }
            Step::Again { pick } => Op::Again { number: number(*pick) },
            Step::End { pick, kind, report: wanted } => Op::End {
                number: number(*pick),
                outcome: Box::new(ended(*kind)),
                report: report(*pick, *wanted),
            },
            Step::PinsOn(pin) => Op::PinsOn(BTreeMap::from([(format!("pin{pin}"), clock())])),
            Step::Reports(limit) => Op::Reports { after: self.reports_made / 2, limit: *limit },
            Step::ReportsDone(pick) => {
                Op::ReportsDone(self.reports.keys().nth(*pick).copied().into_iter().collect())
            }
            Step::Retry(pick) => Op::Query { ticket, query: Query::Retry(selector(*pick)) },
            Step::Drop(pick) => Op::Query { ticket, query: Query::Drop(selector(*pick)) },
        }
    }

    /// `new` tells the number that the inbox gave to the next new record.
    fn apply(&mut self, op: &Op, new: &mut dyn FnMut() -> u64) -> Expected {
        let now = NOW_MS.get();
        match op {
            Op::Accept(arrival) => Expected::Verdict(self.accept(arrival, now, new)),
            Op::Start { number, start } => self.alter(*number, |kept| {
                kept.state = State::Started;
                kept.attempts += 1;
                kept.retry = start.retry_on_crash;
            }),
            Op::Again { number } => self.alter(*number, |kept| kept.state = State::Accepted),
            Op::End { number, outcome, report } => {
                if self.records.get(&number.0).is_some_and(|kept| !kept.ended()) {
                    *self.totals.entry(outcome.outcome).or_default() += 1;
                }
                self.alter(*number, |kept| kept.finish(outcome.outcome, now));
                if let Some(report) = report {
                    self.reports_made += 1;
                    self.reports.insert(self.reports_made, report.clone());
                    if self.reports.len() > MAX_REPORTS {
                        self.reports.pop_first();
                        self.reports_dropped += 1;
                    }
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
                    kept.outcome = None;
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
                let named = |kept: &Kept| kept.id.map(|id| format!("m-{id}")) == Some(selector.0.clone());
                *self.records.iter().rev().find(|(_, kept)| named(kept))?.0
            }
        };
        self.records.get_mut(&number).map(|kept| (number, kept))
    }

    fn accept(&mut self, arrival: &Arrival, now: u64, new: &mut dyn FnMut() -> u64) -> Verdict {
        let message = arrival.message.as_ref().expect("decodable");
        let id = message.message_id().map(|id| id[2..].parse().expect("an id of the test"));
        let body = message.body[0];
        let known = self.records.iter_mut().find(|(_, kept)| match id {
            Some(id) => kept.id == Some(id),
            None => {
                let at_the_hub = !kept.ended() && kept.settled == Settled::AfterAction;
                let recent = now.saturating_sub(kept.since_ms) <= WINDOW_MS;
                let same = kept.id.is_none() && kept.body == body;
                same && kept.connection != Some(arrival.connection) && (at_the_hub || recent)
            }
        });
        if let Some((number, kept)) = known {
            kept.connection = Some(arrival.connection);
            let number = Number(*number);
            return if kept.ended() { Verdict::Ended(number) } else { Verdict::Unfinished(number) };
        }
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
            outcome: None,
        };
        match &arrival.intent {
            Intent::Wait => {}
            Intent::Start(start) => {
                (kept.state, kept.attempts, kept.retry) = (State::Started, 1, start.retry_on_crash);
            }
            Intent::End(outcome) => {
                kept.finish(outcome.outcome, now);
                *self.totals.entry(outcome.outcome).or_default() += 1;
            }
        }
        let number = new();
        assert!(number > self.last, "number {number} was used before {}", self.last);
        self.last = number;
        self.records.insert(number, kept);
        Verdict::New(Number(number))
    }

    /// Old records go, finished ones first.
    fn let_go(&mut self) {
        let before = NOW_MS.get().saturating_sub(HOUR_MS);
        let mut spare =
            self.records.values().filter(|kept| kept.ended()).count().saturating_sub(KEEP_AT_LEAST);
        for state in [State::Finished, State::Dead] {
            let (mut passed, mut gone) = (0, Vec::new());
            for (number, kept) in self.records.iter().filter(|(_, kept)| kept.state == state) {
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
    fn forget_connections(&mut self) {
        self.records.values_mut().for_each(|kept| kept.connection = None);
    }
}

fn content(id: Option<u8>, body: u8) -> C2dMessage {
    let id = id.map(|id| format!("m-{id}"));
    let mut message = message(id.as_deref(), "");
    message.body = Bytes::copy_from_slice(&[body, 1, 2]);
    message
}

fn actual(answer: &Answer) -> Expected {
    match answer {
        Answer::Accepted { verdict, .. } => Expected::Verdict(*verdict),
        Answer::Reports(reports) => Expected::Reports(reports.clone()),
        Answer::Reply { reply: Reply::Retried(unfinished), .. } => {
            Expected::Retried(unfinished.record.number.0)
        }
        Answer::Reply { reply: Reply::Dropped(record), .. } => Expected::Dropped(record.number.0),
        Answer::Reply { reply: Reply::Refused(_), .. } => Expected::Refused,
        _ => Expected::Done,
    }
}

/// Whether the records, and all that is counted, are as in the model.
fn difference(model: &Model, keeper: &mut Keeper<Disk>) -> Option<String> {
    let opened = keeper.opened().expect("it is open");
    let query = Op::Query { ticket: 0, query: Query::List { state: None, after: 0, limit: 10_000 } };
    let (mut answers, counts) = keeper.write(&mut Batch::new(vec![query])).expect("a list");
    let Some(Answer::Reply { reply: Reply::Records(records), .. }) = answers.pop() else {
        panic!("no list: {answers:?}")
    };
    let numbers: Vec<u64> = records.iter().map(|record| record.number.0).collect();
    let expected: Vec<u64> = model.records.keys().copied().collect();
    if numbers != expected {
        return Some(format!("records are {numbers:?}, not {expected:?}"));
    }
    for record in &records {
        let kept = &model.records[&record.number.0];
        let outcome = record.outcome.as_ref().map(|outcome| outcome.outcome);
        let found = (record.state, record.settled, record.attempts, record.retry_on_crash, outcome);
        let wanted = (kept.state, kept.settled, kept.attempts, kept.retry, kept.outcome);
        if found != wanted || record.message_id != kept.id.map(|id| format!("m-{id}")) {
            return Some(format!("record {record:?} is not {kept:?}"));
        }
    }
    let unfinished: Vec<_> =
        opened.unfinished.iter().map(|own| (own.record.number.0, own.message.clone())).collect();
    let waiting = model.records.iter().filter(|(_, kept)| !kept.ended());
    let expected: Vec<_> = waiting.map(|(number, kept)| (*number, content(kept.id, kept.body))).collect();
    if unfinished != expected {
        return Some(format!("unfinished are {unfinished:?}, not {expected:?}"));
    }
    let dead = model.records.values().filter(|kept| kept.state == State::Dead).count() as u64;
    let found = (counts.records, counts.unfinished, counts.dead, counts.reports, counts.reports_dropped);
    let records = model.records.len() as u64;
    let reports = model.reports.len() as u64;
    let wanted = (records, expected.len() as u64, dead, reports, model.reports_dropped);
    let sums = found == wanted && counts.totals == model.totals && opened.pins_on == model.pins_on;
    (!sums).then(|| format!("{counts:?} and {:?} are not {model:?}", opened.pins_on))
}

struct Machine {
    disk: Disk,
    keeper: Keeper<Disk>,
    model: Model,
    connection: u64,
}

impl Machine {
    fn new(seed: u64) -> Self {
        NOW_MS.set(to_millis(SystemTime::now()));
        let disk = Disk::new(seed);
        Self { keeper: Self::keeper(&disk), disk, model: Model::default(), connection: 1 }
    }

    fn keeper(disk: &Disk) -> Keeper<Disk> {
        let settings = InboxSettings {
            keep: Duration::from_millis(HOUR_MS),
            keep_at_least: KEEP_AT_LEAST as u64,
            digest_window: Duration::from_millis(WINDOW_MS),
            max_reports: MAX_REPORTS as u64,
            ..InboxSettings::at("inbox.redb")
        };
        Keeper::new(disk.clone(), settings, clock)
    }

    fn ops(&self, steps: &[Step]) -> Vec<Op> {
        steps.iter().enumerate().map(|(at, step)| self.model.op(at as u64, step, self.connection)).collect()
    }

    /// Follows a batch in the model, with the answers that the inbox gave.
    fn follow(&mut self, ops: &[Op], answers: &[Answer]) {
        let numbers = answers.iter().filter_map(|answer| match answer {
            Answer::Accepted { verdict: Verdict::New(number), .. } => Some(number.0),
            _ => None,
        });
        let mut numbers: VecDeque<u64> = numbers.collect();
        let expected: Vec<Expected> = ops
            .iter()
            .map(|op| self.model.apply(op, &mut || numbers.pop_front().expect("a verdict New")))
            .collect();
        self.model.let_go();
        assert_eq!(answers.iter().map(actual).collect::<Vec<_>>(), expected, "for {ops:?}");
    }

    /// The power went while a batch was under way: all of it is there, or nothing.
    fn follow_in_doubt(&mut self, ops: &[Op]) {
        let (mut without, mut with) = (self.model.clone(), self.model.clone());
        let mut keeper = Self::keeper(&self.disk);
        keeper.write(&mut Batch::new(Vec::new())).expect("an inbox after the power cut");
        let mut next = self.model.last;
        let mut number = || {
            next += 1;
            next
        };
        for op in ops {
            with.apply(op, &mut number);
        }
        with.let_go();
        with.let_go();
        without.let_go();
        without.forget_connections();
        with.forget_connections();
        let as_before = difference(&without, &mut keeper);
        let as_after = as_before.as_ref().and_then(|_| difference(&with, &mut keeper));
        assert!(as_after.is_none(), "neither all nor nothing of {ops:?}: {as_before:?}; {as_after:?}");
        self.model = if as_before.is_none() { without } else { with };
        self.keeper = keeper;
    }

    fn play(&mut self, event: &Event) {
        match event {
            Event::Batch(steps) => {
                let ops = self.ops(steps);
                let (answers, _) =
                    self.keeper.write(&mut Batch::new(self.ops(steps))).expect("a disk in order");
                self.follow(&ops, &answers);
            }
            Event::Faulty { steps, after, faults, cut } => {
                let ops = self.ops(steps);
                let mut batch = Batch::new(self.ops(steps));
                self.disk.fail_after(*after, *faults);
                let mut tries = 0;
                let answers = loop {
                    match self.keeper.write(&mut batch) {
                        Ok((answers, _)) => break Some(answers),
                        Err(_) if *cut => break None,
                        Err(failure) if tries > 20 => panic!("{failure:?}"),
                        Err(_) => tries += 1,
                    }
                };
                self.disk.heal();
                match answers {
                    Some(answers) => self.follow(&ops, &answers),
                    None => {
                        self.disk.cut_power();
                        self.follow_in_doubt(&ops);
                    }
                }
            }
            Event::PowerCut => {
                self.disk.cut_power();
                self.keeper = Self::keeper(&self.disk);
                self.model.forget_connections();
            }
            Event::Restart => {
                self.keeper = Self::keeper(&Disk::new(0));
                self.keeper = Self::keeper(&self.disk);
                self.model.forget_connections();
            }
            Event::Connection => self.connection += 1,
            Event::Clock(seconds) => {
                let by = u64::from(seconds.unsigned_abs()) * 1_000;
                let now = NOW_MS.get();
                NOW_MS.set(if *seconds < 0 { now.saturating_sub(by) } else { now.saturating_add(by) });
            }
        }
        // Old records go with the next transaction, whatever it is for.
        self.keeper.write(&mut Batch::new(Vec::new())).expect("a disk in order");
        self.model.let_go();
        let difference = difference(&self.model, &mut self.keeper);
        assert!(difference.is_none(), "{}", difference.unwrap_or_default());
        assert_eq!(self.disk.moved_aside(), 0, "no damage was done");
    }
}

fn kind() -> impl Strategy<Value = OutcomeKind> {
    prop::sample::select(vec![
        OutcomeKind::Succeeded,
        OutcomeKind::Failed,
        OutcomeKind::TimedOut,
        OutcomeKind::Expired,
        OutcomeKind::Unmatched,
    ])
}

fn step() -> impl Strategy<Value = Step> {
    let pick = || any::<prop::sample::Index>().prop_map(|index| index.index(24));
    prop_oneof![
        6 => (prop::option::of(0u8..12), 0u8..2, any::<bool>(), 0u8..3, kind()).prop_map(
            |(id, body, on_accept, intent, kind)| Step::Accept { id, body, on_accept, intent, kind }
        ),
        3 => (pick(), any::<bool>()).prop_map(|(pick, retry)| Step::Start { pick, retry }),
        1 => pick().prop_map(|pick| Step::Again { pick }),
        4 => (pick(), kind(), any::<bool>()).prop_map(|(pick, kind, report)| Step::End { pick, kind, report }),
        1 => (0u8..4).prop_map(Step::PinsOn),
        1 => (0usize..4).prop_map(Step::Reports),
        1 => (0usize..4).prop_map(Step::ReportsDone),
        2 => pick().prop_map(Step::Retry),
        2 => pick().prop_map(Step::Drop),
    ]
}

fn event() -> impl Strategy<Value = Event> {
    let steps = || prop::collection::vec(step(), 1..8);
    prop_oneof![
        8 => steps().prop_map(Event::Batch),
        4 => (steps(), 0u32..12, 1u32..4, any::<bool>())
            .prop_map(|(steps, after, faults, cut)| Event::Faulty { steps, after, faults, cut }),
        1 => Just(Event::PowerCut),
        1 => Just(Event::Restart),
        2 => Just(Event::Connection),
        2 => (-200i32..6_000).prop_map(Event::Clock),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, max_shrink_iters: 2_000, ..ProptestConfig::default() })]

    #[test]
    fn the_inbox_does_what_the_model_does_whatever_the_disk_does(
        seed in any::<u64>(),
        events in prop::collection::vec(event(), 1..30),
    ) {
        let mut machine = Machine::new(seed);
        for event in &events {
            machine.play(event);
        }
    }
}
