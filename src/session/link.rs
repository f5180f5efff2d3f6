//! The state that one connection's reading task shares with the receipts of its messages.
//!
//! Owns: whether the connection still takes and completes messages, and how a completion gets to the reading task.
//! Must not know: MQTT packets, reconnecting.
//!
//! A PUBACK can take two ways to the socket, and keeps its order across both. Between two polls, the reading task
//! takes all PUBACKs that may leave ([`Link::take_ready`]) and flushes them together. While it is parked in `poll()`,
//! the first completion goes through the client's request channel, which wakes the task; until that PUBACK is on the
//! wire ([`Link::woken`]) no other one may leave.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::confirmations::{Confirmations, Mark, Pings};
use super::release::{ReleaseQueue, Ticket};

/// Hands a PUBACK to a parked `poll()`; false if it could not.
pub(super) type Wake = Box<dyn Fn(u16) -> bool + Send + Sync>;

/// One connection as its messages see it.
pub(super) struct Link {
    state: Mutex<State>,
    wake: Wake,
    confirmations: Arc<Confirmations>,
    /// A PUBACK may leave, or the phase changed: for the reading task while it waits for room.
    changed: Notify,
    /// A message was settled while draining: for [`Link::drained`].
    settled: Notify,
}

struct State {
    queue: ReleaseQueue,
    phase: Phase,
    /// The reading task is in `poll()`, where only `wake` reaches it.
    parked: bool,
    /// The mark of a PUBACK that is in the request channel and not on the wire yet.
    waking: Option<Option<Mark>>,
    pings: Pings,
    /// Completions with a mark that are not confirmed.
    unconfirmed: usize,
}

/// Where a connection is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// Messages are taken and completed.
    Open,
    /// No new message is taken; messages that were taken are still completed.
    Draining,
    /// Gone: completions do nothing, so that a late one cannot reach a newer connection.
    Closed,
}

impl Link {
    pub(super) fn new(wake: Wake, confirmations: Arc<Confirmations>) -> Self {
        let state = State {
            queue: ReleaseQueue::default(),
            phase: Phase::Open,
            parked: false,
            waking: None,
            pings: Pings::default(),
            unconfirmed: 0,
        };
        let state = Mutex::new(state);
        Self { state, wake, confirmations, changed: Notify::new(), settled: Notify::new() }
    }

    pub(super) fn phase(&self) -> Phase {
        self.lock().phase
    }

    /// Registers a message. `None` if it must not be handed on: the connection is draining, or the message is the
    /// retransmission of one that is still here.
    pub(super) fn arrive(&self, packet_id: Option<u16>, duplicate: bool) -> Option<Ticket> {
        let mut state = self.lock();
        if state.phase == Phase::Open { state.queue.arrive(packet_id, duplicate) } else { None }
    }

    /// Completes a message; never blocks. The returned phase tells whether the completion can still leave. A mark is
    /// reported when the hub is known to have the completion.
    pub(super) fn complete(&self, ticket: Ticket, mark: Option<Mark>) -> Phase {
        let mut state = self.lock();
        if state.phase == Phase::Closed {
            return Phase::Closed;
        }
        state.queue.complete(ticket, mark);
        if mark.is_some() {
            state.unconfirmed += 1;
            self.confirmations.begin();
        }
        if state.parked
            && state.waking.is_none()
            && let Some(id) = state.queue.next_release()
            && (self.wake)(id)
        {
            state.waking = state.queue.release().map(|(_, mark)| mark);
        }
        self.notify(state)
    }

    /// Leaves a message at the hub, which sends it again on a later connection.
    pub(super) fn leave(&self, ticket: Ticket) -> Phase {
        let mut state = self.lock();
        state.queue.leave(ticket);
        self.notify(state)
    }

    /// For the reading task between two polls: all PUBACKs that may leave now, in order.
    pub(super) fn take_ready(&self) -> Vec<u16> {
        let mut state = self.lock();
        state.parked = false;
        let mut ready = Vec::new();
        while state.waking.is_none()
            && let Some((id, mark)) = state.queue.release()
        {
            ready.push(id);
            state.pings.sent(mark);
        }
        ready
    }

    /// For the reading task after the PUBACKs that it took: whether to send a PINGREQ, whose answer proves that the
    /// hub has them.
    pub(super) fn wants_ping(&self) -> bool {
        self.lock().pings.begin()
    }

    /// A PINGREQ of the keep-alive was sent.
    pub(super) fn pinged(&self) {
        self.lock().pings.begun();
    }

    /// A PINGRESP came.
    pub(super) fn ping_answered(&self) {
        let mut state = self.lock();
        let confirmed = state.pings.answered();
        state.unconfirmed = state.unconfirmed.saturating_sub(confirmed.len());
        drop(state);
        self.confirmations.confirm(confirmed);
    }

    /// For the reading task before `poll()`. False if a PUBACK became ready since [`Link::take_ready`].
    pub(super) fn park(&self) -> bool {
        let mut state = self.lock();
        state.parked = state.waking.is_some() || state.queue.next_release().is_none();
        state.parked
    }

    /// For the reading task after `poll()`.
    pub(super) fn unpark(&self) {
        self.lock().parked = false;
    }

    /// Whether a PUBACK that woke the reading task is not on the wire yet.
    pub(super) fn is_waking(&self) -> bool {
        self.lock().waking.is_some()
    }

    /// The PUBACK that woke the reading task is on the wire.
    pub(super) fn woken(&self) {
        let mut state = self.lock();
        if let Some(mark) = state.waking.take() {
            state.pings.sent(mark);
        }
    }

    /// Waits until a PUBACK may leave or the phase changed. May return early. Cancel safe.
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

    /// Waits until every message that was taken is settled. Cancel safe.
    pub(super) async fn drained(&self) {
        while self.lock().queue.waiting() > 0 {
            self.settled.notified().await;
        }
    }

    /// The connection is gone.
    pub(super) fn close(&self) {
        let mut state = self.lock();
        state.phase = Phase::Closed;
        self.confirmations.lose(std::mem::take(&mut state.unconfirmed));
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

    /// A link that records its wake-ups.
    fn link() -> (Link, Arc<Mutex<Vec<u16>>>) {
        let sent = Arc::new(Mutex::new(Vec::new()));
        let record = Arc::clone(&sent);
        let wake = move |id| {
            record.lock().expect("unpoisoned").push(id);
            true
        };
        (Link::new(Box::new(wake), Arc::default()), sent)
    }

    fn arrive(link: &Link, id: u16) -> Ticket {
        link.arrive(Some(id), false).expect("taken")
    }

    #[test]
    fn completions_between_polls_leave_together() {
        let (link, sent) = link();
        let tickets = [1, 2, 3].map(|id| arrive(&link, id));
        for ticket in tickets {
            link.complete(ticket, None);
        }
        assert_eq!(link.take_ready(), [1, 2, 3]);
        assert!(sent.lock().expect("unpoisoned").is_empty(), "nobody was to be woken");
    }

    #[test]
    fn a_completion_wakes_a_parked_reader_once_and_the_others_wait_for_it() {
        let (link, sent) = link();
        let tickets = [1, 2].map(|id| arrive(&link, id));
        assert!(link.park());
        link.complete(tickets[0], None);
        link.complete(tickets[1], None);
        assert_eq!(*sent.lock().expect("unpoisoned"), [1]);
        link.unpark();
        assert_eq!(link.take_ready(), [0u16; 0], "the first is not on the wire yet");
        link.woken();
        assert_eq!(link.take_ready(), [2]);
    }

    #[test]
    fn a_completion_that_could_not_wake_the_reader_leaves_after_the_poll() {
        // The request channel is full of publishes, and `poll()` returns to send these.
        let link = Link::new(Box::new(|_| false), Arc::default());
        let tickets = [1, 2].map(|id| arrive(&link, id));
        assert!(link.park());
        for ticket in tickets {
            link.complete(ticket, None);
        }
        link.unpark();
        assert_eq!(link.take_ready(), [1, 2]);
    }

    #[test]
    fn a_reader_does_not_park_on_a_ready_completion() {
        let (link, _) = link();
        let ticket = arrive(&link, 1);
        assert!(link.take_ready().is_empty());
        link.complete(ticket, None);
        assert!(!link.park());
    }

    #[test]
    fn a_closed_link_completes_nothing() {
        let (link, sent) = link();
        let ticket = arrive(&link, 1);
        assert!(link.park());
        link.close();
        assert_eq!(link.complete(ticket, None), Phase::Closed);
        assert!(sent.lock().expect("unpoisoned").is_empty());
        assert!(link.take_ready().is_empty());
    }

    #[test]
    fn a_draining_link_takes_nothing_new_and_completes_what_it_has() {
        let (link, _) = link();
        let ticket = arrive(&link, 1);
        link.stop_taking();
        assert_eq!(link.arrive(Some(2), false), None);
        assert_eq!(link.complete(ticket, None), Phase::Draining);
        assert_eq!(link.take_ready(), [1]);
    }

    #[tokio::test]
    async fn a_completion_is_confirmed_by_the_answer_to_a_ping_behind_it() {
        let confirmations = Arc::new(Confirmations::default());
        let link = Link::new(Box::new(|_| true), Arc::clone(&confirmations));
        let tickets = [1, 2, 3].map(|id| arrive(&link, id));
        assert!(link.park());
        link.complete(tickets[0], Some(10));
        link.unpark();
        assert!(!link.wants_ping(), "its PUBACK is not on the wire yet");
        link.woken();
        link.complete(tickets[1], Some(20));
        assert_eq!(link.take_ready(), [2]);
        assert!(link.wants_ping());
        link.ping_answered();
        assert_eq!(confirmations.next().await, [10, 20]);
        link.complete(tickets[2], Some(30));
        assert!(confirmations.are_open());
        link.close();
        assert!(!confirmations.are_open(), "nobody will ever know");
        assert_eq!(confirmations.next().await, [0u64; 0]);
    }
}
