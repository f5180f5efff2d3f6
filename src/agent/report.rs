//! What became of a message, in words: the log line, the event for an observer, the JSON of a report.
//!
//! Owns: the shape of each. Must not know: how outcomes come about.

use std::time::Duration;

use bytes::Bytes;

use crate::action::{Outcome, OutcomeResult};
use crate::message::{self, C2dMessage, INPUT, METHOD};
use crate::outcome::{OutcomeKind, OutcomeReport};
use crate::rules::Rules;

/// Most bytes of a program's output in the log line. The line also has the full count.
const EXCERPT_BYTES: usize = 512;
/// About how many bytes of a message's properties go into the log line.
const PROPERTIES_BYTES: usize = 1024;

/// Something that happened to the agent, for an observer.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum AgentEvent {
    /// The hub has taken the subscription.
    Subscribed,
    /// A message arrived. It is about to be acted on, or passed over.
    Received {
        /// The message.
        message: C2dMessage,
    },
    /// A message has ended. That is on disk, and the message is completed.
    Settled {
        /// The message id, when the sender gave one.
        message_id: Option<String>,
        /// The rule that matched the message.
        rule: Option<String>,
        /// What was done, or why nothing was done.
        outcome: String,
        /// The beginning of what its programs wrote.
        output: Vec<u8>,
    },
    /// There is no connection. The agent tries again.
    Disconnected {
        /// Why, in one sentence.
        reason: String,
    },
}

/// An outcome as JSON. None if it cannot be written, which is a defect and logged.
pub(super) fn as_json(outcome: &OutcomeReport) -> Option<Bytes> {
    match serde_json::to_vec(outcome) {
        Ok(body) => Some(body.into()),
        Err(error) => {
            tracing::error!(%error, "an outcome could not be written as JSON");
            None
        }
    }
}

/// Whole milliseconds.
pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Logs why nothing was done with a message. `message`: none if it could not be decoded. If no rule matched, the line
/// has the message's properties and the nearest rule, because the author of the rules or the sender must see what
/// differs.
pub(super) fn log_passed_over(report: &OutcomeReport, message: Option<&C2dMessage>, rules: &Rules) {
    let OutcomeReport { message_id, rule, text: outcome, .. } = report;
    let [method, input] = [METHOD, INPUT].map(|name| message.and_then(|message| message.property(name)));
    if let Some(message) = message.filter(|_| report.outcome == OutcomeKind::Unmatched) {
        let (properties, why) = (listed(message), rules.why_none(message));
        tracing::warn!(message_id, method, input, outcome, properties, why, "message not acted on");
    } else if report.outcome == OutcomeKind::Interrupted {
        tracing::warn!(message_id, method, input, rule, outcome, "action was interrupted");
    } else {
        tracing::warn!(message_id, method, input, rule, outcome, "message not acted on");
    }
}

/// Logs that the agent's own message came back to it. Only the first time is a warning, because there may be any
/// number.
pub(super) fn log_own(message: &C2dMessage, told: &mut bool) {
    let (message_id, input) = (message.message_id(), message.property(INPUT));
    if std::mem::replace(told, true) {
        return tracing::debug!(message_id, input, "ignored a message that this agent sent itself");
    }
    tracing::warn!(
        message_id,
        input,
        "ignored a message that this agent sent itself: a route leads its output back to its input; change \
         that route in the deployment (logged only once)"
    );
}

/// Logs that a message came again after it had ended.
pub(super) fn log_already_done(message_id: Option<&str>) {
    tracing::info!(
        message_id,
        outcome = "already done: it came again after its action had ended",
        "message not acted on"
    );
}

/// Logs what an action did, in one line. `retry_in_ms`: another attempt follows.
pub(super) fn log_outcome(
    message_id: Option<&str>,
    rule: &str,
    outcome: &Outcome,
    attempt: u32,
    retry_in_ms: Option<u64>,
) {
    let exit_code = outcome.exit_code;
    let duration_ms = millis(outcome.duration);
    let output = (!outcome.output.is_empty()).then(|| excerpt(&outcome.output));
    let output_bytes = (outcome.output_bytes > 0).then_some(outcome.output_bytes);
    let attempt = (attempt > 1 || retry_in_ms.is_some()).then_some(attempt);
    match outcome.result {
        OutcomeResult::Succeeded => tracing::info!(
            message_id, rule, %outcome, exit_code, duration_ms, attempt, output, output_bytes, "action ended"
        ),
        OutcomeResult::Failed(_) | OutcomeResult::TimedOut | OutcomeResult::Interrupted => tracing::warn!(
            message_id, rule, %outcome, exit_code, duration_ms, attempt, retry_in_ms, output, output_bytes,
            "action ended"
        ),
    }
}

/// The first bytes of a program's output. Both log formats escape it as a string, so it stays on one line.
fn excerpt(output: &[u8]) -> String {
    let kept = output.get(..EXCERPT_BYTES).unwrap_or(output);
    String::from_utf8_lossy(kept).trim_end().to_owned()
}

/// The properties of a message, the sender's own first, much as `check --message` takes them. Many or long ones are
/// cut short.
fn listed(message: &C2dMessage) -> String {
    let mut text = String::new();
    let (application, system) = (message.application.iter(), message.system.iter());
    for (at, (name, value)) in application.chain(system).enumerate() {
        if text.len() > PROPERTIES_BYTES {
            let more = message.application.len() + message.system.len() - at;
            return format!("{text} … and {more} more");
        }
        let value = value.map_or(String::new(), |value| format!("={}", message::excerpt(value)));
        let separator = if at > 0 { "&" } else { "" };
        text.push_str(&format!("{separator}{}{value}", message::excerpt(name)));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_properties_of_a_message_are_listed_in_bounds() {
        let message = |bag: &str| C2dMessage::from_bag(bag, bytes::Bytes::new()).expect("a bag");
        let few = message("%24.mid=m-1&action=pump&flag&note=a%0Ab");
        assert_eq!(listed(&few), "action=pump&flag&note=a\\nb&$.mid=m-1");
        let many: String = (0..5_000).map(|n| format!("n{n}={}&", "%07".repeat(90))).collect();
        let text = listed(&message(&many));
        assert!(text.len() < 3_000 && text.contains(" more"), "{text}");
    }

    #[test]
    fn an_excerpt_is_bounded_text() {
        assert_eq!(excerpt(b"one\ntwo\n"), "one\ntwo");
        assert_eq!(excerpt(&[b'x'; 10_000]).len(), EXCERPT_BYTES);
        assert_eq!(excerpt(&[0xFF]), "\u{FFFD}");
    }
}
