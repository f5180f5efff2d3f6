//! Calls: what is special for direct methods, whose callers wait for an answer.
//!
//! Owns: the status and the payload for each way in which a call can end, the reasons to refuse a call at once, and
//! what differs for an action whose caller waits. Must not know: topics, request ids (`session`), how actions run.
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

use serde_json::json;

use crate::inbox::{Record, Settled, State};
use crate::message::{C2dMessage, Source};
use crate::outcome::OutcomeKind;
use crate::session::Receipt;

use super::in_hand::{MessageEnd, MessageEntry, Stage};
use super::lanes::ActionId;
use super::reason::PassedOver;
use crate::agent::desk::Desk;
use crate::agent::report;
use crate::agent::rulebook::RuleFacts;

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

/// Whether this is a call whose caller waits for the result of the action.
fn waits(message: &C2dMessage, settled: Settled) -> bool {
    is_call(message) && settled == Settled::AfterAction
}

fn is_call(message: &C2dMessage) -> bool {
    matches!(message.source(), Source::Method(_))
}

/// Whether a caller waits for the result of this action.
pub(super) fn has_caller(entry: &MessageEntry) -> bool {
    waits(&entry.message, entry.settled)
}

/// Why a call is not begun, if its caller cannot receive the answer any more.
pub(super) fn caller_gone(entry: &MessageEntry) -> Option<PassedOver> {
    let gone = has_caller(entry) && !entry.receipts.iter().any(Receipt::is_current);
    gone.then_some(PassedOver::CallerGone)
}

/// Whether an action runs again by itself if this process ends during it. A call does not: its caller is told that
/// the action was interrupted, and decides whether to call again.
pub(super) fn runs_again(entry: &MessageEntry) -> bool {
    entry.retry_on_crash && !has_caller(entry)
}

/// Why a call that an earlier process recorded is not run, because its caller is gone.
pub(crate) fn not_after_restart(record: &Record, message: &C2dMessage) -> Option<PassedOver> {
    // With attempts made, the crash came during an attempt or in the pause before the next one.
    let begun = record.state == State::Started || record.attempts > 0;
    let why = if begun { PassedOver::Crashed } else { PassedOver::CallerGone };
    waits(message, record.settled).then_some(why)
}

/// Settles a message, or answers a call.
pub(super) fn tell(end: &MessageEnd, receipt: Receipt) {
    if !receipt.is_call() {
        return receipt.settle(end.settlement);
    }
    let status = if end.guarded { TOO_MANY } else { status(end.outcome.outcome) };
    receipt.answer(status, report::as_json(&end.outcome).unwrap_or_default());
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

/// Completes a message that is recorded, or answers a call with 202.
pub(crate) fn accepted(receipt: Receipt, message: &C2dMessage) {
    if !receipt.is_call() {
        return receipt.complete();
    }
    let text =
        "accepted: recorded, and run from the inbox; see `c2d-agent inbox show`, or the outcome report";
    let payload = json!({ "messageId": message.message_id(), "outcome": "accepted", "text": text });
    receipt.answer(ACCEPTED, payload.to_string().into());
}

/// Tells a caller that its call was not taken.
pub(crate) fn turn_away(receipt: Receipt, why: &Away) {
    let (status, message) = (why.status(), why.to_string());
    tracing::warn!(status, reason = message, "refused a call");
    receipt.answer(status, json!({ "error": message }).to_string().into());
}

/// Why a call is refused at once.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Away {
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

/// Why a call cannot be taken now. `rule`: the one that it matches, if any. For an owner's rule, actions of the twin's
/// rules do not count, because they cannot delay it for long.
pub(super) fn away(desk: &Desk, receipt: &Receipt, rule: Option<&RuleFacts>) -> Option<Away> {
    if !receipt.is_call() {
        return None;
    }
    if let Some(trouble) = &desk.watch.board.trouble {
        return Some(Away::InboxTrouble(trouble.clone()));
    }
    let longest = desk.in_hand.lanes.longest(&rule?.lanes, rule?.longest_of_twin.is_some());
    (longest >= MOST_IN_LINE).then_some(Away::LaneFull)
}

/// The inbox has no room for this message. If it is a call, it is refused, and not in hand any more.
pub(super) fn refuse_without_room(desk: &mut Desk, id: ActionId) {
    let in_hand = &mut desk.in_hand;
    let passing = in_hand.passing(id).and_then(|passing| passing.message.as_ref());
    let receipts = if passing.is_some_and(is_call) {
        in_hand.remove_passing(id).map(|passing| passing.receipts)
    } else if in_hand.get(id).is_some_and(|entry| is_call(&entry.message)) {
        in_hand.lanes.leave(id);
        in_hand.remove(id).map(|entry| entry.receipts)
    } else {
        None
    };
    let receipts = receipts.unwrap_or_default();
    receipts.into_iter().for_each(|receipt| turn_away(receipt, &Away::InboxFull));
}

/// The inbox cannot record anything now. So calls whose action has not begun are answered at once, because their
/// callers need not wait. Their entries are passed over when their turn comes.
pub(super) fn turn_callers_away(desk: &mut Desk, trouble: &str) {
    let waits = |entry: &&mut MessageEntry| {
        let stage = matches!(entry.stage, Stage::Accepting { .. } | Stage::Waiting | Stage::Starting);
        has_caller(entry) && entry.attempts == 0 && stage
    };
    for receipt in desk.in_hand.entries_mut().filter(waits).flat_map(|entry| entry.receipts.drain(..)) {
        turn_away(receipt, &Away::InboxTrouble(trouble.to_owned()));
    }
}

/// Whether the payload of a call can be used. The error says why not.
pub(crate) fn check_payload(message: &C2dMessage) -> Result<(), String> {
    if !is_call(message) || message.body.is_empty() {
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
