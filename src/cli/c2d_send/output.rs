//! What `c2d-send` prints: sentences for people, or one JSON object per event.
//!
//! Owns: standard output and the notes on standard error. Must not know: the service, exit codes.
//! Used by: `cli::c2d_send`.

use std::io::Write as _;
use std::time::Duration;

use anyhow::Context as _;
use serde_json::{Value, json};

use crate::feedback::{FeedbackRecord, FeedbackStatus};
use crate::service::{OutgoingMessage, ServiceError};

/// Prints events as they happen.
pub(super) struct Output {
    json: bool,
    verbose: bool,
    /// Records of other messages that were read and not shown.
    hidden: usize,
}

impl Output {
    pub(super) fn new(json: bool, verbose: bool) -> Self {
        Self { json, verbose, hidden: 0 }
    }

    /// Before anything is sent: the message id.
    pub(super) fn message(&mut self, message: &OutgoingMessage) -> anyhow::Result<()> {
        let (id, device) = (&message.message_id, &message.device_id);
        self.print(
            || format!("message {id}  device {device}"),
            || json!({"event": "message", "message_id": id, "device_id": device, "bytes": message.wire_size()}),
        )
    }

    /// The hub has queued it, so long after the start.
    pub(super) fn accepted(&mut self, message: &OutgoingMessage, after: Duration) -> anyhow::Result<()> {
        self.print(
            || format!("accepted by the hub in {} ms (queued, not yet delivered)", after.as_millis()),
            || {
                json!({
                    "event": "accepted",
                    "message_id": message.message_id,
                    "milliseconds": milliseconds(after),
                })
            },
        )
    }

    /// A note for people who watch.
    pub(super) fn waiting(&self, wait: Duration) {
        if !self.json {
            let wait = humantime::format_duration(wait);
            eprintln!(
                "waiting up to {wait} for feedback (a real hub gathers it for up to 15 s before it sends it)"
            );
        }
    }

    /// This message's own record, so long after the hub accepted it.
    pub(super) fn feedback(&mut self, record: &FeedbackRecord, after: Duration) -> anyhow::Result<()> {
        self.print(
            || {
                let status = record.status_code;
                let word = if status == FeedbackStatus::Success { "delivered" } else { "not delivered" };
                format!("{word}: {} after {:.1} s", status.as_str(), after.as_secs_f64())
            },
            || {
                let mut object = json_record("feedback", record);
                object["milliseconds"] = milliseconds(after).into();
                object
            },
        )
    }

    /// Another message's record, which is gone from the hub once its batch is completed.
    pub(super) fn other_feedback(&mut self, record: &FeedbackRecord) -> anyhow::Result<()> {
        if !self.json && !self.verbose {
            self.hidden += 1;
            return Ok(());
        }
        self.print(
            || {
                let (id, device) = (plain(&record.original_message_id), plain(&record.device_id));
                format!("feedback of another message {id}  device {device}: {}", record.status_code.as_str())
            },
            || json_record("other_feedback", record),
        )
    }

    /// No record in time.
    pub(super) fn timed_out(&mut self, message: &OutgoingMessage, wait: Duration) -> anyhow::Result<()> {
        self.print(
            || {
                let wait = humantime::format_duration(wait);
                format!("no feedback within {wait}: the message stays queued until it is delivered or expires")
            },
            || json!({"event": "no_feedback", "message_id": message.message_id, "milliseconds": milliseconds(wait)}),
        )
    }

    /// It failed; the sentence for people is the program's last on standard error.
    pub(super) fn failed(&mut self, message: &OutgoingMessage, error: &ServiceError) -> anyhow::Result<()> {
        if !self.json {
            return Ok(());
        }
        let refusal = error.refusal();
        let object = json!({
            "event": "failed",
            "message_id": message.message_id,
            "error": error.to_string(),
            "condition": refusal.map(|refusal| &refusal.condition),
            "tracking_id": refusal.and_then(|refusal| refusal.tracking_id.as_ref()),
        });
        self.print(String::new, || object)
    }

    /// Says at the end how much was read and not shown.
    pub(super) fn consumed_note(&self) {
        if self.hidden > 0 {
            let records = if self.hidden == 1 { "1 record" } else { &format!("{} records", self.hidden) };
            eprintln!(
                "{records} of other messages came with the feedback and will not come again; --verbose or --json \
                 shows them"
            );
        }
    }

    fn print(&mut self, text: impl FnOnce() -> String, object: impl FnOnce() -> Value) -> anyhow::Result<()> {
        let line = if self.json { object().to_string() } else { text() };
        writeln!(std::io::stdout(), "{line}").context("cannot write to standard output")
    }
}

fn json_record(event: &str, record: &FeedbackRecord) -> Value {
    json!({
        "event": event,
        "message_id": record.original_message_id,
        "device_id": record.device_id,
        "status": record.status_code.as_str(),
        "description": record.description,
        "enqueued_time_utc": record.enqueued_time_utc,
    })
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Another sender's text, safe for a terminal.
fn plain(text: &str) -> String {
    text.chars().take(128).flat_map(char::escape_debug).collect()
}
