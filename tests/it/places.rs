//! Places that the agent cannot use: directories without the right to write, missing secrets, ports and socket paths
//! that are in use. The agent names each with a remedy. If messages do not need the place, they go on.
//!
//! Owns: users without rights, also for other tests. Must not know: full or broken disks (`traps`), logs (`log`).

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;

use crate::harness::{Agent, Emulator, Process, binary, program, run, skip, write_config};

const LED: &str = "[gpio]\nbackend = \"simulated\"\n[gpio.pins.led]\nline = 1\n\
                   [[rule]]\nname = \"led\"\nwhen = { action = \"led\" }\ndo = [ { gpio = \"led\", set = \"on\" } ]\n";

/// A directory that every user can read.
pub(crate) fn open_dir() -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a directory");
    set_mode(dir.path(), 0o755);
    dir
}

pub(crate) fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("permissions");
}

/// The same command, run by a user without rights. `None` if that is not possible; the test is then skipped.
pub(crate) fn without_rights(test: &str, command: &Command) -> Option<Command> {
    let mut plain = if rustix::process::geteuid().is_root() {
        let Some(setpriv) = program("setpriv") else {
            skip(test, "setpriv is not installed");
            return None;
        };
        let mut setpriv = Command::new(setpriv);
        setpriv.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"]).arg(command.get_program());
        setpriv
    } else {
        Command::new(command.get_program())
    };
    plain.args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => plain.env(name, value),
            None => plain.env_remove(name),
        };
    }
    // The checkout may be in a home directory that other users may not enter.
    let mut version = Command::new(plain.get_program());
    version
        .args(plain.get_args().take_while(|argument| *argument != "run" && *argument != "doctor"))
        .arg("--version");
    if !run(&mut version).status.success() {
        skip(test, "the program stands where another user cannot start it");
        return None;
    }
    Some(plain)
}

/// `run` in `dir`, with the emulator's connection string and root.
fn agent(emulator: &Emulator, dir: &Path, config: &str) -> Command {
    let ca_file = dir.join("ca.pem");
    fs::copy(emulator.ca_file(), &ca_file).expect("copied");
    set_mode(&ca_file, 0o644);
    let mut command = binary();
    command.arg("run").arg("-c").arg(write_config(dir, config));
    command.env("C2D_DEVICE_CONNECTION_STRING", emulator.device_string("dev1")).env("C2D_CA_FILE", ca_file);
    command
}

#[test]
fn a_state_directory_that_may_not_be_written_is_named_and_messages_wait_at_the_hub_until_it_may() {
    let test = "a state directory that may not be written is named";
    let (emulator, dir) = (Emulator::start(), open_dir());
    let state = dir.path().join("state");
    fs::create_dir(&state).expect("a directory");
    set_mode(&state, 0o555);
    let config = format!("[inbox]\npath = \"state/inbox.journal\"\n{LED}");
    let Some(mut command) = without_rights(test, &agent(&emulator, dir.path(), &config)) else { return };
    let agent = Process::spawn(&mut command);
    let line = agent.stderr.wait_for("inbox.journal");
    assert!(line.contains(&state.display().to_string()) && line.contains("ermission denied"), "{line}");
    assert!(line.contains("give the file and its directory to the user of the agent"), "a remedy: {line}");
    agent.stderr.wait_for("subscribed");
    emulator.send("dev1", &["--property", "action=led", "--message-id", "m-1"]);
    assert!(agent.is_running());
    assert_eq!(agent.stderr.count("action ended"), 0, "nothing is done that is not recorded");
    set_mode(&state, 0o777);
    agent.stderr.wait_for("action ended");
    assert_eq!(agent.terminate(), Some(0));
}

#[test]
fn a_secret_that_is_missing_empty_or_not_to_be_read_ends_the_agent_as_a_mistake_of_the_configuration() {
    let (emulator, dir) = (Emulator::start(), open_dir());
    let secret = dir.path().join("device.connection-string");
    let config = format!("[device]\nconnection_string_file = \"device.connection-string\"\n{LED}");
    let told = |command: &mut Command| {
        let output = run(command.env_remove("C2D_DEVICE_CONNECTION_STRING"));
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{text}");
        assert!(text.contains("config.toml:2:26"), "{text}");
        assert!(text.contains(&secret.display().to_string()), "{text}");
        text
    };
    let mut command = agent(&emulator, dir.path(), &config);
    let text = told(&mut command);
    assert!(text.contains("there is no such file"), "{text}");
    fs::write(&secret, "\n").expect("written");
    let text = told(&mut command);
    assert!(text.contains("empty"), "{text}");
    fs::write(&secret, emulator.device_string("dev1")).expect("written");
    set_mode(&secret, 0o000);
    let Some(mut command) = without_rights("a secret that may not be read is named", &command) else {
        return;
    };
    let text = told(&mut command);
    let sentence =
        "permission denied to user 65534, who runs this: let that user read it, or run this as its owner";
    assert!(!rustix::process::geteuid().is_root() || text.contains(sentence), "{text}");
}

#[test]
fn a_port_that_somebody_else_has_ends_the_emulator_with_the_option_to_change() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = taken.local_addr().expect("an address").port().to_string();
    for (option, protocol) in [("--mqtt-port", "MQTT"), ("--amqp-port", "AMQP"), ("--https-port", "HTTPS")] {
        let dir = tempfile::tempdir().expect("a directory");
        let mut command = binary();
        command.args(["emulator", "--device", "dev1", "--state-dir"]).arg(dir.path().join("state"));
        for other in ["--mqtt-port", "--amqp-port", "--https-port"] {
            command.args([other, if other == option { &port } else { "0" }]);
        }
        let output = run(&mut command);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{text}");
        for part in [&format!("127.0.0.1:{port}"), protocol, "the port is in use", option] {
            assert!(text.contains(part), "no {part} in: {text}");
        }
    }
}

#[test]
fn a_file_where_the_control_socket_belongs_is_named_and_left_alone_and_messages_go_on() {
    let (emulator, dir) = (Emulator::start(), open_dir());
    let socket = dir.path().join("inbox.sock");
    fs::write(&socket, "somebody's").expect("written");
    let agent = Agent::start(&emulator, "dev1", dir.path(), LED);
    let line = agent.process.stderr.wait_for("cannot reach this agent");
    let sentence = format!("{} is not a socket: move that file away", socket.display());
    assert!(line.contains(&sentence), "{line}");
    emulator.send("dev1", &["--property", "action=led", "--wait=20s"]);
    assert_eq!(agent.process.terminate(), Some(0));
    assert_eq!(fs::read_to_string(&socket).expect("a file"), "somebody's");
}

#[test]
fn a_control_socket_that_another_program_has_is_named_and_left_alone_and_messages_go_on() {
    let (emulator, dir) = (Emulator::start(), open_dir());
    let socket = dir.path().join("inbox.sock");
    let other = UnixListener::bind(&socket).expect("bound");
    let agent = Agent::start(&emulator, "dev1", dir.path(), LED);
    let line = agent.process.stderr.wait_for("cannot reach this agent");
    assert!(line.contains(&format!("{}", socket.display())), "{line}");
    emulator.send("dev1", &["--property", "action=led", "--wait=20s"]);
    assert_eq!(agent.process.terminate(), Some(0));
    assert!(socket.exists(), "it is the other's");
    drop(other);
}

#[test]
fn a_file_of_pin_states_that_cannot_be_written_is_named() {
    let (emulator, dir) = (Emulator::start(), open_dir());
    let config = LED
        .replace("backend = \"simulated\"\n", "backend = \"simulated\"\nstate_file = \"none/pins.json\"\n");
    let agent = Agent::spawn(&emulator.device_string("dev1"), &emulator.ca_file(), dir.path(), &config);
    let code = agent.process.wait_exit().code();
    let text = agent.process.stderr.text();
    assert!(text.contains("none/pins.json"), "{text}");
    assert_eq!(code, Some(1), "{text}");
}
