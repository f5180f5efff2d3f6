//! Twins of devices: what devices report, what back ends write, and which changes reach the device.
//!
//! Owns: which twin belongs to which device, the fields next to its properties, the changes that wait for a connected
//! device.
//! Must not know: merging (`document`), topics, HTTP.

use std::time::SystemTime;

use serde_json::{Value, json};

use super::device::{DeviceState, MAX_DESIRED_CHANGES};
use super::document::TwinError;
use super::session::{ConnectionId, Subscription};
use super::state::Hub;
use super::twin::{DesiredChange, TwinWrite};
use crate::emulator::identity;
use crate::message;

/// The hub's text for the time of a device that was never active.
pub(super) const NEVER: &str = "0001-01-01T00:00:00Z";

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
        let version = state.twin.patch_reported(patch)?;
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
    ) -> Result<Value, TwinError> {
        let unknown = || TwinError::UnknownDevice(device_id.chars().take(128).collect());
        let state = self.devices.get_mut(device_id).ok_or_else(unknown)?;
        let present = state.twin.etag();
        if etag.is_some_and(|expected| expected != present) {
            return Err(TwinError::Changed { device_id: device_id.to_owned(), etag: present });
        }
        let change = state.twin.write(write)?;
        let listens =
            state.session.is_connected() && state.session.granted(Subscription::DesiredProperties).is_some();
        if let Some(change) = change.filter(|_| listens) {
            if state.desired_changes.len() >= MAX_DESIRED_CHANGES {
                state.desired_changes.pop_front();
                tracing::warn!(device_id, "a device does not read: it misses a change of desired properties");
            }
            state.desired_changes.push_back(change);
        }
        self.version += 1;
        self.twin(device_id).ok_or_else(unknown)
    }

    /// The next change of desired properties that `connection` has not received. Changes from a time when the device
    /// was not connected or not subscribed are not sent: the device gets its twin then. Source: wire reference 1.7.
    pub fn next_desired_change(
        &mut self,
        device_id: &str,
        connection: ConnectionId,
    ) -> Option<DesiredChange> {
        self.current(device_id, connection)?.desired_changes.pop_front()
    }

    /// The twin's `properties` as the device gets them; `None` if the device does not exist.
    pub fn twin_properties(&self, device_id: &str) -> Option<Value> {
        self.devices.get(device_id).map(|state| state.twin.properties())
    }

    /// The twin's tags, which the device does not see; empty if the device does not exist.
    pub fn twin_tags(&self, device_id: &str) -> Value {
        self.devices.get(device_id).map(|state| state.twin.tags().clone()).unwrap_or_default().into()
    }

    /// The twin as a back end gets it; `None` if the device does not exist.
    pub fn twin(&self, device_id: &str) -> Option<Value> {
        let DeviceState { queue, session, twin, last_activity, .. } = self.devices.get(device_id)?;
        let enabled = self.registry.device(device_id).is_some_and(|(_, enabled)| enabled);
        let state = if session.is_connected() { "Connected" } else { "Disconnected" };
        let (device, module) = identity::split(device_id);
        let mut shown = json!({
            "deviceId": device,
            "etag": twin.etag(),
            "tags": twin.tags(),
            "version": twin.version(),
            "status": if enabled { "enabled" } else { "disabled" },
            "connectionState": state,
            "lastActivityTime": last_activity.map_or_else(|| NEVER.to_owned(), message::format_time),
            "cloudToDeviceMessageCount": queue.len(),
            "properties": twin.properties(),
        });
        if let Some(module) = module {
            shown["moduleId"] = module.into();
        }
        Some(shown)
    }
}
