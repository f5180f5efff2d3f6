//! The provisioning service at the start: what the command line and the file say together.
//!
//! Owns: that an enrolment of the command line takes precedence over a stored one, and the files for clients. Must not
//! know: protocols, registrations.
//!
//! Files below `dps/`: `devices/ID.key` and `groups/NAME.key` have keys in base64, and `service.connection-string` is
//! for back ends that make enrolments.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::allocation::AllocationPolicy;
use super::attestation::{Attestation, EnrolmentKind};
use super::book::ProvisioningBook;
use super::desk::ProvisioningDesk;
use super::enrolment::{EnrolmentRecord, certificate};
use super::faults::DpsFaultError;
use super::settings::{EnrolmentOption, EnrolmentOptionError, EnrolmentSecret, ProvisioningSettings};
use super::store::ProvisioningStore;
use crate::credentials::{HostPort, SharedAccessKey};
use crate::emulator::hubs::Hubs;
use crate::emulator::registry::KeyPair;
use crate::emulator::state_dir::{ServedProvisioning, StateDirError, WELL_KNOWN_KEYS, make_keys, write_into};
use crate::trust;

/// The folder in the state directory.
const FOLDER: &str = "dps";
/// The policy of back ends. Source: its name at the real service.
pub(super) const POLICY: &str = "provisioningserviceowner";

/// Why the provisioning service cannot start.
#[derive(Debug, thiserror::Error)]
pub enum ProvisioningError {
    /// An option is wrong.
    #[error(transparent)]
    Option(#[from] EnrolmentOptionError),
    /// A fault is wrong.
    #[error(transparent)]
    Fault(#[from] DpsFaultError),
    /// A file cannot be used.
    #[error(transparent)]
    File(#[from] StateDirError),
}

/// A service that does not serve yet.
pub(in crate::emulator) struct OpenedProvisioning {
    book: ProvisioningBook,
    store: ProvisioningStore,
    owner: KeyPair,
    root: PathBuf,
    /// The first device of the command line that has a key, and that key.
    first: Option<(String, String)>,
}

/// Opens the file of the service, and adds the enrolments of the command line.
///
/// # Errors
/// [`ProvisioningError`] names the option or the file that is wrong.
pub(in crate::emulator) fn open(
    settings: &ProvisioningSettings,
    root: &Path,
    has_known_keys: bool,
    now: SystemTime,
) -> Result<OpenedProvisioning, ProvisioningError> {
    settings.check()?;
    let mut book = ProvisioningBook::new(settings.id_scope.clone());
    let mut store = ProvisioningStore::open(root, &mut book, now)?;
    if !has_known_keys {
        forget_known_keys(&mut book, &mut store)?;
    }
    let owner = if has_known_keys { known_keys() } else { None };
    let owner = owner.map_or_else(|| store.policy_keys(), Ok)?;
    let mut first = None;
    for (options, kind, folder) in [
        (&settings.devices, EnrolmentKind::Individual, "devices"),
        (&settings.groups, EnrolmentKind::Group, "groups"),
    ] {
        for option in options {
            let attestation = attestation(option, kind, &mut store, has_known_keys)?;
            if let Attestation::Keys(keys) = &attestation {
                let key = keys.primary.expose_base64();
                let path = root.join(FOLDER).join(folder).join(format!("{}.key", option.name));
                write_into(&path, &format!("{key}\n"))?;
                if kind == EnrolmentKind::Individual && first.is_none() {
                    first = Some((option.name.clone(), key));
                }
            }
            book.enrol(of_command_line(option, kind, attestation, now));
        }
    }
    for order in &settings.faults {
        tracing::info!(registration_id = order.registration_id, fault = ?order.fault, "a fault was set");
        book.faults.set(order.clone())?;
    }
    Ok(OpenedProvisioning { book, store, owner, root: root.to_owned(), first })
}

impl OpenedProvisioning {
    /// What the files for clients say of the service.
    pub(in crate::emulator) fn served(&self) -> ServedProvisioning {
        ServedProvisioning { id_scope: self.book.id_scope().to_owned(), first: self.first.clone() }
    }

    /// Begins to serve, for these hubs, and writes the connection string of back ends. What an earlier start has begun is
    /// finished first. `https_port` is the port of HTTPS if it is not the standard one.
    ///
    /// # Errors
    /// Fails if the file cannot be written.
    pub(super) async fn serve(
        self,
        hubs: Hubs,
        https_port: Option<u16>,
    ) -> Result<ProvisioningDesk, StateDirError> {
        let name = hubs.names().next().unwrap_or_default().to_owned();
        let (host, key) = (HostPort { name, port: https_port }, self.owner.primary.expose_base64());
        let text = format!("HostName={host};SharedAccessKeyName={POLICY};SharedAccessKey={key}\n");
        write_into(&self.root.join(FOLDER).join("service.connection-string"), &text)?;
        let desk = ProvisioningDesk::new(self.book, self.store, self.owner, hubs);
        desk.finish_begun().await;
        Ok(desk)
    }
}

/// Replaces the well-known keys in enrolments. A back end may have changed one of the command line while it had them,
/// and this stored them.
fn forget_known_keys(
    book: &mut ProvisioningBook,
    store: &mut ProvisioningStore,
) -> Result<(), StateDirError> {
    let is_known = |key: &SharedAccessKey| WELL_KNOWN_KEYS.contains(&key.expose_base64().as_str());
    let with_known = |own: &&EnrolmentRecord| match &own.attestation {
        Attestation::Keys(keys) => is_known(&keys.primary) || is_known(&keys.secondary),
        Attestation::Certificates(_) => false,
    };
    for mut record in book.enrolments().filter(with_known).cloned().collect::<Vec<_>>() {
        record.attestation = Attestation::Keys(make_keys()?);
        store.write_enrolment(record.kind, &record.id, Some(&record))?;
        book.enrol(record);
    }
    Ok(())
}

fn known_keys() -> Option<KeyPair> {
    let [primary, secondary] = WELL_KNOWN_KEYS.map(|key| SharedAccessKey::from_base64(key).ok());
    Some(KeyPair { primary: primary?, secondary: secondary? })
}

fn attestation(
    option: &EnrolmentOption,
    kind: EnrolmentKind,
    store: &mut ProvisioningStore,
    has_known_keys: bool,
) -> Result<Attestation, ProvisioningError> {
    let name = &option.name;
    Ok(match &option.secret {
        EnrolmentSecret::Made => {
            let known = if has_known_keys { known_keys() } else { None };
            Attestation::Keys(known.map_or_else(|| store.made_keys(kind, name), Ok)?)
        }
        // One key only: the other one is the same.
        EnrolmentSecret::Key(key) => {
            Attestation::Keys(KeyPair { primary: key.clone(), secondary: key.clone() })
        }
        EnrolmentSecret::Certificate(path) => {
            let unusable =
                |reason| EnrolmentOptionError::Certificate { name: name.clone(), path: path.clone(), reason };
            let text = std::fs::read_to_string(path).map_err(|error| unusable(trust::in_words(&error)))?;
            Attestation::Certificates(vec![certificate(kind, &text).map_err(unusable)?])
        }
    })
}

/// An enrolment of the command line. Its devices get their payload back, as if a webhook said so.
fn of_command_line(
    option: &EnrolmentOption,
    kind: EnrolmentKind,
    attestation: Attestation,
    now: SystemTime,
) -> EnrolmentRecord {
    EnrolmentRecord {
        kind,
        id: option.name.clone(),
        attestation,
        enabled: true,
        device_id: None,
        hubs: Vec::new(),
        allocation: AllocationPolicy::Hashed,
        moves: true,
        migrates: true,
        initial_twin: None,
        is_edge: false,
        echoes: true,
        created: now,
        updated: now,
    }
}
