//! What the hub's answers over HTTPS mean, and what is wrong with answers that are not a hub's.
//!
//! Owns: the sentences. Must not know: how requests are sent.

use std::error::Error;
use std::time::Duration;

use http_body_util::LengthLimitError;
use hyper::StatusCode;
use serde_json::Value;

use crate::credentials::HostPort;
use crate::service::ServiceError;
use crate::service::identity::Who;
use crate::service::refusal::excerpt;

/// An answer with a status other than 200, 401 and 403.
pub(super) fn of_status(host: &HostPort, status: StatusCode, body: &[u8], device_id: &str) -> ServiceError {
    let said = hub_message(body);
    match (status, said) {
        (StatusCode::TOO_MANY_REQUESTS, _) => ServiceError::Throttled(host.to_string()),
        (StatusCode::NOT_FOUND, Some(said))
            if said.contains("DeviceNotFound") || said.contains("ModuleNotFound") =>
        {
            ServiceError::UnknownDevice(device_id.to_owned())
        }
        (status, said) if status.is_server_error() => {
            let said = said.map(|said| format!(": {said}")).unwrap_or_default();
            ServiceError::Answer(format!(
                "{host} failed to answer over HTTPS (status {}{said}): try again later",
                status.as_u16()
            ))
        }
        (status, Some(said)) => ServiceError::Denied(format!(
            "{host} refuses the request over HTTPS (status {}: {said}): check --https-port and --device",
            status.as_u16()
        )),
        (status, None) => no_hub(host, &format!("status {} without JSON", status.as_u16())),
    }
}

pub(super) fn not_authorised(host: &HostPort, who: &Who, remedy: &str) -> ServiceError {
    ServiceError::NotAuthorised { host: host.to_string(), who: who.to_string(), remedy: remedy.to_owned() }
}

/// A server that answers, but is not a hub.
pub(super) fn no_hub(host: &HostPort, what: &str) -> ServiceError {
    ServiceError::Answer(format!(
        "{host} answers over HTTPS, but not as an IoT Hub does ({what}): check HostName and --https-port, or whether a \
         proxy answers in its place"
    ))
}

/// A body that ended too early or is too large.
pub(super) fn of_body(host: &HostPort, limit: usize, error: &(dyn Error + 'static)) -> ServiceError {
    if error.is::<LengthLimitError>() {
        return no_hub(host, &format!("more than {} KiB", limit / 1024));
    }
    ServiceError::Lost(format!("{host} ended its answer over HTTPS too early ({error}): try again"))
}

/// A request that got no answer.
pub(super) fn of_exchange(host: &HostPort, error: &hyper::Error) -> ServiceError {
    if error.is_parse() {
        return no_hub(host, "no HTTP/1.1");
    }
    ServiceError::Unanswered(format!(
        "{host} closed the connection instead of answering over HTTPS: check HostName and --https-port"
    ))
}

pub(super) fn late(host: &HostPort, waited: Duration) -> String {
    format!(
        "{host} did not answer over HTTPS within {} s: check HostName and --https-port, and whether a firewall drops it",
        waited.as_secs()
    )
}

/// The text of the hub's error body. Source: wire reference 3.
pub(super) fn hub_message(body: &[u8]) -> Option<String> {
    let body: Value = serde_json::from_slice(body).ok()?;
    body.get("Message").and_then(Value::as_str).map(excerpt)
}
