//! Microsoft's unmodified SDKs at a further hub of the emulator: by which name each of them is found.
//!
//! Owns: nothing. Must not know: how the SDKs work.

use std::process::Command;

use serde_json::Value;

use crate::emulator_hubs::Named;
use crate::emulator_running::{asking, said};
use crate::harness::{Emulator, Process, own_address, run};
use crate::node;
use crate::sdk::{emulator, json, may_use_443, python, script, send_with_the_sdk};

/// The program's output, without the lines that are not JSON.
fn lines(mut command: Command) -> Vec<Value> {
    let process = Process::spawn(&mut command);
    assert_eq!(process.wait_exit().code(), Some(0), "{}", process.stderr.text());
    process.stdout.all().iter().filter(|line| line.starts_with('{')).map(|line| json(line)).collect()
}

#[test]
fn the_node_sdks_reach_a_further_hub_with_a_certificate_over_each_transport_and_read_there() {
    if !node::has_node("the Node SDKs reach a further hub") {
        return;
    }
    let host = own_address().to_string();
    let (emulator, _dir) = emulator(&["--hub", &host, "--https-port", "443"]);
    let hub = Named::further(&emulator, &host);
    // No token names the hub here, only the host that the SDK opens the connection to.
    hub.make_with("pi-01", "certificateAuthority");
    let mut device = node::script(&emulator, "certificate.js");
    device.args([&host, "pi-01"]);
    device.args(["cert", "key"].map(|part| hub.state.join(format!("devices/pi-01.{part}.pem"))));
    let sent = run(&mut device);
    assert!(sent.status.success(), "{}", String::from_utf8_lossy(&sent.stderr));
    let transports = ["mqtt", "mqtt-ws", "amqp", "amqp-ws", "http"];
    let (_, events) = said(&mut asking(&hub.state, &["events", "--device", "pi-01", "--json"]));
    let bodies: Vec<_> = events.lines().map(|line| json(line)["body"].clone()).collect();
    assert_eq!(bodies, transports);
    for websockets in [false, true] {
        let mut events = node::script(&emulator, "events.js");
        events.arg("5").env("EVENTHUB_CONNECTION_STRING", hub.read("events.connection-string"));
        if websockets {
            events.env("WEBSOCKETS", "1");
        }
        let read: Vec<_> = lines(events).iter().filter_map(|line| line.get("event").cloned()).collect();
        assert_eq!(read, transports);
    }
    assert_eq!(said(&mut asking(&emulator.state, &["events", "--json"])).1, "", "none at the main hub");
}

#[test]
fn the_python_sdks_reach_a_further_hub_over_amqp_with_and_without_websockets() {
    let test = "the Python SDKs reach a further hub";
    let Some(python) = python(test) else { return };
    if !may_use_443(test) {
        return;
    }
    let host = own_address().to_string();
    let (emulator, dir) = emulator(&["--device", "dev1", "--hub", &host, "--https-port", "443"]);
    let hub = Named::further(&emulator, &host);
    hub.make("dev1");
    let service = hub.read("service.connection-string");
    for (websockets, id) in [(false, "m-1"), (true, "m-2")] {
        let message = format!(r#"{{"body": "x", "properties": {{"messageId": "{id}"}}}}"#);
        let sender = send_with_the_sdk(&python, &emulator, &service, dir.path(), &[&message], websockets);
        sender.wait_stdout("sent 1");
    }
    assert_eq!(hub.queue("dev1"), ["m-1", "m-2"]);
    let mut device = script(&python, "device_sends.py");
    device.args(["mqtt"]).arg(emulator.ca_file()).arg("hello");
    device.env("HTTPS_PORT", "443");
    let sent = run(device.env("DEVICE_CONNECTION_STRING", hub.read("devices/dev1.connection-string")));
    assert!(sent.status.success(), "{}", String::from_utf8_lossy(&sent.stderr));
    for option in [("ASYNC", ""), ("WEBSOCKETS", "1")] {
        let mut reader = script(&python, "event_hub_consumer.py");
        reader.arg(emulator.ca_file()).args(["1", "-1"]).env(option.0, option.1);
        reader.env("EVENTHUB_CONNECTION_STRING", hub.read("events.connection-string"));
        let read = lines(reader);
        assert!(read.iter().any(|line| line["body"] == "hello"), "{option:?}: {read:?}");
    }
}

#[test]
fn azure_eventhub_reads_from_a_further_hub_when_it_dials_the_name_of_the_main_one() {
    let Some(python) = python("azure-eventhub reads from a further hub by another name") else { return };
    let emulator = Emulator::start_with(&["--device", "dev1", "--hub", "b.test"]);
    let hub = Named::at(&emulator, "b.test", "localhost");
    hub.make("dev1");
    let token = hub.token("device", "b.test/devices/dev1");
    let sent = hub.ask("POST /devices/dev1/messages/events?api-version=2021-04-12", &token, "hello");
    assert_eq!(sent.0, "204", "{}", sent.1);
    let mut reader = script(&python, "event_hub_consumer.py");
    reader.arg(emulator.ca_file()).args(["1", "-1"]).env("PORT", emulator.amqp.port().to_string());
    reader.env("EVENTHUB_CONNECTION_STRING", hub.read("events.connection-string"));
    let read = lines(reader);
    assert!(read.iter().any(|line| line["body"] == "hello"), "{read:?}");
}
