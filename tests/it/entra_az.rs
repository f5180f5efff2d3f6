//! The Azure CLI as a source of tokens: which program is run, what it is given, and what becomes of its failures.
//!
//! Owns: programs in its place. Must not know: the hub.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use crate::entra::said;
use crate::harness::{Process, binary, run};

/// Writes a program `az`.
fn az(folder: &Path, script: &str) {
    let file = folder.join("az");
    std::fs::write(&file, format!("#!/bin/sh\n{script}\n")).expect("written");
    std::fs::set_permissions(&file, Permissions::from_mode(0o755)).expect("executable");
}

/// A command that asks `az` for a token, and has this folder first in PATH.
fn asks(folder: &Path) -> Command {
    let mut asked = binary();
    asked.args(["auth", "--check", "--auth", "az", "--hub", "localhost"]);
    asked.env("PATH", format!("{}:{}", folder.display(), std::env::var("PATH").unwrap_or_default()));
    asked
}

#[test]
fn only_an_absolute_folder_that_others_cannot_change_gives_the_program() {
    let dir = tempfile::tempdir().expect("a directory");
    az(dir.path(), "echo begun > begun; exit 1");
    let refused = run(asks(dir.path()).env("PATH", ":.:").current_dir(dir.path()));
    assert_eq!(refused.status.code(), Some(2));
    assert!(said(&refused).contains("there is no program az in PATH"), "{}", said(&refused));

    std::fs::set_permissions(dir.path(), Permissions::from_mode(0o777)).expect("changed");
    let refused = run(asks(dir.path()).current_dir(dir.path()));
    assert_eq!(refused.status.code(), Some(2));
    let folder = dir.path().display();
    let words = format!(
        "the program {folder}/az is in {folder}, which is writable by users other than its owner: run chmod go-w {folder}"
    );
    assert!(said(&refused).contains(&words), "{}", said(&refused));
    assert!(!dir.path().join("begun").exists(), "it was run");
}

#[test]
fn a_program_that_is_missing_is_told_before_a_token_is_asked_for() {
    let mut asked = binary();
    asked.args(["auth", "--auth", "az", "--hub", "localhost"]).env("PATH", "");
    let told = run(&mut asked);
    assert_eq!(told.status.code(), Some(2));
    assert!(said(&told).contains("there is no program az in PATH: install the Azure CLI"), "{}", said(&told));
}

#[test]
fn the_program_gets_none_of_our_own_variables() {
    let dir = tempfile::tempdir().expect("a directory");
    az(dir.path(), "env > seen; exit 1");
    let mut asked = asks(dir.path());
    for name in ["C2D_SERVICE_CONNECTION_STRING", "C2D_DEVICE_CONNECTION_STRING", "C2D_PROVISIONING_KEY"] {
        asked.env(name, "s3cret");
    }
    asked.env("EdgeHubConnectionString", "s3cret").env("AZURE_CONFIG_DIR", "/kept");
    run(asked.current_dir(dir.path()));
    let seen = std::fs::read_to_string(dir.path().join("seen")).expect("it was run");
    assert!(!seen.contains("s3cret") && seen.contains("AZURE_CONFIG_DIR=/kept\n"), "{seen}");
}

#[test]
fn a_program_that_is_given_up_ends_with_all_that_it_has_started() {
    let dir = tempfile::tempdir().expect("a directory");
    let pipe = dir.path().join("pipe");
    assert!(run(Command::new("mkfifo").arg(&pipe)).status.success());
    // The pipe ends when none of them is left.
    az(dir.path(), "exec > pipe; sleep 60 & echo begun; sleep 60");
    let asked = Process::spawn(asks(dir.path()).current_dir(dir.path()));
    let left = Process::spawn(Command::new("cat").arg(&pipe));
    left.wait_stdout("begun");
    assert_eq!(asked.terminate(), Some(1));
    assert_eq!(left.wait_exit().code(), Some(0));
}

#[test]
fn its_error_is_told_and_not_a_warning_before_it() {
    let dir = tempfile::tempdir().expect("a directory");
    for (printed, told) in [
        ("WARNING: old\nERROR: Please log in\nmore", "ERROR: Please log in; sign in with az login"),
        ("Traceback:\n  File az\nValueError: bad\n", "ValueError: bad; sign in with az login"),
        ("", "nothing; sign in with az login"),
        (
            "ERROR: Failed to establish a new connection",
            "ERROR: Failed to establish a new connection; try again, or check this machine's network",
        ),
    ] {
        az(dir.path(), &format!("cat >&2 <<'EOF'\n{printed}\nEOF\nexit 1"));
        let refused = run(&mut asks(dir.path()));
        assert_eq!(refused.status.code(), Some(1));
        assert!(
            said(&refused).contains(&format!("az gives no token and says: {told}\n")),
            "{}",
            said(&refused)
        );
    }
}

#[test]
fn an_end_in_another_unit_or_in_the_past_is_refused_in_words() {
    let dir = tempfile::tempdir().expect("a directory");
    for (end, told) in [
        ("1900000000000", "az gives a token that ends 1900000000000 s after 1970, more than 10 years after"),
        ("1000000000", "az gives a token that ended at 2001-09-09T01:46:40Z, but this machine's clock says "),
    ] {
        az(dir.path(), &format!("echo '{{\"accessToken\": \"t\", \"expires_on\": {end}}}'"));
        let refused = run(&mut asks(dir.path()));
        assert_eq!(refused.status.code(), Some(1), "{}", said(&refused));
        assert!(said(&refused).contains(told), "{}", said(&refused));
    }
}
