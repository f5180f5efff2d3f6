//! Acting on a message: from its turn to the end of its last attempt.
//!
//! Owns: starts, attempts and the pauses between them. Must not know: how messages arrive (`arrive.rs`), pins,
//! processes.
//!
//! No action starts before the inbox has the start on disk. The exception: the rule says that another run is harmless
//! (`on_crash = "retry"`), and has no guard that must know of the start after a restart.

use std::future::ready;
use std::sync::Arc;

use futures_util::FutureExt as _;
use humantime::format_duration;
use tokio::time::Instant;

use crate::action::{Outcome, OutcomeResult};
use crate::inbox::{Number, Op, Start};
use crate::rules::{Plan, TWIN_WAIT};

use super::in_hand::{RunResult, Running, Stage};
use super::lanes::ActionId;
use super::reason::PassedOver;
use super::{calls, end};
use crate::agent::desk::Desk;
use crate::agent::report;

/// Begins the messages whose turn has come: they are at the front of their lanes.
pub(crate) fn begin_those_in_turn(desk: &mut Desk) {
    while let Some(id) = desk.in_hand.lanes.next() {
        let Some(entry) = desk.in_hand.get(id) else { continue };
        entry.turn = true;
        if entry.stage == Stage::Waiting && !desk.in_hand.stopping {
            begin(desk, id);
        }
    }
}

/// Begins an attempt. If needed, the inbox records the start first.
pub(crate) fn begin(desk: &mut Desk, id: ActionId) {
    let now = desk.now();
    let Some(entry) = desk.in_hand.get(id) else { return };
    let Some(number) = entry.number else { return };
    if entry.attempts == 0 {
        let rule = Arc::clone(&entry.rule);
        let (expired, gone) = (entry.since.expired(&entry.message, now), calls::caller_gone(entry));
        let guarded = desk.in_hand.guards.check(&rule.name, &rule.policy, now);
        if let Some(why) = expired.or(guarded.err().map(PassedOver::Guarded)).or(gone) {
            return end::pass_over(desk, id, &why);
        }
    }
    let Some(entry) = desk.in_hand.get(id) else { return };
    let retry_on_crash = calls::runs_again(entry);
    if retry_on_crash && !entry.rule.policy.is_guarded() {
        return begin_now(desk, id);
    }
    entry.stage = Stage::Starting;
    desk.inbox.submit(Op::Start { number, start: Start { at: now, retry_on_crash } });
}

/// The inbox has recorded the start of an attempt.
pub(super) fn start_recorded(desk: &mut Desk, number: Number) {
    let Some(id) = desk.in_hand.id_of(number) else { return };
    if desk.in_hand.stopping {
        // No action began, so the record goes back to what it was.
        desk.inbox.submit(Op::Again { number, made: false });
        end::give_back_or_end(desk, id);
    } else {
        begin_now(desk, id);
    }
}

/// Begins an attempt at once.
pub(super) fn begin_now(desk: &mut Desk, id: ActionId) {
    let now = desk.now();
    let Some(entry) = desk.in_hand.get(id) else { return };
    // Checked again, because the disk may have taken long.
    let why = entry.since.expired(&entry.message, now).or_else(|| calls::caller_gone(entry));
    if let Some(why) = why.filter(|_| entry.attempts == 0) {
        return end::pass_over(desk, id, &why);
    }
    let Some(plan) = entry.plan.take() else { return };
    entry.stage = Stage::Running;
    entry.attempts += 1;
    let (is_first, rule) = (entry.attempts == 1, Arc::clone(&entry.rule));
    let (machine, body) = (Arc::clone(&desk.machine), entry.message.body.clone());
    if is_first {
        desk.in_hand.guards.begin(&rule.name, &rule.policy, now);
    }
    let mut action: Running = Box::pin(async move {
        let outcome = machine.actions.perform(&plan, body, &machine.stop).await;
        RunResult::Acted { id, plan, outcome: Box::new(outcome) }
    });
    // Its first step is taken here, and not when the loop comes to it: a program loads while the loop goes on.
    let action = match action.as_mut().now_or_never() {
        Some(result) => Box::pin(ready(result)),
        None => action,
    };
    desk.in_hand.running.push(action);
}

/// Handles an attempt that has ended, or a pause that is over.
pub(crate) fn done(desk: &mut Desk, done: RunResult) {
    match done {
        RunResult::Acted { id, plan, outcome } => acted(desk, id, plan, &outcome),
        RunResult::Rested { id } => rested(desk, id),
    }
}

fn rested(desk: &mut Desk, id: ActionId) {
    let Some(entry) = desk.in_hand.get(id).filter(|entry| entry.stage == Stage::BackingOff) else { return };
    entry.stage = Stage::Waiting;
    if desk.in_hand.stopping {
        end::give_back(desk, id);
    } else if desk.in_hand.lanes.resume(id) {
        begin(desk, id);
    }
}

fn acted(desk: &mut Desk, id: ActionId, plan: Plan, outcome: &Outcome) {
    let (now, stopping) = (desk.now(), desk.in_hand.stopping);
    let Some(entry) = desk.in_hand.get(id) else { return };
    entry.plan = Some(plan);
    let (message_id, rule) = (entry.message.message_id(), &entry.rule);
    let (number, attempt) = (entry.number, entry.attempts);
    let failed = matches!(outcome.result, OutcomeResult::Failed(_) | OutcomeResult::TimedOut);
    let may_try_again = failed && attempt < rule.policy.attempts;
    // While the agent stops, no pause begins, because the agent would not wait for it.
    let pause = (may_try_again && !stopping).then(|| rule.policy.backoff_after(attempt));
    report::log_outcome(message_id, &rule.name, outcome, attempt, pause.map(report::millis));
    desk.watch.scraper.tally.acted(&rule.name, outcome.duration);
    if outcome.result == OutcomeResult::Interrupted && calls::runs_again(entry) {
        // Another run is harmless, so the action begins again at the next start.
        return end::give_back(desk, id);
    }
    if may_try_again && stopping && !calls::has_caller(entry) {
        // The remaining attempts are made after the next start. A call cannot wait for that: it ends below.
        number.into_iter().for_each(|number| desk.inbox.submit(Op::Again { number, made: true }));
        return end::give_back(desk, id);
    }
    let ended = end::of_action(outcome, message_id, &rule.name, attempt, now);
    let Some(pause) = pause else {
        return end::end(desk, id, ended, false);
    };
    entry.stage = Stage::BackingOff;
    // If the agent stops during the pause, the caller gets this outcome.
    entry.failed = calls::has_caller(entry).then_some(ended);
    // Without this record, a crash during the pause would look like a crash during the action. If a crash leads to
    // another run anyway, the record is not needed.
    if let Some(number) = number.filter(|_| !calls::runs_again(entry)) {
        desk.inbox.submit(Op::Again { number, made: true });
    }
    desk.in_hand.lanes.pause(id);
    let machine = Arc::clone(&desk.machine);
    desk.in_hand.running.push(Box::pin(async move {
        // A pause does not last longer than the agent runs.
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = machine.stop.cancelled() => {}
        }
        RunResult::Rested { id }
    }));
}

/// Ends actions of the twin's rules that would delay a message for a rule of the owner's too long. The loop does this
/// before anything else, so that they get no turn any more.
pub(crate) fn refuse_late(desk: &mut Desk) {
    if desk.in_hand.stopping {
        return;
    }
    for id in desk.in_hand.lanes.late(Instant::now()) {
        if let Some(entry) = desk.in_hand.get(id) {
            let why = PassedOver::Guarded(format!(
                "a message for a rule of the device's configuration waits behind it, at most {} for \
                 rules of the twin, but rule {} may take {}",
                format_duration(TWIN_WAIT),
                entry.rule.name,
                format_duration(entry.rule.longest_of_twin.unwrap_or_default())
            ));
            pass_over_when_recorded(desk, id, why);
        }
        desk.in_hand.lanes.leave(id);
    }
}

/// Ends a waiting message without an action: now, or when the inbox has answered.
pub(crate) fn pass_over_when_recorded(desk: &mut Desk, id: ActionId, why: PassedOver) {
    let Some(entry) = desk.in_hand.get(id) else { return };
    if entry.stage == Stage::Waiting {
        end::pass_over(desk, id, &why);
    } else {
        // `go_on` passes it over when the inbox has answered.
        entry.passed_over = Some(why);
    }
}

/// The inbox has recorded a waiting message, so it begins if its turn has come.
pub(super) fn go_on(desk: &mut Desk, id: ActionId) {
    let Some(entry) = desk.in_hand.get(id) else { return };
    if let Some(why) = entry.passed_over.take() {
        end::pass_over(desk, id, &why);
    } else if entry.turn {
        begin(desk, id);
    }
}
