//! `monitor` as a user sees it, against the emulator.
//!
//! Owns: nothing. Must not know: how messages are read.

use std::process::Command;

use crate::harness::{Emulator, Process, binary, run};
use crate::invoke_method::seen;
use crate::json_lines::json_lines;
use crate::rest_ask::{ask, device_token};

/// `monitor` with the service policy.
fn monitor(emulator: &Emulator, arguments: &[&str]) -> Command {
    let mut command = binary();
    command.arg("monitor").args(arguments).arg("--ca-file").arg(emulator.ca_file());
    command.env("C2D_SERVICE_CONNECTION_STRING", emulator.service_string());
    command
}

/// Sends a message of a device, with properties as headers.
fn send(emulator: &Emulator, device: &str, headers: &str, body: &[u8]) {
    let line = format!("POST /devices/{device}/messages/events?api-version=2021-04-12");
    assert_eq!(ask(emulator, &line, &device_token(emulator, device), headers, body).status, 204);
}

#[test]
fn messages_of_devices_are_printed_as_they_come_and_a_signal_ends_it() {
    let emulator = Emulator::start_with(&["--device", "dev1", "--device", "dev2"]);
    send(&emulator, "dev1", "", b"before");
    let process = Process::spawn(&mut monitor(&emulator, &[]));
    process.stderr.wait_for("watching the messages of devices");
    send(&emulator, "dev1", "iothub-app-zone: north\r\niothub-app-a: 1\r\n", b"{\"t\": 20}");
    send(&emulator, "dev2", "", b"\x1b[2J\n");
    send(&emulator, "dev2", "", b"\xff\x00");
    process.stdout.wait_for("(2 bytes)");
    assert_eq!(process.terminate(), Some(0));
    let mut lines: Vec<String> = process.stdout.all();
    for line in &mut lines {
        let (time, rest) = line.split_once("  ").expect("a time");
        assert!(time.ends_with(" UTC"), "{line}");
        *line = rest.to_owned();
    }
    lines.sort_unstable();
    assert_eq!(lines, ["dev1  {a=1, zone=north}  {\"t\": 20}", "dev2  (2 bytes)", "dev2  \\u{1b}[2J\\n"]);
    assert_eq!(process.stderr.text(), "watching the messages of devices");
}

#[test]
fn what_came_before_can_be_read_of_one_device_as_json() {
    let emulator = Emulator::start_with(&["--device", "dev1", "--device", "dev2"]);
    let properties = "iothub-app-zone: north\r\niothub-correlationid: c-1\r\n";
    send(&emulator, "dev1", properties, b"one");
    send(&emulator, "dev2", "", b"two");
    send(&emulator, "dev1", "", b"\xff");
    let arguments = ["--device", "dev1", "--since", "1h", "--count", "2", "--json"];
    let (stdout, stderr, code) = seen(&run(&mut monitor(&emulator, &arguments)));
    assert_eq!((stderr.as_str(), code), ("watching the messages of devices\n", Some(0)));
    let lines = json_lines(&stdout);
    let first = &lines[0];
    assert_eq!((&first["event"], &first["deviceId"]), (&"message".into(), &"dev1".into()));
    assert_eq!((&first["body"], &lines[1]["bodyBase64"]), (&"one".into(), &"/w==".into()));
    assert_eq!(first["applicationProperties"], serde_json::json!({ "zone": "north" }));
    let system = &first["systemProperties"];
    assert_eq!(
        (&system["correlation-id"], &system["iothub-message-source"]),
        (&"c-1".into(), &"Telemetry".into())
    );
    assert!(first["enqueuedTimeUtc"].as_str().is_some_and(|time| time.ends_with('Z')), "{first}");
    assert!(lines[1]["sequenceNumber"].as_i64() > first["sequenceNumber"].as_i64());

    // The connection string of the endpoint itself; and too few messages in time.
    let file = emulator.state.join("events.connection-string");
    let file = ["--event-hub-connection-string-file", file.to_str().expect("UTF-8")];
    let mut command = monitor(&emulator, &[&arguments[..], &file].concat());
    command.env_remove("C2D_SERVICE_CONNECTION_STRING");
    assert_eq!(seen(&run(&mut command)).0, stdout);
    let (_, stderr, code) = seen(&run(&mut monitor(&emulator, &["--count", "3", "--for", "1s"])));
    assert!(stderr.contains("0 of 3 messages came within 1s") && code == Some(4), "{stderr}");
}

#[test]
fn a_connection_that_is_lost_is_made_again_and_nothing_is_passed_over() {
    let dir = tempfile::tempdir().expect("a directory");
    let state = dir.path().join("state");
    // The hub's clock is not that of this machine. Each device has a partition, and at first nothing came of the later
    // ones.
    let devices = ["dev1", "dev2", "dev3", "dev4"];
    let mut arguments = vec!["--clock", "-10m"];
    arguments.extend(devices.iter().flat_map(|device| ["--device", device]));
    let emulator = Emulator::start_in(&state, "0", "0", &arguments);
    let process = Process::spawn(&mut monitor(&emulator, &[]));
    process.stderr.wait_for("watching the messages of devices");
    send(&emulator, "dev1", "", b"one");
    process.stdout.wait_for("one");
    let [mqtt, amqp] = [emulator.mqtt, emulator.amqp].map(|address| address.port().to_string());
    drop(emulator);
    process.stderr.wait_for("trying again in 1 s");
    let emulator = Emulator::start_in(&state, &mqtt, &amqp, &arguments);
    for device in devices {
        send(&emulator, device, "", format!("away of {device}").as_bytes());
    }
    process.stderr.wait_for("connected again");
    for device in devices {
        process.stdout.wait_for(&format!("away of {device}"));
    }
    assert_eq!(process.terminate(), Some(0));
    assert_eq!(process.stdout.all().len(), 5, "{}", process.stdout.text());
}

#[test]
fn each_refusal_of_the_endpoint_has_its_sentence() {
    let emulator = Emulator::start();
    let said = |arguments: &[&str]| {
        let (stdout, stderr, code) = seen(&run(&mut monitor(&emulator, arguments)));
        assert_eq!(stdout, "");
        (stderr, code)
    };
    let (stderr, code) = said(&["--consumer-group", "a b"]);
    assert!(stderr.contains("has no consumer group \"a b\": make it, or use $Default"), "{stderr}");
    assert_eq!(code, Some(1));
    let file = emulator.state.join("wrong");
    let path = file.to_str().expect("UTF-8");
    let right = std::fs::read_to_string(emulator.state.join("events.connection-string")).expect("a string");
    for (text, words, code) in [
        (right.replace("iothub-ehub-", "other-"), "ServiceConnect for the Event Hub \"other-localhost\"", 1),
        (
            right.replace("SharedAccessKeyName=service", "SharedAccessKeyName=other"),
            "does not accept the policy",
            1,
        ),
        (emulator.service_string(), "part 1 of the connection string", 2),
    ] {
        std::fs::write(&file, text).expect("written");
        let (stderr, exit) = said(&["--event-hub-connection-string-file", path]);
        assert!(stderr.contains(words) && exit == Some(code), "{exit:?} {stderr}");
    }
    let expiry = "se=4102444800&skn=service";
    let token = format!("SharedAccessSignature sr=localhost&sig=Yg%3D%3D&{expiry}");
    let string = format!("HostName=localhost;SharedAccessKeyName=service;SharedAccessSignature={token}");
    let mut command = monitor(&emulator, &[]);
    let (_, stderr, _) = seen(&run(command.env("C2D_SERVICE_CONNECTION_STRING", string)));
    assert!(
        stderr.contains("a SAS token of the hub does not sign in at the hub's Event Hubs endpoint"),
        "{stderr}"
    );
    let (stderr, code) = said(&["--transport", "https"]);
    assert!(stderr.contains("[possible values: amqp, amqp-ws]") && code == Some(2), "{stderr}");
}
