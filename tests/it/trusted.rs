//! Files are trusted only if no other user can change them. If a local user puts a file or a link in an agent's way,
//! the agent neither reads it nor writes through it. The owner is told where others can write.
//!
//! Owns: the hostile user, 65534; a test needs root to act as this user. Must not know: how the agent finds out.

use std::fs;
use std::os::unix::fs::{chown, symlink};
use std::path::Path;
use std::process::Command;

use crate::harness::{Agent, Emulator, Process, binary, is_root_or_skips, run, wait_for_file, write_config};
use crate::places::{open_dir, set_mode};

const DEVICE: &str = "HostName=h;DeviceId=d;SharedAccessKey=AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
const HOSTILE: u32 = 65534;

/// A rule that writes a line into `done` when it runs.
fn rule(dir: &Path) -> String {
    format!(
        "[[rule]]\nname = \"any\"\nwhen = \"any\"\ndo = [ {{ run = [\"{}/program\"] }} ]\n",
        dir.display()
    )
}

fn program(path: &Path, text: &str) {
    fs::write(path, format!("#!/bin/sh\n{text}\n")).expect("written");
    set_mode(path, 0o755);
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn give_away(path: &Path) {
    chown(path, Some(HOSTILE), None).expect("given away");
}

/// `run` in `dir`, with the configuration that is there.
fn agent(emulator: &Emulator, dir: &Path) -> Command {
    let mut command = binary();
    command.arg("run").arg("-c").arg(dir.join("config.toml"));
    command.env("C2D_DEVICE_CONNECTION_STRING", emulator.device_string("dev1"));
    command.env("C2D_CA_FILE", emulator.ca_file());
    command
}

/// What `check` says on standard error, and its exit code.
fn check(dir: &Path) -> (String, Option<i32>) {
    let config = dir.join("config.toml");
    let output = run(binary().arg("check").arg("-c").arg(config).env("C2D_DEVICE_CONNECTION_STRING", DEVICE));
    (String::from_utf8_lossy(&output.stderr).into_owned(), output.status.code())
}

/// The failed checks of `doctor --offline`, one line each, with the remedy.
fn failed(dir: &Path) -> Vec<String> {
    let mut command = binary();
    command.arg("doctor").arg("-c").arg(dir.join("config.toml")).args(["--offline", "--json"]);
    let output = run(command.env("C2D_DEVICE_CONNECTION_STRING", DEVICE));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let checks = report["checks"].as_array().expect("an array").iter();
    let failed = checks.filter(|check| check["status"] == "failed");
    let text = |value: &serde_json::Value| value.as_str().expect("a text").to_owned();
    failed
        .map(|check| {
            format!("{}: {}: {}", text(&check["check"]), text(&check["detail"]), text(&check["remedy"]))
        })
        .collect()
}

#[test]
fn a_program_that_is_replaced_between_check_and_start_is_not_started() {
    let (emulator, dir) = (Emulator::start(), open_dir());
    let (own, done) = (dir.path().join("program"), dir.path().join("done"));
    program(&own, &format!("echo own >> {}", done.display()));
    let agent = Agent::start(&emulator, "dev1", dir.path(), &rule(dir.path()));
    emulator.send("dev1", &["--wait=20s"]);
    wait_for_file(&done, "own\n");
    // Now others may write to the program, and they do.
    program(&own, &format!("echo foreign >> {}", done.display()));
    set_mode(&own, 0o757);
    let place = own.display();
    let refused = |n: usize, reason: &str| {
        emulator.send("dev1", &["--wait=20s"]);
        let line = agent.process.stderr.wait_for_nth("cannot start it", n);
        assert!(line.contains(reason), "{reason} is not in: {line}");
    };
    refused(
        1,
        &format!("the program {place} is writable by users other than its owner: run chmod go-w {place}"),
    );
    set_mode(&own, 0o755);
    // Others may also write to a directory on the way to the program.
    set_mode(dir.path(), 0o777);
    refused(
        2,
        &format!("the program {place} is in {}, which is writable by users other", dir.path().display()),
    );
    set_mode(dir.path(), 0o755);
    if is_root() {
        give_away(&own);
        refused(3, &format!("the program {place} belongs to user {HOSTILE}, who could change it"));
    }
    assert_eq!(fs::read_to_string(&done).expect("there"), "own\n", "what others wrote has not run");
    assert_eq!(agent.process.terminate(), Some(0));
}

#[test]
fn links_in_the_inbox_directory_are_not_written_through() {
    let (emulator, dir) = (Emulator::start(), open_dir());
    let victim = dir.path().join("victim");
    fs::write(&victim, "precious").expect("written");
    set_mode(&victim, 0o644);
    for name in ["twin-rules.json.new", "inbox.journal.new", "pins.json.new"] {
        symlink(&victim, dir.path().join(name)).expect("a link");
    }
    let config = "[gpio]\nbackend = \"simulated\"\nstate_file = \"pins.json\"\n[gpio.pins.lamp]\nline = 1\n\
                  [twin]\naccept = [\"rules\"]\n[allow]\npins = [\"lamp\"]\n";
    let text = "[[rule]]\nname = \"lamp\"\nwhen = { action = \"lamp\" }\ndo = [ { gpio = \"lamp\", set = \"on\" } ]\n";
    let desired = serde_json::json!({ "c2dAgent": { "rules": { "10-lamp": text } } });
    let file = dir.path().join("desired.json");
    fs::write(&file, desired.to_string()).expect("written");
    let file = file.to_str().expect("UTF-8");
    let agent = Agent::start(&emulator, "dev1", dir.path(), config);
    let patch = ["twin", "patch", "--desired-file", file, "--device", "dev1"];
    let output = run(&mut crate::invoke_method::back_end(&emulator, &patch));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    agent.process.stderr.wait_for("applied the rules of the twin");
    emulator.send("dev1", &["--property", "action=lamp", "--wait=20s"]);
    assert_eq!(agent.process.terminate(), Some(0));
    assert_eq!(fs::read_to_string(&victim).expect("there"), "precious");
    for name in ["twin-rules.json", "inbox.journal", "pins.json"] {
        assert!(fs::symlink_metadata(dir.path().join(name)).expect("made").is_file(), "{name}");
        assert!(fs::symlink_metadata(dir.path().join(format!("{name}.new"))).is_err(), "{name}.new");
    }
}

/// Rules in the form that an agent keeps, with a version that no twin will have.
fn planted(dir: &Path) -> String {
    let text = format!(
        "[[rule]]\nname = \"theirs\"\nwhen = \"any\"\ndo = [ {{ run = [\"{}/program\"] }} ]\n",
        dir.display()
    );
    serde_json::json!({ "version": 99, "rules": { "10-theirs": text } }).to_string()
}

#[test]
fn rules_of_the_twin_that_others_have_planted_are_not_read() {
    let (emulator, dir) = (Emulator::start(), open_dir());
    program(&dir.path().join("program"), "true");
    let config = "[twin]\naccept = [\"rules\"]\n[allow]\npins = [\"lamp\"]\n[gpio]\nbackend = \"simulated\"\n\
        [gpio.pins.lamp]\nline = 1\n[[rule]]\nname = \"own\"\nwhen = { action = \"own\" }\ndo = []\n";
    write_config(dir.path(), config);
    let file = dir.path().join("twin-rules.json");
    let place = file.display();
    let mut cases = vec![(
        0o646,
        0,
        format!(
            "it is writable by users other than its owner, so it is not used: remove it, or run chmod go-w \
             {place}"
        ),
    )];
    if is_root() {
        let reason = format!(
            "it belongs to user {HOSTILE}, so it is not used: remove it, or run chown root {place}, or run the agent as that user"
        );
        cases.push((0o644, HOSTILE, reason));
    }
    for (mode, owner, reason) in cases {
        fs::write(&file, planted(dir.path())).expect("written");
        set_mode(&file, mode);
        if owner != 0 {
            give_away(&file);
        }
        let (told, code) = check(dir.path());
        let sentence = format!(
            "{place}: warning: the rules of the twin cannot be read: {reason}; the agent runs \
                     without them"
        );
        assert!(told.contains(&sentence) && code == Some(0), "{sentence}\nis not what was told:\n{told}");
        let agent = Process::spawn(&mut agent(&emulator, dir.path()));
        let line = agent.stderr.wait_for("the rules of the twin cannot be read");
        assert!(line.contains(&reason), "{line}");
        agent.stderr.wait_for("subscribed");
        assert_eq!(agent.terminate(), Some(0));
        assert_eq!(agent.stderr.count("rules of the twin are applied"), 0, "{}", agent.stderr.text());
        // The file may be gone, because this twin has no rules.
        drop(fs::remove_file(&file));
    }
    symlink("/etc/passwd", &file).expect("a link");
    let (told, _) = check(dir.path());
    assert!(told.contains("it is not a regular file: remove it"), "{told}");
}

#[test]
fn root_may_look_at_what_belongs_to_the_agents_user() {
    if !is_root_or_skips("root may look at what belongs to the agents user") {
        return;
    }
    let dir = open_dir();
    fs::create_dir(dir.path().join("state")).expect("a directory");
    let config =
        "[inbox]\npath = \"state/inbox.journal\"\n[twin]\naccept = [\"rules\"]\n[allow]\npins = []\n";
    write_config(dir.path(), config);
    let file = dir.path().join("state/twin-rules.json");
    let text = "[[rule]]\\nname = \\\"a\\\"\\nwhen = \\\"any\\\"\\ndo = []\\n";
    fs::write(&file, format!("{{\"version\":3,\"rules\":{{\"10-a\":\"{text}\"}}}}")).expect("written");
    set_mode(&file, 0o600);
    give_away(&file);
    let (told, _) = check(dir.path());
    assert!(told.contains("it belongs to user 65534"), "{told}");
    give_away(&dir.path().join("state"));
    let (told, code) = check(dir.path());
    assert!(!told.contains("belongs to user") && code == Some(0), "{told}");
}

#[test]
fn an_inbox_that_another_user_has_planted_is_not_read_and_messages_wait_at_the_hub() {
    if !is_root_or_skips("an inbox that another user has planted is not read and messages wait at the hub") {
        return;
    }
    let (emulator, dir) = (Emulator::start(), open_dir());
    program(&dir.path().join("program"), "true");
    let first = Agent::start(&emulator, "dev1", dir.path(), &rule(dir.path()));
    assert_eq!(first.process.terminate(), Some(0));
    let inbox = dir.path().join("inbox.journal");
    give_away(&inbox);
    let before = fs::read(&inbox).expect("read");
    let agent = Process::spawn(&mut agent(&emulator, dir.path()));
    let line = agent.stderr.wait_for("so it is not read");
    let place = inbox.display();
    let sentence = format!(
        "the inbox {place} belongs to user {HOSTILE}, so it is not read: run chown root {place}, or run the agent as that user"
    );
    assert!(line.contains(&sentence), "{line}");
    agent.stderr.wait_for("subscribed");
    assert_eq!(fs::read(&inbox).expect("read"), before);
    chown(&inbox, Some(0), None).expect("taken back");
    agent.stderr.wait_for("can be used again");
    assert_eq!(agent.terminate(), Some(0));
}

#[test]
fn another_file_under_the_path_of_the_inbox_is_refused_and_left_alone_until_it_is_gone() {
    let (emulator, dir) = (Emulator::start(), open_dir());
    program(&dir.path().join("program"), "true");
    let path = dir.path().join("ledger.db");
    let content = b"SQLite format 3\0\x10\0\x01\x01\0@  \0\0\0\x01";
    fs::write(&path, content).expect("written");
    let config = format!("{}[inbox]\npath = \"ledger.db\"\n", rule(dir.path()));
    write_config(dir.path(), &config);
    {
        let found = failed(dir.path());
        assert!(found.iter().any(|line| line.contains("is not an inbox of c2d-agent")), "{found:?}");
    }
    let agent = Agent::start(&emulator, "dev1", dir.path(), &config);
    let line = agent.process.stderr.wait_for("is not an inbox of c2d-agent");
    let sentence = format!(
        "the file {} is not an inbox of c2d-agent and was not changed: set [inbox] path to another file, or \
         move this one away",
        path.display()
    );
    assert!(line.contains(&sentence), "{line}");
    emulator.send("dev1", &["--message-id", "m-1"]);
    assert_eq!(fs::read(&path).expect("there"), content);
    let names = fs::read_dir(dir.path()).expect("readable").map(|entry| entry.expect("an entry").file_name());
    let of_it: Vec<_> = names.filter(|name| name.to_string_lossy().starts_with("ledger.db")).collect();
    assert_eq!(of_it, ["ledger.db"], "nothing was put beside it");
    fs::rename(&path, dir.path().join("kept")).expect("moved");
    agent.process.stderr.wait_for("action ended");
    assert_eq!(agent.process.terminate(), Some(0));
    assert_eq!(fs::read(dir.path().join("kept")).expect("there"), content);
}

#[test]
fn a_directory_of_the_inbox_that_others_can_write_to_is_told_by_run_check_and_doctor() {
    let (emulator, dir) = (Emulator::start(), open_dir());
    program(&dir.path().join("program"), "true");
    fs::create_dir_all(dir.path().join("above/state")).expect("directories");
    set_mode(&dir.path().join("above"), 0o755);
    write_config(dir.path(), &format!("{}[inbox]\npath = \"above/state/inbox.journal\"\n", rule(dir.path())));
    set_mode(&dir.path().join("above/state"), 0o755);
    assert_eq!(check(dir.path()), (String::new(), Some(0)));
    let why = "so other users can remove messages or add messages to act on";
    for (place, mode, remedy) in [
        ("above/state", 0o775, "run chmod go-w DIR/above/state"),
        ("above/state", 0o757, "run chmod go-w DIR/above/state"),
        // Others cannot replace existing files, but they can add one.
        ("above/state", 0o1777, "use a directory to which only its owner can write"),
        ("above", 0o777, "run chmod go-w DIR/above"),
    ] {
        set_mode(&dir.path().join(place), mode);
        let own = |text: &str| text.replace("DIR", &dir.path().display().to_string());
        let sentence = own(&format!(
            "DIR/{place}, where the inbox is, is writable by users other than its owner, {why}: {remedy}"
        ));
        let (told, code) = check(dir.path());
        assert!(
            told.contains(&format!("warning: {sentence}")) && code == Some(0),
            "{sentence}\nnot in: {told}"
        );
        let agent = Process::spawn(&mut agent(&emulator, dir.path()));
        let line = agent.stderr.wait_for("where the inbox is");
        assert!(line.contains("WARN") && line.contains(&sentence), "{line}");
        agent.stderr.wait_for("subscribed");
        assert_eq!(agent.terminate(), Some(0), "it is no error");
        assert_eq!(
            failed(dir.path()),
            [own(&format!("inbox: DIR/{place} is writable by users other than its owner: {remedy}"))]
        );
        set_mode(&dir.path().join(place), 0o755);
    }
    // A directory above such as /tmp is no danger: others cannot replace the owner's directory in it.
    set_mode(&dir.path().join("above"), 0o1777);
    assert_eq!(check(dir.path()), (String::new(), Some(0)));
}

#[test]
fn a_configuration_that_others_can_write_to_is_told_by_run_check_and_doctor() {
    let (emulator, dir) = (Emulator::start(), open_dir());
    program(&dir.path().join("program"), "true");
    let config = dir.path().join("etc");
    fs::create_dir_all(config.join("config.d")).expect("directories");
    set_mode(&config, 0o755);
    let text = format!("{}[inbox]\npath = \"{}/inbox.journal\"\n", rule(dir.path()), dir.path().display());
    set_mode(&write_config(&config, &text), 0o644);
    set_mode(&config.join("config.d"), 0o755);
    assert_eq!(check(&config), (String::new(), Some(0)));
    for (place, mode, usual) in
        [("config.toml", 0o664, 0o644), ("config.d", 0o777, 0o755), ("", 0o775, 0o755), ("", 0o1777, 0o755)]
    {
        let place = if place.is_empty() { config.clone() } else { config.join(place) };
        set_mode(&place, mode);
        let shown = place.display();
        let remedy = match mode {
            0o1777 => "use a directory to which only its owner can write".to_owned(),
            _ => format!("run chmod go-w {shown}"),
        };
        let sentence = format!(
            "{shown}: warning: it is writable by users other than its owner: {remedy} (anyone who can write \
             here decides what the agent runs)"
        );
        let (told, code) = check(&config);
        assert_eq!((told, code), (format!("{sentence}\n1 warning\n"), Some(0)));
        let agent = Process::spawn(&mut agent(&emulator, &config));
        assert!(agent.stderr.wait_for("who can write here").contains(&shown.to_string()));
        agent.stderr.wait_for("subscribed");
        assert_eq!(agent.terminate(), Some(0), "it is no error");
        assert_eq!(
            failed(&config),
            [format!("configuration: {shown} is writable by users other than its owner: {remedy}")]
        );
        set_mode(&place, usual);
    }
}

#[test]
fn a_spool_is_not_written_through_a_link_of_another_user() {
    if !is_root_or_skips("a spool is not written through a link of another user") {
        return;
    }
    let (emulator, dir) = (Emulator::start(), open_dir());
    let victim = dir.path().join("victim");
    fs::write(&victim, "").expect("written");
    let spool = dir.path().join("spool");
    symlink(&victim, &spool).expect("a link");
    std::os::unix::fs::lchown(&spool, Some(HOSTILE), None).expect("given away");
    emulator.send("dev1", &["--message-id", "m-1"]);
    let mut command = binary();
    command.args(["c2d-feedback", "--for", "1s", "--spool"]).arg(&spool);
    command
        .env("C2D_SERVICE_CONNECTION_STRING", emulator.service_string())
        .env("C2D_CA_FILE", emulator.ca_file());
    let output = run(&mut command);
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{told}");
    assert!(told.contains(&format!("the link {} belongs to user {HOSTILE}", spool.display())), "{told}");
    assert_eq!(fs::read_to_string(&victim).expect("there"), "");
}
