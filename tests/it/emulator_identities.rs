//! What the emulator's registry keeps of a device or a module beside its keys, and what it does not serve.
//!
//! Owns: nothing. Must not know: files of the state directory, except those for clients.

use c2d_agent::tls::ClientCertificate;
use serde_json::{Value, json};

use crate::emulator_modules::workload;
use crate::emulator_registry::owner;
use crate::harness::Emulator;
use crate::rest::{policy_token, service_token};
use crate::rest_ask::{Answer, ask, ask_as, device_token};

const NEVER: &str = "0001-01-01T00:00:00Z";

fn twin(emulator: &Emulator, id: &str) -> Value {
    let line = format!("GET /twins/{id}?api-version=2021-04-12");
    ask(emulator, &line, &service_token(emulator), "", b"").json()
}

/// The word and the sentence of an error in the hub's form.
fn error(answer: &Answer) -> (String, String) {
    let body = answer.json();
    let message = body["Message"].as_str().expect("a message");
    let (word, sentence) =
        message.strip_prefix("ErrorCode:").and_then(|rest| rest.split_once(';')).expect("its form");
    (word.to_owned(), sentence.to_owned())
}

/// Node's `Registry.list()` and C's `IoTHubRegistryManager_GetDeviceList` ask so.
#[test]
fn devices_are_listed_with_a_slash_at_the_end_of_the_path() {
    let emulator = Emulator::start();
    let token = policy_token(&emulator, "iothubowner");
    for line in ["GET /devices/?api-version=2021-04-12", "GET /devices/?top=5&api-version=2020-09-30"] {
        let listed = ask(&emulator, line, &token, "", b"");
        assert_eq!((listed.status, listed.json()[0]["deviceId"].clone()), (200, json!("dev1")), "{line}");
    }
}

#[test]
fn capabilities_scopes_reasons_and_managers_are_given_back_also_after_a_restart() {
    let dir = tempfile::tempdir().expect("a directory");
    let start = || Emulator::start_in(&dir.path().join("state"), "0", "0", &["--module", "edge1/filter"]);
    let emulator = start();
    let edge = owner(&emulator, "GET", "/devices/edge1", "", &Value::Null).json();
    assert_eq!((&edge["capabilities"], &edge["parentScopes"]), (&json!({ "iotEdge": true }), &json!([])));
    let scope = edge["deviceScope"].as_str().expect("a scope").to_owned();
    assert!(scope.starts_with("ms-azure-iot-edge://edge1-"), "{scope}");

    // As Node's Registry.create() and `az iot hub device-identity create` send it.
    let leaf = json!({
        "deviceId": "leaf", "status": "disabled", "statusReason": "stolen", "capabilities": { "iotEdge": false },
        "deviceScope": scope, "authentication": { "type": "sas", "symmetricKey": { "primaryKey": "" } },
    });
    let made = owner(&emulator, "PUT", "/devices/leaf", "", &leaf);
    assert_eq!(made.status, 200, "{made:?}");
    let etag = made.json()["etag"].as_str().expect("an etag").to_owned();
    assert_eq!(made.header("etag"), Some(&*format!("\"{etag}\"")));
    for shown in [made.json(), twin(&emulator, "leaf")] {
        assert_eq!((&shown["statusReason"], &shown["status"]), (&json!("stolen"), &json!("disabled")));
        assert_eq!((&shown["deviceScope"], &shown["parentScopes"]), (&json!(scope), &json!([scope])));
        assert_eq!(shown["capabilities"], json!({ "iotEdge": false }));
    }
    // An edge device below another: its own scope, and its parent's. `az … parent set` sends back the whole device.
    let mut below =
        owner(&emulator, "PUT", "/devices/below", "", &json!({ "capabilities": { "iotEdge": true } })).json();
    let own = below["deviceScope"].clone();
    below["parentScopes"] = json!([scope]);
    let condition = format!("If-Match: \"{}\"\r\n", below["etag"].as_str().expect("an etag"));
    let below = owner(&emulator, "PUT", "/devices/below", &condition, &below);
    assert_eq!((below.status, &below.json()["deviceScope"]), (200, &own), "{below:?}");
    assert_eq!(below.json()["parentScopes"], json!([scope]));
    let module = json!({ "moduleId": "m", "deviceId": "edge1", "managedBy": "IotEdge" });
    assert_eq!(
        owner(&emulator, "PUT", "/devices/edge1/modules/m", "", &module).json()["managedBy"],
        "IotEdge"
    );

    let paths = ["/devices/edge1", "/devices/leaf", "/devices/below", "/devices/edge1/modules/m"];
    let all = |emulator: &Emulator| paths.map(|path| owner(emulator, "GET", path, "", &Value::Null).json());
    let before = all(&emulator);
    assert_eq!(emulator.process.terminate(), Some(0));
    let emulator = start();
    assert_eq!(all(&emulator), before);

    // What is left out stays; an empty scope takes the parent away, as `az … children remove` does.
    let put = |body: Value| owner(&emulator, "PUT", "/devices/leaf", "If-Match: *\r\n", &body);
    let kept = put(json!({ "status": "disabled" })).json();
    assert_eq!((&kept["deviceScope"], &kept["statusReason"]), (&json!(scope), &Value::Null));
    let alone = put(json!({ "status": "disabled", "deviceScope": "" })).json();
    assert_eq!((alone.get("deviceScope"), &alone["parentScopes"]), (None, &json!([])));
    for wrong in ["ms-azure-iot-edge://edge1-1", "ms-azure-iot-edge://none-1", "edge1"] {
        let refused = put(json!({ "deviceScope": wrong }));
        let (word, sentence) = error(&refused);
        assert_eq!((refused.status, word.as_str()), (400, "InvalidDeviceScope"), "{wrong}");
        assert!(sentence.contains(wrong), "{wrong}: {sentence}");
    }
    let long = put(json!({ "statusReason": "é".repeat(129) }));
    assert_eq!(
        (long.status, error(&long).1),
        (400, "the statusReason has 129 characters: use at most 128".to_owned())
    );
    let two = put(json!({ "parentScopes": ["a", "b"] }));
    assert!(two.status == 400 && error(&two).1.contains("at most one parent"), "{two:?}");
}

#[test]
fn times_are_those_of_the_last_change() {
    let emulator = Emulator::start();
    let get = || owner(&emulator, "GET", "/devices/dev1", "", &Value::Null).json();
    let before = get();
    let times = ["statusUpdatedTime", "connectionStateUpdatedTime", "lastActivityTime"];
    assert!(times.iter().all(|name| before[name] == NEVER), "{before}");
    drop(crate::emulator_twins::sign_in(&emulator, true));
    emulator.process.stderr.wait_for("a device's connection ended");
    let off = json!({ "status": "disabled" });
    assert_eq!(owner(&emulator, "PUT", "/devices/dev1", "If-Match: *\r\n", &off).status, 200);
    let after = get();
    let year = after["statusUpdatedTime"].as_str().expect("a time").get(..3).map(str::to_owned);
    assert_eq!(year.as_deref(), Some("202"), "{after}");
    assert!(times.iter().all(|name| after[name] != NEVER), "{after}");
    let shown = twin(&emulator, "dev1");
    assert_eq!(shown["statusUpdateTime"], after["statusUpdatedTime"]);
    assert_eq!(
        (&shown["lastActivityTime"], &shown["deviceEtag"]),
        (&after["lastActivityTime"], &after["etag"])
    );
    // The same status again is no change.
    assert_eq!(owner(&emulator, "PUT", "/devices/dev1", "If-Match: *\r\n", &off).status, 200);
    assert_eq!(get()["statusUpdatedTime"], after["statusUpdatedTime"]);
}

#[test]
fn new_keys_do_not_end_a_running_module() {
    let dir = tempfile::tempdir().expect("a directory");
    let socket = dir.path().join("workload.sock");
    let arguments = ["--module", "edge1/filter", "--workload-socket", socket.to_str().expect("UTF-8")];
    let emulator = Emulator::start_in(&dir.path().join("state"), "0", "0", &arguments);
    let path = "/devices/edge1/modules/filter";
    let get = || owner(&emulator, "GET", path, "", &Value::Null).json();
    let before = get();
    let generation = before["generationId"].as_str().expect("a generation").to_owned();
    let sign = || {
        let line = format!("POST /modules/filter/genid/{generation}/sign?api-version=2019-01-30");
        workload(&socket, &line, r#"{"data": "eA=="}"#)
    };
    let (status, signed) = sign();
    assert_eq!(status, 200, "{signed}");
    let body = json!({ "policyKey": "both", "devices": [{ "id": "edge1", "moduleId": "filter" }] });
    assert_eq!(owner(&emulator, "POST", "/devices/keys/regenerate", "", &body).status, 200);
    let after = get();
    assert_ne!(after["authentication"], before["authentication"]);
    assert_eq!(after["generationId"], before["generationId"]);
    let (status, again) = sign();
    assert!(status == 200 && again != signed, "signed with the new key: {again}");
    let keys = json!({ "primaryKey": "eHh4", "secondaryKey": "eXl5" });
    let body = json!({ "authentication": { "type": "sas", "symmetricKey": keys } });
    assert_eq!(
        owner(&emulator, "PUT", path, "If-Match: *\r\n", &body).json()["generationId"],
        before["generationId"]
    );
}

#[test]
fn a_device_signs_in_with_a_certificate_that_the_authority_has_signed_for_it() {
    let emulator = Emulator::start_with(&["--x509-device", "self"]);
    let by_authority = json!({ "authentication": { "type": "certificateAuthority" } });
    for id in ["ca-1", "ca-2"] {
        let made = owner(&emulator, "PUT", &format!("/devices/{id}"), "", &by_authority).json();
        assert_eq!(made["authentication"]["type"], "certificateAuthority");
        assert_eq!(twin(&emulator, id)["authenticationType"], "certificateAuthority");
    }
    let identity = |name: &str| {
        let file = |suffix: &str| emulator.state.join(format!("devices/{name}.{suffix}.pem"));
        ClientCertificate { certificate: file("cert"), private_key: file("key") }
    };
    let poll = |id: &str, name: &str| {
        let line = format!("GET /devices/{id}/messages/devicebound?api-version=1");
        ask_as(&emulator, Some(&identity(name)), &line, "", b"").status
    };
    assert_eq!([poll("ca-1", "ca-1"), poll("ca-2", "ca-2"), poll("self", "self")], [204, 204, 204]);
    assert_eq!([poll("ca-1", "ca-2"), poll("ca-1", "self"), poll("self", "ca-1")], [401, 401, 401]);
    // A certificate with the right name in it that the device has signed itself. Its files are replaced.
    for suffix in ["cert.pem", "key.pem"] {
        let file = |name: &str| emulator.state.join(format!("devices/{name}.{suffix}"));
        std::fs::copy(file("self"), file("before")).expect("copied");
    }
    assert_eq!(owner(&emulator, "PUT", "/devices/self", "If-Match: *\r\n", &by_authority).status, 200);
    assert_eq!([poll("self", "before"), poll("self", "self")], [401, 204]);
    // Of a module, whose folder does not exist yet.
    assert_eq!(owner(&emulator, "PUT", "/devices/ca-2/modules/m1", "", &by_authority).status, 200);
    assert!(emulator.state.join("modules/ca-2/m1.cert.pem").exists());
    // Back to keys: the certificate counts no more, and its files are gone.
    let keys = json!({ "authentication": { "type": "sas" } });
    assert_eq!(owner(&emulator, "PUT", "/devices/ca-1", "If-Match: *\r\n", &keys).status, 200);
    assert!(!identity("ca-1").private_key.exists());
    let line = "GET /devices/ca-1/messages/devicebound?api-version=1";
    assert_eq!(ask(&emulator, line, &device_token(&emulator, "ca-1"), "", b"").status, 204);
    assert_eq!(emulator.process.stderr.count("panicked"), 0);
}

#[test]
fn what_only_the_real_hub_has_is_refused_with_one_sentence() {
    let emulator = Emulator::start();
    let (device, owner, service) =
        (device_token(&emulator, "dev1"), policy_token(&emulator, "iothubowner"), service_token(&emulator));
    let version = "api-version=2021-04-12";
    for (request, token, words) in [
        ("POST /devices/dev1/files", &device, "no file upload"),
        ("POST /devices/dev1/files/notifications", &device, "no file upload"),
        ("POST /devices/dev1/files/notifications/x", &device, "no file upload"),
        ("GET /messages/serviceBound/filenotifications", &service, "no file upload"),
        ("GET /configurations", &owner, "no device configurations"),
        ("GET /configurations/", &owner, "no device configurations"),
        ("PUT /configurations/c1", &owner, "no device configurations"),
        ("POST /configurations/testQueries", &owner, "no device configurations"),
        ("POST /devices/dev1/applyConfigurationContent", &owner, "no edge deployments"),
        ("GET /digitaltwins/dev1", &service, "no digital twins"),
        ("PATCH /digitaltwins/dev1", &service, "no digital twins"),
        ("POST /digitaltwins/dev1/components/c/commands/x", &service, "no digital twins"),
        ("POST /twins/dev1/streams/s", &service, "no device streams"),
    ] {
        let body = if request.starts_with("GET") || request.starts_with("DELETE") { "" } else { "{}" };
        let answer = ask(&emulator, &format!("{request}?{version}"), token, "", body.as_bytes());
        assert_eq!(answer.status, 501, "{request}: {answer:?}");
        let (word, sentence) = error(&answer);
        assert_eq!(word, "FeatureNotSupported", "{request}");
        assert!(sentence.starts_with("this emulator ") && sentence.contains(words), "{request}: {sentence}");
        assert_eq!(
            ask(&emulator, &format!("{request}?{version}"), "", "", body.as_bytes()).status,
            401,
            "{request}"
        );
    }
}
