//! Lines 24 and 25: what a hub does with messages over any protocol, and the faults of the emulator.
//!
//! Owns: nothing. Must not know: packets, links.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use c2d_agent::emulator::hub::{Hub, LockLost};
use c2d_agent::feedback::FeedbackStatus;
use rumqttc::mqttbytes::QoS;
use rumqttc::mqttbytes::v4::{Connect, ConnectReturnCode, Packet};
use serde_json::{Value, json};

use crate::emulator_mqtt::device::{Device, Local};
use crate::emulator_twins::sign_in;
use crate::harness::{DEADLINE, Emulator, run};
use crate::rest::service_token;
use crate::rest_ask::{Answer, ask, device_token};

const NEXT: &str = "GET /devices/dev1/messages/devicebound?api-version=2021-04-12";
const DEVICEBOUND: &str = "devices/dev1/messages/devicebound/#";

/// Queues a message whose id is its body.
fn send(emulator: &Emulator, id: &str, more: &Value) -> Answer {
    let mut form = json!({ "messageId": id, "body": id });
    if let (Some(form), Some(more)) = (form.as_object_mut(), more.as_object()) {
        form.extend(more.clone());
    }
    let line = "POST /emulator/devices/dev1/messages";
    ask(emulator, line, &service_token(emulator), "", form.to_string().as_bytes())
}

/// The next message as the device gets it: its id, lock and delivery count. The message must exist.
#[track_caller]
fn receive(emulator: &Emulator, token: &str) -> (String, String, String) {
    let answer = ask(emulator, NEXT, token, "", b"");
    assert_eq!(answer.status, 200, "{answer:?}");
    let header = |name| answer.header(name).unwrap_or_default().trim_matches('"').to_owned();
    (header("iothub-messageid"), header("etag"), header("iothub-deliverycount"))
}

/// Settles a delivery as the device.
#[track_caller]
fn settle(emulator: &Emulator, token: &str, how: &str, lock: &str) {
    let path = format!("/devices/dev1/messages/devicebound/{lock}");
    let line = match how {
        "complete" => format!("DELETE {path}?api-version=2021-04-12"),
        "reject" => format!("DELETE {path}?api-version=2021-04-12&reject"),
        _ => format!("POST {path}/abandon?api-version=2021-04-12"),
    };
    assert_eq!(ask(emulator, &line, token, "", b"").status, 204, "{how}");
}

/// Adds feedback to `told` until it has `enough`.
fn gather(emulator: &Emulator, told: &mut BTreeMap<String, Vec<String>>, enough: &str) {
    let (token, end) = (service_token(emulator), Instant::now() + DEADLINE);
    while !told.contains_key(enough) {
        assert!(Instant::now() < end, "no feedback on {enough}: {told:?}");
        let batch = ask(emulator, "GET /messages/serviceBound/feedback?api-version=1", &token, "", b"");
        if batch.status == 204 {
            std::thread::park_timeout(Duration::from_millis(20)); // the route does not wait: poll
            continue;
        }
        for record in batch.json().as_array().expect("records") {
            let text = |name: &str| record[name].as_str().expect("text").to_owned();
            assert_eq!((text("deviceId").as_str(), text("description")), ("dev1", text("statusCode")));
            told.entry(text("originalMessageId")).or_default().push(text("statusCode"));
        }
        let lock = batch.header("etag").expect("a lock").trim_matches('"').to_owned();
        let line = format!("DELETE /messages/serviceBound/feedback/{lock}?api-version=1");
        assert_eq!(ask(emulator, &line, &token, "", b"").status, 204);
    }
}

#[test]
fn line_24_a_queue_holds_fifty_messages_first_in_first_out() {
    let emulator = Emulator::start();
    let own = device_token(&emulator, "dev1");
    let ids: Vec<String> = (0..50).map(|number| format!("m{number}")).collect();
    for id in &ids {
        assert_eq!(send(&emulator, id, &json!({})).status, 200);
    }
    let refused = || {
        let output = run(emulator.sender("dev1").args(["--data", "x"]));
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains("already holds 50 messages"), "{said}");
    };
    refused();
    let locks: Vec<_> = (0..50).map(|_| receive(&emulator, &own)).collect();
    let order: Vec<_> = locks.iter().map(|(id, ..)| id.clone()).collect();
    assert_eq!(order, ids);
    refused();
    settle(&emulator, &own, "complete", &locks[7].1);
    emulator.send("dev1", &["--message-id", "m50"]);
    refused();
    assert_eq!(receive(&emulator, &own).0, "m50");
}

/// How far the clocks of the next two tests are ahead of the real time.
static LATER: [AtomicU64; 2] = [AtomicU64::new(0), AtomicU64::new(0)];

fn ttl_clock() -> SystemTime {
    SystemTime::now() + Duration::from_secs(LATER[0].load(Ordering::SeqCst))
}

fn lock_clock() -> SystemTime {
    SystemTime::now() + Duration::from_secs(LATER[1].load(Ordering::SeqCst))
}

#[test]
fn line_24_a_message_without_an_expiry_lives_for_an_hour() {
    let local = Local::start_as("localhost", ttl_clock);
    let sent = Instant::now();
    local.send("one").expect("room");
    let length = |hub: &mut Hub, now| {
        hub.tick(now);
        hub.queue_length("dev1")
    };
    LATER[0].store(3_540, Ordering::SeqCst);
    assert_eq!(local.hub.with(length), Some(1), "after 59 minutes");
    assert!(sent.elapsed() < Duration::from_secs(60), "too slow to tell");
    LATER[0].store(3_600, Ordering::SeqCst);
    assert_eq!(local.hub.with(length), Some(0));
    assert_eq!(local.feedback(), [("one".to_owned(), FeedbackStatus::Expired)]);
}

#[test]
fn line_24_a_lock_holds_for_a_minute_and_its_end_counts_nothing() {
    let local = Local::start_as("localhost", lock_clock);
    local.send("one").expect("room");
    let poll = || local.hub.with(|hub, now| hub.poll("dev1", now));
    let first = poll().expect("waiting");
    assert_eq!((first.delivery_count, first.redelivered), (0, false));
    let locked = Instant::now();
    LATER[1].store(29, Ordering::SeqCst);
    assert!(poll().is_none(), "locked");
    assert!(locked.elapsed() < Duration::from_secs(30), "too slow to tell");
    LATER[1].store(60, Ordering::SeqCst);
    let second = poll().expect("its minute is over");
    assert_eq!((second.delivery_count, second.redelivered), (0, true));
    let complete = |lock| local.hub.with(|hub, now| hub.complete("dev1", lock, now));
    assert_eq!(complete(first.lock), Err(LockLost));
    assert_eq!(complete(second.lock), Ok(()));
}

#[test]
fn line_24_only_abandoning_counts_and_ten_times_are_the_end() {
    let emulator = Emulator::start();
    let own = device_token(&emulator, "dev1");
    send(&emulator, "m-1", &json!({ "ack": "full" }));
    let (_, lock, count) = receive(&emulator, &own);
    assert_eq!(count, "0");
    settle(&emulator, &own, "abandon", &lock);
    // Connections over MQTT are lost, each time without a PUBACK.
    for _ in 0..3 {
        let mut device = sign_in(&emulator, true);
        device.subscribe(&[(DEVICEBOUND, QoS::AtLeastOnce)]);
        assert_eq!(device.bodies(1), ["m-1"]);
        device.send(Packet::Disconnect);
        device.expect_close();
    }
    for expected in 1..10 {
        let (id, lock, count) = receive(&emulator, &own);
        assert_eq!((id.as_str(), count), ("m-1", expected.to_string()));
        settle(&emulator, &own, "abandon", &lock);
    }
    assert_eq!(ask(&emulator, NEXT, &own, "", b"").status, 204, "dead lettered");
    let mut told = BTreeMap::new();
    gather(&emulator, &mut told, "m-1");
    assert_eq!(told["m-1"], ["DeliveryCountExceeded"]);
}

#[test]
fn line_24_feedback_is_as_the_table_has_it() {
    let emulator = Emulator::start();
    let own = device_token(&emulator, "dev1");
    let acks = ["", "none", "positive", "negative", "full"];
    let id = |ack: &str, outcome: &str| format!("{ack}-{outcome}");
    for ack in acks {
        let send = |outcome: &str| send(&emulator, &id(ack, outcome), &json!({ "ack": ack }));
        for (outcome, how, times) in
            [("Success", "complete", 1), ("Rejected", "reject", 1), ("DeliveryCountExceeded", "abandon", 10)]
        {
            assert_eq!(send(outcome).status, 200);
            for _ in 0..times {
                let (received, lock, _) = receive(&emulator, &own);
                assert_eq!(received, id(ack, outcome));
                settle(&emulator, &own, how, &lock);
            }
        }
        assert_eq!(send("Purged").status, 200);
        let purge = "DELETE /devices/dev1/commands?api-version=2021-04-12";
        let purged = ask(&emulator, purge, &service_token(&emulator), "", b"").json();
        assert_eq!(purged["totalMessagesPurged"], 1, "{purged}");
        let expiring = json!({ "ack": ack, "expiresAfterSeconds": 1 });
        assert_eq!(self::send(&emulator, &id(ack, "Expired"), &expiring).status, 200);
        let mut told = BTreeMap::new();
        // Each message must expire before the next one is sent, or it would be received instead of the next one.
        let end = Instant::now() + DEADLINE;
        while ask(&emulator, "GET /emulator/overview", &service_token(&emulator), "", b"").json()["devices"]
            [0]["queue"]
            != json!([])
        {
            assert!(Instant::now() < end && told.is_empty(), "it does not expire");
            std::thread::park_timeout(Duration::from_millis(20)); // a clock has no event: poll
        }
        // One more message is sent. When its feedback comes, all earlier feedback has come.
        assert_eq!(self::send(&emulator, "last", &json!({ "ack": "full" })).status, 200);
        let (_, lock, _) = receive(&emulator, &own);
        settle(&emulator, &own, "complete", &lock);
        gather(&emulator, &mut told, "last");
        let asked = |outcome: &str| match ack {
            "positive" => outcome == "Success",
            "negative" => outcome != "Success",
            "full" => true,
            _ => false,
        };
        let outcomes = ["Success", "Rejected", "DeliveryCountExceeded", "Purged", "Expired"];
        let told_of = |outcome: &str| (id(ack, outcome), vec![outcome.to_owned()]);
        let mut expected: BTreeMap<_, _> =
            outcomes.into_iter().filter(|outcome| asked(outcome)).map(told_of).collect();
        expected.insert("last".to_owned(), vec!["Success".to_owned()]);
        assert_eq!(told, expected, "iothub-ack {ack:?}");
    }
}

#[test]
fn line_25_every_switch_of_the_list_is_there_and_does_what_it_says() {
    let emulator = Emulator::start();
    let switch = |name: &str, value: &str| {
        let line = format!("PUT /emulator/devices/dev1/faults/{name}");
        let answer = ask(&emulator, &line, &service_token(&emulator), "", value.as_bytes());
        assert_eq!(answer.status, 200, "{answer:?}");
    };
    let end = |name: &str| {
        let line = format!("DELETE /emulator/devices/dev1/faults/{name}");
        assert_eq!(ask(&emulator, &line, &service_token(&emulator), "", b"").status, 200);
    };
    let send = |id: &str| assert_eq!(send(&emulator, id, &json!({})).status, 200);
    let mut device = sign_in(&emulator, false);
    device.subscribe(&[(DEVICEBOUND, QoS::AtLeastOnce)]);

    // Fault: PUBACKs are ignored.
    switch("ignore-puback", "1");
    send("a");
    let first = device.publish();
    device.puback(&first);
    device.expect_silence();
    // Fault: the connection closes at the next packet. The message comes again, and is now completed.
    switch("drop-at", "1");
    device.send(Packet::PingReq);
    device.expect_close();
    let mut device = sign_in(&emulator, false);
    let again = device.publish();
    assert_eq!((again.dup, &again.payload), (true, &first.payload));
    device.puback(&again);
    // Fault: a message is delivered twice.
    switch("duplicate", "1");
    send("b");
    assert_eq!(device.bodies(2), ["b", "b"]);
    // Fault: PUBLISH is delayed.
    switch("delay", "300ms");
    let before = Instant::now();
    send("c");
    assert_eq!(device.bodies(1), ["c"]);
    assert!(before.elapsed() >= Duration::from_millis(300));
    // Fault: the queue is full.
    switch("queue-full", "");
    let refused = run(emulator.sender("dev1").args(["--data", "x"]));
    assert_eq!(refused.status.code(), Some(1));
    end("queue-full");
    emulator.send("dev1", &["--data", "d"]);
    assert_eq!(device.bodies(1), ["d"]);
    // Fault: the token expires early.
    switch("expire-token", "");
    device.expect_close();
    // Fault: the device is throttled.
    switch("throttle", "");
    let config = c2d_agent::tls::client_config(Some(&emulator.ca_file()), None).expect("a configuration");
    let mut device = Device::dial_with(emulator.mqtt, config);
    let mut connect = Connect::new("dev1");
    connect.set_login("localhost/dev1/?api-version=2021-04-12", device_token(&emulator, "dev1"));
    device.send(Packet::Connect(connect));
    assert_eq!(device.connack().code, ConnectReturnCode::ServiceUnavailable);
    end("throttle");
    drop(sign_in(&emulator, false));
}
