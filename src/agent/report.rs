//! What became of a message, in words: the log line, and the event for an observer.
//!
//! Owns: the shape of both. Must not know: how outcomes come about. Used by: `agent`.

use crate::action::{Outcome, OutcomeResult};
use crate::message::C2dMessage;

/// Bytes of a program's output in the log line; the rest is counted there.
const EXCERPT_BYTES: usize = 512;

/// Something that happened to the agent, for whoever watches it.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum AgentEvent {
    /// The hub has taken the subscription.
    Subscribed,
    /// A message arrived and is about to be acted on, or passed over.
    Received {
        /// The message.
        message: C2dMessage,
    },
    /// A message was completed.
    Settled {
        /// The message id, when the sender gave one.
        message_id: Option<String>,
        /// The rule that took the message.
        rule: Option<String>,
        /// What was done, or why nothing was.
        outcome: String,
        /// The beginning of what its programs wrote.
        output: Vec<u8>,
    },
    /// There is no connection; the agent tries again.
    Disconnected {
        /// Why, in one sentence.
        reason: String,
    },
}

/// Why a message was completed without any action.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum PassedOver {
    /// Its property bag could not be decoded.
    #[error("undecodable: {0}")]
    Undecodable(String),
    /// It expired before it was looked at.
    #[error("expired: it was good until {expiry}, and this machine's clock says {now}")]
    Expired {
        /// Its expiry.
        expiry: String,
        /// The time by which that has passed.
        now: String,
    },
    /// No rule takes it.
    #[error("unmatched: no rule takes it")]
    Unmatched,
    /// The rule's values could not be filled in.
    #[error("refused: {0}")]
    Refused(String),
    /// It was acted on before, and came again.
    #[error("already done: it came again after its action had ended")]
    AlreadyDone,
}

/// Logs why nothing was done with a message.
pub(super) fn log_passed_over(message_id: Option<&str>, rule: Option<&str>, why: &PassedOver) {
    let outcome = why.to_string();
    match why {
        PassedOver::AlreadyDone => tracing::info!(message_id, outcome, "message passed over"),
        _ => tracing::warn!(message_id, rule, outcome, "message passed over"),
    }
}

/// Logs what an action did: one line.
pub(super) fn log_outcome(message_id: Option<&str>, rule: &str, outcome: &Outcome) {
    let exit_code = outcome.exit_code;
    let duration_ms = u64::try_from(outcome.duration.as_millis()).unwrap_or(u64::MAX);
    let output = (!outcome.output.is_empty()).then(|| excerpt(&outcome.output));
    let output_bytes = (outcome.output_bytes > 0).then_some(outcome.output_bytes);
    match outcome.result {
        OutcomeResult::Succeeded => tracing::info!(
            message_id, rule, %outcome, exit_code, duration_ms, output, output_bytes, "action ended"
        ),
        OutcomeResult::Failed(_) | OutcomeResult::TimedOut | OutcomeResult::Interrupted => tracing::warn!(
            message_id, rule, %outcome, exit_code, duration_ms, output, output_bytes, "action ended"
        ),
    }
}

/// The first bytes of a program's output. Logged as a string it is one line: both shapes of the log escape it.
fn excerpt(output: &[u8]) -> String {
    let kept = output.get(..EXCERPT_BYTES).unwrap_or(output);
    String::from_utf8_lossy(kept).trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_excerpt_is_bounded_text() {
        assert_eq!(excerpt(b"one\ntwo\n"), "one\ntwo");
        assert_eq!(excerpt(&[b'x'; 10_000]).len(), EXCERPT_BYTES);
        assert_eq!(excerpt(&[0xFF]), "\u{FFFD}");
    }
}
