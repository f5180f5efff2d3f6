//! Certificates that the emulator makes: for its authority, for its server, and for X.509 devices.
//!
//! Owns: every use of rcgen here. Must not know: files, TLS connections.

use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde::{Deserialize, Serialize};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const AUTHORITY_DAYS: u32 = 3650;
/// Clients that follow the public rules refuse a certificate that is valid for more than 398 days.
const SERVER_DAYS: u32 = 397;
const DEVICE_DAYS: u32 = 3650;

/// Most characters of a common name. Source: RFC 5280, `ub-common-name-length`.
pub(super) const MAX_COMMON_NAME: usize = 64;

/// A certificate and its private key, both PEM.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct PemPair {
    pub(super) certificate: String,
    pub(super) private_key: String,
}

/// What a TLS server presents.
pub(super) struct ServerIdentity {
    pub(super) chain: Vec<CertificateDer<'static>>,
    pub(super) key: PrivateKeyDer<'static>,
}

/// Makes an authority that is valid for ten years from `now`.
pub(super) fn make_authority(now: SystemTime) -> Result<PemPair, rcgen::Error> {
    let mut params = params(Vec::new(), "c2d-agent emulator CA", now, AUTHORITY_DAYS)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    self_signed(&params)
}

/// Makes a server certificate for `hostnames`, `localhost` and the loopback addresses, signed by `authority`.
///
/// # Errors
/// Fails if the authority's PEM texts are damaged, or if a name is not allowed in a certificate.
pub(super) fn make_server(
    authority: &PemPair,
    hostnames: &[String],
    now: SystemTime,
) -> Result<ServerIdentity, rcgen::Error> {
    let issuer =
        Issuer::from_ca_cert_pem(&authority.certificate, KeyPair::from_pem(&authority.private_key)?)?;
    let mut names: Vec<String> = Vec::new();
    for name in hostnames.iter().map(String::as_str).chain(["localhost", "127.0.0.1", "::1"]) {
        if !names.iter().any(|own| own.eq_ignore_ascii_case(name)) {
            names.push(name.to_owned());
        }
    }
    let common_name = names.first().cloned().unwrap_or_default();
    let mut params = params(names, &common_name, now, SERVER_DAYS)?;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    let key = KeyPair::generate()?;
    let certificate = params.signed_by(&key, &issuer)?;
    let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
    Ok(ServerIdentity { chain: vec![certificate.der().clone()], key })
}

/// Makes a self-signed client certificate for a device.
pub(super) fn make_device(device_id: &str, now: SystemTime) -> Result<PemPair, rcgen::Error> {
    let mut params = params(Vec::new(), device_id, now, DEVICE_DAYS)?;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    self_signed(&params)
}

/// Makes a client certificate for a device or a module, signed by `authority`.
pub(super) fn make_vouched_device(
    authority: &PemPair,
    id: &str,
    now: SystemTime,
) -> Result<PemPair, rcgen::Error> {
    let issuer =
        Issuer::from_ca_cert_pem(&authority.certificate, KeyPair::from_pem(&authority.private_key)?)?;
    let mut params = params(Vec::new(), id, now, DEVICE_DAYS)?;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    let key = KeyPair::generate()?;
    let certificate = params.signed_by(&key, &issuer)?;
    Ok(PemPair { certificate: certificate.pem(), private_key: key.serialize_pem() })
}

fn params(
    names: Vec<String>,
    common_name: &str,
    now: SystemTime,
    days: u32,
) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::new(names)?;
    // Start one day earlier, for clients whose clock is behind.
    params.not_before = (now - DAY).into();
    params.not_after = (now + DAY * days).into();
    params.distinguished_name = rcgen::DistinguishedName::new();
    let common_name: String = common_name.chars().take(MAX_COMMON_NAME).collect();
    params.distinguished_name.push(DnType::CommonName, common_name);
    Ok(params)
}

fn self_signed(params: &CertificateParams) -> Result<PemPair, rcgen::Error> {
    let key = KeyPair::generate()?;
    let certificate = params.self_signed(&key)?;
    Ok(PemPair { certificate: certificate.pem(), private_key: key.serialize_pem() })
}
