//! Commands that ask a running emulator, and the file `env`: after a shell sources it, commands find the emulator.
//!
//! Owns: nothing. Must not know: HTTPS routes, except the one by which a device sends.

use std::path::Path;
use std::process::Command;

use c2d_agent::emulator::WELL_KNOWN_KEYS;
use rumqttc::mqttbytes::QoS;
use serde_json::{Value, json};

use crate::emulator_modules::module;
use crate::harness::{Emulator, Process, binary, run};
use crate::rest_ask::{ask, device_token};

/// `c2d-agent emulator` with arguments, for the emulator of a state directory.
pub(crate) fn asking(state: &Path, arguments: &[&str]) -> Command {
    let mut command = binary();
    command.arg("emulator").args(arguments).arg("--state-dir").arg(state);
    command
}

/// The exit code and standard output, or standard error if there is no output.
pub(crate) fn said(command: &mut Command) -> (Option<i32>, String) {
    let output = run(command);
    let text = if output.stdout.is_empty() { &output.stderr } else { &output.stdout };
    (output.status.code(), String::from_utf8_lossy(text).trim_end().to_owned())
}

/// Sends a message as the device.
fn send_event(emulator: &Emulator, device: &str, body: &str) {
    let line = format!("POST /devices/{device}/messages/events?api-version=2021-04-12");
    let headers = "iothub-app-kind: greeting\r\n";
    let sent = ask(emulator, &line, &device_token(emulator, device), headers, body.as_bytes());
    assert_eq!(sent.status, 204, "{sent:?}");
}

#[test]
fn after_the_environment_is_sourced_no_command_needs_to_be_told_where_the_hub_is() {
    let emulator = Emulator::start_with(&["--device", "pi-01", "--device", "pi-02"]);
    let program = env!("CARGO_BIN_EXE_c2d-agent");
    let script = r#"
        . "$1"
        "$2" c2d-send --device pi-01 --message-id m-1
        "$2" twin get --device pi-02 --json
        "$2" emulator faults
        printf '%s\n' "$C2D_DEVICE_CONNECTION_STRING"
    "#;
    let mut shell = Command::new("sh");
    shell.args(["-eu", "-c", script, "sh"]).arg(emulator.state.join("env")).arg(program);
    let output = run(&mut shell);
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{output:?}");
    for part in ["message m-1", "\"pi-02\"", "pi-01  no faults\npi-02  no faults"] {
        assert!(told.contains(part), "{part}: {told}");
    }
    assert!(told.contains(&emulator.device_string("pi-01")), "{told}");
}

#[test]
fn messages_of_devices_are_printed_as_lines_and_as_objects_and_followed_until_a_signal() {
    let emulator = Emulator::start_with(&["--device", "dev1", "--device", "dev2"]);
    for (device, body) in [("dev1", "one"), ("dev2", "two"), ("dev1", "three")] {
        send_event(&emulator, device, body);
    }
    let (code, lines) = said(&mut asking(&emulator.state, &["events"]));
    let lines: Vec<_> = lines.lines().collect();
    let ends =
        ["dev1  #1  kind=greeting  one", "dev2  #1  kind=greeting  two", "dev1  #2  kind=greeting  three"];
    assert_eq!(code, Some(0));
    assert!(lines.len() == 3 && lines.iter().zip(ends).all(|(line, end)| line.ends_with(end)), "{lines:?}");

    let mut follow =
        asking(&emulator.state, &["events", "--follow", "--json", "--device", "dev1", "--after", "1"]);
    let follow = Process::spawn(&mut follow);
    let first: Value = serde_json::from_str(&follow.wait_stdout("three")).expect("JSON");
    assert_eq!(
        (&first["deviceId"], &first["number"], &first["properties"]),
        (&json!("dev1"), &json!(2), &json!({ "kind": "greeting" }))
    );
    send_event(&emulator, "dev2", "not asked for");
    send_event(&emulator, "dev1", "four");
    follow.wait_stdout("four");
    assert_eq!(follow.terminate(), Some(0));
    assert_eq!(follow.stdout.all().len(), 2);
}

#[test]
fn faults_are_set_shown_and_ended_for_one_device_and_for_all() {
    let emulator = Emulator::start_with(&["--hostname", "hub.test", "--device", "dev1", "--device", "dev2"]);
    let faults = |arguments: &[&str]| said(&mut asking(&emulator.state, &[&["faults"], arguments].concat()));
    let one = faults(&["--device", "dev1", "drop-at=60", "duplicate"]);
    assert_eq!(one, (Some(0), "dev1  drop-at=60 duplicate".to_owned()));
    let all = faults(&["throttle"]);
    assert_eq!(all, (Some(0), "dev1  drop-at=60 duplicate throttle\ndev2  throttle".to_owned()));
    let ended = faults(&["--clear", "duplicate", "throttle", "--device", "dev1", "--json"]);
    let ended_json: Value = serde_json::from_str(&ended.1).expect("JSON");
    assert_eq!(ended_json, json!({ "deviceId": "dev1", "faults": { "drop-at": "60" } }));
    assert_eq!(faults(&["--clear"]), (Some(0), "dev1  no faults\ndev2  no faults".to_owned()));

    for (arguments, part) in [
        (&["thrott1e"][..], "there is no fault \"thrott1e\"; there are drop-at=N"),
        (&["drop-at=no"], "\"no\" is not a value for the fault drop-at"),
        (&["dev1:throttle"], "\"dev1:throttle\" names a device: name it with --device"),
    ] {
        let (code, text) = faults(arguments);
        assert!(code == Some(2) && text.starts_with("c2d-agent: ") && text.contains(part), "{text}");
    }
    let (code, text) = faults(&["--device", "none"]);
    assert_eq!(code, Some(1));
    assert!(text.starts_with("c2d-agent: the emulator has no device \"none\": name one"), "{text}");
}

#[test]
fn a_message_for_an_input_reaches_its_module() {
    let emulator = Emulator::start_with(&["--module", "edge1/filter"]);
    let mut filter = module(&emulator, "filter");
    filter.subscribe(&[("devices/edge1/modules/filter/inputs/#", QoS::AtLeastOnce)]);
    let send = ["send-input", "--device", "edge1", "--module"];
    let rest =
        ["filter", "--input", "commands", "--message-id", "m-1", "--property", "level=a=b", "--data", "-x"];
    let sent = said(&mut asking(&emulator.state, &[&send[..], &rest].concat()));
    let line = "message m-1  input commands of module filter of device edge1";
    assert_eq!(sent, (Some(0), line.to_owned()));
    let publish = filter.publish();
    assert_eq!(
        (publish.topic.as_str(), &publish.payload[..]),
        ("devices/edge1/modules/filter/inputs/commands/%24.mid=m-1&%24.cdid=edge1&level=a%3Db", &b"-x"[..])
    );
    let (code, text) = said(&mut asking(&emulator.state, &[&send[..], &["none", "--input", "i"]].concat()));
    assert_eq!(code, Some(1));
    assert!(text.contains("the emulator has no module \"none\" of device \"edge1\": name one"), "{text}");
    let wrong = ["filter", "--input", "i", "--property", "$.to=x"];
    let (code, text) = said(&mut asking(&emulator.state, &[&send[..], &wrong].concat()));
    assert_eq!(code, Some(1));
    assert!(
        text.contains("the emulator refuses: \"$.to\" is not a valid name of an application property"),
        "{text}"
    );
}

#[test]
fn a_directory_without_an_emulator_one_that_is_gone_and_another_one_have_a_sentence_each() {
    let dir = tempfile::tempdir().expect("a directory");
    let shown = dir.path().display().to_string();
    let (code, text) = said(&mut asking(dir.path(), &["faults"]));
    let sentence = format!(
        "c2d-agent: {shown} is not the state directory of an emulator: name that of the running one with --state-dir, or \
         source its file env"
    );
    assert_eq!((code, text), (Some(2), sentence));

    let [gone, there] = [Emulator::start(), Emulator::start()];
    assert_eq!(gone.process.terminate(), Some(0));
    let (code, text) = said(&mut asking(&gone.state, &["events"]));
    assert_eq!(code, Some(1));
    let begin = format!("c2d-agent: no emulator answers at {}", gone.https);
    assert!(
        text.starts_with(&begin) && text.contains("start it with c2d-agent emulator --state-dir"),
        "{text}"
    );

    // Another emulator now has the old address. It has another authority; even with the same one, it has other keys.
    let put = |name: &str, text: &str| std::fs::write(gone.state.join(name), text).expect("written");
    put("https.address", &there.https.to_string());
    let another = format!(
        "c2d-agent: what answers at {} is not the emulator of {}: ",
        there.https,
        gone.state.display()
    );
    let (code, text) = said(&mut asking(&gone.state, &["events"]));
    assert!(code == Some(1) && text.starts_with(&another) && text.contains("its certificate"), "{text}");
    std::fs::copy(there.ca_file(), gone.ca_file()).expect("copied");
    let (code, text) = said(&mut asking(&gone.state, &["events"]));
    assert!(
        code == Some(1) && text.starts_with(&another) && text.contains("does not take the token"),
        "{text}"
    );

    // Options that start a hub are refused for a running one.
    let output = run(binary().args(["emulator", "--device", "dev1", "events"]));
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2));
    assert!(text.contains("'events' cannot be used with '--device"), "{text}");
}

#[test]
fn a_connection_string_with_a_well_known_key_needs_no_file() {
    let emulator = Emulator::start_with(&["--device", "dev1", "--well-known-keys"]);
    emulator.process.stderr.wait_for("the keys are the well-known ones");
    let (key, port) = (WELL_KNOWN_KEYS[0], emulator.amqp.port());
    let string =
        |key: &str| format!("HostName=localhost:{port};SharedAccessKeyName=service;SharedAccessKey={key}");
    let send = |emulator: &Emulator, string: String| {
        let mut command = binary();
        command.args(["c2d-send", "--device", "dev1"]).env("C2D_CA_FILE", emulator.ca_file());
        run(command.env("C2D_SERVICE_CONNECTION_STRING", string)).status.code()
    };
    assert_eq!(send(&emulator, string(key)), Some(0));
    assert_eq!(emulator.service_string(), string(key));
    // The keys are the well-known ones only with the option.
    assert_eq!(emulator.process.terminate(), Some(0));
    let port = port.to_string();
    let next = Emulator::start_in(&emulator.state, "0", &port, &["--device", "dev1"]);
    assert_ne!(send(&next, string(key)), Some(0));
    assert!(!next.device_string("dev1").contains(key));
}
