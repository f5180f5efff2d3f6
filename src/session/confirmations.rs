//! Which completions the hub is known to have.
//!
//! Owns: the proof of one connection ([`Pings`]), and the reports over all connections ([`Confirmations`]).
//! Must not know: packets, what a mark stands for.
//!
//! MQTT has no answer to a PUBACK. But a hub reads its input in order: if it has answered a PINGREQ that was sent
//! after a PUBACK, it has that PUBACK, too (MQTT 3.1.1 section 4.6). So a ping follows PUBACKs, one at a time. AMQP
//! reports nothing here: its sequence numbers tell which message comes again.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// A number for a completion: given with it, and reported when the hub has it.
pub(super) type Mark = u64;

/// The completions of one connection whose PUBACK is on the wire. Pure.
#[derive(Debug, Default)]
pub(super) struct Pings {
    /// On the wire since the last ping that was sent for marks.
    sent: Vec<Mark>,
    /// On the wire before that ping; `None` while no such ping is unanswered.
    covered: Option<Vec<Mark>>,
    /// All pings without an answer, including those of the keep-alive.
    unanswered: usize,
}

impl Pings {
    /// A PUBACK is on the wire.
    pub(super) fn sent(&mut self, mark: Option<Mark>) {
        self.sent.extend(mark);
    }

    /// Whether to send a PINGREQ now. If true, the ping counts as sent.
    pub(super) fn begin(&mut self) -> bool {
        if self.sent.is_empty() || self.covered.is_some() {
            return false;
        }
        self.covered = Some(std::mem::take(&mut self.sent));
        self.unanswered += 1;
        true
    }

    /// A PINGREQ of the keep-alive was sent.
    pub(super) fn begun(&mut self) {
        self.unanswered += 1;
    }

    /// A PINGRESP came: returns what it confirms. That is nothing while another ping is unanswered: a ping of the
    /// keep-alive may have been sent before a PUBACK, although rumqttc reported it later.
    pub(super) fn answered(&mut self) -> Vec<Mark> {
        self.unanswered = self.unanswered.saturating_sub(1);
        if self.unanswered > 0 { Vec::new() } else { self.covered.take().unwrap_or_default() }
    }
}

/// What a session reports of its completions.
#[derive(Debug, Default)]
pub(super) struct Confirmations {
    state: Mutex<OpenMarks>,
    told: Notify,
}

#[derive(Debug, Default)]
struct OpenMarks {
    /// Emptied when the agent asks for the next event.
    confirmed: Vec<Mark>,
    /// Completions that may still be confirmed.
    open: usize,
}

impl Confirmations {
    /// A connection got a completion with a mark.
    pub(super) fn begin(&self) {
        self.lock().open += 1;
    }

    /// The hub has these completions.
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

    /// The connection of `count` completions has gone: they will not be confirmed.
    pub(super) fn lose(&self, count: usize) {
        if count == 0 {
            return;
        }
        let mut state = self.lock();
        state.open = state.open.saturating_sub(count);
        drop(state);
        self.told.notify_one();
    }

    /// Whether a completion may still be confirmed, or a confirmation is not reported yet.
    pub(super) fn are_open(&self) -> bool {
        let state = self.lock();
        state.open > 0 || !state.confirmed.is_empty()
    }

    /// What was confirmed. It may be empty, because a lost connection wakes this, too. Cancel safe.
    pub(super) async fn next(&self) -> Vec<Mark> {
        self.told.notified().await;
        std::mem::take(&mut self.lock().confirmed)
    }

    /// Nothing here can panic while the lock is held, so a poisoned lock holds a sound state.
    fn lock(&self) -> MutexGuard<'_, OpenMarks> {
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
        // The ping was on the wire before the PUBACK, but is reported only now.
        pings.begun();
        assert_eq!(pings.answered(), NOTHING);
        assert_eq!(pings.answered(), [1]);
        pings.begun();
        assert_eq!(pings.answered(), NOTHING);
        assert_eq!(pings.answered(), NOTHING, "an answer that nobody asked for");
    }
}
