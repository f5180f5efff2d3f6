//! The emulator's registry of devices in bare requests: rights, conditions, bad input, and the effect of changes on
//! devices.
//!
//! Owns: nothing. Must not know: files of the state directory, except connection strings.

use serde_json::{Value, json};

use crate::harness::{Agent, Emulator};
use crate::rest::policy_token;
use crate::rest_ask::{Answer, ask, device_token};

/// A request of the policy `iothubowner`.
pub(crate) fn owner(emulator: &Emulator, method: &str, path: &str, headers: &str, body: &Value) -> Answer {
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let line = format!("{method} {path}?api-version=2021-04-12");
    ask(emulator, &line, &policy_token(emulator, "iothubowner"), headers, body.as_bytes())
}

fn poll(emulator: &Emulator, device_id: &str, token: &str) -> u16 {
    let line = format!("GET /devices/{device_id}/messages/devicebound?api-version=2021-04-12");
    ask(emulator, &line, token, "", b"").status
}

#[test]
fn a_device_is_made_used_disabled_and_deleted_and_a_restart_changes_none_of_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let state = dir.path().join("state");
    let start = || Emulator::start_in(&state, "0", "0", &["--device", "dev1"]);
    let emulator = start();
    let made = owner(&emulator, "PUT", "/devices/new-1", "", &json!({ "deviceId": "new-1" }));
    assert_eq!(made.status, 200, "{made:?}");
    let etag = made.json()["etag"].as_str().expect("an etag").to_owned();
    let own = device_token(&emulator, "new-1");
    assert_eq!(poll(&emulator, "new-1", &own), 204);
    emulator.send("new-1", &["--data", "x"]);
    assert_eq!(owner(&emulator, "DELETE", "/devices/dev1", "If-Match: *\r\n", &Value::Null).status, 204);
    assert_eq!(emulator.process.terminate(), Some(0));

    let emulator = Emulator::start_in(&state, "0", "0", &[]);
    assert_eq!(poll(&emulator, "new-1", &own), 200, "the same keys, and the message that waited");
    let listed = owner(&emulator, "GET", "/devices", "", &Value::Null).json();
    // The device of the command line is created again, with other keys.
    assert_eq!((&listed[0]["deviceId"], &listed[1]["deviceId"]), (&json!("dev1"), &json!("new-1")));
    assert_eq!(listed[1]["etag"], json!(etag));

    let agent = Agent::start(&emulator, "new-1", dir.path(), "");
    let off = json!({ "deviceId": "new-1", "status": "disabled" });
    let changed = owner(&emulator, "PUT", "/devices/new-1", &format!("If-Match: \"{etag}\"\r\n"), &off);
    assert_eq!((changed.status, &changed.json()["status"]), (200, &json!("disabled")));
    emulator.process.stderr.wait_for("was deleted or disabled");
    assert_eq!(poll(&emulator, "new-1", &own), 401);
    assert_eq!(agent.process.terminate(), Some(0));

    let on = json!({ "deviceId": "new-1", "status": "enabled" });
    assert_eq!(owner(&emulator, "PUT", "/devices/new-1", "If-Match: \"*\"\r\n", &on).status, 200);
    let agent = Agent::start(&emulator, "new-1", dir.path(), "");
    assert_eq!(owner(&emulator, "DELETE", "/devices/new-1", "", &Value::Null).status, 204);
    emulator.process.stderr.wait_for_nth("was deleted or disabled", 2);
    assert_eq!(poll(&emulator, "new-1", &own), 401);
    assert_eq!(owner(&emulator, "GET", "/devices/new-1", "", &Value::Null).status, 404);
    assert!(!emulator.device_file("new-1").exists());
    assert_eq!(agent.process.terminate(), Some(0));
}

#[test]
fn a_module_that_is_made_anew_has_another_generation_and_the_files_to_start_it_with() {
    let dir = tempfile::tempdir().expect("a directory");
    let socket = dir.path().join("workload.sock");
    let socket = socket.to_str().expect("UTF-8");
    let arguments = ["--module", "edge1/filter", "--workload-socket", socket];
    let emulator = Emulator::start_in(&dir.path().join("state"), "0", "0", &arguments);
    let path = "/devices/edge1/modules/filter";
    let before = owner(&emulator, "GET", path, "", &Value::Null).json();
    assert_eq!((&before["deviceId"], &before["moduleId"]), (&json!("edge1"), &json!("filter")));
    let generation = |module: &Value| module["generationId"].as_str().expect("a generation").to_owned();
    let environment = emulator.state.join("modules/edge1/filter.env");
    let line = |module: &Value| format!("IOTEDGE_MODULEGENERATIONID={}\n", generation(module));
    let text = std::fs::read_to_string(&environment).expect("an environment");
    assert!(text.ends_with(&line(&before)), "{text}");

    assert_eq!(owner(&emulator, "DELETE", path, "If-Match: *\r\n", &Value::Null).status, 204);
    assert!(!environment.exists() && !environment.with_extension("connection-string").exists());
    assert_eq!(owner(&emulator, "GET", path, "", &Value::Null).status, 404);
    let body = json!({ "deviceId": "edge1", "moduleId": "filter" });
    let made = owner(&emulator, "PUT", path, "", &body);
    assert_eq!(made.status, 200, "{made:?}");
    assert_ne!(generation(&made.json()), generation(&before));
    let text = std::fs::read_to_string(&environment).expect("an environment");
    assert!(text.ends_with(&line(&made.json())), "{text}");
    assert_eq!(owner(&emulator, "PUT", "/devices/edge1/modules/other", "", &json!({})).status, 200);
    let listed = owner(&emulator, "GET", "/devices/edge1/modules", "", &Value::Null).json();
    let ids: Vec<_> = listed.as_array().expect("a list").iter().map(|module| &module["moduleId"]).collect();
    assert_eq!(ids, [&json!("filter"), &json!("other")]);
    assert_eq!(emulator.process.terminate(), Some(0));

    let emulator = Emulator::start_in(&dir.path().join("state"), "0", "0", &arguments);
    let after = owner(&emulator, "GET", path, "", &Value::Null).json();
    assert_eq!(generation(&after), generation(&made.json()), "a restart makes no other one");
    assert_eq!(owner(&emulator, "DELETE", "/devices/edge1", "If-Match: *\r\n", &Value::Null).status, 204);
    assert_eq!(owner(&emulator, "GET", "/devices/edge1/modules", "", &Value::Null).status, 404);
}

#[test]
fn bad_requests_and_missing_rights_are_refused_in_words() {
    let emulator = Emulator::start();
    let thumbprint = |text: &str| {
        let print = json!({ "primaryThumbprint": text });
        json!({ "authentication": { "type": "selfSigned", "x509Thumbprint": print } })
    };
    let key = |primary: &str, secondary: &str| {
        let keys = json!({ "primaryKey": primary, "secondaryKey": secondary });
        json!({ "authentication": { "type": "sas", "symmetricKey": keys } })
    };
    let cases = [
        ("PUT", "/devices/a%20b", "", json!({}), 400, "ArgumentInvalid;"),
        (
            "PUT",
            "/devices/new",
            "",
            json!({ "deviceId": "other" }),
            400,
            "ArgumentInvalid;the device id in the body",
        ),
        ("PUT", "/devices/new", "", json!({ "status": "on" }), 400, "ArgumentInvalid;\"on\" is not a status"),
        ("PUT", "/devices/new", "", json!("x"), 400, "ArgumentInvalid;the body does not describe a device"),
        ("PUT", "/devices/new", "", thumbprint("ab"), 400, "ArgumentInvalid;a thumbprint is not"),
        ("PUT", "/devices/new", "", thumbprint(""), 400, "ArgumentInvalid;a device that signs in"),
        ("PUT", "/devices/new", "", key("%%", "%%"), 400, "ArgumentInvalid;a key is not base64"),
        ("PUT", "/devices/new", "", key("eHh4", ""), 400, "ArgumentInvalid;give both keys"),
        (
            "PUT",
            "/devices/new",
            "",
            json!({ "authentication": { "type": "none" } }),
            400,
            "ArgumentInvalid;\"none\" is not an authentication",
        ),
        ("PUT", "/devices/new", "If-Match: *\r\n", json!({}), 404, "DeviceNotFound;"),
        ("PUT", "/devices/dev1", "", json!({}), 409, "DeviceAlreadyExists;"),
        ("PUT", "/devices/dev1", "If-Match: \"x\"\r\n", json!({}), 412, "PreconditionFailed;"),
        ("DELETE", "/devices/dev1", "If-Match: \"x\"\r\n", Value::Null, 412, "PreconditionFailed;"),
        ("GET", "/devices/none", "", Value::Null, 404, "DeviceNotFound;"),
        ("POST", "/devices/dev1", "", Value::Null, 405, "MethodNotAllowed;"),
        (
            "GET",
            "/devices/dev1/modules/m",
            "",
            Value::Null,
            404,
            "ModuleNotFound;device \"dev1\" has no module",
        ),
        ("GET", "/devices/none/modules", "", Value::Null, 404, "DeviceNotFound;"),
        (
            "PUT",
            "/devices/none/modules/m",
            "",
            json!({}),
            404,
            "DeviceNotFound;the hub has no device \"none\"",
        ),
        ("PUT", "/devices/dev1/modules/m", "If-Match: *\r\n", json!({}), 404, "ModuleNotFound;"),
        (
            "PUT",
            "/devices/dev1/modules/a%20b",
            "",
            json!({}),
            400,
            "ArgumentInvalid;\"a b\" is not a module id",
        ),
        (
            "PUT",
            "/devices/dev1/modules/m",
            "",
            json!({ "moduleId": "n" }),
            400,
            "ArgumentInvalid;the module id in",
        ),
        ("DELETE", "/devices/dev1/modules/m", "", Value::Null, 404, "ModuleNotFound;"),
    ];
    for (method, path, headers, body, status, words) in cases {
        let answer = owner(&emulator, method, path, headers, &body);
        assert_eq!(answer.status, status, "{method} {path} {body}: {answer:?}");
        let message = answer.json()["Message"].as_str().expect("a message").to_owned();
        assert!(message.starts_with(&format!("ErrorCode:{words}")), "{method} {path} {body}: {message}");
    }
    let all = "GET /devices?api-version=1";
    let delete = "DELETE /devices/dev1?api-version=1";
    for (policy, line, status) in [
        ("service", all, 401),
        ("device", all, 401),
        ("registryRead", all, 200),
        ("registryRead", delete, 401),
        ("registryReadWrite", delete, 204),
    ] {
        let answer = ask(&emulator, line, &policy_token(&emulator, policy), "", b"");
        assert_eq!(answer.status, status, "{policy}: {line}");
    }
    assert_eq!(emulator.process.stderr.count("panicked"), 0);
}
