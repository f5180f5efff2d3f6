//! A device's requests for its twin, and the answers to them.
//!
//! Owns: which request a topic stands for, the topic and body of the answer. Must not know: packets, sessions, merging.
//! Source: wire reference 1.7.

use bytes::Bytes;
use serde_json::{Value, json};

use super::super::hub::Metered;
use super::super::shared::SharedHub;

/// The error code in the answer to a request that fails; its status is 400.
const BAD_REQUEST: u32 = 400_004;

/// The error code of throttling; its status is 429.
const THROTTLED: u32 = 429_001;

/// The kind of a twin request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ask {
    /// The desired and reported properties.
    Get,
    /// A change of the reported properties.
    PatchReported,
}

/// A twin request of a device. The answer has its request id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TwinRequest {
    pub(super) ask: Ask,
    /// Opaque: the answer repeats it unchanged. Without one there can be no answer.
    pub(super) request_id: Option<String>,
}

/// The answer to the device.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TwinResponse {
    pub(super) topic: String,
    pub(super) body: Bytes,
}

/// The request that a topic stands for, if it is one.
pub(super) fn request(topic: &str) -> Option<TwinRequest> {
    let asks =
        [("$iothub/twin/GET/", Ask::Get), ("$iothub/twin/PATCH/properties/reported/", Ask::PatchReported)];
    let (query, ask) = asks.iter().find_map(|(prefix, ask)| Some((topic.strip_prefix(prefix)?, *ask)))?;
    let pairs = query.strip_prefix('?').unwrap_or(query).split('&');
    let mut ids = pairs.filter_map(|pair| pair.strip_prefix("$rid=").or(pair.strip_prefix("%24rid=")));
    Some(TwinRequest { ask, request_id: ids.next().filter(|id| !id.is_empty()).map(str::to_owned) })
}

/// Carries out a request. `None` if it has no request id.
pub(super) fn answer(
    hub: &SharedHub,
    device_id: &str,
    request: &TwinRequest,
    body: &[u8],
) -> Option<TwinResponse> {
    let id = request.request_id.as_deref()?;
    if hub.with(|hub, _| hub.is_throttled(device_id)) {
        return Some(refusal(
            device_id,
            id,
            429,
            THROTTLED,
            "the hub is throttling the device: try again later",
        ));
    }
    if request.ask == Ask::PatchReported
        && let Err(error) = hub.with(|hub, now| hub.meter(Metered::TwinUpdate, 0, now))
    {
        return Some(refusal(device_id, id, 429, THROTTLED, &error.to_string()));
    }
    let made = match request.ask {
        Ask::Get => hub
            .with(|hub, _| hub.twin_properties(device_id))
            .map(|properties| TwinResponse {
                topic: format!("$iothub/twin/res/200/?$rid={id}"),
                body: Bytes::from(properties.to_string()),
            })
            .ok_or_else(|| "the device was removed".to_owned()),
        Ask::PatchReported => patch(hub, device_id, body).map(|version| TwinResponse {
            topic: format!("$iothub/twin/res/204/?$rid={id}&$version={version}"),
            body: Bytes::new(),
        }),
    };
    Some(made.unwrap_or_else(|message| refusal(device_id, id, 400, BAD_REQUEST, &message)))
}

fn refusal(device_id: &str, id: &str, status: u16, code: u32, message: &str) -> TwinResponse {
    tracing::warn!(device_id, "refused a twin request: {message}");
    let tracking_id = uuid::Uuid::new_v4().simple().to_string();
    let body = json!({ "errorCode": code, "message": message, "trackingId": tracking_id });
    TwinResponse {
        topic: format!("$iothub/twin/res/{status}/?$rid={id}"),
        body: Bytes::from(body.to_string()),
    }
}

fn patch(hub: &SharedHub, device_id: &str, body: &[u8]) -> Result<u64, String> {
    let patch: Value = serde_json::from_slice(body).map_err(|error| format!("it is not JSON: {error}"))?;
    hub.with(|hub, now| hub.patch_reported(device_id, &patch, now)).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask_and_id(topic: &str) -> Option<(Ask, Option<String>)> {
        request(topic).map(|request| (request.ask, request.request_id))
    }

    #[test]
    fn requests_are_told_by_their_topics() {
        let of = |ask, id: &str| Some((ask, Some(id.to_owned())));
        assert_eq!(ask_and_id("$iothub/twin/GET/?$rid=1"), of(Ask::Get, "1"));
        assert_eq!(
            ask_and_id("$iothub/twin/PATCH/properties/reported/?$rid=a%20b-c"),
            of(Ask::PatchReported, "a%20b-c")
        );
        assert_eq!(ask_and_id("$iothub/twin/GET/?x=1&%24rid=2"), of(Ask::Get, "2"));
        assert_eq!(ask_and_id("$iothub/twin/GET/?$rid="), Some((Ask::Get, None)));
        assert_eq!(ask_and_id("$iothub/twin/GET/"), Some((Ask::Get, None)));
        assert_eq!(ask_and_id("$iothub/twin/PATCH/properties/desired/?$rid=1"), None);
        assert_eq!(ask_and_id("$iothub/methods/res/200/?$rid=1"), None);
    }
}
