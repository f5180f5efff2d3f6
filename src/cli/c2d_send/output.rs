//! What `c2d-send` prints: sentences for people, or one JSON object per event.
//!
//! Owns: standard output and the notes on standard error. Must not know: how messages travel, exit codes.
//! Used by: `cli::c2d_send`.

use std::io::Write as _;
use std::time::Duration;

use anyhow::Context as _;
use serde::Serialize;

use crate::cli::tell;
use crate::feedback::{FeedbackRecord, FeedbackStatus};
use crate::service::{OutgoingMessage, ServiceError};

/// Prints events as they happen.
pub(super) struct Output {
    json: bool,
    verbose: bool,
    /// Records of other messages that were read and not shown.
    hidden: usize,
}

/// The objects of `--json`: stable for scripts; fields are added, never renamed.
#[derive(Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
enum Event<'a> {
    /// Before anything is sent.
    Message { message_id: &'a str, device_id: &'a str, bytes: usize },
    /// Queued by the hub; the time counts from the start of dialling.
    Accepted { message_id: &'a str, milliseconds: u64 },
    /// This message's record; the time counts from acceptance.
    Feedback {
        #[serde(flatten)]
        record: Record<'a>,
        milliseconds: u64,
    },
    /// A record of another message.
    OtherFeedback {
        #[serde(flatten)]
        record: Record<'a>,
    },
    /// No record of this message within that time.
    NoFeedback { message_id: &'a str, milliseconds: u64 },
    /// It could not be sent, or the wait ended early.
    Failed { message_id: &'a str, error: String, condition: Option<&'a str>, tracking_id: Option<&'a str> },
}

#[derive(Serialize)]
struct Record<'a> {
    message_id: &'a str,
    device_id: &'a str,
    status: FeedbackStatus,
    description: &'a str,
    enqueued_time_utc: &'a str,
}

impl Output {
    pub(super) fn new(json: bool, verbose: bool) -> Self {
        Self { json, verbose, hidden: 0 }
    }

    /// Before anything is sent: the message id.
    pub(super) fn message(&self, message: &OutgoingMessage) -> anyhow::Result<()> {
        let (message_id, device_id) = (message.message_id.as_str(), message.device_id.as_str());
        self.print(
            || format!("message {message_id}  device {device_id}"),
            &Event::Message { message_id, device_id, bytes: message.wire_size() },
        )
    }

    /// The hub has queued it, so long after the start.
    pub(super) fn accepted(&self, message: &OutgoingMessage, after: Duration) -> anyhow::Result<()> {
        let milliseconds = milliseconds(after);
        self.print(
            || format!("accepted by the hub in {milliseconds} ms (queued, not yet delivered)"),
            &Event::Accepted { message_id: &message.message_id, milliseconds },
        )
    }

    /// A note for people who watch.
    pub(super) fn waiting(&self, wait: Duration) {
        if !self.json {
            let wait = humantime::format_duration(wait);
            tell(format_args!(
                "waiting up to {wait} for feedback (a real hub gathers it for up to 15 s before it sends it)"
            ));
        }
    }

    /// This message's own record, so long after the hub accepted it.
    pub(super) fn feedback(&self, record: &FeedbackRecord, after: Duration) -> anyhow::Result<()> {
        let word = match record.status_code {
            FeedbackStatus::Success => "delivered",
            _ => "not delivered",
        };
        self.print(
            || format!("{word}: {} after {:.2} s", outcome(record), after.as_secs_f64()),
            &Event::Feedback { record: record.into(), milliseconds: milliseconds(after) },
        )
    }

    /// Another message's record, which is gone from the hub once its batch is completed.
    pub(super) fn other_feedback(&mut self, record: &FeedbackRecord) -> anyhow::Result<()> {
        if !self.json && !self.verbose {
            self.hidden += 1;
            return Ok(());
        }
        let text = || {
            let (id, device) = (plain(&record.original_message_id), plain(&record.device_id));
            format!("feedback of another message {id}  device {device}: {}", outcome(record))
        };
        self.print(text, &Event::OtherFeedback { record: record.into() })
    }

    /// No record in time.
    pub(super) fn timed_out(&self, message: &OutgoingMessage, wait: Duration) -> anyhow::Result<()> {
        let text = || {
            let wait = humantime::format_duration(wait);
            format!("no feedback within {wait}: the message stays queued until it is delivered or expires")
        };
        let message_id = &message.message_id;
        self.print(text, &Event::NoFeedback { message_id, milliseconds: milliseconds(wait) })
    }

    /// It failed. For people, the program's last sentence on standard error says so.
    pub(super) fn failed(&self, message: &OutgoingMessage, error: &anyhow::Error) -> anyhow::Result<()> {
        if !self.json {
            return Ok(());
        }
        let refusal = error.downcast_ref().and_then(ServiceError::refusal);
        let event = Event::Failed {
            message_id: &message.message_id,
            error: crate::cli::sentence(error),
            condition: refusal.map(|refusal| refusal.condition.as_str()),
            tracking_id: refusal.and_then(|refusal| refusal.tracking_id.as_deref()),
        };
        self.print(String::new, &event)
    }

    /// Says at the end how much was read and not shown.
    pub(super) fn consumed_note(&self) {
        if self.hidden > 0 {
            let records = if self.hidden == 1 { "1 record" } else { &format!("{} records", self.hidden) };
            tell(format_args!(
                "{records} of other messages came with the feedback and will not come again; --verbose or --json \
                 shows them"
            ));
        }
    }

    fn print(&self, text: impl FnOnce() -> String, event: &Event<'_>) -> anyhow::Result<()> {
        let line = if self.json { serde_json::to_string(event)? } else { text() };
        writeln!(std::io::stdout(), "{line}").context("cannot write to standard output")
    }
}

impl<'a> From<&'a FeedbackRecord> for Record<'a> {
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

/// The status; of one that this program does not know, the hub's description.
fn outcome(record: &FeedbackRecord) -> String {
    match record.status_code {
        FeedbackStatus::Unknown => plain(&record.description),
        status => status.as_str().to_owned(),
    }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Another sender's text, safe for a terminal.
fn plain(text: &str) -> String {
    text.chars().take(128).flat_map(char::escape_debug).collect()
}
