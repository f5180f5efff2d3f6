//! Lines 21 to 23: HTTPS, for devices and for back ends.
//!
//! Owns: nothing. Must not know: how routes are found.

use std::time::Instant;

use serde_json::json;

use crate::harness::{DEADLINE, Emulator};
use crate::rest::service_token;
use crate::rest_ask::{Answer, ask, device_token};

const MESSAGES: &str = "/devices/dev1/messages/devicebound";
const FEEDBACK: &str = "/messages/serviceBound/feedback";
const VERSION: &str = "api-version=2021-04-12";

/// The lock token of a quoted ETag.
#[track_caller]
fn quoted(answer: &Answer) -> String {
    let tag = answer.header("etag").expect("an ETag");
    let token = tag.strip_prefix('"').and_then(|tag| tag.strip_suffix('"')).expect("in quotes");
    let is_guid = token.len() == 36 && token.chars().all(|c| c.is_ascii_hexdigit() || c == '-');
    assert!(is_guid, "{tag}");
    token.to_owned()
}

/// Asks again until there is feedback, because the hub gathers feedback for an interval.
fn feedback(emulator: &Emulator) -> Answer {
    let end = Instant::now() + DEADLINE;
    loop {
        let answer = ask(emulator, &format!("GET {FEEDBACK}?{VERSION}"), &service_token(emulator), "", b"");
        if answer.status == 200 {
            return answer;
        }
        assert_eq!(answer.status, 204, "{answer:?}");
        assert!(Instant::now() < end, "no feedback");
    }
}

#[test]
fn line_21_a_device_receives_and_settles_with_quoted_etags_and_204_when_there_is_nothing() {
    let emulator = Emulator::start();
    let own = device_token(&emulator, "dev1");
    let next = || {
        ask(&emulator, &format!("GET {MESSAGES}?{VERSION}"), &own, "IotHub-MessageLockTimeout: 60\r\n", b"")
    };
    let nothing = next();
    assert_eq!((nothing.status, nothing.body.as_str(), nothing.header("etag")), (204, "", None));
    // The requests complete with and without If-Match, reject by a flag without a value, and abandon by POST.
    type Line<'a> = &'a dyn Fn(&str) -> String;
    let complete: Line<'_> = &|lock| format!("DELETE {MESSAGES}/{lock}?{VERSION}");
    let reject: Line<'_> = &|lock| format!("DELETE {MESSAGES}/{lock}?{VERSION}&reject");
    let reject_first: Line<'_> = &|lock| format!("DELETE {MESSAGES}/{lock}?reject&{VERSION}");
    let abandon: Line<'_> = &|lock| format!("POST {MESSAGES}/{lock}/abandon?{VERSION}");
    for (id, line, with_match, end) in [
        ("m-1", complete, false, "Success"),
        ("m-2", complete, true, "Success"),
        ("m-3", reject, true, "Rejected"),
        ("m-4", reject_first, false, "Rejected"),
    ] {
        emulator.send("dev1", &["--message-id", id, "--ack", "full", "--data", "x"]);
        let given_back = next();
        assert_eq!(
            (given_back.status, given_back.header("iothub-messageid")),
            (200, Some(id)),
            "{given_back:?}"
        );
        let lock = quoted(&given_back);
        assert_eq!(ask(&emulator, &abandon(&lock), &own, "", b"").status, 204);
        let received = next();
        assert_eq!(received.header("iothub-deliverycount"), Some("1"), "an abandon counts: {received:?}");
        let lock = quoted(&received);
        assert_eq!(next().status, 204, "it is locked");
        let headers = if with_match { format!("If-Match: {lock}\r\n") } else { String::new() };
        let settled = ask(&emulator, &line(&lock), &own, &headers, b"");
        assert_eq!((settled.status, settled.body.as_str()), (204, ""), "{id}: {settled:?}");
        assert_eq!(ask(&emulator, &line(&lock), &own, &headers, b"").status, 412, "{id}: once only");
        let told = feedback(&emulator);
        let record = &told.json()[0];
        assert_eq!(
            (record["originalMessageId"].as_str(), record["statusCode"].as_str()),
            (Some(id), Some(end))
        );
        let lock = quoted(&told);
        let line = format!("DELETE {FEEDBACK}/{lock}?{VERSION}");
        assert_eq!(ask(&emulator, &line, &service_token(&emulator), "", b"").status, 204);
    }
    let events = format!("POST /devices/dev1/messages/events?{VERSION}");
    assert_eq!(ask(&emulator, &events, &own, "iothub-app-a: b\r\n", b"x").status, 204);
}

#[test]
fn line_22_a_back_end_reads_feedback_with_a_lock_and_purges_a_queue() {
    let emulator = Emulator::start();
    let token = service_token(&emulator);
    let get = format!("GET {FEEDBACK}?{VERSION}");
    assert_eq!(ask(&emulator, &get, &token, "", b"").status, 204);
    for id in ["m-1", "m-2", "m-3"] {
        emulator.send("dev1", &["--message-id", id, "--ack", "full"]);
    }
    let purge = ask(&emulator, &format!("DELETE /devices/dev1/commands?{VERSION}"), &token, "", b"");
    let body = json!({ "totalMessagesPurged": 3, "deviceId": "dev1", "moduleId": null });
    assert_eq!((purge.status, purge.json()), (200, body));

    let first = feedback(&emulator);
    let is_json = first.header("content-type").is_some_and(|kind| kind.contains("json"));
    assert!(is_json, "{first:?}");
    let records = first.json();
    let records = records.as_array().expect("an array");
    assert_eq!(records.len(), 3);
    for (record, id) in records.iter().zip(["m-1", "m-2", "m-3"]) {
        let mut fields: Vec<_> = record.as_object().expect("an object").keys().map(String::as_str).collect();
        fields.sort_unstable();
        let expected = [
            "description",
            "deviceGenerationId",
            "deviceId",
            "enqueuedTimeUtc",
            "originalMessageId",
            "statusCode",
        ];
        assert_eq!(fields, expected);
        assert_eq!((&record["originalMessageId"], &record["deviceId"]), (&json!(id), &json!("dev1")));
        assert_eq!((&record["statusCode"], &record["description"]), (&json!("Purged"), &json!("Purged")));
        let time = record["enqueuedTimeUtc"].as_str().expect("a time");
        assert!(time.len() == 28 && time.ends_with('Z') && time.as_bytes()[10] == b'T', "{time}");
    }
    // The batch is locked. If it is given back, it comes again with another lock. If it is completed, it is gone.
    assert_eq!(ask(&emulator, &get, &token, "", b"").status, 204);
    let lock = quoted(&first);
    let abandon = format!("POST {FEEDBACK}/{lock}/abandon?{VERSION}");
    assert_eq!(ask(&emulator, &abandon, &token, "", b"").status, 204);
    let second = feedback(&emulator);
    assert_eq!(second.body, first.body);
    let complete = format!("DELETE {FEEDBACK}/{}?{VERSION}", quoted(&second));
    assert_eq!(ask(&emulator, &complete, &token, "", b"").status, 204);
    assert_eq!(ask(&emulator, &complete, &token, "", b"").status, 412);
    assert_eq!(ask(&emulator, &get, &token, "", b"").status, 204);
    // The request needs the permission ServiceConnect.
    let device = crate::rest::policy_token(&emulator, "device");
    assert_eq!(ask(&emulator, &get, &device, "", b"").status, 401);
}

#[test]
fn line_23_errors_have_a_body_that_begins_with_the_code() {
    let emulator = Emulator::start();
    let (own, service) = (device_token(&emulator, "dev1"), service_token(&emulator));
    let policy = crate::rest::policy_token(&emulator, "device");
    let lock = "00112233-4455-6677-8899-aabbccddeeff";
    let large = vec![b'x'; 256 * 1024 + 1];
    let cases: [(String, &str, &[u8], u16, &str); 7] = [
        (
            format!("GET {MESSAGES}?{VERSION}"),
            "SharedAccessSignature sr=x&sig=AAAA&se=9",
            b"",
            401,
            "IotHubUnauthorizedAccess",
        ),
        (format!("GET /devices/none/messages/devicebound?{VERSION}"), &policy, b"", 404, "DeviceNotFound"),
        (format!("DELETE {MESSAGES}/{lock}?{VERSION}"), &own, b"", 412, "DeviceMessageLockLost"),
        (format!("GET {MESSAGES}"), &own, b"", 400, "ArgumentInvalid"),
        (format!("POST /devices/dev1/messages/events?{VERSION}"), &own, &large, 413, "MessageTooLarge"),
        (format!("DELETE /devices/none/commands?{VERSION}"), &service, b"", 404, "DeviceNotFound"),
        (format!("GET /nowhere?{VERSION}"), &service, b"", 404, "ResourceNotFound"),
    ];
    for (line, token, body, status, code) in cases {
        let answer = ask(&emulator, &line, token, "", body);
        assert_eq!(answer.status, status, "{line}: {answer:?}");
        assert!(
            answer.header("content-type").is_some_and(|kind| kind.starts_with("application/json")),
            "{answer:?}"
        );
        let body = answer.json();
        let message = body["Message"].as_str().expect("a message");
        let words = message.strip_prefix(&format!("ErrorCode:{code};"));
        assert!(words.is_some_and(|words| !words.is_empty()), "{line}: {message}");
        assert!(body["ExceptionMessage"].is_string(), "{body}");
    }
}
