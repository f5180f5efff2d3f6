//! A batch of D2C messages: one AMQP message, and each of its data sections is an encoded message.
//!
//! Owns: decoding a batch. Must not know: links, what is stored.
//!
//! Source: `iothubtransport_amqp_telemetry_messenger.c` and `uamqp_messaging.c` of the C SDK, which sends each
//! telemetry message so, and its annotations behind its properties. The hub's answer to a batch with an unreadable
//! message is not documented. Choice: such a batch is refused as a whole, because the sender
//! gets one answer and would send all again, so nothing of it may be stored.

use fe2o3_amqp::types::messaging::{Body, Data, Message, message::DecodeIntoMessage};
use fe2o3_amqp::types::primitives::Value;
use serde_amqp::read::SliceReader;

use super::condition::LinkRefusal;
use super::frames::inner;

/// The format of a transfer that is a batch.
pub(super) const BATCH_FORMAT: u32 = 0x8001_3700;

/// The messages in a batch, in order.
///
/// # Errors
/// An argument error that says which message cannot be read, and why.
pub(super) fn messages(batch: Message<Body<Value>>) -> Result<Vec<Message<Body<Value>>>, LinkRefusal> {
    let Body::Data(sections) = batch.body else {
        return Err(LinkRefusal::argument("the batch has no data sections: each one must be a message"));
    };
    let decode = |(at, Data(bytes)): (usize, Data)| {
        decode(&bytes).map_err(|reason| {
            let at = at + 1;
            LinkRefusal::argument(format!("message {at} of the batch cannot be read: {reason}"))
        })
    };
    sections.into_iter().enumerate().map(decode).collect()
}

fn decode(bytes: &[u8]) -> Result<Message<Body<Value>>, String> {
    inner::check(bytes)?;
    let message = <Body<Value> as DecodeIntoMessage>::decode_message_from_reader(SliceReader::new(bytes));
    match message.map_err(|error| error.to_string())? {
        Message { body: Body::Empty, .. } => Err("it has no body, so it is cut off".to_owned()),
        message => Ok(message),
    }
}
