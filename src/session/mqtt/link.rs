//! The PUBACKs of one MQTT connection.
//!
//! Owns: when a PUBACK may leave, in which order, and which completions the hub is known to have.
//! Must not know: MQTT packets, reconnecting.
//!
//! A PUBACK can take two ways to the socket, and keeps its order across both. Between two polls, the reading task
//! takes all PUBACKs that may leave ([`Link::take_ready`]) and flushes them together. While it is parked in `poll()`,
//! the first completion goes through the client's request channel; until that PUBACK is on the wire
//! ([`Link::woken_by_puback`]) no other one may leave. See [`Gate`].

use std::sync::Arc;

use super::release::ReleaseQueue;
use crate::session::confirmations::{Confirmations, Mark, Pings};
use crate::session::gate::{ArrivalNo, Books, Gate, Phase, Settlement, Settles};

/// Hands a PUBACK to a parked `poll()`; false if it could not.
pub(super) type PubAckHandOver = Box<dyn Fn(u16) -> bool + Send + Sync>;

/// One connection as its messages see it.
pub(super) type Link = Gate<PubAcks>;

/// The books of a [`Link`].
pub(super) struct PubAcks {
    queue: ReleaseQueue,
    hand_over: PubAckHandOver,
    /// The mark of the PUBACK that woke the reading task and is not on the wire yet.
    waking: Option<Mark>,
    pings: Pings,
    /// Completions with a mark that are not confirmed.
    unconfirmed: usize,
    confirmations: Arc<Confirmations>,
}

impl Books for PubAcks {
    fn open(&self) -> usize {
        self.queue.waiting()
    }

    fn is_ready(&mut self) -> bool {
        self.queue.next_release().is_some()
    }

    fn close(&mut self) {
        self.confirmations.lose(std::mem::take(&mut self.unconfirmed));
    }
}

impl Link {
    pub(super) fn new(hand_over: PubAckHandOver, confirmations: Arc<Confirmations>) -> Self {
        let (queue, pings) = (ReleaseQueue::default(), Pings::default());
        Self::with_books(PubAcks { queue, hand_over, waking: None, pings, unconfirmed: 0, confirmations })
    }

    /// Registers a message. `None` if it must not be handed on: the connection is draining, or the message is the
    /// retransmission of one that is still here.
    pub(super) fn arrive(&self, packet_id: Option<u16>, duplicate: bool) -> Option<ArrivalNo> {
        self.with(|state| match state.phase {
            Phase::Open => state.books.queue.arrive(packet_id, duplicate),
            Phase::Draining | Phase::Closed => None,
        })
    }

    /// Completes a message; never blocks. The returned phase tells whether the completion can still leave. A mark is
    /// reported when the hub is known to have the completion.
    pub(super) fn complete(&self, arrival: ArrivalNo, mark: Option<Mark>) -> Phase {
        self.change(|state| {
            if state.phase == Phase::Closed {
                return;
            }
            state.books.queue.complete(arrival, mark);
            if mark.is_some() {
                state.books.unconfirmed += 1;
                state.books.confirmations.begin();
            }
            state.ring(|PubAcks { queue, hand_over, waking, .. }| {
                let handed_over = queue.next_release().is_some_and(hand_over);
                if handed_over {
                    *waking = queue.release().and_then(|(_, mark)| mark);
                }
                handed_over
            });
        })
    }

    /// For the reading task between two polls: all PUBACKs that may leave now, in order.
    pub(super) fn take_ready(&self) -> Vec<u16> {
        self.take(|state| {
            let mut ready = Vec::new();
            while !state.is_waking()
                && let Some((id, mark)) = state.books.queue.release()
            {
                ready.push(id);
                state.books.pings.sent(mark);
            }
            ready
        })
    }

    /// The PUBACK that woke the reading task is on the wire.
    pub(super) fn woken_by_puback(&self) {
        self.with(|state| state.books.pings.sent(state.books.waking.take()));
        self.woken();
    }

    /// For the reading task after the PUBACKs that it took: whether to send a PINGREQ, whose answer proves that the
    /// hub has them.
    pub(super) fn wants_ping(&self) -> bool {
        self.with(|state| state.books.pings.begin())
    }

    /// A PINGREQ of the keep-alive was sent.
    pub(super) fn pinged(&self) {
        self.with(|state| state.books.pings.begun());
    }

    /// A PINGRESP came.
    pub(super) fn ping_answered(&self) {
        self.with(|state| {
            let confirmed = state.books.pings.answered();
            state.books.unconfirmed = state.books.unconfirmed.saturating_sub(confirmed.len());
            state.books.confirmations.confirm(confirmed);
        });
    }
}

impl Settles for Link {
    fn phase(&self) -> Phase {
        Gate::phase(self)
    }

    /// MQTT can only complete a message. Source: wire reference 1.6.
    fn settle(&self, arrival: ArrivalNo, _: Settlement, mark: Option<Mark>) -> Phase {
        self.complete(arrival, mark)
    }

    fn leave(&self, arrival: ArrivalNo) -> Phase {
        self.change(|state| state.books.queue.leave(arrival))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::gate::Ends as _;
    use std::sync::Mutex;

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

    fn arrive(link: &Link, id: u16) -> ArrivalNo {
        link.arrive(Some(id), false).expect("taken")
    }

    #[test]
    fn completions_between_polls_leave_together() {
        let (link, sent) = link();
        let arrivals = [1, 2, 3].map(|id| arrive(&link, id));
        for arrival in arrivals {
            link.complete(arrival, None);
        }
        assert_eq!(link.take_ready(), [1, 2, 3]);
        assert!(sent.lock().expect("unpoisoned").is_empty(), "the reader was not parked");
    }

    #[test]
    fn a_completion_wakes_a_parked_reader_once_and_the_others_wait_for_it() {
        let (link, sent) = link();
        let arrivals = [1, 2].map(|id| arrive(&link, id));
        assert!(link.park());
        link.complete(arrivals[0], None);
        link.complete(arrivals[1], None);
        assert_eq!(*sent.lock().expect("unpoisoned"), [1]);
        link.unpark();
        assert_eq!(link.take_ready(), [0u16; 0], "the first is not on the wire yet");
        link.woken_by_puback();
        assert_eq!(link.take_ready(), [2]);
    }

    #[test]
    fn a_completion_that_could_not_wake_the_reader_leaves_after_the_poll() {
        // The request channel is full of publishes, and `poll()` returns to send these.
        let link = Link::new(Box::new(|_| false), Arc::default());
        let arrivals = [1, 2].map(|id| arrive(&link, id));
        assert!(link.park());
        for arrival in arrivals {
            link.complete(arrival, None);
        }
        link.unpark();
        assert_eq!(link.take_ready(), [1, 2]);
    }

    #[test]
    fn a_reader_does_not_park_on_a_ready_completion() {
        let (link, _) = link();
        let arrival = arrive(&link, 1);
        assert!(link.take_ready().is_empty());
        link.complete(arrival, None);
        assert!(!link.park());
    }

    #[test]
    fn a_closed_link_completes_nothing() {
        let (link, sent) = link();
        let arrival = arrive(&link, 1);
        assert!(link.park());
        link.close();
        assert_eq!(link.complete(arrival, None), Phase::Closed);
        assert!(sent.lock().expect("unpoisoned").is_empty());
        assert!(link.take_ready().is_empty());
    }

    #[test]
    fn a_draining_link_takes_nothing_new_and_completes_what_it_has() {
        let (link, _) = link();
        let arrival = arrive(&link, 1);
        link.stop_taking();
        assert_eq!(link.arrive(Some(2), false), None);
        assert_eq!(link.complete(arrival, None), Phase::Draining);
        assert_eq!(link.take_ready(), [1]);
    }

    #[tokio::test]
    async fn a_completion_is_confirmed_by_the_answer_to_a_ping_behind_it() {
        let confirmations = Arc::new(Confirmations::default());
        let link = Link::new(Box::new(|_| true), Arc::clone(&confirmations));
        let arrivals = [1, 2, 3].map(|id| arrive(&link, id));
        assert!(link.park());
        link.complete(arrivals[0], Some(10));
        link.unpark();
        assert!(!link.wants_ping(), "its PUBACK is not on the wire yet");
        link.woken_by_puback();
        link.complete(arrivals[1], Some(20));
        assert_eq!(link.take_ready(), [2]);
        assert!(link.wants_ping());
        link.ping_answered();
        assert_eq!(confirmations.next().await, [10, 20]);
        link.complete(arrivals[2], Some(30));
        assert!(confirmations.are_open());
        link.close();
        assert!(!confirmations.are_open(), "the connection has gone");
        assert_eq!(confirmations.next().await, [0u64; 0]);
    }
}
