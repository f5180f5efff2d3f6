//! What a device sends: D2C messages, which the hub keeps, and requests for its twin.
//!
//! Must not know: the agent.

use rumqttc::mqttbytes::QoS;
use rumqttc::mqttbytes::v4::{LastWill, Packet, Publish};
use serde_json::{Value, json};

use super::device::{Device, Local};

const ANSWERS: &str = "$iothub/twin/res/#";

/// Publishes with QoS 1 and reads the PUBACK.
#[track_caller]
fn publish(device: &mut Device, packet_id: u16, topic: &str, body: impl Into<Vec<u8>>) {
    let mut publish = Publish::new(topic, QoS::AtLeastOnce, body);
    publish.pkid = packet_id;
    device.send(Packet::Publish(publish));
    assert!(matches!(device.next(), Some(Packet::PubAck(ack)) if ack.pkid == packet_id), "{topic}");
}

/// The number, properties and body of each kept D2C message of `dev1`.
fn events(local: &Local) -> Vec<(u64, String, String)> {
    local.hub.with(|hub, _| {
        let events = hub.events("dev1").expect("a device");
        let text = |body: &[u8]| String::from_utf8_lossy(body).into_owned();
        events.map(|event| (event.number, event.properties.encode(), text(&event.body))).collect()
    })
}

#[test]
fn d2c_messages_are_kept_with_their_properties() {
    let local = Local::start();
    let mut device = local.dial();
    let mut connect = local.connect_packet();
    connect.last_will =
        Some(LastWill::new("devices/dev1/messages/events/a=1", "gone", QoS::AtLeastOnce, false));
    device.send(Packet::Connect(connect));
    device.connack();
    publish(
        &mut device,
        1,
        "devices/dev1/messages/events/%24.cid=m%2F1&%24.ct=application%2Fjson&rule=x",
        "{}",
    );
    let mut retained = Publish::new("devices/dev1/messages/events/", QoS::AtMostOnce, "");
    retained.retain = true;
    device.send(Packet::Publish(retained));
    device.expect_silence();
    let first = (1, "%24.cid=m%2F1&%24.ct=application%2Fjson&rule=x".to_owned(), "{}".to_owned());
    let second = (2, "mqtt-retain=true".to_owned(), String::new());
    assert_eq!(events(&local), [first, second]);
    drop(device);
    local.wait(|hub, _| (hub.events("dev1")?.count() == 3).then_some(()));
    assert_eq!(events(&local)[2], (3, "a=1&iothub-MessageType=Will".to_owned(), "gone".to_owned()));
}

/// Sends a twin request and reads PUBACK and answer.
#[track_caller]
fn ask(device: &mut Device, topic: &str, body: &str) -> (String, Value) {
    publish(device, 9, topic, body);
    let answer = device.publish();
    assert_eq!(answer.qos, QoS::AtMostOnce);
    let body = if answer.payload.is_empty() {
        Value::Null
    } else {
        serde_json::from_slice(&answer.payload).expect("JSON")
    };
    (answer.topic, body)
}

#[test]
fn a_device_gets_its_twin_and_patches_what_it_reports() {
    let local = Local::start();
    let (mut device, _) = local.sign_in();
    device.subscribe(&[(ANSWERS, QoS::AtLeastOnce)]);
    let patch = "$iothub/twin/PATCH/properties/reported/?$rid=";

    let (topic, body) = ask(&mut device, "$iothub/twin/GET/?$rid=a%20b", " ");
    assert_eq!(topic, "$iothub/twin/res/200/?$rid=a%20b");
    assert_eq!(body, json!({ "desired": { "$version": 1 }, "reported": { "$version": 1 } }));

    let (topic, body) = ask(&mut device, &format!("{patch}2"), r#"{"led": "on", "deep": {"x": 1, "y": 2}}"#);
    assert_eq!((topic.as_str(), body), ("$iothub/twin/res/204/?$rid=2&$version=2", Value::Null));
    let (topic, _) = ask(&mut device, &format!("{patch}3"), r#"{"led": null, "deep": {"x": null}}"#);
    assert_eq!(topic, "$iothub/twin/res/204/?$rid=3&$version=3");

    for (id, bad) in [(4, "no JSON"), (5, "[1]"), (6, r#"{"a.b": 1}"#)] {
        let (topic, body) = ask(&mut device, &format!("{patch}{id}"), bad);
        assert_eq!(topic, format!("$iothub/twin/res/400/?$rid={id}"));
        assert_eq!(body["errorCode"], 400_004, "{body}");
        assert!(body["message"].is_string() && body["trackingId"].is_string(), "{body}");
    }
    let (_, body) = ask(&mut device, "$iothub/twin/GET/?$rid=7", "");
    assert_eq!(body["reported"], json!({ "deep": { "y": 2 }, "$version": 3 }));
}

#[test]
fn a_twin_request_is_answered_to_those_who_subscribed_only() {
    let local = Local::start();
    let (mut device, _) = local.sign_in();
    publish(&mut device, 1, "$iothub/twin/PATCH/properties/reported/?$rid=1", r#"{"a": 1}"#);
    device.expect_silence();
    assert_eq!(local.hub.with(|hub, _| hub.twin("dev1")).expect("a twin")["properties"]["reported"]["a"], 1);
}

#[test]
fn a_twin_request_without_a_request_id_ends_the_connection() {
    let local = Local::start();
    let (mut device, _) = local.sign_in();
    device.send(Packet::Publish(Publish::new("$iothub/twin/GET/?$rid=", QoS::AtMostOnce, "")));
    device.expect_close();
}
