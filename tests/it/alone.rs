//! Only one agent has an inbox. A second agent ends before it touches a pin or the hub. An agent that starts while
//! another one closes waits for it.
//!
//! Must not know: how the inbox is locked, except the lock file, which others could leave there.

use std::fs::{self, File};
use std::os::unix::fs::{chown, symlink};
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use rustix::process::Signal;

use crate::harness::{Agent, Emulator, Process, binary, is_root_or_skips, wait_for_file, write_config};
use crate::places::{open_dir, set_mode, without_rights};

/// A lamp whose state is in `pins.json`, and a slow rule.
const LAMP: &str = "[gpio]\nbackend = \"simulated\"\nstate_file = \"pins.json\"\n[gpio.pins.lamp]\nline = 1\n\
    [[rule]]\nname = \"lamp\"\nwhen = { action = \"lamp\" }\ndo = [ { gpio = \"lamp\", set = \"on\" } ]\n\
    [[rule]]\nname = \"slow\"\nwhen = { action = \"slow\" }\ndo = [ { shell = \"echo > $C2D_PROPERTY_FILE; exec sleep 20\" } ]\n";

fn dir() -> tempfile::TempDir {
    tempfile::tempdir().expect("a directory")
}

/// `run` with this configuration file.
fn command(emulator: &Emulator, config: &Path) -> Command {
    let mut command = binary();
    command.arg("run").arg("-c").arg(config);
    command.env("C2D_DEVICE_CONNECTION_STRING", emulator.device_string("dev1"));
    command.env("C2D_CA_FILE", emulator.ca_file());
    command
}

fn second(emulator: &Emulator, dir: &Path) -> Process {
    Process::spawn(&mut command(emulator, &dir.join("config.toml")))
}

#[test]
fn a_second_agent_ends_before_it_touches_a_pin_or_the_hub_and_names_the_first() {
    let (emulator, dir) = (Emulator::start(), dir());
    let first = Agent::start(&emulator, "dev1", dir.path(), LAMP);
    emulator.send("dev1", &["--property", "action=lamp", "--wait=20s"]);
    let pins = dir.path().join("pins.json");
    wait_for_file(&pins, r#""lamp":"on""#);
    let written = fs::metadata(&pins).and_then(|pins| pins.modified()).expect("a time");

    // All name the same inbox: by its path, by another spelling, and by a link. They run at once, because each
    // waits ten seconds.
    let (elsewhere, inbox) = (self::dir(), dir.path().join("inbox.journal"));
    symlink(&inbox, elsewhere.path().join("link.journal")).expect("a link");
    symlink(dir.path(), elsewhere.path().join("way")).expect("a link");
    let others = ["link.journal", "way/./inbox.journal"].map(|path| {
        let config = elsewhere.path().join(format!("{}.toml", path.len()));
        let text = LAMP.replace("pins.json", &pins.display().to_string());
        fs::write(&config, format!("{text}[inbox]\npath = \"{path}\"\nsocket = \"{}.sock\"\n", path.len()))
            .expect("written");
        command(&emulator, &config)
    });
    let seconds: Vec<Process> = std::iter::once(second(&emulator, dir.path()))
        .chain(others.into_iter().map(|mut other| Process::spawn(&mut other)))
        .collect();
    for second in &seconds {
        let code = second.wait_exit().code();
        let told = second.stderr.text();
        assert_eq!(code, Some(1), "{told}");
        assert!(told.contains(&format!("waiting up to 10 s for process {}", first.process.id())), "{told}");
        let last = second.stderr.all().pop().unwrap_or_default();
        let sentence = format!(
            "journal is in use by process {}: end that process first, or give this agent a device and an [inbox] path of its own",
            first.process.id()
        );
        assert!(last.starts_with("c2d-agent: the inbox ") && last.ends_with(&sentence), "{last}");
        assert!(!told.contains("connecting") && !told.contains("switched"), "{told}");
    }

    assert_eq!(
        fs::metadata(&pins).and_then(|pins| pins.modified()).expect("a time"),
        written,
        "no pin was set"
    );
    assert_eq!(fs::read_to_string(&pins).expect("there"), r#"{"lamp":"on"}"#);
    emulator.send("dev1", &["--property", "action=lamp", "--wait=20s"]);
    let log = &first.process.stderr;
    assert_eq!((log.count("subscribed"), log.count("not connected")), (1, 0), "{}", log.text());
    assert_eq!(first.process.terminate(), Some(0));
}

#[test]
fn an_agent_that_comes_while_another_is_closing_waits_for_it() {
    let (emulator, dir) = (Emulator::start(), dir());
    let first = Agent::start(&emulator, "dev1", dir.path(), LAMP);
    let started = dir.path().join("started");
    emulator
        .send("dev1", &["--property", "action=slow", "--property", &format!("file={}", started.display())]);
    wait_for_file(&started, "\n");
    // The first agent gives its program two seconds to end by itself.
    first.process.signal(Signal::TERM);
    first.process.stderr.wait_for("waiting for the actions in flight");
    let second = second(&emulator, dir.path());
    second.stderr.wait_for(&format!("waiting up to 10 s for process {}", first.process.id()));
    assert_eq!(second.stderr.count("connecting"), 0);
    second.stderr.wait_for("subscribed");
    assert!(!first.process.is_running(), "not even its pins and its connection are in the way");
    assert_eq!(first.process.wait_exit().code(), Some(0));
    assert_eq!((second.stderr.count("waiting up to"), second.stderr.count("not connected")), (1, 0));
    assert_eq!(second.terminate(), Some(0));
}

#[test]
fn a_signal_ends_an_agent_that_waits_for_another() {
    let (emulator, dir) = (Emulator::start(), dir());
    let first = Agent::start(&emulator, "dev1", dir.path(), LAMP);
    let second = second(&emulator, dir.path());
    second.stderr.wait_for("waiting up to 10 s");
    let began = Instant::now();
    assert_eq!(second.terminate(), Some(0));
    assert!(began.elapsed().as_secs() < 5, "at once, and not when the wait is over");
    assert!(first.process.is_running());
}

#[test]
fn what_a_dead_agent_left_holds_nobody_up_and_who_has_the_lock_for_a_moment_is_waited_for() {
    let (emulator, dir) = (Emulator::start(), dir());
    let first = Agent::start(&emulator, "dev1", dir.path(), LAMP);
    first.process.kill();
    let lock = dir.path().join("inbox.journal.lock");
    let left = fs::read_to_string(&lock).expect("a lock is left");
    assert!(left.starts_with(&format!("{} ", first.process.id())), "{left}");
    // The lock file names a process id that now belongs to another process.
    fs::write(&lock, left.replace(&first.process.id().to_string(), &std::process::id().to_string()))
        .expect("written");
    let agent = second(&emulator, dir.path());
    agent.stderr.wait_for("subscribed");
    assert_eq!(agent.stderr.count("waiting up to"), 0);
    assert_eq!(agent.terminate(), Some(0));

    // The lock is like that of a `c2d-agent inbox export` whose process is not in this container.
    fs::write(&lock, "77 pid:[1]\n").expect("written");
    let held = File::open(&lock).expect("open");
    held.lock().expect("locked");
    let agent = second(&emulator, dir.path());
    agent.stderr.wait_for("waiting up to 10 s for process 77 of another container");
    drop(held);
    agent.stderr.wait_for("subscribed");
    assert_eq!(agent.terminate(), Some(0));
}

#[test]
fn a_lock_that_is_another_users_ends_the_agent_whoever_is_root() {
    if !is_root_or_skips("a lock of another user ends the agent") {
        return;
    }
    let (emulator, dir) = (Emulator::start(), open_dir());
    write_config(dir.path(), LAMP);
    let lock = dir.path().join("inbox.journal.lock");
    File::create(&lock).expect("made");
    set_mode(&lock, 0o600);
    chown(&lock, Some(65533), None).expect("given away");
    let told = |agent: &Process| {
        assert_eq!(agent.wait_exit().code(), Some(1), "{}", agent.stderr.text());
        assert_eq!(agent.stderr.count("connecting"), 0);
        agent.stderr.all().pop().unwrap_or_default()
    };
    let place = lock.display();
    assert_eq!(
        told(&second(&emulator, dir.path())),
        format!(
            "c2d-agent: the lock {place} belongs to user 65533, so it is not used: run chown root {place}, or run the agent as that \
             user"
        )
    );
    let ca_file = dir.path().join("ca.pem");
    fs::copy(emulator.ca_file(), &ca_file).expect("copied");
    set_mode(&ca_file, 0o644);
    let mut command = command(&emulator, &dir.path().join("config.toml"));
    let test = "a lock that another user may not open";
    let Some(mut command) = without_rights(test, command.env("C2D_CA_FILE", &ca_file)) else { return };
    let last = told(&Process::spawn(&mut command));
    let sentence = format!("the lock {place} cannot be opened by user 65534, so");
    assert!(
        last.contains(&sentence) && last.contains("it is not known whether another agent runs"),
        "{last}"
    );
}
