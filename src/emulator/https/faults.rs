//! The emulator's own routes that show, set and end the faults of a device.
//!
//! Owns: their JSON, and who may use them. Must not know: what a fault does.
//!
//! They are only for peers on this machine, with a token of the service policy.

use serde_json::{Map, Value, json};

use super::call::HttpCall;
use super::reply::{self, HttpRefusal, HttpReply, HttpResult};
use crate::emulator::hub::{Fault, FaultName};

/// Most bytes of a value.
const MAX_VALUE: usize = 64;

/// `GET /emulator/devices/{id}/faults`.
pub(super) fn show(call: &HttpCall) -> HttpResult {
    Ok(of(call))
}

/// `PUT /emulator/devices/{id}/faults/{name}`: the body is the value, as text.
pub(super) async fn set(call: &mut HttpCall) -> HttpResult {
    let value = call.body(MAX_VALUE).await?;
    let value = String::from_utf8_lossy(&value);
    let fault = name(call)?;
    let fault = Fault::new(fault, value.trim()).map_err(|error| reply::bad_argument(&error.to_string()))?;
    let device_id = call.segment(2);
    if call.hub.with(|hub, _| hub.set_fault(device_id, fault)) {
        tracing::info!(device_id, ?fault, "a fault was set");
    }
    Ok(of(call))
}

/// `DELETE /emulator/devices/{id}/faults/{name}`.
pub(super) fn clear(call: &HttpCall) -> HttpResult {
    let (device_id, name) = (call.segment(2), name(call)?);
    if call.hub.with(|hub, _| hub.clear_faults(device_id, Some(name))) {
        tracing::info!(device_id, fault = name.as_str(), "a fault was ended");
    }
    Ok(of(call))
}

/// `DELETE /emulator/devices/{id}/faults`.
pub(super) fn clear_all(call: &HttpCall) -> HttpResult {
    let device_id = call.segment(2);
    if call.hub.with(|hub, _| hub.clear_faults(device_id, None)) {
        tracing::info!(device_id, "all faults were ended");
    }
    Ok(of(call))
}

fn name(call: &HttpCall) -> Result<FaultName, HttpRefusal> {
    let name = call.segment(4).to_ascii_lowercase();
    name.parse()
        .map_err(|error: crate::emulator::hub::FaultError| reply::bad_argument(&error.to_string()).into())
}

/// The answer: the device's faults now, or 404 if the device does not exist.
fn of(call: &HttpCall) -> HttpReply {
    let device_id = call.segment(2);
    let Some(faults) = call.hub.with(|hub, _| hub.faults(device_id)) else {
        return reply::no_device(device_id);
    };
    reply::ok(&json!({ "deviceId": device_id, "faults": named(faults) }))
}

/// Faults by name, with their values.
pub(super) fn named(faults: Vec<Fault>) -> Map<String, Value> {
    let named = |fault: Fault| (fault.name().as_str().to_owned(), fault.value().into());
    faults.into_iter().map(named).collect()
}
