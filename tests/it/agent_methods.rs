//! Direct methods of a running agent: what callers get, what is switched, what is recorded.
//!
//! Owns: nothing. Must not know: how the agent is built.

use std::path::Path;

use serde_json::Value;

use crate::harness::{Agent, Emulator, binary, run, wait_for_file, wait_for_status};
use crate::invoke_method::{back_end, seen};
use crate::json_lines::json_lines;
use crate::method_soak;
use crate::over;
use crate::soak::disk::{WELL, limit_file_size};

/// Rules for methods. Their programs write into `dir`.
fn rules(dir: &Path) -> String {
    let dir = dir.display();
    format!(
        r#"
[gpio]
backend = "simulated"
[gpio.pins.pump]
line = 4
[[rule]]
name = "pump"
when = {{ "$.method" = "pump", "$.source" = "method" }}
do = [{{ gpio = "pump", set = "{{body.state}}" }}]
[[rule]]
name = "fail"
when = {{ "$.method" = "fail" }}
do = [{{ shell = "head -c 6000 /dev/zero | tr '\\0' x; echo the disk is full; exit 3" }}]
[[rule]]
name = "slow"
when = {{ "$.method" = "slow" }}
timeout = "300ms"
do = [{{ shell = "sleep 10" }}]
[[rule]]
name = "later"
when = {{ "$.method" = "later" }}
settle = "on-accept"
report = "telemetry"
do = [{{ shell = "echo $C2D_MESSAGE_ID $(cat) >> {dir}/later" }}]
[[rule]]
name = "rare"
when = {{ "$.method" = "rare" }}
min_interval = "1h"
do = []
[[rule]]
name = "gated"
when = {{ "$.method" = "gated" }}
do = [{{ shell = "echo began >> {dir}/gated; until [ -e {dir}/go ]; do sleep 0.02; done" }}]
[[rule]]
name = "again"
when = {{ "$.method" = "again" }}
on_crash = "retry"
do = [{{ shell = "echo began >> {dir}/again; until [ -e {dir}/go ]; do sleep 0.02; done" }}]
[[rule]]
name = "stubborn"
when = {{ "$.method" = "stubborn" }}
attempts = 2
backoff = "20s"
timeout = "10s"
do = [{{ shell = "echo began >> {dir}/stubborn; exit 3" }}]
"#
    )
}

/// Calls a method. Returns status and payload, and the exit code of the caller.
pub(crate) fn call(
    emulator: &Emulator,
    target: &[&str],
    method: &str,
    data: Option<&str>,
) -> (u64, Value, Option<i32>) {
    let mut arguments = [&["invoke-method", "--json", "--method", method], target].concat();
    arguments.extend(data.iter().flat_map(|data| ["--data", *data]));
    let (stdout, stderr, code) = seen(&run(&mut back_end(emulator, &arguments)));
    let line: Value = serde_json::from_str(&stdout).unwrap_or_else(|_| panic!("{stdout} {stderr}"));
    (line["status"].as_u64().unwrap_or_else(|| panic!("{line} {stderr}")), line["payload"].clone(), code)
}

const DEVICE: [&str; 2] = ["--device", "dev1"];

#[test]
fn a_caller_hears_what_became_of_its_call() {
    over::each(|transport| {
        let (emulator, dir) = (Emulator::start(), tempfile::tempdir().expect("a directory"));
        let _agent = over::start(&emulator, transport, dir.path(), &rules(dir.path()));
        let call = |method: &str, data: Option<&str>| call(&emulator, &DEVICE, method, data);

        let (status, payload, code) = call("pump", Some(r#"{"state": "on"}"#));
        assert_eq!((status, code), (200, Some(0)), "{payload}");
        assert_eq!((&payload["outcome"], &payload["rule"]), (&"succeeded".into(), &"pump".into()));
        wait_for_status(dir.path(), "pump on");
        let id = payload["messageId"].as_str().expect("an id").to_owned();
        assert!(id.starts_with("method-") && id.len() == 39, "{id}");
        let show = run(binary().args(["inbox", "show", &id, "-c"]).arg(dir.path().join("config.toml")));
        let (stdout, stderr, _) = seen(&show);
        assert!(
            stdout.contains("outcome     set pin pump on") || stdout.contains("succeeded"),
            "{stdout} {stderr}"
        );

        for (method, data, status, part) in [
            ("pump", Some(r#"{"state": "blue"}"#), 400, "on, off or toggle"),
            ("pump", Some("{}"), 400, "body.state"),
            ("nothing", None, 404, "unmatched: no rule matches it"),
            ("slow", None, 504, "timed out"),
        ] {
            let (own, payload, code) = call(method, data);
            let text = payload["text"].as_str().unwrap_or_default();
            assert!(own == status && code == Some(5) && text.contains(part), "{method}: {own} {payload}");
        }

        // An unknown method leaves no dead letter: no caller waits for a later run.
        let config = dir.path().join("config.toml");
        let listed = run(binary().args(["inbox", "list", "--json", "--state", "dead", "-c"]).arg(&config));
        assert!(!seen(&listed).0.contains("unmatched"), "{listed:?}");

        let (status, payload, _) = call("fail", None);
        assert_eq!((status, &payload["exitCode"], &payload["outputBytes"]), (500, &3.into(), &6_017.into()));
        let [output, end] =
            ["output", "outputEnd"].map(|name| payload[name].as_str().expect("a text").to_owned());
        assert!(output.len() == 4096 && end.len() == 1024 && end.ends_with("xthe disk is full\n"), "{end}");

        assert_eq!(call("rare", None).0, 200);
        let (status, payload, _) = call("rare", None);
        assert_eq!(status, 429, "{payload}");
    });
}

#[test]
fn an_on_accept_rule_answers_at_once_with_the_id_of_the_record_and_of_the_report() {
    let (emulator, dir) = (Emulator::start(), tempfile::tempdir().expect("a directory"));
    let _agent = Agent::start(&emulator, "dev1", dir.path(), &rules(dir.path()));
    let (status, payload, code) = call(&emulator, &DEVICE, "later", Some("[1, 2]"));
    assert_eq!((status, code), (202, Some(0)), "{payload}");
    let id = payload["messageId"].as_str().expect("an id");
    assert_eq!(wait_for_file(&dir.path().join("later"), "\n"), format!("{id} [1, 2]\n"));
    let (stdout, _, _) =
        seen(&run(binary().args(["inbox", "show", id, "-c"]).arg(dir.path().join("config.toml"))));
    assert!(stdout.contains("$.method = later") || stdout.contains("finished"), "{stdout}");
    let line = emulator.process.stderr.wait_for("c2d-report=outcome");
    assert!(line.contains(id), "{line}");
}

#[test]
fn a_full_lane_turns_callers_away_and_a_caller_that_has_gone_switches_nothing() {
    let (emulator, dir) = (Emulator::start(), tempfile::tempdir().expect("a directory"));
    let agent = Agent::start(&emulator, "dev1", dir.path(), &rules(dir.path()));
    let go = dir.path().join("go");
    std::thread::scope(|scope| {
        // The callers are threads, because so many processes would keep a small machine busy.
        let emulator = &emulator;
        let callers: Vec<_> = (0..8)
            .map(|number| scope.spawn(move || method_soak::call(emulator, "dev1", "gated", number)))
            .collect();
        wait_for_file(&dir.path().join("gated"), "began");
        wait_for_status(dir.path(), "1 running, 7 waiting");
        let (status, payload, code) = call(emulator, &DEVICE, "gated", None);
        let error = payload["error"].as_str().unwrap_or_default();
        assert!(status == 429 && error.contains("call again later") && code == Some(5), "{payload}");
        std::fs::write(&go, "").expect("written");
        let heard = callers.into_iter().map(|caller| caller.join().expect("an answer"));
        heard.for_each(|heard| assert_eq!(heard.status, Some(200), "{heard:?}"));
    });
    std::fs::remove_file(&go).expect("removed");
    std::fs::remove_file(dir.path().join("gated")).expect("removed");

    // When the agent is killed, one call runs and one has not begun.
    std::thread::scope(|scope| {
        let gated = || {
            seen(&run(&mut back_end(&emulator, &["invoke-method", "--device", "dev1", "--method", "gated"])))
        };
        let callers = [scope.spawn(gated), scope.spawn(gated)];
        wait_for_file(&dir.path().join("gated"), "began");
        wait_for_status(dir.path(), "1 running, 1 waiting");
        agent.process.kill();
        let ends = callers.map(|caller| caller.join().expect("an end"));
        assert!(
            ends.iter().all(|(_, stderr, code)| stderr.contains("may have run it") && *code == Some(4)),
            "{ends:?}"
        );
    });
    std::fs::write(&go, "").expect("written");
    let agent = Agent::start(&emulator, "dev1", dir.path(), &rules(dir.path()));
    assert_eq!(call(&emulator, &DEVICE, "gated", None).0, 200, "the lane is free");
    assert_eq!(
        wait_for_file(&dir.path().join("gated"), "began"),
        "began\nbegan\n",
        "the second call never began"
    );
    let log = agent.process.stderr.text();
    assert!(log.contains("its connection had ended"), "{log}");
}

#[test]
fn a_call_that_had_begun_when_the_agent_ends_is_not_answered_as_if_it_had_not() {
    let (emulator, dir) = (Emulator::start(), tempfile::tempdir().expect("a directory"));
    let agent = Agent::start(&emulator, "dev1", dir.path(), &rules(dir.path()));
    std::thread::scope(|scope| {
        let callers = ["again", "stubborn"].map(|method| {
            let caller = scope.spawn(|| call(&emulator, &DEVICE, method, None));
            wait_for_file(&dir.path().join(method), "began");
            caller
        });
        agent.process.stderr.wait_for("retry_in_ms");
        assert_eq!(agent.process.terminate(), Some(0));
        for caller in callers {
            let (status, payload, code) = caller.join().expect("an answer");
            assert_eq!((status, code), (500, Some(5)), "{payload}");
            assert_eq!(payload["attempt"], 1, "{payload}");
        }
    });
    std::fs::write(dir.path().join("go"), "").expect("written");
    let agent = Agent::start(&emulator, "dev1", dir.path(), &rules(dir.path()));
    assert_eq!(call(&emulator, &DEVICE, "later", None).0, 202);
    wait_for_file(&dir.path().join("later"), "\n");
    for method in ["again", "stubborn"] {
        assert_eq!(
            std::fs::read_to_string(dir.path().join(method)).expect("read"),
            "began\n",
            "not run twice"
        );
    }
    assert!(!agent.process.stderr.text().contains("recovered"), "{}", agent.process.stderr.text());
}

#[test]
fn a_call_cut_off_by_a_crash_is_recorded_so_and_somebody_can_run_it_again() {
    let (emulator, dir) = (Emulator::start(), tempfile::tempdir().expect("a directory"));
    let agent = Agent::start(&emulator, "dev1", dir.path(), &rules(dir.path()));
    std::thread::scope(|scope| {
        let call = |method: &'static str| {
            let arguments = ["invoke-method", "--device", "dev1", "--timeout", "5s", "--method", method];
            seen(&run(&mut back_end(&emulator, &arguments)))
        };
        let callers = [scope.spawn(move || call("again")), scope.spawn(move || call("stubborn"))];
        wait_for_file(&dir.path().join("again"), "began");
        agent.process.stderr.wait_for("retry_in_ms");
        agent.process.kill();
        callers.into_iter().for_each(|caller| assert_eq!(caller.join().expect("an end").2, Some(4)));
    });
    let agent = Agent::start(&emulator, "dev1", dir.path(), &rules(dir.path()));
    agent.process.stderr.wait_for_nth("interrupted", 2);
    let inbox = |arguments: &[&str]| {
        seen(&run(binary().arg("inbox").args(arguments).arg("-c").arg(dir.path().join("config.toml"))))
    };
    let (list, _, _) = inbox(&["list"]);
    assert_eq!(list.matches("interrupted").count(), 2, "{list}");
    let (list, _, _) = inbox(&["list", "--json"]);
    let records = json_lines(&list);
    let again = records.iter().find(|record| record["rule"] == "again").expect("a record of that rule");
    let number = format!("#{}", again["number"]);
    std::fs::write(dir.path().join("go"), "").expect("written");
    let (stdout, stderr, code) = inbox(&["retry", &number]);
    assert_eq!(code, Some(0), "{stdout}{stderr}");
    agent.process.stderr.wait_for("outcome=succeeded");
    assert_eq!(std::fs::read_to_string(dir.path().join("again")).expect("read"), "began\nbegan\n");
}

#[test]
fn a_call_that_cannot_be_recorded_is_answered_so_at_once_and_does_not_run_when_the_disk_is_well_again() {
    let (emulator, dir) = (Emulator::start(), tempfile::tempdir().expect("a directory"));
    let agent = Agent::start(&emulator, "dev1", dir.path(), &rules(dir.path()));
    let call = |method: &str| call(&emulator, &DEVICE, method, Some(r#"{"state": "on"}"#));
    // The agent takes no call before its inbox is open.
    assert_eq!(call("nothing").0, 404);
    limit_file_size(&agent.process, Some(0));
    // The first call finds out that the disk is full.
    for method in ["pump", "pump", "nothing"] {
        let (status, payload, code) = call(method);
        let error = payload["error"].as_str().unwrap_or_default();
        assert!(
            status == 503 && error.contains("the inbox cannot record it"),
            "{method}: {status} {payload}"
        );
        assert_eq!(code, Some(5));
    }
    limit_file_size(&agent.process, None);
    agent.process.stderr.wait_for(WELL);
    agent.process.stderr.wait_for("the call was not begun");
    wait_for_status(dir.path(), "pump off");
    assert_eq!(call("pump").0, 200);
    wait_for_status(dir.path(), "pump on");
}
