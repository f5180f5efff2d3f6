//! The emulator's side of TLS: its certificate, and client certificates of devices.
//!
//! Owns: the rustls server configuration; whom a client certificate is for, if the emulator's authority has signed it.
//! Must not know: files, MQTT, AMQP, which device has which certificate.
//!
//! The TLS side accepts any client certificate if the client has the private key. The sign-in checks whether the
//! certificate is the registered one, because only there the device's id is known.

use std::sync::Arc;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig, SignatureScheme};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer as _;

use super::registry::Thumbprint;

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

/// The emulator's authority, as the one that signs certificates of devices.
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
