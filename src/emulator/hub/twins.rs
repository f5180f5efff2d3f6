//! Twins of devices: what they report, and how back ends see them.
//!
//! Owns: which device's twin, and what stands beside its properties. Must not know: merging (`twin`), topics, HTTP.
//! Used by: `hub`.

use std::time::SystemTime;

use serde_json::{Value, json};

use super::{DeviceState, Hub, TwinError};
use crate::message;

/// How the hub writes that a device has never been seen.
pub(super) const NEVER: &str = "0001-01-01T00:00:00Z";

impl Hub {
    /// Merges a patch into the device's reported properties, and answers their new version.
    ///
    /// # Errors
    /// [`TwinError`]; nothing has changed then.
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

    /// The twin's `properties` as its device gets them; `None` when there is no such device.
    pub fn twin_properties(&self, device_id: &str) -> Option<Value> {
        self.devices.get(device_id).map(|state| state.twin.properties())
    }

    /// The twin as a back end gets it; `None` when there is no such device.
    pub fn twin(&self, device_id: &str) -> Option<Value> {
        let DeviceState { queue, session, twin, last_activity, .. } = self.devices.get(device_id)?;
        let enabled = self.registry.device(device_id).is_some_and(|(_, enabled)| enabled);
        let state = if session.is_connected() { "Connected" } else { "Disconnected" };
        Some(json!({
            "deviceId": device_id,
            "etag": twin.etag(),
            "version": twin.version(),
            "status": if enabled { "enabled" } else { "disabled" },
            "connectionState": state,
            "lastActivityTime": last_activity.map_or_else(|| NEVER.to_owned(), message::format_time),
            "cloudToDeviceMessageCount": queue.len(),
            "properties": twin.properties(),
        }))
    }
}
