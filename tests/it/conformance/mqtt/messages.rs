//! Lines 6 to 10: C2D messages, methods and twins over MQTT, byte by byte.
//!
//! Owns: nothing. Must not know: sign-in.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use c2d_agent::emulator::hub::{LOCK_TIME, QueuedMessage};
use c2d_agent::feedback::{DeliveryAck, FeedbackStatus};
use c2d_agent::message::C2dMessage;
use serde_json::{Value, json};

use super::{
    ACCEPTED_WITH_SESSION, DEVICEBOUND, USER, connect, expect_silence, publish, published, sign_in,
    subscribe, subscribed,
};
use crate::emulator_mqtt::device::{Device, Local};
use crate::emulator_twins;
use crate::harness::Emulator;
use crate::rest::service_token;
use crate::rest_ask::ask;

const PREFIX: &str = "devices/dev1/messages/devicebound/";

fn enqueue(local: &Local, system: &[(&str, &str)], application: &[(&str, &str)], body: &'static [u8]) {
    let mut message = C2dMessage { body: Bytes::from_static(body), ..C2dMessage::default() };
    system.iter().for_each(|(name, value)| message.system.set(*name, *value));
    application.iter().for_each(|(name, value)| message.application.set(*name, *value));
    let queued = QueuedMessage { device_id: "dev1".into(), message, ack: DeliveryAck::Full, expiry: None };
    local.hub.with(|hub, now| hub.enqueue(queued, now)).expect("room");
}

/// The topic and the body of the next message, which must have QoS 1 and neither DUP nor RETAIN.
fn message(device: &mut Device) -> (String, Vec<u8>) {
    let (head, topic, id, body) = published(device.frame());
    assert!(head == 0x32 && id.is_some_and(|id| id > 0), "{head:#x} {id:?}");
    (topic, body)
}

fn puback(device: &mut Device, id: Option<u16>) {
    let [high, low] = id.expect("QoS 1").to_be_bytes();
    device.send_bytes(&[0x40, 2, high, low]);
}

/// Fails unless every SDK can read the topic: a slash, system properties first, pairs, upper-case escapes.
#[track_caller]
fn check_topic(topic: &str) {
    let bag = topic.strip_prefix(PREFIX).unwrap_or_else(|| panic!("no slash after devicebound: {topic}"));
    assert!(bag.starts_with("%24.mid=") || bag.starts_with("%24.to="), "{topic}");
    for pair in bag.split('&') {
        let (name, value) = pair.split_once('=').unwrap_or_else(|| panic!("a bare key: {pair}"));
        for part in [name, value] {
            let mut left = part.bytes();
            while let Some(byte) = left.next() {
                let upper =
                    |byte: Option<u8>| byte.is_some_and(|b| b.is_ascii_digit() || (b'A'..=b'F').contains(&b));
                let escaped = byte == b'%' && upper(left.next()) && upper(left.next());
                assert!(
                    escaped || byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte),
                    "{part} in {topic}"
                );
            }
        }
    }
}

#[test]
fn line_06_topics_have_their_slash_their_prefix_and_upper_case_escapes() {
    let local = Local::start();
    let mut device = subscribed(&local);
    let system = [
        ("$.ct", "application/json"),
        ("$.ce", "utf-8"),
        ("$.cid", "c:1"),
        ("$.uid", "u"),
        ("$.to", "/devices/dev1/messages/deviceBound"),
        ("$.mid", "m-1"),
        ("iothub-ack", "full"),
    ];
    let application = [("cmd", "re boot"), ("empty", ""), ("sum", "1+1=2&~"), ("a/b", "<\"%\">")];
    enqueue(&local, &system, &application, b"{\"delay\":5}");
    let (topic, body) = message(&mut device);
    assert_eq!(
        topic,
        "devices/dev1/messages/devicebound/%24.mid=m-1&%24.to=%2Fdevices%2Fdev1%2Fmessages%2FdeviceBound\
         &%24.ct=application%2Fjson&%24.ce=utf-8&%24.cid=c%3A1&%24.uid=u&iothub-ack=full\
         &cmd=re%20boot&empty=&sum=1%2B1%3D2%26~&a%2Fb=%3C%22%25%22%3E"
    );
    assert_eq!(body, b"{\"delay\":5}");
    // A name and a value have all the characters that a message may have.
    let all: String = (' '..='~').collect();
    enqueue(&local, &[], &[(&all, &all)], b"");
    let (topic, body) = message(&mut device);
    check_topic(&topic);
    assert!(body.is_empty() && !topic.contains('+') && !topic.contains("%2b"), "{topic}");
}

#[test]
fn line_07_each_topic_names_its_destination_and_has_no_bare_key() {
    let emulator = Emulator::start();
    let mut device = emulator_twins::sign_in(&emulator, true);
    device.send_bytes(&subscribe(&[(DEVICEBOUND, 1)]));
    assert_eq!(device.frame(), Some(vec![0x90, 3, 0, 7, 1]));
    // Back ends send messages with an id and without, and properties with and without values.
    for arguments in [
        &["--message-id", "m-1", "--property", "flag="][..],
        &["--data", "x"],
        &[
            "--message-id",
            "m:2",
            "--correlation-id",
            "c",
            "--user-id",
            "u",
            "--expiry",
            "10m",
            "--ack",
            "full",
        ],
    ] {
        emulator.send("dev1", arguments);
        let (topic, _) = message(&mut device);
        check_topic(&topic);
        let destination = "%24.to=%2Fdevices%2Fdev1%2Fmessages%2Fdevice";
        assert!(topic.contains("%24.mid=") && topic.contains(destination), "{topic}");
    }
    // Even if a message has no property, the topic has one that begins with %24.
    let local = Local::start();
    let mut device = subscribed(&local);
    enqueue(&local, &[], &[], b"");
    let (topic, _) = message(&mut device);
    assert_eq!(topic, format!("{PREFIX}%24.to=%2Fdevices%2Fdev1%2Fmessages%2Fdevicebound"));
    enqueue(&local, &[], &[("first", "1")], b"");
    let (topic, _) = message(&mut device);
    check_topic(&topic);
}

/// How far the clock of the next test is ahead of the real time.
static LATER: AtomicU64 = AtomicU64::new(0);

fn later() -> SystemTime {
    SystemTime::now() + Duration::from_secs(LATER.load(Ordering::SeqCst))
}

#[test]
fn line_08_a_message_without_puback_is_locked_for_a_minute_and_comes_again_without_a_count() {
    let local = Local::start_as("localhost", later);
    let mut device = subscribed(&local);
    local.send("one").expect("room");
    let (head, topic, first, _) = published(device.frame());
    assert_eq!(head, 0x32);
    let locked = |local: &Local| {
        local.hub.with(|hub, now| {
            hub.tick(now);
            let queued: Vec<_> =
                hub.queued("dev1").map(|one| (one.locked_until, one.delivery_count)).collect();
            (queued, now)
        })
    };
    let (queued, now) = locked(&local);
    let until = queued[0].0.expect("locked");
    let left = until.duration_since(now).expect("in the future");
    assert!(LOCK_TIME == Duration::from_secs(60) && left <= LOCK_TIME && left > Duration::from_secs(30));
    LATER.store(29, Ordering::SeqCst);
    assert_eq!(locked(&local).0, [(Some(until), 0)], "before the minute is over");
    LATER.store(61, Ordering::SeqCst);
    assert_eq!(locked(&local).0, [(None, 0)], "enqueued again, and no delivery is counted");
    // The lock has expired, so this PUBACK does not complete the message.
    puback(&mut device, first);
    expect_silence(&mut device);
    assert_eq!(locked(&local).0, [(None, 0)]);
    // The next connection gets the message with DUP, if it did not come earlier.
    let (mut device, connack) = sign_in(&local, false);
    assert_eq!(connack, ACCEPTED_WITH_SESSION);
    let (head, again, second, _) = published(device.frame());
    assert_eq!((head, again), (0x3a, topic));
    puback(&mut device, second);
    expect_silence(&mut device);
    assert_eq!(locked(&local).0, []);
    assert_eq!(local.feedback(), [("one".to_owned(), FeedbackStatus::Success)]);
}

#[test]
fn line_08_pubacks_complete_and_a_lost_connection_gives_the_rest_back_in_order() {
    let local = Local::start();
    let mut device = subscribed(&local);
    for id in ["a", "b", "c", "d"] {
        local.send(id).expect("room");
    }
    let frames: Vec<_> = (0..4).map(|_| published(device.frame())).collect();
    let ids: Vec<_> = frames.iter().map(|(_, _, id, _)| id.expect("QoS 1")).collect();
    assert!(ids.windows(2).all(|two| two[0] != two[1]), "{ids:?}");
    // PUBACKs may come in any order.
    puback(&mut device, frames[2].2);
    puback(&mut device, frames[1].2);
    expect_silence(&mut device);
    let mut told = Vec::new();
    while told.len() < 2 {
        told.extend(local.feedback());
    }
    assert_eq!(told, ["c", "b"].map(|id| (id.to_owned(), FeedbackStatus::Success)));
    // A PUBACK for no message is ignored.
    device.send_bytes(&[0x40, 2, 0x12, 0x34]);
    expect_silence(&mut device);
    drop(device);
    let (mut device, _) = sign_in(&local, false);
    local.send("e").expect("room");
    let again: Vec<_> = (0..3).map(|_| published(device.frame())).collect();
    let again: Vec<_> = again.iter().map(|(head, _, _, body)| (*head, body.as_slice())).collect();
    assert_eq!(again, [(0x3a, &b"a"[..]), (0x3a, b"d"), (0x32, b"e")]);
    let counts: Vec<_> = local.hub.with(|hub, _| hub.queued("dev1").map(|one| one.delivery_count).collect());
    assert_eq!(counts, [0, 0, 0]);
}

/// Fails unless the text after the question mark consists of pairs.
#[track_caller]
fn check_pairs(topic: &str) {
    let (_, query) = topic.split_once("/?").unwrap_or_else(|| panic!("no question mark: {topic}"));
    for pair in query.split('&') {
        let (name, value) = pair.split_once('=').unwrap_or_else(|| panic!("a bare key: {topic}"));
        assert!(name.starts_with('$') && !value.is_empty(), "{topic}");
    }
}

#[test]
fn line_09_twin_topics_echo_the_request_id_and_have_only_pairs() {
    let emulator = Emulator::start();
    let mut device = emulator_twins::sign_in(&emulator, true);
    device
        .send_bytes(&subscribe(&[("$iothub/twin/res/#", 1), ("$iothub/twin/PATCH/properties/desired/#", 1)]));
    assert_eq!(device.frame(), Some(vec![0x90, 4, 0, 7, 1, 1]));
    let mut request = |topic: &str, body: &str| {
        device.send_bytes(&publish(topic, body));
        let (head, topic, _, body) = published(device.frame());
        assert_eq!(head, 0x30, "QoS 0");
        check_pairs(&topic);
        let json = if body.is_empty() { Value::Null } else { serde_json::from_slice(&body).expect("JSON") };
        (topic, json)
    };
    // Node and Python send a space as the body.
    for (rid, body) in [("1", ""), ("a%20b-c", " "), ("3edd939a-75c8", " ")] {
        let (topic, twin) = request(&format!("$iothub/twin/GET/?$rid={rid}"), body);
        assert_eq!(topic, format!("$iothub/twin/res/200/?$rid={rid}"));
        assert_eq!(twin, json!({ "desired": { "$version": 1 }, "reported": { "$version": 1 } }));
    }
    let patch = "$iothub/twin/PATCH/properties/reported/?$rid=";
    let (topic, body) = request(&format!("{patch}p-1"), r#"{"led":"on","old":null}"#);
    assert_eq!((topic.as_str(), body), ("$iothub/twin/res/204/?$rid=p-1&$version=2", Value::Null));
    let (topic, body) = request(&format!("{patch}p-2"), "no JSON");
    assert_eq!(topic, "$iothub/twin/res/400/?$rid=p-2");
    assert!(
        body["errorCode"].is_u64() && body["message"].is_string() && body["trackingId"].is_string(),
        "{body}"
    );

    let write = json!({ "properties": { "desired": { "level": 3 } } }).to_string();
    let line = "PATCH /twins/dev1?api-version=2021-04-12";
    let policy = crate::rest::policy_token(&emulator, "service");
    assert_eq!(ask(&emulator, line, &policy, "", write.as_bytes()).status, 200);
    let (head, topic, _, body) = published(device.frame());
    assert_eq!((head, topic.as_str()), (0x30, "$iothub/twin/PATCH/properties/desired/?$version=2"));
    let body: Value = serde_json::from_slice(&body).expect("JSON");
    assert_eq!(body, json!({ "level": 3, "$version": 2 }));
}

#[test]
fn line_09_method_topics_name_the_method_and_the_request_and_answers_find_their_call() {
    let emulator = Emulator::start();
    let mut device = emulator_twins::sign_in(&emulator, true);
    device.send_bytes(&subscribe(&[("$iothub/methods/POST/#", 0)]));
    assert_eq!(device.frame(), Some(vec![0x90, 3, 0, 7, 0]));
    let call = |body: &str| {
        let line = "POST /twins/dev1/methods?api-version=2021-04-12";
        ask(&emulator, line, &service_token(&emulator), "", body.as_bytes())
    };
    for (sent, name, payload, status) in [
        (r#"{"methodName":"reboot","payload":{"delay":5}}"#, "reboot", r#"{"delay":5}"#, "200"),
        (r#"{"methodName":"re boot/now"}"#, "re%20boot%2Fnow", "null", "404"),
    ] {
        std::thread::scope(|scope| {
            let caller = scope.spawn(|| call(sent));
            let (head, topic, _, body) = published(device.frame());
            assert_eq!((head, body.as_slice()), (0x30, payload.as_bytes()), "QoS 0");
            check_pairs(&topic);
            let rid = topic.strip_prefix(&format!("$iothub/methods/POST/{name}/?$rid=")).expect(&topic);
            device.send_bytes(&publish(
                &format!("$iothub/methods/res/{status}/?$rid={rid}"),
                r#"{"done":true}"#,
            ));
            let answer = caller.join().expect("an answer");
            assert_eq!(answer.status, 200, "{answer:?}");
            assert_eq!(answer.body, format!(r#"{{"status":{status},"payload":{{"done":true}}}}"#));
        });
    }
}

#[test]
fn line_10_the_first_packet_of_a_connection_is_connack_whatever_waits() {
    let local = Local::start();
    let mut device = subscribed(&local);
    device.send_bytes(&subscribe(&[
        ("$iothub/methods/POST/#", 1),
        ("$iothub/twin/PATCH/properties/desired/#", 1),
    ]));
    assert_eq!(device.frame(), Some(vec![0x90, 4, 0, 7, 1, 1]));
    drop(device);
    for number in 0..50 {
        local.send(&format!("m{number}")).expect("room");
    }
    for _ in 0..5 {
        // The CONNECT comes in two parts. Between them there is time for a message that must not come.
        let mut device = local.dial();
        let bytes = connect("dev1", USER, &local.token(600), false);
        let (first, rest) = bytes.split_at(20);
        device.send_bytes(first);
        local.hub.with(|hub, now| hub.tick(now));
        device.send_bytes(rest);
        assert_eq!(device.frame().as_deref(), Some(&ACCEPTED_WITH_SESSION[..]));
        assert_eq!(published(device.frame()).3, b"m0");
    }
    // A new session gets CONNACK, SUBACK, and only then messages.
    let (mut device, _) = sign_in(&local, true);
    device.send_bytes(&subscribe(&[(DEVICEBOUND, 1)]));
    assert_eq!(device.frame(), Some(vec![0x90, 3, 0, 7, 1]));
    assert_eq!(published(device.frame()).3, b"m0");
}
