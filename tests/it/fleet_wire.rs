//! A run of `c2d-send` against a hub that follows a script, frame by frame.
//!
//! Owns: nothing. Must not know: how a run is sent.

use std::process::Command;
use std::time::Instant;

use crate::fleet::{FAST, stderr, stdout};
use crate::frames::{ATTACH, DISPOSITION, ERROR, Frame, REJECTED, RELEASED, Value};
use crate::harness::{binary, run};
use crate::json_lines::json_lines;
use crate::service_peer::{Level, ServicePeer, Session};

const MODIFIED: u64 = 0x27;

fn to_three(peer: &ServicePeer, dir: &std::path::Path) -> Command {
    let list = dir.join("pumps.txt");
    std::fs::write(&list, "pump-1\npump-2\npump-3").expect("written");
    let mut command = binary();
    command.arg("c2d-send").arg("--ca-file").arg(&peer.ca_file).arg("--devices-from").arg(list).args(FAST);
    command.env("C2D_SERVICE_CONNECTION_STRING", peer.service_string());
    command
}

fn answer(session: &mut Session, message: &Frame, state: Value) {
    let fields = vec![Value::Bool(true), message.field(1).clone(), Value::Null, Value::Bool(true), state];
    session.0.send(0, DISPOSITION, fields, &[]);
}

/// A rejection with a condition, and with more about it.
fn rejected(condition: &str, info: Vec<(Value, Value)>) -> Value {
    let error =
        Value::composite(ERROR, vec![Value::symbol(condition), Value::text("words"), Value::Map(info)]);
    Value::composite(REJECTED, vec![error])
}

#[test]
fn a_message_that_the_hub_gives_back_is_sent_again_on_the_same_link() {
    for state in [
        Value::composite(RELEASED, Vec::new()),
        Value::composite(MODIFIED, Vec::new()),
        Value::composite(REJECTED, Vec::new()),
        rejected("amqp:internal-error", Vec::new()),
        // A hub that asks for no pause gets one.
        rejected(
            "com.microsoft:device-container-throttled",
            vec![(Value::symbol("Retry-After"), Value::Int(0))],
        ),
    ] {
        let dir = tempfile::tempdir().expect("a directory");
        let given_back = state.clone();
        let peer = ServicePeer::playing(dir.path(), move |number, session| {
            assert_eq!(number, 0, "one connection");
            let link = session.asked_for_link();
            session.attach(&link);
            let first = session.message();
            answer(session, &first, given_back.clone());
            for _ in 0..3 {
                let message = session.message();
                session.accept(&message);
            }
            session.wait_for_close();
        });
        let begun = Instant::now();
        let sent = run(&mut to_three(&peer, dir.path()));
        assert_eq!(sent.status.code(), Some(0), "{state:?}: {}", stderr(&sent));
        assert!(stdout(&sent).contains("        3  accepted"), "{state:?}: {}", stdout(&sent));
        assert!(stderr(&sent).contains(": waiting 1 s, then "), "{state:?}: {}", stderr(&sent));
        assert!(begun.elapsed().as_millis() >= 900, "{state:?}");
    }
}

#[test]
fn one_message_that_the_hub_gives_back_is_an_error_that_says_so() {
    for (state, words) in [
        (RELEASED, "c2d-agent: the hub returned the message without queueing it: send it again"),
        (REJECTED, "c2d-agent: the hub rejected the message and gave no reason"),
    ] {
        let dir = tempfile::tempdir().expect("a directory");
        let peer = ServicePeer::playing(dir.path(), move |_, session| {
            let link = session.asked_for_link();
            session.attach(&link);
            let message = session.message();
            answer(session, &message, Value::composite(state, Vec::new()));
            session.wait_for_close();
        });
        let mut command = binary();
        command.args(["c2d-send", "--device", "dev1", "--ca-file"]).arg(&peer.ca_file);
        let said = run(command.env("C2D_SERVICE_CONNECTION_STRING", peer.service_string()));
        assert_eq!((said.status.code(), stderr(&said).trim_end()), (Some(1), words));
    }
}

#[test]
fn a_message_that_the_link_does_not_take_is_refused_and_the_others_are_sent() {
    let dir = tempfile::tempdir().expect("a directory");
    let peer = ServicePeer::playing(dir.path(), |number, session| {
        assert_eq!(number, 0, "one connection");
        let link = session.asked_for_link();
        let head = vec![link.field(0).clone(), link.field(1).clone(), Value::Bool(true), Value::Ubyte(2)];
        let ends = vec![Value::Ubyte(0), link.field(5).clone(), link.field(6).clone()];
        let most = vec![Value::Null, Value::Null, Value::Null, Value::Ulong(1_000)];
        session.0.send(0, ATTACH, [head, ends, most].concat(), &[]);
        session.give_credit(&link);
        for _ in 0..2 {
            let message = session.message();
            session.accept(&message);
        }
        session.wait_for_close();
    });
    let mut command = to_three(&peer, dir.path());
    let large = format!("{{\"deviceId\":\"b\",\"body\":\"{}\"}}", "x".repeat(2_000));
    let list = format!("{{\"deviceId\":\"a\"}}\n{large}\n{{\"deviceId\":\"c\"}}");
    std::fs::write(dir.path().join("pumps.txt"), list).expect("written");
    let sent = run(command.arg("--json"));
    assert_eq!(sent.status.code(), Some(3), "{}", stderr(&sent));
    let lines = json_lines(&stdout(&sent));
    let refused: Vec<_> = lines.iter().filter(|line| line["event"] == "refused").collect();
    assert_eq!(refused.len(), 1, "{lines:?}");
    assert_eq!((&refused[0]["deviceId"], &refused[0]["number"]), (&"b".into(), &2.into()));
    assert_eq!(refused[0]["condition"], "amqp:link:message-size-exceeded");
    assert_eq!(lines.iter().filter(|line| line["event"] == "accepted").count(), 2, "{lines:?}");
}

#[test]
fn a_link_that_ends_takes_along_only_what_was_not_answered() {
    let dir = tempfile::tempdir().expect("a directory");
    let journal = dir.path().join("journal");
    let peer = ServicePeer::playing(dir.path(), |number, session| {
        let link = session.asked_for_link();
        session.attach(&link);
        match number {
            0 => {
                let messages = [session.message(), session.message(), session.message()];
                session.accept(&messages[1]);
                session.take(&link, Level::Link, Some("com.microsoft:quota-exceeded"));
            }
            _ => {
                for _ in 0..2 {
                    let message = session.message();
                    session.accept(&message);
                }
                session.wait_for_close();
            }
        }
    });
    let mut command = to_three(&peer, dir.path());
    let ended = run(command.arg("--journal").arg(&journal));
    let said = stderr(&ended);
    assert_eq!(ended.status.code(), Some(1), "{said}");
    // The reason first, then what to do, with the options that it needs.
    let last = said.lines().last().expect("a sentence");
    let (reason, remedy) = last.split_once("; to go on: ").expect("a remedy");
    assert!(reason.starts_with("c2d-agent: the hub has used up its message quota of the day"), "{last}");
    let command = format!(
        "c2d-agent c2d-send --resume {} --rate 6000000/min --ca-file {}",
        journal.display(),
        peer.ca_file.display()
    );
    assert_eq!(remedy, command);
    assert!(stdout(&ended).contains("        1  accepted"), "{}", stdout(&ended));
    let mut again = binary();
    again.env("C2D_SERVICE_CONNECTION_STRING", peer.service_string());
    let rest = run(again.args(command.split(' ').skip(1)));
    assert_eq!(rest.status.code(), Some(0), "{}", stderr(&rest));
    assert!(stdout(&rest).contains("        3  accepted"), "{}", stdout(&rest));
}
