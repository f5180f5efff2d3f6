//! What `c2d-send` and `c2d-feedback` say and do when a hub refuses or ends a link, for each condition.
//!
//! Must not know: how links work.
//! Source: wire reference 2.8, 4.3 and 4.4; AMQP 1.0, 2.8.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::harness::{binary, run};
use crate::service_peer::{Level, ServicePeer, WORDS};

/// Each condition; a part of the sentence for a sender; a part of the sentence for a reader of feedback; whether a
/// reader that has already read tries again.
const CONDITIONS: &[(&str, &str, &str, bool)] = &[
    ("amqp:unauthorized-access", KEY, KEY, true),
    ("amqp:not-found", "no such address", "no such address", false),
    (
        "amqp:not-allowed",
        "does not support this: check that the policy has",
        "does not support this: check",
        false,
    ),
    ("amqp:resource-limit-exceeded", "no more links or connections", "no more links or connections", true),
    ("amqp:link:message-size-exceeded", "at most 64 KiB", "ended the link", true),
    ("amqp:link:stolen", "end the other program that uses it", "end the other program that uses it", true),
    ("amqp:link:detach-forced", "busy or being moved: try again", "busy or being moved: try again", true),
    ("amqp:internal-error", "failed to do it: try again later", "failed to do it: try again later", true),
    ("com.microsoft:timeout", "failed to do it: try again later", "failed to do it: try again later", true),
    ("com.microsoft:argument-error", "refused an argument", "refused an argument", false),
    ("com.microsoft:argument-out-of-range", "refused an argument", "refused an argument", false),
    ("com.microsoft:message-lock-lost", "the lock", "has expired: the hub sends it again", true),
    ("com.microsoft:device-container-throttled", "about 100 C2D messages a minute", "ask less often", true),
    ("com.microsoft:quota-exceeded", "its message quota of the day", "its message quota of the day", true),
    ("com.microsoft:iot-hub-suspended", "check the Azure subscription", "check the Azure subscription", true),
    ("com.microsoft:iot-hub-not-found-error", "there is no such hub", "there is no such hub", false),
    ("com.microsoft:precondition-failed", "ended the link", "ended the link", true),
    ("com.example:odd", "ended the link", "ended the link", true),
];

const KEY: &str = "check that the policy has ServiceConnect, its key, and this machine's clock";

/// How many programs run at the same time.
const AT_ONCE: usize = 4;

const AGAIN: &str = "it is not known whether the message is queued: send it again with the same \
                     --message-id; a device runs it only once if that id has a UUID in it";

fn command(peer: &ServicePeer, arguments: &[&str]) -> Command {
    let mut command = binary();
    command.args(arguments).arg("--ca-file").arg(&peer.ca_file);
    command.env("C2D_SERVICE_CONNECTION_STRING", peer.service_string());
    command
}

const SEND: [&str; 5] = ["c2d-send", "--device=dev1", "--message-id=m-1", "--data", "x"];

/// Runs a command to its end. Returns the exit code and the last line of its log.
fn ended(command: &mut Command) -> (Option<i32>, String) {
    let output = run(command);
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code(), stderr.lines().last().unwrap_or_default().to_owned())
}

/// Calls `act` for each condition, [`AT_ONCE`] at the same time.
fn for_each_condition(act: impl Fn(&'static str, &'static str, &'static str, bool) + Sync) {
    for some in CONDITIONS.chunks(AT_ONCE) {
        std::thread::scope(|scope| {
            for (condition, sender, reader, passes) in some {
                let act = &act;
                scope.spawn(move || act(condition, sender, reader, *passes));
            }
        });
    }
}

/// A feedback batch with one record.
fn batch(id: &str) -> String {
    serde_json::json!([{
        "originalMessageId": id, "description": "Success", "deviceGenerationId": "1", "deviceId": "dev1",
        "enqueuedTimeUtc": "2026-01-01T00:00:00.0000000Z", "statusCode": "Success",
    }])
    .to_string()
}

/// The message ids in a spool, in order.
fn kept(spool: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(spool).expect("a spool");
    let line = |line: &str| serde_json::from_str::<Value>(line).expect("JSON");
    text.lines().map(|text| line(text)["messageId"].as_str().expect("an id").to_owned()).collect()
}

#[test]
fn a_sender_whose_link_is_taken_away_says_why_and_that_sending_again_is_safe() {
    for_each_condition(|condition, part, _, _| {
        let dir = tempfile::tempdir().expect("a directory");
        let peer = ServicePeer::playing(dir.path(), move |_, session| {
            let link = session.asked_for_link();
            session.attach(&link);
            session.message();
            session.take(&link, Level::Link, Some(condition));
        });
        let (code, line) = ended(&mut command(&peer, &SEND));
        assert_eq!(code, Some(1), "{condition}: {line}");
        assert!(line.starts_with("c2d-agent: ") && line.contains(part), "{condition}: {line}");
        assert!(line.ends_with(&format!("{AGAIN} ({condition}: {WORDS})")), "{condition}: {line}");
    });
}

#[test]
fn a_sender_whose_link_is_refused_says_why_and_promises_nothing() {
    for_each_condition(|condition, _, _, _| {
        let dir = tempfile::tempdir().expect("a directory");
        let peer = ServicePeer::playing(dir.path(), move |_, session| {
            let link = session.asked_for_link();
            session.refuse(&link, condition);
        });
        let (code, line) = ended(&mut command(&peer, &SEND));
        assert_eq!(code, Some(1), "{condition}: {line}");
        assert!(line.ends_with(&format!("({condition}: {WORDS})")), "{condition}: {line}");
        assert!(!line.contains("it is not known whether the message is queued"), "nothing was sent: {line}");
    });
}

#[test]
fn whatever_else_is_taken_from_a_sender_is_told_also_without_a_word_of_the_hub() {
    let condition = Some("amqp:internal-error");
    let said = format!("(amqp:internal-error: {WORDS})");
    for (level, condition, part) in [
        (Level::Suspended, condition, said.as_str()),
        (Level::Session, condition, said.as_str()),
        (Level::Connection, condition, said.as_str()),
        (Level::Link, None, "the hub has closed the link and gave no reason"),
        (Level::Suspended, None, "the hub has closed the link and gave no reason"),
        (Level::Session, None, "the connection to the hub was lost: the session has ended"),
        (Level::Connection, None, "the connection to the hub was lost: the hub has closed it"),
    ] {
        let dir = tempfile::tempdir().expect("a directory");
        let peer = ServicePeer::playing(dir.path(), move |_, session| {
            let link = session.asked_for_link();
            session.attach(&link);
            session.message();
            session.take(&link, level, condition);
        });
        let (code, line) = ended(&mut command(&peer, &SEND));
        assert_eq!(code, Some(1), "{level:?}: {line}");
        assert!(line.contains(part) && line.contains(AGAIN), "{level:?} {condition:?}: {line}");
    }
}

#[test]
fn a_sender_that_waits_tells_that_the_feedback_link_was_taken_away_after_the_message_was_accepted() {
    let dir = tempfile::tempdir().expect("a directory");
    let peer = ServicePeer::playing(dir.path(), |_, session| {
        let feedback = session.asked_for_link();
        session.attach(&feedback);
        let sender = session.asked_for_link();
        session.attach(&sender);
        let message = session.message();
        session.accept(&message);
        session.let_go();
        session.wait_for_credit();
        session.take(&feedback, Level::Link, Some("amqp:link:detach-forced"));
    });
    let output = run(command(&peer, &SEND).arg("--wait"));
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.code() == Some(1) && stdout.contains("accepted by the hub"), "{stdout}{stderr}");
    let line = stderr.lines().last().expect("a sentence");
    assert!(line.contains("the hub ended the link, for example because it is busy or being moved"), "{line}");
    assert!(!line.contains("it is not known whether the message is queued"), "it is: {line}");
}

#[test]
fn a_reader_whose_link_is_taken_away_says_why_and_reads_on_or_ends_and_loses_nothing() {
    for_each_condition(|condition, _, part, passes| {
        let dir = tempfile::tempdir().expect("a directory");
        let peer = ServicePeer::playing(dir.path(), move |number, session| {
            let link = session.asked_for_link();
            session.attach(&link);
            session.wait_for_credit();
            if number == 0 {
                session.deliver(&link, 0, &batch("m-1"));
                session.wait_for_completion();
                session.take(&link, Level::Link, Some(condition));
            } else {
                session.deliver(&link, 0, &batch("m-2"));
                session.wait_for_completion();
                session.wait_for_close();
            }
        });
        let spool = dir.path().join("spool");
        let arguments = ["c2d-feedback", "--count", "2", "--spool", spool.to_str().expect("UTF-8")];
        let output = run(&mut command(&peer, &arguments));
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        let said = format!("({condition}: {WORDS})");
        let line = stderr
            .lines()
            .find(|line| line.contains(&said))
            .unwrap_or_else(|| panic!("{condition}: {stderr}"));
        assert!(line.contains(part), "{condition}: {line}");
        assert_eq!(line.contains("; trying again in "), passes, "{line}");
        let (code, ids): (_, &[&str]) = if passes { (0, &["m-1", "m-2"]) } else { (1, &["m-1"]) };
        assert_eq!(output.status.code(), Some(code), "{condition}: {stderr}");
        assert_eq!(kept(&spool), ids, "{condition}");
        assert_eq!(stderr.contains("connected again"), passes, "{stderr}");
    });
}

#[test]
fn a_reader_whose_link_goes_before_a_batch_is_completed_prints_and_keeps_it_once() {
    for level in [Level::Link, Level::Suspended, Level::Session, Level::Connection] {
        for condition in [Some("amqp:internal-error"), None] {
            let dir = tempfile::tempdir().expect("a directory");
            let peer = ServicePeer::playing(dir.path(), move |number, session| {
                let link = session.asked_for_link();
                session.attach(&link);
                session.wait_for_credit();
                session.deliver(&link, 0, &batch("m-1"));
                if number == 0 {
                    // The hub ignores the completion, whether it comes or not.
                    return session.take(&link, level, condition);
                }
                session.wait_for_completion();
                session.wait_for_credit();
                session.deliver(&link, 1, &batch("m-2"));
                session.wait_for_completion();
                session.wait_for_close();
            });
            let spool = dir.path().join("spool");
            let arguments = ["c2d-feedback", "--count", "2", "--spool", spool.to_str().expect("UTF-8")];
            let output = run(&mut command(&peer, &arguments));
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
            assert_eq!(output.status.code(), Some(0), "{level:?} {condition:?}: {stderr}");
            assert_eq!(kept(&spool), ["m-1", "m-2"], "{level:?} {condition:?}: {stderr}");
            assert_eq!(stdout.matches("m-1").count(), 1, "{level:?} {condition:?}: {stdout}");
            let line = stderr.lines().find(|line| line.contains("; trying again in ")).expect("a sentence");
            assert!(!line.contains("Illegal") && !line.contains("Remote"), "the crate's words: {line}");
        }
    }
}

#[test]
fn a_reader_that_may_not_begin_ends_with_the_reason() {
    for_each_condition(|condition, _, _, _| {
        let dir = tempfile::tempdir().expect("a directory");
        let peer = ServicePeer::playing(dir.path(), move |_, session| {
            let link = session.asked_for_link();
            session.refuse(&link, condition);
        });
        let (code, line) = ended(&mut command(&peer, &["c2d-feedback"]));
        assert_eq!(code, Some(1), "{condition}: {line}");
        assert!(line.ends_with(&format!("({condition}: {WORDS})")), "{condition}: {line}");
    });
}
