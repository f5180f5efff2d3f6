//! The settlements of one AMQP connection.
//!
//! Owns: which settlements must be sent. Must not know: AMQP frames, reconnecting.
//!
//! Over AMQP each message is settled by itself, so no order is kept (wire reference 2.6). The reading task always
//! listens to [`Gate::changed`], and never parks.

use std::collections::BTreeSet;

use crate::session::confirmations::Mark;
use crate::session::gate::{ArrivalNo, Books, Gate, Phase, Settlement, Settles};

/// One connection as its messages see it.
pub(super) type Settlements = Gate<Unsettled>;

/// The books of [`Settlements`].
#[derive(Default)]
pub(super) struct Unsettled {
    last: u64,
    /// Neither settled nor left. Bounded by the number of messages that the agent holds.
    waiting: BTreeSet<ArrivalNo>,
    ready: Vec<(ArrivalNo, Settlement)>,
}

impl Books for Unsettled {
    fn open(&self) -> usize {
        self.waiting.len()
    }

    fn is_ready(&mut self) -> bool {
        !self.ready.is_empty()
    }

    fn close(&mut self) {
        self.ready.clear();
    }
}

impl Settlements {
    pub(super) fn new() -> Self {
        Self::with_books(Unsettled::default())
    }

    /// Registers a message. `None` if the connection soon ends: the message comes again on the next one.
    pub(super) fn arrive(&self) -> Option<ArrivalNo> {
        self.with(|state| {
            if state.phase != Phase::Open {
                return None;
            }
            let Unsettled { last, waiting, .. } = &mut state.books;
            *last += 1;
            waiting.insert(ArrivalNo(*last));
            Some(ArrivalNo(*last))
        })
    }

    /// For the reading task: the settlements to send now.
    pub(super) fn take_ready(&self) -> Vec<(ArrivalNo, Settlement)> {
        self.take(|state| std::mem::take(&mut state.books.ready))
    }
}

impl Settles for Settlements {
    fn phase(&self) -> Phase {
        Gate::phase(self)
    }

    /// A mark is never reported: the sequence number tells which message comes again.
    fn settle(&self, arrival: ArrivalNo, settlement: Settlement, _: Option<Mark>) -> Phase {
        self.change(|state| {
            if state.phase != Phase::Closed && state.books.waiting.remove(&arrival) {
                state.books.ready.push((arrival, settlement));
            }
        })
    }

    fn leave(&self, arrival: ArrivalNo) -> Phase {
        self.change(|state| {
            state.books.waiting.remove(&arrival);
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::gate::Ends as _;

    #[test]
    fn settlements_leave_in_the_order_in_which_they_are_made_and_once() {
        let settlements = Settlements::new();
        let (first, second) = (settlements.arrive().unwrap(), settlements.arrive().unwrap());
        settlements.settle(second, Settlement::Reject, None);
        settlements.settle(first, Settlement::Abandon, None);
        settlements.settle(first, Settlement::Complete, None);
        assert_eq!(settlements.take_ready(), [(second, Settlement::Reject), (first, Settlement::Abandon)]);
        assert_eq!(settlements.take_ready(), []);
    }

    #[test]
    fn a_connection_that_is_gone_settles_nothing_and_one_that_ends_what_it_has() {
        let settlements = Settlements::new();
        let (first, second) = (settlements.arrive().unwrap(), settlements.arrive().unwrap());
        settlements.stop_taking();
        assert_eq!(settlements.arrive(), None);
        assert_eq!(settlements.settle(first, Settlement::Complete, None), Phase::Draining);
        assert_eq!(settlements.take_ready(), [(first, Settlement::Complete)]);
        settlements.close();
        assert_eq!(settlements.settle(second, Settlement::Complete, None), Phase::Closed);
        assert_eq!(settlements.take_ready(), []);
    }
}
