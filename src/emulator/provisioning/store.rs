//! The file of the provisioning service: enrolments that back ends made, registrations, and keys that were made here.
//!
//! Owns: its keys and values. Must not know: who registers, hubs.
//!
//! Each change is on disk before it is confirmed. The keys are `enrolment/KIND/ID`, `registration/ID`, `unfinished/ID`
//! for what is still to be done at the hubs, `keys/KIND/NAME` for an enrolment of the command line without a key of its
//! own, and `policy` for the keys of back ends. The file is private, as it has keys.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use serde_json::value::{RawValue, to_raw_value};

use super::attestation::EnrolmentKind;
use super::book::ProvisioningBook;
use super::enrolment::{EnrolmentBody, EnrolmentRecord};
use super::registration::{Allotment, RegistrationRecord};
use crate::credentials::SharedAccessKey;
use crate::emulator::journal::{Changes, Journal};
use crate::emulator::registry::KeyPair;
use crate::emulator::state_dir::{StateDirError, make_keys};

/// The file in the state directory.
const FILE: &str = "provisioning.jsonl";
/// The form of its values.
const FORMAT: u32 = 1;
/// The beginning of the keys of what is to be done for registrations.
const UNFINISHED: &str = "unfinished";
/// The key of the policy's keys.
const POLICY: &str = "policy";

/// The open file.
pub(super) struct ProvisioningStore {
    path: PathBuf,
    journal: Journal,
    made: BTreeMap<String, KeyPair>,
}

/// Two keys in base64.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct MadeKeys {
    primary: String,
    secondary: String,
}

impl ProvisioningStore {
    /// Opens the file, and puts what it has into a book.
    ///
    /// # Errors
    /// Fails if the file exists and cannot be read. It is not changed then.
    pub(super) fn open(
        root: &Path,
        book: &mut ProvisioningBook,
        now: SystemTime,
    ) -> Result<Self, StateDirError> {
        let path = root.join(FILE);
        let (journal, values) =
            Journal::open(&path, FORMAT).map_err(|error| StateDirError::of_provisioning(&path, error))?;
        let damaged = |key: &str| {
            // The text of an error would repeat a part of the value, which may be a key.
            let reason = format!("the value of \"{key}\" does not have its form");
            StateDirError::Provisioning { path: path.clone(), reason }
        };
        let mut made = BTreeMap::new();
        for (key, value) in values {
            let text = value.get();
            match key.split_once('/') {
                Some(("registration", _)) => {
                    let record: RegistrationRecord = serde_json::from_str(text).map_err(|_| damaged(&key))?;
                    book.restore(record);
                }
                Some((UNFINISHED, _)) => {
                    let allotment: Allotment = serde_json::from_str(text).map_err(|_| damaged(&key))?;
                    book.note_begun(allotment);
                }
                Some(("enrolment", rest)) => {
                    let kind = if rest.starts_with("group/") {
                        EnrolmentKind::Group
                    } else {
                        EnrolmentKind::Individual
                    };
                    let body: EnrolmentBody = serde_json::from_str(text).map_err(|_| damaged(&key))?;
                    let id = body.id(kind).unwrap_or_default().to_owned();
                    // These keys count only for an enrolment without keys, and a stored one has its own.
                    let record =
                        body.record(kind, &id, None, make_keys()?, now).map_err(|_| damaged(&key))?;
                    book.enrol(record);
                }
                _ => {
                    let keys: MadeKeys = serde_json::from_str(text).map_err(|_| damaged(&key))?;
                    made.insert(key.clone(), keys.read().ok_or_else(|| damaged(&key))?);
                }
            }
        }
        Ok(Self { path, journal, made })
    }

    /// The keys of the policy of back ends; made if there are none.
    ///
    /// # Errors
    /// Fails if new keys cannot be written.
    pub(super) fn policy_keys(&mut self) -> Result<KeyPair, StateDirError> {
        self.keys(POLICY.to_owned())
    }

    /// The keys of an enrolment of the command line; made if there are none.
    ///
    /// # Errors
    /// Fails if new keys cannot be written.
    pub(super) fn made_keys(&mut self, kind: EnrolmentKind, name: &str) -> Result<KeyPair, StateDirError> {
        self.keys(format!("keys/{}/{}", kind.word(), name.to_ascii_lowercase()))
    }

    fn keys(&mut self, key: String) -> Result<KeyPair, StateDirError> {
        if let Some(made) = self.made.get(&key) {
            return Ok(made.clone());
        }
        let fresh = make_keys()?;
        let (primary, secondary) = (fresh.primary.expose_base64(), fresh.secondary.expose_base64());
        self.write(key.clone(), Some(&MadeKeys { primary, secondary }))?;
        self.made.insert(key, fresh.clone());
        Ok(fresh)
    }

    /// Writes a registration, or that it is gone.
    ///
    /// # Errors
    /// Fails if the file cannot be written; it has not changed then.
    pub(super) fn write_registration(
        &mut self,
        id: &str,
        record: Option<&RegistrationRecord>,
    ) -> Result<(), StateDirError> {
        let id = id.to_ascii_lowercase();
        let mut changes = Changes::from([self.change(format!("registration/{id}"), record)?]);
        // In the order of the keys, so the last line ends what was to be done.
        changes.extend([self.change::<()>(format!("{UNFINISHED}/{id}"), None)?]);
        self.append(changes)
    }

    /// Writes what is to be done for a registration. Its registration ends it, see [`Self::write_registration`].
    ///
    /// # Errors
    /// As [`Self::write_registration`].
    pub(super) fn write_unfinished(&mut self, allotment: &Allotment) -> Result<(), StateDirError> {
        let id = allotment.record.registration_id.to_ascii_lowercase();
        self.write(format!("{UNFINISHED}/{id}"), Some(allotment))
    }

    /// Writes that nothing is to be done any more for a registration.
    ///
    /// # Errors
    /// As [`Self::write_registration`].
    pub(super) fn end_unfinished(&mut self, id: &str) -> Result<(), StateDirError> {
        self.write::<()>(format!("{UNFINISHED}/{}", id.to_ascii_lowercase()), None)
    }

    /// Writes an enrolment, or that it is gone.
    ///
    /// # Errors
    /// As [`Self::write_registration`].
    pub(super) fn write_enrolment(
        &mut self,
        kind: EnrolmentKind,
        id: &str,
        record: Option<&EnrolmentRecord>,
    ) -> Result<(), StateDirError> {
        let stored = record.map(EnrolmentRecord::stored);
        self.write(format!("enrolment/{}/{}", kind.word(), id.to_ascii_lowercase()), stored.as_ref())
    }

    fn write<T: Serialize>(&mut self, key: String, value: Option<&T>) -> Result<(), StateDirError> {
        let change = self.change(key, value)?;
        self.append(Changes::from([change]))
    }

    fn change<T: Serialize>(
        &self,
        key: String,
        value: Option<&T>,
    ) -> Result<(String, Option<Box<RawValue>>), StateDirError> {
        let failed = |reason: String| StateDirError::Provisioning { path: self.path.clone(), reason };
        let text = value.map(to_raw_value).transpose().map_err(|error| failed(error.to_string()))?;
        Ok((key, text))
    }

    fn append(&mut self, changes: Changes) -> Result<(), StateDirError> {
        let written = self.journal.append(&changes);
        written.map_err(|reason| StateDirError::Io { verb: "write", path: self.path.clone(), reason })
    }
}

impl MadeKeys {
    fn read(&self) -> Option<KeyPair> {
        let read = |text: &str| SharedAccessKey::from_base64(text).ok();
        Some(KeyPair { primary: read(&self.primary)?, secondary: read(&self.secondary)? })
    }
}
