//! Microsoft's unmodified Node SDK as a device of our emulator, over each of its five transports.
//!
//! Owns: how a program of `tests/sdk-node/` is started. Must not know: how the SDKs work.
//! As the Python SDKs, they always dial 8883, 5671 and 443, so each test has its own loopback address.

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::emulator_running::asking;
use crate::harness::{Emulator, Lines, Process, program, run, skip};
use crate::invoke_method::{back_end, seen};
use crate::sdk::{emulator, json as parse, may_use_443};

const FOLDER: &str = "tests/sdk-node";

/// A program of the folder, which trusts the emulator.
pub(crate) fn script(emulator: &Emulator, name: &str) -> Command {
    let mut command = Command::new("node");
    // Node says on standard error that a TLS name should not be an address; a real hub has a name.
    command.arg("--no-deprecation").arg(Path::new(env!("CARGO_MANIFEST_DIR")).join(FOLDER).join(name));
    command.env("NODE_EXTRA_CA_CERTS", emulator.ca_file());
    command
}

/// Whether Node and the SDKs are here and port 443 is free for use; otherwise says that the test is skipped.
pub(crate) fn has_node(test: &str) -> bool {
    // `setup.sh` writes this file last, after it has installed the SDKs.
    let made_from = Path::new(env!("CARGO_MANIFEST_DIR")).join(FOLDER).join("node_modules/made-from.json");
    if program("node").is_none() || !made_from.is_file() {
        skip(test, "Node or Microsoft's Node SDKs are not installed; scripts/setup.sh installs them");
        return false;
    }
    may_use_443(test)
}

/// What a program printed so far, of the lines that have `key`.
pub(crate) fn printed(lines: &Lines, key: &str) -> Vec<Value> {
    lines.all().iter().map(|line| parse(line)).filter(|line| line.get(key).is_some()).collect()
}

/// The D2C messages of a device, oldest first.
pub(crate) fn sent_by(emulator: &Emulator, device: &str) -> Vec<Value> {
    let seen = run(&mut asking(&emulator.state, &["events", "--device", device, "--json"]));
    String::from_utf8_lossy(&seen.stdout).lines().map(parse).collect()
}

/// Sends a message that asks for feedback, and returns the feedback's status.
fn feedback(emulator: &Emulator, arguments: &[&str]) -> String {
    let sent = run(emulator.sender("dev1").args(["--ack", "full", "--wait=30s", "--json"]).args(arguments));
    let told = String::from_utf8_lossy(&sent.stdout).into_owned();
    let record = told.lines().map(parse).find(|line| line["event"] == "feedback");
    record.unwrap_or_else(|| panic!("{sent:?}"))["status"].as_str().expect("a status").to_owned()
}

/// What every transport can do; `settles` says whether it can reject and abandon.
fn device(transport: &str, settles: bool) -> Option<(Emulator, Process, tempfile::TempDir)> {
    if !has_node(&format!("the Node SDK's device over {transport}")) {
        return None;
    }
    let (emulator, dir) = emulator(&["--device", "dev1", "--https-port", "443"]);
    let mut device = script(&emulator, "device.js");
    device.arg(transport).env("DEVICE_CONNECTION_STRING", emulator.device_string("dev1"));
    let device = Process::spawn(&mut device);

    let ids = ["--message-id", "m:1", "--correlation-id", "c-1", "--content-type", "text/plain"];
    let rest = [
        "--content-encoding",
        "utf-8",
        "--property",
        "odd=a=b&c%d+e/f",
        "--property",
        "empty=",
        "--data",
        "grüße",
    ];
    assert_eq!(feedback(&emulator, &[&ids[..], &rest].concat()), "Success");
    let message = printed(&device.stdout, "body").remove(0);
    assert_eq!((&message["message"], &message["body"]), (&json!("m:1"), &json!("grüße")));
    assert_eq!(message["correlationId"], "c-1");
    // Over HTTPS, the SDK leaves the prefix of the headers, and does not read the two about the contents.
    let prefix = if transport == "http" { "iothub-app-" } else { "" };
    assert_eq!(message["properties"][format!("{prefix}odd")], "a=b&c%d+e/f", "{message}");
    assert_eq!(message["properties"][format!("{prefix}empty")], "", "{message}");
    if transport != "http" {
        assert_eq!(
            (&message["contentType"], &message["contentEncoding"]),
            (&json!("text/plain"), &json!("utf-8"))
        );
    }

    let [rejected, abandoned] = [("reject", "r"), ("abandon", "a")].map(|(verb, body)| {
        feedback(&emulator, &["--property", &format!("settle={verb}"), "--message-id", verb, "--data", body])
    });
    if settles {
        assert_eq!((rejected.as_str(), abandoned.as_str()), ("Rejected", "DeliveryCountExceeded"));
        let times =
            printed(&device.stdout, "settled").iter().filter(|line| line["settled"] == "abandon").count();
        assert_eq!(times, 10, "as many as the hub delivers a message at most");
    } else {
        // MQTT has only the PUBACK: the SDK says so, and the program completes.
        assert_eq!((rejected.as_str(), abandoned.as_str()), ("Success", "Success"));
        let refused = printed(&device.stdout, "verb");
        assert!(refused.iter().all(|line| line["error"] == "NotImplementedError"), "{refused:?}");
        assert_eq!(refused.len(), 2);
    }
    Some((emulator, device, dir))
}

/// The device's method and its twin, which HTTPS has not.
fn serves(transport: &str, emulator: &Emulator, device: &Process) {
    let greet = ["invoke-method", "--device", "dev1", "--method", "greet", "--data", r#"{"a": "é"}"#];
    let (told, errors, code) = seen(&run(&mut back_end(emulator, &[&greet[..], &["--json"]].concat())));
    assert_eq!(code, Some(0), "{errors}");
    let answer = parse(&told);
    assert_eq!((&answer["status"], &answer["payload"]), (&json!(200), &json!({ "greets": { "a": "é" } })));

    let patch = ["twin", "patch", "--device", "dev1", "--desired", r#"{"x": {"y": 1}}"#];
    let (_, errors, code) = seen(&run(&mut back_end(emulator, &patch)));
    assert_eq!(code, Some(0), "{errors}");
    let changed = json!({ "desired": { "$version": 2, "x": { "y": 1 } } });
    device.stdout.wait_until("the desired property", |lines| {
        lines.iter().any(|line| parse(line) == changed).then_some(())
    });
    assert_eq!(printed(&device.stdout, "twin")[0]["twin"], json!({ "desired": 1, "reported": 1 }));
    let (told, ..) = seen(&run(&mut back_end(emulator, &["twin", "get", "--device", "dev1", "--json"])));
    let reported = &parse(&told)["properties"]["reported"];
    assert_eq!((&reported["from"], &reported["text"]), (&json!(transport), &json!("grüße")), "{reported}");
}

/// The device sends, and ends well.
fn sends(transport: &str, emulator: &Emulator, device: &Process) -> Vec<Value> {
    assert_eq!(feedback(emulator, &["--data", "end"]), "Success");
    assert_eq!(device.wait_exit().code(), Some(0), "{}", device.stderr.text());
    let events = sent_by(emulator, "dev1");
    assert_eq!(events[0]["body"], format!("from {transport}: grüße"));
    assert_eq!(events[0]["properties"], json!({ "kind": "a=b&c%d" }));
    for (name, value) in [("$.mid", "d2c-1"), ("$.ct", "text/plain"), ("$.ce", "utf-8")] {
        assert_eq!(events[0]["systemProperties"][name], value, "{events:?}");
    }
    events
}

fn whole(transport: &str, settles: bool) {
    let Some((emulator, device, _dir)) = device(transport, settles) else { return };
    serves(transport, &emulator, &device);
    sends(transport, &emulator, &device);
}

#[test]
fn the_node_sdks_device_over_mqtt() {
    whole("mqtt", false);
}

#[test]
fn the_node_sdks_device_over_mqtt_over_a_websocket() {
    whole("mqtt-ws", false);
}

#[test]
fn the_node_sdks_device_over_amqp() {
    whole("amqp", true);
}

#[test]
fn the_node_sdks_device_over_amqp_signs_in_again_when_its_token_is_over() {
    let Some((emulator, device, _dir)) = device("amqp", true) else { return };
    let moved = run(&mut asking(&emulator.state, &["clock", "advance", "48h"]));
    assert!(moved.status.success(), "{moved:?}");
    emulator.process.stderr.wait_for("ended a connection: its token has expired");
    emulator.send("dev1", &["--data", "later"]);
    device.stdout.wait_for("\"later\"");
}

#[test]
fn the_node_sdks_device_over_amqp_over_a_websocket() {
    whole("amqp-ws", true);
}

#[test]
fn the_node_sdks_device_over_https() {
    let Some((emulator, device, _dir)) = device("http", true) else { return };
    let events = sends("http", &emulator, &device);
    let bodies: Vec<_> = events.iter().map(|event| event["body"].clone()).collect();
    assert_eq!(bodies, ["from http: grüße", "one", "two"], "the batch of two, too");
}

#[test]
fn the_node_sdks_device_signs_in_with_a_certificate_over_each_transport() {
    if !has_node("the Node SDK's device signs in with a certificate") {
        return;
    }
    let (emulator, _dir) = emulator(&["--x509-device", "pi-01", "--https-port", "443"]);
    let mut device = script(&emulator, "certificate.js");
    device.args([&emulator.mqtt.ip().to_string(), "pi-01"]);
    device.args(["cert", "key"].map(|part| emulator.state.join(format!("devices/pi-01.{part}.pem"))));
    let device = Process::spawn(&mut device);
    assert_eq!(device.wait_exit().code(), Some(0), "{}", device.stderr.text());
    let bodies: Vec<_> = sent_by(&emulator, "pi-01").iter().map(|event| event["body"].clone()).collect();
    assert_eq!(bodies, ["mqtt", "mqtt-ws", "amqp", "amqp-ws", "http"]);
}
