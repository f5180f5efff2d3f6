//! What became of one message, as it is recorded, reported to the back end, and read there.
//!
//! Owns: the kinds of outcomes and the shape of an outcome report, both ways.
//! Must not know: how outcomes come about, where reports travel. Used by: `inbox`, `agent`, `service`, `cli`.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

/// How a message ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum OutcomeKind {
    /// Every step was done.
    Succeeded,
    /// A step failed, at the last attempt.
    Failed,
    /// The rule's time was up, at the last attempt.
    TimedOut,
    /// The agent stopped, or the power went, in the middle of the action, and the rule says not to run it again.
    Interrupted,
    /// Nothing was done: a value of the message, or one of the rule's guards, did not allow it.
    Refused,
    /// Nothing was done: it had expired.
    Expired,
    /// Nothing was done: no rule takes it.
    Unmatched,
    /// Nothing was done: its property bag could not be decoded.
    Undecodable,
    /// Nothing was done, or nothing more: somebody dropped it from the inbox.
    Dropped,
}

impl OutcomeKind {
    /// Whether the message becomes a dead letter, which somebody may want to run again or drop.
    pub fn is_dead_letter(self) -> bool {
        matches!(self, Self::Failed | Self::TimedOut | Self::Interrupted | Self::Refused)
    }

    /// As it is written in JSON and in tables.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::TimedOut => "timed-out",
            Self::Interrupted => "interrupted",
            Self::Refused => "refused",
            Self::Expired => "expired",
            Self::Unmatched => "unmatched",
            Self::Undecodable => "undecodable",
            Self::Dropped => "dropped",
        }
    }
}

impl fmt::Display for OutcomeKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How many messages ended in which way, since the inbox was created.
pub type Totals = BTreeMap<OutcomeKind, u64>;

/// What became of one message: the body of the telemetry report, the entry in the twin, the end of an inbox record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OutcomeReport {
    /// The message's id, when its sender gave one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message_id: Option<String>,
    /// The rule that took it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// How it ended.
    pub outcome: OutcomeKind,
    /// The same in a sentence, such as `failed: run /usr/bin/backup: exit code 3`.
    pub text: String,
    /// The exit code of the last program.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// How long the last attempt took, in milliseconds; absent when nothing was begun.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration_ms: Option<u64>,
    /// Which attempt this was, from 1; 0 when none was made.
    #[serde(default)]
    pub attempt: u32,
    /// When it ended, in RFC 3339.
    pub ended: String,
    /// The first 4 KiB of what its programs wrote, as text.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub output: String,
    /// How many bytes its programs wrote in all.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub output_bytes: u64,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_survives_json_and_leaves_out_what_is_absent() {
        let report = OutcomeReport {
            message_id: Some("m-1".into()),
            rule: None,
            outcome: OutcomeKind::TimedOut,
            text: "timed out".into(),
            exit_code: None,
            duration_ms: Some(12),
            attempt: 2,
            ended: "2026-01-01T00:00:00.0000000Z".into(),
            output: String::new(),
            output_bytes: 0,
        };
        let text = serde_json::to_string(&report).expect("JSON");
        assert_eq!(
            text,
            "{\"messageId\":\"m-1\",\"outcome\":\"timed-out\",\"text\":\"timed out\",\"durationMs\":12,\"attempt\":2,\
             \"ended\":\"2026-01-01T00:00:00.0000000Z\"}"
        );
        assert_eq!(serde_json::from_str::<OutcomeReport>(&text).expect("read"), report);
    }

    #[test]
    fn every_kind_is_written_as_it_says() {
        for kind in [OutcomeKind::Succeeded, OutcomeKind::TimedOut, OutcomeKind::Dropped] {
            assert_eq!(serde_json::to_string(&kind).expect("JSON"), format!("\"{kind}\""));
        }
    }
}
