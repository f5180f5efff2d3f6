//! Damaged files: whatever is in them, the inbox goes on, and no file is deleted.

use std::os::unix::fs::{FileExt as _, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use proptest::prelude::*;

use super::super::keeper::InboxKeeper;
use super::super::trouble::Trouble;
use super::disk::Disk;
use super::*;

/// An inbox with some of everything, closed properly.
static WHOLE: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let (_directory, settings) = settings();
    let mut keeper = keeper(&settings);
    for batch in 0..6 {
        let arrivals = (0..8).map(|at| {
            let id = format!("m-{batch}-{at}");
            let body = "x".repeat(700 * at);
            let intent = match at % 3 {
                0 => Intent::Wait,
                1 => Intent::Start(Start { at: SystemTime::now(), retry_on_crash: false }),
                _ => Intent::End {
                    outcome: Box::new(outcome(OutcomeKind::Failed)),
                    report: Some(Bytes::from_static(b"report")),
                },
            };
            arrival(at as u64, message(Some(&id), &body), intent)
        });
        let origin = Op::Origin(format!("hub-{}/d", batch / 2).into());
        keeper.write(&arrivals.chain([origin]).collect::<Vec<_>>()).expect("a file in order");
    }
    drop(keeper);
    std::fs::read(&settings.path).expect("the file")
});

fn keeper(settings: &InboxSettings) -> InboxKeeper<InboxPath> {
    InboxKeeper::new(InboxPath::new(settings.path.clone(), true), settings.clone(), SystemTime::now)
}

/// Makes the path a place where an inbox has been.
fn mark(settings: &InboxSettings) {
    std::fs::write(settings.path.with_extension("journal.lock"), "").expect("a lock");
    std::fs::set_permissions(settings.path.with_extension("journal.lock"), PermissionsExt::from_mode(0o600))
        .expect("a mode");
}

fn one() -> [Op; 1] {
    [arrival(1, message(Some("new"), "on"), Intent::Wait)]
}

/// Files other than the inbox and its lock.
fn aside(path: &Path) -> Vec<PathBuf> {
    let directory = std::fs::read_dir(path.parent().expect("a directory")).expect("readable");
    let mut paths: Vec<_> = directory.map(|entry| entry.expect("an entry").path()).collect();
    paths.retain(|own| own != path && !own.to_string_lossy().ends_with(".lock"));
    paths.sort();
    paths
}

#[derive(Debug, Clone)]
enum Damage {
    Cut(usize),
    Flip(Vec<(usize, u8)>),
    Fill { at: usize, len: usize, with: u8 },
}

impl Damage {
    fn apply(&self, content: &mut Vec<u8>) {
        let length = content.len();
        match self {
            // The file never becomes empty, because an empty file counts as missing.
            Self::Cut(at) => content.truncate(1 + at % (length - 1)),
            Self::Flip(flips) => flips.iter().for_each(|(at, bits)| content[at % length] ^= bits),
            Self::Fill { at, len, with } => {
                let at = at % length;
                content[at..(at + len).min(length)].fill(*with);
            }
        }
    }
}

fn damage() -> impl Strategy<Value = Damage> {
    // Most faults are at the beginning of the file, which matters most.
    let place = || prop_oneof![0usize..8_192, any::<usize>()];
    prop_oneof![
        1 => place().prop_map(Damage::Cut),
        3 => prop::collection::vec((place(), 1u8..), 1..9).prop_map(Damage::Flip),
        1 => (place(), 1usize..8_192, prop::sample::select(vec![0u8, 0xff, 0x5a]))
            .prop_map(|(at, len, with)| Damage::Fill { at, len, with }),
    ]
}

/// Checks that the inbox writes, or says that a newer version wrote the file. A file that was moved aside must still
/// exist.
fn goes_on(keeper: &mut InboxKeeper<InboxPath>, settings: &InboxSettings) -> Result<(), TestCaseError> {
    let mut last = None;
    for _ in 0..4 {
        match keeper.opened().and_then(|_| keeper.write(&one())) {
            Ok((answers, counts)) => {
                let new = matches!(answers[..], [Written::Accepted { verdict: Verdict::New(_), .. }]);
                prop_assert!(new, "{answers:?}");
                let aside = aside(&settings.path);
                // If the file was not moved aside, only the last batch may be lost.
                prop_assert!(!aside.is_empty() || counts.records >= 41, "{counts:?}");
                for path in aside {
                    prop_assert!(path.to_string_lossy().contains(".corrupt-2"), "{path:?}");
                }
                return Ok(());
            }
            Err(Trouble::Newer(_)) => return Ok(()),
            Err(failure) => last = Some(failure),
        }
    }
    prop_assert!(false, "{last:?}");
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn a_damaged_file_never_stops_the_inbox(damage in damage()) {
        let (_directory, settings) = settings();
        let mut content = WHOLE.clone();
        damage.apply(&mut content);
        std::fs::write(&settings.path, &content).expect("a file");
        mark(&settings);
        goes_on(&mut keeper(&settings), &settings)?;
    }

    #[test]
    fn a_file_that_is_damaged_while_it_is_open_never_stops_the_inbox(damage in damage()) {
        let (_directory, settings) = settings();
        std::fs::write(&settings.path, WHOLE.as_slice()).expect("a file");
        let mut keeper = keeper(&settings);
        keeper.open().expect("a file in order");
        let mut content = std::fs::read(&settings.path).expect("the file");
        damage.apply(&mut content);
        let file = std::fs::OpenOptions::new().write(true).open(&settings.path).expect("the file");
        file.set_len(content.len() as u64).expect("cut");
        file.write_all_at(&content, 0).expect("written");
        goes_on(&mut keeper, &settings)?;
    }
}

#[test]
fn a_damaged_file_is_moved_aside_and_never_over_another() {
    let (_directory, settings) = settings();
    let clock: fn() -> SystemTime = || SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_467_600);
    mark(&settings);
    for text in ["not a journal", "nor is this"] {
        std::fs::write(&settings.path, text).expect("a file");
        let mut keeper =
            InboxKeeper::new(InboxPath::new(settings.path.clone(), true), settings.clone(), clock);
        keeper.write(&one()).expect("a new file");
    }
    let names: Vec<_> = aside(&settings.path)
        .iter()
        .map(|path| {
            let name = path.file_name().expect("a name").to_string_lossy().into_owned();
            (name, std::fs::read_to_string(path).expect("the damaged file"))
        })
        .collect();
    assert_eq!(
        names,
        [
            ("inbox.journal.corrupt-20261123T210000Z".to_owned(), "not a journal".to_owned()),
            ("inbox.journal.corrupt-20261123T210000Z-2".to_owned(), "nor is this".to_owned()),
        ]
    );
}

#[test]
fn numbers_go_on_after_a_file_was_replaced_while_it_was_in_use() {
    let disk = Disk::new(1);
    let mut keeper = InboxKeeper::new(disk.clone(), InboxSettings::at("inbox.journal"), SystemTime::now);
    let (answers, _) = keeper.write(&one()).expect("a file");
    let [Written::Accepted { verdict: Verdict::New(first), .. }] = answers[..] else { panic!("{answers:?}") };
    disk.spoil();
    disk.fail_after(0, 1);
    // The agent still knows the lost record, so its operation is answered.
    let outcome = Box::new(outcome(OutcomeKind::Succeeded));
    let end = Op::End { number: first, outcome, abandoned: false, report: None };
    let batch = [end, arrival(2, message(Some("other"), "on"), Intent::Wait)];
    let written = (0..4).find_map(|_| keeper.write(&batch).ok());
    let (answers, counts) = written.expect("a new file in the end");
    let [Written::Ended(ended), Written::Accepted { verdict: Verdict::New(second), .. }] = answers[..] else {
        panic!("{answers:?}")
    };
    assert_eq!(ended, first);
    assert!(second > first, "{second:?}");
    assert_eq!(counts.records, 1);
    assert_eq!(disk.moved_aside(), 1);
}

#[test]
fn a_file_of_a_newer_version_is_left_alone() {
    let (_directory, settings) = settings();
    keeper(&settings).write(&one()).expect("a file");
    let mut content = std::fs::read(&settings.path).expect("the file");
    content[16] += 1;
    let sum = crc32c::crc32c(&content[..28]);
    content[28..32].copy_from_slice(&sum.to_le_bytes());
    std::fs::write(&settings.path, &content).expect("written");
    let failure = keeper(&settings).write(&one()).expect_err("newer");
    let sentence = failure.sentence(Path::new("inbox.journal"));
    assert!(sentence.contains("newer version") && sentence.contains("install that version"), "{sentence}");
    assert_eq!(aside(&settings.path), Vec::<PathBuf>::new());
}
