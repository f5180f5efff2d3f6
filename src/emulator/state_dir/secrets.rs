//! The secrets: `secrets.json` has the authority and the policies, `devices.jsonl` has each device and module.
//!
//! Owns: their form, and new random keys. Must not know: which files are made from them.
//!
//! The devices are in a journal, so that one more device costs one line. Its keys are `keys/ID`, `certificate/ID` and
//! `registered/ID` and `record/ID`. Older versions had all of it in `secrets.json`; the first start moves the devices.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use ring::rand::{SecureRandom as _, SystemRandom};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::disk::{StateDirError, damaged, write_private};
use crate::credentials::SharedAccessKey;
use crate::emulator::certificates::{self, PemPair};
use crate::emulator::journal::{Changes, Journal, Values};
use crate::emulator::registry::{DeviceCredential, IdentityRecord, KeyPair};

/// The file of authority and policies.
pub(super) const SECRETS: &str = "secrets.json";
/// The journal of the devices.
pub(super) const DEVICES: &str = "devices.jsonl";
/// The form of its values.
const FORMAT: u32 = 1;

/// All secrets.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Secrets {
    pub(super) authority: PemPair,
    pub(super) policies: BTreeMap<String, StoredKeys>,
    #[serde(default, skip_serializing)]
    pub(super) devices: BTreeMap<String, StoredKeys>,
    #[serde(default, skip_serializing)]
    pub(super) x509_devices: BTreeMap<String, PemPair>,
    /// Devices that a back end has made or changed.
    #[serde(default, skip_serializing)]
    pub(super) registered: BTreeMap<String, Registered>,
    /// What is recorded of devices and modules beside their credentials. Older files do not have this field.
    #[serde(default, skip_serializing)]
    pub(super) records: BTreeMap<String, IdentityRecord>,
}

/// The two files.
pub(super) struct SecretFiles {
    root: PathBuf,
    journal: Journal,
    /// What the journal had when it was opened. It is empty after the first write.
    read: Values,
}

impl SecretFiles {
    /// Reads all secrets. Without files there is an authority and nothing else. The authority is `authority`, if that
    /// is given, else the one that was made at the first start.
    ///
    /// # Errors
    /// [`StateDirError`] names the file that cannot be read.
    pub(super) fn open(
        root: &Path,
        authority: Option<PemPair>,
        now: SystemTime,
    ) -> Result<(Self, Secrets), StateDirError> {
        let mut secrets = read_secrets(&root.join(SECRETS), authority, now)?;
        let path = root.join(DEVICES);
        let (journal, read) =
            Journal::open(&path, FORMAT).map_err(|error| StateDirError::of_devices(&path, error))?;
        for (key, value) in &read {
            let text = value.get();
            let parsed = match key.split_once('/') {
                Some(("keys", id)) => put(&mut secrets.devices, id, text),
                Some(("certificate", id)) => put(&mut secrets.x509_devices, id, text),
                Some(("registered", id)) => put(&mut secrets.registered, id, text),
                Some(("record", id)) => put(&mut secrets.records, id, text),
                _ => return Err(damaged(&path, &format!("the key \"{key}\" is unknown"))),
            };
            // The text of the error would repeat a part of the value, which may be a key.
            parsed.map_err(|_| damaged(&path, &format!("the value of \"{key}\" does not have its form")))?;
        }
        Ok((Self { root: root.to_owned(), journal, read }, secrets))
    }

    /// Writes what has changed since the secrets were read.
    ///
    /// # Errors
    /// [`StateDirError`] names the file that cannot be written.
    pub(super) fn write(&mut self, secrets: &Secrets) -> Result<(), StateDirError> {
        let mut changes = Changes::new();
        for (id, value) in &secrets.devices {
            put_changes(&mut changes, "keys", id, Some(value))?;
        }
        for (id, value) in &secrets.x509_devices {
            put_changes(&mut changes, "certificate", id, Some(value))?;
        }
        for (id, value) in &secrets.registered {
            put_changes(&mut changes, "registered", id, Some(value))?;
        }
        for (id, value) in &secrets.records {
            put_changes(&mut changes, "record", id, Some(value))?;
        }
        let read = std::mem::take(&mut self.read);
        changes.retain(|key, value| {
            let (before, now) =
                (read.get(key).map(|value| value.get()), value.as_ref().map(|value| value.get()));
            before != now
        });
        // The devices first: older versions had them in the file that is written next.
        self.append(&changes)?;
        let path = self.root.join(SECRETS);
        let text = serde_json::to_vec_pretty(secrets).map_err(|error| damaged(&path, &error))?;
        write_private(&path, &text)
    }

    /// Writes what there is now about one device.
    ///
    /// # Errors
    /// As [`SecretFiles::write`]; in this case the file has not changed.
    pub(super) fn write_device(&mut self, secrets: &Secrets, id: &str) -> Result<(), StateDirError> {
        let mut changes = Changes::new();
        put_changes(&mut changes, "keys", id, secrets.devices.get(id))?;
        put_changes(&mut changes, "certificate", id, secrets.x509_devices.get(id))?;
        put_changes(&mut changes, "registered", id, secrets.registered.get(id))?;
        put_changes(&mut changes, "record", id, secrets.records.get(id))?;
        self.append(&changes)
    }

    fn append(&mut self, changes: &Changes) -> Result<(), StateDirError> {
        let path = || self.root.join(DEVICES);
        if changes.is_empty() {
            return Ok(());
        }
        self.journal.append(changes).map_err(|reason| StateDirError::Io {
            verb: "write",
            path: path(),
            reason,
        })
    }
}

fn put<T: DeserializeOwned>(into: &mut BTreeMap<String, T>, id: &str, text: &str) -> serde_json::Result<()> {
    into.insert(id.to_owned(), serde_json::from_str(text)?);
    Ok(())
}

fn put_changes<T: Serialize>(
    changes: &mut Changes,
    kind: &str,
    id: &str,
    value: Option<&T>,
) -> Result<(), StateDirError> {
    let text = value.map(serde_json::value::to_raw_value).transpose();
    let text = text.map_err(|error| damaged(Path::new(DEVICES), &error))?;
    changes.insert(format!("{kind}/{id}"), text);
    Ok(())
}

/// The credential of a device that a back end has made or changed: keys or thumbprints, and whether it signs in with a
/// certificate of the authority, or may do so.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::emulator) struct Registered {
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
    pub(in crate::emulator) fn new(credential: &DeviceCredential) -> Self {
        let (keys, thumbprints) = match credential {
            DeviceCredential::Issued(enrolled) => return Self { authority: true, ..Self::new(enrolled) },
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
    pub(in crate::emulator) fn credential(&self) -> Option<DeviceCredential> {
        let mut thumbprints = self.thumbprints.iter().cloned();
        let own = match (&self.keys, thumbprints.next()) {
            (Some(keys), _) => DeviceCredential::Keys(keys.read()?),
            (None, Some(primary)) => DeviceCredential::Thumbprints { primary, secondary: thumbprints.next() },
            (None, None) => return self.authority.then_some(DeviceCredential::Authority),
        };
        Some(if self.authority { DeviceCredential::Issued(Box::new(own)) } else { own })
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

/// Reads the file of authority and policies. A missing file gives an authority and nothing else.
fn read_secrets(path: &Path, authority: Option<PemPair>, now: SystemTime) -> Result<Secrets, StateDirError> {
    match fs::read(path) {
        Ok(text) => {
            let mut secrets: Secrets =
                serde_json::from_slice(&text).map_err(|error| damaged(path, &error))?;
            secrets.authority = authority.unwrap_or(secrets.authority);
            Ok(secrets)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let made = || certificates::make_authority(now).map_err(|error| unmade("the authority", &error));
            let authority = authority.map_or_else(made, Ok)?;
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
