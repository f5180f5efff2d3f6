//! The emulator's side of TLS: its certificate, and client certificates of devices.
//!
//! Owns: the rustls server configuration; whom a client certificate is for, if the emulator's authority has signed it;
//! whether a chain ends at an authority.
//! Must not know: files, MQTT, AMQP, which device has which certificate.
//!
//! The TLS side accepts any client certificate if the client has the private key. The sign-in checks whether the
//! certificate is the registered one, because only there the device's id is known.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig, SignatureScheme};
use serde_json::{Value, json};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer as _;
use x509_parser::time::ASN1Time;

use super::registry::Thumbprint;
use crate::message::format_time;

/// TLS 1.2 and 1.3 with `chain`. It asks for a client certificate but does not require one.
///
/// # Errors
/// Fails if rustls refuses the certificate or the key.
pub(super) fn server_config(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<Arc<ServerConfig>, rustls::Error> {
    let provider = crate::tls::provider();
    let verifier = Arc::new(AnyClientCertificate(Arc::clone(&provider)));
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)?;
    Ok(Arc::new(config))
}

/// The certificates that a client has shown in its handshake, its own first. The client has proved that it has the
/// private key of the first one; nothing else is checked.
#[derive(Debug, Clone)]
pub(super) struct ShownChain(Arc<[CertificateDer<'static>]>);

impl ShownChain {
    /// What the peer has shown; `None` if it has shown nothing.
    pub(super) fn of(connection: &rustls::ServerConnection) -> Option<Self> {
        Self::new(connection.peer_certificates()?)
    }

    /// A chain of at least one certificate.
    pub(super) fn new(certificates: &[CertificateDer<'_>]) -> Option<Self> {
        let own: Vec<_> = certificates.iter().map(|certificate| certificate.clone().into_owned()).collect();
        (!own.is_empty()).then(|| Self(own.into()))
    }

    /// The client's own certificate.
    pub(super) fn leaf(&self) -> &[u8] {
        self.0.first().map_or(&[], |leaf| leaf.as_ref())
    }

    /// Whether the client's own certificate is valid at `now`.
    pub(super) fn is_valid_at(&self, now: SystemTime) -> bool {
        let Ok((_, read)) = X509Certificate::from_der(self.leaf()) else { return false };
        let seconds = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let now = i64::try_from(seconds).ok().and_then(|seconds| ASN1Time::from_timestamp(seconds).ok());
        now.is_some_and(|now| read.validity().is_valid_at(now))
    }

    /// The common name in the client's own certificate.
    pub(super) fn common_name(&self) -> Option<String> {
        common_name(self.leaf())
    }
}

/// An authority that signs certificates of devices: the emulator's own, or that of an enrolment group.
#[derive(Debug, Clone)]
pub(super) struct DeviceAuthority(Arc<dyn ClientCertVerifier>);

impl DeviceAuthority {
    /// The authority with this certificate.
    ///
    /// # Errors
    /// Fails if rustls refuses the certificate.
    pub(super) fn new(certificate: CertificateDer<'static>) -> Result<Self, rustls::Error> {
        let mut roots = RootCertStore::empty();
        roots.add(certificate)?;
        let verifier =
            WebPkiClientVerifier::builder_with_provider(roots.into(), crate::tls::provider()).build();
        verifier.map(Self).map_err(|error| rustls::Error::General(error.to_string()))
    }

    /// Whether a chain ends at this authority: each certificate is signed by the next one and valid at `now`, and the
    /// first one may be a client's.
    ///
    /// # Errors
    /// The reason in the words of rustls.
    pub(super) fn check(&self, shown: &ShownChain, now: SystemTime) -> Result<(), rustls::Error> {
        let Some((leaf, others)) = shown.0.split_first() else {
            return Err(rustls::Error::NoCertificatesPresented);
        };
        let now = UnixTime::since_unix_epoch(now.duration_since(UNIX_EPOCH).unwrap_or_default());
        self.0.verify_client_cert(leaf, others, now).map(drop)
    }

    /// The thumbprint of the certificate that the peer has shown in the handshake. It says whom the certificate is for
    /// if this authority has signed it. Its dates are judged by the machine's clock, as those of the server are.
    pub(super) fn peer_thumbprint(&self, connection: &rustls::ServerConnection) -> Option<Thumbprint> {
        let (certificate, others) = connection.peer_certificates()?.split_first()?;
        let is_own = self.0.verify_client_cert(certificate, others, UnixTime::now()).is_ok();
        let common_name = common_name(certificate).filter(|_| is_own);
        Some(
            common_name
                .map_or_else(|| Thumbprint::of(certificate), |name| Thumbprint::vouched(certificate, &name)),
        )
    }
}

/// The common name of a certificate's subject.
fn common_name(certificate: &[u8]) -> Option<String> {
    let (_, read) = X509Certificate::from_der(certificate).ok()?;
    let name = read.subject().iter_common_name().next()?.as_str().ok()?;
    Some(name.to_owned())
}

/// What a certificate says, in the words of the provisioning service's API; `None` if it cannot be read. Source:
/// `X509CertificateInfo` of Microsoft's Node SDK (`provisioning/service`).
pub(super) fn described(certificate: &[u8]) -> Option<Value> {
    let (_, read) = X509Certificate::from_der(certificate).ok()?;
    let time = |time: ASN1Time| {
        let seconds = u64::try_from(time.timestamp()).unwrap_or_default();
        format_time(UNIX_EPOCH + Duration::from_secs(seconds))
    };
    Some(json!({
        "subjectName": read.subject().to_string(),
        "issuerName": read.issuer().to_string(),
        "notBeforeUtc": time(read.validity().not_before),
        "notAfterUtc": time(read.validity().not_after),
        "serialNumber": read.raw_serial_as_string(),
        "version": read.version().0 + 1,
    }))
}

#[derive(Debug)]
struct AnyClientCertificate(Arc<CryptoProvider>);

impl ClientCertVerifier for AnyClientCertificate {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn verify_client_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
