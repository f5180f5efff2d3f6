//! `c2d-send` for many messages: to the devices of a list or a query, or many to one device.
//!
//! Owns: its arguments, where the journal is, the order of events and the exit code. Must not know: AMQP, HTTP, how a run
//! is sent.

use std::fs::File;
use std::io::{BufReader, IsTerminal as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, anyhow};
use clap::ValueEnum;
use futures_util::StreamExt as _;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook_tokio::Signals;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::many_output::ManyOutput;
use super::{SendArgs, property};
use crate::cli::{Exit, Failure, back_end, tell};
use crate::credentials::check_device_id;
use crate::fleet::{
    EntryList, Estimate, Naming, Pace, Progress, Run, RunError, RunJournal, Sending, SendingLimits,
    Settlement, Tier,
};
use crate::service::{Service, ServiceError, ServiceIdentity, TOKEN_LIFETIME};

mod query;

/// What can stand in place of `--device`.
pub(super) const SELECTORS: [&str; 3] = ["devices_from", "query", "resume"];

/// Messages on their way at a time. A hub answers within a few of them, and this many may come twice after a `kill -9`.
const WINDOW: usize = 16;
/// More than a hub takes in a year.
const MOST_PER_MINUTE: f64 = 10_000_000.0;

// Not a doc comment, which would become part of the help of the command.
// Many messages.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Many messages")]
pub(super) struct ManyArgs {
    /// Send to each device of a list: an id a line, or a JSON object a line with "deviceId" and columns for
    /// placeholders; its "properties" and "body" are added to the message. - is standard input.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["device", "query", "resume"])]
    devices_from: Option<PathBuf>,
    /// Send to each device that the hub finds: the condition behind WHERE, or a whole query that selects deviceId.
    #[arg(long, value_name = "SQL", conflicts_with_all = ["device", "resume"])]
    query: Option<String>,
    /// Send many messages to --device: a JSON object a line, with columns as for --devices-from. - is standard input.
    #[arg(long, value_name = "FILE", requires = "device", conflicts_with = "count")]
    messages_from: Option<PathBuf>,
    /// Send this many messages to --device; {n} in its parts is the number of the message.
    #[arg(long, value_name = "N", requires = "device", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    count: Option<u32>,
    /// Go on with a run that was interrupted: send what its journal has not settled, with the same ids.
    #[arg(long, value_name = "JOURNAL", conflicts_with_all = ["device", "properties", "data", "file", "message_id",
        "correlation_id", "user_id", "content_type", "content_encoding", "ack", "expiry", "journal"])]
    resume: Option<PathBuf>,
    /// How fast to send, such as 100/min or 5/s [default: what --tier and --units allow].
    #[arg(long, value_name = "RATE", value_parser = rate)]
    rate: Option<f64>,
    /// The tier of the hub: it says how many messages a minute and a day the hub takes.
    #[arg(long, value_name = "TIER", default_value = "s1")]
    tier: TierArg,
    /// The units of the hub.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    units: u32,
    /// The file that keeps what was sent [default: beside the list, or else in $XDG_STATE_HOME or ~/.local/state].
    #[arg(long, value_name = "FILE")]
    journal: Option<PathBuf>,
    /// Only say what would be sent, how long it takes, and what share of the daily quota it is.
    #[arg(long)]
    dry_run: bool,
    /// Give up when the hub has taken nothing for this long; --resume goes on later.
    #[arg(long, value_name = "DURATION", default_value = "10m", value_parser = back_end::duration)]
    give_up_after: Duration,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum TierArg {
    Free,
    S1,
    S2,
    S3,
}

impl From<TierArg> for Tier {
    fn from(tier: TierArg) -> Self {
        match tier {
            TierArg::Free => Self::Free,
            TierArg::S1 => Self::S1,
            TierArg::S2 => Self::S2,
            TierArg::S3 => Self::S3,
        }
    }
}

impl ManyArgs {
    /// Whether there is more than one message to one device.
    pub(super) fn is_wanted(&self) -> bool {
        self.messages_from.is_some() || self.count.is_some() || self.dry_run
    }

    fn per_minute(&self) -> f64 {
        self.rate.unwrap_or_else(|| Tier::from(self.tier).per_minute() * f64::from(self.units))
    }
}

/// Messages a minute.
fn rate(text: &str) -> Result<f64, String> {
    let wrong = || "use a number for a minute or a second, such as 100/min or 5/s".to_owned();
    let (number, unit) = text.split_once('/').ok_or_else(wrong)?;
    let number: f64 = number.trim().parse().map_err(|_| wrong())?;
    let per_minute = match unit.trim() {
        "s" => number * 60.0,
        "min" | "m" => number,
        _ => return Err(wrong()),
    };
    // A message a day is slow enough.
    if (1.0 / 1440.0..=MOST_PER_MINUTE).contains(&per_minute) { Ok(per_minute) } else { Err(wrong()) }
}

pub(super) fn run(args: &SendArgs) -> Result<Exit, Failure> {
    if args.wait.or(args.wait_outcome).is_some() {
        let error =
            anyhow!("--wait and --wait-outcome are for one message: follow many with c2d-feedback --watch");
        return Err(Failure::usage(error));
    }
    let identity = args.hub.identity().map_err(Failure::usage)?;
    super::super::block_on(async {
        let (run, begun) = prepared(args, &identity).await?;
        let sizes = check(&run).map_err(Failure::usage)?;
        let (many, open) = (&args.many, begun.as_ref().map_or(sizes.len(), |(_, settled)| open(settled)));
        let estimate =
            Estimate::new(sizes.into_iter().take(open), many.per_minute(), many.tier.into(), many.units);
        let mut output = ManyOutput::new(args.output.json, &run, open);
        output.planned(&estimate, many.dry_run)?;
        if many.dry_run {
            return Ok(Exit::Done);
        }
        let (journal, settled) = match begun {
            Some(begun) => begun,
            None => (create_journal(args, &run)?, vec![None; run.entries.len()]),
        };
        output.journal(journal.path())?;
        send(args, &identity, &run, (journal, settled), &mut output).await
    })
}

/// The run of the arguments, and what is left of it if it was begun before.
async fn prepared(
    args: &SendArgs,
    identity: &ServiceIdentity,
) -> Result<(Run, Option<(RunJournal, Vec<Option<Settlement>>)>), Failure> {
    let many = &args.many;
    if let Some(path) = &many.resume {
        let (journal, (run, settled)) = RunJournal::resume(path).map_err(Failure::usage)?;
        if run.hub != identity.host.name {
            let (path, hub, own) = (path.display(), &run.hub, &identity.host.name);
            let error =
                anyhow!("{path} is the journal of a run at {hub}, but the connection string is of {own}");
            return Err(Failure::usage(error));
        }
        return Ok((run, Some((journal, settled))));
    }
    let template = args.message.template(None).map_err(Failure::usage)?;
    let (list, naming) = match (&args.device, &many.devices_from, &many.query) {
        (Some(device), _, _) => {
            check_device_id(device).map_err(Failure::usage)?;
            let list = match &many.messages_from {
                Some(path) => read(path, |reader, name| EntryList::of_messages(reader, name, device))?,
                None => EntryList::numbered(device, many.count.unwrap_or(1) as usize),
            };
            (list, Naming::ByNumber)
        }
        (None, Some(path), _) => {
            (read(path, |reader, name| EntryList::of_devices(reader, name))?, Naming::ByDevice)
        }
        (None, None, Some(sql)) => (query::devices(&args.hub, sql).await?, Naming::ByDevice),
        (None, None, None) => return Err(anyhow!("no device is named").into()),
    };
    let (id, hub) = (uuid::Uuid::new_v4().to_string(), identity.host.name.clone());
    Ok((Run { id, hub, naming, template, entries: list.entries }, None))
}

fn read(
    path: &Path,
    parse: impl FnOnce(&mut dyn std::io::BufRead, &str) -> Result<EntryList, crate::fleet::ListError>,
) -> Result<EntryList, Failure> {
    let list = if path.as_os_str() == "-" {
        if std::io::stdin().is_terminal() {
            tell("reading the list from the terminal: end it with Ctrl-D");
        }
        parse(&mut std::io::stdin().lock(), "the list")
    } else {
        let file =
            File::open(path).map_err(|error| Failure::usage(back_end::unreadable("list", path, &error)))?;
        parse(&mut BufReader::new(file), &path.display().to_string())
    };
    list.map_err(Failure::usage)
}

/// Checks each message before the first one is sent, and returns their sizes.
fn check(run: &Run) -> anyhow::Result<Vec<usize>> {
    let now = SystemTime::now();
    let sizes = run.entries.iter().enumerate().map(|(number, entry)| {
        let message = run.message(entry, now).map_err(anyhow::Error::msg)?;
        if number == 0 {
            property::warn_of_odd(&message.properties);
        }
        Ok(message.wire_size())
    });
    sizes.collect()
}

fn open(settled: &[Option<Settlement>]) -> usize {
    settled.iter().filter(|state| state.is_none()).count()
}

fn create_journal(args: &SendArgs, run: &Run) -> Result<RunJournal, Failure> {
    let many = &args.many;
    let list =
        many.devices_from.as_ref().or(many.messages_from.as_ref()).filter(|path| path.as_os_str() != "-");
    let path = match (&many.journal, list) {
        (Some(path), _) => path.clone(),
        (None, Some(list)) => {
            let mut name = list.clone().into_os_string();
            name.push(format!(".{}.journal", run.id));
            name.into()
        }
        (None, None) => {
            let folder = back_end::state_folder().map_err(Failure::usage)?.join("runs");
            std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
            folder.join(format!("{}.journal", run.id))
        }
    };
    Ok(RunJournal::create(&path, run).map_err(anyhow::Error::new)?)
}

async fn send(
    args: &SendArgs,
    identity: &ServiceIdentity,
    run: &Run,
    (journal, settled): (RunJournal, Vec<Option<Settlement>>),
    output: &mut ManyOutput<'_>,
) -> Result<Exit, Failure> {
    let way = super::amqp(&args.hub).map_err(Failure::usage)?;
    let ca_file = args.hub.ca_file();
    let mut signals = Signals::new([SIGTERM, SIGINT]).context("signals cannot be received")?;
    let stop = CancellationToken::new();
    let path = journal.path().to_owned();
    let pace = Pace::new(args.many.per_minute(), Instant::now());
    let limits = SendingLimits { window: WINDOW, patience: args.many.give_up_after };
    let mut sending = Sending::new(run, journal, &settled, pace, limits, stop.clone(), SystemTime::now);
    let connect = async || -> Result<_, ServiceError> {
        let now = SystemTime::now();
        let mut service =
            Service::connect_by(&way, identity, ca_file.as_deref(), TOKEN_LIFETIME, now).await?;
        let link = service.sender().await?;
        Ok((service, link))
    };
    for settlement in settled.iter().flatten() {
        output.known(settlement);
    }
    let result = {
        let mut told = Ok(());
        let mut show = |progress: Progress<'_>| {
            if told.is_ok() {
                told = output.progress(&progress);
            }
        };
        let sent = {
            let mut sent = std::pin::pin!(sending.run(connect, &mut show));
            tokio::select! {
                sent = &mut sent => sent,
                Some(_signal) = signals.next() => {
                    stop.cancel();
                    sent.await
                }
            }
        };
        told.map_err(Failure::from).map(|()| sent)?
    };
    let refused = output.finished(&path)?;
    match result {
        Ok(()) if refused == 0 => Ok(Exit::Done),
        Ok(()) => Ok(Exit::NegativeFeedback),
        Err(error) => {
            let error = stopped(error, &path);
            output.failed(&error)?;
            Err(back_end::failed(error))
        }
    }
}

/// Says how to go on.
fn stopped(error: RunError, journal: &Path) -> anyhow::Error {
    let journal = crate::cli::shown::shell(&journal.display().to_string());
    match error {
        // It says so itself.
        error @ RunError::Journal(_) => error.into(),
        RunError::Hub(error) => {
            anyhow::Error::new(error).context(format!("to go on: c2d-agent c2d-send --resume {journal}"))
        }
        error => anyhow!("{error}; to go on: c2d-agent c2d-send --resume {journal}"),
    }
}
