//! The README's examples that need no Azure, as somebody would paste them into a shell.
//!
//! Owns: nothing. Must not know: what the commands do. Used by: nobody.

use std::path::Path;
use std::process::Command;

use crate::harness::{own_address, program, run, skip};

/// The first block for a shell behind `words`.
fn example(words: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
    let text = std::fs::read_to_string(path).expect("the README");
    let (_, rest) = text.split_once(words).unwrap_or_else(|| panic!("the README has no \"{words}\""));
    let (_, block) = rest.split_once("```sh\n").expect("a block");
    block.split_once("\n```").expect("the end of a block").0.to_owned()
}

/// Runs an example in an empty directory, at an address that no other test has; its standard output.
fn paste(text: &str) -> String {
    let dir = tempfile::tempdir().expect("a directory");
    let address = own_address().to_string();
    let text =
        text.replace("127.0.0.1", &address).replace("https://localhost:", &format!("https://{address}:"));
    let text = text.replace(
        "c2d-agent emulator ",
        &format!("c2d-agent emulator --bind {address} --hostname {address} "),
    );
    let binary = Path::new(env!("CARGO_BIN_EXE_c2d-agent"));
    let mut path = std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()).collect::<Vec<_>>();
    path.insert(0, binary.parent().expect("a directory").to_owned());
    // Its end is that of the processes that it has started, too.
    let mut shell = Command::new("timeout");
    shell.args(["--kill-after=5", "25", "bash", "-e", "-o", "pipefail", "-c", &text]).current_dir(dir.path());
    shell.env_clear().env("PATH", std::env::join_paths(path).expect("a path")).env("HOME", dir.path());
    let output = run(&mut shell);
    let [told, said] =
        [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text).into_owned());
    assert!(output.status.success(), "{:?}\n{told}\n{said}", output.status);
    told
}

#[test]
fn the_loop_without_azure_can_be_pasted() {
    let told = paste(&example("## The same without Azure"));
    assert!(told.contains("Success"), "{told}");
}

#[test]
fn the_edge_device_without_azure_can_be_pasted() {
    if program("curl").is_none() {
        return skip("the README's edge device", "curl is not installed");
    }
    let told = paste(&example("**The same without Azure.** The emulator is hub, gateway"));
    for part in [
        "answered siren with status 200",
        "Success",
        "\"messageId\":\"m-1\"",
        "answered blink with status 200",
    ] {
        assert!(told.contains(part), "{part}: {told}");
    }
}
