//! What `c2d-send --json` prints for many messages.
//!
//! Owns: the names of events and fields. Must not know: when an event happens.

use serde::Serialize;

use crate::feedback::FeedbackStatus;
use crate::outcome::OutcomeKind;

/// The objects of `--json`: stable for scripts; fields are added, never renamed.
#[derive(Serialize)]
#[serde(tag = "event", rename_all = "kebab-case", rename_all_fields = "camelCase")]
pub(super) enum ManyLine<'a> {
    Run {
        run: &'a str,
        hub: &'a str,
        messages: usize,
        per_minute: f64,
        seconds: u64,
        quota_share: f64,
    },
    Journal {
        file: String,
    },
    Accepted {
        message_id: &'a str,
        device_id: &'a str,
        number: usize,
    },
    Refused(RefusedMessage<'a>),
    Postponed(RefusedMessage<'a>),
    Throttled {
        wait_ms: u64,
        per_minute: f64,
        seconds_left: u64,
        error: &'a str,
    },
    Pace {
        per_minute: f64,
        seconds_left: u64,
    },
    Lost {
        error: String,
        wait_ms: u64,
    },
    Feedback {
        message_id: &'a str,
        device_id: &'a str,
        number: usize,
        status: FeedbackStatus,
        description: &'a str,
        enqueued_time_utc: &'a str,
    },
    Outcome {
        message_id: &'a str,
        device_id: &'a str,
        number: usize,
        outcome: OutcomeKind,
        text: &'a str,
    },
    Summary {
        accepted: usize,
        refused: usize,
        postponed: usize,
        open: usize,
        refused_file: Option<String>,
        #[serde(skip_serializing_if = "Option::is_none")]
        counts: Option<Vec<StatusCount>>,
        #[serde(skip_serializing_if = "Option::is_none")]
        missing: Option<usize>,
        #[serde(skip_serializing_if = "Option::is_none")]
        undelivered_file: Option<String>,
        #[serde(skip_serializing_if = "Option::is_none")]
        failed_file: Option<String>,
        #[serde(skip_serializing_if = "Option::is_none")]
        missing_file: Option<String>,
        after_ms: u64,
    },
    Failed {
        error: String,
    },
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct RefusedMessage<'a> {
    pub(super) message_id: &'a str,
    pub(super) device_id: &'a str,
    pub(super) number: usize,
    pub(super) condition: &'a str,
    pub(super) error: &'a str,
}

/// How many messages have a status of feedback, or an outcome.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct StatusCount {
    pub(super) status: &'static str,
    pub(super) messages: usize,
}
