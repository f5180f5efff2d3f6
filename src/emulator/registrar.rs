//! Changes of devices and modules by a back end while the emulator runs, in the hub and the state directory together.
//!
//! Owns: the order of the two changes, and the conditions for a change. Must not know: HTTP, JSON.
//!
//! The state directory is written first, so that a change that a back end has seen confirmed survives a restart.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use super::hub::{Hub, Identity, TwinError, TwinWrite};
use super::identity;
use super::keeper::HubFile;
use super::registry::{Device, DeviceCredential, IdentityRecord, KeyPair, edge_device_of};
use super::shared::SharedHub;
use super::state_dir::{StateDir, StateDirError, make_keys, new_record};
use crate::message::excerpt;

/// Most devices and modules of one hub. Connected and idle, they use about 200 MB of memory; each full queue of
/// the largest messages adds 3 MB.
pub const MAX_DEVICES: usize = 10_000;

/// The registry of devices. All clones share one registry. The state directory stays locked while a clone exists.
#[derive(Clone)]
pub(super) struct Registrar {
    hub: SharedHub,
    state: Arc<Mutex<StateDir>>,
    /// The ids that the command line names.
    named: Arc<BTreeSet<String>>,
    /// The file of what the hub holds, if it is kept.
    file: Option<HubFile>,
}

/// The wanted state of a device or a module.
#[derive(Debug)]
pub(super) struct Wanted {
    /// The id of the device, or DEVICE/MODULE of a module. It is already checked.
    pub(super) id: String,
    /// The credential.
    pub(super) credential: WantedCredential,
    /// Whether the device or module may sign in.
    pub(super) enabled: bool,
    /// The reason of the status.
    pub(super) status_reason: Option<String>,
    /// Whether the device is an edge device. If `None`, nothing changes.
    pub(super) is_edge: Option<bool>,
    /// The scope of the parent of a device that is no edge device; empty for no parent. If `None`, nothing changes.
    pub(super) device_scope: Option<String>,
    /// The scope of an edge device's parent, in the same form.
    pub(super) parent_scope: Option<String>,
    /// What manages the module. If `None`, nothing changes.
    pub(super) managed_by: Option<String>,
}

/// The wanted credential.
#[derive(Debug, Clone)]
pub(super) enum WantedCredential {
    /// The present one; for a new device, new keys.
    Same,
    /// The present keys; if there are none, new ones.
    Keys,
    /// This one.
    Given(DeviceCredential),
}

/// The condition for a change: the `If-Match` of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Expected {
    /// There is no `If-Match`. Then a `put` may create but not change.
    Unsaid,
    /// Any version.
    Any,
    /// The version with this etag.
    Etag(String),
    /// Any version, or none: a `put` creates or changes.
    AnyOrMissing,
    /// The version with this etag, or none.
    EtagOrMissing(String),
}

/// One of many changes.
#[derive(Debug)]
pub(super) enum RegistryChange {
    /// Makes or changes an identity, and then writes its twin.
    Put(Wanted, Expected, Option<TwinWrite>),
    /// Deletes an identity.
    Delete(String, Expected),
    /// Writes a twin, if it has this etag.
    Twin(String, TwinWrite, Option<String>),
}

/// Which keys to make anew.
#[derive(Debug, Clone, Copy)]
pub(super) enum WhichKeys {
    Primary,
    Secondary,
    Both,
}

/// Why a change was refused or failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum RegistrarError {
    /// It should be created, but exists.
    #[error("the hub already has a {}: send If-Match to change it", identity::named(.0))]
    Exists(String),
    /// It should be changed or deleted, but does not exist.
    #[error("the hub has no {}", identity::named(.0))]
    Missing(String),
    /// Another client has changed it in the meantime.
    #[error("the {} has another etag now: read it again", identity::named(.0))]
    Changed(String),
    /// The identity has no keys that could be made anew.
    #[error("the {} signs in with a certificate and has no keys", identity::named(.0))]
    NoKeys(String),
    /// The twin cannot be written.
    #[error(transparent)]
    Twin(#[from] TwinError),
    /// The scope is not that of an edge device of this hub.
    #[error("\"{0}\" is not the deviceScope of an edge device of this hub: read the parent's first")]
    Scope(String),
    /// The hub already has the most devices it accepts.
    #[error("the hub already has {MAX_DEVICES} devices and accepts no more")]
    TooMany,
    /// The state directory could not be changed.
    #[error(transparent)]
    State(#[from] StateDirError),
    /// The emulator stopped before the change was made.
    #[error("the emulator is stopping")]
    Stopped,
}

impl Registrar {
    /// A registry over a hub and its state directory.
    pub(super) fn new(hub: SharedHub, state: StateDir) -> Self {
        let named = Arc::new(state.named().cloned().collect());
        Self { hub, state: Arc::new(Mutex::new(state)), named, file: None }
    }

    /// The same, with the file of what the hub holds.
    pub(super) fn with_file(self, file: HubFile) -> Self {
        Self { file: Some(file), ..self }
    }

    /// Whether the command line names this device or module.
    pub(super) fn is_of_command_line(&self, id: &str) -> bool {
        self.named.contains(id)
    }

    /// Writes now what the hub holds, and returns whether that worked. The log has the reason of a failure.
    ///
    /// # Cancel safety
    /// If dropped early, it is still written.
    pub(super) async fn save(&self) -> bool {
        match &self.file {
            Some(file) => file.write(false).await,
            None => true,
        }
    }

    /// The hub.
    pub(super) fn hub(&self) -> &SharedHub {
        &self.hub
    }

    /// Makes or changes a device or a module, and returns its present state. The device of a module must exist.
    ///
    /// # Errors
    /// [`RegistrarError`]; in this case the hub has not changed.
    ///
    /// # Cancel safety
    /// If dropped early, the change is still made.
    pub(super) async fn put(&self, wanted: Wanted, expected: Expected) -> Result<Identity, RegistrarError> {
        self.change(move |hub, state| put(hub, state, wanted, expected)).await?
    }

    /// Deletes a module, or a device with its modules, with their queues and twins.
    ///
    /// # Errors
    /// [`RegistrarError`]. After [`RegistrarError::State`], some modules of the device may be deleted already.
    ///
    /// # Cancel safety
    /// If dropped early, the deletion is still made.
    pub(super) async fn delete(&self, device_id: String, expected: Expected) -> Result<(), RegistrarError> {
        self.change(move |hub, state| delete(hub, state, device_id, expected)).await?
    }

    /// Makes the changes in this order, and returns the result of each. One that fails does not end the others.
    ///
    /// # Errors
    /// [`RegistrarError::Stopped`].
    ///
    /// # Cancel safety
    /// If dropped early, the changes are still made.
    pub(super) async fn change_all(
        &self,
        changes: Vec<RegistryChange>,
    ) -> Result<Vec<Result<(), RegistrarError>>, RegistrarError> {
        self.change(move |hub, state| {
            let one = |change| match change {
                RegistryChange::Put(wanted, expected, twin) => {
                    if let Some(twin) = &twin {
                        Hub::check_twin(twin)?;
                    }
                    let made = put(hub, state, wanted, expected)?;
                    twin.map_or(Ok(()), |twin| write_twin(hub, &made.device.id, twin, None))
                }
                RegistryChange::Delete(id, expected) => delete(hub, state, id, expected),
                RegistryChange::Twin(id, twin, etag) => write_twin(hub, &id, twin, etag.as_deref()),
            };
            changes.into_iter().map(one).collect()
        })
        .await
    }

    /// Makes new keys for identities that have keys, and returns the keys of each.
    ///
    /// # Errors
    /// [`RegistrarError::Stopped`].
    ///
    /// # Cancel safety
    /// If dropped early, the keys are still made.
    pub(super) async fn regenerate(
        &self,
        ids: Vec<String>,
        which: WhichKeys,
    ) -> Result<Vec<Result<KeyPair, RegistrarError>>, RegistrarError> {
        self.change(move |hub, state| ids.into_iter().map(|id| regenerate(hub, state, id, which)).collect())
            .await
    }

    /// Makes one change at a time. It runs on a blocking thread because it waits for the disk.
    async fn change<T: Send + 'static>(
        &self,
        act: impl FnOnce(&SharedHub, &mut StateDir) -> T + Send + 'static,
    ) -> Result<T, RegistrarError> {
        let Self { hub, state, .. } = self.clone();
        let changed = tokio::task::spawn_blocking(move || {
            let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
            act(&hub, &mut state)
        });
        changed.await.map_err(|_| RegistrarError::Stopped)
    }
}

fn put(
    hub: &SharedHub,
    state: &mut StateDir,
    wanted: Wanted,
    expected: Expected,
) -> Result<Identity, RegistrarError> {
    let (id, credential) = (wanted.id.clone(), wanted.credential.clone());
    let device_id = identity::split(&id).0.to_owned();
    let (device, present, count) =
        hub.with(|hub, _| (hub.identity(&device_id), hub.identity(&id), hub.device_count()));
    if identity::is_module(&id) && device.is_none() {
        return Err(RegistrarError::Missing(device_id));
    }
    match (&present, expected) {
        (Some(_), Expected::Unsaid) => return Err(RegistrarError::Exists(id)),
        (Some(present), expected) => expected.holds_for(present)?,
        (None, Expected::Any | Expected::Etag(_)) => return Err(RegistrarError::Missing(id)),
        (None, _) if count >= MAX_DEVICES => return Err(RegistrarError::TooMany),
        (None, _) => {}
    }
    let record = wanted.record(present.as_ref().map(|present| present.record.clone()), hub)?;
    let credential = match (credential, present.map(|present| present.device.credential)) {
        (WantedCredential::Given(given), _) => given,
        (WantedCredential::Same, Some(kept))
        | (WantedCredential::Keys, Some(kept @ DeviceCredential::Keys(_))) => kept,
        (WantedCredential::Same | WantedCredential::Keys, _) => DeviceCredential::Keys(make_keys()?),
    };
    let device = Device { id: id.clone(), credential };
    state.register(&device, &record)?;
    let made = hub.with(|hub, now| {
        hub.add_device(device);
        hub.set_record(&id, record, now);
        hub.identity(&id)
    });
    made.ok_or(RegistrarError::Missing(id))
}

fn delete(
    hub: &SharedHub,
    state: &mut StateDir,
    device_id: String,
    expected: Expected,
) -> Result<(), RegistrarError> {
    let Some(present) = hub.with(|hub, _| hub.identity(&device_id)) else {
        return Err(RegistrarError::Missing(device_id));
    };
    expected.holds_for(&present)?;
    for id in hub.with(|hub, _| hub.modules_of(&device_id)).iter().chain([&device_id]) {
        state.forget(id)?;
        hub.with(|hub, _| hub.remove_device(id));
    }
    Ok(())
}

fn write_twin(hub: &SharedHub, id: &str, twin: TwinWrite, etag: Option<&str>) -> Result<(), RegistrarError> {
    hub.with(|hub, now| hub.write_twin(id, twin, etag, now).map(drop)).map_err(|error| match error {
        TwinError::UnknownDevice(_) => RegistrarError::Missing(id.to_owned()),
        TwinError::Changed { .. } => RegistrarError::Changed(id.to_owned()),
        error => RegistrarError::Twin(error),
    })
}

fn regenerate(
    hub: &SharedHub,
    state: &mut StateDir,
    id: String,
    which: WhichKeys,
) -> Result<KeyPair, RegistrarError> {
    let Some(present) = hub.with(|hub, _| hub.identity(&id)) else { return Err(RegistrarError::Missing(id)) };
    let DeviceCredential::Keys(before) = present.device.credential else {
        return Err(RegistrarError::NoKeys(id));
    };
    let made = make_keys()?;
    let keys = match which {
        WhichKeys::Primary => KeyPair { primary: made.primary, ..before },
        WhichKeys::Secondary => KeyPair { secondary: made.secondary, ..before },
        WhichKeys::Both => made,
    };
    let device = Device { id, credential: DeviceCredential::Keys(keys.clone()) };
    state.register(&device, &present.record)?;
    hub.with(|hub, _| hub.add_device(device));
    Ok(keys)
}

impl Wanted {
    /// What is to be recorded, made from what is recorded now.
    fn record(
        self,
        present: Option<IdentityRecord>,
        hub: &SharedHub,
    ) -> Result<IdentityRecord, RegistrarError> {
        let before = match present {
            Some(present) => present,
            None => new_record()?,
        };
        let is_edge = self.is_edge.unwrap_or(before.is_edge);
        // The scope of an edge device is its own, and cannot be changed. That of another device is its parent's.
        let sent = if is_edge { self.parent_scope } else { self.device_scope.or(self.parent_scope) };
        let parent = match sent {
            None => before.parent.clone(),
            Some(scope) if scope.is_empty() => None,
            // A parent that was deleted since may stay. The own scope is that of the time as an edge device.
            Some(scope) if before.parent.as_ref() == Some(&scope) => Some(scope),
            Some(scope) if edge_device_of(&scope) == Some(&*self.id) => before.parent.clone(),
            Some(scope) => {
                let parent =
                    edge_device_of(&scope).and_then(|parent| hub.with(|hub, _| hub.identity(parent)));
                let own = parent.filter(|parent| parent.record.is_edge);
                if own.and_then(|parent| parent.record.device_scope(&parent.device.id)).as_ref()
                    != Some(&scope)
                {
                    return Err(RegistrarError::Scope(excerpt(&scope)));
                }
                Some(scope)
            }
        };
        let changes = self.enabled != before.enabled;
        Ok(IdentityRecord {
            enabled: self.enabled,
            status_reason: self.status_reason,
            status_updated: if changes { Some(hub.now()) } else { before.status_updated },
            is_edge,
            parent,
            managed_by: self.managed_by.or(before.managed_by),
            generation: before.generation,
        })
    }
}

impl Expected {
    fn holds_for(self, present: &Identity) -> Result<(), RegistrarError> {
        match self {
            Self::Etag(etag) | Self::EtagOrMissing(etag) if etag != present.etag() => {
                Err(RegistrarError::Changed(present.device.id.clone()))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// For tests of routes, which are in other files.
    impl Registrar {
        /// A registry over a hub and a temporary state directory.
        pub(in crate::emulator) fn of(hub: &SharedHub) -> Self {
            let dir = tempfile::tempdir().expect("a directory");
            let now = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_800_000_000);
            let state = StateDir::open(dir.path(), &[], &[], false, now).expect("a state directory");
            Self::new(hub.clone(), state)
        }
    }
}
