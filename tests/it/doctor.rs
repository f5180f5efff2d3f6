//! `doctor` as a user sees it: what it finds, what it advises, and that it changes nothing.
//!
//! Owns: running the doctor, and its JSON. Must not know: how the checks work.

use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use c2d_agent::feedback::FeedbackStatus;
use rumqttc::mqttbytes::v4::Packet;
use serde_json::Value;

use crate::emulator_mqtt::device::Local;
use crate::harness::{Agent, DEADLINE, Emulator, binary, program, run, skip, wait_for_status, write_config};

mod configuration;
mod machine;
mod module;
mod network;
mod servers;

const KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
const LED: &str = "[gpio]\nbackend = \"simulated\"\n[gpio.pins.led]\nline = 1\n\
                   [[rule]]\nname = \"led\"\nwhen = { action = \"led\" }\ndo = [ { gpio = \"led\", set = \"on\" } ]\n";

/// `doctor` with this configuration.
fn doctor(config: &Path) -> Command {
    let mut command = binary();
    command.arg("doctor").arg("-c").arg(config);
    command
}

/// `doctor` in `dir` as `dev1` of `emulator`, with the emulator's HTTPS port for the time.
fn healthy(emulator: &Emulator, dir: &Path) -> Command {
    let mut command = doctor(&write_config(dir, LED));
    command.env("C2D_DEVICE_CONNECTION_STRING", emulator.device_string("dev1"));
    command.env("C2D_CA_FILE", emulator.ca_file());
    command.env("C2D_HTTPS_PORT", emulator.https.port().to_string());
    command
}

/// What `doctor --json` found.
struct Found {
    code: Option<i32>,
    checks: Vec<Value>,
}

impl Found {
    fn by(command: &mut Command) -> Self {
        let output = run(command.arg("--json"));
        let text = String::from_utf8(output.stdout).expect("UTF-8");
        assert_eq!(String::from_utf8_lossy(&output.stderr), "");
        let Ok(report) = serde_json::from_str::<Value>(&text) else { panic!("no JSON: {text}") };
        let found = Self {
            code: output.status.code(),
            checks: report["checks"].as_array().expect("an array").clone(),
        };
        assert_eq!(report["ok"].as_bool(), Some(found.code == Some(0)), "{text}");
        found
    }

    fn check(&self, check: &str) -> &Value {
        let found = self.checks.iter().find(|one| one["check"] == check);
        found.unwrap_or_else(|| panic!("no {check} in {:#?}", self.checks))
    }

    /// Asserts the result of a check, and that detail and remedy contain these words.
    #[track_caller]
    fn says(&self, check: &str, status: &str, detail: &str, remedy: &str) {
        let found = self.check(check);
        let text = |field: &str| found[field].as_str().unwrap_or_default();
        assert_eq!(text("status"), status, "{found:#}");
        assert!(text("detail").contains(detail), "no \"{detail}\" in {found:#}");
        assert!(text("remedy").contains(remedy), "no \"{remedy}\" in {found:#}");
        let needs_remedy = matches!(status, "warning" | "failed");
        assert_eq!(found["remedy"].is_string(), needs_remedy, "{found:#}");
    }

    /// Asserts which checks have failed, and the exit code.
    #[track_caller]
    fn failed(&self, checks: &[&str]) {
        let failed = self.checks.iter().filter(|one| one["status"] == "failed");
        let failed: Vec<_> = failed.map(|one| one["check"].as_str().expect("a name")).collect();
        assert_eq!(failed, checks, "{:#?}", self.checks);
        assert_eq!(self.code, Some(i32::from(!checks.is_empty())));
    }
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn a_gateway_that_is_well_has_a_line_for_each_check() {
    let emulator = Emulator::start();
    let dir = tempfile::tempdir().expect("a directory");
    let output = run(&mut healthy(&emulator, dir.path()));
    assert_eq!(output.status.code(), Some(0));
    let text = stdout(&output);
    let heads: Vec<&str> =
        text.lines().take_while(|line| !line.is_empty()).map(|line| line[..24].trim_end()).collect();
    let (mqtt, https) = (emulator.mqtt.port(), emulator.https.port());
    let (mqtt, https) = (format!("ok       port {mqtt}"), format!("ok       port {https}"));
    assert_eq!(
        heads,
        [
            "ok       configuration",
            "ok       identity",
            "ok       user",
            "skipped  secret file",
            "ok       agent",
            "ok       name lookup",
            &mqtt,
            &https,
            "ok       TLS",
            "ok       server cert",
            "ok       clock",
            "ok       sign-in",
            "ok       inbox",
            "skipped  program",
            "ok       GPIO",
            "ok       pin",
        ]
    );
    assert!(text.ends_with("\n\n14 ok, 0 warnings, 0 failed, 2 skipped\n"), "{text}");
    assert!(text.contains("device dev1 on hub localhost:"), "{text}");
    assert!(text.contains("signed by \"c2d-agent emulator CA\", which "), "{text}");
    assert!(!dir.path().join("inbox.journal").exists(), "it leaves nothing behind");
}

#[test]
fn the_names_in_json_are_those_that_scripts_rely_on() {
    let emulator = Emulator::start();
    let dir = tempfile::tempdir().expect("a directory");
    let found = Found::by(&mut healthy(&emulator, dir.path()));
    let names: Vec<_> = found.checks.iter().map(|one| one["check"].as_str().expect("a name")).collect();
    assert_eq!(
        names,
        [
            "configuration",
            "identity",
            "user",
            "secret-file",
            "agent",
            "name-lookup",
            "mqtt-port",
            "https-port",
            "tls",
            "server-certificate",
            "clock",
            "sign-in",
            "inbox",
            "program",
            "gpio",
            "pin"
        ]
    );
    let pin = serde_json::json!({
        "check": "pin", "subject": "led", "status": "ok", "detail": "simulated: nothing is switched", "remedy": null
    });
    assert_eq!(*found.check("pin"), pin);
    assert_eq!(found.check("mqtt-port")["subject"], emulator.mqtt.port().to_string());
    found.says("clock", "ok", " UTC, the same as the server's", "");
}

#[test]
fn messages_that_wait_are_neither_taken_nor_delivered() {
    let hub = Local::start();
    let dir = tempfile::tempdir().expect("a directory");
    // The hub remembers the subscription, so the next connection with this session gets the waiting messages.
    let mut device = hub.subscribed();
    device.send(Packet::Disconnect);
    device.expect_close();
    hub.send("one").expect("room");
    let file = hub.state().join("devices/dev1.connection-string");
    let mut command = doctor(&write_config(dir.path(), LED));
    command.env("C2D_DEVICE_CONNECTION_STRING", std::fs::read_to_string(file).expect("a connection string"));
    command.env("C2D_CA_FILE", hub.state().join("ca.pem"));
    Found::by(&mut command).says("sign-in", "ok", "the hub accepts dev1", "");
    let mut device = hub.subscribed();
    let message = device.publish();
    assert_eq!((message.payload.as_ref(), message.dup), (b"one".as_ref(), false), "never delivered before");
    device.puback(&message);
    assert_eq!(hub.feedback(), [("one".to_owned(), FeedbackStatus::Success)]);
}

#[test]
fn a_running_agent_is_left_alone_unless_the_sign_in_is_asked_for() {
    let emulator = Emulator::start();
    let dir = tempfile::tempdir().expect("a directory");
    let agent = Agent::start(&emulator, "dev1", dir.path(), LED);
    wait_for_status(dir.path(), "connected");
    let found = Found::by(&mut healthy(&emulator, dir.path()));
    found.failed(&[]);
    found.says("agent", "ok", &format!("runs as process {}, and is connected", agent.process.id()), "");
    found.says(
        "sign-in",
        "skipped",
        "it would disconnect the running agent for a moment: --sign-in forces it",
        "",
    );
    found.says("inbox", "ok", "in use by the running agent", "");
    assert_eq!(agent.process.stderr.count("not connected"), 0, "{}", agent.process.stderr.text());
    let found = Found::by(healthy(&emulator, dir.path()).arg("--sign-in"));
    found.failed(&[]);
    found.says(
        "sign-in",
        "warning",
        "the hub accepts dev1, and the running agent was disconnected",
        "by itself",
    );
    agent.process.stderr.wait_for("not connected");
    agent.process.stderr.wait_for_nth("subscribed", 2);
    assert_eq!(agent.process.terminate(), Some(0));
}

#[test]
fn an_agent_that_is_not_connected_is_quoted() {
    let emulator = Emulator::start();
    let dir = tempfile::tempdir().expect("a directory");
    let port = network::closed_port();
    let string = format!("HostName=localhost:{port};DeviceId=dev1;SharedAccessKey={KEY}");
    let agent = Agent::spawn(&string, &emulator.ca_file(), dir.path(), LED);
    agent.process.stderr.wait_for("not connected");
    let socket = dir.path().join("inbox.sock");
    let end = Instant::now() + DEADLINE;
    while !socket.exists() {
        assert!(Instant::now() < end, "no control socket");
        std::thread::park_timeout(Duration::from_millis(5)); // a file has no event to wait for with a deadline: poll
    }
    let mut command = healthy(&emulator, dir.path());
    let found = Found::by(command.env("C2D_DEVICE_CONNECTION_STRING", string));
    let reason =
        format!("is not connected: localhost:{port} refused the connection: nothing listens on that port");
    found.says("agent", "warning", &reason, "see the checks below");
    found.failed(&["mqtt-port"]);
}

#[test]
fn offline_nothing_is_sent_and_everything_else_looked_at() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut command = doctor(&write_config(dir.path(), LED));
    let string = format!("HostName=no-such-hub.invalid;DeviceId=dev1;SharedAccessKey={KEY}");
    let found = Found::by(command.arg("--offline").env("C2D_DEVICE_CONNECTION_STRING", string));
    found.failed(&[]);
    for check in ["name-lookup", "mqtt-port", "https-port", "tls", "server-certificate", "clock", "sign-in"] {
        found.says(check, "skipped", "--offline", "");
    }
    found.says("inbox", "ok", "will be created", "");
    let both = run(doctor(&dir.path().join("config.toml")).args(["--offline", "--sign-in"]));
    assert_eq!(both.status.code(), Some(2), "the two exclude each other");
}

#[test]
fn the_words_are_coloured_on_a_terminal_unless_no_color_is_set() {
    let Some(script) = program("script") else { return skip("colours of doctor", "script is not installed") };
    let line = format!("{} doctor --offline -c /no/such/config.toml", env!("CARGO_BIN_EXE_c2d-agent"));
    let seen = |no_color: &str| {
        let mut command = Command::new(&script);
        command.args(["-qec", &line, "/dev/null"]).env("NO_COLOR", no_color).env("TERM", "xterm");
        run(&mut command)
    };
    let (coloured, plain) = (seen(""), seen("1"));
    assert!(
        stdout(&coloured).starts_with("\x1b[1;31mFAILED\x1b[0m   configuration  "),
        "{:?}",
        stdout(&coloured)
    );
    assert!(stdout(&plain).starts_with("FAILED   configuration  1 problem: "), "{:?}", stdout(&plain));
    assert_eq!(coloured.status.code(), Some(1));
}

/// Runs the doctor, and asserts that it took less than `limit`.
fn within(limit: Duration, command: &mut Command) -> Found {
    let began = Instant::now();
    let found = Found::by(command);
    assert!(began.elapsed() < limit, "it took {:?}", began.elapsed());
    found
}
