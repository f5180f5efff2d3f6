//! Sends an ended message once more.
//!
//! Owns: which parts of the message stay unchanged. Must not know: HTTP, who sends it again.

use std::time::SystemTime;

use super::ended::{MAX_ENDED, MAX_ENDED_BYTES};
use super::state::{EnqueueError, Hub, QueuedMessage};
use crate::message;

/// Why a message was not sent again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AgainError {
    /// The message ended too long ago, or never existed.
    #[error(
        "message {0} is not kept any more: the emulator keeps the last {MAX_ENDED} of a device that ended, \
         with at most {kib} KiB; send it as a new message",
        kib = MAX_ENDED_BYTES / 1024
    )]
    NotKept(u64),
    /// The hub refuses the message.
    #[error(transparent)]
    Queue(#[from] EnqueueError),
}

impl Hub {
    /// Queues an ended message of the device again. The new message gets its own id, because a device ignores an id
    /// that it has seen. It lives as long as a message without an expiry, because its old expiry may have passed.
    ///
    /// # Errors
    /// [`AgainError`]; in this case nothing has changed.
    pub fn send_again(
        &mut self,
        device_id: &str,
        sequence_number: u64,
        message_id: &str,
        now: SystemTime,
    ) -> Result<(), AgainError> {
        if !self.devices.contains(device_id) {
            return Err(EnqueueError::UnknownDevice(message::excerpt(device_id)).into());
        }
        let kept = self.ended(device_id).find(|ended| ended.sequence_number == sequence_number);
        let content = kept.and_then(|ended| ended.content.clone());
        let content = content.ok_or(AgainError::NotKept(sequence_number))?;
        let mut message = (*content.message).clone();
        let lasting = message.system.iter().filter(|(name, _)| *name != message::EXPIRY);
        message.system = lasting.map(|(name, value)| (name.to_owned(), value.map(str::to_owned))).collect();
        message.system.set(message::MESSAGE_ID, message_id);
        let device_id = device_id.to_owned();
        self.push(QueuedMessage { device_id, message, ack: content.ack, expiry: None }, now)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{NOW, after, connect, hub};
    use super::*;
    use crate::feedback::DeliveryAck;
    use crate::message::C2dMessage;
    use bytes::Bytes;
    use std::time::Duration;

    fn queue(hub: &mut Hub, body: &'static [u8]) {
        let mut message = C2dMessage { body: Bytes::from_static(body), ..C2dMessage::default() };
        message.system.set(message::MESSAGE_ID, "m-1");
        message.application.set("action", "write");
        let expiry = Some(NOW + Duration::from_secs(60));
        hub.enqueue(QueuedMessage { device_id: "dev1".into(), message, ack: DeliveryAck::Full, expiry }, NOW)
            .expect("queued");
    }

    #[test]
    fn it_is_the_same_but_for_its_id_and_its_expiry() {
        let mut hub = hub();
        queue(&mut hub, b"\xff\x00");
        let connection = connect(&mut hub, true);
        let first = hub.next_delivery("dev1", connection, NOW).expect("a message");
        hub.complete("dev1", first.lock, NOW).expect("locked");
        hub.send_again("dev1", first.sequence_number, "m-2", after(61)).expect("sent");
        let second = hub.next_delivery("dev1", connection, after(62)).expect("the message again");
        assert_eq!((second.message.message_id(), second.sequence_number), (Some("m-2"), 2));
        assert_eq!(second.message.expiry(), None);
        assert_eq!(
            (&second.message.application, &second.message.body),
            (&first.message.application, &first.message.body)
        );
        hub.complete("dev1", second.lock, after(62)).expect("locked");
        let batch = hub.next_feedback_batch(after(62)).expect("feedback, as for the first");
        assert_eq!(batch.records.len(), 2);
    }

    #[test]
    fn what_is_not_kept_is_said_and_the_newest_contents_are_kept() {
        let mut hub = hub();
        let large: &'static [u8] = &[b'x'; 60 * 1024];
        for number in 1..=6 {
            queue(&mut hub, large);
            assert_eq!(hub.purge("dev1", NOW), Some(1), "{number}");
        }
        let kept: Vec<_> = hub.ended("dev1").map(|ended| ended.content.is_some()).collect();
        assert_eq!(kept, [true, true, true, true, false, false]);
        for number in [1, 2, 7] {
            let error = hub.send_again("dev1", number, "m-2", NOW).expect_err("gone");
            assert_eq!(error, AgainError::NotKept(number));
        }
        hub.send_again("dev1", 3, "m-2", NOW).expect("kept");
        let none = hub.send_again("none", 1, "m-2", NOW).expect_err("no device");
        assert_eq!(none, AgainError::Queue(EnqueueError::UnknownDevice("none".into())));
    }
}
