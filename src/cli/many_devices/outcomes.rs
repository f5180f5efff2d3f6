//! What is printed of calls at many devices: a line for each device as it ends, and the sums.
//!
//! Owns: standard output, the notes on standard error, the files of the devices at which it was not done or may have been
//! done. Must not know: what is called, exit codes.

use std::collections::BTreeMap;
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde::Serialize;

use crate::cli::back_end::print;
use crate::cli::hub_size::per_minute_text;
use crate::cli::shown::{json, shell, span};
use crate::cli::tell;
use crate::fleet::{CallProgress, Entry};
use crate::service::ServiceError;
use crate::trust;

/// What became of the call of one device.
pub(in crate::cli) struct ToldCall {
    /// A line for people, or an object.
    pub(in crate::cli) line: String,
    /// The same for all devices with this outcome.
    pub(in crate::cli) outcome: String,
    /// Whether it is what was wanted.
    pub(in crate::cli) end: CallEnd,
}

/// How a call has ended, for a user who may want to call again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::cli) enum CallEnd {
    Done,
    /// It surely was not done, or the device itself says that it failed.
    Failed,
    /// It may have been done.
    Unknown,
}

/// Prints events as they happen.
pub(in crate::cli) struct CallsOutput {
    json: bool,
    entries: Vec<Entry>,
    /// Where those at which it failed are written. Those at which it may have been done get into the file of
    /// [`unknown_file`].
    failed_file: Option<PathBuf>,
    begun: Instant,
    /// How many devices have each outcome.
    outcomes: BTreeMap<String, usize>,
    succeeded: usize,
    failed: Vec<usize>,
    unknown: Vec<usize>,
}

/// The objects of `--json` beside those of the single calls: stable for scripts; fields are added, never renamed.
#[derive(Serialize)]
#[serde(tag = "event", rename_all = "kebab-case", rename_all_fields = "camelCase")]
enum CallsLine<'a> {
    Run {
        devices: usize,
        per_minute: f64,
        seconds: u64,
    },
    Throttled {
        wait_ms: u64,
        per_minute: f64,
    },
    Summary {
        succeeded: usize,
        failed: usize,
        not_called: usize,
        unknown: usize,
        outcomes: Vec<OutcomeSum<'a>>,
        failed_file: Option<String>,
        unknown_file: Option<String>,
        after_ms: u64,
    },
}

/// How many devices have one outcome.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct OutcomeSum<'a> {
    outcome: &'a str,
    devices: usize,
}

const NOT_ONLINE: &str = "not connected, or takes no methods";
const NOT_ONLINE_IN_A_JOB: &str = "failed: DeviceNotOnline";

/// The outcome of a call that failed, in words that are the same for all devices.
pub(in crate::cli) fn kind(error: &ServiceError) -> &'static str {
    match error {
        ServiceError::NotOnline { .. } => NOT_ONLINE,
        ServiceError::NoMethodAnswer { .. } => "no answer in time: it may or may not have been done",
        ServiceError::UnknownDevice(_) | ServiceError::UnknownModule(_) => "not known to the hub",
        ServiceError::Unanswered(_) | ServiceError::Lost(_) | ServiceError::Late { .. } => {
            "the hub did not answer: it may or may not have been done"
        }
        ServiceError::Answer(_) => "the hub's answer does not say whether it was done",
        ServiceError::Unreachable(_) => "the hub could not be reached",
        ServiceError::NoToken { .. } => "no token to sign in with: nothing reached the hub",
        _ => "refused by the hub",
    }
}

/// What an error says of the call.
pub(in crate::cli) fn end(error: &ServiceError) -> CallEnd {
    use ServiceError::*;
    match error {
        NoMethodAnswer { .. } | Unanswered(_) | Lost(_) | Late { .. } | Answer(_) => CallEnd::Unknown,
        _ => CallEnd::Failed,
    }
}

/// The file for the devices at which it may have been done, beside that of those at which it failed.
pub(in crate::cli) fn unknown_file(failed_file: &Path) -> PathBuf {
    if failed_file.extension().is_some_and(|ending| ending == "failed") {
        return failed_file.with_extension("unknown");
    }
    let mut name = failed_file.as_os_str().to_owned();
    name.push(".unknown");
    name.into()
}

/// The error of one call, without the options of a command for one device.
pub(in crate::cli) fn sentence(error: &ServiceError) -> String {
    match error {
        ServiceError::UnknownDevice(_) | ServiceError::UnknownModule(_) | ServiceError::NotOnline { .. } => {
            kind(error).to_owned()
        }
        error => error.to_string(),
    }
}

impl CallsOutput {
    pub(in crate::cli) fn new(json: bool, entries: Vec<Entry>, failed_file: Option<PathBuf>) -> Self {
        let (begun, outcomes) = (Instant::now(), BTreeMap::new());
        let (failed, unknown) = (Vec::new(), Vec::new());
        Self { json, entries, failed_file, begun, outcomes, succeeded: 0, failed, unknown }
    }

    /// Says what is about to be done.
    pub(in crate::cli) fn planned(&self, doing: &str, per_minute: f64, is_dry: bool) -> anyhow::Result<()> {
        let devices = self.entries.len();
        let time = Duration::try_from_secs_f64(devices as f64 * 60.0 / per_minute).unwrap_or(Duration::MAX);
        if self.json {
            return print(&json(&CallsLine::Run { devices, per_minute, seconds: time.as_secs() })?);
        }
        let devices = if devices == 1 { "1 device".to_owned() } else { format!("{devices} devices") };
        let doing = if is_dry { format!("dry run: {doing}") } else { doing.to_owned() };
        print(&format!(
            "{doing} at {devices}, at most {}: at least {}",
            per_minute_text(per_minute),
            span(time)
        ))
    }

    /// Prints what has happened.
    pub(in crate::cli) fn progress<T>(
        &mut self,
        progress: &CallProgress<'_, T>,
        told: impl FnOnce(usize, &Result<T, ServiceError>) -> anyhow::Result<ToldCall>,
    ) -> anyhow::Result<()> {
        match *progress {
            CallProgress::Ended { entry, result } => {
                let told = told(entry, result)?;
                self.ended(entry, told)
            }
            CallProgress::Throttled { wait, per_minute } if self.json => {
                let wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
                print(&json(&CallsLine::Throttled { wait_ms, per_minute })?)
            }
            CallProgress::Throttled { wait, per_minute } => {
                let rate = per_minute_text(per_minute);
                tell(format_args!("the hub throttles: waiting {}, then {rate}", span(wait)));
                Ok(())
            }
        }
    }

    /// Prints what became of one device.
    fn ended(&mut self, entry: usize, told: ToldCall) -> anyhow::Result<()> {
        *self.outcomes.entry(told.outcome).or_default() += 1;
        match told.end {
            CallEnd::Done => self.succeeded += 1,
            CallEnd::Failed => self.failed.push(entry),
            CallEnd::Unknown => self.unknown.push(entry),
        }
        print(&told.line)
    }

    /// Prints what became of a device that is not among the entries yet.
    pub(in crate::cli) fn ended_at(&mut self, device_id: &str, told: ToldCall) -> anyhow::Result<()> {
        let number = self.entries.len() + 1;
        self.entries.push(Entry { number, device_id: device_id.to_owned(), row: None });
        self.ended(number - 1, told)
    }

    /// Prints the sums, and returns how many calls have ended and were not done, or not for sure. The devices where it
    /// failed or was not called get into one file. Those of which it is not known, such as the `interrupted` ones, get
    /// into another. An error of such a file does not hide the sums, and an error of the output loses no file.
    ///
    /// # Errors
    /// When a file or standard output cannot be written.
    pub(in crate::cli) fn finished(
        &self,
        not_called: &[usize],
        interrupted: &[usize],
    ) -> anyhow::Result<usize> {
        let (failed_file, unknown_file) =
            (self.failed_file.clone(), self.failed_file.as_deref().map(unknown_file));
        let failed = self.write(failed_file, [&self.failed, not_called].concat());
        let unknown = self.write(unknown_file, [&self.unknown, interrupted].concat());
        let printed = self.sums(
            (not_called, interrupted),
            failed.as_ref().ok().and_then(Option::as_deref),
            unknown.as_ref().ok().and_then(Option::as_deref),
        );
        let errors = [printed.err(), failed.err(), unknown.err()];
        let errors = errors.iter().flatten().map(crate::cli::sentence);
        match errors.reduce(|one, other| format!("{one}; {other}")) {
            Some(words) => Err(anyhow::Error::msg(words)),
            None => Ok(self.failed.len() + self.unknown.len()),
        }
    }

    fn sums(
        &self,
        (not_called, interrupted): (&[usize], &[usize]),
        failed_file: Option<&Path>,
        unknown_file: Option<&Path>,
    ) -> anyhow::Result<()> {
        let outcomes = self.outcomes.iter();
        if self.json {
            let after_ms = u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
            return print(&json(&CallsLine::Summary {
                succeeded: self.succeeded,
                failed: self.failed.len(),
                not_called: not_called.len(),
                unknown: self.unknown.len() + interrupted.len(),
                outcomes: outcomes
                    .map(|(outcome, devices)| OutcomeSum { outcome, devices: *devices })
                    .collect(),
                failed_file: failed_file.map(|file| file.display().to_string()),
                unknown_file: unknown_file.map(|file| file.display().to_string()),
                after_ms,
            })?);
        }
        let rest =
            [("not called", not_called), ("interrupted: it may or may not have been done", interrupted)];
        let rest = rest.iter().filter(|(_, entries)| !entries.is_empty());
        for (outcome, devices) in outcomes
            .map(|(outcome, devices)| (outcome.as_str(), *devices))
            .chain(rest.map(|(outcome, entries)| (*outcome, entries.len())))
        {
            // The outcome of --json stays as it is, because scripts compare it.
            let remedy = match outcome {
                NOT_ONLINE | NOT_ONLINE_IN_A_JOB => ": --connect-timeout waits for them",
                _ => "",
            };
            print(&format!("{devices:>9}  {outcome}{remedy}"))?;
        }
        let name = |file: &Path| shell(&file.display().to_string());
        if let Some(file) = failed_file {
            print(&format!("the devices where it was not done are in {}, for --devices-from", name(file)))?;
        }
        if let Some(file) = unknown_file {
            let words = "where it may have been done: look at each of them before you do it again";
            print(&format!("in {} are the devices {words}", name(file)))?;
        }
        Ok(())
    }

    /// Writes these devices to a file, if there are any, and returns which file it is.
    fn write(&self, file: Option<PathBuf>, mut entries: Vec<usize>) -> anyhow::Result<Option<PathBuf>> {
        let Some(path) = file else { return Ok(None) };
        if entries.is_empty() {
            // It stays, because it may be of other calls; taken for this run's, it would have them made again.
            if path.exists() {
                tell(format_args!(
                    "{} is of an earlier run, not of this one",
                    shell(&path.display().to_string())
                ));
            }
            return Ok(None);
        }
        entries.sort_unstable();
        let written = trust::create_anew(&path, 0o600).and_then(|file| {
            let mut file = BufWriter::new(file);
            for entry in entries.iter().filter_map(|entry| self.entries.get(*entry)) {
                match &entry.row {
                    Some(row) => writeln!(file, "{row}")?,
                    None => writeln!(file, "{}", entry.device_id)?,
                }
            }
            file.flush()
        });
        written.with_context(|| format!("cannot write the devices to {}", path.display()))?;
        Ok(Some(path))
    }
}
