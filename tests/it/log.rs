//! A log that cannot be written or is not read: a full disk, a closed pipe, a pipe that is never emptied. Messages go
//! on.
//!
//! Owns: standard errors that do not work. Must not know: what is logged, except the line about lost lines.

use std::fs::File;
use std::io::{PipeReader, PipeWriter, Write as _};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

use crate::harness::{Emulator, Lines, Process, binary, wait_for_file, write_config};

fn dir() -> tempfile::TempDir {
    tempfile::tempdir().expect("a directory")
}

/// The agent as a command. Its pins: `led`, switched by a rule, off at the end; `alarm`, on at the end. The rule `slow`
/// takes longer than the agent waits at its end.
fn agent(emulator: &Emulator, dir: &Path) -> Command {
    let began = dir.join("began");
    let rules = format!(
        "[gpio]\nbackend = \"simulated\"\nstate_file = \"pins.json\"\n\
         [gpio.pins.led]\nline = 1\n[gpio.pins.alarm]\nline = 2\non_exit = \"on\"\n\
         [[rule]]\nname = \"led\"\nwhen = {{ action = \"led\" }}\ndo = [ {{ gpio = \"led\", set = \"on\" }} ]\n\
         [[rule]]\nname = \"slow\"\nwhen = {{ action = \"slow\" }}\n\
         do = [ {{ shell = \"echo began > {}; sleep 30\" }} ]\n",
        began.display()
    );
    let mut command = binary();
    command.arg("run").arg("-c").arg(write_config(dir, &rules));
    command.env("C2D_DEVICE_CONNECTION_STRING", emulator.device_string("dev1"));
    command.env("C2D_CA_FILE", emulator.ca_file());
    command
}

/// A full pipe.
pub(crate) fn full_pipe() -> (PipeReader, PipeWriter) {
    let (reader, mut writer) = std::io::pipe().expect("a pipe");
    let flags = fcntl_getfl(&writer).expect("flags");
    fcntl_setfl(&writer, flags | OFlags::NONBLOCK).expect("set");
    for piece in [4096, 1] {
        while writer.write(&vec![b'#'; piece]).is_ok() {}
    }
    fcntl_setfl(&writer, flags).expect("set");
    (reader, writer)
}

fn switch_led(emulator: &Emulator, dir: &Path) {
    emulator.send("dev1", &["--property", "action=led", "--wait=20s"]);
    wait_for_file(&dir.join("pins.json"), "\"led\":\"on\"");
}

/// Sends SIGTERM while an action runs. The action must be ended, and the pins must be as `on_exit` says, within the
/// documented time.
fn ends_in_good_order(agent: &Process, emulator: &Emulator, dir: &Path) {
    emulator.send("dev1", &["--property", "action=slow"]);
    wait_for_file(&dir.join("began"), "began");
    let asked = Instant::now();
    assert_eq!(agent.terminate(), Some(0));
    assert!(asked.elapsed() < Duration::from_secs(8), "it took {:?}", asked.elapsed());
    let pins = std::fs::read_to_string(dir.join("pins.json")).expect("the states");
    assert!(pins.contains("\"led\":\"off\"") && pins.contains("\"alarm\":\"on\""), "{pins}");
}

#[test]
fn a_log_on_a_full_disk_keeps_no_message_from_its_rule() {
    let (emulator, dir) = (Emulator::start(), dir());
    let full = File::options().write(true).open("/dev/full").expect("the device");
    let agent = Process::spawn_with_stderr(&mut agent(&emulator, dir.path()), full);
    switch_led(&emulator, dir.path());
    ends_in_good_order(&agent, &emulator, dir.path());
}

#[test]
fn a_log_into_a_closed_pipe_keeps_no_message_from_its_rule() {
    let (emulator, dir) = (Emulator::start(), dir());
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let agent = Process::spawn_with_stderr(&mut agent(&emulator, dir.path()), writer);
    switch_led(&emulator, dir.path());
    ends_in_good_order(&agent, &emulator, dir.path());
}

#[test]
fn a_log_that_nobody_reads_keeps_no_message_from_its_rule() {
    let (emulator, dir) = (Emulator::start(), dir());
    let (_reader, writer) = full_pipe();
    let agent = Process::spawn_with_stderr(&mut agent(&emulator, dir.path()), writer);
    switch_led(&emulator, dir.path());
    ends_in_good_order(&agent, &emulator, dir.path());
}

#[test]
fn a_mistake_that_nobody_reads_ends_the_agent_with_its_exit_code() {
    let dir = dir();
    let config = write_config(dir.path(), "nonsense = 1\n");
    let (_reader, writer) = full_pipe();
    let agent = Process::spawn_with_stderr(binary().arg("run").arg("-c").arg(config), writer);
    let begun = Instant::now();
    assert_eq!(agent.wait_exit().code(), Some(2));
    assert!(begun.elapsed() < Duration::from_secs(8), "it took {:?}", begun.elapsed());
}

#[test]
fn a_log_that_is_read_late_has_what_there_was_room_for_and_says_how_much_is_missing() {
    let (emulator, dir) = (Emulator::start(), dir());
    // Each rule but the first causes a warning, and there are more warnings than the queue has room for.
    let long = "x".repeat(80);
    let rule =
        |n| format!("[[rule]]\nname = \"{n} {long}\"\nwhen = \"any\"\ndo = [ {{ shell = \"true\" }} ]\n");
    let rules: String = (0..=5_000).map(rule).collect();
    let (reader, writer) = full_pipe();
    let mut command = agent(&emulator, dir.path());
    write_config(dir.path(), &rules);
    let agent = Process::spawn_with_stderr(&mut command, writer);
    emulator.send("dev1", &["--message-id", "before", "--wait=20s"]);

    let log = Lines::follow(reader);
    let line = log.wait_for("log lines were lost");
    let lost = line.split_once("lines=").and_then(|(_, lost)| lost.trim().parse().ok());
    let lost: usize = lost.unwrap_or_else(|| panic!("no number in {line}"));
    let warnings = log.count("never runs: rule");
    assert_eq!(log.count("warning:"), 0, "the line says WARN already");
    assert!(
        warnings < 5_000 && warnings + lost > 5_000,
        "{warnings} were read and {lost} are said to be lost"
    );
    emulator.send("dev1", &["--message-id", "after", "--wait=20s"]);
    log.wait_for("message_id=\"after\"");
    assert_eq!(log.count("log lines were lost"), 1, "it is said once");
    assert_eq!(agent.terminate(), Some(0));
    log.wait_for("stopping");
}
