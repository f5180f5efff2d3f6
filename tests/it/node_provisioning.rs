//! Microsoft's unmodified Node SDKs at the emulator's provisioning service: a device asks for its hub over each transport
//! and then signs in there over the same one, and a back end keeps enrolments.
//!
//! Owns: nothing. Must not know: how the SDKs work; the programs are in `tests/sdk-node/`.

use std::path::Path;

use c2d_agent::credentials::SharedAccessKey;
use serde_json::{Value, json};

use crate::emulator_dps::client::{Certificates, device_key};
use crate::emulator_running::{asking, said};
use crate::harness::{Emulator, Process, own_address, run};
use crate::node::{has_node, script};
use crate::sdk::{emulator, json as parse};

const TRANSPORTS: [&str; 5] = ["mqtt", "mqtt-ws", "amqp", "amqp-ws", "http"];
const SCOPE: &str = "0ne00000001";

/// Runs the program. Returns its lines, the last of which is an error if it has failed.
fn ask(emulator: &Emulator, transport: &str, id: &str, proof: &[(&str, &Path)]) -> Vec<Value> {
    let mut program = script(emulator, "provisioning.js");
    program.args([transport, &emulator.mqtt.ip().to_string(), SCOPE, id]);
    program.env("PAYLOAD", r#"{"site": 12}"#).envs(proof.iter().copied());
    let output = run(&mut program);
    assert!(output.stderr.is_empty(), "{transport}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).lines().map(parse).collect()
}

fn with_key(emulator: &Emulator, transport: &str, id: &str, key: &SharedAccessKey) -> Vec<Value> {
    ask(emulator, transport, id, &[("SYMMETRIC_KEY", Path::new(&key.expose_base64()))])
}

#[track_caller]
fn succeeded(transport: &str, id: &str, hub: &str, told: &[Value]) {
    let state = &told[0];
    assert_eq!(
        (&state["assignedHub"], &state["deviceId"]),
        (&json!(hub), &json!(id)),
        "{transport}: {told:?}"
    );
    assert_eq!(told[1], json!({ "sent": transport }), "{told:?}");
}

/// The bodies that a device has sent to the hub of a state directory.
fn sent(state: &Path, id: &str) -> Vec<Value> {
    let (_, events) = said(&mut asking(state, &["events", "--device", id, "--json"]));
    events.lines().map(|line| parse(line)["body"].clone()).collect()
}

#[test]
fn the_node_sdk_registers_with_keys_over_each_transport_and_sends_to_its_hub() {
    if !has_node("the Node SDK registers with keys") {
        return;
    }
    let (own, group) = (SharedAccessKey::from_bytes([3; 32]), SharedAccessKey::from_bytes([4; 32]));
    let options = [format!("reg-01={}", own.expose_base64()), format!("fleet={}", group.expose_base64())];
    let (emulator, _dir) =
        emulator(&["--dps-device", &options[0], "--dps-group", &options[1], "--https-port", "443"]);
    let hub = emulator.mqtt.ip().to_string();
    for transport in TRANSPORTS {
        succeeded(transport, "reg-01", &hub, &with_key(&emulator, transport, "reg-01", &own));
        let id = format!("pump-{transport}");
        let derived = SharedAccessKey::from_bytes(group.digest(id.as_bytes()));
        succeeded(transport, &id, &hub, &with_key(&emulator, transport, &id, &derived));
    }
    assert_eq!(sent(&emulator.state, "reg-01"), TRANSPORTS);
}

#[test]
fn the_node_sdk_registers_with_certificates_over_each_transport_and_sends_to_its_hub() {
    if !has_node("the Node SDK registers with certificates") {
        return;
    }
    let folder = tempfile::tempdir().expect("a directory");
    let made = Certificates::make(folder.path());
    let options = [
        format!("solo={}", made.path("solo.pem").display()),
        format!("fleet={}", made.path("ca.pem").display()),
    ];
    let (emulator, _dir) =
        emulator(&["--dps-device", &options[0], "--dps-group", &options[1], "--https-port", "443"]);
    let hub = emulator.mqtt.ip().to_string();
    for transport in TRANSPORTS {
        for id in ["solo", "pump-1"] {
            let of = made.of(id);
            let proof = [("CERTIFICATE", &*of.certificate), ("PRIVATE_KEY", &*of.private_key)];
            succeeded(transport, id, &hub, &ask(&emulator, transport, id, &proof));
        }
    }
    assert_eq!(sent(&emulator.state, "solo"), TRANSPORTS);
}

#[test]
fn the_node_sdk_tries_again_what_fails_for_a_while_and_tells_what_is_refused() {
    if !has_node("the Node SDK tells what the service refuses") {
        return;
    }
    let key = SharedAccessKey::from_bytes([3; 32]);
    let option = format!("reg-01={}", key.expose_base64());
    let other = own_address().to_string();
    let (emulator, _dir) = emulator(&["--dps-device", &option, "--hub", &other, "--https-port", "443"]);
    let faults = |arguments: &[&str]| {
        let told = said(&mut asking(&emulator.state, &[&["faults"], arguments].concat()));
        assert_eq!(told.0, Some(0), "{}", told.1);
    };
    for transport in ["amqp", "amqp-ws"] {
        let hub = emulator.mqtt.ip().to_string();
        faults(&["dps-throttle=1", "dps-error=1", "dps-assigning=2"]);
        succeeded(transport, "reg-01", &hub, &with_key(&emulator, transport, "reg-01", &key));
        faults(&["--clear"]);

        faults(&["dps-refuse=1"]);
        let told = with_key(&emulator, transport, "reg-01", &key);
        assert_eq!(told[0]["error"], "amqp:unauthorized-access", "{told:?}");
        let body = parse(told[0]["said"].as_str().unwrap_or_else(|| panic!("{told:?}")));
        assert_eq!((&body["errorCode"], &body["message"]), (&json!(401_002), &json!("Unauthorized")));
        let wrong = with_key(&emulator, transport, "reg-02", &key);
        assert_eq!(wrong[0]["error"], "amqp:unauthorized-access", "{wrong:?}");

        faults(&["dps-failed=400208"]);
        let told = with_key(&emulator, transport, "reg-01", &key);
        assert_eq!(told[0]["error"], "ProvisioningRegistrationFailedError", "{told:?}");
        faults(&["--clear"]);
    }
    // To the other hub, in the middle of its life.
    faults(&["dps-move"]);
    succeeded("amqp", "reg-01", &other, &with_key(&emulator, "amqp", "reg-01", &key));
    assert_eq!(sent(&emulator.state.join("hubs").join(&other), "reg-01"), ["amqp"]);
}

#[test]
fn the_node_sdks_back_end_keeps_enrolments_and_registrations() {
    if !has_node("the Node SDK's back end keeps enrolments") {
        return;
    }
    let (emulator, _dir) = emulator(&["--dps-device", "seen", "--https-port", "443"]);
    let hub = emulator.mqtt.ip().to_string();
    let key = device_key(&emulator, "seen");
    succeeded("http", "seen", &hub, &with_key(&emulator, "http", "seen", &key));
    let string = std::fs::read_to_string(emulator.state.join("dps/service.connection-string")).expect("text");
    let mut back_end = script(&emulator, "enrolments.js");
    let back_end =
        Process::spawn(back_end.arg(emulator.ca_file()).env("SERVICE_CONNECTION_STRING", string.trim()));
    assert_eq!(back_end.wait_exit().code(), Some(0), "{}", back_end.stderr.text());
    let told: Vec<_> = back_end.stdout.all().iter().map(|line| parse(line)).collect();
    let expected = [
        json!({
            "made": "one", "changed": "pump-7", "stale": "InvalidEtagError", "again": "DeviceAlreadyExistsError",
            "wrong": "ArgumentError",
        }),
        json!({ "keeps": true, "status": "enabled", "sameEtag": true }),
        json!({ "group": "disabled", "subject": "CN=c2d-agent emulator CA" }),
        json!({ "created": true, "half": ["three"] }),
        json!({ "pages": [["four", "one", "seen"], ["three", "two"]], "groups": [["fleet"]] }),
        json!({ "registration": "assigned", "device": "seen" }),
        // The SDK has no name of its own for what is not there.
        json!({ "gone": "Error", "enrolment": "Error", "group": "Error" }),
    ];
    assert_eq!(told, expected);
}
