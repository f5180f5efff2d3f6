//! The doctor's checks of this machine: files and their permissions, disks, programs, pins.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::{Found, KEY, LED, doctor};
use crate::harness::{is_root_or_skips, write_config};
use crate::places::{open_dir, set_mode, without_rights};

/// `doctor --offline` in `dir`, with the connection string in a file of this mode.
fn with_secret(dir: &Path, mode: u32, rest: &str) -> Command {
    let file = dir.join("device.connection-string");
    fs::write(&file, format!("HostName=h;DeviceId=d;SharedAccessKey={KEY}")).expect("written");
    set_mode(&file, mode);
    let device = "[device]\nconnection_string_file = \"device.connection-string\"\n";
    let mut command = doctor(&write_config(dir, &format!("{device}{rest}")));
    command.arg("--offline");
    command
}

#[test]
fn a_secret_that_everyone_can_read_is_told_and_one_that_is_private_is_fine() {
    let dir = open_dir();
    let found = Found::by(&mut with_secret(dir.path(), 0o600, LED));
    found.failed(&[]);
    found.says("secret-file", "ok", "device.connection-string, mode 0600, of ", "");
    let found = Found::by(&mut with_secret(dir.path(), 0o644, LED));
    found.failed(&[]);
    found.says("secret-file", "warning", "everyone on this machine can read ", "run chmod o= ");
    found.says("configuration", "warning", "1 rule, 1 pin; ", "c2d-agent check");
}

#[test]
fn a_secret_that_the_unit_loads_is_found_beside_the_configuration() {
    let dir = open_dir();
    drop(with_secret(dir.path(), 0o600, LED));
    let found = Found::by(doctor(&write_config(dir.path(), LED)).arg("--offline"));
    found.failed(&[]);
    found.says("identity", "ok", "device d on hub h, by its key", "");
    found.says("secret-file", "ok", "device.connection-string, mode 0600, of ", "");
}

#[test]
fn a_secret_that_the_agents_user_may_not_read_is_told() {
    let dir = open_dir();
    let command = with_secret(dir.path(), 0o000, LED);
    let Some(mut command) = without_rights("doctor and an unreadable secret", &command) else { return };
    let found = Found::by(&mut command);
    assert_eq!(found.code, Some(1));
    found.says("identity", "failed", "permission denied", "correct [device]");
    found.says("secret-file", "failed", "may not read ", "otherwise give it to the agent's user: chown ");
}

#[test]
fn a_directory_that_the_agents_user_may_not_write_to_is_told() {
    let dir = open_dir();
    let mut command = with_secret(dir.path(), 0o644, LED);
    fs::create_dir(dir.path().join("state")).expect("a directory");
    set_mode(&dir.path().join("state"), 0o555);
    let rest = format!("{LED}[inbox]\npath = \"state/inbox.journal\"\n");
    command = {
        drop(command);
        with_secret(dir.path(), 0o644, &rest)
    };
    let Some(mut command) = without_rights("doctor and an unwritable directory", &command) else { return };
    let found = Found::by(&mut command);
    found.failed(&["inbox"]);
    found.says("inbox", "failed", "may not write to ", "give it to the user of the agent (chown)");
}

#[test]
fn root_is_told_that_the_agent_is_somebody_else() {
    if !is_root_or_skips("root is told that the agent is another user") {
        return;
    }
    let dir = open_dir();
    std::os::unix::fs::chown(dir.path(), Some(65_534), None).expect("given away");
    let found = Found::by(&mut with_secret(dir.path(), 0o600, LED));
    found.failed(&[]);
    found.says("user", "warning", "root (0), but the inbox's directory belongs to ", "run sudo -u ");
}

#[test]
fn an_inbox_that_is_damaged_or_in_a_place_that_is_none_is_told_and_left_alone() {
    let dir = open_dir();
    let damaged = b"c2d-agent inbox\n and nothing that makes sense";
    for (content, status, detail, remedy) in [
        (
            damaged.as_slice(),
            "warning",
            "is damaged",
            "the agent moves it away and begins a new one when it runs",
        ),
        (b"notes", "failed", "is not an inbox of c2d-agent", "set [inbox] path to another file"),
    ] {
        drop(fs::remove_file(dir.path().join("inbox.journal.lock")));
        fs::write(dir.path().join("inbox.journal"), content).expect("written");
        let found = Found::by(&mut with_secret(dir.path(), 0o600, LED));
        found.says("inbox", status, detail, remedy);
        assert_eq!(fs::read(dir.path().join("inbox.journal")).expect("there"), content);
    }
    let rest = format!("{LED}[inbox]\npath = \"a/b/inbox.journal\"\n");
    let found = Found::by(&mut with_secret(dir.path(), 0o600, &rest));
    found.failed(&["inbox"]);
    found.says("inbox", "failed", "/a is not a directory", "install -d -m 700");
    let rest = format!("{LED}[inbox]\npath = \"new/inbox.journal\"\nsocket = \"d.sock\"\n");
    fs::write(dir.path().join("d.sock"), "").expect("written");
    let found = Found::by(&mut with_secret(dir.path(), 0o600, &rest));
    found.says("inbox", "warning", "d.sock is where the control socket must be", "move it away");
    assert!(!dir.path().join("new").exists(), "it creates nothing");
}

#[test]
fn programs_are_listed_and_one_without_its_interpreter_is_told() {
    let dir = open_dir();
    let program = dir.path().join("program");
    fs::write(&program, "#!/no/such/interpreter\n").expect("written");
    set_mode(&program, 0o755);
    let rule = format!(
        "[[rule]]\nname = \"r\"\nwhen = \"any\"\ndo = [ {{ run = [{program:?}] }}, {{ run = [\"/bin/true\"] }}, {{ shell = \"true\" }} ]\n"
    );
    let found = Found::by(&mut with_secret(dir.path(), 0o600, &rule));
    found.failed(&["program"]);
    let programs: Vec<_> = found.checks.iter().filter(|one| one["check"] == "program").collect();
    assert_eq!(programs.len(), 2, "{programs:#?}");
    assert_eq!((&programs[0]["subject"], &programs[0]["status"]), (&"/bin/true".into(), &"ok".into()));
    assert_eq!(programs[1]["subject"], program.display().to_string());
    let wants =
        format!("{} needs the interpreter /no/such/interpreter, which is not there", program.display());
    assert_eq!(programs[1]["detail"], wants);
    found.says("shell", "ok", "/bin/sh can be run", "");
    found.says("gpio", "skipped", "no pin is configured", "");
}

#[test]
fn pins_without_hardware_are_told_what_is_missing() {
    if !cfg!(feature = "gpio") || Path::new("/dev/gpiochip0").exists() {
        return; // Other tests use real hardware.
    }
    let dir = open_dir();
    let found = Found::by(&mut with_secret(dir.path(), 0o600, &LED.replace("simulated", "auto")));
    found.failed(&["gpio"]);
    found.says("gpio", "failed", "no GPIO found", "--device /dev/gpiochip0");
    found.says("pin", "skipped", "no backend can drive it", "");
    let found = Found::by(&mut with_secret(dir.path(), 0o600, &LED.replace("simulated", "rppal")));
    found.says("gpio", "failed", "", "backend = \"cdev\"");
    let cdev = LED.replace("\"simulated\"", "\"cdev\"\nchip = \"/dev/null\"");
    let found = Found::by(&mut with_secret(dir.path(), 0o600, &cdev));
    found.says("gpio", "failed", "/dev/null is not a GPIO chip", "gpiodetect");
}
