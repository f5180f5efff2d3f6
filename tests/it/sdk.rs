//! Microsoft's unmodified Python SDKs as peers of our emulator: their device receives from `c2d-send` and uses its
//! twin, and their back end sends to our agent. Also uamqp, the AMQP client below one of them, as a device.
//!
//! Must not know: how the SDKs work; the programs are in `tests/sdk/`.
//! The SDKs always dial 8883 and 5671, whatever a connection string says, so each test has its own loopback address.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::harness::{Agent, Emulator, Process, own_address, run, skip, wait_for_file};

/// The Python of the venv that `scripts/setup.sh` makes, or says that the test is skipped.
pub(crate) fn python(test: &str) -> Option<PathBuf> {
    let venv = Path::new(env!("CARGO_MANIFEST_DIR")).join(".venv");
    let python = venv.join("bin/python");
    // `setup.sh` writes this file last, after it has installed the SDKs.
    if venv.join("requirements.txt").is_file() && python.is_file() {
        return Some(python);
    }
    skip(test, "Microsoft's Python SDKs are not in .venv/; scripts/setup.sh installs them");
    None
}

/// An emulator on the standard ports of its own address, so that parallel tests do not meet.
pub(crate) fn emulator(arguments: &[&str]) -> (Emulator, tempfile::TempDir) {
    let dir = tempfile::tempdir().expect("a directory");
    let address = own_address().to_string();
    let arguments = [&["--bind", &address, "--hostname", &address], arguments].concat();
    (Emulator::start_in(&dir.path().join("state"), "8883", "5671", &arguments), dir)
}

/// Whether port 443 is free for use; otherwise says that the test is skipped.
pub(crate) fn may_use_443(test: &str) -> bool {
    let free = std::net::TcpListener::bind((own_address(), 443)).is_ok();
    if !free {
        skip(test, "port 443 needs root, or the sysctl net.ipv4.ip_unprivileged_port_start");
    }
    free
}

pub(crate) fn script(python: &Path, name: &str) -> Command {
    let mut command = Command::new(python);
    command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/sdk").join(name));
    command
}

/// Starts the SDK's back end, which sends `messages` (JSON) to `dev1`.
pub(crate) fn send_with_the_sdk(
    python: &Path,
    emulator: &Emulator,
    connection_string: &str,
    dir: &Path,
    messages: &[&str],
    websockets: bool,
) -> Process {
    let lines: Vec<String> = messages.iter().map(|message| message.replace('\n', " ")).collect();
    let input = dir.join("messages");
    std::fs::write(&input, lines.join("\n")).expect("written");
    let mut service = script(python, "service_send.py");
    service.arg("dev1").env("SERVICE_CONNECTION_STRING", connection_string);
    if websockets {
        service.env("WEBSOCKETS", "1");
    }
    service.env("SSL_CERT_FILE", emulator.ca_file()).stdin(std::fs::File::open(&input).expect("open"));
    Process::spawn_with_stdin(&mut service)
}

pub(crate) fn json(line: &str) -> serde_json::Value {
    serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}"))
}

#[test]
fn the_sdks_device_receives_what_c2d_send_sends() {
    let Some(python) = python("the SDK's device receives what c2d-send sends") else { return };
    let (emulator, _dir) = emulator(&["--device", "dev1"]);
    let mut device = script(&python, "device_receive.py");
    device.arg(emulator.ca_file()).arg("2").env("DEVICE_CONNECTION_STRING", emulator.device_string("dev1"));
    let device = Process::spawn(&mut device);
    device.stdout.wait_for("subscribed");

    // With --wait, exit code 0 means that the SDK completed the message and the hub's feedback said so.
    let odd = ["--property", "odd=a=b&c%d+e/f ~", "--property", "empty="];
    let ids = ["--message-id", "m:1", "--correlation-id", "c-1", "--content-type", "text/plain"];
    let options = ["--content-encoding", "utf-8", "--data", "grüße", "--ack", "full", "--wait=30s"];
    emulator.send("dev1", &[&odd[..], &ids, &options].concat());
    emulator.send("dev1", &["--message-id", "m-2", "--data", ""]);

    let first = json(&device.stdout.wait_for("m:1"));
    assert_eq!(first["correlation_id"], "c-1");
    assert_eq!(first["content_type"], "text/plain");
    assert_eq!(first["content_encoding"], "utf-8");
    assert_eq!(first["body"], "grüße");
    assert_eq!(first["properties"]["odd"], "a=b&c%d+e/f ~");
    assert_eq!(first["properties"]["empty"], "");
    let second = json(&device.stdout.wait_for("m-2"));
    assert_eq!(second["body"], "");
    assert_eq!(device.wait_exit().code(), Some(0), "{}", device.stderr.text());
}

#[test]
fn the_sdks_device_signs_in_with_a_certificate() {
    let Some(python) = python("the SDK's device signs in with a certificate") else { return };
    let (emulator, _dir) = emulator(&["--x509-device", "pi-01"]);
    let mut device = script(&python, "device_receive.py");
    device
        .arg(emulator.ca_file())
        .arg("1")
        .env("HOST", emulator.mqtt.ip().to_string())
        .env("DEVICE_ID", "pi-01");
    device.env("CERTIFICATE", emulator.state.join("devices/pi-01.cert.pem"));
    device.env("PRIVATE_KEY", emulator.state.join("devices/pi-01.key.pem"));
    let device = Process::spawn(&mut device);
    device.stdout.wait_for("subscribed");

    emulator.send("pi-01", &["--property", "action=on", "--data", "x", "--wait=30s"]);
    let message = json(&device.stdout.wait_for("body"));
    assert_eq!(message["properties"]["action"], "on");
    assert_eq!(device.wait_exit().code(), Some(0), "{}", device.stderr.text());
}

#[test]
fn the_sdks_device_gets_its_twin_and_patches_what_it_reports() {
    let Some(python) = python("the SDK's device uses its twin") else { return };
    let (emulator, _dir) = emulator(&["--device", "dev1"]);
    let mut device = script(&python, "device_twin.py");
    device.arg(emulator.ca_file()).env("DEVICE_CONNECTION_STRING", emulator.device_string("dev1"));
    for patch in
        [r#"{"led": "on", "deep": {"x": 1, "y": "grüße"}}"#, r#"{"led": null, "deep": {"x": [1, 2]}}"#]
    {
        device.arg(patch);
    }
    let device = Process::spawn(&mut device);
    assert_eq!(device.wait_exit().code(), Some(0), "{}", device.stderr.text());
    let twins: Vec<_> = device.stdout.all().iter().map(|line| json(line)).collect();
    let reported = [
        r#"{"$version": 1}"#,
        r#"{"$version": 2, "led": "on", "deep": {"x": 1, "y": "grüße"}}"#,
        r#"{"$version": 3, "deep": {"x": [1, 2], "y": "grüße"}}"#,
    ];
    assert_eq!(twins.len(), 4, "{twins:?}");
    for (twin, reported) in twins[..3].iter().zip(reported) {
        assert_eq!(twin["reported"], json(reported));
        assert_eq!(twin["desired"], json(r#"{"$version": 1}"#));
    }
    assert_eq!(twins[3]["sent"], true, "its D2C message was acknowledged");
    emulator.process.stderr.wait_for("received a D2C message");
}

#[test]
fn the_sdks_back_end_reaches_our_agent_with_ids_properties_and_body_intact() {
    let Some(python) = python("the SDK's back end reaches our agent") else { return };
    let (emulator, dir) = emulator(&["--device", "dev1"]);
    let out = dir.path().join("out");
    let config = format!(
        r#"
        [[rule]]
        name = "write"
        when = {{ action = "write" }}
        do = [ {{ shell = '(printf "%s|" "$C2D_MESSAGE_ID" "$C2D_CORRELATION_ID" "$C2D_PROPERTY_ODD" "$C2D_PROPERTY_EMPTY"; cat; echo "|end") >> {}' }} ]
        "#,
        out.display()
    );
    let agent = Agent::start(&emulator, "dev1", dir.path(), &config);

    let messages = [
        r#"{"body": "grüße", "properties": {"messageId": "m:1", "correlationId": "c-1", "action": "write",
            "odd": "a=b&c%d+e/f ~", "empty": ""}}"#,
        r#"{"body": "", "properties": {"messageId": "m-2", "correlationId": "c-2", "action": "write",
            "odd": "x", "empty": "y"}}"#,
    ];
    let service =
        send_with_the_sdk(&python, &emulator, &emulator.service_string(), dir.path(), &messages, false);
    service.stdout.wait_for("sent 2");
    assert_eq!(service.wait_exit().code(), Some(0), "{}", service.stderr.text());

    let written = wait_for_file(&out, "m-2|c-2|x|y||end");
    assert!(written.contains("m:1|c-1|a=b&c%d+e/f ~||grüße|end"), "{written}");
    assert_eq!(agent.process.terminate(), Some(0));
}

#[test]
fn the_sdks_back_end_is_told_when_its_key_is_wrong() {
    let Some(python) = python("the SDK's back end is told when its key is wrong") else { return };
    let (emulator, dir) = emulator(&["--device", "dev1"]);
    let key = "d3Jvbmcgd3Jvbmcgd3Jvbmcgd3Jvbmcgd3Jvbmc=";
    let wrong = format!("HostName={};SharedAccessKeyName=service;SharedAccessKey={key}", emulator.mqtt.ip());
    let messages = [r#"{"body": "x", "properties": {}}"#];
    let service = send_with_the_sdk(&python, &emulator, &wrong, dir.path(), &messages, false);
    assert_ne!(service.wait_exit().code(), Some(0));
    service.stderr.wait_until("a refusal", |lines| {
        lines.iter().any(|line| line.to_lowercase().contains("auth")).then_some(())
    });
}

/// As [`python`], if port 443 is free for use: the SDK ignores the port of a connection string.
pub(crate) fn python_with_https(test: &str) -> Option<PathBuf> {
    let python = python(test)?;
    may_use_443(test).then_some(python)
}

/// The connection string of the policy with all rights.
pub(crate) fn owner_string(emulator: &Emulator) -> String {
    let file = emulator.state.join("iothubowner.connection-string");
    std::fs::read_to_string(file).expect("a connection string").trim().to_owned()
}

#[test]
fn the_sdks_back_end_makes_a_device_that_signs_in_at_once() {
    let Some(python) = python_with_https("the SDK's back end makes devices") else { return };
    let (emulator, _dir) = emulator(&["--device", "dev1", "--https-port", "443"]);
    let mut service = script(&python, "service_registry.py");
    service.env("SERVICE_CONNECTION_STRING", owner_string(&emulator));
    let service = Process::spawn(service.env("REQUESTS_CA_BUNDLE", emulator.ca_file()));
    assert_eq!(service.wait_exit().code(), Some(0), "{}", service.stderr.text());
    let expected = serde_json::json!({
        "kept_keys": true, "made_keys": 32, "type": "selfSigned", "thumbprint": "AB".repeat(20), "again": 409,
        "disabled": "disabled", "stale": 412, "enabled": "enabled", "listed": ["cert-1", "dev1", "new-1", "new-2"],
        "first": ["cert-1"], "deleted": 404, "delete_again": 404,
        "edge": [true, "first", []], "child": [true, true], "authority": "certificateAuthority",
        "bulk": [false, [["none", "404001"]]], "counts": [11, 0], "connected": 0,
        "twin": [{ "n": 3 }, "sas", true],
    });
    assert_eq!(json(&service.stdout.wait_for("kept_keys")), expected);

    for id in ["new-1", "new-2"] {
        let mut device = script(&python, "device_receive.py");
        device.arg(emulator.ca_file()).arg("1").env("DEVICE_CONNECTION_STRING", emulator.device_string(id));
        let device = Process::spawn(&mut device);
        device.stdout.wait_for("subscribed");
        emulator.send(id, &["--data", "welcome", "--wait=30s"]);
        assert_eq!(json(&device.stdout.wait_for("body"))["body"], "welcome");
        assert_eq!(device.wait_exit().code(), Some(0), "{}", device.stderr.text());
    }
}

#[test]
fn the_sdks_back_end_reads_a_twin() {
    let Some(python) = python_with_https("the SDK's back end reads a twin") else { return };
    let (emulator, dir) = emulator(&["--device", "dev1", "--https-port", "443"]);
    let agent = Agent::start(&emulator, "dev1", dir.path(), "");
    let mut service = script(&python, "service_twin.py");
    service.arg("dev1").env("SERVICE_CONNECTION_STRING", emulator.service_string());
    let service = Process::spawn(service.env("REQUESTS_CA_BUNDLE", emulator.ca_file()));
    assert_eq!(service.wait_exit().code(), Some(0), "{}", service.stderr.text());
    let seen = json(&service.stdout.wait_for("device_id"));
    assert_eq!((&seen["device_id"], &seen["connection_state"]), (&"dev1".into(), &"Connected".into()));
    assert!(seen["reported"]["$version"].is_number(), "{seen}");
    assert_eq!(seen["missing"], 404);
    assert_eq!(agent.process.terminate(), Some(0));
}

#[test]
fn the_sdks_device_receives_over_a_websocket_with_a_key_and_with_a_certificate() {
    let test = "the SDK's device receives over a WebSocket";
    let Some(python) = python(test).filter(|_| may_use_443(test)) else { return };
    let arguments = ["--device", "dev1", "--x509-device", "pi-01", "--https-port", "443"];
    let (emulator, _dir) = emulator(&arguments);
    let mut with_key = script(&python, "device_receive.py");
    with_key.env("DEVICE_CONNECTION_STRING", emulator.device_string("dev1"));
    let mut with_certificate = script(&python, "device_receive.py");
    with_certificate.env("HOST", emulator.mqtt.ip().to_string()).env("DEVICE_ID", "pi-01");
    with_certificate.env("CERTIFICATE", emulator.state.join("devices/pi-01.cert.pem"));
    with_certificate.env("PRIVATE_KEY", emulator.state.join("devices/pi-01.key.pem"));
    for (device_id, mut device) in [("dev1", with_key), ("pi-01", with_certificate)] {
        let device = Process::spawn(device.arg(emulator.ca_file()).arg("2").env("WEBSOCKETS", "1"));
        device.stdout.wait_for("subscribed");
        let large = "x".repeat(60_000);
        emulator.send(device_id, &["--message-id", "m-1", "--data", &large, "--wait=30s"]);
        emulator.send(device_id, &["--message-id", "m-2", "--property", "a=b", "--data", "x", "--wait=30s"]);
        assert_eq!(json(&device.stdout.wait_for("m-1"))["body"], large.as_str());
        assert_eq!(json(&device.stdout.wait_for("m-2"))["properties"]["a"], "b");
        assert_eq!(device.wait_exit().code(), Some(0), "{}", device.stderr.text());
    }
}

#[test]
fn the_sdks_back_end_sends_over_a_websocket() {
    let test = "the SDK's back end sends over a WebSocket";
    let Some(python) = python(test).filter(|_| may_use_443(test)) else { return };
    let (emulator, dir) = emulator(&["--device", "dev1", "--https-port", "443"]);
    let large = format!(r#"{{"body": "{}", "properties": {{"messageId": "m-1"}}}}"#, "x".repeat(60_000));
    let messages = [&large, r#"{"body": "x", "properties": {"messageId": "m-2"}}"#];
    let key = emulator.service_string();
    let service = send_with_the_sdk(&python, &emulator, &key, dir.path(), &messages, true);
    service.stdout.wait_for("sent 2");
    assert_eq!(service.wait_exit().code(), Some(0), "{}", service.stderr.text());

    let mut device = script(&python, "device_receive.py");
    device.arg(emulator.ca_file()).arg("2").env("DEVICE_CONNECTION_STRING", emulator.device_string("dev1"));
    let device = Process::spawn(&mut device);
    assert_eq!(json(&device.stdout.wait_for("m-1"))["body"].as_str().map(str::len), Some(60_000));
    device.stdout.wait_for("m-2");
}

#[test]
fn an_independent_websocket_client_is_upgraded_or_refused_in_words() {
    let Some(python) = python("an independent WebSocket client is upgraded or refused") else { return };
    let emulator = Emulator::start();
    let mut client = script(&python, "websocket_handshake.py");
    client.args(["localhost", &emulator.https.port().to_string()]).arg(emulator.ca_file());
    let client = Process::spawn(&mut client);
    assert_eq!(client.wait_exit().code(), Some(0), "{}", client.stderr.text());
    let seen: Vec<_> = client.stdout.all().iter().map(|line| json(line)).collect();
    let handshakes: Vec<_> = seen.iter().filter(|line| !line["path"].is_null()).collect();
    let answers: Vec<_> = handshakes.iter().map(|seen| (&seen["status"], seen["chosen"].as_str())).collect();
    let (mqtt, amqp) = (Some("mqtt"), Some("AMQPWSB10"));
    let upgraded = [mqtt, mqtt, mqtt, amqp, amqp].map(|chosen| (serde_json::json!(101), chosen));
    let refused = [400, 400, 404, 404].map(|status| (serde_json::json!(status), None));
    let expected: Vec<_> =
        upgraded.iter().chain(&refused).map(|(status, chosen)| (status, *chosen)).collect();
    assert_eq!(answers, expected, "{seen:#?}");
    let says = |at: usize| handshakes[at]["says"].as_str().expect("a text").to_owned();
    assert!(
        says(5).contains("are mqtt and AMQPWSB10, and Sec-WebSocket-Protocol offers \\\"chat\\\""),
        "{}",
        says(5)
    );
    assert!(says(6).contains("offers none"), "{}", says(6));
    assert!(says(7).contains("WebSockets are at /$iothub/websocket and"), "{}", says(7));
    let frame = |name: &str| seen.iter().find(|line| line["frame"] == name).expect("tried").clone();
    assert_eq!(
        frame("connect")["answer"],
        serde_json::json!([0x20, 2, 0, 1]),
        "a CONNACK: this version is refused"
    );
    assert_eq!(frame("text")["close"], 1003);
    assert_eq!(frame("large")["close"], 1009);
    assert_eq!(frame("ping")["answered"], true);
}

#[test]
fn another_amqp_client_as_a_device_takes_refuses_and_gives_back_with_the_feedback_of_each() {
    let Some(python) = python("an AMQP client that is not ours, as a device") else { return };
    let emulator = Emulator::start();
    let key = emulator.device_string("dev1");
    let (_, key) = key.split_once("SharedAccessKey=").expect("a key");
    let mut device = script(&python, "amqp_device.py");
    device.args(["localhost", &emulator.amqp.port().to_string(), "dev1"]);
    let device = Process::spawn(device.env("DEVICE_KEY", key).env("SSL_CERT_FILE", emulator.ca_file()));
    device.wait_stdout("ready");
    for (body, code, status) in [
        ("accept", 0, "Success"),
        ("reject", 3, "Rejected"),
        ("release", 3, "DeliveryCountExceeded"),
        ("end", 0, "Success"),
    ] {
        let mut sender = emulator.sender("dev1");
        let sent = run(sender.args(["--data", body, "--message-id", body, "--wait=20s"]));
        let told = String::from_utf8_lossy(&sent.stdout).into_owned();
        assert!(sent.status.code() == Some(code) && told.contains(status), "{body}: {sent:?}");
    }
    assert_eq!(device.wait_exit().code(), Some(0));
    let released = (0..10).map(|count| format!("release {count} release"));
    let expected: Vec<String> = ["ready", "accept 0 accept", "reject 0 reject"]
        .map(str::to_owned)
        .into_iter()
        .chain(released)
        .chain(["end 0 end".to_owned()])
        .collect();
    assert_eq!(device.stdout.all(), expected);
}
