//! A link that a back end attaches and on which nothing ever comes: news of uploaded files.
//!
//! Owns: keeping it attached. Must not know: files. The emulator takes no uploads. But Node closes its whole connection
//! when this link is refused.

use fe2o3_amqp::Sender;

/// Keeps the link until the client ends it.
pub(super) async fn wait(mut link: Sender) {
    let reason = link.on_detach().await;
    tracing::debug!(%reason, "a link for file notifications ended");
}
