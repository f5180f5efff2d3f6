//! A gateway: one configuration and one inbox, a cable that can be cut, and one agent process after the other.
//!
//! Owns: the agent's lives and their faults, what they logged, and the files that its rules wrote.
//! Must not know: which faults come when, which results are right.

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
    /// The proxy between the agent and the hub.
    pub(crate) proxy: Proxy,
    dir: tempfile::TempDir,
    /// The environment of the agent: who signs in, and where.
    environment: Vec<(String, String)>,
    /// The control socket of the agent.
    socket: PathBuf,
    /// How many connections this life has lost. The agent waits longer after each.
    pub(crate) losses: u32,
    /// The logs of the ended lives, one text for each.
    pub(crate) logs: Vec<String>,
    pub(crate) kills: usize,
    pub(crate) terms: usize,
    pub(crate) cuts: usize,
    pub(crate) reloads: usize,
}

/// The state of a message in the inbox, as `c2d-agent inbox list --json` tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stands {
    /// `accepted`, `started`, `finished` or `dead`.
    pub(crate) state: String,
    /// The outcome, such as `succeeded`; `None` until the message has ended.
    pub(crate) outcome: Option<String>,
    pub(crate) attempts: u64,
}

impl Gateway {
    /// A gateway for the device of `hub`, or for its module if messages come by an input. In `rest`, `DIR` stands for
    /// the gateway's directory. The inbox is also there, unless `rest` names another place.
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
        let socket = dir.path().join(inbox.unwrap_or("inbox.journal")).with_extension("sock");
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

    /// As [`Gateway::new`], over this transport. `rest` begins with a table, and has no `[device]`.
    pub(crate) fn over(transport: &str, hub: &Hub, rest: &str) -> Self {
        Self::new(hub, &format!("[device]\ntransport = \"{transport}\"\n{rest}"))
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The variable of this name in the agent's environment.
    pub(crate) fn variable(&self, name: &str) -> String {
        let found = self.environment.iter().find(|(own, _)| own == name);
        found.map(|(_, value)| value.clone()).unwrap_or_else(|| panic!("the agent is given no {name}"))
    }

    /// Shifts the clock of the agent and of every command from now on, for example by `+2h`. False if that is not
    /// possible.
    pub(crate) fn set_clock(&mut self, time: &str) -> bool {
        let Some(pairs) = clock_set_to(time) else { return false };
        self.environment.extend(pairs);
        true
    }

    /// A command of the binary with this gateway's configuration.
    pub(crate) fn command(&self, arguments: &[&str]) -> std::process::Command {
        let mut command = binary();
        command.args(arguments).arg("-c").arg(self.path("config.toml"));
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Starts the agent, without waiting.
    pub(crate) fn start(&mut self) {
        assert!(self.agent.is_none(), "an agent runs already");
        self.agent = Some(Process::spawn(&mut self.command(&["run"])));
        self.losses = 0;
    }

    /// Starts the agent, which is killed when one of its threads begins the system call `call` for the `nth` time. False
    /// without strace.
    pub(crate) fn start_killed_at(&mut self, call: &str, nth: u32) -> bool {
        let Some(strace) = crate::harness::program("strace") else { return false };
        let run = self.command(&["run"]);
        let mut command = std::process::Command::new(strace);
        // -D: the agent is the child, and strace a process beside it.
        command.args(["-D", "-f", "-qq", "-o", "/dev/null", "-e"]).arg(format!("trace={call}"));
        command.arg("-e").arg(format!("inject={call}:signal=KILL:when={nth}"));
        command.arg(run.get_program()).args(run.get_args());
        command.envs(run.get_envs().filter_map(|(name, value)| Some((name, value?))));
        assert!(self.agent.is_none(), "an agent runs already");
        self.agent = Some(Process::spawn(&mut command));
        true
    }

    /// Starts a second agent with the same configuration, after the first one has the inbox.
    pub(crate) fn start_second(&self) -> Process {
        self.agent().stderr.wait_for("connecting");
        Process::spawn(&mut self.command(&["run"]))
    }

    /// Makes the second agent the agent of this gateway, after the first one has ended. False if the second one has
    /// given up waiting and ended.
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

    /// Kills the agent with `kill -9`, and reads its whole log.
    pub(crate) fn kill(&mut self) {
        self.expect_running();
        self.kills += 1;
        let agent = self.agent.take().expect("an agent runs");
        agent.kill();
        self.keep_log(&agent);
    }

    /// Sends SIGTERM, and the agent must end in good order. Before its first log line, it may also end by the signal.
    pub(crate) fn terminate(&mut self) {
        self.expect_running();
        self.terms += 1;
        let agent = self.agent.take().expect("an agent runs");
        let code = agent.terminate();
        self.keep_log(&agent);
        let early = code.is_none() && self.logs.last().is_some_and(String::is_empty);
        assert!(code == Some(0) || early, "the agent did not end in good order ({code:?}):\n{}", self.tail());
    }

    /// Waits until the agent ends by itself, and returns its exit code.
    pub(crate) fn wait_exit(&mut self) -> Option<i32> {
        let agent = self.agent.take().expect("an agent runs");
        let code = agent.wait_exit().code();
        self.keep_log(&agent);
        code
    }

    /// Gives the next life the hub's present keys and generation.
    pub(crate) fn deploy(&mut self, hub: &Hub) {
        self.environment = environment(hub, self.proxy.address.port());
    }

    /// Sends SIGHUP. A drop-in file changes the lanes, and also the sign-in.
    pub(crate) fn reload(&mut self, max_children: u32) {
        // Before its first log line the agent does not handle signals.
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

    /// Cuts the connection to the hub. The next connection works.
    pub(crate) fn cut(&mut self) {
        self.cuts += 1;
        self.losses += 1;
        self.proxy.cut();
    }

    /// Fails unless the agent still runs: no fault around it may end it.
    pub(crate) fn expect_running(&self) {
        let agent = self.agent();
        assert!(agent.is_running(), "the agent ended by itself:\n{}", agent.stderr.text());
    }

    fn keep_log(&mut self, agent: &Process) {
        agent.stderr.wait_end();
        self.logs.push(agent.stderr.text());
    }

    /// The logs of all lives, including this one.
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

    /// All log lines about one message, life by life.
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

    /// How often each message id is in a file with one id per line.
    pub(crate) fn effects(&self, file: &str) -> BTreeMap<String, usize> {
        let text = std::fs::read_to_string(self.path(file)).unwrap_or_default();
        let mut counts = BTreeMap::new();
        for id in text.lines() {
            *counts.entry(id.to_owned()).or_default() += 1;
        }
        counts
    }

    /// Every record of the inbox with a message id, as the command line tells it. Works with and without a running
    /// agent.
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
        // Otherwise the command would open the file itself, and a starting agent would have to wait.
        while UnixStream::connect(&self.socket).is_err() && Instant::now() < end {
            self.expect_running();
            std::thread::park_timeout(Duration::from_millis(5)); // a missing socket has no event: poll
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

/// The environment of the agent. A device gets its connection string; a module gets only what edgeAgent gives. Both
/// dial `port`.
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
            // Only WebSockets use this port.
            ("C2D_HTTPS_PORT", port.to_string()),
        ];
        pairs.extend(device.map(|(name, value)| (name.to_owned(), value)));
    }
    pairs
}

/// Parses one JSON object per line, or one array of objects.
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
