//! Certificates that the service issues with a registration.
//!
//! Owns: what becomes of a certificate request, and what the device proves at its hub then. Must not know:
//! registrations, protocols.
//!
//! Source: wire reference 12.6. Where no chain comes back, a client goes on with the credential of its enrolment.

use std::time::SystemTime;

use super::registration::Allotment;
use crate::emulator::registry::DeviceCredential;
use crate::emulator::shared::SharedHub;

/// Signs a certificate request in base64 for the device of an allotment, and returns the chain: the leaf first, each
/// DER in base64. From then on the hub knows the device by the emulator's authority. None if nothing is issued. `hub` is
/// the one of the allotment: its faults count, also before it has the device.
///
/// # Errors
/// What is wrong with the request.
pub(super) fn issued_chain(
    allotment: &mut Allotment,
    csr: &str,
    hub: &SharedHub,
    now: SystemTime,
) -> Result<Option<Vec<String>>, String> {
    let (registration_id, device_id) = (&allotment.record.registration_id, &allotment.record.device_id);
    let Some(issuer) = hub.issuer() else { return Ok(None) };
    if registration_id != device_id {
        tracing::warn!(
            registration_id,
            device_id,
            "no certificate is issued: the hub would not know the device by its registration id"
        );
        return Ok(None);
    }
    let fault = hub.with(|hub, _| hub.certificate_fault(device_id));
    let chain = issuer.sign(csr, registration_id, now, fault)?;
    tracing::info!(registration_id, "issued a certificate");
    allotment.credential = DeviceCredential::Authority;
    Ok(Some(chain))
}
