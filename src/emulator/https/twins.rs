//! Twins: how back ends read and write them.
//!
//! Owns: the routes below `/twins/{id}` and `/twins/{id}/modules/{id}`, and the JSON that they accept. Must not know:
//! connections, merging.
//!
//! Source: the REST definitions in Microsoft's Python service SDK (azure-iot-hub, `protocol/`), and the page "Control
//! access to IoT Hub": twins need ServiceConnect. Choices where these are silent. Fields that a back end cannot write
//! (reported properties, versions, the connection's state) are ignored, so that a back end can send a twin back as it
//! got it. `null` instead of a whole part counts as missing.

use hyper::StatusCode;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::call::HttpCall;
use super::reply::{self, HttpReply, HttpResult};
use crate::emulator::hub::{TwinError, TwinWrite};
use crate::emulator::registrar::Expected;
use crate::message::excerpt;

/// Most bytes of a twin in a request: the largest tags, desired and reported properties, and the other fields.
const MAX_BODY: usize = 256 * 1024;

/// The keys that the hub adds to the desired properties. It ignores them in a request.
const OWN: [&str; 2] = ["$version", "$metadata"];

/// A twin as a back end sends it. Other fields are ignored.
#[derive(Deserialize)]
struct TwinBody {
    etag: Option<String>,
    tags: Option<Map<String, Value>>,
    properties: Option<SentProperties>,
}

#[derive(Deserialize)]
struct SentProperties {
    desired: Option<Map<String, Value>>,
}

/// `GET /twins/{id}`.
pub(super) fn get(call: &HttpCall) -> HttpResult {
    let id = call.identity();
    let twin = call.hub.with(|hub, _| hub.twin(&id));
    Ok(twin.map_or_else(|| reply::no_device(&id), |twin| show(&twin)))
}

/// `PATCH /twins/{id}`: merges tags and desired properties into the twin.
pub(super) async fn patch(call: &mut HttpCall) -> HttpResult {
    write(call, |tags, desired| TwinWrite::Patch { tags, desired }).await
}

/// `PUT /twins/{id}`: replaces tags and desired properties. A part that is not sent becomes empty.
pub(super) async fn replace(call: &mut HttpCall) -> HttpResult {
    write(call, |tags, desired| TwinWrite::Replace {
        tags: tags.unwrap_or_default(),
        desired: desired.unwrap_or_default(),
    })
    .await
}

type SectionBody = Option<Map<String, Value>>;

/// The patches of tags and desired properties in the twin of a job. Its etag can only be `*`, because it is for many
/// twins.
///
/// # Errors
/// Fails with a sentence if the text is not such a twin.
pub(super) fn patch_for_all(text: &str) -> Result<(SectionBody, SectionBody), String> {
    let sent: TwinBody =
        serde_json::from_str(text).map_err(|error| format!("updateTwin is not a twin: {error}"))?;
    if let Some(etag) = sent.etag.filter(|etag| etag != "*") {
        return Err(format!("updateTwin.etag is \"{}\", but must be *", excerpt(&etag)));
    }
    Ok((sent.tags, desired(sent.properties)))
}

/// The desired properties without what the hub adds.
fn desired(properties: Option<SentProperties>) -> SectionBody {
    properties.and_then(|properties| properties.desired).map(without_own_keys)
}

async fn write(call: &mut HttpCall, how: fn(SectionBody, SectionBody) -> TwinWrite) -> HttpResult {
    let body = call.body(MAX_BODY).await?;
    let sent: TwinBody = serde_json::from_slice(&body)
        .map_err(|error| reply::bad_argument(&format!("the body is not a twin: {error}")))?;
    let desired = desired(sent.properties);
    let etag = match call.expected() {
        Expected::Etag(etag) => Some(etag),
        _ => None,
    };
    let id = call.identity();
    let written =
        call.hub.with(|hub, now| hub.write_twin(&id, how(sent.tags, desired), etag.as_deref(), now));
    let twin = written.map_err(|error| refusal(&id, &error))?;
    tracing::info!(device_id = id, "a back end wrote a twin");
    Ok(show(&twin))
}

/// Desired properties without the keys that the hub adds.
pub(super) fn without_own_keys(mut desired: Map<String, Value>) -> Map<String, Value> {
    desired.retain(|key, _| !OWN.contains(&key.as_str()));
    desired
}

/// A twin as an answer. The etag is also in a header.
fn show(twin: &Value) -> HttpReply {
    reply::tagged(twin, twin["etag"].as_str().unwrap_or_default())
}

/// The error of a twin. The code words are those in the SDKs.
fn refusal(device_id: &str, error: &TwinError) -> HttpReply {
    match error {
        TwinError::UnknownDevice(_) => reply::no_device(device_id),
        TwinError::Changed { .. } => {
            reply::error(StatusCode::PRECONDITION_FAILED, error.word(), &error.to_string())
        }
        error => reply::bad_argument(&error.to_string()),
    }
}
