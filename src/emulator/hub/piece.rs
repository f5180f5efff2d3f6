//! The pieces in which a hub is stored, and their keys.
//!
//! Owns: the form of each piece. Must not know: the hub, when a piece is taken, files.

use std::ops::{Deref, DerefMut};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::ended::Ended;
use super::events::D2cMessage;
use super::queue::QueueEntry;
use super::session::Subscription;
use super::twin::DeviceTwin;
use crate::feedback::FeedbackRecord;

/// A piece of what a hub holds. It shares messages and does not copy them.
#[derive(Debug, Serialize)]
#[serde(transparent)]
pub struct Piece(pub(super) Form);

/// What a piece is.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(super) enum Form {
    Device(Box<DeviceSnapshot>),
    Twin(DeviceTwin),
    Event(D2cMessage),
    /// Since when the record waits.
    Feedback(SystemTime, FeedbackRecord),
    Job(Box<RawValue>),
}

/// Pieces that have changed, by key. `None` means that the piece is gone. A later change of a key replaces an earlier
/// one.
pub(super) type PieceChanges = Vec<(String, Option<Piece>)>;

/// A value that knows whether it was changed since it was saved. Each mutable access counts as a change.
#[derive(Debug, Default)]
pub(super) struct Tracked<T> {
    value: T,
    is_unsaved: bool,
}

impl<T> Tracked<T> {
    /// A value that is saved already.
    pub(super) fn saved(value: T) -> Self {
        Self { value, is_unsaved: false }
    }

    /// Whether the value must be saved. From now on it counts as saved.
    pub(super) fn take_unsaved(&mut self) -> bool {
        std::mem::take(&mut self.is_unsaved)
    }
}

impl<T> Deref for Tracked<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T> DerefMut for Tracked<T> {
    fn deref_mut(&mut self) -> &mut T {
        self.is_unsaved = true;
        &mut self.value
    }
}

/// What a hub holds for one device. The piece `device/ID` is this without the parts that are pieces of their own.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct DeviceSnapshot {
    pub(super) queue: Vec<QueueEntry>,
    pub(super) queued: u64,
    /// Whether the session is persistent.
    pub(super) stored: bool,
    pub(super) subscriptions: Vec<(Subscription, u8)>,
    #[serde(skip_serializing)]
    pub(super) twin: DeviceTwin,
    #[serde(skip_serializing)]
    pub(super) events: Vec<D2cMessage>,
    pub(super) ended: Vec<Ended>,
    pub(super) last_activity: Option<SystemTime>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) connection_updated: Option<SystemTime>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) model_id: Option<String>,
    /// Whether all of it is saved already.
    #[serde(skip)]
    pub(super) is_saved: bool,
}

impl DeviceSnapshot {
    /// Takes over the piece `device/ID`, which has neither twin nor D2C messages.
    pub(super) fn set_own(&mut self, own: Self) {
        let (twin, events) = (std::mem::take(&mut self.twin), std::mem::take(&mut self.events));
        *self = Self { twin, events, ..own };
    }

    /// The pieces of a device that this hub does not have.
    pub(super) fn take_changes(&mut self, id: &str, changes: &mut PieceChanges) {
        if !std::mem::replace(&mut self.is_saved, true) {
            changes.extend(self.events.iter().map(|event| event_piece(id, event)));
            changes.push(piece(twin_key(id), Form::Twin(self.twin.clone())));
            changes.push(piece(device_key(id), Form::Device(Box::new(self.clone()))));
        }
    }

    /// The keys of all its pieces.
    pub(super) fn keys(&self, id: &str) -> impl Iterator<Item = String> {
        let events = self.events.iter().map(|event| event_key(id, event.number));
        events.chain([twin_key(id), device_key(id)])
    }
}

pub(super) fn device_key(id: &str) -> String {
    format!("device/{id}")
}

pub(super) fn twin_key(id: &str) -> String {
    format!("twin/{id}")
}

pub(super) fn event_key(id: &str, number: u64) -> String {
    format!("event/{id}/{number}")
}

pub(super) fn event_piece(id: &str, event: &D2cMessage) -> (String, Option<Piece>) {
    piece(event_key(id, event.number), Form::Event(event.clone()))
}

pub(super) fn piece(key: String, form: Form) -> (String, Option<Piece>) {
    (key, Some(Piece(form)))
}
