//! The registry of devices and modules, for back ends with registry rights.
//!
//! Owns: the routes `/devices`, `/devices/{id}`, `/devices/{id}/modules` and `/devices/{id}/modules/{id}`, and the
//! errors of changes. Must not know: connections, files.
//!
//! Source: the REST definitions in Microsoft's Python service SDK (azure-iot-hub, `protocol/`).
//!
//! `wanted` reads what a back end sends of an identity.

use hyper::StatusCode;

use super::call::HttpCall;
use super::reply::{self, HttpReply, HttpResult};
use crate::emulator::hub::Identity;
use crate::emulator::identity;
use crate::emulator::registrar::RegistrarError;

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
    let shown = |modules: Vec<Identity>| reply::ok(&modules.iter().map(Identity::show).collect());
    Ok(modules.map_or_else(|| reply::no_device(device_id), shown))
}

/// `GET /devices/{id}`, `GET /devices/{id}/modules/{id}`.
pub(super) fn get(call: &HttpCall) -> HttpResult {
    let id = call.identity();
    let identity = call.hub.with(|hub, _| hub.identity(&id));
    Ok(identity.map_or_else(|| reply::no_device(&id), |identity| reply::ok(&identity.show())))
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
    Ok(reply::ok(&made.show()))
}

/// `DELETE /devices/{id}`, `DELETE /devices/{id}/modules/{id}`.
pub(super) async fn delete(call: &mut HttpCall) -> HttpResult {
    let device_id = call.identity();
    let deleted = call.registrar.delete(device_id.clone(), call.expected()).await;
    deleted.map_err(|error| refusal(&error))?;
    tracing::info!(device_id, "a back end deleted a device");
    Ok(reply::no_content())
}

/// The error of a change. The code words are those in the SDKs.
fn refusal(error: &RegistrarError) -> HttpReply {
    let (status, code) = match error {
        RegistrarError::Exists(id) if identity::is_module(id) => {
            (StatusCode::CONFLICT, "ModuleAlreadyExistsOnDevice")
        }
        RegistrarError::Exists(_) => (StatusCode::CONFLICT, "DeviceAlreadyExists"),
        RegistrarError::Missing(id) if identity::is_module(id) => (StatusCode::NOT_FOUND, "ModuleNotFound"),
        RegistrarError::Missing(_) => (StatusCode::NOT_FOUND, "DeviceNotFound"),
        RegistrarError::Changed(_) => (StatusCode::PRECONDITION_FAILED, "PreconditionFailed"),
        RegistrarError::Scope(_) => (StatusCode::BAD_REQUEST, "InvalidDeviceScope"),
        RegistrarError::TooMany => (StatusCode::FORBIDDEN, "IotHubQuotaExceeded"),
        RegistrarError::State(_) => (StatusCode::INTERNAL_SERVER_ERROR, "ServerError"),
        RegistrarError::Stopped => (StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable"),
    };
    if status.is_server_error() {
        tracing::error!(%error, "the registry of devices did not change");
    }
    reply::error(status, code, &error.to_string())
}
