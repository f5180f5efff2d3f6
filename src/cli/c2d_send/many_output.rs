//! What `c2d-send` prints for many messages: lines for people, or one JSON object per event.
//!
//! Owns: standard output, the notes on standard error, the file of what was refused. Must not know: how messages travel,
//! exit codes.

use std::collections::BTreeMap;
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde::Serialize;

use crate::cli::back_end::print;
use crate::cli::shown::{json, plain, shell, span};
use crate::cli::tell;
use crate::fleet::{Estimate, Naming, Progress, Run, Settlement};
use crate::trust;

/// From one line for people to the next.
const BETWEEN_LINES: Duration = Duration::from_secs(10);
/// A twin can hold a setting for each of so many devices at a thirtieth of the time.
const MANY: usize = 1000;

/// Prints events as they happen.
pub(super) struct ManyOutput<'a> {
    json: bool,
    run: &'a Run,
    open: usize,
    begun: Instant,
    told: Instant,
    accepted: usize,
    /// How many of this run, without what was known before.
    settled: usize,
    refused: BTreeMap<String, Refusals>,
}

/// What was refused with one condition.
#[derive(Default)]
struct Refusals {
    entries: Vec<usize>,
    /// The first error.
    example: String,
}

/// The objects of `--json`: stable for scripts; fields are added, never renamed.
#[derive(Serialize)]
#[serde(tag = "event", rename_all = "kebab-case", rename_all_fields = "camelCase")]
enum ManyLine<'a> {
    Run { run: &'a str, hub: &'a str, messages: usize, per_minute: f64, seconds: u64, quota_share: f64 },
    Journal { file: String },
    Accepted { device_id: &'a str, number: usize },
    Refused { device_id: &'a str, number: usize, condition: &'a str, error: &'a str },
    Throttled { wait_ms: u64, per_minute: f64 },
    Lost { error: String, wait_ms: u64 },
    Summary { accepted: usize, refused: usize, open: usize, refused_file: Option<String>, after_ms: u64 },
    Failed { error: String },
}

impl<'a> ManyOutput<'a> {
    /// `open` of the run's messages are to be sent.
    pub(super) fn new(json: bool, run: &'a Run, open: usize) -> Self {
        let now = Instant::now();
        Self { json, run, open, begun: now, told: now, accepted: 0, settled: 0, refused: BTreeMap::new() }
    }

    /// Says what is about to be sent.
    pub(super) fn planned(&self, estimate: &Estimate, dry_run: bool) -> anyhow::Result<()> {
        let Estimate { messages, per_minute, time, quota } = *estimate;
        if !self.json && self.run.naming == Naming::ByDevice && messages >= MANY {
            tell(
                "a desired property may suit better if all devices get the same setting: a hub takes 30 times as many \
                 changes of twins (c2d-agent twin, or a job)",
            );
        }
        let text = || {
            let (run, hub) = (&self.run.id, plain(&self.run.hub));
            let verb = if dry_run { "would send" } else { "sending" };
            format!(
                "{verb} {} at {per_minute:.0}/min: about {}, {:.1} % of the hub's daily quota  (run {run}, hub {hub})",
                count(messages, "message"),
                span(time),
                quota * 100.0
            )
        };
        let (run, hub, seconds) = (&*self.run.id, &*self.run.hub, time.as_secs());
        self.print(text, &ManyLine::Run { run, hub, messages, per_minute, seconds, quota_share: quota })
    }

    /// Says where the journal is.
    pub(super) fn journal(&self, path: &Path) -> anyhow::Result<()> {
        let file = path.display().to_string();
        let text = || {
            format!("journal {file}  (after an interruption: c2d-agent c2d-send --resume {})", shell(&file))
        };
        self.print(text, &ManyLine::Journal { file: file.clone() })
    }

    /// Counts what an earlier run has settled.
    pub(super) fn known(&mut self, settlement: &Settlement) {
        if *settlement == Settlement::Accepted {
            self.accepted += 1;
        }
    }

    /// Prints what has happened.
    pub(super) fn progress(&mut self, progress: &Progress<'_>) -> anyhow::Result<()> {
        match *progress {
            Progress::Settled { entry, settlement } => self.settled(entry, settlement),
            Progress::Throttled { wait, per_minute } => {
                let text = || format!("the hub throttles: waiting {}, then {per_minute:.0}/min", span(wait));
                self.note(text, &ManyLine::Throttled { wait_ms: milliseconds(wait), per_minute })
            }
            Progress::Lost { error, wait } => {
                let error = error.to_string();
                let text = || format!("the connection was lost, trying again in {}: {error}", span(wait));
                self.note(text, &ManyLine::Lost { error: error.clone(), wait_ms: milliseconds(wait) })
            }
        }
    }

    fn settled(&mut self, index: usize, settlement: &Settlement) -> anyhow::Result<()> {
        self.settled += 1;
        let Some(entry) = self.run.entries.get(index) else { return Ok(()) };
        let (device_id, number) = (&*entry.device_id, entry.number);
        match settlement {
            Settlement::Accepted => {
                self.accepted += 1;
                if self.json {
                    return print(&json(&ManyLine::Accepted { device_id, number })?);
                }
            }
            Settlement::Refused { condition, error } => {
                let refusals = self.refused.entry(condition.clone()).or_default();
                if refusals.entries.is_empty() {
                    refusals.example.clone_from(error);
                }
                refusals.entries.push(index);
                if self.json {
                    return print(&json(&ManyLine::Refused { device_id, number, condition, error })?);
                }
            }
        }
        if self.told.elapsed() >= BETWEEN_LINES {
            self.told = Instant::now();
            self.line()?;
        }
        Ok(())
    }

    /// How far the run is.
    fn line(&self) -> anyhow::Result<()> {
        let elapsed = self.begun.elapsed().as_secs_f64();
        let rate = self.settled as f64 / elapsed.max(0.001);
        let left = self.open.saturating_sub(self.settled);
        let time = Duration::try_from_secs_f64(left as f64 / rate.max(0.000_1)).unwrap_or(Duration::MAX);
        let refused = self.refused_count();
        print(&format!(
            "{} of {} settled: {} accepted, {refused} refused; {:.0}/min, about {} left",
            self.settled,
            self.open,
            self.settled - refused,
            rate * 60.0,
            span(time)
        ))
    }

    fn refused_count(&self) -> usize {
        self.refused.values().map(|refusals| refusals.entries.len()).sum()
    }

    /// Prints the sums, and returns how many were refused. What was refused gets into a list beside the journal.
    pub(super) fn finished(&self, journal: &Path) -> anyhow::Result<usize> {
        let (refused, open) = (self.refused_count(), self.open.saturating_sub(self.settled));
        let file = if refused > 0 { Some(self.write_refused(journal)?) } else { None };
        if self.json {
            let refused_file = file.map(|file| file.display().to_string());
            let after_ms = milliseconds(self.begun.elapsed());
            print(&json(&ManyLine::Summary {
                accepted: self.accepted,
                refused,
                open,
                refused_file,
                after_ms,
            })?)?;
            return Ok(refused);
        }
        print(&format!("{:>9}  accepted by the hub (queued, not yet delivered)", self.accepted))?;
        for refusals in self.refused.values() {
            print(&format!(
                "{:>9}  refused, the first: {}",
                refusals.entries.len(),
                plain(&refusals.example)
            ))?;
        }
        if open > 0 {
            print(&format!("{open:>9}  not settled"))?;
        }
        if let Some(file) = file {
            let file = shell(&file.display().to_string());
            let option = match self.run.naming {
                Naming::ByDevice => "--devices-from",
                Naming::ByNumber => "--messages-from",
            };
            print(&format!("what was refused can be sent again with {option} {file}"))?;
        }
        Ok(refused)
    }

    fn write_refused(&self, journal: &Path) -> anyhow::Result<PathBuf> {
        let mut path = journal.as_os_str().to_owned();
        path.push(".refused");
        let path = PathBuf::from(path);
        let written = trust::create_anew(&path, 0o600).and_then(|file| {
            let mut file = BufWriter::new(file);
            for entry in self.refused.values().flat_map(|refusals| &refusals.entries) {
                let Some(entry) = self.run.entries.get(*entry) else { continue };
                match (&entry.row, self.run.naming) {
                    (Some(row), _) => writeln!(file, "{row}")?,
                    (None, Naming::ByDevice) => writeln!(file, "{}", entry.device_id)?,
                    (None, Naming::ByNumber) => writeln!(file, "{{\"n\":{}}}", entry.number)?,
                }
            }
            file.flush()
        });
        written.with_context(|| format!("cannot write what was refused to {}", path.display()))?;
        Ok(path)
    }

    /// Prints the failure as JSON. For people, the program's last sentence on standard error says it.
    pub(super) fn failed(&self, error: &anyhow::Error) -> anyhow::Result<()> {
        if self.json {
            print(&json(&ManyLine::Failed { error: crate::cli::sentence(error) })?)?;
        }
        Ok(())
    }

    fn note(&self, text: impl FnOnce() -> String, event: &ManyLine<'_>) -> anyhow::Result<()> {
        if self.json {
            return print(&json(event)?);
        }
        tell(text());
        Ok(())
    }

    fn print(&self, text: impl FnOnce() -> String, event: &ManyLine<'_>) -> anyhow::Result<()> {
        print(&if self.json { json(event)? } else { text() })
    }
}

fn count(number: usize, what: &str) -> String {
    if number == 1 { format!("1 {what}") } else { format!("{number} {what}s") }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
