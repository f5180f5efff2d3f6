//! Who may sign in to the emulated hub: devices, shared access policies, and the checks of a proof.
//!
//! Owns: credentials, and the decisions over tokens and certificates, as pure functions.
//! Must not know: sockets, files, the clock (`now` is an argument).
//! Used by: `emulator::hub`, `emulator::state_dir` (fills it).
//!
//! Source: wire reference 4.2 (tokens, policies).

use std::collections::BTreeMap;
use std::time::SystemTime;

use ring::digest;

use crate::credentials::{SasError, SasToken, SharedAccessKey};
use crate::message::{excerpt, format_time};

/// SHA-256 of a certificate in DER.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Thumbprint([u8; 32]);

impl Thumbprint {
    /// Of a certificate in DER.
    pub fn of(certificate: &[u8]) -> Self {
        Self(sha256(certificate))
    }
}

/// A device of the hub.
#[derive(Debug, Clone)]
pub struct Device {
    /// Its id; checked by whoever made it.
    pub id: String,
    /// What it must prove.
    pub credential: DeviceCredential,
}

/// What a device must prove.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum DeviceCredential {
    /// A token signed with either key.
    Keys(KeyPair),
    /// The client certificate with this thumbprint.
    Certificate(Thumbprint),
}

/// Two keys, either of which is valid, so that one can be changed while the other is in use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyPair {
    /// The one in connection strings.
    pub primary: SharedAccessKey,
    /// The other one.
    pub secondary: SharedAccessKey,
}

impl KeyPair {
    fn signed(&self, token: &SasToken) -> bool {
        token.is_signed_by(&self.primary) || token.is_signed_by(&self.secondary)
    }
}

/// A shared access policy of the hub.
#[derive(Debug, Clone)]
pub struct Policy {
    /// Its name, `skn` of a token.
    pub name: String,
    /// Its keys.
    pub keys: KeyPair,
    /// Whether it may send C2D messages and read feedback.
    pub service_connect: bool,
    /// Whether it may stand in for any device.
    pub device_connect: bool,
}

/// A sign-in that was accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// When the connection must be dropped; `None` for a certificate.
    pub expires: Option<SystemTime>,
    /// The policy whose key made the token; `None` for a device's own proof.
    pub policy: Option<String>,
}

/// Why a sign-in was refused, for the log. No variant holds secret text, and foreign text is short and escaped.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AuthError {
    /// No such device. Nothing is proved.
    #[error("the hub has no device \"{0}\"")]
    UnknownDevice(String),
    /// No such device, and the token is a policy's that would stand in for it: its holder may know.
    #[error("the hub has no device \"{0}\" for which that token could stand in")]
    MissingDevice(String),
    /// No such policy.
    #[error("the hub has no shared access policy \"{0}\"")]
    UnknownPolicy(String),
    /// The policy may do other things only.
    #[error("the shared access policy \"{0}\" lacks {1}")]
    Forbidden(String, &'static str),
    /// Neither token nor certificate.
    #[error("no token and no client certificate was presented")]
    NoProof,
    /// Not a token.
    #[error(transparent)]
    Token(#[from] SasError),
    /// Signed for something else.
    #[error("the token is for \"{token}\", which does not cover \"{needed}\"")]
    WrongResource {
        /// `sr` of the token.
        token: String,
        /// What was asked for.
        needed: String,
    },
    /// The key is another one.
    #[error("the token's signature does not match: it was made with another key")]
    WrongSignature,
    /// Too late.
    #[error("the token expired at {0}")]
    Expired(String),
    /// The certificate is another one.
    #[error("the client certificate is not the registered one")]
    WrongCertificate,
    /// The device signs in otherwise.
    #[error("the device signs in by {0}")]
    WrongKind(&'static str),
}

/// The hub's host name, its policies and its devices.
#[derive(Debug)]
pub struct Registry {
    hostname: String,
    policies: Vec<Policy>,
    devices: BTreeMap<String, (Device, String)>,
}

impl Registry {
    /// A registry without devices.
    pub fn new(hostname: impl Into<String>, policies: Vec<Policy>) -> Self {
        Self { hostname: hostname.into(), policies, devices: BTreeMap::new() }
    }

    /// The host name that user names and tokens must name.
    pub fn hostname(&self) -> &str {
        &self.hostname
    }

    /// Adds or replaces a device. Its generation follows from its credential, so it is the same after a restart.
    pub fn add_device(&mut self, device: Device) {
        let generation = generation(&device);
        self.devices.insert(device.id.clone(), (device, generation));
    }

    /// The devices, in order of their ids.
    pub fn device_ids(&self) -> impl Iterator<Item = &str> {
        self.devices.keys().map(String::as_str)
    }

    /// The device's generation: it changes when the device is made anew under the same id.
    pub fn generation(&self, device_id: &str) -> Option<&str> {
        self.devices.get(device_id).map(|(_, generation)| generation.as_str())
    }

    /// See [`super::hub::Hub::authenticate_device`]. A token wins over a certificate.
    ///
    /// # Errors
    /// [`AuthError`] says why not.
    pub fn authenticate_device(
        &self,
        device_id: &str,
        token: Option<&str>,
        certificate: Option<&Thumbprint>,
        now: SystemTime,
    ) -> Result<Grant, AuthError> {
        let device = self.devices.get(device_id).map(|(device, _)| device);
        let unknown = || AuthError::UnknownDevice(excerpt(device_id));
        if let Some(text) = token {
            let token = SasToken::parse(text)?;
            if token.policy().is_none() && device.is_none() {
                return Err(unknown());
            }
            self.check(&token, &format!("{}/devices/{device_id}", self.hostname), now)?;
            if let Some(name) = token.policy() {
                let policy = self.policy(name)?;
                if !policy.device_connect {
                    return Err(AuthError::Forbidden(policy.name.clone(), "DeviceConnect"));
                }
                let granted = grant(&token, policy.keys.signed(&token))?;
                return device.map(|_| granted).ok_or_else(|| AuthError::MissingDevice(excerpt(device_id)));
            }
            return match &device.ok_or_else(unknown)?.credential {
                DeviceCredential::Keys(keys) => grant(&token, keys.signed(&token)),
                DeviceCredential::Certificate(_) => {
                    Err(AuthError::WrongKind("a client certificate, not by a token"))
                }
            };
        }
        let device = device.ok_or_else(unknown)?;
        match (&device.credential, certificate) {
            (DeviceCredential::Certificate(own), Some(shown)) if own == shown => {
                Ok(Grant { expires: None, policy: None })
            }
            (DeviceCredential::Certificate(_), Some(_)) => Err(AuthError::WrongCertificate),
            (DeviceCredential::Keys(_), Some(_)) => {
                Err(AuthError::WrongKind("a token, not by a client certificate"))
            }
            (_, None) => Err(AuthError::NoProof),
        }
    }

    /// See [`super::hub::Hub::authenticate_service`].
    ///
    /// # Errors
    /// [`AuthError`] says why not.
    pub fn authenticate_service(&self, token: &str, now: SystemTime) -> Result<Grant, AuthError> {
        let token = SasToken::parse(token)?;
        self.check(&token, &self.hostname, now)?;
        let name = token.policy().ok_or_else(|| AuthError::UnknownPolicy(String::new()))?;
        let policy = self.policy(name)?;
        if !policy.service_connect {
            return Err(AuthError::Forbidden(policy.name.clone(), "ServiceConnect"));
        }
        grant(&token, policy.keys.signed(&token))
    }

    fn check(&self, token: &SasToken, needed: &str, now: SystemTime) -> Result<(), AuthError> {
        if !token.covers(needed) {
            let token = excerpt(&token.resource());
            return Err(AuthError::WrongResource { token, needed: needed.to_owned() });
        }
        if token.expiry() <= now {
            return Err(AuthError::Expired(format_time(token.expiry())));
        }
        Ok(())
    }

    fn policy(&self, name: &str) -> Result<&Policy, AuthError> {
        let unknown = || AuthError::UnknownPolicy(excerpt(name));
        self.policies.iter().find(|policy| policy.name == name).ok_or_else(unknown)
    }
}

fn grant(token: &SasToken, signed: bool) -> Result<Grant, AuthError> {
    if signed {
        Ok(Grant { expires: Some(token.expiry()), policy: token.policy().map(str::to_owned) })
    } else {
        Err(AuthError::WrongSignature)
    }
}

/// Eighteen digits, as the real hub's.
fn generation(device: &Device) -> String {
    let hash = match &device.credential {
        DeviceCredential::Keys(keys) => sha256(keys.primary.expose_base64().as_bytes()),
        DeviceCredential::Certificate(thumbprint) => thumbprint.0,
    };
    let number = hash.iter().take(8).fold(0_u64, |number, byte| (number << 8) | u64::from(*byte));
    format!("{:018}", number % 1_000_000_000_000_000_000)
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest::digest(&digest::SHA256, bytes).as_ref());
    hash
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const NOW: SystemTime = SystemTime::UNIX_EPOCH;

    fn later(seconds: u64) -> SystemTime {
        NOW + Duration::from_secs(seconds)
    }

    fn keys(seed: u8) -> KeyPair {
        KeyPair {
            primary: SharedAccessKey::from_bytes([seed; 32]),
            secondary: SharedAccessKey::from_bytes([seed + 1; 32]),
        }
    }

    fn registry() -> Registry {
        let policy = |name: &str, seed, service_connect, device_connect| Policy {
            name: name.to_owned(),
            keys: keys(seed),
            service_connect,
            device_connect,
        };
        let policies = vec![policy("service", 10, true, false), policy("device", 20, false, true)];
        let mut registry = Registry::new("Hub.local.test", policies);
        registry.add_device(Device { id: "dev1".into(), credential: DeviceCredential::Keys(keys(1)) });
        let certificate = DeviceCredential::Certificate(Thumbprint::of(b"certificate"));
        registry.add_device(Device { id: "cert1".into(), credential: certificate });
        registry
    }

    fn token(key: &SharedAccessKey, resource: &str, policy: Option<&str>) -> String {
        SasToken::sign(key, resource, policy, later(100)).expose().to_owned()
    }

    #[test]
    fn both_keys_of_a_device_are_valid_until_the_token_expires() {
        let registry = registry();
        for key in [keys(1).primary, keys(1).secondary] {
            let token = token(&key, "hub.local.test/devices/dev1", None);
            let grant = registry.authenticate_device("dev1", Some(&token), None, NOW).expect("granted");
            assert_eq!(grant, Grant { expires: Some(later(100)), policy: None });
            let late = registry.authenticate_device("dev1", Some(&token), None, later(100));
            assert!(matches!(late, Err(AuthError::Expired(_))), "{late:?}");
        }
    }

    #[test]
    fn a_wrong_key_resource_or_device_is_refused() {
        let registry = registry();
        let sign_in = |id: &str, token: &str| registry.authenticate_device(id, Some(token), None, NOW);
        let wrong_key = token(&keys(7).primary, "hub.local.test/devices/dev1", None);
        assert_eq!(sign_in("dev1", &wrong_key), Err(AuthError::WrongSignature));
        let other = token(&keys(1).primary, "hub.local.test/devices/dev2", None);
        assert!(matches!(sign_in("dev1", &other), Err(AuthError::WrongResource { .. })));
        let other_hub = token(&keys(1).primary, "other/devices/dev1", None);
        assert!(matches!(sign_in("dev1", &other_hub), Err(AuthError::WrongResource { .. })));
        assert_eq!(sign_in("none", &other), Err(AuthError::UnknownDevice("none".into())));
        assert!(matches!(sign_in("dev1", "secret"), Err(AuthError::Token(SasError::Scheme))));
        let forged = token(&keys(1).primary, "x\nINFO all is well", None);
        let reason = sign_in("dev1", &forged).expect_err("refused").to_string();
        assert!(reason.contains("\"x\\nINFO all is well\"") && !reason.contains('\n'), "{reason}");
    }

    #[test]
    fn a_policy_signs_for_devices_only_with_device_connect() {
        let registry = registry();
        let device = token(&keys(20).primary, "hub.local.test", Some("device"));
        assert!(registry.authenticate_device("dev1", Some(&device), None, NOW).is_ok());
        let missing = registry.authenticate_device("none", Some(&device), None, NOW);
        assert_eq!(missing, Err(AuthError::MissingDevice("none".into())));
        let forged = token(&keys(7).primary, "hub.local.test", Some("device"));
        let refused = registry.authenticate_device("none", Some(&forged), None, NOW);
        assert_eq!(refused, Err(AuthError::WrongSignature));
        let service = token(&keys(10).primary, "hub.local.test", Some("service"));
        let refused = registry.authenticate_device("dev1", Some(&service), None, NOW);
        assert_eq!(refused, Err(AuthError::Forbidden("service".into(), "DeviceConnect")));
    }

    #[test]
    fn a_back_end_needs_service_connect_for_the_whole_hub() {
        let registry = registry();
        let service = token(&keys(10).secondary, "hub.local.test", Some("service"));
        assert!(registry.authenticate_service(&service, NOW).is_ok());
        let device = token(&keys(20).primary, "hub.local.test", Some("device"));
        let refused = registry.authenticate_service(&device, NOW);
        assert_eq!(refused, Err(AuthError::Forbidden("device".into(), "ServiceConnect")));
        let narrow = token(&keys(10).primary, "hub.local.test/devices/dev1", Some("service"));
        assert!(matches!(registry.authenticate_service(&narrow, NOW), Err(AuthError::WrongResource { .. })));
        let unnamed = token(&keys(1).primary, "hub.local.test", None);
        assert!(matches!(registry.authenticate_service(&unnamed, NOW), Err(AuthError::UnknownPolicy(_))));
    }

    #[test]
    fn a_certificate_signs_in_the_device_whose_thumbprint_it_has() {
        let registry = registry();
        let shown =
            |id: &str, der: &[u8]| registry.authenticate_device(id, None, Some(&Thumbprint::of(der)), NOW);
        assert_eq!(shown("cert1", b"certificate"), Ok(Grant { expires: None, policy: None }));
        assert_eq!(shown("cert1", b"another"), Err(AuthError::WrongCertificate));
        assert!(matches!(shown("dev1", b"certificate"), Err(AuthError::WrongKind(_))));
        assert_eq!(registry.authenticate_device("cert1", None, None, NOW), Err(AuthError::NoProof));
    }

    #[test]
    fn a_devices_generation_follows_its_credential() {
        let mut registry = registry();
        let before = registry.generation("dev1").expect("known").to_owned();
        assert_eq!(before.len(), 18);
        registry.add_device(Device { id: "dev1".into(), credential: DeviceCredential::Keys(keys(1)) });
        assert_eq!(registry.generation("dev1"), Some(before.as_str()));
        registry.add_device(Device { id: "dev1".into(), credential: DeviceCredential::Keys(keys(5)) });
        assert_ne!(registry.generation("dev1"), Some(before.as_str()));
    }
}
