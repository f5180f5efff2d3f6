//! D2C messages as back ends read them.
//!
//! Owns: which property becomes which AMQP field, and what the hub adds. Must not know: links, partitions.
//!
//! Source: Microsoft's documents on messages of IoT Hub ("System properties of D2C messages", "Anti-spoofing
//! properties") and `_constants.py` of azure-eventhub 5.15. What a client calls the creation time is an application
//! property, as the documents on the MedTech service of Azure show it. No message has a partition key: the hub's
//! own messages have none (UNVERIFIED).

use std::time::SystemTime;

use fe2o3_amqp::types::messaging::{
    ApplicationProperties, Data, Message, MessageAnnotations, Properties as Section,
};
use fe2o3_amqp::types::primitives::{Binary, Symbol, Timestamp, Value};

use super::device_message;
use crate::emulator::hub::{PartitionEvent, millis_of};
use crate::emulator::identity;

/// The bag key of the component that sends the message, and its annotation. Source: the same documents.
const COMPONENT: (&str, &str) = ("$.sub", "dt-subject");

/// The AMQP form of a message for a back end.
pub(super) fn of(event: &PartitionEvent) -> Message<Data> {
    let (mut section, mut application) = (Section::default(), ApplicationProperties::default());
    let (device, module) = identity::split(&event.id);
    let number = i64::try_from(event.sequence_number).unwrap_or(i64::MAX);
    let text = |text: &str| Value::String(text.to_owned());
    let scope = if module.is_some() { "module" } else { "device" };
    let (kind, issuer) = if event.has_certificate { ("x509", "external") } else { ("sas", "iothub") };
    let method =
        format!(r#"{{"scope":"{scope}","type":"{kind}","issuer":"{issuer}","acceptingIpFilterRule":null}}"#);
    let mut annotations = vec![
        ("x-opt-sequence-number", Value::Long(number)),
        ("x-opt-offset", Value::String(number.to_string())),
        ("x-opt-enqueued-time", timestamp(event.enqueued)),
        ("iothub-connection-device-id", text(device)),
        ("iothub-connection-auth-method", Value::String(method)),
        ("iothub-connection-auth-generation-id", text(&event.generation)),
        ("iothub-enqueuedtime", timestamp(event.enqueued)),
        ("iothub-message-source", text("Telemetry")),
    ];
    annotations.extend(module.map(|module| ("iothub-connection-module-id", text(module))));
    for (name, value) in event.properties.iter() {
        let value = value.unwrap_or_default();
        if name == COMPONENT.0 {
            annotations.push((COMPONENT.1, text(value)));
        } else {
            device_message::put(name, value, &mut section, &mut application);
        }
    }
    let annotations = annotations
        .into_iter()
        .fold(MessageAnnotations::builder(), |all, (name, value)| all.insert(Symbol::from(name), value));
    Message::builder()
        .message_annotations(annotations.build())
        .properties(section)
        .application_properties(application)
        .data(Data(Binary::from(event.body.to_vec())))
        .build()
}

fn timestamp(time: SystemTime) -> Value {
    Value::Timestamp(Timestamp::from_milliseconds(millis_of(time)))
}
