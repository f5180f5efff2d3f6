//! Sends messages, and causes one fault in each round.
//!
//! Owns: the random numbers, which message was sent, the faults and how often each happened, the quiet at the end.
//! Must not know: what the rules do, which results are right.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use c2d_agent::feedback::FeedbackStatus;

use super::back_end::{Door, Hub, NotQueued};
use super::gateway::{Gateway, Stands};
use crate::harness::{DEADLINE, Process};

/// Most connections that one life of the agent loses. Its delay doubles with each, and rounds would only wait.
const LOSSES: u32 = 2;

/// A message that was sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sent {
    pub(crate) action: String,
    pub(crate) properties: Vec<(&'static str, String)>,
}

/// A hub, a gateway, and the faults that they had.
pub(crate) struct Campaign {
    pub(crate) hub: Hub,
    pub(crate) gateway: Gateway,
    pub(crate) random: fastrand::Rng,
    pub(crate) seed: u64,
    /// Every message that the hub took, by its id.
    pub(crate) sent: BTreeMap<String, Sent>,
    /// Ids of messages that a restarted hub has forgotten.
    forgotten: VecDeque<String>,
    /// Whether a restarted hub may have forgotten its queues.
    pub(crate) forgets: bool,
    /// Whether the ids are UUIDs. Over AMQP a hub that has forgotten a message gives it another sequence number.
    uuids: bool,
    ids: u64,
    hub_restarts: usize,
    sent_again: usize,
    /// A second agent, started beside the running one.
    second: Option<Process>,
    seen_off: usize,
    handed_over: usize,
}

impl Campaign {
    /// Starts everything, with a seed from `C2D_SOAK_SEED` or a new one, and prints it.
    pub(crate) fn new(rest: &str) -> Self {
        Self::through(Door::C2d, rest)
    }

    /// As [`Campaign::new`], with messages through this door.
    pub(crate) fn through(door: Door, rest: &str) -> Self {
        let seed = std::env::var("C2D_SOAK_SEED").ok().filter(|text| !text.is_empty());
        let seed =
            seed.map_or_else(|| fastrand::u64(..), |text| text.parse().expect("C2D_SOAK_SEED is a number"));
        eprintln!("seed: {seed} (C2D_SOAK_SEED={seed} makes the same choices again)");
        let hub = Hub::start_with(door);
        let mut gateway = Gateway::new(&hub, rest);
        gateway.start_subscribed();
        Self {
            hub,
            gateway,
            random: fastrand::Rng::with_seed(seed),
            seed,
            sent: BTreeMap::new(),
            forgotten: VecDeque::new(),
            forgets: true,
            uuids: rest.contains("transport = \"amqp"),
            ids: 0,
            hub_restarts: 0,
            sent_again: 0,
            second: None,
            seen_off: 0,
            handed_over: 0,
        }
    }

    /// The number of rounds: `C2D_SOAK_ROUNDS`, or else `default`.
    pub(crate) fn rounds(default: usize) -> usize {
        let rounds = std::env::var("C2D_SOAK_ROUNDS").ok();
        rounds.map_or(default, |text| text.parse().expect("C2D_SOAK_ROUNDS is a number"))
    }

    /// Sends up to `most` messages, as many as the device's queue has room for. Messages that the hub forgot go first.
    pub(crate) fn flow(&mut self, most: usize, mut next: impl FnMut(&mut fastrand::Rng) -> Sent) {
        if !self.send_forgotten() {
            return;
        }
        for _ in 0..self.random.usize(0..=most) {
            let id = self.id(self.ids + 1);
            let message = next(&mut self.random);
            if !self.queue(&id, &message) {
                return;
            }
            self.ids += 1;
            self.sent.insert(id, message);
        }
    }

    /// Sends messages until the hub has taken `count` more.
    pub(crate) fn send(
        &mut self,
        count: usize,
        mut next: impl FnMut(&mut fastrand::Rng) -> Sent,
    ) -> Vec<String> {
        let before = self.ids;
        let end = Instant::now() + DEADLINE;
        while self.ids < before + count as u64 {
            assert!(Instant::now() < end, "seed {}: the device's queue stays full", self.seed);
            let left = before + count as u64 - self.ids;
            self.flow(usize::try_from(left).expect("few"), &mut next);
        }
        (before + 1..=self.ids).map(|number| self.id(number)).collect()
    }

    fn id(&self, number: u64) -> String {
        if self.uuids {
            format!("m-{number}-6e9ab0f3-1b59-4c4f-8e1d-{number:012}")
        } else {
            format!("m-{number}")
        }
    }

    /// Queues a message. False if the queue has no room for it.
    pub(crate) fn queue(&self, id: &str, message: &Sent) -> bool {
        let properties: Vec<(&str, &str)> =
            message.properties.iter().map(|(name, value)| (*name, value.as_str())).collect();
        match self.hub.send(id, &message.action, &properties) {
            Ok(()) => true,
            Err(NotQueued::Full) => false,
            Err(NotQueued::Other(reason)) => panic!("seed {}: {id} cannot be sent: {reason}", self.seed),
        }
    }

    /// Queues forgotten messages again. False if the queue has no room for all of them.
    fn send_forgotten(&mut self) -> bool {
        while let Some(id) = self.forgotten.front() {
            let message = self.sent.get(id).expect("it was sent").clone();
            if !self.queue(id, &message) {
                return false;
            }
            self.sent_again += 1;
            self.forgotten.pop_front();
        }
        true
    }

    /// Causes one fault, or none, at a random instant at most 150 ms from now.
    pub(crate) fn fault(&mut self) {
        // The square makes early instants more likely, while more actions run.
        let instant = Duration::from_millis(150).mul_f64(self.random.f64().powi(2));
        std::thread::park_timeout(instant);
        let worn = self.gateway.losses >= LOSSES;
        match self.random.u32(0..100) {
            0..10 if !worn => self.gateway.expect_running(),
            10..30 if !worn => self.gateway.cut(),
            30..38 if !worn => self.restart_hub(),
            38..50 => self.restart(Gateway::terminate),
            50..62 => self.gateway.reload(self.random.u32(1..6)),
            _ => self.restart(Gateway::kill),
        }
        if self.second.is_none() && self.random.u32(0..40) == 0 {
            self.second = Some(self.gateway.start_second());
        }
        // Usually waits for the subscription. Otherwise the agent would be killed before it does any work, and the
        // queue would become full.
        if self.gateway.losses == 0 && self.random.u32(0..4) > 0 {
            self.gateway.agent().stderr.wait_for("subscribed");
        }
    }

    /// Ends the agent. If a second agent waits for this end, it becomes the next one. In half of the calls, the second
    /// agent must first give up.
    fn restart(&mut self, end: impl FnOnce(&mut Gateway)) {
        if self.random.bool() {
            self.see_off();
        }
        end(&mut self.gateway);
        let took_over = self.second.take().is_some_and(|second| self.gateway.hand_over(second));
        if took_over {
            self.handed_over += 1;
        } else {
            self.gateway.start();
        }
    }

    /// Waits for the end of the second agent while the first one runs: exit code 1, and no contact to the hub.
    fn see_off(&mut self) {
        let Some(second) = self.second.take() else { return };
        self.seen_off += 1;
        let (code, log) = (second.wait_exit().code(), second.stderr.text());
        let right = code == Some(1) && log.contains("is in use by process") && !log.contains("connecting");
        assert!(right, "seed {}: the second agent ended with {code:?}:\n{log}", self.seed);
        self.gateway.expect_running();
    }

    /// Stops the hub and starts it again. Sometimes the hub forgets its queues.
    fn restart_hub(&mut self) {
        self.hub_restarts += 1;
        self.gateway.losses += 2; // the connection, and one or two attempts meanwhile
        let expected = self.gateway.losses;
        if self.random.bool() || !self.forgets {
            self.hub.restart(|| ());
            assert_eq!(self.gateway.losses, expected);
            return;
        }
        self.hub.restart_forgetful(|| ());
        assert_eq!(self.gateway.losses, expected);
        let feedback = self.hub.feedback();
        self.forgotten = self.sent.keys().filter(|id| !feedback.contains_key(*id)).cloned().collect();
        // Forgotten messages are sent again in their first order.
        let number = |id: &String| id.split('-').nth(1).and_then(|number| number.parse::<u64>().ok());
        self.forgotten.make_contiguous().sort_by_key(|id| number(id).expect("a number"));
    }

    /// Causes no more faults. Waits until every message is completed at the hub and has ended in the inbox.
    pub(crate) fn quiet(&mut self) -> BTreeMap<String, Stands> {
        self.see_off();
        if self.gateway.losses > 0 {
            // A new agent has no long delay before it connects again.
            self.gateway.terminate();
            self.gateway.start();
        }
        let end = Instant::now() + DEADLINE;
        while !self.send_forgotten() {
            assert!(Instant::now() < end, "seed {}: the device's queue stays full", self.seed);
            std::thread::park_timeout(Duration::from_millis(10)); // room in a queue has no event: poll
        }
        let sent = &self.sent;
        if !self.hub.wait_feedback(2 * DEADLINE, |feedback| sent.keys().all(|id| feedback.contains_key(id))) {
            let feedback = self.hub.feedback();
            let missing: Vec<_> = sent.keys().filter(|id| !feedback.contains_key(*id)).take(5).collect();
            let stories = missing.iter().map(|id| self.gateway.story(id)).collect::<Vec<_>>().join("\n");
            panic!("seed {}: no feedback for {missing:?}\n{stories}", self.seed);
        }
        self.gateway.settled_inbox()
    }

    /// The faults in one line.
    pub(crate) fn faults(&self) -> String {
        let Gateway { kills, terms, cuts, reloads, .. } = &self.gateway;
        format!(
            "{kills} kills, {terms} SIGTERMs, {cuts} cuts, {reloads} reloads, {} restarts of the hub; {} redeliveries by the hub, {} \
             messages queued again after it forgot them; {} second agents were seen off, {} took over",
            self.hub_restarts,
            self.hub.redelivered(),
            self.sent_again,
            self.seen_off,
            self.handed_over
        )
    }

    /// A problem with one message, with all log lines about the message.
    pub(crate) fn problem(&self, id: &str, what: &str) -> String {
        format!("{id} ({}): {what}\n{}", self.sent[id].action, self.gateway.story(id))
    }

    /// Checks what must be true for every message and every rule: the hub got only its completion, and the inbox knows
    /// how it ended. No life logged an error, except lines that contain one of `expected`.
    pub(crate) fn problems(&self, inbox: &BTreeMap<String, Stands>, expected: &[&str]) -> Vec<String> {
        let feedback = self.hub.feedback();
        let mut found = Vec::new();
        for id in self.sent.keys() {
            match feedback.get(id).map(Vec::as_slice) {
                Some(all) if all.iter().all(|status| *status == FeedbackStatus::Success) => {}
                other => found.push(self.problem(id, &format!("feedback is {other:?}"))),
            }
            match inbox.get(id).map(|stands| stands.outcome.as_deref()) {
                Some(Some("succeeded" | "interrupted")) => {}
                other => found.push(self.problem(id, &format!("in the inbox it is {other:?}"))),
            }
        }
        for (life, log) in self.gateway.lives().iter().enumerate() {
            let bad = log.lines().filter(|line| line.contains("panicked") || line.contains("ERROR"));
            let bad = bad.filter(|line| !expected.iter().any(|part| line.contains(part)));
            found.extend(bad.map(|line| format!("life {life} says: {line}")));
        }
        found
    }

    /// Fails with the seed and the first problems, if there are any.
    pub(crate) fn judge(&self, found: &[String]) {
        let shown = found.iter().take(8).cloned().collect::<Vec<_>>().join("\n");
        assert!(found.is_empty(), "seed {}: {} problems, the first are:\n{shown}", self.seed, found.len());
    }
}
