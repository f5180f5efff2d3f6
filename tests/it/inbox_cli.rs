//! `inbox` and `status`: through the socket of a running agent, and on the file when no agent runs.
//!
//! Owns: what a person sees and does. Must not know: how the inbox stores records.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Instant;

use serde_json::Value;
use tempfile::TempDir;

use crate::harness::{
    Agent, DEADLINE, Emulator, Process, binary, program, run, skip, wait_for_file, write_config,
};
use crate::json_lines::json_lines;

mod unmatched;

/// The FIFOs that actions wait for. Each action has its own: a reader that opens a FIFO while the writer of another
/// action still has it open would read its end.
const FIFOS: [&str; 2] = ["fifo", "again"];

/// A rule that succeeds, one that fails until a file exists, and two that share a lane, of which one waits for a FIFO.
fn rules(dir: &Path) -> String {
    let dir = dir.display();
    format!(
        "[gpio]\nbackend = \"simulated\"\n[gpio.pins.pump]\nline = 17\n\
         [[rule]]\nname = \"pump\"\nwhen = {{ action = \"pump\" }}\ndo = [ {{ gpio = \"pump\", set = \"on\" }} ]\n\
         [[rule]]\nname = \"backup\"\nwhen = {{ action = \"backup\" }}\n\
         do = [ {{ shell = \"printf 'red \\\\033[31m\\\\n'; test -e {dir}/disk && echo backup >> {dir}/done\" }} ]\n\
         [[rule]]\nname = \"wait\"\nwhen = {{ action = \"wait\" }}\nlane = \"one\"\nsettle = \"on-accept\"\n\
         do = [ {{ shell = \"read line < {dir}/fifo\" }} ]\n\
         [[rule]]\nname = \"after\"\nwhen = {{ action = \"after\" }}\nlane = \"one\"\nsettle = \"on-accept\"\n\
         do = [ {{ shell = \"cat >> {dir}/done\" }} ]\n\
         [[rule]]\nname = \"again\"\nwhen = {{ action = \"again\" }}\nlane = \"one\"\nsettle = \"on-accept\"\n\
         on_crash = \"retry\"\n\
         do = [ {{ shell = \"echo begun > {dir}/begun; read line < {dir}/again; cat >> {dir}/done\" }} ]\n"
    )
}

/// An emulator, an agent with those rules, and the command line beside them.
struct House {
    emulator: Emulator,
    dir: TempDir,
}

impl Drop for House {
    /// Releases programs whose agent was killed, because they would wait for ever.
    fn drop(&mut self) {
        let flags = rustix::fs::OFlags::WRONLY | rustix::fs::OFlags::NONBLOCK;
        // Usually no program waits. If one does, the end of the file releases it.
        for fifo in FIFOS {
            drop(rustix::fs::open(self.path().join(fifo), flags, rustix::fs::Mode::empty()));
        }
    }
}

impl House {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let made = Command::new("mkfifo")
            .args(FIFOS.map(|fifo| dir.path().join(fifo)))
            .status()
            .expect("mkfifo runs");
        assert!(made.success());
        Self { emulator: Emulator::start(), dir }
    }

    fn agent(&self) -> Agent {
        let agent = Agent::start(&self.emulator, "dev1", self.path(), &rules(self.path()));
        wait_for("the control socket", || self.path().join("inbox.sock").exists().then_some(()));
        agent
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn send(&self, action: &str, id: &str) {
        self.send_with(action, id, &[]);
    }

    fn send_with(&self, action: &str, id: &str, arguments: &[&str]) {
        let property = format!("action={action}");
        self.emulator.send("dev1", &[&["--property", &property, "--message-id", id], arguments].concat());
    }

    /// Runs a subcommand of `inbox`, or `status`. They need no device, so the environment names none.
    fn ask(&self, arguments: &[&str]) -> Output {
        run(binary().args(arguments).arg("-c").arg(self.path().join("config.toml")))
    }

    /// Standard output of a subcommand that must succeed.
    #[track_caller]
    fn told(&self, arguments: &[&str]) -> String {
        let output = self.ask(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", stderr(&output));
        stdout(&output)
    }

    /// The sentence of a subcommand that must fail with exit code 1.
    #[track_caller]
    fn refused(&self, arguments: &[&str]) -> String {
        let output = self.ask(arguments);
        assert_eq!((output.status.code(), stdout(&output).as_str()), (Some(1), ""), "{arguments:?}");
        stderr(&output)
    }

    /// Each line as JSON.
    #[track_caller]
    fn objects(&self, arguments: &[&str]) -> Vec<Value> {
        json_lines(&self.told(arguments))
    }

    /// Waits until the record of a message is in a state.
    fn wait_for_state(&self, id: &str, state: &str) -> Value {
        wait_for(&format!("{id} to be {state}"), || {
            let output = self.ask(&["inbox", "show", id, "--json"]);
            let record: Value = serde_json::from_slice(&output.stdout).ok()?;
            (record["state"] == state).then_some(record)
        })
    }
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("UTF-8")
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("UTF-8")
}

/// Waits until `found` finds something. It polls, because other processes have no event for this.
fn wait_for<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + DEADLINE;
    loop {
        if let Some(value) = found() {
            return value;
        }
        assert!(Instant::now() < end, "waited too long for {what}");
        std::thread::park_timeout(std::time::Duration::from_millis(10));
    }
}

#[test]
fn a_running_agent_is_asked_through_its_socket() {
    let house = House::new();
    let agent = house.agent();
    let mode = fs::metadata(house.path().join("inbox.sock")).expect("the socket").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    house.send("pump", "m-1");
    house.send_with("backup", "m-2", &["--data", "two\nlines"]);
    house.send("nothing", "m-3");
    house.wait_for_state("m-3", "dead");

    let status = house.told(&["status"]);
    let lines: Vec<&str> = status.lines().collect();
    assert!(lines[0].starts_with("agent         running since 20"), "{status}");
    for line in [
        "device        dev1 on hub localhost",
        "actions       0 running, 0 waiting",
        "outcomes      1 succeeded, 1 failed, 1 unmatched",
        "pins          pump on",
    ] {
        assert!(lines.iter().any(|own| own.starts_with(line)), "no \"{line}\" in\n{status}");
    }
    assert!(
        status.contains("connection    connected since 20") && status.contains(", 0 reconnects\n"),
        "{status}"
    );
    let object = &house.objects(&["status", "--json"])[0];
    assert_eq!(
        (&object["running"], &object["pid"], &object["connection"]["state"]),
        (&true.into(), &agent.process.id().into(), &"connected".into())
    );

    let list = house.told(&["inbox", "list"]);
    let rows: Vec<Vec<&str>> = list.lines().map(|line| line.split_whitespace().collect()).collect();
    let cells = |row: usize| (rows[row][0], rows[row][1], rows[row][4], rows[row][5], rows[row][7]);
    assert_eq!(cells(1), ("#1", "finished", "pump", "m-1", "succeeded"));
    assert_eq!(cells(2), ("#2", "dead", "backup", "m-2", "failed:"));
    assert_eq!(cells(3), ("#3", "dead", "-", "m-3", "unmatched:"));
    let output = house.ask(&["inbox", "list", "--limit", "1", "--json"]);
    assert_eq!(stderr(&output), "2 older records are not shown: --limit 3 shows all\n");
    assert_eq!(serde_json::from_slice::<Value>(&output.stdout).expect("one object")["number"], 3);
    let dead = house.objects(&["inbox", "--json", "list", "--state", "dead"]);
    assert_eq!(dead.iter().map(|record| &record["messageId"]).collect::<Vec<_>>(), ["m-2", "m-3"]);
    let output = house.ask(&["inbox", "list", "--state", "started"]);
    assert_eq!((stdout(&output).as_str(), stderr(&output).as_str()), ("", "no record is in this state\n"));

    // The number works without #, because a shell takes # for the beginning of a comment.
    for id in ["m-2", "#2", "2"] {
        let shown = house.told(&["inbox", "show", id]);
        for part in [
            "state       dead",
            "exit code   1",
            "  action = backup",
            "\n  two\n  lines\n",
            "  red \\u{1b}[31m\n",
        ] {
            assert!(shown.contains(part), "no \"{part}\" in\n{shown}");
        }
    }
    let exported = house.objects(&["inbox", "export"]);
    for times in exported.iter().map(|record| [&record["received"], &record["outcome"]["ended"]]) {
        assert!(
            times.iter().all(|time| time.as_str().is_some_and(|time| time.starts_with("20"))),
            "{times:?}"
        );
    }
    let bodies: Vec<_> = exported.iter().map(|record| &record["message"]["body"]).collect();
    assert_eq!(bodies, [&Value::Null, &"two\nlines".into(), &"".into()]);
    assert_eq!(exported[1]["message"]["applicationProperties"]["action"], "backup");

    assert_eq!(agent.process.terminate(), Some(0));
    assert!(!house.path().join("inbox.sock").exists(), "the socket is removed at the end");
}

#[test]
fn a_dead_letter_is_run_again_at_once_when_the_agent_runs() {
    let house = House::new();
    let agent = house.agent();
    house.send("backup", "m-1");
    house.wait_for_state("m-1", "dead");
    assert_eq!(
        house.told(&["inbox", "retry", "m-1"]),
        "message \"m-1\" (#1) is run again now, or as soon as its turn comes\n"
    );
    let line = agent.process.stderr.wait_for_nth("action ended", 2);
    assert!(line.contains(" outcome=\"failed: shell: exit code 1\" "), "{line}");
    house.wait_for_state("m-1", "dead");
    fs::write(house.path().join("disk"), "").expect("written");
    let done = &house.objects(&["inbox", "retry", "m-1", "--json"])[0];
    assert_eq!((&done["done"], &done["runs"]), (&"retried".into(), &"now".into()));
    house.wait_for_state("m-1", "finished");
    assert_eq!(wait_for_file(&house.path().join("done"), "backup\n"), "backup\n");
    assert_eq!(
        house.refused(&["inbox", "retry", "m-1"]),
        "c2d-agent: message \"m-1\" (#1) is finished: only a dead letter can be run again\n"
    );
    let sentence = house.refused(&["inbox", "show", "m-7"]);
    assert!(sentence.starts_with("c2d-agent: the inbox has no record of \"m-7\": "), "{sentence}");
}

#[test]
fn a_message_that_waits_for_its_turn_can_be_dropped_and_one_that_runs_cannot() {
    let house = House::new();
    let _agent = house.agent();
    house.send("wait", "m-1");
    house.wait_for_state("m-1", "started");
    house.send_with("after", "m-2", &["--data", "second\n"]);
    house.send_with("after", "m-3", &["--data", "third\n"]);
    house.wait_for_state("m-3", "accepted");
    let status = house.told(&["status"]);
    assert!(status.contains("actions       1 running, 2 waiting"), "{status}");
    let sentence = house.refused(&["inbox", "drop", "m-1"]);
    assert!(
        sentence.contains("is being acted on: only a dead letter, or a message that waits"),
        "{sentence}"
    );
    assert_eq!(
        house.told(&["inbox", "drop", "m-2"]),
        "message \"m-2\" (#2) is dropped: it will not be run\n"
    );
    fs::write(house.path().join("fifo"), "go\n").expect("written");
    house.wait_for_state("m-3", "finished");
    assert_eq!(fs::read_to_string(house.path().join("done")).expect("the file"), "third\n");
    assert_eq!(house.wait_for_state("m-2", "finished")["outcome"]["outcome"], "dropped");
}

/// If an action may run again, its beginning is not recorded. The file then says that the message waits for its turn.
#[test]
fn a_message_that_runs_without_a_recorded_beginning_cannot_be_dropped_either() {
    let house = House::new();
    let agent = house.agent();
    house.send("wait", "m-1");
    house.wait_for_state("m-1", "started");
    house.send_with("again", "m-2", &["--data", "second\n"]);
    house.send_with("after", "m-3", &["--data", "third\n"]);
    house.wait_for_state("m-3", "accepted");
    fs::write(house.path().join("fifo"), "go\n").expect("written");
    wait_for_file(&house.path().join("begun"), "begun\n");
    for id in ["m-2", "#2", "2"] {
        let sentence = house.refused(&["inbox", "drop", id]);
        assert!(
            sentence.contains("message \"m-2\" (#2) is being acted on: only a dead letter"),
            "{sentence}"
        );
    }
    let status = house.told(&["status"]);
    assert!(status.contains("actions       1 running, 1 waiting"), "{status}");
    fs::write(house.path().join("again"), "go\n").expect("written");
    house.wait_for_state("m-3", "finished");
    let record = house.wait_for_state("m-2", "finished");
    assert_eq!((&record["outcome"]["outcome"], &record["attempts"]), (&"succeeded".into(), &1.into()));
    assert_eq!(fs::read_to_string(house.path().join("done")).expect("the file"), "second\nthird\n");
    assert_eq!(agent.process.terminate(), Some(0));
}

#[test]
fn a_full_inbox_is_told_and_takes_messages_again_when_some_have_ended() {
    let house = House::new();
    let text = format!("{}[inbox]\npath = \"inbox.journal\"\nmax_size = \"1MiB\"\n", rules(house.path()));
    let agent = Agent::start(&house.emulator, "dev1", house.path(), &text);
    house.send("wait", "m-1");
    house.wait_for_state("m-1", "started");
    let body = house.path().join("body");
    fs::write(&body, "x".repeat(60_000)).expect("written");
    for number in 0..20 {
        house.send_with("after", &format!("big-{number}"), &["--file", &body.display().to_string()]);
    }
    agent.process.stderr.wait_for("the inbox is full: messages that have not ended take all of");
    let status =
        wait_for("the trouble", || Some(house.told(&["status"])).filter(|status| status.contains("TROUBLE")));
    assert!(status.contains("full of messages that have not ended: "), "{status}");
    fs::write(house.path().join("fifo"), "go\n").expect("written");
    house.wait_for_state("big-19", "finished");
    assert!(!house.told(&["status"]).contains("TROUBLE"));
    assert_eq!(fs::metadata(house.path().join("done")).expect("the file").len(), 20 * 60_000);
    assert_eq!(agent.process.terminate(), Some(0));
}

#[test]
fn without_an_agent_the_file_is_asked_and_what_is_retried_runs_at_the_next_start() {
    let house = House::new();
    let agent = house.agent();
    for id in ["m-1", "m-2"] {
        house.send("backup", id);
        house.wait_for_state(id, "dead");
    }
    agent.process.kill();
    assert!(house.path().join("inbox.sock").exists(), "kill -9 leaves the socket behind");

    let output = house.ask(&["status"]);
    assert_eq!(output.status.code(), Some(1));
    let text = stdout(&output);
    assert!(text.starts_with("agent     not running\ninbox     "), "{text}");
    assert!(text.contains("2 records (0 not ended, 2 dead letters)"), "{text}");
    assert!(
        stderr(&output).starts_with("c2d-agent: no agent runs: nothing listens on "),
        "{}",
        stderr(&output)
    );
    let object: Value = serde_json::from_slice(&house.ask(&["status", "--json"]).stdout).expect("an object");
    assert_eq!((&object["running"], &object["inbox"]["counts"]["dead"]), (&false.into(), &2.into()));

    assert_eq!(house.told(&["inbox", "list"]).lines().count(), 3);
    assert_eq!(house.objects(&["inbox", "export"])[0]["message"]["systemProperties"]["$.mid"], "m-1");
    assert_eq!(
        house.told(&["inbox", "retry", "m-1"]),
        "message \"m-1\" (#1) will be run when the agent starts: none runs now\n"
    );
    assert_eq!(house.told(&["inbox", "drop", "#2"]), "message \"m-2\" (#2) is dropped: it will not be run\n");
    fs::write(house.path().join("disk"), "").expect("written");
    let agent = house.agent();
    house.wait_for_state("m-1", "finished");
    assert_eq!(fs::read_to_string(house.path().join("done")).expect("the file"), "backup\n");
    assert_eq!(agent.process.terminate(), Some(0));
}

#[test]
fn a_second_agent_with_the_same_socket_leaves_it_to_the_first() {
    let house = House::new();
    let first = house.agent();
    let string = house.emulator.device_string("dev1");
    // The hub would keep only one connection of the device, so the second agent gets another port.
    let string = string.replace(&format!(":{}", house.emulator.mqtt.port()), ":1");
    let inbox = "[inbox]\npath = \"other.journal\"\nsocket = \"inbox.sock\"\n";
    let second = Agent::spawn(
        &string,
        &house.emulator.ca_file(),
        house.path(),
        &format!("{}{inbox}", rules(house.path())),
    );
    second.process.stderr.wait_for("another agent listens on the control socket");
    assert_eq!(second.process.terminate(), Some(0));
    let object = &house.objects(&["status", "--json"])[0];
    assert_eq!(object["pid"], first.process.id());
}

#[test]
fn an_agent_without_its_hub_says_so() {
    let house = House::new();
    let _agent = house.agent();
    house.emulator.process.kill();
    let status = wait_for("the loss of the hub", || {
        Some(house.told(&["status"])).filter(|status| status.contains("NOT CONNECTED since 20"))
    });
    assert!(!status.contains("token  "), "{status}");
}

#[test]
fn an_inbox_that_is_not_there_is_named() {
    let dir = tempfile::tempdir().expect("a directory");
    let ask = |config: &Path, arguments: &[&str]| run(binary().args(arguments).arg("-c").arg(config));
    let config = write_config(dir.path(), "");
    let output = ask(&config, &["inbox", "list"]);
    let file = dir.path().join("inbox.journal");
    let sentence =
        format!("there is no inbox at {}: it is created when the agent first runs", file.display());
    assert_eq!((output.status.code(), stderr(&output)), (Some(1), format!("c2d-agent: {sentence}\n")));
    let output = ask(&config, &["status"]);
    assert_eq!((output.status.code(), stdout(&output).starts_with("agent  not running\n")), (Some(1), true));
    // The command must not show another inbox than the one that the user means.
    for config in [write_config(dir.path(), "[inbox]\npath = 1\n"), PathBuf::from("/no/such/c.toml")] {
        for arguments in [["inbox", "export"].as_slice(), &["status"]] {
            let output = ask(&config, arguments);
            assert_eq!(output.status.code(), Some(2), "{arguments:?}");
            let sentence = "c2d-agent: the configuration does not say where the inbox is:\n";
            assert!(stderr(&output).starts_with(sentence), "{}", stderr(&output));
        }
    }
}

#[test]
fn a_reader_that_has_seen_enough_is_no_error() {
    let house = House::new();
    let agent = house.agent();
    house.send("pump", "m-1");
    house.wait_for_state("m-1", "finished");
    for arguments in [["inbox", "list"].as_slice(), &["inbox", "export"], &["status"]] {
        let mut command = binary();
        command.args(arguments).arg("-c").arg(house.path().join("config.toml"));
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
        drop(child.stdout.take());
        let output = child.wait_with_output().expect("it ends");
        assert_eq!((output.status.code(), stderr(&output).as_str()), (Some(0), ""), "{arguments:?}");
    }
    drop(agent);
}

#[test]
fn a_table_fits_a_terminal_with_whole_ids_and_cannot_drive_it() {
    let Some(script) = program("script") else {
        return skip("tables on a terminal", "script is not installed");
    };
    let house = House::new();
    let _agent = house.agent();
    house.send("backup", &"long-id-".repeat(10));
    let id = "419cfb05-0c2a-4f0e-a001-000000000001";
    house.send("backup", id);
    house.wait_for_state("2", "dead");
    let line = format!(
        "stty cols 80; {0} inbox list -c {1}; {0} inbox show 1 -c {1}; {0} status -c {1}",
        env!("CARGO_BIN_EXE_c2d-agent"),
        house.path().join("config.toml").display()
    );
    let process = Process::spawn(Command::new(script).args(["-qec", &line, "/dev/null"]));
    process.wait_exit();
    let text = process.stdout.text();
    let table: Vec<&str> = text.lines().map(|line| line.trim_end_matches('\r')).take(6).collect();
    assert!(table[0].starts_with("NUMBER  STATE") && table[2].ends_with('…'), "{text}");
    assert!(table[4].starts_with("#2 ") && table[4].ends_with(id), "{text}");
    assert!(table.iter().all(|line| line.chars().count() <= 80), "{table:#?}");
    assert!(text.contains("agent         running") && !text.contains('\x1b'), "{text}");
}
