//! The agent's guards, from the message to the pin: interlocks, `on_disconnect`, and guards across a crash.

use std::path::Path;

use crate::harness::{Agent, Emulator, wait_for_file};

/// Pins `open` and `close`, interlocked; a rule sets the one that a message names.
const GATE: &str = "[gpio]\nbackend = \"simulated\"\nstate_file = \"pins.json\"\ninterlock = [[\"open\", \"close\"]]\n\
    [gpio.pins.open]\nline = 1\n[gpio.pins.close]\nline = 2\n\
    [[rule]]\nname = \"open\"\nwhen = { pin = \"open\", state = { present = true } }\n\
    do = [ { gpio = \"open\", set = \"{state}\" } ]\n\
    [[rule]]\nname = \"close\"\nwhen = { pin = \"close\", state = { present = true } }\n\
    do = [ { gpio = \"close\", set = \"{state}\" } ]\n";

fn send(emulator: &Emulator, id: &str, properties: &[&str]) {
    let mut arguments = vec!["--message-id", id];
    for property in properties {
        arguments.extend(["--property", *property]);
    }
    emulator.send("dev1", &arguments);
}

fn wait_for_outcome(agent: &Agent, id: &str) -> String {
    let id = format!("message_id=\"{id}\"");
    agent.process.stderr.wait_until(&id, |lines| {
        let is_outcome = |line: &&String| line.contains(&id) && line.contains("outcome=");
        lines.iter().find(is_outcome).cloned()
    })
}

fn pins(dir: &Path) -> String {
    std::fs::read_to_string(dir.join("pins.json")).expect("the pins' states")
}

#[test]
fn a_message_cannot_turn_on_an_interlocked_pin() {
    let emulator = Emulator::start();
    let dir = tempfile::tempdir().expect("a directory");
    let agent = Agent::start(&emulator, "dev1", dir.path(), GATE);
    send(&emulator, "1", &["pin=open", "state=on"]);
    send(&emulator, "2", &["pin=close", "state=toggle"]);
    let line = wait_for_outcome(&agent, "2");
    assert!(line.contains("pin close cannot be turned on while pin open is: they are interlocked"), "{line}");
    assert_eq!(pins(dir.path()), r#"{"close":"off","open":"on"}"#);
    send(&emulator, "3", &["pin=open", "state=off"]);
    send(&emulator, "4", &["pin=close", "state=on"]);
    assert!(wait_for_outcome(&agent, "4").contains("succeeded"));
    assert_eq!(pins(dir.path()), r#"{"close":"on","open":"off"}"#);
}

#[test]
fn a_pin_takes_its_state_when_the_hub_is_away_and_obeys_again_when_it_is_back() {
    let state = tempfile::tempdir().expect("a directory");
    let mut emulator = Emulator::start_in(state.path(), "0", "0", &["--device", "dev1"]);
    let dir = tempfile::tempdir().expect("a directory");
    let text = GATE.replace("line = 1\n", "line = 1\non_disconnect = { state = \"off\", after = \"1s\" }\n");
    let agent = Agent::start(&emulator, "dev1", dir.path(), &text);
    send(&emulator, "1", &["pin=open", "state=on"]);
    wait_for_file(&dir.path().join("pins.json"), "\"open\":\"on\"");
    let (mqtt, amqp) = (emulator.mqtt.port().to_string(), emulator.amqp.port().to_string());
    emulator.process.kill();
    let line = agent.process.stderr.wait_for("the hub is unreachable");
    assert!(
        line.contains("pin=\"open\"") && line.contains("state=off") && line.contains("after=1s"),
        "{line}"
    );
    assert_eq!(pins(dir.path()), r#"{"close":"off","open":"off"}"#);
    emulator = Emulator::start_in(state.path(), &mqtt, &amqp, &["--device", "dev1"]);
    agent.process.stderr.wait_for_nth("subscribed", 2);
    send(&emulator, "2", &["pin=open", "state=on"]);
    wait_for_file(&dir.path().join("pins.json"), "\"open\":\"on\"");
}

#[test]
fn max_on_and_min_interval_hold_across_a_crash() {
    let emulator = Emulator::start();
    let dir = tempfile::tempdir().expect("a directory");
    let text = |max_on: &str| {
        GATE.replace("line = 1\n", &format!("line = 1\ninitial = \"on\"\nmax_on = \"{max_on}\"\n"))
            .replace("name = \"open\"\n", "name = \"open\"\nmin_interval = \"1h\"\n")
    };
    let agent = Agent::start(&emulator, "dev1", dir.path(), &text("1h"));
    wait_for_file(&dir.path().join("pins.json"), "\"open\":\"on\"");
    send(&emulator, "1", &["pin=open", "state=on"]);
    assert!(wait_for_outcome(&agent, "1").contains("succeeded"));
    send(&emulator, "2", &["pin=open", "state=off"]);
    assert!(wait_for_outcome(&agent, "2").contains("its min_interval is 1h"));
    // The inbox writes in order: when this outcome is told, the times of the pin are on disk.
    send(&emulator, "3", &["pin=close", "state=off"]);
    assert!(wait_for_outcome(&agent, "3").contains("succeeded"));
    agent.process.kill();

    // The pin was on for longer than this limit, so the agent does not turn it on at all.
    let agent = Agent::start(&emulator, "dev1", dir.path(), &text("10ms"));
    wait_for_file(&dir.path().join("pins.json"), "\"open\":\"off\"");
    assert_eq!(agent.process.stderr.count("it was on for max_on before the restart"), 1);
    assert_eq!(agent.process.stderr.count("turned pin off: it was on for max_on"), 0);
    send(&emulator, "4", &["pin=open", "state=on"]);
    assert!(wait_for_outcome(&agent, "4").contains("its min_interval is 1h"));
}

#[test]
fn a_pin_that_on_exit_turned_off_has_all_of_max_on_at_the_next_start() {
    let emulator = Emulator::start();
    let dir = tempfile::tempdir().expect("a directory");
    let pin = |max_on: &str| format!("line = 1\ninitial = \"on\"\nmax_on = \"{max_on}\"\n");
    let agent = Agent::start(&emulator, "dev1", dir.path(), &GATE.replace("line = 1\n", &pin("1h")));
    wait_for_file(&dir.path().join("pins.json"), "\"open\":\"on\"");
    assert_eq!(agent.process.terminate(), Some(0));
    assert_eq!(pins(dir.path()), r#"{"close":"off","open":"off"}"#);
    // The limit is shorter than the time for which the pin was on.
    let agent = Agent::start(&emulator, "dev1", dir.path(), &GATE.replace("line = 1\n", &pin("10ms")));
    agent.process.stderr.wait_for("turned pin off: it was on for max_on");
    assert_eq!(agent.process.stderr.count("it was on for max_on before the restart"), 0);
}
