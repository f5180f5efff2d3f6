//! The emulator's clock when it is moved: what follows it, over the real binaries.
//!
//! Owns: nothing. Must not know: how anything waits for a time.

use std::time::Instant;

use rumqttc::mqttbytes::QoS;
use rumqttc::mqttbytes::v4::Packet;
use serde_json::{Value, json};

use crate::emulator_running::{asking, said};
use crate::emulator_twins::sign_in;
use crate::harness::{DEADLINE, Emulator, binary, run};
use crate::over::{self, TRANSPORTS};
use crate::rest::service_token;
use crate::rest_ask::{Answer, ask, device_token};

const NEXT: &str = "GET /devices/dev1/messages/devicebound?api-version=2021-04-12";
const DEVICEBOUND: &str = "devices/dev1/messages/devicebound/#";

/// `c2d-agent emulator clock` with arguments. It must succeed.
#[track_caller]
fn clock(emulator: &Emulator, arguments: &[&str]) -> String {
    let (code, text) = said(&mut asking(&emulator.state, &[&["clock"], arguments].concat()));
    assert_eq!(code, Some(0), "{text}");
    text
}

fn next(emulator: &Emulator) -> Answer {
    ask(emulator, NEXT, &device_token(emulator, "dev1"), "", b"")
}

fn complete(emulator: &Emulator, message: &Answer) -> u16 {
    let lock = message.header("etag").expect("an ETag").trim_matches('"');
    let line = format!("DELETE /devices/dev1/messages/devicebound/{lock}?api-version=2021-04-12");
    ask(emulator, &line, &device_token(emulator, "dev1"), "", b"").status
}

/// Runs `c2d-feedback` until it has one record.
fn feedback(emulator: &Emulator) -> Value {
    let mut reader = binary();
    reader.args(["c2d-feedback", "--count", "1", "--json", "--connection-string-file"]);
    reader.arg(emulator.state.join("service.connection-string")).arg("--ca-file").arg(emulator.ca_file());
    let output = run(&mut reader);
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).expect("one object")
}

#[test]
fn a_message_of_48_hours_expires_at_once_and_its_sender_hears_of_it() {
    let emulator = Emulator::start();
    emulator.send("dev1", &["--message-id", "m-1", "--expiry", "48h", "--ack", "full"]);
    clock(&emulator, &["advance", "47h"]);
    let message = next(&emulator);
    assert_eq!(message.header("iothub-messageid"), Some("m-1"), "not yet: {message:?}");
    clock(&emulator, &["advance", "1h"]);
    assert_eq!(next(&emulator).status, 204);
    assert_eq!(complete(&emulator, &message), 412);
    // The back end signs in with a token of the real time.
    let record = feedback(&emulator);
    assert_eq!((&record["messageId"], &record["status"]), (&json!("m-1"), &json!("Expired")), "{record}");
}

#[test]
fn a_lock_ends_when_its_minute_is_over_by_the_moved_clock() {
    let emulator = Emulator::start();
    emulator.send("dev1", &["--message-id", "m-1"]);
    let locked = next(&emulator);
    assert_eq!(locked.status, 200);
    clock(&emulator, &["advance", "50s"]);
    assert_eq!(next(&emulator).status, 204, "it is still locked");
    clock(&emulator, &["advance", "10s"]);
    assert_eq!(complete(&emulator, &locked), 412);
    let again = next(&emulator);
    assert_eq!(
        (again.header("iothub-messageid"), again.header("etag") == locked.header("etag")),
        (Some("m-1"), false)
    );
    assert_eq!(complete(&emulator, &again), 204);
}

#[test]
fn a_token_that_has_expired_by_the_moved_clock_ends_the_connection() {
    let emulator = Emulator::start();
    // Its token is valid for ten minutes.
    let mut device = sign_in(&emulator, false);
    clock(&emulator, &["advance", "9m"]);
    device.send(Packet::PingReq);
    assert!(matches!(device.next(), Some(Packet::PingResp)), "not yet");
    clock(&emulator, &["advance", "1m"]);
    device.expect_close();
    emulator.process.stderr.wait_for("closed a device's connection: the token expired");
    // A client makes its token by the real time, and what is left of it counts.
    let mut device = sign_in(&emulator, false);
    clock(&emulator, &["advance", "9m"]);
    device.send(Packet::PingReq);
    assert!(matches!(device.next(), Some(Packet::PingResp)), "the token is new");
}

#[test]
fn the_agent_signs_in_again_over_each_transport_and_loses_nothing() {
    for transport in TRANSPORTS {
        let emulator = Emulator::start();
        let dir = tempfile::tempdir().expect("a directory");
        let rule = "[[rule]]\nname = \"a\"\nwhen = { a = \"b\" }\ndo = [ { run = [\"/bin/true\"] } ]\n";
        let agent = over::start(&emulator, transport, dir.path(), rule);
        clock(&emulator, &["advance", "48h"]);
        agent.process.stderr.wait_for_nth("subscribed", 2);
        emulator.send("dev1", &["--property", "a=b", "--wait=25s"]);
        clock(&emulator, &["set", "-24h"]);
        emulator.send("dev1", &["--property", "a=b", "--wait=25s"]);
        assert_eq!(agent.process.terminate(), Some(0), "{transport}");
        assert_eq!(emulator.process.stderr.count("panicked"), 0);
    }
}

#[test]
fn a_call_that_waits_for_its_device_ends_when_its_time_is_over_by_the_moved_clock() {
    let emulator = Emulator::start();
    let begun = Instant::now();
    std::thread::scope(|scope| {
        let call = scope.spawn(|| {
            let body =
                r#"{"methodName": "x", "connectTimeoutInSeconds": 300, "responseTimeoutInSeconds": 300}"#;
            let line = "POST /twins/dev1/methods?api-version=2021-04-12";
            ask(&emulator, line, &service_token(&emulator), "", body.as_bytes())
        });
        // The call may come after a move: move again.
        while !call.is_finished() {
            assert!(begun.elapsed() < DEADLINE, "the call still waits");
            clock(&emulator, &["advance", "301s"]);
        }
        let answer = call.join().expect("an answer");
        assert!(answer.status == 404 && answer.body.contains("404103"), "{answer:?}");
    });
}

#[test]
fn a_message_that_a_fault_delays_goes_out_when_the_clock_is_there() {
    let emulator =
        Emulator::start_with(&["--device", "dev1", "--fault", "delay=1h", "--fault", "duplicate=1"]);
    let mut device = sign_in(&emulator, false);
    device.subscribe(&[(DEVICEBOUND, QoS::AtLeastOnce)]);
    emulator.send("dev1", &["--message-id", "m-1", "--expiry", "2h"]);
    device.expect_silence();
    clock(&emulator, &["advance", "61m"]);
    // Its token has expired, too: the message comes on the next connection.
    device.expect_close();
    let mut device = sign_in(&emulator, false);
    let (first, second) = (device.publish(), device.publish());
    assert!(first.topic.contains("m-1") && second.topic == first.topic && second.dup, "{first:?} {second:?}");
}

#[test]
fn a_clock_that_is_set_back_loses_nothing() {
    let emulator = Emulator::start_with(&["--device", "dev1", "--clock", "+48h"]);
    emulator.send("dev1", &["--message-id", "m-1", "--ack", "full"]);
    emulator.send("dev1", &["--message-id", "m-2"]);
    let first = next(&emulator);
    let mut device = sign_in(&emulator, false);
    device.subscribe(&[(DEVICEBOUND, QoS::AtLeastOnce)]);
    let second = device.publish();
    assert!(second.topic.contains("m-2"), "{second:?}");
    clock(&emulator, &["reset"]);
    assert_eq!(next(&emulator).status, 204, "both are still locked");
    assert_eq!(complete(&emulator, &first), 204);
    device.puback(&second);
    let record = feedback(&emulator);
    assert_eq!((&record["messageId"], &record["status"]), (&json!("m-1"), &json!("Success")), "{record}");
    emulator.send("dev1", &["--message-id", "m-3"]);
    assert!(device.publish().topic.contains("m-3"));
    clock(&emulator, &["set", "-1h"]);
    drop(device);
    let end = Instant::now() + DEADLINE;
    while next(&emulator).status == 204 {
        assert!(Instant::now() < end, "the end of the connection did not free the message");
    }
    // A lock lasts for a minute from the move.
    clock(&emulator, &["set", "-2h"]);
    assert_eq!(next(&emulator).status, 204, "it is locked");
    clock(&emulator, &["advance", "1m"]);
    assert_eq!(next(&emulator).header("iothub-messageid"), Some("m-3"));
    // An expiry that a sender reckons by the real time can be too far ahead then.
    let output = run(emulator.sender("dev1").args(["--expiry", "48h"]));
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(1) && told.contains("more than two days ahead"), "{told}");
    clock(&emulator, &["set", "1970-01-01T00:00:00Z"]);
    emulator.send("dev1", &["--message-id", "m-4"]);
    assert_eq!(next(&emulator).header("iothub-messageid"), Some("m-4"));
    assert_eq!(emulator.process.stderr.count("panicked"), 0);
}

#[test]
fn the_clock_is_shown_by_the_command_the_page_and_the_ready_line_and_ends_with_the_process() {
    let dir = tempfile::tempdir().expect("a directory");
    let state = dir.path().join("state");
    let emulator = Emulator::start_in(&state, "0", "0", &["--device", "dev1", "--clock", "-36h"]);
    assert!(
        emulator.process.stdout.text().contains(" clock=-1day12h state="),
        "{}",
        emulator.process.stdout.text()
    );
    let text = clock(&emulator, &[]);
    assert!(text.ends_with("Z  1day 12h behind the real time"), "{text}");
    let text = clock(&emulator, &["advance", "48h"]);
    assert!(text.ends_with("Z  12h ahead of the real time"), "{text}");
    emulator.process.stderr.wait_for("the clock was moved: it is ");
    let overview = ask(&emulator, "GET /emulator/overview", &service_token(&emulator), "", b"").json();
    assert_eq!(overview["clockOffsetMs"], json!(12 * 60 * 60 * 1000));
    let shown: Value =
        serde_json::from_str(&clock(&emulator, &["set", "2031-02-03T04:05:06Z", "--json"])).expect("JSON");
    assert!(shown["now"].as_str().is_some_and(|now| now.starts_with("2031-02-03T04:05:0")), "{shown}");
    assert!(shown["realTime"].is_string() && shown["offsetMs"].is_i64(), "{shown}");
    for (arguments, part) in [
        (&["advance"][..], "say by how much, such as: advance 48h"),
        (&["advance", "-1h"], "\"-1h\" is not a duration: use a number with a unit, such as 48h or 90s"),
        (&["set", "tomorrow"], "\"tomorrow\" is neither a time, such as 2030-01-01T00:00:00Z, nor an offset"),
        (&["set"], "say to what, such as: set +48h"),
        (&["show", "+48h"], "\"+48h\" is too much: show and reset take no value"),
        (&["stop"], "invalid value 'stop'"),
    ] {
        let (code, text) = said(&mut asking(&state, &[&["clock"], arguments].concat()));
        assert!(code == Some(2) && text.contains(part), "{arguments:?}: {text}");
    }
    let (code, text) = said(&mut asking(&state, &["clock", "set", "+9000years"]));
    assert!(code == Some(1) && text.contains("choose one from 1970 to 9998"), "{text}");
    assert!(clock(&emulator, &[]).starts_with("2031-02-03T04:05:"), "nothing has changed");
    for body in [
        "",
        "{}",
        "1",
        r#"{"now": "x"}"#,
        r#"{"advance": "1h", "now": "2030-01-01T00:00:00Z"}"#,
        r#"{"to": 1}"#,
    ] {
        let answer = ask(&emulator, "PUT /emulator/clock", &service_token(&emulator), "", body.as_bytes());
        assert!(
            answer.status == 400 && answer.body.contains("ErrorCode:ArgumentInvalid;"),
            "{body}: {answer:?}"
        );
    }
    assert_eq!(emulator.process.terminate(), Some(0));

    let next = Emulator::start_in(&state, "0", "0", &["--device", "dev1"]);
    assert!(!next.process.stdout.text().contains("clock="));
    assert!(clock(&next, &[]).ends_with("Z  the real time"));
}
