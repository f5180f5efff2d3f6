//! Who may sign in to the emulated hub: devices, shared access policies, and the checks of tokens and certificates.
//!
//! Owns: credentials, and the decisions on tokens and certificates, as pure functions.
//! Must not know: sockets, files, the clock (`now` is an argument).
//!
//! Source: wire reference 4.2 (tokens, policies).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use ring::digest;
use serde_json::{Value, json};

use crate::credentials::{SasError, SasToken, SharedAccessKey};
use crate::message::{excerpt, format_time};

use super::clock::ClockOffset;
use super::entra::{BearerError, EntraIssuer};
use super::hub_names::HubNames;
use super::identity;

mod back_end;
mod principals;
mod record;

pub use record::{IdentityRecord, edge_device_of};

/// The SHA-256 of a certificate in DER, and its SHA-1, because back ends may register either.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Thumbprint {
    sha256: [u8; 32],
    sha1: [u8; 20],
    /// The SHA-256 of the common name, if the emulator's authority has signed the certificate.
    vouched_for: Option<[u8; 32]>,
}

impl Thumbprint {
    /// The thumbprint of a certificate in DER.
    pub fn of(certificate: &[u8]) -> Self {
        let mut sha1 = [0; 20];
        sha1.copy_from_slice(digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, certificate).as_ref());
        Self { sha256: sha256(certificate), sha1, vouched_for: None }
    }

    /// The same, of a certificate that the emulator's authority has signed for this common name.
    pub fn vouched(certificate: &[u8], common_name: &str) -> Self {
        Self { vouched_for: Some(sha256(common_name.as_bytes())), ..Self::of(certificate) }
    }

    /// The SHA-256 in hexadecimal, as back ends see it.
    pub fn to_hex(self) -> String {
        hex(&self.sha256)
    }

    /// The SHA-1 and the SHA-256 in hexadecimal.
    pub fn to_hex_of_both(self) -> (String, String) {
        (hex(&self.sha1), hex(&self.sha256))
    }

    /// Whether `registered` is this certificate's SHA-1 or SHA-256 in hexadecimal.
    fn is(&self, registered: &str) -> bool {
        [hex(&self.sha256), hex(&self.sha1)].iter().any(|own| own.eq_ignore_ascii_case(registered))
    }

    /// Whether the emulator's authority has signed the certificate for this id.
    fn is_vouched_for(&self, id: &str) -> bool {
        self.vouched_for == Some(sha256(id.as_bytes()))
    }
}

/// A device of the hub.
#[derive(Debug, Clone)]
pub struct Device {
    /// The id of the device or of a module. The code that makes the value must check it.
    pub id: String,
    /// What the device must prove.
    pub credential: DeviceCredential,
}

/// What a device must prove.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum DeviceCredential {
    /// A token signed with either key.
    Keys(KeyPair),
    /// The client certificate with this thumbprint.
    Certificate(Thumbprint),
    /// A client certificate with one of these thumbprints: SHA-1 or SHA-256 in hexadecimal.
    Thumbprints {
        /// The first thumbprint.
        primary: String,
        /// The second thumbprint, if there is one.
        secondary: Option<String>,
    },
    /// A client certificate that the emulator's authority has signed, with the id as its common name.
    Authority,
    /// Such a certificate, which was issued at a registration, or what the enrolment of the device wants.
    Issued(Box<DeviceCredential>),
}

impl DeviceCredential {
    /// Whether the device may sign in with a certificate of the emulator's authority.
    pub(super) fn is_issued(&self) -> bool {
        matches!(self, Self::Authority | Self::Issued(_))
    }

    /// The credential itself; beside an issued certificate, what the enrolment wants.
    fn enrolled(&self) -> &Self {
        match self {
            Self::Issued(enrolled) => enrolled,
            own => own,
        }
    }

    /// The kind of authentication and the thumbprints, as back ends see them. Source: the classes
    /// AuthenticationMechanism and X509Thumbprint in Microsoft's Python service SDK.
    pub fn shown(&self) -> (&'static str, Value) {
        let (kind, primary, secondary) = match self {
            Self::Keys(_) => ("sas", None, None),
            Self::Certificate(thumbprint) => ("selfSigned", Some(thumbprint.to_hex()), None),
            Self::Thumbprints { primary, secondary } => {
                ("selfSigned", Some(primary.clone()), secondary.clone())
            }
            Self::Authority | Self::Issued(_) => ("certificateAuthority", None, None),
        };
        (kind, json!({ "primaryThumbprint": primary, "secondaryThumbprint": secondary }))
    }
}

/// Two keys. Both are valid, so that one can be changed while the other is in use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyPair {
    /// The key in connection strings.
    pub primary: SharedAccessKey,
    /// The other key.
    pub secondary: SharedAccessKey,
}

impl KeyPair {
    /// The keys as clients of Event Hubs use them: they sign with the text of a key, and do not decode its base64.
    /// Source: `generate_sas_token` of azure-core, which azure-eventhub calls.
    fn as_text(&self) -> Self {
        let text = |key: &SharedAccessKey| SharedAccessKey::from_bytes(key.expose_base64());
        Self { primary: text(&self.primary), secondary: text(&self.secondary) }
    }

    /// Whether one of the keys has signed this token.
    pub(super) fn signed(&self, token: &SasToken) -> bool {
        token.is_signed_by(&self.primary) || token.is_signed_by(&self.secondary)
    }
}

/// A shared access policy of the hub.
#[derive(Debug, Clone)]
pub struct AccessPolicy {
    /// The policy's name, `skn` of a token.
    pub name: String,
    /// The policy's keys.
    pub keys: KeyPair,
    /// Whether it may send C2D messages and read feedback.
    pub service_connect: bool,
    /// Whether it may sign in as any device.
    pub device_connect: bool,
    /// The policy's right on the registry of devices.
    pub registry: RegistryRight,
}

/// A policy's right on the registry of devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum RegistryRight {
    /// No right.
    None,
    /// RegistryRead.
    Read,
    /// RegistryWrite, which includes RegistryRead.
    Write,
}

/// The right that a request of a back end needs. Source: wire reference 4.2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BackEndRight {
    /// For messages, feedback, methods and jobs.
    ServiceConnect,
    /// For reading twins and for queries: a policy needs ServiceConnect.
    TwinRead,
    /// For writing twins: a policy needs ServiceConnect.
    TwinWrite,
    /// For reading devices and their keys.
    RegistryRead,
    /// For making, changing and deleting devices.
    RegistryWrite,
}

/// A sign-in that was accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// When the connection must be closed, by the hub's clock; `None` for a certificate.
    pub expires: Option<SystemTime>,
    /// The policy whose key signed the token; `None` if the device signed in with its own key or certificate, or a
    /// principal of Entra did.
    pub policy: Option<String>,
}

/// Why a sign-in was refused, for the log. No variant holds secret text; foreign text is short and escaped.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AuthError {
    /// The device does not exist. The client has proved nothing.
    #[error("the hub has no device \"{0}\"")]
    UnknownDevice(String),
    /// The device does not exist, and the token is from a policy that may sign in as any device. So the client may be
    /// told.
    #[error("the hub has no device \"{0}\" that this token could be for")]
    MissingDevice(String),
    /// The policy does not exist.
    #[error("the hub has no shared access policy \"{0}\"")]
    UnknownPolicy(String),
    /// The device is disabled.
    #[error("the device \"{0}\" is disabled")]
    Disabled(String),
    /// The policy lacks the right.
    #[error("the shared access policy \"{0}\" lacks {1}")]
    Forbidden(String, &'static str),
    /// The principal of Entra has no role for it. Its id, as the hub tells it.
    #[error("the principal {0} has no role for this")]
    NoRole(String),
    /// The token of Entra is not valid here.
    #[error(transparent)]
    Bearer(#[from] BearerError),
    /// The client has shown neither token nor certificate.
    #[error("no token and no client certificate was presented")]
    NoProof,
    /// The text is not a token.
    #[error(transparent)]
    Token(#[from] SasError),
    /// The token is for another resource.
    #[error("the token is for \"{token}\", which does not cover \"{needed}\"")]
    WrongResource {
        /// The token's `sr`.
        token: String,
        /// The resource that the request needs.
        needed: String,
    },
    /// The token was signed with another key.
    #[error("the token's signature does not match: it was made with another key")]
    WrongSignature,
    /// The token has expired.
    #[error("the token expired at {0}")]
    Expired(String),
    /// The client has shown another certificate.
    #[error("the client certificate is not the registered one")]
    WrongCertificate,
    /// The emulator's authority has not signed the certificate for this device.
    #[error(
        "the client certificate is not one that the emulator's authority has signed with the id as common name"
    )]
    NotVouchedFor,
    /// The device signs in with the other kind of proof.
    #[error("the device signs in with {0}")]
    WrongKind(&'static str),
}

/// The hub's host names, its policies and its devices.
#[derive(Debug)]
pub struct Registry {
    names: HubNames,
    clock_offset: ClockOffset,
    policies: Vec<AccessPolicy>,
    devices: BTreeMap<String, RegistryEntry>,
    issuer: Option<Arc<EntraIssuer>>,
}

#[derive(Debug)]
struct RegistryEntry {
    device: Device,
    record: IdentityRecord,
}

impl Registry {
    /// A registry without devices.
    pub fn new(hostname: impl Into<String>, policies: Vec<AccessPolicy>) -> Self {
        let clock_offset = ClockOffset::default();
        let (names, devices) = (HubNames::new(hostname), BTreeMap::new());
        Self { names, clock_offset, policies, devices, issuer: None }
    }

    /// Tells by how much the hub's clock differs from the one of clients, which make their tokens by the real time. What
    /// is left of a token's life when it is presented counts, and from then on it passes by the hub's clock. Otherwise
    /// no client could sign in once the clock is further ahead than tokens last.
    pub fn set_clock_offset(&mut self, offset: ClockOffset) {
        self.clock_offset = offset;
    }

    /// See [`Registry::set_clock_offset`].
    pub fn clock_offset(&self) -> ClockOffset {
        self.clock_offset
    }

    /// The host names; user names and tokens must contain one of them.
    pub fn names(&self) -> &HubNames {
        &self.names
    }

    /// Adds a device, or gives it another credential. What is recorded of it stays.
    pub fn add_device(&mut self, device: Device) {
        let record = self.devices.remove(&device.id).map(|entry| entry.record).unwrap_or_default();
        self.devices.insert(device.id.clone(), RegistryEntry { device, record });
    }

    /// Removes a device. If it does not exist, nothing happens.
    pub fn remove_device(&mut self, device_id: &str) {
        self.devices.remove(device_id);
    }

    /// Sets what is recorded of a device. If it does not exist, nothing happens.
    pub fn set_record(&mut self, device_id: &str, record: IdentityRecord) {
        if let Some(entry) = self.devices.get_mut(device_id) {
            entry.record = record;
        }
    }

    /// A device, and what is recorded of it.
    pub fn device(&self, device_id: &str) -> Option<(&Device, &IdentityRecord)> {
        self.devices.get(device_id).map(|entry| (&entry.device, &entry.record))
    }

    /// The devices, sorted by id.
    pub fn device_ids(&self) -> impl Iterator<Item = &str> {
        self.devices.keys().map(String::as_str)
    }

    /// The device's generation: see [`IdentityRecord::generation`].
    pub fn generation(&self, device_id: &str) -> Option<&str> {
        self.devices.get(device_id).map(|entry| entry.record.generation.as_str())
    }

    /// See [`super::hub::Hub::authenticate_device`]. If there is a token, the certificate is ignored.
    ///
    /// # Errors
    /// [`AuthError`] gives the reason.
    pub fn authenticate_device(
        &self,
        device_id: &str,
        token: Option<&str>,
        certificate: Option<&Thumbprint>,
        now: SystemTime,
    ) -> Result<Grant, AuthError> {
        let entry = self.devices.get(device_id);
        let device = entry.map(|entry| &entry.device);
        let enabled = |grant: Grant| match entry {
            Some(entry) if !entry.record.enabled => Err(AuthError::Disabled(excerpt(device_id))),
            _ => Ok(grant),
        };
        let unknown = || AuthError::UnknownDevice(excerpt(device_id));
        if let Some(text) = token {
            let token = SasToken::parse(text)?;
            if token.policy().is_none() && device.is_none() {
                return Err(unknown());
            }
            self.check(&token, &format!("/{}", identity::path(device_id)), now)?;
            if let Some(name) = token.policy() {
                let policy = self.policy(name)?;
                if !policy.device_connect {
                    return Err(AuthError::Forbidden(policy.name.clone(), "DeviceConnect"));
                }
                // Check the signature first: only a valid token may show that the device is missing.
                let granted = self.grant(&token, policy.keys.signed(&token)).and_then(enabled)?;
                return device.map(|_| granted).ok_or_else(|| AuthError::MissingDevice(excerpt(device_id)));
            }
            return match device.ok_or_else(unknown)?.credential.enrolled() {
                DeviceCredential::Keys(keys) => self.grant(&token, keys.signed(&token)).and_then(enabled),
                _ => Err(AuthError::WrongKind("a client certificate, not with a token")),
            };
        }
        let device = device.ok_or_else(unknown)?;
        let Some(shown) = certificate else { return Err(AuthError::NoProof) };
        let is_issued = shown.is_vouched_for(device_id) && device.credential.is_issued();
        let registered = match device.credential.enrolled() {
            _ if is_issued => true,
            DeviceCredential::Certificate(own) => own.sha256 == shown.sha256,
            DeviceCredential::Thumbprints { primary, secondary } => {
                shown.is(primary) || secondary.as_ref().is_some_and(|other| shown.is(other))
            }
            _ if device.credential.is_issued() => return Err(AuthError::NotVouchedFor),
            _ => return Err(AuthError::WrongKind("a token, not with a client certificate")),
        };
        let grant = Grant { expires: None, policy: None };
        if registered { enabled(grant) } else { Err(AuthError::WrongCertificate) }
    }

    /// Checks a token's resource, which may be under any of the hub's names, and its expiry.
    fn check(&self, token: &SasToken, path: &str, now: SystemTime) -> Result<(), AuthError> {
        if !self.names.iter().any(|name| token.covers(&format!("{name}{path}"))) {
            let token = excerpt(&token.resource());
            return Err(AuthError::WrongResource { token, needed: format!("{}{path}", self.names.own()) });
        }
        self.check_time(token, now)
    }

    fn check_time(&self, token: &SasToken, now: SystemTime) -> Result<(), AuthError> {
        if self.clock_offset.of(token.expiry()) <= now {
            return Err(AuthError::Expired(format_time(token.expiry())));
        }
        Ok(())
    }

    fn policy(&self, name: &str) -> Result<&AccessPolicy, AuthError> {
        let unknown = || AuthError::UnknownPolicy(excerpt(name));
        self.policies.iter().find(|policy| policy.name == name).ok_or_else(unknown)
    }

    fn grant(&self, token: &SasToken, signed: bool) -> Result<Grant, AuthError> {
        if !signed {
            return Err(AuthError::WrongSignature);
        }
        let expires = Some(self.clock_offset.of(token.expiry()));
        Ok(Grant { expires, policy: token.policy().map(str::to_owned) })
    }
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest::digest(&digest::SHA256, bytes).as_ref());
    hash
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02X}")).collect()
}

#[cfg(test)]
mod tests;
