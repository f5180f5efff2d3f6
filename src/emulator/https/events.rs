//! The emulator's own route that shows the D2C messages of a device.
//!
//! Owns: their JSON. Must not know: connections, the protocol on which a message came.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

use super::call::HttpCall;
use super::reply::{self, HttpResult};
use crate::emulator::hub::D2cMessage;
use crate::message::{self, format_time};

/// An answer of this size gets no further message. The reader asks again with the last number.
const ENOUGH_BYTES: usize = 1024 * 1024;

/// `GET /emulator/devices/{id}/events?after=NUMBER`.
pub(super) fn show_after(call: &HttpCall) -> HttpResult {
    let device_id = call.segment(2);
    let after = match call.argument("after").map(|text| text.parse()) {
        None => 0,
        Some(Ok(number)) => number,
        Some(Err(_)) => return Err(reply::bad_argument("\"after\" is not the number of a message").into()),
    };
    let page = call.hub.with(|hub, _| hub.events(device_id).map(|events| page(events, after)));
    Ok(page.map_or_else(|| reply::no_device(device_id), |page| reply::ok(&page)))
}

/// The messages with numbers above `after`, oldest first, until the answer is full.
fn page<'a>(events: impl Iterator<Item = &'a D2cMessage>, after: u64) -> Value {
    let mut bytes = 0;
    let later = events.filter(|event| event.number > after);
    later
        .take_while(|event| {
            let begun = bytes < ENOUGH_BYTES;
            bytes += event.body.len() + event.properties.encode().len();
            begun
        })
        .map(show)
        .collect()
}

fn show(event: &D2cMessage) -> Value {
    let (mut system, mut application) = (Map::new(), Map::new());
    for (name, value) in event.properties.iter() {
        let properties = if message::is_system_property(name) { &mut system } else { &mut application };
        properties.insert(name.to_owned(), value.into());
    }
    let mut shown = json!({
        "number": event.number,
        "enqueuedTime": format_time(event.enqueued),
        "systemProperties": system,
        "properties": application,
    });
    set_body(&mut shown, &event.body);
    shown
}

/// Adds a body: as text if it is readable, else in base64.
pub(super) fn set_body(shown: &mut Value, body: &[u8]) {
    let readable = |text: &&str| text.chars().all(|c| !c.is_control() || matches!(c, '\n' | '\r' | '\t'));
    match std::str::from_utf8(body).ok().filter(readable) {
        Some(text) => shown["body"] = text.into(),
        None => shown["bodyBase64"] = STANDARD.encode(body).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Properties;
    use bytes::Bytes;
    use std::time::SystemTime;

    fn event(number: u64, body: impl Into<Bytes>) -> D2cMessage {
        let properties = Properties::decode("%24.cid=m-1&c2d-report=outcome&flag").expect("a bag");
        D2cMessage { number, enqueued: SystemTime::UNIX_EPOCH, properties, body: body.into() }
    }

    #[test]
    fn properties_are_sorted_by_kind_and_only_text_is_shown_as_text() {
        let events = [event(1, "{\n}"), event(2, &b"\xff\0"[..]), event(3, &b"\x1b[31m"[..])];
        assert_eq!(
            page(events.iter(), 0)[0],
            json!({
                "number": 1,
                "enqueuedTime": "1970-01-01T00:00:00.0000000Z",
                "systemProperties": { "$.cid": "m-1" },
                "properties": { "c2d-report": "outcome", "flag": null },
                "body": "{\n}",
            })
        );
        let page = page(events.iter(), 1);
        assert_eq!((page[0]["bodyBase64"].as_str(), page[1]["number"].as_u64()), (Some("/wA="), Some(3)));
        assert!(page[1].get("body").is_none());
    }

    #[test]
    fn an_answer_has_an_end_and_the_next_one_goes_on_there() {
        let events: Vec<_> = (1..=8).map(|number| event(number, vec![b'x'; 300 * 1024])).collect();
        let numbers = |after| {
            let page = page(events.iter(), after);
            page.as_array()
                .into_iter()
                .flatten()
                .filter_map(|event| event["number"].as_u64())
                .collect::<Vec<_>>()
        };
        assert_eq!((numbers(0), numbers(4), numbers(8)), (vec![1, 2, 3, 4], vec![5, 6, 7, 8], vec![]));
    }
}
