//! The device gets another hub: what has not ended is only in the inbox, and what comes is new.

use super::super::journal::{FORMAT, READ_TOO};
use super::super::keeper::InboxKeeper;
use super::disk::Disk;
use super::*;
use crate::message::Sequence;

fn keeper(disk: &Disk) -> InboxKeeper<Disk> {
    InboxKeeper::new(disk.clone(), InboxSettings::at("inbox.journal"), SystemTime::now)
}

fn from(hub: &str) -> Op {
    Op::Origin(format!("{hub}/d").into())
}

fn on(connection: u64, number: Option<u64>) -> Op {
    let Op::Accept(mut arrival) = arrival(0, message(None, "on"), Intent::Wait) else { panic!("no arrival") };
    let sequence = number.map(|number| Sequence { number, enqueued_ms: 1 });
    (arrival.connection, arrival.redelivered, arrival.sequence) = (connection, true, sequence);
    Op::Accept(arrival)
}

/// A message that equals no other one.
fn new(number: u64) -> Op {
    arrival(0, message(None, &number.to_string()), Intent::Wait)
}

fn end(number: u64) -> Op {
    let outcome = Box::new(outcome(OutcomeKind::Succeeded));
    Op::End { number: Number(number), outcome, abandoned: false, report: None }
}

/// A message for an input of a module, or a call.
fn of_module(message: C2dMessage) -> Op {
    arrival(0, message, Intent::Wait)
}

fn input() -> C2dMessage {
    let topic = "devices/d/modules/m/inputs/in/%24.mid=i&%24.cdid=d&%24.cmid=other";
    C2dMessage::from_input_topic("d", "m", topic, Bytes::new()).expect("an input")
}

fn call() -> C2dMessage {
    C2dMessage::of_method("pump", "method-1", Bytes::new())
}

fn write(keeper: &mut InboxKeeper<Disk>, ops: &[Op]) -> Vec<Written> {
    keeper.write(ops).expect("a disk in order").0
}

fn verdict(keeper: &mut InboxKeeper<Disk>, op: Op) -> Verdict {
    match write(keeper, &[op]).pop() {
        Some(Written::Accepted { verdict, .. }) => verdict,
        other => panic!("{other:?}"),
    }
}

fn left(answer: &Written) -> Vec<u64> {
    let Written::Origin(left) = answer else { panic!("{answer:?}") };
    assert!(left.iter().all(|own| own.record.settled == Settled::OnAccept), "{left:?}");
    left.iter().map(|own| own.record.number.0).collect()
}

#[test]
fn a_message_of_another_hub_is_none_that_came_from_the_hub_before() {
    // Not ended, ended and not confirmed, confirmed within the window; over AMQP with the same number.
    let ends: [fn() -> Vec<Op>; 3] =
        [Vec::new, || vec![end(1)], || vec![end(1), Op::Confirmed(vec![Number(1)])]];
    for (ends, number) in ends.into_iter().zip([None, Some(7), None]) {
        let disk = Disk::new(1);
        let mut keeper = keeper(&disk);
        write(&mut keeper, &[from("a"), on(1, number)]);
        write(&mut keeper, &ends());
        assert!(!matches!(verdict(&mut keeper, on(2, number)), Verdict::New(_)), "a sends it again");
        write(&mut keeper, &[from("b")]);
        assert_eq!(verdict(&mut keeper, on(3, number)), Verdict::New(Number(2)), "b's own");
        let again = verdict(&mut keeper, on(4, number));
        assert_eq!(again, Verdict::Unfinished(Number(2)), "b sends it again");
        // Also after a restart, and a hub to which the device goes back sends again what it has.
        drop(keeper);
        let mut keeper = self::keeper(&disk);
        write(&mut keeper, &[from("b"), end(2), from("a")]);
        let again = verdict(&mut keeper, on(1, number));
        let is_first = match again {
            Verdict::Unfinished(first) => first == Number(1),
            Verdict::Ended(past) => past.number == Number(1),
            _ => false,
        };
        assert!(is_first, "{again:?}");
    }
}

#[test]
fn a_key_by_itself_and_the_doors_of_modules_know_no_hub() {
    let mut keeper = keeper(&Disk::new(1));
    let uuid = || arrival(0, message(Some("6e9ab0f3-1b59-4c4f-8e1d-1f6a2f0a3f11"), "on"), Intent::Wait);
    write(&mut keeper, &[from("a"), uuid(), of_module(input()), of_module(call())]);
    let answers = write(&mut keeper, &[from("b")]);
    assert_eq!(left(&answers[0]), [1], "the gateway and the caller are where they were");
    let again = |op: Op| {
        let Op::Accept(mut arrival) = op else { panic!("no arrival") };
        arrival.connection = 2;
        Op::Accept(arrival)
    };
    for (number, op) in [(1, uuid()), (2, of_module(input())), (3, of_module(call()))] {
        assert_eq!(verdict(&mut keeper, again(op)), Verdict::Unfinished(Number(number)));
    }
}

#[test]
fn what_has_not_ended_is_left_to_the_inbox_once_and_in_one_step_whatever_the_disk_does() {
    let mut at = 0;
    loop {
        let disk = Disk::new(at.into());
        let mut keeper = keeper(&disk);
        // The first origin that is told is that of all before.
        let first = write(&mut keeper, &[new(1), from("a")]);
        assert_eq!(left(&first[1]), [0; 0]);
        write(&mut keeper, &[new(2), new(3), end(2)]);
        assert_eq!(left(&write(&mut keeper, &[from("a")])[0]), [0; 0], "nothing has changed");
        // One that is still being accepted counts, too.
        let batch = || [new(4), from("b"), new(5)];
        disk.fail_after(at, u32::MAX);
        let before = disk.operations();
        let written = keeper.write(&batch());
        let is_over = disk.operations() - before <= at;
        disk.cut_power();
        let mut keeper = self::keeper(&disk);
        let opened = keeper.opened().expect("in order");
        let settled: Vec<_> =
            opened.unfinished.iter().map(|own| (own.record.number.0, own.record.settled)).collect();
        let (kept, there) = (Settled::OnAccept, Settled::AfterAction);
        let (none, all) = (vec![(1, there), (3, there)], vec![(1, kept), (3, kept), (4, kept), (5, there)]);
        assert!(settled == all || written.is_err() && settled == none, "{at}: {settled:?}");
        let answers = write(&mut keeper, &[from("b")]);
        assert_eq!(left(&answers[0]), if settled == all { vec![] } else { vec![1, 3] }, "{at}");
        if is_over {
            break;
        }
        at += 1;
    }
    assert!(at >= 2, "{at} writes");
}

#[test]
fn a_file_that_takes_the_place_of_a_damaged_one_knows_where_messages_come_from() {
    let disk = Disk::new(1);
    let mut keeper = keeper(&disk);
    write(&mut keeper, &[from("a"), on(1, None)]);
    disk.spoil();
    disk.fail_after(0, 1);
    let written = (0..4).find_map(|_| keeper.write(&[on(2, None)]).ok());
    assert_eq!((written.is_some(), disk.moved_aside()), (true, 1));
    drop(keeper);
    let answers = write(&mut self::keeper(&disk), &[from("b")]);
    assert_eq!(left(&answers[0]), [2]);
}

/// Makes the file one of the format before, which had no origins.
fn of_earlier_format(disk: &Disk) {
    let mut bytes = disk.journal();
    assert_eq!(bytes[16..20], FORMAT.to_le_bytes());
    bytes[16..20].copy_from_slice(&READ_TOO.to_le_bytes());
    let sum = crc32c::crc32c(&bytes[..28]);
    bytes[28..32].copy_from_slice(&sum.to_le_bytes());
    disk.set_journal(&bytes);
}

fn format(disk: &Disk) -> u32 {
    u32::from_le_bytes(disk.journal()[16..20].try_into().expect("4 bytes"))
}

#[test]
fn a_file_of_the_format_before_is_copied_before_it_is_changed_and_loses_nothing() {
    let mut at = 0;
    loop {
        let disk = Disk::new(at.into());
        let mut keeper = keeper(&disk);
        write(&mut keeper, &[on(1, Some(1)), on(1, Some(2)), end(2)]);
        of_earlier_format(&disk);
        let mut keeper = self::keeper(&disk);
        assert_eq!(keeper.opened().expect("it is read").unfinished.len(), 1);
        disk.fail_after(at, u32::MAX);
        let before = disk.operations();
        let written = keeper.write(&[from("a"), on(1, Some(3))]);
        let is_over = disk.operations() - before <= at;
        disk.cut_power();
        assert!(written.is_err() || format(&disk) == FORMAT, "{at}");
        let mut keeper = self::keeper(&disk);
        let unfinished = keeper.opened().expect("in order").unfinished.len();
        assert!(unfinished == 2 || written.is_err() && unfinished == 1, "{at}: {unfinished}");
        assert_eq!((keeper.counts().records - unfinished as u64, disk.moved_aside()), (1, 0), "{at}");
        let answers = write(&mut keeper, &[from("a"), from("b")]);
        assert_eq!((left(&answers[1]).len(), format(&disk)), (unfinished, FORMAT), "{at}");
        if is_over {
            break;
        }
        at += 1;
    }
    assert!(at >= 5, "{at} writes");
}
