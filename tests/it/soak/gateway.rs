//! A gateway: one configuration and one inbox, a cable that can be cut, and one agent process after the other.
//!
//! Owns: the agent's lives and the faults done to them, what they logged, and what its rules left behind.
//! Must not know: which faults come when, what is right.

use std::collections::BTreeMap;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::back_end::{DEVICE, Door, Hub, MODULE};
use crate::clock::clock_set_to;
use crate::harness::{DEADLINE, Process, Proxy, binary, write_config};

/// A directory with a configuration, and the agent that runs on it, behind a proxy.
pub(crate) struct Gateway {
    agent: Option<Process>,
    /// Between the agent and the hub.
    pub(crate) proxy: Proxy,
    dir: tempfile::TempDir,
    /// Who signs in, and where.
    environment: Vec<(String, String)>,
    /// Where the agent can be asked.
    socket: PathBuf,
    /// Connections lost in this life: the agent waits longer after each.
    pub(crate) losses: u32,
    /// What the ended lives logged, one text for each.
    pub(crate) logs: Vec<String>,
    pub(crate) kills: usize,
    pub(crate) terms: usize,
    pub(crate) cuts: usize,
    pub(crate) reloads: usize,
}

/// How a message stands in the inbox, as `c2d-agent inbox list --json` tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stands {
    /// `accepted`, `started`, `finished` or `dead`.
    pub(crate) state: String,
    /// Such as `succeeded`; none until it has ended.
    pub(crate) outcome: Option<String>,
    pub(crate) attempts: u64,
}

impl Gateway {
    /// One for the device of `hub`, or for its module when messages come by an input. In `rest`, `DIR` stands for the gateway's directory; the inbox is in it, too, unless
    /// `rest` says otherwise.
    pub(crate) fn new(hub: &Hub, rest: &str) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let over = |transport: &str| rest.contains(&format!("transport = \"{transport}\""));
        let proxy = Proxy::to(match () {
            () if over("amqp") => hub.emulator.amqp,
            () if over("mqtt-ws") || over("amqp-ws") => hub.emulator.https,
            () => hub.emulator.mqtt,
        });
        let environment = environment(hub, proxy.address.port());
        let rest = rest.replace("DIR", &dir.path().display().to_string());
        write_config(dir.path(), &rest);
        let inbox = rest.split("[inbox]\npath = \"").nth(1).and_then(|text| text.split('"').next());
        let socket = dir.path().join(inbox.unwrap_or("inbox.redb")).with_extension("sock");
        Self {
            agent: None,
            proxy,
            dir,
            environment,
            socket,
            losses: 0,
            logs: Vec::new(),
            kills: 0,
            terms: 0,
            cuts: 0,
            reloads: 0,
        }
    }

    /// The same over this transport; `rest` begins with a table, and has no `[device]`.
    pub(crate) fn over(transport: &str, hub: &Hub, rest: &str) -> Self {
        Self::new(hub, &format!("[device]\ntransport = \"{transport}\"\n{rest}"))
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// What the agent finds in its environment under this name.
    pub(crate) fn variable(&self, name: &str) -> String {
        let found = self.environment.iter().find(|(own, _)| own == name);
        found.map(|(_, value)| value.clone()).unwrap_or_else(|| panic!("the agent is given no {name}"))
    }

    /// The agent's clock, and that of every command, says this time from now on, such as `+2h`. False where it cannot be set.
    pub(crate) fn set_clock(&mut self, time: &str) -> bool {
        let Some(pairs) = clock_set_to(time) else { return false };
        self.environment.extend(pairs);
        true
    }

    /// A command of the binary for this gateway, with its configuration named.
    pub(crate) fn command(&self, arguments: &[&str]) -> std::process::Command {
        let mut command = binary();
        command.args(arguments).arg("-c").arg(self.path("config.toml"));
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Starts the agent, without waiting for anything.
    pub(crate) fn start(&mut self) {
        assert!(self.agent.is_none(), "an agent runs already");
        self.agent = Some(Process::spawn(&mut self.command(&["run"])));
        self.losses = 0;
    }

    /// Starts another agent with the same configuration beside the one that runs, once that has the inbox.
    pub(crate) fn start_second(&self) -> Process {
        self.agent().stderr.wait_for("connecting");
        Process::spawn(&mut self.command(&["run"]))
    }

    /// The agent that has ended leaves its place to this one, which has waited for it; false when it has given that up.
    pub(crate) fn hand_over(&mut self, second: Process) -> bool {
        assert!(self.agent.is_none(), "an agent runs still");
        second.stderr.wait_end_unless(|lines| lines.iter().any(|line| line.contains("connecting")));
        let took_over = second.stderr.count("connecting") > 0;
        if took_over {
            self.agent = Some(second);
            self.losses = 0;
        }
        took_over
    }

    /// Starts the agent and waits until it has subscribed.
    pub(crate) fn start_subscribed(&mut self) {
        self.start();
        self.agent().stderr.wait_for("subscribed");
    }

    /// The running agent.
    pub(crate) fn agent(&self) -> &Process {
        self.agent.as_ref().expect("an agent runs")
    }

    /// `kill -9`, and everything that it logged is read.
    pub(crate) fn kill(&mut self) {
        self.expect_running();
        self.kills += 1;
        let agent = self.agent.take().expect("an agent runs");
        agent.kill();
        self.keep_log(&agent);
    }

    /// SIGTERM, and it ends in good order; or at once, by the signal, when it had not yet said a word.
    pub(crate) fn terminate(&mut self) {
        self.expect_running();
        self.terms += 1;
        let agent = self.agent.take().expect("an agent runs");
        let code = agent.terminate();
        self.keep_log(&agent);
        let early = code.is_none() && self.logs.last().is_some_and(String::is_empty);
        assert!(code == Some(0) || early, "the agent did not end in good order ({code:?}):\n{}", self.tail());
    }

    /// Waits until the agent ends by itself: its exit code.
    pub(crate) fn wait_exit(&mut self) -> Option<i32> {
        let agent = self.agent.take().expect("an agent runs");
        let code = agent.wait_exit().code();
        self.keep_log(&agent);
        code
    }

    /// What the next life is started with is what the hub has now.
    pub(crate) fn deploy(&mut self, hub: &Hub) {
        self.environment = environment(hub, self.proxy.address.port());
    }

    /// SIGHUP with other lanes, and with another sign-in in the middle of everything, by a drop-in file.
    pub(crate) fn reload(&mut self, max_children: u32) {
        // Before its first words it does not handle signals.
        self.agent().stderr.wait_for("configuration read");
        self.reloads += 1;
        let text = format!(
            "[actions]\nmax_children = {max_children}\n[device]\ntoken_lifetime = \"{}s\"\n",
            3000 + self.reloads
        );
        let directory = self.path("config.d");
        std::fs::create_dir_all(&directory).expect("created");
        std::fs::write(directory.join("reload.new"), text).expect("written");
        std::fs::rename(directory.join("reload.new"), directory.join("reload.toml")).expect("renamed");
        self.agent().signal(rustix::process::Signal::HUP);
    }

    /// Cuts the connection to the hub; the next one is let through.
    pub(crate) fn cut(&mut self) {
        self.cuts += 1;
        self.losses += 1;
        self.proxy.cut();
    }

    /// Fails unless the agent still runs: it must end for no fault that is done around it.
    pub(crate) fn expect_running(&self) {
        let agent = self.agent();
        assert!(agent.is_running(), "the agent ended by itself:\n{}", agent.stderr.text());
    }

    fn keep_log(&mut self, agent: &Process) {
        agent.stderr.wait_end();
        self.logs.push(agent.stderr.text());
    }

    /// What all lives have logged, this one included.
    pub(crate) fn lives(&self) -> Vec<String> {
        let running = self.agent.iter().map(|agent| agent.stderr.text());
        self.logs.iter().cloned().chain(running).collect()
    }

    /// The last lines of the last life's log.
    fn tail(&self) -> String {
        let log = self.logs.last().cloned().unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    /// All that was logged about one message, life by life.
    pub(crate) fn story(&self, id: &str) -> String {
        let quoted = format!("\"{id}\"");
        let lives = self.lives();
        let lines = lives.iter().enumerate().flat_map(|(life, log)| {
            log.lines()
                .filter(|line| line.contains(&quoted))
                .map(move |line| format!("  life {life}: {line}"))
        });
        lines.collect::<Vec<_>>().join("\n")
    }

    /// How often each message id stands in a file of one id a line.
    pub(crate) fn effects(&self, file: &str) -> BTreeMap<String, usize> {
        let text = std::fs::read_to_string(self.path(file)).unwrap_or_default();
        let mut counts = BTreeMap::new();
        for id in text.lines() {
            *counts.entry(id.to_owned()).or_default() += 1;
        }
        counts
    }

    /// Every record of the inbox with a message id, as the command line tells them. Works while the agent runs, and when
    /// it does not.
    pub(crate) fn inbox(&self) -> BTreeMap<String, Stands> {
        let records = self.records();
        records.iter().filter_map(|record| Some((text(record, "messageId")?, stands(record)))).collect()
    }

    /// Every record of the inbox, in order.
    pub(crate) fn all_records(&self) -> Vec<Stands> {
        self.records().iter().map(stands).collect()
    }

    fn records(&self) -> Vec<Value> {
        let output =
            crate::harness::run(&mut self.command(&["inbox", "list", "--json", "--limit", "1000000"]));
        let (told, said) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "inbox list failed: {said}{told}");
        records(&told)
    }

    /// Waits until no message in the inbox waits or runs, and returns all.
    pub(crate) fn settled_inbox(&self) -> BTreeMap<String, Stands> {
        let end = Instant::now() + 2 * DEADLINE;
        // Else the command line would take the file for itself, and a starting agent would have to wait for it.
        while UnixStream::connect(&self.socket).is_err() && Instant::now() < end {
            self.expect_running();
            std::thread::park_timeout(Duration::from_millis(5)); // a socket that is not there has no event: poll
        }
        loop {
            let inbox = self.inbox();
            let ended = |stands: &Stands| matches!(stands.state.as_str(), "finished" | "dead");
            let open: Vec<_> = inbox.iter().filter(|(_, stands)| !ended(stands)).collect();
            if open.is_empty() {
                return inbox;
            }
            if Instant::now() > end {
                let stories = open.iter().map(|(id, _)| self.story(id)).collect::<Vec<_>>().join("\n");
                panic!("these messages do not end: {open:?}\n{stories}");
            }
            self.expect_running();
            std::thread::park_timeout(Duration::from_millis(50)); // the command line has no event to wait for: poll
        }
    }
}

/// A device is started with its connection string; a module as edgeAgent does, and with nothing else. Both dial `port`.
fn environment(hub: &Hub, port: u16) -> Vec<(String, String)> {
    let (own, dialled) = (format!(":{}", hub.emulator.mqtt.port()), format!(":{port}"));
    let mut pairs = Vec::new();
    if hub.door != Door::C2d {
        let file = hub.emulator.state.join(format!("modules/{MODULE}.env"));
        let text = std::fs::read_to_string(file).expect("an environment").replace(&own, &dialled);
        let lines = text.lines().map(|line| line.split_once('=').expect("NAME=VALUE"));
        pairs.extend(lines.map(|(name, value)| (name.to_owned(), value.to_owned())));
    }
    if hub.door != Door::Input {
        let device = [
            ("C2D_DEVICE_CONNECTION_STRING", hub.emulator.device_string(DEVICE).replace(&own, &dialled)),
            ("C2D_CA_FILE", hub.emulator.ca_file().display().to_string()),
            // Unless the transport is a WebSocket nobody looks at it.
            ("C2D_HTTPS_PORT", port.to_string()),
        ];
        pairs.extend(device.map(|(name, value)| (name.to_owned(), value)));
    }
    pairs
}

/// One JSON object a line, or one array of them.
fn records(told: &str) -> Vec<Value> {
    let values = serde_json::Deserializer::from_str(told).into_iter::<Value>();
    let values = values.map(|value| value.unwrap_or_else(|error| panic!("not JSON ({error}): {told}")));
    let flat = values.flat_map(|value| match value {
        Value::Array(all) => all,
        other => vec![other],
    });
    flat.collect()
}

fn stands(record: &Value) -> Stands {
    let attempts = record.get("attempts").and_then(Value::as_u64).unwrap_or_default();
    let outcome = record.get("outcome").and_then(|outcome| match outcome {
        Value::String(kind) => Some(kind.clone()),
        _ => text(outcome, "outcome"),
    });
    Stands { state: text(record, "state").unwrap_or_default(), outcome, attempts }
}

fn text(value: &Value, name: &str) -> Option<String> {
    value.get(name).and_then(Value::as_str).map(str::to_owned)
}
