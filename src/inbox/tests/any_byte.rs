//! Damage at any byte of a journal: never a panic, and never a record that was not written.

use std::collections::BTreeSet;

use super::super::journal::{HEADER, LEAST_ROOM};
use super::super::keeper::InboxKeeper;
use super::super::trouble::Trouble;
use super::disk::Disk;
use super::*;

fn keeper(disk: &Disk) -> InboxKeeper<Disk> {
    InboxKeeper::new(disk.clone(), InboxSettings::at("inbox.journal"), SystemTime::now)
}

/// The records as they are shown, and whether the file was moved aside.
type Seen = (Vec<String>, bool);

/// A small journal, its content after each batch, and where each batch ends.
struct Sample {
    bytes: Vec<u8>,
    ends: Vec<usize>,
    stages: Vec<Vec<String>>,
}

fn records(keeper: &mut InboxKeeper<Disk>) -> Vec<String> {
    let query = Op::Query { ticket: 0, query: Query::List { state: None, after: 0, limit: 1_000 } };
    let (answers, _) = keeper.write(&[query]).expect("a disk in order");
    let [Written::Reply { reply, .. }] = &answers[..] else { panic!("{answers:?}") };
    let Reply::Records(records) = &**reply else { panic!("{reply:?}") };
    records.iter().map(|record| format!("{record:?}")).collect()
}

fn written() -> Sample {
    let disk = Disk::new(0);
    let mut keeper = keeper(&disk);
    let (mut ends, mut stages) = (vec![place(HEADER)], vec![Vec::new()]);
    keeper.open().expect("a new journal");
    for batch in 0..5 {
        let mut ops = vec![arrival(1, message(Some(&format!("m-{batch}")), "on"), Intent::Wait)];
        if batch > 0 {
            let outcome = Box::new(outcome(OutcomeKind::Succeeded));
            ops.push(Op::End { number: Number(batch), outcome, abandoned: false, report: None });
            // Each batch has a change that can be seen in its records.
            ops.push(Op::Origin(format!("hub-{batch}/d").into()));
        }
        keeper.write(&ops).expect("written");
        let end = disk.journal().iter().rposition(|byte| *byte != 0).expect("something") + 1;
        ends.push(end.next_multiple_of(8));
        stages.push(records(&mut keeper));
    }
    Sample { bytes: disk.journal(), ends, stages }
}

fn place(at: u64) -> usize {
    usize::try_from(at).expect("small")
}

/// Opens a journal with this content.
fn open(bytes: &[u8]) -> Seen {
    let disk = Disk::new(0);
    disk.set_journal(bytes);
    let mut keeper = keeper(&disk);
    match keeper.open() {
        Ok(()) => (records(&mut keeper), disk.moved_aside() > 0),
        Err(Trouble::Newer(_) | Trouble::Earlier) => (Vec::new(), true),
        Err(other) => panic!("{other:?}"),
    }
}

#[test]
fn a_byte_that_changed_anywhere_leaves_the_records_before_it_or_sets_the_file_aside() {
    let Sample { bytes, ends, stages } = written();
    let end = *ends.last().expect("batches");
    for at in 0..end {
        for bits in [0x01, 0xff] {
            let mut damaged = bytes.clone();
            damaged[at] ^= bits;
            let (seen, is_aside) = open(&damaged);
            let whole = ends.iter().filter(|end| **end <= at).count();
            let is_last = whole == stages.len() - 1;
            let is_filler = seen == *stages.last().expect("batches");
            // Zeros after a frame are not checked. Whatever is in them, all that was written counts.
            assert!(
                is_filler && !is_aside
                    || is_last && !is_aside && seen == stages[whole - 1]
                    || is_aside && seen.is_empty(),
                "byte {at} ^ {bits}: aside: {is_aside}, {seen:?}"
            );
        }
    }
}

#[test]
fn a_last_batch_that_is_not_whole_does_not_count_and_one_that_was_cut_off_is_damage() {
    let Sample { bytes, ends, stages } = written();
    let [.., begin, end] = ends[..] else { panic!("{ends:?}") };
    for at in begin..end - 8 {
        // The power was cut: the file has its length, and zeros where nothing was written.
        let mut torn = bytes.clone();
        torn[at..end].fill(0);
        assert_eq!(open(&torn), (stages[stages.len() - 2].clone(), false), "byte {at}");
        assert_eq!(open(&bytes[..at]), (Vec::new(), true), "cut off at {at}");
    }
}

#[test]
fn two_frames_that_changed_places_are_damage_wherever_they_are() {
    let Sample { bytes, ends, .. } = written();
    let (first, second) = (bytes[ends[1]..ends[2]].to_vec(), bytes[ends[2]..ends[3]].to_vec());
    let mut swapped = bytes[..ends[1]].to_vec();
    swapped.extend([second, first].concat());
    swapped.extend(&bytes[ends[3]..]);
    assert_eq!(open(&swapped), (Vec::new(), true));
}

#[test]
fn a_file_of_zeros_or_with_a_frame_of_4_gib_is_told_and_set_aside() {
    assert_eq!(open(&vec![0; place(LEAST_ROOM)]), (Vec::new(), true));
    let Sample { mut bytes, ends, .. } = written();
    bytes[ends[1]..ends[1] + 4].fill(0xff);
    assert_eq!(open(&bytes), (Vec::new(), true));
}

#[test]
fn ten_thousand_random_damages_give_nothing_that_was_not_written() {
    let Sample { bytes, ends, stages } = written();
    let end = *ends.last().expect("batches");
    let known: BTreeSet<&String> = stages.iter().flatten().collect();
    let mut chance = fastrand::Rng::with_seed(20_261_130);
    for round in 0..10_000 {
        let mut damaged = bytes.clone();
        for _ in 0..chance.usize(1..4) {
            let at = chance.usize(0..end + 512);
            match chance.u8(0..6) {
                0 => damaged[at] ^= chance.u8(1..),
                1 => damaged[at..at + chance.usize(1..2_000)]
                    .fill(chance.choice([0, 0xff, 0x5a]).expect("one")),
                2 => {
                    let (from, len) = (chance.usize(0..end), chance.usize(1..2_000));
                    damaged.copy_within(from..from + len, at);
                }
                3 => drop(damaged.splice(at..at, vec![0; chance.usize(1..64)])),
                4 => drop(damaged.drain(at..at + chance.usize(1..64))),
                _ => damaged.truncate(at.max(1)),
            }
            damaged.resize(damaged.len().max(end + 4_096), 0);
        }
        let (seen, is_aside) = open(&damaged);
        assert!(seen.iter().all(|record| known.contains(record)), "round {round}: {seen:?}");
        assert!(is_aside && seen.is_empty() || stages.contains(&seen), "round {round}: {is_aside} {seen:?}");
    }
}

#[test]
fn a_byte_that_changes_while_the_inbox_is_open_is_never_taken_for_what_was_written() {
    let disk = Disk::new(0);
    let mut keeper = keeper(&disk);
    keeper.write(&[arrival(1, message(Some("a"), "on"), Intent::Wait)]).expect("written");
    keeper.write(&[arrival(2, message(Some("b"), "on"), Intent::Wait)]).expect("written");
    disk.spoil_byte(place(HEADER) + 40);
    let show = |id: &str| [Op::Query { ticket: 0, query: Query::Show(Selector(id.into())) }];
    let failure = keeper.write(&show("a")).expect_err("another byte");
    assert!(matches!(failure, Trouble::Corrupt(_)), "{failure:?}");
    // It is read anew, found to be damaged, and set aside.
    let (answers, counts) = keeper.write(&show("a")).expect("a new file");
    assert!(format!("{answers:?}").contains("no record of"), "{answers:?}");
    assert_eq!((counts.records, disk.moved_aside()), (0, 1));
}

#[test]
fn what_a_message_carries_is_never_taken_for_later_batches() {
    let disk = Disk::new(0);
    let mut keeper = keeper(&disk);
    // Bytes that look like heads of frames of other batches, each so long that it would cost time to check it.
    let heads: Vec<u8> =
        (0..3_000u32).flat_map(|at| [12_000, 3, at, at].map(u32::to_le_bytes).concat()).collect();
    let mut hostile = message(Some("hostile"), "");
    hostile.body = heads.into();
    keeper.write(&[arrival(1, message(Some("a"), "on"), Intent::Wait)]).expect("written");
    let before = records(&mut keeper);
    let begin = disk.journal().iter().rposition(|byte| *byte != 0).expect("something");
    keeper.write(&[arrival(2, hostile, Intent::Wait)]).expect("written");
    let mut torn = disk.journal();
    torn[begin + 40..begin + 60].fill(0);
    assert_eq!(open(&torn), (before, false));
}
