//! Futures of the AMQP crate that are under way, each with the link that it borrows.
//!
//! Owns: waiting for one that may be absent. Must not know: what they send.

use futures_util::future::BoxFuture;

/// Waits for a started future; for ever if there is none. Cancel safe: the next call continues it.
pub(super) async fn until<T>(future: &mut Option<BoxFuture<'static, T>>) -> T {
    match future {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
}
