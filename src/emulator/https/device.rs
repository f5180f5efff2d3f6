//! What a device does over HTTPS.
//!
//! Owns: the routes below `/devices/{id}/messages`, and the headers that carry properties.
//! Must not know: connections, queues. Used by: `https::routes`.
//!
//! Source: wire reference 3. Not served: a batch of D2C messages in one body.

use hyper::StatusCode;
use hyper::header::{CONTENT_TYPE, HeaderMap};

use super::call::Call;
use super::reply::{self, Refusal, Reply};
use crate::message::{self, Properties};

/// Largest D2C message, and so the largest body. Source: wire reference 1.4.
const MAX_D2C_BYTES: usize = 256 * 1024;

/// The content type of a batch of D2C messages.
const BATCH: &str = "application/vnd.microsoft.iothub.json";

/// What stands before the name of an application property.
const APPLICATION: &str = "iothub-app-";

/// Headers of system properties, and their keys in a bag.
const SYSTEM: [(&str, &str); 8] = [
    ("iothub-messageid", message::MESSAGE_ID),
    ("iothub-correlationid", message::CORRELATION_ID),
    ("iothub-userid", message::USER_ID),
    ("iothub-to", message::TO),
    ("iothub-expiry", message::EXPIRY),
    ("iothub-contenttype", message::CONTENT_TYPE),
    ("iothub-contentencoding", message::CONTENT_ENCODING),
    ("iothub-creationtimeutc", "$.ctime"),
];

/// `POST /devices/{id}/messages/events`: a D2C message.
pub(super) async fn send_event(call: &mut Call) -> Result<Reply, Refusal> {
    let device_id = call.segment(1).to_owned();
    call.device(&device_id)?;
    if call.header(CONTENT_TYPE.as_str()).is_some_and(|kind| kind.to_ascii_lowercase().starts_with(BATCH)) {
        return Err(
            reply::bad_argument("batches are not taken here: send one message in each request").into()
        );
    }
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

/// The properties in a request's headers. Header names have no case, so names come in lower case.
fn properties(headers: &HeaderMap) -> Result<Properties, Refusal> {
    let mut properties = Properties::default();
    for (header, value) in headers {
        let header = header.as_str();
        let system = SYSTEM.iter().find(|(own, _)| *own == header).map(|(_, key)| *key);
        let application = header.strip_prefix(APPLICATION).filter(|name| !name.is_empty());
        let unprefixed =
            Some(header).filter(|name| name.starts_with("iothub-") && message::is_system_property(name));
        let Some(name) = system.or(application).or(unprefixed) else { continue };
        let refused = |_| reply::bad_argument(&format!("the value of header \"{header}\" is not UTF-8"));
        properties.set(name, std::str::from_utf8(value.as_bytes()).map_err(refused)?);
    }
    Ok(properties)
}
