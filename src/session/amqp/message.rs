//! C2D messages as they come over AMQP, and D2C messages as they go.
//!
//! Owns: which AMQP field is which property, in the spelling of the MQTT property bag. Pure. Must not know: links.
//! Source: wire reference 2.5.

use std::time::{Duration, SystemTime};

use fe2o3_amqp::types::messaging::annotations::AnnotationKey;
use fe2o3_amqp::types::messaging::{
    AmqpValue, ApplicationProperties, Body, Data, Message, MessageId, Properties as Section,
};
use fe2o3_amqp::types::primitives::{Binary, SimpleValue, Symbol, Timestamp, Value};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use crate::message::{
    self, C2dMessage, CONTENT_ENCODING, CONTENT_TYPE, CORRELATION_ID, EXPIRY, MESSAGE_ID, MessageError,
    Properties, Sequence, TO, USER_ID,
};

/// Characters of device ids that need no escape in an address.
const PLAIN: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
/// Application properties that have a system name in the property bag. Source: wire reference 1.5 and 2.5.
const RENAMED: [(&str, &str); 2] =
    [("iothub-creation-time-utc", "$.ctime"), ("iothub-message-schema", "$.schema")];

/// A device id as part of an address.
pub(super) fn in_address(device_id: &str) -> String {
    utf8_percent_encode(device_id, PLAIN).to_string()
}

/// A message as rules see it.
///
/// # Errors
/// When a field is not text, or the body is neither data nor text.
pub(super) fn c2d(message: Message<Body<Value>>) -> Result<C2dMessage, MessageError> {
    let mut converted = C2dMessage { body: body(message.body)?.into(), ..C2dMessage::default() };
    let section = message.properties.unwrap_or_default();
    let system = &mut converted.system;
    let texts = [
        (MESSAGE_ID, section.message_id.map(|id| id_text("message-id", id)).transpose()?),
        (TO, section.to),
        (CORRELATION_ID, section.correlation_id.map(|id| id_text("correlation-id", id)).transpose()?),
        (USER_ID, section.user_id.map(|id| utf8("user-id", id)).transpose()?),
        (CONTENT_TYPE, section.content_type.map(Symbol::into_inner)),
        (CONTENT_ENCODING, section.content_encoding.map(Symbol::into_inner)),
        (EXPIRY, section.absolute_expiry_time.map(|time| message::format_time(system_time(&time)))),
    ];
    for (name, text) in texts {
        text.into_iter().for_each(|text| system.set(name, text));
    }
    let mut application = Vec::new();
    for (name, value) in message.application_properties.unwrap_or_default().0 {
        // Several SDKs drop values of other types, too. Source: wire reference 2.5.
        let Some(value) = text_of(value) else {
            tracing::debug!(name, "ignored a property whose value is not text");
            continue;
        };
        match RENAMED.iter().find(|(sent, _)| *sent == name) {
            Some((_, own)) => converted.system.set(*own, value),
            None if message::is_system_property(&name) => converted.system.set(name, value),
            None => application.push((name, Some(value))),
        }
    }
    // A map has no order. Without the sort, one message could look different each time.
    application.sort();
    converted.application = application.into_iter().collect();
    Ok(converted.as_c2d())
}

/// The message's place in the hub's queue, if its annotations tell it. Source: wire reference 2.5.
pub(super) fn sequence(message: &Message<Body<Value>>) -> Option<Sequence> {
    let annotations = &message.message_annotations.as_ref()?.0;
    let annotation = |name: &str| annotations.get(&name as &dyn AnnotationKey);
    let Some(Value::Ulong(number)) = annotation("x-opt-sequence-number") else { return None };
    let Some(Value::Timestamp(enqueued)) = annotation("iothub-enqueuedtime") else { return None };
    Some(Sequence { number: *number, enqueued_ms: enqueued.milliseconds() })
}

/// A D2C message; `properties` are system and application properties together.
pub(super) fn d2c(properties: &Properties, body: &[u8]) -> Message<Data> {
    let mut section = Section::default();
    let mut application = ApplicationProperties::default();
    for (name, value) in properties.iter() {
        let text = value.unwrap_or_default().to_owned();
        match name {
            MESSAGE_ID => section.message_id = Some(MessageId::String(text)),
            CORRELATION_ID => section.correlation_id = Some(MessageId::String(text)),
            CONTENT_TYPE => section.content_type = Some(Symbol::from(text)),
            CONTENT_ENCODING => section.content_encoding = Some(Symbol::from(text)),
            name => drop(application.0.insert(name.to_owned(), SimpleValue::String(text))),
        }
    }
    Message::builder()
        .properties(section)
        .application_properties(application)
        .data(Data(Binary::from(body.to_vec())))
        .build()
}

/// An id of any AMQP type as text: the Node SDK sends an id that looks like a UUID as a UUID.
fn id_text(field: &str, id: MessageId) -> Result<String, MessageError> {
    Ok(match id {
        MessageId::String(text) => text,
        MessageId::Uuid(id) => uuid::Uuid::from_bytes(id.into_inner()).hyphenated().to_string(),
        MessageId::Ulong(number) => number.to_string(),
        MessageId::Binary(bytes) => utf8(field, bytes)?,
    })
}

fn utf8(field: &str, bytes: Binary) -> Result<String, MessageError> {
    String::from_utf8(bytes.into_vec())
        .map_err(|_| MessageError::Unreadable(format!("its {field} is not UTF-8")))
}

fn text_of(value: SimpleValue) -> Option<String> {
    Some(match value {
        SimpleValue::String(text) => text,
        SimpleValue::Symbol(symbol) => symbol.into_inner(),
        SimpleValue::Null => String::new(),
        SimpleValue::Bool(value) => value.to_string(),
        SimpleValue::Ubyte(value) => value.to_string(),
        SimpleValue::Ushort(value) => value.to_string(),
        SimpleValue::Uint(value) => value.to_string(),
        SimpleValue::Ulong(value) => value.to_string(),
        SimpleValue::Byte(value) => value.to_string(),
        SimpleValue::Short(value) => value.to_string(),
        SimpleValue::Int(value) => value.to_string(),
        SimpleValue::Long(value) => value.to_string(),
        _ => return None,
    })
}

/// The bytes of a body.
///
/// # Errors
/// When it is neither data nor text.
pub(super) fn body(body: Body<Value>) -> Result<Vec<u8>, MessageError> {
    match body {
        Body::Data(sections) => Ok(sections.into_iter().flat_map(|section| section.0.into_vec()).collect()),
        Body::Value(AmqpValue(Value::String(text))) => Ok(text.into_bytes()),
        Body::Value(AmqpValue(Value::Binary(bytes))) => Ok(bytes.into_vec()),
        Body::Value(AmqpValue(Value::Null)) | Body::Empty => Ok(Vec::new()),
        _ => Err(MessageError::Unreadable("its body is neither data nor text".into())),
    }
}

fn system_time(timestamp: &Timestamp) -> SystemTime {
    let millis = u64::try_from(timestamp.milliseconds()).unwrap_or_default();
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(millis)).unwrap_or(SystemTime::UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;
    use fe2o3_amqp::types::messaging::Batch;
    use fe2o3_amqp::types::primitives::Uuid;

    #[test]
    fn a_message_looks_as_it_does_over_mqtt() {
        let section = Section {
            message_id: Some(MessageId::Uuid(Uuid::from([0xAB; 16]))),
            correlation_id: Some(MessageId::Ulong(7)),
            user_id: Some(Binary::from(*b"me")),
            to: Some("/devices/d/messages/devicebound".into()),
            content_type: Some(Symbol::from("text/plain")),
            absolute_expiry_time: Some(Timestamp::from_milliseconds(1_500)),
            ..Section::default()
        };
        let mut application = ApplicationProperties::default();
        for (name, value) in [
            ("b", SimpleValue::Int(3)),
            ("a", SimpleValue::String("ü".into())),
            ("iothub-ack", SimpleValue::String("full".into())),
            ("raw", SimpleValue::Binary(Binary::from(vec![0]))),
            ("iothub-message-schema", SimpleValue::String("s".into())),
        ] {
            application.0.insert(name.into(), value);
        }
        let body = Body::Data(Batch::new(vec![Data(Binary::from(*b"ab")), Data(Binary::from(*b"c"))]));
        let sent =
            Message::builder().properties(section).application_properties(application).body(body).build();
        let message = c2d(sent).expect("a message");
        let bag = "%24.mid=abababab-abab-abab-abab-abababababab&%24.to=%2Fdevices%2Fd%2Fmessages%2Fdevicebound&%24.cid=7\
                   &%24.uid=me&%24.ct=text%2Fplain&%24.exp=1970-01-01T00%3A00%3A01.5000000Z&iothub-ack=full&%24.schema=s\
                   &a=%C3%BC&b=3";
        assert_eq!(message, C2dMessage::from_bag(bag, "abc".into()).expect("a bag"));
    }

    #[test]
    fn what_is_not_text_is_named() {
        let id = MessageId::Binary(Binary::from(vec![0xFF]));
        let section = Section { message_id: Some(id), ..Section::default() };
        let sent: Message<Body<Value>> = Message::builder().properties(section).body(Body::Empty).build();
        assert!(c2d(sent).expect_err("refused").to_string().contains("message-id is not UTF-8"));
    }
}
