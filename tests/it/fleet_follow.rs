//! A run of `c2d-send` that waits: for the feedback of its messages, and for the outcomes that the devices report.
//!
//! Owns: nothing. Must not know: how a run is sent.

use std::time::SystemTime;

use bytes::Bytes;
use c2d_agent::emulator::hub::Hub;
use c2d_agent::message::{C2dMessage, Properties};
use c2d_agent::outcome::{OutcomeKind, OutcomeReport, REPORT_PROPERTY, TwinReport};
use serde_json::Value;

use crate::c2d_send::Running;
use crate::fleet::{FAST, stderr, stdout, to_list, waiting, with_list};
use crate::harness::{Process, run};
use crate::json_lines::json_lines;

const THREE: &str = "pump-1\npump-2\npump-3\n";

fn report(message_id: &str, outcome: OutcomeKind) -> OutcomeReport {
    OutcomeReport {
        message_id: Some(message_id.to_owned()),
        rule: Some("pump".into()),
        outcome,
        text: "as it was".into(),
        exit_code: None,
        duration_ms: Some(1),
        attempt: 1,
        ended: "2026-01-01T00:00:00.0000000Z".into(),
        output: String::new(),
        output_end: String::new(),
        output_bytes: 0,
    }
}

/// The device reports the outcome of this message in its twin.
fn reports(running: &Running, device: &str, message_id: &str, outcome: OutcomeKind) {
    let mut twin = TwinReport::default();
    twin.record(&report(message_id, outcome));
    running.hub.with(|hub, now| hub.patch_reported(device, &twin.patch(), now)).expect("patched");
}

/// The device reports the outcome of this message by telemetry.
fn tells(hub: &mut Hub, device: &str, message_id: &str, outcome: OutcomeKind, now: SystemTime) {
    let mut properties = Properties::default();
    properties.set("$.cid", message_id);
    properties.set(REPORT_PROPERTY.0, REPORT_PROPERTY.1);
    let body = serde_json::to_vec(&report(message_id, outcome)).expect("JSON");
    hub.record_event(device, properties, Bytes::from(body), now);
}

fn summary(lines: &[Value]) -> &Value {
    lines.iter().find(|line| line["event"] == "summary").expect("a summary")
}

/// What the summary counts.
fn counts(lines: &[Value]) -> String {
    let counts = summary(lines)["counts"].as_array().expect("a list").iter();
    let counts = counts.map(|of| format!("{} {}", of["status"].as_str().expect("a word"), of["messages"]));
    counts.collect::<Vec<_>>().join(", ")
}

#[test]
fn a_run_that_waits_counts_feedback_keeps_it_and_goes_on_where_it_was() {
    let (running, path) = with_list(3, THREE);
    let journal = running.file("run.journal");
    let devices = ["pump-1", "pump-2"].map(|device| running.on_message(device, |_, _, _| {}));
    let mut command = to_list(&running, &path);
    let sent = run(command.args(["--wait=3s", "--json", "--journal"]).arg(&journal));
    devices.into_iter().for_each(|device| drop(device.join().expect("a message")));
    let lines = json_lines(&stdout(&sent));
    assert_eq!(sent.status.code(), Some(4), "{}", stderr(&sent));
    let told: Vec<_> = lines.iter().filter(|line| line["event"] == "feedback").collect();
    assert!(told.len() == 2 && told.iter().all(|line| line["status"] == "Success"), "{told:?}");
    assert_eq!((counts(&lines), &summary(&lines)["missing"]), ("Success 2".to_owned(), &1.into()));
    // Which one it is, is in a list that is not to be sent again.
    let missing = summary(&lines)["missingFile"].as_str().expect("a file");
    assert_eq!(std::fs::read_to_string(missing).expect("a list"), "pump-3\n");
    let spool = std::fs::read_to_string(running.file("run.journal.feedback")).expect("a spool");
    assert_eq!(spool.lines().count(), 2, "{spool}");

    // The device comes late. A message of another sender comes with it.
    running.enqueue("pump-1", "another");
    for device in ["pump-1", "pump-3"] {
        running.on_message(device, |_, _, _| {}).join().expect("a message");
    }
    let rest = run(running.sender().arg("--resume").arg(&journal).args(FAST).arg("--wait=20s"));
    let text = stdout(&rest);
    assert_eq!(rest.status.code(), Some(0), "{text}{}", stderr(&rest));
    assert!(text.contains("        3  accepted by the hub, of these:\n        3  delivered\n"), "{text}");
    let spool = std::fs::read_to_string(running.file("run.journal.feedback")).expect("a spool");
    assert!(spool.contains("\"another\""), "what was read is kept: {spool}");
    // Who takes an old list for a new one sends to a device that has its message.
    assert!(!std::path::Path::new(missing).exists());
}

#[test]
fn what_was_not_delivered_is_in_a_list_and_the_exit_code_says_it() {
    let (running, path) = with_list(3, THREE);
    let devices = ["pump-1", "pump-3"].map(|device| running.on_message(device, |_, _, _| {}));
    let process = Process::spawn(to_list(&running, &path).args(["--wait=20s", "--json"]));
    process.stdout.wait_for_nth("\"accepted\"", 3);
    devices.into_iter().for_each(|device| drop(device.join().expect("a message")));
    running.hub.with(|hub, now| hub.purge("pump-2", now)).expect("purged");
    assert_eq!(process.wait_exit().code(), Some(3), "{}", process.stderr.text());
    let lines = json_lines(&process.stdout.text());
    assert_eq!(counts(&lines), "Purged 1, Success 2");
    let list = summary(&lines)["undeliveredFile"].as_str().expect("a file");
    assert_eq!(std::fs::read_to_string(list).expect("a list"), "pump-2\n");
}

#[test]
fn a_run_that_waits_for_outcomes_ends_when_all_devices_have_reported() {
    let (running, path) = with_list(3, THREE);
    let devices = ["pump-1", "pump-2", "pump-3"].map(|device| running.on_message(device, |_, _, _| {}));
    let process = Process::spawn(to_list(&running, &path).args(["--wait-outcome=20s"]));
    for (device, number) in devices.into_iter().zip(1..) {
        let message = device.join().expect("a message");
        let outcome = if number == 2 { OutcomeKind::Failed } else { OutcomeKind::Succeeded };
        let name = format!("pump-{number}");
        reports(&running, &name, message.message_id().expect("an id"), outcome);
    }
    assert_eq!(process.wait_exit().code(), Some(5), "{}", process.stderr.text());
    let text = process.stdout.text();
    let sums = "        3  accepted by the hub, of these:\n        1  failed\n        2  succeeded\n";
    assert!(text.contains(sums), "{text}");
    assert!(text.contains("what did not succeed can be sent again with --devices-from "), "{text}");
}

#[test]
fn a_run_takes_outcomes_from_telemetry_also_while_it_still_sends() {
    let (running, path) = with_list(3, THREE);
    let devices = ["pump-1", "pump-2", "pump-3"].map(|device| running.on_message(device, |_, _, _| {}));
    let mut command = running.sender();
    command.arg("--devices-from").arg(&path).args(["--rate", "30/min", "--wait-outcome=20s", "--json"]);
    let process = Process::spawn(&mut command);
    for (device, number) in devices.into_iter().zip(1..) {
        let message = device.join().expect("a message");
        let (id, name) = (message.message_id().expect("an id"), format!("pump-{number}"));
        let outcome = if number == 2 { OutcomeKind::Failed } else { OutcomeKind::Succeeded };
        running.hub.with(|hub, now| {
            hub.record_event(&name, Properties::default(), Bytes::from_static(b"\xff"), now);
            tells(hub, &name, "another", OutcomeKind::Failed, now);
            tells(hub, &name, id, outcome, now);
        });
        if number == 2 {
            // Both ways; it counts once.
            reports(&running, &name, id, outcome);
        }
    }
    assert_eq!(process.wait_exit().code(), Some(5), "{}", process.stderr.text());
    let lines = json_lines(&process.stdout.text());
    assert_eq!(
        (counts(&lines), &summary(&lines)["missing"]),
        ("failed 1, succeeded 2".to_owned(), &0.into())
    );
    let place = |event: &str, device: &str| {
        lines.iter().position(|line| line["event"] == event && line["deviceId"] == device).expect("a line")
    };
    assert!(place("outcome", "pump-1") < place("accepted", "pump-3"), "{lines:?}");
    assert_eq!(lines.iter().filter(|line| line["event"] == "outcome").count(), 3, "{lines:?}");
}

#[test]
fn a_resumed_run_knows_what_was_told_before_and_between() {
    let (running, path) = with_list(2, "pump-1\npump-2\n");
    let journal = running.file("run.journal");
    let devices = ["pump-1", "pump-2"].map(|device| running.on_message(device, |_, _, _| {}));
    let mut command = to_list(&running, &path);
    let process = Process::spawn(command.args(["--wait-outcome=3s", "--json", "--journal"]).arg(&journal));
    let [one, two] = devices.map(|device| device.join().expect("a message"));
    let told = |device, message: &C2dMessage| {
        let id = message.message_id().expect("an id");
        running.hub.with(|hub, now| tells(hub, device, id, OutcomeKind::Succeeded, now));
    };
    told("pump-1", &one);
    assert_eq!(process.wait_exit().code(), Some(4), "{}", process.stdout.text());
    assert_eq!(counts(&json_lines(&process.stdout.text())), "succeeded 1");
    told("pump-2", &two);
    // Over a WebSocket, too.
    let mut command = running.sender();
    command.arg("--resume").arg(&journal).args(["--wait-outcome=20s", "--json", "--transport", "amqp-ws"]);
    let rest = run(&mut command);
    assert!(!stderr(&rest).contains("only twins"), "{}", stderr(&rest));
    assert_eq!(rest.status.code(), Some(0), "{}{}", stdout(&rest), stderr(&rest));
    assert_eq!(counts(&json_lines(&stdout(&rest))), "succeeded 2");
}

#[test]
fn outcomes_that_cannot_be_seen_are_told_before_anything_is_sent() {
    let (running, path) = with_list(3, THREE);
    let mut command = to_list(&running, &path);
    let said = run(command.arg("--wait-outcome").env("C2D_HTTPS_PORT", "1"));
    assert_eq!(said.status.code(), Some(1));
    let text = stderr(&said);
    assert!(text.contains("nothing was sent, because the outcomes could not be seen: "), "{text}");
    assert!(waiting(&running, "pump-1").is_empty());
}

#[test]
fn a_run_that_was_begun_without_feedback_cannot_be_followed_later() {
    let (running, path) = with_list(3, THREE);
    let journal = running.file("run.journal");
    assert!(run(to_list(&running, &path).arg("--journal").arg(&journal)).status.success());
    let said = run(running.sender().arg("--resume").arg(&journal).arg("--wait"));
    assert!(said.status.code() == Some(2) && stderr(&said).contains("ask for no feedback"), "{said:?}");
}

#[test]
fn a_pipe_in_the_place_of_the_spool_is_not_waited_for() {
    let (running, path) = with_list(3, THREE);
    let journal = running.file("run.journal");
    let sent = run(to_list(&running, &path).args(["--wait=1s", "--journal"]).arg(&journal));
    assert_eq!(sent.status.code(), Some(4), "{}", stderr(&sent));
    let spool = running.file("run.journal.feedback");
    std::fs::remove_file(&spool).expect("removed");
    assert!(run(std::process::Command::new("mkfifo").arg(&spool)).status.success());
    let said = run(running.sender().arg("--resume").arg(&journal).arg("--wait=1s"));
    let words = format!("the spool {} cannot be read: it is no regular file: remove it", spool.display());
    assert!(stderr(&said).contains(&words) && said.status.code() == Some(1), "{}", stderr(&said));
}
