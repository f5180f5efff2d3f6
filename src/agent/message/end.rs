//! The end of a message, in the words of the inbox and of the reports.
//!
//! Owns: how an action's outcome, or the reason to do nothing, becomes an [`OutcomeReport`]. Must not know: when
//! anything is written or sent.

use std::time::{Duration, SystemTime};

use bytes::Bytes;

use crate::action::{Outcome, OutcomeResult};
use crate::message::format_time;
use crate::outcome::{OutcomeKind, OutcomeReport};
use crate::rules::{OnFailure, Unmatched};
use crate::session::Settlement;

/// Why nothing was done with a message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(in crate::agent) enum PassedOver {
    /// Its property bag could not be decoded.
    #[error("undecodable: {0}")]
    Undecodable(String),
    /// It expired before its turn came.
    #[error("expired: it was valid until {expiry}, and this machine's clock says {now}")]
    Expired {
        /// Its expiry.
        expiry: String,
        /// The time at which it counted as expired.
        now: String,
    },
    /// No rule matches it.
    #[error("unmatched: no rule matches it")]
    Unmatched,
    /// The rule's values could not be filled in.
    #[error("refused: {0}")]
    Refused(String),
    /// A guard of the rule did not let it begin.
    #[error("refused: {0}")]
    Guarded(String),
    /// It is a call, and its caller could not receive the answer any more when its turn came.
    #[error(
        "expired: the call was not begun, because its connection had ended or was ending, or the inbox could \
         not record it: call again"
    )]
    CallerGone,
    /// A crash interrupted its action, and the rule says not to run it again.
    #[error("interrupted: the agent ended during the action, and does not run it again by itself")]
    Crashed,
}

impl PassedOver {
    /// Why a message that only the inbox has cannot run after its rule was removed.
    pub(in crate::agent) fn no_rule_any_more() -> Self {
        let remedy = "no rule matches it any more: put its rule back into the configuration, restart or \
                      reload the agent, and run the message again with `c2d-agent inbox retry`";
        Self::Refused(remedy.to_owned())
    }

    pub(in crate::agent) fn kind(&self) -> OutcomeKind {
        match self {
            Self::Undecodable(_) => OutcomeKind::Undecodable,
            Self::Expired { .. } | Self::CallerGone => OutcomeKind::Expired,
            Self::Unmatched => OutcomeKind::Unmatched,
            Self::Refused(_) | Self::Guarded(_) => OutcomeKind::Refused,
            Self::Crashed => OutcomeKind::Interrupted,
        }
    }

    pub(in crate::agent) fn report(
        &self,
        message_id: Option<&str>,
        rule: Option<&str>,
        attempts: u32,
        now: SystemTime,
    ) -> OutcomeReport {
        OutcomeReport {
            message_id: message_id.map(str::to_owned),
            rule: rule.map(str::to_owned),
            attempt: attempts,
            ..OutcomeReport::without_action(self.kind(), self.to_string(), format_time(now))
        }
    }
}

/// The report of an action that ran.
pub(in crate::agent) fn of_action(
    outcome: &Outcome,
    message_id: Option<&str>,
    rule: &str,
    attempt: u32,
    now: SystemTime,
) -> OutcomeReport {
    OutcomeReport {
        message_id: message_id.map(str::to_owned),
        rule: Some(rule.to_owned()),
        outcome: match outcome.result {
            OutcomeResult::Succeeded => OutcomeKind::Succeeded,
            OutcomeResult::Failed(_) => OutcomeKind::Failed,
            OutcomeResult::TimedOut => OutcomeKind::TimedOut,
            OutcomeResult::Interrupted => OutcomeKind::Interrupted,
        },
        text: outcome.to_string(),
        exit_code: outcome.exit_code,
        duration_ms: Some(millis(outcome.duration)),
        attempt,
        ended: format_time(now),
        output: String::from_utf8_lossy(&outcome.output).into_owned(),
        output_end: String::from_utf8_lossy(&outcome.output_end).into_owned(),
        output_bytes: outcome.output_bytes,
    }
}

/// Chooses how to settle a message that ended this way. Only a message whose action ran and failed is abandoned, so
/// that the hub sends it again. If the action did not run (bad values, a guard, expiry), another attempt would not go
/// better at once. If a crash interrupted it, it is unknown how much was done.
pub(in crate::agent) fn settlement(
    kind: OutcomeKind,
    on_failure: OnFailure,
    unmatched: Unmatched,
) -> Settlement {
    match (kind, on_failure) {
        (OutcomeKind::Succeeded, _) => Settlement::Complete,
        (OutcomeKind::Unmatched, _) => match unmatched {
            Unmatched::Complete => Settlement::Complete,
            Unmatched::Reject => Settlement::Reject,
        },
        (_, OnFailure::Complete) => Settlement::Complete,
        (OutcomeKind::Failed | OutcomeKind::TimedOut, OnFailure::Abandon) => Settlement::Abandon,
        (_, OnFailure::Reject | OnFailure::Abandon) => Settlement::Reject,
    }
}

/// The body of the telemetry report. None if it cannot be written, which is a defect and logged.
pub(in crate::agent) fn telemetry(report: &OutcomeReport) -> Option<Bytes> {
    match serde_json::to_vec(report) {
        Ok(body) => Some(body.into()),
        Err(error) => {
            tracing::error!(%error, "an outcome could not be written as JSON");
            None
        }
    }
}

/// Whole milliseconds.
pub(in crate::agent) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_action_that_failed_is_given_back() {
        let of = |kind, on_failure| settlement(kind, on_failure, Unmatched::Complete);
        for kind in [OutcomeKind::Failed, OutcomeKind::TimedOut] {
            assert_eq!(of(kind, OnFailure::Abandon), Settlement::Abandon);
            assert_eq!(of(kind, OnFailure::Reject), Settlement::Reject);
        }
        for kind in [
            OutcomeKind::Interrupted,
            OutcomeKind::Refused,
            OutcomeKind::Expired,
            OutcomeKind::Undecodable,
            OutcomeKind::Dropped,
        ] {
            assert_eq!(of(kind, OnFailure::Abandon), Settlement::Reject, "{kind}");
            assert_eq!(of(kind, OnFailure::Complete), Settlement::Complete, "{kind}");
        }
        for on_failure in [OnFailure::Reject, OnFailure::Abandon, OnFailure::Complete] {
            assert_eq!(of(OutcomeKind::Succeeded, on_failure), Settlement::Complete);
            assert_eq!(of(OutcomeKind::Unmatched, on_failure), Settlement::Complete);
            let rejected = settlement(OutcomeKind::Unmatched, on_failure, Unmatched::Reject);
            assert_eq!(rejected, Settlement::Reject);
        }
    }
}
