//! What a viewer of the hub sees: queues with the states of their messages, messages that ended recently, waiting
//! feedback.
//!
//! Owns: which parts of the hub are visible, and how many ended messages are kept for viewers.
//! Must not know: JSON, HTTP.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::feedback::{DeliveryAck, FeedbackRecord, FeedbackStatus};
use crate::message::C2dMessage;

use super::{Finished, Hub, snapshot};

/// Most ended messages kept for each device.
pub const MAX_ENDED: usize = 20;

/// Most bytes of their messages. For older messages, only the outcome is kept.
pub const MAX_ENDED_BYTES: usize = 256 * 1024;

/// A message in a device's queue.
#[derive(Debug)]
pub struct QueuedView<'a> {
    /// The message.
    pub message: &'a C2dMessage,
    /// The end of the lock, if the device has the message; `None` if the message waits.
    pub locked_until: Option<SystemTime>,
    /// The message's number; each device counts from 1.
    pub sequence_number: u64,
    /// How often a device has abandoned the message.
    pub delivery_count: u32,
    /// When it expires.
    pub expires: SystemTime,
}

/// A message that has left its queue.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ended {
    /// The message id, if the message had one.
    pub message_id: Option<String>,
    /// How the message ended, even if its sender did not ask for feedback.
    pub status: FeedbackStatus,
    /// When the message ended.
    pub at: SystemTime,
    /// The message's number; each device counts from 1. It is 0 in files of older emulators.
    #[serde(default)]
    pub sequence_number: u64,
    /// The message, while it is kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<Content>,
}

/// A message that has ended, as its sender sent it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Content {
    /// Properties and body.
    #[serde(with = "snapshot::message")]
    pub message: Arc<C2dMessage>,
    /// The outcomes that the sender wanted feedback on.
    #[serde(with = "snapshot::ack")]
    pub(super) ack: DeliveryAck,
}

impl Ended {
    pub(super) fn of(finished: &Finished, status: FeedbackStatus, at: SystemTime) -> Self {
        let Finished { message, ack, sequence_number } = finished;
        Self {
            message_id: message.message_id().map(str::to_owned),
            status,
            at,
            sequence_number: *sequence_number,
            content: Some(Content { message: Arc::clone(message), ack: *ack }),
        }
    }
}

/// A feedback record that no back end has accepted.
#[derive(Debug)]
pub struct FeedbackView<'a> {
    /// The record.
    pub record: &'a FeedbackRecord,
    /// The end of the lock, if a back end has the record; `None` if the record waits.
    pub locked_until: Option<SystemTime>,
}

/// The last messages that ended, oldest first.
#[derive(Debug, Default)]
pub(super) struct EndedLately(VecDeque<Ended>);

impl EndedLately {
    pub(super) fn push(&mut self, ended: Ended) {
        if self.0.len() >= MAX_ENDED {
            self.0.pop_front();
        }
        self.0.push_back(ended);
        let mut bytes = 0;
        for ended in self.0.iter_mut().rev() {
            bytes += ended.content.as_ref().map_or(0, |content| content.message.wire_size());
            if bytes > MAX_ENDED_BYTES {
                ended.content = None;
            }
        }
    }

    pub(super) fn iter(&self) -> impl DoubleEndedIterator<Item = &Ended> {
        self.0.iter()
    }
}

impl FromIterator<Ended> for EndedLately {
    fn from_iter<I: IntoIterator<Item = Ended>>(ended: I) -> Self {
        let mut lately = Self::default();
        ended.into_iter().for_each(|ended| lately.push(ended));
        lately
    }
}

impl Hub {
    /// All devices and modules, sorted by id.
    pub fn device_ids(&self) -> impl Iterator<Item = &str> {
        self.devices.keys().map(String::as_str)
    }

    /// Whether the device is connected over a protocol that has connections.
    pub fn is_connected(&self, device_id: &str) -> bool {
        self.devices.get(device_id).is_some_and(|state| state.session.is_connected())
    }

    /// When the device last signed in, completed or sent something.
    pub fn last_activity(&self, device_id: &str) -> Option<SystemTime> {
        self.devices.get(device_id)?.last_activity
    }

    /// The device's queue, oldest first; empty if the device does not exist.
    pub fn queued(&self, device_id: &str) -> impl Iterator<Item = QueuedView<'_>> {
        self.devices.get(device_id).into_iter().flat_map(|state| state.queue.view())
    }

    /// The device's last [`MAX_ENDED`] ended messages, newest first; empty if the device does not exist.
    pub fn ended(&self, device_id: &str) -> impl Iterator<Item = &Ended> {
        self.devices.get(device_id).into_iter().flat_map(|state| state.ended.iter().rev())
    }

    /// The feedback that no back end has accepted, oldest first.
    pub fn feedback(&self) -> impl Iterator<Item = FeedbackView<'_>> {
        self.feedback.view()
    }

    /// Rises with every change that a viewer can see. [`Hub::version`] leaves out the changes that no listener must act
    /// on.
    pub fn changes(&self) -> u64 {
        self.version + self.quiet_changes
    }
}
