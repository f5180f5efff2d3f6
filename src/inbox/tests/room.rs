//! A full disk, a full inbox, and a thread that recovers by itself.

use super::super::keeper::InboxKeeper;
use super::disk::Disk;
use super::*;

fn small(max_size: u64) -> (InboxKeeper<Disk>, Disk) {
    let disk = Disk::new(1);
    let settings = InboxSettings { max_size, keep_at_least: 1_000, ..InboxSettings::at("inbox.journal") };
    (InboxKeeper::new(disk.clone(), settings, SystemTime::now), disk)
}

fn verdicts(keeper: &mut InboxKeeper<Disk>, ops: Vec<Op>) -> (Vec<Verdict>, Counts) {
    let (answers, counts) = keeper.write(&ops).expect("a disk in order");
    let verdicts = answers.iter().map(|answer| match answer {
        Written::Accepted { verdict, .. } => *verdict,
        other => panic!("{other:?}"),
    });
    (verdicts.collect(), counts)
}

fn ended(id: &str, kind: OutcomeKind) -> Op {
    let outcome = Box::new(outcome(kind));
    arrival(0, message(Some(id), "on"), Intent::End { outcome, report: None })
}

/// The operation on another connection.
fn again(op: Op) -> Op {
    let Op::Accept(arrival) = op else { panic!("not an arrival") };
    Op::Accept(Box::new(Arrival { connection: 2, ..*arrival }))
}

#[test]
fn without_room_finished_messages_go_before_dead_ones_and_unfinished_ones_stay() {
    let (mut keeper, _disk) = small(100_000);
    let body = "x".repeat(10_000);
    let waiting = arrival(0, message(Some("waiting"), &body), Intent::Wait);
    verdicts(
        &mut keeper,
        vec![waiting, ended("dead", OutcomeKind::Failed), ended("old", OutcomeKind::Succeeded)],
    );
    // These messages fill the remaining room.
    for at in 0..7 {
        let fill = arrival(0, message(Some(&format!("fill-{at}")), &body), Intent::Wait);
        let (verdict, counts) = verdicts(&mut keeper, vec![fill]);
        assert!(matches!(verdict[..], [Verdict::New(_)]), "{verdict:?} {counts:?}");
    }
    let large = |id: &str, bytes: usize| arrival(0, message(Some(id), &"x".repeat(bytes)), Intent::Wait);
    let left = 100_000 - usize::try_from(keeper.counts().bytes).expect("small");
    // The message is a little larger than the room that is left, so the finished record goes.
    let (verdict, counts) = verdicts(&mut keeper, vec![large("last", left - 50)]);
    assert!(matches!(verdict[..], [Verdict::New(_)]), "{verdict:?}");
    assert_eq!((counts.records, counts.dead), (10, 1));
    // No record is dropped if that would not make enough room.
    let (verdict, counts) = verdicts(&mut keeper, vec![large("too-much", 10_000)]);
    assert_eq!(verdict, [Verdict::Full]);
    assert_eq!((counts.records, counts.dead), (10, 1));
    let (verdict, _) = verdicts(&mut keeper, vec![large("too-much", 10_000)]);
    assert_eq!(verdict, [Verdict::Full], "it was not recorded");
}

#[test]
fn an_inbox_at_its_limit_forgets_the_oldest_and_stays_below() {
    let (mut keeper, _disk) = small(1 << 20);
    for batch in 0..60 {
        let ops = (0..100).map(|at| ended(&format!("m-{batch}-{at}"), OutcomeKind::Succeeded)).collect();
        let (verdict, counts) = verdicts(&mut keeper, ops);
        assert!(verdict.iter().all(|verdict| matches!(verdict, Verdict::New(_))), "{verdict:?}");
        assert!(counts.bytes <= 1 << 20, "{counts:?}");
    }
    let (verdict, _) =
        verdicts(&mut keeper, ["m-59-99", "m-0-0"].map(|id| again(ended(id, OutcomeKind::Succeeded))).into());
    assert!(matches!(verdict[..], [Verdict::Ended(_), Verdict::New(_)]), "{verdict:?}");
}

#[test]
fn messages_that_no_rule_takes_push_out_neither_dead_letters_nor_what_messages_are_known_by() {
    let (mut keeper, _disk) = small(1 << 20);
    let body = "x".repeat(60_000);
    let unmatched = |at: u64| {
        let outcome = Box::new(outcome(OutcomeKind::Unmatched));
        arrival(at, message(Some(&format!("stray-{at}")), &body), Intent::End { outcome, report: None })
    };
    verdicts(&mut keeper, vec![ended("dead", OutcomeKind::Failed), ended("known", OutcomeKind::Succeeded)]);
    for at in 0..40 {
        let (verdict, counts) = verdicts(&mut keeper, vec![unmatched(at)]);
        assert!(matches!(verdict[..], [Verdict::New(_)]), "{verdict:?}");
        assert!(counts.bytes <= (1 << 20) / 4 + 2_000, "{counts:?}");
    }
    // The newest records are there, and the two that came before all of them.
    assert_eq!((keeper.counts().records, keeper.counts().dead), (6, 5));
    let come_again = [
        ended("dead", OutcomeKind::Failed),
        ended("known", OutcomeKind::Succeeded),
        unmatched(39),
        unmatched(0),
    ];
    let (verdict, _) = verdicts(&mut keeper, come_again.map(again).into());
    assert!(
        matches!(verdict[..], [Verdict::Ended(_), Verdict::Ended(_), Verdict::Ended(_), Verdict::New(_)]),
        "{verdict:?}"
    );
    // Other messages need the room, so these records go before the other dead letters.
    for at in 0..17 {
        let fill = arrival(0, message(Some(&format!("fill-{at}")), &body), Intent::Wait);
        verdicts(&mut keeper, vec![fill]);
    }
    assert_eq!(keeper.counts().dead, 1);
}

#[test]
fn reports_beyond_their_number_drop_the_oldest() {
    let disk = Disk::new(1);
    let settings = InboxSettings { max_reports: 2, ..InboxSettings::at("inbox.journal") };
    let mut keeper = InboxKeeper::new(disk, settings, SystemTime::now);
    let end = |at: u64| {
        let (outcome, report) =
            (Box::new(outcome(OutcomeKind::Succeeded)), Some(Bytes::from(format!("r{at}"))));
        arrival(at, message(None, &at.to_string()), Intent::End { outcome, report })
    };
    let ops: Vec<_> = (1..=3).map(end).chain([Op::Reports { after: 0, limit: 9 }]).collect();
    let (answers, counts) = keeper.write(&ops).expect("a disk in order");
    let Some(Written::Reports(reports)) = answers.last() else { panic!("{answers:?}") };
    assert_eq!(*reports, [(2, Bytes::from_static(b"r2")), (3, Bytes::from_static(b"r3"))]);
    assert_eq!((counts.reports, counts.reports_dropped), (2, 1));
}

#[tokio::test]
async fn a_full_disk_holds_messages_up_until_there_is_room_again() {
    let (keeper, disk) = small(16 << 20);
    let mut inbox = Inbox::begin(keeper);
    let News::Opened(_) = inbox.next().await else { panic!("not opened") };
    disk.set_capacity(disk.size());
    let large = |ticket: u64| {
        let message = message(Some(&format!("m-{ticket}")), &"x".repeat(60_000));
        arrival(ticket, message, Intent::Wait)
    };
    (0..10).for_each(|ticket| inbox.submit(large(ticket)));
    let News::Trouble { sentence } = inbox.next().await else { panic!("no trouble") };
    assert!(sentence.contains("free some space"), "{sentence}");
    inbox.submit(large(10));
    disk.set_capacity(usize::MAX);
    let News::Well = inbox.next().await else { panic!("not well") };
    let (answers, counts) = done(&mut inbox).await;
    assert_eq!((answers.len(), counts.records), (10, 10));
    let (answers, counts) = done(&mut inbox).await;
    assert_eq!((answers.len(), counts.records), (1, 11));
}

#[tokio::test]
async fn closing_tries_once_more_and_then_gives_up() {
    for room in [true, false] {
        let (keeper, disk) = small(16 << 20);
        let mut inbox = Inbox::begin(keeper);
        let News::Opened(_) = inbox.next().await else { panic!("not opened") };
        disk.fail_after(0, u32::MAX);
        inbox.submit(arrival(1, message(Some("a"), "on"), Intent::Wait));
        let News::Trouble { .. } = inbox.next().await else { panic!("no trouble") };
        inbox.submit(arrival(2, message(Some("b"), "on"), Intent::Wait));
        if room {
            disk.heal();
        }
        let answers = inbox.close().await;
        assert_eq!(answers.len(), if room { 2 } else { 0 }, "{answers:?}");
    }
}

#[test]
fn a_message_with_the_id_of_another_is_not_run_even_if_its_record_pushes_out_that_of_the_other() {
    const UUID: &str = "6e9ab0f3-1b59-4c4f-8e1d-1f6a2f0a3f11";
    let (mut keeper, _disk) = small(100_000);
    let ended = ended(UUID, OutcomeKind::Succeeded);
    verdicts(&mut keeper, vec![ended]);
    // What has not ended takes all the room that is left.
    while keeper.counts().bytes + 512 <= 100_000 {
        let fill = arrival(0, message(None, &keeper.counts().records.to_string()), Intent::Wait);
        verdicts(&mut keeper, vec![fill]);
    }
    let other = || arrival(0, message(Some(UUID), "other content"), Intent::Wait);
    let (verdict, _) = verdicts(&mut keeper, vec![again(other())]);
    assert!(matches!(verdict[..], [Verdict::Ended(Past { number: Number(1), .. })]), "{verdict:?}");
    // Its PUBACK was lost.
    let (verdict, _) = verdicts(&mut keeper, vec![again(other())]);
    assert!(matches!(verdict[..], [Verdict::Ended(_)]), "{verdict:?}");
}
