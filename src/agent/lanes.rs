//! Lanes: whose turn it is.
//!
//! Owns: the order of actions within a lane, and how many programs run at once. Pure: no clock, no tasks.
//! Must not know: rules, messages, what an action does. Used by: `agent`.
//!
//! An action stands in line in one lane or several, and its turn comes when it is at the front of all of them. It stays
//! there until it leaves, so actions of one lane run one after the other, in the order in which they came; lanes go
//! on side by side. An action that starts programs needs a child slot as well, and waits for one at the front.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

/// One action in line.
pub(super) type Ticket = u64;

/// A lane, counted from 0.
pub(super) type Lane = usize;

/// What an action needs beside its lanes, because it starts programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Slot {
    /// Nothing: it starts none.
    None,
    /// A child slot.
    Any,
    /// A child slot that is not the last one, where there are several: rules of the twin leave one to the owner's.
    Spare,
}

/// Which lane has which name.
#[derive(Debug, Default)]
pub(super) struct LaneNames(Vec<String>);

impl LaneNames {
    /// The lanes of these names; new names are counted on.
    pub(super) fn lanes(&mut self, names: &[String]) -> Arc<[Lane]> {
        let lanes = names.iter().map(|name| {
            self.0.iter().position(|known| known == name).unwrap_or_else(|| {
                self.0.push(name.clone());
                self.0.len() - 1
            })
        });
        lanes.collect()
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}

/// All lanes.
#[derive(Debug)]
pub(super) struct Lanes {
    lines: Vec<VecDeque<Ticket>>,
    members: HashMap<Ticket, Member>,
    /// At the front of all their lanes, but without the child slot that they need; the first comes first.
    without_slot: VecDeque<Ticket>,
    slots: usize,
    free_slots: usize,
    /// Their turn has come and nobody has been told yet.
    called: VecDeque<Ticket>,
}

#[derive(Debug)]
struct Member {
    lanes: Arc<[Lane]>,
    needs: Slot,
    has_slot: bool,
}

impl Lanes {
    /// `count` empty lanes, and `slots` programs at most at once.
    pub(super) fn new(count: usize, slots: usize) -> Self {
        Self {
            lines: vec![VecDeque::new(); count],
            members: HashMap::new(),
            without_slot: VecDeque::new(),
            slots,
            free_slots: slots,
            called: VecDeque::new(),
        }
    }

    /// Puts an action at the end of its lanes. True when its turn has come at once; otherwise [`Lanes::next`] tells.
    pub(super) fn enter(&mut self, ticket: Ticket, lanes: &Arc<[Lane]>, needs: Slot) -> bool {
        for lane in lanes.iter() {
            if let Some(line) = self.lines.get_mut(*lane) {
                line.push_back(ticket);
            }
        }
        self.members.insert(ticket, Member { lanes: Arc::clone(lanes), needs, has_slot: false });
        self.is_in_front(ticket) && self.take_slot(ticket)
    }

    /// How many actions stand in the longest of these lanes.
    pub(super) fn longest(&self, lanes: &[Lane]) -> usize {
        lanes.iter().filter_map(|lane| self.lines.get(*lane)).map(VecDeque::len).max().unwrap_or_default()
    }

    /// An action whose turn has come since; each is told once.
    pub(super) fn next(&mut self) -> Option<Ticket> {
        self.called.pop_front()
    }

    /// An action gives its child slot away while it waits for its next attempt; it stays at the front.
    pub(super) fn pause(&mut self, ticket: Ticket) {
        self.without_slot.retain(|waiting| *waiting != ticket);
        self.give_slot_back(ticket);
    }

    /// The action goes on: true when it may at once; otherwise [`Lanes::next`] tells when.
    pub(super) fn resume(&mut self, ticket: Ticket) -> bool {
        self.take_slot(ticket)
    }

    /// An action has ended, or is not to be run: those behind it move up.
    pub(super) fn leave(&mut self, ticket: Ticket) {
        self.give_slot_back(ticket);
        let Some(member) = self.members.remove(&ticket) else { return };
        self.without_slot.retain(|waiting| *waiting != ticket);
        self.called.retain(|called| *called != ticket);
        for lane in member.lanes.iter() {
            let Some(line) = self.lines.get_mut(*lane) else { continue };
            let was_first = line.front() == Some(&ticket);
            if was_first {
                line.pop_front();
            } else {
                line.retain(|other| *other != ticket);
            }
            let Some(first) = line.front().copied().filter(|_| was_first) else { continue };
            // With several lanes it may be called once for each: the last one that it needed calls it.
            if self.is_in_front(first) && !self.called.contains(&first) && self.take_slot(first) {
                self.called.push_back(first);
            }
        }
    }

    fn is_in_front(&self, ticket: Ticket) -> bool {
        let first = |lane: &Lane| self.lines.get(*lane).and_then(VecDeque::front) == Some(&ticket);
        self.members.get(&ticket).is_some_and(|member| member.lanes.iter().all(first))
    }

    /// Takes a child slot where one is needed; false when it has to be waited for.
    fn take_slot(&mut self, ticket: Ticket) -> bool {
        let has_room = self.has_room_for(ticket);
        let Some(member) = self.members.get_mut(&ticket) else { return false };
        if member.needs == Slot::None || member.has_slot {
            return true;
        }
        if !has_room {
            self.without_slot.push_back(ticket);
            return false;
        }
        self.free_slots -= 1;
        member.has_slot = true;
        true
    }

    /// Whether a slot is free that this one may take.
    fn has_room_for(&self, ticket: Ticket) -> bool {
        let spares = self.members.get(&ticket).is_some_and(|member| member.needs == Slot::Spare);
        self.free_slots > usize::from(spares && self.slots > 1)
    }

    fn give_slot_back(&mut self, ticket: Ticket) {
        let Some(member) = self.members.get_mut(&ticket) else { return };
        if !std::mem::take(&mut member.has_slot) {
            return;
        }
        self.free_slots += 1;
        let first = self.without_slot.iter().position(|waiting| self.has_room_for(*waiting));
        if let Some(next) = first.and_then(|at| self.without_slot.remove(at))
            && self.take_slot(next)
        {
            self.called.push_back(next);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn lanes(of: &[Lane]) -> Arc<[Lane]> {
        of.into()
    }

    #[test]
    fn actions_of_one_lane_take_turns_in_order() {
        let mut all = Lanes::new(1, 1);
        assert!(all.enter(1, &lanes(&[0]), Slot::None));
        assert!(!all.enter(2, &lanes(&[0]), Slot::None));
        assert!(!all.enter(3, &lanes(&[0]), Slot::None));
        assert_eq!(all.next(), None);
        all.leave(1);
        assert_eq!((all.next(), all.next()), (Some(2), None));
        all.leave(2);
        assert_eq!(all.next(), Some(3));
    }

    #[test]
    fn a_slow_lane_does_not_hold_back_another() {
        let mut all = Lanes::new(2, 1);
        assert!(all.enter(1, &lanes(&[0]), Slot::None));
        assert!(all.enter(2, &lanes(&[1]), Slot::None));
    }

    #[test]
    fn an_action_of_two_lanes_waits_for_both_and_holds_both() {
        let mut all = Lanes::new(2, 1);
        assert!(all.enter(1, &lanes(&[0]), Slot::None));
        assert!(!all.enter(2, &lanes(&[0, 1]), Slot::None));
        assert!(!all.enter(3, &lanes(&[1]), Slot::None), "2 was first in lane 1");
        all.leave(1);
        assert_eq!((all.next(), all.next()), (Some(2), None));
        all.leave(2);
        assert_eq!(all.next(), Some(3));
    }

    #[test]
    fn programs_wait_for_a_slot_and_others_do_not() {
        let mut all = Lanes::new(4, 1);
        assert!(all.enter(1, &lanes(&[0]), Slot::Any));
        assert!(!all.enter(2, &lanes(&[1]), Slot::Any));
        assert!(!all.enter(3, &lanes(&[2]), Slot::Any));
        assert!(all.enter(4, &lanes(&[3]), Slot::None));
        all.pause(1);
        assert_eq!((all.next(), all.next()), (Some(2), None));
        assert!(!all.resume(1), "3 was first");
        all.leave(2);
        assert_eq!(all.next(), Some(3));
        all.leave(3);
        assert_eq!(all.next(), Some(1));
    }

    #[test]
    fn who_needs_a_spare_slot_leaves_the_last_one_and_is_overtaken_for_it() {
        let mut all = Lanes::new(5, 2);
        assert!(all.enter(1, &lanes(&[0]), Slot::Spare));
        assert!(!all.enter(2, &lanes(&[1]), Slot::Spare), "one slot is left, and not for it");
        assert!(all.enter(3, &lanes(&[2]), Slot::Any));
        assert!(!all.enter(4, &lanes(&[3]), Slot::Any));
        all.leave(3);
        assert_eq!((all.next(), all.next()), (Some(4), None), "2 was first");
        all.leave(4);
        assert_eq!(all.next(), None);
        all.leave(1);
        assert_eq!(all.next(), Some(2));
        let mut one = Lanes::new(1, 1);
        assert!(one.enter(1, &lanes(&[0]), Slot::Spare), "there is none to spare");
    }

    #[test]
    fn one_that_leaves_from_the_middle_lets_the_others_keep_their_order() {
        let mut all = Lanes::new(1, 1);
        assert!(all.enter(1, &lanes(&[0]), Slot::None));
        all.enter(2, &lanes(&[0]), Slot::None);
        all.enter(3, &lanes(&[0]), Slot::None);
        all.leave(2);
        assert_eq!(all.next(), None);
        all.leave(1);
        assert_eq!(all.next(), Some(3));
    }

    proptest! {
        /// Everybody's turn comes once; nobody runs beside somebody of the same lane; never more programs than slots.
        #[test]
        fn everybody_gets_a_turn_and_nobody_shares_a_lane(
            actions in proptest::collection::vec((proptest::collection::btree_set(0usize..4, 1..3), any::<bool>()), 1..60),
            slots in 1usize..3,
            picks in proptest::collection::vec(any::<prop::sample::Index>(), 200),
        ) {
            let mut all = Lanes::new(4, slots);
            let (mut running, mut ended): (Vec<Ticket>, Vec<Ticket>) = (Vec::new(), Vec::new());
            let sets: Vec<Arc<[Lane]>> = actions.iter().map(|(set, _)| set.iter().copied().collect()).collect();
            for (ticket, (_, child)) in actions.iter().enumerate() {
                let needs = if *child { Slot::Any } else { Slot::None };
                if all.enter(ticket as Ticket, &sets[ticket], needs) {
                    running.push(ticket as Ticket);
                }
            }
            for pick in picks {
                running.extend(std::iter::from_fn(|| all.next()));
                let children = running.iter().filter(|ticket| actions[**ticket as usize].1).count();
                prop_assert!(children <= slots);
                let mut held: Vec<Lane> = running.iter().flat_map(|ticket| sets[*ticket as usize].to_vec()).collect();
                let all_held = held.len();
                held.sort_unstable();
                held.dedup();
                prop_assert_eq!(held.len(), all_held, "a lane is held twice");
                if running.is_empty() {
                    break;
                }
                let ticket = running.remove(pick.index(running.len()));
                all.leave(ticket);
                ended.push(ticket);
            }
            prop_assert_eq!(ended.len(), actions.len());
        }
    }
}
