//! The server that answers on the port: is it the hub, and how long will its certificate hold?
//!
//! Owns: a TLS handshake, and what its failures mean here. Must not know: what is sent over TLS.

use std::io;
use std::time::{Duration, SystemTime};

use rustls::CertificateError;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::certificate::{Age, Certificate, day};
use super::identity::in_days;
use super::subject::NetworkSubject;
use super::{CHECK_LIMIT, Check, Finding};
use crate::credentials::{DeviceAuth, HubName};
use crate::tls::{self, ClientCertificate, Judgement, TlsError};

/// When to warn of the end of a server's certificate. A real hub renews its certificate long before.
const ENDS_SOON: Duration = Duration::from_secs(14 * 24 * 60 * 60);
/// The organizations that sign the certificates of real hubs.
const AUTHORITIES: [&str; 2] = ["Microsoft", "DigiCert"];

/// The result of a handshake.
pub(super) struct Handshake {
    pub(super) result: Result<(), NoTls>,
    /// The certificates of the server, its own first.
    pub(super) chain: Vec<Certificate>,
    /// Where the root of the chain is trusted.
    root: Root,
}

/// Where the root of a chain is trusted.
enum Root {
    System,
    File,
    Bundle,
}

/// Why there is no TLS connection.
pub(super) enum NoTls {
    Tls(rustls::Error),
    File(TlsError),
    Closed,
    Silent,
    Other(String),
}

impl Handshake {
    /// Makes a handshake as the agent would.
    pub(super) async fn make(subject: &NetworkSubject<'_>, host: &str, stream: TcpStream) -> Self {
        let certificate = match subject.identity.map(|identity| &identity.auth) {
            Some(DeviceAuth::Certificate { certificate, private_key }) => {
                let (certificate, private_key) = (certificate.clone(), private_key.clone());
                Some(ClientCertificate { certificate, private_key })
            }
            _ => None,
        };
        let made =
            tls::witnessing_config(subject.ca_file, subject.bundle, certificate.as_ref(), Judgement::Strict);
        let (config, witness) = match made {
            Ok(made) => made,
            Err(error) => {
                return Self { result: Err(NoTls::File(error)), chain: Vec::new(), root: Root::System };
            }
        };
        let result = match ServerName::try_from(host.to_owned()) {
            Err(_) => Err(NoTls::Other(format!("\"{host}\" is not a name that TLS can check"))),
            Ok(name) => match timeout(CHECK_LIMIT, TlsConnector::from(config).connect(name, stream)).await {
                Ok(Ok(_connected)) => Ok(()),
                Ok(Err(error)) => Err(NoTls::of(&error)),
                Err(_elapsed) => Err(NoTls::Silent),
            },
        };
        let chain: Vec<_> = witness.seen().iter().filter_map(|one| Certificate::read(one)).collect();
        let root = Root::of(subject, &chain);
        Self { result, chain, root }
    }
}

impl Root {
    fn of(subject: &NetworkSubject<'_>, chain: &[Certificate]) -> Self {
        let has = |roots: Vec<CertificateDer<'_>>| {
            let mut roots = roots.iter().filter_map(|one| Certificate::read(one));
            roots.any(|root| chain.iter().any(|one| root.subject == one.issuer))
        };
        let file = subject.ca_file.and_then(|path| tls::read_certificates(path).ok());
        if has(file.unwrap_or_default()) {
            Self::File
        } else if has(tls::read_bundle(subject.bundle).unwrap_or_default()) {
            Self::Bundle
        } else {
            Self::System
        }
    }
}

impl NoTls {
    fn of(error: &io::Error) -> Self {
        match tls::tls_cause(error) {
            Some(cause) => Self::Tls(cause.clone()),
            None if matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset) => {
                Self::Closed
            }
            None => Self::Other(error.to_string()),
        }
    }
}

/// Checks whether the server is the right one.
pub(super) fn tls(subject: &NetworkSubject<'_>, host: &str, handshake: &Handshake) -> Finding {
    let port = "check the port, and whether a proxy or a firewall answers in the hub's place";
    let fault = match &handshake.result {
        Ok(()) => return Check::Tls.ok(trusted(subject, handshake)),
        Err(fault) => fault,
    };
    match fault {
        NoTls::Tls(rustls::Error::InvalidCertificate(
            CertificateError::UnknownIssuer | CertificateError::BadSignature,
        )) => untrusted(subject, host, handshake),
        NoTls::Tls(rustls::Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        )) => {
            let own = handshake.chain.first();
            let hosts = own.map_or(String::new(), |own| own.hosts.join(", "));
            let issuer = own.map_or("unknown", |own| own.issuer.as_str());
            Check::Tls.failed(
                format!("the certificate is for {hosts}, signed by \"{issuer}\", not for {host}"),
                format!("check {}, and whether a proxy answers in the hub's place", subject.names()),
            )
        }
        NoTls::Tls(error) => Check::Tls.failed_with(tls::describe(error, host)),
        NoTls::File(error) => {
            Check::Tls.failed(error.to_string(), format!("correct what {} names", subject.files()))
        }
        NoTls::Closed => {
            Check::Tls.failed(format!("{host} closes the connection during the TLS handshake"), port)
        }
        NoTls::Silent => {
            let limit = CHECK_LIMIT.as_secs();
            Check::Tls
                .failed(format!("{host} accepts the connection, but does not answer within {limit} s"), port)
        }
        NoTls::Other(reason) => Check::Tls.failed(format!("TLS with {host} failed ({reason})"), port),
    }
}

fn trusted(subject: &NetworkSubject<'_>, handshake: &Handshake) -> String {
    let mut text = handshake.chain.first().map_or(String::new(), |own| format!("\"{}\"", own.subject));
    for one in handshake.chain.iter().filter(|one| one.issuer != one.subject) {
        text.push_str(&format!(", signed by \"{}\"", one.issuer));
    }
    match (&handshake.root, subject.ca_file) {
        (Root::File, Some(path)) => format!("{text}, which is in {}", path.display()),
        (Root::Bundle, _) => format!("{text}, which is in the trust bundle"),
        (Root::File | Root::System, _) => format!("{text}, which this system trusts"),
    }
}

/// The failure of a chain that is not trusted: a root is missing here, or another server answers in the hub's place.
fn untrusted(subject: &NetworkSubject<'_>, host: &str, handshake: &Handshake) -> Finding {
    let Some(own) = handshake.chain.first() else {
        return Check::Tls.failed("no root that this machine trusts", "install the package ca-certificates");
    };
    let detail =
        format!("\"{}\" is signed by \"{}\", which this machine does not trust", own.subject, own.issuer);
    let organization = own.issuer_organization.as_deref().unwrap_or(&own.issuer);
    let root = subject.root_settings();
    let is_hub = HubName::of(host).is_some();
    let remedy = if subject.workload().is_some() {
        "check that IOTEDGE_GATEWAYHOSTNAME is this edge device, and let aziot-edged give the root of its \
         edgeHub (trust_bundle_cert in /etc/aziot/config.toml, then iotedge system restart)"
            .to_owned()
    } else if is_hub && AUTHORITIES.iter().any(|name| organization.contains(name)) {
        "install the package ca-certificates".to_owned()
    } else if is_hub {
        format!(
            "a proxy intercepts TLS, because no hub has a certificate of \"{organization}\": let the proxy \
             exclude {host}, or name its root with {root}"
        )
    } else {
        format!(
            "name its root with {root} (emulator, IoT Edge gateway); if another issuer should sign it, a \
             proxy intercepts TLS"
        )
    };
    Check::Tls.failed(detail, remedy)
}

/// Checks the dates of the certificate that ends first.
pub(super) fn certificate(handshake: &Handshake, now: SystemTime) -> Finding {
    let Some(first) = handshake.chain.iter().min_by_key(|one| one.not_after) else {
        return Check::ServerCertificate.skipped("the server presented none");
    };
    let begins = day(first.not_before);
    let until = day(first.not_after);
    let whose = &first.subject;
    let remedy = "check this machine's clock first; if that is right, it must be renewed at the server";
    match first.age(now) {
        Age::Expired => {
            Check::ServerCertificate.failed(format!("that of \"{whose}\" expired on {until}"), remedy)
        }
        Age::NotYet => Check::ServerCertificate
            .failed(format!("that of \"{whose}\" is good from {begins} on only"), remedy),
        Age::Good { left } if left < ENDS_SOON => Check::ServerCertificate.warning(
            format!("that of \"{whose}\" ends on {until}, {}", in_days(left)),
            "renew it at the server; a hub does that by itself",
        ),
        Age::Good { left } => Check::ServerCertificate.ok(format!("good until {until}, {}", in_days(left))),
    }
}
