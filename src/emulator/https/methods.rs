//! Direct methods: the calls of back ends over HTTPS.
//!
//! Owns: the route `/twins/{id}/methods` and the one of modules, its JSON, and the wait for the end. Must not know:
//! connections, how a call reaches its device.
//!
//! Source: Microsoft's page "Understand and invoke direct methods from IoT Hub" and the REST definitions in its Python
//! service SDK. The error bodies are as users quote them (Azure/azure-iot-cli-extension issue 54,
//! Azure/azure-iot-sdk-java issue 640). Choices: without time-outs in the request, a device has 30 seconds to answer,
//! and no time to connect; if the device's answer cannot be passed on, the answer is 502 with the code 502001.

use std::time::Duration;

use bytes::Bytes;
use hyper::StatusCode;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::call::HttpCall;
use super::reply::{self, HttpReply, HttpResult};
use crate::emulator::hub::{
    BackEndCall, CallError, CallId, CallProgress, DeviceAnswer, MAX_METHOD_TIMEOUT, MAX_PAYLOAD,
};
use crate::emulator::shared::SharedHub;
use crate::message::{excerpt, format_time};

/// The longest time that a call can take: the device connects as late as allowed, and does not answer.
pub(super) const LONGEST: Duration = Duration::from_secs(2 * MAX_METHOD_TIMEOUT.as_secs());

/// Most bytes of a request: a payload, and the JSON around it.
const MAX_BODY: usize = MAX_PAYLOAD + 4 * 1024;

const RESPONSE_TIMEOUT: u64 = 30;

/// A call as a back end sends it. Other fields are ignored.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct CallBody {
    method_name: Option<String>,
    payload: Option<Box<RawValue>>,
    #[serde(default)]
    response_timeout_in_seconds: Value,
    #[serde(default)]
    connect_timeout_in_seconds: Value,
}

/// A pending call. Its drop removes the call from the hub, for example when the back end disconnects.
struct WaitingCall<'a> {
    hub: SharedHub,
    device_id: &'a str,
    id: CallId,
}

impl Drop for WaitingCall<'_> {
    fn drop(&mut self) {
        self.hub.with(|hub, _| hub.forget_method(self.device_id, self.id));
    }
}

/// `POST /twins/{id}/methods`: answers when the device has answered, or when the time is over.
pub(super) async fn invoke(call: &mut HttpCall) -> HttpResult {
    let body = call.body(MAX_BODY).await?;
    let method = read(&body).map_err(|sentence| reply::bad_argument(&sentence))?;
    let id = call.identity();
    let device_id = id.as_str();
    let name = method.name.clone();
    let called = call.hub.with(|hub, now| hub.call_method(device_id, method, now));
    let ended = match called {
        Ok(id) => end(WaitingCall { hub: call.hub.clone(), device_id, id }).await,
        Err(error) => Err(error),
    };
    let method = excerpt(&name);
    match ended {
        Ok(DeviceAnswer { status, payload }) => {
            tracing::info!(device_id, method, status, "a device answered a method");
            let body = format!("{{\"status\":{status},\"payload\":{payload}}}");
            let kind = HeaderValue::from_static("application/json; charset=utf-8");
            Ok(reply::bytes(Bytes::from(body)).with(CONTENT_TYPE, kind))
        }
        Err(error) => {
            tracing::warn!(device_id, method, "a method call failed: {error}");
            Err(refusal(call, &error).into())
        }
    }
}

/// Reads a call.
///
/// # Errors
/// Fails with a sentence if the body is not a call.
pub(super) fn read(body: &[u8]) -> Result<BackEndCall, String> {
    let sent: CallBody =
        serde_json::from_slice(body).map_err(|error| format!("the body is not a method call: {error}"))?;
    let payload = match sent.payload {
        Some(payload) => payload,
        None => serde_json::value::to_raw_value(&()).map_err(|error| error.to_string())?,
    };
    Ok(BackEndCall {
        name: sent.method_name.unwrap_or_default(),
        payload,
        response_timeout: seconds(
            "responseTimeoutInSeconds",
            &sent.response_timeout_in_seconds,
            RESPONSE_TIMEOUT,
        )?,
        connect_timeout: seconds("connectTimeoutInSeconds", &sent.connect_timeout_in_seconds, 0)?,
    })
}

/// A time-out as a number, or as text, as `az iot hub invoke-device-method` sends it.
fn seconds(name: &str, sent: &Value, default: u64) -> Result<Duration, String> {
    let seconds = match sent {
        Value::Null => Some(default),
        Value::String(text) => text.parse().ok(),
        other => other.as_u64(),
    };
    let refused = || {
        let shown = match sent {
            Value::String(text) => format!("\"{}\"", excerpt(text)),
            other => excerpt(&other.to_string()),
        };
        format!("the body is not a method call: {name} is {shown}, but must be a number of seconds")
    };
    seconds.map(Duration::from_secs).ok_or_else(refused)
}

/// Waits for the end of a call. Cancel safe: a cancelled call is removed from the hub.
async fn end(call: WaitingCall<'_>) -> Result<DeviceAnswer, CallError> {
    let mut changed = call.hub.watch_device(call.device_id);
    loop {
        changed.mark_unchanged();
        match call.hub.with(|hub, now| hub.method_progress(call.device_id, call.id, now)) {
            CallProgress::Done(ended) => return ended,
            CallProgress::Pending(until) => {
                // The hub holds the sender, so this only ends by a change or by the time limit.
                drop(tokio::time::timeout(call.hub.until(until), changed.changed()).await);
            }
        }
    }
}

/// The error of a call. For some errors the real hub sends a special body, with JSON in the message.
fn refusal(call: &HttpCall, error: &CallError) -> HttpReply {
    let (status, code) = match error {
        CallError::UnknownDevice(_) => return reply::no_device(&call.identity()),
        CallError::Argument(words) => return reply::bad_argument(words),
        CallError::TooManyCalls(_) => {
            let words = error.to_string();
            return reply::error(StatusCode::TOO_MANY_REQUESTS, error.word(), &words);
        }
        CallError::NotOnline(_) => (StatusCode::NOT_FOUND, 404_103),
        CallError::Gone | CallError::TimedOut => (StatusCode::GATEWAY_TIMEOUT, 504_101),
        CallError::BadAnswer(_) => (StatusCode::BAD_GATEWAY, 502_001),
    };
    let info = match error {
        CallError::NotOnline(waited) => {
            let seconds = waited.as_secs();
            json!({ "timeout": format!("00:{:02}:{:02}", seconds / 60, seconds % 60) })
        }
        _ => json!({}),
    };
    let details = json!({
        "errorCode": code,
        "trackingId": uuid::Uuid::new_v4().simple().to_string(),
        "message": error.to_string(),
        "info": info,
        "timestampUtc": format_time(call.hub.now()),
    });
    reply::detailed_error(status, error.word(), &details)
}
