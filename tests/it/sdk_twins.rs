//! Twins and methods with independent programs on both sides: Microsoft's Python SDKs, and uamqp as a device.
//!
//! Owns: nothing. Must not know: how the SDKs work; the programs are in `tests/sdk/`.

use std::path::Path;

use crate::harness::{Emulator, Process};
use crate::rest::service_token;
use crate::rest_ask::ask;
use crate::sdk::{emulator, json, may_use_443, python, script};

/// A program on uamqp that signs in as `dev1`.
fn amqp_script(python: &Path, name: &str, emulator: &Emulator) -> Process {
    let key = emulator.device_string("dev1");
    let (_, key) = key.split_once("SharedAccessKey=").expect("a key");
    let mut device = script(python, name);
    device.args(["localhost", &emulator.amqp.port().to_string(), "dev1"]);
    Process::spawn(device.env("DEVICE_KEY", key).env("SSL_CERT_FILE", emulator.ca_file()))
}

#[test]
fn another_amqp_client_as_a_device_reports_and_hears_of_desired_properties() {
    let Some(python) = python("an AMQP client that is not ours uses a device's twin") else { return };
    let emulator = Emulator::start();
    let device = amqp_script(&python, "amqp_twin.py", &emulator);
    device.stdout.wait_for("subscribed");
    let token = service_token(&emulator);
    for body in
        [r#"{"properties": {"desired": {"n": 1}}}"#, r#"{"properties": {"desired": {"n": null, "m": 2}}}"#]
    {
        let line = "PATCH /twins/dev1?api-version=2021-04-12";
        assert_eq!(ask(&emulator, line, &token, "", body.as_bytes()).status, 200);
    }
    assert_eq!(device.wait_exit().code(), Some(0), "{}", device.stderr.text());
    let lines: Vec<_> =
        device.stdout.all().iter().filter(|line| *line != "subscribed").map(|l| json(l)).collect();
    let error = lines[2]["body"]["message"].as_str().expect("a message");
    assert!(error.contains("the reported properties must be a JSON object"), "{error}");
    let resource = Some("/notifications/twin/properties/desired");
    let seen: Vec<_> = lines
        .iter()
        .map(|line| (line["id"].as_str(), line["status"].as_u64(), line["resource"].as_str()))
        .collect();
    let answer = |id, status| (Some(id), Some(status), None);
    let change = (None, None, resource);
    let expected = [answer("1", 200), answer("2", 200), answer("3", 400), answer("4", 200), change, change];
    assert_eq!(seen, [&expected[..], &[answer("5", 200), answer("6", 200)]].concat());
    assert_eq!(lines[0]["body"]["reported"], json(r#"{"$version": 1}"#));
    assert_eq!(lines[1]["version"], 2);
    assert_eq!(lines[4]["body"], json(r#"{"n": 1, "$version": 2}"#));
    assert_eq!(lines[5]["body"], json(r#"{"n": null, "m": 2, "$version": 3}"#));
    let twin = json(r#"{"desired": {"m": 2, "$version": 3}, "reported": {"led": "on", "$version": 2}}"#);
    assert_eq!(lines[7]["body"], twin);
}

#[test]
fn another_amqp_client_as_a_device_is_called_and_answers() {
    let Some(python) = python("an AMQP client that is not ours is called by methods") else { return };
    let emulator = Emulator::start();
    let device = amqp_script(&python, "amqp_methods.py", &emulator);
    device.stdout.wait_for("ready");
    let token = service_token(&emulator);
    let call = |name: &str, payload: &str| {
        let body = format!(r#"{{"methodName": "{name}", "payload": {payload}}}"#);
        let line = "POST /twins/dev1/methods?api-version=2021-04-12";
        ask(&emulator, line, &token, "", body.as_bytes()).json()
    };
    let grüße = json(r#"{"status": 200, "payload": {"name": "re boot", "given": "grüße"}}"#);
    assert_eq!(call("re boot", "\"grüße\""), grüße);
    assert_eq!(call("unknown", "null")["status"], 404);
    assert_eq!(call("end", "[1, {}]")["payload"], json(r#"{"name": "end", "given": [1, {}]}"#));
    assert_eq!(device.wait_exit().code(), Some(0), "{}", device.stderr.text());
    let first = json(&device.stdout.all()[1]);
    assert_eq!(first, json(r#"{"id": "UUID", "name": "re boot", "payload": "grüße"}"#));
}

/// The SDK's back end writes the twin of the SDK's device and calls its methods.
fn both_sdks(test: &str, websockets: bool) {
    let Some(python) = python(test).filter(|_| may_use_443(test)) else { return };
    let (emulator, _dir) = emulator(&["--device", "dev1", "--https-port", "443"]);
    let mut device = script(&python, "device_serves.py");
    device.arg(emulator.ca_file()).env("DEVICE_CONNECTION_STRING", emulator.device_string("dev1"));
    if websockets {
        device.env("WEBSOCKETS", "1");
    }
    let device = Process::spawn(&mut device);
    device.stdout.wait_for("ready");
    let mut service = script(&python, "service_calls.py");
    service.arg("dev1").env("SERVICE_CONNECTION_STRING", emulator.service_string());
    let service = Process::spawn(service.env("REQUESTS_CA_BUNDLE", emulator.ca_file()));
    assert_eq!(service.wait_exit().code(), Some(0), "{}", service.stderr.text());
    let expected = serde_json::json!({
        "etags": 4, "patched": { "room": "kitchen" }, "stale": [412, null],
        "replaced": { "led": { "on": false }, "$version": 3 }, "replaced_stale": [412, null], "tags": {},
        "echo": [200, { "name": "echo", "given": { "text": "grüße", "list": [1, null] } }],
        // Without a payload, the SDK itself sends an empty text.
        "nothing": [200, { "name": "echo", "given": "" }],
        "unknown": [404, { "name": "re boot/now", "given": 1 }],
        "silent": [504, "GatewayTimeout"],
        "end": [200, { "name": "end", "given": "bye" }],
        "nowhere": [404, null],
    });
    let mut told = json(&service.stdout.wait_for("etags"));
    let metadata = told["replaced"].as_object_mut().and_then(|twin| twin.remove("$metadata"));
    assert_eq!(metadata.expect("metadata")["led"]["$lastUpdatedVersion"], 3);
    assert_eq!(told, expected);
    assert_eq!(device.wait_exit().code(), Some(0), "{}", device.stderr.text());
    let patches: Vec<_> = device.stdout.all().iter().skip(1).map(|line| json(line)).collect();
    let expected = [
        r#"{"led": {"on": true, "level": 3}, "$version": 2}"#,
        r#"{"led": {"on": false, "level": null}, "$version": 3}"#,
    ];
    assert_eq!(patches, expected.map(json));
}

#[test]
fn the_sdks_back_end_writes_the_twin_of_the_sdks_device_and_calls_its_methods() {
    both_sdks("the SDKs' twins and methods", false);
}

#[test]
fn the_sdks_device_has_its_twin_and_methods_over_a_websocket_too() {
    both_sdks("the SDKs' twins and methods over a WebSocket", true);
}
