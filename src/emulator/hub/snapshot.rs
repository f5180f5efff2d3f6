//! Everything that a hub holds except keys, in pieces that can be stored one by one.
//!
//! Owns: which pieces there are, and what a restart changes: connections and locks are gone, the rest is unchanged.
//! Must not know: files, when pieces are written, how a piece is written (`piece`).
//!
//! | Key | Piece |
//! |---|---|
//! | `device/ID` | queue, session, messages that ended: what `DeviceSnapshot` writes |
//! | `twin/ID` | the twin, if it was ever changed |
//! | `event/ID/N` | a D2C message that is kept |
//! | `feedback/N` | a feedback record that no back end has accepted |
//! | `job/N` | a job, with what became of it at each device |
//!
//! Only what has changed is taken: [`Hub::take_changes`]. To add state:
//!
//! - A small field of a device: add it to `DeviceState`, and to `DeviceSnapshot` with a default for older files. Each
//!   `DeviceTable::get_mut` counts as a change of the device.
//! - State that is large, or that belongs to no device: give it keys of its own. Add a variant of `piece::Form`. Its
//!   owner must know what has changed since the last call, as `FeedbackQueue` does with numbers, or by a
//!   `piece::Tracked` value. Hand the changes out in [`Hub::take_changes`], and read them in [`Hub::restore`].
//!
//! `hub/tests/saved.rs` applies every operation of the hub, and fails if one of them is not listed there or if its
//! change is not handed out.

use std::collections::BTreeMap;
use std::time::SystemTime;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::jobs::ScheduledJob;
use super::piece::{DeviceSnapshot, Piece, PieceChanges};
use super::state::Hub;
use crate::feedback::FeedbackRecord;

/// The version of [`Snapshot`]. A file with another version is refused, because guessing could lose data.
const FORMAT: u32 = 1;

/// What a hub of an older version held, as one piece.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Snapshot {
    format: u32,
    devices: BTreeMap<String, DeviceSnapshot>,
    /// Feedback records that no back end has accepted, oldest first, and since when each waits.
    feedback: Vec<(SystemTime, FeedbackRecord)>,
    /// Jobs, oldest first.
    #[serde(default)]
    jobs: Vec<ScheduledJob>,
}

/// The snapshot was written by another version of this program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it has format {0}, and this version of c2d-agent knows format {FORMAT}")]
pub struct UnknownFormat(u32);

/// A piece cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PieceError {
    /// A later version of this program may know the key.
    #[error("the key \"{0}\" is unknown to this version of c2d-agent")]
    Key(String),
    /// The value does not have the form of its kind.
    #[error("the value of \"{0}\" is damaged: {1}")]
    Value(String, String),
}

impl Hub {
    /// What has changed since the last call.
    pub fn take_changes(&mut self) -> Vec<(String, Option<Piece>)> {
        let mut changes = PieceChanges::new();
        changes.extend(self.devices.take_gone().into_iter().map(|key| (key, None)));
        for id in self.devices.take_unsaved() {
            if let Some(state) = self.devices.passing_mut(&id) {
                state.take_changes(&id, &mut changes);
            } else if let Some(kept) = self.absent.get_mut(&id) {
                kept.take_changes(&id, &mut changes);
            }
        }
        self.feedback.take_changes(&mut changes);
        self.jobs.take_changes(&mut changes);
        changes
    }

    /// Loads what an earlier hub held. Data of devices that this hub does not have is kept for a later hub.
    ///
    /// # Errors
    /// [`PieceError`]; in this case nothing has changed.
    pub fn restore(&mut self, pieces: BTreeMap<String, Box<RawValue>>) -> Result<(), PieceError> {
        let mut devices: BTreeMap<String, DeviceSnapshot> = BTreeMap::new();
        let (mut feedback, mut jobs) = (Vec::new(), BTreeMap::new());
        for (key, value) in &pieces {
            let unknown = || PieceError::Key(key.clone());
            let (kind, id) = key.split_once('/').ok_or_else(unknown)?;
            match kind {
                "device" => devices.entry(id.to_owned()).or_default().set_own(read(key, value)?),
                "twin" => devices.entry(id.to_owned()).or_default().twin = read(key, value)?,
                "event" => {
                    let (id, _) = id.rsplit_once('/').ok_or_else(unknown)?;
                    devices.entry(id.to_owned()).or_default().events.push(read(key, value)?);
                }
                "feedback" => {
                    let number: u64 = id.parse().map_err(|_| unknown())?;
                    let (since, record) = read(key, value)?;
                    feedback.push((number, since, record));
                }
                "job" => drop(jobs.insert(id.parse::<u64>().map_err(|_| unknown())?, read(key, value)?)),
                _ => return Err(unknown()),
            }
        }
        for (id, mut kept) in devices {
            // Keys are in the order of text, in which 10 comes before 9.
            kept.events.sort_by_key(|event| event.number);
            kept.is_saved = true;
            self.take_back(id, kept);
        }
        feedback.sort_by_key(|(number, ..)| *number);
        self.feedback.restore(feedback);
        self.jobs.restore(jobs);
        self.version += 1;
        Ok(())
    }

    /// Loads what a hub of an older version held. All of it counts as changed.
    ///
    /// # Errors
    /// [`UnknownFormat`]; in this case nothing has changed.
    pub fn restore_snapshot(&mut self, snapshot: Snapshot) -> Result<(), UnknownFormat> {
        if snapshot.format != FORMAT {
            return Err(UnknownFormat(snapshot.format));
        }
        for (id, kept) in snapshot.devices {
            self.take_back(id.clone(), kept);
            self.devices.mark_unsaved(&id);
        }
        for (since, record) in snapshot.feedback {
            self.feedback.push(record, since);
        }
        self.jobs.restore((1..).zip(snapshot.jobs));
        self.version += 1;
        Ok(())
    }

    fn take_back(&mut self, id: String, kept: DeviceSnapshot) {
        match self.devices.passing_mut(&id) {
            Some(state) => state.restore(kept),
            None => drop(self.absent.insert(id, kept)),
        }
    }
}

fn read<T: serde::de::DeserializeOwned>(key: &str, value: &RawValue) -> Result<T, PieceError> {
    serde_json::from_str(value.get()).map_err(|error| PieceError::Value(key.to_owned(), error.to_string()))
}
