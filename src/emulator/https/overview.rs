//! The overview as JSON: what the emulator's page shows, device by device.
//!
//! Owns: its form, how much of a message is shown, and where a device reports what it did with a message. Must not
//! know: HTTP, who reads it.

use std::collections::BTreeMap;
use std::time::SystemTime;

use bytes::Bytes;
use serde_json::{Map, Value, json};

use crate::emulator::hub::{D2cMessage, Ended, FeedbackView, Hub, QueuedView};
use crate::message::{C2dMessage, Properties, format_time};

use super::{events, faults};

/// Most devices that are shown; the others are only counted.
const MAX_DEVICES: usize = 100;
/// Most D2C messages of each device that are shown.
const MAX_EVENTS: usize = 10;
/// Most feedback records that are shown. They are the newest.
const MAX_FEEDBACK: usize = 50;
/// Most properties of a message that are shown; the others are only counted.
const MAX_PROPERTIES: usize = 20;
/// Most bytes of a body that are shown.
const MAX_BODY: usize = 512;
/// Most characters of an id, or of a property's name or value, that are shown.
const MAX_TEXT: usize = 200;
/// Most bytes of a twin that are shown.
const MAX_TWIN: usize = 16 * 1024;
/// The property that marks a D2C message as the agent's report on a C2D message.
const REPORT: (&str, &str) = ("c2d-report", "outcome");
/// The agent's part of the reported properties.
const TWIN_SECTION: &str = "c2dAgent";

/// The whole overview. Devices whose ids come before `from` are only counted.
pub(super) fn of(hub: &Hub, from: &str, now: SystemTime) -> Value {
    let devices: Vec<Value> = hub.ids_from(from).take(MAX_DEVICES).map(|id| device(hub, id)).collect();
    let feedback: Vec<_> = hub.feedback().collect();
    let latest = feedback.iter().rev().take(MAX_FEEDBACK).map(record);
    json!({
        "version": hub.changes(),
        "time": format_time(now),
        "clockOffsetMs": hub.clock_offset().as_millis(),
        "hub": hub.hostname(),
        "devicesLeftOut": hub.device_count() - devices.len(),
        "devices": devices,
        "feedback": latest.collect::<Vec<_>>(),
    })
}

fn device(hub: &Hub, id: &str) -> Value {
    let mut twin = hub.twin_properties(id).unwrap_or_default();
    twin["tags"] = hub.twin_tags(id);
    let outcomes = outcomes(hub, id, &twin["reported"]);
    let size = twin.to_string().len();
    let twin = if size <= MAX_TWIN { twin } else { format!("{size} bytes: GET /twins/{id}").into() };
    let mut events: Vec<_> = hub.events(id).into_iter().flatten().collect();
    let latest = events.split_off(events.len().saturating_sub(MAX_EVENTS));
    json!({
        "deviceId": id,
        "connected": hub.is_connected(id),
        "faults": faults::named(hub.faults(id).unwrap_or_default()),
        "lastActivity": hub.last_activity(id).map(format_time),
        "queue": hub.queued(id).map(|queued| self::queued(&queued)).collect::<Vec<_>>(),
        "ended": hub.ended(id).map(|one| ended(one, &outcomes)).collect::<Vec<_>>(),
        "events": latest.into_iter().rev().map(event).collect::<Vec<_>>(),
        "twin": twin,
    })
}

fn event(event: &D2cMessage) -> Value {
    let mut shown = json!({
        "number": event.number,
        "enqueuedTime": format_time(event.enqueued),
        "properties": properties(&event.properties),
    });
    set_body(&mut shown, &event.body);
    shown
}

fn queued(queued: &QueuedView) -> Value {
    let mut shown = json!({
        "messageId": queued.message.message_id().map(short),
        "sequenceNumber": queued.sequence_number,
        "state": if queued.locked_until.is_some() { "invisible" } else { "enqueued" },
        "lockedUntil": queued.locked_until.map(format_time),
        "deliveryCount": queued.delivery_count,
        "expires": format_time(queued.expires),
    });
    set_content(&mut shown, queued.message);
    shown
}

fn set_content(shown: &mut Value, message: &C2dMessage) {
    shown["properties"] = properties(&message.application);
    shown["systemProperties"] = properties(&message.system);
    set_body(shown, &message.body);
}

fn properties(properties: &Properties) -> Value {
    let mut shown: Map<String, Value> = properties
        .iter()
        .take(MAX_PROPERTIES)
        .map(|(name, value)| (short(name), value.map(short).into()))
        .collect();
    if properties.len() > MAX_PROPERTIES {
        shown.insert("…".to_owned(), format!("{} in all", properties.len()).into());
    }
    shown.into()
}

fn ended(ended: &Ended, outcomes: &BTreeMap<String, Value>) -> Value {
    let mut shown = json!({
        "messageId": ended.message_id.as_deref().map(short),
        "sequenceNumber": ended.sequence_number,
        "outcome": ended.status.as_str(),
        "at": format_time(ended.at),
        "deviceOutcome": ended.message_id.as_ref().and_then(|id| outcomes.get(id)),
        "kept": ended.content.is_some(),
    });
    if let Some(content) = &ended.content {
        set_content(&mut shown, &content.message);
    }
    shown
}

/// What the device itself has reported about messages, by message id. The reports are in its twin and in D2C messages;
/// those in D2C messages have more details. If two reports have one id, the later one counts.
fn outcomes(hub: &Hub, id: &str, reported: &Value) -> BTreeMap<String, Value> {
    let section = &reported[TWIN_SECTION];
    let rules = section["rules"].as_object().into_iter().flat_map(Map::values);
    // The newest entry is first, so reverse the order: later reports must come later.
    let recent = section["recent"].as_array().into_iter().flatten().rev();
    let (name, value) = REPORT;
    let sent = hub.events(id).into_iter().flatten();
    let sent = sent.filter(|event| event.properties.get(name) == Some(value));
    let sent = sent.filter_map(|event| serde_json::from_slice::<Value>(&event.body).ok());
    let reports = rules.chain(recent).cloned().chain(sent);
    let by_id = |report: Value| Some((report["messageId"].as_str()?.to_owned(), outcome(&report)?));
    reports.filter_map(by_id).collect()
}

fn outcome(report: &Value) -> Option<Value> {
    let text = |name: &str| report[name].as_str().map(short);
    Some(json!({ "outcome": text("outcome")?, "rule": text("rule"), "text": text("text") }))
}

fn record(feedback: &FeedbackView) -> Value {
    json!({
        "originalMessageId": short(&feedback.record.original_message_id),
        "deviceId": feedback.record.device_id,
        "statusCode": feedback.record.status_code.as_str(),
        "enqueuedTimeUtc": feedback.record.enqueued_time_utc,
        "where": if feedback.locked_until.is_some() { "with a back end" } else { "waits" },
    })
}

/// The beginning of a body, and its whole length if the body is longer.
fn set_body(shown: &mut Value, body: &Bytes) {
    let mut beginning = body.slice(..body.len().min(MAX_BODY));
    if beginning.len() < body.len() {
        shown["bodyBytes"] = body.len().into();
        // Do not cut a character in two.
        if let Err(error) = std::str::from_utf8(&beginning)
            && error.error_len().is_none()
        {
            beginning.truncate(error.valid_up_to());
        }
    }
    events::set_body(shown, &beginning);
}

fn short(text: &str) -> String {
    match text.char_indices().nth(MAX_TEXT) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    use crate::credentials::SharedAccessKey;
    use crate::emulator::hub::QueuedMessage;
    use crate::emulator::registry::{Device, DeviceCredential, KeyPair, Registry};
    use crate::feedback::DeliveryAck;
    use crate::message::MESSAGE_ID;

    const NOW: SystemTime = SystemTime::UNIX_EPOCH;

    #[test]
    fn a_message_that_ended_has_its_content_and_what_the_device_says_last_of_it() {
        let key = SharedAccessKey::from_bytes([7; 32]);
        let credential = DeviceCredential::Keys(KeyPair { primary: key.clone(), secondary: key });
        let mut registry = Registry::new("h", Vec::new());
        registry.add_device(Device { id: "dev1".to_owned(), credential });
        let mut hub = Hub::new(registry, Duration::ZERO);
        for id in ["m-1", "m-2", "m-3"] {
            let mut message = C2dMessage { body: Bytes::from_static(b"<b>"), ..C2dMessage::default() };
            message.system.set(MESSAGE_ID, id);
            message.application.set("action", "go");
            let (device_id, ack) = ("dev1".to_owned(), DeliveryAck::None);
            hub.enqueue(QueuedMessage { device_id, message, ack, expiry: None }, NOW).expect("queued");
        }
        assert_eq!(hub.purge("dev1", NOW), Some(3));
        let old = json!({ "messageId": "m-1", "outcome": "timed-out" });
        let recent = json!([
            { "messageId": "m-2", "outcome": "failed", "text": "failed: no" },
            { "messageId": "m-1", "outcome": "failed" },
        ]);
        let twin = json!({ "c2dAgent": { "rules": { "r": old }, "recent": recent } });
        hub.patch_reported("dev1", &twin, NOW).expect("patched");
        let report = |id: &str| json!({ "messageId": id, "outcome": "succeeded", "rule": "r" }).to_string();
        for (bag, body) in [
            ("c2d-report=outcome", report("m-2")),
            ("kind=other", report("m-3")),
            ("c2d-report=outcome", "no JSON".to_owned()),
        ] {
            let properties = Properties::decode(bag).expect("a bag");
            hub.record_event("dev1", properties, Bytes::from(body), NOW);
        }
        let ended = of(&hub, "", NOW)["devices"][0]["ended"].clone();
        let later = of(&hub, "dev2", NOW);
        assert_eq!(
            (later["devices"].as_array().map(Vec::len), later["devicesLeftOut"].as_u64()),
            (Some(0), Some(1))
        );
        let own: Vec<_> = (0..3).map(|at| ended[at]["deviceOutcome"].clone()).collect();
        let succeeded = json!({ "outcome": "succeeded", "rule": "r", "text": null });
        let failed = json!({ "outcome": "failed", "rule": null, "text": null });
        assert_eq!(own, [Value::Null, succeeded, failed]);
        assert_eq!((&ended[0]["messageId"], &ended[0]["sequenceNumber"]), (&"m-3".into(), &3.into()));
        assert_eq!((&ended[0]["body"], &ended[0]["properties"]["action"]), (&"<b>".into(), &"go".into()));
    }
}
