//! `c2d-agent c2d-feedback`: watches the hub's delivery feedback, and prints and keeps every record.
//!
//! Owns: its arguments, what ends it, and the exit code. Must not know: AMQP, HTTP.
//!
//! - `watch` keeps and prints a batch, and only then completes it at the hub; it reconnects when the hub goes away.
//!   `spool` is the file that keeps records; `output` prints them.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use futures_util::StreamExt as _;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook_tokio::Signals;

use super::back_end::{self, HubArgs, OutputArgs, duration};
use super::{Exit, Failure, tell, transport};
use crate::credentials::check_device_id;

mod output;
pub(in crate::cli) mod reader;
pub(in crate::cli) mod spool;
pub(in crate::cli) mod watch;

use output::FeedbackOutput;
use reader::BatchReader as _;
use spool::Spool;
use watch::{Watch, WatchEnd};

/// Watch the hub's delivery feedback: print every record, and with --spool keep it.
///
/// The hub has one feedback queue for all devices and all back ends. Reading consumes it: no other reader gets what is
/// read here. The program completes a batch at the hub after it has printed the records or, with --spool, after they
/// are on disk. So each record comes at least once. After a crash or a lost connection a batch may come twice; "batch"
/// and "record" of --json and --spool are then the same. With --transport https, the program asks every 1 to 10 s.
///
/// The service connection string comes from --connection-string-file or from the variable
/// C2D_SERVICE_CONNECTION_STRING, never from an argument.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  c2d-agent c2d-feedback
  c2d-agent c2d-feedback --spool /var/lib/orders/feedback.ndjson --json
  c2d-agent c2d-feedback --device pi-01 --count 1 --for 60s
  c2d-agent c2d-feedback --transport https

Exit codes: 0 ended by a signal, by --for, after --count records, or because standard output was closed; 1 an error: the \
hub cannot be reached at the start, it refuses the policy, or the spool cannot be written; 2 the arguments are wrong, or \
the spool cannot be used; 4 the time of --for ended before --count records came.", mut_arg("transport", |argument| transport::only(argument, transport::OF_FEEDBACK)))]
pub(super) struct FeedbackArgs {
    /// Print only the records of this device. The others are also consumed; --spool keeps them.
    #[arg(long, value_name = "ID")]
    device: Option<String>,
    /// Append every record to FILE, one JSON object per line, before the hub forgets it.
    #[arg(long, value_name = "FILE")]
    spool: Option<PathBuf>,
    /// End after this many records. The rest of the last batch is printed, too.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// End after this time, such as 60s or 2h.
    #[arg(long = "for", value_name = "DURATION", value_parser = duration)]
    time: Option<Duration>,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    hub: HubArgs,
}

/// Watches until something ends it.
///
/// # Errors
/// When the hub cannot be reached or refuses, or the spool cannot be used.
pub(super) fn run(args: &FeedbackArgs) -> Result<Exit, Failure> {
    let identity = args.hub.identity().map_err(Failure::usage)?;
    if let Some(device) = &args.device {
        check_device_id(device).map_err(Failure::usage)?;
    }
    let transport = args.hub.transport().map_err(Failure::usage)?;
    super::run::survive_file_size_limit()?;
    back_end::end_at_the_second_signal().context("signals cannot be received")?;
    let spool = args.spool.as_deref().map(Spool::open).transpose().map_err(Failure::usage)?;
    let output = FeedbackOutput::new(args.output.json, args.device.clone(), spool.is_some());
    super::block_on(async {
        let mut signals = Signals::new([SIGTERM, SIGINT]).context("signals cannot be received")?;
        tell("reading feedback consumes it for the whole hub: no other reader gets what is read here");
        if let Some(note) = spool.as_ref().and_then(Spool::note) {
            tell(note);
        }
        let time = args.time;
        let end = async move {
            let over = async {
                match time {
                    Some(time) => tokio::time::sleep(time).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                Some(_signal) = signals.next() => WatchEnd::Signal,
                () = over => WatchEnd::Time,
            }
        };
        let mut watch = Watch::new(transport, identity, args.hub.ca_file(), spool, output, args.count);
        let result = watch.run(end).await;
        watch.output().last_words();
        match result {
            Ok(WatchEnd::Time) if args.count.is_some() => {
                let (printed, count) = (watch.output().printed(), args.count.unwrap_or_default());
                tell(too_few(printed, count, args.time.unwrap_or_default()));
                Ok(Exit::NoFeedback)
            }
            Ok(_) => Ok(Exit::Done),
            Err(error) => Err(back_end::failed(error)),
        }
    })
}

/// The sentence for `--for` that ended before `--count` was reached.
fn too_few(printed: u64, count: u64, time: Duration) -> String {
    format!(
        "{printed} of {count} records came within {}: the hub makes records only for messages that were sent \
         with --ack, and collects them for up to 15 s: give more time with --for",
        humantime::format_duration(time)
    )
}
