//! What is printed of calls at many devices: a line for each device as it ends, and the sums.
//!
//! Owns: standard output, the notes on standard error, the file of the devices at which it failed. Must not know: what is
//! called, exit codes.

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
    pub(in crate::cli) is_done: bool,
}

/// Prints events as they happen.
pub(in crate::cli) struct CallsOutput {
    json: bool,
    entries: Vec<Entry>,
    /// Where those at which it failed are written.
    failed_file: Option<PathBuf>,
    begun: Instant,
    /// How many devices have each outcome.
    outcomes: BTreeMap<String, usize>,
    succeeded: usize,
    failed: Vec<usize>,
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

/// The outcome of a call that failed, in words that are the same for all devices.
pub(in crate::cli) fn kind(error: &ServiceError) -> &'static str {
    match error {
        ServiceError::NotOnline(_) => "not connected, or takes no methods",
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

/// The error of one call, without the options of a command for one device.
pub(in crate::cli) fn sentence(error: &ServiceError) -> String {
    match error {
        ServiceError::UnknownDevice(_) | ServiceError::UnknownModule(_) | ServiceError::NotOnline(_) => {
            kind(error).to_owned()
        }
        error => error.to_string(),
    }
}

impl CallsOutput {
    pub(in crate::cli) fn new(json: bool, entries: Vec<Entry>, failed_file: Option<PathBuf>) -> Self {
        let (begun, outcomes, failed) = (Instant::now(), BTreeMap::new(), Vec::new());
        Self { json, entries, failed_file, begun, outcomes, succeeded: 0, failed }
    }

    /// Says what is about to be done.
    pub(in crate::cli) fn planned(&self, doing: &str, per_minute: f64, is_dry: bool) -> anyhow::Result<()> {
        let devices = self.entries.len();
        let time = Duration::try_from_secs_f64(devices as f64 * 60.0 / per_minute).unwrap_or(Duration::MAX);
        if self.json {
            return print(&json(&CallsLine::Run { devices, per_minute, seconds: time.as_secs() })?);
        }
        let devices = if devices == 1 { "1 device".to_owned() } else { format!("{devices} devices") };
        let doing = if is_dry { format!("would be {doing}") } else { doing.to_owned() };
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
        if told.is_done {
            self.succeeded += 1;
        } else {
            self.failed.push(entry);
        }
        print(&told.line)
    }

    /// Prints what became of a device that is not among the entries yet.
    pub(in crate::cli) fn ended_at(&mut self, device_id: &str, told: ToldCall) -> anyhow::Result<()> {
        let number = self.entries.len() + 1;
        self.entries.push(Entry { number, device_id: device_id.to_owned(), row: None });
        self.ended(number - 1, told)
    }

    /// Prints the sums, and returns how many failed. These, those that were not called and those of which it is not known
    /// get into the file.
    pub(in crate::cli) fn finished(&self, not_called: &[usize], unknown: &[usize]) -> anyhow::Result<usize> {
        let mut again: Vec<usize> = [&self.failed, not_called, unknown].concat();
        again.sort_unstable();
        let file = self.failed_file.as_deref().filter(|_| !again.is_empty());
        file.map_or(Ok(()), |file| self.write(file, &again))?;
        let outcomes = self.outcomes.iter();
        if self.json {
            let after_ms = u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
            print(&json(&CallsLine::Summary {
                succeeded: self.succeeded,
                failed: self.failed.len(),
                not_called: not_called.len(),
                unknown: unknown.len(),
                outcomes: outcomes
                    .map(|(outcome, devices)| OutcomeSum { outcome, devices: *devices })
                    .collect(),
                failed_file: file.map(|file| file.display().to_string()),
                after_ms,
            })?)?;
            return Ok(self.failed.len());
        }
        let rest = [("not called", not_called), ("interrupted: it may or may not have been done", unknown)];
        let rest = rest.iter().filter(|(_, entries)| !entries.is_empty());
        for (outcome, devices) in outcomes
            .map(|(outcome, devices)| (outcome.as_str(), *devices))
            .chain(rest.map(|(outcome, entries)| (*outcome, entries.len())))
        {
            print(&format!("{devices:>9}  {outcome}"))?;
        }
        if let Some(file) = file {
            let file = shell(&file.display().to_string());
            print(&format!("the devices where it was not done are in {file}, for --devices-from"))?;
        }
        Ok(self.failed.len())
    }

    fn write(&self, path: &Path, entries: &[usize]) -> anyhow::Result<()> {
        let written = trust::create_anew(path, 0o600).and_then(|file| {
            let mut file = BufWriter::new(file);
            for entry in entries.iter().filter_map(|entry| self.entries.get(*entry)) {
                match &entry.row {
                    Some(row) => writeln!(file, "{row}")?,
                    None => writeln!(file, "{}", entry.device_id)?,
                }
            }
            file.flush()
        });
        written.with_context(|| format!("cannot write the devices to {}", path.display()))
    }
}
