//! Changes of desired properties that are sent to a device.
//!
//! Owns: their topic. Must not know: merging, who wrote the changes.
//! Source: wire reference 1.7.
//!
//! Changes are sent at QoS 0, like answers and methods, whatever QoS was granted. This is a choice: a device that
//! misses a change sees that by `$version`.

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};

use super::codec::{Packet, Publish, QoS};
use super::{Connection, End};

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<S> {
    /// Sends the changes that the device has not received yet.
    pub(super) fn tell_desired(&mut self) -> Result<(), End> {
        loop {
            let next = self.hub.with(|hub, _| hub.next_desired_change(&self.device_id, self.id));
            let Some(change) = next else { return Ok(()) };
            let (device_id, version) = (&self.device_id, change.version);
            tracing::debug!(device_id, version, "sent a device its desired properties");
            let topic = format!("$iothub/twin/PATCH/properties/desired/?$version={version}");
            let body = Bytes::from(change.patch.to_string());
            self.push(&Packet::Publish(Publish::from_bytes(topic, QoS::AtMostOnce, body)))?;
        }
    }
}
