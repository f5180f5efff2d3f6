//! The end of a message: its record, its settlement, and who learns of it.
//!
//! Owns: how an action's outcome becomes an [`OutcomeReport`], how a message is settled that ended so, and what is
//! given back to the hub. Must not know: how actions run (`act.rs`).
//!
//! No message is completed before the inbox has the end on disk.

use std::time::SystemTime;

use crate::action::{Outcome, OutcomeResult};
use crate::inbox::{Number, Op, Past, Settled};
use crate::message::format_time;
use crate::outcome::{OutcomeKind, OutcomeReport};
use crate::rules::{OnFailure, Unmatched};
use crate::session::{Receipt, Settlement};

use super::calls;
use super::in_hand::{InHand, MessageEnd, MessageEntry, Passing, Stage};
use super::lanes::ActionId;
use super::reason::PassedOver;
use crate::agent::desk::Desk;
use crate::agent::report::{self, millis};
use crate::agent::sessions::Role;

/// Ends a message in hand without an action.
pub(crate) fn pass_over(desk: &mut Desk, id: ActionId, why: &PassedOver) {
    let now = desk.now();
    let Some(entry) = desk.in_hand.get(id) else { return };
    let outcome = why.report(entry.message.message_id(), Some(&entry.rule.name), entry.attempts, now);
    report::log_passed_over(&outcome, Some(&entry.message), &desk.rules.config().rules);
    end(desk, id, outcome, matches!(why, PassedOver::Guarded(_)));
}

/// Hands the end of a message to the inbox. Those behind it in its lanes move up. `guarded`: a guard of its rule
/// refused it.
pub(super) fn end(desk: &mut Desk, id: ActionId, outcome: OutcomeReport, guarded: bool) {
    let report = desk.rules.telemetry_report(&outcome);
    let Some(entry) = desk.in_hand.get(id) else { return };
    let role = desk.rules.role_of(&entry.message);
    let settlement = settlement_of(desk, &outcome, role);
    let Some(entry) = desk.in_hand.get(id) else { return };
    entry.stage = Stage::Ending;
    entry.end = Some(MessageEnd { outcome: outcome.clone(), settlement, guarded });
    let abandoned = settlement == Settlement::Abandon && entry.settled == Settled::AfterAction;
    let Some(number) = entry.number else { return };
    desk.inbox.submit(Op::End { number, outcome: Box::new(outcome), abandoned, report });
    desk.in_hand.lanes.leave(id);
}

/// Gives up a message for this process. It begins at the next start, from the inbox or from the hub.
pub(super) fn give_back(desk: &mut Desk, id: ActionId) {
    desk.in_hand.lanes.leave(id);
    if let Some(entry) = desk.in_hand.remove(id) {
        entry.receipts.into_iter().for_each(Receipt::leave);
    }
}

/// Gives back a message that has another attempt before it. A call that was tried ends as its last attempt did.
pub(super) fn give_back_or_end(desk: &mut Desk, id: ActionId) {
    match desk.in_hand.get(id).and_then(|entry| entry.failed.take()) {
        Some(outcome) => end(desk, id, outcome, false),
        None => give_back(desk, id),
    }
}

/// At shutdown, what has not begun stays where it is, in the inbox or at the hub. If the inbox has still to answer
/// for a message, it is handled when the answer comes.
pub(crate) fn give_back_what_has_not_begun(desk: &mut Desk) {
    for id in desk.in_hand.waiting() {
        give_back_or_end(desk, id);
    }
    for id in desk.in_hand.take_turned_away() {
        give_back(desk, id);
        let passing = desk.in_hand.remove_passing(id).into_iter();
        passing.flat_map(|passing| passing.receipts).for_each(Receipt::leave);
    }
}

/// Gives back everything at the end, so that the hub sends it again. Calls do not come again, so their callers are
/// told how they ended, even if that is not recorded.
pub(crate) fn give_back_all(in_hand: InHand) {
    for (end, receipts) in in_hand.into_rest() {
        for receipt in receipts {
            match &end {
                Some(end) if receipt.is_call() => calls::tell(end, receipt),
                _ => receipt.leave(),
            }
        }
    }
}

/// The end of a message is on disk.
pub(super) fn ended(desk: &mut Desk, number: Number) {
    let Some(id) = desk.in_hand.id_of(number) else { return };
    if let Some(passing) = desk.in_hand.remove_passing(id) {
        return ended_without_action(desk, passing, number);
    }
    desk.in_hand.lanes.leave(id);
    let Some(mut entry) = desk.in_hand.remove(id) else { return };
    let Some(mut end) = entry.end.take() else {
        // A client of the control socket dropped it.
        return dropped(desk, &mut entry);
    };
    end.settlement = entry.settlement(end.settlement);
    entry.take_receipts().into_iter().for_each(|receipt| calls::tell(&end, receipt));
    count_and_report(desk, &end.outcome);
}

/// The end of a message that no action ran for is on disk.
pub(super) fn ended_without_action(desk: &mut Desk, passing: Passing, number: Number) {
    let Passing { receipts, message, outcome, role, .. } = passing;
    report::log_passed_over(&outcome, message.as_ref(), &desk.rules.config().rules);
    count_and_report(desk, &outcome);
    let settlement = settlement_of(desk, &outcome, role);
    let end = MessageEnd { outcome, settlement, guarded: false };
    receipts.into_iter().for_each(|receipt| calls::tell(&end, receipt.marked(number.0)));
}

/// Settles a message that a person has dropped.
pub(crate) fn dropped(desk: &Desk, entry: &mut MessageEntry) {
    let role = desk.rules.role_of(&entry.message);
    entry.settle(settlement(desk, OutcomeKind::Dropped, Some(&entry.rule.name), role));
}

/// Counts and reports that a message has ended, now that it is on disk.
pub(crate) fn count_and_report(desk: &mut Desk, outcome: &OutcomeReport) {
    desk.watch.ended(outcome);
    desk.reports.ended(outcome, desk.rules.reports_of(outcome));
}

fn settlement_of(desk: &Desk, outcome: &OutcomeReport, role: Role) -> Settlement {
    settlement(desk, outcome.outcome, outcome.rule.as_deref(), role)
}

/// How to settle a message that ended this way, by its present rule and by what the transport can do.
fn settlement(desk: &Desk, kind: OutcomeKind, rule: Option<&str>, role: Role) -> Settlement {
    let settlement = wanted_settlement(kind, desk.rules.on_failure(rule), desk.rules.config().unmatched);
    if desk.sessions.can_settle(role, settlement) { settlement } else { Settlement::Complete }
}

/// How to settle a message that came again after it had ended.
pub(super) fn settlement_again(desk: &Desk, past: Past, rule: Option<&str>, role: Role) -> Settlement {
    match (past.settled, past.outcome) {
        (Settled::OnAccept, _) | (_, None) => Settlement::Complete,
        // It was not abandoned the first time, or it would run again now. So it is not abandoned now, either.
        (Settled::AfterAction, Some(kind)) => match settlement(desk, kind, rule, role) {
            Settlement::Abandon => Settlement::Reject,
            settlement => settlement,
        },
    }
}

/// The report of an action that ran.
pub(super) fn of_action(
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
fn wanted_settlement(kind: OutcomeKind, on_failure: OnFailure, unmatched: Unmatched) -> Settlement {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_action_that_failed_is_given_back() {
        let of = |kind, on_failure| wanted_settlement(kind, on_failure, Unmatched::Complete);
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
            let rejected = wanted_settlement(OutcomeKind::Unmatched, on_failure, Unmatched::Reject);
            assert_eq!(rejected, Settlement::Reject);
        }
    }
}
