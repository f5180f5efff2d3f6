//! Microsoft's unmodified Node SDKs as a back end and as a module of an edge device.
//!
//! Owns: nothing. Must not know: how the SDKs work; the programs are in `tests/sdk-node/`.

use serde_json::{Value, json};

use crate::emulator_modules::feed;
use crate::harness::{Agent, Emulator, Process, run, wait_for_file};
use crate::invoke_method::{back_end, seen};
use crate::node::{has_node, printed, script};
use crate::sdk::{emulator, json as parse, owner_string};

/// What a program printed until its end, which must be a good one.
fn told(process: &Process) -> Vec<Value> {
    assert_eq!(process.wait_exit().code(), Some(0), "{}", process.stderr.text());
    process.stdout.all().iter().map(|line| parse(line)).collect()
}

/// The SDK sends to our agent, gets the feedback, and calls a method of the agent.
fn service(transport: &str) {
    if !has_node(&format!("the Node SDK's back end over {transport}")) {
        return;
    }
    let (emulator, dir) = emulator(&["--device", "dev1", "--https-port", "443"]);
    let out = dir.path().join("out");
    let rules = format!(
        "[[rule]]\nname = \"write\"\nwhen = {{ action = \"write\" }}\n\
         do = [ {{ shell = '(printf \"%s|\" \"$C2D_MESSAGE_ID\" \"$C2D_CORRELATION_ID\" \"$C2D_PROPERTY_ODD\"; cat; echo) >> {}' }} ]\n\
         [[rule]]\nname = \"greet\"\nwhen = {{ \"$.method\" = \"greet\" }}\ndo = [ {{ run = [\"/bin/echo\", \"{{body.name}}\"] }} ]\n",
        out.display()
    );
    let agent = Agent::start(&emulator, "dev1", dir.path(), &rules);
    let mut service = script(&emulator, "service.js");
    service.args([transport, "dev1"]).env("SERVICE_CONNECTION_STRING", emulator.service_string());
    let service = Process::spawn(&mut service);
    let lines = told(&service);
    let ids = ["m-1", "m:2", "m-3"];
    let sent: Vec<_> = ids.iter().map(|id| json!({ "sent": id, "as": "MessageEnqueued" })).collect();
    assert_eq!(printed(&service.stdout, "sent"), sent);
    let mut records = printed(&service.stdout, "feedback");
    records.sort_by_key(|record| ids.iter().position(|id| record["feedback"] == *id));
    let good =
        |id| json!({ "feedback": id, "deviceId": "dev1", "statusCode": "Success", "hasGeneration": true });
    assert_eq!(records, ids.map(good));
    let method = &printed(&service.stdout, "method")[0];
    assert_eq!(
        (&method["method"], &method["payload"]["outcome"]),
        (&json!(200), &json!("succeeded")),
        "{method}"
    );
    assert_eq!(printed(&service.stdout, "nobody"), [json!({ "nobody": "DeviceNotFoundError" })]);
    // Nothing has ended the connection before the program did.
    assert_eq!(lines.last(), Some(&json!({ "closed": true })), "{lines:?}");
    assert!(printed(&service.stdout, "disconnected").is_empty(), "{lines:?}");

    let written = wait_for_file(&out, "m-3|");
    for id in ids {
        assert!(written.contains(&format!("{id}|c-1|a=b&c%d|grüße {id}\n")), "{written}");
    }
    assert_eq!(agent.process.terminate(), Some(0));
}

#[test]
fn the_node_sdks_back_end_over_amqp() {
    service("amqp");
}

#[test]
fn the_node_sdks_back_end_over_amqp_over_a_websocket() {
    service("amqp-ws");
}

#[test]
fn the_node_sdks_back_end_keeps_registry_and_twins_and_asks_for_them() {
    if !has_node("the Node SDK's back end keeps registry and twins and asks for them") {
        return;
    }
    let (emulator, _dir) = emulator(&["--device", "dev1", "--https-port", "443"]);
    let mut registry = script(&emulator, "registry.js");
    registry.args(["devices", "modules", "twins", "query", "statistics", "bulk"]);
    let registry = Process::spawn(registry.env("SERVICE_CONNECTION_STRING", owner_string(&emulator)));
    let expected = [
        json!({ "made": "new-1", "keepsKeys": true, "again": "DeviceAlreadyExistsError", "odd": "ArgumentError" }),
        json!({ "got": "enabled", "reason": "just made", "iotEdge": true, "state": "Disconnected" }),
        json!({
            "changed": "disabled", "reason": "too loud", "sameGeneration": true, "otherEtag": true,
            "changedAt": true,
        }),
        json!({ "listed": ["dev1", "new-1", "new-2"] }),
        json!({ "deleted": "DeviceNotFoundError", "deletedAgain": "DeviceNotFoundError" }),
        // The SDK has no name of its own for a module that is not there.
        json!({ "module": ["nobody", "somebody"], "listed": ["mod"], "removed": "Error" }),
        json!({
            "tags": { "site": "b43" }, "x": { "y": "é" }, "$version": 2,
            "stale": "InvalidEtagError", "missing": "DeviceNotFoundError",
        }),
        json!({
            "pages": [[["q-1", 1], ["q-2", 2], ["q-3", 3]], [["q-4", 4]]], "fields": [{ "id": "q-1", "floor": 1 }],
            "count": [{ "n": 5 }], "wrong": "ArgumentError",
        }),
        // dev1, new-1, and the five of the query; new-1 is disabled.
        json!({ "statistics": { "totalDeviceCount": 7, "enabledDeviceCount": 6, "disabledDeviceCount": 1 } }),
        json!({
            "bulk": [true, true, true], "half": [["bulk-18", 409_001], ["bulk-19", 409_001]],
            "device": "disabled", "gone": "DeviceNotFoundError",
        }),
    ];
    assert_eq!(told(&registry), expected);
}

const ROUTE: &str =
    "FROM /messages/modules/mod/outputs/out INTO BrokeredEndpoint(\"/modules/sink/inputs/in\")";

/// A module that gets an input and a method; `environment` says who it is.
fn module(emulator: &Emulator, environment: &[(&str, &str)]) {
    let mut module = script(emulator, "module.js");
    // It trusts what its environment says, and nothing else.
    module.env_remove("NODE_EXTRA_CA_CERTS").envs(environment.iter().copied());
    let module = Process::spawn(&mut module);
    module.wait_stdout("ready");
    let form = json!({ "messageId": "m-1", "properties": { "zone": "nörd" }, "body": "hello" });
    assert_eq!(feed(emulator, "edge1/modules/mod/inputs/commands", &form).0, 200);
    let line = parse(&module.wait_stdout("input"));
    assert_eq!((&line["input"], &line["body"]), (&json!("commands"), &json!("hello")), "{line}");
    assert_eq!((&line["properties"]["zone"], &line["desired"]), (&json!("nörd"), &json!(7)), "{line}");
    emulator.process.stderr.wait_for("answers=m-1");
    let greet =
        ["invoke-method", "--device", "edge1", "--module", "mod", "--method", "greet", "--data", "[1]"];
    let (told, errors, code) = seen(&run(&mut back_end(emulator, &greet)));
    assert!(told.contains(r#"{"greets":[1]}"#) && code == Some(0), "{told} {errors}");
    assert_eq!(module.wait_exit().code(), Some(0), "{}", module.stderr.text());
    let twin = ["twin", "get", "--device", "edge1", "--module", "mod", "--json"];
    let (told, ..) = seen(&run(&mut back_end(emulator, &twin)));
    assert!(told.contains(r#""last":"greet""#), "{told}");
}

#[test]
fn the_node_sdks_module_by_the_environment_of_edge_agent_and_over_a_websocket_by_its_connection_string() {
    if !has_node("the Node SDK's module by its environment") {
        return;
    }
    let socket = tempfile::tempdir().expect("a directory");
    let socket = socket.path().join("workload.sock");
    let modules = ["--module", "edge1/mod", "--module", "edge1/sink", "--route", ROUTE, "--workload-socket"];
    let rest = [socket.to_str().expect("UTF-8"), "--https-port", "443"];
    let (emulator, _dir) = emulator(&[&modules[..], &rest].concat());
    let level = ["twin", "patch", "--device", "edge1", "--module", "mod", "--desired", r#"{"level": 7}"#];
    assert_eq!(seen(&run(&mut back_end(&emulator, &level))).2, Some(0));

    let read =
        |name: &str| std::fs::read_to_string(emulator.state.join("modules/edge1").join(name)).expect(name);
    let environment = read("mod.env");
    module(&emulator, &environment.lines().filter_map(|line| line.split_once('=')).collect::<Vec<_>>());
    let (string, ca) = (read("mod.connection-string"), emulator.ca_file());
    let string = ("EdgeHubConnectionString", string.trim());
    let ca = ("EdgeModuleCACertificateFile", ca.to_str().expect("UTF-8"));
    module(&emulator, &[string, ca, ("WEBSOCKETS", "1")]);
}

#[test]
fn the_node_sdks_event_hubs_client_reads_what_a_device_sent() {
    if !has_node("the Node SDK's Event Hubs client reads what a device sent") {
        return;
    }
    let (emulator, _dir) = emulator(&["--x509-device", "pi-01", "--https-port", "443"]);
    let mut device = script(&emulator, "certificate.js");
    device.args([&emulator.mqtt.ip().to_string(), "pi-01"]);
    device.args(["cert", "key"].map(|part| emulator.state.join(format!("devices/pi-01.{part}.pem"))));
    let device = Process::spawn(&mut device);
    assert_eq!(device.wait_exit().code(), Some(0), "{}", device.stderr.text());
    let string = std::fs::read_to_string(emulator.state.join("events.connection-string")).expect("a string");
    for websockets in [false, true] {
        let mut events = script(&emulator, "events.js");
        events.arg("5").env("EVENTHUB_CONNECTION_STRING", string.trim());
        if websockets {
            events.env("WEBSOCKETS", "1");
        }
        let events = Process::spawn(&mut events);
        let lines = told(&events);
        assert_eq!(lines[0], json!({ "partitions": ["0", "1", "2", "3"] }));
        let read: Vec<_> =
            lines[1..].iter().map(|line| (&line["event"], &line["device"], &line["numbered"])).collect();
        let sent = ["mqtt", "mqtt-ws", "amqp", "amqp-ws", "http"].map(|name| json!(name));
        let (device, numbered) = (json!("pi-01"), json!(true));
        assert_eq!(read, sent.iter().map(|name| (name, &device, &numbered)).collect::<Vec<_>>());
    }
}

#[test]
fn the_node_sdks_back_end_runs_jobs_at_a_device_that_is_there_and_one_that_is_not() {
    if !has_node("the Node SDK's back end runs jobs") {
        return;
    }
    let (emulator, _dir) = emulator(&["--device", "dev1", "--device", "dev2", "--https-port", "443"]);
    let mut device = script(&emulator, "device.js");
    device.arg("mqtt").env("DEVICE_CONNECTION_STRING", emulator.device_string("dev1"));
    let device = Process::spawn(&mut device);
    device.stdout.wait_for("reported");
    let mut jobs = script(&emulator, "jobs.js");
    let jobs = Process::spawn(jobs.env("SERVICE_CONNECTION_STRING", owner_string(&emulator)));
    let expected = [
        json!({
            "twins": ["scheduleUpdateTwin", "completed"], "counts": [2, 2, 0],
            "results": { "dev1": "completed", "dev2": "completed" }, "twin": ["b43", 9],
        }),
        json!({ "methods": "completed", "counts": [2, 1, 1], "results": { "dev1": "completed", "dev2": "failed" } }),
        json!({ "later": ["scheduled", "cancelled"], "again": "DeviceAlreadyExistsError", "nobody": "Error" }),
        json!({ "listed": ["later", "methods"] }),
    ];
    assert_eq!(told(&jobs), expected);
    device.stdout.wait_for(r#"{"desired":{"$version":2,"level":9}}"#);
}
