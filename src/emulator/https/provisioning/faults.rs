//! The emulator's own routes that show, set and end the faults of the provisioning service.
//!
//! Owns: their JSON. Must not know: what a fault does.
//!
//! They are only for peers on this machine, with a token of the service policy. The argument `registrationId` says for
//! which registration a fault is; without it, it is for all.

use std::collections::BTreeMap;

use hyper::StatusCode;
use serde_json::{Map, Value, json};

use crate::emulator::https::call::HttpCall;
use crate::emulator::https::reply::{self, HttpRefusal, HttpReply, HttpResult};
use crate::emulator::provisioning::{DpsFault, DpsFaultError, DpsFaultName, DpsFaultOrder, ProvisioningDesk};

/// Most bytes of a value.
const MAX_VALUE: usize = 64;

/// `GET /emulator/provisioning/faults`.
pub(in crate::emulator::https) fn show(call: &HttpCall) -> HttpResult {
    Ok(of(&desk(call)?))
}

/// `PUT /emulator/provisioning/faults/{name}`: the body is the value, as text.
pub(in crate::emulator::https) async fn set(call: &mut HttpCall) -> HttpResult {
    let value = call.body(MAX_VALUE).await?;
    let (desk, name) = (desk(call)?, name(call)?);
    let fault = DpsFault::new(name, String::from_utf8_lossy(&value).trim()).map_err(|error| wrong(&error))?;
    let registration_id = registration_id(call);
    tracing::info!(registration_id, ?fault, "a fault was set");
    desk.set_fault(DpsFaultOrder { registration_id, fault }).map_err(|error| wrong(&error))?;
    Ok(of(&desk))
}

/// `DELETE /emulator/provisioning/faults/{name}`, and without a name all.
pub(in crate::emulator::https) fn clear(call: &HttpCall) -> HttpResult {
    let desk = desk(call)?;
    let name = if call.segment(3).is_empty() { None } else { Some(name(call)?) };
    let registration_id = registration_id(call);
    desk.clear_faults(registration_id.as_deref(), name);
    let fault = name.map(DpsFaultName::as_str);
    tracing::info!(registration_id, fault, "faults of the provisioning service were ended");
    Ok(of(&desk))
}

fn desk(call: &HttpCall) -> Result<ProvisioningDesk, HttpRefusal> {
    let sentence = "there is no provisioning service: start the emulator with --dps-device or --dps-group";
    let missing = || reply::error(StatusCode::NOT_FOUND, "ResourceNotFound", sentence);
    call.reception.desk.clone().ok_or_else(|| missing().into())
}

fn registration_id(call: &HttpCall) -> Option<String> {
    call.argument("registrationId").map(|id| id.into_owned()).filter(|id| !id.is_empty())
}

fn name(call: &HttpCall) -> Result<DpsFaultName, HttpRefusal> {
    call.segment(3).to_ascii_lowercase().parse().map_err(|error| wrong(&error))
}

fn wrong(error: &DpsFaultError) -> HttpRefusal {
    reply::bad_argument(&error.to_string()).into()
}

/// All faults: a row for those of all registrations, and one for each registration that has its own.
fn of(desk: &ProvisioningDesk) -> HttpReply {
    let mut rows: BTreeMap<Option<String>, Map<String, Value>> = BTreeMap::from([(None, Map::new())]);
    for (id, fault) in desk.faults() {
        rows.entry(id).or_default().insert(fault.name().as_str().to_owned(), fault.value().into());
    }
    let rows = rows.into_iter().map(|(id, faults)| json!({ "registrationId": id, "faults": faults }));
    reply::ok(&rows.collect())
}
