//! `c2d-agent emulator` as a process: what it prints, which files it leaves, and how it fails.
//!
//! Owns: the subcommand's output and exit codes. Must not know: MQTT, AMQP.

use crate::harness::{Emulator, binary, run};

#[test]
fn one_ready_line_goes_to_standard_output_and_sigterm_ends_it_well() {
    let emulator = Emulator::start_with(&["--device", "dev1", "--x509-device", "cert1"]);
    let (mqtt, amqp, https) = (emulator.mqtt, emulator.amqp, emulator.https);
    let expected = format!("ready mqtt={mqtt} amqp={amqp} https={https} state={}", emulator.state.display());
    let env = emulator.state.join("env").display().to_string();
    emulator.process.stderr.wait_for(&format!("other commands find this hub after: . {env}"));
    emulator.process.stderr.wait_for(&format!("try: . {env} && c2d-agent c2d-send --device dev1"));
    assert_eq!(emulator.process.terminate(), Some(0));
    assert_eq!(emulator.process.stdout.all(), [expected]);
    for file in ["ca.pem", "service.connection-string", "devices/cert1.cert.pem", "devices/cert1.key.pem"] {
        assert!(emulator.state.join(file).is_file(), "{file}");
    }
    let port = emulator.mqtt.port();
    assert!(emulator.device_string("dev1").starts_with(&format!("HostName=localhost:{port};DeviceId=dev1;")));
}

#[test]
fn the_command_to_try_can_be_pasted_whatever_the_device_is_called() {
    let emulator = Emulator::start_with(&["--device", "$pump(1)"]);
    emulator.process.stderr.wait_for("c2d-send --device '$pump(1)' --data hello");
}

#[test]
fn keys_and_the_authority_survive_a_restart() {
    let first = Emulator::start();
    let texts = |emulator: &Emulator| {
        let ca = std::fs::read_to_string(emulator.ca_file()).expect("readable");
        let key = emulator.device_string("dev1").split(';').next_back().map(str::to_owned);
        (ca, key, emulator.service_string().split(';').next_back().map(str::to_owned))
    };
    let before = texts(&first);
    assert_eq!(first.process.terminate(), Some(0));
    let second = Emulator::start_in(&first.state, "0", "0", &["--device", "dev1"]);
    assert_eq!(texts(&second), before);
}

/// The exit code and the last line of standard error. Nothing else is printed.
#[track_caller]
fn failure(arguments: &[&str]) -> (Option<i32>, String) {
    let output = run(binary().arg("emulator").args(arguments));
    assert!(output.stdout.is_empty(), "{}", String::from_utf8_lossy(&output.stdout));
    (output.status.code(), String::from_utf8_lossy(&output.stderr).trim().to_owned())
}

#[test]
fn a_port_in_use_is_named_with_the_remedy() {
    let running = Emulator::start();
    let dir = tempfile::tempdir().expect("a directory");
    let state = dir.path().display().to_string();
    let port = running.mqtt.port().to_string();
    let mqtt = failure(&["--state-dir", &state, "--mqtt-port", &port, "--amqp-port", "0"]);
    let sentence = |protocol: &str, port: &str| {
        format!(
            "c2d-agent: cannot listen on 127.0.0.1:{port} for {protocol}: the port is in use; stop what listens \
             there, or choose another with --{}-port",
            protocol.to_lowercase()
        )
    };
    assert_eq!(mqtt, (Some(1), sentence("MQTT", &port)));
    let port = running.amqp.port().to_string();
    let amqp = failure(&["--state-dir", &state, "--mqtt-port", "0", "--amqp-port", &port]);
    assert_eq!(amqp, (Some(1), sentence("AMQP", &port)));
}

#[test]
fn a_damaged_state_directory_is_named() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("secrets.json");
    std::fs::write(&file, "{}").expect("written");
    let (code, text) = failure(&["--state-dir", &dir.path().display().to_string(), "--mqtt-port", "0"]);
    assert_eq!(code, Some(1));
    assert!(text.starts_with(&format!("c2d-agent: {} is damaged (", file.display())), "{text}");
}

#[test]
fn a_range_names_many_devices_and_the_state_of_all_of_them_opens_again() {
    let dir = tempfile::tempdir().expect("a directory");
    for _ in 0..2 {
        let emulator = Emulator::start_in(dir.path(), "0", "0", &["--device", "load-{000..299}"]);
        emulator.process.stderr.wait_for("280 more devices sign in with keys");
        emulator.send("load-299", &["--message-id", "m-1"]);
        assert_eq!(emulator.process.terminate(), Some(0));
        assert_eq!(std::fs::read_dir(dir.path().join("devices")).expect("there").count(), 300);
    }
    let hub = std::fs::read_to_string(dir.path().join("hub.jsonl")).expect("text");
    assert_eq!(hub.lines().count(), 3, "a line for each run that changed a device, and the head: {hub}");
}

#[test]
fn wrong_arguments_are_named() {
    let usage = |arguments: &[&str], sentence: &str| {
        let dir = tempfile::tempdir().expect("a directory");
        let state = dir.path().join("state").display().to_string();
        let (code, text) = failure(&[&["--state-dir", &state], arguments].concat());
        assert_eq!((code, text.contains(sentence)), (Some(2), true), "{text}");
        assert!(!dir.path().join("state").exists(), "nothing is made before the arguments are checked");
    };
    usage(&["--device", "a/b"], "\"a/b\" is not a device id");
    usage(&["--device", "a{3..1}"], "--device \"a{3..1}\" is not a range: write one as in load-{0000..9999}");
    usage(&["--device", "a{1..20000}"], "names more than 10000 devices");
    usage(&["--device", "a{1..9999}", "--device", "b{1..2}"], "10001 devices are too many");
    usage(&["--device", "a", "--x509-device", "a"], "\"a\" is named twice");
    usage(&["--hostname", "hub:8883"], "\"hub:8883\" is not a host name: give a name without a port");
    usage(&["--feedback-interval", "soon"], "--feedback-interval");
    usage(&["--clock", "+9000years"], "choose one from 1970 to 9998");
    usage(&["--clock", "noon"], "\"noon\" is neither a time, such as 2030-01-01T00:00:00Z, nor an offset");
    for address in ["0.0.0.0", "::", "192.0.2.1"] {
        let sentence = format!(
            "--well-known-keys works only on loopback, because everybody knows these keys, but --bind \
             {address} is not a loopback address: remove one of the two"
        );
        usage(&["--well-known-keys", "--bind", address], &sentence);
    }
}

#[test]
fn an_interval_that_no_feedback_survives_is_refused() {
    for interval in ["61m", "500000000000years"] {
        let (code, text) = failure(&["--feedback-interval", interval]);
        assert_eq!(code, Some(2), "{text}");
        assert!(text.contains("must be at most 1h"), "{text}");
    }
}
