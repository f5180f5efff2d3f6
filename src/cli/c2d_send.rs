//! `c2d-agent c2d-send`: sends one C2D message and, with `--wait` or `--wait-outcome`, tells what happened to it.
//!
//! Owns: its arguments, the checks before dialling, the order of events and the exit code.
//! Must not know: AMQP, HTTP.

use std::io::Read as _;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, anyhow};
use bytes::Bytes;
use futures_util::StreamExt as _;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook_tokio::Signals;

use super::back_end::{self, HubArgs, OutputArgs, duration};
use super::{Exit, Failure, transport};
use crate::credentials::{ServiceConnectionString, check_device_id};
use crate::feedback::{DeliveryAck, FeedbackStatus};
use crate::message::{self, MAX_C2D_BYTES, Properties};
use crate::outcome::OutcomeKind;
use crate::service::{
    FeedbackReceiver, FeedbackTransport, HttpsWay, OutgoingMessage, Service, ServiceTransport, TOKEN_LIFETIME,
};

mod outcome;
mod output;
mod property;

use outcome::OutcomeWatch;
use output::SendOutput;

/// The hub keeps no message longer. Source: wire reference 5.1.
const LONGEST_EXPIRY: Duration = Duration::from_secs(2 * 24 * 3600);

/// Send one message to a device. With --wait or --wait-outcome, show what happened to it.
///
/// The service connection string comes from --connection-string-file or from the variable
/// C2D_SERVICE_CONNECTION_STRING, never from an argument.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  c2d-agent c2d-send --device pi-01 --property action=pump --property state=on
  c2d-agent c2d-send --device pi-01 --data hello --ack full --expiry 10m --wait
  c2d-agent c2d-send --device pi-01 --file notes --content-type text/plain
  c2d-agent c2d-send --device pi-01 --property action=backup --wait-outcome=10m

Exit codes: 0 accepted by the hub (with --wait: delivered; with --wait-outcome: the action succeeded), 1 an error, 2 \
the arguments are wrong, 3 not delivered, 4 no feedback or no outcome in time, 5 delivered, but the action did not \
succeed.", mut_arg("transport", |argument| transport::only(argument, transport::OF_SEND)))]
pub(super) struct SendArgs {
    /// The device that the message is for.
    #[arg(long, value_name = "ID")]
    device: String,
    /// An application property; may be given several times.
    #[arg(long = "property", value_name = "K=V", value_parser = property::parse)]
    properties: Vec<(String, String)>,
    /// The body, as text. Without --data and --file the body is empty.
    #[arg(long, value_name = "TEXT", conflicts_with = "file", allow_hyphen_values = true)]
    data: Option<String>,
    /// The body, from a file; - is standard input.
    #[arg(long, value_name = "PATH")]
    file: Option<PathBuf>,
    /// The message id [default: a random UUID].
    #[arg(long, value_name = "ID")]
    message_id: Option<String>,
    /// The correlation id: the id of a related message.
    #[arg(long, value_name = "ID")]
    correlation_id: Option<String>,
    /// The user id of the sender.
    #[arg(long, value_name = "ID")]
    user_id: Option<String>,
    /// The type of the body, such as application/json.
    #[arg(long, value_name = "TYPE")]
    content_type: Option<String>,
    /// The encoding of the body, such as utf-8.
    #[arg(long, value_name = "ENCODING")]
    content_encoding: Option<String>,
    /// Which outcomes the hub reports: none, positive, negative or full. [default: none; full with --wait and
    /// --wait-outcome]
    #[arg(long, value_name = "LEVEL")]
    ack: Option<DeliveryAck>,
    /// How long the hub may keep the message, such as 10m; at most 2 days [default: the hub's, 1 hour].
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    expiry: Option<Duration>,
    /// Wait for the message's feedback, for 60s or the given time. A real hub collects feedback for up to 15 s before
    /// it sends it.
    #[arg(
        long,
        value_name = "DURATION",
        num_args = 0..=1,
        default_missing_value = "60s",
        value_parser = duration
    )]
    wait: Option<Duration>,
    /// Wait until the device reports the outcome of its action, for 60s or the given time, and print the outcome.
    ///
    /// With a real hub, the rule on the device must have report = "twin", because c2d-send reads the device's twin, not
    /// the telemetry; the emulator shows both. The hub's HTTPS port must be reachable, and the policy needs
    /// ServiceConnect, as for sending. HTTPS_PROXY is used. c2d-send checks all this before it sends the message.
    #[arg(
        long,
        value_name = "DURATION",
        num_args = 0..=1,
        default_missing_value = "60s",
        value_parser = duration,
        conflicts_with = "wait"
    )]
    wait_outcome: Option<Duration>,
    /// Also print the feedback of other messages that c2d-send consumes while it waits.
    #[arg(long, short)]
    verbose: bool,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    hub: HubArgs,
}

/// The ways to the hub.
struct Ways {
    amqp: ServiceTransport,
    /// For `--wait-outcome`.
    https: Option<HttpsWay>,
}

pub(super) fn run(args: &SendArgs) -> Result<Exit, Failure> {
    let now = SystemTime::now();
    let message = args.message(now).map_err(Failure::usage)?;
    let identity = args.hub.identity().map_err(Failure::usage)?;
    let ways = args.ways().map_err(Failure::usage)?;
    let mut output = SendOutput::new(args.output.json, args.verbose);
    super::block_on(async {
        let mut signals = Signals::new([SIGTERM, SIGINT]).context("signals cannot be received")?;
        output.message(&message)?;
        let result = tokio::select! {
            result = exchange(args, &ways, &identity, &message, now, &mut output) => result,
            // The hub gives batches that were not completed to the next reader of feedback.
            Some(_signal) = signals.next() => Err(anyhow!("interrupted by a signal")),
        };
        output.consumed_note();
        match result {
            Ok(exit) => Ok(exit),
            Err(error) => {
                output.failed(&message, &error)?;
                Err(back_end::failed(error))
            }
        }
    })
}

async fn exchange(
    args: &SendArgs,
    ways: &Ways,
    identity: &ServiceConnectionString,
    message: &OutgoingMessage,
    now: SystemTime,
    output: &mut SendOutput,
) -> anyhow::Result<Exit> {
    let started = Instant::now();
    let wait = args.wait.or(args.wait_outcome);
    let lifetime = TOKEN_LIFETIME + wait.unwrap_or_default();
    let ca_file = args.hub.ca_file();
    let mut service = Service::connect_by(&ways.amqp, identity, ca_file.as_deref(), lifetime, now).await?;
    // Opened before the sender, so that the feedback of a quick device is not missed.
    let mut feedback = match wait {
        Some(wait) => Some((service.feedback_receiver().await?, wait)),
        None => None,
    };
    let mut watch = match ways.https.clone() {
        Some(way) => Some(OutcomeWatch::begin(way, ca_file.as_deref(), identity, message, lifetime).await?),
        None => None,
    };
    service.sender().await?.send(message).await?;
    output.accepted(message, started.elapsed())?;
    let exit = match (&mut feedback, &mut watch) {
        (None, _) => Exit::Done,
        (Some((receiver, wait)), None) => {
            output.waiting(*wait);
            let feedback = await_feedback(receiver, message, Instant::now(), output);
            match tokio::time::timeout(*wait, feedback).await {
                Ok(status) => match status? {
                    FeedbackStatus::Success => Exit::Done,
                    _ => Exit::NegativeFeedback,
                },
                Err(_) => {
                    output.timed_out(message, *wait)?;
                    Exit::NoFeedback
                }
            }
        }
        (Some((receiver, wait)), Some(watch)) => {
            await_outcome(receiver, watch, message, *wait, output).await?
        }
    };
    service.close().await;
    Ok(exit)
}

/// Waits for the outcome that the device reports. Feedback usually comes first. If it says that the message was not
/// delivered, there will be no outcome.
async fn await_outcome(
    receiver: &mut FeedbackReceiver,
    watch: &mut OutcomeWatch,
    message: &OutgoingMessage,
    wait: Duration,
    output: &mut SendOutput,
) -> anyhow::Result<Exit> {
    let accepted = Instant::now();
    output.waiting_for_outcome(wait);
    let mut outcome = std::pin::pin!(watch.outcome());
    let mut end = std::pin::pin!(tokio::time::sleep(wait));
    let mut delivered = false;
    let report = {
        let mut feedback = std::pin::pin!(await_feedback(receiver, message, accepted, output));
        loop {
            tokio::select! {
                report = &mut outcome => break Some(report?),
                status = &mut feedback, if !delivered => match status? {
                    FeedbackStatus::Success => delivered = true,
                    _ => return Ok(Exit::NegativeFeedback),
                },
                () = &mut end => break None,
            }
        }
    };
    match report {
        Some(report) => {
            output.outcome(message, &report, accepted.elapsed())?;
            Ok(if report.outcome == OutcomeKind::Succeeded { Exit::Done } else { Exit::ActionFailed })
        }
        None => {
            output.no_outcome(message, delivered, wait)?;
            Ok(Exit::NoFeedback)
        }
    }
}

/// Reads batches until one holds this message's record. A batch also holds records of other messages. They are shown or
/// counted before the batch is completed, because a batch can only be completed as a whole.
async fn await_feedback(
    receiver: &mut FeedbackReceiver,
    message: &OutgoingMessage,
    accepted: Instant,
    output: &mut SendOutput,
) -> anyhow::Result<FeedbackStatus> {
    loop {
        let batch = receiver.next().await?;
        let mut own = None;
        for record in &batch.records {
            if record.original_message_id == message.message_id && record.device_id == message.device_id {
                output.feedback(record, accepted.elapsed())?;
                own = Some(record.status_code);
            } else {
                output.other_feedback(record)?;
            }
        }
        receiver.complete(batch).await?;
        if let Some(status) = own {
            return Ok(status);
        }
    }
}

impl SendArgs {
    /// Builds the message, and checks all that can be checked before dialling.
    fn message(&self, now: SystemTime) -> anyhow::Result<OutgoingMessage> {
        check_device_id(&self.device)?;
        let message_id = self.message_id.clone().unwrap_or_else(|| uuid::Uuid::new_v4().to_string());
        if !message::is_message_id(&message_id) {
            return Err(anyhow!(
                "--message-id is \"{}\": use 1 to 128 of the letters and digits of ASCII and - : . + % _ # * ? ! ( ) , \
                 = @ ; $ '",
                message_id.escape_debug()
            ));
        }
        let texts = [
            ("--correlation-id", &self.correlation_id),
            ("--user-id", &self.user_id),
            ("--content-type", &self.content_type),
            ("--content-encoding", &self.content_encoding),
        ];
        for (option, text) in texts.into_iter().filter_map(|(option, text)| Some((option, text.as_ref()?))) {
            if text.is_empty() || !text.chars().all(|c| c.is_ascii_graphic() || c == ' ') {
                return Err(anyhow!("{option} is \"{}\": use printable ASCII text", text.escape_debug()));
            }
        }
        let expiry = match self.expiry {
            Some(expiry) if expiry > LONGEST_EXPIRY => {
                let given = humantime::format_duration(expiry);
                return Err(anyhow!("--expiry is {given}, but the hub keeps no message longer than 2 days"));
            }
            Some(expiry) => Some(now + expiry),
            None => None,
        };
        let waits = [("--wait", self.wait), ("--wait-outcome", self.wait_outcome)];
        let wait = waits.into_iter().find_map(|(option, wait)| Some((option, wait?)));
        if let Some((option, wait)) = wait.filter(|(_, wait)| *wait > LONGEST_EXPIRY) {
            let given = humantime::format_duration(wait);
            return Err(anyhow!("{option} is {given}, but no message lives longer than 2 days"));
        }
        let ack = match (self.ack, wait) {
            (Some(DeliveryAck::None), Some((option, _))) => {
                return Err(anyhow!(
                    "{option} needs feedback, but --ack none asks for none: leave --ack out, or use --ack full"
                ));
            }
            (Some(ack), _) => ack,
            (None, Some(_)) => DeliveryAck::Full,
            (None, None) => DeliveryAck::None,
        };
        let message = OutgoingMessage {
            device_id: self.device.clone(),
            message_id,
            correlation_id: self.correlation_id.clone(),
            user_id: self.user_id.clone(),
            content_type: self.content_type.clone(),
            content_encoding: self.content_encoding.clone(),
            expiry,
            ack,
            properties: self.application_properties()?,
            body: self.body()?,
        };
        match message.wire_size() {
            size if size > MAX_C2D_BYTES => Err(anyhow!(
                "the message has {size} bytes with its properties, but a C2D message has at most {MAX_C2D_BYTES} \
                 (64 KiB): send less, or send a link to the data"
            )),
            _ => Ok(message),
        }
    }

    fn application_properties(&self) -> anyhow::Result<Properties> {
        let mut properties = Properties::default();
        for (name, value) in &self.properties {
            if properties.contains(name) {
                return Err(anyhow!("--property {name} is given twice: give each name once"));
            }
            if let Some(text) = [name, value].into_iter().find(|text| !property::is_hub_text(text)) {
                tracing::warn!(
                    property = name,
                    "sent \"{}\", which a real hub may refuse: it takes ASCII letters, digits and {}",
                    text.escape_debug(),
                    property::PUNCTUATION
                );
            }
            properties.set(name, value);
        }
        Ok(properties)
    }

    fn body(&self) -> anyhow::Result<Bytes> {
        // Reads one byte above the limit, to tell a body that is too long from one that just fits.
        let limit = MAX_C2D_BYTES as u64 + 1;
        let mut body = Vec::new();
        match (&self.data, &self.file) {
            (Some(text), _) => body = text.clone().into_bytes(),
            (None, Some(path)) if path.as_os_str() == "-" => {
                let read = std::io::stdin().take(limit).read_to_end(&mut body);
                read.context("cannot read the body from standard input")?;
            }
            (None, Some(path)) => {
                let file = std::fs::File::open(path);
                file.and_then(|file| file.take(limit).read_to_end(&mut body))
                    .map_err(|error| back_end::unreadable("body", path, &error))?;
            }
            (None, None) => {}
        }
        if body.len() > MAX_C2D_BYTES {
            return Err(anyhow!(
                "the body has more than {MAX_C2D_BYTES} bytes (64 KiB), the most that a C2D message may have: send \
                 less, or send a link to the data"
            ));
        }
        Ok(body.into())
    }

    fn ways(&self) -> anyhow::Result<Ways> {
        let amqp = match self.hub.transport()? {
            FeedbackTransport::Amqp(way) => way,
            FeedbackTransport::Https(_) => return Err(anyhow!("the hub takes messages over AMQP only")),
        };
        let https = self.wait_outcome.map(|_| self.hub.https()).transpose()?;
        Ok(Ways { amqp, https })
    }
}
