//! Random operations on the inbox and on its model, with failing writes and power cuts between them.
//!
//! Owns: the order of events. Must not know: what an operation means.

use proptest::prelude::*;

use super::super::keeper::InboxKeeper;
use super::super::record::to_millis;
use super::disk::Disk;
use super::model::{
    Again, Expected, HOUR_MS, KEEP_AT_LEAST, MAX_REPORTS, Model, NOW_MS, Step, WINDOW_MS, actual, clock,
    content, id_text,
};
use super::*;

/// An event between or during batches.
#[derive(Debug, Clone)]
enum Event {
    Batch(Vec<Step>),
    /// A batch while the disk fails. In the end the disk works again, or the power is cut.
    Faulty {
        steps: Vec<Step>,
        after: u32,
        faults: u32,
        cut: bool,
    },
    PowerCut,
    /// The process ends, and another one opens the file.
    Restart,
    Connection,
    /// The clock advances, in seconds, or jumps back.
    Clock(i32),
}

/// Compares the records and all counts with the model.
fn difference(model: &Model, keeper: &mut InboxKeeper<Disk>) -> Option<String> {
    let opened = keeper.opened().expect("it is open");
    let query = Op::Query { ticket: 0, query: Query::List { state: None, after: 0, limit: 10_000 } };
    let (mut answers, counts) = keeper.write(&[query]).expect("a list");
    let Some(Written::Reply { reply, .. }) = answers.pop() else { panic!("no answer: {answers:?}") };
    let Reply::Records(records) = *reply else { panic!("no list: {reply:?}") };
    let numbers: Vec<u64> = records.iter().map(|record| record.number.0).collect();
    let expected: Vec<u64> = model.records.keys().copied().collect();
    if numbers != expected {
        return Some(format!("records are {numbers:?}, not {expected:?}"));
    }
    // After a power cut, only this may tell whether a batch is there: records of before the first origin are of any.
    let present = keeper.store.as_ref().and_then(|store| store.index.origins.present());
    if present != model.origin.as_deref() {
        return Some(format!("the present origin is {present:?}, not {:?}", model.origin));
    }
    for record in &records {
        let kept = &model.records[&record.number.0];
        let outcome = record.outcome.as_ref().map(|outcome| outcome.outcome);
        let Record { state, settled, attempts, retry_on_crash, abandoned, .. } = *record;
        let found = (state, settled, attempts, retry_on_crash, abandoned, outcome);
        let wanted = (kept.state, kept.settled, kept.attempts, kept.retry, kept.abandoned, kept.outcome);
        // No query tells it.
        let entry = keeper.store.as_ref().and_then(|store| store.index.ledger.get(record.number.0));
        let confirmed = entry.is_some_and(|entry| entry.confirmed);
        let origins = keeper.store.as_ref().map(|store| &store.index.origins);
        let is_present = origins.is_some_and(|origins| origins.is_present(record.number.0));
        let is_right = confirmed == kept.confirmed && is_present == (kept.origin == model.origin);
        if found != wanted || record.message_id != kept.id.map(id_text) || !is_right {
            return Some(format!(
                "record {record:?}, confirmed: {confirmed}, of the present origin: {is_present}, is not {kept:?}"
            ));
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
    keeper: InboxKeeper<Disk>,
    model: Model,
    connection: u64,
}

impl Machine {
    fn new(seed: u64) -> Self {
        NOW_MS.set(to_millis(SystemTime::now()));
        let disk = Disk::new(seed);
        Self { keeper: Self::keeper(&disk), disk, model: Model::default(), connection: 1 }
    }

    fn keeper(disk: &Disk) -> InboxKeeper<Disk> {
        let settings = InboxSettings {
            keep: Duration::from_millis(HOUR_MS),
            keep_at_least: KEEP_AT_LEAST as u64,
            digest_window: Duration::from_millis(WINDOW_MS),
            max_reports: MAX_REPORTS as u64,
            // So small that there is a compaction now and then, in several steps.
            max_size: 256 * 1024,
            ..InboxSettings::at("inbox.journal")
        };
        InboxKeeper::new(disk.clone(), settings, clock)
    }

    fn ops(&self, steps: &[Step]) -> Vec<Op> {
        steps.iter().enumerate().map(|(at, step)| self.model.op(at as u64, step, self.connection)).collect()
    }

    /// Applies a batch to the model, with the answers that the inbox gave.
    fn follow(&mut self, ops: &[Op], answers: &[Written]) {
        let mut next = self.model.last;
        let mut number = || {
            next += 1;
            next
        };
        let expected: Vec<Expected> = ops.iter().map(|op| self.model.apply(op, &mut number)).collect();
        self.model.let_go();
        assert_eq!(answers.iter().map(actual).collect::<Vec<_>>(), expected, "for {ops:?}");
    }

    /// Applies a batch during which the power was cut. The file has all of it, or nothing.
    fn follow_in_doubt(&mut self, ops: &[Op]) {
        let (mut without, mut with) = (self.model.clone(), self.model.clone());
        let mut keeper = Self::keeper(&self.disk);
        keeper.write(&[]).expect("an inbox after the power cut");
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
                let (answers, _) = self.keeper.write(&self.ops(steps)).expect("a disk in order");
                self.follow(&ops, &answers);
            }
            Event::Faulty { steps, after, faults, cut } => {
                let ops = self.ops(steps);
                self.disk.fail_after(*after, *faults);
                let mut tries = 0;
                let answers = loop {
                    match self.keeper.write(&ops) {
                        Ok((answers, _)) => break Some(answers),
                        Err(_) if *cut => break None,
                        Err(failure) if tries > 20 => panic!("{failure:?}"),
                        Err(_) => tries += 1,
                    }
                };
                // A compaction may go on meanwhile, and fail as well.
                drop(self.keeper.compact());
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
        self.keeper.compact().expect("a disk in order");
        // Any batch removes old records, so an empty one does.
        self.keeper.write(&[]).expect("a disk in order");
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

fn again() -> impl Strategy<Value = Again> {
    (prop::bool::weighted(0.2), prop::option::weighted(0.3, 1u8..6))
        .prop_map(|(redelivered, sequence)| Again { redelivered, sequence })
}

fn step() -> impl Strategy<Value = Step> {
    let pick = || any::<prop::sample::Index>().prop_map(|index| index.index(24));
    prop_oneof![
        6 => (prop::option::of(0u8..12), 0u8..2, any::<bool>(), 0u8..3, kind(), again()).prop_map(
            |(id, body, on_accept, intent, kind, again)| Step::Accept { id, body, on_accept, intent, kind, again }
        ),
        3 => pick().prop_map(Step::Confirmed),
        3 => (pick(), any::<bool>()).prop_map(|(pick, retry)| Step::Start { pick, retry }),
        1 => (pick(), any::<bool>()).prop_map(|(pick, made)| Step::Again { pick, made }),
        1 => (0u8..3).prop_map(Step::Origin),
        4 => (pick(), kind(), any::<bool>(), any::<bool>())
            .prop_map(|(pick, kind, abandoned, report)| Step::End { pick, kind, abandoned, report }),
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
