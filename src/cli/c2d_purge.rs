//! `c2d-agent c2d-purge`: takes the messages that wait for a device out of its queue.
//!
//! Owns: its arguments, what is printed, the exit code. Must not know: HTTP. Used by: `cli`.

use std::io::Write as _;
use std::time::SystemTime;

use anyhow::{Context as _, anyhow};
use futures_util::StreamExt as _;
use serde::Serialize;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook_tokio::Signals;

use super::back_end::{HubArgs, port};
use super::{Exit, Failure, sentence};
use crate::credentials::check_device_id;
use crate::service::{HTTPS_PORT, HttpsService, ServiceError, TOKEN_LIFETIME};

/// Take the messages that wait for a device out of its queue, for good.
///
/// A purged message is not delivered. Its sender gets the feedback Purged, if it asked for negative or full feedback. A
/// message that the device holds at that moment is not among them: it stays with the device.
///
/// The service connection string comes from --connection-string-file or from the variable
/// C2D_SERVICE_CONNECTION_STRING, never from an argument. The hub is asked over HTTPS.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  c2d-agent c2d-purge --device pi-01
  c2d-agent c2d-purge --device pi-01 --json

Exit codes: 0 done, also when nothing waited; 1 an error; 2 the arguments are wrong.")]
pub(super) struct Args {
    /// The device whose queue is purged.
    #[arg(long, value_name = "ID")]
    device: String,
    /// The hub's HTTPS port.
    #[arg(
        long,
        value_name = "PORT",
        env = "C2D_HTTPS_PORT",
        default_value_t = HTTPS_PORT,
        value_parser = port
    )]
    https_port: u16,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    hub: HubArgs,
}

/// The objects of `--json`: stable for scripts; fields are added, never renamed.
#[derive(Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
enum Event<'a> {
    Purged { device_id: &'a str, messages: u64 },
    Failed { device_id: &'a str, error: String },
}

/// Asks the hub once.
///
/// # Errors
/// When the hub cannot be reached or refuses.
pub(super) fn run(args: &Args) -> Result<Exit, Failure> {
    check_device_id(&args.device).map_err(Failure::usage)?;
    let identity = args.hub.identity().map_err(Failure::usage)?;
    let ca_file = args.hub.ca_file();
    let device_id = args.device.as_str();
    super::block_on(async {
        let mut signals = Signals::new([SIGTERM, SIGINT]).context("signals cannot be received")?;
        let purge = async {
            let clock = SystemTime::now;
            let mut service =
                HttpsService::new(&identity, args.https_port, ca_file.as_deref(), TOKEN_LIFETIME, clock)?;
            anyhow::Ok(service.purge(device_id).await?)
        };
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
                print(args.json, &text, &Event::Purged { device_id, messages })?;
                Ok(Exit::Done)
            }
            Err(error) => {
                if args.json {
                    print(true, "", &Event::Failed { device_id, error: sentence(&error) })?;
                }
                let is_configuration = error.downcast_ref().is_some_and(ServiceError::is_configuration);
                Err(if is_configuration { Failure::usage(error) } else { error.into() })
            }
        }
    })
}

fn print(json: bool, text: &str, event: &Event<'_>) -> anyhow::Result<()> {
    let line = if json { serde_json::to_string(event)? } else { text.to_owned() };
    writeln!(std::io::stdout(), "{line}").context("cannot write to standard output")
}
