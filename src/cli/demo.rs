//! `demo`: a hub, a device and a back end in one process, told as a story.
//!
//! Owns: the messages of the story and the order of events. Must not know: protocols, how the lines of the story look.
//!
//! The hub is the emulator and the pins are simulated; all else is real. Messages travel over TLS on loopback, by AMQP
//! to the hub and by MQTT to the device. Feedback comes back the same way.

use std::fs::DirBuilder;
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, anyhow, bail};
use bytes::Bytes;
use futures_util::StreamExt as _;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook_tokio::Signals;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::agent::{self, AgentEvent};
use crate::config::{self, Config, InboxSettings};
use crate::credentials::ServiceConnectionString;
use crate::emulator::{self, Emulator};
use crate::feedback::{DeliveryAck, FeedbackStatus};
use crate::message::{C2dMessage, Properties};
use crate::service::{C2dSender, FeedbackReceiver, OutgoingMessage, Service, TOKEN_LIFETIME};

use super::{Exit, Failure};

mod story;

use story::{Chapter, Story, StoryTotals};

/// Warnings, but none of the agent: it warns of messages that no rule matches, and they are part of the story.
pub(super) const LOG_LEVEL: &str = "warn,c2d_agent::agent=error";

const DEVICE: &str = "demo-pi";

/// The configuration of the device: what a message may do.
const CONFIG: &str = r#"
[gpio]
backend = "simulated"

[gpio.pins.led]
line = 27

[gpio.pins.pump]
line = 17
max_on = "10m"

[[rule]]
name = "pump"
when = { action = "pump", state = { one_of = ["on", "off"] } }
do = [ { gpio = "pump", set = "{state}" } ]

[[rule]]
name = "blink"
when = { action = "blink", times = { range = [1, 20] } }
do = [ { gpio = "led", blink = { times = "{times}", period = "150ms" } } ]

[[rule]]
name = "greet"
when = { action = "greet" }
do = [ { run = ["/bin/echo", "Hello,", "{name}"] } ]
"#;

/// A title, the body, the application properties.
type DemoMessage = (&'static str, &'static str, &'static [(&'static str, &'static str)]);

/// The messages that the back end sends.
const MESSAGES: [DemoMessage; 5] = [
    ("Switch an output", "bed 4 is dry", &[("action", "pump"), ("state", "on")]),
    ("Blink a light", "", &[("action", "blink"), ("times", "3")]),
    ("Run a command with a value of the message", "good morning", &[("action", "greet"), ("name", "Ada")]),
    ("Try to smuggle an option into that command", "", &[("action", "greet"), ("name", "--help")]),
    ("Ask for something that no rule allows", "Earl Grey, hot", &[("action", "tea")]),
];

/// Short, for a quick demo; a real hub's interval is 15 s.
const FEEDBACK_INTERVAL: Duration = Duration::from_millis(200);

/// How long to wait for each event: the subscription, a message, its outcome, its feedback, the end.
const PATIENCE: Duration = Duration::from_secs(10);

/// Room for the events of one message: received and settled. The story reads them before it sends the next message.
const EVENTS: usize = 16;

/// Show the whole loop on this machine: a local hub, a device with simulated pins, and a back end.
///
/// The back end sends a handful of messages; for each one, the demo shows how the device received it, what was
/// done, and the feedback that came back. It needs no Azure account, no network and no privileges. It leaves no files
/// and takes a few seconds.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Exit codes: 0 all outcomes and all feedback came back, 1 something did not come back."
)]
pub(super) struct DemoArgs {}

/// Runs the demo.
///
/// # Errors
/// When a part does not start, or an event does not come in time; the sentence says which.
pub(super) fn run(_: &DemoArgs) -> Result<Exit, Failure> {
    let folder = Folder::new()?;
    super::block_on(async {
        let mut signals = Signals::new([SIGTERM, SIGINT]).context("signals cannot be received")?;
        tell(&folder.0, async {
            signals.next().await;
        })
        .await?;
        Ok(Exit::Done)
    })
}

async fn tell(folder: &Path, interrupted: impl Future<Output = ()>) -> anyhow::Result<()> {
    let started = Instant::now();
    let story = Story::new();
    let hub = start_hub(&folder.join("hub")).await?;
    let config = device_config(&hub, folder)?;
    story.opening(&hub, &config)?;

    let (observer, events) = mpsc::channel(EVENTS);
    let stop = CancellationToken::new();
    let settings = agent::AgentSettings {
        reload: None,
        twin: config::TwinPart::Absent,
        config: config.clone(),
        clock: SystemTime::now,
        hurry: CancellationToken::new(),
        observer: Some(observer),
    };
    let mut agent = pin!(agent::run(settings, stop.cancelled()));
    let mut device = DemoDevice { config, events };
    let told = tokio::select! {
        told = all_messages(&story, &hub, &mut device) => told,
        () = interrupted => Err(anyhow!("stopped by a signal before the end")),
        ended = &mut agent => {
            ended.context("the device agent failed")?;
            bail!("the device agent ended before the story did");
        }
    };
    // Stops in good order even when the story failed, so that nothing is left half done.
    stop.cancel();
    let stopped = in_time("the device agent to stop", agent).await;
    let totals = told?;
    stopped?.context("the device agent did not stop cleanly")?;
    let pins = device.pins()?;
    hub.stop().await;
    story.ending(&totals, &pins, started.elapsed())
}

async fn all_messages(story: &Story, hub: &Emulator, device: &mut DemoDevice) -> anyhow::Result<StoryTotals> {
    let mut back_end = BackEnd::connect(hub).await?;
    device.wait_subscribed().await?;
    let mut totals = StoryTotals::default();
    for (index, (title, body, properties)) in MESSAGES.iter().enumerate() {
        let message = outgoing(format!("demo-{}", index + 1), body, properties);
        let sent = Instant::now();
        in_time("the hub to accept a message", back_end.sender.send(&message)).await??;
        let received = device.wait_received(&message.message_id).await?;
        let (rule, outcome, output) = device.wait_settled(&message.message_id).await?;
        let steps = device.steps(&received);
        let pins = device.pins()?;
        let feedback = back_end.wait_feedback(&message.message_id).await?;
        totals.add(&received, rule.is_some() && outcome == "succeeded", feedback == FeedbackStatus::Success);
        story.chapter(&Chapter {
            number: index + 1,
            title,
            message: &received,
            rule: rule.as_deref(),
            steps: &steps,
            outcome: &outcome,
            output: &output,
            pins: &pins,
            feedback,
            after: sent.elapsed(),
            totals: &totals,
        })?;
    }
    back_end.service.close().await;
    Ok(totals)
}

async fn start_hub(state_dir: &Path) -> anyhow::Result<Emulator> {
    let options = emulator::Options {
        state_dir: state_dir.to_owned(),
        bind: IpAddr::V4(Ipv4Addr::LOCALHOST),
        hostname: "localhost".to_owned(),
        gateway_hostname: None,
        hubs: Vec::new(),
        mqtt_port: 0,
        amqp_port: 0,
        https_port: Some(0),
        devices: vec![DEVICE.to_owned()],
        x509_devices: Vec::new(),
        modules: Vec::new(),
        routes: Vec::new(),
        workload_socket: None,
        feedback_interval: FEEDBACK_INTERVAL,
        certificate_lifetime: std::time::Duration::from_secs(3600),
        size: None,
        faults: Vec::new(),
        clock: None,
        well_known_keys: false,
        provisioning: None,
        entra: None,
    };
    emulator::start(options, SystemTime::now).await.context("the local hub does not start")
}

/// The configuration that `run` would load from a file and the environment.
fn device_config(hub: &Emulator, folder: &Path) -> anyhow::Result<Config> {
    let device = read(&hub.state_dir().join("devices").join(format!("{DEVICE}.connection-string")))?;
    let ca_file = hub.state_dir().join("ca.pem").display().to_string();
    let environment = |name: &str| match name {
        "C2D_DEVICE_CONNECTION_STRING" => Some(device.clone()),
        "C2D_CA_FILE" => Some(ca_file.clone()),
        _ => None,
    };
    let inspection = config::inspect_text(CONFIG, Path::new("demo.toml"), &environment);
    let mut config = inspection
        .into_config()
        .map_err(|report| anyhow!("the demo's configuration has problems:\n{report}"))?;
    config.gpio.state_file = Some(folder.join("pins.json"));
    config.inbox = InboxSettings::at(folder.join("inbox.journal"));
    Ok(config)
}

fn outgoing(message_id: String, body: &'static str, properties: &[(&str, &str)]) -> OutgoingMessage {
    let mut own = Properties::default();
    for (name, value) in properties {
        own.set(*name, *value);
    }
    OutgoingMessage {
        device_id: DEVICE.to_owned(),
        message_id,
        ack: DeliveryAck::Full,
        properties: own,
        body: Bytes::from_static(body.as_bytes()),
        ..OutgoingMessage::default()
    }
}

/// The sending side.
struct BackEnd {
    feedback: FeedbackReceiver,
    sender: C2dSender,
    service: Service,
}

impl BackEnd {
    async fn connect(hub: &Emulator) -> anyhow::Result<Self> {
        let text = read(&hub.state_dir().join("service.connection-string"))?;
        let identity = ServiceConnectionString::parse(text.trim())?.into();
        let ca_file = hub.state_dir().join("ca.pem");
        let connecting = async {
            let mut service =
                Service::connect(&identity, Some(&ca_file), TOKEN_LIFETIME, SystemTime::now()).await?;
            // Opened before the sender, so that no feedback is missed.
            let feedback = service.feedback_receiver().await?;
            let sender = service.sender().await?;
            anyhow::Ok(Self { feedback, sender, service })
        };
        in_time("the back end to sign in", connecting).await?
    }

    async fn wait_feedback(&mut self, message_id: &str) -> anyhow::Result<FeedbackStatus> {
        let waiting = async {
            loop {
                let batch = self.feedback.next().await?;
                let own = batch.records.iter().find(|record| record.original_message_id == message_id);
                let status = own.map(|record| record.status_code);
                self.feedback.complete(batch).await?;
                if let Some(status) = status {
                    return anyhow::Ok(status);
                }
            }
        };
        in_time(&format!("the feedback for message {message_id}"), waiting).await?
    }
}

/// The receiving side, as far as it can be watched from outside.
struct DemoDevice {
    config: Config,
    events: mpsc::Receiver<AgentEvent>,
}

impl DemoDevice {
    async fn wait_subscribed(&mut self) -> anyhow::Result<()> {
        let wanted = |event| matches!(event, AgentEvent::Subscribed).then_some(());
        self.wait_event("the device to sign in and subscribe", wanted).await
    }

    async fn wait_received(&mut self, id: &str) -> anyhow::Result<C2dMessage> {
        let wanted = |event| match event {
            AgentEvent::Received { message } if message.message_id() == Some(id) => Some(message),
            _ => None,
        };
        self.wait_event(&format!("message {id} to arrive at the device"), wanted).await
    }

    /// Returns the rule that matched the message, the outcome, and the output of its programs.
    async fn wait_settled(&mut self, id: &str) -> anyhow::Result<(Option<String>, String, Vec<u8>)> {
        let wanted = |event| match event {
            AgentEvent::Settled { message_id, rule, outcome, output }
                if message_id.as_deref() == Some(id) =>
            {
                Some((rule, outcome, output))
            }
            _ => None,
        };
        self.wait_event(&format!("the outcome of message {id}"), wanted).await
    }

    async fn wait_event<T>(
        &mut self,
        what: &str,
        wanted: impl Fn(AgentEvent) -> Option<T>,
    ) -> anyhow::Result<T> {
        let waiting = async {
            loop {
                match self.events.recv().await {
                    Some(AgentEvent::Disconnected { reason }) => bail!("the device lost its hub: {reason}"),
                    Some(event) => {
                        if let Some(value) = wanted(event) {
                            return Ok(value);
                        }
                    }
                    None => bail!("the device agent ended early"),
                }
            }
        };
        in_time(what, waiting).await?
    }

    /// The steps that the rules make of a message. Empty when no rule matches it, or its rule refuses its values.
    fn steps(&self, message: &C2dMessage) -> Vec<String> {
        let rule = self.config.rules.match_message(message);
        let plan = rule.and_then(|rule| rule.plan(message, DEVICE).ok());
        plan.map(|plan| plan.steps.iter().map(story::describe).collect()).unwrap_or_default()
    }

    /// The states of the pins, such as `led off, pump on`, as the simulated backend wrote them.
    fn pins(&self) -> anyhow::Result<String> {
        let path = self.config.gpio.state_file.as_deref().unwrap_or(Path::new(""));
        let states: std::collections::BTreeMap<String, String> =
            serde_json::from_str(&read(path)?).context("the pins' states cannot be read")?;
        Ok(states.iter().map(|(pin, state)| format!("{pin} {state}")).collect::<Vec<_>>().join(", "))
    }
}

async fn in_time<T>(what: &str, event: impl Future<Output = T>) -> anyhow::Result<T> {
    let late = || anyhow!("gave up after {} s of waiting for {what}", PATIENCE.as_secs());
    tokio::time::timeout(PATIENCE, event).await.map_err(|_| late())
}

fn read(path: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

/// A new directory for this user only. It is removed when this value is dropped.
struct Folder(PathBuf);

impl Folder {
    fn new() -> anyhow::Result<Self> {
        let name = format!("c2d-agent-demo-{}-{:08x}", std::process::id(), fastrand::u32(..));
        let path = std::env::temp_dir().join(name);
        let made = DirBuilder::new().mode(0o700).create(&path);
        made.with_context(|| format!("cannot make {}: set TMPDIR to a writable directory", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            tracing::warn!(%error, path = %self.0.display(), "could not remove the demo's directory");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn something_that_never_comes_is_named() {
        let error =
            in_time("the feedback for message demo-1", std::future::pending::<()>()).await.unwrap_err();
        assert_eq!(error.to_string(), "gave up after 10 s of waiting for the feedback for message demo-1");
    }
}
