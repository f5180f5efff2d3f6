//! The registry of devices and modules, for back ends with registry rights.
//!
//! Owns: the routes `/devices`, `/devices/{id}`, `/devices/{id}/modules` and `/devices/{id}/modules/{id}`, and the JSON
//! of a device or a module. Must not know: connections, files.
//!
//! Source: the REST definitions in Microsoft's Python service SDK (azure-iot-hub, `protocol/`). Not served: edge
//! devices and parents, certificates of an authority. Choices: a device that is changed without keys keeps its keys; a
//! device that was deleted and made again with other keys has another generation.

use hyper::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};

use super::call::HttpCall;
use super::reply::{self, HttpReply, HttpResult};
use crate::credentials::{SharedAccessKey, check_device_id};
use crate::emulator::hub::Identity;
use crate::emulator::identity;
use crate::emulator::registrar::{RegistrarError, Wanted};
use crate::emulator::registry::{DeviceCredential, KeyPair};
use crate::message;

/// Most bytes of a device in a request.
const MAX_BODY: usize = 64 * 1024;

/// Most devices in one list, as on the real hub.
const MAX_LISTED: usize = 1_000;

/// The hub's text for a time that does not exist.
const NEVER: &str = "0001-01-01T00:00:00Z";

/// A device or a module as a back end sends it. Other fields are ignored.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct IdentityBody {
    device_id: Option<String>,
    module_id: Option<String>,
    status: Option<String>,
    authentication: Option<Authentication>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Authentication {
    #[serde(rename = "type")]
    kind: Option<String>,
    symmetric_key: Option<SymmetricKey>,
    x509_thumbprint: Option<X509Thumbprint>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct SymmetricKey {
    primary_key: Option<String>,
    secondary_key: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct X509Thumbprint {
    primary_thumbprint: Option<String>,
    secondary_thumbprint: Option<String>,
}

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
    Ok(reply::ok(&devices.iter().map(show).collect()))
}

/// `GET /devices/{id}/modules`.
pub(super) fn modules(call: &HttpCall) -> HttpResult {
    let device_id = call.segment(1);
    let modules = call.hub.with(|hub, _| {
        hub.identity(device_id)?;
        Some(hub.modules_of(device_id).iter().filter_map(|id| hub.identity(id)).collect::<Vec<_>>())
    });
    let shown = |modules: Vec<Identity>| reply::ok(&modules.iter().map(show).collect());
    Ok(modules.map_or_else(|| reply::no_device(device_id), shown))
}

/// `GET /devices/{id}`, `GET /devices/{id}/modules/{id}`.
pub(super) fn get(call: &HttpCall) -> HttpResult {
    let id = call.identity();
    let identity = call.hub.with(|hub, _| hub.identity(&id));
    Ok(identity.map_or_else(|| reply::no_device(&id), |identity| reply::ok(&show(&identity))))
}

/// `PUT /devices/{id}`, `PUT /devices/{id}/modules/{id}`: creates the device or module, or changes it if there is an
/// `If-Match`.
pub(super) async fn put(call: &mut HttpCall) -> HttpResult {
    let body = call.body(MAX_BODY).await?;
    let sent: IdentityBody = serde_json::from_slice(&body)
        .map_err(|error| reply::bad_argument(&format!("the body does not describe a device: {error}")))?;
    let wanted = wanted(call.identity(), sent).map_err(|sentence| reply::bad_argument(&sentence))?;
    let made = call.registrar.put(wanted, call.expected()).await.map_err(|error| refusal(&error))?;
    tracing::info!(device_id = made.device.id, enabled = made.enabled, "a back end registered a device");
    Ok(reply::ok(&show(&made)))
}

/// `DELETE /devices/{id}`, `DELETE /devices/{id}/modules/{id}`.
pub(super) async fn delete(call: &mut HttpCall) -> HttpResult {
    let device_id = call.identity();
    let deleted = call.registrar.delete(device_id.clone(), call.expected()).await;
    deleted.map_err(|error| refusal(&error))?;
    tracing::info!(device_id, "a back end deleted a device");
    Ok(reply::no_content())
}

fn wanted(id: String, sent: IdentityBody) -> Result<Wanted, String> {
    let (device, module) = identity::split(&id);
    let checked = if module.is_some() { identity::check_module(&id) } else { check_device_id(device) };
    checked.map_err(|error| error.to_string())?;
    if sent.device_id.is_some_and(|sent| sent != device) {
        return Err("the device id in the body is not the one in the path".to_owned());
    }
    if sent.module_id.is_some_and(|sent| Some(&*sent) != module) {
        return Err("the module id in the body is not the one in the path".to_owned());
    }
    let enabled = match sent.status.as_deref() {
        None | Some("enabled") => true,
        Some("disabled") => false,
        Some(other) => {
            let shown = message::excerpt(other);
            return Err(format!("\"{shown}\" is not a status: use enabled or disabled"));
        }
    };
    let authentication = sent.authentication.unwrap_or_default();
    let credential = match authentication.kind.as_deref() {
        None | Some("sas") => keys(authentication.symmetric_key.unwrap_or_default())?,
        Some("selfSigned") => Some(thumbprints(authentication.x509_thumbprint.unwrap_or_default())?),
        Some(other) => {
            let shown = message::excerpt(other);
            return Err(format!(
                "this emulator knows the authentication sas and selfSigned, not \"{shown}\""
            ));
        }
    };
    Ok(Wanted { id, credential, enabled })
}

fn keys(sent: SymmetricKey) -> Result<Option<DeviceCredential>, String> {
    let given = |key: Option<String>| key.filter(|key| !key.is_empty());
    let (primary, secondary) = match (given(sent.primary_key), given(sent.secondary_key)) {
        (None, None) => return Ok(None),
        (Some(primary), Some(secondary)) => (primary, secondary),
        _ => return Err("give both keys, or none: the hub then makes both".to_owned()),
    };
    let read = |key: &str| SharedAccessKey::from_base64(key).map_err(|_| "a key is not base64".to_owned());
    Ok(Some(DeviceCredential::Keys(KeyPair { primary: read(&primary)?, secondary: read(&secondary)? })))
}

fn thumbprints(sent: X509Thumbprint) -> Result<DeviceCredential, String> {
    let given = |text: Option<String>| {
        let text = text.filter(|text| !text.is_empty()).map(|text| text.to_ascii_uppercase());
        let hex =
            |text: &String| [40, 64].contains(&text.len()) && text.bytes().all(|c| c.is_ascii_hexdigit());
        match text {
            Some(text) if !hex(&text) => {
                Err("a thumbprint is not 40 (SHA-1) or 64 (SHA-256) hexadecimal digits".to_owned())
            }
            text => Ok(text),
        }
    };
    let (primary, secondary) = (given(sent.primary_thumbprint)?, given(sent.secondary_thumbprint)?);
    let primary = primary.ok_or("a device that signs in with a certificate needs its primary thumbprint")?;
    Ok(DeviceCredential::Thumbprints { primary, secondary })
}

fn show(identity: &Identity) -> Value {
    let (keys, thumbprints, kind) = match &identity.device.credential {
        DeviceCredential::Keys(KeyPair { primary, secondary }) => {
            let keys = (Some(primary.expose_base64()), Some(secondary.expose_base64()));
            (keys, (None, None), "sas")
        }
        DeviceCredential::Certificate(thumbprint) => {
            ((None, None), (Some(thumbprint.to_hex()), None), "selfSigned")
        }
        DeviceCredential::Thumbprints { primary, secondary } => {
            ((None, None), (Some(primary.clone()), secondary.clone()), "selfSigned")
        }
    };
    let (device, module) = identity::split(&identity.device.id);
    let mut shown = json!({
        "deviceId": device,
        "generationId": identity.generation,
        "etag": identity.etag(),
        "connectionState": if identity.connected { "Connected" } else { "Disconnected" },
        "connectionStateUpdatedTime": NEVER,
        "lastActivityTime": identity.last_activity.map_or_else(|| NEVER.to_owned(), message::format_time),
        "cloudToDeviceMessageCount": identity.queue_length,
        "authentication": {
            "symmetricKey": { "primaryKey": keys.0, "secondaryKey": keys.1 },
            "x509Thumbprint": { "primaryThumbprint": thumbprints.0, "secondaryThumbprint": thumbprints.1 },
            "type": kind,
        },
    });
    // A module has no status. The program that made it manages it, so `managedBy` is null.
    let more = match module {
        Some(module) => json!({ "moduleId": module, "managedBy": null }),
        None => json!({
            "status": if identity.enabled { "enabled" } else { "disabled" },
            "statusReason": null,
            "statusUpdatedTime": NEVER,
            "capabilities": { "iotEdge": false },
        }),
    };
    if let (Value::Object(shown), Value::Object(more)) = (&mut shown, more) {
        shown.extend(more);
    }
    shown
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
        RegistrarError::TooMany => (StatusCode::FORBIDDEN, "IotHubQuotaExceeded"),
        RegistrarError::State(_) => (StatusCode::INTERNAL_SERVER_ERROR, "ServerError"),
        RegistrarError::Stopped => (StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable"),
    };
    if status.is_server_error() {
        tracing::error!(%error, "the registry of devices did not change");
    }
    reply::error(status, code, &error.to_string())
}
