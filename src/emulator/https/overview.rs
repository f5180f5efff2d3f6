//! The overview as JSON: what the emulator's page shows, for one device after another.
//!
//! Owns: its shape, and how much of a message is shown. Must not know: HTTP, who reads it. Used by: `https::page`.

use std::time::SystemTime;

use bytes::Bytes;
use serde_json::{Map, Value, json};

use crate::emulator::hub::{Ended, Event, FeedbackView, Hub, QueuedView};
use crate::message::{Properties, format_time};

use super::{events, faults};

/// Devices that are shown; the rest is counted.
const MAX_DEVICES: usize = 100;
/// D2C messages of each device that are shown.
const MAX_EVENTS: usize = 10;
/// Feedback records that are shown, the newest.
const MAX_FEEDBACK: usize = 50;
/// Properties of a message that are shown; the rest is counted.
const MAX_PROPERTIES: usize = 20;
/// Bytes of a body that are shown.
const MAX_BODY: usize = 512;
/// Characters of an id, or of a property's name or value, that are shown.
const MAX_TEXT: usize = 200;
/// Bytes of a twin that are shown.
const MAX_TWIN: usize = 16 * 1024;

/// Everything there is to see.
pub(super) fn of(hub: &Hub, now: SystemTime) -> Value {
    let devices: Vec<Value> = hub.device_ids().take(MAX_DEVICES).map(|id| device(hub, id)).collect();
    let feedback: Vec<_> = hub.feedback().collect();
    let latest = feedback.iter().rev().take(MAX_FEEDBACK).map(record);
    json!({
        "version": hub.changes(),
        "time": format_time(now),
        "hub": hub.hostname(),
        "devicesLeftOut": hub.device_ids().count() - devices.len(),
        "devices": devices,
        "feedback": latest.collect::<Vec<_>>(),
    })
}

fn device(hub: &Hub, id: &str) -> Value {
    let mut twin = hub.twin_properties(id).unwrap_or_default();
    twin["tags"] = hub.twin_tags(id);
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
        "ended": hub.ended(id).map(ended).collect::<Vec<_>>(),
        "events": latest.into_iter().rev().map(event).collect::<Vec<_>>(),
        "twin": twin,
    })
}

fn event(event: &Event) -> Value {
    let mut shown =
        json!({ "enqueuedTime": format_time(event.enqueued), "properties": properties(&event.properties) });
    set_body(&mut shown, &event.body);
    shown
}

fn queued(queued: &QueuedView) -> Value {
    let mut shown = json!({
        "messageId": queued.message.message_id().map(short),
        "state": if queued.locked_until.is_some() { "invisible" } else { "enqueued" },
        "lockedUntil": queued.locked_until.map(format_time),
        "deliveryCount": queued.delivery_count,
        "expires": format_time(queued.expires),
        "properties": properties(&queued.message.application),
    });
    set_body(&mut shown, &queued.message.body);
    shown
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

fn ended(ended: &Ended) -> Value {
    json!({
        "messageId": ended.message_id.as_deref().map(short),
        "outcome": ended.status.as_str(),
        "at": format_time(ended.at),
    })
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

/// The beginning of a body, and how long it is in all where that is more.
fn set_body(shown: &mut Value, body: &Bytes) {
    let mut beginning = body.slice(..body.len().min(MAX_BODY));
    if beginning.len() < body.len() {
        shown["bodyBytes"] = body.len().into();
        // Not in the middle of a character.
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
