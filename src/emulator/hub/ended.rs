//! Messages that ended recently: how, and what they were.
//!
//! Owns: how many are kept for viewers. Must not know: queues, JSON.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::encoding;
use super::queue::Finished;
use crate::feedback::{DeliveryAck, FeedbackStatus};
use crate::message::C2dMessage;

/// Most ended messages kept for each device.
pub const MAX_ENDED: usize = 20;

/// Most bytes of their messages. For older messages, only the outcome is kept.
pub const MAX_ENDED_BYTES: usize = 256 * 1024;

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
    #[serde(with = "encoding::c2d_message")]
    pub message: Arc<C2dMessage>,
    /// The outcomes that the sender wanted feedback on.
    #[serde(with = "encoding::ack")]
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
