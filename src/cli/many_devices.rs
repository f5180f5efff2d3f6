//! What `invoke-method` and `twin patch` have in common when they are for many devices.
//!
//! Owns: which devices are meant, the pace, the connections, the order of events and the exit code. Must not know: HTTP,
//! what is done at a device.

use std::fs::File;
use std::io::{BufReader, IsTerminal as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, anyhow};
use clap::ArgGroup;
use futures_util::StreamExt as _;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook_tokio::Signals;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::back_end::{self, HubArgs};
use super::hub_size::{TierArg, rate};
use super::{Exit, Failure, found, run_files, sentence, tell};
use crate::fleet::{CallProgress, CallsError, Entry, EntryList, Pace, Tier, call_each};
use crate::service::{Addressee, HttpsService, ServiceError, ServiceIdentity, TOKEN_LIFETIME};

pub(super) mod job;
pub(super) mod outcomes;

use job::JobArgs;
use outcomes::{CallsOutput, ToldCall, unknown_file};

/// Calls on their way at a time, each on a connection of its own.
const AT_ONCE: usize = 10;
/// How long a hub may throttle everything.
const PATIENCE: Duration = Duration::from_secs(600);
/// The longest validity of a token that is made for a run.
const LONGEST_TOKEN: Duration = Duration::from_secs(7 * 24 * 3600);

// The device or module of a request, unless it is for many.
#[derive(Debug, clap::Args)]
#[command(group = ArgGroup::new("target").required(true).args(["device", "devices_from", "query"]))]
pub(super) struct OneOrManyArgs {
    /// The device.
    #[arg(long, value_name = "ID")]
    device: Option<String>,
    /// A module of the device.
    #[arg(long, value_name = "ID")]
    module: Option<String>,
}

// Not a doc comment, which would become part of the help of the command.
// Many devices.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Many devices")]
pub(super) struct ManyDevicesArgs {
    /// Each device of a list: an id a line, or a JSON object a line with "deviceId". - is standard input.
    #[arg(long, value_name = "FILE")]
    devices_from: Option<PathBuf>,
    /// Each device that the hub finds: the condition behind WHERE, or a whole query that selects deviceId.
    #[arg(long, value_name = "SQL")]
    query: Option<String>,
    /// How fast to call, such as 100/min or 5/s [default: what --tier and --units allow].
    #[arg(long, value_name = "RATE", value_parser = rate, conflicts_with = "device")]
    rate: Option<f64>,
    /// The tier of the hub: it says how many calls a minute the hub takes.
    #[arg(long, value_name = "TIER", default_value = "s1")]
    tier: TierArg,
    /// The units of the hub.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    units: u32,
    /// Where to write the devices at which it failed; those at which it may have been done get into a file with the ending
    /// .unknown beside it [default: beside the list, or else in $XDG_STATE_HOME or ~/.local/state].
    #[arg(long, value_name = "FILE", conflicts_with = "device")]
    failed: Option<PathBuf>,
    /// Only say how many devices it is for, and how long it takes.
    #[arg(long, conflicts_with_all = ["device", "job"])]
    dry_run: bool,
    #[command(flatten)]
    job: JobArgs,
}

impl OneOrManyArgs {
    /// The device or module; `None` if many are meant.
    ///
    /// # Errors
    /// When an id is not valid.
    pub(super) fn one(&self) -> anyhow::Result<Option<Addressee>> {
        let module = self.module.as_deref();
        // A module's id is wrong for each device alike.
        Addressee::new("any", module)?;
        self.device.as_deref().map(|device| Ok(Addressee::new(device, module)?)).transpose()
    }

    /// The module of each device, if one is meant.
    pub(super) fn module(&self) -> Option<&str> {
        self.module.as_deref()
    }
}

impl ManyDevicesArgs {
    /// Refuses to read two things from standard input. `option` names the other one.
    ///
    /// # Errors
    /// When both would be read from there.
    pub(super) fn check_stdin(&self, option: &str, file: Option<&Path>) -> anyhow::Result<()> {
        let is_stdin = |path: Option<&Path>| path.is_some_and(|path| path.as_os_str() == "-");
        anyhow::ensure!(
            !is_stdin(self.devices_from.as_deref()) || !is_stdin(file),
            "--devices-from and {option} both read standard input: write one of them to a file"
        );
        Ok(())
    }

    /// Whether the hub does the work as a job.
    pub(super) fn is_job(&self) -> bool {
        self.job.job
    }

    /// What is meant, in order.
    ///
    /// # Errors
    /// When the list or the query cannot be used.
    async fn entries(&self, hub: &HubArgs, identity: &ServiceIdentity) -> Result<Vec<Entry>, Failure> {
        let list = match (&self.devices_from, &self.query) {
            (Some(path), _) if path.as_os_str() == "-" => {
                let stdin = std::io::stdin();
                if stdin.is_terminal() {
                    tell("reading the list from the terminal: end it with Ctrl-D");
                }
                EntryList::of_devices(stdin.lock(), "the list")
            }
            (Some(path), _) => {
                let file = File::open(path);
                let file =
                    file.map_err(|error| Failure::usage(back_end::unreadable("list", path, &error)))?;
                EntryList::of_devices(BufReader::new(file), &path.display().to_string())
            }
            (None, Some(sql)) => return Ok(found::devices(hub, identity, sql).await?.entries),
            (None, None) => return Err(anyhow!("no device is named").into()),
        };
        Ok(list.map_err(Failure::usage)?.entries)
    }

    /// The file of what failed.
    fn failed_file(&self) -> anyhow::Result<PathBuf> {
        if let Some(path) = &self.failed {
            return Ok(path.clone());
        }
        let own = format!("{}.failed", uuid::Uuid::new_v4());
        run_files::beside(self.devices_from.as_deref(), ".failed", &own)
    }
}

/// What is done at each device.
pub(super) struct ManyCalls<'a> {
    pub(super) many: &'a ManyDevicesArgs,
    pub(super) module: Option<&'a str>,
    pub(super) hub: &'a HubArgs,
    pub(super) json: bool,
    /// What is done, as in "calling reboot".
    pub(super) doing: String,
    /// How many calls a minute a hub of a tier with so many units takes.
    pub(super) per_minute: &'a dyn Fn(Tier, u32) -> f64,
    /// How long one call may take.
    pub(super) longest: Duration,
}

/// Calls each device, and tells what became of it.
///
/// # Errors
/// When the list or the query cannot be used, the hub lets this program not in, or it is interrupted.
pub(super) fn run<T>(
    calls: &ManyCalls<'_>,
    call: impl AsyncFn(&mut HttpsService, &Addressee) -> Result<T, ServiceError>,
    told: impl Fn(&Addressee, &Result<T, ServiceError>) -> anyhow::Result<ToldCall>,
) -> Result<Exit, Failure> {
    let ManyCalls { many, hub, .. } = *calls;
    let failed_file = many.failed_file().map_err(Failure::usage)?;
    // Once: its file may be a pipe, and all connections share its tokens.
    let identity = hub.identity().map_err(Failure::usage)?;
    let (way, ca_file) = (hub.https().map_err(Failure::usage)?, hub.ca_file());
    // Output that may not grow must not cost the lists.
    super::run::survive_file_size_limit()?;
    super::block_on(async {
        // Before signals are caught: one ends the program while it reads a list from a terminal.
        let entries = many.entries(hub, &identity).await?;
        back_end::end_at_the_second_signal().context("signals cannot be received")?;
        let mut signals = Signals::new([SIGTERM, SIGINT]).context("signals cannot be received")?;
        let target = |entry: &Entry| Addressee::new(&entry.device_id, calls.module);
        let targets = entries.iter().map(target).collect::<Result<Vec<_>, _>>().map_err(Failure::usage)?;
        let per_minute = many.rate.unwrap_or_else(|| (calls.per_minute)(many.tier.into(), many.units));
        let mut services = Vec::new();
        for _ in 0..targets.len().min(AT_ONCE) {
            let lifetime = calls.token_lifetime(targets.len(), per_minute);
            let (way, ca_file) = (way.clone(), ca_file.as_deref());
            let service = HttpsService::new(&identity, way, ca_file, lifetime, SystemTime::now);
            services.push(service.map_err(anyhow::Error::new)?);
        }
        let mut output = CallsOutput::new(calls.json, entries, Some(failed_file.clone()));
        output.planned(&calls.doing, per_minute, many.dry_run)?;
        if many.dry_run {
            return Ok(Exit::Done);
        }
        check_files(&failed_file)?;
        let stop = CancellationToken::new();
        let mut shown = Ok(());
        let result = {
            let mut show = |progress: CallProgress<'_, T>| {
                // What ends after the output has failed is counted, too, because the lists must have it.
                let told = output.progress(&progress, |entry, result| match targets.get(entry) {
                    Some(target) => told(target, result),
                    None => Err(anyhow!("there is no device {entry}")),
                });
                if told.is_err() {
                    // What cannot be told is not done.
                    stop.cancel();
                    shown = std::mem::replace(&mut shown, Ok(())).and(told);
                }
            };
            let one = async |service: &mut HttpsService, entry: usize| match targets.get(entry) {
                Some(target) => call(service, target).await,
                None => Err(ServiceError::Answer(format!("there is no device {entry}"))),
            };
            let pace = Pace::new(per_minute, Instant::now());
            let calling = call_each(targets.len(), services, pace, PATIENCE, &stop, one, &mut show);
            let mut calling = std::pin::pin!(calling);
            tokio::select! {
                called = &mut calling => called,
                Some(_signal) = signals.next() => {
                    if !calls.json {
                        tell("stopping, which takes up to 5 s; a second signal ends at once");
                    }
                    stop.cancel();
                    calling.await
                }
            }
        };
        let left = result.as_ref().err();
        let (not_begun, unknown) = left.map_or((&[][..], &[][..]), |left| (&left.not_begun, &left.unknown));
        // The list of what is left is written even if nothing can be printed any more.
        let finished = output.finished(not_begun, unknown);
        let failure = match result.map_err(|left| left.error) {
            Ok(()) => None,
            // What cannot be told has stopped the run, and no signal.
            Err(CallsError::Stopped) if shown.is_err() => None,
            // The hub's own error decides the exit code.
            Err(CallsError::Hub(error)) => Some(back_end::failed(error.into())),
            Err(error) => Some(anyhow::Error::new(error).into()),
        };
        let not_done = *finished.as_ref().unwrap_or(&0);
        let all = [failure, shown.err().map(Failure::from), finished.err().map(Failure::from)];
        let mut all = all.into_iter().flatten();
        let first = all.next();
        all.for_each(|failure| tell(sentence(&failure.error)));
        match first {
            Some(failure) => Err(failure),
            None if not_done == 0 => Ok(Exit::Done),
            None => Ok(Exit::NegativeFeedback),
        }
    })
}

/// Before the first call, because a run whose lists cannot be written cannot be done again where it failed.
pub(super) fn check_files(failed_file: &Path) -> Result<(), Failure> {
    let files = [failed_file, &unknown_file(failed_file)].map(run_files::check_is_writable);
    files.into_iter().collect::<Result<(), _>>().map_err(Failure::usage)
}

impl ManyCalls<'_> {
    /// A token lasts as long as the run can, within reason.
    fn token_lifetime(&self, count: usize, per_minute: f64) -> Duration {
        let paced = Duration::try_from_secs_f64(count as f64 * 60.0 / per_minute).unwrap_or(LONGEST_TOKEN);
        let rounds = u32::try_from(count / AT_ONCE + 1).unwrap_or(u32::MAX);
        let called = self.longest.checked_mul(rounds).unwrap_or(LONGEST_TOKEN);
        (TOKEN_LIFETIME + paced.min(LONGEST_TOKEN) + called.min(LONGEST_TOKEN)).min(LONGEST_TOKEN)
    }
}
