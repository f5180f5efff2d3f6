//! Many changes of the emulator's registry in one request, new keys for many devices, and statistics.
//!
//! Owns: nothing. Must not know: files of the state directory, except connection strings.

use serde_json::{Value, json};

use crate::emulator_registry::owner;
use crate::harness::Emulator;
use crate::rest::{policy_token, service_token};
use crate::rest_ask::{Answer, ask};

fn bulk(emulator: &Emulator, entries: &Value) -> Answer {
    owner(emulator, "POST", "/devices", "", entries)
}

fn get(emulator: &Emulator, id: &str) -> Answer {
    owner(emulator, "GET", &format!("/devices/{id}"), "", &Value::Null)
}

fn twin(emulator: &Emulator, id: &str) -> Value {
    let line = format!("GET /twins/{id}?api-version=2021-04-12");
    ask(emulator, &line, &service_token(emulator), "", b"").json()
}

/// The ids and numbers of the faulty entries.
fn faults(answer: &Answer) -> Vec<(Value, u64)> {
    let body = answer.json();
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!((&body["isSuccessful"], &body["warnings"]), (&json!(false), &json!([])), "{body}");
    let fault = |fault: &Value| {
        assert!(fault["errorStatus"].as_str().is_some_and(|text| !text.is_empty()), "{fault}");
        (fault["deviceId"].clone(), fault["errorCode"].as_u64().expect("a number"))
    };
    body["errors"].as_array().expect("a list").iter().map(fault).collect()
}

/// An entry as Node's `Registry.addDevices` sends it.
fn entry(id: &str) -> Value {
    let keys = json!({ "primaryKey": "", "secondaryKey": "" });
    json!({ "id": id, "importMode": "create", "authentication": { "type": "sas", "symmetricKey": keys } })
}

#[test]
fn two_faulty_entries_of_a_hundred_keep_no_other_from_being_carried_out() {
    let dir = tempfile::tempdir().expect("a directory");
    let start = || Emulator::start_in(&dir.path().join("state"), "0", "0", &["--device", "dev1"]);
    let emulator = start();
    let mut entries: Vec<_> = (0..98).map(|n| entry(&format!("bulk-{n:02}"))).collect();
    entries.insert(7, entry("dev1"));
    let key = json!({ "primaryKey": "%%", "secondaryKey": "%%" });
    entries.insert(50, json!({ "id": "bad-key", "authentication": { "type": "sas", "symmetricKey": key } }));
    let answer = bulk(&emulator, &entries.into());
    let mut found = faults(&answer);
    found.sort_by_key(|(_, code)| *code);
    assert_eq!(found, [(json!("bad-key"), 400_004), (json!("dev1"), 409_001)]);
    let statistics = || owner(&emulator, "GET", "/statistics/devices", "", &Value::Null).json();
    let expected = json!({ "totalDeviceCount": 99, "enabledDeviceCount": 99, "disabledDeviceCount": 0 });
    assert_eq!(statistics(), expected);
    let off = json!([{ "id": "bulk-00", "importMode": "Update", "status": "disabled" }]);
    assert_eq!(bulk(&emulator, &off).json(), json!({ "isSuccessful": true, "errors": [], "warnings": [] }));
    assert_eq!(statistics()["disabledDeviceCount"], 1);
    let device = crate::emulator_twins::sign_in(&emulator, true);
    let service = owner(&emulator, "GET", "/statistics/service", "", &Value::Null).json();
    assert_eq!(service, json!({ "connectedDeviceCount": 1 }));
    drop(device);

    let before = get(&emulator, "bulk-97").json();
    assert_eq!(emulator.process.terminate(), Some(0));
    assert_eq!(get(&start(), "bulk-97").json(), before, "also after a restart");
}

#[test]
fn each_import_mode_does_what_its_name_says() {
    let emulator = Emulator::start();
    let ok = |entries: Value| {
        let answer = bulk(&emulator, &entries);
        assert_eq!((answer.status, answer.json()["errors"].clone()), (200, json!([])), "{entries}");
    };
    // As C#'s AddDeviceWithTwinAsync sends it.
    let with_twin = json!({
        "id": "a", "importMode": "create", "capabilities": { "iotEdge": true }, "tags": { "room": 1 },
        "properties": { "desired": { "led": true, "$version": 9 } },
    });
    ok(json!([with_twin, { "id": "a", "moduleId": "m", "importMode": "create", "managedBy": "x" }]));
    let made = twin(&emulator, "a");
    assert_eq!((&made["tags"], &made["properties"]["desired"]["led"]), (&json!({ "room": 1 }), &json!(true)));
    assert_eq!(made["capabilities"], json!({ "iotEdge": true }));
    assert_eq!(get(&emulator, "a/modules/m").json()["managedBy"], "x");
    let old = get(&emulator, "a").json()["etag"].clone();

    ok(json!([{ "id": "a", "importMode": "updateIfMatchETag", "eTag": old, "statusReason": "new" }]));
    assert_eq!(get(&emulator, "a").json()["statusReason"], "new");
    ok(json!([{ "id": "b", "importMode": "createOrUpdate" }, { "id": "c" }]));
    ok(json!([{ "id": "b", "importMode": "createOrUpdate", "status": "disabled" }]));
    assert_eq!(get(&emulator, "b").json()["status"], "disabled");
    ok(json!([{ "id": "a", "importMode": "updateTwin", "tags": { "floor": 2 } }]));
    assert_eq!(twin(&emulator, "a")["tags"], json!({ "room": 1, "floor": 2 }));
    let etag = twin(&emulator, "a")["etag"].clone();
    ok(
        json!([{ "id": "a", "importMode": "updateTwinIfMatchETag", "twinETag": etag, "tags": { "room": null } }]),
    );

    let stale = bulk(
        &emulator,
        &json!([
            { "id": "a", "importMode": "updateIfMatchETag", "eTag": old },
            { "id": "b", "importMode": "deleteIfMatchETag", "eTag": old },
            { "id": "a", "moduleId": "m", "importMode": "updateTwinIfMatchETag", "twinETag": "AAAAAAAAAAA=" },
            { "id": "none", "importMode": "update" },
            { "id": "gone", "importMode": "delete" },
        ]),
    );
    let codes: Vec<_> = faults(&stale).iter().map(|(_, code)| *code).collect();
    assert_eq!(codes, [412_001, 412_001, 412_001, 404_001, 404_001]);
    assert_eq!(stale.json()["errors"][2]["moduleId"], "m");
    ok(json!([{ "id": "a", "importMode": "Delete" }, { "id": "b", "importMode": "delete" }]));
    assert_eq!(
        [get(&emulator, "a").status, get(&emulator, "b").status, get(&emulator, "c").status],
        [404, 404, 200]
    );
}

#[test]
fn bad_requests_are_answered_in_the_hubs_form_and_lose_nothing() {
    let emulator = Emulator::start();
    let owner_token = policy_token(&emulator, "iothubowner");
    let raw = |body: &str| {
        ask(&emulator, "POST /devices?api-version=2021-04-12", &owner_token, "", body.as_bytes())
    };
    let many: Vec<_> = (0..101).map(|n| entry(&format!("m-{n}"))).collect();
    let mebibyte = format!("[{{\"id\": \"x\", \"tags\": {{\"a\": \"{}\"}}}}]", "x".repeat(1024 * 1024));
    for (body, status, words) in [
        (Value::from(many).to_string().as_str(), 413, "TooManyDevices;the request names 101 devices"),
        (&mebibyte, 413, "MessageTooLarge;the body has more than"),
        ("[]", 400, "ArgumentInvalid;the request names no device"),
        ("{}", 400, "ArgumentInvalid;the body is not an array of devices"),
        ("[{", 400, "ArgumentInvalid;the body is not an array of devices"),
        (&"[".repeat(10_000), 400, "ArgumentInvalid;the body is not an array of devices"),
    ] {
        let answer = raw(body);
        let message = answer.json()["Message"].as_str().expect("a message").to_owned();
        assert!(answer.status == status && message.starts_with(&format!("ErrorCode:{words}")), "{message}");
    }
    let long = "x".repeat(129);
    let text = "x".repeat(5000);
    let faulty = json!([
        {}, { "importMode": "create" }, 7, { "id": 5 }, { "id": "a b" }, { "id": long },
        { "id": "twice" }, { "id": "twice", "importMode": "delete" },
        { "id": "odd", "importMode": "destroy" }, { "id": "no-etag", "importMode": "updateIfMatchETag" },
        { "id": "heavy", "tags": { "a": text } },
        { "id": "none", "moduleId": "m" }, { "id": "dev1", "moduleId": "a b" },
        { "id": "other", "deviceId": "dev1" }, { "id": "good" },
    ]);
    let answer = bulk(&emulator, &faulty);
    let found = faults(&answer);
    assert_eq!(found.len(), 14, "{found:?}");
    let code =
        |id: &str| found.iter().filter(|(own, _)| *own == id).map(|(_, code)| *code).collect::<Vec<_>>();
    assert_eq!(
        (code("twice"), code("heavy"), code("none")),
        (vec![400_011; 2], vec![400_004], vec![404_001])
    );
    assert!(answer.body.len() < 8 * 1024, "a long id is not repeated in full");
    let listed = owner(&emulator, "GET", "/devices", "", &Value::Null).json();
    let ids: Vec<_> =
        listed.as_array().expect("a list").iter().map(|device| device["deviceId"].clone()).collect();
    assert_eq!(ids, ["dev1", "good"]);
    for policy in ["service", "registryRead"] {
        let line = "POST /devices?api-version=2021-04-12";
        assert_eq!(ask(&emulator, line, &policy_token(&emulator, policy), "", b"[]").status, 401, "{policy}");
    }
    assert_eq!(emulator.process.stderr.count("panicked"), 0);
}

/// `az iot hub device-identity renew-key` asks so.
#[test]
fn keys_are_made_anew_for_those_that_have_keys() {
    let emulator = Emulator::start_with(&["--module", "dev1/m", "--x509-device", "cert"]);
    let ask = |body: Value| owner(&emulator, "POST", "/devices/keys/regenerate", "", &body);
    let keys = |id: &str| get(&emulator, id).json()["authentication"]["symmetricKey"].clone();
    let (device, module) = (keys("dev1"), keys("dev1/modules/m"));
    let one = ask(json!({ "policyKey": "primaryKey", "devices": [{ "id": "dev1" }] }));
    assert_eq!(one.status, 200, "{one:?}");
    let now = keys("dev1");
    let shown =
        json!({ "id": "dev1", "primaryKey": now["primaryKey"], "secondaryKey": device["secondaryKey"] });
    assert_eq!(one.json(), json!({ "policyKey": "primaryKey", "rotatedKeys": [shown], "errors": [] }));
    assert_ne!(now["primaryKey"], device["primaryKey"]);
    assert_eq!(emulator.device_string("dev1").split("SharedAccessKey=").nth(1), now["primaryKey"].as_str());

    let devices = json!([{ "id": "dev1", "moduleId": "m" }, { "id": "cert" }, { "id": "none" }, {}]);
    let some = ask(json!({ "policyKey": "both", "devices": devices }));
    let errors: Vec<_> = some.json()["errors"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|error| error["errorCode"].clone())
        .collect();
    assert_eq!(
        (some.status, errors),
        (207, vec![json!(400_003), json!(404_001), json!(404_001)]),
        "{some:?}"
    );
    let now = keys("dev1/modules/m");
    assert!(now["primaryKey"] != module["primaryKey"] && now["secondaryKey"] != module["secondaryKey"]);
    let none = ask(json!({ "policyKey": "secondaryKey", "devices": [{ "id": "none" }] }));
    assert_eq!((none.status, none.json()["rotatedKeys"].clone()), (400, json!([])));
    let wrong = ask(json!({ "policyKey": "swap", "devices": [] }));
    assert_eq!(wrong.status, 400, "{wrong:?}");
    assert!(
        wrong.json()["Message"].as_str().is_some_and(|text| text.contains("\"swap\" is not a policyKey"))
    );
}
