//! The end of a device's link.
//!
//! Owns: how long a client may take to answer, the reason that a device gets.
//! Must not know: what a link is for.

use std::time::Duration;

use fe2o3_amqp::Sender;
use fe2o3_amqp::types::definitions::{Error, LinkError};
use tokio::time::timeout;

use super::condition::LinkRefusal;
use crate::emulator::shared::SharedHub;

/// How long to wait for one answer of the client: an attach, a detach, or the outcome of a reply. If the client takes
/// longer, it loses the link.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Ends the link because another connection of the device has replaced its own. Source: wire reference 2.8. If the device
/// has no connection, then the link's own has only ended: the goodbye reaches no client, and the log says so.
pub(super) async fn steal(link: Sender, hub: &SharedHub, device_id: &str) {
    if hub.with(|hub, _| hub.is_connected(device_id)) {
        tracing::info!(device_id, "a newer connection of the same device replaced it");
    } else {
        tracing::debug!(device_id, "a device's connection ended before its links");
    }
    let refusal = LinkRefusal::new(LinkError::Stolen, "a newer connection of the device has this link now");
    goodbye(link, device_id, &refusal).await;
}

/// Ends a device's link with the reason.
pub(super) async fn goodbye(link: Sender, device_id: &str, refusal: &LinkRefusal) {
    match timeout(ANSWER_TIMEOUT, link.close_with_error(Error::from(refusal))).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(device_id, %error, "a link or session did not close cleanly"),
        Err(_) => tracing::debug!(device_id, "a device did not answer the close of its link"),
    }
}
