//! Many changes of the registry in one request.
//!
//! Owns: the routes `POST /devices` and `POST /devices/keys/regenerate`, their JSON, and what one faulty entry of many
//! leads to. Must not know: connections, files.
//!
//! Source: the REST definitions in Microsoft's Python service SDK (azure-iot-hub: ExportImportDevice,
//! BulkRegistryOperationResult) and in its az extension (BulkRegenerateDeviceKey), the bodies that Node's Registry sends,
//! the numbers in `ErrorCode.cs` of the C# SDK. UNVERIFIED, so choices: a request with faulty entries is answered with
//! 200, because the C# SDK throws the result away at 400; `errorCode` is a number, as in the error files of import jobs;
//! of entries with the same id, none is carried out.
use hyper::StatusCode;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::wanted::IdentityBody;
use super::{code, log_failure};
use crate::emulator::https::call::HttpCall;
use crate::emulator::https::reply::{self, HttpRefusal, HttpResult};
use crate::emulator::https::twins;
use crate::emulator::hub::TwinWrite;
use crate::emulator::identity;
use crate::emulator::registrar::{Expected, RegistryChange, WhichKeys};
use crate::message::excerpt;

/// Most entries of one request. Source: the same.
const MAX_ENTRIES: usize = 100;

/// Most bytes of a request.
const MAX_BODY: usize = 1024 * 1024 - 1;

/// One change as a back end sends it. Other fields are ignored.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", expecting = "an object with \"id\" and \"importMode\"")]
struct BulkEntry {
    id: Option<String>,
    module_id: Option<String>,
    import_mode: Option<String>,
    #[serde(rename = "eTag", alias = "etag")]
    etag: Option<String>,
    #[serde(rename = "twinETag", alias = "twinEtag")]
    twin_etag: Option<String>,
    tags: Option<Map<String, Value>>,
    properties: Option<BulkProperties>,
    #[serde(flatten)]
    identity: IdentityBody,
}

#[derive(Deserialize)]
struct BulkProperties {
    desired: Option<Map<String, Value>>,
}

/// The ids of an entry as the answer repeats them.
struct EntryName {
    device_id: Value,
    module_id: Value,
}

/// A faulty entry: the hub's number, and a sentence.
struct EntryFault(u32, String);

/// `POST /devices`: creates, changes and deletes up to 100 devices and modules. Faulty entries do not keep the others
/// from being carried out.
pub(in crate::emulator::https) async fn change(call: &mut HttpCall) -> HttpResult {
    let body = call.body(MAX_BODY).await?;
    let entries: Vec<Value> = serde_json::from_slice(&body)
        .map_err(|error| reply::bad_argument(&format!("the body is not an array of devices: {error}")))?;
    limit(entries.len())?;
    let names: Vec<EntryName> = entries.iter().map(EntryName::of).collect();
    let (mut faults, mut changes, mut changed) = (Vec::new(), Vec::new(), Vec::new());
    for (entry, name) in entries.into_iter().zip(&names) {
        let read = || read(entry).map_err(|sentence| EntryFault(400_004, sentence));
        match name.check(&names).and_then(|()| read()) {
            Ok(change) => {
                changes.push(change);
                changed.push(name);
            }
            Err(fault) => faults.push((name, fault)),
        }
    }
    let results = call.registrar.change_all(changes).await.map_err(|error| super::refusal(&error))?;
    for (name, result) in changed.into_iter().zip(results) {
        if let Err(error) = result {
            log_failure(&error);
            faults.push((name, EntryFault(code(&error).2, error.to_string())));
        }
    }
    tracing::info!(entries = names.len(), faulty = faults.len(), "a back end changed the registry");
    let errors: Vec<_> = faults.iter().map(|(name, fault)| fault.show("deviceId", name)).collect();
    Ok(reply::ok(&json!({ "isSuccessful": errors.is_empty(), "errors": errors, "warnings": [] })))
}

fn limit(entries: usize) -> Result<(), HttpRefusal> {
    match entries {
        0 => Err(reply::bad_argument("the request names no device").into()),
        1..=MAX_ENTRIES => Ok(()),
        more => {
            let sentence = format!("the request names {more} devices: send at most {MAX_ENTRIES} at a time");
            Err(reply::error(StatusCode::PAYLOAD_TOO_LARGE, "TooManyDevices", &sentence).into())
        }
    }
}

/// The change that an entry asks for.
fn read(entry: Value) -> Result<RegistryChange, String> {
    let entry: BulkEntry = serde_json::from_value(entry)
        .map_err(|error| format!("the entry does not describe a device: {error}"))?;
    let device_id = entry.id.ok_or("the entry has no id")?;
    let id = identity::join(&device_id, entry.module_id.as_deref());
    let desired = entry.properties.and_then(|properties| properties.desired);
    let twin = match (entry.tags, desired) {
        (None, None) => None,
        (tags, desired) => Some(TwinWrite::Patch { tags, desired: desired.map(twins::without_own_keys) }),
    };
    let etag = || {
        let etag = entry.etag.as_deref().map(|etag| etag.trim_matches('"').to_owned());
        etag.ok_or("the entry has no eTag, which this importMode compares")
    };
    // Node sends `Update`, the others `update`.
    let mode = entry.import_mode.as_deref().unwrap_or("createOrUpdate").to_ascii_lowercase();
    let expected = match mode.as_str() {
        "create" => Expected::Unsaid,
        "update" => Expected::Any,
        "updateifmatchetag" => Expected::Etag(etag()?),
        "createorupdate" => Expected::AnyOrMissing,
        "createorupdateifmatchetag" => Expected::EtagOrMissing(etag()?),
        "delete" => return Ok(RegistryChange::Delete(id, Expected::Any)),
        "deleteifmatchetag" => return Ok(RegistryChange::Delete(id, Expected::Etag(etag()?))),
        "updatetwin" | "updatetwinifmatchetag" => {
            let etag = match (mode.as_str(), entry.twin_etag) {
                ("updatetwin", _) => None,
                (_, Some(etag)) => Some(etag.trim_matches('"').to_owned()),
                (_, None) => {
                    return Err("the entry has no twinETag, which this importMode compares".to_owned());
                }
            };
            let write = twin.unwrap_or(TwinWrite::Patch { tags: None, desired: None });
            return Ok(RegistryChange::Twin(id, write, etag));
        }
        _ => {
            let shown = excerpt(entry.import_mode.as_deref().unwrap_or_default());
            return Err(format!(
                "\"{shown}\" is not an importMode: use create, update, delete or another of the hub's"
            ));
        }
    };
    Ok(RegistryChange::Put(entry.identity.wanted(id)?, expected, twin))
}

impl EntryName {
    fn of(entry: &Value) -> Self {
        let text =
            |name: &str| entry.get(name).filter(|value| value.is_string()).cloned().unwrap_or_default();
        Self { device_id: text("id"), module_id: text("moduleId") }
    }

    /// The id of the device or module.
    fn id(&self) -> String {
        identity::join(self.device_id.as_str().unwrap_or_default(), self.module_id.as_str())
    }

    /// Checks that the request names it once, and a module by its own field.
    fn check(&self, all: &[Self]) -> Result<(), EntryFault> {
        let Some(device_id) = self.device_id.as_str() else { return Ok(()) };
        if device_id.contains('/') {
            return Err(EntryFault(400_004, "the id has a \"/\": give a module by its moduleId".to_owned()));
        }
        match all.iter().filter(|other| other.id() == self.id()).count() {
            0 | 1 => Ok(()),
            _ => Err(EntryFault(400_011, "the request has several entries with this id".to_owned())),
        }
    }
}

impl EntryFault {
    /// The fault as the answer shows it. `id` is the name of the field with the device's id.
    fn show(&self, id: &str, name: &EntryName) -> Value {
        let short = |value: &Value| value.as_str().map_or(Value::Null, |text| excerpt(text).into());
        let mut shown = json!({ id: short(&name.device_id), "errorCode": self.0, "errorStatus": self.1 });
        if !name.module_id.is_null() {
            shown["moduleId"] = short(&name.module_id);
        }
        shown
    }
}

/// A request for new keys.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RegenerateBody {
    policy_key: String,
    devices: Vec<Value>,
}

/// `POST /devices/keys/regenerate`: makes new keys for up to 100 devices and modules that have keys. The status is 200
/// if all were made, 400 if none was, and otherwise 207, which is a choice: the az extension takes each of these with
/// the same body.
pub(in crate::emulator::https) async fn regenerate(call: &mut HttpCall) -> HttpResult {
    let body = call.body(MAX_BODY).await?;
    let sent: RegenerateBody = serde_json::from_slice(&body)
        .map_err(|error| reply::bad_argument(&format!("the body does not ask for new keys: {error}")))?;
    let which = match sent.policy_key.as_str() {
        "primaryKey" => WhichKeys::Primary,
        "secondaryKey" => WhichKeys::Secondary,
        "both" => WhichKeys::Both,
        other => {
            let shown = excerpt(other);
            let sentence = format!("\"{shown}\" is not a policyKey: use primaryKey, secondaryKey or both");
            return Err(reply::bad_argument(&sentence).into());
        }
    };
    limit(sent.devices.len())?;
    let names: Vec<EntryName> = sent.devices.iter().map(EntryName::of).collect();
    let (mut rotated, mut errors, mut wanted) = (Vec::new(), Vec::new(), Vec::new());
    for name in &names {
        match name.check(&names) {
            Ok(()) => wanted.push(name),
            Err(fault) => errors.push(fault.show("id", name)),
        }
    }
    let made = call.registrar.regenerate(wanted.iter().map(|name| name.id()).collect(), which).await;
    let made = made.map_err(|error| super::refusal(&error))?;
    for (name, made) in wanted.into_iter().zip(made) {
        match made {
            Ok(keys) => {
                let (primary, secondary) = (keys.primary.expose_base64(), keys.secondary.expose_base64());
                let mut shown =
                    json!({ "id": name.device_id, "primaryKey": primary, "secondaryKey": secondary });
                if !name.module_id.is_null() {
                    shown["moduleId"] = name.module_id.clone();
                }
                rotated.push(shown);
            }
            Err(error) => {
                log_failure(&error);
                errors.push(EntryFault(code(&error).2, error.to_string()).show("id", name));
            }
        }
    }
    tracing::info!(made = rotated.len(), faulty = errors.len(), "a back end asked for new keys");
    let status = match (rotated.is_empty(), errors.is_empty()) {
        (_, true) => StatusCode::OK,
        (true, false) => StatusCode::BAD_REQUEST,
        (false, false) => StatusCode::MULTI_STATUS,
    };
    let body = json!({ "policyKey": sent.policy_key, "rotatedKeys": rotated, "errors": errors });
    Ok(reply::json_of(status, &body))
}
