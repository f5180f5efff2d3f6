//! Keeps the jobs of the hub going.
//!
//! Owns: when the hub takes its jobs a step further. Must not know: what a job does, HTTP.

use super::shared::SharedHub;

/// Takes jobs further: when the hub changes, and when the next step is due. It runs for ever. Cancel safe.
pub(super) async fn run(hub: SharedHub) {
    let mut changed = hub.watch();
    loop {
        changed.mark_unchanged();
        let (due, now) = hub.with(|hub, now| (hub.advance_jobs(now), now));
        if due.is_some_and(|due| due <= now) {
            // There is more to do. The other connections get their turn first.
            tokio::task::yield_now().await;
            continue;
        }
        tokio::select! {
            () = hub.reached(due) => {}
            // The hub holds the sender, so this cannot fail.
            _changed = changed.changed() => {}
        }
    }
}
