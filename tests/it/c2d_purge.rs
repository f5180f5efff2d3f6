//! `c2d-purge` as a user sees it, against a hub in this process and against servers that are not a hub.
//!
//! Owns: nothing. Must not know: how the command is built.

use std::process::{Command, Output};

use c2d_agent::feedback::FeedbackStatus;

use crate::c2d_send::{Running, seen};
use crate::harness::{binary, run};

fn command(running: &Running, service: &str, device: &str) -> Command {
    let mut command = binary();
    command.args(["c2d-purge", "--device", device, "--https-port", &running.https.port().to_string()]);
    command.arg("--ca-file").arg(running.file("ca.pem")).env("C2D_SERVICE_CONNECTION_STRING", service);
    command
}

fn purge(running: &Running, device: &str, arguments: &[&str]) -> Output {
    run(command(running, &running.service_string(), device).args(arguments))
}

#[test]
fn a_queue_is_purged_and_the_sender_hears_of_it() {
    let running = Running::start();
    for id in ["m-1", "m-2", "m-3"] {
        running.enqueue("dev1", id);
    }
    running.enqueue("dev2", "other");
    // A message that the device holds is not purged.
    let held = running.hub.with(|hub, now| hub.poll("dev1", now)).expect("m-1");
    let output = purge(&running, "dev1", &[]);
    assert_eq!(seen(&output), ("purged 2 messages of device dev1\n".to_owned(), String::new(), Some(0)));
    let output = purge(&running, "dev1", &["--json"]);
    let line = "{\"event\":\"purged\",\"deviceId\":\"dev1\",\"messages\":0}\n";
    assert_eq!(seen(&output), (line.to_owned(), String::new(), Some(0)));
    let output = purge(&running, "dev1", &[]);
    assert_eq!(output.stdout, b"purged nothing: no message waited for device dev1\n");
    running.hub.with(|hub, now| hub.complete("dev1", held.lock, now)).expect("still held");
    assert_eq!(running.hub.with(|hub, _| hub.queue_length("dev2")), Some(1), "another device's queue");

    let mut feedback = binary();
    feedback.args(["c2d-feedback", "--count", "3"]).arg("--ca-file").arg(running.file("ca.pem"));
    let output = run(feedback.env("C2D_SERVICE_CONNECTION_STRING", running.service_string()));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    for (id, status) in
        [("m-1", FeedbackStatus::Success), ("m-2", FeedbackStatus::Purged), ("m-3", FeedbackStatus::Purged)]
    {
        let line = text.lines().find(|line| line.ends_with(id)).expect("a record");
        assert!(line.contains(&format!("  {status} ")), "{text}");
    }
}

#[test]
fn one_that_waits_with_wait_learns_that_it_was_purged() {
    let running = Running::start();
    let sender = crate::harness::Process::spawn(running.command("dev1").args(["--message-id=m-1", "--wait"]));
    sender.stdout.wait_for("accepted by the hub");
    assert_eq!(purge(&running, "dev1", &[]).stdout, b"purged 1 message of device dev1\n");
    assert_eq!(sender.wait_exit().code(), Some(3));
    sender.stdout.wait_for("not delivered: Purged after ");
}

#[test]
fn each_refusal_has_its_sentence() {
    let running = Running::start();
    let (stdout, stderr, code) = seen(&purge(&running, "nope", &[]));
    assert_eq!((stdout.as_str(), code), ("", Some(1)));
    assert_eq!(stderr, "c2d-agent: the hub knows no device \"nope\": check --device\n");
    let (stdout, stderr, code) = seen(&purge(&running, "nope", &["--json"]));
    let line = "{\"event\":\"failed\",\"deviceId\":\"nope\",\"error\":\"the hub knows no device \\\"nope\\\": check --device\"}\n";
    assert_eq!((stdout.as_str(), code), (line, Some(1)), "{stderr}");

    let (_, stderr, code) = seen(&purge(&running, "a/b", &[]));
    assert!(stderr.starts_with("c2d-agent: \"a/b\" is not a device id") && code == Some(2), "{stderr}");

    let wrong = "HostName=localhost;SharedAccessKeyName=service;SharedAccessKey=AAAA";
    let (_, stderr, code) = seen(&run(&mut command(&running, wrong, "dev1")));
    assert!(stderr.contains("does not accept the policy \"service\": check its name and key"), "{stderr}");
    assert!(code == Some(1) && !stderr.contains("AAAA"), "{stderr}");

    // The port speaks another protocol.
    let amqp = running.amqp.port().to_string();
    let mut command = binary();
    command.args(["c2d-purge", "--device", "dev1", "--https-port", &amqp, "--ca-file"]);
    command.arg(running.file("ca.pem")).env("C2D_SERVICE_CONNECTION_STRING", running.service_string());
    let (_, stderr, code) = seen(&run(&mut command));
    assert!(stderr.contains("check HostName and --https-port") && code == Some(1), "{stderr}");
}
