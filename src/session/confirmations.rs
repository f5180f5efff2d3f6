//! Which completions the hub is known to have.
//!
//! Owns: the proof of one connection ([`Pings`]), and what is told of it over all connections ([`Confirmations`]).
//! Must not know: packets, what a mark stands for.
//!
//! MQTT has no answer to a PUBACK. But a hub reads what it is sent in order: once it has answered a PINGREQ that was sent after a
//! PUBACK, it has that PUBACK, too (MQTT 3.1.1 section 4.6). So a ping follows PUBACKs, one at a time. Over AMQP nothing is told: there a
//! sequence number says which message comes again.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// What stands for a completion: given with it, and told when the hub has it.
pub(super) type Mark = u64;

/// The completions of one connection whose PUBACK is on the wire. Pure.
#[derive(Debug, Default)]
pub(super) struct Pings {
    /// On the wire since the last ping of its own.
    sent: Vec<Mark>,
    /// On the wire before that ping; none, while there is no such ping under way.
    covered: Option<Vec<Mark>>,
    /// All pings that are not answered yet, those of the keep-alive among them.
    unanswered: usize,
}

impl Pings {
    /// A PUBACK is on the wire.
    pub(super) fn sent(&mut self, mark: Option<Mark>) {
        self.sent.extend(mark);
    }

    /// Whether to send a PINGREQ now; it counts as sent then.
    pub(super) fn begin(&mut self) -> bool {
        if self.sent.is_empty() || self.covered.is_some() {
            return false;
        }
        self.covered = Some(std::mem::take(&mut self.sent));
        self.unanswered += 1;
        true
    }

    /// Another PINGREQ was sent, that of the keep-alive.
    pub(super) fn begun(&mut self) {
        self.unanswered += 1;
    }

    /// A PINGRESP came: what is confirmed by it. Only when no ping is unanswered any more: one of the keep-alive may have been sent
    /// before a PUBACK, although it was told of later.
    pub(super) fn answered(&mut self) -> Vec<Mark> {
        self.unanswered = self.unanswered.saturating_sub(1);
        if self.unanswered > 0 { Vec::new() } else { self.covered.take().unwrap_or_default() }
    }
}

/// What a session tells of its completions.
#[derive(Debug, Default)]
pub(super) struct Confirmations {
    state: Mutex<State>,
    told: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// Taken whenever the agent asks for the next event.
    confirmed: Vec<Mark>,
    /// Completions that may still be confirmed.
    open: usize,
}

impl Confirmations {
    /// A completion with a mark was given to a connection.
    pub(super) fn begin(&self) {
        self.lock().open += 1;
    }

    /// The hub has these.
    pub(super) fn confirm(&self, marks: Vec<Mark>) {
        if marks.is_empty() {
            return;
        }
        let mut state = self.lock();
        state.open = state.open.saturating_sub(marks.len());
        state.confirmed.extend(marks);
        drop(state);
        self.told.notify_one();
    }

    /// The connection of so many has gone: nothing will be told of them.
    pub(super) fn lose(&self, count: usize) {
        if count == 0 {
            return;
        }
        let mut state = self.lock();
        state.open = state.open.saturating_sub(count);
        drop(state);
        self.told.notify_one();
    }

    /// Whether something may still be confirmed, or is not told yet.
    pub(super) fn are_open(&self) -> bool {
        let state = self.lock();
        state.open > 0 || !state.confirmed.is_empty()
    }

    /// What was confirmed; empty, when a connection was lost before. Cancel safe.
    pub(super) async fn next(&self) -> Vec<Mark> {
        self.told.notified().await;
        std::mem::take(&mut self.lock().confirmed)
    }

    /// Nothing here can panic while the lock is held, so a poisoned lock holds a sound state.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOTHING: [Mark; 0] = [];

    #[test]
    fn what_was_on_the_wire_before_a_ping_is_confirmed_by_its_answer() {
        let mut pings = Pings::default();
        assert!(!pings.begin(), "there is nothing to ask for");
        pings.sent(Some(1));
        assert!(pings.begin());
        pings.sent(Some(2));
        assert!(!pings.begin(), "one at a time");
        assert_eq!(pings.answered(), [1]);
        assert!(pings.begin());
        assert_eq!(pings.answered(), [2]);
    }

    #[test]
    fn the_answer_to_a_ping_of_the_keep_alive_proves_nothing_alone() {
        let mut pings = Pings::default();
        pings.sent(Some(1));
        assert!(pings.begin());
        // It was on the wire before the PUBACK, and is told of only now.
        pings.begun();
        assert_eq!(pings.answered(), NOTHING);
        assert_eq!(pings.answered(), [1]);
        pings.begun();
        assert_eq!(pings.answered(), NOTHING);
        assert_eq!(pings.answered(), NOTHING, "an answer that nobody asked for");
    }
}
