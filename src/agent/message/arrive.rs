//! Arrival: what an arrived message is, and what the inbox's verdict means for it.
//!
//! Owns: decoding errors, the choice of the rule, the plan; what happens to a message that came before, or that the
//! inbox has no room for. Must not know: how actions run and end (`act.rs`, `end.rs`).

use std::sync::Arc;
use std::time::SystemTime;

use crate::inbox::{Arrival, Intent, Number, Op, Settled, Start, Verdict};
use crate::message::{C2dMessage, CONNECTION_DEVICE_ID, CONNECTION_MODULE_ID, Source};
use crate::rules::Settle;
use crate::session::{Delivery, Receipt};

use super::in_hand::{HeldMessage, MessageEntry, Origin, Passing, Stage};
use super::lanes::ActionId;
use super::life::Since;
use super::reason::PassedOver;
use super::{act, calls, end};
use crate::agent::desk::Desk;
use crate::agent::report;
use crate::agent::rulebook::Rulebook;
use crate::agent::sessions::Role;

/// An entry with its plan, or why nothing is done: the rule that matched, if any, and the reason.
type Planned = Result<Box<MessageEntry>, (Option<String>, PassedOver)>;

/// Takes a delivery in: plans it, and offers it to the inbox together with the plan.
pub(crate) fn arrived(desk: &mut Desk, role: Role, delivery: Delivery) {
    let Delivery { message, origin: from, connection, redelivered, sequence, arrived, receipt } = delivery;
    // A hub that the device has left may still have sent something. The inbox would take it for a message of the new hub.
    let is_of_another = role == Role::Device && from.is_some() && from != desk.origin;
    if is_of_another || !receipt.is_current() {
        // Its connection has closed or soon does, so the hub sends the message again on the next one.
        receipt.leave();
        return;
    }
    let origin = Origin { from, connection, redelivered, sequence };
    let (received, since) = (desk.now(), Since::Delivered(arrived));
    let id = desk.in_hand.next_id();
    let message = match message {
        Ok(message) => message,
        Err(error) => {
            let outcome = PassedOver::Undecodable(error.to_string()).report(None, None, 0, received);
            let (receipts, message) = (vec![receipt], None);
            let passing = Passing { number: None, role, receipts, message, origin, received, outcome };
            return record_as_ended(desk, id, passing);
        }
    };
    if is_own(&desk.rules, &message) {
        // It is not even recorded: the report of its outcome would come back as the next message.
        report::log_own(&message, &mut desk.watch.own_told);
        return receipt.complete();
    }
    desk.reports.received(message.message_id(), received);
    desk.watch.received(&message, since, received);
    match plan(&desk.rules, message.clone(), since, received) {
        Ok(mut entry) => {
            if let Some(away) = calls::away(desk, &receipt, Some(&entry.rule)) {
                return calls::turn_away(receipt, &away);
            }
            entry.origin = origin;
            entry.receipts.push(receipt);
            wait_for_verdict(desk, id, entry, message, received);
        }
        Err((rule, why)) => {
            if let Some(away) = calls::away(desk, &receipt, None) {
                return calls::turn_away(receipt, &away);
            }
            let outcome = why.report(message.message_id(), rule.as_deref(), 0, received);
            let (receipts, message) = (vec![receipt], Some(message));
            let passing = Passing { number: None, role, receipts, message, origin, received, outcome };
            record_as_ended(desk, id, passing);
        }
    }
}

/// Whether this agent sent the message itself, because a route leads its output back to its input.
fn is_own(rules: &Rulebook, message: &C2dMessage) -> bool {
    let Some(module) = rules.config().identities.module().map(|module| &module.identity) else {
        return false;
    };
    let is = |name, own: Option<&str>| own.is_some() && message.property(name) == own;
    matches!(message.source(), Source::Input(_))
        && is(CONNECTION_DEVICE_ID, Some(&module.device_id))
        && is(CONNECTION_MODULE_ID, module.module_id.as_deref())
}

/// Finds the rule that matches a message, and makes a plan from it.
pub(crate) fn plan(rules: &Rulebook, message: C2dMessage, since: Since, now: SystemTime) -> Planned {
    calls::check_payload(&message).map_err(|why| (None, PassedOver::Undecodable(why)))?;
    let rule = rules.config().rules.match_message(&message);
    if let Some(expired) = since.expired(&message, now) {
        return Err((rule.map(|rule| rule.name().to_owned()), expired));
    }
    let rule = rule.ok_or((None, PassedOver::Unmatched))?;
    let refused = |why: String| (Some(rule.name().to_owned()), PassedOver::Refused(why));
    let plan = rule
        .plan(&message, &rules.config().identities.first().device_id)
        .map_err(|error| refused(error.to_string()))?;
    let facts = rules.facts(Some(rule.name())).ok_or_else(|| refused("the rule is gone".to_owned()))?;
    let settled = match facts.policy.settle {
        Settle::AfterAction => Settled::AfterAction,
        Settle::OnAccept => Settled::OnAccept,
    };
    Ok(Box::new(MessageEntry::new(message, since, Arc::clone(facts), plan, settled)))
}

/// Puts a message in line in the lanes of its rule. True if its turn has come at once.
pub(crate) fn line_up(desk: &mut Desk, id: ActionId, entry: &MessageEntry) -> bool {
    let rule = &entry.rule;
    desk.in_hand.lanes.enter(id, &rule.lanes, rule.slot, rule.whose(entry.entered))
}

/// Puts a message with an action in line, and offers it to the inbox.
fn wait_for_verdict(
    desk: &mut Desk,
    id: ActionId,
    mut entry: Box<MessageEntry>,
    message: C2dMessage,
    received: SystemTime,
) {
    let Origin { connection, redelivered, sequence, .. } = entry.origin;
    let (settled, rule) = (entry.settled, Arc::clone(&entry.rule));
    entry.turn = line_up(desk, id, &entry);
    let guarded = desk.in_hand.guards.check(&rule.name, &rule.policy, received);
    // If a guard refuses, the message only waits here. `begin` asks the guard again when the inbox knows that the
    // message is new.
    let starting = entry.turn && guarded.is_ok();
    let intent = if starting {
        Intent::Start(Start { at: received, retry_on_crash: calls::runs_again(&entry) })
    } else {
        Intent::Wait
    };
    entry.stage = Stage::Accepting { starting };
    desk.in_hand.insert(id, entry);
    let (message, rule) = (Some(message), Some(rule.name.clone()));
    let arrival =
        Arrival { ticket: id.0, message, connection, redelivered, sequence, received, rule, settled, intent };
    desk.inbox.submit(Op::Accept(Box::new(arrival)));
}

/// Offers a message to the inbox for which there is nothing to do.
fn record_as_ended(desk: &mut Desk, id: ActionId, passing: Passing) {
    let Origin { connection, redelivered, sequence, .. } = passing.origin;
    let (message, received) = (passing.message.clone(), passing.received);
    let (rule, outcome) = (passing.outcome.rule.clone(), Box::new(passing.outcome.clone()));
    let report = desk.rules.telemetry_report(&outcome);
    let (settled, intent) = (Settled::AfterAction, Intent::End { outcome, report });
    desk.in_hand.insert_passing(id, passing);
    let arrival =
        Arrival { ticket: id.0, message, connection, redelivered, sequence, received, rule, settled, intent };
    desk.inbox.submit(Op::Accept(Box::new(arrival)));
}

/// The inbox has looked at a message, and its verdict is on disk.
pub(super) fn verdict(desk: &mut Desk, id: ActionId, verdict: Verdict) {
    if let Some(passing) = desk.in_hand.remove_passing(id) {
        return verdict_without_action(desk, id, passing, verdict);
    }
    match verdict {
        Verdict::New(number) => accepted(desk, id, number),
        Verdict::Ended(past) => {
            desk.in_hand.lanes.leave(id);
            let Some(mut entry) = desk.in_hand.remove(id) else { return };
            let (rule, role) = (Some(entry.rule.name.as_str()), desk.rules.role_of(&entry.message));
            let settlement = end::settlement_again(desk, past, rule, role);
            desk.watch.ended_before(rule, entry.message.message_id());
            (entry.settled, entry.number) = (past.settled, Some(past.number));
            entry.settle(settlement);
        }
        Verdict::Unfinished(number) => came_again(desk, id, number),
        Verdict::Full => turn_away(desk, id),
    }
}

/// Like [`verdict`], for a message for which there is nothing to do.
fn verdict_without_action(desk: &mut Desk, id: ActionId, passing: Passing, verdict: Verdict) {
    match verdict {
        Verdict::New(number) => end::ended_without_action(desk, passing, number),
        Verdict::Ended(past) => {
            let Passing { receipts, outcome, role, .. } = passing;
            let rule = outcome.rule.as_deref();
            desk.watch.ended_before(rule, outcome.message_id.as_deref());
            let settlement = end::settlement_again(desk, past, rule, role);
            receipts.into_iter().for_each(|receipt| receipt.marked(past.number.0).settle(settlement));
        }
        // The message could be run when it came first. Since then it has expired, or its rule was removed.
        Verdict::Unfinished(number) => match desk.in_hand.id_of(number) {
            // Its end is being recorded. Asked after that, the inbox answers that the message has ended.
            Some(first) if desk.in_hand.passing(first).is_some() => record_as_ended(desk, id, passing),
            Some(first) => give_receipts(desk, first, passing.receipts),
            None => {
                let report = desk.rules.telemetry_report(&passing.outcome);
                let outcome = Box::new(passing.outcome.clone());
                desk.in_hand.held.remove(&number);
                desk.in_hand.insert_passing(id, Passing { number: Some(number), ..passing });
                desk.inbox.submit(Op::End { number, outcome, abandoned: false, report });
            }
        },
        Verdict::Full => {
            desk.in_hand.insert_passing(id, passing);
            turn_away(desk, id);
        }
    }
}

fn accepted(desk: &mut Desk, id: ActionId, number: Number) {
    desk.in_hand.set_number(id, number);
    let Some(entry) = desk.in_hand.get(id) else { return };
    complete_on_accept(entry);
    let starting = matches!(entry.stage, Stage::Accepting { starting: true });
    entry.stage = Stage::Waiting;
    if desk.in_hand.stopping {
        // It begins after the next start: from the inbox, or when the hub sends it again.
        if starting {
            desk.inbox.submit(Op::Again { number, made: false });
        }
        end::give_back(desk, id);
    } else if starting {
        act::begin_now(desk, id);
    } else {
        act::go_on(desk, id);
    }
}

/// Completes all deliveries of a recorded message at the hub, if its rule says so.
pub(crate) fn complete_on_accept(entry: &mut MessageEntry) {
    if entry.settled == Settled::OnAccept {
        let receipts = entry.take_receipts();
        receipts.into_iter().for_each(|receipt| calls::accepted(receipt, &entry.message));
    }
}

/// The hub has sent a message again that has not ended.
fn came_again(desk: &mut Desk, id: ActionId, number: Number) {
    match desk.in_hand.id_of(number) {
        Some(first) if desk.in_hand.passing(first).is_none() => {
            desk.in_hand.lanes.leave(id);
            let Some(again) = desk.in_hand.remove(id) else { return };
            // The hub checked the expiry again at this delivery, so the time in hand counts from here.
            desk.in_hand.get(first).into_iter().for_each(|entry| entry.since = again.since);
            return give_receipts(desk, first, again.receipts);
        }
        _ if desk.in_hand.stopping => return end::give_back(desk, id),
        // Its end is being recorded. Asked after that, the inbox answers that the message has ended.
        Some(_) => return desk.in_hand.turn_away(id),
        None => {}
    }
    // An earlier agent accepted it, but did not finish it.
    let held = desk.in_hand.held.remove(&number);
    desk.in_hand.set_number(id, number);
    let Some(entry) = desk.in_hand.get(id) else { return };
    if let Some(HeldMessage { record, .. }) = held {
        (entry.attempts, entry.settled) = (record.attempts, record.settled);
    }
    entry.stage = Stage::Waiting;
    act::go_on(desk, id);
}

/// A message in hand was delivered again.
fn give_receipts(desk: &mut Desk, first: ActionId, receipts: Vec<Receipt>) {
    let Some(entry) = desk.in_hand.get(first) else { return };
    let message_id = entry.message.message_id();
    tracing::debug!(message_id, "a message that is already being handled came again");
    receipts.into_iter().for_each(|receipt| entry.add_receipt(receipt));
    complete_on_accept(entry);
}

/// The inbox is full, and logs that. The message stays at the hub, and in hand, until there is room. A call is
/// refused.
fn turn_away(desk: &mut Desk, id: ActionId) {
    calls::refuse_without_room(desk, id);
    desk.in_hand.turn_away(id);
}

/// Offers the messages again that were turned away, unless their connection has closed.
pub(crate) fn offer_again(desk: &mut Desk) {
    for id in desk.in_hand.take_turned_away() {
        if let Some(passing) = desk.in_hand.remove_passing(id) {
            if passing.receipts.iter().any(Receipt::is_current) {
                record_as_ended(desk, id, passing);
            }
            continue;
        }
        let Some(mut entry) = desk.in_hand.remove(id) else { continue };
        desk.in_hand.lanes.leave(id);
        entry.receipts.retain(Receipt::is_current);
        if let (Some(receipt), Since::Delivered(at)) = (entry.receipts.pop(), entry.since) {
            let role = desk.rules.role_of(&entry.message);
            let Origin { from: origin, connection, redelivered, sequence } = entry.origin;
            let message = Ok(entry.message);
            let again = Delivery { message, origin, connection, redelivered, sequence, arrived: at, receipt };
            arrived(desk, role, again);
        }
    }
}
