//! Certificates that the service issues with a registration.
//!
//! Owns: what becomes of a certificate request. Must not know: registrations, protocols.
//!
//! Source: wire reference 12.6. Where no chain comes back, a client goes on with the credential of its enrolment.

use serde_json::Value;

/// The `issuedCertificateChain` for a certificate request in base64: the leaf first, each DER in base64. `None` means
/// that nothing is issued; this emulator issues nothing yet.
pub(super) fn issued_chain(registration_id: &str, csr: &str) -> Option<Value> {
    tracing::info!(
        registration_id,
        bytes = csr.len(),
        "a registration asks for a certificate, and this emulator issues none: the device goes on with its own proof"
    );
    None
}
