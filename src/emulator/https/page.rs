//! The emulator's page: the hub as a person sees it, and a form that sends a C2D message.
//!
//! Owns: its files, the wait for a new overview, and what its form may send. Must not know: connections, TLS, AMQP and
//! MQTT.
//!
//! The files contain no data and need no token. The data needs a token of the service policy, as on every other route.
//! The page gets the token in the fragment of its address. Browsers do not send the fragment, and there is no cookie
//! that another site could use.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use hyper::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderValue, X_CONTENT_TYPE_OPTIONS,
};
use serde::Deserialize;
use serde_json::json;
use uuid::Uuid;

use super::call::HttpCall;
use super::overview;
use super::provisioning;
use super::reply::{self, HttpReply, HttpResult};
use crate::emulator::hub::{AgainError, EnqueueError, QueuedMessage};
use crate::emulator::identity;
use crate::feedback::{ACK_PROPERTY, DeliveryAck};
use crate::message::{self, C2dMessage, MAX_C2D_BYTES, excerpt};

/// How long to hold back an answer while nothing changes. It must be shorter than the time after which proxies and
/// browsers give up a connection.
const PATIENCE: Duration = Duration::from_secs(25);
/// Changes within this time are sent in one answer.
const REST: Duration = Duration::from_millis(100);
/// Most bytes of a message as JSON: each byte may be written as six (`\u00e4`).
pub(super) const MAX_FORM: usize = 6 * MAX_C2D_BYTES + 4 * 1024;

/// `GET /`.
pub(super) fn index(_: &HttpCall) -> HttpResult {
    let policy = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; \
                  base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
    let reply = file(include_str!("page/index.html"), "text/html; charset=utf-8");
    Ok(reply.with(CONTENT_SECURITY_POLICY, HeaderValue::from_static(policy)))
}

/// `GET /emulator/page.css`.
pub(super) fn style(_: &HttpCall) -> HttpResult {
    Ok(file(include_str!("page/page.css"), "text/css; charset=utf-8"))
}

/// `GET /emulator/page.js`.
pub(super) fn script(_: &HttpCall) -> HttpResult {
    Ok(file(include_str!("page/page.js"), "text/javascript; charset=utf-8"))
}

fn file(text: &'static str, kind: &'static str) -> HttpReply {
    let reply = reply::text(text).with(CONTENT_TYPE, HeaderValue::from_static(kind));
    // Another version of the emulator may serve this address later, so the browser must not keep old files.
    let reply = reply.with(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    reply.with(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"))
}

/// `GET /emulator/overview?after=VERSION&from=ID`: answers when the hub's version differs, or after a while. Devices
/// before `from` are left out.
pub(super) async fn overview(call: &mut HttpCall) -> HttpResult {
    let after = match call.argument("after").map(|text| text.parse::<u64>()) {
        None => None,
        Some(Ok(version)) => Some(version),
        Some(Err(_)) => return Err(reply::bad_argument("\"after\" is not the version of an overview").into()),
    };
    let from = call.argument("from").unwrap_or_default().into_owned();
    let mut changes = call.hub.watch_changes();
    let changed = async {
        // The hub holds the sender, so this cannot fail.
        if changes.wait_for(|version| Some(*version) != after).await.is_ok()
            && after.is_some_and(|after| after > 0)
        {
            tokio::time::sleep(REST).await;
        }
    };
    // Answer also when nothing has changed, so that the page sees that the emulator runs.
    drop(tokio::time::timeout(PATIENCE, changed).await);
    let mut shown = call.hub.with(|hub, now| overview::of(hub, &from, now));
    shown["otherHubs"] = call.hubs.names().filter(|name| shown["hub"] != *name).collect();
    shown["provisioning"] = provisioning::overview::of(call.reception.desk.as_ref());
    Ok(reply::ok(&shown))
}

/// The data that the page's form sends.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct PageForm {
    message_id: Option<String>,
    #[serde(default)]
    properties: BTreeMap<String, String>,
    #[serde(default)]
    body: String,
    #[serde(default)]
    ack: String,
    expires_after_seconds: Option<u64>,
}

/// `POST /emulator/devices/{id}/messages`: queues a C2D message.
pub(super) async fn send(call: &mut HttpCall) -> HttpResult {
    let body = call.body(MAX_FORM).await?;
    let device_id = call.segment(2).to_owned();
    if identity::is_module(&device_id) {
        return Err(reply::bad_argument("the hub sends no C2D messages to modules").into());
    }
    let queued = queued(&body, device_id.clone(), |after| call.hub.now().checked_add(after));
    let queued = queued.map_err(|sentence| reply::bad_argument(&sentence))?;
    let message_id = queued.message.message_id().map(str::to_owned);
    call.hub.with(|hub, now| hub.enqueue(queued, now)).map_err(|error| match error {
        EnqueueError::Throttled(_) => reply::throttled(),
        error => reply::bad_argument(&error.to_string()),
    })?;
    tracing::info!(device_id, message_id, "queued a C2D message from the page");
    Ok(reply::ok(&json!({ "messageId": message_id })))
}

/// `POST /emulator/devices/{id}/messages/{sequenceNumber}/again`: queues an ended message again, with a new id.
pub(super) fn send_again(call: &HttpCall) -> HttpResult {
    let (device_id, number) = (call.segment(2), call.segment(4));
    let number = number.parse().map_err(|_| {
        reply::bad_argument(&format!("\"{}\" is not the sequence number of a message", excerpt(number)))
    })?;
    let message_id = Uuid::new_v4().to_string();
    let sent = call.hub.with(|hub, now| hub.send_again(device_id, number, &message_id, now));
    sent.map_err(|error| match error {
        AgainError::Queue(EnqueueError::Throttled(_)) => reply::throttled(),
        error => reply::bad_argument(&error.to_string()),
    })?;
    tracing::info!(device_id, number, message_id, "queued a message once more");
    Ok(reply::ok(&json!({ "messageId": message_id })))
}

/// Reads a form without feedback and expiry: id, properties and body.
pub(super) fn message(body: &Bytes) -> Result<C2dMessage, String> {
    let queued = queued(body, String::new(), |_| None)?;
    Ok(queued.message)
}

/// Reads a form. `expires` returns the time after a duration from now, or `None` if that is too far ahead.
fn queued(
    body: &Bytes,
    device_id: String,
    expires: impl Fn(Duration) -> Option<SystemTime>,
) -> Result<QueuedMessage, String> {
    let form: PageForm = serde_json::from_slice(body)
        .map_err(|error| format!("the message does not have the form that this page sends: {error}"))?;
    let message_id = form.message_id.unwrap_or_else(|| Uuid::new_v4().to_string());
    if !message::is_message_id(&message_id) {
        return Err(format!(
            "\"{}\" is not a valid message id: use at most 128 letters, digits and some signs",
            excerpt(&message_id)
        ));
    }
    if let Some(name) =
        form.properties.keys().find(|name| name.is_empty() || message::is_system_property(name))
    {
        return Err(format!("\"{}\" is not a valid name of an application property", excerpt(name)));
    }
    let ack: DeliveryAck = match form.ack.as_str() {
        "" => DeliveryAck::None,
        word => word.parse().map_err(|error| format!("{ACK_PROPERTY}: {error}"))?,
    };
    let expiry = match form.expires_after_seconds.map(Duration::from_secs) {
        Some(after) => {
            Some(expires(after).ok_or_else(|| format!("an expiry of {} s is too long", after.as_secs()))?)
        }
        None => None,
    };
    let mut message = C2dMessage { body: Bytes::from(form.body), ..C2dMessage::default() };
    message.system.set(message::MESSAGE_ID, message_id);
    if ack != DeliveryAck::None {
        message.system.set(ACK_PROPERTY, ack.as_str());
    }
    message.application = form.properties.into_iter().map(|(name, value)| (name, Some(value))).collect();
    Ok(QueuedMessage { device_id, message, ack, expiry })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(form: &str) -> Result<QueuedMessage, String> {
        queued(&Bytes::from(form.to_owned()), "dev1".to_owned(), |after| {
            SystemTime::UNIX_EPOCH.checked_add(after)
        })
    }

    #[test]
    fn a_form_becomes_a_message() {
        let queued = read(
            r#"{"messageId": "m-1", "properties": {"b": "", "a": "x y"}, "body": "grüße", "ack": "full", "expiresAfterSeconds": 60}"#,
        );
        let QueuedMessage { device_id, message, ack, expiry } = queued.expect("a message");
        assert_eq!((device_id.as_str(), message.message_id(), ack), ("dev1", Some("m-1"), DeliveryAck::Full));
        assert_eq!(message.application.encode(), "a=x%20y&b=");
        assert_eq!(message.system.get(ACK_PROPERTY), Some("full"));
        assert_eq!(
            (&message.body[..], expiry),
            ("grüße".as_bytes(), Some(SystemTime::UNIX_EPOCH + Duration::from_secs(60)))
        );
    }

    #[test]
    fn the_smallest_form_has_an_id_of_its_own() {
        let message = read("{}").expect("a message").message;
        assert!(message.message_id().is_some_and(|id| id.len() == 36));
    }

    #[test]
    fn what_is_wrong_with_a_form_is_named() {
        for (form, part) in [
            ("", "the message does not have the form that this page sends"),
            (r#"{"bdoy": ""}"#, "bdoy"),
            (r#"{"messageId": "a b"}"#, "\"a b\" is not a valid message id"),
            (r#"{"messageId": ""}"#, "\"\" is not a valid message id"),
            (r#"{"properties": {"": "x"}}"#, "\"\" is not a valid name"),
            (r#"{"properties": {"$.to": "x"}}"#, "\"$.to\" is not a valid name"),
            (r#"{"properties": {"iothub-ack": "x"}}"#, "\"iothub-ack\" is not a valid name"),
            (r#"{"ack": "yes"}"#, "iothub-ack: "),
            (
                r#"{"expiresAfterSeconds": 18446744073709551615}"#,
                "an expiry of 18446744073709551615 s is too long",
            ),
        ] {
            let refusal = read(form).expect_err(form);
            assert!(refusal.contains(part), "{form}: {refusal}");
        }
    }
}
