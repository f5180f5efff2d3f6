//! `emulator events`: the D2C messages that a running emulator keeps, and with `--follow` new ones.
//!
//! Owns: its arguments, the order in which messages of several devices are printed, their lines, what ends it.
//! Must not know: HTTPS.

use std::collections::BTreeMap;

use anyhow::Context as _;
use futures_util::StreamExt as _;
use serde_json::{Value, json};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook_tokio::Signals;

use super::running::{RunningArgs, WhomArgs, devices, failure};
use crate::cli::shown::{Output, clock, plain, shorten, terminal_width};
use crate::cli::{Exit, Failure};
use crate::emulator::client::RunningEmulator;
use crate::message::parse_time;

/// Print what devices have sent to the running emulator: the last 100 D2C messages of each.
///
/// A real hub hands these messages to its Event Hubs endpoint instead.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  c2d-agent emulator events --state-dir ./hub
  c2d-agent emulator events --follow --device pi-01 --json

Exit codes: 0 done, or ended by a signal or because standard output was closed; 1 an error, for example no emulator is running; 2 the arguments are wrong, or the directory is not a state directory.")]
pub(super) struct EventsArgs {
    #[command(flatten)]
    whom: WhomArgs,
    /// Keep running, and print each message as it comes.
    #[arg(long, short)]
    follow: bool,
    /// Only messages with a number above N; each device counts its own from 1.
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    after: u64,
    #[command(flatten)]
    running: RunningArgs,
}

/// Prints the messages.
///
/// # Errors
/// When no emulator answers.
pub(super) fn run(args: &EventsArgs) -> Result<Exit, Failure> {
    let client = args.running.client()?;
    super::super::block_on(async {
        let mut signals = Signals::new([SIGTERM, SIGINT]).context("signals cannot be received")?;
        tokio::select! {
            printed = print(args, &client) => printed,
            Some(_signal) = signals.next() => Ok(Exit::Done),
        }
    })
}

async fn print(args: &EventsArgs, client: &RunningEmulator) -> Result<Exit, Failure> {
    let (id, mut out) = (args.whom.id(), Output::new());
    let mut seen: BTreeMap<String, u64> = BTreeMap::new();
    let mut version = None;
    loop {
        let overview = client.overview(version).await.map_err(failure)?;
        version = overview["version"].as_u64();
        let ids = match &id {
            Some(id) => vec![id.clone()],
            None => devices(&overview).filter_map(|device| with_news(device, &seen)).collect(),
        };
        let mut events = Vec::new();
        for id in ids {
            let last = seen.entry(id.clone()).or_insert(args.after);
            loop {
                let page = client.events(&id, *last).await.map_err(failure)?;
                // A page that leads no further ends it, whatever answers there.
                let number = page.last().and_then(|event| event["number"].as_u64());
                let Some(number) = number.filter(|number| number > last) else { break };
                *last = number;
                events.extend(page.into_iter().map(|event| (id.clone(), event)));
            }
        }
        // Messages of several devices are printed as they came. The times compare as text, because they have one width.
        events.sort_by(|(_, one), (_, other)| {
            one["enqueuedTime"].as_str().cmp(&other["enqueuedTime"].as_str())
        });
        for (id, event) in events {
            if args.running.json {
                out.json(&object(&id, event))?;
            } else {
                out.line(&line(&id, &event))?;
            }
        }
        out.flush()?;
        if !args.follow || !out.is_open() {
            return Ok(Exit::Done);
        }
    }
}

/// The id of a device or a module, if its newest message has not been seen.
fn with_news(device: &Value, seen: &BTreeMap<String, u64>) -> Option<String> {
    let id = device["deviceId"].as_str()?;
    let newest = device["events"][0]["number"].as_u64()?;
    (newest > seen.get(id).copied().unwrap_or_default()).then(|| id.to_owned())
}

fn object(id: &str, mut event: Value) -> Value {
    let mut object = match id.split_once('/') {
        Some((device, module)) => json!({ "deviceId": device, "moduleId": module }),
        None => json!({ "deviceId": id }),
    };
    if let (Some(object), Some(event)) = (object.as_object_mut(), event.as_object_mut()) {
        object.append(event);
    }
    object
}

fn line(id: &str, event: &Value) -> String {
    let time = event["enqueuedTime"].as_str().and_then(parse_time).map(clock).unwrap_or_default();
    let properties = ["systemProperties", "properties"].map(|kind| event[kind].as_object());
    let properties = properties.into_iter().flatten().flatten().map(|(name, value)| match value.as_str() {
        Some(value) => format!("{name}={value}"),
        None => name.clone(),
    });
    let properties = properties.collect::<Vec<_>>().join(" ");
    let body = match (event["body"].as_str(), event["bodyBase64"].as_str()) {
        (Some(text), _) => text.to_owned(),
        (None, Some(base64)) => format!("(base64) {base64}"),
        (None, None) => String::new(),
    };
    let parts = [time, plain(id), format!("#{}", event["number"]), plain(&properties), plain(&body)];
    let line = parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("  ");
    terminal_width().map_or(line.clone(), |width| shorten(&line, width))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_one_line_that_a_terminal_can_show_and_one_object_that_says_whose_it_is() {
        let event = json!({
            "number": 3, "enqueuedTime": "1970-01-01T00:00:01.0000000Z",
            "systemProperties": { "$.cid": "m-1" }, "properties": { "kind": "a\u{1b}[31m", "flag": null },
            "body": "one\ntwo",
        });
        assert_eq!(
            line("edge1/m", &event),
            "1970-01-01 00:00:01  edge1/m  #3  $.cid=m-1 flag kind=a\\u{1b}[31m  one\\ntwo"
        );
        let object = object("edge1/m", event);
        assert_eq!((&object["deviceId"], &object["moduleId"]), (&"edge1".into(), &"m".into()));
        assert_eq!((&object["number"], &object["body"]), (&3.into(), &"one\ntwo".into()));
    }
}
