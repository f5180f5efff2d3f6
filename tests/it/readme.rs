//! The examples of the documents that need no Azure, as a reader would paste them into a shell.
//!
//! Owns: nothing. Must not know: what the commands do.

use std::path::Path;
use std::process::Command;

use crate::harness::{own_address, program, run, skip};

/// The shell blocks of a document below a heading, up to the next heading of the same level or above: what a reader
/// pastes, one after the other.
fn example(document: &str, heading: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(document);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{document}: {error}"));
    let level = |line: &str| line.bytes().take_while(|byte| *byte == b'#').count();
    let mut lines = text.lines().skip_while(|line| *line != heading);
    assert!(lines.next().is_some(), "{document} has no \"{heading}\"");
    let (mut pasted, mut language) = (String::new(), None);
    for line in lines {
        match (line.strip_prefix("```"), language) {
            (Some(name), None) => language = Some(name),
            (Some(_), Some(_)) => language = None,
            (None, Some("sh")) => pasted.extend([line, "\n"]),
            (None, None) if (1..=level(heading)).contains(&level(line)) => break,
            (None, _) => {}
        }
    }
    assert!(!pasted.is_empty(), "{document} has no block for a shell below \"{heading}\"");
    pasted
}

/// Runs an example in an empty directory, at an address that no other test uses. Returns standard output.
fn paste(text: &str) -> String {
    let dir = tempfile::tempdir().expect("a directory");
    let address = own_address().to_string();
    let text = text.replace("127.0.0.1", &address);
    // Commands that start the emulator have options. Commands that ask it begin with a subcommand.
    let text = text.replace(
        "c2d-agent emulator --",
        &format!("c2d-agent emulator --bind {address} --hostname {address} --"),
    );
    let binary = Path::new(env!("CARGO_BIN_EXE_c2d-agent"));
    let mut path = std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()).collect::<Vec<_>>();
    path.insert(0, binary.parent().expect("a directory").to_owned());
    // `timeout` also ends the processes that the shell has started.
    let mut shell = Command::new("timeout");
    shell.args(["--kill-after=5", "25", "bash", "-e", "-o", "pipefail", "-c", &text]).current_dir(dir.path());
    shell.env_clear().env("PATH", std::env::join_paths(path).expect("a path")).env("HOME", dir.path());
    let output = run(&mut shell);
    let [told, said] =
        [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text).into_owned());
    assert!(output.status.success(), "{:?}\n{told}\n{said}", output.status);
    told
}

/// Asserts that one message switches the pin, that the other matches no rule, and that the output says why.
fn tells_of_both_messages(told: &str) {
    assert_eq!(told.matches("delivered: Success").count(), 2, "{told}");
    for part in ["pump on", "unmatched", "action is \"pmup\", not \"pump\""] {
        assert!(told.contains(part), "{part}: {told}");
    }
}

#[test]
fn the_minute_without_a_cloud_can_be_pasted() {
    tells_of_both_messages(&paste(&example("README.md", "## A minute without a cloud")));
}

#[test]
fn the_page_on_the_emulator_can_be_pasted() {
    tells_of_both_messages(&paste(&example("docs/src/start/emulator.md", "# The emulator in a minute")));
}

#[test]
fn the_edge_device_without_azure_can_be_pasted() {
    let told = paste(&example("docs/src/guides/iot-edge.md", "## The same without Azure"));
    for part in [
        "answered siren with status 200",
        "Success",
        "message m-1  input commands of module c2d-agent of device edge1",
        "answered blink with status 200",
    ] {
        assert!(told.contains(part), "{part}: {told}");
    }
}

#[test]
fn a_fleet_can_be_enrolled_without_azure() {
    let told = paste(&example("docs/src/guides/enrol-a-fleet.md", "## The same without Azure"));
    for part in ["pump-12 is device pump-12 on hub ", "delivered: Success", "pump on", "assigned "] {
        assert!(told.contains(part), "{part}: {told}");
    }
}

#[test]
fn a_card_with_a_certificate_of_an_own_authority_can_be_enrolled() {
    if program("openssl").is_none() {
        return skip("the example of an authority", "openssl is not installed");
    }
    let told = paste(&example("docs/src/guides/certificates.md", "## Certificates of your own authority"));
    assert!(told.contains("pump-12 is device pump-12 on hub "), "{told}");
}

#[test]
fn a_thousand_devices_can_be_sent_to_without_azure() {
    let told = paste(&example("docs/src/guides/many-devices.md", "## Try it without Azure"));
    assert!(told.contains("would send 1000 messages at 100/min: about 10 min"), "{told}");
    assert!(told.contains("1000  accepted by the hub"), "{told}");
}
