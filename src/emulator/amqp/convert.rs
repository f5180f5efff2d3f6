//! Turns a message from a back end into the message that the device gets.
//!
//! Owns: which AMQP field becomes which property, and which texts the hub accepts. Must not know: links, queues.
//! Source: wire reference 1.5, 2.5 and 4.1.
//!
//! Application properties that are not strings become text if the text is clear (numbers, booleans, times, ids). Binary
//! and decimal values are refused. The reference is silent on this, and SDKs differ.

use std::time::{Duration, SystemTime};

use fe2o3_amqp::types::messaging::{AmqpValue, Body, Message, MessageId, Properties as Section};
use fe2o3_amqp::types::primitives::{SimpleValue, Timestamp, Value};

use super::address::Address;
use super::condition::LinkRefusal;
use crate::emulator::hub::QueuedMessage;
use crate::feedback::{ACK_PROPERTY, DeliveryAck};
use crate::message::{self, C2dMessage, Properties};

/// Application properties that get a system name on the way to the device. Source: wire reference 1.5.
pub(super) const RENAMED: [(&str, &str); 2] =
    [("iothub-creation-time-utc", CREATION_TIME), ("iothub-message-schema", "$.schema")];

/// Bag key of the time at which the sender says that it made the message.
pub(super) const CREATION_TIME: &str = "$.ctime";

/// Converts a message.
///
/// # Errors
/// An argument error that names the wrong field.
pub(super) fn c2d_message(message: Message<Body<Value>>) -> Result<QueuedMessage, LinkRefusal> {
    let section = message.properties.unwrap_or_default();
    let to = section.to.clone().unwrap_or_default();
    let device_id = match Address::parse(&to) {
        Address::Device(id) => id,
        Address::Module => return Err(LinkRefusal::argument("the hub sends no C2D messages to modules")),
        _ => {
            let shown = excerpt(&to);
            let words = format!("the property to is \"{shown}\", not /devices/DEVICE/messages/devicebound");
            return Err(LinkRefusal::argument(words));
        }
    };
    let expiry = section.absolute_expiry_time.as_ref().map(system_time);
    let mut converted = C2dMessage { body: body(message.body)?.into(), ..C2dMessage::default() };
    system_properties(section, &mut converted.system)?;
    let mut ack = DeliveryAck::None;
    let mut application = Vec::new();
    for (name, value) in message.application_properties.unwrap_or_default().0 {
        let value = text_of(&name, value)?;
        if name == ACK_PROPERTY {
            ack = value.parse().map_err(|error| LinkRefusal::argument(format!("{ACK_PROPERTY}: {error}")))?;
            converted.system.set(name, value);
        } else if let Some((_, own)) = RENAMED.iter().find(|(sent, _)| *sent == name) {
            converted.system.set(*own, value);
        } else if name.is_empty() || name.starts_with("$.") {
            let shown = excerpt(&name);
            return Err(LinkRefusal::argument(format!(
                "\"{shown}\" is not a valid name of an application property"
            )));
        } else if message::is_system_property(&name) {
            converted.system.set(name, value);
        } else {
            application.push((name, Some(value)));
        }
    }
    converted.application = application.into_iter().collect();
    Ok(QueuedMessage { device_id, message: converted, ack, expiry })
}

pub(super) fn system_properties(section: Section, system: &mut Properties) -> Result<(), LinkRefusal> {
    if let Some(id) = section.message_id {
        let id = id_text("message-id", id)?;
        if !message::is_message_id(&id) {
            let shown = excerpt(&id);
            return Err(LinkRefusal::argument(format!("\"{shown}\" is not a valid message id")));
        }
        system.set(message::MESSAGE_ID, id);
    }
    // Keep the sender's spelling, because devices see it.
    if let Some(to) = section.to {
        system.set(message::TO, to);
    }
    if let Some(id) = section.correlation_id {
        system.set(message::CORRELATION_ID, id_text("correlation-id", id)?);
    }
    if let Some(id) = section.user_id {
        let text = String::from_utf8(id.into_vec());
        let text = text.map_err(|_| LinkRefusal::argument("the property user-id is not UTF-8"))?;
        system.set(message::USER_ID, text);
    }
    if let Some(kind) = section.content_type {
        system.set(message::CONTENT_TYPE, kind.into_inner());
    }
    if let Some(encoding) = section.content_encoding {
        system.set(message::CONTENT_ENCODING, encoding.into_inner());
    }
    Ok(())
}

/// An id of any AMQP type as text. Node sends the text of a UUID as a UUID.
fn id_text(field: &str, id: MessageId) -> Result<String, LinkRefusal> {
    match id {
        MessageId::String(text) => Ok(text),
        MessageId::Uuid(id) => Ok(uuid_text(id.into_inner())),
        MessageId::Ulong(number) => Ok(number.to_string()),
        MessageId::Binary(bytes) => String::from_utf8(bytes.into_vec())
            .map_err(|_| LinkRefusal::argument(format!("the property {field} is binary and not UTF-8"))),
    }
}

pub(super) fn text_of(name: &str, value: SimpleValue) -> Result<String, LinkRefusal> {
    Ok(match value {
        SimpleValue::String(text) => text,
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
        SimpleValue::Float(value) => value.to_string(),
        SimpleValue::Double(value) => value.to_string(),
        SimpleValue::Char(value) => value.to_string(),
        SimpleValue::Symbol(value) => value.into_inner(),
        SimpleValue::Timestamp(value) => message::format_time(system_time(&value)),
        SimpleValue::Uuid(value) => uuid_text(value.into_inner()),
        SimpleValue::Binary(_)
        | SimpleValue::Decimal32(_)
        | SimpleValue::Decimal64(_)
        | SimpleValue::Decimal128(_)
        | SimpleValue::Described(_) => {
            let words = format!("the value of the application property \"{}\" is not text", excerpt(name));
            return Err(LinkRefusal::argument(words));
        }
    })
}

pub(super) fn body(body: Body<Value>) -> Result<Vec<u8>, LinkRefusal> {
    match body {
        Body::Data(sections) => Ok(sections.into_iter().flat_map(|section| section.0.into_vec()).collect()),
        Body::Value(AmqpValue(Value::String(text))) => Ok(text.into_bytes()),
        Body::Value(AmqpValue(Value::Binary(bytes))) => Ok(bytes.into_vec()),
        Body::Value(AmqpValue(Value::Null)) | Body::Empty => Ok(Vec::new()),
        Body::Value(_) | Body::Sequence(_) => {
            Err(LinkRefusal::argument("the body is neither data nor text: send it as an AMQP data section"))
        }
    }
}

/// Milliseconds since 1970. Earlier times become 1970. Times too far ahead become a time that the hub refuses.
pub(super) fn system_time(timestamp: &Timestamp) -> SystemTime {
    let millis = u64::try_from(timestamp.milliseconds()).unwrap_or_default();
    let time = SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(millis));
    time.unwrap_or(SystemTime::UNIX_EPOCH)
}

fn uuid_text(bytes: [u8; 16]) -> String {
    uuid::Uuid::from_bytes(bytes).hyphenated().to_string()
}

fn excerpt(text: &str) -> String {
    text.chars().take(80).flat_map(char::escape_debug).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use fe2o3_amqp::types::messaging::{ApplicationProperties, Batch, Data};
    use fe2o3_amqp::types::primitives::{Binary, Symbol, Uuid};

    fn message(to: &str, application: &[(&str, SimpleValue)]) -> Message<Body<Value>> {
        let mut properties = ApplicationProperties::default();
        for (name, value) in application {
            properties.0.insert((*name).to_owned(), value.clone());
        }
        let section = Section { to: Some(to.to_owned()), ..Section::default() };
        let body = Body::Data(Batch::new(vec![Data(Binary::from(*b"ab")), Data(Binary::from(*b"c"))]));
        Message::builder().properties(section).application_properties(properties).body(body).build()
    }

    fn refused(to: &str, application: &[(&str, SimpleValue)]) -> String {
        c2d_message(message(to, application)).expect_err("refused").description
    }

    const TO: &str = "/devices/dev%31/messages/deviceBound";

    #[test]
    fn plain_values_become_text_and_hub_properties_their_system_names() {
        let text = |text: &str| SimpleValue::String(text.to_owned());
        let queued = c2d_message(message(
            TO,
            &[
                ("n", SimpleValue::Long(-7)),
                ("b", SimpleValue::Bool(true)),
                ("f", SimpleValue::Double(1.5.into())),
                ("s", SimpleValue::Symbol(Symbol::from("sym"))),
                ("t", SimpleValue::Timestamp(Timestamp::from_milliseconds(1_500))),
                ("iothub-ack", text("Negative")),
                ("iothub-creation-time-utc", text("now")),
            ],
        ))
        .expect("a message");
        assert_eq!((queued.device_id.as_str(), queued.ack), ("dev1", DeliveryAck::Negative));
        assert_eq!(&queued.message.body[..], b"abc", "data sections are one body");
        let application: Vec<_> = queued.message.application.iter().collect();
        let time = Some("1970-01-01T00:00:01.5000000Z");
        let expected =
            [("n", Some("-7")), ("b", Some("true")), ("f", Some("1.5")), ("s", Some("sym")), ("t", time)];
        assert_eq!(application, expected);
        let system: Vec<_> = queued.message.system.iter().collect();
        assert_eq!(
            system,
            [("$.to", Some(TO)), ("iothub-ack", Some("Negative")), ("$.ctime", Some("now"))],
            "the destination keeps the sender's spelling"
        );
    }

    #[test]
    fn ids_of_every_type_become_text() {
        let text = |id| id_text("message-id", id).expect("text");
        assert_eq!(text(MessageId::Uuid(Uuid::from([0xAB; 16]))), "abababab-abab-abab-abab-abababababab");
        assert_eq!(text(MessageId::Ulong(7)), "7");
        assert_eq!(text(MessageId::Binary(Binary::from(*b"m-1"))), "m-1");
        assert!(id_text("message-id", MessageId::Binary(Binary::from(vec![0xFF]))).is_err());
    }

    #[test]
    fn what_the_hub_does_not_take_is_named() {
        let text = || SimpleValue::String("x".to_owned());
        assert!(refused("/messages/devicebound", &[]).contains("\"/messages/devicebound\""));
        assert!(refused("/devices/d/modules/m/messages/devicebound", &[]).contains("modules"));
        assert!(refused(TO, &[("$.mid", text())]).contains("\"$.mid\""));
        assert!(refused(TO, &[("iothub-ack", text())]).contains("iothub-ack: \"x\""));
    }
}
