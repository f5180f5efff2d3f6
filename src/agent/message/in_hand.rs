//! The messages in hand: taken from the session or the inbox, and not ended yet.
//!
//! Owns: what is known of each message, its place in the lanes, what runs, and how many messages there may be. Must
//! not know: how messages are handled.

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::stream::FuturesUnordered;
use tokio::time::Instant;

use crate::action::Outcome;
use crate::inbox::{Number, Record, Settled};
use crate::message::{C2dMessage, Sequence};
use crate::outcome::OutcomeReport;
use crate::rules::{OnCrash, Plan};
use crate::session::{Receipt, Settlement};

use super::guards::Guards;
use super::lanes::{ActionId, Lanes};
use super::life::Since;
use super::reason::PassedOver;
use crate::agent::rulebook::{RuleFacts, Rulebook};
use crate::agent::sessions::Role;

/// Most messages in hand. If there are more, they stay with the session, which stops reading.
const MOST: usize = 1024;
/// Most bytes of messages in hand.
const MOST_BYTES: usize = 4 * 1024 * 1024;
/// How long to wait before a message is offered again to a full inbox.
const OFFER_AGAIN: Duration = Duration::from_secs(5);

/// An action, or a wait before its next attempt.
pub(crate) type Running = Pin<Box<dyn Future<Output = RunResult> + Send>>;

/// The result of one of the running futures.
pub(crate) enum RunResult {
    /// An attempt has ended.
    Acted { id: ActionId, plan: Plan, outcome: Box<Outcome> },
    /// The pause before the next attempt is over.
    Rested { id: ActionId },
}

/// How far a message with an action has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
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
pub(crate) struct MessageEntry {
    pub(crate) message: C2dMessage,
    /// Since when the agent has it, by its last delivery.
    pub(crate) since: Since,
    pub(crate) rule: Arc<RuleFacts>,
    /// Absent while the action runs.
    pub(crate) plan: Option<Plan>,
    pub(crate) settled: Settled,
    /// How it was first delivered.
    pub(crate) origin: Origin,
    /// When it was taken in hand.
    pub(crate) entered: Instant,
    /// Every delivery that is not completed yet. There are several if the hub sent the message again.
    pub(crate) receipts: Vec<Receipt>,
    pub(crate) number: Option<Number>,
    /// Attempts begun.
    pub(crate) attempts: u32,
    /// Whether its rule says to retry after a crash. A call with a waiting caller is never retried: see `calls.rs`.
    pub(crate) retry_on_crash: bool,
    /// For a call that is to be tried again: how its last attempt ended. If the agent stops in the pause, the caller
    /// gets this.
    pub(crate) failed: Option<OutcomeReport>,
    /// Whether it is at the front of its lanes.
    pub(crate) turn: bool,
    pub(crate) stage: Stage,
    /// Why it must not run any more. Set when the rules changed, or it became late, while the inbox had not answered.
    pub(crate) passed_over: Option<PassedOver>,
    /// How it ended. Set when the inbox is asked to record that.
    pub(crate) end: Option<MessageEnd>,
}

/// How a message ended, for the sender or the caller.
#[derive(Debug)]
pub(crate) struct MessageEnd {
    pub(crate) outcome: OutcomeReport,
    /// How to settle it, if it is a message.
    pub(crate) settlement: Settlement,
    /// Whether a guard of its rule refused it.
    pub(crate) guarded: bool,
}

/// How a message was delivered, as needed to tell whether it came before. All zero if it came from the inbox.
#[derive(Debug, Clone, Default)]
pub(crate) struct Origin {
    /// As in [`Delivery`](crate::session::Delivery).
    pub(crate) from: Option<Arc<str>>,
    pub(crate) connection: u64,
    pub(crate) redelivered: bool,
    pub(crate) sequence: Option<Sequence>,
}

/// A message that is recorded as accepted and ended in one step, because no action runs.
#[derive(Debug)]
pub(crate) struct Passing {
    /// Set if an earlier record of the message has not ended, and is being ended now.
    pub(crate) number: Option<Number>,
    pub(crate) role: Role,
    pub(crate) receipts: Vec<Receipt>,
    /// None if it could not be decoded.
    pub(crate) message: Option<C2dMessage>,
    pub(crate) origin: Origin,
    pub(crate) received: SystemTime,
    pub(crate) outcome: OutcomeReport,
}

/// A message that the hub will send again.
#[derive(Debug)]
pub(crate) struct HeldMessage {
    /// The session that will deliver it.
    pub(crate) role: Role,
    pub(crate) record: Record,
    /// After this time the hub no longer has it.
    pub(crate) until: SystemTime,
}

/// All messages in hand.
#[derive(Default)]
pub(crate) struct InHand {
    // In order of their numbers. These maps are asked a dozen times for each message, and comparing numbers takes less
    // time than hashing them.
    /// In boxes, because an entry is large and would be moved with its neighbours.
    entries: BTreeMap<ActionId, Box<MessageEntry>>,
    numbers: BTreeMap<Number, ActionId>,
    passing: BTreeMap<ActionId, Passing>,
    bytes: usize,
    last_id: ActionId,
    /// Messages that an earlier process accepted, and that the hub still has.
    pub(crate) held: HashMap<Number, HeldMessage>,
    /// When to look for messages that the hub should send again but no longer has.
    pub(crate) held_look: Option<Instant>,
    /// Messages that the inbox had no room for, until they are offered to it again.
    turned_away: Vec<ActionId>,
    turned_away_retry: Option<Instant>,
    pub(crate) lanes: Lanes,
    pub(crate) guards: Guards,
    pub(crate) running: FuturesUnordered<Running>,
    /// Whether the inbox has told what it holds. Before that, no message is taken.
    pub(crate) opened: bool,
    /// Whether the agent is stopping, so that no message is taken and no action begins any more.
    pub(crate) stopping: bool,
}

impl MessageEntry {
    pub(crate) fn new(
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
            stage: Stage::Waiting,
            passed_over: None,
            end: None,
        }
    }

    /// Whether it waits for its first attempt, and the inbox is not recording a start.
    fn has_not_begun(&self) -> bool {
        self.attempts == 0 && matches!(self.stage, Stage::Waiting | Stage::Accepting { starting: false })
    }

    /// Whether its action is under way.
    pub(crate) fn is_running(&self) -> bool {
        self.stage == Stage::Running
    }

    /// Adds another delivery of the message. Receipts of closed connections are removed, because they have no use.
    pub(crate) fn add_receipt(&mut self, receipt: Receipt) {
        self.receipts.retain(Receipt::is_current);
        self.receipts.push(receipt);
    }

    /// Takes the receipts out, marked with the message's number.
    pub(crate) fn take_receipts(&mut self) -> Vec<Receipt> {
        let receipts = std::mem::take(&mut self.receipts);
        let Some(number) = self.number else { return receipts };
        receipts.into_iter().map(|receipt| receipt.marked(number.0)).collect()
    }

    /// How to settle this message if it ended so. A message with `settle = "on-accept"` is always completed.
    pub(crate) fn settlement(&self, settlement: Settlement) -> Settlement {
        match self.settled {
            Settled::OnAccept => Settlement::Complete,
            Settled::AfterAction => settlement,
        }
    }

    /// Settles all its deliveries at the hub.
    pub(crate) fn settle(&mut self, settlement: Settlement) {
        let settlement = self.settlement(settlement);
        self.take_receipts().into_iter().for_each(|receipt| receipt.settle(settlement));
    }
}

impl Passing {
    fn bytes(&self) -> usize {
        self.message.as_ref().map_or(0, C2dMessage::wire_size)
    }
}

impl InHand {
    /// No messages, and the lanes of these rules.
    pub(crate) fn new(rules: &Rulebook) -> Self {
        Self { lanes: rules.empty_lanes(), ..Self::default() }
    }

    pub(crate) fn next_id(&mut self) -> ActionId {
        self.last_id.0 += 1;
        self.last_id
    }

    /// Whether more messages may be taken.
    pub(crate) fn has_room(&self) -> bool {
        self.opened && !self.stopping && self.len() < MOST && self.bytes < MOST_BYTES
    }

    fn len(&self) -> usize {
        self.entries.len() + self.passing.len()
    }

    pub(crate) fn insert(&mut self, id: ActionId, entry: Box<MessageEntry>) {
        self.bytes += entry.message.wire_size();
        if let Some(number) = entry.number {
            self.numbers.insert(number, id);
        }
        self.entries.insert(id, entry);
    }

    pub(crate) fn get(&mut self, id: ActionId) -> Option<&mut MessageEntry> {
        self.entries.get_mut(&id).map(Box::as_mut)
    }

    /// Stores the number that the inbox gave the message.
    pub(crate) fn set_number(&mut self, id: ActionId, number: Number) {
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.number = Some(number);
            self.numbers.insert(number, id);
        }
    }

    pub(crate) fn id_of(&self, number: Number) -> Option<ActionId> {
        self.numbers.get(&number).copied()
    }

    pub(crate) fn remove(&mut self, id: ActionId) -> Option<Box<MessageEntry>> {
        let entry = self.entries.remove(&id)?;
        self.bytes -= entry.message.wire_size();
        if let Some(number) = entry.number {
            self.numbers.remove(&number);
        }
        Some(entry)
    }

    pub(crate) fn insert_passing(&mut self, id: ActionId, passing: Passing) {
        self.bytes += passing.bytes();
        if let Some(number) = passing.number {
            self.numbers.insert(number, id);
        }
        self.passing.insert(id, passing);
    }

    pub(crate) fn passing(&self, id: ActionId) -> Option<&Passing> {
        self.passing.get(&id)
    }

    pub(crate) fn remove_passing(&mut self, id: ActionId) -> Option<Passing> {
        let passing = self.passing.remove(&id)?;
        self.bytes -= passing.bytes();
        if let Some(number) = passing.number {
            self.numbers.remove(&number);
        }
        Some(passing)
    }

    /// Keeps a message that the inbox has no room for, until it is offered again.
    pub(crate) fn turn_away(&mut self, id: ActionId) {
        if self.entries.contains_key(&id) || self.passing.contains_key(&id) {
            self.turned_away.push(id);
            self.turned_away_retry.get_or_insert(Instant::now() + OFFER_AGAIN);
        }
    }

    /// How many messages the inbox has no room for.
    pub(crate) fn turned_away(&self) -> usize {
        self.turned_away.len()
    }

    /// Takes the messages out that are to be offered again now.
    pub(crate) fn take_turned_away(&mut self) -> Vec<ActionId> {
        self.turned_away_retry = None;
        std::mem::take(&mut self.turned_away)
    }

    /// When to offer messages to the inbox again.
    pub(crate) fn next_offer(&self) -> Option<Instant> {
        self.turned_away_retry
    }

    /// When a message must be looked at even if nothing happens.
    pub(crate) fn wake(&self) -> Option<Instant> {
        let lanes = self.lanes.wake().filter(|_| !self.stopping);
        [lanes, self.turned_away_retry, self.held_look].into_iter().flatten().min()
    }

    /// Whether an action runs.
    pub(crate) fn is_running(&self) -> bool {
        self.entries().any(MessageEntry::is_running)
    }

    /// Whether the inbox has still to answer something, after which more is to be done.
    pub(crate) fn awaits_the_inbox(&self) -> bool {
        let awaits = |entry: &MessageEntry| {
            matches!(entry.stage, Stage::Accepting { .. } | Stage::Starting | Stage::Ending)
        };
        !self.passing.is_empty() || self.entries().any(awaits)
    }

    /// The messages for which this holds, in order of arrival.
    fn ids(&self, holds: impl Fn(&MessageEntry) -> bool) -> Vec<ActionId> {
        self.entries.iter().filter(|(_, entry)| holds(entry)).map(|(id, _)| *id).collect()
    }

    /// The messages that wait for their first attempt, in order of arrival.
    pub(crate) fn not_begun(&self) -> Vec<ActionId> {
        self.ids(MessageEntry::has_not_begun)
    }

    /// The messages that wait for their turn or for their next attempt, in order of arrival.
    pub(crate) fn waiting(&self) -> Vec<ActionId> {
        self.ids(|entry| matches!(entry.stage, Stage::Waiting | Stage::BackingOff))
    }

    /// The messages that have begun and not ended. Messages at the front of their lanes come first. Among these,
    /// running ones come before those that wait for a child slot.
    pub(crate) fn begun(&self) -> Vec<ActionId> {
        let mut begun = self.ids(|entry| !entry.has_not_begun() && entry.stage != Stage::Ending);
        // The sort is stable, so the order of arrival stays within each group.
        begun
            .sort_by_key(|id| self.entries.get(id).map(|entry| (!entry.turn, entry.stage == Stage::Waiting)));
        begun
    }

    pub(crate) fn entries(&self) -> impl Iterator<Item = &MessageEntry> {
        self.entries.values().map(Box::as_ref)
    }

    pub(crate) fn entries_mut(&mut self) -> impl Iterator<Item = &mut MessageEntry> {
        self.entries.values_mut().map(Box::as_mut)
    }

    /// Everything that is still in hand at the end: how it ended, if it did, and its receipts. What runs is dropped.
    pub(crate) fn into_rest(self) -> impl Iterator<Item = (Option<MessageEnd>, Vec<Receipt>)> {
        let entries = self.entries.into_values().map(|entry| (entry.end, entry.receipts));
        entries.chain(self.passing.into_values().map(|passing| (None, passing.receipts)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outcome::OutcomeKind;

    fn passing(number: Option<Number>, bytes: usize) -> Passing {
        let text = "unmatched: no rule matches it".to_owned();
        Passing {
            number,
            role: Role::Device,
            receipts: Vec::new(),
            message: Some(C2dMessage { body: vec![0; bytes].into(), ..C2dMessage::default() }),
            origin: Origin::default(),
            received: SystemTime::UNIX_EPOCH,
            outcome: OutcomeReport::without_action(OutcomeKind::Unmatched, text, String::new()),
        }
    }

    #[test]
    fn messages_that_nothing_is_done_with_count_for_the_bytes_in_hand() {
        let mut in_hand = InHand { opened: true, ..InHand::default() };
        in_hand.insert_passing(ActionId(1), passing(None, MOST_BYTES / 2));
        assert!(in_hand.has_room());
        in_hand.insert_passing(ActionId(2), passing(Some(Number(7)), MOST_BYTES / 2));
        assert!(!in_hand.has_room());
        assert_eq!(in_hand.id_of(Number(7)), Some(ActionId(2)));
        assert!(in_hand.remove_passing(ActionId(2)).is_some());
        assert!(in_hand.has_room());
        assert_eq!(in_hand.id_of(Number(7)), None);
    }
}
