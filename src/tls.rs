//! TLS: one rustls client configuration, PEM files, and sentences for TLS failures.
//!
//! Owns: the crypto provider (ring, always passed explicitly), roots, client certificates.
//! Must not know: MQTT, AMQP, connection strings.

use std::io::{self, BufReader};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, RootCertStore};

use crate::trust;

mod witness;

pub use witness::{Judgement, Witness};

/// The certificate and key that a device signs in with, both PEM files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientCertificate {
    /// The certificate, followed by its chain if it has one.
    pub certificate: PathBuf,
    /// The private key: PKCS#8, PKCS#1 or SEC1.
    pub private_key: PathBuf,
}

impl ClientCertificate {
    fn refused(&self, source: rustls::Error) -> TlsError {
        match source {
            rustls::Error::InconsistentKeys(_) => TlsError::KeyMismatch {
                certificate: self.certificate.clone(),
                private_key: self.private_key.clone(),
            },
            source => TlsError::Rejected { path: self.certificate.clone(), source },
        }
    }
}

/// The crypto provider of all TLS connections of this program.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// The configuration of a client: the system's roots (Mozilla's if there are none), the roots of `ca_file` in
/// addition, TLS 1.2 or newer, and the client certificate.
///
/// # Errors
/// [`TlsError`] names the file at fault.
pub fn client_config(
    ca_file: Option<&Path>,
    certificate: Option<&ClientCertificate>,
) -> Result<Arc<ClientConfig>, TlsError> {
    config_with(roots(ca_file)?, certificate)
}

/// Like [`client_config`] without a certificate, and with the roots of `bundle` in addition: PEM texts one after the
/// other, or nothing.
///
/// # Errors
/// [`TlsError::Bundle`], or [`TlsError`] names the file at fault.
pub fn client_config_trusting(ca_file: Option<&Path>, bundle: &str) -> Result<Arc<ClientConfig>, TlsError> {
    let mut roots = roots(ca_file)?;
    add_bundle(&mut roots, bundle)?;
    config_with(roots, None)
}

fn config_with(
    roots: RootCertStore,
    certificate: Option<&ClientCertificate>,
) -> Result<Arc<ClientConfig>, TlsError> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(TlsError::Provider)?
        .with_root_certificates(roots);
    let config = match certificate {
        None => builder.with_no_client_auth(),
        Some(pair) => {
            let (chain, key) = (read_certificates(&pair.certificate)?, read_private_key(&pair.private_key)?);
            builder.with_client_auth_cert(chain, key).map_err(|source| pair.refused(source))?
        }
    };
    Ok(Arc::new(config))
}

/// A digest of the files' content. It changes when a file is replaced by another one.
///
/// # Errors
/// [`TlsError`] names the file at fault.
pub fn fingerprint(
    ca_file: Option<&Path>,
    certificate: Option<&ClientCertificate>,
) -> Result<Vec<u8>, TlsError> {
    let mut digest = ring::digest::Context::new(&ring::digest::SHA256);
    for path in ca_file.into_iter().chain(certificate.map(|pair| pair.certificate.as_path())) {
        read_certificates(path)?.iter().for_each(|der| digest.update(der));
        digest.update(b"end of file");
    }
    if let Some(pair) = certificate {
        digest.update(read_private_key(&pair.private_key)?.secret_der());
    }
    Ok(digest.finish().as_ref().to_vec())
}

/// Like [`client_config`], with the roots of `bundle` as in [`client_config_trusting`], and with a witness of the
/// server's certificates.
///
/// # Errors
/// [`TlsError::Bundle`], or [`TlsError`] names the file at fault.
pub fn witnessing_config(
    ca_file: Option<&Path>,
    bundle: &str,
    certificate: Option<&ClientCertificate>,
    judgement: Judgement,
) -> Result<(Arc<ClientConfig>, Arc<Witness>), TlsError> {
    let mut roots = roots(ca_file)?;
    add_bundle(&mut roots, bundle)?;
    let judge = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider())
        .build()
        .map_err(|error| TlsError::Provider(rustls::Error::General(error.to_string())))?;
    let witness = Arc::new(Witness::new(judge, judgement));
    let mut config = ClientConfig::clone(&*client_config(ca_file, certificate)?);
    let verifier: Arc<Witness> = Arc::clone(&witness);
    config.dangerous().set_certificate_verifier(verifier);
    Ok((Arc::new(config), witness))
}

fn roots(ca_file: Option<&Path>) -> Result<RootCertStore, TlsError> {
    let mut roots = system_roots();
    if let Some(path) = ca_file {
        for root in read_certificates(path)? {
            roots.add(root).map_err(|source| TlsError::Rejected { path: path.to_owned(), source })?;
        }
    }
    Ok(roots)
}

fn add_bundle(roots: &mut RootCertStore, bundle: &str) -> Result<(), TlsError> {
    match roots.add_parsable_certificates(read_bundle(bundle)?) {
        (0, refused) if refused > 0 => {
            Err(TlsError::Bundle { reason: "it holds no certificate that can be a root".into() })
        }
        (_, 0) => Ok(()),
        (_, refused) => {
            tracing::warn!(refused, "the trust bundle has certificates that cannot be roots");
            Ok(())
        }
    }
}

/// Reads the certificates of a trust bundle: PEM texts one after the other, or nothing.
///
/// # Errors
/// [`TlsError::Bundle`] when the bundle holds something else.
pub fn read_bundle(bundle: &str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let wrong = |reason: String| TlsError::Bundle { reason };
    let items: Result<Vec<_>, _> = rustls_pemfile::read_all(&mut bundle.as_bytes()).collect();
    let items = items.map_err(|error| wrong(format!("it is not PEM ({error})")))?;
    let certificates: Vec<_> = items.into_iter().filter_map(certificate).collect();
    if certificates.is_empty() && !bundle.trim().is_empty() {
        return Err(wrong("it holds no certificate in PEM form (-----BEGIN …)".into()));
    }
    Ok(certificates)
}

/// Checks that the files hold a certificate and the private key that belongs to it.
///
/// # Errors
/// [`TlsError`] names the file at fault.
pub fn check_client_certificate(pair: &ClientCertificate) -> Result<(), TlsError> {
    let (chain, key) = (read_certificates(&pair.certificate)?, read_private_key(&pair.private_key)?);
    CertifiedKey::from_der(chain, key, &provider()).map(drop).map_err(|source| pair.refused(source))
}

/// Checks that TLS can sign in with a PEM text: that it has a private key, and the certificate that belongs to it.
///
/// # Errors
/// The reason, as the end of a sentence about the text.
pub fn check_pem_pair(text: &str) -> Result<(), String> {
    let (mut chain, mut keys) = (Vec::new(), Vec::new());
    for item in rustls_pemfile::read_all(&mut text.as_bytes()) {
        match item.map_err(|error| format!("it is not PEM ({error})"))? {
            rustls_pemfile::Item::X509Certificate(certificate) => chain.push(certificate),
            rustls_pemfile::Item::Pkcs8Key(key) => keys.push(PrivateKeyDer::from(key)),
            _ => {}
        }
    }
    let key = keys.into_iter().next().ok_or("it has no private key")?;
    CertifiedKey::from_der(chain, key, &provider()).map(drop).map_err(|error| match error {
        // rustls has the words of the other side for these.
        rustls::Error::InvalidCertificate(reason) => format!("TLS does not take it ({reason})"),
        error => format!("TLS does not take it ({error})"),
    })
}

/// Reads all certificates of a PEM file.
///
/// # Errors
/// When the file cannot be read, is not PEM, or holds no certificate.
pub fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let found = read_pem(path, certificate)?;
    if found.is_empty() {
        Err(TlsError::Absent { path: path.to_owned(), what: "certificate" })
    } else {
        Ok(found)
    }
}

fn certificate(item: rustls_pemfile::Item) -> Option<CertificateDer<'static>> {
    match item {
        rustls_pemfile::Item::X509Certificate(certificate) => Some(certificate),
        _ => None,
    }
}

/// Reads the first private key of a PEM file.
///
/// # Errors
/// When the file cannot be read, is not PEM, or holds no unencrypted key.
pub fn read_private_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    let found = read_pem(path, |item| match item {
        rustls_pemfile::Item::Pkcs1Key(key) => Some(key.into()),
        rustls_pemfile::Item::Pkcs8Key(key) => Some(key.into()),
        rustls_pemfile::Item::Sec1Key(key) => Some(key.into()),
        _ => None,
    })?;
    found
        .into_iter()
        .next()
        .ok_or_else(|| TlsError::Absent { path: path.to_owned(), what: "unencrypted private key" })
}

/// Says in one sentence why a TLS connection to `host` failed, if TLS was the reason.
pub fn describe(error: &rustls::Error, host: &str) -> String {
    use rustls::{CertificateError, Error};
    match error {
        error if is_untrusted(error) => format!(
            "the certificate of {host} is not signed by a root that this machine trusts: install the \
             ca-certificates package, or name the private root (of an emulator, an IoT Edge gateway, a proxy) \
             with C2D_CA_FILE"
        ),
        Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        ) => format!(
            "the certificate that {host} presents is for another host name: check HostName or GatewayHostName, or \
             whether a proxy answers in its place"
        ),
        Error::InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. }) => {
            format!("the certificate of {host} has expired: renew it there, or check this machine's clock")
        }
        Error::InvalidCertificate(
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. },
        ) => {
            format!("the certificate of {host} is not valid yet: check this machine's clock")
        }
        Error::InvalidCertificate(other) => format!("the certificate of {host} is not acceptable ({other})"),
        Error::AlertReceived(alert) if refuses_client(error) => format!(
            "{host} refused this device's certificate ({alert:?}): check that it is the registered one, and its dates"
        ),
        Error::InvalidMessage(_) => {
            format!(
                "{host} answers, but not with TLS: check the port, or whether a proxy answers in its place"
            )
        }
        other => format!("TLS with {host} failed: {other}"),
    }
}

/// Whether the peer's certificate leads to no trusted root.
pub fn is_untrusted(error: &rustls::Error) -> bool {
    // A bad signature means a root with the right name and another key, such as an older one.
    use rustls::CertificateError::{BadSignature, UnknownIssuer};
    matches!(error, rustls::Error::InvalidCertificate(UnknownIssuer | BadSignature))
}

/// Whether the peer refused the certificate of this side.
pub fn refuses_client(error: &rustls::Error) -> bool {
    use rustls::AlertDescription::{
        AccessDenied, BadCertificate, CertificateExpired, CertificateRequired, CertificateRevoked,
        CertificateUnknown, DecryptError, UnknownCA, UnsupportedCertificate,
    };
    matches!(
        error,
        rustls::Error::AlertReceived(
            BadCertificate
                | CertificateUnknown
                | CertificateExpired
                | CertificateRevoked
                | CertificateRequired
                | UnknownCA
                | AccessDenied
                // It cannot use the certificate, or it cannot verify what this side has signed with its key.
                | UnsupportedCertificate
                | DecryptError
        )
    )
}

/// Finds the TLS failure inside an I/O error, where rustls puts it.
pub fn tls_cause(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>())
}

/// Why TLS could not be set up.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// The file cannot be read.
    #[error("cannot read {path}: {}", unread(.error), path = .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The reason.
        error: io::Error,
    },
    /// The file is readable but is not PEM.
    #[error("{path} is not a PEM file: {source}", path = .path.display())]
    NotPem {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// The file has no item of the needed kind.
    #[error("{path} holds no {what} in PEM form (-----BEGIN …)", path = .path.display())]
    Absent {
        /// The file.
        path: PathBuf,
        /// What was looked for.
        what: &'static str,
    },
    /// The certificate and the key do not belong together.
    #[error(
        "the certificate {certificate} does not match the private key {private_key}: use the pair that was made together",
        certificate = .certificate.display(), private_key = .private_key.display()
    )]
    KeyMismatch {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        private_key: PathBuf,
    },
    /// A certificate or key that rustls does not accept.
    #[error("{path} cannot be used: {source}", path = .path.display())]
    Rejected {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: rustls::Error,
    },
    /// Roots that did not come from a file.
    #[error(
        "the trust bundle cannot be used: {reason}; check the edge CA of the device (trust_bundle_cert of aziot-edged)"
    )]
    Bundle {
        /// What is wrong with the bundle.
        reason: String,
    },
    /// The provider lacks the protocol versions.
    #[error("TLS cannot be set up: {0}")]
    Provider(rustls::Error),
}

impl TlsError {
    /// The file at fault, if it is one file.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::Read { path, .. }
            | Self::NotPem { path, .. }
            | Self::Absent { path, .. }
            | Self::Rejected { path, .. } => Some(path),
            Self::KeyMismatch { .. } | Self::Bundle { .. } | Self::Provider(_) => None,
        }
    }
}

/// Why a file cannot be read, and what to do.
fn unread(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => format!("{}; correct the path", trust::in_words(error)),
        _ => trust::in_words(error),
    }
}

fn system_roots() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    for error in &found.errors {
        tracing::debug!(%error, "a system root could not be read");
    }
    let (added, _ignored) = roots.add_parsable_certificates(found.certs);
    if added == 0 {
        roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    }
    roots
}

/// Only this function uses rustls-pemfile.
fn read_pem<T>(path: &Path, pick: impl Fn(rustls_pemfile::Item) -> Option<T>) -> Result<Vec<T>, TlsError> {
    let file = std::fs::File::open(path).map_err(|error| TlsError::Read { path: path.to_owned(), error })?;
    let items: Result<Vec<_>, _> = rustls_pemfile::read_all(&mut BufReader::new(file)).collect();
    let items = items.map_err(|source| TlsError::NotPem { path: path.to_owned(), source })?;
    Ok(items.into_iter().filter_map(pick).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(dir: &Path, name: &str) -> ClientCertificate {
        let made = rcgen::generate_simple_self_signed([name.to_owned()]).expect("a certificate");
        let paths = ClientCertificate {
            certificate: dir.join(format!("{name}.cert.pem")),
            private_key: dir.join(format!("{name}.key.pem")),
        };
        std::fs::write(&paths.certificate, made.cert.pem()).expect("written");
        std::fs::write(&paths.private_key, made.signing_key.serialize_pem()).expect("written");
        paths
    }

    #[test]
    fn a_matching_pair_is_taken_and_a_mismatch_names_both_files() {
        let dir = tempfile::tempdir().expect("a directory");
        let (one, two) = (pair(dir.path(), "one"), pair(dir.path(), "two"));
        assert!(client_config(Some(&one.certificate), Some(&one)).is_ok());
        let mixed = ClientCertificate { certificate: one.certificate, private_key: two.private_key };
        let error = client_config(None, Some(&mixed)).expect_err("a mismatch").to_string();
        assert!(error.contains("one.cert.pem") && error.contains("two.key.pem"), "{error}");
    }

    #[test]
    fn a_bundle_adds_roots_and_a_damaged_one_is_told() {
        let made = rcgen::generate_simple_self_signed(["gateway".to_owned()]).expect("a certificate");
        let two = made.cert.pem() + &made.cert.pem();
        assert!(client_config_trusting(None, &two).is_ok());
        assert!(client_config_trusting(None, " \n").is_ok(), "no roots of its own");
        let error = |text: &str| client_config_trusting(None, text).expect_err("damaged").to_string();
        let key = made.signing_key.serialize_pem();
        assert!(error(&key).contains("holds no certificate"), "{}", error(&key));
        assert!(error("<html>").contains("holds no certificate"));
        let cut = two.replacen("MII", "M*I", 1);
        assert!(error(&cut).contains("the trust bundle cannot be used: it is not PEM"), "{}", error(&cut));
        let empty = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        assert!(error(empty).contains("no certificate that can be a root"), "{}", error(empty));
        assert!(client_config_trusting(None, &(empty.to_owned() + &two)).is_ok(), "the others do");
    }

    #[test]
    fn files_that_are_missing_or_hold_something_else_are_named() {
        let dir = tempfile::tempdir().expect("a directory");
        let pair = pair(dir.path(), "one");
        let error = read_certificates(&dir.path().join("none.pem")).expect_err("missing").to_string();
        assert!(error.contains("cannot read") && error.contains("none.pem"), "{error}");
        let error = read_private_key(&pair.certificate).expect_err("no key").to_string();
        assert!(error.contains("no unencrypted private key"), "{error}");
    }
}
