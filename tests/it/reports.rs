//! Outcome reports: what the back end learns about an action, by telemetry and in the twin.

use std::path::Path;

use serde_json::Value;

use crate::harness::{Agent, Emulator, run, wait_for_file};
use crate::over;

fn dir() -> tempfile::TempDir {
    tempfile::tempdir().expect("a directory")
}

/// Rules that report by telemetry (`tell`), in the twin (`show`), and not at all (`hush`). The first two write output,
/// and fail if the message has the property `fail`.
fn rules() -> String {
    let rule = |name: &str, more: &str| {
        format!(
            "[[rule]]\nname = \"{name}\"\nwhen = {{ action = \"{name}\" }}\n{more}\n\
             on_failure = \"complete\"\n\
             do = [ {{ shell = \"echo said $C2D_MESSAGE_ID; exit ${{C2D_PROPERTY_FAIL:-0}}\" }} ]\n"
        )
    };
    rule("tell", "report = \"telemetry\"")
        + &rule("show", "report = \"twin\"")
        + &rule("hush", "report = \"none\"")
}

fn outcome(emulator: &Emulator, arguments: &[&str]) -> (Option<i32>, Value) {
    let mut command = emulator.sender("dev1");
    let port = emulator.https.port().to_string();
    command.args(["--https-port", &port, "--wait-outcome=20s", "--json"]).args(arguments);
    let output = run(&mut command);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let last = text.lines().rfind(|line| line.contains("\"event\":\"outcome\""));
    let last =
        last.unwrap_or_else(|| panic!("no outcome in {text}\n{}", String::from_utf8_lossy(&output.stderr)));
    (output.status.code(), serde_json::from_str(last).expect("JSON"))
}

#[test]
fn the_sender_learns_the_outcome_by_telemetry() {
    over::each(|transport| {
        let (emulator, dir) = (Emulator::start(), dir());
        let _agent = over::start(&emulator, transport, dir.path(), &rules());
        let (exit, report) = outcome(&emulator, &["--property", "action=tell", "--message-id", "m-1"]);
        assert_eq!(exit, Some(0), "{report}");
        for (field, value) in
            [("messageId", "m-1"), ("rule", "tell"), ("outcome", "succeeded"), ("output", "said m-1\n")]
        {
            assert_eq!(report[field], value, "{report}");
        }
        assert_eq!((&report["exitCode"], &report["attempt"]), (&Value::from(0), &Value::from(1)), "{report}");
        let (exit, report) =
            outcome(&emulator, &["--property", "action=tell", "--property", "fail=3", "--message-id", "m-2"]);
        assert_eq!(exit, Some(5), "{report}");
        assert_eq!(
            (&report["outcome"], &report["exitCode"]),
            (&Value::from("failed"), &Value::from(3)),
            "{report}"
        );
    });
}

#[test]
fn the_sender_learns_the_outcome_in_the_twin() {
    over::each(|transport| {
        let (emulator, dir) = (Emulator::start(), dir());
        let _agent = over::start(&emulator, transport, dir.path(), &rules());
        let (exit, report) = outcome(&emulator, &["--property", "action=show", "--message-id", "m-1"]);
        assert_eq!((exit, &report["rule"]), (Some(0), &Value::from("show")), "{report}");
        let (exit, report) =
            outcome(&emulator, &["--property", "action=show", "--property", "fail=7", "--message-id", "m-2"]);
        assert_eq!((exit, &report["exitCode"]), (Some(5), &Value::from(7)), "{report}");
    });
}

#[test]
fn reports_wait_on_disk_while_the_hub_is_away() {
    let (state, dir) = (dir(), dir());
    let first = Emulator::start_in(state.path(), "0", "0", &["--device", "dev1"]);
    let (mqtt, amqp) = (first.mqtt.port().to_string(), first.amqp.port().to_string());
    let (go, done) = (dir.path().join("go"), dir.path().join("done"));
    let rule = gated(&go, &done);
    let agent = Agent::start(&first, "dev1", dir.path(), &rule);
    first.send("dev1", &["--property", "action=work", "--message-id", "m-1", "--wait=20s"]);
    wait_for_file(&done, "began");
    assert_eq!(first.process.terminate(), Some(0));
    agent.process.stderr.wait_for("not connected");
    std::fs::write(&go, "").expect("written");
    agent.process.stderr.wait_for("action ended");
    // The report survives even the end of this process.
    assert_eq!(agent.process.terminate(), Some(0));
    let second = Emulator::start_in(state.path(), &mqtt, &amqp, &["--device", "dev1"]);
    let _agent = Agent::start(&second, "dev1", dir.path(), &rule);
    let line = second.process.stderr.wait_for("received a D2C message");
    assert!(line.contains("%24.cid=m-1") && line.contains("succeeded"), "{line}");
}

#[test]
fn a_message_that_no_rule_takes_is_reported_as_the_report_table_says() {
    over::each(|transport| {
        let (emulator, dir) = (Emulator::start(), dir());
        let _agent = over::start(
            &emulator,
            transport,
            dir.path(),
            &format!("[report]\noutcomes = \"twin\"\n{}", rules()),
        );
        let (exit, report) = outcome(&emulator, &["--property", "action=unheard", "--message-id", "m-1"]);
        assert_eq!((exit, &report["outcome"]), (Some(5), &Value::from("unmatched")), "{report}");
    });
}

fn gated(go: &Path, done: &Path) -> String {
    let (go, done) = (go.display(), done.display());
    format!(
        "[[rule]]\nname = \"work\"\nwhen = {{ action = \"work\" }}\nsettle = \"on-accept\"\nreport = \"telemetry\"\n\
         do = [ {{ shell = \"echo began >> {done}; until [ -e {go} ] || [ ! -e {done} ]; do sleep 0.02; done\" }} ]\n"
    )
}
