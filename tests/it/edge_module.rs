//! The agent as a module of an edge device: after a redeployment, after a restart of the gateway, with another trust
//! bundle.
//!
//! Owns: nothing. Must not know: how the agent signs in.

use serde_json::{Value, json};

use crate::emulator_registry::owner;
use crate::harness::{Emulator, wait_for_file};
use crate::soak::back_end::{Door, Hub, MODULE};
use crate::soak::gateway::Gateway;

/// A rule that writes a line for each message from `edge1` to the input `commands`.
const RULE: &str = "[[rule]]\nname = \"write\"\nwhen = { \"$.source\" = \"input\", \"$.input\" = \"commands\", \"$.cdid\" = \"edge1\" }\n\
    do = [ { shell = \"echo $C2D_MESSAGE_ID done >> DIR/done\" } ]\n";

fn started() -> (Hub, Gateway) {
    let hub = Hub::start_with(Door::Input);
    let mut gateway = Gateway::new(&hub, RULE);
    gateway.start_subscribed();
    (hub, gateway)
}

/// Feeds a message, and waits until it is done and acknowledged.
fn feed(hub: &Hub, gateway: &Gateway, id: &str) {
    hub.send(id, "any", &[]).expect("room");
    wait_for_file(&gateway.path("done"), &format!("{id} done\n"));
    hub.wait_success(id);
}

fn lines(gateway: &Gateway) -> Vec<String> {
    wait_for_file(&gateway.path("done"), "").lines().map(str::to_owned).collect()
}

#[test]
fn a_redeployment_ends_the_agent_with_one_sentence_and_the_next_one_knows_what_was_done() {
    let (hub, mut gateway) = started();
    feed(&hub, &gateway, "m-1");
    let path = "/devices/edge1/modules/c2d-agent";
    assert_eq!(owner(&hub.emulator, "DELETE", path, "If-Match: *\r\n", &Value::Null).status, 204);
    let anew = json!({ "deviceId": "edge1", "moduleId": "c2d-agent" });
    assert_eq!(owner(&hub.emulator, "PUT", path, "", &anew).status, 200);
    assert_eq!(gateway.wait_exit(), Some(1));
    let log = gateway.logs.last().expect("a life");
    let said = log.lines().last().expect("a sentence");
    assert!(
        said.contains("was redeployed or removed") && said.contains("edgeAgent starts the new one"),
        "{log}"
    );

    // edgeAgent starts the module with the new generation. The inbox stays the same.
    gateway.deploy(&hub);
    gateway.start_subscribed();
    hub.send("m-1", "any", &[]).expect("room");
    feed(&hub, &gateway, "m-2");
    assert_eq!(lines(&gateway), ["m-1 done", "m-2 done"]);
    gateway.terminate();
}

#[test]
fn a_module_that_was_removed_for_good_ends_with_the_same_sentence_at_its_start() {
    let hub = Hub::start_with(Door::Input);
    let mut gateway = Gateway::new(&hub, RULE);
    let path = "/devices/edge1/modules/c2d-agent";
    assert_eq!(owner(&hub.emulator, "DELETE", path, "If-Match: *\r\n", &Value::Null).status, 204);
    gateway.start();
    assert_eq!(gateway.wait_exit(), Some(1));
    let log = gateway.logs.last().expect("a life");
    assert!(log.contains("was redeployed or removed"), "{log}");
}

#[test]
fn a_restart_of_the_gateway_costs_no_message_and_no_restart() {
    let (mut hub, mut gateway) = started();
    feed(&hub, &gateway, "m-1");
    hub.restart(|| ());
    feed(&hub, &gateway, "m-2");
    assert_eq!(lines(&gateway), ["m-1 done", "m-2 done"]);
    gateway.terminate();
}

#[test]
fn another_trust_bundle_is_taken_up_without_a_restart() {
    let (mut hub, mut gateway) = started();
    feed(&hub, &gateway, "m-1");
    let other = Emulator::start();
    let secrets = |emulator: &Emulator| emulator.state.join("secrets.json");
    let read = |path: &std::path::Path| -> Value {
        serde_json::from_slice(&std::fs::read(path).expect("read")).expect("JSON")
    };
    let authority = read(&secrets(&other))["authority"].clone();
    let own = secrets(&hub.emulator);
    let before = std::fs::read(hub.emulator.ca_file()).expect("read");
    hub.restart(|| {
        let mut text = read(&own);
        text["authority"] = authority;
        std::fs::write(&own, text.to_string()).expect("written");
    });
    assert_ne!(std::fs::read(hub.emulator.ca_file()).expect("read"), before);
    feed(&hub, &gateway, "m-2");
    assert_eq!(lines(&gateway), ["m-1 done", "m-2 done"]);
    gateway.expect_running();
    gateway.terminate();
}

#[test]
fn a_c2d_message_for_the_module_is_refused_at_the_hub() {
    let (hub, mut gateway) = started();
    let mut send = hub.emulator.sender(MODULE);
    let refused = crate::harness::run(send.args(["--data", "x"]));
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.status.code() == Some(2) && said.contains("is not a device id"), "{said}");
    feed(&hub, &gateway, "m-1");
    assert_eq!(lines(&gateway), ["m-1 done"]);
    gateway.terminate();
}
