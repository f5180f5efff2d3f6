//! Bad input from every side: each mistake ends in one sentence that names it, and in the documented exit code.
//!
//! Owns: mistakes that no other file of this target tests. Must not know: how the program is built.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::Path;
use std::process::{Command, Output};

use crate::harness::{Agent, Emulator, Process, binary, is_root_or_skips, program, run, skip};

const ANY_RULE: &str = "[[rule]]\nname = \"any\"\nwhen = \"any\"\ndo = [ { shell = \"true\" } ]\n";
const KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn executable(path: &Path) {
    fs::write(path, "#!/bin/sh\n").expect("written");
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("executable");
}

#[test]
fn a_program_that_another_user_owns_or_could_replace_is_refused() {
    if !is_root_or_skips("a program that another user owns or could replace is refused") {
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    fs::create_dir(dir.path().join("theirs")).expect("a directory");
    let (owned, replaceable) = (dir.path().join("owned"), dir.path().join("theirs/program"));
    executable(&owned);
    executable(&replaceable);
    chown(&owned, Some(65534), None).expect("given away");
    chown(dir.path().join("theirs"), Some(65534), None).expect("given away");
    let config = dir.path().join("config.toml");
    let check = |program: &Path| {
        let rule = format!(
            "[[rule]]\nname = \"r\"\nwhen = \"any\"\ndo = [ {{ run = [\"{}\"] }} ]\n",
            program.display()
        );
        fs::write(&config, rule).expect("written");
        let device = format!("HostName=h;DeviceId=d;SharedAccessKey={KEY}");
        run(binary().arg("check").arg("-c").arg(&config).env("C2D_DEVICE_CONNECTION_STRING", device))
    };
    let output = check(&owned);
    let sentence = format!("{} belongs to user 65534, who could change it: run chown root", owned.display());
    assert!(stderr(&output).contains(&sentence), "{}", stderr(&output));
    assert_eq!(output.status.code(), Some(2));
    let output = check(&replaceable);
    let sentence = "theirs, which belongs to user 65534, who could replace it: run chown root";
    assert!(stderr(&output).contains(sentence), "{}", stderr(&output));
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn two_emulators_do_not_share_a_state_directory() {
    let first = Emulator::start();
    let second = run(binary().arg("emulator").arg("--state-dir").arg(&first.state).args([
        "--mqtt-port",
        "0",
        "--amqp-port",
        "0",
    ]));
    let sentence = format!(
        "c2d-agent: {} is in use by another emulator: stop that one, or give a directory of your own with --state-dir\n",
        first.state.display()
    );
    assert_eq!((stderr(&second), second.status.code()), (sentence, Some(1)));
}

#[test]
fn the_amqp_port_in_a_device_connection_string_is_told_as_no_hub() {
    let emulator = Emulator::start();
    let dir = tempfile::tempdir().expect("a directory");
    let port = emulator.amqp.port();
    let string = format!("HostName=localhost:{port};DeviceId=dev1;SharedAccessKey={KEY}");
    let agent = Agent::spawn(&string, &emulator.ca_file(), dir.path(), ANY_RULE);
    agent.process.stderr.wait_for(&format!(
        "localhost:{port} closed the connection before it answered the sign-in of device dev1: check that the host"
    ));
    assert_eq!(agent.process.terminate(), Some(0));
}

#[test]
fn a_cause_is_said_once() {
    let dir = tempfile::tempdir().expect("a directory");
    let none = dir.path().join("none");
    let mut command = binary();
    command.args(["c2d-send", "--device", "d", "--ca-file"]).arg(&none);
    command.env(
        "C2D_SERVICE_CONNECTION_STRING",
        format!("HostName=localhost:1;SharedAccessKeyName=service;SharedAccessKey={KEY}"),
    );
    let output = run(&mut command);
    let sentence =
        format!("c2d-agent: cannot read {}: there is no such file; correct the path\n", none.display());
    assert_eq!((stderr(&output), output.status.code()), (sentence, Some(2)));
}

#[test]
fn an_empty_c2d_ca_file_counts_as_none_for_the_sender_too() {
    let emulator = Emulator::start();
    let mut command = binary();
    command.args(["c2d-send", "--device", "dev1"]).env("C2D_CA_FILE", "");
    let output = run(command.env("C2D_SERVICE_CONNECTION_STRING", emulator.service_string()));
    let text = stderr(&output);
    assert!(text.contains("not signed by a root that this machine trusts"), "{text}");
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn a_connection_string_in_quotes_or_cut_short_is_told_what_to_do() {
    let dir = tempfile::tempdir().expect("a directory");
    let case = |string: &str| {
        let agent = Agent::spawn(string, Path::new(""), dir.path(), ANY_RULE);
        assert_eq!(agent.process.wait_exit().code(), Some(2));
        agent.process.stderr.text()
    };
    let quoted = case(&format!("\"HostName=h;DeviceId=d;SharedAccessKey={KEY}\""));
    assert!(
        quoted.contains("the connection string is in quotes, which do not belong to it: remove them"),
        "{quoted}"
    );
    assert!(!quoted.contains(KEY), "{quoted}");
    // This is left when a shell takes the first ; as the end of the command.
    let cut = case("HostName=h;DeviceId=d");
    assert!(cut.contains("lacks SharedAccessKey: copy all of it, in quotes if a shell reads it"), "{cut}");
}

#[test]
fn logs_on_a_terminal_are_coloured_unless_no_color_is_set() {
    let Some(script) = program("script") else { return skip("NO_COLOR", "script is not installed") };
    // The property causes a warning and the connection string is missing, so the program logs one line and ends.
    let line = format!("{} c2d-send --device d --property ä=1", env!("CARGO_BIN_EXE_c2d-agent"));
    let seen = |no_color: &str| {
        let mut command = Command::new(&script);
        command.args(["-qec", &line, "/dev/null"]).env("NO_COLOR", no_color).env("TERM", "xterm");
        let process = Process::spawn(command.env_remove("C2D_SERVICE_CONNECTION_STRING"));
        process.wait_exit();
        process.stdout.text()
    };
    let (coloured, plain) = (seen(""), seen("1"));
    assert!(coloured.contains("WARN") && coloured.contains('\x1b'), "{coloured:?}");
    assert!(plain.contains("WARN") && !plain.contains('\x1b'), "{plain:?}");
}

#[test]
fn help_fits_a_terminal_of_80_columns() {
    for subcommand in ["", "run", "check", "inbox", "status", "doctor", "c2d-send", "emulator", "demo"] {
        let mut command = binary();
        command.args([subcommand].iter().filter(|name| !name.is_empty())).arg("--help").env("COLUMNS", "80");
        let output = run(&mut command);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let wide: Vec<_> = text.lines().filter(|line| line.chars().count() > 80).collect();
        assert!(wide.is_empty(), "{subcommand}: {wide:#?}");
        assert!(text.contains("Usage:"), "{text}");
    }
}
