//! A fault, a full disk and a power cut at each single write of a batch and of a compaction.

use super::super::keeper::InboxKeeper;
use super::disk::Disk;
use super::*;

/// Small, so that a compaction is soon due, and takes several steps.
const MAX_SIZE: u64 = 256 * 1024;

fn keeper(disk: &Disk) -> InboxKeeper<Disk> {
    let settings = InboxSettings { max_size: MAX_SIZE, ..InboxSettings::at("inbox.journal") };
    InboxKeeper::new(disk.clone(), settings, SystemTime::now)
}

/// All records and messages, by what a person is shown, and the reports.
fn shown(keeper: &mut InboxKeeper<Disk>) -> String {
    let all = |query| Op::Query { ticket: 0, query };
    let list = all(Query::List { state: None, after: 0, limit: 10_000 });
    let (answers, _) =
        keeper.write(&[list, Op::Reports { after: 0, limit: 1_000 }]).expect("a disk in order");
    let [Written::Reply { reply, .. }, Written::Reports(reports)] = &answers[..] else {
        panic!("{answers:?}")
    };
    let Reply::Records(records) = &**reply else { panic!("{reply:?}") };
    let mut text = format!("{reports:?}\n");
    for record in records {
        let (answers, _) = keeper.write(&[all(Query::Show(record.number.into()))]).expect("a disk in order");
        text += &format!("{answers:?}\n");
    }
    let opened = keeper.opened().expect("it is open");
    let origins = keeper.store.as_ref().map(|store| &store.index.origins);
    text + &format!("{:?} {:?} {origins:?}", opened.pins_on, opened.counts)
}

/// An inbox of which more than half is dead, with some of everything alive.
fn due(seed: u64) -> (InboxKeeper<Disk>, Disk) {
    let disk = Disk::new(seed);
    let mut keeper = keeper(&disk);
    let pins = std::collections::BTreeMap::from([("relay".to_owned(), SystemTime::UNIX_EPOCH)]);
    keeper.write(&[Op::PinsOn(pins), Op::Origin("a/d".into())]).expect("written");
    for at in 1..=60 {
        if at == 30 {
            keeper.write(&[Op::Origin("b/d".into())]).expect("written");
        }
        let body = "x".repeat(500);
        let accept = arrival(at, message(Some(&format!("m-{at}")), &body), Intent::Wait);
        keeper.write(&[accept]).expect("written");
        let kind = if at % 5 == 0 { OutcomeKind::Failed } else { OutcomeKind::Succeeded };
        if at % 7 != 0 {
            let report = (at % 10 == 0).then(|| Bytes::from(format!("report {at}")));
            let outcome = Box::new(outcome(kind));
            let end = Op::End { number: Number(at), outcome, abandoned: false, report };
            keeper.write(&[end, Op::Confirmed(vec![Number(at)])]).expect("written");
        }
    }
    (keeper, disk)
}

/// Goes on with a compaction, and writes a batch after each of its steps, as messages come meanwhile. `answered` counts
/// the batches that were answered.
fn go_on(keeper: &mut InboxKeeper<Disk>, answered: &mut u64) -> Result<(), ()> {
    while keeper.compact().map_err(drop)? {
        // Every seventh has not ended.
        let number = Number((*answered + 1) * 7);
        let end = Op::End {
            number,
            outcome: Box::new(OutcomeReport {
                ended: "2026-11-30T08:00:00Z".into(),
                ..outcome(OutcomeKind::Failed)
            }),
            abandoned: false,
            report: Some(Bytes::from_static(b"late")),
        };
        keeper.write(&[Op::Confirmed(vec![Number(3)]), end]).map_err(drop)?;
        *answered += 1;
    }
    Ok(())
}

#[test]
fn a_compaction_keeps_what_is_needed_and_makes_the_file_smaller() {
    let (mut keeper, disk) = due(1);
    let used = || disk.journal().iter().rposition(|byte| *byte != 0);
    let (before, size) = (shown(&mut keeper), used());
    assert!(keeper.compact().expect("begun"), "it takes more than one step");
    while keeper.compact().expect("a disk in order") {}
    assert_eq!(shown(&mut keeper), before);
    assert!(used() < size, "{size:?} then {:?}", used());
    keeper = self::keeper(&disk);
    assert_eq!(shown(&mut keeper), before, "and after a restart");
    assert!(!keeper.compact().expect("a disk in order"), "nothing is due");
}

/// What happens at one write.
#[derive(Debug, Clone, Copy)]
enum Event {
    /// It fails, and with it so many after it.
    Faults(u32),
    PowerCut,
}

#[test]
fn a_fault_or_a_power_cut_at_any_write_of_a_compaction_loses_nothing() {
    let expected = {
        let (mut keeper, _disk) = due(1);
        let mut batch = 0;
        go_on(&mut keeper, &mut batch).expect("a disk in order");
        batch
    };
    assert!((3..=8).contains(&expected), "batches during the compaction: {expected}");
    for event in [Event::Faults(1), Event::Faults(3), Event::Faults(40), Event::PowerCut] {
        for at in 0.. {
            let (mut keeper, disk) = due(at.into());
            let mut batch = 0;
            let first = disk.operations();
            let faults = if let Event::Faults(faults) = event { faults } else { u32::MAX };
            disk.fail_after(at, faults);
            let done = go_on(&mut keeper, &mut batch);
            let is_over = disk.operations() - first <= at;
            if matches!(event, Event::PowerCut) {
                disk.cut_power();
                keeper = self::keeper(&disk);
            }
            disk.heal();
            keeper.open().expect("a disk in order");
            assert_eq!(disk.moved_aside(), 0, "{event:?} at {at}");
            // The batch that failed, if one did, is there as a whole or not at all.
            let text = shown(&mut keeper);
            let late = text.matches("2026-11-30T08:00:00Z").count() as u64;
            let is_right = late == batch || done.is_err() && late == batch + 1;
            assert!(is_right, "{event:?} at {at}: {late} of {batch}");
            assert_eq!(text.matches("number: Number(").count(), 60, "{event:?} at {at}");
            // And it can go on.
            while keeper.compact().expect("a disk in order") {}
            assert_eq!(shown(&mut keeper), text, "{event:?} at {at}");
            if is_over {
                break;
            }
        }
    }
}

#[test]
fn a_disk_that_is_full_at_any_point_of_a_compaction_costs_room_and_nothing_else() {
    let (_keeper, disk) = due(1);
    let (begin, end) = (disk.size(), disk.size() * 2);
    for capacity in (begin..end).step_by(8 * 1024) {
        let (mut keeper, disk) = due(capacity as u64);
        let before = shown(&mut keeper);
        disk.set_capacity(capacity);
        // It is given up without an error, because there is room in the journal.
        while keeper.compact().expect("the journal can be used") {}
        assert_eq!(shown(&mut keeper), before, "{capacity}");
        disk.set_capacity(usize::MAX);
        keeper = self::keeper(&disk);
        assert_eq!(shown(&mut keeper), before, "{capacity}");
    }
}

#[test]
fn a_journal_never_grows_beyond_its_bound_however_fast_messages_come() {
    let disk = Disk::new(3);
    let mut keeper = keeper(&disk);
    for batch in 0..400 {
        let ops: Vec<Op> = (0..4)
            .map(|at| {
                let intent = Intent::End { outcome: Box::new(outcome(OutcomeKind::Failed)), report: None };
                arrival(at, message(None, &format!("{batch}-{at}-{}", "x".repeat(3_000))), intent)
            })
            .collect();
        let before = disk.operations();
        keeper.write(&ops).expect("a disk in order");
        // One batch with its room, here and in the new file: a compaction is never done at one go.
        let operations = disk.operations() - before;
        assert!(operations < 250, "{operations} in batch {batch}");
        // The worker does only one step between two batches.
        keeper.compact().expect("a disk in order");
        let bound = MAX_SIZE * 22 / 10 + 64 * 1024;
        assert!(disk.journal().len() as u64 <= bound, "{} bytes in batch {batch}", disk.journal().len());
    }
}

#[test]
fn a_batch_whose_sync_failed_does_not_count_although_it_can_be_read() {
    let disk = Disk::new(1);
    let mut keeper = keeper(&disk);
    keeper.write(&[arrival(1, message(Some("a"), "on"), Intent::Wait)]).expect("written");
    // The write succeeds, and the sync does not.
    disk.fail_after(1, 1);
    let second = arrival(2, message(Some("b"), "on"), Intent::Wait);
    keeper.write(std::slice::from_ref(&second)).expect_err("a failing sync");
    let before = disk.operations();
    let (answers, counts) = keeper.write(&[second]).expect("written again");
    assert!(
        matches!(answers[..], [Written::Accepted { verdict: Verdict::New(Number(2)), .. }]),
        "{answers:?}"
    );
    assert_eq!(counts.records, 2);
    assert!(disk.operations() - before >= 3, "the name is synced, and the batch is written and synced");
    // Whatever the disk kept of the first try, what was answered survives.
    disk.cut_power();
    assert_eq!(self::keeper(&disk).opened().expect("in order").unfinished.len(), 2);
}

#[test]
fn a_read_that_fails_once_is_told_and_tried_again() {
    let (mut keeper, disk) = due(9);
    let before = shown(&mut keeper);
    let mut keeper = self::keeper(&disk);
    disk.fail_read();
    let failure = keeper.open().expect_err("EIO");
    let sentence = failure.sentence(std::path::Path::new("inbox.journal"));
    assert!(sentence.starts_with("cannot read the inbox inbox.journal: "), "{sentence}");
    assert!(sentence.ends_with("look in the system log for errors of the disk"), "{sentence}");
    assert_eq!(shown(&mut keeper), before);
    // One in a compaction does not even stop that: the frame is read by itself.
    assert!(keeper.compact().expect("begun"));
    disk.fail_read();
    let used = || disk.journal().iter().rposition(|byte| *byte != 0);
    let size = used();
    while keeper.compact().expect("a disk in order") {}
    assert!(used() < size, "{size:?} then {:?}", used());
    assert_eq!((shown(&mut keeper), disk.moved_aside()), (before, 0));
}

#[test]
fn a_batch_that_only_the_kernel_has_is_on_disk_before_the_next_one() {
    for seed in 0..20 {
        let disk = Disk::new(seed);
        let mut keeper = keeper(&disk);
        keeper.write(&[arrival(1, message(Some("a"), "on"), Intent::Wait)]).expect("written");
        disk.fail_after(1, 1);
        keeper.write(&[arrival(2, message(Some("b"), "on"), Intent::Wait)]).expect_err("a failing sync");
        // The process ends. The next one sees what the disk may never have got.
        let mut keeper = self::keeper(&disk);
        keeper.write(&[arrival(3, message(Some("c"), "on"), Intent::Wait)]).expect("written");
        disk.cut_power();
        let opened = self::keeper(&disk).opened().expect("in order");
        assert_eq!((opened.unfinished.len(), disk.moved_aside()), (3, 0), "seed {seed}");
    }
}

#[test]
fn a_fault_at_any_write_of_an_extension_and_a_power_cut_later_lose_nothing() {
    let large = |at: u64| arrival(at, message(Some(&format!("m-{at}")), &"x".repeat(30_000)), Intent::Wait);
    for at in 0..40 {
        for (seed, is_again) in [(at, true), (at + 100, false)] {
            let disk = Disk::new(seed.into());
            let mut keeper = keeper(&disk);
            keeper.write(&[large(1), large(2)]).expect("it fits");
            disk.fail_after(at, 1);
            let failed = keeper.write(&[large(3)]).is_err();
            disk.heal();
            if failed && !is_again {
                // Another process goes on, with other messages.
                keeper = self::keeper(&disk);
            }
            keeper.write(&[large(3)]).expect("written");
            let small = arrival(4, message(Some("m-4"), "on"), Intent::Wait);
            let answered = keeper.write(std::slice::from_ref(&small)).expect("written").1.records;
            disk.fail_after(1, u32::MAX);
            keeper.write(&[arrival(5, message(Some("m-5"), "on"), Intent::Wait)]).expect_err("no sync");
            disk.cut_power();
            let mut keeper = self::keeper(&disk);
            keeper.try_open().unwrap_or_else(|failure| panic!("{at}, {is_again}: {failure:?}"));
            let found = keeper.opened().expect("in order").unfinished.len() as u64;
            assert!(found == answered || found == answered + 1, "{at}: {found} of {answered}");
        }
    }
}

#[test]
fn an_extension_that_was_not_finished_and_a_torn_batch_after_it_do_no_damage() {
    let large = |at: u64| arrival(at, message(Some(&format!("m-{at}")), &"x".repeat(30_000)), Intent::Wait);
    for at in 0..40 {
        for second in 0..40 {
            let disk = Disk::new(u64::from(at * 40 + second));
            let mut keeper = keeper(&disk);
            keeper.write(&[large(1), large(2)]).expect("it fits");
            disk.fail_after(at, 1);
            let first = keeper.write(&[large(3)]);
            disk.heal();
            if first.is_err() {
                keeper.open().expect("a disk in order");
                // It fails at each operation in turn: in the extension, in the batch, at its sync.
                disk.fail_after(second, u32::MAX);
                drop(keeper.write(&[large(3)]));
            }
            disk.cut_power();
            let mut keeper = self::keeper(&disk);
            keeper.try_open().unwrap_or_else(|failure| panic!("{at}, {second}: {failure:?}"));
            let found = keeper.opened().expect("in order").unfinished.len();
            assert!((2..=3).contains(&found), "{at}, {second}: {found}");
        }
    }
}

#[test]
fn what_an_answered_batch_marked_as_seen_stays_so_after_a_failure() {
    let (mut keeper, disk) = due(7);
    let equal = |connection: u64| {
        let Op::Accept(arrival) = arrival(9, message(None, "toggle"), Intent::Wait) else {
            panic!("no arrival")
        };
        Op::Accept(Box::new(Arrival { connection, ..*arrival }))
    };
    keeper.write(&[equal(1)]).expect("written");
    let (answers, _) = keeper.write(&[equal(2)]).expect("written");
    assert!(
        matches!(answers[..], [Written::Accepted { verdict: Verdict::Unfinished(_), .. }]),
        "{answers:?}"
    );
    // The compaction gets as far as the new name, and is not known to be on disk.
    disk.fail_names();
    let failed = (0..200).any(|_| keeper.compact().is_err());
    assert!(failed, "the name was never in doubt");
    let (answers, _) = keeper.write(&[equal(2)]).expect("written");
    assert!(matches!(answers[..], [Written::Accepted { verdict: Verdict::New(_), .. }]), "{answers:?}");
}
