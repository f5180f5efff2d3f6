//! How many devices there are, for back ends.
//!
//! Owns: the routes below `/statistics`. Must not know: connections.
//!
//! Source: the classes RegistryStatistics and ServiceStatistics in Microsoft's Python service SDK. Modules do not count.
//! Which right the real hub needs is UNVERIFIED; here it is RegistryRead.

use serde_json::json;

use super::call::HttpCall;
use super::reply::{self, HttpResult};
use crate::emulator::identity;

/// `GET /statistics/devices`.
pub(super) fn devices(call: &HttpCall) -> HttpResult {
    let (all, enabled) = call.hub.with(|hub, _| {
        let devices = hub.device_ids().filter(|id| !identity::is_module(id));
        devices.fold((0, 0), |(all, enabled), id| (all + 1, enabled + usize::from(hub.is_enabled(id))))
    });
    Ok(reply::ok(&json!({
        "totalDeviceCount": all,
        "enabledDeviceCount": enabled,
        "disabledDeviceCount": all - enabled,
    })))
}

/// `GET /statistics/service`.
pub(super) fn service(call: &HttpCall) -> HttpResult {
    let connected = call.hub.with(|hub, _| {
        hub.device_ids().filter(|id| !identity::is_module(id) && hub.is_connected(id)).count()
    });
    Ok(reply::ok(&json!({ "connectedDeviceCount": connected })))
}
