//! A hub that may be stopped and started, and its back end: one AMQP connection for all messages and all feedback. Or
//! an edge gateway, which feeds an input of a module.
//!
//! Owns: the emulator's process and its restarts, sending, what feedback said about each message. An input has no
//! feedback: there the emulator's log tells what was settled.
//! Must not know: agents, rules, faults.
//!
//! A restart may remove the emulator's memory, which a real hub never loses. Then the sender queues messages without
//! feedback again with their ids, as the real hub would deliver them again.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use c2d_agent::credentials::ServiceConnectionString;
use c2d_agent::feedback::{DeliveryAck, FeedbackStatus};
use c2d_agent::service::{OutgoingMessage, Service, ServiceError, ServiceIdentity, TOKEN_LIFETIME};
use tokio::sync::mpsc::{Receiver, Sender, channel};

use crate::harness::{DEADLINE, Emulator};
use crate::rest::service_token;
use crate::rest_ask::ask;

/// The device of every message.
pub(crate) const DEVICE: &str = "dev1";

/// The module of every message to an input, and the input.
pub(crate) const MODULE: &str = "edge1/c2d-agent";
const INPUT: &str = "/emulator/devices/edge1/modules/c2d-agent/inputs/commands";

/// The door through which messages reach the gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Door {
    C2d,
    Input,
    /// Messages go to the device and to the module beside it in turn.
    Both,
}

impl Door {
    /// Whether the message with this id goes to the input. The answer is always the same for an id.
    fn is_input(self, id: &str) -> bool {
        match self {
            Self::C2d => false,
            Self::Input => true,
            Self::Both => id.bytes().last().is_some_and(|digit| digit % 2 == 1),
        }
    }
}

/// The feedback on each message so far, in the order in which it came.
pub(crate) type Feedback = BTreeMap<String, Vec<FeedbackStatus>>;

/// The emulator with its back end. The ports stay the same over restarts.
pub(crate) struct Hub {
    pub(crate) emulator: Emulator,
    pub(crate) door: Door,
    back_end: Option<BackEnd>,
    feedback: Arc<Mutex<Feedback>>,
    redelivered: usize,
    /// How many log lines of the emulator have been searched for settlements.
    looked_at: Mutex<usize>,
    _dir: tempfile::TempDir,
}

/// Why a message could not be queued.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum NotQueued {
    /// The device has fifty already.
    Full,
    /// Another reason, in words.
    Other(String),
}

impl Hub {
    pub(crate) fn start() -> Self {
        Self::start_with(Door::C2d)
    }

    pub(crate) fn start_with(door: Door) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let emulator = start(&dir.path().join("hub"), door, ["0"; 3]);
        let feedback = Arc::default();
        let back_end = Some(BackEnd::connect(&emulator, &feedback));
        Self { emulator, door, back_end, feedback, redelivered: 0, looked_at: Mutex::default(), _dir: dir }
    }

    /// Stops the emulator and starts it again at the same ports, without its queues, twins and sessions. Calls
    /// `meanwhile` between the two.
    pub(crate) fn restart_forgetful(&mut self, meanwhile: impl FnOnce()) {
        let memory = self.emulator.state.join("hub.jsonl");
        self.restart(|| {
            std::fs::remove_file(memory).expect("a hub that ended has left its memory");
            meanwhile();
        });
    }

    /// Stops the emulator and starts it again at the same ports. Calls `meanwhile` between the two.
    pub(crate) fn restart(&mut self, meanwhile: impl FnOnce()) {
        drop(self.back_end.take());
        assert_eq!(self.emulator.process.terminate(), Some(0), "{}", self.emulator.process.stderr.text());
        self.redelivered += self.redelivered_by_this_process();
        self.look_for_settlements();
        *self.looked_at.get_mut().expect("a number") = 0;
        meanwhile();
        let Emulator { mqtt, amqp, https, .. } = &self.emulator;
        let ports = [mqtt, amqp, https].map(|address| address.port().to_string());
        self.emulator = start(&self.emulator.state, self.door, ports.each_ref().map(String::as_str));
        self.back_end = Some(BackEnd::connect(&self.emulator, &self.feedback));
    }

    /// Queues a message with the property `action` and more properties, and asks for full feedback if the door has any.
    pub(crate) fn send(&self, id: &str, action: &str, more: &[(&str, &str)]) -> Result<(), NotQueued> {
        if self.door.is_input(id) {
            return self.feed(id, action, more);
        }
        let mut message = message(id, action);
        for (name, value) in more {
            message.properties.set(*name, *value);
        }
        self.send_message(message)
    }

    fn feed(&self, id: &str, action: &str, more: &[(&str, &str)]) -> Result<(), NotQueued> {
        let properties: BTreeMap<&str, &str> = more.iter().copied().chain([("action", action)]).collect();
        let form = serde_json::json!({ "messageId": id, "properties": properties, "body": "" });
        let (line, token) = (format!("POST {INPUT}"), service_token(&self.emulator));
        let answer = ask(&self.emulator, &line, &token, "", form.to_string().as_bytes());
        match answer.status {
            200 => Ok(()),
            400 if answer.body.contains("already holds 50 messages") => Err(NotQueued::Full),
            _ => Err(NotQueued::Other(format!("{answer:?}"))),
        }
    }

    /// For an input: records settlements in the log as if feedback had reported them.
    fn look_for_settlements(&self) {
        if self.door == Door::C2d {
            return;
        }
        let mut looked_at = self.looked_at.lock().expect("a number");
        let log = self.emulator.process.stderr.all();
        let module = format!("device_id=\"{MODULE}\"");
        let settled = |line: &&String| line.contains("settled a C2D message") && line.contains(&module);
        for line in log.iter().skip(*looked_at).filter(settled) {
            let id =
                line.split("message_id=\"").nth(1).and_then(|rest| rest.split('"').next()).expect("an id");
            let mut all = self.feedback.lock().expect("feedback");
            all.entry(id.to_owned()).or_default().push(FeedbackStatus::Success);
        }
        *looked_at = log.len();
    }

    /// Queues a message.
    pub(crate) fn send_message(&self, message: OutgoingMessage) -> Result<(), NotQueued> {
        self.back_end.as_ref().expect("the hub runs").send(message)
    }

    /// The feedback so far.
    pub(crate) fn feedback(&self) -> Feedback {
        self.look_for_settlements();
        self.feedback.lock().expect("feedback").clone()
    }

    /// Waits until `so` holds for the feedback; false if it does not within `limit`.
    pub(crate) fn wait_feedback(&self, limit: Duration, so: impl Fn(&Feedback) -> bool) -> bool {
        let end = Instant::now() + limit;
        while {
            self.look_for_settlements();
            !so(&self.feedback.lock().expect("feedback"))
        } {
            if Instant::now() > end {
                return false;
            }
            std::thread::park_timeout(Duration::from_millis(5)); // another thread's map has no event: poll
        }
        true
    }

    /// Waits until a message is completed.
    pub(crate) fn wait_success(&self, id: &str) {
        let success =
            |feedback: &Feedback| feedback.get(id).is_some_and(|all| all.contains(&FeedbackStatus::Success));
        assert!(self.wait_feedback(DEADLINE, success), "no feedback Success for {id}: {:?}", self.feedback());
    }

    /// How often the hub delivered a message again.
    pub(crate) fn redelivered(&self) -> usize {
        self.redelivered + self.redelivered_by_this_process()
    }

    fn redelivered_by_this_process(&self) -> usize {
        let log = self.emulator.process.stderr.all();
        let again =
            |line: &&String| line.contains("delivered a C2D message") && line.contains("redelivered=true");
        log.iter().filter(again).count()
    }
}

/// A message with the property `action` that asks for full feedback.
pub(crate) fn message(id: &str, action: &str) -> OutgoingMessage {
    let mut message = OutgoingMessage {
        device_id: DEVICE.to_owned(),
        message_id: id.to_owned(),
        ack: DeliveryAck::Full,
        ..OutgoingMessage::default()
    };
    message.properties.set("action", action);
    message
}

fn start(state: &Path, door: Door, [mqtt, amqp, https]: [&str; 3]) -> Emulator {
    let mut arguments = vec!["--device", DEVICE, "--log-level", "debug"];
    if https != "0" {
        arguments.extend(["--https-port", https]);
    }
    let socket = state.with_file_name("workload.sock");
    if door != Door::C2d {
        let socket = socket.to_str().expect("UTF-8");
        arguments.extend(["--module", MODULE, "--workload-socket", socket]);
    }
    Emulator::start_in(state, mqtt, amqp, &arguments)
}

/// A message, and the channel for the result of sending it.
type Order = (OutgoingMessage, mpsc::SyncSender<Result<(), NotQueued>>);

/// One connection in its own thread. A drop ends both.
struct BackEnd {
    orders: Option<Sender<Order>>,
    thread: Option<JoinHandle<()>>,
}

impl BackEnd {
    fn connect(emulator: &Emulator, feedback: &Arc<Mutex<Feedback>>) -> Self {
        let identity =
            ServiceConnectionString::parse(&emulator.service_string()).expect("a connection string").into();
        let (ca_file, feedback) = (emulator.ca_file(), Arc::clone(feedback));
        let (orders, taken) = channel(1); // the sender waits for the answer
        let thread = std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            let served = runtime.block_on(serve(&identity, &ca_file, taken, &feedback));
            // The hub was stopped, or this is a failure that the next sender will see.
            if let Err(error) = served {
                eprintln!("back end: {error}");
            }
        });
        Self { orders: Some(orders), thread: Some(thread) }
    }

    fn send(&self, message: OutgoingMessage) -> Result<(), NotQueued> {
        let (told, fate) = mpsc::sync_channel(1);
        let gone = |_| NotQueued::Other("the back end's connection has ended".into());
        self.orders
            .as_ref()
            .expect("not dropped")
            .blocking_send((message, told))
            .map_err(|error| gone(error.to_string()))?;
        fate.recv_timeout(DEADLINE).map_err(|error| gone(error.to_string()))?
    }
}

impl Drop for BackEnd {
    fn drop(&mut self) {
        drop(self.orders.take());
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the back end has not panicked");
        }
    }
}

async fn serve(
    identity: &ServiceIdentity,
    ca_file: &Path,
    mut orders: Receiver<Order>,
    feedback: &Mutex<Feedback>,
) -> Result<(), ServiceError> {
    let mut service = Service::connect(identity, Some(ca_file), TOKEN_LIFETIME, SystemTime::now()).await?;
    let mut reader = service.feedback_receiver().await?;
    let mut sender = service.sender().await?;
    loop {
        tokio::select! {
            order = orders.recv() => {
                let Some((message, told)) = order else { break };
                let fate = sender.send(&message).await.map_err(|error| match error.refusal() {
                    Some(refusal) if refusal.condition == "amqp:resource-limit-exceeded" => NotQueued::Full,
                    _ => NotQueued::Other(error.to_string()),
                });
                // The sender may have stopped waiting.
                drop(told.send(fate));
            }
            batch = reader.next() => {
                let batch = batch?;
                for record in &batch.records {
                    let mut all = feedback.lock().expect("feedback");
                    all.entry(record.original_message_id.clone()).or_default().push(record.status_code);
                }
                reader.complete(batch).await?;
            }
        }
    }
    service.close().await;
    Ok(())
}
