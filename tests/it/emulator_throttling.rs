//! A hub of a tier, as back ends and devices meet its throttling.
//!
//! Owns: what is refused, and when it is taken again. Must not know: rates of other tiers.

use rumqttc::mqttbytes::QoS;
use serde_json::{Value, json};

use crate::emulator_dps::client::{Client, hub_connect};
use crate::harness::{Emulator, binary, run};
use crate::rest::{policy_token, service_token};
use crate::rest_ask::{Answer, ask};
use c2d_agent::credentials::{DeviceConnectionString, DeviceSecret};

const VERSION: &str = "api-version=2021-04-12";

fn query(emulator: &Emulator) -> Answer {
    let body = json!({ "query": "SELECT deviceId FROM devices" }).to_string();
    ask(emulator, &format!("POST /devices/query?{VERSION}"), &service_token(emulator), "", body.as_bytes())
}

#[test]
fn a_minutes_worth_of_queries_passes_and_the_next_one_is_told_when_to_come_again() {
    let emulator = Emulator::start_with(&["--tier", "s1", "--units", "1"]);
    assert!((0..20).all(|_| query(&emulator).status == 200), "a burst passes");
    let refused = query(&emulator);
    let wait: u32 = refused.header("retry-after").and_then(|text| text.parse().ok()).expect("seconds");
    assert!(refused.status == 429 && (1..=3).contains(&wait), "{refused:?}");
    let said = refused.json()["Message"].as_str().unwrap_or_default().to_owned();
    let expected = "ErrorCode:ThrottlingException;the hub throttles queries: its tier allows 20 a minute";
    assert_eq!(said, expected);
    // Each kind is counted by itself, and so is what comes over the own routes of the emulator: not at all.
    let owner = policy_token(&emulator, "iothubowner");
    assert_eq!(ask(&emulator, &format!("GET /devices/dev1?{VERSION}"), &owner, "", b"").status, 200);
    // The clock of the emulator brings what time would bring.
    let mut clock = binary();
    clock.args(["emulator", "clock", "advance", "9s", "--state-dir"]).arg(&emulator.state);
    assert_eq!(run(&mut clock).status.code(), Some(0));
    assert!((0..3).all(|_| query(&emulator).status == 200));
}

#[test]
fn a_device_that_reports_too_often_is_told_in_its_answer() {
    let emulator = Emulator::start_with(&["--tier", "free"]);
    let own = DeviceConnectionString::parse(&emulator.device_string("dev1")).expect("valid");
    let DeviceSecret::Key(key) = own.secret else { panic!("not a key") };
    let mut device = Client::dial(&emulator, None);
    device.connack_to(hub_connect("dev1", &key, "localhost"));
    device.subscribe(&[("$iothub/twin/res/#", QoS::AtMostOnce)]);
    // 3,000 pass at once.
    let mut reports = 0;
    let refused = loop {
        device.publish("$iothub/twin/PATCH/properties/reported/?$rid=7", QoS::AtMostOnce, r#"{"n":1}"#);
        let answer = device.answer();
        if !answer.topic.starts_with("$iothub/twin/res/204/") {
            break answer;
        }
        reports += 1;
        assert!(reports < 10_000, "nothing is throttled");
    };
    assert!(reports >= 3_000, "only {reports}");
    assert_eq!(refused.topic, "$iothub/twin/res/429/?$rid=7");
    let body: Value = serde_json::from_slice(&refused.payload).expect("JSON");
    assert_eq!(body["errorCode"], 429_001);
}

#[test]
fn without_a_tier_nothing_is_throttled_and_a_size_that_no_hub_has_is_refused() {
    let emulator = Emulator::start();
    assert!((0..40).all(|_| query(&emulator).status == 200));
    for (arguments, said) in [
        (&["--tier", "b1"][..], "\"b1\" is not a tier: use free, s1, s2 or s3"),
        (
            &["--tier", "free", "--units", "2"],
            "a hub of the tier free has 1 to 1 units, not 2: change --units",
        ),
        (&["--units", "2"], "--tier <TIER>"),
    ] {
        let output = run(binary().arg("emulator").args(arguments));
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(2) && text.contains(said), "{arguments:?}: {text}");
    }
}
