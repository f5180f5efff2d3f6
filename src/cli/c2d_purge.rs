//! `c2d-agent c2d-purge`: deletes the messages that wait in a device's queue.
//!
//! Owns: its arguments, what is printed, the exit code. Must not know: HTTP.

use anyhow::{Context as _, anyhow};
use futures_util::StreamExt as _;
use serde::Serialize;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook_tokio::Signals;

use super::back_end::{self, HubArgs, OutputArgs};
use super::shown::json;
use super::{Exit, Failure, sentence, transport};
use crate::credentials::check_device_id;
use crate::service::TOKEN_LIFETIME;

/// Delete all messages that wait in the queue of a device.
///
/// A purged message is not delivered. If its sender asked for negative or full feedback, it gets the feedback Purged. A
/// message that the device holds at that moment is not purged.
///
/// The service connection string comes from --connection-string-file or from the variable
/// C2D_SERVICE_CONNECTION_STRING, never from an argument.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  c2d-agent c2d-purge --device pi-01
  c2d-agent c2d-purge --device pi-01 --json

Exit codes: 0 done, even if no message waited; 1 an error; 2 the arguments are wrong.", mut_arg("transport", |argument| transport::only(argument, transport::OF_REST)))]
pub(super) struct PurgeArgs {
    /// The device whose queue is purged.
    #[arg(long, value_name = "ID")]
    device: String,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    hub: HubArgs,
}

/// The objects of `--json`: stable for scripts; fields are added, never renamed.
#[derive(Serialize)]
#[serde(tag = "event", rename_all = "kebab-case", rename_all_fields = "camelCase")]
enum PurgeLine<'a> {
    Purged { device_id: &'a str, messages: u64 },
    Failed { device_id: &'a str, error: String },
}

/// Asks the hub once.
///
/// # Errors
/// When the hub cannot be reached or refuses.
pub(super) fn run(args: &PurgeArgs) -> Result<Exit, Failure> {
    check_device_id(&args.device).map_err(Failure::usage)?;
    let rest = args.hub.rest().map_err(Failure::usage)?;
    let as_json = args.output.json;
    let device_id = args.device.as_str();
    super::block_on(async {
        let mut signals = Signals::new([SIGTERM, SIGINT]).context("signals cannot be received")?;
        let purge = async { anyhow::Ok(rest.service(TOKEN_LIFETIME)?.purge(device_id).await?) };
        let purged = tokio::select! {
            purged = purge => purged,
            Some(_signal) = signals.next() => Err(anyhow!("interrupted by a signal: the queue may or may not be purged")),
        };
        match purged {
            Ok(messages) => {
                let text = match messages {
                    0 => format!("purged nothing: no message waited for device {device_id}"),
                    1 => format!("purged 1 message of device {device_id}"),
                    n => format!("purged {n} messages of device {device_id}"),
                };
                print(as_json, &text, &PurgeLine::Purged { device_id, messages })?;
                Ok(Exit::Done)
            }
            Err(error) => {
                if as_json {
                    print(true, "", &PurgeLine::Failed { device_id, error: sentence(&error) })?;
                }
                Err(back_end::failed(error))
            }
        }
    })
}

fn print(as_json: bool, text: &str, event: &PurgeLine<'_>) -> anyhow::Result<()> {
    back_end::print(&if as_json { json(event)? } else { text.to_owned() })
}
