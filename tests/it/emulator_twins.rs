//! Tags and desired properties: what a back end writes over HTTPS, and what a device gets of it over MQTT.
//!
//! Owns: nothing. Must not know: the agent, files of the state directory.

use rumqttc::mqttbytes::QoS;
use rumqttc::mqttbytes::v4::{Connect, ConnectReturnCode, Packet, Publish};
use serde_json::{Value, json};

use crate::emulator_mqtt::device::Device;
use crate::harness::Emulator;
use crate::rest::policy_token;
use crate::rest_ask::{Answer, ask, device_token};

const DESIRED: &str = "$iothub/twin/PATCH/properties/desired/#";

/// A request of the policy `service` for the twin of a device.
fn twin(emulator: &Emulator, method: &str, device_id: &str, headers: &str, body: &Value) -> Answer {
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let line = format!("{method} /twins/{device_id}?api-version=2021-04-12");
    ask(emulator, &line, &policy_token(emulator, "service"), headers, body.as_bytes())
}

fn desired(properties: Value) -> Value {
    json!({ "properties": { "desired": properties } })
}

/// Signs `dev1` in, with or without its session.
pub(crate) fn sign_in(emulator: &Emulator, clean: bool) -> Device {
    let config = c2d_agent::tls::client_config(Some(&emulator.ca_file()), None).expect("a configuration");
    let mut device = Device::dial_with(emulator.mqtt, config);
    let mut connect = Connect::new("dev1");
    connect.clean_session = clean;
    connect.set_login("localhost/dev1/?api-version=2021-04-12", device_token(emulator, "dev1"));
    device.send(Packet::Connect(connect));
    assert_eq!(device.connack().code, ConnectReturnCode::Success);
    device
}

/// The next change of desired properties: the version in its topic, and its body.
fn change(device: &mut Device) -> (String, Value) {
    let publish = device.publish();
    assert_eq!(publish.qos, QoS::AtMostOnce);
    let version = publish.topic.strip_prefix("$iothub/twin/PATCH/properties/desired/?$version=");
    (version.expect(&publish.topic).to_owned(), serde_json::from_slice(&publish.payload).expect("JSON"))
}

/// The twin as the device gets it.
fn own_twin(device: &mut Device) -> Value {
    device.send(Packet::Publish(Publish::new("$iothub/twin/GET/?$rid=1", QoS::AtMostOnce, "")));
    let answer = device.publish();
    assert_eq!(answer.topic, "$iothub/twin/res/200/?$rid=1");
    serde_json::from_slice(&answer.payload).expect("JSON")
}

#[test]
fn a_device_that_subscribed_hears_of_each_change_at_once_and_gets_the_rest_when_it_comes_back() {
    let dir = tempfile::tempdir().expect("a directory");
    let start = || Emulator::start_in(&dir.path().join("state"), "0", "0", &["--device", "dev1"]);
    let emulator = start();
    let mut device = sign_in(&emulator, false);
    let patch = |body| assert_eq!(twin(&emulator, "PATCH", "dev1", "", &body).status, 200);
    patch(desired(json!({ "early": true })));
    device.subscribe(&[("$iothub/twin/res/#", QoS::AtMostOnce), (DESIRED, QoS::AtLeastOnce)]);
    device.expect_silence();
    patch(desired(json!({ "led": { "on": true, "level": 3 }, "early": null })));
    let expected = json!({ "led": { "on": true, "level": 3 }, "early": null, "$version": 3 });
    assert_eq!(change(&mut device), ("3".to_owned(), expected));
    patch(json!({ "tags": { "room": "kitchen" } }));
    device.expect_silence();

    let replaced = json!({ "properties": { "desired": { "led": { "on": false }, "fan": 1 } } });
    let answer = twin(&emulator, "PUT", "dev1", "", &replaced).json();
    assert_eq!((&answer["tags"], &answer["properties"]["desired"]["fan"]), (&json!({}), &json!(1)));
    let expected = json!({ "led": { "on": false, "level": null }, "fan": 1, "$version": 4 });
    assert_eq!(change(&mut device), ("4".to_owned(), expected));

    // A change during the absence of the device is not sent later. The device asks for its twin instead.
    drop(device);
    emulator.process.stderr.wait_for("a device's connection ended");
    patch(desired(json!({ "away": 1 })));
    let mut device = sign_in(&emulator, false);
    device.expect_silence();
    let expected = json!({ "led": { "on": false }, "fan": 1, "away": 1, "$version": 5 });
    assert_eq!(own_twin(&mut device)["desired"], expected);
    // The stored subscription is valid without a new SUBSCRIBE.
    patch(desired(json!({ "away": null })));
    assert_eq!(change(&mut device).0, "6");

    patch(json!({ "tags": { "room": "hall" } }));
    let before = twin(&emulator, "GET", "dev1", "", &Value::Null).json();
    assert_eq!(emulator.process.terminate(), Some(0));
    let emulator = start();
    let mut after = twin(&emulator, "GET", "dev1", "", &Value::Null).json();
    after["connectionState"] = before["connectionState"].clone();
    assert_eq!((&after, &after["tags"]), (&before, &json!({ "room": "hall" })));
}

#[test]
fn a_back_end_writes_over_the_version_that_it_has_seen_only() {
    let emulator = Emulator::start();
    let got = twin(&emulator, "GET", "dev1", "", &Value::Null);
    let etag = got.header("etag").expect("an etag").to_owned();
    assert_eq!(etag, format!("\"{}\"", got.json()["etag"].as_str().expect("an etag")));
    // SDKs send the whole twin back with a change.
    let mut changed = got.json();
    changed["properties"]["desired"]["led"] = json!("on");
    changed["properties"]["desired"]["$metadata"] = json!({});
    let condition = format!("If-Match: {etag}\r\n");
    let written = twin(&emulator, "PUT", "dev1", &condition, &changed);
    assert_eq!(written.status, 200, "{written:?}");
    let held = &written.json()["properties"]["desired"];
    assert_eq!((&held["led"], &held["$version"]), (&json!("on"), &json!(2)));
    assert_eq!(held["$metadata"]["led"]["$lastUpdatedVersion"], 2);
    for method in ["PUT", "PATCH"] {
        let late = twin(&emulator, method, "dev1", &condition, &desired(json!({ "led": "off" })));
        assert_eq!(late.status, 412, "{late:?}");
        let message = late.json()["Message"].as_str().expect("a message").to_owned();
        assert!(message.starts_with("ErrorCode:PreconditionFailed;"), "{message}");
        assert!(message.contains("read it again"), "{message}");
    }
    for condition in ["If-Match: *\r\n", "If-Match: \"*\"\r\n", ""] {
        let any = twin(&emulator, "PATCH", "dev1", condition, &desired(json!({ "n": 1 })));
        assert_eq!(any.status, 200, "{condition}");
    }
    let held = &twin(&emulator, "GET", "dev1", "", &Value::Null).json()["properties"]["desired"];
    assert_eq!((&held["led"], &held["n"], &held["$version"]), (&json!("on"), &json!(1), &json!(5)));
}

#[test]
fn what_a_twin_cannot_hold_is_refused_in_words() {
    let emulator = Emulator::start();
    let kilobytes = |count: usize| -> Value {
        (0..count).map(|n| (n.to_string(), json!("x".repeat(1023)))).collect::<serde_json::Map<_, _>>().into()
    };
    let deep = (0..12).fold(json!(1), |inner, _| json!({ "k": inner }));
    let cases = [
        (json!({ "tags": kilobytes(9) }), "the tags would have 9216 bytes, more than 8192"),
        (desired(kilobytes(33)), "the desired properties would have"),
        (desired(deep), "the desired properties are nested more than 10 levels deep"),
        (desired(json!({ "a.b": 1 })), "\"a.b\" cannot be a key"),
        (json!({ "tags": { "$a": 1 } }), "\"$a\" cannot be a key"),
        (desired(json!({ "n": 4_503_599_627_370_496_u64 })), "is not an integer from"),
        (json!({ "tags": "x" }), "the body is not a twin: invalid type"),
        (json!([1]), "the body is not a twin"),
        (json!({ "properties": { "desired": [] } }), "the body is not a twin"),
    ];
    for method in ["PATCH", "PUT"] {
        for (body, part) in &cases {
            let answer = twin(&emulator, method, "dev1", "", body);
            let message = answer.json()["Message"].as_str().expect("a message").to_owned();
            assert_eq!(answer.status, 400, "{method} {message}");
            assert!(message.contains("ErrorCode:ArgumentInvalid;") && message.contains(part), "{message}");
        }
        assert_eq!(twin(&emulator, method, "none", "", &json!({})).status, 404);
        let line = format!("{method} /twins/dev1?api-version=2021-04-12");
        for refused in [policy_token(&emulator, "device"), device_token(&emulator, "dev1")] {
            assert_eq!(ask(&emulator, &line, &refused, "", b"{}").status, 401);
        }
        let owner = policy_token(&emulator, "iothubowner");
        assert_eq!(ask(&emulator, &line, &owner, "", &vec![b' '; 300 * 1024]).status, 413);
    }
    let untouched = twin(&emulator, "GET", "dev1", "", &Value::Null).json();
    assert_eq!(untouched["version"], 2, "{untouched}");
}
