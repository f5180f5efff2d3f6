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
//!
//! The present rules decide, as for a message that arrives. A message that has expired since it was received is
//! recorded as expired.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use crate::inbox::{News, Number, Op, Opened, Record, Settled, State, Unfinished, from_millis};
use crate::message::{Source, format_time};

use super::message::end::PassedOver;
use super::message::in_hand::{Held, Phase};
use super::message::life::Since;
use super::{Agent, report};

/// The hub keeps no message longer. Source: wire reference 5.1.
const LONGEST_LIFE: Duration = Duration::from_secs(2 * 24 * 3600);
/// How often to look at messages that the hub should send again.
const HELD_LOOK: Duration = Duration::from_secs(60);
/// How long the hub may take to send them after it is connected.
pub(super) const HELD_PATIENCE: Duration = Duration::from_secs(5);

/// How long pins were on before this process began, as the inbox recorded it.
pub(super) fn been_on(first: Option<&News>, now: SystemTime) -> BTreeMap<String, Duration> {
    let Some(News::Opened(opened)) = first else { return BTreeMap::new() };
    let on = |since: &SystemTime| now.duration_since(*since).unwrap_or_default();
    opened.pins_on.iter().map(|(pin, since)| (pin.clone(), on(since))).collect()
}

impl Agent {
    /// Handles what the inbox reports.
    pub(super) fn news(&mut self, news: News) {
        match news {
            News::Opened(opened) => self.recover(*opened),
            News::Done { answers, counts } => {
                self.board.counts = counts;
                for answer in answers {
                    self.answer(answer);
                }
                self.outbox.totals(&self.board.counts.totals);
            }
            News::Trouble { sentence } => {
                self.turn_callers_away(&sentence);
                self.board.trouble = Some(sentence);
                self.tell_systemd();
            }
            News::Well => {
                self.board.trouble = None;
                self.tell_systemd();
            }
        }
    }

    fn recover(&mut self, opened: Opened) {
        self.opened = true;
        self.board.trouble = None;
        // A message that is resumed below may begin at once, so the guards need the earlier starts first.
        for (rule, at) in &opened.starts {
            if let Some(facts) = self.rules.get(rule) {
                self.guards.begin(rule, &facts.policy, *at);
            }
        }
        self.board.last_received = opened.last_received;
        self.outbox.recovered(&opened, &self.rules);
        self.board.counts = opened.counts;
        // The socket is in the inbox's directory, which exists now.
        self.open_control();
        let count = opened.unfinished.len();
        for unfinished in opened.unfinished {
            let Record { number, state, settled, retry_on_crash, attempts, .. } = unfinished.record;
            // A call is never run after a restart, because its caller is gone.
            let of_nobody =
                matches!(unfinished.message.source(), Source::Method(_)) && settled == Settled::AfterAction;
            match (state, settled) {
                // Its action may have done half of its work, and the rule (or its being a call) forbids another run.
                (State::Started, _) if !retry_on_crash || of_nobody => {
                    self.give_up(&unfinished, &PassedOver::Crashed)
                }
                // The crash came in the pause between two attempts.
                _ if of_nobody && attempts > 0 => self.give_up(&unfinished, &PassedOver::Crashed),
                _ if of_nobody => self.give_up(&unfinished, &PassedOver::CallerGone),
                // Either another run is harmless, or the message is completed at the hub and only the inbox has it.
                (State::Started, _) | (_, Settled::OnAccept) => self.resume(unfinished),
                // The message is still at the hub, which sends it again.
                _ => {
                    let Unfinished { record, message } = unfinished;
                    // If the recorded time lies in the future, that clock was wrong, so count from now. If the
                    // message came expired, that clock was wrong, too, so do not use the expiry.
                    let received = from_millis(record.received_ms);
                    let expiry = message.expiry().filter(|expiry| received < *expiry);
                    let until = expiry.unwrap_or(received.min((self.clock)()) + LONGEST_LIFE);
                    let role = self.role_of(&message);
                    self.hand.held.insert(number, Held { role, record, until });
                }
            }
        }
        self.held_look = Some(Instant::now() + HELD_PATIENCE);
        if count > 0 {
            let held = self.hand.held.len();
            tracing::info!(
                messages = count,
                awaited_from_the_hub = held,
                "recovered messages from the inbox"
            );
        }
    }

    /// Records messages as expired that the hub should have sent again but no longer has. It does so only while the
    /// hub is connected and has not sent them. Before that it would gain nothing, and a wrong clock at the start
    /// could end a message that is still valid.
    pub(super) fn look_at_held(&mut self) {
        self.held_look = None;
        let now = (self.clock)();
        let over = |(number, held): (&Number, &Held)| {
            (held.until < now && self.board.had_its_chance(held.role)).then_some(*number)
        };
        for number in self.hand.held.iter().filter_map(over).collect::<Vec<_>>() {
            let Some(Held { record, until, .. }) = self.hand.held.remove(&number) else { continue };
            let [expiry, now] = [until, now].map(format_time);
            let why = PassedOver::Expired { expiry, now };
            self.end_record(number, &record, record.message_id.as_deref(), &why);
        }
        self.held_look = (!self.hand.held.is_empty()).then(|| Instant::now() + HELD_LOOK);
    }

    /// Records that an action was interrupted, or never began.
    fn give_up(&mut self, unfinished: &Unfinished, why: &PassedOver) {
        let Unfinished { record, message } = unfinished;
        self.end_record(record.number, record, message.message_id(), why);
    }

    fn end_record(&mut self, number: Number, record: &Record, message_id: Option<&str>, why: &PassedOver) {
        let outcome = why.report(message_id, record.rule.as_deref(), record.attempts, (self.clock)());
        report::log_passed_over(&outcome, None, &self.config.rules);
        let report = self.telemetry_report(&outcome);
        self.settled(&outcome);
        self.inbox.submit(Op::End { number, outcome: Box::new(outcome), abandoned: false, report });
    }

    /// Takes up a message that only the inbox has, or that may be run again.
    pub(super) fn resume(&mut self, unfinished: Unfinished) {
        let Unfinished { record, message } = unfinished;
        let message_id = message.message_id().map(str::to_owned);
        let since = Since::Recorded(from_millis(record.received_ms));
        match self.plan(message, since, (self.clock)()) {
            Ok(mut entry) => {
                let ticket = self.hand.next_ticket();
                entry.number = Some(record.number);
                entry.settled = record.settled;
                // A dead letter that is run again gets all its attempts.
                entry.attempts = if record.outcome.is_some() { 0 } else { record.attempts };
                entry.phase = Phase::Waiting;
                entry.turn = self.enter(ticket, &entry);
                let turn = entry.turn;
                self.hand.insert(ticket, entry);
                if turn {
                    self.begin(ticket);
                }
            }
            Err((rule, why)) => {
                // Only the inbox has this message, so it must not be lost together with its rule.
                let why = if why == PassedOver::Unmatched { PassedOver::no_rule_any_more() } else { why };
                let record = Record { rule: rule.or_else(|| record.rule.clone()), ..record };
                self.end_record(record.number, &record, message_id.as_deref(), &why);
            }
        }
    }
}
