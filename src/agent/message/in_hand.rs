//! The messages in hand: taken from the session or the inbox, and not ended yet.
//!
//! Owns: what is known of each message, and how many there may be. Must not know: how they are handled.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use crate::config::Config;
use crate::inbox::{Number, Record, Settled};
use crate::message::{C2dMessage, Sequence, Source};
use crate::outcome::OutcomeReport;
use crate::rules::{OnCrash, Plan, Policy, Rule};
use crate::session::{Receipt, Settlement};

use super::super::sessions::Role;
use super::calls::{self, End};
use super::end::PassedOver;
use super::lanes::{Lane, LaneNames, Slot, Ticket, Whose};
use super::life::Since;

/// Most messages in hand. If there are more, they stay with the session, which stops reading.
const MOST: usize = 1024;
/// Most bytes of messages in hand.
const MOST_BYTES: usize = 4 * 1024 * 1024;

/// The facts that all messages of a rule share.
#[derive(Debug)]
pub(in crate::agent) struct RuleFacts {
    pub(in crate::agent) name: String,
    pub(in crate::agent) policy: Policy,
    pub(in crate::agent) lanes: Arc<[Lane]>,
    pub(in crate::agent) slot: Slot,
    /// For a rule of the twin: the longest time that its action may take.
    pub(in crate::agent) longest_of_twin: Option<Duration>,
}

/// How far a message with an action has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::agent) enum Phase {
    /// The inbox has not answered yet. `starting`: the first attempt begins as soon as it answers.
    Accepting {
        starting: bool,
    },
    /// It waits for its turn.
    Waiting,
    /// The inbox was asked to record the start of an attempt.
    Starting,
    Running,
    /// It waits for its next attempt.
    BackingOff,
    /// The inbox was asked to record its end.
    Ending,
}

/// A message with an action.
#[derive(Debug)]
pub(in crate::agent) struct Entry {
    pub(in crate::agent) message: C2dMessage,
    /// Since when the agent has it, by its last delivery.
    pub(in crate::agent) since: Since,
    pub(in crate::agent) rule: Arc<RuleFacts>,
    /// Absent while the action runs.
    pub(in crate::agent) plan: Option<Plan>,
    pub(in crate::agent) settled: Settled,
    /// How it was first delivered.
    pub(in crate::agent) origin: Origin,
    /// When it was taken in hand.
    pub(in crate::agent) entered: Instant,
    /// Every delivery that is not completed yet. There are several if the hub sent the message again.
    pub(in crate::agent) receipts: Vec<Receipt>,
    pub(in crate::agent) number: Option<Number>,
    /// Attempts begun.
    pub(in crate::agent) attempts: u32,
    /// Whether its rule says to retry after a crash: see [`Entry::runs_again`].
    pub(in crate::agent) retry_on_crash: bool,
    /// For a call that is to be tried again: how its last attempt ended. If the agent stops in the pause, the caller
    /// gets this.
    pub(in crate::agent) failed: Option<OutcomeReport>,
    /// Whether it is at the front of its lanes.
    pub(in crate::agent) turn: bool,
    pub(in crate::agent) phase: Phase,
    /// Why it must not run any more. Set when the rules changed, or it became late, while the inbox had not answered.
    pub(in crate::agent) passed_over: Option<PassedOver>,
    /// How it ended. Set when the inbox is asked to record that.
    pub(in crate::agent) end: Option<End>,
}

/// How a message was delivered, as needed to tell whether it came before. All zero if it came from the inbox.
#[derive(Debug, Clone, Copy, Default)]
pub(in crate::agent) struct Origin {
    pub(in crate::agent) connection: u64,
    pub(in crate::agent) redelivered: bool,
    pub(in crate::agent) sequence: Option<Sequence>,
}

/// A message that is recorded as accepted and ended in one step, because no action runs.
#[derive(Debug)]
pub(in crate::agent) struct Passing {
    pub(in crate::agent) role: Role,
    pub(in crate::agent) receipt: Receipt,
    /// None if it could not be decoded.
    pub(in crate::agent) message: Option<C2dMessage>,
    pub(in crate::agent) origin: Origin,
    pub(in crate::agent) received: SystemTime,
    pub(in crate::agent) outcome: OutcomeReport,
}

/// A message that the hub will send again.
#[derive(Debug)]
pub(in crate::agent) struct Held {
    /// The session that will deliver it.
    pub(in crate::agent) role: Role,
    pub(in crate::agent) record: Record,
    /// After this time the hub no longer has it.
    pub(in crate::agent) until: SystemTime,
}

/// All messages in hand.
#[derive(Debug, Default)]
pub(in crate::agent) struct Hand {
    entries: HashMap<Ticket, Entry>,
    numbers: HashMap<Number, Ticket>,
    pub(in crate::agent) passing: HashMap<Ticket, Passing>,
    /// Messages that an earlier process accepted, and that the hub still has.
    pub(in crate::agent) held: HashMap<Number, Held>,
    /// Messages of earlier records that came again, and that are now being recorded as ended.
    pub(in crate::agent) closing: HashMap<Number, Passing>,
    bytes: usize,
    last_ticket: Ticket,
}

impl Entry {
    pub(in crate::agent) fn new(
        message: C2dMessage,
        since: Since,
        rule: Arc<RuleFacts>,
        plan: Plan,
        settled: Settled,
    ) -> Self {
        let retry_on_crash = rule.policy.on_crash(&plan) == OnCrash::Retry;
        Self {
            message,
            since,
            rule,
            plan: Some(plan),
            settled,
            origin: Origin::default(),
            entered: Instant::now(),
            receipts: Vec::new(),
            number: None,
            attempts: 0,
            retry_on_crash,
            failed: None,
            turn: false,
            phase: Phase::Waiting,
            passed_over: None,
            end: None,
        }
    }

    /// Whether it is a call whose caller waits for the result of the action.
    pub(in crate::agent) fn has_caller(&self) -> bool {
        matches!(self.message.source(), Source::Method(_)) && self.settled == Settled::AfterAction
    }

    /// Whether it is such a call, but its caller cannot receive the answer any more.
    pub(in crate::agent) fn is_call_of_nobody(&self) -> bool {
        self.has_caller() && !self.receipts.iter().any(Receipt::is_current)
    }

    /// Whether it runs again by itself if this process ends during its action. A call does not: its caller is told
    /// that the action was interrupted, and decides whether to call again.
    pub(in crate::agent) fn runs_again(&self) -> bool {
        self.retry_on_crash && !self.has_caller()
    }

    /// Whether it waits for its first attempt, and the inbox is not recording a start.
    fn has_not_begun(&self) -> bool {
        self.attempts == 0 && matches!(self.phase, Phase::Waiting | Phase::Accepting { starting: false })
    }

    /// Whether its action is under way.
    pub(in crate::agent) fn is_running(&self) -> bool {
        self.phase == Phase::Running
    }

    /// Adds another delivery of the message. Receipts of closed connections are removed, because they have no use.
    pub(in crate::agent) fn add_receipt(&mut self, receipt: Receipt) {
        self.receipts.retain(Receipt::is_current);
        self.receipts.push(receipt);
    }

    /// Completes all its deliveries at the hub, since it is recorded.
    pub(in crate::agent) fn accept(&mut self) {
        for receipt in self.take_receipts() {
            calls::accepted(receipt, &self.message);
        }
    }

    /// Settles the message or answers the caller, with how it ended.
    pub(in crate::agent) fn finish(&mut self, end: &End) {
        let settlement = self.settlement(end.settlement);
        let end = End { settlement, ..end.clone() };
        self.take_receipts().into_iter().for_each(|receipt| end.tell(receipt));
    }

    /// Settles all its deliveries at the hub. A message with `settle = "on-accept"` is always completed, however it
    /// ended.
    pub(in crate::agent) fn settle(&mut self, settlement: Settlement) {
        let settlement = self.settlement(settlement);
        self.take_receipts().into_iter().for_each(|receipt| receipt.settle(settlement));
    }
}

impl Entry {
    /// Takes the receipts out, marked with the message's number.
    fn take_receipts(&mut self) -> Vec<Receipt> {
        let receipts = std::mem::take(&mut self.receipts).into_iter();
        let number = self.number;
        receipts
            .map(|receipt| match number {
                Some(number) => receipt.marked(number.0),
                None => receipt,
            })
            .collect()
    }

    fn settlement(&self, settlement: Settlement) -> Settlement {
        match self.settled {
            Settled::OnAccept => Settlement::Complete,
            Settled::AfterAction => settlement,
        }
    }
}

impl Hand {
    pub(in crate::agent) fn next_ticket(&mut self) -> Ticket {
        self.last_ticket += 1;
        self.last_ticket
    }

    /// Whether more messages may be taken.
    pub(in crate::agent) fn has_room(&self) -> bool {
        self.len() < MOST && self.bytes < MOST_BYTES
    }

    pub(in crate::agent) fn len(&self) -> usize {
        self.entries.len() + self.passing.len() + self.closing.len()
    }

    pub(in crate::agent) fn insert(&mut self, ticket: Ticket, entry: Entry) {
        self.bytes += entry.message.wire_size();
        if let Some(number) = entry.number {
            self.numbers.insert(number, ticket);
        }
        self.entries.insert(ticket, entry);
    }

    pub(in crate::agent) fn get(&mut self, ticket: Ticket) -> Option<&mut Entry> {
        self.entries.get_mut(&ticket)
    }

    /// Stores the number that the inbox gave the message.
    pub(in crate::agent) fn set_number(&mut self, ticket: Ticket, number: Number) {
        if let Some(entry) = self.entries.get_mut(&ticket) {
            entry.number = Some(number);
            self.numbers.insert(number, ticket);
        }
    }

    pub(in crate::agent) fn ticket_of(&self, number: Number) -> Option<Ticket> {
        self.numbers.get(&number).copied()
    }

    pub(in crate::agent) fn remove(&mut self, ticket: Ticket) -> Option<Entry> {
        let entry = self.entries.remove(&ticket)?;
        self.bytes = self.bytes.saturating_sub(entry.message.wire_size());
        if let Some(number) = entry.number {
            self.numbers.remove(&number);
        }
        Some(entry)
    }

    /// Whether this message is in hand, with an action or while the inbox is recording it.
    pub(in crate::agent) fn has(&self, ticket: Ticket) -> bool {
        self.entries.contains_key(&ticket) || self.passing.contains_key(&ticket)
    }

    /// Removes the calls of this ticket and returns their receipts. Messages stay in hand.
    pub(in crate::agent) fn take_calls(&mut self, ticket: Ticket) -> Vec<Receipt> {
        if self.passing.get(&ticket).is_some_and(|passing| passing.receipt.is_call()) {
            return self.passing.remove(&ticket).map(|passing| passing.receipt).into_iter().collect();
        }
        let is_call = |entry: &Entry| entry.receipts.iter().any(Receipt::is_call);
        if self.entries.get(&ticket).is_some_and(is_call) {
            return self.remove(ticket).map(|entry| entry.receipts).unwrap_or_default();
        }
        Vec::new()
    }

    /// Takes the receipts of the calls whose action has not begun.
    pub(in crate::agent) fn take_callers(&mut self) -> Vec<Receipt> {
        let waits = |entry: &&mut Entry| {
            let phase = matches!(entry.phase, Phase::Accepting { .. } | Phase::Waiting | Phase::Starting);
            entry.has_caller() && entry.attempts == 0 && phase
        };
        self.entries.values_mut().filter(waits).flat_map(|entry| entry.receipts.drain(..)).collect()
    }

    /// Whether the inbox has still to answer something, after which more is to be done.
    pub(in crate::agent) fn awaits_the_inbox(&self) -> bool {
        let awaits =
            |entry: &Entry| matches!(entry.phase, Phase::Accepting { .. } | Phase::Starting | Phase::Ending);
        !self.passing.is_empty() || !self.closing.is_empty() || self.entries.values().any(awaits)
    }

    /// The messages that wait for their first attempt, in order of arrival.
    pub(in crate::agent) fn not_begun(&self) -> Vec<Ticket> {
        let found = self.entries.iter().filter(|(_, entry)| entry.has_not_begun());
        let mut tickets: Vec<Ticket> = found.map(|(ticket, _)| *ticket).collect();
        tickets.sort_unstable();
        tickets
    }

    /// Calls `each` for the messages that have begun and not ended, with their rules. Messages at the front of their
    /// lanes come first. Among these, running ones come before those that wait for a child slot.
    pub(in crate::agent) fn begun<T>(&self, mut each: impl FnMut(Ticket, &Arc<RuleFacts>) -> T) -> Vec<T> {
        let begun = |entry: &Entry| !entry.has_not_begun() && entry.phase != Phase::Ending;
        let mut found: Vec<_> = self.entries.iter().filter(|(_, entry)| begun(entry)).collect();
        found.sort_unstable_by_key(|(ticket, entry)| (!entry.turn, entry.phase == Phase::Waiting, **ticket));
        found.into_iter().map(|(ticket, entry)| each(*ticket, &entry.rule)).collect()
    }

    /// The messages in one of these phases, in order of arrival.
    pub(in crate::agent) fn tickets_in(&self, phases: &[Phase]) -> Vec<Ticket> {
        let found = self.entries.iter().filter(|(_, entry)| phases.contains(&entry.phase));
        let mut tickets: Vec<Ticket> = found.map(|(ticket, _)| *ticket).collect();
        tickets.sort_unstable();
        tickets
    }

    /// Leaves everything at the end, so that the hub sends it again. Calls do not come again, so their callers are
    /// told how they ended, even if that is not recorded.
    pub(in crate::agent) fn leave_all(self) {
        for Entry { receipts, end, .. } in self.entries.into_values() {
            for receipt in receipts {
                match &end {
                    Some(end) if receipt.is_call() => end.tell(receipt),
                    _ => receipt.leave(),
                }
            }
        }
        let others = self.passing.into_values().chain(self.closing.into_values());
        others.for_each(|passing| passing.receipt.leave());
    }

    pub(in crate::agent) fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.entries.values()
    }
}

impl RuleFacts {
    /// The facts of all rules of a configuration, by name. `names` counts the lanes.
    pub(in crate::agent) fn of_all(config: &Config, names: &mut LaneNames) -> HashMap<String, Arc<Self>> {
        let of_twin: HashSet<&str> = config.twin_rules.iter().map(|rule| rule.rule.as_str()).collect();
        let facts = config.rules.iter().map(|rule| Self::new(rule, of_twin.contains(rule.name()), names));
        facts.map(|facts| (facts.name.clone(), Arc::new(facts))).collect()
    }

    /// `of_twin`: the rule came from the twin, not from the owner.
    fn new(rule: &Rule, of_twin: bool, names: &mut LaneNames) -> Self {
        let policy = rule.policy().clone();
        let lanes = names.lanes(&policy.lanes);
        let slot = match (rule.has_child(), of_twin) {
            (false, _) => Slot::None,
            (true, false) => Slot::Any,
            (true, true) => Slot::Spare,
        };
        let longest_of_twin = of_twin.then(|| rule.longest());
        Self { name: rule.name().to_owned(), policy, lanes, slot, longest_of_twin }
    }

    /// Who wrote this rule, for an action that was taken in hand at this time.
    pub(in crate::agent) fn whose(&self, since: Instant) -> Whose {
        self.longest_of_twin.map_or(Whose::Owner(since), Whose::Twin)
    }
}
