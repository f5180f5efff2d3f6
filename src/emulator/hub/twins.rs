//! Twins of devices: what devices report, what back ends write, and which changes reach the device.
//!
//! Owns: which twin belongs to which device, the fields next to its properties, the changes that wait for a connected
//! device.
//! Must not know: merging (`document`), topics, HTTP.

use std::time::SystemTime;

use serde_json::{Value, json};

use super::device::{DeviceState, MAX_DESIRED_CHANGES};
use super::devices::Identity;
use super::document::TwinError;
use super::session::{ConnectionId, Subscription};
use super::stamps::time;
use super::state::Hub;
use super::twin::{DesiredChange, DeviceTwin, TwinWrite};
use crate::emulator::identity;

/// Most bytes of a model id. Source: the DTDL language, whose identifiers have at most 2,048 characters.
const MAX_MODEL_ID: usize = 2048;

impl Hub {
    /// Merges a patch into the device's reported properties, and returns their new version.
    ///
    /// # Errors
    /// [`TwinError`]; in this case nothing has changed.
    pub fn patch_reported(
        &mut self,
        device_id: &str,
        patch: &Value,
        now: SystemTime,
    ) -> Result<u64, TwinError> {
        let unknown = || TwinError::UnknownDevice(device_id.chars().take(128).collect());
        let state = self.devices.get_mut(device_id).ok_or_else(unknown)?;
        let version = state.twin.patch_reported(patch, now)?;
        state.last_activity = Some(now);
        self.version += 1;
        Ok(version)
    }

    /// Writes tags and desired properties, and returns the new twin. With `etag`, the write only happens if the twin
    /// has this version. The device receives changed desired properties if it is connected and has subscribed to them.
    ///
    /// # Errors
    /// [`TwinError`]; in this case nothing has changed.
    pub fn write_twin(
        &mut self,
        device_id: &str,
        write: TwinWrite,
        etag: Option<&str>,
        now: SystemTime,
    ) -> Result<Value, TwinError> {
        let unknown = || TwinError::UnknownDevice(device_id.chars().take(128).collect());
        let state = self.devices.get_mut(device_id).ok_or_else(unknown)?;
        let present = state.twin.etag();
        if etag.is_some_and(|expected| expected != present) {
            return Err(TwinError::Changed { device_id: device_id.to_owned(), etag: present });
        }
        let change = state.twin.write(write, now)?;
        let listens =
            state.session.is_connected() && state.session.granted(Subscription::DesiredProperties).is_some();
        if let Some(change) = change.filter(|_| listens) {
            if state.desired_changes.len() >= MAX_DESIRED_CHANGES {
                state.desired_changes.pop_front();
                tracing::warn!(device_id, "a device does not read: it misses a change of desired properties");
            }
            state.desired_changes.push_back(change);
        }
        self.wake(device_id);
        self.twin(device_id).ok_or_else(unknown)
    }

    /// Checks whether a new twin could be written so.
    ///
    /// # Errors
    /// [`TwinError`].
    pub fn check_twin(write: &TwinWrite) -> Result<(), TwinError> {
        DeviceTwin::default().write(write.clone(), SystemTime::UNIX_EPOCH).map(drop)
    }

    /// The next change of desired properties that `connection` has not received. Changes from a time when the device
    /// was not connected or not subscribed are not sent: the device gets its twin then. Source: wire reference 1.7.
    pub fn next_desired_change(
        &mut self,
        device_id: &str,
        connection: ConnectionId,
    ) -> Option<DesiredChange> {
        self.current_passing(device_id, connection)?.desired_changes.pop_front()
    }

    /// The twin's `properties` as the device gets them; `None` if the device does not exist.
    pub fn twin_properties(&self, device_id: &str) -> Option<Value> {
        self.devices.get(device_id).map(|state| state.twin.properties())
    }

    /// The twin's tags, which the device does not see; empty if the device does not exist.
    pub fn twin_tags(&self, device_id: &str) -> Value {
        self.devices.get(device_id).map(|state| state.twin.tags().clone()).unwrap_or_default().into()
    }

    /// Notes the model that a device has named. It stays until the device names another one, also over another
    /// transport; this is a choice.
    pub fn set_model_id(&mut self, device_id: &str, model_id: String) {
        if model_id.len() > MAX_MODEL_ID {
            tracing::warn!(device_id, "ignored a model id of more than {MAX_MODEL_ID} bytes");
            return;
        }
        if let Some(state) = self.devices.get_mut(device_id)
            && state.model_id.as_ref() != Some(&model_id)
        {
            state.model_id = Some(model_id);
            self.quiet_changes += 1;
        }
    }

    /// The twin as a back end gets it; `None` if the device does not exist. Source: the class Twin in Microsoft's Python
    /// service SDK, and for `modelId`, which is empty where no model was named, its C# SDK.
    pub fn twin(&self, device_id: &str) -> Option<Value> {
        let identity = self.identity(device_id)?;
        let DeviceState { twin, model_id, .. } = self.devices.get(device_id)?;
        let Identity { record, .. } = &identity;
        let (device, module) = identity::split(device_id);
        let (kind, thumbprints) = identity.device.credential.shown();
        let mut shown = json!({
            "deviceId": device,
            "etag": twin.etag(),
            "deviceEtag": identity.etag(),
            "tags": twin.tags(),
            "version": twin.version(),
            "status": identity.status(),
            "statusReason": record.status_reason,
            "statusUpdateTime": time(record.status_updated),
            "connectionState": identity.connection_state(),
            "lastActivityTime": time(identity.last_activity),
            "cloudToDeviceMessageCount": identity.queue_length,
            "authenticationType": kind,
            "x509Thumbprint": thumbprints,
            "modelId": model_id.as_deref().unwrap_or_default(),
            "properties": twin.properties_with_metadata(),
        });
        match module {
            Some(module) => shown["moduleId"] = module.into(),
            None => identity.show_scopes(&mut shown),
        }
        Some(shown)
    }
}
