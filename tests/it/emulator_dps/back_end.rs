//! The service API of provisioning, request by request: enrolments and registrations as back ends see them.
//!
//! Owns: its paths, conditions and error bodies. Must not know: Microsoft's SDK, which `sdk-node` drives.

use std::time::{Duration, SystemTime};

use c2d_agent::credentials::{SasToken, ServiceConnectionString, ServiceSecret, SharedAccessKey};
use serde_json::{Value, json};

use super::client::{Certificates, polled, registered};
use crate::harness::Emulator;
use crate::rest::service_token;
use crate::rest_ask::{Answer, ask};

const VERSION: &str = "api-version=2021-10-01";

/// A token of the policy of the service's back ends.
fn owner_token(emulator: &Emulator) -> String {
    let text =
        std::fs::read_to_string(emulator.state.join("dps/service.connection-string")).expect("a string");
    assert!(text.contains("SharedAccessKeyName=provisioningserviceowner;"), "{text}");
    policy_token(&text, "localhost")
}

/// A token of the policy of a connection string.
pub(super) fn policy_token(string: &str, host: &str) -> String {
    let string = ServiceConnectionString::parse(string).expect("valid");
    let ServiceSecret::Key(key) = string.secret else { panic!("not a key") };
    let expiry = SystemTime::now() + Duration::from_secs(600);
    SasToken::sign(&key, host, Some(&string.policy), expiry).expose().to_owned()
}

pub(super) struct BackEnd<'e> {
    emulator: &'e Emulator,
    token: String,
}

impl<'e> BackEnd<'e> {
    pub(super) fn of(emulator: &'e Emulator) -> Self {
        Self { emulator, token: owner_token(emulator) }
    }

    pub(super) fn ask(&self, line: &str, headers: &str, body: &Value) -> Answer {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let (method, path) = line.split_once(' ').expect("a method and a path");
        ask(self.emulator, &format!("{method} {path}?{VERSION}"), &self.token, headers, body.as_bytes())
    }
}

pub(super) fn keyed(id: &str, key: &SharedAccessKey) -> Value {
    let key = key.expose_base64();
    json!({
        "registrationId": id,
        "attestation": { "type": "symmetricKey", "symmetricKey": { "primaryKey": key, "secondaryKey": key } },
    })
}

#[test]
fn an_enrolment_is_made_changed_read_and_deleted_by_its_etag_and_survives_a_restart() {
    let dir = tempfile::tempdir().expect("a directory");
    let start = || Emulator::start_in(&dir.path().join("state"), "0", "0", &["--id-scope", "0ne00000001"]);
    let emulator = start();
    let back_end = BackEnd::of(&emulator);
    let key = SharedAccessKey::from_bytes([5; 32]);
    let made = back_end.ask("PUT /enrollments/new-1", "", &keyed("new-1", &key));
    assert_eq!(made.status, 200, "{made:?}");
    let made = made.json();
    assert_eq!((&made["registrationId"], &made["provisioningStatus"]), (&json!("new-1"), &json!("enabled")));
    assert_eq!(made["attestation"], json!({ "type": "symmetricKey" }), "keys are asked for apart");
    let mechanism = back_end.ask("POST /enrollments/new-1/attestationmechanism", "", &Value::Null).json();
    assert_eq!(mechanism["symmetricKey"]["primaryKey"], key.expose_base64());

    let again = back_end.ask("PUT /enrollments/new-1", "", &keyed("new-1", &key));
    assert_eq!(again.status, 409, "{again:?}");
    let stale = back_end.ask("PUT /enrollments/new-1", "If-Match: AAAA\r\n", &keyed("new-1", &key));
    assert_eq!((stale.status, &stale.json()["errorCode"]), (412, &json!(412_001)));
    let etag = made["etag"].as_str().expect("an etag");
    let mut change = made.clone();
    change["initialTwin"] = json!({ "tags": { "site": "b43" }, "properties": { "desired": { "rate": 5 } } });
    change["deviceId"] = "pump-7".into();
    let changed = back_end.ask("PUT /enrollments/new-1", &format!("If-Match: {etag}\r\n"), &change);
    assert_eq!(changed.status, 200, "{changed:?}");
    assert_ne!(changed.json()["etag"], made["etag"]);

    assert_eq!(emulator.process.terminate(), Some(0));
    let emulator = start();
    let back_end = BackEnd::of(&emulator);
    let read = back_end.ask("GET /enrollments/new-1", "", &Value::Null).json();
    assert_eq!(read["etag"], changed.json()["etag"], "it is the same enrolment after a restart");
    let state = registered(&emulator, "new-1", &key, "");
    assert_eq!(state["deviceId"], "pump-7");
    let twin =
        ask(&emulator, "GET /twins/pump-7?api-version=2021-04-12", &service_token(&emulator), "", b"").json();
    assert_eq!((&twin["tags"]["site"], &twin["properties"]["desired"]["rate"]), (&json!("b43"), &json!(5)));

    let registration = back_end.ask("GET /registrations/new-1", "", &Value::Null).json();
    assert_eq!(
        (&registration["status"], &registration["assignedHub"]),
        (&json!("assigned"), &json!("localhost"))
    );
    assert_eq!(back_end.ask("DELETE /registrations/new-1", "If-Match: x\r\n", &Value::Null).status, 412);
    assert_eq!(back_end.ask("DELETE /registrations/new-1", "", &Value::Null).status, 204);
    assert_eq!(back_end.ask("GET /registrations/new-1", "", &Value::Null).status, 404);
    assert_eq!(back_end.ask("DELETE /enrollments/new-1", "", &Value::Null).status, 204);
    let gone = back_end.ask("GET /enrollments/new-1", "", &Value::Null);
    assert_eq!((gone.status, &gone.json()["errorCode"]), (404, &json!(404_201)));
    assert_eq!(polled(&emulator, "new-1", &key, "")[0].0, 401, "the enrolment is gone");
}

#[test]
fn a_disabled_enrolment_and_a_hub_that_is_not_linked_end_a_registration() {
    let emulator = Emulator::start_with(&["--id-scope", "0ne00000001"]);
    let back_end = BackEnd::of(&emulator);
    let key = SharedAccessKey::from_bytes([5; 32]);
    for (id, field, value, status, code) in [
        ("off", "provisioningStatus", "disabled", "disabled", Value::Null),
        ("far", "iotHubHostName", "other.azure-devices.net", "failed", json!(400_208)),
    ] {
        let mut enrolment = keyed(id, &key);
        enrolment[field] = value.into();
        assert_eq!(back_end.ask(&format!("PUT /enrollments/{id}"), "", &enrolment).status, 200);
        let answers = polled(&emulator, id, &key, "");
        let (last, body) = answers.last().expect("an answer");
        assert_eq!((*last, &body["status"]), (200, &json!(status)));
        assert_eq!(body["registrationState"]["errorCode"], code);
    }
}

#[test]
fn groups_are_kept_apart_and_show_what_their_certificate_says() {
    let dir = tempfile::tempdir().expect("a directory");
    let made = Certificates::make(dir.path());
    let emulator = Emulator::start_with(&["--id-scope", "0ne00000001"]);
    let back_end = BackEnd::of(&emulator);
    let pem = std::fs::read_to_string(made.path("ca.pem")).expect("PEM");
    let group = json!({
        "enrollmentGroupId": "fleet",
        "attestation": { "type": "x509", "x509": { "signingCertificates": { "primary": { "certificate": pem } } } },
        "reprovisionPolicy": { "updateHubAssignment": true, "migrateDeviceData": false },
    });
    assert_eq!(back_end.ask("PUT /enrollmentGroups/fleet", "", &group).status, 200);
    let read = back_end.ask("GET /enrollmentGroups/fleet", "", &Value::Null).json();
    let info = &read["attestation"]["x509"]["signingCertificates"]["primary"]["info"];
    assert_eq!((&info["subjectName"], &info["version"]), (&json!("CN=root"), &json!(3)));
    assert_eq!(info["sha256Thumbprint"].as_str().map(str::len), Some(64));
    assert_eq!(read["reprovisionPolicy"]["migrateDeviceData"], false);
    assert_eq!(
        super::client::registered_with_certificate(&emulator, "pump-1", &made.of("pump-1"))["status"],
        "assigned"
    );
    let query = json!({ "query": "SELECT * FROM enrollmentGroups" });
    let rows = back_end.ask("POST /enrollmentGroups/query", "", &query);
    assert_eq!(rows.json().as_array().map(Vec::len), Some(1));
    let registrations =
        back_end.ask("POST /registrations/fleet/query", "", &json!({ "query": "SELECT *" })).json();
    assert_eq!(registrations[0]["registrationId"], "pump-1");
    assert_eq!(back_end.ask("DELETE /enrollmentGroups/fleet", "", &Value::Null).status, 204);
}

#[test]
fn many_enrolments_are_changed_in_one_request_and_listed_page_by_page() {
    let emulator = Emulator::start_with(&["--id-scope", "0ne00000001"]);
    let back_end = BackEnd::of(&emulator);
    let key = SharedAccessKey::from_bytes([5; 32]);
    let bulk = |mode: &str, ids: &[&str]| {
        let enrollments: Vec<Value> = ids.iter().map(|id| keyed(id, &key)).collect();
        back_end.ask("POST /enrollments/", "", &json!({ "mode": mode, "enrollments": enrollments }))
    };
    assert_eq!(bulk("create", &["a", "b", "c"]).json(), json!({ "isSuccessful": true, "errors": [] }));
    let half = bulk("create", &["c", "d"]).json();
    assert_eq!(half["isSuccessful"], false);
    assert_eq!(
        (&half["errors"][0]["registrationId"], &half["errors"][0]["errorCode"]),
        (&json!("c"), &json!(409_001))
    );
    assert_eq!(bulk("update", &["c", "none"]).json()["errors"][0]["registrationId"], "none");
    let mut pages = Vec::new();
    let mut continuation = String::new();
    loop {
        let headers = format!("x-ms-max-item-count: 3\r\n{continuation}");
        let page = back_end.ask(
            "POST /enrollments/query",
            &headers,
            &json!({ "query": "SELECT * FROM enrollments" }),
        );
        assert_eq!(page.status, 200, "{page:?}");
        let rows = page.json();
        let ids = rows.as_array().into_iter().flatten();
        pages
            .push(ids.map(|row| row["registrationId"].as_str().unwrap_or("").to_owned()).collect::<Vec<_>>());
        match page.header("x-ms-continuation") {
            Some(token) => continuation = format!("x-ms-continuation: {token}\r\n"),
            None => break,
        }
    }
    assert_eq!(pages, [vec!["a", "b", "c"], vec!["d"]]);
    assert_eq!(bulk("delete", &["a", "b", "c", "d"]).json()["isSuccessful"], true);
    assert_eq!(bulk("destroy", &["a"]).status, 400);
}

#[test]
fn only_the_owner_of_the_service_is_let_in_and_wrong_bodies_are_told() {
    let emulator = Emulator::start_with(&["--dps-device", "reg-01"]);
    let path = format!("GET /enrollments/reg-01?{VERSION}");
    assert_eq!(ask(&emulator, &path, &service_token(&emulator), "", b"").status, 401);
    assert_eq!(ask(&emulator, &path, "", "", b"").status, 401);
    let back_end = BackEnd::of(&emulator);
    assert_eq!(back_end.ask("GET /enrollments/reg-01", "", &Value::Null).status, 200);
    assert_eq!(ask(&emulator, "GET /enrollments/reg-01", &back_end.token, "", b"").status, 400);
    for (body, said) in [
        (json!([]), "the body is no enrollment"),
        (json!({}), "the enrolment has no attestation"),
        (json!({ "attestation": { "type": "tpm" } }), "no TPM attestation"),
        (
            json!({ "attestation": { "type": "symmetricKey", "symmetricKey": { "primaryKey": "?" } } }),
            "not base64",
        ),
        (
            json!({ "attestation": { "type": "x509", "x509": { "caReferences": { "primary": "x" } } } }),
            "caReferences",
        ),
        (
            json!({ "registrationId": "other", "attestation": { "type": "symmetricKey" } }),
            "not the one in the path",
        ),
        (
            json!({ "attestation": { "type": "symmetricKey" }, "allocationPolicy": "best" }),
            "allocationPolicy",
        ),
    ] {
        let refused = back_end.ask("PUT /enrollments/new", "", &body);
        let text = refused.json()["message"].as_str().unwrap_or_default().to_owned();
        assert!(refused.status == 400 && text.contains(said), "{body}: {refused:?}");
    }
    let query = json!({ "query": "SELECT * FROM enrollments WHERE provisioningStatus = 'enabled'" });
    assert_eq!(back_end.ask("POST /enrollments/query", "", &query).status, 400);
}

#[test]
fn the_page_shows_enrolments_and_registrations() {
    let emulator = Emulator::start_with(&["--dps-device", "reg-01", "--fault", "dps-slow=1ms"]);
    registered(&emulator, "reg-01", &super::device_key(&emulator, "reg-01"), "");
    let shown = ask(&emulator, "GET /emulator/overview", &service_token(&emulator), "", b"").json();
    let service = &shown["provisioning"];
    assert_eq!((&service["idScope"], &service["faults"]["dps-slow"]), (&json!("0ne00000001"), &json!("1ms")));
    assert_eq!(service["enrolments"][0]["id"], "reg-01");
    assert_eq!(service["registrations"][0]["assignedHub"], "localhost");
    let without = ask(&Emulator::start(), "GET /emulator/overview", "x", "", b"");
    assert_eq!(without.status, 401);
}
