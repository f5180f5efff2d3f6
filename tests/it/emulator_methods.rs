//! Direct methods: what a back end gets over HTTPS when a device answers over MQTT, or does not answer.
//!
//! Owns: nothing. Must not know: the agent, files of the state directory.

use std::io::Write as _;
use std::thread::ScopedJoinHandle;
use std::time::{Duration, Instant};

use rumqttc::mqttbytes::QoS;
use rumqttc::mqttbytes::v4::{Packet, Publish};
use serde_json::{Value, json};

use crate::emulator_mqtt::device::Device;
use crate::emulator_twins::sign_in;
use crate::harness::{DEADLINE, Emulator};
use crate::rest::{dial, policy_token, service_token};
use crate::rest_ask::{Answer, ask, device_token};

const METHODS: &str = "$iothub/methods/POST/#";
const PATH: &str = "/twins/dev1/methods?api-version=2021-04-12";

fn call(emulator: &Emulator, body: &str) -> Answer {
    ask(emulator, &format!("POST {PATH}"), &service_token(emulator), "", body.as_bytes())
}

/// A device that has subscribed to methods.
pub(crate) fn listening(emulator: &Emulator) -> Device {
    let mut device = sign_in(emulator, true);
    device.subscribe(&[(METHODS, QoS::AtLeastOnce)]);
    device
}

/// The next call: the name in its topic, its request id, its body.
pub(crate) fn called(device: &mut Device) -> (String, String, String) {
    let publish = device.publish();
    assert_eq!((publish.qos, publish.pkid), (QoS::AtMostOnce, 0));
    let rest = publish.topic.strip_prefix("$iothub/methods/POST/").expect(&publish.topic);
    let (name, rid) = rest.split_once("/?$rid=").expect("a request id");
    (name.to_owned(), rid.to_owned(), String::from_utf8(publish.payload.to_vec()).expect("UTF-8"))
}

pub(crate) fn respond(device: &mut Device, status: &str, rid: &str, body: &str) {
    let topic = format!("$iothub/methods/res/{status}/?$rid={rid}");
    device.send(Packet::Publish(Publish::new(topic, QoS::AtMostOnce, body)));
}

/// Status, error code, code word and message of an error, in the form that methods use.
fn error(answer: &Answer) -> (u16, u64, String, String) {
    let body = answer.json();
    let details: Value = serde_json::from_str(body["Message"].as_str().expect("a message")).expect("JSON");
    let word = answer.header("iothub-errorcode").expect("a header").to_owned();
    let message = details["message"].as_str().expect("a message").to_owned();
    (answer.status, details["errorCode"].as_u64().expect("a code"), word, message)
}

fn join(call: ScopedJoinHandle<'_, Answer>) -> Answer {
    call.join().expect("an answer")
}

#[test]
fn a_call_reaches_the_device_and_its_answer_the_caller_as_they_are() {
    let emulator = Emulator::start();
    let mut device = listening(&emulator);
    std::thread::scope(|scope| {
        let body = r#"{"methodName": "re boot/now", "payload": {"z": 1,  "a": [1e400, "é"]}}"#;
        let caller = scope.spawn(|| call(&emulator, body));
        let (name, rid, body) = called(&mut device);
        assert_eq!((name.as_str(), body.as_str()), ("re%20boot%2Fnow", r#"{"z": 1,  "a": [1e400, "é"]}"#));
        // A second call comes in between. It is answered first, at QoS 1 and so with a PUBACK.
        let second = scope.spawn(|| call(&emulator, r#"{"methodName": "second"}"#));
        let (name, second_rid, body) = called(&mut device);
        assert_eq!((name.as_str(), body.as_str()), ("second", "null"));
        let mut publish =
            Publish::new(format!("$iothub/methods/res/204/?$rid={second_rid}"), QoS::AtLeastOnce, "");
        publish.pkid = 5;
        device.send(Packet::Publish(publish));
        assert!(matches!(device.next(), Some(Packet::PubAck(ack)) if ack.pkid == 5));
        assert_eq!(join(second).json(), json!({ "status": 204, "payload": null }));
        respond(&mut device, "-3", &rid, r#"{"y":  "ü", "x": 1e400}"#);
        let answer = join(caller);
        assert_eq!(
            (answer.status, answer.header("content-type")),
            (200, Some("application/json; charset=utf-8"))
        );
        assert_eq!(answer.body, r#"{"status":-3,"payload":{"y":  "ü", "x": 1e400}}"#);
    });
}

#[test]
fn a_device_that_is_not_there_is_waited_for_as_long_as_the_caller_says() {
    let emulator = Emulator::start();
    let offline = (404, 404_103, "DeviceNotOnline".to_owned());
    let refused = error(&call(&emulator, r#"{"methodName": "x"}"#));
    assert_eq!((refused.0, refused.1, refused.2), offline);
    assert_eq!(refused.3, "Timed out waiting for device to connect.");
    // A connected device without a subscription to methods is not enough.
    let mut device = sign_in(&emulator, true);
    let since = Instant::now();
    let refused = error(&call(&emulator, r#"{"methodName": "x", "connectTimeoutInSeconds": 1}"#));
    assert_eq!((refused.0, refused.1, refused.2), offline);
    assert!(since.elapsed() >= Duration::from_secs(1), "after {:?}", since.elapsed());
    std::thread::scope(|scope| {
        let caller =
            scope.spawn(|| call(&emulator, r#"{"methodName": "x", "connectTimeoutInSeconds": 300}"#));
        device.subscribe(&[(METHODS, QoS::AtMostOnce)]);
        let (_, rid, _) = called(&mut device);
        respond(&mut device, "200", &rid, "1");
        assert_eq!(join(caller).json(), json!({ "status": 200, "payload": 1 }));
    });
}

/// `az iot hub invoke-device-method` sends its defaults so.
#[test]
fn time_outs_may_be_text() {
    let emulator = Emulator::start();
    let mut device = listening(&emulator);
    let body = r#"{"methodName": "x", "responseTimeoutInSeconds": "30", "connectTimeoutInSeconds": "10"}"#;
    std::thread::scope(|scope| {
        let caller = scope.spawn(|| call(&emulator, body));
        let (_, rid, _) = called(&mut device);
        respond(&mut device, "200", &rid, "1");
        assert_eq!(join(caller).json(), json!({ "status": 200, "payload": 1 }));
    });
}

#[test]
fn a_device_that_does_not_answer_goes_away_or_answers_nonsense_is_told_to_the_caller() {
    let emulator = Emulator::start();
    let mut device = listening(&emulator);
    std::thread::scope(|scope| {
        let slow = scope.spawn(|| call(&emulator, r#"{"methodName": "x", "responseTimeoutInSeconds": 5}"#));
        let (_, rid, _) = called(&mut device);
        let timed_out = error(&join(slow));
        let words = "Timed out waiting for the response from device.".to_owned();
        assert_eq!(timed_out, (504, 504_101, "GatewayTimeout".to_owned(), words));
        for late in [rid.as_str(), "4711", "no number", ""] {
            respond(&mut device, "200", late, "1");
            device.expect_silence();
        }
        let log = &emulator.process.stderr;
        log.wait_for_nth("ignored an answer to a method: no call waits for it", 4);

        let nonsense = scope.spawn(|| call(&emulator, r#"{"methodName": "x"}"#));
        let (_, rid, _) = called(&mut device);
        respond(&mut device, "200", &rid, "no JSON");
        let told = error(&join(nonsense));
        assert_eq!((told.0, told.1, told.2.as_str()), (502, 502_001, "BadDeviceResponse"));
        assert!(told.3.contains("it is not JSON"), "{}", told.3);

        // The time-out is far longer than this test may take.
        let lost = scope.spawn(|| call(&emulator, r#"{"methodName": "x", "responseTimeoutInSeconds": 300}"#));
        called(&mut device);
        drop(device);
        let told = error(&join(lost));
        assert_eq!((told.0, told.1, told.2.as_str()), (504, 504_101, "GatewayTimeout"));
        assert!(told.3.contains("connection ended before it answered"), "{}", told.3);
    });
    let mut device = listening(&emulator);
    respond(&mut device, "fine", "1", "1");
    device.expect_close();
}

#[test]
fn sixteen_calls_of_a_device_may_be_pending_and_one_whose_caller_hangs_up_is_not() {
    let emulator = Emulator::start();
    let token = service_token(&emulator);
    let body = r#"{"methodName": "x", "connectTimeoutInSeconds": 300}"#;
    let request = format!(
        "POST {PATH} HTTP/1.1\r\nHost: localhost\r\nAuthorization: {token}\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut callers: Vec<_> = (0..16)
        .map(|_| {
            let mut stream = dial(&emulator);
            stream.write_all(request.as_bytes()).and_then(|()| stream.flush()).expect("sent");
            stream
        })
        .collect();
    let wait_for = |status| {
        let end = Instant::now() + DEADLINE;
        loop {
            let answer = call(&emulator, r#"{"methodName": "x"}"#);
            if answer.status == status {
                return answer;
            }
            assert!(Instant::now() < end, "never {status}: {answer:?}");
        }
    };
    let full = wait_for(429).json();
    assert!(full["Message"].as_str().is_some_and(|text| text.starts_with("ErrorCode:ThrottlingException;")));
    drop(callers.pop());
    wait_for(404);
}

#[test]
fn a_call_that_breaks_a_rule_or_has_no_right_is_refused_in_words() {
    let emulator = Emulator::start();
    let large = format!(r#"{{"methodName": "x", "payload": "{}"}}"#, "x".repeat(128 * 1024 - 1));
    for (body, part) in [
        ("", "the body is not a method call"),
        ("{}", "methodName must have 1 to 100 bytes"),
        (
            r#"{"methodName": "x", "responseTimeoutInSeconds": 4}"#,
            "responseTimeoutInSeconds must be 5 to 300",
        ),
        (
            r#"{"methodName": "x", "connectTimeoutInSeconds": 301}"#,
            "connectTimeoutInSeconds must be 0 to 300",
        ),
        (r#"{"methodName": "x", "connectTimeoutInSeconds": -1}"#, "the body is not a method call"),
        (
            r#"{"methodName": "x", "responseTimeoutInSeconds": "soon"}"#,
            "responseTimeoutInSeconds is \"soon\", but must be a number of seconds",
        ),
        (&large, "the payload has 131073 bytes, more than 131072"),
    ] {
        let answer = call(&emulator, body);
        let message = answer.json()["Message"].as_str().expect("a message").to_owned();
        assert_eq!(answer.status, 400, "{message}");
        assert!(message.starts_with("ErrorCode:ArgumentInvalid;") && message.contains(part), "{message}");
    }
    assert_eq!(call(&emulator, &"x".repeat(200 * 1024)).status, 413);
    let body = br#"{"methodName": "x"}"#;
    let unknown = "POST /twins/none/methods?api-version=2021-04-12";
    assert_eq!(ask(&emulator, unknown, &service_token(&emulator), "", body).status, 404);
    let line = format!("POST {PATH}");
    for token in [policy_token(&emulator, "device"), device_token(&emulator, "dev1")] {
        assert_eq!(ask(&emulator, &line, &token, "", body).status, 401);
    }
    let get = format!("GET {PATH}");
    assert_eq!(ask(&emulator, &get, &service_token(&emulator), "", b"").status, 405);
}
