//! The file of secrets: keys, certificates, and what back ends have registered.
//!
//! Owns: its form, and new random keys. Must not know: which files are made from it.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;
use std::time::SystemTime;

use ring::rand::{SecureRandom as _, SystemRandom};
use serde::{Deserialize, Serialize};

use super::disk::{StateDirError, damaged};
use crate::credentials::SharedAccessKey;
use crate::emulator::certificates::{self, PemPair};
use crate::emulator::registry::{DeviceCredential, IdentityRecord, KeyPair};

/// The file of secrets.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Secrets {
    pub(super) authority: PemPair,
    pub(super) policies: BTreeMap<String, StoredKeys>,
    pub(super) devices: BTreeMap<String, StoredKeys>,
    pub(super) x509_devices: BTreeMap<String, PemPair>,
    /// Devices that a back end has made or changed. Older files do not have this field.
    #[serde(default)]
    pub(super) registered: BTreeMap<String, Registered>,
    /// What is recorded of devices and modules beside their credentials. Older files do not have this field.
    #[serde(default)]
    pub(super) records: BTreeMap<String, IdentityRecord>,
}

/// A device that a back end has made or changed: with keys, with thumbprints, or with neither, if it signs in with a
/// certificate of the authority.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Registered {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) keys: Option<StoredKeys>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) thumbprints: Vec<String>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) authority: bool,
    /// Only in older files; newer ones have it among the records.
    #[serde(default, skip_serializing)]
    pub(super) enabled: Option<bool>,
}

/// The two keys in base64.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct StoredKeys {
    pub(super) primary: String,
    pub(super) secondary: String,
}

impl Registered {
    /// What is stored of a credential.
    pub(super) fn new(credential: &DeviceCredential) -> Self {
        let (keys, thumbprints) = match credential {
            DeviceCredential::Keys(KeyPair { primary, secondary }) => {
                let (primary, secondary) = (primary.expose_base64(), secondary.expose_base64());
                (Some(StoredKeys { primary, secondary }), Vec::new())
            }
            DeviceCredential::Certificate(thumbprint) => (None, vec![thumbprint.to_hex()]),
            DeviceCredential::Thumbprints { primary, secondary } => {
                (None, std::iter::once(primary).chain(secondary).cloned().collect())
            }
            DeviceCredential::Authority => (None, Vec::new()),
        };
        let authority = matches!(credential, DeviceCredential::Authority);
        Self { keys, thumbprints, authority, enabled: None }
    }

    /// The credential, if it can be read.
    pub(super) fn credential(&self) -> Option<DeviceCredential> {
        if let Some(keys) = &self.keys {
            return keys.read().map(DeviceCredential::Keys);
        }
        if self.authority {
            return Some(DeviceCredential::Authority);
        }
        let mut thumbprints = self.thumbprints.iter().cloned();
        Some(DeviceCredential::Thumbprints { primary: thumbprints.next()?, secondary: thumbprints.next() })
    }
}

impl StoredKeys {
    /// Two random keys.
    pub(super) fn make() -> Result<Self, StateDirError> {
        let key = || Ok(SharedAccessKey::from_bytes(random::<32>("a shared access key")?).expose_base64());
        Ok(Self { primary: key()?, secondary: key()? })
    }

    /// The keys, if they are base64.
    pub(super) fn read(&self) -> Option<KeyPair> {
        let primary = SharedAccessKey::from_base64(&self.primary).ok()?;
        let secondary = SharedAccessKey::from_base64(&self.secondary).ok()?;
        Some(KeyPair { primary, secondary })
    }
}

fn random<const N: usize>(name: &str) -> Result<[u8; N], StateDirError> {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).map_err(|_| StateDirError::Certificate {
        name: name.to_owned(),
        reason: "the system gives no random numbers".to_owned(),
    })?;
    Ok(bytes)
}

/// A record with a new generation: eighteen digits, as on the real hub.
///
/// # Errors
/// Fails if the system gives no random numbers.
pub(in crate::emulator) fn new_record() -> Result<IdentityRecord, StateDirError> {
    let number = u64::from_be_bytes(random("a generation")?) % 1_000_000_000_000_000_000;
    Ok(IdentityRecord::new(format!("{number:018}")))
}

/// Gives a policy or a device keys, if it has none.
pub(super) fn add_keys(stored: &mut BTreeMap<String, StoredKeys>, name: &str) -> Result<(), StateDirError> {
    if !stored.contains_key(name) {
        stored.insert(name.to_owned(), StoredKeys::make()?);
    }
    Ok(())
}

/// Reads the file of secrets. A missing file gives a new authority and nothing else.
pub(super) fn read_secrets(path: &Path, now: SystemTime) -> Result<Secrets, StateDirError> {
    match fs::read(path) {
        Ok(text) => serde_json::from_slice(&text).map_err(|error| damaged(path, &error)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let authority =
                certificates::make_authority(now).map_err(|error| unmade("the authority", &error))?;
            let (policies, devices, x509_devices, registered, records) = Default::default();
            Ok(Secrets { authority, policies, devices, x509_devices, registered, records })
        }
        Err(reason) => Err(StateDirError::Io { verb: "read", path: path.to_owned(), reason }),
    }
}

/// The error about a certificate that could not be made.
pub(super) fn unmade(name: &str, error: &rcgen::Error) -> StateDirError {
    StateDirError::Certificate { name: name.to_owned(), reason: error.to_string() }
}
