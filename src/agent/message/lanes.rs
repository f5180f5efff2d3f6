//! Lanes: whose turn it is.
//!
//! Owns: the order of actions within a lane, how many programs run at once, and how long the owner's actions wait for
//! those of the twin's rules. Pure: no clock, no tasks; the caller passes the time in. Must not know: rules,
//! messages, what an action does.
//!
//! An action stands in line in one or more lanes. Its turn comes when it is at the front of all of them. It stays
//! there until it leaves, so actions of one lane run one after the other, in order of arrival. Different lanes run
//! side by side. An action that starts programs also needs a child slot, and waits for it at the front.
//!
//! All rules of the twin together may delay an action of the owner's by at most [`TWIN_WAIT`]. No action overtakes
//! another: if a sender switches on and then off, the end must be off. So an action of the twin's rules is late if it
//! stands before an action of the owner's and could not end in time if it began now. A late action is not run at all.
//! Thus every action of the twin's rules that delays the owner's has begun in time, and ends in time: none takes
//! longer than the bound (the configuration refuses it), and none gives its slot away and waits for another.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::rules::TWIN_WAIT;

/// One action in line.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ActionId(pub(crate) u64);

/// A lane, counted from 0.
pub(crate) type Lane = usize;

/// What an action needs besides its lanes, because it starts programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Slot {
    /// Nothing, because it starts no programs.
    None,
    /// A child slot.
    Any,
    /// A child slot, but not the last one if there are several: rules of the twin leave one to the owner's.
    Spare,
}

/// Who wrote the rule of an action.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Whose {
    /// The owner. The action came at this time.
    Owner(Instant),
    /// The twin has the rule. From its turn to its end the action takes no longer than this.
    Twin(Duration),
}

/// The index of each lane name.
#[derive(Debug, Default)]
pub(crate) struct LaneNames(HashMap<String, Lane>);

impl LaneNames {
    /// The lanes with these names. A new name gets the next number.
    pub(crate) fn lanes(&mut self, names: &[String]) -> Arc<[Lane]> {
        let lanes = names.iter().map(|name| {
            let next = self.0.len();
            *self.0.entry(name.clone()).or_insert(next)
        });
        lanes.collect()
    }

    /// How many lanes there are.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }
}

/// All lanes.
#[derive(Debug, Default)]
pub(crate) struct Lanes {
    lines: Vec<VecDeque<ActionId>>,
    members: BTreeMap<ActionId, Member>,
    /// Actions at the front of all their lanes that lack a child slot. The first in line gets the next one.
    without_slot: VecDeque<ActionId>,
    slots: usize,
    /// More than `slots` if a reload lowered the limit while programs ran.
    used_slots: usize,
    /// How many actions of each side have not had their turn.
    owners_waiting: usize,
    twins_waiting: usize,
    /// Actions whose turn has come, but that [`Lanes::next`] has not returned yet.
    called: VecDeque<ActionId>,
}

#[derive(Debug)]
struct Member {
    lanes: Arc<[Lane]>,
    needs: Slot,
    whose: Whose,
    has_slot: bool,
    /// Whether its turn has come.
    has_turn: bool,
}

impl Lanes {
    /// Makes `count` empty lanes, with at most `slots` programs at once.
    pub(crate) fn new(count: usize, slots: usize) -> Self {
        Self { lines: vec![VecDeque::new(); count], slots, ..Self::default() }
    }

    /// Puts an action at the end of its lanes. True if its turn has come at once. If not, [`Lanes::next`] tells
    /// later.
    pub(crate) fn enter(&mut self, id: ActionId, lanes: &Arc<[Lane]>, needs: Slot, whose: Whose) -> bool {
        self.line_up(id, lanes, needs, whose);
        self.gets_turn(id)
    }

    /// Puts an action at the front of its lanes, which are empty: it had its turn before the lanes were rebuilt.
    pub(crate) fn enter_again(&mut self, id: ActionId, lanes: &Arc<[Lane]>, needs: Slot, whose: Whose) {
        self.line_up(id, lanes, needs, whose);
        self.note_turn(id);
        if let Some(member) = self.members.get_mut(&id).filter(|member| member.needs != Slot::None) {
            member.has_slot = true;
            self.used_slots += 1;
        }
    }

    fn line_up(&mut self, id: ActionId, lanes: &Arc<[Lane]>, needs: Slot, whose: Whose) {
        for lane in lanes.iter() {
            if let Some(line) = self.lines.get_mut(*lane) {
                line.push_back(id);
            }
        }
        let lanes = Arc::clone(lanes);
        self.members.insert(id, Member { lanes, needs, whose, has_slot: false, has_turn: false });
        *self.waiting(whose) += 1;
    }

    fn waiting(&mut self, whose: Whose) -> &mut usize {
        match whose {
            Whose::Owner(_) => &mut self.owners_waiting,
            Whose::Twin(_) => &mut self.twins_waiting,
        }
    }

    /// How many actions stand in the longest of these lanes. `twins_count`: whether actions of the twin's rules
    /// count.
    pub(crate) fn longest(&self, lanes: &[Lane], twins_count: bool) -> usize {
        let counts = |id: &&ActionId| {
            let whose = self.members.get(*id).map(|member| member.whose);
            twins_count || matches!(whose, Some(Whose::Owner(_)))
        };
        let lines = lanes.iter().filter_map(|lane| self.lines.get(*lane));
        lines.map(|line| line.iter().filter(counts).count()).max().unwrap_or_default()
    }

    /// The late actions of the twin's rules: an action of the owner's stands behind them and would wait too long. The
    /// caller must remove them.
    pub(crate) fn late(&self, now: Instant) -> Vec<ActionId> {
        let late = self.latest().into_iter().filter(|(latest, _)| *latest <= now);
        let mut late: Vec<ActionId> = late.map(|(_, id)| id).collect();
        late.sort_unstable();
        late.dedup();
        late
    }

    /// When the next action becomes late, if nothing happens before.
    pub(crate) fn wake(&self) -> Option<Instant> {
        self.latest().into_iter().map(|(latest, _)| latest).min()
    }

    /// For each action of the twin's rules with one of the owner's behind it: the time by which it must have begun.
    fn latest(&self) -> Vec<(Instant, ActionId)> {
        let mut found = Vec::new();
        if self.twins_waiting == 0 || self.owners_waiting == 0 {
            return found;
        }
        for line in &self.lines {
            let mut first: Option<Instant> = None;
            for id in line.iter().rev() {
                let waiting = self.members.get(id).filter(|member| !member.has_turn);
                match waiting.map(|member| member.whose) {
                    Some(Whose::Owner(since)) => first = Some(first.map_or(since, |first| first.min(since))),
                    Some(Whose::Twin(longest)) => {
                        found.extend(first.map(|first| (first + TWIN_WAIT.saturating_sub(longest), *id)));
                    }
                    None => {}
                }
            }
        }
        found
    }

    /// The next action whose turn has come since it entered. Each is returned once.
    pub(crate) fn next(&mut self) -> Option<ActionId> {
        self.called.pop_front()
    }

    /// Gives the child slot of an action away while it waits for its next attempt. The action stays at the front. An
    /// action of the twin's rules that may share a lane with the owner's keeps its slot, because its wait for another
    /// would have no bound.
    pub(crate) fn pause(&mut self, id: ActionId) {
        let whose = self.members.get(&id).map(|member| member.whose);
        if matches!(whose, Some(Whose::Twin(longest)) if longest <= TWIN_WAIT) {
            return;
        }
        self.without_slot.retain(|waiting| *waiting != id);
        self.give_slot_back(id);
    }

    /// The action goes on. True if it may at once. If not, [`Lanes::next`] tells when.
    pub(crate) fn resume(&mut self, id: ActionId) -> bool {
        self.take_slot(id)
    }

    /// Removes an action that has ended, or is not to run. Those behind it move up.
    pub(crate) fn leave(&mut self, id: ActionId) {
        self.give_slot_back(id);
        let Some(member) = self.members.remove(&id) else { return };
        if !member.has_turn {
            *self.waiting(member.whose) -= 1;
        }
        self.without_slot.retain(|waiting| *waiting != id);
        self.called.retain(|called| *called != id);
        for lane in member.lanes.iter() {
            let Some(line) = self.lines.get_mut(*lane) else { continue };
            let was_first = line.front() == Some(&id);
            if was_first {
                line.pop_front();
            } else {
                line.retain(|other| *other != id);
            }
            let Some(first) = line.front().copied().filter(|_| was_first) else { continue };
            // An action in several lanes may come to the front in each of them. Only the last one that it needs calls
            // it.
            if !self.called.contains(&first) && self.gets_turn(first) {
                self.called.push_back(first);
            }
        }
    }

    /// Whether its turn has come: it is at the front and has the slot that it needs.
    fn gets_turn(&mut self, id: ActionId) -> bool {
        let gets_it = self.is_in_front(id) && self.take_slot(id);
        if gets_it {
            self.note_turn(id);
        }
        gets_it
    }

    fn note_turn(&mut self, id: ActionId) {
        let waiting = self.members.get_mut(&id).filter(|member| !member.has_turn);
        if let Some(member) = waiting {
            member.has_turn = true;
            let whose = member.whose;
            *self.waiting(whose) -= 1;
        }
    }

    fn is_in_front(&self, id: ActionId) -> bool {
        let first = |lane: &Lane| self.lines.get(*lane).and_then(VecDeque::front) == Some(&id);
        self.members.get(&id).is_some_and(|member| member.lanes.iter().all(first))
    }

    /// Takes a child slot if one is needed. False if the action must wait for one.
    fn take_slot(&mut self, id: ActionId) -> bool {
        let has_room = self.has_room_for(id);
        let Some(member) = self.members.get_mut(&id) else { return false };
        if member.needs == Slot::None || member.has_slot {
            return true;
        }
        if !has_room {
            self.without_slot.push_back(id);
            return false;
        }
        self.used_slots += 1;
        member.has_slot = true;
        true
    }

    /// Whether this action may take one of the free slots.
    fn has_room_for(&self, id: ActionId) -> bool {
        let spares = self.members.get(&id).is_some_and(|member| member.needs == Slot::Spare);
        self.used_slots + usize::from(spares && self.slots > 1) < self.slots
    }

    fn give_slot_back(&mut self, id: ActionId) {
        let Some(member) = self.members.get_mut(&id) else { return };
        if !std::mem::take(&mut member.has_slot) {
            return;
        }
        self.used_slots -= 1;
        let first = self.without_slot.iter().position(|waiting| self.has_room_for(*waiting));
        if let Some(next) = first.and_then(|at| self.without_slot.remove(at))
            && self.take_slot(next)
        {
            self.note_turn(next);
            self.called.push_back(next);
        }
    }
}

#[cfg(test)]
mod tests;
