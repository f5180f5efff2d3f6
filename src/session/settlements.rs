//! The state that one AMQP connection's reading task shares with the receipts of its messages.
//!
//! Owns: whether the connection still takes and settles messages, and which settlements must be sent.
//! Must not know: AMQP frames, reconnecting.
//!
//! Over AMQP each message is settled by itself, so no order is kept (wire reference 2.6).

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::delivery::Settlement;
use super::link::Phase;
use super::release::Ticket;

/// One connection as its messages see it.
pub(super) struct Settlements {
    state: Mutex<State>,
    /// A settlement is ready, or the phase changed: for the reading task.
    changed: Notify,
    /// A message was settled while draining: for [`Settlements::drained`].
    settled: Notify,
}

struct State {
    phase: Phase,
    last: Ticket,
    /// Neither settled nor left. Bounded by the number of messages that the agent holds.
    waiting: BTreeSet<Ticket>,
    ready: Vec<(Ticket, Settlement)>,
}

impl Settlements {
    pub(super) fn new() -> Self {
        let state = State { phase: Phase::Open, last: 0, waiting: BTreeSet::new(), ready: Vec::new() };
        Self { state: Mutex::new(state), changed: Notify::new(), settled: Notify::new() }
    }

    pub(super) fn phase(&self) -> Phase {
        self.lock().phase
    }

    /// Registers a message. `None` if the connection soon ends: the message comes again on the next one.
    pub(super) fn arrive(&self) -> Option<Ticket> {
        let mut state = self.lock();
        if state.phase != Phase::Open {
            return None;
        }
        state.last += 1;
        let ticket = state.last;
        state.waiting.insert(ticket);
        Some(ticket)
    }

    /// Settles a message; never blocks. The returned phase tells whether the settlement can still leave.
    pub(super) fn settle(&self, ticket: Ticket, settlement: Settlement) -> Phase {
        let mut state = self.lock();
        if state.phase != Phase::Closed && state.waiting.remove(&ticket) {
            state.ready.push((ticket, settlement));
        }
        self.notify(state)
    }

    /// Leaves a message at the hub, which sends it again on a later connection.
    pub(super) fn leave(&self, ticket: Ticket) -> Phase {
        let mut state = self.lock();
        state.waiting.remove(&ticket);
        self.notify(state)
    }

    /// For the reading task: the settlements to send now.
    pub(super) fn take_ready(&self) -> Vec<(Ticket, Settlement)> {
        std::mem::take(&mut self.lock().ready)
    }

    /// Waits until a settlement is ready or the phase changed. May return early. Cancel safe.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// From now on no new message is taken.
    pub(super) fn stop_taking(&self) {
        let mut state = self.lock();
        if state.phase == Phase::Open {
            state.phase = Phase::Draining;
        }
        self.notify(state);
    }

    /// Waits until every message that was taken is settled or left. Cancel safe.
    pub(super) async fn drained(&self) {
        while !self.lock().waiting.is_empty() {
            self.settled.notified().await;
        }
    }

    /// The connection is gone.
    pub(super) fn close(&self) {
        let mut state = self.lock();
        state.phase = Phase::Closed;
        state.ready.clear();
        self.notify(state);
    }

    fn notify(&self, state: MutexGuard<'_, State>) -> Phase {
        let phase = state.phase;
        drop(state);
        self.changed.notify_one();
        if phase != Phase::Open {
            self.settled.notify_one();
        }
        phase
    }

    /// Nothing here can panic while the lock is held, so a poisoned lock holds a sound state.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settlements_leave_in_the_order_in_which_they_are_made_and_once() {
        let settlements = Settlements::new();
        let (first, second) = (settlements.arrive().unwrap(), settlements.arrive().unwrap());
        settlements.settle(second, Settlement::Reject);
        settlements.settle(first, Settlement::Abandon);
        settlements.settle(first, Settlement::Complete);
        assert_eq!(settlements.take_ready(), [(second, Settlement::Reject), (first, Settlement::Abandon)]);
        assert_eq!(settlements.take_ready(), []);
    }

    #[test]
    fn a_connection_that_is_gone_settles_nothing_and_one_that_ends_what_it_has() {
        let settlements = Settlements::new();
        let (first, second) = (settlements.arrive().unwrap(), settlements.arrive().unwrap());
        settlements.stop_taking();
        assert_eq!(settlements.arrive(), None);
        assert_eq!(settlements.settle(first, Settlement::Complete), Phase::Draining);
        assert_eq!(settlements.take_ready(), [(first, Settlement::Complete)]);
        settlements.close();
        assert_eq!(settlements.settle(second, Settlement::Complete), Phase::Closed);
        assert_eq!(settlements.take_ready(), []);
    }
}
