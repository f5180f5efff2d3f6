//! `c2d-send --wait-outcome` as a user sees it: what it prints, and its exit codes, against a hub in this process.
//!
//! Owns: nothing. Must not know: how the command is built.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use c2d_agent::emulator::hub::Hub;
use c2d_agent::message::Properties;
use c2d_agent::outcome::{OutcomeKind, OutcomeReport, REPORT_PROPERTY, TwinReport};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::Value;

use crate::c2d_send::{ACCEPTED, Running, seen};
use crate::harness::{Agent, Emulator, Process, Proxy, binary, run};
use crate::json_lines::json_lines;

const WAITING: &str = "waiting up to 20s for the outcome that the device reports\n";

/// `c2d-send` with the emulator's HTTPS port.
fn command(running: &Running, arguments: &[&str]) -> Command {
    let mut command = running.command("dev1");
    command.env("C2D_HTTPS_PORT", running.https.port().to_string()).args(arguments);
    command
}

fn send(running: &Running, arguments: &[&str]) -> (String, String, Option<i32>) {
    seen(&run(&mut command(running, arguments)))
}

fn report(message_id: &str, outcome: OutcomeKind, text: &str) -> OutcomeReport {
    OutcomeReport {
        message_id: Some(message_id.into()),
        rule: Some("pump".into()),
        outcome,
        text: text.into(),
        exit_code: Some(3),
        duration_ms: Some(1_250),
        attempt: 2,
        ended: "2026-01-01T00:00:00.0000000Z".into(),
        output: "one\n\x1b[31mtwo\n".into(),
        output_end: String::new(),
        output_bytes: 5_000,
    }
}

/// What the agent does for `report = "telemetry"`.
fn by_telemetry(hub: &mut Hub, now: SystemTime, report: &OutcomeReport) {
    let mut properties = Properties::default();
    properties.set("$.mid", "a-1");
    properties.set("$.cid", report.message_id.clone().expect("an id"));
    properties.set(REPORT_PROPERTY.0, REPORT_PROPERTY.1);
    let body = Bytes::from(serde_json::to_vec(report).expect("JSON"));
    hub.record_event("dev1", properties, body, now);
}

/// What the agent does for `report = "twin"`.
fn by_twin(hub: &mut Hub, now: SystemTime, report: &OutcomeReport) {
    let mut twin = TwinReport::default();
    twin.record(report);
    hub.patch_reported("dev1", &twin.patch(), now).expect("patched");
}

#[test]
fn an_action_that_succeeded_is_told_from_telemetry_with_its_output() {
    let running = Running::start();
    // The hub also has other telemetry, and the outcome of another message.
    running.hub.with(|hub, now| {
        hub.record_event("dev1", Properties::default(), Bytes::from_static(b"\xff\0"), now);
        by_telemetry(hub, now, &report("m-0", OutcomeKind::Failed, "failed: other"));
    });
    let device = running.on_message("dev1", |hub, _, now| {
        by_telemetry(hub, now, &report("m-9", OutcomeKind::Failed, "failed: another"));
        by_telemetry(hub, now, &report("m-1", OutcomeKind::Succeeded, "succeeded"));
    });
    let (stdout, stderr, code) = send(&running, &["--message-id=m-1", "--wait-outcome=20s"]);
    let (before, after) = stdout.split_once("outcome ").expect("an outcome");
    assert!(before.starts_with(&format!("message m-1  device dev1\n{ACCEPTED}")), "{stdout}");
    assert_eq!(
        after,
        "succeeded  (rule pump, attempt 2, took 1.25 s)\n  | one\n  | \u{fffd}[31mtwo\n  | … and 4987 bytes more\n"
    );
    assert_eq!((stderr.as_str(), code), (WAITING, Some(0)));
    assert_eq!(device.join().expect("a device").property("iothub-ack"), Some("full"), "it asks for feedback");
}

#[test]
fn an_action_that_failed_is_told_from_the_twin_with_exit_code_5() {
    let running = Running::start();
    let earlier = report("m-1", OutcomeKind::Succeeded, "succeeded");
    let earlier = OutcomeReport { ended: "2025-12-31T00:00:00.0000000Z".into(), ..earlier };
    running.hub.with(|hub, now| by_twin(hub, now, &earlier));
    let device = running.on_message("dev1", |hub, _, now| {
        by_twin(hub, now, &report("m-1", OutcomeKind::Failed, "failed: run pump: exit code 3"));
    });
    let (stdout, stderr, code) = send(&running, &["--message-id=m-1", "--wait-outcome=20s", "--json"]);
    assert_eq!(code, Some(5), "{stdout}{stderr}");
    // The earlier outcome of the same id was not taken for this message's outcome.
    assert!(stderr.contains("the device has already reported an outcome for this message id"), "{stderr}");
    let events = json_lines(&stdout);
    let last = events.last().expect("a line");
    let fields = ["event", "messageId", "rule", "outcome", "text"].map(|name| last[name].as_str());
    let text = Some("failed: run pump: exit code 3");
    let expected = [Some("outcome"), Some("m-1"), Some("pump"), Some("failed"), text];
    assert_eq!(fields, expected, "{last}");
    assert_eq!(
        (last["exitCode"].as_i64(), last["attempt"].as_i64(), last.get("output")),
        (Some(3), Some(2), None)
    );
    // One value is how long the action took; the other is the time from acceptance by the hub to the outcome.
    assert_eq!(last["durationMs"], 1_250, "{last}");
    assert!(events.iter().skip(1).all(|event| event["afterMs"].is_u64()), "{events:?}");
    device.join().expect("a device");
}

#[test]
fn every_other_end_than_success_is_exit_code_5() {
    let running = Running::start();
    for (id, kind, text, words) in [
        ("m-1", OutcomeKind::TimedOut, "timed out", "outcome timed out  (rule pump"),
        (
            "m-2",
            OutcomeKind::Unmatched,
            "no rule matches it",
            "outcome unmatched: no rule matches it  (rule pump",
        ),
    ] {
        let device =
            running.on_message("dev1", move |hub, _, now| by_twin(hub, now, &report(id, kind, text)));
        let (stdout, _, code) = send(&running, &["--message-id", id, "--wait-outcome=20s"]);
        assert!(stdout.contains(words) && code == Some(5), "{code:?} {stdout}");
        device.join().expect("a device");
    }
}

#[test]
fn no_outcome_in_time_is_exit_code_4() {
    let running = Running::start();
    let (stdout, _, code) = send(&running, &["--message-id=m-1", "--wait-outcome=300ms"]);
    let words = "no outcome within 300ms: the message has not been completed: it waits for the device at the hub, or its action still runs\n";
    assert_eq!((stdout, code), (format!("message m-1  device dev1\n{ACCEPTED}{words}"), Some(4)));

    // The device takes m-1, then m-2, and reports nothing.
    running.on_message("dev1", |_, _, _| {}).join().expect("a device");
    let device = running.on_message("dev1", |_, _, _| {});
    let (stdout, _, code) = send(&running, &["--message-id=m-2", "--wait-outcome=3s", "--json"]);
    let events = json_lines(&stdout);
    let names: Vec<_> = events.iter().filter_map(|event| event["event"].as_str()).collect();
    assert_eq!((names.last(), code), (Some(&"no-outcome"), Some(4)), "{stdout}");
    assert_eq!(events.last().map(|event| event["delivered"].clone()), Some(Value::Bool(true)));
    assert!(names.contains(&"feedback"), "{stdout}");
    device.join().expect("a device");
}

#[test]
fn a_message_that_expires_has_no_outcome_to_wait_for() {
    let running = Running::start();
    let (stdout, _, code) = send(&running, &["--message-id=m-1", "--expiry=500ms", "--wait-outcome=20s"]);
    assert!(stdout.ends_with("\nnot delivered: Expired after N s\n"), "{stdout}");
    assert_eq!(code, Some(3));
}

/// The only sentence of a failure before anything was sent.
#[track_caller]
fn unsent(running: &Running, output: &Output) -> String {
    let (stdout, stderr, code) = seen(output);
    assert_eq!((stdout.as_str(), code), ("message m-1  device dev1\n", Some(1)), "{stderr}");
    assert_eq!(running.hub.with(|hub, _| hub.queue_length("dev1")), Some(0), "nothing is queued");
    let sentence =
        stderr.strip_prefix("c2d-agent: nothing was sent, because its outcome could not be seen: ");
    sentence.unwrap_or_else(|| panic!("{stderr}")).trim_end().to_owned()
}

#[test]
fn without_https_nothing_is_sent() {
    let running = Running::start();
    let send_to = |port: u16| {
        let port = port.to_string();
        run(&mut command(&running, &["--message-id=m-1", "--wait-outcome", "--https-port", &port]))
    };
    let closed = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address").port();
    assert_eq!(
        unsent(&running, &send_to(closed)),
        format!(
            "localhost refuses connections on port {closed} (HTTPS): for the emulator, give the https port of its ready \
             line with --https-port"
        )
    );
    // The emulator's AMQP port has TLS, but not HTTP: it answers with the header of AMQP.
    let amqp = running.service_string();
    let amqp = amqp.split([':', ';']).nth(1).and_then(|port| port.parse().ok()).expect("a port");
    let sentence = unsent(&running, &send_to(amqp));
    assert!(sentence.contains("answers over HTTPS, but not as an IoT Hub does (no HTTP/1.1)"), "{sentence}");
}

#[test]
fn a_device_that_the_hub_does_not_know_is_named_before_sending() {
    let running = Running::start();
    let mut command = running.command("nope");
    command
        .env("C2D_HTTPS_PORT", running.https.port().to_string())
        .args(["--message-id=m-1", "--wait-outcome"]);
    let (stdout, stderr, code) = seen(&run(&mut command));
    let words = "c2d-agent: nothing was sent, because its outcome could not be seen: the hub knows no device \
                 \"nope\": check --device\n";
    assert_eq!((stdout.as_str(), stderr.as_str(), code), ("message m-1  device nope\n", words, Some(1)));
}

#[test]
fn a_policy_without_service_connect_is_told_so() {
    let running = Running::start();
    let secrets = std::fs::read_to_string(running.file("secrets.json")).expect("readable");
    let secrets: Value = serde_json::from_str(&secrets).expect("JSON");
    let key = secrets["policies"]["device"]["primary"].as_str().expect("a key");
    let service = running.service_string();
    let host = service.split(';').next().expect("a host");
    let string = format!("{host};SharedAccessKeyName=device;SharedAccessKey={key}");
    let mut command = running.command_with(&string, "dev1");
    command.env("C2D_HTTPS_PORT", running.https.port().to_string()).arg("--wait-outcome");
    let (_, stderr, code) = seen(&run(&mut command));
    let words = "does not accept the policy \"device\": check its name and key, that it has the permission ServiceConnect";
    assert!(stderr.contains(words) && code == Some(1), "{code:?} {stderr}");
}

#[test]
fn a_hub_that_goes_away_over_https_is_waited_for() {
    let running = Running::start();
    let proxy = Proxy::to(running.https);
    let port = proxy.address.port().to_string();
    let arguments = ["--message-id=m-1", "--wait-outcome=25s", "--https-port", &port];
    let process = Process::spawn(&mut command(&running, &arguments));
    process.stdout.wait_for("accepted by the hub");
    proxy.set_open(false);
    proxy.cut();
    process.stderr.wait_for("the outcome cannot be read now, trying again: ");
    running.hub.with(|hub, now| by_twin(hub, now, &report("m-1", OutcomeKind::Succeeded, "succeeded")));
    proxy.set_open(true);
    process.stdout.wait_for("outcome succeeded");
    assert_eq!(process.wait_exit().code(), Some(0));
}

#[test]
fn the_wait_and_its_port_are_checked_before_dialling() {
    let running = Running::start();
    for (arguments, words) in [
        (&["--wait", "--wait-outcome"][..], "cannot be used with"),
        (&["--wait-outcome", "--https-port=0"], "use a number from 1 to 65535"),
        (&["--wait-outcome=soon"], "use a number with a unit"),
    ] {
        let (_, stderr, code) = send(&running, arguments);
        assert!(stderr.contains(words) && code == Some(2), "{code:?} {stderr}");
    }
}

/// Starts a server that gives the next of `answers` to the one request of each connection. Returns its port and
/// certificate.
pub(crate) fn server(answers: Vec<String>) -> (u16, String) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    let pem = made.cert.pem();
    let key = rustls::pki_types::PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
    let config = ServerConfig::builder_with_provider(c2d_agent::tls::provider())
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .expect("a configuration");
    let config = Arc::new(config);
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    std::thread::spawn(move || {
        for answer in answers {
            let (socket, _) = listener.accept().expect("a client");
            let connection = ServerConnection::new(Arc::clone(&config)).expect("a connection");
            let mut stream = StreamOwned::new(connection, socket);
            let mut request = BufReader::new(&mut stream);
            let mut length = 0;
            loop {
                let mut line = String::new();
                request.read_line(&mut line).expect("a line");
                match line.trim_end().to_ascii_lowercase().strip_prefix("content-length: ") {
                    Some(number) => length = number.parse().expect("a number"),
                    None if line == "\r\n" => break,
                    None => {}
                }
            }
            std::io::Read::read_exact(&mut request, &mut vec![0; length]).expect("a body");
            let length = answer.split_once("\r\n\r\n").expect("a head").1.len();
            let head = format!("Connection: close\r\nContent-Length: {length}\r\n\r\n");
            let answer = answer.replacen("\r\n\r\n", &format!("\r\n{head}"), 1);
            // A client that has read enough may close before the end.
            drop(stream.write_all(answer.as_bytes()).and_then(|()| stream.flush()));
        }
    });
    (port, pem)
}

/// Runs `c2d-send --wait-outcome` with twins from a [`server`].
fn send_with(running: &Running, answers: Vec<String>) -> Output {
    let (port, pem) = server(answers);
    let roots = running.file("roots.pem");
    let ca = std::fs::read_to_string(running.file("ca.pem")).expect("readable");
    std::fs::write(&roots, ca + &pem).expect("written");
    let mut command = binary();
    command
        .args(["c2d-send", "--device=dev1", "--message-id=m-1", "--wait-outcome=25s", "--ca-file"])
        .arg(roots);
    command.env("C2D_SERVICE_CONNECTION_STRING", running.service_string());
    run(command.env("C2D_HTTPS_PORT", port.to_string()))
}

#[test]
fn a_hub_that_throttles_is_asked_less_often() {
    let running = Running::start();
    let throttled = "HTTP/1.1 429 Too Many Requests\r\n\r\n".to_owned();
    let twin = |reported: &Value| {
        format!("HTTP/1.1 200 OK\r\n\r\n{}", serde_json::json!({ "properties": { "reported": reported } }))
    };
    let mut report_of_agent = TwinReport::default();
    report_of_agent.record(&report("m-1", OutcomeKind::Succeeded, "succeeded"));
    let (before, after) = (twin(&Value::Null), twin(&report_of_agent.patch()));
    let begun = Instant::now();
    let (stdout, stderr, code) =
        seen(&send_with(&running, vec![throttled.clone(), before, throttled, after]));
    assert!(stdout.contains("\noutcome succeeded  (rule pump") && code == Some(0), "{stdout}{stderr}");
    assert!(stderr.contains("trying again: localhost:"), "{stderr}");
    assert!(begun.elapsed() >= Duration::from_secs(3), "one second before sending, two after");
}

#[test]
fn telemetry_of_a_real_hub_is_read_at_its_event_hubs_endpoint() {
    let running = Running::start();
    // Over HTTPS it is no emulator, and its twin never has an outcome.
    let twin = "HTTP/1.1 200 OK\r\n\r\n{\"properties\":{\"reported\":{}}}".to_owned();
    running
        .hub
        .with(|hub, now| by_telemetry(hub, now, &report("m-1", OutcomeKind::Failed, "failed: earlier")));
    let device = running.on_message("dev1", |hub, _, now| {
        hub.record_event("dev2", Properties::default(), Bytes::from_static(b"\xff\0"), now);
        by_telemetry(hub, now, &report("m-9", OutcomeKind::Failed, "failed: another"));
        by_telemetry(hub, now, &report("m-1", OutcomeKind::Succeeded, "succeeded"));
    });
    let (stdout, stderr, code) = seen(&send_with(&running, vec![twin; 25]));
    assert!(stdout.contains("\noutcome succeeded  (rule pump") && code == Some(0), "{stdout}{stderr}");
    assert!(!stderr.contains("twin"), "{stderr}");
    device.join().expect("a device");
}

#[test]
fn what_is_no_hub_gets_no_message() {
    let running = Running::start();
    let answer =
        "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n<html>Welcome to nginx!</html>".to_owned();
    let sentence = unsent(&running, &send_with(&running, vec![answer]));
    assert!(sentence.contains("not as an IoT Hub does (status 200 without JSON)"), "{sentence}");
    let huge = format!("HTTP/1.1 200 OK\r\n\r\n{}", " ".repeat(1024 * 1024 + 1));
    let sentence = unsent(&running, &send_with(&running, vec![huge]));
    assert!(sentence.contains("not as an IoT Hub does (more than 1024 KiB)"), "{sentence}");
}

/// The device is the agent itself, on the binary's own emulator.
#[test]
fn the_agents_own_reports_end_the_wait_by_telemetry_and_by_twin() {
    let emulator = Emulator::start();
    let dir = tempfile::tempdir().expect("a directory");
    let config = r#"
        [[rule]]
        name = "by telemetry"
        when = { action = "say" }
        report = "telemetry"
        do = [ { shell = "echo done" } ]

        [[rule]]
        name = "by twin"
        when = { action = "fail" }
        report = "twin"
        do = [ { shell = "exit 7" } ]

        [[rule]]
        name = "silent"
        when = { action = "silent" }
        do = [ { shell = "true" } ]
    "#;
    let agent = Agent::start(&emulator, "dev1", dir.path(), config);
    let send = |arguments: &[&str]| {
        let mut command = emulator.sender("dev1");
        command.env("C2D_HTTPS_PORT", emulator.https.port().to_string()).args(arguments);
        seen(&run(&mut command))
    };
    let (stdout, stderr, code) = send(&["--property=action=say", "--wait-outcome=20s"]);
    assert!(stdout.contains("outcome succeeded") && stdout.ends_with("\n  | done\n"), "{stdout}{stderr}");
    assert_eq!(code, Some(0));
    for id in ["m-1", "m-2"] {
        let id = format!("--message-id={id}");
        let (stdout, stderr, code) = send(&[&id, "--property=action=fail", "--wait-outcome=20s"]);
        assert!(stdout.contains("outcome failed: ") && stdout.contains("(rule by twin"), "{stdout}{stderr}");
        assert_eq!(code, Some(5));
    }
    let (stdout, stderr, code) = send(&["--property=action=silent", "--wait-outcome=2s"]);
    assert!(stdout.contains("\nno outcome within 2s: the message was delivered"), "{stdout}{stderr}");
    assert_eq!(code, Some(4));
    assert_eq!(agent.process.terminate(), Some(0));
}
