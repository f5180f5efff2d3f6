//! The applications of the command line.
//!
//! Owns: their syntax, the names of roles. Must not know: tokens.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use ring::digest;
use rustls::pki_types::CertificateDer;

use crate::message::excerpt;
use crate::tls::{self, TlsError};

/// The issuer to start.
#[derive(Debug, Clone)]
pub struct EntraSettings {
    /// The applications; the first one is also the identity of the machine.
    pub apps: Vec<AppOption>,
    /// How long a token is valid.
    pub token_lifetime: Duration,
    /// The port of the endpoint of the machine's identity; 0 means any free port.
    pub imds_port: Option<u16>,
}

/// `TENANT/CLIENT=PROOF[:ROLE[+ROLE]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AppOption {
    /// The tenant's id or domain.
    pub tenant: String,
    /// The application's id.
    pub client_id: String,
    /// What it must prove.
    pub proof: AppSecret,
    /// Its roles at the hubs.
    pub roles: Vec<EntraRole>,
}

/// What an application must prove.
#[derive(Clone, PartialEq, Eq)]
pub enum AppSecret {
    /// This text, as a client secret or as the token of another issuer.
    Text(String),
    /// The private key of the certificate in this PEM file.
    Certificate(PathBuf),
}

impl fmt::Debug for AppSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(_) => f.write_str("Text(…)"),
            Self::Certificate(path) => f.debug_tuple("Certificate").field(path).finish(),
        }
    }
}

/// A role at the hub. Source: Microsoft's page "Control access to IoT Hub by using Microsoft Entra ID".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntraRole {
    /// IoT Hub Data Contributor: all.
    DataContributor,
    /// IoT Hub Data Reader: reads twins and devices.
    DataReader,
    /// IoT Hub Registry Contributor: devices.
    RegistryContributor,
    /// IoT Hub Twin Contributor: twins.
    TwinContributor,
}

/// The words of the command line.
const ROLES: [(&str, EntraRole); 4] = [
    ("data-contributor", EntraRole::DataContributor),
    ("data-reader", EntraRole::DataReader),
    ("registry-contributor", EntraRole::RegistryContributor),
    ("twin-contributor", EntraRole::TwinContributor),
];

/// Why an application cannot be used. No variant holds a secret.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AppOptionError {
    /// Not the form of the option.
    #[error(
        "write it as TENANT/CLIENT=SECRET, perhaps with :ROLE, such as contoso/sender=s3cret:data-reader"
    )]
    Form,
    /// A tenant or an application that cannot stand in an address.
    #[error("\"{0}\" is neither a tenant nor an application: use letters, digits, - and .")]
    Name(String),
    /// The certificate of an application.
    #[error(transparent)]
    Certificate(#[from] TlsError),
    /// The authority's key.
    #[error("the key of the emulator's authority cannot sign tokens: begin with a new state directory")]
    Key,
}

impl FromStr for AppOption {
    type Err = AppOptionError;

    /// A secret may have colons; only known roles after the last one count as such. The path of a certificate ends with
    /// `.pem`.
    fn from_str(text: &str) -> Result<Self, AppOptionError> {
        let (name, given) = text.split_once('=').ok_or(AppOptionError::Form)?;
        let (tenant, client_id) = name.split_once('/').ok_or(AppOptionError::Form)?;
        for part in [tenant, client_id] {
            let is_word =
                !part.is_empty() && part.chars().all(|c| c.is_ascii_alphanumeric() || "-.".contains(c));
            if !is_word {
                return Err(AppOptionError::Name(excerpt(part)));
            }
        }
        let (proof, roles) = given
            .rsplit_once(':')
            .and_then(|(proof, words)| Some((proof, roles(words)?)))
            .unwrap_or((given, vec![EntraRole::DataContributor]));
        if proof.is_empty() {
            return Err(AppOptionError::Form);
        }
        let proof = match proof.ends_with(".pem") {
            true => AppSecret::Certificate(proof.into()),
            false => AppSecret::Text(proof.to_owned()),
        };
        Ok(Self { tenant: tenant.to_owned(), client_id: client_id.to_owned(), proof, roles })
    }
}

/// Roles joined by `+`, or `none`.
fn roles(words: &str) -> Option<Vec<EntraRole>> {
    if words == "none" {
        return Some(Vec::new());
    }
    let role = |word: &str| ROLES.iter().find(|(name, _)| *name == word).map(|(_, role)| *role);
    words.split('+').map(role).collect()
}

impl AppOption {
    /// The id of the application's principal: always the same for the same application.
    pub(super) fn oid(&self) -> String {
        let name = format!("{}/{}", self.tenant, self.client_id);
        let hash = digest::digest(&digest::SHA256, name.as_bytes());
        let mut bytes = [0; 16];
        bytes.copy_from_slice(hash.as_ref().get(..16).unwrap_or(&[0; 16]));
        uuid::Builder::from_random_bytes(bytes).into_uuid().to_string()
    }
}

impl AppSecret {
    pub(super) fn is_text(&self, shown: &str) -> bool {
        matches!(self, Self::Text(own) if super::is_same(own, shown))
    }

    pub(super) fn read_certificate(&self) -> Result<Option<CertificateDer<'static>>, TlsError> {
        match self {
            Self::Text(_) => Ok(None),
            Self::Certificate(path) => Ok(tls::read_certificates(path)?.into_iter().next()),
        }
    }
}
