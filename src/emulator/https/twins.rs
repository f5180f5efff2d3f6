//! Twins as back ends read and write them.
//!
//! Owns: the routes below `/twins/{id}` and `/twins/{id}/modules/{id}`, and the JSON that they take. Must not know: connections, merging.
//!
//! Source: the REST definitions in Microsoft's Python service SDK (azure-iot-hub, `protocol/`), and the page "Control access
//! to IoT Hub": twins need ServiceConnect. Choices where these are silent: what a back end cannot write (reported
//! properties, versions, the connection's state) is passed over, so that a twin can go back as it came; `null` in place of a
//! whole part is as if it were not there.

use hyper::StatusCode;
use hyper::header::{ETAG, HeaderValue};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::call::Call;
use super::reply::{self, Refusal, Reply};
use crate::emulator::hub::{TwinError, TwinWrite};
use crate::emulator::registrar::Expected;

/// Most bytes of a twin in a request: tags, desired and reported properties at their largest, and what stands around them.
const MAX_BODY: usize = 256 * 1024;

/// What the hub itself puts among the desired properties, and takes back from nobody.
const OWN: [&str; 2] = ["$version", "$metadata"];

/// A twin as a back end sends it. What is not here is passed over.
#[derive(Deserialize)]
struct Sent {
    tags: Option<Map<String, Value>>,
    properties: Option<SentProperties>,
}

#[derive(Deserialize)]
struct SentProperties {
    desired: Option<Map<String, Value>>,
}

/// `GET /twins/{id}`.
pub(super) fn get(call: &Call) -> Result<Reply, Refusal> {
    call.service()?;
    let id = call.identity();
    let twin = call.hub.with(|hub, _| hub.twin(&id));
    Ok(twin.map_or_else(|| reply::no_device(&id), |twin| show(&twin)))
}

/// `PATCH /twins/{id}`: merges tags and desired properties in.
pub(super) async fn patch(call: &mut Call) -> Result<Reply, Refusal> {
    write(call, |tags, desired| TwinWrite::Patch { tags, desired }).await
}

/// `PUT /twins/{id}`: replaces tags and desired properties. What is not sent is empty then.
pub(super) async fn replace(call: &mut Call) -> Result<Reply, Refusal> {
    write(call, |tags, desired| TwinWrite::Replace {
        tags: tags.unwrap_or_default(),
        desired: desired.unwrap_or_default(),
    })
    .await
}

type Part = Option<Map<String, Value>>;

async fn write(call: &mut Call, how: fn(Part, Part) -> TwinWrite) -> Result<Reply, Refusal> {
    call.service()?;
    let body = call.body(MAX_BODY).await?;
    let sent: Sent = serde_json::from_slice(&body)
        .map_err(|error| reply::bad_argument(&format!("the body is not a twin: {error}")))?;
    let mut desired = sent.properties.and_then(|properties| properties.desired);
    if let Some(desired) = &mut desired {
        desired.retain(|key, _| !OWN.contains(&key.as_str()));
    }
    let etag = match call.expected() {
        Expected::Unsaid | Expected::Any => None,
        Expected::Etag(etag) => Some(etag),
    };
    let id = call.identity();
    let written = call.hub.with(|hub, _| hub.write_twin(&id, how(sent.tags, desired), etag.as_deref()));
    let twin = written.map_err(|error| refusal(&id, &error))?;
    tracing::info!(device_id = id, "a back end wrote a twin");
    Ok(show(&twin))
}

/// The etag stands in a header, too.
fn show(twin: &Value) -> Reply {
    let etag = twin["etag"].as_str().map(|etag| HeaderValue::from_str(&format!("\"{etag}\"")));
    match etag {
        Some(Ok(etag)) => reply::ok(twin).with(ETAG, etag),
        _ => reply::ok(twin),
    }
}

/// The words are those of the SDKs' error codes.
fn refusal(device_id: &str, error: &TwinError) -> Reply {
    match error {
        TwinError::UnknownDevice(_) => reply::no_device(device_id),
        TwinError::Changed { .. } => {
            reply::error(StatusCode::PRECONDITION_FAILED, "PreconditionFailed", &error.to_string())
        }
        error => reply::bad_argument(&error.to_string()),
    }
}
