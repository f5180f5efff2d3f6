//! The emulator as an edge gateway with its own name: what modules and leaf devices dial, and what passes through it.
//!
//! Owns: nothing. Must not know: how the emulator distinguishes the two names.

use std::net::SocketAddr;

use crate::harness::{Emulator, Process, Proxy, binary, own_address, run, write_config};
use crate::invoke_method::{back_end, seen};
use crate::over;
use crate::sdk::{json, owner_string, python, python_with_https, script};

const RULES: &str = "[[rule]]\nname = \"good\"\nwhen = { action = \"good\" }\ndo = [ { shell = \"true\" } ]\n\
                     [[rule]]\nname = \"bad\"\nwhen = { action = \"bad\" }\ndo = [ { shell = \"exit 7\" } ]\n";

fn file(emulator: &Emulator, name: &str) -> String {
    std::fs::read_to_string(emulator.state.join(name)).expect(name)
}

/// A hub named `localhost` behind a gateway named `127.0.0.1`.
fn gateway(more: &[&str]) -> Emulator {
    Emulator::start_with(&[&["--gateway-hostname", "127.0.0.1", "--device", "pi-01"], more].concat())
}

#[test]
fn modules_and_leaf_devices_are_told_the_gateway_and_sign_in_as_those_of_the_hub() {
    let dir = tempfile::tempdir().expect("a directory");
    let socket = dir.path().join("workload.sock");
    let emulator =
        gateway(&["--module", "edge1/filter", "--workload-socket", socket.to_str().expect("UTF-8")]);
    let port = emulator.mqtt.port();
    let leaf = file(&emulator, "leaf/pi-01.connection-string");
    let start =
        format!("HostName=localhost;DeviceId=pi-01;GatewayHostName=127.0.0.1:{port};SharedAccessKey=");
    assert!(leaf.starts_with(&start), "{leaf}");
    // The device without the gateway's name still dials the hub.
    let direct = emulator.device_string("pi-01");
    assert!(
        direct.starts_with(&format!("HostName=localhost:{port};DeviceId=pi-01;SharedAccessKey=")),
        "{direct}"
    );
    let module = file(&emulator, "modules/edge1/filter.connection-string");
    assert!(
        module.contains(&format!(";ModuleId=filter;GatewayHostName=127.0.0.1:{port};SharedAccessKey=")),
        "{module}"
    );
    let environment = file(&emulator, "modules/edge1/filter.env");
    for line in ["IOTEDGE_IOTHUBHOSTNAME=localhost", &format!("IOTEDGE_GATEWAYHOSTNAME=127.0.0.1:{port}")] {
        assert!(environment.lines().any(|own| own == line), "{line}: {environment}");
    }
}

/// The agent is a leaf device. No server listens on the port of the hub's name, so the agent must dial the gateway.
#[test]
fn c2d_messages_and_their_feedback_pass_through_the_gateway() {
    over::each(|transport| {
        let (emulator, dir) = (gateway(&[]), tempfile::tempdir().expect("a directory"));
        let port = over::address(&emulator, transport).port();
        let leaf = file(&emulator, "leaf/pi-01.connection-string");
        let leaf = leaf.trim().replace("HostName=localhost;", "HostName=localhost:1;");
        let leaf = leaf.replace(&format!(":{};", emulator.mqtt.port()), &format!(":{port};"));
        let config = write_config(dir.path(), &format!("[device]\ntransport = \"{transport}\"\n{RULES}"));
        let mut agent = binary();
        agent.arg("run").arg("-c").arg(config).env("C2D_DEVICE_CONNECTION_STRING", leaf);
        agent.env("C2D_CA_FILE", emulator.ca_file()).env("C2D_HTTPS_PORT", port.to_string());
        let agent = Process::spawn(&mut agent);
        agent.stderr.wait_for("subscribed");
        emulator.send("pi-01", &["--property", "action=good", "--message-id", "m-1", "--wait=20s"]);
        let mut sender = emulator.sender("pi-01");
        let sent = run(sender.args(["--property", "action=bad", "--message-id", "m-2", "--wait=20s"]));
        // Over AMQP the gateway passes on a device's refusal. Over MQTT a device can only complete.
        let expected =
            if transport.starts_with("amqp") { (Some(3), "Rejected") } else { (Some(0), "Success") };
        let told = String::from_utf8_lossy(&sent.stdout).into_owned();
        assert!(sent.status.code() == expected.0 && told.contains(expected.1), "{transport}: {sent:?}");
        assert_eq!(agent.terminate(), Some(0));
    });
}

#[test]
fn a_leaf_device_with_the_key_of_another_one_or_a_token_for_the_gateways_name_is_refused() {
    let emulator = gateway(&["--device", "pi-02"]);
    let (own, other) =
        (file(&emulator, "leaf/pi-01.connection-string"), file(&emulator, "leaf/pi-02.connection-string"));
    let (_, key) = other.trim().split_once("SharedAccessKey=").expect("a key");
    let (start, _) = own.split_once("SharedAccessKey=").expect("a key");
    let named = own.trim().replace("HostName=localhost;", "HostName=127.0.0.1;");
    for (string, reason) in [
        (format!("{start}SharedAccessKey={key}"), "the token's signature does not match"),
        (named, "the user name is for the hub \"127.0.0.1\", and this is \"localhost\""),
    ] {
        let dir = tempfile::tempdir().expect("a directory");
        let agent = crate::harness::Agent::spawn(&string, &emulator.ca_file(), dir.path(), RULES);
        assert_eq!(agent.process.wait_exit().code(), Some(1));
        let said = agent.process.stderr.text();
        assert!(said.contains("refused device pi-01"), "{said}");
        emulator.process.stderr.wait_for(reason);
    }
}

#[test]
fn the_sdks_device_receives_as_a_leaf_device_behind_the_gateway() {
    let Some(python) = python("the SDK's device behind a gateway") else { return };
    let gateway = own_address().to_string();
    let emulator = Emulator::start_with(&["--gateway-hostname", &gateway, "--device", "pi-01"]);
    // The SDK always dials port 8883, whatever the connection string says. Only the gateway listens on that port.
    let at: SocketAddr = format!("{gateway}:8883").parse().expect("an address");
    let cable = Proxy::at(at, emulator.mqtt);
    let leaf = file(&emulator, "leaf/pi-01.connection-string");
    let leaf = leaf.trim().replace(&format!(":{};", emulator.mqtt.port()), ";");
    let mut device = script(&python, "device_receive.py");
    device.arg(emulator.ca_file()).arg("2").env("DEVICE_CONNECTION_STRING", leaf);
    let device = Process::spawn(&mut device);
    device.stdout.wait_for("subscribed");
    let bag = ["--message-id", "m-1", "--property", "odd=a=b&c%d", "--data", "grüße", "--wait=30s"];
    emulator.send("pi-01", &bag);
    let first = json(&device.stdout.wait_for("m-1"));
    assert_eq!((&first["body"], &first["properties"]["odd"]), (&"grüße".into(), &"a=b&c%d".into()));
    // While the cable is cut, the message waits at the hub. The SDK connects again and gets it.
    cable.cut();
    emulator.send("pi-01", &["--message-id", "m-2", "--data", "x", "--wait=30s"]);
    assert_eq!(json(&device.stdout.wait_for("m-2"))["body"], "x");
    assert_eq!(device.wait_exit().code(), Some(0), "{}", device.stderr.text());
}

#[test]
fn a_gateway_whose_name_is_none_is_refused() {
    let mut command = binary();
    let state = tempfile::tempdir().expect("a directory");
    command.arg("emulator").arg("--state-dir").arg(state.path()).args(["--gateway-hostname", "edge1:8883"]);
    let refused = run(&mut command);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(said.contains("\"edge1:8883\" is not a host name") && refused.status.code() == Some(2), "{said}");
}

#[test]
fn the_sdks_back_end_makes_and_deletes_modules() {
    let Some(python) = python_with_https("the SDK's back end makes modules") else { return };
    let (emulator, _dir) = crate::sdk::emulator(&["--module", "edge1/filter", "--https-port", "443"]);
    let mut service = script(&python, "service_modules.py");
    service.env("SERVICE_CONNECTION_STRING", owner_string(&emulator));
    let service = Process::spawn(service.env("REQUESTS_CA_BUNDLE", emulator.ca_file()));
    assert_eq!(service.wait_exit().code(), Some(0), "{}", service.stderr.text());
    let expected = serde_json::json!({
        "kept_keys": true, "of": "edge1", "again": 409, "listed": ["filter", "made"], "gone": 404,
        "same_generation": false, "nowhere": 404,
    });
    assert_eq!(json(&service.stdout.wait_for("kept_keys")), expected);
}

/// A developer starts a module outside of the edge device like this: by the SDK, with the gateway's connection string.
#[test]
fn the_sdks_module_signs_in_at_the_gateway_by_its_connection_string() {
    let Some(python) = python("the SDK's module by its connection string") else { return };
    let gateway = own_address().to_string();
    let (emulator, _dir) =
        crate::sdk::emulator(&["--gateway-hostname", &gateway, "--module", "edge1/filter"]);
    let at: SocketAddr = format!("{gateway}:8883").parse().expect("an address");
    let _cable = Proxy::at(at, emulator.mqtt);
    let mut module = script(&python, "edge_module.py");
    let string = file(&emulator, "modules/edge1/filter.connection-string");
    module.env("EdgeHubConnectionString", string.trim());
    let module = Process::spawn(module.env("EdgeModuleCACertificateFile", emulator.ca_file()));
    module.stdout.wait_for("ready");
    let arguments = ["invoke-method", "--device", "edge1", "--module", "filter", "--method", "end"];
    let (stdout, stderr, code) = seen(&run(&mut back_end(&emulator, &arguments)));
    assert!(stdout.contains("answered end with status 200") && code == Some(0), "{stdout} {stderr}");
    assert_eq!(module.wait_exit().code(), Some(0), "{}", module.stderr.text());
}
