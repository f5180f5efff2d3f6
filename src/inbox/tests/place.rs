//! The file and its surroundings: permissions, its holder, what the command line is told.

use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use super::super::file::name_it;
use super::super::holder::Holder;
use super::super::keeper::InboxKeeper;
use super::super::trouble::Trouble;
use super::*;

fn keeper(settings: &InboxSettings) -> InboxKeeper<InboxPath> {
    InboxKeeper::new(InboxPath::new(settings.path.clone(), true), settings.clone(), SystemTime::now)
}

fn dead(id: &str) -> Op {
    let outcome = Box::new(outcome(OutcomeKind::Failed));
    arrival(1, message(Some(id), "on"), Intent::End { outcome, report: None })
}

#[test]
fn the_file_and_its_directory_are_for_their_owner_only() {
    let (directory, mut settings) = settings();
    settings.path = directory.path().join("new/inbox.journal");
    keeper(&settings).open().expect("created");
    let mode = |path: &Path| path.metadata().expect("it exists").permissions().mode() & 0o777;
    assert_eq!(mode(&settings.path), 0o600);
    assert_eq!(mode(&directory.path().join("new")), 0o700);
    let files = std::fs::read_dir(directory.path().join("new")).expect("readable").count();
    assert_eq!(files, 2, "the file and its lock; the name under which it was begun is gone");
}

#[test]
fn a_directory_further_up_is_not_made() {
    let (directory, mut settings) = settings();
    settings.path = directory.path().join("a/b/inbox.journal");
    let failure = keeper(&settings).open().expect_err("two directories are missing");
    let sentence = failure.sentence(&settings.path);
    assert!(
        sentence.contains("a/b/inbox.journal") && sentence.contains("create the directory"),
        "{sentence}"
    );
}

#[test]
fn what_is_no_file_is_named() {
    let (directory, mut settings) = settings();
    settings.path = directory.path().to_path_buf();
    let sentence = keeper(&settings).open().expect_err("a directory").sentence(&settings.path);
    assert!(sentence.contains("is a directory and not a file"), "{sentence}");

    // The link stays, because its disk may be mounted later.
    settings.path = directory.path().join("link.journal");
    let target = directory.path().join("card.journal");
    std::os::unix::fs::symlink(&target, &settings.path).expect("a link");
    let sentence = keeper(&settings).open().expect_err("no target").sentence(&settings.path);
    assert!(sentence.contains("is a broken link and not a file"), "{sentence}");
    std::fs::write(&target, "").expect("written");
    keeper(&settings).open().expect("an empty file is a new inbox");
    assert!(settings.path.is_symlink());
}

#[test]
fn a_dead_letter_that_expired_after_it_was_received_is_not_run_again_and_stays() {
    let (_directory, settings) = settings();
    let now = SystemTime::now();
    let hours = |count: u64| Duration::from_secs(count * 3600);
    let expiry = crate::message::format_time(now + hours(1));
    // The second message came when the clock was two hours ahead.
    for (id, received) in [("a", now), ("b", now + hours(2))] {
        let mut good_for_an_hour = message(Some(id), "on");
        good_for_an_hour.system.set(crate::message::EXPIRY, &expiry);
        let failed = Intent::End { outcome: Box::new(outcome(OutcomeKind::Failed)), report: None };
        let Op::Accept(arrival) = arrival(1, good_for_an_hour, failed) else { panic!("not an arrival") };
        let op = Op::Accept(Box::new(Arrival { received, ..*arrival }));
        keeper(&settings).write(&[op]).expect("a dead letter");
    }
    let mut file = InboxFile::open(&settings).expect("no agent runs");
    let mut retry =
        |id: &str| file.query(Query::Retry(Selector(id.into())), now + hours(3)).expect("an answer");
    let Reply::Refused(sentence) = retry("a") else { panic!("not refused") };
    assert!(sentence.contains(&format!("message \"a\" (#1) expired at {expiry}")), "{sentence}");
    assert!(matches!(retry("b"), Reply::Retried(_)));
    assert_eq!(file.counts().dead, 1, "the first stays");
}

#[test]
fn a_file_that_others_can_write_is_not_read() {
    let (_directory, settings) = settings();
    keeper(&settings).open().expect("created");
    for mode in [0o660, 0o602] {
        std::fs::set_permissions(&settings.path, std::fs::Permissions::from_mode(mode)).expect("changed");
        let sentence = keeper(&settings).open().expect_err("not ours alone").sentence(&settings.path);
        let path = settings.path.display();
        let expected = format!(
            "the inbox {path} is writable by users other than its owner, so it is not read: run chmod go-w \
             {path}"
        );
        assert_eq!(sentence, expected);
    }
}

#[test]
fn another_file_is_refused_and_left_alone_unless_an_inbox_has_been_there() {
    let (_directory, settings) = settings();
    for content in [b"SQLite format 3\0".as_slice(), b"notes", b"c2d?", b"\0\0\0x"] {
        std::fs::write(&settings.path, content).expect("written");
        let sentence = keeper(&settings).open().expect_err("no inbox").sentence(&settings.path);
        assert!(
            sentence.contains("is not an inbox of c2d-agent") && sentence.contains("[inbox] path"),
            "{sentence}"
        );
        assert_eq!(std::fs::read(&settings.path).expect("still there"), content);
        let files =
            std::fs::read_dir(settings.path.parent().expect("a directory")).expect("readable").count();
        assert_eq!(files, 1, "not even a lock is beside it");
    }
    // What a power cut leaves still counts as an inbox.
    for content in [b"".as_slice(), &[0; 5000], b"c2d-", b"c2d-agent inbox\n and then nonsense"] {
        std::fs::write(&settings.path, content).expect("written");
        keeper(&settings).open().expect("a new one");
        std::fs::remove_file(settings.path.with_extension("journal.lock")).expect("a lock");
    }
    keeper(&settings).open().expect("a file in order");
    std::fs::write(&settings.path, "scrambled").expect("written");
    keeper(&settings).open().expect("a new one");
}

#[test]
fn a_link_to_a_damaged_inbox_is_moved_aside_and_the_next_one_stands_where_it_was() {
    let (directory, mut settings) = settings();
    let target = directory.path().join("card.journal");
    settings.path = directory.path().join("link.journal");
    settings.max_size = 1 << 20;
    std::os::unix::fs::symlink(&target, &settings.path).expect("a link");
    std::fs::write(&target, "").expect("written");
    keeper(&settings).open().expect("an empty file is a new inbox");
    std::fs::write(&target, "damaged").expect("written");
    let mut agent = keeper(&settings);
    agent.write(&[dead("a")]).expect("a new inbox");
    // So much is dead that it is compacted.
    for _ in 0..300 {
        agent.write(&[Op::PinsOn([("x".repeat(500), SystemTime::now())].into())]).expect("written");
        agent.compact().expect("compacted");
    }
    // The lock is beside the inbox that there is now.
    assert!(matches!(keeper(&settings).open(), Err(Trouble::InUse(_))));
    drop(agent);
    assert_eq!(std::fs::read_to_string(&target).expect("there"), "damaged", "it is never deleted");
    let opened = keeper(&settings).opened().expect("the new inbox");
    assert_eq!(opened.counts.dead, 1);
}

#[test]
fn an_inbox_of_an_earlier_version_is_left_alone_whether_or_not_its_lock_is_there() {
    let (_directory, settings) = settings();
    let content = b"redb\x1a\x0a\xa9\x0d\x0a and what a database of 1.5 MB has".repeat(100);
    std::fs::write(&settings.path, &content).expect("written");
    for lock in [false, true] {
        if lock {
            std::fs::write(settings.path.with_extension("journal.lock"), "").expect("written");
        }
        let sentence = keeper(&settings).open().expect_err("another format").sentence(&settings.path);
        assert!(
            sentence.contains("is an inbox of an earlier version") && sentence.contains("move this one away"),
            "{sentence}"
        );
        assert_eq!(std::fs::read(&settings.path).expect("still there"), content);
    }
}

#[test]
fn a_journal_of_an_earlier_format_is_left_alone() {
    let (_directory, settings) = settings();
    keeper(&settings).open().expect("a new one");
    let mut content = std::fs::read(&settings.path).expect("there");
    content[16..20].copy_from_slice(&3_u32.to_le_bytes());
    let sum = crc32c::crc32c(&content[..28]);
    content[28..32].copy_from_slice(&sum.to_le_bytes());
    std::fs::write(&settings.path, &content).expect("written");
    let sentence = keeper(&settings).open().expect_err("another format").sentence(&settings.path);
    assert!(sentence.contains("is an inbox of an earlier version"), "{sentence}");
    assert_eq!(std::fs::read(&settings.path).expect("still there"), content);
}

#[test]
fn links_and_names_that_others_have_prepared_are_never_followed() {
    let (directory, mut settings) = settings();
    let victim = directory.path().join("victim");
    std::fs::write(&victim, "precious").expect("written");
    for name in ["inbox.journal.new", "inbox.journal.lock"] {
        std::os::unix::fs::symlink(&victim, directory.path().join(name)).expect("a link");
    }
    let sentence = keeper(&settings).open().expect_err("a link").sentence(&settings.path);
    assert!(sentence.contains("inbox.journal.lock is a link, so it is not used: remove it"), "{sentence}");
    std::fs::remove_file(directory.path().join("inbox.journal.lock")).expect("removed");
    keeper(&settings).open().expect("created");
    assert_eq!(std::fs::metadata(&settings.path).expect("made").permissions().mode() & 0o777, 0o600);
    assert!(!directory.path().join("inbox.journal.new").is_symlink());
    assert_eq!(std::fs::read_to_string(&victim).expect("untouched"), "precious");
    if !rustix::process::geteuid().is_root() {
        return; // Only root can give links away.
    }
    std::fs::write(&victim, "").expect("written");
    settings.path = directory.path().join("theirs.journal");
    std::os::unix::fs::symlink(&victim, &settings.path).expect("a link");
    std::os::unix::fs::lchown(&settings.path, Some(65534), None).expect("given away");
    let sentence = keeper(&settings).open().expect_err("another's link").sentence(&settings.path);
    let link = format!("the link {} belongs to user 65534", settings.path.display());
    assert!(sentence.contains(&link), "{sentence}");
    assert_eq!(std::fs::read_to_string(&victim).expect("untouched"), "");
}

#[test]
fn every_trouble_is_one_sentence_with_the_file_and_a_remedy() {
    let os = |number| Trouble::Io("write", io::Error::from_raw_os_error(number));
    for (failure, remedy) in [
        (os(28), "free some space"),
        (os(30), "mount the file system for writing"),
        (os(13), "to the user of the agent"),
        (os(27), "raise the file size limit"),
        (os(2), "create the directory"),
        (os(5), "errors of the disk"),
        (Trouble::InUse(Holder::default()), "let only one agent"),
        (Trouble::Newer("format 2".into()), "install that version"),
    ] {
        let sentence = failure.sentence(Path::new("/x/inbox.journal"));
        assert!(sentence.contains("/x/inbox.journal") && sentence.contains(remedy), "{sentence}");
        assert!(!sentence.contains('\n') && !sentence.ends_with('.'), "{sentence}");
    }
}

#[test]
fn a_file_that_may_not_be_opened_is_denied() {
    let (_directory, settings) = settings();
    keeper(&settings).open().expect("created");
    std::fs::set_permissions(&settings.path, std::fs::Permissions::from_mode(0o000)).expect("changed");
    match InboxFile::open(&settings) {
        Err(InboxError::Denied(sentence)) => assert!(sentence.contains("inbox.journal"), "{sentence}"),
        // Root may open everything.
        Ok(_) => assert!(rustix::process::geteuid().is_root()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_command_line_is_told_why_it_cannot_have_the_file() {
    let (_directory, settings) = settings();
    let missing = InboxFile::open(&settings).expect_err("missing");
    assert!(matches!(missing, InboxError::Missing(_)), "{missing}");
    let mut agent = keeper(&settings);
    agent.open().expect("created");
    let used = InboxFile::open(&settings).expect_err("in use");
    assert!(matches!(used, InboxError::InUse { .. }), "{used}");
    drop(agent);
    std::fs::write(&settings.path, "damaged").expect("written");
    let corrupt = InboxFile::open(&settings).expect_err("damaged");
    assert!(matches!(corrupt, InboxError::Corrupt(_)), "{corrupt}");
    assert_eq!(std::fs::read_to_string(&settings.path).expect("still there"), "damaged");
}

#[test]
fn a_new_file_does_not_take_the_place_of_another_agents() {
    let directory = tempfile::tempdir().expect("a directory");
    let (begun, path) = (directory.path().join("new"), directory.path().join("inbox.journal"));
    std::fs::write(&begun, "second").expect("written");
    std::fs::write(&path, "first").expect("written");
    let error = name_it(&begun, &path).expect_err("refused");
    assert_eq!(error.kind(), std::io::ErrorKind::AlreadyExists);
    assert_eq!(std::fs::read_to_string(&path).expect("read"), "first");
}

#[test]
fn two_agents_do_not_share_a_file() {
    let (_directory, settings) = settings();
    let mut first = keeper(&settings);
    first.open().expect("created");
    let mut second = keeper(&settings);
    assert!(matches!(second.open(), Err(Trouble::InUse(_))));
    first.write(&[dead("a")]).expect("the first goes on");
    drop(first);
    second.open().expect("free now");
}

#[test]
fn people_retry_and_drop_on_the_file_and_the_agent_finds_it_so() {
    let (_directory, settings) = settings();
    let now = SystemTime::now();
    keeper(&settings).write(&[dead("a"), dead("b")]).expect("two dead letters");

    let mut file = InboxFile::open(&settings).expect("no agent runs");
    assert_eq!((file.counts().records, file.counts().dead), (2, 2));
    let mut ask = |query| file.query(query, now).expect("a disk in order");
    let Reply::Records(records) = ask(Query::List { state: Some(State::Dead), after: 1, limit: 9 }) else {
        panic!("no list")
    };
    assert_eq!(records.iter().map(|record| record.message_id.as_deref()).collect::<Vec<_>>(), [Some("b")]);
    let Reply::Retried(retried) = ask(Query::Retry(Selector("a".into()))) else { panic!("not retried") };
    assert_eq!(retried.message, message(Some("a"), "on"));
    let Reply::Dropped(dropped) = ask(Query::Drop(Selector("#2".into()))) else { panic!("not dropped") };
    let outcome = dropped.outcome.expect("an outcome");
    assert_eq!(outcome.text, "dropped from the inbox; before that failed");
    for (query, part) in [
        (Query::Show(Selector("c".into())), "no record of \"c\""),
        (Query::Retry(Selector("b".into())), "message \"b\" (#2) is finished: only a dead letter"),
        (Query::Drop(Selector("#7".into())), "no record of \"#7\""),
    ] {
        let Reply::Refused(sentence) = ask(query) else { panic!("not refused") };
        assert!(sentence.contains(part), "{sentence}");
    }
    drop(file);

    let opened = keeper(&settings).opened().expect("the agent's file");
    let [waiting] = &opened.unfinished[..] else { panic!("{:?}", opened.unfinished) };
    assert_eq!((waiting.record.settled, waiting.record.attempts), (Settled::OnAccept, 0));
    assert_eq!(opened.counts.totals[&OutcomeKind::Dropped], 1);
}
