//! `c2d-agent c2d-send`: sends one C2D message and, with `--wait` or `--wait-outcome`, tells what happened to it.
//!
//! Owns: its arguments, the checks before dialling, the order of events and the exit code.
//! Must not know: AMQP, HTTP.

use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, anyhow};
use clap::ArgGroup;
use futures_util::StreamExt as _;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook_tokio::Signals;

use super::back_end::{self, HubArgs, OutputArgs, duration};
use super::{Exit, Failure, transport};
use crate::credentials::check_device_id;
use crate::feedback::FeedbackStatus;
use crate::fleet;
use crate::outcome::OutcomeKind;
use crate::service::{
    FeedbackReceiver, HttpsWay, OutgoingMessage, Service, ServiceIdentity, ServiceTransport, TOKEN_LIFETIME,
};

mod many;
mod many_bar;
mod many_events;
mod many_lists;
mod many_output;
mod message;
mod outcome;
mod output;
mod property;
mod telemetry;

use many::ManyArgs;
use message::{LONGEST_EXPIRY, MessageArgs};
use outcome::OutcomeWatch;
use output::SendOutput;

/// Send a message to a device, or to many. With --wait or --wait-outcome, show what happened to it.
///
/// With --devices-from or --query, each device gets a message of its own, paced so that the hub can take them. A journal
/// keeps what was sent, so that --resume goes on after any interruption with the same message ids: an agent acts once on
/// what comes twice. A name in braces is filled in: deviceId, n (the number of the message), run, or a column.
///
/// The service connection string comes from --connection-string-file or from the variable
/// C2D_SERVICE_CONNECTION_STRING, never from an argument.
#[derive(Debug, clap::Args)]
#[command(group = ArgGroup::new("target").required(true).args(["device", "devices_from", "query", "resume"]))]
#[command(override_usage = "c2d-agent c2d-send [OPTIONS] --device <ID>
       c2d-agent c2d-send [OPTIONS] --devices-from <FILE>
       c2d-agent c2d-send [OPTIONS] --query <SQL>
       c2d-agent c2d-send [OPTIONS] --resume <JOURNAL>")]
#[command(after_help = "Examples:
  c2d-agent c2d-send --device pi-01 --property action=pump --property state=on
  c2d-agent c2d-send --device pi-01 --data hello --ack full --expiry 10m --wait
  c2d-agent c2d-send --device pi-01 --file notes --content-type text/plain
  c2d-agent c2d-send --device pi-01 --property action=backup --wait-outcome=10m
  c2d-agent c2d-send --devices-from pumps.txt --property action=pump --dry-run
  c2d-agent c2d-send --devices-from pumps.txt --data on --journal run.journal
  c2d-agent c2d-send --resume run.journal
  c2d-agent c2d-send --query \"tags.site = '12'\" --property action=pump

Exit codes: 0 accepted by the hub (with --wait: delivered; with --wait-outcome: the action succeeded), 1 an error, 2 \
the arguments are wrong, 3 not delivered (of many: some were refused or not taken), 4 no feedback or no outcome in time, 5 delivered, but the action did not \
succeed.", mut_arg("transport", |argument| transport::only(argument, transport::OF_SEND)))]
pub(super) struct SendArgs {
    /// The device that the message is for.
    #[arg(long, value_name = "ID")]
    device: Option<String>,
    #[command(flatten)]
    message: MessageArgs,
    /// Wait for the message's feedback, for 60s or the given time; of many messages, that long after the last one. A real
    /// hub collects feedback for up to 15 s before it sends it.
    #[arg(
        long,
        value_name = "DURATION",
        num_args = 0..=1,
        default_missing_value = "60s",
        value_parser = duration
    )]
    wait: Option<Duration>,
    /// Wait until the device reports the outcome of its action, for 60s or the given time, and print the outcome; of many
    /// messages, that long after the last one.
    ///
    /// c2d-send reads the device's twin and its telemetry (report = "twin", "telemetry" or both). Where the hub's Event Hubs
    /// endpoint cannot be reached, on port 5671 or with --transport amqp-ws on the HTTPS port, it reads the twin only. The
    /// hub's HTTPS port must be reachable, and the policy needs ServiceConnect, as for sending. HTTPS_PROXY is used.
    /// c2d-send checks all this before it sends the first message.
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
    #[command(flatten)]
    many: ManyArgs,
}

/// The ways to the hub.
struct Ways {
    amqp: ServiceTransport,
    /// For `--wait-outcome`.
    https: Option<HttpsWay>,
}

pub(super) fn run(args: &SendArgs) -> Result<Exit, Failure> {
    let Some(device_id) = args.device.as_deref().filter(|_| !args.many.is_wanted()) else {
        return many::run(args);
    };
    let now = SystemTime::now();
    let message = args.message(device_id, now).map_err(Failure::usage)?;
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
    identity: &ServiceIdentity,
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
        Some(way) => {
            let ca_file = ca_file.as_deref();
            Some(OutcomeWatch::begin((way, &ways.amqp), ca_file, identity, message, lifetime).await?)
        }
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
    fn message(&self, device_id: &str, now: SystemTime) -> anyhow::Result<OutgoingMessage> {
        check_device_id(device_id)?;
        let template = self.message.template(self.wait_option()?)?;
        let id = template.message_id.clone().unwrap_or_else(|| uuid::Uuid::new_v4().to_string());
        let message = template.to_device(device_id, id, now).map_err(anyhow::Error::msg)?;
        fleet::check_message(&message).map_err(anyhow::Error::msg)?;
        property::warn_of_odd(&message.properties);
        Ok(message)
    }

    /// The option that waits for feedback.
    fn wait_option(&self) -> anyhow::Result<Option<&'static str>> {
        let waits = [("--wait", self.wait), ("--wait-outcome", self.wait_outcome)];
        let Some((option, wait)) = waits.into_iter().find_map(|(option, wait)| Some((option, wait?))) else {
            return Ok(None);
        };
        if wait > LONGEST_EXPIRY {
            let given = humantime::format_duration(wait);
            return Err(anyhow!("{option} is {given}, but no message lives longer than 2 days"));
        }
        Ok(Some(option))
    }

    fn ways(&self) -> anyhow::Result<Ways> {
        let https = self.wait_outcome.map(|_| self.hub.https()).transpose()?;
        Ok(Ways { amqp: self.hub.amqp()?, https })
    }
}
