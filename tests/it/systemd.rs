//! What a service manager gets: the messages on NOTIFY_SOCKET and their order. Also signals while the agent starts.

use std::net::TcpListener;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::harness::{Agent, DEADLINE, Emulator, Process, binary, write_config};

const RULES: &str = "[gpio]\nbackend = \"simulated\"\nstate_file = \"pins.json\"\n[gpio.pins.pump]\nline = 1\n\
    initial = \"on\"\n[[rule]]\nname = \"pump\"\nwhen = \"any\"\ndo = [ { gpio = \"pump\", set = \"on\" } ]\n";

/// The service manager's end of the socket.
struct Manager(UnixDatagram);

impl Manager {
    fn listen(dir: &Path) -> Self {
        let socket = UnixDatagram::bind(dir.join("notify")).expect("bound");
        socket.set_read_timeout(Some(DEADLINE)).expect("set");
        Self(socket)
    }

    /// The next message other than a beat of the watchdog or a status.
    fn next(&self) -> String {
        loop {
            let message = self.receive().expect("a message in time");
            if !message.starts_with("WATCHDOG=") && !message.starts_with("STATUS=") {
                return message;
            }
        }
    }

    /// Waits for a status that contains `part`, and fails on any other message except beats.
    fn status(&self, part: &str) {
        loop {
            let message = self.receive().expect("a message in time");
            if message.starts_with("STATUS=") && message.contains(part) {
                return;
            }
            assert!(
                message.starts_with("STATUS=") || message.starts_with("WATCHDOG="),
                "{message} came before the status {part}"
            );
        }
    }

    fn receive(&self) -> Option<String> {
        let mut bytes = [0; 4096];
        let count = self.0.recv(&mut bytes).ok()?;
        Some(String::from_utf8_lossy(&bytes[..count]).into_owned())
    }
}

fn start(dir: &Path, connection_string: &str, ca_file: &Path, environment: &[(&str, &str)]) -> Agent {
    let config = write_config(dir, RULES);
    let mut command = binary();
    command.arg("run").arg("-c").arg(&config);
    command.env("C2D_DEVICE_CONNECTION_STRING", connection_string).env("C2D_CA_FILE", ca_file);
    command.env("NOTIFY_SOCKET", dir.join("notify")).envs(environment.iter().copied());
    Agent { process: Process::spawn(&mut command), dir: dir.to_owned() }
}

fn dir() -> tempfile::TempDir {
    tempfile::tempdir().expect("a directory")
}

#[test]
fn ready_comes_with_the_first_subscription_and_each_step_after_it_in_order() {
    let (emulator, dir) = (Emulator::start(), dir());
    let manager = Manager::listen(dir.path());
    let agent = start(dir.path(), &emulator.device_string("dev1"), &emulator.ca_file(), &[]);
    manager.status("connecting to localhost");
    assert_eq!(manager.next(), "READY=1\n");
    agent.process.stderr.wait_for("subscribed");
    manager.status("as dev1; 1 rule, 1 pin");
    agent.process.signal(Signal::HUP);
    let reloading = manager.next();
    let time = reloading.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").expect(&reloading);
    assert!(time.trim_end().parse::<u64>().is_ok_and(|time| time > 0), "{reloading}");
    assert_eq!(manager.next(), "READY=1\n");
    // A refused reload ends in the same way, and the status says so.
    write_config(dir.path(), &RULES.replace("when", "whenn"));
    agent.process.signal(Signal::HUP);
    assert!(manager.next().starts_with("RELOADING=1\n"));
    assert_eq!(manager.next(), "READY=1\n");
    manager.status("the last reload was refused (2 problems): see the journal");
    agent.process.signal(Signal::TERM);
    assert_eq!(manager.next(), "STOPPING=1\n");
    assert_eq!(agent.process.wait_exit().code(), Some(0));
}

#[test]
fn an_agent_without_a_hub_is_not_ready_and_says_why() {
    let dir = dir();
    let emulator = Emulator::start();
    let (string, ca_file) = (emulator.device_string("dev1"), dir.path().join("ca.pem"));
    std::fs::copy(emulator.ca_file(), &ca_file).expect("copied");
    drop(emulator);
    let manager = Manager::listen(dir.path());
    let agent = start(dir.path(), &string, &ca_file, &[]);
    manager.status("not connected, trying again: ");
    // A reload must not make the agent ready.
    agent.process.signal(Signal::HUP);
    agent.process.stderr.wait_for("applied the new configuration");
    agent.process.signal(Signal::TERM);
    assert_eq!(manager.next(), "STOPPING=1\n");
    assert_eq!(agent.process.wait_exit().code(), Some(0));
}

#[test]
fn the_watchdog_is_fed_while_the_loop_goes_round_and_not_while_it_is_stuck() {
    let (emulator, dir) = (Emulator::start(), dir());
    let manager = Manager::listen(dir.path());
    let environment = [("WATCHDOG_USEC", "400000")];
    let agent = start(dir.path(), &emulator.device_string("dev1"), &emulator.ca_file(), &environment);
    let beats = |count| {
        let begin = Instant::now();
        let mut seen = 0;
        while seen < count {
            seen += usize::from(manager.receive().expect("a beat") == "WATCHDOG=1\n");
        }
        begin.elapsed()
    };
    beats(1);
    assert!(beats(5) >= Duration::from_millis(700), "a beat each 200 ms, not more");
    agent.process.signal(Signal::STOP);
    manager.0.set_read_timeout(Some(Duration::from_millis(800))).expect("set");
    // Earlier messages may still arrive; then there is silence.
    let silent = (0..5).any(|_| manager.receive().is_none());
    assert!(silent, "a process that stands still feeds nothing");
    agent.process.signal(Signal::CONT);
    manager.0.set_read_timeout(Some(DEADLINE)).expect("set");
    beats(1);
    assert_eq!(agent.process.terminate(), Some(0));
}

#[test]
fn a_manager_that_reads_nothing_holds_nothing_up() {
    let (emulator, dir) = (Emulator::start(), dir());
    let _manager = Manager::listen(dir.path());
    let environment = [("WATCHDOG_USEC", "20000")];
    let agent = start(dir.path(), &emulator.device_string("dev1"), &emulator.ca_file(), &environment);
    agent.process.stderr.wait_for("systemd does not read messages");
    let sent = emulator.send("dev1", &["--property", "a=b", "--wait"]);
    assert!(sent.status.success(), "{sent:?}");
    let begin = Instant::now();
    assert_eq!(agent.process.terminate(), Some(0));
    assert!(begin.elapsed() < Duration::from_secs(8), "it took {:?}", begin.elapsed());
}

#[test]
fn sigterm_while_the_agent_starts_leaves_pins_safe() {
    let (emulator, dir) = (Emulator::start(), dir());
    let string = emulator.device_string("dev1");
    for round in 0..30 {
        let agent = Agent::spawn(&string, &emulator.ca_file(), dir.path(), RULES);
        // The instant changes each time, from before the start of the program to after its subscription.
        std::thread::park_timeout(Duration::from_micros(500 * round));
        agent.process.signal(Signal::TERM);
        let status = agent.process.wait_exit();
        let by_signal = std::os::unix::process::ExitStatusExt::signal(&status) == Some(15);
        assert!(status.code() == Some(0) || by_signal, "{status:?}: {}", agent.process.stderr.text());
        let pins = std::fs::read_to_string(dir.path().join("pins.json")).unwrap_or_default();
        assert!(["", r#"{"pump":"off"}"#].contains(&pins.as_str()), "round {round}: {pins}");
    }
}

#[test]
fn sigterm_during_the_first_connect_ends_the_agent() {
    let dir = dir();
    let emulator = Emulator::start();
    // This server takes the connection and sends nothing.
    let silent = TcpListener::bind("127.0.0.1:0").expect("bound");
    let port = silent.local_addr().expect("an address").port().to_string();
    let string = emulator.device_string("dev1").replace(&emulator.mqtt.port().to_string(), &port);
    let agent = Agent::spawn(&string, &emulator.ca_file(), dir.path(), RULES);
    let (_connection, _) = silent.accept().expect("a connection");
    let begin = Instant::now();
    assert_eq!(agent.process.terminate(), Some(0));
    assert!(begin.elapsed() < Duration::from_secs(8), "it took {:?}", begin.elapsed());
    let pins = std::fs::read_to_string(dir.path().join("pins.json")).expect("claimed and left");
    assert_eq!(pins, r#"{"pump":"off"}"#);
}
