//! The messages in hand: taken from the session or the inbox, and not ended yet.
//!
//! Owns: what is known of each, and how many there may be. Must not know: how they get on.

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

use super::answers::{self, End};
use super::ending::PassedOver;
use super::lanes::{Lane, LaneNames, Slot, Ticket, Whose};
use super::life::Since;
use super::sessions::Role;

/// Messages in hand at most: past this, more stay with the session, which stops reading.
const MOST: usize = 1024;
/// Their bytes at most.
const MOST_BYTES: usize = 4 * 1024 * 1024;

/// What stays the same for all messages of a rule.
#[derive(Debug)]
pub(super) struct RuleFacts {
    pub(super) name: String,
    pub(super) policy: Policy,
    pub(super) lanes: Arc<[Lane]>,
    pub(super) slot: Slot,
    /// Of a rule of the twin: how long an action of it may take.
    pub(super) longest_of_twin: Option<Duration>,
}

/// Where a message with an action is on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// The inbox has not answered yet. `starting`: its first attempt begins with the answer.
    Accepting {
        starting: bool,
    },
    /// It waits for its turn.
    Waiting,
    /// The inbox is asked to note the beginning of an attempt.
    Starting,
    Running,
    /// It waits for its next attempt.
    BackingOff,
    /// The inbox is asked to note its end.
    Ending,
}

/// A message with an action.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) message: C2dMessage,
    /// Of its last delivery.
    pub(super) since: Since,
    pub(super) rule: Arc<RuleFacts>,
    /// Absent while the action runs.
    pub(super) plan: Option<Plan>,
    pub(super) settled: Settled,
    /// Of its first delivery.
    pub(super) origin: Origin,
    /// When it was taken in hand.
    pub(super) entered: Instant,
    /// Every delivery of it that is not completed yet: more than one when the hub sent it again.
    pub(super) receipts: Vec<Receipt>,
    pub(super) number: Option<Number>,
    /// Attempts begun.
    pub(super) attempts: u32,
    /// Whether its rule says so: see [`Entry::runs_again`].
    pub(super) retry_on_crash: bool,
    /// Of a call that is to be tried again: how its last attempt ended, for a caller who cannot wait for the next one.
    pub(super) failed: Option<OutcomeReport>,
    /// Whether it is at the front of its lanes.
    pub(super) turn: bool,
    pub(super) phase: Phase,
    /// Why it is not to be acted on, since the rules changed while the inbox was asked.
    pub(super) passed_over: Option<PassedOver>,
    /// How it ended, once that is on its way to the inbox.
    pub(super) end: Option<End>,
}

/// How a message was delivered, as far as that tells whether it came before; all zeros when it came from the inbox.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Origin {
    pub(super) connection: u64,
    pub(super) redelivered: bool,
    pub(super) sequence: Option<Sequence>,
}

/// A message that is recorded as ended in the moment it is accepted.
#[derive(Debug)]
pub(super) struct Passing {
    pub(super) role: Role,
    pub(super) receipt: Receipt,
    /// None when it could not be decoded.
    pub(super) message: Option<C2dMessage>,
    pub(super) origin: Origin,
    pub(super) received: SystemTime,
    pub(super) outcome: OutcomeReport,
}

/// A message that the hub will send again.
#[derive(Debug)]
pub(super) struct Held {
    /// By which session it comes.
    pub(super) role: Role,
    pub(super) record: Record,
    /// From then on the hub has it no longer.
    pub(super) until: SystemTime,
}

/// All messages in hand.
#[derive(Debug, Default)]
pub(super) struct Hand {
    entries: HashMap<Ticket, Entry>,
    numbers: HashMap<Number, Ticket>,
    pub(super) passing: HashMap<Ticket, Passing>,
    /// Messages that were accepted before this process began, and that the hub still has.
    pub(super) held: HashMap<Number, Held>,
    /// Messages of earlier records that are recorded as ended now that they came again.
    pub(super) closing: HashMap<Number, Passing>,
    bytes: usize,
    last_ticket: Ticket,
}

impl Entry {
    pub(super) fn new(
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

    /// Whether it is a call whose answer is how its action ended.
    pub(super) fn has_caller(&self) -> bool {
        matches!(self.message.source(), Source::Method(_)) && self.settled == Settled::AfterAction
    }

    /// Whether it is such a call, and nobody can hear the answer any more.
    pub(super) fn is_call_of_nobody(&self) -> bool {
        self.has_caller() && !self.receipts.iter().any(Receipt::is_current)
    }

    /// Whether it is run again, by itself, when this process ends within its action. Not a call: its caller is told that the
    /// action was cut off, and calls again or does not.
    pub(super) fn runs_again(&self) -> bool {
        self.retry_on_crash && !self.has_caller()
    }

    /// Whether it waits for the beginning of its first attempt, and nothing of it is under way.
    fn has_not_begun(&self) -> bool {
        self.attempts == 0 && matches!(self.phase, Phase::Waiting | Phase::Accepting { starting: false })
    }

    /// Whether its action is under way.
    pub(super) fn is_running(&self) -> bool {
        self.phase == Phase::Running
    }

    /// Adds another delivery of the same message; those whose connection has gone are of no use any more.
    pub(super) fn add_receipt(&mut self, receipt: Receipt) {
        self.receipts.retain(Receipt::is_current);
        self.receipts.push(receipt);
    }

    /// Completes the message at the hub, as far as it was delivered, since it is recorded.
    pub(super) fn accept(&mut self) {
        for receipt in self.take_receipts() {
            answers::accepted(receipt, &self.message);
        }
    }

    /// Tells whoever delivered it how it ended.
    pub(super) fn finish(&mut self, end: &End) {
        let settlement = self.settlement(end.settlement);
        let end = End { settlement, ..end.clone() };
        self.take_receipts().into_iter().for_each(|receipt| end.tell(receipt));
    }

    /// Settles the message at the hub, as far as it was delivered. One that was to be completed when it was accepted is
    /// completed, however it ended.
    pub(super) fn settle(&mut self, settlement: Settlement) {
        let settlement = self.settlement(settlement);
        self.take_receipts().into_iter().for_each(|receipt| receipt.settle(settlement));
    }
}

impl Entry {
    /// What it is settled by, marked with its number.
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
    pub(super) fn next_ticket(&mut self) -> Ticket {
        self.last_ticket += 1;
        self.last_ticket
    }

    /// Whether more may be taken.
    pub(super) fn has_room(&self) -> bool {
        self.len() < MOST && self.bytes < MOST_BYTES
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len() + self.passing.len() + self.closing.len()
    }

    pub(super) fn insert(&mut self, ticket: Ticket, entry: Entry) {
        self.bytes += entry.message.wire_size();
        if let Some(number) = entry.number {
            self.numbers.insert(number, ticket);
        }
        self.entries.insert(ticket, entry);
    }

    pub(super) fn get(&mut self, ticket: Ticket) -> Option<&mut Entry> {
        self.entries.get_mut(&ticket)
    }

    /// The inbox gave the message this number.
    pub(super) fn set_number(&mut self, ticket: Ticket, number: Number) {
        if let Some(entry) = self.entries.get_mut(&ticket) {
            entry.number = Some(number);
            self.numbers.insert(number, ticket);
        }
    }

    pub(super) fn ticket_of(&self, number: Number) -> Option<Ticket> {
        self.numbers.get(&number).copied()
    }

    pub(super) fn remove(&mut self, ticket: Ticket) -> Option<Entry> {
        let entry = self.entries.remove(&ticket)?;
        self.bytes = self.bytes.saturating_sub(entry.message.wire_size());
        if let Some(number) = entry.number {
            self.numbers.remove(&number);
        }
        Some(entry)
    }

    /// Whether a message is in hand that has not been recorded yet or has an action.
    pub(super) fn has(&self, ticket: Ticket) -> bool {
        self.entries.contains_key(&ticket) || self.passing.contains_key(&ticket)
    }

    /// Gives up what is in hand of a call, for its receipt; messages stay.
    pub(super) fn take_calls(&mut self, ticket: Ticket) -> Vec<Receipt> {
        if self.passing.get(&ticket).is_some_and(|passing| passing.receipt.is_call()) {
            return self.passing.remove(&ticket).map(|passing| passing.receipt).into_iter().collect();
        }
        let is_call = |entry: &Entry| entry.receipts.iter().any(Receipt::is_call);
        if self.entries.get(&ticket).is_some_and(is_call) {
            return self.remove(ticket).map(|entry| entry.receipts).unwrap_or_default();
        }
        Vec::new()
    }

    /// The receipts of the calls of which nothing has begun.
    pub(super) fn take_callers(&mut self) -> Vec<Receipt> {
        let waits = |entry: &&mut Entry| {
            let phase = matches!(entry.phase, Phase::Accepting { .. } | Phase::Waiting | Phase::Starting);
            entry.has_caller() && entry.attempts == 0 && phase
        };
        self.entries.values_mut().filter(waits).flat_map(|entry| entry.receipts.drain(..)).collect()
    }

    /// Whether an answer of the inbox is outstanding that something is to follow.
    pub(super) fn awaits_the_inbox(&self) -> bool {
        let awaits =
            |entry: &Entry| matches!(entry.phase, Phase::Accepting { .. } | Phase::Starting | Phase::Ending);
        !self.passing.is_empty() || !self.closing.is_empty() || self.entries.values().any(awaits)
    }

    /// The messages that wait for the beginning of their first attempt, in the order in which they came.
    pub(super) fn not_begun(&self) -> Vec<Ticket> {
        let found = self.entries.iter().filter(|(_, entry)| entry.has_not_begun());
        let mut tickets: Vec<Ticket> = found.map(|(ticket, _)| *ticket).collect();
        tickets.sort_unstable();
        tickets
    }

    /// The messages that have begun and not ended, each with its rule: those whose turn it is first, and of these the ones
    /// under way before those that wait for a child slot to go on.
    pub(super) fn begun<T>(&self, mut each: impl FnMut(Ticket, &Arc<RuleFacts>) -> T) -> Vec<T> {
        let begun = |entry: &Entry| !entry.has_not_begun() && entry.phase != Phase::Ending;
        let mut found: Vec<_> = self.entries.iter().filter(|(_, entry)| begun(entry)).collect();
        found.sort_unstable_by_key(|(ticket, entry)| (!entry.turn, entry.phase == Phase::Waiting, **ticket));
        found.into_iter().map(|(ticket, entry)| each(*ticket, &entry.rule)).collect()
    }

    /// The messages in one of these phases, in the order in which they came.
    pub(super) fn tickets_in(&self, phases: &[Phase]) -> Vec<Ticket> {
        let found = self.entries.iter().filter(|(_, entry)| phases.contains(&entry.phase));
        let mut tickets: Vec<Ticket> = found.map(|(ticket, _)| *ticket).collect();
        tickets.sort_unstable();
        tickets
    }

    /// At the end: what is still in hand comes again. A call does not: its caller hears how it ended, recorded or not.
    pub(super) fn leave_all(self) {
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

    pub(super) fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.entries.values()
    }
}

impl RuleFacts {
    /// Of all rules of a configuration, by name. `names` counts the lanes.
    pub(super) fn of_all(config: &Config, names: &mut LaneNames) -> HashMap<String, Arc<Self>> {
        let of_twin: HashSet<&str> = config.twin_rules.iter().map(|rule| rule.rule.as_str()).collect();
        let facts = config.rules.iter().map(|rule| Self::new(rule, of_twin.contains(rule.name()), names));
        facts.map(|facts| (facts.name.clone(), Arc::new(facts))).collect()
    }

    /// `of_twin`: the owner did not write the rule.
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

    /// Whose an action of it is that was taken in hand at this time.
    pub(super) fn whose(&self, since: Instant) -> Whose {
        self.longest_of_twin.map_or(Whose::Owner(since), Whose::Twin)
    }
}
