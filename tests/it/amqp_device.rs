//! The agent over AMQP: how messages are settled, token renewal without a new connection, and how a connection ends.

use std::path::Path;

use crate::harness::{Agent, Emulator, Process, Proxy, binary, run, wait_for_file, write_config};
use crate::over::{self, device_string};

const AMQP: &str = "[device]\ntransport = \"amqp\"\n";
/// AMQP over TLS and over a WebSocket.
const BOTH: [&str; 2] = ["amqp", "amqp-ws"];

fn dir() -> tempfile::TempDir {
    tempfile::tempdir().expect("a directory")
}

fn start(emulator: &Emulator, dir: &Path, rest: &str) -> Agent {
    let string = device_string(emulator, "dev1", emulator.amqp.port());
    let agent = Agent::spawn(&string, &emulator.ca_file(), dir, rest);
    agent.process.stderr.wait_for("signed in over AMQP and subscribed");
    agent
}

/// A rule that writes its message's id into the file `done` and ends with this exit code.
fn rule(dir: &Path, action: &str, code: u8, more: &str) -> String {
    let done = dir.join("done");
    format!(
        "[[rule]]\nname = \"{action}\"\nwhen = {{ action = \"{action}\" }}\n{more}\n\
         do = [ {{ shell = \"echo $C2D_MESSAGE_ID >> {}; exit {code}\" }} ]\n",
        done.display()
    )
}

/// Sends a message and waits for its feedback. Returns the exit code of `c2d-send` and what it says.
fn send(emulator: &Emulator, action: &str, id: &str) -> (Option<i32>, String) {
    let action = format!("action={action}");
    let output = run(emulator.sender("dev1").args(["--property", &action, "--message-id", id, "--wait=20s"]));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout) + &text(&output.stderr))
}

fn lines(path: &Path) -> Vec<String> {
    std::fs::read_to_string(path).unwrap_or_default().lines().map(str::to_owned).collect()
}

#[test]
fn each_end_of_an_action_is_told_to_the_sender() {
    BOTH.iter().for_each(|transport| each_end(transport));
}

fn each_end(transport: &str) {
    let (emulator, dir) = (Emulator::start(), dir());
    let rules = [
        rule(dir.path(), "works", 0, ""),
        rule(dir.path(), "fails", 1, ""),
        rule(dir.path(), "all-the-same", 1, "on_failure = \"complete\""),
        rule(dir.path(), "before", 1, "settle = \"on-accept\""),
    ];
    let port = over::address(&emulator, transport).port();
    let mut command = over::command(&emulator, transport, port, dir.path(), ["", ""]);
    let device = format!("[device]\ntransport = \"{transport}\"\n");
    write_config(dir.path(), &format!("unmatched = \"reject\"\n{device}{}", rules.concat()));
    let agent = Process::spawn(&mut command);
    agent.stderr.wait_for("signed in over AMQP and subscribed");
    let (code, said) = send(&emulator, "works", "m-1");
    assert_eq!(code, Some(0), "{said}");
    let key = "6e9ab0f3-1b59-4c4f-8e1d-1f6a2f0a3f11";
    let (code, said) = send(&emulator, "fails", key);
    assert!(code == Some(3) && said.contains("Rejected"), "{code:?} {said}");
    assert_eq!(send(&emulator, "all-the-same", "m-3").0, Some(0));
    assert_eq!(send(&emulator, "before", "m-4").0, Some(0));
    let (code, said) = send(&emulator, "unknown", "m-5");
    assert!(code == Some(3) && said.contains("Rejected"), "{code:?} {said}");
    // The agent knows the id as a dead letter, and refuses the message again without a run.
    assert_eq!(send(&emulator, "fails", key).0, Some(3));
    agent.stderr.wait_for("already done");
    assert_eq!(lines(&dir.path().join("done")), ["m-1", key, "m-3", "m-4"]);
    assert_eq!(agent.terminate(), Some(0));
}

#[test]
fn a_message_that_is_given_back_is_run_again_up_to_the_hubs_limit() {
    BOTH.iter().for_each(|transport| given_back(transport));
}

fn given_back(transport: &str) {
    let (emulator, dir) = (Emulator::start(), dir());
    let rule = rule(dir.path(), "fails", 1, "on_failure = \"abandon\"");
    let agent = over::start(&emulator, transport, dir.path(), &rule);
    let (code, said) = send(&emulator, "fails", "m-1");
    assert!(code == Some(3) && said.contains("DeliveryCountExceeded"), "{code:?} {said}");
    assert_eq!(lines(&dir.path().join("done")), ["m-1"; 10]);
    assert_eq!(agent.process.terminate(), Some(0));
}

#[test]
fn a_message_that_is_given_back_and_then_succeeds_is_completed() {
    let (emulator, dir) = (Emulator::start(), dir());
    let tries = dir.path().join("tries");
    let tries = tries.display();
    let rule = format!(
        "[[rule]]\nname = \"flaky\"\nwhen = \"any\"\non_failure = \"abandon\"\n\
         do = [ {{ shell = \"echo x >> {tries}; [ $(wc -l < {tries}) -gt 3 ]\" }} ]\n"
    );
    let _agent = start(&emulator, dir.path(), &format!("{AMQP}{rule}"));
    assert_eq!(send(&emulator, "any", "m-1").0, Some(0));
    assert_eq!(lines(&dir.path().join("tries")).len(), 4);
}

#[test]
fn a_token_is_renewed_in_place_and_the_link_stays() {
    let (emulator, dir) = (Emulator::start(), dir());
    let rule = rule(dir.path(), "works", 0, "");
    let agent = start(&emulator, dir.path(), &format!("{AMQP}token_lifetime = \"5s\"\n{rule}"));
    agent.process.stderr.wait_for_nth("renewed the token", 2);
    assert_eq!(send(&emulator, "works", "m-1").0, Some(0), "after the first token's end");
    let log = agent.process.stderr.text();
    assert_eq!(log.matches("signed in over AMQP").count(), 1, "{log}");
    assert!(!log.contains("not connected"), "{log}");
    assert_eq!(agent.process.terminate(), Some(0));
}

#[test]
fn a_connection_that_is_cut_in_the_middle_of_an_action_does_not_run_it_twice() {
    BOTH.iter().for_each(|transport| cut_in_the_middle(transport));
}

fn cut_in_the_middle(transport: &str) {
    let (emulator, dir) = (Emulator::start(), dir());
    let proxy = Proxy::to(over::address(&emulator, transport));
    let (done, go) = (dir.path().join("done"), dir.path().join("go"));
    let rule = format!(
        "[[rule]]\nname = \"slow\"\nwhen = \"any\"\n\
         do = [ {{ shell = \"echo $C2D_MESSAGE_ID >> {}; until [ -e {} ] || [ ! -e {} ]; do sleep 0.02; done; exit 1\" }} ]\n",
        done.display(),
        go.display(),
        done.display()
    );
    let agent = over::spawn(&emulator, transport, proxy.address.port(), dir.path(), ["", &rule]);
    agent.process.stderr.wait_for("signed in over AMQP and subscribed");
    emulator.send("dev1", &["--message-id", "m-1", "--ack", "full"]);
    wait_for_file(&done, "m-1");
    proxy.cut();
    agent.process.stderr.wait_for_nth("signed in over AMQP and subscribed", 2);
    std::fs::write(&go, "").expect("written");
    // The receipt of the second connection rejects the message; the receipt of the first does nothing.
    let (code, said) = send(&emulator, "any", "m-2");
    assert!(code == Some(3) && said.contains("Rejected"), "{code:?} {said}");
    assert_eq!(lines(&done), ["m-1", "m-2"]);
    assert_eq!(agent.process.terminate(), Some(0));
}

#[test]
fn a_device_with_a_certificate_needs_no_token() {
    let (emulator, dir) = (Emulator::start_with(&["--x509-device", "dev1"]), dir());
    let [certificate, key] =
        ["cert.pem", "key.pem"].map(|name| emulator.state.join(format!("devices/dev1.{name}")));
    let config = format!(
        "{AMQP}hub = \"localhost:{}\"\ndevice_id = \"dev1\"\ncertificate = \"{}\"\nprivate_key = \"{}\"\n{}",
        emulator.amqp.port(),
        certificate.display(),
        key.display(),
        rule(dir.path(), "works", 0, "")
    );
    let agent = Agent::spawn("", &emulator.ca_file(), dir.path(), &config);
    agent.process.stderr.wait_for("signed in over AMQP and subscribed");
    assert_eq!(send(&emulator, "works", "m-1").0, Some(0));
    assert_eq!(agent.process.terminate(), Some(0));
}

#[test]
fn a_hub_that_restarts_is_found_again() {
    let (state, dir) = (dir(), dir());
    let state = state.path().join("state");
    let emulator = Emulator::start_in(&state, "0", "0", &["--device", "dev1"]);
    let agent = start(&emulator, dir.path(), &format!("{AMQP}{}", rule(dir.path(), "works", 0, "")));
    let [mqtt, amqp] = [emulator.mqtt, emulator.amqp].map(|address| address.port().to_string());
    assert_eq!(emulator.process.terminate(), Some(0));
    agent.process.stderr.wait_for("not connected");
    let emulator = Emulator::start_in(&state, &mqtt, &amqp, &["--device", "dev1"]);
    agent.process.stderr.wait_for_nth("signed in over AMQP and subscribed", 2);
    assert_eq!(send(&emulator, "works", "m-1").0, Some(0));
    assert_eq!(agent.process.terminate(), Some(0));
}

#[test]
fn a_second_program_with_the_same_device_id_is_named() {
    let (emulator, first, second) = (Emulator::start(), dir(), dir());
    let text = |dir: &tempfile::TempDir| format!("{AMQP}{}", rule(dir.path(), "works", 0, ""));
    let agent = start(&emulator, first.path(), &text(&first));
    let other = start(&emulator, second.path(), &text(&second));
    let said = agent.process.stderr.wait_for("another program has signed in");
    assert!(said.contains("same device id dev1"), "{said}");
    assert_eq!(other.process.terminate(), Some(0));
    agent.process.stderr.wait_for_nth("signed in over AMQP and subscribed", 2);
}

#[test]
fn a_wrong_key_and_an_unknown_device_end_an_agent_that_never_signed_in() {
    let (emulator, dir) = (Emulator::start(), dir());
    let key = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
    for (transport, device) in BOTH.iter().flat_map(|transport| ["dev1", "nobody"].map(|it| (transport, it)))
    {
        let port = over::address(&emulator, transport).port();
        let rule = rule(dir.path(), "works", 0, "");
        let mut command = over::command(&emulator, transport, port, dir.path(), ["", &rule]);
        let string = format!("HostName=localhost:{port};DeviceId={device};SharedAccessKey={key}");
        let agent = Process::spawn(command.env("C2D_DEVICE_CONNECTION_STRING", string));
        assert_eq!(agent.wait_exit().code(), Some(1));
        let log = agent.stderr.text();
        assert!(log.contains(&format!("localhost:{port} refused device {device}")), "{log}");
    }
}

#[test]
fn outcomes_are_reported_over_the_same_connection() {
    let (emulator, dir) = (Emulator::start(), dir());
    let rule = rule(dir.path(), "fails", 7, "report = \"telemetry\"\non_failure = \"complete\"");
    let _agent = start(&emulator, dir.path(), &format!("{AMQP}{rule}"));
    let port = emulator.https.port().to_string();
    let output = run(emulator.sender("dev1").args([
        "--property",
        "action=fails",
        "--wait-outcome=20s",
        "--https-port",
        &port,
    ]));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.code() == Some(5) && text.contains("exit code 7"), "{output:?}");
}

#[test]
fn check_says_what_amqp_does_and_what_it_has_not() {
    let dir = dir();
    let check = |text: &str, more: &[&str]| {
        let path = write_config(dir.path(), text);
        let device = "HostName=h;DeviceId=dev1;SharedAccessKey=AAAA";
        let mut command = binary();
        command.arg("check").arg("-c").arg(path).args(more).env("C2D_DEVICE_CONNECTION_STRING", device);
        let output = run(&mut command);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code(), text(&output.stdout) + &text(&output.stderr))
    };
    let fails = rule(dir.path(), "fails", 1, "");
    let (code, said) =
        check(&format!("unmatched = \"reject\"\n{AMQP}{fails}"), &["--message", "action=fails"]);
    assert!(code == Some(0) && said.contains("  on failure  rejected\n") && !said.contains("MQTT"), "{said}");
    let (_, said) = check(&format!("unmatched = \"reject\"\n{AMQP}{fails}"), &["--message", "action=x"]);
    assert!(said.contains("the message would be rejected, logged and kept"), "{said}");
    let twin = rule(dir.path(), "fails", 1, "report = \"twin\"");
    let (code, said) = check(&format!("{AMQP}{twin}"), &["--message", "action=fails"]);
    assert!(code == Some(0) && said.contains("  reported    in the twin\n"), "{said}");
}
