//! `c2d-agent schema`, as an editor uses it: Taplo, which editors for TOML contain, checks the fixtures by the schema.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::harness::{binary, run, skip};

const COMMITTED: &str = "packaging/config.schema.json";
const FIXTURES: &str = "tests/fixtures/config";
/// Fixtures whose mistakes no schema can find: the mistake depends on another value, on a file, on the environment, or
/// on a limit of time.
const UNSEEN: [&str; 22] = [
    "caret_after_tabs_and_wide_characters",
    "connection_string_as_json",
    "device_missing_file",
    "device_needless_keys",
    "device_twice",
    "device_x509_files",
    "duplicate_rule_names",
    "inbox_socket_too_long",
    "key_without_name",
    "max_on",
    "no_device",
    "no_device_in_table",
    "private_key_in_token",
    "provisioning_and_device",
    "provisioning_key",
    "provisioning_lacks",
    "provisioning_variable_and_device",
    "provisioning_with_gateway",
    "service_string_in_environment",
    "shell_commands",
    "unknown_pin_without_pins",
    "x509_string_without_files",
];

/// The files in the folder, and what Taplo says about them.
fn lint(test: &str, folder: &Path) -> Option<(Vec<PathBuf>, String)> {
    let taplo = Path::new(".venv/bin/taplo");
    if !taplo.is_file() {
        skip(test, "Taplo is not in .venv/; scripts/setup.sh installs it");
        return None;
    }
    let files = fs::read_dir(folder).expect("a folder").map(|file| file.expect("readable").path());
    let files: Vec<_> = files.filter(|file| file.extension().is_some_and(|is| is == "toml")).collect();
    let schema = format!("file://{}", fs::canonicalize(COMMITTED).expect("committed").display());
    let mut lint = Command::new(taplo);
    lint.args(["lint", "--no-auto-config", "--colors", "never", "--schema", &schema]).args(&files);
    let said = lint.output().expect("taplo").stderr;
    Some((files, String::from_utf8_lossy(&said).into_owned()))
}

#[test]
fn the_committed_schema_is_what_the_program_prints() {
    let printed = run(binary().arg("schema"));
    assert!(printed.status.success(), "{printed:?}");
    if std::env::var_os("C2D_WRITE_FIXTURES").is_some() {
        fs::write(COMMITTED, &printed.stdout).expect("written");
    }
    let committed = fs::read_to_string(COMMITTED).expect("committed");
    let printed = String::from_utf8(printed.stdout).expect("UTF-8");
    assert!(printed == committed, "{COMMITTED} is old: make it again with C2D_WRITE_FIXTURES=1");
}

#[test]
fn an_editor_finds_nothing_wrong_with_a_valid_configuration() {
    let examples = fs::read_dir("examples").expect("examples").map(|entry| entry.expect("readable").path());
    let mut folders: Vec<_> = examples.filter(|path| path.is_dir()).collect();
    folders.extend([format!("{FIXTURES}/valid").into(), "packaging".into()]);
    for folder in folders {
        let Some((files, said)) = lint("an editor finds nothing wrong with a valid configuration", &folder)
        else {
            return;
        };
        assert!(!files.is_empty() && !said.contains("error"), "{said}");
    }
}

#[test]
fn an_editor_marks_each_mistake_that_shows_in_the_file_alone() {
    let test = "an editor marks each mistake that shows in the file alone";
    let Some((files, said)) = lint(test, &Path::new(FIXTURES).join("invalid")) else { return };
    let unseen = files.iter().filter(|file| !said.contains(&format!("{}:", file.display())));
    let unseen: BTreeSet<_> =
        unseen.map(|file| file.file_stem().expect("a name").to_string_lossy()).collect();
    assert_eq!(unseen, UNSEEN.map(Into::into).into());
}
