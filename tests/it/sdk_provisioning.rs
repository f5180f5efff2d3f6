//! Microsoft's unmodified Python SDK at the emulator's provisioning service: it registers, signs in at the hub that it is
//! assigned, and receives a C2D message there.
//!
//! Must not know: how the SDK works; the program is `tests/sdk/device_enrols.py`. The SDK always dials 8883 or 443.

use std::process::Command;

use serde_json::json;

use crate::emulator_dps::client::{Certificates, device_key};
use crate::harness::{Emulator, Process};
use crate::sdk::{emulator, json as parse, may_use_443, python, script};

/// Runs the device until it has a message. `who` is its environment, beside the service.
fn enrols(emulator: &Emulator, mut device: Command, id: &str, who: &[(&str, String)]) {
    let host = emulator.mqtt.ip().to_string();
    device.arg(emulator.ca_file()).arg("1").envs(who.iter().map(|(name, value)| (name, value)));
    device.env("PROVISIONING_HOST", &host).env("ID_SCOPE", "0ne00000001").env("REGISTRATION_ID", id);
    let device = Process::spawn(device.env("PAYLOAD", r#"{"site":12}"#));
    let told = parse(&device.wait_stdout("status"));
    let expected = json!({
        "status": "assigned", "hub": host, "device": id, "substatus": "initialAssignment", "payload": "{\"site\": 12}",
        "etag": true, "created": true,
    });
    assert_eq!(told, expected);
    device.wait_stdout("subscribed");
    emulator.send(id, &["--data", "welcome", "--wait=30s"]);
    assert_eq!(parse(&device.wait_stdout("body"))["body"], "welcome");
    assert_eq!(device.wait_exit().code(), Some(0), "{}", device.stderr.text());
}

fn with_key(emulator: &Emulator, id: &str) -> Vec<(&'static str, String)> {
    vec![("KEY", device_key(emulator, id).expose_base64())]
}

fn with_certificate(made: &Certificates, id: &str) -> Vec<(&'static str, String)> {
    let path = |suffix: &str| made.path(&format!("{id}.{suffix}")).display().to_string();
    vec![("CERTIFICATE", path("pem")), ("PRIVATE_KEY", path("key.pem"))]
}

/// By key, by its own certificate, and by one of a group.
fn all_proofs(test: &str, websockets: bool) {
    let Some(python) = python(test).filter(|_| !websockets || may_use_443(test)) else { return };
    let dir = tempfile::tempdir().expect("a directory");
    let made = Certificates::make(dir.path());
    let solo = format!("solo={}", made.path("solo.pem").display());
    let fleet = format!("fleet={}", made.path("ca.pem").display());
    let arguments = ["--dps-device", "reg-01", "--dps-device", &solo, "--dps-group", &fleet];
    let ports: &[&str] = if websockets { &["--https-port", "443"] } else { &[] };
    let (emulator, _dir) = emulator(&[&arguments[..], ports].concat());
    for (id, mut who) in [
        ("reg-01", with_key(&emulator, "reg-01")),
        ("solo", with_certificate(&made, "solo")),
        ("pump-1", with_certificate(&made, "pump-1")),
    ] {
        who.extend(websockets.then(|| ("WEBSOCKETS", "1".to_owned())));
        enrols(&emulator, script(&python, "device_enrols.py"), id, &who);
    }
}

#[test]
fn the_sdks_device_registers_over_mqtt_and_receives_at_its_hub() {
    all_proofs("the SDK's device registers over MQTT", false);
}

#[test]
fn the_sdks_device_registers_over_a_websocket_and_receives_at_its_hub() {
    all_proofs("the SDK's device registers over a WebSocket", true);
}

#[test]
fn the_sdks_device_waits_for_a_service_that_throttles_and_is_told_of_a_wrong_key() {
    let Some(python) = python("the SDK's device at a service that throttles") else { return };
    let arguments = ["--dps-device", "reg-01", "--fault", "dps-throttle=2", "--fault", "dps-assigning=1"];
    let (emulator, _dir) = emulator(&arguments);
    enrols(&emulator, script(&python, "device_enrols.py"), "reg-01", &with_key(&emulator, "reg-01"));
    let mut wrong = script(&python, "device_enrols.py");
    wrong.arg(emulator.ca_file()).arg("1").env("PROVISIONING_HOST", emulator.mqtt.ip().to_string());
    wrong.env("ID_SCOPE", "0ne00000001").env("REGISTRATION_ID", "reg-01").env("KEY", "d3Jvbmc=");
    let wrong = Process::spawn(&mut wrong);
    assert_eq!(wrong.wait_exit().code(), Some(1));
    assert!(wrong.stderr.text().contains("401"), "{}", wrong.stderr.text());
}
