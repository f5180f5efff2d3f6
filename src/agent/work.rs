//! Work: from the turn of a message to its end.
//!
//! Owns: starts, attempts and their pauses, the end, and how the answers of the inbox are handled. Must not know: how
//! messages arrive (`intake.rs`), pins, processes.
//!
//! No action starts before the inbox has the start on disk. The exception: the rule says that another run is harmless
//! (`on_crash = "retry"`), and has no guard that must know of the start after a restart. No message is completed
//! before the inbox has the end on disk.

use std::sync::Arc;

use humantime::format_duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::action::{Outcome, OutcomeResult};
use crate::inbox::{Number, Op, Past, Settled, Start, Written};
use crate::message::C2dMessage;
use crate::outcome::{OutcomeKind, OutcomeReport};
use crate::rules::{OnFailure, Plan, TWIN_WAIT};
use crate::session::{Receipt, Settlement};

use super::answers::End;
use super::ending::{self, PassedOver, millis};
use super::hand::{Passing, Phase};
use super::lanes::Ticket;
use super::sessions::Role;
use super::{Agent, AgentEvent, Machine, PinsNoted, report};

/// The result of one of the running futures.
pub(super) enum Done {
    /// An attempt has ended.
    Acted { ticket: Ticket, plan: Plan, outcome: Box<Outcome> },
    /// The pause before the next attempt is over.
    Rested { ticket: Ticket },
}

impl Agent {
    /// The turn of a message has come: it is at the front of its lanes.
    pub(super) fn turn(&mut self, ticket: Ticket) {
        let Some(entry) = self.hand.get(ticket) else { return };
        entry.turn = true;
        if entry.phase == Phase::Waiting && !self.stopping {
            self.begin(ticket);
        }
    }

    /// Begins an attempt. If needed, the inbox records the start first.
    pub(super) fn begin(&mut self, ticket: Ticket) {
        let now = (self.clock)();
        let Some(entry) = self.hand.get(ticket) else { return };
        let Some(number) = entry.number else { return };
        if entry.attempts == 0 {
            let guarded = self.guards.check(&entry.rule.name, &entry.rule.policy, now);
            let nobody = entry.is_call_of_nobody().then_some(PassedOver::CallerGone);
            let expired = entry.since.expired(&entry.message, now);
            let why = expired.or(guarded.err().map(PassedOver::Guarded)).or(nobody);
            if let Some(why) = why {
                return self.pass_over(ticket, &why);
            }
        }
        let retry_on_crash = entry.runs_again();
        if retry_on_crash && !entry.rule.policy.is_guarded() {
            return self.begin_now(ticket);
        }
        entry.phase = Phase::Starting;
        self.inbox.submit(Op::Start { number, start: Start { at: now, retry_on_crash } });
    }

    /// Begins an attempt at once.
    pub(super) fn begin_now(&mut self, ticket: Ticket) {
        let now = (self.clock)();
        let Some(entry) = self.hand.get(ticket) else { return };
        // Checked again, because the disk may have taken long.
        let nobody = entry.is_call_of_nobody().then_some(PassedOver::CallerGone);
        let expired = entry.since.expired(&entry.message, now);
        let why = expired.or(nobody).filter(|_| entry.attempts == 0);
        if let Some(why) = why {
            return self.pass_over(ticket, &why);
        }
        let Some(plan) = entry.plan.take() else { return };
        entry.phase = Phase::Running;
        entry.attempts += 1;
        if entry.attempts == 1 {
            self.guards.begin(&entry.rule.name, &entry.rule.policy, now);
        }
        let (machine, body) = (Arc::clone(&self.machine), entry.message.body.clone());
        self.running.push(Box::pin(async move {
            let outcome = machine.actions.perform(&plan, body, &machine.stop).await;
            Done::Acted { ticket, plan, outcome: Box::new(outcome) }
        }));
    }

    /// Handles an attempt that has ended, or a pause that is over.
    pub(super) fn done(&mut self, done: Done) {
        match done {
            Done::Acted { ticket, plan, outcome } => self.acted(ticket, plan, &outcome),
            Done::Rested { ticket } => {
                let Some(entry) = self.hand.get(ticket).filter(|entry| entry.phase == Phase::BackingOff)
                else {
                    return;
                };
                if self.stopping {
                    return self.leave(ticket);
                }
                entry.phase = Phase::Waiting;
                if self.lanes.resume(ticket) {
                    self.begin(ticket);
                }
            }
        }
    }

    fn acted(&mut self, ticket: Ticket, plan: Plan, outcome: &Outcome) {
        let now = (self.clock)();
        let Some(entry) = self.hand.get(ticket) else { return };
        entry.plan = Some(plan);
        let (message_id, rule) = (entry.message.message_id(), &entry.rule);
        let attempt = entry.attempts;
        let failed = matches!(outcome.result, OutcomeResult::Failed(_) | OutcomeResult::TimedOut);
        // While the agent stops, no pause begins, because the agent would not wait for it.
        let pause = (failed && attempt < rule.policy.attempts && !self.stopping)
            .then(|| rule.policy.backoff_after(attempt));
        report::log_outcome(message_id, &rule.name, outcome, attempt, pause.map(millis));
        self.scraper.tally.acted(&rule.name, outcome.duration);
        if outcome.result == OutcomeResult::Interrupted && entry.runs_again() {
            // Another run is harmless, so the action begins again at the next start.
            return self.leave(ticket);
        }
        if failed && attempt < rule.policy.attempts && self.stopping && !entry.has_caller() {
            // The remaining attempts are made after the next start. A call cannot wait for that: it ends below.
            let number = entry.number;
            number.into_iter().for_each(|number| self.inbox.submit(Op::Again { number, made: true }));
            return self.leave(ticket);
        }
        let Some(pause) = pause else {
            let report = ending::of_action(outcome, message_id, &rule.name, attempt, now);
            return self.end(ticket, report, false);
        };
        entry.phase = Phase::BackingOff;
        // If the agent stops during the pause, the caller gets this outcome.
        if entry.has_caller() {
            entry.failed = Some(ending::of_action(outcome, message_id, &rule.name, attempt, now));
        }
        // Without this record, a crash during the pause would look like a crash during the action. If a crash leads
        // to another run anyway, the record is not needed.
        if let Some(number) = entry.number.filter(|_| !entry.runs_again()) {
            self.inbox.submit(Op::Again { number, made: true });
        }
        self.lanes.pause(ticket);
        let machine = Arc::clone(&self.machine);
        self.running.push(Box::pin(async move {
            rest(pause, &machine).await;
            Done::Rested { ticket }
        }));
    }

    /// Ends actions of the twin's rules that would delay a message for a rule of the owner's too long. The loop does
    /// this before anything else, so that they get no turn any more.
    pub(super) fn refuse_late(&mut self) {
        let late = if self.stopping { Vec::new() } else { self.lanes.late(Instant::now()) };
        for ticket in late {
            if let Some(entry) = self.hand.get(ticket) {
                let why = PassedOver::Guarded(format!(
                    "a message for a rule of the device's configuration waits behind it, at most {} for \
                     rules of the twin, but rule {} may take {}",
                    format_duration(TWIN_WAIT),
                    entry.rule.name,
                    format_duration(entry.rule.longest_of_twin.unwrap_or_default())
                ));
                if entry.phase == Phase::Waiting {
                    self.pass_over(ticket, &why);
                } else {
                    // `Agent::go_on` passes it over when the inbox has answered.
                    entry.passed_over = Some(why);
                }
            }
            self.lanes.leave(ticket);
        }
    }

    /// Ends a message in hand without an action.
    pub(super) fn pass_over(&mut self, ticket: Ticket, why: &PassedOver) {
        let now = (self.clock)();
        let Some(entry) = self.hand.get(ticket) else { return };
        let outcome = why.report(entry.message.message_id(), Some(&entry.rule.name), entry.attempts, now);
        report::log_passed_over(&outcome, Some(&entry.message), &self.config.rules);
        self.end(ticket, outcome, matches!(why, PassedOver::Guarded(_)));
    }

    /// Hands the end of a message to the inbox. Those behind it in its lanes move up.
    fn end(&mut self, ticket: Ticket, outcome: OutcomeReport, guarded: bool) {
        let report = self.telemetry_report(&outcome);
        let Some(role) = self.hand.get(ticket).map(|entry| Role::of(entry.message.source(), &self.config))
        else {
            return;
        };
        let settlement = self.settlement(outcome.outcome, outcome.rule.as_deref(), role);
        let Some(entry) = self.hand.get(ticket) else { return };
        entry.phase = Phase::Ending;
        entry.end = Some(End::new(outcome.clone(), settlement, guarded));
        let abandoned = settlement == Settlement::Abandon && entry.settled == Settled::AfterAction;
        let Some(number) = entry.number else { return };
        self.inbox.submit(Op::End { number, outcome: Box::new(outcome), abandoned, report });
        self.lanes.leave(ticket);
    }

    /// Gives up a message for this process. It begins at the next start, from the inbox or from the hub.
    pub(super) fn leave(&mut self, ticket: Ticket) {
        self.lanes.leave(ticket);
        if let Some(entry) = self.hand.remove(ticket) {
            entry.receipts.into_iter().for_each(Receipt::leave);
        }
    }

    /// Leaves a message that has another attempt before it. A call that was tried ends as its last attempt did.
    fn leave_or_end(&mut self, ticket: Ticket) {
        match self.hand.get(ticket).and_then(|entry| entry.failed.take()) {
            Some(outcome) => self.end(ticket, outcome, false),
            None => self.leave(ticket),
        }
    }

    /// At shutdown, what has not begun stays where it is, in the inbox or at the hub. If the inbox has still to
    /// answer for a message, it is handled when the answer comes.
    pub(super) fn leave_what_has_not_begun(&mut self) {
        for ticket in self.hand.tickets_in(&[Phase::Waiting, Phase::BackingOff]) {
            self.leave_or_end(ticket);
        }
        for ticket in std::mem::take(&mut self.turned_away) {
            self.leave(ticket);
            self.hand.passing.remove(&ticket).into_iter().for_each(|passing| passing.receipt.leave());
        }
    }

    /// The inbox has done something, and it is on disk.
    pub(super) fn answer(&mut self, answer: Written) {
        match answer {
            Written::Accepted { ticket, verdict } => self.verdict(ticket, verdict),
            Written::Started(number) => {
                let Some(ticket) = self.hand.ticket_of(number) else { return };
                if self.stopping {
                    // No action began, so the record goes back to what it was.
                    self.inbox.submit(Op::Again { number, made: false });
                    self.leave_or_end(ticket);
                } else {
                    self.begin_now(ticket);
                }
            }
            Written::Ended(number) => self.ended(number),
            Written::Again | Written::Confirmed | Written::ReportsDone => {}
            Written::PinsOn => {
                let again = std::mem::replace(&mut self.pins_noted, PinsNoted::Yes) == PinsNoted::Again;
                if again {
                    self.note_pins();
                }
            }
            Written::Reports(reports) => self.outbox.fetched(reports),
            Written::Reply { ticket, reply } => self.reply(ticket, *reply),
        }
    }

    fn ended(&mut self, number: Number) {
        if let Some(passing) = self.hand.closing.remove(&number) {
            report::log_passed_over(&passing.outcome, passing.message.as_ref(), &self.config.rules);
            self.settled(&passing.outcome);
            return self.finish(passing, number);
        }
        let Some(ticket) = self.hand.ticket_of(number) else { return };
        self.lanes.leave(ticket);
        let Some(mut entry) = self.hand.remove(ticket) else { return };
        let Some(end) = entry.end.take() else {
            // A client of the control socket dropped it.
            let role = self.role_of(&entry.message);
            return entry.settle(self.settlement(OutcomeKind::Dropped, Some(&entry.rule.name), role));
        };
        entry.finish(&end);
        self.settled(&end.outcome);
    }

    /// Settles or answers a message that ended without an action.
    pub(super) fn finish(&self, passing: Passing, number: Number) {
        let Passing { receipt, outcome, role, .. } = passing;
        let settlement = self.settlement_of(&outcome, role);
        End::new(outcome, settlement, false).tell(receipt.marked(number.0));
    }

    /// How to settle a message that ended this way, by its present rule and by what the transport can do.
    pub(super) fn settlement(&self, kind: OutcomeKind, rule: Option<&str>, role: Role) -> Settlement {
        let rule = rule.and_then(|rule| self.rules.get(rule));
        let on_failure = rule.map_or(OnFailure::Reject, |rule| rule.policy.on_failure());
        let settlement = ending::settlement(kind, on_failure, self.config.unmatched);
        if self.sessions.can(role, settlement) { settlement } else { Settlement::Complete }
    }

    pub(super) fn settlement_of(&self, outcome: &OutcomeReport, role: Role) -> Settlement {
        self.settlement(outcome.outcome, outcome.rule.as_deref(), role)
    }

    /// The session through which a message came.
    pub(super) fn role_of(&self, message: &C2dMessage) -> Role {
        Role::of(message.source(), &self.config)
    }

    /// How to settle a message that came again after it had ended.
    pub(super) fn settlement_again(&self, past: Past, rule: Option<&str>, role: Role) -> Settlement {
        match (past.settled, past.outcome) {
            (Settled::OnAccept, _) | (_, None) => Settlement::Complete,
            // It was not abandoned the first time, or it would run again now. So it is not abandoned now, either.
            (Settled::AfterAction, Some(kind)) => match self.settlement(kind, rule, role) {
                Settlement::Abandon => Settlement::Reject,
                settlement => settlement,
            },
        }
    }

    /// Counts and reports that a message has ended, now that it is on disk.
    pub(super) fn settled(&mut self, outcome: &OutcomeReport) {
        self.scraper.tally.ended(outcome.rule.as_deref(), outcome.outcome.as_str());
        self.outbox.ended(outcome, self.reports_of(outcome));
        if self.observer.is_some() {
            let OutcomeReport { message_id, rule, text, output, .. } = outcome.clone();
            self.tell(AgentEvent::Settled { message_id, rule, outcome: text, output: output.into_bytes() });
        }
    }
}

/// Waits, but not longer than until the agent stops.
async fn rest(pause: std::time::Duration, machine: &Machine) {
    let stop: &CancellationToken = &machine.stop;
    tokio::select! {
        () = tokio::time::sleep(pause) => {}
        () = stop.cancelled() => {}
    }
}
