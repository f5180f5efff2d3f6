//! Answers: what the caller of a direct method hears.
//!
//! Owns: the status and the payload for each way in which a call can end, and what keeps a call from being taken at all.
//! Must not know: topics, request ids (`session`), how actions run.
//!
//! | Status | When |
//! |---|---|
//! | 200 | the action was done; the payload is its outcome |
//! | 202 | the rule has `settle = "on-accept"`: recorded, and run from there; the payload has the id |
//! | 400 | the payload is not JSON, or a value of it must not be used |
//! | 404 | no rule takes it |
//! | 429 | too many wait in its lane, or a guard of its rule lets no more begin now |
//! | 500 | the action failed; the payload has the exit code and the beginning and the end of the output |
//! | 503 | the agent cannot record it, or is ending |
//! | 504 | the rule's time was up |

use bytes::Bytes;
use serde_json::json;

use crate::message::{C2dMessage, Source};
use crate::outcome::{OutcomeKind, OutcomeReport};
use crate::session::{Receipt, Settlement};

use super::Agent;
use super::hand::RuleFacts;

const OK: u16 = 200;
const ACCEPTED: u16 = 202;
const BAD_REQUEST: u16 = 400;
const NOT_FOUND: u16 = 404;
const TOO_MANY: u16 = 429;
const FAILED: u16 = 500;
const UNAVAILABLE: u16 = 503;
const TIMED_OUT: u16 = 504;

/// Actions in a lane behind which no call lines up: its caller would have given up before its turn came.
const MOST_IN_LINE: usize = 8;

/// How a message ended, for whoever delivered it.
#[derive(Debug, Clone)]
pub(super) struct End {
    pub(super) outcome: OutcomeReport,
    /// For a message.
    pub(super) settlement: Settlement,
    /// For a call.
    pub(super) status: u16,
}

impl End {
    /// `guarded`: a guard of the rule refused it.
    pub(super) fn new(outcome: OutcomeReport, settlement: Settlement, guarded: bool) -> Self {
        let status = match outcome.outcome {
            OutcomeKind::Refused if guarded => TOO_MANY,
            kind => status(kind),
        };
        Self { outcome, settlement, status }
    }

    /// Settles a message, or answers a call.
    pub(super) fn tell(&self, receipt: Receipt) {
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
        // A call is never known by the id of another one.
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

/// Completes a message that is recorded, or tells a caller so.
pub(super) fn accepted(receipt: Receipt, message: &C2dMessage) {
    if !receipt.is_call() {
        return receipt.complete();
    }
    let text =
        "accepted: recorded, and run from the inbox; see `c2d-agent inbox show`, or the outcome report";
    let payload = json!({ "messageId": message.message_id(), "outcome": "accepted", "text": text });
    receipt.answer(ACCEPTED, payload.to_string().into());
}

/// Tells a caller that its call was not taken.
pub(super) fn turn_away(receipt: Receipt, why: &Away) {
    let (status, message) = (why.status(), why.to_string());
    tracing::warn!(status, reason = message, "refused a call");
    receipt.answer(status, json!({ "error": message }).to_string().into());
}

/// Why a call is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Away {
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
    /// Why a call that this rule takes is not to be taken now. One for the owner's rule is not turned away for those of the twin's,
    /// which cannot hold it up for long.
    pub(super) fn no_room_for_call(&self, rule: &RuleFacts) -> Option<Away> {
        if let Some(trouble) = &self.board.trouble {
            return Some(Away::InboxTrouble(trouble.clone()));
        }
        let longest = self.lanes.longest(&rule.lanes, rule.longest_of_twin.is_some());
        (longest >= MOST_IN_LINE).then_some(Away::LaneFull)
    }

    /// The inbox cannot record anything now: whoever called what has not begun need not wait for that. What is in hand of such
    /// calls is passed over when its turn comes.
    pub(super) fn turn_callers_away(&mut self, trouble: &str) {
        for receipt in self.hand.take_callers() {
            turn_away(receipt, &Away::InboxTrouble(trouble.to_owned()));
        }
    }

    /// Whether this agent itself sent a message: a route leads its output back to its input.
    pub(super) fn is_own(&self, message: &C2dMessage) -> bool {
        let Some(module) = self.config.identities.module().map(|module| &module.identity) else {
            return false;
        };
        let is = |name, own: Option<&str>| own.is_some() && message.property(name) == own;
        matches!(message.source(), Source::Input(_))
            && is(crate::message::CONNECTION_DEVICE_ID, Some(&module.device_id))
            && is(crate::message::CONNECTION_MODULE_ID, module.module_id.as_deref())
    }
}

/// Whether the payload of a call can be used; the error says why not.
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
