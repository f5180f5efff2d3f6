//! A device gets another hub, however it learns of it: what its inbox holds is finished, and what the new hub sends is new.
//!
//! Owns: nothing. Must not know: how a device is assigned.

use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::Signal;

use crate::emulator_hubs::Named;
use crate::emulator_running::asking;
use crate::harness::{Emulator, Process, binary, run, wait_for_file, wait_for_status, write_config};

/// The further hub. It is also the address where it is dialled.
const OTHER: &str = "127.0.0.2";

/// An emulator with two hubs, and a gateway that is the device `a` at one of them.
struct Gateway {
    emulator: Emulator,
    dir: tempfile::TempDir,
}

impl Gateway {
    /// `device` is the beginning of the configuration.
    fn new(emulator: Emulator, device: &str) -> Self {
        let gateway = Self { emulator, dir: tempfile::tempdir().expect("a directory") };
        write_config(gateway.dir.path(), &format!("{device}{}", rule(gateway.dir.path())));
        gateway
    }

    /// Its hub is assigned.
    fn enrolled() -> Self {
        let emulator = Emulator::start_with(&["--dps-device", "a", "--hub", OTHER]);
        let device = format!(
            "[provisioning]\nid_scope = \"0ne00000001\"\nregistration_id = \"a\"\nendpoint = \"localhost:{}\"\n\
             key_file = {:?}\n",
            emulator.mqtt.port(),
            emulator.state.join("dps/devices/a.key"),
        );
        let gateway = Self::new(emulator, &device);
        gateway.provision(&[]);
        gateway
    }

    /// Its hub is in a file, which [`Gateway::use_other`] changes.
    fn named() -> Self {
        let emulator = Emulator::start_with(&["--device", "a", "--hub", OTHER]);
        let gateway =
            Self::new(emulator, "[device]\nconnection_string_file = \"device.connection-string\"\n");
        gateway.use_string(&gateway.emulator.device_string("a"));
        gateway
    }

    fn use_string(&self, text: &str) {
        let path = self.path("device.connection-string");
        std::fs::write(&path, text).expect("written");
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("a mode");
    }

    /// Makes the device at the other hub, and gives the gateway its connection string.
    fn use_other(&self) {
        let other = Named::further(&self.emulator, OTHER);
        other.make("a");
        self.use_string(&other.read("devices/a.connection-string"));
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = binary();
        command.args(arguments).arg("-c").arg(self.path("config.toml"));
        command.env("C2D_CA_FILE", self.emulator.ca_file());
        command
    }

    fn provision(&self, arguments: &[&str]) {
        let asked = run(&mut self.command(&[&["provision"], arguments].concat()));
        assert!(asked.status.success(), "{asked:?}");
    }

    /// The next registration leads to the other hub.
    fn move_away(&self) {
        let set = run(&mut asking(&self.emulator.state, &["faults", "--device", "a", "dps-move"]));
        assert!(set.status.success(), "{set:?}");
    }

    fn run(&self) -> Process {
        let agent = Process::spawn(&mut self.command(&["run"]));
        agent.stderr.wait_for("subscribed");
        agent
    }

    /// Sends the same message with this id, over the main hub.
    fn send(&self, id: &str) {
        self.emulator.send("a", &["--message-id", id]);
    }

    /// The same over the other one, until the action has ended.
    fn send_to_other(&self, id: &str) {
        let mut command = binary();
        command.args([
            "c2d-send",
            "--device",
            "a",
            "--message-id",
            id,
            "--wait=20s",
            "--connection-string-file",
        ]);
        command.arg(self.emulator.state.join("hubs").join(OTHER).join("service.connection-string"));
        let sent = run(command.arg("--ca-file").arg(self.emulator.ca_file()));
        assert!(sent.status.success(), "{sent:?}");
    }

    /// An agent that runs `first`, while `second` waits.
    fn busy(&self, first: &str, second: &str) -> Process {
        let agent = self.run();
        [first, second].iter().for_each(|id| self.send(id));
        wait_for_file(&self.path("out"), first);
        wait_for_status(self.dir.path(), "1 running, 1 waiting");
        agent
    }

    /// Lets actions end from now on.
    fn go(&self) {
        std::fs::write(self.path("go"), "").expect("written");
    }

    /// Waits for the line of `last` among those of all actions that began.
    fn began(&self, last: &str) -> String {
        wait_for_file(&self.path("out"), &format!("{last}\n"))
    }

    /// Starts the agent, which finishes what waited, and takes a message of the other hub.
    fn finishes_at_other(&self) -> Process {
        self.go();
        let agent = self.run();
        assert_eq!(self.began("m2"), "m1\nm2\n");
        agent.stderr.wait_for("what the hub before had is finished from the inbox");
        self.send_to_other("m3");
        assert_eq!(self.began("m3"), "m1\nm2\nm3\n");
        wait_for_status(self.dir.path(), "3 records (0 not ended");
        agent
    }
}

/// One action at a time: it writes the id of its message into `out`, and ends when there is a file `go`.
fn rule(dir: &Path) -> String {
    let script = "echo $C2D_MESSAGE_ID >>$0/out; while [ ! -e $0/go ]; do sleep 0.05; done";
    format!(
        "[[rule]]\nname = \"wait\"\nwhen = \"any\"\ntimeout = \"50s\"\n\
         do = [ {{ run = [\"/bin/sh\", \"-c\", '{script}', {dir:?}] }} ]\n"
    )
}

#[test]
fn what_waited_when_the_agent_stopped_is_finished_after_another_hub_was_assigned() {
    let gateway = Gateway::enrolled();
    assert_eq!(gateway.busy("m1", "m2").terminate(), Some(0));
    gateway.move_away();
    gateway.provision(&["--again"]);
    assert_eq!(gateway.finishes_at_other().terminate(), Some(0));
}

#[test]
fn what_waited_when_the_agent_was_killed_is_finished_after_another_hub_was_assigned() {
    let gateway = Gateway::enrolled();
    // As if it had been killed after the assignment was on disk, and before its inbox knew of it.
    gateway.busy("m1", "m2").kill();
    gateway.move_away();
    gateway.provision(&["--again"]);
    assert_eq!(gateway.finishes_at_other().terminate(), Some(0));
}

#[test]
fn what_waited_is_finished_when_the_assignment_is_gone_and_the_next_one_is_another() {
    let gateway = Gateway::enrolled();
    gateway.busy("m1", "m2").kill();
    gateway.move_away();
    std::fs::remove_file(gateway.path("inbox.journal.assignment")).expect("an assignment");
    assert_eq!(gateway.finishes_at_other().terminate(), Some(0));
}

#[test]
fn what_waits_at_a_reload_with_another_hub_is_finished_even_if_the_agent_is_killed_then() {
    let gateway = Gateway::named();
    let agent = gateway.busy("m1", "m2");
    gateway.use_other();
    agent.signal(Signal::HUP);
    agent.stderr.wait_for("what the hub before had is finished from the inbox");
    agent.stderr.wait_for_nth("subscribed", 2);
    agent.kill();
    gateway.go();
    let agent = gateway.run();
    assert_eq!(gateway.began("m2"), "m1\nm2\n");
    wait_for_status(gateway.dir.path(), "2 records (0 not ended");
    assert_eq!(agent.terminate(), Some(0));
}

#[test]
fn what_waited_is_finished_when_the_next_start_is_with_another_connection_string() {
    let gateway = Gateway::named();
    gateway.busy("m1", "m2").kill();
    gateway.use_other();
    assert_eq!(gateway.finishes_at_other().terminate(), Some(0));
}

#[test]
fn an_equal_message_of_the_new_hub_runs_although_the_hub_before_may_not_have_the_completion() {
    for (is_reload, gateway) in [(true, Gateway::named()), (false, Gateway::named())] {
        let agent = gateway.busy("on", "m2");
        let agent = if is_reload {
            gateway.use_other();
            agent.signal(Signal::HUP);
            agent.stderr.wait_for_nth("subscribed", 2);
            gateway.go();
            agent
        } else {
            // The hub has gone, so that it never learns that "on" ended.
            gateway.emulator.process.signal(Signal::STOP);
            gateway.go();
            assert_eq!(gateway.began("m2"), "on\nm2\n");
            agent.kill();
            gateway.emulator.process.signal(Signal::CONT);
            gateway.use_other();
            gateway.run()
        };
        assert_eq!(gateway.began("m2"), "on\nm2\n");
        gateway.send_to_other("on");
        assert_eq!(gateway.began("m2\non"), "on\nm2\non\n", "reload: {is_reload}");
        assert_eq!(agent.terminate(), Some(0));
    }
}
