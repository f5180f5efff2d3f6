//! Actions of the real agent: what happens to pins and programs, and what the log says about it.
//!
//! Owns: nothing that ships. Must not know: how actions are performed.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::harness::{Agent, Emulator, wait_for_file};

/// Two simulated pins whose states are in `pins.json`.
fn pins(dir: &Path) -> String {
    format!(
        r#"
        [gpio]
        backend = "simulated"
        state_file = "{}"

        [gpio.pins.led]
        line = 27
        [gpio.pins.pump]
        line = 17
        on_exit = "off"
        "#,
        dir.join("pins.json").display()
    )
}

fn is_running(pid: &str) -> bool {
    std::fs::read_to_string(format!("/proc/{}/stat", pid.trim()))
        .is_ok_and(|stat| !stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('Z')))
}

#[test]
fn a_message_switches_a_pin_and_the_end_of_the_agent_switches_it_back() {
    let (emulator, dir) = (Emulator::start(), tempfile::tempdir().unwrap());
    let rules = r#"
        [[rule]]
        name = "pump"
        when = { action = "pump", state = { one_of = ["on", "off"] } }
        do = [ { gpio = "pump", set = "{state}" } ]
    "#;
    let agent = Agent::start(&emulator, "dev1", dir.path(), &(pins(dir.path()) + rules));
    let states = dir.path().join("pins.json");
    // The agent claims pins after the inbox has said which were on. That may be after the subscription.
    wait_for_file(&states, r#"{"led":"off","pump":"off"}"#);
    emulator.send("dev1", &["--property", "action=pump", "--property", "state=on"]);
    wait_for_file(&states, r#"{"led":"off","pump":"on"}"#);
    assert_eq!(agent.process.terminate(), Some(0));
    assert_eq!(std::fs::read_to_string(&states).unwrap(), r#"{"led":"off","pump":"off"}"#);
}

#[test]
fn the_log_has_a_programs_output_with_the_rule_and_the_message_id() {
    let (emulator, dir) = (Emulator::start(), tempfile::tempdir().unwrap());
    let rules = r#"
        [[rule]]
        name = "shout"
        when = { action = "shout" }
        do = [ { shell = "tr a-z A-Z; printf '\\033[31mon stderr' >&2; exit 7" } ]
    "#;
    let agent = Agent::start(&emulator, "dev1", dir.path(), rules);
    emulator.send("dev1", &["--property", "action=shout", "--data", "hello\n", "--message-id", "m-1"]);
    let line = agent.process.stderr.wait_for("action ended");
    for part in [
        "m-1",
        "shout",
        r#"output="HELLO\n\u{1b}[31mon stderr""#,
        "failed: shell: exit code 7",
        "exit_code=7",
    ] {
        assert!(line.contains(part), "\"{part}\" is missing in {line}");
    }
}

#[test]
fn a_program_that_outstays_its_timeout_is_killed_with_its_children_and_the_next_message_is_served() {
    let (emulator, dir) = (Emulator::start(), tempfile::tempdir().unwrap());
    let pids = dir.path().join("pids");
    let rules = format!(
        r#"
        [[rule]]
        name = "stubborn"
        when = {{ action = "stubborn" }}
        timeout = "2s"
        do = [ {{ shell = "trap '' TERM; sleep 60 & echo $! $$ > {}; while :; do sleep 60; done" }} ]

        [[rule]]
        name = "echo"
        when = {{ action = "echo" }}
        do = [ {{ run = ["/bin/echo", "served"] }} ]
        "#,
        pids.display()
    );
    let agent = Agent::start(&emulator, "dev1", dir.path(), &rules);
    emulator.send("dev1", &["--property", "action=stubborn"]);
    emulator.send("dev1", &["--property", "action=echo"]);
    agent.process.stderr.wait_for("timed out: shell was stopped after 4s");
    agent.process.stderr.wait_for("served");
    let pids = std::fs::read_to_string(&pids).unwrap();
    assert_eq!(pids.split_whitespace().count(), 2);
    assert!(!pids.split_whitespace().any(is_running), "{pids} should be gone");
}

#[test]
fn sigterm_ends_the_program_in_flight_gracefully_and_leaves_pins_as_on_exit_says() {
    let (emulator, dir) = (Emulator::start(), tempfile::tempdir().unwrap());
    let (started, ended) = (dir.path().join("started"), dir.path().join("ended"));
    let rules = format!(
        r#"
        [[rule]]
        name = "long"
        when = {{ action = "long" }}
        timeout = "50s"
        do = [
            {{ gpio = "pump", set = "on" }},
            {{ shell = "trap 'echo TERM > {ended}; exit 0' TERM; sleep 60 & echo $! > {started}; wait" }},
        ]
        "#,
        started = started.display(),
        ended = ended.display()
    );
    let agent = Agent::start(&emulator, "dev1", dir.path(), &(pins(dir.path()) + &rules));
    emulator.send("dev1", &["--property", "action=long"]);
    let child = wait_for_file(&started, "\n");
    let states = dir.path().join("pins.json");
    assert_eq!(std::fs::read_to_string(&states).unwrap(), r#"{"led":"off","pump":"on"}"#);

    let asked = Instant::now();
    assert_eq!(agent.process.terminate(), Some(0));
    assert!(asked.elapsed() < Duration::from_secs(8), "it took {:?}", asked.elapsed());
    assert_eq!(std::fs::read_to_string(&ended).unwrap(), "TERM\n");
    assert!(!is_running(&child));
    assert_eq!(std::fs::read_to_string(&states).unwrap(), r#"{"led":"off","pump":"off"}"#);
    assert_eq!(agent.process.stderr.count("was stopped because the agent is stopping"), 1);
}

#[test]
fn sigterm_in_the_middle_of_a_pulse_turns_the_pin_off() {
    let (emulator, dir) = (Emulator::start(), tempfile::tempdir().unwrap());
    let rules = r#"
        [[rule]]
        name = "pulse"
        when = { action = "pulse" }
        timeout = "50s"
        do = [ { gpio = "led", pulse = "40s" } ]
    "#;
    let kept = pins(dir.path()).replace("line = 27", "line = 27\non_exit = \"keep\"");
    let agent = Agent::start(&emulator, "dev1", dir.path(), &(kept + rules));
    emulator.send("dev1", &["--property", "action=pulse"]);
    let states = dir.path().join("pins.json");
    wait_for_file(&states, r#""led":"on""#);
    assert_eq!(agent.process.terminate(), Some(0));
    assert_eq!(std::fs::read_to_string(&states).unwrap(), r#"{"led":"off","pump":"off"}"#);
}

#[cfg(feature = "gpio")]
#[test]
fn a_gpio_chip_that_is_missing_ends_the_agent_with_a_sentence() {
    let (emulator, dir) = (Emulator::start(), tempfile::tempdir().unwrap());
    let rest = "[gpio]\nbackend = \"cdev\"\nchip = \"/dev/does-not-exist\"\n[gpio.pins.pump]\nline = 17\n";
    let string = emulator.device_string("dev1");
    let agent = Agent::spawn(&string, &emulator.ca_file(), dir.path(), rest);
    assert_eq!(agent.process.wait_exit().code(), Some(1));
    assert_eq!(
        agent.process.stderr.all().last().unwrap(),
        "c2d-agent: GPIO chip /dev/does-not-exist does not exist: check `chip` in [gpio] against `gpiodetect`, or map \
         the device into the container with --device"
    );
}
