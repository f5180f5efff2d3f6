//! Answers: what the caller of a direct method receives.
//!
//! Owns: the status and the payload for each way in which a call can end, and the reasons to refuse a call at once.
//! Must not know: topics, request ids (`session`), how actions run.
//!
//! | Status | When |
//! |---|---|
//! | 200 | the action was done; the payload is its outcome |
//! | 202 | the rule has `settle = "on-accept"`: recorded, and run from there; the payload has the id |
//! | 400 | the payload is not JSON, or a value of it must not be used |
//! | 404 | no rule matches it |
//! | 429 | too many actions wait in its lane, or a guard of its rule lets no more begin now |
//! | 500 | the action failed; the payload has the exit code and the beginning and the end of the output |
//! | 503 | the agent cannot record it, or is stopping |
//! | 504 | the rule's timeout was reached |

use bytes::Bytes;
use serde_json::json;

use crate::message::{C2dMessage, Source};
use crate::outcome::{OutcomeKind, OutcomeReport};
use crate::session::{Receipt, Settlement};

use super::super::Agent;
use super::in_hand::RuleFacts;

const OK: u16 = 200;
const ACCEPTED: u16 = 202;
const BAD_REQUEST: u16 = 400;
const NOT_FOUND: u16 = 404;
const TOO_MANY: u16 = 429;
const FAILED: u16 = 500;
const UNAVAILABLE: u16 = 503;
const TIMED_OUT: u16 = 504;

/// If this many actions are in a lane, a call is refused: its caller would give up before its turn came.
const MOST_IN_LINE: usize = 8;

/// How a message ended, for the sender or the caller.
#[derive(Debug, Clone)]
pub(in crate::agent) struct End {
    pub(in crate::agent) outcome: OutcomeReport,
    /// How to settle it, if it is a message.
    pub(in crate::agent) settlement: Settlement,
    /// The status of the answer, if it is a call.
    pub(in crate::agent) status: u16,
}

impl End {
    /// `guarded`: a guard of the rule refused the message.
    pub(in crate::agent) fn new(outcome: OutcomeReport, settlement: Settlement, guarded: bool) -> Self {
        let status = match outcome.outcome {
            OutcomeKind::Refused if guarded => TOO_MANY,
            kind => status(kind),
        };
        Self { outcome, settlement, status }
    }

    /// Settles a message, or answers a call.
    pub(in crate::agent) fn tell(&self, receipt: Receipt) {
        if receipt.is_call() {
            receipt.answer(self.status, payload(&self.outcome));
        } else {
            receipt.settle(self.settlement);
        }
    }
}

fn status(kind: OutcomeKind) -> u16 {
    match kind {
        OutcomeKind::Succeeded => OK,
        OutcomeKind::Refused | OutcomeKind::Undecodable => BAD_REQUEST,
        OutcomeKind::Unmatched => NOT_FOUND,
        OutcomeKind::Failed | OutcomeKind::Interrupted => FAILED,
        OutcomeKind::TimedOut => TIMED_OUT,
        // These do not happen to calls. A call has no id by which it could be a repeat.
        OutcomeKind::Expired | OutcomeKind::Dropped | OutcomeKind::Repeated => UNAVAILABLE,
    }
}

fn payload(outcome: &OutcomeReport) -> Bytes {
    match serde_json::to_vec(outcome) {
        Ok(payload) => payload.into(),
        Err(error) => {
            tracing::error!(%error, "an outcome could not be written as JSON");
            Bytes::new()
        }
    }
}

/// Completes a message that is recorded, or answers a call with 202.
pub(in crate::agent) fn accepted(receipt: Receipt, message: &C2dMessage) {
    if !receipt.is_call() {
        return receipt.complete();
    }
    let text =
        "accepted: recorded, and run from the inbox; see `c2d-agent inbox show`, or the outcome report";
    let payload = json!({ "messageId": message.message_id(), "outcome": "accepted", "text": text });
    receipt.answer(ACCEPTED, payload.to_string().into());
}

/// Tells a caller that its call was not taken.
pub(in crate::agent) fn turn_away(receipt: Receipt, why: &Away) {
    let (status, message) = (why.status(), why.to_string());
    tracing::warn!(status, reason = message, "refused a call");
    receipt.answer(status, json!({ "error": message }).to_string().into());
}

/// Why a call is refused at once.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(in crate::agent) enum Away {
    #[error("too many actions wait for their turn before this one ({MOST_IN_LINE}): call again later")]
    LaneFull,
    #[error("the inbox is full of messages that have not ended: call again later")]
    InboxFull,
    #[error("the inbox cannot record it ({0}): call again when that is fixed")]
    InboxTrouble(String),
}

impl Away {
    fn status(&self) -> u16 {
        match self {
            Self::LaneFull => TOO_MANY,
            Self::InboxFull | Self::InboxTrouble(_) => UNAVAILABLE,
        }
    }
}

impl Agent {
    /// Why a call that this rule matches cannot be taken now. For an owner's rule, actions of the twin's rules do not
    /// count, because they cannot delay it for long.
    pub(in crate::agent) fn no_room_for_call(&self, rule: &RuleFacts) -> Option<Away> {
        if let Some(trouble) = &self.board.trouble {
            return Some(Away::InboxTrouble(trouble.clone()));
        }
        let longest = self.lanes.longest(&rule.lanes, rule.longest_of_twin.is_some());
        (longest >= MOST_IN_LINE).then_some(Away::LaneFull)
    }

    /// The inbox cannot record anything now. So calls whose action has not begun are answered at once, because their
    /// callers need not wait. Their entries are passed over when their turn comes.
    pub(in crate::agent) fn turn_callers_away(&mut self, trouble: &str) {
        for receipt in self.hand.take_callers() {
            turn_away(receipt, &Away::InboxTrouble(trouble.to_owned()));
        }
    }

    /// Whether this agent sent the message itself, because a route leads its output back to its input.
    pub(in crate::agent) fn is_own(&self, message: &C2dMessage) -> bool {
        let Some(module) = self.config.identities.module().map(|module| &module.identity) else {
            return false;
        };
        let is = |name, own: Option<&str>| own.is_some() && message.property(name) == own;
        matches!(message.source(), Source::Input(_))
            && is(crate::message::CONNECTION_DEVICE_ID, Some(&module.device_id))
            && is(crate::message::CONNECTION_MODULE_ID, module.module_id.as_deref())
    }
}

/// Whether the payload of a call can be used. The error says why not.
pub(crate) fn check_payload(message: &C2dMessage) -> Result<(), String> {
    let is_call = matches!(message.source(), Source::Method(_));
    if !is_call || message.body.is_empty() {
        return Ok(());
    }
    let parsed = serde_json::from_slice::<serde::de::IgnoredAny>(&message.body);
    parsed.map(drop).map_err(|error| format!("the payload is not JSON: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_empty_payload_or_json_is_a_payload() {
        let call = |payload: &'static str| check_payload(&C2dMessage::of_method("m", "id", payload.into()));
        for good in ["", "null", "{}", "1", "\"text\"", " [1, 2] "] {
            assert_eq!(call(good), Ok(()), "{good}");
        }
        for bad in ["{", "text", "{} {}", " "] {
            assert!(call(bad).is_err_and(|why| why.starts_with("the payload is not JSON: ")), "{bad}");
        }
        let message = C2dMessage { body: "text".into(), ..C2dMessage::default() };
        assert_eq!(check_payload(&message), Ok(()), "a message may hold anything");
    }
}
