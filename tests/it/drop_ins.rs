//! Drop-in files on a real disk, as `check`, `run`, `inbox` and `status` of the real binary read them.
//!
//! Owns: which files count, in which order, and what is said about them. Merging is tested in `src/config/tests/`.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::Signal;

use crate::harness::{Process, binary, is_root_or_skips, run};

const DEVICE: &str = "HostName=127.0.0.1:1;DeviceId=pi-01;SharedAccessKey=c2VjcmV0";

const MAIN: &str =
    "[gpio]\nbackend = \"simulated\"\n[gpio.pins.pump]\nline = 17\n[device]\ntoken_lifetime = \"1h\"\n";

#[test]
fn check_lists_the_files_in_their_order_and_what_they_replace() {
    let house = House::new(MAIN);
    house.write("20-b.toml", "[gpio.pins.pump]\nline = 18\n");
    house.write("3-a.toml", "[gpio.pins.pump]\nline = 19\n");
    house.write("Z.toml", &rule("last"));
    house.write("10-a.toml", &format!("[device]\ntoken_lifetime = \"2h\"\n{}", rule("first")));
    for ignored in [".10-a.toml", "10-a.toml.bak", "10-a.toml~", "README", "10-a.conf", "a.TOML"] {
        house.write(ignored, "not TOML at all");
    }
    fs::create_dir(house.path("config.d/old")).expect("a directory");
    house.write("old/90.toml", "not TOML at all");
    house.check(
        0,
        "DIR/c.toml and 4 drop-ins:\n\
         \x20 DIR/config.d/10-a.toml\n\
         \x20 DIR/config.d/20-b.toml\n\
         \x20 DIR/config.d/3-a.toml\n\
         \x20 DIR/config.d/Z.toml\n\
         DIR/config.d/10-a.toml:2:1 replaces DIR/c.toml:6:1: [device] token_lifetime\n\
         DIR/config.d/20-b.toml:2:1 replaces DIR/c.toml:4:1: [gpio.pins.pump] line\n\
         DIR/config.d/3-a.toml:2:1 replaces DIR/config.d/20-b.toml:2:1: [gpio.pins.pump] line\n\
         configuration is valid: 2 rules, 1 pin, device pi-01 on hub 127.0.0.1:1\n",
        "",
    );
    let explained = house.stdout(&["--message", "action=first"]);
    assert!(explained.contains("  1. pin pump (line 19): set on\n"), "{explained}");
}

#[test]
fn check_names_the_files_even_when_one_of_them_has_a_problem() {
    let house = House::new(MAIN);
    house.write("a.toml", &rule("a"));
    house.write("b.toml", "\n[gpio.pins.pump]\nlines = 18\n");
    house.check(
        2,
        "DIR/c.toml and 2 drop-ins:\n  DIR/config.d/a.toml\n  DIR/config.d/b.toml\n",
        "DIR/config.d/b.toml:3:1: [gpio.pins.pump] has no key \"lines\"; did you mean line? (its keys are line, initial, \
         active, on_exit, max_on, on_disconnect)\n\
         \x20  3 | lines = 18\n\
         \x20    | ^^^^^\n\
         1 problem\n",
    );
}

#[test]
fn relative_paths_are_taken_from_the_main_file() {
    let house = House::new(&rule("a").replace("gpio = \"pump\", set = \"on\"", "shell = \"true\""));
    house.write(
        "device.toml",
        "[device]\nconnection_string_file = \"device.txt\"\n[inbox]\npath = \"i.journal\"\n",
    );
    fs::write(house.path("device.txt"), DEVICE).expect("written");
    fs::set_permissions(house.path("device.txt"), fs::Permissions::from_mode(0o600)).expect("permissions");
    let mut command = house.command(&["check"]);
    let output = run(command.env_remove("C2D_DEVICE_CONNECTION_STRING"));
    assert_eq!(house.plain(&output.stderr), "");
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn drop_ins_that_cannot_be_read_are_named_all_at_once() {
    let house = House::new(MAIN);
    fs::create_dir(house.path("config.d/a.toml")).expect("a directory");
    symlink("nowhere", house.path("config.d/b.toml")).expect("a link");
    fs::write(house.path("config.d/c.toml"), [0xff]).expect("written");
    house.write("d.toml", "line = \n");
    house.write("e.toml", &"#".repeat(1024 * 1024 + 1));
    house.check(
        2,
        "DIR/c.toml and 1 drop-in:\n  DIR/config.d/d.toml\n",
        "DIR/config.d/a.toml: cannot read this drop-in: it is a directory\n\
         DIR/config.d/b.toml: cannot read this drop-in: there is no such file\n\
         DIR/config.d/c.toml: cannot read this drop-in: it is not UTF-8 text: save it as UTF-8\n\
         DIR/config.d/e.toml: cannot read this drop-in: it is larger than 1048576 bytes; is it the right file?\n\
         DIR/config.d/d.toml:1:8: a value is missing after =\n\
         \x20  1 | line = \n\
         \x20    |        ^\n\
         5 problems\n",
    );
}

#[test]
fn a_drop_in_that_only_another_user_may_read_is_a_problem() {
    if rustix::process::geteuid().is_root() {
        return; // Root may read every file.
    }
    let house = House::new(MAIN);
    house.write("a.toml", &rule("a"));
    fs::set_permissions(house.path("config.d/a.toml"), fs::Permissions::from_mode(0o000))
        .expect("permissions");
    let user = rustix::process::geteuid().as_raw();
    let denied = format!(
        "permission denied to user {user}, who runs this: let that user read it, or run this as its owner"
    );
    house.check(2, "", &format!("DIR/config.d/a.toml: cannot read this drop-in: {denied}\n1 problem\n"));
}

#[test]
fn a_directory_of_drop_ins_that_is_none_is_a_problem() {
    let house = House::new(MAIN);
    fs::remove_dir(house.path("config.d")).expect("removed");
    let told = "cannot read the directory of drop-ins";
    house.says(0, "there is no [[rule]]");
    symlink("nowhere", house.path("config.d")).expect("a link");
    house.says(2, &format!("DIR/config.d: {told}: there is no such file\n"));
    fs::remove_file(house.path("config.d")).expect("removed");
    fs::write(house.path("config.d"), "").expect("written");
    house.says(2, &format!("DIR/config.d: {told}: it is not a directory\n"));
}

#[test]
fn the_main_file_is_needed_whatever_drop_ins_there_are() {
    let house = House::new(MAIN);
    house.write("a.toml", &format!("{MAIN}{}", rule("a")));
    fs::remove_file(house.path("c.toml")).expect("removed");
    house.says(
        2,
        "DIR/c.toml: cannot read the configuration: there is no such file; write one with c2d-agent init -c DIR/c.toml, or name \
         another file with -c FILE",
    );
}

#[test]
fn there_is_a_limit_to_number_and_size() {
    let house = House::new(&format!("{MAIN}{}", rule("a")));
    for n in 0..100 {
        house.write(&format!("{n}.toml"), "");
    }
    assert!(house.stdout(&[]).starts_with("DIR/c.toml and 100 drop-ins:\n"));
    house.write("100.toml", "");
    house.says(
        2,
        "DIR/config.d: there are more than 100 drop-ins here: combine some of them in one file\n1 problem\n",
    );

    let house = House::new(&format!("{MAIN}{}", rule("a")));
    for name in ["a.toml", "b.toml", "c.toml"] {
        house.write(name, &"#".repeat(500 * 1024));
    }
    house.says(
        2,
        "DIR/config.d/c.toml: with this file the configuration is larger than 1048576 bytes; is it the right file?\n",
    );
}

#[test]
fn drop_ins_that_others_can_change_are_a_warning() {
    let house = House::new(MAIN);
    house.write("a.toml", &rule("a"));
    house.says(0, "");
    let directory = house.path("config.d");
    let mode =
        |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("permissions");
    let why = "(anyone who can write here decides what the agent runs)\n1 warning\n";
    // A sticky directory is refused, too: others cannot replace a file there, but they can add one.
    for (open, remedy) in [
        (0o775, "run chmod go-w DIR/config.d"),
        (0o757, "run chmod go-w DIR/config.d"),
        (0o1777, "use a directory to which only its owner can write"),
    ] {
        mode(&directory, open);
        house.says(
            0,
            &format!("DIR/config.d: warning: it is writable by users other than its owner: {remedy} {why}"),
        );
    }
    mode(&directory, 0o755);
    mode(&house.path("config.d/a.toml"), 0o664);
    house.says(
        0,
        &format!(
            "DIR/config.d/a.toml: warning: it is writable by users other than its owner: run chmod go-w \
             DIR/config.d/a.toml {why}"
        ),
    );
    fs::create_dir(house.path("open")).expect("a directory");
    mode(&house.path("open"), 0o777);
    fs::rename(house.path("config.d/a.toml"), house.path("open/a.toml")).expect("moved");
    mode(&house.path("open/a.toml"), 0o644);
    symlink("../open/a.toml", house.path("config.d/a.toml")).expect("a link");
    house.says(
        0,
        &format!(
            "DIR/open: warning: it is writable by users other than its owner: run chmod go-w DIR/open \
                  {why}"
        ),
    );
}

#[test]
fn drop_ins_of_another_user_are_a_warning() {
    if !is_root_or_skips("drop ins of another user are a warning") {
        return;
    }
    let house = House::new(MAIN);
    house.write("a.toml", &rule("a"));
    chown(house.path("config.d/a.toml"), Some(65534), None).expect("given away");
    house.says(
        0,
        "DIR/config.d/a.toml: warning: it belongs to user 65534: run chown root DIR/config.d/a.toml, or run \
         the agent as that user (anyone who can write here decides what the agent runs)\n1 warning\n",
    );
}

#[test]
fn run_says_how_many_drop_ins_it_has_read() {
    let house = House::new(&format!("{MAIN}[inbox]\npath = \"i.journal\"\n"));
    house.write("a.toml", &rule("a"));
    house.write("b.toml", &rule("b"));
    let agent = Process::spawn(&mut house.command(&["run"]));
    let line = agent.stderr.wait_for("configuration read");
    assert!(line.contains("drop_ins=2"), "{line}");
    agent.signal(Signal::TERM);
    agent.wait_exit();
}

#[test]
fn inbox_and_status_find_the_inbox_that_a_drop_in_names() {
    let house = House::new(MAIN);
    house.write("inbox.toml", "[inbox]\npath = \"elsewhere.journal\"\n");
    let told = |question: &[&str]| house.plain(&run(&mut house.command(question)).stderr);
    assert_eq!(
        told(&["inbox", "list"]),
        "c2d-agent: there is no inbox at DIR/elsewhere.journal: it is created when the agent first runs\n"
    );
    let status = told(&["status"]);
    assert!(
        status.starts_with("c2d-agent: no agent runs: nothing listens on DIR/elsewhere.sock\n"),
        "{status}"
    );
}

/// A rule that matches `action=NAME`.
fn rule(name: &str) -> String {
    format!(
        "[[rule]]\nname = \"{name}\"\nwhen = {{ action = \"{name}\" }}\ndo = [ {{ gpio = \"pump\", set = \"on\" }} ]\n"
    )
}

/// A directory with `c.toml` and `config.d`.
struct House(tempfile::TempDir);

impl House {
    fn new(main: &str) -> Self {
        let house = Self(tempfile::tempdir().expect("a directory"));
        house.put("c.toml", main);
        fs::create_dir(house.path("config.d")).expect("a directory");
        fs::set_permissions(house.path("config.d"), fs::Permissions::from_mode(0o755)).expect("permissions");
        house
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn put(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).expect("written");
        fs::set_permissions(self.path(name), fs::Permissions::from_mode(0o644)).expect("permissions");
    }

    /// Writes a drop-in.
    fn write(&self, name: &str, text: &str) {
        self.put(&format!("config.d/{name}"), text);
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = binary();
        command.args(arguments).arg("-c").arg(self.path("c.toml"));
        command.env("C2D_DEVICE_CONNECTION_STRING", DEVICE);
        command
    }

    #[track_caller]
    fn check(&self, code: i32, stdout: &str, stderr: &str) {
        let output = run(&mut self.command(&["check"]));
        assert_eq!(self.plain(&output.stderr), stderr);
        assert_eq!(self.plain(&output.stdout), stdout);
        assert_eq!(output.status.code(), Some(code));
    }

    /// Asserts that `check` says `stderr` on standard error, or nothing if it is empty.
    #[track_caller]
    fn says(&self, code: i32, stderr: &str) {
        let output = run(&mut self.command(&["check"]));
        let told = self.plain(&output.stderr);
        assert!(told.contains(stderr) && told.is_empty() == stderr.is_empty(), "{told}");
        assert_eq!(output.status.code(), Some(code), "{told}");
    }

    fn stdout(&self, arguments: &[&str]) -> String {
        let output = run(self.command(&["check"]).args(arguments));
        assert_eq!(output.status.code(), Some(0), "{}", self.plain(&output.stderr));
        self.plain(&output.stdout)
    }

    fn plain(&self, bytes: &[u8]) -> String {
        String::from_utf8_lossy(bytes).replace(&self.0.path().display().to_string(), "DIR")
    }
}
