//! A device over HTTPS, in bare requests: C2D messages with each outcome, D2C messages, and the limits of both.
//!
//! Owns: nothing. Must not know: how routes are found.

use c2d_agent::tls::ClientCertificate;

use crate::harness::{Emulator, Process, run};
use crate::rest::{exchange, service_token};
use crate::rest_ask::{Answer, ask, ask_as, device_token};

const NEXT: &str = "GET /devices/dev1/messages/devicebound?api-version=2021-04-12";

/// Asks for the next message, which must exist.
fn receive(emulator: &Emulator, token: &str) -> Answer {
    let answer = ask(emulator, NEXT, token, "", b"");
    assert_eq!(answer.status, 200, "{answer:?}");
    answer
}

fn lock_of(answer: &Answer) -> &str {
    let tag = answer.header("etag").expect("an ETag");
    tag.strip_prefix('"').and_then(|tag| tag.strip_suffix('"')).expect("a quoted ETag")
}

/// Settles a message and returns the answer. `how` follows the lock in the path or the query.
fn settle(emulator: &Emulator, token: &str, lock: &str, how: &str) -> Answer {
    let path = format!("/devices/dev1/messages/devicebound/{lock}");
    let line = match how {
        "abandon" => format!("POST {path}/abandon?api-version=2021-04-12"),
        "reject" => format!("DELETE {path}?api-version=2021-04-12&reject"),
        _ => format!("DELETE {path}?api-version=2021-04-12"),
    };
    ask(emulator, &line, token, &format!("If-Match: {lock}\r\n"), b"")
}

#[test]
fn each_outcome_of_a_message_comes_out_as_feedback() {
    let emulator = Emulator::start();
    let own = device_token(&emulator, "dev1");
    let outcomes = [("complete", 1, 0), ("reject", 1, 3), ("abandon", 10, 3)];
    for (how, deliveries, exit_code) in outcomes {
        let mut sender = emulator.sender("dev1");
        let sender = Process::spawn(sender.args(["--message-id", how, "--data", "x", "--wait=60s"]));
        emulator.process.stderr.wait_for(&format!("message_id=\"{how}\""));
        for count in 0..deliveries {
            let message = receive(&emulator, &own);
            assert_eq!(message.header("iothub-messageid"), Some(how), "{message:?}");
            let delivered = message.header("iothub-deliverycount").expect("a count");
            assert_eq!(delivered, count.to_string());
            let settled = settle(&emulator, &own, lock_of(&message), how);
            assert_eq!((settled.status, settled.body.as_str()), (204, ""));
            let late = settle(&emulator, &own, lock_of(&message), how);
            assert_eq!(late.status, 412, "{late:?}");
            let text = &late.json()["Message"];
            assert!(text.as_str().is_some_and(|text| text.starts_with("ErrorCode:DeviceMessageLockLost;")));
        }
        assert_eq!(sender.wait_exit().code(), Some(exit_code), "{how}: {}", sender.stderr.text());
        let word = match how {
            "complete" => "Success",
            "reject" => "Rejected",
            _ => "DeliveryCountExceeded",
        };
        let printed = sender.stdout.text() + &sender.stderr.text();
        assert!(printed.contains(word), "{how}: {printed}");
        assert_eq!(ask(&emulator, NEXT, &own, "", b"").status, 204);
    }
}

#[test]
fn a_message_comes_with_its_properties_in_headers_and_stays_locked() {
    let emulator = Emulator::start();
    let own = device_token(&emulator, "dev1");
    let ids = ["--message-id", "m:1", "--correlation-id", "c-1", "--ack", "full"];
    let content = ["--content-type", "text/plain", "--content-encoding", "utf-8", "--data", "grüße"];
    let properties = ["--property", "Cmd=reboot now", "--property", "empty=", "--property", "no header=x"];
    emulator.send("dev1", &[&ids[..], &content, &properties].concat());
    emulator.send("dev1", &["--data", ""]);
    let first = ask(&emulator, &NEXT.replace("devicebound", "deviceBound"), &own, "", b"");
    let expected = [
        ("iothub-messageid", Some("m:1")),
        ("iothub-correlationid", Some("c-1")),
        ("iothub-to", Some("/devices/dev1/messages/devicebound")),
        ("iothub-ack", Some("full")),
        ("iothub-contenttype", Some("text/plain")),
        ("iothub-contentencoding", Some("utf-8")),
        ("iothub-sequencenumber", Some("1")),
        ("iothub-deliverycount", Some("0")),
        ("iothub-app-Cmd", Some("reboot now")),
        ("iothub-app-empty", Some("")),
        ("iothub-app-no header", None),
    ];
    for (name, value) in expected {
        assert_eq!(first.header(name), value, "{name}: {first:?}");
    }
    assert!(first.header("iothub-enqueuedtime").is_some_and(|time| time.ends_with('Z')), "{first:?}");
    assert_eq!(first.body, "grüße");
    emulator.process.stderr.wait_for("left a property out");

    // The first message is locked, so the next one is another message, and then there is none.
    let second = ask(&emulator, NEXT, &own, "", b"");
    assert_eq!(
        (second.status, second.body.as_str(), second.header("iothub-messageid").is_some()),
        (200, "", true)
    );
    assert_eq!(ask(&emulator, NEXT, &own, "", b"").status, 204);
    assert_eq!(settle(&emulator, &own, lock_of(&second), "complete").status, 204);
    // After an abandon, the message is the first again.
    assert_eq!(settle(&emulator, &own, lock_of(&first), "abandon").status, 204);
    assert_eq!(ask(&emulator, NEXT, &own, "", b"").header("iothub-messageid"), Some("m:1"));
    for lock in ["none", "00000000-0000-0000-0000-000000000000", "%00"] {
        assert_eq!(settle(&emulator, &own, lock, "complete").status, 412, "{lock}");
    }
}

#[test]
fn the_names_of_headers_are_on_the_wire_as_the_c_sdk_looks_for_them() {
    let emulator = Emulator::start();
    let own = device_token(&emulator, "dev1");
    let body = "etag: \"x\"\r\niothub-app-cmd: y\r\n\r\n";
    let ids = ["--message-id", "m-1", "--correlation-id", "c-1", "--data", body];
    let content = ["--content-type", "text/plain", "--content-encoding", "utf-8"];
    emulator.send("dev1", &[&ids[..], &content, &["--property", "Cmd=a", "--property", "cmd=b"]].concat());
    let next = |end: &str| format!("{NEXT} HTTP/1.1\r\nHost: localhost\r\nAuthorization: {own}\r\n{end}\r\n");
    let answers = exchange(&emulator, (next("") + &next("Connection: close\r\n")).as_bytes());
    let (head, rest) = answers.split_once("\r\n\r\n").expect("an answer");
    let names: Vec<_> = head.lines().skip(1).filter_map(|line| line.split_once(": ")).collect();
    let values = |name: &str| -> Vec<_> {
        names.iter().filter(|(own, _)| *own == name).map(|(_, value)| *value).collect()
    };
    // Source: Azure/azure-iot-sdk-c, iothubtransporthttp.c, and Azure/azure-c-shared-utility, map.c (strcmp).
    let expected = [
        ("iothub-messageid", "m-1"),
        ("iothub-correlationid", "c-1"),
        ("ContentType", "text/plain"),
        ("ContentEncoding", "utf-8"),
        ("iothub-contenttype", "text/plain"),
        ("iothub-contentencoding", "utf-8"),
        ("iothub-app-Cmd", "a"),
        ("iothub-app-cmd", "b"),
    ];
    for (name, value) in expected {
        assert_eq!(values(name), [value], "{name}: {head}");
    }
    assert_eq!(values("ETag").len(), 1, "{head}");
    let tag = values("ETag")[0];
    assert!(tag.len() == 38 && tag.starts_with('"') && tag.ends_with('"'), "{tag}");
    // The body is as it was sent, and the next answer follows.
    let rest = rest.strip_prefix(body).unwrap_or_else(|| panic!("another body: {rest:?}"));
    assert!(rest.starts_with("HTTP/1.1 204 No Content\r\n"), "{rest:?}");
}

#[test]
fn a_property_that_is_not_printable_ascii_is_refused_at_the_send() {
    let emulator = Emulator::start();
    for property in ["zone=n\u{f6}rd", "n\u{f6}rd=1", "zone=a\r\nX-Injected: b", "zone=a\u{7f}", "a\tb=1"] {
        let output = run(emulator.sender("dev1").args(["--property", property]));
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{property}: {said}");
        let sentence = "has other characters than printable ASCII in its name or value: encode them";
        assert!(
            said.contains("com.microsoft:argument-error") && said.contains(sentence),
            "{property}: {said}"
        );
    }
    // The page's form is checked, too.
    for form in [r#"{"properties": {"zone": "a\r\nX-Injected: b"}}"#, r#"{"properties": {"z\u00f6ne": "a"}}"#]
    {
        let line = "POST /emulator/devices/dev1/messages";
        let answer = ask(&emulator, line, &service_token(&emulator), "", form.as_bytes());
        assert!(answer.status == 400 && answer.body.contains("printable ASCII"), "{answer:?}");
    }
    assert_eq!(ask(&emulator, NEXT, &device_token(&emulator, "dev1"), "", b"").status, 204, "none is queued");
}

#[test]
fn a_device_with_a_certificate_needs_no_token_and_a_policy_can_stand_in_for_any() {
    let emulator = Emulator::start_with(&["--device", "dev1", "--x509-device", "pi-01"]);
    let file = |name: &str| emulator.state.join("devices").join(name);
    let identity =
        ClientCertificate { certificate: file("pi-01.cert.pem"), private_key: file("pi-01.key.pem") };
    let next = |id: &str| format!("GET /devices/{id}/messages/devicebound?api-version=1");
    emulator.send("pi-01", &["--data", "x"]);
    assert_eq!(ask_as(&emulator, Some(&identity), &next("pi-01"), "", b"").status, 200);
    assert_eq!(ask_as(&emulator, Some(&identity), &next("dev1"), "", b"").status, 401);
    assert_eq!(ask_as(&emulator, None, &next("pi-01"), "", b"").status, 401);
    // A client without a valid token does not learn which devices exist.
    assert_eq!(ask_as(&emulator, Some(&identity), &next("none"), "", b"").status, 401);
    assert_eq!(ask(&emulator, &next("none"), &device_token(&emulator, "dev1"), "", b"").status, 401);
    assert_eq!(ask(&emulator, &next("dev1"), &service_token(&emulator), "", b"").status, 401);
    let policy = crate::rest::policy_token(&emulator, "device");
    assert_eq!(ask(&emulator, &next("dev1"), &policy, "", b"").status, 204);
    let missing = ask(&emulator, &next("none"), &policy, "", b"");
    assert_eq!(missing.status, 404);
    let message = &missing.json()["Message"];
    assert!(message.as_str().is_some_and(|text| text.starts_with("ErrorCode:DeviceNotFound;")), "{message}");
}

#[test]
fn a_device_sends_d2c_messages_with_properties_and_within_limits() {
    let emulator = Emulator::start();
    let own = device_token(&emulator, "dev1");
    let events = "POST /devices/dev1/messages/events?api-version=2020-09-30";
    let headers = "iothub-app-kind: test\r\nIoTHub-MessageId: m-1\r\niothub-contenttype: text/plain\r\n";
    let answer = ask(&emulator, events, &own, headers, "grüße".as_bytes());
    assert_eq!((answer.status, answer.body.as_str()), (204, ""));
    let shown =
        ask(&emulator, "GET /emulator/devices/dev1/events", &service_token(&emulator), "", b"").json();
    assert_eq!(shown[0]["systemProperties"], serde_json::json!({ "$.mid": "m-1", "$.ct": "text/plain" }));
    assert_eq!((&shown[0]["properties"]["kind"], &shown[0]["body"]), (&"test".into(), &"grüße".into()));

    // The body has exactly the largest size, then one byte more: with a length, and in chunks.
    assert_eq!(ask(&emulator, events, &own, "", &vec![b'x'; 256 * 1024]).status, 204);
    let answer = ask(&emulator, events, &own, "", &vec![b'x'; 256 * 1024 + 1]);
    assert!(answer.status == 413 && answer.body.contains("ErrorCode:MessageTooLarge;"), "{answer:?}");
    // What is far too large, too: the answer comes once all of it was sent.
    let answer = ask(&emulator, events, &own, "", &vec![b'x'; 5_000_000]);
    assert!(answer.status == 413 && answer.header("connection") == Some("close"), "{answer:?}");
    let answer = ask(&emulator, events, "", "", &vec![b'x'; 5_000_000]);
    assert_eq!(answer.status, 401);
    let chunked = format!(
        "{events} HTTP/1.1\r\nAuthorization: {own}\r\nTransfer-Encoding: chunked\r\n\r\n40001\r\n{}\r\n",
        "x".repeat(0x40001)
    );
    let answer = exchange(&emulator, chunked.as_bytes());
    assert!(answer.starts_with("HTTP/1.1 413 ") && answer.contains("connection: close"), "{answer}");
    let refused = [
        (events, service_token(&emulator), "", 401),
        (events, String::new(), "", 401),
        ("POST /devices/dev2/messages/events?api-version=1", own.clone(), "", 401),
        ("POST /devices/dev1/messages/events", own.clone(), "", 400),
        (events, own.clone(), "Content-Type: application/vnd.microsoft.iothub.json\r\n", 400),
        (events, own.clone(), "iothub-app-x: \u{a0}\r\n", 204),
        ("PUT /devices/dev1/messages/events?api-version=1", service_token(&emulator), "", 405),
    ];
    for (line, token, headers, expected) in refused {
        let answer = ask(&emulator, line, &token, headers, b"x");
        assert_eq!(answer.status, expected, "{line} {headers}: {answer:?}");
    }
    assert_eq!(emulator.process.stderr.count("panicked"), 0);
}

#[test]
fn a_device_sends_a_batch_of_d2c_messages_and_a_faulty_one_is_refused_as_a_whole() {
    let emulator = Emulator::start();
    let own = device_token(&emulator, "dev1");
    let events = "POST /devices/dev1/messages/events?api-version=2020-09-30";
    let kind = "Content-Type: application/vnd.microsoft.iothub.json\r\n";
    // As the C SDK and Node write it.
    let batch = r#"[{"body":"AP8=","properties":{"iothub-app-zone":"north"}},
        {"body":"text","base64Encoded":false,"properties":{"iothub-messageid":"m-2"}}]"#;
    assert_eq!(ask(&emulator, events, &own, kind, batch.as_bytes()).status, 204);
    let shown =
        || ask(&emulator, "GET /emulator/devices/dev1/events", &service_token(&emulator), "", b"").json();
    let seen = shown();
    assert_eq!((&seen[0]["bodyBase64"], &seen[0]["properties"]["zone"]), (&"AP8=".into(), &"north".into()));
    assert_eq!((&seen[1]["body"], &seen[1]["systemProperties"]["$.mid"]), (&"text".into(), &"m-2".into()));
    let cut = format!("{}{{\"body\":\"AP8\"}}]", batch.trim_end_matches(']').to_owned() + ",");
    for (body, words) in [
        (cut.as_str(), "message 3 of the batch: its body is not base64"),
        ("[]", "the batch has no messages"),
        ("[{", "the batch is not an array in JSON"),
        (&"[".repeat(10_000), "the batch is not an array in JSON"),
    ] {
        let answer = ask(&emulator, events, &own, kind, body.as_bytes());
        assert_eq!(answer.status, 400, "{answer:?}");
        let message = answer.json()["Message"].to_string();
        assert!(message.contains("ErrorCode:ArgumentInvalid;") && message.contains(words), "{message}");
    }
    let large = format!("[{{\"body\":\"{}\"}}]", "A".repeat(256 * 1024));
    assert_eq!(ask(&emulator, events, &own, kind, large.as_bytes()).status, 413);
    assert_eq!(shown().as_array().map(Vec::len), Some(2), "nothing of the others is stored");
}
