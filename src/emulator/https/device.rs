//! The requests of a device over HTTPS for its C2D messages.
//!
//! Owns: the routes below `/devices/{id}/messages/devicebound`, and the headers that carry properties.
//! Must not know: connections, queues.
//!
//! Source: wire reference 3. Choices where it is silent: a requested lock time is ignored, because the lock always
//! lasts a minute; `If-Match` is ignored, because it only repeats the path; a property that is not allowed in a header
//! is left out and logged; the name of a C2D property keeps its sender's spelling.
//!
//! The names of headers in an answer are those that SDKs look for. The C SDK compares case by case, and reads
//! `ContentType` and `ContentEncoding` (Azure/azure-iot-sdk-c, `iothubtransporthttp.c`), as `az` does
//! (Azure/azure-iot-cli-extension, `constants.py`). Other clients read `iothub-contenttype` and
//! `iothub-contentencoding`, so both are there.

use std::time::SystemTime;

use uuid::Uuid;

use super::call::HttpCall;
use super::reply::{self, HttpResult, InvalidHeader};
use crate::emulator::hub::{Hub, Lock, LockLost};
use crate::message;

/// The prefix of an application property's name.
pub(super) const APPLICATION: &str = "iothub-app-";

/// More headers of system properties in an answer, and the keys of these properties in a property bag.
const ALSO: [(&str, &str); 2] =
    [("ContentType", message::CONTENT_TYPE), ("ContentEncoding", message::CONTENT_ENCODING)];

/// Headers of system properties, and their keys in a property bag.
pub(super) const SYSTEM: [(&str, &str); 8] = [
    ("iothub-messageid", message::MESSAGE_ID),
    ("iothub-correlationid", message::CORRELATION_ID),
    ("iothub-userid", message::USER_ID),
    ("iothub-to", message::TO),
    ("iothub-expiry", message::EXPIRY),
    ("iothub-contenttype", message::CONTENT_TYPE),
    ("iothub-contentencoding", message::CONTENT_ENCODING),
    ("iothub-creationtimeutc", "$.ctime"),
];

/// `GET /devices/{id}/messages/devicebound`: the next C2D message, locked for a minute, or 204.
pub(super) fn receive(call: &HttpCall) -> HttpResult {
    let device_id = call.segment(1);
    let Some(locked) = call.hub.with(|hub, now| hub.poll(device_id, now)) else {
        return Ok(reply::no_content());
    };
    let message = &locked.message;
    let mut reply = reply::bytes(message.body.clone());
    let (token, number) = (token(locked.lock), locked.sequence_number.to_string());
    let facts = [
        ("ETag", format!("\"{token}\"")),
        ("iothub-sequencenumber", number),
        ("iothub-enqueuedtime", message::format_time(locked.enqueued)),
        ("iothub-deliverycount", locked.delivery_count.to_string()),
    ];
    let header_of = |name: &str| {
        let known = SYSTEM.iter().find(|(_, key)| *key == name).map(|(header, _)| (*header).to_owned());
        known.or_else(|| name.starts_with("iothub-").then(|| name.to_owned()))
    };
    let system = message.system.iter().map(|(name, value)| (header_of(name), name, value));
    let also = ALSO.iter().filter(|(_, key)| message.system.contains(key));
    let also = also.map(|(header, key)| (Some((*header).to_owned()), *key, message.system.get(key)));
    let application = message.application.iter();
    let application = application.map(|(name, value)| (Some(format!("{APPLICATION}{name}")), name, value));
    for (name, value) in &facts {
        left_out(reply.append(name, value), device_id, name);
    }
    for (header, name, value) in system.chain(also).chain(application) {
        if let Some(header) = header {
            left_out(reply.append(&header, value.unwrap_or_default()), device_id, name);
        }
    }
    let message_id = message.message_id();
    tracing::debug!(device_id, message_id, "delivered a C2D message over HTTPS");
    Ok(reply)
}

/// `DELETE /devices/{id}/messages/devicebound/{lock}`: completes the message, or rejects it with `reject` in the query.
pub(super) fn complete_or_reject(call: &HttpCall) -> HttpResult {
    settle(call, if call.argument("reject").is_some() { Hub::reject } else { Hub::complete })
}

/// `POST /devices/{id}/messages/devicebound/{lock}/abandon`.
pub(super) fn abandon(call: &HttpCall) -> HttpResult {
    settle(call, Hub::abandon)
}

fn settle(call: &HttpCall, how: fn(&mut Hub, &str, Lock, SystemTime) -> Result<(), LockLost>) -> HttpResult {
    let device_id = call.segment(1);
    let token = call.segment(4).trim_matches('"');
    // The emulator never issued a token of another form. It gets the error of a lock that is no longer held.
    let lock = lock(token).ok_or(LockLost);
    let settled = lock.and_then(|lock| call.hub.with(|hub, now| how(hub, device_id, lock, now)));
    match settled {
        Ok(()) => tracing::debug!(device_id, token, "settled a C2D message over HTTPS"),
        Err(LockLost) => {
            tracing::warn!(device_id, token = message::excerpt(token), "refused a late settlement");
            return Err(reply::lock_lost().into());
        }
    }
    Ok(reply::no_content())
}

/// A lock as a GUID, because devices expect one.
fn token(lock: Lock) -> Uuid {
    Uuid::from_u64_pair(0, lock.number())
}

fn lock(token: &str) -> Option<Lock> {
    match Uuid::try_parse(token).ok()?.as_u64_pair() {
        (0, number) => Some(Lock::from_number(number)),
        _ => None,
    }
}

fn left_out(appended: Result<(), InvalidHeader>, device_id: &str, name: &str) {
    if let Err(error) = appended {
        let name = message::excerpt(name);
        tracing::warn!(device_id, name, "left a property out of a C2D message over HTTPS: {error}");
    }
}
