//! The agent on the emulator: from `c2d-send` to the action and back to the feedback.

use std::time::{Duration, SystemTime};

use c2d_agent::credentials::{DeviceConnectionString, DeviceSecret, SasToken};

use crate::harness::{Agent, Emulator, Process, binary, run, wait_for_file, write_config};

fn dir() -> tempfile::TempDir {
    tempfile::tempdir().expect("a directory")
}

/// A simulated pin that writes its state to `pins.json`, and a rule that sets it.
const PUMP: &str = "[gpio]\nbackend = \"simulated\"\nstate_file = \"pins.json\"\n[gpio.pins.pump]\nline = 17\n\
    [[rule]]\nname = \"pump\"\nwhen = { action = \"pump\", state = { one_of = [\"on\", \"off\"] } }\n\
    do = [ { gpio = \"pump\", set = \"{state}\" } ]\n";

#[test]
fn a_message_sets_a_pin_and_its_sender_reads_success() {
    let emulator = Emulator::start();
    let dir = dir();
    let agent = Agent::start(&emulator, "dev1", dir.path(), PUMP);
    emulator.send(
        "dev1",
        &[
            "--property",
            "action=pump",
            "--property",
            "state=on",
            "--message-id",
            "m-1",
            "--ack",
            "full",
            "--wait",
        ],
    );
    wait_for_file(&dir.path().join("pins.json"), "\"pump\":\"on\"");
    let line = agent.process.stderr.wait_for("action ended");
    assert!(line.contains("message_id=\"m-1\"") && line.contains("rule=\"pump\""), "{line}");
    assert_eq!(agent.process.terminate(), Some(0));
    wait_for_file(&dir.path().join("pins.json"), "\"pump\":\"off\"");
}

#[test]
fn properties_and_body_arrive_as_they_were_sent() {
    let emulator = Emulator::start();
    let dir = dir();
    let out = dir.path().join("out");
    let rule = format!(
        "[[rule]]\nname = \"show\"\nwhen = {{ action = \"show\" }}\n\
         do = [ {{ shell = \"printf '%s|%s|%s|' \\\"$C2D_PROPERTY_TEXT\\\" \\\"$C2D_CORRELATION_ID\\\" \\\"$C2D_DEVICE_ID\\\" \
         > {out}; cat >> {out}\" }} ]\n",
        out = out.display()
    );
    let _agent = Agent::start(&emulator, "dev1", dir.path(), &rule);
    let text = "text=100 % +1: a=b&c/d ~";
    emulator.send(
        "dev1",
        &["--property", "action=show", "--property", text, "--correlation-id", "c 1", "--data", "the body"],
    );
    assert_eq!(wait_for_file(&out, "the body"), "100 % +1: a=b&c/d ~|c 1|dev1|the body");
}

#[test]
fn a_device_signs_in_with_its_certificate() {
    let emulator = Emulator::start_with(&["--x509-device", "dev2"]);
    let dir = dir();
    let devices = emulator.state.join("devices");
    let text = format!(
        "[device]\nhub = \"localhost:{}\"\ndevice_id = \"dev2\"\ncertificate = {:?}\nprivate_key = {:?}\n{PUMP}",
        emulator.mqtt.port(),
        devices.join("dev2.cert.pem"),
        devices.join("dev2.key.pem"),
    );
    let config = write_config(dir.path(), &text);
    let process =
        Process::spawn(binary().arg("run").arg("-c").arg(&config).env("C2D_CA_FILE", emulator.ca_file()));
    process.stderr.wait_for("subscribed");
    emulator.send("dev2", &["--property", "action=pump", "--property", "state=on"]);
    wait_for_file(&dir.path().join("pins.json"), "\"pump\":\"on\"");
}

#[test]
fn a_wrong_key_and_an_unknown_device_end_the_agent_with_a_sentence() {
    let emulator = Emulator::start();
    let dir = dir();
    let own = emulator.device_string("dev1");
    let (names, _) = own.split_once("SharedAccessKey=").expect("a key");
    let wrong = format!("{names}SharedAccessKey=AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=");
    let unknown = own.replace("DeviceId=dev1", "DeviceId=nobody");
    for (string, device) in [(wrong, "dev1"), (unknown, "nobody")] {
        let agent = Agent::spawn(&string, &emulator.ca_file(), dir.path(), PUMP);
        assert_eq!(agent.process.wait_exit().code(), Some(1));
        let text = agent.process.stderr.text();
        let port = emulator.mqtt.port();
        assert!(
            text.contains(&format!("the hub at localhost:{port} refused device {device}: the key")),
            "{text}"
        );
        assert!(text.contains("clock (now 20"), "{text}");
    }
}

#[test]
fn tokens_are_renewed_by_reconnecting_and_no_message_is_lost_or_run_twice() {
    let emulator = Emulator::start();
    let dir = dir();
    let done = dir.path().join("done");
    let rule = format!(
        "[device]\ntoken_lifetime = \"5s\"\n[[rule]]\nname = \"count\"\nwhen = {{ action = \"count\" }}\n\
         do = [ {{ shell = \"echo $C2D_MESSAGE_ID >> {}\" }} ]\n",
        done.display()
    );
    let agent = Agent::start(&emulator, "dev1", dir.path(), &rule);
    let mut sent = String::new();
    for renewals in 1..=2 {
        for n in 1..=3 {
            let id = format!("m-{renewals}-{n}");
            emulator.send("dev1", &["--property", "action=count", "--message-id", &id]);
            sent += &format!("{id}\n");
        }
        agent.process.stderr.wait_for_nth("disconnected to renew the token", renewals);
        agent.process.stderr.wait_for_nth("subscribed", renewals + 1);
    }
    emulator.send("dev1", &["--property", "action=count", "--message-id", "last"]);
    assert_eq!(wait_for_file(&done, "last\n"), sent + "last\n");
    assert_eq!(agent.process.stderr.count("not connected"), 0, "{}", agent.process.stderr.text());
}

#[test]
fn a_ready_made_token_is_good_until_it_expires_and_then_named_as_expired() {
    let emulator = Emulator::start();
    let dir = dir();
    let own = DeviceConnectionString::parse(&emulator.device_string("dev1")).expect("a connection string");
    let DeviceSecret::Key(key) = own.secret else { panic!("a key") };
    let expiry = SystemTime::now() + Duration::from_secs(4);
    let token = SasToken::sign(&key, "localhost/devices/dev1", None, expiry);
    let port = emulator.mqtt.port();
    let string = format!("HostName=localhost:{port};DeviceId=dev1;SharedAccessSignature={}", token.expose());
    let agent = Agent::spawn(&string, &emulator.ca_file(), dir.path(), PUMP);
    agent.process.stderr.wait_for("subscribed");
    agent.process.stderr.wait_for("closed the connection");
    agent.process.stderr.wait_for("of device dev1 expired at 20");
    assert_eq!(agent.process.terminate(), Some(0));
}

#[test]
fn the_agent_outlives_a_restart_of_the_hub() {
    let state = dir();
    let first = Emulator::start_in(state.path(), "0", "0", &["--device", "dev1"]);
    let (mqtt, amqp) = (first.mqtt.port().to_string(), first.amqp.port().to_string());
    let dir = dir();
    let agent = Agent::start(&first, "dev1", dir.path(), PUMP);
    assert_eq!(first.process.terminate(), Some(0));
    agent.process.stderr.wait_for("not connected");
    let second = Emulator::start_in(state.path(), &mqtt, &amqp, &["--device", "dev1"]);
    agent.process.stderr.wait_for_nth("subscribed", 2);
    second.send("dev1", &["--property", "action=pump", "--property", "state=on"]);
    wait_for_file(&dir.path().join("pins.json"), "\"pump\":\"on\"");
}

#[test]
fn help_tells_the_exit_codes_and_the_variables() {
    let output = run(binary().args(["run", "--help"]));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    for part in ["C2D_DEVICE_CONNECTION_STRING", "C2D_CA_FILE", "Exit codes: 0", "SIGTERM"] {
        assert!(text.contains(part), "{part} is missing in:\n{text}");
    }
}
