//! What `c2d-send` prints for many messages: lines for people, or one JSON object per event.
//!
//! Owns: standard output, the notes on standard error. Must not know: how messages travel, exit codes.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use tokio::time::Instant;

use super::many_bar::RunBar;
use super::many_events::{ManyLine, RefusedMessage, StatusCount};
use super::many_lists;
use crate::cli::hub_size::per_minute_text;
use crate::cli::shown::{self, Output, plain, shell, span};
use crate::cli::tell;
use crate::feedback::FeedbackRecord;
use crate::fleet::{Entry, Estimate, Naming, PresentRate, Progress, Run, Settlement};
use crate::outcome::OutcomeReport;

/// From one line for people to the next.
const BETWEEN_LINES: Duration = Duration::from_secs(10);
/// A twin can hold a setting for each of so many devices at a thirtieth of the time.
const MANY: usize = 1000;

/// Prints events as they happen. That standard output cannot be written is told at the end: the run matters more.
pub(super) struct ManyOutput<'a> {
    json: bool,
    out: Output,
    /// Why standard output could not be written, if it could not.
    broken: Option<anyhow::Error>,
    bar: Option<RunBar>,
    run: &'a Run,
    begun: Instant,
    told: Instant,
    accepted: usize,
    rate: PresentRate,
    /// Of how many messages feedback or an outcome is known.
    heard: Option<(usize, &'static str)>,
    refused: BTreeMap<String, Refusals>,
    /// Not taken for now: a resumed run sends them.
    postponed: BTreeMap<String, Refusals>,
}

/// What was refused with one condition.
#[derive(Default)]
struct Refusals {
    entries: Vec<usize>,
    /// The first error.
    first: String,
}

/// What followed the acceptance of the messages, for `--wait` and `--wait-outcome`.
pub(super) struct Aftermath {
    /// How many messages have each status of feedback, or each outcome.
    pub(super) counts: BTreeMap<&'static str, usize>,
    /// The indices of the entries whose messages were not delivered.
    pub(super) undelivered: Vec<usize>,
    /// The indices of the entries whose actions did not succeed.
    pub(super) failed: Vec<usize>,
    /// What is missing of the others: "feedback" or "an outcome".
    pub(super) awaited: &'static str,
    /// The indices of the entries that it is missing of.
    pub(super) missing: Vec<usize>,
    /// How many of these were delivered, if an outcome is awaited.
    pub(super) delivered: usize,
    /// Whether a signal has ended the wait.
    pub(super) is_cut_short: bool,
    /// How long was waited at the end.
    pub(super) wait: Duration,
}

impl<'a> ManyOutput<'a> {
    pub(super) fn new(json: bool, run: &'a Run) -> Self {
        let now = Instant::now();
        Self {
            json,
            out: Output::new(),
            broken: None,
            bar: None,
            run,
            begun: now,
            told: now,
            accepted: 0,
            rate: PresentRate::new(1.0, now),
            heard: None,
            refused: BTreeMap::new(),
            postponed: BTreeMap::new(),
        }
    }

    /// Says what is about to be sent. `is_same` says whether all devices get the same message.
    pub(super) fn planned(&mut self, estimate: &Estimate, hub_size: &str, is_same: bool, dry_run: bool) {
        let Estimate { messages, per_minute, time, quota } = *estimate;
        self.rate = PresentRate::new(per_minute, Instant::now());
        if messages == 0 && !self.json {
            return self.line(&format!("nothing is left to send  (run {})", plain(&self.run.id)));
        }
        if !self.json && self.run.naming == Naming::ByDevice && is_same && messages >= MANY {
            let note = "all devices get the same message: if it is a setting, a desired property suits better, because a \
                        hub takes 30 times as many changes of twins (c2d-agent twin, or a job)";
            shown::wrapped(note, shown::width()).into_iter().for_each(tell);
        }
        let (run, hub) = (self.run.id.as_str(), self.run.hub.as_str());
        let verb = if dry_run { "would send" } else { "sending" };
        let text = || {
            format!(
                "{verb} {} at {}: about {}, {:.1} % of the daily quota of {hub_size}  (run {}, hub {})",
                count(messages, "message"),
                per_minute_text(per_minute),
                span(time),
                quota * 100.0,
                plain(run),
                plain(hub)
            )
        };
        let seconds = time.as_secs();
        self.print(text, &ManyLine::Run { run, hub, messages, per_minute, seconds, quota_share: quota });
    }

    /// Says where the journal is, and which command goes on after an interruption.
    pub(super) fn journal(&mut self, path: &Path, resume: &str) {
        let file = path.display().to_string();
        let text = || format!("journal {}  (after an interruption: {resume})", plain(&file));
        self.print(text, &ManyLine::Journal { file: file.clone() });
    }

    /// Shows people how far the run is from now on, if standard error is a terminal.
    pub(super) fn begin(&mut self) {
        self.begun = Instant::now();
        self.bar = if self.json { None } else { RunBar::new(self.run.entries.len()) };
        self.show_bar();
    }

    /// Counts what an earlier run has settled.
    pub(super) fn known(&mut self, index: usize, settlement: &Settlement) {
        match settlement {
            Settlement::Accepted => self.accepted += 1,
            Settlement::Refused { condition, error } => note_down(&mut self.refused, index, condition, error),
        }
    }

    /// Prints what has happened.
    pub(super) fn progress(&mut self, progress: &Progress<'_>) {
        match *progress {
            Progress::Settled { entry, settlement, per_minute } => {
                if self.rate.paced(per_minute, Instant::now()) && self.json {
                    self.object(&ManyLine::Pace { per_minute, seconds_left: self.time_left().as_secs() });
                }
                match settlement {
                    Settlement::Accepted => {
                        self.accepted += 1;
                        if let Some((message_id, Entry { device_id, number, .. })) = self.named(entry) {
                            let (message_id, number) = (&*message_id, *number);
                            self.object(&ManyLine::Accepted { message_id, device_id, number });
                        }
                        self.one_more();
                    }
                    Settlement::Refused { condition, error } => {
                        note_down(&mut self.refused, entry, condition, error);
                        self.not_taken(entry, condition, error, true);
                    }
                }
            }
            Progress::Postponed { entry, condition, error } => {
                note_down(&mut self.postponed, entry, condition, error);
                self.not_taken(entry, condition, error, false);
            }
            Progress::Slowed { error, wait, per_minute } => {
                self.rate = PresentRate::new(per_minute, Instant::now() + wait);
                let (left, rate) = (self.time_left(), per_minute_text(per_minute));
                let text =
                    || format!("{}: waiting {}, then {rate}: {} left", plain(error), span(wait), span(left));
                let (wait_ms, seconds_left) = (milliseconds(wait), left.as_secs());
                // The note draws the bar again.
                self.show_bar();
                self.note(text, &ManyLine::Throttled { wait_ms, per_minute, seconds_left, error });
            }
            Progress::Lost { error, wait } => {
                let error = error.to_string();
                let text = || format!("no connection, trying again in {}: {}", span(wait), plain(&error));
                self.note(text, &ManyLine::Lost { error: error.clone(), wait_ms: milliseconds(wait) });
            }
        }
    }

    fn not_taken(&mut self, index: usize, condition: &str, error: &str, is_final: bool) {
        if let Some((message_id, Entry { device_id, number, .. })) = self.named(index) {
            let (message_id, number) = (&*message_id, *number);
            let message = RefusedMessage { message_id, device_id, number, condition, error };
            self.object(&if is_final { ManyLine::Refused(message) } else { ManyLine::Postponed(message) });
        }
        self.one_more();
    }

    /// Prints the feedback of a message of this run.
    pub(super) fn feedback(&mut self, index: usize, record: &FeedbackRecord) {
        if let Some((message_id, Entry { device_id, number, .. })) = self.named(index) {
            self.object(&ManyLine::Feedback {
                message_id: &message_id,
                device_id,
                number: *number,
                status: record.status_code,
                description: &record.description,
                enqueued_time_utc: &record.enqueued_time_utc,
            });
        }
    }

    /// Prints what a device reports of its message.
    pub(super) fn outcome(&mut self, index: usize, report: &OutcomeReport) {
        if let Some((message_id, Entry { device_id, number, .. })) = self.named(index) {
            let (message_id, outcome, text) = (&*message_id, report.outcome, &*report.text);
            self.object(&ManyLine::Outcome { message_id, device_id, number: *number, outcome, text });
        }
    }

    /// A note for people who watch.
    pub(super) fn waiting(&self, text: &str) {
        if !self.json {
            self.say(text);
        }
    }

    /// A line on standard error, in each form of the output.
    pub(super) fn say(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.note(text),
            None => tell(text),
        }
    }

    /// Shows of how many messages the feedback or the outcome is known.
    pub(super) fn heard(&mut self, count: usize, what: &'static str) {
        self.heard = Some((count, what));
        self.show();
    }

    fn one_more(&mut self) {
        self.rate.one_more();
        self.show();
    }

    /// How far the run is: on the bar, or else on a line now and then.
    fn show(&mut self) {
        self.show_bar();
        if !self.json && self.bar.is_none() && self.told.elapsed() >= BETWEEN_LINES {
            self.told = Instant::now();
            let (done, of) = (self.done(), self.run.entries.len());
            let line = format!("{done} of {of} settled: {}", self.so_far());
            self.line(&line);
        }
    }

    fn show_bar(&self) {
        if let Some(bar) = &self.bar {
            bar.show(self.done(), &self.so_far());
        }
    }

    /// How far the run is: the same words on the bar and on a line.
    fn so_far(&self) -> String {
        let mut text = format!("{} accepted, {} refused", self.accepted, sum(&self.refused));
        if !self.postponed.is_empty() {
            text.push_str(&format!(", {} postponed", sum(&self.postponed)));
        }
        if let Some((count, what)) = self.heard {
            text.push_str(&format!(", {count} with {what}"));
        }
        if self.left() > 0 {
            let rate = self.rate.per_minute(Instant::now());
            text.push_str(&format!(", {}, {} left", per_minute_text(rate), span(self.time_left())));
        }
        text
    }

    fn time_left(&self) -> Duration {
        self.rate.time_for(self.left(), Instant::now())
    }

    fn left(&self) -> usize {
        self.run.entries.len().saturating_sub(self.done())
    }

    fn done(&self) -> usize {
        self.accepted + sum(&self.refused) + sum(&self.postponed)
    }

    /// Prints the sums, and returns how many messages the hub did not take. What was refused, and what came to no good
    /// end, gets into lists beside the journal. An error of such a list does not hide the sums.
    ///
    /// # Errors
    /// When a list cannot be written.
    pub(super) fn finished(
        &mut self,
        journal: &Path,
        resume: &str,
        after: Option<&Aftermath>,
    ) -> anyhow::Result<usize> {
        self.bar = None;
        let (refused, postponed) = (sum(&self.refused), sum(&self.postponed));
        let open = self.left();
        let indices: Vec<_> =
            self.refused.values().flat_map(|refusals| refusals.entries.iter().copied()).collect();
        let found = |of: fn(&Aftermath) -> &Vec<usize>| after.map(|after| of(after).as_slice());
        // What the devices reported to an earlier attempt is not kept, so its list stays.
        let failed = found(|after| &after.failed).filter(|failed| !failed.is_empty());
        let lists = [
            ("refused", "was refused", Some(indices.as_slice())),
            ("undelivered", "was not delivered", found(|after| &after.undelivered)),
            ("failed", "did not succeed", failed),
            ("missing", "", found(|after| &after.missing)),
        ];
        let files =
            lists.map(|(name, what, entries)| (what, many_lists::write(self.run, journal, name, entries)));
        let [refused_file, undelivered_file, failed_file, missing_file] =
            files.each_ref().map(|(_, file)| Some(file.as_ref().ok()?.as_ref()?.display().to_string()));
        if self.json {
            self.object(&ManyLine::Summary {
                accepted: self.accepted,
                refused,
                postponed,
                open,
                refused_file,
                counts: after.map(|after| {
                    let counts = after.counts.iter();
                    counts.map(|(&status, &messages)| StatusCount { status, messages }).collect()
                }),
                missing: after.map(|after| after.missing.len()),
                undelivered_file,
                failed_file,
                missing_file,
                after_ms: milliseconds(self.begun.elapsed()),
            });
        } else {
            self.table(open, after);
            let option = match self.run.naming {
                Naming::ByDevice => "--devices-from",
                Naming::ByNumber => "--messages-from",
            };
            let named = [refused_file, undelivered_file, failed_file];
            // What may still be delivered is not to be sent again.
            for ((_, what, _), file) in lists.iter().zip(named).filter_map(|(list, file)| Some((list, file?)))
            {
                self.line(&format!("what {what} can be sent again with {option} {}", shell(&file)));
            }
            if let Some(file) = missing_file {
                let file = plain(&file);
                self.line(&format!(
                    "those whose end is not known are in {file}; the hub may still deliver them, and this waits on: {resume}"
                ));
            }
            if postponed > 0 {
                self.line(&format!("what was not taken now can be sent with the same ids: {resume}"));
            }
        }
        for (_, file) in files {
            file?;
        }
        Ok(refused + postponed)
    }

    fn table(&mut self, open: usize, after: Option<&Aftermath>) {
        let mut rows = vec![(self.accepted, "accepted by the hub (queued, not yet delivered)".to_owned())];
        if let Some(Aftermath { counts, awaited, missing, delivered, is_cut_short, wait, .. }) = after {
            rows = vec![(self.accepted, "accepted by the hub, of these:".to_owned())];
            rows.extend(counts.iter().map(|(word, count)| (*count, in_words(word).to_owned())));
            let when = match is_cut_short {
                true => "so far".to_owned(),
                false => format!("{} after the last message", humantime::format_duration(*wait)),
            };
            if *delivered > 0 {
                let why = "no rule matched, the rule has no report, or its action still runs";
                rows.push((*delivered, format!("delivered, but without {awaited} {when}: {why}")));
            }
            if missing.len() > *delivered {
                let awaited = if *delivered > 0 { "feedback" } else { awaited };
                rows.push((missing.len() - delivered, format!("without {awaited} {when}")));
            }
        }
        for (words, refusals) in [("refused", &self.refused), ("not taken now", &self.postponed)] {
            rows.extend(refusals.values().map(|Refusals { entries, first }| {
                (entries.len(), format!("{words}, the first: {}", plain(first)))
            }));
        }
        if open > 0 {
            rows.push((open, "not sent, or sent without an answer of the hub".to_owned()));
        }
        for (count, text) in rows {
            // A terminal would break words.
            let width = shown::terminal_width().map_or(usize::MAX, |columns| columns.saturating_sub(11));
            let mut label = count.to_string();
            for part in shown::wrapped(&text, width) {
                self.line(&format!("{label:>9}  {part}"));
                label.clear();
            }
        }
    }

    /// Prints the failure as JSON. For people, the program's last sentence on standard error says it.
    pub(super) fn failed(&mut self, error: &anyhow::Error) {
        if self.json {
            self.object(&ManyLine::Failed { error: crate::cli::sentence(error) });
        }
    }

    /// Why standard output lacks something, if it does.
    pub(super) fn broken(&mut self) -> Option<anyhow::Error> {
        self.broken.take()
    }

    /// An entry with the id of its message, for an event of JSON; people see only sums.
    fn named(&self, index: usize) -> Option<(String, &'a Entry)> {
        let entry = self.run.entries.get(index).filter(|_| self.json)?;
        // Each id was made once before, when the run was checked.
        Some((self.run.message_id(entry).unwrap_or_default(), entry))
    }

    fn note(&mut self, text: impl FnOnce() -> String, event: &ManyLine<'_>) {
        if self.json { self.object(event) } else { self.say(&text()) }
    }

    fn print(&mut self, text: impl FnOnce() -> String, event: &ManyLine<'_>) {
        if self.json { self.object(event) } else { self.line(&text()) }
    }

    fn object(&mut self, event: &ManyLine<'_>) {
        let written = self.out.json(event).and_then(|()| self.out.flush());
        self.keep_error(written);
    }

    fn line(&mut self, text: &str) {
        let written = self.out.line(text).and_then(|()| self.out.flush());
        self.keep_error(written);
    }

    fn keep_error(&mut self, written: anyhow::Result<()>) {
        if let Err(error) = written {
            self.broken.get_or_insert(error);
        }
    }
}

/// A status of feedback for people; an outcome is a word already.
fn in_words(word: &str) -> &str {
    match word {
        "Success" => "delivered",
        "Expired" => "not delivered: expired",
        "DeliveryCountExceeded" => "not delivered: the device gave it back too often",
        "Rejected" => "not delivered: the device rejected it",
        "Purged" => "not delivered: purged from the queue",
        "Unknown" => "not delivered, for a reason that this version does not know",
        outcome => outcome,
    }
}

fn note_down(refusals: &mut BTreeMap<String, Refusals>, index: usize, condition: &str, error: &str) {
    let refusals = refusals.entry(condition.to_owned()).or_default();
    if refusals.entries.is_empty() {
        error.clone_into(&mut refusals.first);
    }
    refusals.entries.push(index);
}

fn sum(refusals: &BTreeMap<String, Refusals>) -> usize {
    refusals.values().map(|refusals| refusals.entries.len()).sum()
}

fn count(number: usize, what: &str) -> String {
    if number == 1 { format!("1 {what}") } else { format!("{number} {what}s") }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
