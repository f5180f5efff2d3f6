//! The emulator's faults as a device and its sender see them, how a fault is set, and the agent under each fault
//! (`agent`).
//!
//! Owns: faults over MQTT, the faults that AMQP and HTTPS also have, the control routes, the flag. Must not know: how a
//! fault is decided.

use std::time::{Duration, Instant};

use rumqttc::mqttbytes::QoS;
use rumqttc::mqttbytes::v4::{Connect, ConnectReturnCode, Packet, Publish};
use serde_json::{Value, json};

use crate::emulator_mqtt::device::Device;
use crate::emulator_twins::sign_in;
use crate::harness::{Emulator, Process, binary, run};
use crate::rest::{exchange, policy_token, service_token};
use crate::rest_ask::{Answer, ask, device_token};

mod agent;

const DEVICEBOUND: &str = "devices/dev1/messages/devicebound/#";
const FAULTS: &str = "/emulator/devices/dev1/faults";

/// A request to the control routes, below those of `dev1`.
fn control(emulator: &Emulator, method: &str, below: &str, value: &str) -> Answer {
    ask(emulator, &format!("{method} {FAULTS}{below}"), &service_token(emulator), "", value.as_bytes())
}

/// Sets a fault of `dev1`. The fault is active when this returns.
#[track_caller]
fn set(emulator: &Emulator, name: &str, value: &str) {
    let answer = control(emulator, "PUT", &format!("/{name}"), value);
    assert_eq!(answer.status, 200, "{answer:?}");
    assert!(answer.json()["faults"].get(name).is_some(), "{answer:?}");
}

/// The faults of `dev1`.
fn faults(emulator: &Emulator) -> Value {
    let answer = control(emulator, "GET", "", "");
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()["faults"].clone()
}

fn subscribed(emulator: &Emulator) -> Device {
    let mut device = sign_in(emulator, false);
    device.subscribe(&[(DEVICEBOUND, QoS::AtLeastOnce)]);
    device
}

/// Queues a message whose id is its body.
fn send(emulator: &Emulator, id: &str) {
    emulator.send("dev1", &["--message-id", id, "--data", id]);
}

/// Starts a sender of such a message, which waits for the feedback.
fn send_waiting(emulator: &Emulator, id: &str) -> Process {
    let mut sender = emulator.sender("dev1");
    let sender = Process::spawn(sender.args(["--message-id", id, "--data", id, "--wait=25s"]));
    emulator.process.stderr.wait_for(&format!("queued a C2D message device_id=\"dev1\" message_id=\"{id}\""));
    sender
}

/// Fails unless the hub refuses a message with this condition.
#[track_caller]
fn refused_with(emulator: &Emulator, condition: &str) {
    let refused = run(emulator.sender("dev1").args(["--data", "x", "--json"]));
    let said = String::from_utf8_lossy(&refused.stdout).into_owned();
    assert_eq!(refused.status.code(), Some(1), "{said}");
    let last: Value = serde_json::from_str(said.lines().last().unwrap_or_default()).expect("JSON");
    assert_eq!(last["condition"], condition, "{said}");
}

/// The states of the messages in the queue of `dev1`.
fn queue(emulator: &Emulator) -> Vec<Value> {
    let overview = ask(emulator, "GET /emulator/overview", &service_token(emulator), "", b"").json();
    let queue = overview["devices"][0]["queue"].as_array().expect("a queue").clone();
    queue.iter().map(|message| message["state"].clone()).collect()
}

/// Connects and sends the CONNECT of `dev1`. The emulator may accept it or not.
fn connect(emulator: &Emulator) -> Device {
    let config = c2d_agent::tls::client_config(Some(&emulator.ca_file()), None).expect("a configuration");
    let mut device = Device::dial_with(emulator.mqtt, config);
    let mut connect = Connect::new("dev1");
    connect.clean_session = false;
    connect.set_login("localhost/dev1/?api-version=2021-04-12", device_token(emulator, "dev1"));
    device.send(Packet::Connect(connect));
    device
}

#[test]
fn drop_at_loses_the_packet_of_that_number_whoever_sent_it_and_only_that_one() {
    let emulator = Emulator::start_with(&["--device", "dev1", "--fault", "drop-at=6"]);
    // The packets are CONNECT, CONNACK, SUBSCRIBE, SUBACK, PUBLISH, PUBACK.
    let mut device = subscribed(&emulator);
    let sender = send_waiting(&emulator, "m-1");
    let publish = device.publish();
    device.puback(&publish);
    device.expect_close();
    assert_eq!(faults(&emulator), json!({}), "it happens once");
    let mut device = sign_in(&emulator, false);
    let again = device.publish();
    assert!(again.dup && again.payload == publish.payload, "the PUBACK was lost: {again:?}");
    device.puback(&again);
    assert_eq!(sender.wait_exit().code(), Some(0), "{}", sender.stderr.text());

    // On an existing connection, the packets are PINGREQ, PINGRESP, PUBLISH.
    set(&emulator, "drop-at", "3");
    device.expect_silence();
    assert_eq!(faults(&emulator), json!({ "drop-at": "1" }), "what is left of it");
    let overview = ask(&emulator, "GET /emulator/overview", &service_token(&emulator), "", b"").json();
    assert_eq!(overview["devices"][0]["faults"], json!({ "drop-at": "1" }));
    send(&emulator, "m-2");
    device.expect_close();
    let mut device = sign_in(&emulator, false);
    assert_eq!(device.bodies(1), ["m-2"]);

    // The first packets of a connection can be dropped, too.
    for at in ["1", "2"] {
        set(&emulator, "drop-at", at);
        connect(&emulator).expect_close();
    }
    assert_eq!(connect(&emulator).connack().code, ConnectReturnCode::Success);
}

#[test]
fn delay_holds_a_message_back_for_its_time() {
    let emulator = Emulator::start();
    let mut device = subscribed(&emulator);
    set(&emulator, "delay", "1s");
    let before = Instant::now();
    send(&emulator, "m-1");
    device.expect_silence();
    let own = device_token(&emulator, "dev1");
    let next = "GET /devices/dev1/messages/devicebound?api-version=2021-04-12";
    assert_eq!(ask(&emulator, next, &own, "", b"").status, 204, "over HTTPS, too");
    assert_eq!(queue(&emulator), ["enqueued"]);
    assert_eq!(device.bodies(1), ["m-1"]);
    assert!(before.elapsed() >= Duration::from_secs(1), "{:?}", before.elapsed());
    // After the end of the fault, waiting messages go out at once.
    set(&emulator, "delay", "1h");
    send(&emulator, "m-2");
    device.expect_silence();
    assert_eq!(control(&emulator, "DELETE", "/delay", "").json()["faults"], json!({}));
    assert_eq!(device.bodies(1), ["m-2"]);
}

#[test]
fn duplicate_sends_a_message_twice_and_either_puback_completes_it() {
    let emulator = Emulator::start_with(&["--device", "dev1", "--fault", "dev1:duplicate=2"]);
    let mut device = subscribed(&emulator);
    for (id, acknowledged) in [("m-1", 0), ("m-2", 1)] {
        let sender = send_waiting(&emulator, id);
        let both = [device.publish(), device.publish()];
        assert_eq!(
            both.each_ref().map(|publish| (publish.payload.as_ref(), publish.dup)),
            [(id.as_bytes(), false), (id.as_bytes(), true)]
        );
        assert_ne!(both[0].pkid, both[1].pkid);
        assert_eq!(both[0].topic, both[1].topic);
        device.puback(&both[acknowledged]);
        assert_eq!(sender.wait_exit().code(), Some(0), "{}", sender.stderr.text());
        device.puback(&both[1 - acknowledged]);
        device.expect_silence();
    }
    send(&emulator, "m-3");
    assert_eq!(device.bodies(1), ["m-3"], "two were asked for");
    device.expect_silence();
}

#[test]
fn ignore_puback_leaves_a_message_locked_and_the_next_connection_gets_it_again() {
    let emulator = Emulator::start();
    let mut device = subscribed(&emulator);
    set(&emulator, "ignore-puback", "1");
    let sender = send_waiting(&emulator, "m-1");
    let publish = device.publish();
    device.puback(&publish);
    device.expect_silence();
    assert_eq!(queue(&emulator), ["invisible"], "the PUBACK did nothing");
    assert_eq!(faults(&emulator), json!({}));
    drop(device);
    let mut device = sign_in(&emulator, false);
    let again = device.publish();
    assert!(again.dup && again.payload == publish.payload, "{again:?}");
    device.puback(&again);
    assert_eq!(sender.wait_exit().code(), Some(0), "{}", sender.stderr.text());
}

#[test]
fn expire_token_ends_the_connection_that_is_there_or_else_the_next_one() {
    let emulator = Emulator::start();
    let mut device = subscribed(&emulator);
    set(&emulator, "expire-token", "");
    device.expect_close();
    emulator.process.stderr.wait_for("the token expired");
    assert_eq!(faults(&emulator), json!({}));
    set(&emulator, "expire-token", "");
    assert_eq!(faults(&emulator), json!({ "expire-token": null }), "nobody is there");
    let mut device = sign_in(&emulator, false);
    device.expect_close();
    sign_in(&emulator, false).expect_silence();

    set(&emulator, "expire-token", "");
    let own = device_token(&emulator, "dev1");
    let next = "GET /devices/dev1/messages/devicebound?api-version=2021-04-12";
    drop(ask(&emulator, next, &own, "", b""));
    assert_eq!(ask(&emulator, next, &own, "", b"").status, 204);
}

#[test]
fn throttle_is_told_in_the_words_of_each_transport() {
    let emulator = Emulator::start();
    let mut device = sign_in(&emulator, false);
    device.subscribe(&[(DEVICEBOUND, QoS::AtLeastOnce), ("$iothub/twin/res/#", QoS::AtMostOnce)]);
    set(&emulator, "throttle", "");
    device.send(Packet::Publish(Publish::new("$iothub/twin/GET/?$rid=7", QoS::AtMostOnce, "")));
    let answer = device.publish();
    assert_eq!(answer.topic, "$iothub/twin/res/429/?$rid=7");
    let body: Value = serde_json::from_slice(&answer.payload).expect("JSON");
    assert_eq!(body["errorCode"], 429_001);
    device.send(Packet::Publish(Publish::new("devices/dev1/messages/events/", QoS::AtMostOnce, "x")));
    device.expect_close();
    let mut device = connect(&emulator);
    assert_eq!(device.connack().code, ConnectReturnCode::ServiceUnavailable);
    device.expect_close();

    let own = device_token(&emulator, "dev1");
    let events = "POST /devices/dev1/messages/events?api-version=2021-04-12";
    for line in ["GET /devices/dev1/messages/devicebound?api-version=2021-04-12", events] {
        let answer = ask(&emulator, line, &own, "", b"");
        assert!(answer.status == 429 && answer.body.contains("ErrorCode:ThrottlingException;"), "{answer:?}");
    }
    refused_with(&emulator, "com.microsoft:device-container-throttled");
    let form = "POST /emulator/devices/dev1/messages";
    assert_eq!(ask(&emulator, form, &service_token(&emulator), "", b"{}").status, 429);

    assert_eq!(control(&emulator, "DELETE", "/throttle", "").status, 200);
    assert_eq!(ask(&emulator, events, &own, "", b"x").status, 204);
    send(&emulator, "m-1");
    assert_eq!(sign_in(&emulator, false).bodies(1), ["m-1"]);
}

#[test]
fn queue_full_refuses_messages_as_if_fifty_waited() {
    let emulator = Emulator::start();
    set(&emulator, "queue-full", "");
    refused_with(&emulator, "amqp:resource-limit-exceeded");
    assert!(queue(&emulator).is_empty());
    assert_eq!(control(&emulator, "DELETE", "/queue-full", "").status, 200);
    send(&emulator, "m-1");
}

#[test]
fn reverse_order_sends_what_waits_newest_first() {
    let emulator = Emulator::start_with(&["--device", "dev1", "--fault", "reverse-order"]);
    for id in ["m-1", "m-2", "m-3"] {
        send(&emulator, id);
    }
    let mut device = subscribed(&emulator);
    assert_eq!(device.bodies(3), ["m-3", "m-2", "m-1"]);
}

#[test]
fn early_publish_comes_right_after_connack_and_before_suback() {
    let emulator = Emulator::start_with(&["--device", "dev1", "--fault", "early-publish"]);
    send(&emulator, "m-1");
    let mut device = sign_in(&emulator, true);
    let early = device.publish();
    assert_eq!((early.payload.as_ref(), early.qos), (&b"m-1"[..], QoS::AtLeastOnce));
    device.puback(&early);
    device.subscribe(&[(DEVICEBOUND, QoS::AtLeastOnce)]);
    device.expect_silence();
}

#[test]
fn over_https_drop_at_counts_requests_and_reverse_order_and_duplicate_hold_as_well() {
    let emulator = Emulator::start();
    let own = device_token(&emulator, "dev1");
    let next = "GET /devices/dev1/messages/devicebound?api-version=2021-04-12";
    let id = |answer: &Answer| answer.header("iothub-messageid").map(str::to_owned);
    send(&emulator, "m-1");
    send(&emulator, "m-2");
    for (name, value) in [("drop-at", "2"), ("reverse-order", ""), ("duplicate", "1")] {
        set(&emulator, name, value);
    }
    let first = ask(&emulator, next, &own, "", b"");
    let request = format!("{next} HTTP/1.1\r\nHost: localhost\r\nAuthorization: {own}\r\n\r\n");
    assert_eq!(exchange(&emulator, request.as_bytes()), "", "no answer at all");
    let copy = ask(&emulator, next, &own, "", b"");
    assert_eq!([id(&first), id(&copy)], [Some("m-2".to_owned()), Some("m-2".to_owned())]);
    assert_eq!(first.header("etag"), copy.header("etag"), "one lock for both");
    assert_eq!(id(&ask(&emulator, next, &own, "", b"")).as_deref(), Some("m-1"));
    emulator.process.stderr.wait_for("dropped because of the fault drop-at");
}

#[test]
fn faults_are_shown_changed_and_ended_by_the_control_routes() {
    let emulator = Emulator::start_with(&["--device", "dev1", "--device", "dev2"]);
    assert_eq!(control(&emulator, "GET", "", "").json(), json!({ "deviceId": "dev1", "faults": {} }));
    for (name, value) in [("delay", " 2s\n"), ("duplicate", ""), ("ignore-puback", "3"), ("throttle", "")] {
        set(&emulator, name, value);
    }
    set(&emulator, "duplicate", "4");
    let all = json!({ "delay": "2s", "duplicate": "4", "ignore-puback": "3", "throttle": null });
    assert_eq!(faults(&emulator), all);
    let other = ask(&emulator, "GET /emulator/devices/dev2/faults", &service_token(&emulator), "", b"");
    assert_eq!(other.json()["faults"], json!({}), "they are dev1's");
    let left = json!({ "duplicate": "4", "ignore-puback": "3", "throttle": null });
    assert_eq!(control(&emulator, "DELETE", "/delay", "").json()["faults"], left);
    assert_eq!(control(&emulator, "DELETE", "/delay", "").json()["faults"], left, "it needs no end");
    assert_eq!(control(&emulator, "DELETE", "", "").json()["faults"], json!({}));
    assert_eq!(faults(&emulator), json!({}));
}

#[test]
fn what_the_control_routes_do_not_take_is_answered_with_what_they_do() {
    let emulator = Emulator::start();
    let all = "drop-at=N, delay=DURATION, duplicate[=N], ignore-puback[=N], expire-token, throttle, queue-full, \
               reverse-order, early-publish, certificate=refuse|hold|other-key|broken|critical|unsupported";
    let long = "9".repeat(65);
    for (method, below, value, status, part) in [
        ("PUT", "/drop", "1", 400, all),
        ("DELETE", "/drop", "", 400, all),
        ("PUT", "/drop-at", "", 400, "give a number from 1"),
        ("PUT", "/drop-at", "0", 400, "\\\"0\\\" is not a value for the fault drop-at"),
        ("PUT", "/duplicate", "many", 400, "\\\"many\\\" is not a value for the fault duplicate"),
        ("PUT", "/delay", "5", 400, "give a time with its unit"),
        ("PUT", "/throttle", "yes", 400, "it takes no value"),
        ("PUT", "/drop-at", &long, 413, "more than 64 bytes"),
        ("PUT", "/delay", "\u{1b}[2J", 400, "is not a value for the fault delay"),
        ("POST", "/drop-at", "1", 405, "PUT, DELETE only"),
        ("PUT", "", "1", 405, "GET, DELETE only"),
    ] {
        let answer = control(&emulator, method, below, value);
        assert!(
            answer.status == status && answer.body.contains(part),
            "{method} {below} {value}: {answer:?}"
        );
    }
    assert_eq!(faults(&emulator), json!({}));
    let token = service_token(&emulator);
    for line in ["GET /emulator/devices/none/faults", "PUT /emulator/devices/none/faults/throttle"] {
        let answer = ask(&emulator, line, &token, "", b"");
        assert!(answer.status == 404 && answer.body.contains("DeviceNotFound"), "{line}: {answer:?}");
    }
    let strangers = [String::new(), device_token(&emulator, "dev1"), policy_token(&emulator, "device")];
    for token in strangers {
        for line in [format!("GET {FAULTS}"), format!("PUT {FAULTS}/throttle"), format!("DELETE {FAULTS}")] {
            assert_eq!(ask(&emulator, &line, &token, "", b"").status, 401, "{line}");
        }
    }
    assert_eq!(faults(&emulator), json!({}));
}

#[test]
fn flags_are_for_one_device_or_for_all_and_wrong_ones_are_named() {
    let arguments =
        ["--device", "dev1", "--device", "d:2", "--fault", "throttle", "--fault", "d:2:delay=90s"];
    let emulator = Emulator::start_with(&arguments);
    assert_eq!(faults(&emulator), json!({ "throttle": null }));
    let other = ask(&emulator, "GET /emulator/devices/d:2/faults", &service_token(&emulator), "", b"");
    assert_eq!(other.json()["faults"], json!({ "throttle": null, "delay": "1m 30s" }));

    let dir = tempfile::tempdir().expect("a directory");
    for (fault, part) in [
        ("drop", "there is no fault \"drop\"; there are drop-at=N, delay=DURATION"),
        ("dev1:drop-at=x", "\"x\" is not a value for the fault drop-at: give a number from 1 to 1000000"),
        ("delay=", "there is no value after \"delay=\""),
        ("dev9:throttle", "there is no device \"dev9\" for this fault: name it with --device, too"),
    ] {
        let mut command = binary();
        command.args([
            "emulator",
            "--mqtt-port",
            "0",
            "--amqp-port",
            "0",
            "--https-port",
            "0",
            "--fault",
            fault,
        ]);
        let output = run(command.arg("--state-dir").arg(dir.path().join("state")));
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(2) && said.contains(part), "{fault}: {said}");
    }
    let help = run(binary().args(["emulator", "--help"]));
    let help = String::from_utf8_lossy(&help.stdout).into_owned();
    for name in faults_in_words() {
        assert!(help.contains(&format!("  {name}")), "{name} is not in the help");
    }
}

/// The names of the faults, as the emulator prints them.
fn faults_in_words() -> Vec<String> {
    let output = run(binary().args(["emulator", "--fault", "?"]));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let list = said.split("there are ").nth(1).expect("a list").lines().next().expect("a line");
    let names: Vec<String> =
        list.split(", ").map(|name| name.split(['=', '[']).next().unwrap_or(name).to_owned()).collect();
    assert_eq!(names.len(), 10, "{list}");
    names
}
