//! Intake: what an arrived message is, and whether its turn has come.
//!
//! Owns: decoding errors, the choice of the rule, the plan; what the inbox's verdict means for a delivery.
//! Must not know: how actions run and end (`act.rs`).

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use tokio::time::Instant;

use crate::inbox::{Arrival, Intent, Number, Op, Settled, Start, Verdict};
use crate::message::C2dMessage;
use crate::outcome::OutcomeReport;
use crate::rules::{Reports, Settle};
use crate::session::{Delivery, Receipt};

use super::super::sessions::Role;
use super::super::tally::DUPLICATE;
use super::super::{Agent, AgentEvent, report};
use super::calls::{self, Away};
use super::end::{self, PassedOver};
use super::in_hand::{Entry, Held, Origin, Passing, Phase};
use super::lanes::Ticket;
use super::life::Since;

/// How long to wait before a message is offered again to a full inbox.
const OFFER_AGAIN: Duration = Duration::from_secs(5);

/// An entry with its plan, or why nothing is done: the rule that matched, if any, and the reason.
type Planned = Result<Entry, (Option<String>, PassedOver)>;

impl Agent {
    /// Takes a delivery in: plans it, and offers it to the inbox together with the plan.
    pub(in crate::agent) fn take(&mut self, role: Role, delivery: Delivery) {
        let Delivery { message, connection, redelivered, sequence, arrived, receipt } = delivery;
        let origin = Origin { connection, redelivered, sequence };
        if !receipt.is_current() {
            // Its connection has closed, so the hub sends the message again on the next one.
            receipt.leave();
            return;
        }
        let (received, since) = ((self.clock)(), Since::Delivered(arrived));
        let ticket = self.hand.next_ticket();
        let message = match message {
            Ok(message) => message,
            Err(error) => {
                let why = PassedOver::Undecodable(error.to_string());
                let outcome = why.report(None, None, 0, received);
                self.pass(ticket, Passing { role, receipt, message: None, origin, received, outcome });
                return;
            }
        };
        if self.is_own(&message) {
            // It is not even recorded: the report of its outcome would come back as the next message.
            report::log_own(&message, &mut self.own_told);
            return receipt.complete();
        }
        self.board.received(received);
        self.outbox.received(message.message_id(), received);
        if self.observer.is_some() {
            self.tell(AgentEvent::Received { message: message.clone() });
        }
        since.tell_of_clock(&message, received, &mut self.clock_told);
        match self.plan(message.clone(), since, received) {
            Ok(mut entry) => {
                let away = self.no_room_for_call(&entry.rule).filter(|_| receipt.is_call());
                if let Some(away) = away {
                    return calls::turn_away(receipt, &away);
                }
                entry.origin = origin;
                let (settled, rule) = (entry.settled, entry.rule.name.clone());
                entry.receipts.push(receipt);
                entry.turn = self.enter(ticket, &entry);
                let guarded = self.guards.check(&entry.rule.name, &entry.rule.policy, received);
                let intent = match (entry.turn, guarded) {
                    (true, Ok(())) => {
                        Intent::Start(Start { at: received, retry_on_crash: entry.runs_again() })
                    }
                    // If a guard refuses, the message only waits here. `begin` asks the guard again when the inbox
                    // knows that the message is new.
                    _ => Intent::Wait,
                };
                entry.phase = Phase::Accepting { starting: matches!(intent, Intent::Start(_)) };
                self.hand.insert(ticket, entry);
                let (message, rule) = (Some(message), Some(rule));
                let arrival = Arrival {
                    ticket,
                    message,
                    connection,
                    redelivered,
                    sequence,
                    received,
                    rule,
                    settled,
                    intent,
                };
                self.inbox.submit(Op::Accept(Box::new(arrival)));
            }
            Err((rule, why)) => {
                if let Some(trouble) = self.board.trouble.clone().filter(|_| receipt.is_call()) {
                    return calls::turn_away(receipt, &Away::InboxTrouble(trouble));
                }
                let outcome = why.report(message.message_id(), rule.as_deref(), 0, received);
                let message = Some(message);
                self.pass(ticket, Passing { role, receipt, message, origin, received, outcome });
            }
        }
    }

    /// Puts a message in line in its lanes. True if its turn has come at once.
    pub(in crate::agent) fn enter(&mut self, ticket: Ticket, entry: &Entry) -> bool {
        let rule = &entry.rule;
        self.lanes.enter(ticket, &rule.lanes, rule.slot, rule.whose(entry.entered))
    }

    /// Offers a message to the inbox for which there is nothing to do.
    fn pass(&mut self, ticket: Ticket, passing: Passing) {
        let Passing { message, origin, received, outcome, .. } = &passing;
        let Origin { connection, redelivered, sequence } = *origin;
        let (message, received) = (message.clone(), *received);
        let (rule, outcome) = (outcome.rule.clone(), Box::new(outcome.clone()));
        let report = self.telemetry_report(&outcome);
        let (settled, intent) = (Settled::AfterAction, Intent::End { outcome, report });
        self.hand.passing.insert(ticket, passing);
        let arrival =
            Arrival { ticket, message, connection, redelivered, sequence, received, rule, settled, intent };
        self.inbox.submit(Op::Accept(Box::new(arrival)));
    }

    /// Where an outcome is reported: as its rule says, or if no rule matched, as `[report]` says.
    pub(in crate::agent) fn reports_of(&self, outcome: &OutcomeReport) -> Reports {
        let rule = outcome.rule.as_deref().and_then(|rule| self.rules.get(rule));
        rule.map_or(self.config.reports, |rule| rule.policy.reports)
    }

    /// The telemetry report of an outcome, if its rule wants one.
    pub(in crate::agent) fn telemetry_report(&self, outcome: &OutcomeReport) -> Option<Bytes> {
        if self.reports_of(outcome).telemetry { end::telemetry(outcome) } else { None }
    }

    /// Finds the rule that matches a message, and makes a plan from it.
    pub(in crate::agent) fn plan(&self, message: C2dMessage, since: Since, now: SystemTime) -> Planned {
        calls::check_payload(&message).map_err(|why| (None, PassedOver::Undecodable(why)))?;
        let rule = self.config.rules.match_message(&message);
        if let Some(expired) = since.expired(&message, now) {
            return Err((rule.map(|rule| rule.name().to_owned()), expired));
        }
        let rule = rule.ok_or((None, PassedOver::Unmatched))?;
        let refused = |why: String| (Some(rule.name().to_owned()), PassedOver::Refused(why));
        let plan = rule
            .plan(&message, &self.config.identities.first().device_id)
            .map_err(|error| refused(error.to_string()))?;
        let facts = self.rules.get(rule.name()).ok_or_else(|| refused("the rule is gone".to_owned()))?;
        let settled = match facts.policy.settle {
            Settle::AfterAction => Settled::AfterAction,
            Settle::OnAccept => Settled::OnAccept,
        };
        Ok(Entry::new(message, since, Arc::clone(facts), plan, settled))
    }

    /// The inbox has looked at a message, and its verdict is on disk.
    pub(in crate::agent) fn verdict(&mut self, ticket: Ticket, verdict: Verdict) {
        if let Some(passing) = self.hand.passing.remove(&ticket) {
            return self.passed(ticket, passing, verdict);
        }
        match verdict {
            Verdict::New(number) => self.accepted(ticket, number),
            Verdict::Ended(past) => {
                self.lanes.leave(ticket);
                let Some(mut entry) = self.hand.remove(ticket) else { return };
                let settlement =
                    self.settlement_again(past, Some(&entry.rule.name), self.role_of(&entry.message));
                entry.settled = past.settled;
                entry.number = Some(past.number);
                entry.settle(settlement);
                self.scraper.tally.ended(Some(&entry.rule.name), DUPLICATE);
                report::log_already_done(entry.message.message_id());
            }
            Verdict::Unfinished(number) => self.came_again(ticket, number),
            Verdict::Full => self.turn_away(ticket),
        }
    }

    /// Like [`Agent::verdict`], for a message for which there is nothing to do.
    fn passed(&mut self, ticket: Ticket, passing: Passing, verdict: Verdict) {
        match verdict {
            Verdict::New(number) => {
                report::log_passed_over(&passing.outcome, passing.message.as_ref(), &self.config.rules);
                self.settled(&passing.outcome);
                self.finish(passing, number);
            }
            Verdict::Ended(past) => {
                self.scraper.tally.ended(passing.outcome.rule.as_deref(), DUPLICATE);
                report::log_already_done(passing.outcome.message_id.as_deref());
                let settlement = self.settlement_again(past, passing.outcome.rule.as_deref(), passing.role);
                passing.receipt.marked(past.number.0).settle(settlement);
            }
            // The message could be run when it came first. Since then it has expired, or its rule was removed.
            Verdict::Unfinished(number) => match self.hand.ticket_of(number) {
                Some(first) => self.give_receipts(first, vec![passing.receipt]),
                // Its end is being recorded. Asked after that, the inbox answers that the message has ended.
                None if self.hand.closing.contains_key(&number) => self.pass(ticket, passing),
                None => {
                    let report = self.telemetry_report(&passing.outcome);
                    let outcome = Box::new(passing.outcome.clone());
                    self.hand.held.remove(&number);
                    self.hand.closing.insert(number, passing);
                    self.inbox.submit(Op::End { number, outcome, abandoned: false, report });
                }
            },
            Verdict::Full => {
                self.hand.passing.insert(ticket, passing);
                self.turn_away(ticket);
            }
        }
    }

    fn accepted(&mut self, ticket: Ticket, number: Number) {
        self.hand.set_number(ticket, number);
        let Some(entry) = self.hand.get(ticket) else { return };
        if entry.settled == Settled::OnAccept {
            entry.accept();
        }
        let starting = matches!(entry.phase, Phase::Accepting { starting: true });
        entry.phase = Phase::Waiting;
        if self.stopping {
            // It begins after the next start: from the inbox, or when the hub sends it again.
            if starting {
                self.inbox.submit(Op::Again { number, made: false });
            }
            self.leave(ticket);
        } else if starting {
            self.begin_now(ticket);
        } else {
            self.go_on(ticket);
        }
    }

    /// The inbox has recorded a waiting message, so it begins if its turn has come.
    fn go_on(&mut self, ticket: Ticket) {
        let Some(entry) = self.hand.get(ticket) else { return };
        if let Some(why) = entry.passed_over.take() {
            self.pass_over(ticket, &why);
        } else if entry.turn {
            self.begin(ticket);
        }
    }

    /// The hub has sent a message again that has not ended.
    fn came_again(&mut self, ticket: Ticket, number: Number) {
        if let Some(first) = self.hand.ticket_of(number) {
            self.lanes.leave(ticket);
            if let Some(again) = self.hand.remove(ticket) {
                // The hub checked the expiry again at this delivery, so the time in hand counts from here.
                self.hand.get(first).into_iter().for_each(|entry| entry.since = again.since);
                self.give_receipts(first, again.receipts);
            }
            return;
        }
        if self.stopping {
            return self.leave(ticket);
        }
        // An earlier agent accepted it, but did not finish it.
        let held = self.hand.held.remove(&number);
        self.hand.set_number(ticket, number);
        let Some(entry) = self.hand.get(ticket) else { return };
        if let Some(Held { record, .. }) = held {
            entry.attempts = record.attempts;
            entry.settled = record.settled;
        }
        entry.phase = Phase::Waiting;
        self.go_on(ticket);
    }

    /// A message in hand was delivered again.
    fn give_receipts(&mut self, first: Ticket, receipts: Vec<Receipt>) {
        let Some(entry) = self.hand.get(first) else { return };
        tracing::debug!(
            message_id = entry.message.message_id(),
            "a message that is already being handled came again"
        );
        receipts.into_iter().for_each(|receipt| entry.add_receipt(receipt));
        if entry.settled == Settled::OnAccept {
            entry.accept();
        }
    }

    /// The inbox is full. The message stays at the hub, and in hand, until there is room. A call is refused.
    fn turn_away(&mut self, ticket: Ticket) {
        for receipt in self.hand.take_calls(ticket) {
            self.lanes.leave(ticket);
            calls::turn_away(receipt, &Away::InboxFull);
        }
        if !self.hand.has(ticket) {
            return;
        }
        self.turned_away.push(ticket);
        // No log line here: the inbox logs that it is full.
        self.turned_away_retry.get_or_insert(Instant::now() + OFFER_AGAIN);
    }

    /// Offers the messages again that were turned away, unless their connection has closed.
    pub(in crate::agent) fn offer_again(&mut self) {
        self.turned_away_retry = None;
        for ticket in std::mem::take(&mut self.turned_away) {
            if let Some(passing) = self.hand.passing.remove(&ticket) {
                if passing.receipt.is_current() {
                    self.pass(ticket, passing);
                }
                continue;
            }
            let Some(mut entry) = self.hand.remove(ticket) else { continue };
            self.lanes.leave(ticket);
            entry.receipts.retain(Receipt::is_current);
            if let (Some(receipt), Since::Delivered(arrived)) = (entry.receipts.pop(), entry.since) {
                let role = self.role_of(&entry.message);
                let Origin { connection, redelivered, sequence } = entry.origin;
                let message = Ok(entry.message);
                self.take(role, Delivery { message, connection, redelivered, sequence, arrived, receipt });
            }
        }
    }
}
