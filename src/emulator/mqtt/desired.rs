//! Changes of desired properties that are sent to a device.
//!
//! Owns: their topic. Must not know: merging, who wrote the changes.
//! Source: wire reference 1.7.
//!
//! Changes are sent at QoS 0, like answers and methods, whatever QoS was granted. This is a choice: a device that
//! misses a change sees that by `$version`.

use super::codec::{Publish, QoS};
use crate::emulator::hub::ConnectionId;
use crate::emulator::shared::SharedHub;

/// The next change that the device has not received yet.
pub(super) fn next(hub: &SharedHub, device_id: &str, connection: ConnectionId) -> Option<Publish> {
    let change = hub.with(|hub, _| hub.next_desired_change(device_id, connection))?;
    let version = change.version;
    tracing::debug!(device_id, version, "sent a device its desired properties");
    let topic = format!("$iothub/twin/PATCH/properties/desired/?$version={version}");
    Some(Publish::new(topic, QoS::AtMostOnce, change.patch.to_string()))
}
