//! Certificates that the emulator makes: for its authority, for its server, and for X.509 devices.
//!
//! Owns: every use of rcgen here. Must not know: files, TLS connections.

use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, CustomExtension, DnType, DnValue,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde::{Deserialize, Serialize};

use super::hub::CertificateFault;

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

/// Signs certificates that devices ask for. They keep their keys.
pub(super) struct DeviceIssuer {
    authority: PemPair,
    lifetime: Duration,
}

impl DeviceIssuer {
    /// Certificates are valid for `lifetime`.
    pub(super) fn new(authority: PemPair, lifetime: Duration) -> Self {
        Self { authority, lifetime }
    }

    /// Signs a request in base64 of its DER for the device `id`, which must be its common name. Returns the chain in
    /// the same form, the device's certificate first.
    ///
    /// # Errors
    /// What is wrong with the request.
    pub(super) fn sign(
        &self,
        csr: &str,
        id: &str,
        now: SystemTime,
        fault: Option<CertificateFault>,
    ) -> Result<Vec<String>, String> {
        let der = BASE64_STANDARD.decode(csr).map_err(|error| format!("csr is not base64: {error}"))?;
        let mut request = CertificateSigningRequestParams::from_der(&der.into())
            .map_err(|error| format!("csr is not a certificate request: {error}"))?;
        let names = &request.params.distinguished_name;
        // Exactly: the hub has devices whose ids differ in capitals only.
        let is_own = names.get(&DnType::CommonName).is_some_and(|name| match name {
            DnValue::Utf8String(name) => name == id,
            DnValue::PrintableString(name) => name.as_str() == id,
            DnValue::Ia5String(name) => name.as_str() == id,
            _ => false,
        });
        if !is_own {
            return Err(format!("the common name of csr is not {id}"));
        }
        // What a request asks for beside a name and a key is not granted: above all not to be an authority itself.
        request.params.is_ca = IsCa::ExplicitNoCa;
        request.params.subject_alt_names.clear();
        request.params.not_before = now.into();
        request.params.not_after = (now + self.lifetime).into();
        request.params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        request.params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        request.params.use_authority_key_identifier_extension = true;
        self.signed(request, fault).map_err(|error| format!("csr cannot be signed: {error}"))
    }

    fn signed(
        &self,
        mut request: CertificateSigningRequestParams,
        fault: Option<CertificateFault>,
    ) -> Result<Vec<String>, rcgen::Error> {
        let PemPair { certificate, private_key } = &self.authority;
        let issuer = Issuer::from_ca_cert_pem(certificate, KeyPair::from_pem(private_key)?)?;
        if fault == Some(CertificateFault::Critical) {
            // An id below 1.3.6.1.4.1 that is not in use.
            let mut unknown = CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 99_999, 1], vec![5, 0]);
            unknown.set_criticality(true);
            request.params.custom_extensions.push(unknown);
        }
        let made = match fault {
            Some(CertificateFault::OtherKey) => request.params.signed_by(&KeyPair::generate()?, &issuer)?,
            _ => request.signed_by(&issuer)?,
        };
        let authority = base64_of(certificate);
        let mut chain = vec![BASE64_STANDARD.encode(made.der()), authority];
        if fault == Some(CertificateFault::Broken) {
            chain[1].truncate(100);
        }
        Ok(chain)
    }
}

/// The DER of a PEM text with one certificate, in base64.
fn base64_of(pem: &str) -> String {
    pem.lines().filter(|line| !line.starts_with("-----")).collect()
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

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{DistinguishedName, PublicKeyData as _};
    use x509_parser::certificate::X509Certificate;
    use x509_parser::prelude::FromDer as _;

    /// A request that asks for more than a device may have.
    fn greedy(name: &str, key: &KeyPair) -> String {
        let mut params = CertificateParams::new(vec!["hub.test".to_owned()]).expect("a name");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        BASE64_STANDARD.encode(params.serialize_request(key).expect("a request").der())
    }

    #[test]
    fn what_is_issued_is_for_one_device_whatever_the_request_asks_for() {
        let now = SystemTime::UNIX_EPOCH + DAY * 20_000;
        let issuer = DeviceIssuer::new(make_authority(now).expect("made"), DAY);
        let key = KeyPair::generate().expect("a key");
        let chain = issuer.sign(&greedy("pump-12", &key), "pump-12", now, None).expect("signed");
        let der = BASE64_STANDARD.decode(&chain[0]).expect("base64");
        let (_, leaf) = X509Certificate::from_der(&der).expect("a certificate");
        assert!(!leaf.is_ca(), "it is no authority");
        assert!(leaf.subject_alternative_name().expect("no damage").is_none(), "it has no other names");
        let usage = leaf.key_usage().expect("no damage").expect("a usage").value;
        assert!(usage.digital_signature() && !usage.key_cert_sign());
        let usage = leaf.extended_key_usage().expect("no damage").expect("a usage").value;
        assert!(usage.client_auth && !usage.server_auth);
        assert_eq!(leaf.public_key().raw, key.subject_public_key_info());
        for (other, id) in [("PUMP-12", "pump-12"), ("pump-12", "pump-13")] {
            let said = issuer.sign(&greedy(other, &key), id, now, None).expect_err("refused");
            assert_eq!(said, format!("the common name of csr is not {id}"));
        }
    }
}
