//! D2C messages over HTTPS: one in each request, or a batch.
//!
//! Owns: the route `/devices/{id}/messages/events`, and the form of a batch. Must not know: connections, queues.
//!
//! Source: wire reference 3 for a single message. A batch is a JSON array: `constructBatchBody` in `http.ts` of the
//! Node SDK, and `iothubtransporthttp.c` of the C SDK, which also writes `"base64Encoded":false`. Choice: a batch with
//! a faulty entry is refused as a whole, because its sender gets one answer for all.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use hyper::StatusCode;
use hyper::header::{CONTENT_TYPE, HeaderMap};
use serde::Deserialize;

use super::call::HttpCall;
use super::device::{APPLICATION, SYSTEM};
use super::reply::{self, HttpRefusal, HttpResult};
use crate::emulator::event_log;
use crate::message::{self, Properties, excerpt};

/// Largest D2C message or batch, and so the largest body. Source: wire reference 1.4.
const MAX_D2C_BYTES: usize = 256 * 1024;

/// The content type of a batch of D2C messages.
const BATCH: &str = "application/vnd.microsoft.iothub.json";

/// One message of a batch. Its properties have the names of headers.
#[derive(Debug, Deserialize)]
#[serde(expecting = "an object with \"body\"")]
struct BatchEntry {
    body: String,
    #[serde(rename = "base64Encoded", default = "yes")]
    is_base64: bool,
    #[serde(default)]
    properties: BTreeMap<String, String>,
}

fn yes() -> bool {
    true
}

/// `POST /devices/{id}/messages/events`.
pub(super) async fn send(call: &mut HttpCall) -> HttpResult {
    if call.header(CONTENT_TYPE.as_str()).is_some_and(|kind| kind.to_ascii_lowercase().starts_with(BATCH)) {
        return send_batch(call).await;
    }
    let device_id = call.segment(1).to_owned();
    let properties = properties(&call.headers)?;
    let body = call.body(MAX_D2C_BYTES).await?;
    let named = |(name, value): (&str, Option<&str>)| name.len() + value.map_or(0, str::len);
    let size = body.len() + properties.iter().map(named).sum::<usize>();
    if size > MAX_D2C_BYTES {
        let sentence = format!("the message has {size} bytes with its properties, more than {MAX_D2C_BYTES}");
        return Err(reply::error(StatusCode::PAYLOAD_TOO_LARGE, "MessageTooLarge", &sentence).into());
    }
    let message_id = properties.get(message::MESSAGE_ID);
    tracing::info!(device_id, message_id, bytes = body.len(), "received a D2C message over HTTPS");
    call.hub.with(|hub, now| hub.record_event(&device_id, properties, body, now));
    Ok(reply::no_content())
}

async fn send_batch(call: &mut HttpCall) -> HttpResult {
    let body = call.body(MAX_D2C_BYTES).await?;
    let device_id = call.segment(1);
    let entries: Vec<serde_json::Value> = serde_json::from_slice(&body)
        .map_err(|error| reply::bad_argument(&format!("the batch is not an array in JSON: {error}")))?;
    if entries.is_empty() {
        return Err(reply::bad_argument("the batch has no messages").into());
    }
    let read = |(at, entry)| {
        event(entry).map_err(|reason| {
            let at = at + 1;
            let sentence = format!("message {at} of the batch: {reason}; nothing of the batch was taken");
            HttpRefusal::from(reply::bad_argument(&sentence))
        })
    };
    let events = entries.into_iter().enumerate().map(read).collect::<Result<Vec<_>, _>>()?;
    event_log::log_events(device_id, &events);
    call.hub.with(|hub, now| {
        for (properties, body) in events {
            hub.record_event(device_id, properties, body, now);
        }
    });
    Ok(reply::no_content())
}

/// The message of an entry, or why it is not one.
fn event(entry: serde_json::Value) -> Result<(Properties, Bytes), String> {
    let BatchEntry { body, is_base64, properties } =
        serde_json::from_value(entry).map_err(|error| error.to_string())?;
    let body = if is_base64 {
        STANDARD.decode(&body).map_err(|error| format!("its body is not base64: {error}"))?
    } else {
        body.into_bytes()
    };
    let mut named = Properties::default();
    for (header, value) in properties {
        let name = name_of(&header);
        let unknown = || {
            format!("it has a property \"{0}\": write iothub-app-{0} for one of your own", excerpt(&header))
        };
        named.set(name.ok_or_else(unknown)?, value);
    }
    Ok((named, body.into()))
}

/// The property that a header or a name in a batch stands for.
fn name_of(header: &str) -> Option<String> {
    let lower = header.to_ascii_lowercase();
    if let Some((_, key)) = SYSTEM.iter().find(|(own, _)| *own == lower) {
        return Some((*key).to_owned());
    }
    if lower.starts_with(APPLICATION) {
        return header.get(APPLICATION.len()..).filter(|name| !name.is_empty()).map(str::to_owned);
    }
    Some(lower).filter(|name| name.starts_with("iothub-") && message::is_system_property(name))
}

/// The properties in a request's headers. Header names ignore case, so the property names are in lower case.
fn properties(headers: &HeaderMap) -> Result<Properties, HttpRefusal> {
    let mut properties = Properties::default();
    for (header, value) in headers {
        let header = header.as_str();
        let Some(name) = name_of(header) else { continue };
        let refused = |_| reply::bad_argument(&format!("the value of header \"{header}\" is not UTF-8"));
        properties.set(name, std::str::from_utf8(value.as_bytes()).map_err(refused)?);
    }
    Ok(properties)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_entry_of_a_batch_is_a_message_with_the_names_of_headers() {
        let entry = json!({
            "body": "AP8=",
            "properties": { "iothub-app-Zone": "n", "iothub-messageid": "m-1", "IoTHub-ContentType": "a/b" },
        });
        let (properties, body) = event(entry).expect("a message");
        assert_eq!(&body[..], b"\x00\xff");
        let named: Vec<_> = properties.iter().collect();
        assert_eq!(named, [("$.ct", Some("a/b")), ("Zone", Some("n")), ("$.mid", Some("m-1"))]);
        let (_, body) = event(json!({ "body": "text", "base64Encoded": false })).expect("a message");
        assert_eq!(&body[..], b"text");
    }

    #[test]
    fn a_faulty_entry_is_named() {
        for (entry, reason) in [
            (json!({ "body": "a" }), "its body is not base64"),
            (json!({}), "missing field `body`"),
            (json!([1]), "invalid"),
            (json!({ "body": "", "properties": { "zone": "n" } }), "it has a property \"zone\""),
            (
                json!({ "body": "", "properties": { "iothub-app-": "n" } }),
                "it has a property \"iothub-app-\"",
            ),
            (json!({ "body": "", "properties": { "iothub-app-n": 1 } }), "invalid type"),
        ] {
            let refused = event(entry.clone()).expect_err("refused");
            assert!(refused.contains(reason), "{entry}: {refused}");
        }
    }
}
