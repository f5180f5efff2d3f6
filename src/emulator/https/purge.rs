//! Clearing a device's queue.
//!
//! Owns: the route `/devices/{id}/commands`. Must not know: connections, which messages a purge removes.

use serde_json::json;

use super::call::HttpCall;
use super::reply::{self, HttpResult};

/// `DELETE /devices/{id}/commands`. Source: wire reference 4.5.
pub(super) fn purge(call: &HttpCall) -> HttpResult {
    let device_id = call.segment(1);
    let Some(purged) = call.hub.with(|hub, now| hub.purge(device_id, now)) else {
        return Ok(reply::no_device(device_id));
    };
    tracing::info!(device_id, purged, "purged a queue");
    Ok(reply::ok(&json!({ "totalMessagesPurged": purged, "deviceId": device_id, "moduleId": null })))
}
