//! C2D messages as a device gets them over AMQP, and D2C messages as it sends them.
//!
//! Owns: which property becomes which AMQP field. Must not know: links, queues.
//! Source: wire reference 2.5.

use std::time::SystemTime;

use fe2o3_amqp::types::messaging::{
    ApplicationProperties, Body, Data, Message, MessageAnnotations, MessageId, Properties as Section,
};
use fe2o3_amqp::types::primitives::{Binary, SimpleValue, Symbol, Timestamp, Value};
use uuid::Uuid;

use super::condition::LinkRefusal;
use super::convert::{self, CREATION_TIME, RENAMED};
use super::frames::LOCK_TOKEN;
use crate::emulator::hub::Locked;
use crate::message::{self, Properties};

/// The AMQP form of a message for its device.
pub(super) fn of(locked: &Locked) -> Message<Data> {
    let mut section = Section::default();
    let mut application = ApplicationProperties::default();
    let message = &locked.message;
    for (name, value) in message.system.iter().chain(message.application.iter()) {
        put(name, value.unwrap_or_default(), &mut section, &mut application);
    }
    let count = u8::try_from(locked.delivery_count).unwrap_or(u8::MAX);
    let annotations = MessageAnnotations::builder()
        .insert(Symbol::from("iothub-deliverycount"), Value::Ubyte(count))
        .insert(Symbol::from("iothub-enqueuedtime"), Value::Timestamp(timestamp(locked.enqueued)))
        .insert(Symbol::from(LOCK_TOKEN), Value::String(lock_token(locked).to_string()))
        .insert(Symbol::from("x-opt-sequence-number"), Value::Ulong(locked.sequence_number))
        .build();
    Message::builder()
        .message_annotations(annotations)
        .properties(section)
        .application_properties(application)
        .data(Data(Binary::from(message.body.to_vec())))
        .build()
}

/// Writes a property of a bag into its field. What has none, or cannot be in it, becomes an application property.
pub(super) fn put(name: &str, text: &str, section: &mut Section, application: &mut ApplicationProperties) {
    let expiry = message::parse_time(text).map(timestamp);
    let (is_symbol, text) = (text.is_ascii(), text.to_owned());
    match name {
        message::MESSAGE_ID => section.message_id = Some(MessageId::String(text)),
        message::CORRELATION_ID => section.correlation_id = Some(MessageId::String(text)),
        message::TO => section.to = Some(text),
        message::USER_ID => section.user_id = Some(Binary::from(text.into_bytes())),
        message::CONTENT_TYPE if is_symbol => section.content_type = Some(Symbol::from(text)),
        message::CONTENT_ENCODING if is_symbol => section.content_encoding = Some(Symbol::from(text)),
        message::EXPIRY if expiry.is_some() => section.absolute_expiry_time = expiry,
        other => {
            let renamed = RENAMED.iter().find(|(_, own)| *own == other).map_or(other, |(sent, _)| sent);
            application.0.insert(renamed.to_owned(), SimpleValue::String(text));
        }
    }
}

/// The lock token, equal to the one over HTTPS. It is also the delivery's tag, so the copy that a fault makes needs its
/// own.
pub(super) fn lock_token(locked: &Locked) -> Uuid {
    Uuid::from_u64_pair(u64::from(locked.copy), locked.lock.number())
}

/// The body and the properties of a D2C message. The properties have their names in a property bag.
///
/// # Errors
/// An argument error that names the wrong field.
pub(super) fn event(message: Message<Body<Value>>) -> Result<(Properties, Vec<u8>), LinkRefusal> {
    let mut properties = Properties::default();
    let section = message.properties.unwrap_or_default();
    let created = section.creation_time.clone();
    convert::system_properties(section, &mut properties)?;
    if let Some(created) = created {
        properties.set(CREATION_TIME, message::format_time(convert::system_time(&created)));
    }
    for (name, value) in message.application_properties.unwrap_or_default().0 {
        let value = convert::text_of(&name, value)?;
        // The C SDK and Node write the creation time so.
        let own = RENAMED.iter().find(|(sent, _)| *sent == name).map(|(_, own)| (*own).to_owned());
        properties.set(own.unwrap_or(name), value);
    }
    Ok((properties, convert::body(message.body)?))
}

fn timestamp(time: SystemTime) -> Timestamp {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_milliseconds(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}
