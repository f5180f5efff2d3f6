//! Recovery: what to do with the messages that the inbox held when the agent started.
//!
//! Owns: what happens to each message that had not ended, and what the guards and pins need to know. Must not know:
//! files.
//!
//! | Recorded as | Then |
//! |---|---|
//! | started, and its rule gives up after a crash | a dead letter, interrupted: it is unknown how far it came |
//! | started, and its rule runs again | run again |
//! | a direct method, not answered | begun: a dead letter, interrupted; not begun: expired; its caller is gone |
//! | accepted, completed at the hub (`on-accept`) | run |
//! | accepted, still at the hub (`after-action`) | the hub sends it again; then it is run |
//! | accepted, and its hub is not the device's any more | run |
//!
//! The present rules decide, as for a message that arrives. A message that has expired since it was received is
//! recorded as expired.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::inbox::{Number, Op, Opened, Record, Settled, State, Unfinished, from_millis};
use crate::message::format_time;

use super::desk::Desk;
use super::message::in_hand::HeldMessage;
use super::message::life::Since;
use super::message::reason::PassedOver;
use super::message::{act, arrive, calls, end};
use super::report;

/// The hub keeps no message longer. Source: wire reference 5.1.
const LONGEST_LIFE: Duration = Duration::from_secs(2 * 24 * 3600);
/// How often to look at messages that the hub should send again.
const HELD_LOOK: Duration = Duration::from_secs(60);
/// How long the hub may take to send them after it is connected.
const HELD_PATIENCE: Duration = Duration::from_secs(5);

/// Decides about everything that the inbox held when the agent started.
pub(super) fn recover(desk: &mut Desk, opened: Opened) {
    desk.in_hand.opened = true;
    // A message that is resumed below may begin at once, so the guards need the earlier starts first.
    for (rule, at) in &opened.starts {
        if let Some(facts) = desk.rules.facts(Some(rule)) {
            desk.in_hand.guards.begin(rule, &facts.policy, *at);
        }
    }
    desk.reports.recovered(&opened, &desk.rules);
    let board = &mut desk.watch.board;
    (board.trouble, board.last_received, board.counts) = (None, opened.last_received, opened.counts);
    let count = opened.unfinished.len();
    for unfinished in opened.unfinished {
        let Unfinished { record, message } = &unfinished;
        // The action may have done half of its work, and the rule forbids another run.
        let crashed = record.state == State::Started && !record.retry_on_crash;
        let crashed = crashed.then_some(PassedOver::Crashed);
        if let Some(why) = crashed.or_else(|| calls::not_after_restart(record, message)) {
            end_record(desk, record, &why);
        } else if record.state == State::Started || record.settled == Settled::OnAccept {
            // Either another run is harmless, or the message is completed at the hub and only the inbox has it.
            resume(desk, unfinished);
        } else {
            let held = held(desk, unfinished);
            desk.in_hand.held.insert(held.record.number, held);
        }
    }
    expect_held(desk);
    if count > 0 {
        let held = desk.in_hand.held.len();
        tracing::info!(messages = count, awaited_from_the_hub = held, "recovered messages from the inbox");
    }
}

/// The message is still at the hub, which sends it again.
fn held(desk: &Desk, Unfinished { record, message }: Unfinished) -> HeldMessage {
    // If the recorded time lies in the future, that clock was wrong, so count from now. If the message came expired,
    // that clock was wrong, too, so do not use the expiry.
    let received = from_millis(record.received_ms);
    let expiry = message.expiry().filter(|expiry| received < *expiry);
    let until = expiry.unwrap_or(received.min(desk.now()) + LONGEST_LIFE);
    HeldMessage { role: desk.rules.role_of(&message), record, until }
}

/// The hub is about to send the messages again that it still has.
pub(super) fn expect_held(desk: &mut Desk) {
    desk.in_hand.held_look = Some(Instant::now() + HELD_PATIENCE);
}

/// Records messages as expired that the hub should have sent again but no longer has. It does so only while the hub
/// is connected and has not sent them. Before that it would gain nothing, and a wrong clock at the start could end a
/// message that is still valid.
pub(super) fn look_at_held(desk: &mut Desk) {
    let now = desk.now();
    let over = |(number, held): (&Number, &HeldMessage)| {
        (held.until < now && desk.watch.board.had_its_chance(held.role)).then_some(*number)
    };
    for number in desk.in_hand.held.iter().filter_map(over).collect::<Vec<_>>() {
        let Some(HeldMessage { record, until, .. }) = desk.in_hand.held.remove(&number) else { continue };
        let [expiry, now] = [until, now].map(format_time);
        end_record(desk, &record, &PassedOver::Expired { expiry, now });
    }
    desk.in_hand.held_look = (!desk.in_hand.held.is_empty()).then(|| Instant::now() + HELD_LOOK);
}

/// Tells the inbox from which hub, and as which device, C2D messages come from now on. Call it at the start, and with all other
/// terms of the sessions. Nothing happens while the device has no hub, or if it is the same.
pub(super) fn tell_origin(desk: &mut Desk) {
    let config = desk.rules.config();
    let has_hub = config.provisioning.as_ref().is_none_or(|provisioning| provisioning.assigned.is_some());
    let Some(device) = config.identities.device().filter(|_| has_hub) else { return };
    let origin = device.origin();
    if desk.origin.as_deref() != Some(origin.as_str()) {
        let origin = desk.origin.insert(origin.into());
        desk.inbox.submit(Op::Origin(Arc::clone(origin)));
    }
}

/// The device has another hub than before, and the one before does not send again what it still has. So only the inbox has
/// these messages now, and they are finished from there.
pub(super) fn only_here(desk: &mut Desk, left: Vec<Unfinished>) {
    if !left.is_empty() {
        tracing::info!(messages = left.len(), "what the hub before had is finished from the inbox");
    }
    for unfinished in left {
        let number = unfinished.record.number;
        if let Some(id) = desk.in_hand.id_of(number) {
            if let Some(entry) = desk.in_hand.get(id) {
                entry.settled = Settled::OnAccept;
                arrive::complete_on_accept(entry);
            }
        } else if !desk.in_hand.stopping && desk.in_hand.held.remove(&number).is_some() {
            resume(desk, unfinished);
        }
    }
}

/// Records that an action was interrupted, or never began.
fn end_record(desk: &mut Desk, record: &Record, why: &PassedOver) {
    let Record { number, message_id, rule, attempts, .. } = record;
    let outcome = why.report(message_id.as_deref(), rule.as_deref(), *attempts, desk.now());
    report::log_passed_over(&outcome, None, &desk.rules.config().rules);
    let report = desk.rules.telemetry_report(&outcome);
    end::count_and_report(desk, &outcome);
    desk.inbox.submit(Op::End { number: *number, outcome: Box::new(outcome), abandoned: false, report });
}

/// Takes up a message that only the inbox has, or that may be run again.
pub(super) fn resume(desk: &mut Desk, Unfinished { record, message }: Unfinished) {
    let since = Since::Recorded(from_millis(record.received_ms));
    match arrive::plan(&desk.rules, message, since, desk.now()) {
        Ok(mut entry) => {
            let id = desk.in_hand.next_id();
            entry.number = Some(record.number);
            entry.settled = record.settled;
            // A dead letter that is run again gets all its attempts.
            entry.attempts = if record.outcome.is_some() { 0 } else { record.attempts };
            entry.turn = arrive::line_up(desk, id, &entry);
            let turn = entry.turn;
            desk.in_hand.insert(id, entry);
            if turn {
                act::begin(desk, id);
            }
        }
        Err((rule, why)) => {
            // Only the inbox has this message, so it must not be lost together with its rule.
            let why = if why == PassedOver::Unmatched { PassedOver::no_rule_any_more() } else { why };
            end_record(desk, &Record { rule: rule.or_else(|| record.rule.clone()), ..record }, &why);
        }
    }
}
