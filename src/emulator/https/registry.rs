//! The registry of devices and modules, for back ends with registry rights.
//!
//! Owns: reading `/devices`, the routes `/devices/{id}`, `/devices/{id}/modules` and `/devices/{id}/modules/{id}`, and
//! the errors of changes. Must not know: connections, files.
//!
//! Source: the REST definitions in Microsoft's Python service SDK (azure-iot-hub, `protocol/`).
//!
//! `wanted` reads what a back end sends of an identity. `bulk` makes many changes in one request.

use hyper::StatusCode;

use super::call::HttpCall;
use super::reply::{self, HttpReply, HttpResult};
use crate::emulator::hub::Identity;
use crate::emulator::identity;
use crate::emulator::registrar::RegistrarError;

pub(super) mod bulk;
mod wanted;

use wanted::IdentityBody;

/// Most bytes of a device in a request.
const MAX_BODY: usize = 64 * 1024;

/// Most devices in one list, as on the real hub.
const MAX_LISTED: usize = 1_000;

/// `GET /devices?top=NUMBER`.
pub(super) fn list(call: &HttpCall) -> HttpResult {
    let top = match call.argument("top").map(|text| text.parse::<usize>()) {
        None => MAX_LISTED,
        Some(Ok(top)) => top.min(MAX_LISTED),
        Some(Err(_)) => return Err(reply::bad_argument("\"top\" is not a number of devices").into()),
    };
    let devices = call.hub.with(|hub, _| {
        let ids: Vec<String> =
            hub.device_ids().filter(|id| !identity::is_module(id)).take(top).map(str::to_owned).collect();
        ids.iter().filter_map(|id| hub.identity(id)).collect::<Vec<_>>()
    });
    Ok(reply::ok(&devices.iter().map(Identity::show).collect()))
}

/// `GET /devices/{id}/modules`.
pub(super) fn modules(call: &HttpCall) -> HttpResult {
    let device_id = call.segment(1);
    let modules = call.hub.with(|hub, _| {
        hub.identity(device_id)?;
        Some(hub.modules_of(device_id).iter().filter_map(|id| hub.identity(id)).collect::<Vec<_>>())
    });
    let listed = |modules: Vec<Identity>| reply::ok(&modules.iter().map(Identity::show).collect());
    Ok(modules.map_or_else(|| reply::no_device(device_id), listed))
}

/// `GET /devices/{id}`, `GET /devices/{id}/modules/{id}`.
pub(super) fn get(call: &HttpCall) -> HttpResult {
    let id = call.identity();
    let identity = call.hub.with(|hub, _| hub.identity(&id));
    Ok(identity.map_or_else(|| reply::no_device(&id), |identity| shown(&identity)))
}

/// `PUT /devices/{id}`, `PUT /devices/{id}/modules/{id}`: creates the device or module, or changes it if there is an
/// `If-Match`.
pub(super) async fn put(call: &mut HttpCall) -> HttpResult {
    let body = call.body(MAX_BODY).await?;
    let sent: IdentityBody = serde_json::from_slice(&body)
        .map_err(|error| reply::bad_argument(&format!("the body does not describe a device: {error}")))?;
    let wanted = sent.wanted(call.identity()).map_err(|sentence| reply::bad_argument(&sentence))?;
    let made = call.registrar.put(wanted, call.expected()).await.map_err(|error| refusal(&error))?;
    tracing::info!(
        device_id = made.device.id,
        enabled = made.record.enabled,
        "a back end registered a device"
    );
    Ok(shown(&made))
}

/// `DELETE /devices/{id}`, `DELETE /devices/{id}/modules/{id}`.
pub(super) async fn delete(call: &mut HttpCall) -> HttpResult {
    let device_id = call.identity();
    let deleted = call.registrar.delete(device_id.clone(), call.expected()).await;
    deleted.map_err(|error| refusal(&error))?;
    tracing::info!(device_id, "a back end deleted a device");
    Ok(reply::no_content())
}

/// The error of a change as the answer to its request.
fn refusal(error: &RegistrarError) -> HttpReply {
    log_failure(error);
    let (status, word, _) = code(error);
    reply::error(status, word, &error.to_string())
}

/// Logs a change that failed for a reason of this machine.
fn log_failure(error: &RegistrarError) {
    if code(error).0.is_server_error() {
        tracing::error!(%error, "the registry of devices did not change");
    }
}

/// The status of an error, and the hub's word and number for it. Source: DeviceRegistryOperationError in the Python
/// SDK, and `ErrorCode.cs` of the C# SDK. It has no number for a wrong scope, so that is that of any argument.
fn code(error: &RegistrarError) -> (StatusCode, &'static str, u32) {
    match error {
        RegistrarError::Exists(id) if identity::is_module(id) => {
            (StatusCode::CONFLICT, "ModuleAlreadyExistsOnDevice", 409_301)
        }
        RegistrarError::Exists(_) => (StatusCode::CONFLICT, "DeviceAlreadyExists", 409_001),
        RegistrarError::Missing(id) if identity::is_module(id) => {
            (StatusCode::NOT_FOUND, "ModuleNotFound", 404_010)
        }
        RegistrarError::Missing(_) => (StatusCode::NOT_FOUND, "DeviceNotFound", 404_001),
        RegistrarError::Changed(_) => (StatusCode::PRECONDITION_FAILED, "PreconditionFailed", 412_001),
        RegistrarError::NoKeys(_) => (StatusCode::BAD_REQUEST, "InvalidOperation", 400_003),
        RegistrarError::Twin(_) => (StatusCode::BAD_REQUEST, "ArgumentInvalid", 400_004),
        RegistrarError::Scope(_) => (StatusCode::BAD_REQUEST, "InvalidDeviceScope", 400_004),
        RegistrarError::TooMany => (StatusCode::FORBIDDEN, "IotHubQuotaExceeded", 403_002),
        RegistrarError::State(_) => (StatusCode::INTERNAL_SERVER_ERROR, "ServerError", 500_001),
        RegistrarError::Stopped => (StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable", 503_001),
    }
}

/// An identity as an answer. The etag is also in a header.
fn shown(identity: &Identity) -> HttpReply {
    reply::tagged(&identity.show(), &identity.etag())
}
