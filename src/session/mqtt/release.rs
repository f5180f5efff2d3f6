//! The release queue: completions come in any order, PUBACKs leave in the order in which the messages arrived.
//!
//! Owns: that order, and which packet id belongs to which message. Pure: no packets, no sockets, no clock.
//! Must not know: connections.
//!
//! Sources: MQTT 3.1.1 section 4.6 (order), wire reference 1.6 (the hub refuses another order).

use std::collections::{HashMap, VecDeque};

use crate::session::confirmations::Mark;
use crate::session::gate::ArrivalNo;

/// Messages of one connection between arrival and PUBACK. Bounded by the 65,535 packet ids that MQTT has.
#[derive(Debug, Default)]
pub(super) struct ReleaseQueue {
    /// The number of the front entry; numbers count up from zero.
    first: u64,
    entries: VecDeque<Arrival>,
    /// The packet ids that are not released yet.
    outstanding: HashMap<u16, ArrivalNo>,
    /// How many entries are in state `Waiting`.
    waiting: usize,
}

#[derive(Debug)]
struct Arrival {
    /// None for a message of QoS 0, and for one that lost its packet id to a newer message: nothing is sent for it.
    packet_id: Option<u16>,
    state: PubAckState,
    /// The mark that confirms its completion.
    mark: Option<Mark>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PubAckState {
    /// Neither completed nor left.
    Waiting,
    Completed,
    /// Stays at the hub. All messages behind it stay, too, because skipping one would break the order.
    Left,
    /// A newer message took the packet id, so this one is skipped.
    Superseded,
}

impl ReleaseQueue {
    /// Registers a message. `None` if it is the retransmission (`duplicate`) of one that is still here, whose
    /// completion then counts for both.
    ///
    /// A message can reuse the packet id of one that is still here, without the mark of a duplicate. Then it takes the
    /// id over, because a completion of the older message would complete the newer one, which never ran.
    pub(super) fn arrive(&mut self, packet_id: Option<u16>, duplicate: bool) -> Option<ArrivalNo> {
        let arrival = ArrivalNo(self.first + self.entries.len() as u64);
        if let Some(id) = packet_id {
            if duplicate && self.outstanding.contains_key(&id) {
                return None;
            }
            if let Some(older) = self.outstanding.insert(id, arrival) {
                self.set(older, PubAckState::Superseded);
            }
        }
        self.entries.push_back(Arrival { packet_id, state: PubAckState::Waiting, mark: None });
        self.waiting += 1;
        Some(arrival)
    }

    /// The message is done; its PUBACK may leave after those before it.
    pub(super) fn complete(&mut self, arrival: ArrivalNo, mark: Option<Mark>) {
        self.set(arrival, PubAckState::Completed);
        if let Some(entry) = self.entry(arrival) {
            entry.mark = mark;
        }
    }

    /// The message stays at the hub: neither it nor any later message gets a PUBACK.
    pub(super) fn leave(&mut self, arrival: ArrivalNo) {
        self.set(arrival, PubAckState::Left);
    }

    /// The packet id whose PUBACK leaves next. It stays in the queue.
    pub(super) fn next_release(&mut self) -> Option<u16> {
        while let Some(entry) = self.entries.front() {
            match (entry.state, entry.packet_id) {
                (PubAckState::Completed, Some(id)) => return Some(id),
                (PubAckState::Completed, None) | (PubAckState::Superseded, _) => self.drop_front(),
                (PubAckState::Waiting | PubAckState::Left, _) => return None,
            }
        }
        None
    }

    /// Removes the packet id whose PUBACK leaves now, and returns it with its mark.
    pub(super) fn release(&mut self) -> Option<(u16, Option<Mark>)> {
        let id = self.next_release()?;
        let mark = self.entries.front().and_then(|entry| entry.mark);
        self.drop_front();
        self.outstanding.remove(&id);
        Some((id, mark))
    }

    /// How many messages are neither completed nor left.
    pub(super) fn waiting(&self) -> usize {
        self.waiting
    }

    fn drop_front(&mut self) {
        self.entries.pop_front();
        self.first += 1;
    }

    /// Changes the state of a waiting entry. An entry that waits no more keeps its state, unless it is superseded.
    fn set(&mut self, arrival: ArrivalNo, state: PubAckState) {
        let Some(entry) = self.entry(arrival) else { return };
        if entry.state == PubAckState::Waiting {
            entry.state = state;
            self.waiting -= 1;
        } else if state == PubAckState::Superseded {
            // Completed but not released: the hub would take its PUBACK for that of the newer message.
            entry.state = state;
        }
    }

    fn entry(&mut self, arrival: ArrivalNo) -> Option<&mut Arrival> {
        let index = arrival.0.checked_sub(self.first).and_then(|index| usize::try_from(index).ok())?;
        self.entries.get_mut(index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOTHING: [u16; 0] = [];

    fn drain(queue: &mut ReleaseQueue) -> Vec<u16> {
        std::iter::from_fn(|| queue.release()).map(|(id, _)| id).collect()
    }

    fn arrive(queue: &mut ReleaseQueue, id: u16) -> ArrivalNo {
        queue.arrive(Some(id), false).expect("a new message")
    }

    #[test]
    fn completions_out_of_order_are_released_in_arrival_order() {
        let mut queue = ReleaseQueue::default();
        let arrivals: Vec<_> = [7, 3, 9].map(|id| arrive(&mut queue, id)).into();
        queue.complete(arrivals[2], None);
        queue.complete(arrivals[1], None);
        assert_eq!(drain(&mut queue), NOTHING);
        queue.complete(arrivals[0], None);
        assert_eq!(drain(&mut queue), [7, 3, 9]);
    }

    #[test]
    fn one_left_behind_holds_back_all_later_ones() {
        let mut queue = ReleaseQueue::default();
        let (first, second, third) = (arrive(&mut queue, 1), arrive(&mut queue, 2), arrive(&mut queue, 3));
        queue.leave(second);
        queue.complete(first, None);
        queue.complete(third, None);
        assert_eq!(drain(&mut queue), [1]);
        assert_eq!(queue.waiting(), 0);
    }

    #[test]
    fn a_retransmission_of_one_still_here_is_known() {
        let mut queue = ReleaseQueue::default();
        let first = arrive(&mut queue, 1);
        assert_eq!(queue.arrive(Some(1), true), None);
        queue.complete(first, None);
        assert_eq!(drain(&mut queue), [1]);
        assert!(queue.arrive(Some(1), true).is_some(), "after its PUBACK it counts as new");
    }

    #[test]
    fn a_reused_packet_id_belongs_to_the_newer_message() {
        let mut queue = ReleaseQueue::default();
        let older = arrive(&mut queue, 1);
        let newer = arrive(&mut queue, 1);
        queue.complete(older, None);
        assert_eq!(drain(&mut queue), NOTHING, "completing the older must not complete the newer");
        queue.complete(newer, None);
        assert_eq!(drain(&mut queue), [1]);
    }

    #[test]
    fn messages_without_a_packet_id_are_passed_over() {
        let mut queue = ReleaseQueue::default();
        let unacknowledged = queue.arrive(None, false).expect("a new message");
        let second = arrive(&mut queue, 2);
        queue.complete(second, None);
        assert_eq!(drain(&mut queue), NOTHING);
        queue.complete(unacknowledged, None);
        assert_eq!(drain(&mut queue), [2]);
    }

    #[test]
    fn completing_twice_releases_once() {
        let mut queue = ReleaseQueue::default();
        let arrival = arrive(&mut queue, 5);
        queue.complete(arrival, None);
        assert_eq!(drain(&mut queue), [5]);
        queue.complete(arrival, None);
        assert_eq!(drain(&mut queue), NOTHING);
    }

    proptest! {
        /// For any order of completions and of emptying the queue, what leaves is a prefix of what arrived, and in the
        /// end all of it.
        #[test]
        fn what_leaves_is_always_a_prefix_of_what_arrived(
            order in Just((0u16..200).collect::<Vec<_>>()).prop_shuffle(),
            emptied in proptest::collection::vec(any::<bool>(), 200),
        ) {
            let mut queue = ReleaseQueue::default();
            let arrived: Vec<u16> = (0..200).map(|n| n * 7 + 1).collect();
            let arrivals: Vec<_> = arrived.iter().map(|id| arrive(&mut queue, *id)).collect();
            let mut left = Vec::new();
            for (index, empty) in order.into_iter().zip(emptied) {
                queue.complete(arrivals[usize::from(index)], None);
                if empty {
                    left.extend(drain(&mut queue));
                    prop_assert!(arrived.starts_with(&left));
                }
            }
            left.extend(drain(&mut queue));
            prop_assert_eq!(left, arrived);
            prop_assert_eq!(queue.waiting(), 0);
        }
    }
}
