//! Programs that an agent leaves running when it is killed: the next agent ends them before it runs any rule, and ends
//! no other process.
//!
//! Must not know: which functions read and write the notes.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use crate::harness::wait_for_file;
use crate::soak::back_end::Hub;
use crate::soak::gateway::Gateway;

const NOTES: &str = "inbox.journal.children";
const ENDING: &str = "ending programs that an earlier agent left running";

/// Counts messages, because a hub keeps the feedback of all of them.
static MESSAGES: AtomicU32 = AtomicU32::new(0);

/// A rule `work` whose program and its own child hold the lock `lock` until they end. The program writes into `done`
/// whether it was alone.
fn work(keys: &str, first: &str) -> String {
    format!(
        "[[rule]]\nname = \"work\"\nwhen = {{ action = \"work\" }}\n{keys}\ndo = [ {{ shell = '''{first}\n\
         exec 9>> DIR/lock\nflock -n 9 && echo alone >> DIR/done || echo beside another >> DIR/done\n\
         sleep 600 & wait; sleep 600''' }} ]\n"
    )
}

/// Whether a program still has the lock.
fn is_locked(gateway: &Gateway) -> bool {
    File::open(gateway.path("lock")).expect("a lock").try_lock().is_err()
}

/// An agent that was killed in the middle of `m-1`.
fn killed_in_the_middle(keys: &str, first: &str) -> (Hub, Gateway) {
    let hub = Hub::start();
    let mut gateway = Gateway::new(&hub, &work(keys, first));
    gateway.start_subscribed();
    hub.send("m-1", "work", &[]).expect("room");
    wait_for_file(&gateway.path("done"), "alone");
    // On a busy machine, the program may be ahead of its note.
    wait_for_file(&gateway.path(NOTES), " work");
    gateway.kill();
    assert!(is_locked(&gateway), "the program outlives the agent");
    (hub, gateway)
}

#[test]
fn a_program_of_a_killed_agent_has_ended_before_its_rule_runs_again() {
    // The second one is ended only by SIGKILL, and so is its child.
    for first in ["", "trap '' TERM"] {
        let (_hub, mut gateway) = killed_in_the_middle("on_crash = \"retry\"", first);
        gateway.start_subscribed();
        let line = gateway.agent().stderr.wait_for(ENDING);
        assert!(line.contains("rule=\"work\""), "{line}");
        let done = wait_for_file(&gateway.path("done"), "alone\nalone");
        assert_eq!(done, "alone\nalone\n");
        gateway.terminate();
    }
}

#[test]
fn a_program_of_a_killed_agent_is_ended_although_its_rule_does_not_run_again() {
    let (_hub, mut gateway) = killed_in_the_middle("", "");
    gateway.start_subscribed();
    assert_eq!(gateway.settled_inbox()["m-1"].outcome.as_deref(), Some("interrupted"));
    assert!(!is_locked(&gateway));
    gateway.terminate();
}

#[test]
fn an_agent_that_ended_in_good_order_leaves_nothing_to_end() {
    let hub = Hub::start();
    let rule = work("", "").replace("sleep 600 & wait; sleep 600", "");
    let mut gateway = Gateway::new(&hub, &rule);
    for life in 1..=2 {
        gateway.start_subscribed();
        hub.send(&format!("m-{life}"), "work", &[]).expect("room");
        hub.wait_success(&format!("m-{life}"));
        assert_eq!(gateway.agent().stderr.count(ENDING), 0);
        gateway.terminate();
    }
}

/// A group that no agent has started: a program whose child goes on after it, until the group is ended.
struct Stranger {
    leader: Child,
    /// When the leader began.
    started: u64,
    child: u32,
    output: BufReader<std::process::ChildStdout>,
}

/// The fields of `/proc/ID/stat` from the third one on.
fn stat(id: u32) -> Vec<String> {
    let stat = fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
    stat.rsplit(')').next().unwrap_or_default().split_whitespace().map(str::to_owned).collect()
}

impl Stranger {
    /// The leader ends once its standard input does.
    fn start() -> Self {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "sleep 600 & echo $!; read -r _"]).process_group(0);
        let mut leader =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("a program starts");
        let mut output = BufReader::new(leader.stdout.take().expect("piped"));
        let mut line = String::new();
        output.read_line(&mut line).expect("a line");
        let (started, child) =
            (stat(leader.id())[19].parse().expect("a time"), line.trim().parse().expect("an id"));
        Self { leader, started, child, output }
    }

    fn end_leader(&mut self) {
        drop(self.leader.stdin.take());
        assert!(self.leader.wait().expect("ended").code().is_some());
    }

    fn note(&self) -> String {
        format!("{} {} work", self.leader.id(), self.started)
    }

    fn runs(&self) -> bool {
        stat(self.child).first().is_some_and(|state| state != "Z")
    }

    /// Returns when the whole group has ended.
    fn wait_ended(&mut self) {
        self.output.read_to_string(&mut String::new()).expect("the end of the output");
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        let group = rustix::process::Pid::from_child(&self.leader);
        if self.runs() {
            rustix::process::kill_process_group(group, rustix::process::Signal::KILL).expect("ended");
        }
        drop(self.leader.wait());
    }
}

/// Notes as an agent of this session would have written them that has ended: no process has its number.
fn notes(lines: &[String]) -> String {
    notes_of(&format!("{} 4194399 1", stat(std::process::id())[3]), lines)
}

/// `agent`: its session, its number, when it began.
fn notes_of(agent: &str, lines: &[String]) -> String {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").expect("a boot id");
    let namespace = fs::read_link("/proc/self/ns/pid").expect("a namespace");
    let first = format!("{} {} {agent}", boot.trim(), namespace.display());
    let lines = std::iter::once(&first).chain(lines);
    lines.map(|line| format!("{line:<127}\n")).collect()
}

/// An agent that has found these notes and has begun its own.
fn start_with(hub: &Hub, prepare: impl FnOnce(&Path)) -> Gateway {
    let mut gateway = Gateway::new(hub, &work("", "").replace("sleep 600 & wait; sleep 600", ""));
    // The directory of an inbox that has been here before.
    gateway.start_subscribed();
    gateway.terminate();
    prepare(&gateway.path(NOTES));
    gateway.start_subscribed();
    let id = format!("m-{}", MESSAGES.fetch_add(1, Relaxed));
    hub.send(&id, "work", &[]).expect("room");
    hub.wait_success(&id);
    gateway
}

#[test]
fn a_noted_group_is_ended_whether_or_not_its_leader_still_runs() {
    let hub = Hub::start();
    for leader_ends in [false, true] {
        let mut stranger = Stranger::start();
        if leader_ends {
            stranger.end_leader();
        }
        let mut gateway =
            start_with(&hub, |path| fs::write(path, notes(&[stranger.note()])).expect("written"));
        gateway.agent().stderr.wait_for(ENDING);
        stranger.wait_ended();
        if !leader_ends {
            assert_eq!(stranger.leader.wait().expect("ended").signal(), Some(15));
        }
        gateway.terminate();
    }
}

#[test]
fn a_process_that_only_has_the_number_of_a_noted_one_is_left_alone() {
    let hub = Hub::start();
    let (later, mut without_leader) = (Stranger::start(), Stranger::start());
    without_leader.end_leader();
    let earlier = format!("{} {} work", later.leader.id(), later.started - 1);
    let other_boot = notes(&[later.note()]).replacen(|c: char| c.is_ascii_hexdigit(), "x", 1);
    let other_container = notes(&[later.note()]).replacen("pid:[", "pid:[1", 1);
    for content in [
        notes(&[earlier]),
        notes_of("4194399 4194399 1", &[without_leader.note()]),
        other_boot,
        other_container,
    ] {
        let mut gateway = start_with(&hub, |path| fs::write(path, &content).expect("written"));
        assert!(later.runs() && without_leader.runs(), "{content}");
        assert_eq!(gateway.agent().stderr.count(ENDING), 0, "{content}");
        gateway.terminate();
    }
}

#[test]
fn notes_of_an_agent_that_still_runs_and_its_programs_are_left_alone() {
    let hub = Hub::start();
    let stranger = Stranger::start();
    let own = stat(std::process::id());
    let (session, id, started) = (&own[3], std::process::id(), own[19].parse::<u64>().expect("a time"));
    let content = notes_of(&format!("{session} {id} {started}"), &[stranger.note()]);
    let mut gateway = start_with(&hub, |path| fs::write(path, &content).expect("written"));
    let line = gateway
        .agent()
        .stderr
        .wait_for(&format!("{NOTES} is in use by process {id}, so no program is ended"));
    assert!(line.contains("end that process first, or give this agent a device"), "{line}");
    assert!(stranger.runs());
    assert_eq!(fs::read_to_string(gateway.path(NOTES)).expect("notes"), content);
    gateway.terminate();
    // Another process has its number: it has ended.
    let mut stranger = stranger;
    let content = notes_of(&format!("{session} {id} {}", started - 1), &[stranger.note()]);
    let mut gateway = start_with(&hub, |path| fs::write(path, &content).expect("written"));
    gateway.agent().stderr.wait_for(ENDING);
    stranger.wait_ended();
    gateway.terminate();
}

#[test]
fn damaged_notes_are_named_and_keep_no_message_from_being_acted_on() {
    let hub = Hub::start();
    let mut gateway = start_with(&hub, |path| fs::write(path, [b'x'; 20_000]).expect("written"));
    gateway.agent().stderr.wait_for("inbox.journal.children cannot be used (it is damaged)");
    gateway.terminate();

    // What can be read of them still counts.
    let mut stranger = Stranger::start();
    let mut gateway = start_with(&hub, |path| {
        fs::write(path, notes(&["\0\0 7".to_owned(), stranger.note(), "-1 5 work".to_owned()]))
            .expect("written");
    });
    gateway.agent().stderr.wait_for("the note of a program is damaged");
    stranger.wait_ended();
    gateway.terminate();
}

#[test]
fn a_link_in_the_place_of_the_notes_is_not_followed() {
    let hub = Hub::start();
    let stranger = Stranger::start();
    let elsewhere = tempfile::tempdir().expect("a directory");
    let target = elsewhere.path().join("target");
    let content = notes(&[stranger.note()]);
    fs::write(&target, &content).expect("written");
    let mut gateway = start_with(&hub, |path| {
        fs::remove_file(path).expect("removed");
        symlink(&target, path).expect("a link");
    });
    gateway.agent().stderr.wait_for("inbox.journal.children cannot be used (it is a link)");
    assert!(stranger.runs(), "what others have prepared is not believed");
    assert_eq!(fs::read_to_string(&target).expect("a file"), content);
    let own = fs::symlink_metadata(gateway.path(NOTES)).expect("notes");
    assert!(own.is_file());
    assert_eq!(own.permissions().mode() & 0o777, 0o600);
    gateway.terminate();
}

#[test]
fn notes_that_others_could_have_written_are_not_believed() {
    let hub = Hub::start();
    let stranger = Stranger::start();
    let mut gateway = start_with(&hub, |path| {
        fs::write(path, notes(&[stranger.note()])).expect("written");
        fs::set_permissions(path, fs::Permissions::from_mode(0o666)).expect("changed");
    });
    gateway.agent().stderr.wait_for("it is writable by users other than its owner");
    assert!(stranger.runs());
    gateway.terminate();
}
