//! Changes of desired properties on their way to a device.
//!
//! Owns: their topic. Must not know: merging, who wrote them.
//! Source: wire reference 1.7.
//!
//! QoS 0, like answers and methods, whatever was granted, is a choice: who misses a change sees that by `$version`.

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};

use super::codec::{Packet, Publish, QoS};
use super::{Connection, End};

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<S> {
    /// Sends what the device has not heard of yet.
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
