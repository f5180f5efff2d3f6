//! Certificates that the service issues and the agent renews: while messages flow, when the hub or the authority
//! refuses, and when the agent is killed at any step.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;

use c2d_agent::tls::{ClientCertificate, check_client_certificate};
use serde_json::Value;

use crate::harness::{Emulator, Process, binary, program, run, skip, wait_for_file, write_config};

pub(super) const DEVICE: &str = "pump-12";
pub(super) const TAKEN_UP: &str = "signed in with the certificate that was issued";

/// An agent that is enrolled by its key, and asks for certificates.
pub(super) struct Enrolled {
    emulator: Arc<Emulator>,
    pub(super) dir: tempfile::TempDir,
    config: PathBuf,
}

impl Enrolled {
    pub(super) fn new(lifetime: &str, transport: &str) -> Self {
        Self::with(lifetime, transport, &[])
    }

    /// `more`: arguments of the emulator. A fault of a device is there before the device with it.
    pub(super) fn with(lifetime: &str, transport: &str, more: &[&str]) -> Self {
        let arguments = ["--dps-device", DEVICE, "--certificate-lifetime", lifetime];
        let emulator = Emulator::start_with(&[&arguments, more].concat());
        Self::at(Arc::new(emulator), transport)
    }

    /// Another agent with the same registration, over MQTT.
    pub(super) fn beside(&self) -> Self {
        Self::at(Arc::clone(&self.emulator), "mqtt")
    }

    fn at(emulator: Arc<Emulator>, transport: &str) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let key = emulator.state.join(format!("dps/devices/{DEVICE}.key"));
        let port = emulator.mqtt.port();
        let done = dir.path().join("done");
        let text = format!(
            "[provisioning]\nid_scope = \"0ne00000001\"\nregistration_id = \"{DEVICE}\"\nkey_file = {key:?}\n\
             endpoint = \"localhost:{port}\"\nrequest_certificate = true\n[device]\ntransport = \"{transport}\"\n\
             [[rule]]\nname = \"quick\"\nwhen = {{ action = \"quick\" }}\n\
             do = [ {{ shell = \"echo $C2D_MESSAGE_ID >> {}\" }} ]\n",
            done.display()
        );
        let config = write_config(dir.path(), &text);
        Self { emulator, dir, config }
    }

    pub(super) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = binary();
        command.args(arguments).arg("-c").arg(&self.config).env("C2D_CA_FILE", self.emulator.ca_file());
        command.env("C2D_HTTPS_PORT", self.emulator.https.port().to_string());
        command
    }

    pub(super) fn start(&self) -> Process {
        Process::spawn(&mut self.command(&["run"]))
    }

    /// Starts the agent, which is killed when one of its threads begins the system call `call` for the `nth` time.
    fn start_killed_at(&self, strace: &PathBuf, call: &str, nth: u32) -> Process {
        let run = self.command(&["run"]);
        let mut command = Command::new(strace);
        command.args(["-D", "-f", "-qq", "-o", "/dev/null", "-e"]).arg(format!("trace={call}"));
        command.arg("-e").arg(format!("inject={call}:signal=KILL:when={nth}"));
        command.arg(run.get_program()).args(run.get_args());
        command.envs(run.get_envs().filter_map(|(name, value)| Some((name, value?))));
        Process::spawn(&mut command)
    }

    fn send(&self, id: &str) {
        let sent = self.emulator.send(DEVICE, &["--message-id", id, "--property", "action=quick"]);
        assert!(sent.status.success(), "{sent:?}");
    }

    pub(super) fn fault(&self, arguments: &[&str]) {
        let mut command = binary();
        command.args(["emulator", "faults", "--device", DEVICE]).args(arguments);
        let set = run(command.arg("--state-dir").arg(&self.emulator.state));
        assert!(set.status.success(), "{set:?}");
    }

    pub(super) fn file(&self, suffix: &str) -> PathBuf {
        self.dir.path().join(format!("inbox.journal.certificate{suffix}"))
    }

    /// How often each message ran.
    fn done(&self, last: &str) -> BTreeMap<String, u32> {
        let text = wait_for_file(&self.dir.path().join("done"), last);
        let mut done = BTreeMap::new();
        text.lines().for_each(|id| *done.entry(id.to_owned()).or_default() += 1);
        done
    }

    pub(super) fn status(&self) -> Value {
        let output = self.command(&["status", "--json"]).output().expect("an output");
        serde_json::from_slice(&output.stdout).expect("JSON")
    }
}

/// Sends messages until the agent has renewed its certificate `times`, and checks that each one ran once.
fn renews_while_messages_flow(transport: &str, times: usize) {
    let enrolled = Enrolled::new("4s", transport);
    let agent = enrolled.start();
    agent.stderr.wait_for(TAKEN_UP);
    let mut sent = 0;
    while agent.stderr.count(TAKEN_UP) <= times {
        assert!(sent < 2000 && agent.is_running(), "{}", agent.stderr.text());
        sent += 1;
        enrolled.send(&format!("m-{sent}"));
        // The queue of a device has room for 50.
        if sent % 20 == 0 {
            enrolled.done(&format!("m-{sent}\n"));
        }
    }
    enrolled.send("last");
    let done = enrolled.done("last");
    assert_eq!(agent.terminate(), Some(0));
    let wanted = (1..=sent).map(|n| format!("m-{n}")).chain(["last".to_owned()]);
    assert_eq!(done, wanted.map(|id| (id, 1)).collect(), "each message once");
    assert_eq!(agent.stderr.count("refused"), 0, "{}", agent.stderr.text());
    // Over MQTT the hub renews, and the connection goes on meanwhile.
    let at_hub = agent.stderr.count("asking the hub for the next certificate");
    let at_service = agent.stderr.count("disconnected to ask the provisioning service for a certificate");
    match transport {
        "mqtt" => assert!(at_hub >= times && at_service == 0, "{at_hub}, {at_service}"),
        _ => assert!(at_hub == 0 && at_service >= times, "{at_hub}, {at_service}"),
    }
    for suffix in ["", ".next"] {
        let mode = fs::metadata(enrolled.file(suffix)).expect("a file").permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{suffix}");
    }
}

#[test]
fn a_certificate_of_four_seconds_is_renewed_ten_times_at_the_hub_while_messages_flow() {
    renews_while_messages_flow("mqtt", 10);
}

#[test]
fn over_amqp_the_provisioning_service_renews_it_while_messages_flow() {
    // The hub that is assigned has the port of MQTT, so the standard way of AMQP is not there.
    renews_while_messages_flow("amqp-ws", 3);
}

#[test]
fn what_the_authority_does_wrong_is_one_line_and_the_pair_that_works_stays() {
    let enrolled = Enrolled::new("25s", "mqtt");
    let agent = enrolled.start();
    agent.stderr.wait_for(TAKEN_UP);
    let pair = wait_for_file(&enrolled.file(""), "CERTIFICATE").into_bytes();
    for (fault, told) in [
        ("certificate=refuse", "the certificate authority refuses the request (400040: RequestRefused"),
        (
            "certificate=other-key",
            "its first certificate is for another key than the one that this device made",
        ),
        ("certificate=critical", "cannot be used: TLS does not take it"),
        // The service is asked, too, after three attempts at the hub.
        ("certificate=broken", "its certificate number 2 cannot be read"),
    ] {
        enrolled.fault(&[fault]);
        agent.stderr.wait_for(told);
        assert_eq!(fs::read(enrolled.file("")).expect("a pair"), pair, "{fault}");
    }
    enrolled.send("1");
    enrolled.fault(&["--clear"]);
    agent.stderr.wait_for_nth(TAKEN_UP, 2);
    assert_eq!(enrolled.done("1"), BTreeMap::from([("1".to_owned(), 1)]));
    assert!(enrolled.status()["certificate"]["renewal"].is_string());
    assert_eq!(agent.stderr.count("panicked"), 0);
}

#[test]
fn a_certificate_that_is_issued_after_the_connection_was_lost_comes_with_the_next_one() {
    let enrolled = Enrolled::new("20s", "mqtt");
    let agent = enrolled.start();
    agent.stderr.wait_for(TAKEN_UP);
    enrolled.fault(&["certificate=hold"]);
    agent.stderr.wait_for("the hub issues the next certificate");
    // The connection is dropped at its next packet, which a message brings.
    enrolled.fault(&["drop-at=1"]);
    enrolled.send("1");
    agent.stderr.wait_for("not connected");
    enrolled.fault(&["--clear"]);
    agent.stderr.wait_for_nth(TAKEN_UP, 2);
    assert_eq!(enrolled.done("1"), BTreeMap::from([("1".to_owned(), 1)]));
}

/// What the files say between two steps: see the table of `certificate/pairs.rs`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kept {
    Nothing,
    Key,
    Pair,
}

impl Enrolled {
    /// What the current and the next file have. A pair must be one that TLS takes.
    fn kept(&self) -> [Kept; 2] {
        ["", ".next"].map(|suffix| {
            let file = self.file(suffix);
            match fs::read_to_string(&file) {
                Err(error) => {
                    assert_eq!(error.kind(), std::io::ErrorKind::NotFound, "{}", file.display());
                    Kept::Nothing
                }
                Ok(text) if text.contains("CERTIFICATE") => {
                    let pair = ClientCertificate { certificate: file.clone(), private_key: file };
                    check_client_certificate(&pair).expect("a pair that works");
                    Kept::Pair
                }
                Ok(_) => Kept::Key,
            }
        })
    }
}

#[test]
fn kill_9_at_each_write_and_rename_leaves_a_pair_that_works() {
    let Some(strace) = program("strace") else {
        return skip("kill -9 at each step of a renewal", "strace is missing");
    };
    let enrolled = Enrolled::new("3s", "mqtt");
    let mut seen: BTreeSet<[Kept; 2]> = BTreeSet::new();
    // An enrolment has four renames (key, assignment, chain, taken up), and a renewal three. A call is killed before it
    // is made, and each rename is followed by the fsync of its directory.
    for (call, times) in [("rename", 7), ("fsync", 10)] {
        for nth in 1..=times {
            let agent = enrolled.start_killed_at(&strace, call, nth);
            // Two renewals bring each write and each rename.
            let enough = |lines: &[String]| lines.iter().filter(|line| line.contains(TAKEN_UP)).count() > 2;
            agent.stderr.wait_end_unless(enough);
            if agent.is_running() {
                agent.kill();
            } else {
                let kept = enrolled.kept();
                // From the first sign-in on, there is always a pair that has signed in.
                let had_one = seen.iter().any(|[current, _]| *current == Kept::Pair);
                assert!(kept[0] == Kept::Pair || !had_one, "{call} {nth}: {kept:?}");
                seen.insert(kept);
            }
            let agent = enrolled.start();
            agent.stderr.wait_for("subscribed");
            let id = format!("{call}-{nth}");
            enrolled.send(&id);
            assert_eq!(enrolled.done(&id)[&id], 1);
            assert_eq!(agent.terminate(), Some(0));
            assert_eq!(agent.stderr.count("counts for nothing"), 0, "{}", agent.stderr.text());
        }
    }
    for next in [Kept::Nothing, Kept::Key, Kept::Pair] {
        assert!(seen.contains(&[Kept::Pair, next]), "no kill left {next:?}: {seen:?}");
    }
}
