//! What a link brings: a message, an unreadable message, or the end of the link.
//!
//! Owns: which of the three. Must not know: what messages mean, how they are settled.

use std::time::SystemTime;

use fe2o3_amqp::link::RecvError;
use fe2o3_amqp::link::delivery::{Delivery, DeliveryInfo};
use fe2o3_amqp::types::messaging::{Body, Message};
use fe2o3_amqp::types::primitives::Value;

use super::fault;
use crate::amqp_frames;
use crate::message::MessageError;
use crate::session::failure::Fault;

/// A delivery, in the AMQP crate's type.
pub(super) type Received = Result<Delivery<Body<Value>>, RecvError>;

/// The message, or why it cannot be read.
pub(super) type ReadMessage = Result<Message<Body<Value>>, MessageError>;

/// The message, and the information that settles it. An unreadable message must be settled, too.
///
/// # Errors
/// When the link is gone.
pub(super) fn read(received: Received, now: SystemTime) -> Result<(DeliveryInfo, ReadMessage), Fault> {
    match received {
        Ok(delivery) => {
            let (info, message) = delivery.into_parts();
            let refused = amqp_frames::refusal(&message.body);
            Ok((info, refused.map_or(Ok(message), |reason| Err(MessageError::Unreadable(reason)))))
        }
        Err(RecvError::MessageDecode(error)) => {
            Ok((error.info, Err(MessageError::Unreadable(error.source.to_string()))))
        }
        Err(error) => Err(fault::of_receive(error, now)),
    }
}
