//! `c2d-agent monitor`: the messages that devices send, as they reach the hub.
//!
//! Owns: its arguments, what is printed, the exit code. Must not know: AMQP.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, anyhow};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use futures_util::StreamExt as _;
use serde::Serialize;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook_tokio::Signals;

use super::back_end::{self, HubArgs, OutputArgs, duration, unreadable};
use super::event_watch::EventWatch;
use super::shown::{Output, moment, plain, shorten};
use super::{Exit, Failure, check_is_no_secret, tell, transport};
use crate::credentials::{EventHubConnectionString, check_device_id};
use crate::message::format_time;
use crate::service::{EventHubAccess, EventStart, HubEvent, ServiceError, ServiceTransport};

/// Most characters of a body, and of all properties, in a line for people; --json has all.
const MOST_SHOWN: usize = 500;

/// Watch the messages that devices send, as they reach the hub: telemetry, and the reports of agents.
///
/// It reads the hub's Event Hubs endpoint over AMQP on port 5671, or with --transport amqp-ws over a WebSocket, where the
/// hub redirects it. Reading takes nothing from other readers. By default it begins with what comes.
///
/// The service connection string comes from --connection-string-file or from the variable
/// C2D_SERVICE_CONNECTION_STRING, never from an argument.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  c2d-agent monitor
  c2d-agent monitor --device pi-01 --since 10m --json
  c2d-agent monitor --device pi-01 --count 1 --for 60s

Exit codes: 0 ended by a signal, by --for, after --count messages, or because standard output was closed; 1 an error; 2 \
the arguments are wrong; 4 the time of --for ended before --count messages came.", mut_arg("transport", |argument| transport::only(argument, transport::OF_EVENTS)))]
pub(super) struct MonitorArgs {
    /// Print only the messages of this device and of its modules.
    #[arg(long, value_name = "ID")]
    device: Option<String>,
    /// Begin with what has come in this time before, such as 10m.
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    since: Option<Duration>,
    /// End after this many messages.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// End after this time, such as 60s or 2h.
    #[arg(long = "for", value_name = "DURATION", value_parser = duration)]
    time: Option<Duration>,
    /// The consumer group. Five readers may share one.
    #[arg(long, value_name = "NAME", default_value = "$Default")]
    consumer_group: String,
    /// A file with the connection string of the Event Hubs endpoint, if the hub shall not be asked for it.
    #[arg(long, value_name = "FILE")]
    event_hub_connection_string_file: Option<PathBuf>,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    hub: HubArgs,
}

/// The object of `--json`: stable for scripts; fields are added, never renamed.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct MonitorLine<'a> {
    event: &'static str,
    device_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    module_id: Option<&'a str>,
    enqueued_time_utc: Option<String>,
    partition: &'a str,
    sequence_number: Option<i64>,
    system_properties: &'a BTreeMap<String, String>,
    application_properties: &'a BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    body: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    body_base64: Option<String>,
}

/// Watches until something ends it.
///
/// # Errors
/// When the endpoint cannot be reached at the start or refuses, or standard output cannot be written.
pub(super) fn run(args: &MonitorArgs) -> Result<Exit, Failure> {
    args.device.as_deref().map_or(Ok(()), check_device_id).map_err(Failure::usage)?;
    let way = args.hub.amqp().map_err(Failure::usage)?;
    let given = args.event_hub_connection_string_file.as_deref().map(|path| given(path, &way)).transpose();
    let given = given.map_err(Failure::usage)?;
    let identity = match &given {
        Some(_) => None,
        None => Some(args.hub.identity().map_err(Failure::usage)?),
    };
    let ca_file = args.hub.ca_file();
    super::block_on(async {
        back_end::end_at_the_second_signal().context("signals cannot be received")?;
        let mut signals = Signals::new([SIGTERM, SIGINT]).context("signals cannot be received")?;
        let over = async {
            match args.time {
                Some(time) => tokio::time::sleep(time).await,
                None => std::future::pending().await,
            }
        };
        let mut printed = 0;
        let watching = async {
            let access = match (given, &identity) {
                (Some(access), _) => access,
                (None, Some(identity)) => {
                    let of_hub =
                        EventHubAccess::of_hub(identity, &way, ca_file.as_deref(), SystemTime::now());
                    of_hub.await.map_err(|error| back_end::failed(error.into()))?
                }
                (None, None) => return Err(anyhow!("no hub is named").into()),
            };
            watch(args, access, ca_file, &mut printed).await
        };
        tokio::select! {
            ended = watching => return ended.map(|()| Exit::Done),
            Some(_signal) = signals.next() => return Ok(Exit::Done),
            () = over => {}
        }
        match (args.count, args.time) {
            (Some(count), Some(time)) => {
                let time = humantime::format_duration(time);
                tell(format_args!(
                    "{printed} of {count} messages came within {time}: give more time with --for"
                ));
                Ok(Exit::NoFeedback)
            }
            _ => Ok(Exit::Done),
        }
    })
}

/// The endpoint of a connection string in a file.
fn given(path: &Path, way: &ServiceTransport) -> anyhow::Result<EventHubAccess> {
    let option = "--event-hub-connection-string-file";
    check_is_no_secret(option, path)?;
    let text = std::fs::read_to_string(path);
    let text = text.map_err(|error| unreadable("connection string", path, &error))?;
    let string = EventHubConnectionString::parse(&text).with_context(|| path.display().to_string())?;
    Ok(EventHubAccess::given(string, way.clone()))
}

/// Prints what comes, until enough has come or the reader of standard output is gone.
async fn watch(
    args: &MonitorArgs,
    access: EventHubAccess,
    ca_file: Option<PathBuf>,
    printed: &mut u64,
) -> Result<(), Failure> {
    let failed = |error: ServiceError| back_end::failed(error.into());
    let start = args.since.map_or(EventStart::Latest, |since| {
        EventStart::After(SystemTime::now().checked_sub(since).unwrap_or(SystemTime::UNIX_EPOCH))
    });
    let opened = EventWatch::open(access, ca_file, args.consumer_group.clone(), start).await;
    let mut events = opened.map_err(failed)?;
    tell("watching the messages of devices");
    let mut out = Output::new();
    loop {
        let event = events.next(|note| tell(note)).await.map_err(failed)?;
        if args.device.as_ref().is_some_and(|device| *device != event.device_id) {
            continue;
        }
        match args.output.json {
            true => out.json(&line(&event))?,
            false => out.line(&text(&event))?,
        }
        out.flush()?;
        if !out.is_open() {
            return Ok(());
        }
        *printed += 1;
        if args.count.is_some_and(|count| *printed >= count) {
            return Ok(());
        }
    }
}

fn line(event: &HubEvent) -> MonitorLine<'_> {
    let body = std::str::from_utf8(&event.body);
    MonitorLine {
        event: "message",
        device_id: &event.device_id,
        module_id: event.module_id.as_deref(),
        enqueued_time_utc: event.enqueued.map(format_time),
        partition: &event.partition,
        sequence_number: event.sequence_number,
        system_properties: &event.system,
        application_properties: &event.application,
        body: body.ok(),
        body_base64: body.is_err().then(|| BASE64.encode(&event.body)),
    }
}

/// A message on one line: when, who, its properties in braces, its body.
fn text(event: &HubEvent) -> String {
    let time = event.enqueued.map_or_else(|| "-".to_owned(), moment);
    let module = event.module_id.as_deref().map(|module| format!("/{}", plain(module))).unwrap_or_default();
    let properties = event.application.iter().map(|(name, value)| format!("{name}={value}"));
    let properties = properties.collect::<Vec<_>>().join(", ");
    let properties = match properties.is_empty() {
        true => String::new(),
        false => format!("  {{{}}}", shorten(&plain(&properties), MOST_SHOWN)),
    };
    let body = match std::str::from_utf8(&event.body) {
        Ok(body) => {
            let start = body.char_indices().nth(MOST_SHOWN).map_or(body, |(at, _)| &body[..at]);
            let rest = if start.len() < body.len() { "…" } else { "" };
            format!("{}{rest}", plain(start))
        }
        Err(_) => format!("({} bytes)", event.body.len()),
    };
    format!("{time}  {}{module}{properties}  {body}", plain(&event.device_id)).trim_end().to_owned()
}
