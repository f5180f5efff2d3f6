//! Devices and modules that a back end makes, changes and deletes while the emulator runs: hub and state directory together.
//!
//! Owns: the order of both, and the conditions under which a change is made. Must not know: HTTP, JSON.
//!
//! The state directory is written first, so that what a back end was told survives a restart.

use std::sync::{Arc, Mutex, PoisonError};

use super::MAX_DEVICES;
use super::hub::Identity;
use super::identity;
use super::registry::{Device, DeviceCredential};
use super::shared::SharedHub;
use super::state_dir::{StateDir, StateDirError, make_keys};

/// The registry of devices. Clones are the same one; the state directory stays locked while there is any.
#[derive(Clone)]
pub(super) struct Registrar {
    hub: SharedHub,
    state: Arc<Mutex<StateDir>>,
}

/// What a device or a module should become.
#[derive(Debug)]
pub(super) struct Wanted {
    /// Its id, checked; of a module DEVICE/MODULE.
    pub(super) id: String,
    /// What it must prove. `None`: the keys that it has, or new ones.
    pub(super) credential: Option<DeviceCredential>,
    /// Whether it may sign in.
    pub(super) enabled: bool,
}

/// What must be there for a change to be made: the `If-Match` of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Expected {
    /// Nothing is said.
    Unsaid,
    /// Any version.
    Any,
    /// The version with this etag.
    Etag(String),
}

/// Why a change was not made.
#[derive(Debug, thiserror::Error)]
pub(super) enum RegistrarError {
    /// To be made, and there.
    #[error("the hub already has a {}: send If-Match to change it", identity::named(.0))]
    Exists(String),
    /// To be changed or deleted, and not there.
    #[error("the hub has no {}", identity::named(.0))]
    Missing(String),
    /// Changed by somebody else in the meantime.
    #[error("the {} has another etag now: read it again", identity::named(.0))]
    Changed(String),
    /// As many as there may be.
    #[error("the hub already has {MAX_DEVICES} devices and accepts no more")]
    TooMany,
    /// The disk.
    #[error(transparent)]
    State(#[from] StateDirError),
    /// The work was cut short.
    #[error("the emulator is stopping")]
    Stopped,
}

impl Registrar {
    /// A registry over a hub and its state directory.
    pub(super) fn new(hub: SharedHub, state: StateDir) -> Self {
        Self { hub, state: Arc::new(Mutex::new(state)) }
    }

    /// The hub.
    pub(super) fn hub(&self) -> &SharedHub {
        &self.hub
    }

    /// Makes a device or a module, or changes one that is there, and answers with it as it is now. The device of a module
    /// must be there.
    ///
    /// # Errors
    /// [`RegistrarError`]; the hub has not changed then.
    ///
    /// # Cancel safety
    /// When dropped early, the change is made all the same.
    pub(super) async fn put(&self, wanted: Wanted, expected: Expected) -> Result<Identity, RegistrarError> {
        self.change(move |hub, state| {
            let Wanted { id, credential, enabled } = wanted;
            let device_id = identity::split(&id).0.to_owned();
            let (device, present, count) =
                hub.with(|hub, _| (hub.identity(&device_id), hub.identity(&id), hub.device_ids().count()));
            if identity::is_module(&id) && device.is_none() {
                return Err(RegistrarError::Missing(device_id));
            }
            match (&present, expected) {
                (Some(_), Expected::Unsaid) => return Err(RegistrarError::Exists(id)),
                (Some(present), expected) => expected.holds_for(present)?,
                (None, Expected::Unsaid) if count >= MAX_DEVICES => return Err(RegistrarError::TooMany),
                (None, Expected::Unsaid) => {}
                (None, _) => return Err(RegistrarError::Missing(id)),
            }
            let kept = present.map(|present| present.device.credential);
            let kept = kept.filter(|kept| matches!(kept, DeviceCredential::Keys(_)));
            let credential = match credential.or(kept) {
                Some(credential) => credential,
                None => DeviceCredential::Keys(make_keys()?),
            };
            let device = Device { id: id.clone(), credential };
            state.register(&device, enabled)?;
            let made = hub.with(|hub, _| {
                hub.add_device(device);
                hub.enable_device(&id, enabled);
                hub.identity(&id)
            });
            made.ok_or(RegistrarError::Missing(id))
        })
        .await
    }

    /// Deletes a module, or a device with its modules; queue and twin go with each.
    ///
    /// # Errors
    /// [`RegistrarError`]; the hub has not changed then.
    ///
    /// # Cancel safety
    /// When dropped early, the change is made all the same.
    pub(super) async fn delete(&self, device_id: String, expected: Expected) -> Result<(), RegistrarError> {
        self.change(move |hub, state| {
            let Some(present) = hub.with(|hub, _| hub.identity(&device_id)) else {
                return Err(RegistrarError::Missing(device_id));
            };
            expected.holds_for(&present)?;
            for id in hub.with(|hub, _| hub.modules_of(&device_id)).iter().chain([&device_id]) {
                state.forget(id)?;
                hub.with(|hub, _| hub.remove_device(id));
            }
            Ok(())
        })
        .await
    }

    /// One change at a time, away from the runtime's thread: it waits for the disk.
    async fn change<T: Send + 'static>(
        &self,
        act: impl FnOnce(&SharedHub, &mut StateDir) -> Result<T, RegistrarError> + Send + 'static,
    ) -> Result<T, RegistrarError> {
        let Self { hub, state } = self.clone();
        let changed = tokio::task::spawn_blocking(move || {
            let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
            act(&hub, &mut state)
        });
        changed.await.unwrap_or(Err(RegistrarError::Stopped))
    }
}

impl Expected {
    fn holds_for(self, present: &Identity) -> Result<(), RegistrarError> {
        match self {
            Self::Etag(etag) if etag != present.etag() => {
                Err(RegistrarError::Changed(present.device.id.clone()))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// For tests of routes, which are elsewhere.
    impl Registrar {
        /// A registry over a hub and a state directory that nobody looks at.
        pub(in crate::emulator) fn of(hub: &SharedHub) -> Self {
            let dir = tempfile::tempdir().expect("a directory");
            let now = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_800_000_000);
            let state = StateDir::open(dir.path(), &[], &[], false, now).expect("a state directory");
            Self::new(hub.clone(), state)
        }
    }
}
