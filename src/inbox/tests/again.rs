//! Messages that come again, and others that only look like it: which record each of them matches.

use super::super::keeper::InboxKeeper;
use super::disk::Disk;
use super::*;
use crate::config::KnownBy;
use crate::message::Sequence;

fn begun(disk: &Disk) -> InboxKeeper<Disk> {
    InboxKeeper::new(disk.clone(), InboxSettings::at("inbox.journal"), SystemTime::now)
}

fn at(minutes: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000 + minutes * 60)
}

/// An arrival with one thing changed.
fn with(op: Op, change: impl FnOnce(&mut Arrival)) -> Op {
    let Op::Accept(mut arrival) = op else { panic!("not an arrival") };
    change(&mut arrival);
    Op::Accept(arrival)
}

/// An equal message each time.
fn toggle(connection: u64, received: SystemTime) -> Op {
    with(arrival(0, message(None, "toggle"), Intent::Wait), |arrival| {
        (arrival.connection, arrival.received) = (connection, received);
    })
}

/// A message as it comes over AMQP, where the hub's sequence number identifies it.
fn numbered(number: u64, op: Op) -> Op {
    with(op, |arrival| arrival.sequence = Some(Sequence { number, enqueued_ms: 1_800_000_000_000 }))
}

fn confirmed(number: u64) -> Op {
    Op::Confirmed(vec![Number(number)])
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

fn verdicts(keeper: &mut InboxKeeper<Disk>, ops: Vec<Op>) -> Vec<Verdict> {
    let (answers, _) = keeper.write(&ops).expect("a disk in order");
    let verdict = |answer: &Written| match answer {
        Written::Accepted { verdict, .. } => Some(*verdict),
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
    // The first is completed. Then the process ends, and the hub sends the other two again.
    verdicts(&mut keeper, vec![end(1, at(0))]);
    drop(keeper);
    let mut keeper = begun(&disk);
    let again = verdicts(&mut keeper, vec![toggle(1, at(1)), toggle(1, at(1))]);
    assert_eq!(again, [Verdict::Unfinished(Number(2)), Verdict::Unfinished(Number(3))]);
    // If the hub did not know that the first was completed, it would send three. The third is that one.
    assert_eq!(verdicts(&mut keeper, vec![toggle(1, at(1))]), [succeeded(1)]);
    assert_eq!(verdicts(&mut keeper, vec![toggle(1, at(1))]), [Verdict::New(Number(4))]);
}

#[test]
fn a_record_from_a_clock_that_was_ahead_swallows_no_new_message() {
    let disk = Disk::new(1);
    let mut keeper = begun(&disk);
    verdicts(&mut keeper, vec![toggle(1, at(500)), end(1, at(500)), confirmed(1)]);
    assert_eq!(verdicts(&mut keeper, vec![toggle(2, at(0))]), [Verdict::New(Number(2))]);
    // A small step back of the clock does not count.
    verdicts(&mut keeper, vec![end(2, at(1)), confirmed(2)]);
    assert_eq!(verdicts(&mut keeper, vec![toggle(3, at(0))]), [succeeded(2)]);
}

#[test]
fn a_message_that_was_given_back_begins_anew_when_it_comes_again_and_only_then() {
    let disk = Disk::new(1);
    let mut keeper = begun(&disk);
    let begin = || {
        let start = Start { at: at(0), retry_on_crash: false };
        numbered(1, arrival(0, message(Some("m-1"), "on"), Intent::Start(start)))
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
        let comes = || numbered(1, arrival(0, message(Some("m-1"), "on"), Intent::Wait));
        verdicts(&mut keeper, vec![comes(), end]);
        verdicts(&mut keeper, vec![Op::Query { ticket: 1, query: wish(Selector("m-1".into())) }]);
        let again = verdicts(&mut keeper, vec![comes()]);
        assert!(!matches!(again[..], [Verdict::New(_)]), "{again:?}");
    }
}

const UUID: &str = "6e9ab0f3-1b59-4c4f-8e1d-1f6a2f0a3f11";

/// A message that `module` sent to `input`. It has the id that the C2D message has, too.
fn routed(input: &str, module: &str) -> Op {
    let topic = format!("devices/d/modules/m/inputs/{input}/%24.mid={UUID}&%24.cdid=d&%24.cmid={module}");
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
    let c2d = arrival(0, message(Some(UUID), ""), Intent::Wait);
    let all = vec![c2d, routed("a", "one"), routed("b", "one"), routed("a", "two"), routed("a", "one")];
    let [first, second, third, fourth] = [1, 2, 3, 4].map(|number| Verdict::New(Number(number)));
    assert_eq!(verdicts(&mut keeper, all), [first, second, third, fourth, Verdict::Unfinished(Number(2))]);
    let show = |id: &str| Op::Query { ticket: 0, query: Query::Show(Selector(id.to_owned())) };
    let mut alone = begun(&Disk::new(2));
    verdicts(&mut alone, vec![routed("a", "one")]);
    let (answers, _) = alone.write(&[show(UUID), show("m-2")]).expect("a disk in order");
    let [Written::Reply { reply: shown, .. }, Written::Reply { reply: none, .. }] = answers.as_slice() else {
        panic!("{answers:?}")
    };
    assert!(matches!(&**shown, Reply::Record { record, .. } if record.number == Number(1)), "{shown:?}");
    assert!(
        matches!(&**none, Reply::Refused(sentence) if sentence.contains("no record of \"m-2\"")),
        "{none:?}"
    );
}

#[test]
fn the_same_id_with_other_content_is_another_message() {
    let disk = Disk::new(1);
    let mut keeper = begun(&disk);
    let comes = |body: &str| arrival(0, message(Some("message_0"), body), Intent::Wait);
    let first = verdicts(&mut keeper, vec![comes("first run"), end(1, at(0))]);
    assert_eq!(first, [Verdict::New(Number(1))]);
    // This holds whether or not the completion is confirmed, and also after a restart.
    assert_eq!(verdicts(&mut keeper, vec![comes("second run")]), [Verdict::New(Number(2))]);
    drop(keeper);
    let mut keeper = begun(&disk);
    assert_eq!(verdicts(&mut keeper, vec![comes("third run")]), [Verdict::New(Number(3))]);
    assert_eq!(verdicts(&mut keeper, vec![comes("second run")]), [Verdict::Unfinished(Number(2))]);
}

#[test]
fn the_same_bytes_run_again_once_the_hub_has_the_completion() {
    let disk = Disk::new(1);
    let mut keeper = begun(&disk);
    let comes = |connection, minutes| {
        with(
            arrival(0, message(Some("My Message ID"), "Cloud to device message."), Intent::Wait),
            |arrival| {
                (arrival.connection, arrival.received) = (connection, at(minutes));
            },
        )
    };
    // On one connection each message is new, confirmed or not.
    let three =
        verdicts(&mut keeper, vec![comes(1, 0), end(1, at(0)), comes(1, 0), end(2, at(0)), comes(1, 0)]);
    assert_eq!(three, [1, 2, 3].map(|number| Verdict::New(Number(number))));
    verdicts(&mut keeper, vec![end(3, at(0))]);
    // An hour later it comes on another connection, because the hub does not know of the first completion.
    assert_eq!(verdicts(&mut keeper, vec![comes(2, 60)]), [succeeded(1)]);
    verdicts(&mut keeper, vec![Op::Confirmed(vec![Number(1), Number(2), Number(3)])]);
    assert_eq!(verdicts(&mut keeper, vec![comes(3, 120)]), [Verdict::New(Number(4))]);
    // The confirmation is on disk, and not only in memory. Within the window, a hub may be late with a completion
    // that it has confirmed.
    verdicts(&mut keeper, vec![end(4, at(120)), confirmed(4)]);
    drop(keeper);
    let mut keeper = begun(&disk);
    assert_eq!(verdicts(&mut keeper, vec![comes(1, 121)]), [succeeded(4)]);
    assert_eq!(verdicts(&mut keeper, vec![comes(2, 180)]), [Verdict::New(Number(5))]);
}

#[test]
fn what_the_hub_says_it_sent_before_is_known_on_the_same_connection_too() {
    let mut keeper = begun(&Disk::new(1));
    let again = || with(toggle(1, at(1)), |arrival| arrival.redelivered = true);
    verdicts(&mut keeper, vec![toggle(1, at(0))]);
    assert_eq!(verdicts(&mut keeper, vec![again()]), [Verdict::Unfinished(Number(1))]);
    verdicts(&mut keeper, vec![end(1, at(0)), confirmed(1)]);
    assert_eq!(verdicts(&mut keeper, vec![again()]), [succeeded(1)]);
}

#[test]
fn the_sequence_number_decides_where_there_is_one() {
    let mut keeper = begun(&Disk::new(1));
    let comes = |number, connection, minutes| numbered(number, toggle(connection, at(minutes)));
    verdicts(&mut keeper, vec![comes(7, 1, 0), end(1, at(0))]);
    assert_eq!(verdicts(&mut keeper, vec![comes(7, 1, 600)]), [succeeded(1)], "the same, however late");
    assert_eq!(verdicts(&mut keeper, vec![comes(8, 2, 0)]), [Verdict::New(Number(2))], "another one");
    // A new queue counts from 1 again.
    let anew = with(comes(7, 3, 0), |arrival| {
        arrival.sequence = arrival.sequence.map(|sequence| Sequence { enqueued_ms: 1, ..sequence });
    });
    assert_eq!(verdicts(&mut keeper, vec![anew]), [Verdict::New(Number(3))]);
    // The agent now uses MQTT, which has no such number.
    assert_eq!(verdicts(&mut keeper, vec![toggle(4, at(0))]), [Verdict::Unfinished(Number(2))]);
}

#[test]
fn an_id_with_a_uuid_is_a_key_and_other_content_under_it_is_recorded_as_not_run() {
    let disk = Disk::new(1);
    let mut keeper = begun(&disk);
    let comes = |body: &str| arrival(0, message(Some(UUID), body), Intent::Wait);
    assert_eq!(
        verdicts(&mut keeper, vec![comes("on"), end(1, at(0)), confirmed(1)]),
        [Verdict::New(Number(1))]
    );
    assert_eq!(verdicts(&mut keeper, vec![comes("on")]), [succeeded(1)]);
    assert_eq!(keeper.counts().records, 1);
    for _ in 0..2 {
        // The result is that of the first one. It is recorded once, although it comes twice.
        assert_eq!(verdicts(&mut keeper, vec![comes("off")]), [succeeded(1)]);
        assert_eq!((keeper.counts().records, keeper.counts().totals[&OutcomeKind::Repeated]), (2, 1));
    }
    let query = Op::Query { ticket: 0, query: Query::Show(Selector("#2".into())) };
    let (answers, _) = keeper.write(&[query]).expect("a disk in order");
    let [Written::Reply { reply, .. }] = answers.as_slice() else { panic!("{answers:?}") };
    let Reply::Record { record, .. } = &**reply else { panic!("{reply:?}") };
    assert_eq!((record.message_id.as_deref(), record.state), (Some(UUID), State::Finished));
    let text = &record.outcome.as_ref().expect("it has ended").text;
    assert!(
        text.starts_with("repeated: not run, because message #1 came with the same id and other content"),
        "{text}"
    );
    // A message that has not ended does not count as ended because of this.
    let other = || arrival(0, message(Some("order-6e9ab0f31b594c4f8e1d1f6a2f0a3f12"), "1"), Intent::Wait);
    let changed = || arrival(0, message(Some("order-6e9ab0f31b594c4f8e1d1f6a2f0a3f12"), "2"), Intent::Wait);
    assert_eq!(
        verdicts(&mut keeper, vec![other(), changed(), other()]),
        [Verdict::New(Number(3)), Verdict::Unfinished(Number(3)), Verdict::Unfinished(Number(3))]
    );
}

#[test]
fn known_by_chooses_what_a_message_is_known_by() {
    for (known_by, by_id, by_uuid) in
        [(KnownBy::Auto, false, true), (KnownBy::Delivery, false, false), (KnownBy::Id, true, true)]
    {
        let settings = InboxSettings { known_by, ..InboxSettings::at("inbox.journal") };
        let mut keeper = InboxKeeper::new(Disk::new(1), settings, SystemTime::now);
        for (id, is_key) in [("message_0", by_id), (UUID, by_uuid)] {
            verdicts(&mut keeper, vec![arrival(0, message(Some(id), "a"), Intent::Wait)]);
            let second = verdicts(&mut keeper, vec![arrival(0, message(Some(id), "b"), Intent::Wait)]);
            assert_eq!(matches!(second[..], [Verdict::Unfinished(_)]), is_key, "{known_by:?} {id}");
        }
    }
}

#[test]
fn a_message_that_had_expired_or_had_no_rule_begins_anew_when_it_comes_again_and_is_to_be_run() {
    for kind in [OutcomeKind::Expired, OutcomeKind::Unmatched] {
        let disk = Disk::new(1);
        let mut keeper = begun(&disk);
        let bring = |intent| vec![arrival(0, message(Some(UUID), "on"), intent)];
        assert_eq!(verdicts(&mut keeper, bring(Intent::Wait)), [Verdict::New(Number(1))]);
        let ended = || Box::new(outcome(kind));
        let end = Op::End { number: Number(1), outcome: ended(), abandoned: false, report: None };
        verdicts(&mut keeper, vec![end]);
        let again = bring(Intent::End { outcome: ended(), report: None });
        assert_eq!(verdicts(&mut keeper, again), [past(1, kind)], "nothing is to be done with it");
        assert_eq!(verdicts(&mut keeper, bring(Intent::Wait)), [Verdict::New(Number(1))]);
        // The record has its message again, which was removed when it expired.
        let opened = keeper.opened().expect("a disk in order");
        let [Unfinished { message: kept, .. }] = &opened.unfinished[..] else { panic!("{opened:?}") };
        assert_eq!(*kept, message(Some(UUID), "on"));
        // The id comes with other content. The first message was never run, so this one is.
        verdicts(
            &mut keeper,
            vec![Op::End { number: Number(1), outcome: ended(), abandoned: false, report: None }],
        );
        let sent_anew = arrival(0, message(Some(UUID), "good for longer"), Intent::Wait);
        assert_eq!(verdicts(&mut keeper, vec![sent_anew]), [Verdict::New(Number(2))]);
    }
}

#[test]
fn a_message_that_no_rule_takes_is_kept_and_a_call_is_not() {
    let mut keeper = begun(&Disk::new(1));
    let unmatched = || Box::new(outcome(OutcomeKind::Unmatched));
    let ended = || Intent::End { outcome: unmatched(), report: None };
    let call = |id| C2dMessage::of_method("nothing", id, Bytes::from_static(b"{}"));
    let end = Op::End { number: Number(3), outcome: unmatched(), abandoned: false, report: None };
    let ops = vec![
        arrival(0, message(Some("m-1"), "on"), ended()),
        arrival(0, call("method-1"), ended()),
        // Its rule was removed while it waited.
        arrival(0, call("method-2"), Intent::Wait),
        end,
    ];
    verdicts(&mut keeper, ops);
    assert_eq!((keeper.counts().records, keeper.counts().dead), (3, 1));
    let query = Query::Show(Selector("m-1".into()));
    let (answers, _) = keeper.write(&[Op::Query { ticket: 0, query }]).expect("a disk");
    let [Written::Reply { reply, .. }] = &answers[..] else { panic!("{answers:?}") };
    assert!(
        matches!(&**reply, Reply::Record { message: Some(kept), .. } if *kept == message(Some("m-1"), "on"))
    );
}
