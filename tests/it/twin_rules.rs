//! Rules that a back end sets in the twin's desired properties. A running agent takes all of them or refuses all,
//! answers in the reported properties, and keeps the rules over a restart.
//!
//! Owns: the way from `twin patch` to a switched pin. Valid rules of the twin are tested in `src/config/tests/`.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Instant;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::agent_methods::call;
use crate::agent_module;
use crate::harness::{
    Agent, DEADLINE, Emulator, Process, binary, run, wait_for_file, wait_for_status, write_config,
};
use crate::invoke_method::back_end;
use crate::over;
use crate::sdk::{emulator, json, python_with_https, script};

/// Pins, one rule, and the permission for rules of the twin to switch the pump.
const LOCAL: &str = "[gpio]\nbackend = \"simulated\"\nstate_file = \"pins.json\"\n[gpio.pins.pump]\nline = 1\n\
    [gpio.pins.lamp]\nline = 2\n[twin]\naccept = [\"rules\"]\n[allow]\npins = [\"pump\"]\ncommands.note = [\"/bin/true\"]\n\
    [[rule]]\nname = \"lamp\"\nwhen = { lamp = { present = true } }\ndo = [ { gpio = \"lamp\", set = \"{lamp}\" } ]\n";

/// A rule of the twin that switches the pump.
const PUMP: &str = "[[rule]]\nname = \"pump\"\nwhen = { pump = { present = true } }\ndo = [ { gpio = \"pump\", set = \"{pump}\" } ]\n";

fn dir() -> tempfile::TempDir {
    tempfile::tempdir().expect("a directory")
}

fn texts(texts: &[(&str, Option<&str>)]) -> Value {
    let texts: serde_json::Map<_, _> =
        texts.iter().map(|(name, text)| ((*name).into(), json!(text))).collect();
    json!({ "c2dAgent": { "rules": texts } })
}

const DEVICE: &[&str] = &["--device", "dev1"];

/// Patches the desired properties of `dev1`, and returns their version.
fn patch(emulator: &Emulator, desired: &Value) -> u64 {
    patch_of(emulator, DEVICE, desired)
}

fn patch_of(emulator: &Emulator, target: &[&str], desired: &Value) -> u64 {
    let dir = dir();
    let file = dir.path().join("desired.json");
    std::fs::write(&file, desired.to_string()).expect("written");
    let file = file.to_str().expect("UTF-8");
    let arguments = [&["twin", "patch", "--json", "--desired-file", file], target].concat();
    let output = run(&mut back_end(emulator, &arguments));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let twin: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    twin["properties"]["desired"]["$version"].as_u64().expect("a version")
}

/// Waits until the agent's part of the reported properties is right. It polls, because the back end has no event for
/// this.
#[track_caller]
fn reported(emulator: &Emulator, is_right: impl Fn(&Value) -> bool) -> Value {
    reported_of(emulator, DEVICE, is_right)
}

#[track_caller]
fn reported_of(emulator: &Emulator, target: &[&str], is_right: impl Fn(&Value) -> bool) -> Value {
    let end = Instant::now() + DEADLINE;
    loop {
        let output = run(&mut back_end(emulator, &[&["twin", "get", "--json"], target].concat()));
        let twin: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let section = twin["properties"]["reported"]["c2dAgent"].clone();
        if is_right(&section) {
            return section;
        }
        assert!(Instant::now() < end, "waited too long: {section:#}");
    }
}

/// Waits until the agent has answered desired properties of this version, and returns the answer.
#[track_caller]
fn answered(emulator: &Emulator, version: u64) -> Value {
    reported(emulator, |section| section["desired"]["version"] == version)["desired"].clone()
}

#[track_caller]
fn applied(emulator: &Emulator, version: u64) {
    let expected = json!({ "version": version, "status": "applied", "problems": [] });
    reported(emulator, |section| section["desired"] == expected);
}

/// Sends a message and waits until the agent has said what happened to it.
fn send(emulator: &Emulator, agent: &Agent, id: &str, property: &str) -> String {
    emulator.send("dev1", &["--message-id", id, "--property", property]);
    agent.process.stderr.wait_until(id, |lines| {
        let told = format!("message_id=\"{id}\"");
        lines.iter().find(|line| line.contains(&told) && line.contains("outcome=")).cloned()
    })
}

#[test]
fn a_rule_of_the_twin_switches_a_pin_until_it_is_taken_away() {
    over::each(|transport| {
        let (emulator, dir) = (Emulator::start(), dir());
        let agent = over::start(&emulator, transport, dir.path(), LOCAL);
        let before = reported(&emulator, |section| section["desired"]["status"] == "applied");
        assert_eq!(before["version"], env!("CARGO_PKG_VERSION"));
        assert_eq!(before["pins"], json!({ "lamp": "off", "pump": "off" }));
        assert_eq!(before["connection"]["transport"], transport);
        assert!(send(&emulator, &agent, "1", "pump=on").contains("unmatched"));

        let version =
            patch(&emulator, &texts(&[("10-pumps", Some(PUMP)), ("20-none", Some("# nothing yet\n"))]));
        applied(&emulator, version);
        assert!(send(&emulator, &agent, "2", "pump=on").contains("succeeded"));
        wait_for_file(&dir.path().join("pins.json"), r#""pump":"on""#);
        let after = reported(&emulator, |section| section["pins"]["pump"] == "on");
        assert_ne!(after["configuration"], before["configuration"]);
        assert_eq!(after["connection"], before["connection"], "the connection was not touched");
        let kept = std::fs::read_to_string(dir.path().join("twin-rules.json")).expect("kept");
        assert!(kept.contains("10-pumps"), "{kept}");

        // Another desired property changes no rules, and is also answered.
        let version = patch(&emulator, &json!({ "interval": 30 }));
        applied(&emulator, version);
        let version = patch(&emulator, &texts(&[("10-pumps", None), ("20-none", None)]));
        applied(&emulator, version);
        assert!(send(&emulator, &agent, "3", "pump=off").contains("unmatched"));
        assert!(send(&emulator, &agent, "4", "lamp=on").contains("succeeded"), "local rules go on");
        let last = reported(&emulator, |section| section["pins"]["lamp"] == "on");
        assert_eq!(last["configuration"], before["configuration"]);
        assert!(!dir.path().join("twin-rules.json").exists());
        assert_eq!(agent.process.terminate(), Some(0));
    });
}

#[test]
fn what_is_not_allowed_is_refused_whole_with_its_places_and_the_old_rules_go_on() {
    let (emulator, dir) = (Emulator::start(), dir());
    let agent = Agent::start(&emulator, "dev1", dir.path(), LOCAL);
    let version = patch(&emulator, &texts(&[("10-pumps", Some(PUMP))]));
    applied(&emulator, version);
    let greedy = "[[rule]]\nname = \"x\"\nwhen = { x = 1 }\ndo = [\n{ run = [\"/bin/rm\", \"-rf\", \"/\"] },\n\
                  { shell = \"id\" },\n{ gpio = \"lamp\", set = \"on\" },\n]\n[allow]\npins = [\"lamp\"]\n";
    let right = PUMP.replace("\"pump\"\nwhen", "\"other\"\nwhen").replace("pump = {", "other = {");
    let right = right.replace("{pump}", "{other}");
    let version = patch(&emulator, &texts(&[("10-pumps", Some(&right)), ("90-x", Some(greedy))]));
    let refused = answered(&emulator, version);
    assert_eq!(
        refused["problems"],
        json!([
            "twin:90-x:9:2: the twin may set only rules: its texts can contain only [[rule]] tables, not \
             \"allow\""
        ])
    );
    assert_eq!(refused["status"], "refused");
    let greedy = &greedy[..greedy.find("[allow]").expect("there")];
    let version = patch(&emulator, &texts(&[("90-x", Some(greedy))]));
    let refused = answered(&emulator, version);
    let problems = refused["problems"].as_array().expect("problems");
    for (problem, (place, told)) in problems.iter().zip([
        ("5:3", "a rule of the twin cannot have run, only a command"),
        ("6:3", "a rule of the twin cannot have shell, only a command"),
        ("7:10", "a rule of the twin may not switch pin \"lamp\""),
    ]) {
        let start = format!("twin:90-x:{place}: {told}");
        assert!(problem.as_str().is_some_and(|problem| problem.starts_with(&start)), "{problem}");
    }
    assert_eq!(problems.len(), 3, "{refused}");
    wait_for_status(dir.path(), &format!("rules of twin version {version} refused: twin:90-x:5:3: "));
    agent.process.stderr.wait_for("cannot have run");
    // None of the new rules counts, and all earlier rules do.
    assert!(send(&emulator, &agent, "1", "other=on").contains("unmatched"));
    assert!(send(&emulator, &agent, "2", "pump=on").contains("succeeded"));
    let kept = std::fs::read_to_string(dir.path().join("twin-rules.json")).expect("kept");
    assert!(kept.contains("10-pumps") && !kept.contains("90-x"), "{kept}");
    // When the mistake is corrected, the old problems are removed from the twin.
    let version = patch(&emulator, &texts(&[("90-x", None)]));
    applied(&emulator, version);
    wait_for_status(dir.path(), &format!(" of twin version {version} applied"));
    assert!(send(&emulator, &agent, "3", "other=off").contains("succeeded"));
    let shapes = patch(&emulator, &json!({ "c2dAgent": { "rules": "all of them" } }));
    let refused = answered(&emulator, shapes);
    let told = "c2dAgent.rules is a text, but must be an object of texts";
    assert!(refused["problems"][0].as_str().is_some_and(|problem| problem.starts_with(told)), "{refused}");
    assert!(send(&emulator, &agent, "4", "other=on").contains("succeeded"));
}

/// A program that writes that it begins, and ends when the file `go` exists.
fn gate(dir: &Path) -> String {
    let (gate, at) = (dir.join("gate"), dir.display());
    let text = format!("#!/bin/sh\necho >> {at}/begun\nuntil [ -e {at}/go ]; do sleep 0.02; done\n");
    std::fs::write(&gate, text).expect("written");
    std::fs::set_permissions(&gate, std::fs::Permissions::from_mode(0o755)).expect("permissions");
    gate.display().to_string()
}

#[test]
fn programs_of_the_twin_leave_the_last_place_to_local_ones() {
    let (emulator, dir) = (Emulator::start(), dir());
    let gate = gate(dir.path());
    let local = format!(
        "[actions]\nmax_children = 2\n[twin]\naccept = [\"rules\"]\n[allow]\ncommands.gate = [\"{gate}\"]\n\
         [[rule]]\nname = \"own\"\nwhen = {{ own = 1 }}\ndo = [ {{ shell = \"true\" }} ]\n"
    );
    let agent = Agent::start(&emulator, "dev1", dir.path(), &local);
    let slow = |name: &str| {
        format!("[[rule]]\nname = \"{name}\"\nwhen = {{ {name} = 1 }}\ndo = [ {{ command = \"gate\" }} ]\n")
    };
    let version = patch(&emulator, &texts(&[("a", Some(&slow("a"))), ("b", Some(&slow("b")))]));
    applied(&emulator, version);
    for name in ["a", "b"] {
        emulator.send("dev1", &["--message-id", name, "--property", &format!("{name}=1")]);
    }
    wait_for_status(dir.path(), "1 running, 1 waiting");
    assert!(send(&emulator, &agent, "1", "own=1").contains("succeeded"), "it has a place of its own");
    std::fs::write(dir.path().join("go"), "").expect("written");
    agent.process.stderr.wait_until("both end", |lines| {
        let ended =
            |id: &str| lines.iter().any(|line| line.contains(id) && line.contains("outcome=succeeded"));
        (ended("message_id=\"a\"") && ended("message_id=\"b\"")).then_some(())
    });
}

#[test]
fn an_off_of_the_owner_does_not_wait_for_all_that_stands_before_it_for_a_rule_of_the_twin() {
    let (emulator, dir) = (Emulator::start(), dir());
    let gate = gate(dir.path());
    let local = format!(
        "[twin]\naccept = [\"rules\"]\n[allow.commands]\ngate = [\"{gate}\"]\n\
         [[rule]]\nname = \"off\"\nwhen = {{ off = 1 }}\nlane = \"door\"\ndo = [ {{ shell = \"true\" }} ]\n"
    );
    let agent = Agent::start(&emulator, "dev1", dir.path(), &local);
    let slow = "[[rule]]\nname = \"slow\"\nwhen = { slow = 1 }\nlane = \"door\"\ntimeout = \"50s\"\n\
                do = [ { command = \"gate\" } ]\n";
    let version = patch(&emulator, &texts(&[("a", Some(slow))]));
    applied(&emulator, version);
    for n in 0..12 {
        emulator.send("dev1", &["--message-id", &format!("slow-{n}"), "--property", "slow=1"]);
    }
    wait_for_status(dir.path(), "1 running, 11 waiting");
    // One action may take 50 s, so no waiting message can still end in time. They keep their places, and are not run.
    emulator.send("dev1", &["--message-id", "now-off", "--property", "off=1"]);
    let told = "refused: a message for a rule of the device's configuration waits behind it, at most 50s for \
                rules of the twin, but rule slow may take 50s";
    agent.process.stderr.wait_for_nth(told, 11);
    wait_for_status(dir.path(), "1 running, 1 waiting");
    std::fs::write(dir.path().join("go"), "").expect("written");
    agent.process.stderr.wait_until("off is done", |lines| {
        let done =
            |line: &&String| line.contains("message_id=\"now-off\"") && line.contains("outcome=succeeded");
        lines.iter().find(done).cloned()
    });
    let begun = std::fs::read_to_string(dir.path().join("begun")).expect("written");
    assert_eq!(begun.lines().count(), 1, "only the one that had begun");
    assert!(agent.process.stderr.text().contains("message_id=\"slow-0\""));
}

#[test]
fn thirty_two_kibibytes_of_nonsense_are_refused_and_messages_go_on() {
    let (emulator, dir) = (Emulator::start(), dir());
    let agent = Agent::start(&emulator, "dev1", dir.path(), LOCAL);
    reported(&emulator, |section| section["desired"]["status"] == "applied");
    for nonsense in ["=\n", "[[rule]]\n", "\u{fffd}]{\"", "a = [[{"] {
        let text = nonsense.repeat(4000 / nonsense.len());
        let names: Vec<String> = (0..7).map(|n| format!("{n}")).collect();
        let all: Vec<_> = names.iter().map(|name| (name.as_str(), Some(text.as_str()))).collect();
        let version = patch(&emulator, &texts(&all));
        let refused = answered(&emulator, version);
        let problems = refused["problems"].as_array().expect("problems");
        assert!(!problems.is_empty() && problems.len() <= 21, "{refused}");
        assert!(refused.to_string().len() < 6000 && refused["status"] == "refused", "{refused}");
        let id = format!("m-{version}");
        assert!(send(&emulator, &agent, &id, "lamp=toggle").contains("succeeded"));
    }
    let lines = agent.process.stderr.all().len();
    assert!(lines < 200, "{lines} lines in the log");
    assert!(!dir.path().join("twin-rules.json").exists());
}

#[test]
fn rules_of_the_twin_survive_a_restart_without_the_hub() {
    let (state, dir) = (dir(), dir());
    let first = Emulator::start_in(state.path(), "0", "0", &["--device", "dev1"]);
    let (mqtt, amqp) = (first.mqtt.port().to_string(), first.amqp.port().to_string());
    let agent = Agent::start(&first, "dev1", dir.path(), LOCAL);
    let version = patch(&first, &texts(&[("10-pumps", Some(PUMP))]));
    applied(&first, version);
    assert_eq!(agent.process.terminate(), Some(0));
    // At the hub, one message waits that only a rule of the twin matches.
    first.send("dev1", &["--message-id", "1", "--property", "pump=on"]);
    let (device, ca) = (first.device_string("dev1"), first.ca_file());
    assert_eq!(first.process.terminate(), Some(0));
    let agent = Agent::spawn(&device, &ca, dir.path(), LOCAL);
    let line = agent.process.stderr.wait_for("rules of the twin are applied");
    assert!(line.contains(&format!("version={version}")) && line.contains("rules=1"), "{line}");
    agent.process.stderr.wait_for("not connected");
    let check = run(binary()
        .args(["check", "--message", "pump=on", "-c"])
        .arg(dir.path().join("config.toml"))
        .env("C2D_DEVICE_CONNECTION_STRING", &device));
    let check = String::from_utf8_lossy(&check.stdout).into_owned();
    assert!(check.contains("rule \"pump\" of twin:10-pumps matches"), "{check}");
    let second = Emulator::start_in(state.path(), &mqtt, &amqp, &["--device", "dev1"]);
    wait_for_file(&dir.path().join("pins.json"), r#""pump":"on""#);
    applied(&second, version);
    assert_eq!(agent.process.stderr.count("applied the rules of the twin"), 0, "they were in force already");
}

#[test]
fn what_was_patched_while_the_agent_was_away_is_taken_at_its_next_connection() {
    let (emulator, dir) = (Emulator::start(), dir());
    let version = patch(&emulator, &texts(&[("10-pumps", Some(PUMP))]));
    // The file that an earlier agent kept is damaged. The agent says so and writes it again.
    std::fs::write(dir.path().join("twin-rules.json"), "{\"version\": 1, \"rul").expect("written");
    let agent = Agent::start(&emulator, "dev1", dir.path(), LOCAL);
    assert!(agent.process.stderr.wait_for("the rules of the twin cannot be read").contains("it is damaged"));
    applied(&emulator, version);
    assert!(send(&emulator, &agent, "1", "pump=on").contains("succeeded"));
    wait_for_file(&dir.path().join("twin-rules.json"), "10-pumps");
    // There are several patches; the last one counts.
    let mut last = 0;
    for n in 0..5 {
        let text = PUMP.replace("\"pump\"\nwhen", &format!("\"pump-{n}\"\nwhen"));
        last = patch(&emulator, &texts(&[("10-pumps", Some(&text))]));
    }
    applied(&emulator, last);
    assert!(send(&emulator, &agent, "2", "pump=off").contains("rule=\"pump-4\""));
}

#[test]
fn the_owner_takes_leave_back_and_gives_it_again() {
    let (emulator, dir) = (Emulator::start(), dir());
    let agent = Agent::start(&emulator, "dev1", dir.path(), LOCAL);
    let version = patch(&emulator, &texts(&[("10-pumps", Some(PUMP))]));
    applied(&emulator, version);
    let reload = |text: &str, n: usize| {
        write_config(dir.path(), text);
        agent.process.signal(Signal::HUP);
        agent.process.stderr.wait_for_nth("applied the new configuration", n);
    };
    // A reload by itself removes no rule of the twin.
    reload(&LOCAL.replace("line = 2", "line = 2\nmax_on = \"1h\""), 1);
    assert!(send(&emulator, &agent, "1", "pump=on").contains("succeeded"));
    reload(&LOCAL.replace("pins = [\"pump\"]", "pins = [\"lamp\"]"), 2);
    let refused = reported(&emulator, |section| section["desired"]["status"] == "refused")["desired"].clone();
    assert_eq!(refused["version"], version);
    let told = "twin:10-pumps:4:17: a rule of the twin may not switch pin \"pump\"";
    assert!(refused["problems"][0].as_str().is_some_and(|problem| problem.starts_with(told)), "{refused}");
    assert!(send(&emulator, &agent, "2", "pump=off").contains("unmatched"));
    assert!(send(&emulator, &agent, "3", "lamp=on").contains("succeeded"));
    reload(LOCAL, 3);
    applied(&emulator, version);
    assert!(send(&emulator, &agent, "4", "pump=off").contains("succeeded"));
    // Without accept, and without reports in the twin, the agent does not read the twin.
    reload(&LOCAL.replace("accept = [\"rules\"]", ""), 4);
    agent.process.stderr.wait_for("this device does not accept rules from its twin");
    assert!(send(&emulator, &agent, "5", "pump=on").contains("unmatched"));
    patch(&emulator, &texts(&[("20-more", Some("nonsense"))]));
    assert!(send(&emulator, &agent, "6", "lamp=off").contains("succeeded"));
    assert_eq!(agent.process.terminate(), Some(0));
    let agent = Agent::start(&emulator, "dev1", dir.path(), &LOCAL.replace("accept = [\"rules\"]", ""));
    agent.process.stderr.wait_for("this device does not accept rules from its twin");
    assert!(send(&emulator, &agent, "7", "pump=on").contains("unmatched"));
}

#[test]
fn rules_that_cannot_be_kept_are_not_taken() {
    let (emulator, dir) = (Emulator::start(), dir());
    let agent = Agent::start(&emulator, "dev1", dir.path(), LOCAL);
    // A directory has the name of the new file, so the agent cannot write it.
    std::fs::create_dir(dir.path().join("twin-rules.json.new")).expect("a directory");
    let version = patch(&emulator, &texts(&[("10-pumps", Some(PUMP))]));
    let refused = answered(&emulator, version);
    let problem = refused["problems"][0].as_str().expect("a problem");
    assert!(
        problem.contains("twin-rules.json cannot be written: ")
            && problem.ends_with("; the device tries again"),
        "{problem}"
    );
    assert!(send(&emulator, &agent, "1", "pump=on").contains("unmatched"));
    std::fs::remove_dir(dir.path().join("twin-rules.json.new")).expect("removed");
    agent.process.signal(Signal::HUP);
    applied(&emulator, version);
    assert!(send(&emulator, &agent, "2", "pump=on").contains("succeeded"));
}

#[test]
fn rules_in_the_twin_of_a_module_answer_methods() {
    let (emulator, dir) = (Emulator::start_with(&["--device", "dev1", "--module", "edge1/agent"]), dir());
    let module = ["--device", "edge1", "--module", "agent"];
    let agent = agent_module::spawn(&emulator, dir.path(), LOCAL, Some("dev1"));
    agent.process.stderr.wait_for_nth("subscribed", 2);
    assert_eq!(call(&emulator, &module, "pump", Some("{\"state\": \"on\"}")).0, 404);
    let text = "[[rule]]\nname = \"pump\"\nwhen = { \"$.method\" = \"pump\", \"body.state\" = { one_of = [\"on\", \"off\"] } }\n\
                do = [ { gpio = \"pump\", set = \"{body.state}\" } ]\n";
    let version = patch_of(&emulator, &module, &texts(&[("10-pumps", Some(text))]));
    let expected = json!({ "version": version, "status": "applied", "problems": [] });
    reported_of(&emulator, &module, |section| section["desired"] == expected);
    assert_eq!(call(&emulator, &module, "pump", Some("{\"state\": \"on\"}")).0, 200);
    wait_for_file(&dir.path().join("pins.json"), r#""pump":"on""#);
    reported_of(&emulator, &module, |section| section["pins"]["pump"] == "on");
    assert!(reported(&emulator, |_| true).is_null(), "the device beside it reports nothing");
    assert_eq!(agent.process.terminate(), Some(0));

    // A module that accepts no rules says so.
    let agent = agent_module::spawn(&emulator, dir.path(), &LOCAL.replace("accept = [\"rules\"]", ""), None);
    let section = reported_of(&emulator, &module, |section| section["desired"]["status"] == "refused");
    let told = "twin: this device does not accept rules from its twin: to allow them, its owner writes \
                [twin] accept = [\"rules\"] in its configuration, with [allow]";
    assert_eq!(section["desired"]["problems"], json!([told]));
    assert_eq!(call(&emulator, &module, "pump", Some("{\"state\": \"on\"}")).0, 404);
    assert_eq!(agent.process.terminate(), Some(0));
}

#[test]
fn the_sdks_back_end_sets_rules_in_the_twin() {
    let Some(python) = python_with_https("the SDK's back end sets rules in the twin") else { return };
    let (emulator, dir) = emulator(&["--device", "dev1", "--https-port", "443"]);
    let agent = Agent::start(&emulator, "dev1", dir.path(), LOCAL);
    let mut service = script(&python, "service_rules.py");
    service.args(["dev1", "10-pumps", PUMP]).env("SERVICE_CONNECTION_STRING", emulator.service_string());
    let service = Process::spawn(service.env("REQUESTS_CA_BUNDLE", emulator.ca_file()));
    assert_eq!(service.wait_exit().code(), Some(0), "{}", service.stderr.text());
    let answer = json(&service.stdout.wait_for("status"));
    assert_eq!((&answer["status"], &answer["problems"]), (&"applied".into(), &json!([])));
    assert!(send(&emulator, &agent, "1", "pump=on").contains("succeeded"));
    wait_for_file(Path::new(&dir.path().join("pins.json")), r#""pump":"on""#);
}

#[test]
fn hundreds_of_doubtful_rules_do_not_fill_the_log() {
    let (emulator, dir) = (Emulator::start(), dir());
    let agent = Agent::start(&emulator, "dev1", dir.path(), LOCAL);
    let rule = |number: u32| {
        format!(
            "[[rule]]\nname = \"r{number}\"\nwhen = {{ x = 1 }}\ndo = [ {{ gpio = \"pump\", set = \"on\" }} ]\n"
        )
    };
    let text = |name: u32| (0..50).map(|number| rule(50 * name + number)).collect::<String>();
    let [one, two] = [text(1), text(2)];
    let version = patch(&emulator, &texts(&[("1", Some(&one)), ("2", Some(&two))]));
    applied(&emulator, version);
    assert_eq!(agent.process.stderr.count("never runs: rule"), 20);
    assert!(agent.process.stderr.text().contains("more=79"), "{}", agent.process.stderr.text());
}
