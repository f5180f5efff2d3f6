//! What `c2d-send` prints: sentences for people, or one JSON object per event.
//!
//! Owns: standard output and the notes on standard error. Must not know: how messages travel, exit codes.

use std::time::Duration;

use serde::Serialize;

use crate::cli::back_end::print;
use crate::cli::shown::json;
use crate::cli::tell;
use crate::feedback::{FeedbackRecord, FeedbackStatus};
use crate::outcome::OutcomeReport;
use crate::service::{OutgoingMessage, ServiceError};

/// Most lines of program output that are shown to people.
const OUTPUT_LINES: usize = 20;

/// Most characters of one line of a device's text.
const MAX_TEXT: usize = 400;

/// Prints events as they happen.
pub(super) struct SendOutput {
    json: bool,
    verbose: bool,
    /// How many records of other messages were read and not shown.
    hidden: usize,
}

/// The objects of `--json`: stable for scripts; fields are added, never renamed.
#[derive(Serialize)]
#[serde(tag = "event", rename_all = "kebab-case", rename_all_fields = "camelCase")]
enum SendLine<'a> {
    /// Printed before anything is sent.
    Message { message_id: &'a str, device_id: &'a str, bytes: usize },
    /// The hub has queued the message; the time counts from the start of dialling.
    Accepted { message_id: &'a str, after_ms: u64 },
    /// This message's record; the time counts from acceptance.
    Feedback {
        #[serde(flatten)]
        record: RecordLine<'a>,
        after_ms: u64,
    },
    /// A record of another message.
    OtherFeedback {
        #[serde(flatten)]
        record: RecordLine<'a>,
    },
    /// No record of this message within that time.
    NoFeedback { message_id: &'a str, after_ms: u64 },
    /// The outcome that the device reports; the time counts from acceptance.
    Outcome {
        after_ms: u64,
        #[serde(flatten)]
        report: OutcomeReport,
    },
    /// No outcome of this message within that time.
    NoOutcome { message_id: &'a str, delivered: bool, after_ms: u64 },
    /// The message could not be sent, or the wait ended early.
    Failed { message_id: &'a str, error: String, condition: Option<&'a str>, tracking_id: Option<&'a str> },
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct RecordLine<'a> {
    message_id: &'a str,
    device_id: &'a str,
    status: FeedbackStatus,
    description: &'a str,
    enqueued_time_utc: &'a str,
}

impl SendOutput {
    pub(super) fn new(json: bool, verbose: bool) -> Self {
        Self { json, verbose, hidden: 0 }
    }

    /// Prints the message id, before anything is sent.
    pub(super) fn message(&self, message: &OutgoingMessage) -> anyhow::Result<()> {
        let (message_id, device_id) = (message.message_id.as_str(), message.device_id.as_str());
        self.print(
            || format!("message {message_id}  device {device_id}"),
            &SendLine::Message { message_id, device_id, bytes: message.wire_size() },
        )
    }

    /// Prints that the hub has queued the message, and how long after the start.
    pub(super) fn accepted(&self, message: &OutgoingMessage, after: Duration) -> anyhow::Result<()> {
        let after_ms = milliseconds(after);
        self.print(
            || format!("accepted by the hub in {after_ms} ms (queued, not yet delivered)"),
            &SendLine::Accepted { message_id: &message.message_id, after_ms },
        )
    }

    /// A note for people who watch.
    pub(super) fn waiting(&self, wait: Duration) {
        if !self.json {
            let wait = humantime::format_duration(wait);
            tell(format_args!(
                "waiting up to {wait} for feedback (a real hub collects it for up to 15 s before it sends it)"
            ));
        }
    }

    /// Prints this message's own record, and how long after acceptance it came.
    pub(super) fn feedback(&self, record: &FeedbackRecord, after: Duration) -> anyhow::Result<()> {
        let word = match record.status_code {
            FeedbackStatus::Success => "delivered",
            _ => "not delivered",
        };
        self.print(
            || format!("{word}: {} after {:.2} s", outcome(record), after.as_secs_f64()),
            &SendLine::Feedback { record: record.into(), after_ms: milliseconds(after) },
        )
    }

    /// Prints or counts the record of another message. The hub forgets it when its batch is completed.
    pub(super) fn other_feedback(&mut self, record: &FeedbackRecord) -> anyhow::Result<()> {
        if !self.json && !self.verbose {
            self.hidden += 1;
            return Ok(());
        }
        let text = || {
            let (id, device) = (plain(&record.original_message_id), plain(&record.device_id));
            format!("feedback of another message {id}  device {device}: {}", outcome(record))
        };
        self.print(text, &SendLine::OtherFeedback { record: record.into() })
    }

    /// Prints that no record came in time.
    pub(super) fn timed_out(&self, message: &OutgoingMessage, wait: Duration) -> anyhow::Result<()> {
        let text = || {
            let wait = humantime::format_duration(wait);
            format!("no feedback within {wait}: the message stays queued until it is delivered or expires")
        };
        let message_id = &message.message_id;
        self.print(text, &SendLine::NoFeedback { message_id, after_ms: milliseconds(wait) })
    }

    /// A note for people who watch.
    pub(super) fn waiting_for_outcome(&self, wait: Duration) {
        if !self.json {
            let wait = humantime::format_duration(wait);
            tell(format_args!("waiting up to {wait} for the outcome that the device reports"));
        }
    }

    /// Prints the outcome that the device reports, and how long after acceptance it came.
    pub(super) fn outcome(
        &self,
        message: &OutgoingMessage,
        report: &OutcomeReport,
        after: Duration,
    ) -> anyhow::Result<()> {
        // The device's report may lack the id.
        let named = OutcomeReport { message_id: Some(message.message_id.clone()), ..report.clone() };
        let event = SendLine::Outcome { after_ms: milliseconds(after), report: named };
        self.print(|| outcome_lines(report), &event)
    }

    /// Prints that no outcome came in time.
    pub(super) fn no_outcome(
        &self,
        message: &OutgoingMessage,
        delivered: bool,
        wait: Duration,
    ) -> anyhow::Result<()> {
        let text = || {
            let wait = humantime::format_duration(wait);
            let hint = if delivered {
                "the message was delivered; its action may still run, or no rule matched it, or its rule \
                 lacks report = \"twin\" (for the emulator also \"telemetry\")"
            } else {
                "the message has not been completed: it waits for the device at the hub, or its action still runs"
            };
            format!("no outcome within {wait}: {hint}")
        };
        let message_id = &message.message_id;
        self.print(text, &SendLine::NoOutcome { message_id, delivered, after_ms: milliseconds(wait) })
    }

    /// Prints the failure as JSON. For people, the program's last sentence on standard error says it.
    pub(super) fn failed(&self, message: &OutgoingMessage, error: &anyhow::Error) -> anyhow::Result<()> {
        if !self.json {
            return Ok(());
        }
        let refusal = error.downcast_ref().and_then(ServiceError::refusal);
        let event = SendLine::Failed {
            message_id: &message.message_id,
            error: crate::cli::sentence(error),
            condition: refusal.map(|refusal| refusal.condition.as_str()),
            tracking_id: refusal.and_then(|refusal| refusal.tracking_id.as_deref()),
        };
        self.print(String::new, &event)
    }

    /// Says at the end how many records were read and not shown.
    pub(super) fn consumed_note(&self) {
        if self.hidden > 0 {
            let records = if self.hidden == 1 { "1 record" } else { &format!("{} records", self.hidden) };
            tell(format_args!(
                "{records} of other messages came with the feedback and will not come again; --verbose or \
                 --json shows them"
            ));
        }
    }

    fn print(&self, text: impl FnOnce() -> String, event: &SendLine<'_>) -> anyhow::Result<()> {
        print(&if self.json { json(event)? } else { text() })
    }
}

impl<'a> From<&'a FeedbackRecord> for RecordLine<'a> {
    fn from(record: &'a FeedbackRecord) -> Self {
        Self {
            message_id: &record.original_message_id,
            device_id: &record.device_id,
            status: record.status_code,
            description: &record.description,
            enqueued_time_utc: &record.enqueued_time_utc,
        }
    }
}

/// The status; if this program does not know it, the hub's description.
fn outcome(record: &FeedbackRecord) -> String {
    match record.status_code {
        FeedbackStatus::Unknown => plain(&record.description),
        status => status.as_str().to_owned(),
    }
}

/// A line about the outcome, and the beginning of what the programs wrote.
fn outcome_lines(report: &OutcomeReport) -> String {
    let mut facts = Vec::new();
    facts.extend(report.rule.as_deref().map(|rule| format!("rule {}", plain(rule))));
    if report.attempt > 1 {
        facts.push(format!("attempt {}", report.attempt));
    }
    facts.extend(
        report.duration_ms.map(|ms| format!("took {:.2} s", Duration::from_millis(ms).as_secs_f64())),
    );
    let facts = if facts.is_empty() { String::new() } else { format!("  ({})", facts.join(", ")) };
    let kind = report.outcome.as_str();
    let text = plain_text(&report.text, MAX_TEXT);
    // The text "timed out" already says what the kind "timed-out" says.
    let named = text.replace(' ', "-").starts_with(kind);
    let text = if named { text } else { format!("{kind}: {text}") };
    let mut lines = format!("outcome {text}{facts}");
    let mut rest = report.output.lines();
    for line in rest.by_ref().take(OUTPUT_LINES) {
        lines.push_str(&format!("\n  | {}", plain_text(line, MAX_TEXT)));
    }
    let more = rest.count();
    let cut = report.output_bytes.saturating_sub(u64::try_from(report.output.len()).unwrap_or(u64::MAX));
    match (more, cut) {
        (0, 0) => {}
        (0, cut) => lines.push_str(&format!("\n  | … and {cut} bytes more")),
        (more, _) => lines.push_str(&format!("\n  | … and {more} lines or more (--json shows what came)")),
    }
    lines
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Another sender's text, safe for a terminal.
fn plain(text: &str) -> String {
    text.chars().take(128).flat_map(char::escape_debug).collect()
}

/// A device's text, safe for a terminal: quotes and letters of all languages stay as they are.
fn plain_text(text: &str, chars: usize) -> String {
    let shown = |c: char| {
        if c == '\t' {
            ' '
        } else if c.is_control() {
            '\u{fffd}'
        } else {
            c
        }
    };
    text.chars().take(chars).map(shown).collect()
}
