//! The devices of the hub by id, which of them must be saved, and which of them wait for a time.
//!
//! Owns: these two lists. A caller that changes a device cannot forget them. Must not know: what a device holds.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::time::SystemTime;

use super::device::DeviceState;

/// All devices and modules.
#[derive(Debug, Default)]
pub(super) struct DeviceTable {
    states: BTreeMap<String, DeviceState>,
    /// The devices that have changed since [`DeviceTable::take_unsaved`].
    unsaved: BTreeSet<String>,
    /// The keys of the pieces of removed devices.
    gone: Vec<String>,
    /// How often a device has changed.
    changes: u64,
    /// The devices whose deadline may differ from the one in `deadlines`.
    retimed: BTreeSet<String>,
    deadlines: BTreeSet<(SystemTime, String)>,
    /// The deadline of each device in `deadlines`.
    listed: BTreeMap<String, SystemTime>,
}

impl DeviceTable {
    /// New devices, which hold nothing that must be saved.
    pub(super) fn of<'a>(ids: impl Iterator<Item = &'a str>) -> Self {
        let states = ids.map(|id| (id.to_owned(), DeviceState::default())).collect();
        Self { states, ..Self::default() }
    }

    /// A device, to read.
    pub(super) fn get(&self, id: &str) -> Option<&DeviceState> {
        self.states.get(id)
    }

    /// A device, to change what a restart keeps. It counts as changed.
    pub(super) fn get_mut(&mut self, id: &str) -> Option<&mut DeviceState> {
        let state = self.states.get_mut(id)?;
        self.changes += 1;
        note(&mut self.unsaved, id);
        note(&mut self.retimed, id);
        Some(state)
    }

    /// A device, to change only what ends with the process: faults, calls, changes that wait to be sent.
    pub(super) fn passing_mut(&mut self, id: &str) -> Option<&mut DeviceState> {
        let state = self.states.get_mut(id)?;
        note(&mut self.retimed, id);
        Some(state)
    }

    /// All devices, to change only what ends with the process and has no deadline.
    pub(super) fn all_passing_mut(&mut self) -> impl Iterator<Item = &mut DeviceState> {
        self.states.values_mut()
    }

    /// Adds a device that does not exist.
    pub(super) fn insert(&mut self, id: &str, state: DeviceState) {
        self.states.insert(id.to_owned(), state);
        self.mark_unsaved(id);
    }

    /// Removes a device, if it exists.
    pub(super) fn remove(&mut self, id: &str) {
        self.gone.extend(self.states.remove(id).iter().flat_map(|state| state.keys(id)));
        self.changes += 1;
        note(&mut self.retimed, id);
    }

    /// Counts a device as changed.
    pub(super) fn mark_unsaved(&mut self, id: &str) {
        self.changes += 1;
        note(&mut self.unsaved, id);
        note(&mut self.retimed, id);
    }

    /// Counts pieces as gone.
    pub(super) fn forget(&mut self, keys: impl Iterator<Item = String>) {
        self.gone.extend(keys);
        self.changes += 1;
    }

    pub(super) fn contains(&self, id: &str) -> bool {
        self.states.contains_key(id)
    }

    pub(super) fn len(&self) -> usize {
        self.states.len()
    }

    /// The ids, sorted.
    pub(super) fn ids(&self) -> impl Iterator<Item = &str> {
        self.states.keys().map(String::as_str)
    }

    /// The ids from `first` on, sorted.
    pub(super) fn ids_from(&self, first: Bound<&str>) -> impl Iterator<Item = &str> {
        self.states.range::<str, _>((first, Bound::Unbounded)).map(|(id, _)| id.as_str())
    }

    /// Rises with each change of a device.
    pub(super) fn changes(&self) -> u64 {
        self.changes
    }

    /// The devices that have changed since the last call.
    pub(super) fn take_unsaved(&mut self) -> BTreeSet<String> {
        std::mem::take(&mut self.unsaved)
    }

    /// The keys of the pieces that are gone since the last call.
    pub(super) fn take_gone(&mut self) -> Vec<String> {
        std::mem::take(&mut self.gone)
    }

    /// When the first device has work for the passing of time.
    pub(super) fn next_deadline(&mut self) -> Option<SystemTime> {
        self.sort();
        self.deadlines.first().map(|(deadline, _)| *deadline)
    }

    /// The devices that have work for the passing of time.
    pub(super) fn due(&mut self, now: SystemTime) -> Vec<String> {
        self.sort();
        let due = self.deadlines.iter().take_while(|(deadline, _)| *deadline <= now);
        due.map(|(_, id)| id.clone()).collect()
    }

    /// Brings `deadlines` up to date.
    fn sort(&mut self) {
        for id in std::mem::take(&mut self.retimed) {
            let deadline = self.states.get(&id).and_then(DeviceState::next_deadline);
            let before = match deadline {
                Some(deadline) => self.listed.insert(id.clone(), deadline),
                None => self.listed.remove(&id),
            };
            if before == deadline {
                continue;
            }
            if let Some(before) = before {
                self.deadlines.remove(&(before, id.clone()));
            }
            self.deadlines.extend(deadline.map(|deadline| (deadline, id)));
        }
    }
}

fn note(ids: &mut BTreeSet<String>, id: &str) {
    if !ids.contains(id) {
        ids.insert(id.to_owned());
    }
}
