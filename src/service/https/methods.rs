//! Calls direct methods, as a back end does.
//!
//! Owns: their requests and answers. Must not know: what a method does.
//!
//! Source: Microsoft's page "Understand and invoke direct methods from IoT Hub" and the REST definitions in its Python
//! service SDK; the error codes are those that users quote (Azure/azure-iot-cli-extension issue 54).

use std::time::Duration;

use hyper::{Method, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;

use super::{ANSWER_TIMEOUT, API_VERSION, HttpsService, ServiceRequest, answer};
use crate::service::{Addressee, ServiceError};

/// Most bytes of a payload, in each direction.
pub const MAX_METHOD_PAYLOAD: usize = 128 * 1024;

/// Most bytes of an answer: a payload and the JSON around it.
const MAX_ANSWER: usize = MAX_METHOD_PAYLOAD + 4 * 1024;

/// No device took the call. Hub code.
const NOT_ONLINE: u64 = 404_103;
/// A device took the call and did not answer. Hub code.
const NO_ANSWER: u64 = 504_101;

/// A call of a method.
#[derive(Debug, Clone)]
pub struct MethodCall {
    /// The method's name.
    pub name: String,
    /// JSON for the device, which gets it unchanged.
    pub payload: Box<RawValue>,
    /// How long the device may take to answer: 5 s to 300 s, whole seconds.
    pub response_timeout: Duration,
    /// How long the device may take to connect: at most 300 s, whole seconds.
    pub connect_timeout: Duration,
}

/// What the device answered.
#[derive(Debug, Clone, Deserialize)]
pub struct MethodAnswer {
    /// The device's own status.
    pub status: i64,
    /// The device's JSON, unchanged; `None` for null.
    pub payload: Option<Box<RawValue>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct InvokeBody<'a> {
    method_name: &'a str,
    payload: &'a RawValue,
    response_timeout_in_seconds: u64,
    connect_timeout_in_seconds: u64,
}

impl HttpsService {
    /// Calls a method once, and waits for its end: the two times of the call, and a little for the network.
    ///
    /// # Errors
    /// As for [`HttpsService::twin`]; [`ServiceError::NotOnline`] when the call did not reach the device;
    /// [`ServiceError::NoMethodAnswer`] when it may have reached it.
    ///
    /// # Cancel safety
    /// If the future is dropped, the device may or may not run the method.
    pub async fn invoke_method(
        &mut self,
        target: &Addressee,
        call: &MethodCall,
    ) -> Result<MethodAnswer, ServiceError> {
        let path = format!("{}/methods?api-version={API_VERSION}", target.twin_path());
        let mut ask = ServiceRequest::new(Method::POST, path, MAX_ANSWER);
        let sent = InvokeBody {
            method_name: &call.name,
            payload: &call.payload,
            response_timeout_in_seconds: call.response_timeout.as_secs(),
            connect_timeout_in_seconds: call.connect_timeout.as_secs(),
        };
        let body = serde_json::to_vec(&sent);
        ask.body =
            body.map_err(|error| ServiceError::Answer(format!("no call can be made: {error}")))?.into();
        ask.patience = call.response_timeout + call.connect_timeout + ANSWER_TIMEOUT;
        let (head, body) = self.exchange(ask).await?;
        if head.status == StatusCode::OK {
            return serde_json::from_slice(&body)
                .map_err(|_| answer::no_hub(&self.host, "an answer without the device's status"));
        }
        Err(match error_code(&body) {
            Some(NOT_ONLINE) => {
                ServiceError::NotOnline { target: target.to_string(), waited: call.connect_timeout }
            }
            Some(NO_ANSWER) => ServiceError::NoMethodAnswer {
                target: target.to_string(),
                name: call.name.clone(),
                seconds: call.response_timeout.as_secs(),
            },
            _ => self.refusal_about(head.status, &body, target),
        })
    }
}

/// The hub's own code. For methods it is in JSON inside the message.
fn error_code(body: &[u8]) -> Option<u64> {
    let body: Value = serde_json::from_slice(body).ok()?;
    let details: Value = serde_json::from_str(body.get("Message")?.as_str()?).ok()?;
    details.get("errorCode")?.as_u64()
}
