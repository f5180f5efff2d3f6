//! Values that nest too deep, on the links of the back end: `c2d-send` and `c2d-feedback`.

use std::path::Path;
use std::process::Command;
use std::sync::mpsc::{SyncSender, sync_channel};

use super::{At, EVERYWHERE, MOST_TOLD, TOO_DEEP, deep_fields, first_link, play, sentence};
use crate::frames::{ACCEPTED, DATA, Frame, MESSAGE_ANNOTATIONS, REJECTED, Value, message};
use crate::harness::{DEADLINE, Process, binary, run};
use crate::service_peer::{ServicePeer, Session};

#[test]
fn a_performative_that_nests_too_deep_ends_a_senders_and_a_readers_connection_in_one_sentence() {
    for some in EVERYWHERE.chunks(4) {
        std::thread::scope(|scope| {
            for at in some {
                scope.spawn(move || sender_ended(*at));
                scope.spawn(move || reader_ended(*at));
            }
        });
    }
}

/// A hub that sends a deep value at this place.
fn peer(dir: &Path, at: At, until: fn(&mut Session)) -> ServicePeer {
    ServicePeer::before_sign_in(dir, move |_, session| {
        session.sasl();
        if let Some(link) = first_link(session, at) {
            until(session);
            play(session, at, &link);
        }
        while session.0.try_next().is_some() {}
    })
}

/// A program of the back end that gets the deep value.
fn back_end(peer: &ServicePeer, arguments: &[&str]) -> Command {
    let mut command = binary();
    command.args(arguments).arg("--ca-file").arg(&peer.ca_file);
    command.env("C2D_SERVICE_CONNECTION_STRING", peer.service_string());
    command
}

fn sender_ended(at: At) {
    let dir = tempfile::tempdir().expect("a directory");
    let peer = peer(dir.path(), at, |session| drop(session.message()));
    let arguments = ["c2d-send", "--device=dev1", "--message-id=m-1", "--data", "x"];
    let output = run(&mut back_end(&peer, &arguments));
    let line = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{at:?}: {line}");
    let said = format!("the connection to the hub was lost: {}", sentence(at));
    assert!(line.contains(&said), "{at:?}: {line}");
    let is_sent = !matches!(at, At::Open | At::Begin | At::Attach | At::Filter);
    assert_eq!(line.contains("it is not known whether the message is queued"), is_sent, "{at:?}: {line}");
}

fn reader_ended(at: At) {
    let dir = tempfile::tempdir().expect("a directory");
    let peer = peer(dir.path(), at, Session::wait_for_credit);
    // The reader tries again, or ends if another attempt is useless.
    let reader = Process::spawn(&mut back_end(&peer, &["c2d-feedback", "--count=1"]));
    reader.stderr.wait_for(sentence(at));
    reader.kill();
}

/// A feedback batch with one record.
fn batch(id: &str) -> String {
    serde_json::json!([{
        "originalMessageId": id, "description": "Success", "deviceGenerationId": "1", "deviceId": "dev1",
        "enqueuedTimeUtc": "2026-01-01T00:00:00.0000000Z", "statusCode": "Success",
    }])
    .to_string()
}

/// Sends feedback that nests, in one frame and in several frames, and then feedback on `m-1`.
fn deep_feedback(session: &mut Session, link: &Frame, told: &SyncSender<Value>) {
    let deep = message(&[(MESSAGE_ANNOTATIONS, deep_fields()), (DATA, Value::Binary(b"[]".to_vec()))]);
    for (delivery, parts) in [(0, vec![&deep[..]]), (1, deep.chunks(10_000).collect())] {
        session.deliver_parts(link, delivery, &parts);
        told.send(session.decision(delivery)).expect("the test waits");
    }
    session.deliver(link, 2, &batch("m-1"));
    told.send(session.decision(2)).expect("the test waits");
    session.wait_for_close();
}

#[test]
fn feedback_that_nests_too_deep_is_rejected_and_what_follows_is_read() {
    let dir = tempfile::tempdir().expect("a directory");
    let (told, decisions) = sync_channel(MOST_TOLD);
    let peer = ServicePeer::playing(dir.path(), move |_, session| {
        let link = session.asked_for_link();
        session.attach(&link);
        session.wait_for_credit();
        deep_feedback(session, &link, &told);
    });
    let mut command = binary();
    command.args(["c2d-feedback", "--count=1", "--ca-file"]).arg(&peer.ca_file);
    let output = run(command.env("C2D_SERVICE_CONNECTION_STRING", peer.service_string()));
    let [stdout, stderr] =
        [output.stdout, output.stderr].map(|out| String::from_utf8_lossy(&out).into_owned());
    assert!(output.status.success() && stdout.contains("m-1"), "{stdout}{stderr}");
    assert_eq!(
        stderr.matches(&format!("rejected a feedback batch that cannot be read: {TOO_DEEP}")).count(),
        2,
        "{stderr}"
    );
    for kind in [REJECTED, REJECTED, ACCEPTED] {
        let decision = decisions.recv_timeout(DEADLINE).expect("settled");
        assert!(matches!(&decision, Value::Described(own, _) if *own == kind), "{decision:?}");
    }
}

#[test]
fn a_sender_that_waits_rejects_it_too_and_hears_of_its_message() {
    let dir = tempfile::tempdir().expect("a directory");
    let (told, decisions) = sync_channel(MOST_TOLD);
    let peer = ServicePeer::playing(dir.path(), move |_, session| {
        let feedback = session.asked_for_link();
        session.attach(&feedback);
        let sender = session.asked_for_link();
        session.attach(&sender);
        let message = session.message();
        session.accept(&message);
        session.let_go();
        session.wait_for_credit();
        deep_feedback(session, &feedback, &told);
    });
    let mut command = binary();
    command.args(["c2d-send", "--device=dev1", "--message-id=m-1", "--data=x", "--wait=20s", "--ca-file"]);
    let output = run(command.arg(&peer.ca_file).env("C2D_SERVICE_CONNECTION_STRING", peer.service_string()));
    let [stdout, stderr] =
        [output.stdout, output.stderr].map(|out| String::from_utf8_lossy(&out).into_owned());
    assert!(output.status.success() && stdout.contains("Success"), "{stdout}{stderr}");
    assert_eq!(decisions.try_iter().count(), 3);
}
