//! A message of a device, as the Event Hubs endpoint gives it to back ends.
//!
//! Owns: which part of AMQP is what. Pure. Must not know: links.
//!
//! Source: Microsoft's documents on messages of IoT Hub ("System properties of D2C messages"), and `_constants.py` of
//! azure-eventhub 5.15.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use fe2o3_amqp::types::messaging::annotations::OwnedKey;
use fe2o3_amqp::types::messaging::{AmqpValue, Body, Message, MessageId};
use fe2o3_amqp::types::primitives::{Symbol, Value};

use super::text_of;

/// Annotations of the hub that are shown; the others of Event Hubs tell the place of a message.
const OF_HUB: [&str; 2] = ["iothub-", "dt-"];
const DEVICE: &str = "iothub-connection-device-id";
const MODULE: &str = "iothub-connection-module-id";

/// A message that a device or module has sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubEvent {
    /// Who has sent it; empty if the hub does not say it.
    pub device_id: String,
    /// The module, if it was one.
    pub module_id: Option<String>,
    /// When the hub got it.
    pub enqueued: Option<SystemTime>,
    /// The partition where it is.
    pub partition: String,
    /// Its place there; it goes after an offset.
    pub offset: Option<String>,
    /// Its number there.
    pub sequence_number: Option<i64>,
    /// What the hub and the protocol say of it, such as `correlation-id` or `iothub-message-source`.
    pub system: BTreeMap<String, String>,
    /// Its own properties.
    pub application: BTreeMap<String, String>,
    /// Its body.
    pub body: Bytes,
}

impl HubEvent {
    pub(super) fn read(message: Message<Body<Value>>, partition: &str) -> Self {
        let mut system = BTreeMap::new();
        let (mut enqueued, mut offset, mut sequence_number) = (None, None, None);
        for (key, value) in message.message_annotations.map(|annotations| annotations.0).unwrap_or_default() {
            let OwnedKey::Symbol(name) = key else { continue };
            match (name.as_str(), value) {
                ("x-opt-offset", Value::String(text)) => offset = Some(text),
                ("x-opt-sequence-number", Value::Long(number)) => sequence_number = Some(number),
                ("x-opt-enqueued-time", Value::Timestamp(time)) => enqueued = moment(time.milliseconds()),
                (name, value) if OF_HUB.iter().any(|start| name.starts_with(start)) => {
                    let text = match value {
                        Value::String(text) => text,
                        Value::Symbol(symbol) => symbol.into_inner(),
                        Value::Timestamp(time) => match moment(time.milliseconds()) {
                            Some(time) => crate::message::format_time(time),
                            None => continue,
                        },
                        _ => continue,
                    };
                    system.insert(name.to_owned(), text);
                }
                _ => {}
            }
        }
        let section = message.properties.unwrap_or_default();
        let texts = [
            ("message-id", section.message_id.and_then(id_text)),
            ("correlation-id", section.correlation_id.and_then(id_text)),
            ("content-type", section.content_type.map(Symbol::into_inner)),
            ("content-encoding", section.content_encoding.map(Symbol::into_inner)),
            ("to", section.to),
        ];
        system.extend(texts.into_iter().filter_map(|(name, text)| Some((name.to_owned(), text?))));
        let application = message.application_properties.unwrap_or_default().0;
        let application =
            application.iter().filter_map(|(name, value)| Some((name.clone(), text_of(value)?)));
        let body = match message.body {
            Body::Data(sections) => {
                sections.into_iter().flat_map(|section| section.0.into_vec()).collect::<Vec<u8>>().into()
            }
            Body::Value(AmqpValue(Value::String(text))) => text.into(),
            Body::Value(AmqpValue(Value::Binary(bytes))) => bytes.into_vec().into(),
            _ => Bytes::new(),
        };
        Self {
            device_id: system.get(DEVICE).cloned().unwrap_or_default(),
            module_id: system.get(MODULE).cloned(),
            enqueued,
            partition: partition.to_owned(),
            offset,
            sequence_number,
            application: application.collect(),
            system,
            body,
        }
    }
}

fn moment(milliseconds: i64) -> Option<SystemTime> {
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(u64::try_from(milliseconds).ok()?))
}

fn id_text(id: MessageId) -> Option<String> {
    Some(match id {
        MessageId::String(text) => text,
        MessageId::Uuid(id) => uuid::Uuid::from_bytes(id.into_inner()).hyphenated().to_string(),
        MessageId::Ulong(number) => number.to_string(),
        MessageId::Binary(bytes) => String::from_utf8(bytes.into_vec()).ok()?,
    })
}
