//! Microsoft's unmodified Node SDKs at the emulator's provisioning service: a device over three transports, and a back
//! end that keeps enrolments.
//!
//! Owns: nothing. Must not know: how the SDKs work; the programs are in `tests/sdk-node/`.

use serde_json::json;

use crate::emulator_dps::client::{Certificates, device_key};
use crate::harness::{Emulator, Process};
use crate::node::{has_node, script};
use crate::sdk::{emulator, json as parse};

/// Runs the device over a transport until it has sent a message to its hub.
fn registers(emulator: &Emulator, transport: &str, id: &str, proof: &[(&str, String)]) {
    let host = emulator.mqtt.ip().to_string();
    let mut device = script(emulator, "provisioning.js");
    device.args([transport, &host, "0ne00000001", id]).envs(proof.iter().map(|(name, value)| (name, value)));
    let device = Process::spawn(&mut device);
    let expected = json!({
        "status": "assigned", "substatus": "initialAssignment", "assignedHub": host, "deviceId": id,
        "payload": { "site": 12 },
    });
    assert_eq!(parse(&device.wait_stdout("status")), expected, "{transport}");
    assert_eq!(device.wait_exit().code(), Some(0), "{transport}: {}", device.stderr.text());
    assert_eq!(device.stdout.all().last().map(String::as_str), Some("sent"));
}

#[test]
fn the_node_sdks_device_registers_over_each_transport_by_key_and_by_certificate() {
    if !has_node("the Node SDK's device registers") {
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    let made = Certificates::make(dir.path());
    let solo = format!("solo={}", made.path("solo.pem").display());
    let (emulator, _dir) =
        emulator(&["--dps-device", "reg-01", "--dps-device", &solo, "--https-port", "443"]);
    let path = |suffix: &str| made.path(&format!("solo.{suffix}")).display().to_string();
    let pair = [("CERTIFICATE", path("pem")), ("PRIVATE_KEY", path("key.pem"))];
    for transport in ["mqtt", "mqtt-ws", "http"] {
        registers(
            &emulator,
            transport,
            "reg-01",
            &[("KEY", device_key(&emulator, "reg-01").expose_base64())],
        );
        registers(&emulator, transport, "solo", &pair);
    }
}

#[test]
fn the_node_sdks_back_end_keeps_enrolments_and_registrations() {
    if !has_node("the Node SDK's back end keeps enrolments") {
        return;
    }
    let (emulator, _dir) = emulator(&["--dps-device", "seen", "--https-port", "443"]);
    registers(&emulator, "http", "seen", &[("KEY", device_key(&emulator, "seen").expose_base64())]);
    let string = std::fs::read_to_string(emulator.state.join("dps/service.connection-string")).expect("text");
    let mut back_end = script(&emulator, "enrolments.js");
    let back_end =
        Process::spawn(back_end.arg(emulator.ca_file()).env("SERVICE_CONNECTION_STRING", string.trim()));
    assert_eq!(back_end.wait_exit().code(), Some(0), "{}", back_end.stderr.text());
    let told: Vec<_> = back_end.stdout.all().iter().map(|line| parse(line)).collect();
    let expected = [
        json!({
            "made": "one", "changed": "pump-7", "stale": "InvalidEtagError", "again": "DeviceAlreadyExistsError",
            "wrong": "ArgumentError",
        }),
        json!({ "keeps": true, "status": "enabled", "sameEtag": true }),
        json!({ "group": "disabled", "subject": "CN=c2d-agent emulator CA" }),
        json!({ "created": true, "half": ["three"] }),
        json!({ "pages": [["four", "one", "seen"], ["three", "two"]], "groups": [["fleet"]] }),
        json!({ "registration": "assigned", "device": "seen" }),
        // The SDK has no name of its own for what is not there.
        json!({ "gone": "Error", "enrolment": "Error", "group": "Error" }),
    ];
    assert_eq!(told, expected);
}
