//! Who signs in, and how: the identity, the file of the secret, a ready-made token, the device's certificate.
//!
//! Owns: the verdict on them. Must not know: how a connection string is read, the hub's answer.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::time::{Duration, SystemTime};

use super::certificate::{Age, Certificate, day};
use super::user;
use super::{Check, Finding};
use crate::config::{Identities, Inspection, Provisioning, counted};
use crate::credentials::{DeviceAuth, DeviceIdentity, HubEndpoint, HubName, SasToken};
use crate::provisioning::{Enrolment, EnrolmentAuth};
use crate::tls;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// When to warn of a ready-made token's end. The agent cannot renew such a token.
const TOKEN_ENDS_SOON: Duration = DAY;
/// When to warn of a certificate's end: the share of its life that is left then.
const ENDS_SOON: f64 = 0.2;

/// A finding for each identity that signs in, or should.
pub(super) fn identity(inspection: &Inspection) -> Vec<Finding> {
    let check = Check::Identity;
    let Inspection { identity, module, identity_problem, module_problem, .. } = inspection;
    let are_two = identity.is_some() && module.is_some();
    let signs_in =
        |identity: &DeviceIdentity| signs_in(identity).on(are_two.then(|| identity.client_id()).as_deref());
    let unassigned = inspection.provisioning.as_ref().filter(|enrolled| enrolled.assigned.is_none());
    let device = match (identity, identity_problem) {
        (Some(device), _) => Some(unassigned.map_or_else(|| signs_in(device), registers)),
        (None, Some(problem)) => Some(check.failed(problem, "correct [device], or the connection string")),
        (None, None) => None,
    };
    let module = match (module_problem, module) {
        (Some(problem), _) => Some(check.failed_with(problem)),
        (None, module) => module.as_ref().map(|module| signs_in(&module.identity)),
    };
    let found: Vec<_> = device.into_iter().chain(module).collect();
    if found.is_empty() { vec![check.skipped("the configuration could not be read")] } else { found }
}

fn registers(provisioning: &Provisioning) -> Finding {
    let Enrolment { endpoint, id_scope, registration_id, auth, .. } = &provisioning.enrolment;
    let by = match auth {
        EnrolmentAuth::Key(_) => "key",
        EnrolmentAuth::Certificate { .. } => "certificate",
    };
    Check::Identity.ok(format!(
        "registration id {registration_id} of ID scope {id_scope} at {endpoint}, by its {by}; no hub is assigned yet"
    ))
}

fn signs_in(identity: &DeviceIdentity) -> Finding {
    let by = match &identity.auth {
        DeviceAuth::Key(_) => "its key".to_owned(),
        DeviceAuth::Token(_) => "a ready-made SAS token".to_owned(),
        DeviceAuth::Certificate { .. } => "its certificate".to_owned(),
        DeviceAuth::Workload(_) => "its workload API".to_owned(),
    };
    let kind = if identity.module_id.is_some() { "module" } else { "device" };
    let gateway = identity.gateway.as_ref();
    let gateway = gateway.map_or(String::new(), |gateway| format!(", through the gateway {gateway}"));
    let is_device_name =
        HubName::of(&identity.hub.name).is_some_and(|name| name.endpoint == HubEndpoint::Device);
    let name = if is_device_name { " (its name for devices)" } else { "" };
    let (device, hub) = (identity.client_id(), &identity.hub);
    Check::Identity.ok(format!("{kind} {device} on hub {hub}{name}{gateway}, by {by}"))
}

/// Checks the secrets that can be examined. A module has no file to examine: its secret is with the workload API, or in
/// its environment. `provisioning` is how the device is enrolled, if it is.
pub(super) fn secrets(
    identities: Option<&Identities>,
    is_device_wanted: bool,
    secret_file: Option<&Path>,
    provisioning: Option<&Provisioning>,
    now: SystemTime,
) -> Vec<Finding> {
    let is_module = identities.is_some_and(|identities| identities.device().is_none()) && !is_device_wanted;
    let file = (!is_module).then(|| self::secret_file(secret_file));
    let all = identities.into_iter().flat_map(Identities::iter);
    let are_two = matches!(identities, Some(Identities::Both(_)));
    let proofs = all.filter_map(|identity| {
        let name = are_two.then(|| identity.client_id());
        proof(identity, provisioning, now).map(|finding| finding.on(name.as_deref()))
    });
    file.into_iter().chain(proofs).collect()
}

/// Checks who can read the file of the secret.
fn secret_file(path: Option<&Path>) -> Finding {
    let Some(path) = path else {
        return Check::SecretFile
            .skipped("no file is configured; the secret comes from the environment, or is missing");
    };
    let shown = path.display();
    match path.metadata() {
        Err(error) => Check::SecretFile.failed(
            format!("cannot look at {shown}: {error}"),
            format!("create it, and give it to the user of the agent ({})", user::own()),
        ),
        Ok(found) => {
            let mode = found.permissions().mode() & 0o7777;
            let whose = format!("{shown}, mode {mode:04o}, of {}", user::named(found.uid()));
            if !user::may(path, rustix::fs::Access::READ_OK) {
                let remedy = format!(
                    "if systemd reads it for the agent (LoadCredential), run doctor as root; otherwise give \
                     it to the agent's user: chown {} {shown}",
                    user::own_name()
                );
                return Check::SecretFile.failed(format!("{} may not read {whose}", user::own()), remedy);
            }
            if mode & 0o004 != 0 {
                let detail = format!("everyone on this machine can read {whose}");
                return Check::SecretFile.warning(detail, format!("run chmod o= {shown}"));
            }
            if mode & 0o022 != 0 {
                let detail = format!("users other than its owner can write {whose}");
                return Check::SecretFile.warning(detail, format!("run chmod go-w {shown}"));
            }
            Check::SecretFile.ok(whose)
        }
    }
}

/// Checks the end of a token or a certificate; a key has no end.
fn proof(identity: &DeviceIdentity, provisioning: Option<&Provisioning>, now: SystemTime) -> Option<Finding> {
    match &identity.auth {
        DeviceAuth::Key(_) | DeviceAuth::Workload(_) => None,
        DeviceAuth::Token(token) => Some(ready_token(token, &identity.resource(), now)),
        DeviceAuth::Certificate { certificate, .. } => {
            let registered = provisioning.map(|provisioning| &*provisioning.enrolment.registration_id);
            let issued = provisioning.and_then(|provisioning| provisioning.pairs.as_ref()?.file());
            let names = [registered.unwrap_or(&identity.device_id), &identity.device_id];
            Some(device_certificate(certificate, names, issued == Some(certificate), now))
        }
    }
}

fn ready_token(token: &SasToken, resource: &str, now: SystemTime) -> Finding {
    let remedy = "make a new one, or give the SharedAccessKey instead: the agent then makes its own tokens";
    if !token.covers(resource) {
        let detail = format!("it is for {}, and not for {resource}", token.resource().escape_debug());
        return Check::Token.failed(detail, remedy);
    }
    let until = crate::message::format_time(token.expiry());
    let until = until.get(..16).unwrap_or(&until).replace('T', " ");
    match token.expiry().duration_since(now) {
        Err(_) => Check::Token.failed(format!("expired at {until} UTC"), remedy),
        Ok(left) if left < TOKEN_ENDS_SOON => {
            Check::Token.warning(format!("ends at {until} UTC, and is not renewed"), remedy)
        }
        Ok(_) => Check::Token.ok(format!("good until {until} UTC")),
    }
}

/// `names`: as the device is registered, and as its hub knows it. `is_issued`: the agent renews it.
fn device_certificate(path: &Path, names: [&str; 2], is_issued: bool, now: SystemTime) -> Finding {
    let read = match tls::read_certificates(path) {
        Ok(chain) => chain.first().and_then(|own| Certificate::read(own)),
        Err(error) => {
            return Check::DeviceCertificate.failed(error.to_string(), "give a PEM file that can be read");
        }
    };
    let Some(own) = read else {
        let detail = format!("{} is not a readable certificate", path.display());
        return Check::DeviceCertificate.failed(detail, "make a new one, and register it at the hub");
    };
    let (renew, replace) = if is_issued {
        let log = "the agent renews it: look at its log for the reason why it could not";
        (
            log,
            "the agent gets a new one from the provisioning service: look at its log; or check this machine's clock",
        )
    } else {
        let replace = "make a new one, and register it at the hub; or check this machine's clock";
        ("make a new one, and register it at the hub before this one ends", replace)
    };
    let until = day(own.not_after);
    let whose = format!("\"{}\" in {}", own.subject, path.display());
    match own.age(now) {
        Age::Expired => Check::DeviceCertificate.failed(format!("{whose} expired on {until}"), replace),
        Age::NotYet => Check::DeviceCertificate.failed(
            format!("{whose} is not valid before {}", day(own.not_before)),
            "check this machine's clock, or wait",
        ),
        Age::Good { .. } if !names.contains(&&*own.subject) => Check::DeviceCertificate.warning(
            format!("its name is \"{}\", but the device is {}; good until {until}", own.subject, names[0]),
            "make one with that id as common name, unless the hub knows this one by its thumbprint",
        ),
        Age::Good { left } if left < own.life().mul_f64(ENDS_SOON) => {
            Check::DeviceCertificate.warning(format!("{whose} ends on {until}, {}", in_days(left)), renew)
        }
        Age::Good { left } => {
            Check::DeviceCertificate.ok(format!("{whose}, good until {until}, {}", in_days(left)))
        }
    }
}

/// `in 12 days`.
pub(super) fn in_days(left: Duration) -> String {
    let days = usize::try_from(left.as_secs() / DAY.as_secs()).unwrap_or(usize::MAX);
    format!("in {}", counted(days, "day"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::credentials::HostPort;

    #[test]
    fn the_hubs_name_for_devices_is_told_as_such() {
        let auth = DeviceAuth::Certificate { certificate: "c".into(), private_key: "k".into() };
        let hub = HostPort::parse("h.device.azure-devices.net").expect("a host");
        let identity = DeviceIdentity { hub, device_id: "d".into(), module_id: None, gateway: None, auth };
        let told = "device d on hub h.device.azure-devices.net (its name for devices), by its certificate";
        assert_eq!(signs_in(&identity), Check::Identity.ok(told));
        let hub = HostPort::parse("h.azure-devices.net").expect("a host");
        let told = "device d on hub h.azure-devices.net, by its certificate";
        assert_eq!(signs_in(&DeviceIdentity { hub, ..identity }), Check::Identity.ok(told));
    }
}
