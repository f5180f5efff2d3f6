//! Messages without an id that the hub sends again: which record each of them stands for.

use super::super::keeper::{Batch, Keeper};
use super::disk::Disk;
use super::*;

fn begun(disk: &Disk) -> Keeper<Disk> {
    Keeper::new(disk.clone(), InboxSettings::at("inbox.redb"), SystemTime::now)
}

fn at(minutes: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000 + minutes * 60)
}

/// The same message each time.
fn toggle(connection: u64, received: SystemTime) -> Op {
    let Op::Accept(arrival) = arrival(0, message(None, "toggle"), Intent::Wait) else {
        panic!("not an arrival")
    };
    Op::Accept(Box::new(Arrival { connection, received, ..*arrival }))
}

fn end(number: u64, ended: SystemTime) -> Op {
    let ended = crate::message::format_time(ended);
    let outcome = Box::new(OutcomeReport { ended, ..outcome(OutcomeKind::Succeeded) });
    Op::End { number: Number(number), outcome, abandoned: false, report: None }
}

fn succeeded(number: u64) -> Verdict {
    past(number, OutcomeKind::Succeeded)
}

fn past(number: u64, kind: OutcomeKind) -> Verdict {
    Verdict::Ended(Past { number: Number(number), settled: Settled::AfterAction, outcome: Some(kind) })
}

fn verdicts(keeper: &mut Keeper<Disk>, ops: Vec<Op>) -> Vec<Verdict> {
    let (answers, _) = keeper.write(&mut Batch::new(ops)).expect("a disk in order");
    let verdict = |answer: &Answer| match answer {
        Answer::Accepted { verdict, .. } => Some(*verdict),
        _ => None,
    };
    answers.iter().filter_map(verdict).collect()
}

#[test]
fn equal_messages_that_have_not_ended_are_not_taken_for_one_that_has() {
    let disk = Disk::new(1);
    let mut keeper = begun(&disk);
    let three = (0..3).map(|_| toggle(1, at(0))).collect();
    verdicts(&mut keeper, three);
    // The first is completed; then the process dies. The hub sends the other two again.
    verdicts(&mut keeper, vec![end(1, at(0))]);
    drop(keeper);
    let mut keeper = begun(&disk);
    let again = verdicts(&mut keeper, vec![toggle(1, at(1)), toggle(1, at(1))]);
    assert_eq!(again, [Verdict::Unfinished(Number(2)), Verdict::Unfinished(Number(3))]);
    // Had the hub not learned that the first was completed, it would send three: and the last is that one.
    assert_eq!(verdicts(&mut keeper, vec![toggle(1, at(1))]), [succeeded(1)]);
    assert_eq!(verdicts(&mut keeper, vec![toggle(1, at(1))]), [Verdict::New(Number(4))]);
}

#[test]
fn a_record_from_a_clock_that_was_ahead_swallows_no_new_message() {
    let disk = Disk::new(1);
    let mut keeper = begun(&disk);
    verdicts(&mut keeper, vec![toggle(1, at(500)), end(1, at(500))]);
    assert_eq!(verdicts(&mut keeper, vec![toggle(2, at(0))]), [Verdict::New(Number(2))]);
    // A small step back is none.
    verdicts(&mut keeper, vec![end(2, at(1))]);
    assert_eq!(verdicts(&mut keeper, vec![toggle(3, at(0))]), [succeeded(2)]);
}

#[test]
fn a_message_that_was_given_back_begins_anew_when_it_comes_again_and_only_then() {
    let disk = Disk::new(1);
    let mut keeper = begun(&disk);
    let begin = || {
        let start = Start { at: at(0), retry_on_crash: false };
        arrival(0, message(Some("m-1"), "on"), Intent::Start(start))
    };
    let failed = |abandoned| Op::End {
        number: Number(1),
        outcome: Box::new(OutcomeReport { attempt: 3, ..outcome(OutcomeKind::Failed) }),
        abandoned,
        report: Some(Bytes::from_static(b"report")),
    };
    assert_eq!(verdicts(&mut keeper, vec![begin(), failed(true)]), [Verdict::New(Number(1))]);
    assert_eq!((keeper.counts().dead, keeper.counts().reports), (1, 1), "until then it is a dead letter");
    drop(keeper);

    let mut keeper = begun(&disk);
    assert_eq!(verdicts(&mut keeper, vec![begin()]), [Verdict::New(Number(1))]);
    let opened = keeper.opened().expect("it is open");
    let Record { attempts, state, ref outcome, .. } = opened.unfinished[0].record;
    assert_eq!((attempts, state, outcome), (1, State::Started, &None));
    assert_eq!(verdicts(&mut keeper, vec![begin()]), [Verdict::Unfinished(Number(1))], "once more meanwhile");
    verdicts(&mut keeper, vec![failed(false)]);
    assert_eq!(verdicts(&mut keeper, vec![begin()]), [past(1, OutcomeKind::Failed)]);
    let counts = keeper.counts();
    assert_eq!((counts.records, counts.reports, counts.totals[&OutcomeKind::Failed]), (1, 2, 2));
}

#[test]
fn a_dead_letter_that_somebody_deals_with_is_not_begun_anew_by_the_hub() {
    for wish in [Query::Retry, Query::Drop] {
        let disk = Disk::new(1);
        let mut keeper = begun(&disk);
        let outcome = Box::new(outcome(OutcomeKind::Failed));
        let end = Op::End { number: Number(1), outcome, abandoned: true, report: None };
        verdicts(&mut keeper, vec![arrival(0, message(Some("m-1"), "on"), Intent::Wait), end]);
        verdicts(&mut keeper, vec![Op::Query { ticket: 1, query: wish(Selector("m-1".into())) }]);
        let again = verdicts(&mut keeper, vec![arrival(2, message(Some("m-1"), "on"), Intent::Wait)]);
        assert!(!matches!(again[..], [Verdict::New(_)]), "{again:?}");
    }
}

/// A message that `module` sent to `input`, with the id that C2D message 1 has, too.
fn routed(input: &str, module: &str) -> Op {
    let topic = format!("devices/d/modules/m/inputs/{input}/%24.mid=m-1&%24.cdid=d&%24.cmid={module}");
    let message = C2dMessage::from_input_topic("d", "m", &topic, Bytes::new()).expect("an input");
    Op::Accept(match arrival(0, message, Intent::Wait) {
        Op::Accept(arrival) => arrival,
        other => panic!("{other:?}"),
    })
}

#[test]
fn the_ids_of_modules_are_their_own_and_can_be_shown() {
    let disk = Disk::new(1);
    let mut keeper = begun(&disk);
    let c2d = arrival(0, message(Some("m-1"), ""), Intent::Wait);
    let all = vec![c2d, routed("a", "one"), routed("b", "one"), routed("a", "two"), routed("a", "one")];
    let [first, second, third, fourth] = [1, 2, 3, 4].map(|number| Verdict::New(Number(number)));
    assert_eq!(verdicts(&mut keeper, all), [first, second, third, fourth, Verdict::Unfinished(Number(2))]);
    let show = |id: &str| Op::Query { ticket: 0, query: Query::Show(Selector(id.to_owned())) };
    let mut alone = begun(&Disk::new(2));
    verdicts(&mut alone, vec![routed("a", "one")]);
    let (answers, _) = alone.write(&mut Batch::new(vec![show("m-1"), show("m-2")])).expect("a disk in order");
    let [Answer::Reply { reply: shown, .. }, Answer::Reply { reply: none, .. }] = answers.as_slice() else {
        panic!("{answers:?}")
    };
    assert!(matches!(&**shown, Reply::Record { record, .. } if record.number == Number(1)), "{shown:?}");
    assert!(
        matches!(&**none, Reply::Refused(sentence) if sentence.contains("no record of \"m-2\"")),
        "{none:?}"
    );
}
