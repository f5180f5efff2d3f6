//! Registrations over several hubs: which hub, and what goes along when a device moves.
//!
//! Owns: allocation and re-provisioning as a device and a back end see them. Must not know: our agent's client.

use c2d_agent::credentials::{DeviceConnectionString, DeviceSecret, SharedAccessKey};
use rumqttc::mqttbytes::v4::ConnectReturnCode;
use serde_json::{Value, json};

use super::client::{Client, hub_connect, polled, registered};
use super::device_key;
use crate::harness::{Emulator, binary, run};
use crate::rest_ask::Answer;

/// A request of a back end to one hub of the emulator.
pub(super) fn at_hub(emulator: &Emulator, hub: &str, line: &str, body: &str) -> Answer {
    let folder =
        if hub == "localhost" { emulator.state.clone() } else { emulator.state.join("hubs").join(hub) };
    let text =
        std::fs::read_to_string(folder.join("iothubowner.connection-string")).expect("a connection string");
    let token = super::back_end::policy_token(&text, hub);
    super::client::ask_host(emulator, hub, &format!("{line}?api-version=2021-04-12"), &token, body)
}

pub(super) fn signs_in(emulator: &Emulator, id: &str, key: &SharedAccessKey, hub: &str) -> bool {
    let connect = hub_connect(id, key, hub);
    Client::dial(emulator, None).connack_to(connect) == ConnectReturnCode::Success
}

/// The hub without its port.
pub(super) fn hub_of(state: &Value) -> String {
    let hub = state["assignedHub"].as_str().expect("a hub");
    hub.split(':').next().unwrap_or_default().to_owned()
}

#[test]
fn devices_are_spread_evenly_and_one_that_moves_takes_its_twin_along() {
    let devices = ["--dps-device", "a", "--dps-device", "b", "--hub", "hub-two.test"];
    let emulator = Emulator::start_with(&devices);
    let key = |id| device_key(&emulator, id);
    let hubs = ["a", "b"].map(|id| hub_of(&registered(&emulator, id, &key(id), "")));
    assert_eq!(hubs, ["localhost", "hub-two.test"]);
    assert!(signs_in(&emulator, "b", &key("b"), "hub-two.test"));
    assert!(!signs_in(&emulator, "b", &key("b"), "localhost"), "it belongs to one hub");
    let patch = r#"{"tags":{"site":"b43"},"properties":{"desired":{"rate":5}}}"#;
    assert_eq!(at_hub(&emulator, "localhost", "PATCH /twins/a", patch).status, 200);

    let mut faults = binary();
    faults.args(["emulator", "faults", "--device", "a", "dps-move", "--state-dir"]).arg(&emulator.state);
    assert_eq!(run(&mut faults).status.code(), Some(0));
    let moved = registered(&emulator, "a", &key("a"), "");
    assert_eq!(
        (hub_of(&moved).as_str(), &moved["substatus"]),
        ("hub-two.test", &json!("deviceDataMigrated"))
    );
    assert!(signs_in(&emulator, "a", &key("a"), "hub-two.test"));
    assert!(!signs_in(&emulator, "a", &key("a"), "localhost"), "the old hub has it no more");
    let twin = at_hub(&emulator, "hub-two.test", "GET /twins/a", "").json();
    assert_eq!((&twin["tags"]["site"], &twin["properties"]["desired"]["rate"]), (&json!("b43"), &json!(5)));
    // The fault was for one registration; the device stays where it is now.
    let again = registered(&emulator, "a", &key("a"), "");
    assert_eq!(
        (hub_of(&again).as_str(), &again["substatus"]),
        ("hub-two.test", &json!("deviceDataMigrated"))
    );
}

#[test]
fn a_back_end_moves_a_device_by_another_static_hub() {
    let emulator = Emulator::start_with(&["--id-scope", "0ne00000001", "--hub", "hub-two.test"]);
    let back_end = super::back_end::BackEnd::of(&emulator);
    let key = SharedAccessKey::from_bytes([5; 32]);
    let enrolment = |hub: &str| {
        let mut enrolment = super::back_end::keyed("a", &key);
        enrolment["allocationPolicy"] = "static".into();
        enrolment["iotHubHostName"] = hub.into();
        enrolment["reprovisionPolicy"] = json!({ "updateHubAssignment": true, "migrateDeviceData": false });
        enrolment["initialTwin"] = json!({ "tags": { "fresh": true } });
        enrolment
    };
    let put = |hub: &str| back_end.ask("PUT /enrollments/a", "If-Match: *\r\n", &enrolment(hub)).status;
    assert_eq!(put("hub-two.test"), 200);
    assert_eq!(hub_of(&registered(&emulator, "a", &key, "")), "hub-two.test");
    assert_eq!(
        at_hub(&emulator, "hub-two.test", "PATCH /twins/a", r#"{"tags":{"fresh":false}}"#).status,
        200
    );
    assert_eq!(put("localhost"), 200);
    let moved = registered(&emulator, "a", &key, "");
    assert_eq!((hub_of(&moved).as_str(), &moved["substatus"]), ("localhost", &json!("deviceDataReset")));
    let twin = at_hub(&emulator, "localhost", "GET /twins/a", "").json();
    assert_eq!(twin["tags"]["fresh"], true, "it begins with the twin of its enrolment");
    assert_eq!(at_hub(&emulator, "hub-two.test", "GET /twins/a", "").status, 404);
}

#[test]
fn a_registration_does_not_take_over_a_device_of_the_command_line() {
    let emulator = Emulator::start_with(&["--device", "pump-1", "--dps-group", "fleet"]);
    let text = std::fs::read_to_string(emulator.state.join("dps/groups/fleet.key")).expect("a key");
    let group = SharedAccessKey::from_base64(&text).expect("base64");
    let key = SharedAccessKey::from_bytes(group.digest(b"pump-1"));
    let refused = polled(&emulator, "pump-1", &key, "");
    let (status, body) = refused.last().expect("an answer");
    let said = body["message"].as_str().unwrap_or_default();
    assert!(*status == 409 && said.contains("is one of the command line (--device)"), "{body}");
    let own = DeviceConnectionString::parse(&emulator.device_string("pump-1")).expect("valid");
    let DeviceSecret::Key(own) = own.secret else { panic!("not a key") };
    assert!(signs_in(&emulator, "pump-1", &own, "localhost"), "its key has not changed");
    assert!(!signs_in(&emulator, "pump-1", &key, "localhost"));
}
