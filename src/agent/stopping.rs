//! Stopping: actions that have begun come to their end, and everything is closed.
//!
//! Owns: the order of a shutdown and its time limits. Must not know: signals.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::desk::Desk;
use super::error::AgentError;
use super::machine::{Machine, on_since};
use super::message::{end, recorded};
use super::requests::Requests;

/// How long actions in flight may go on after a request to stop.
const GRACE: Duration = Duration::from_secs(2);
/// How long they may then take to end after they were told to. Longer than `action` needs for TERM and KILL.
const STOP_LIMIT: Duration = Duration::from_millis(3500);
/// How long the inbox may then take to write everything to disk.
const RECORD_LIMIT: Duration = Duration::from_millis(500);

/// From now on no message is taken, no connection is made, and no action begins.
pub(super) fn begin(desk: &mut Desk) {
    desk.in_hand.stopping = true;
    desk.watch.supervision.stopping();
    desk.sessions.connect_no_more();
    let running = desk.in_hand.entries().filter(|entry| entry.is_running()).count();
    if running == 0 {
        tracing::info!("stopping");
    } else {
        let grace_ms = GRACE.as_millis();
        tracing::info!(actions = running, grace_ms, "stopping: waiting for the actions in flight");
    }
    end::give_back_what_has_not_begun(desk);
}

/// Tells the actions in flight to end, after the grace or when the agent must hurry. Resolves when they should all
/// have ended.
pub(super) async fn cut_off(machine: Arc<Machine>, hurry: &CancellationToken) {
    // The code below treats both reasons alike.
    tokio::select! {
        () = tokio::time::sleep(GRACE) => {}
        () = hurry.cancelled() => {}
    }
    machine.stop.cancel();
    tokio::time::sleep(STOP_LIMIT).await;
}

/// Resolves when the inbox has had enough time.
pub(super) async fn record_limit() {
    tokio::time::sleep(RECORD_LIMIT).await;
}

/// Whether starts are still to be taken back or ends to be recorded, or the hub has not confirmed a completion.
pub(super) fn has_more_to_record(desk: &Desk) -> bool {
    desk.in_hand.awaits_the_inbox() || desk.sessions.awaits_confirmation()
}

/// The time is over. Says so, if the inbox has not written everything.
pub(super) fn gave_up_waiting(desk: &Desk) {
    if desk.in_hand.awaits_the_inbox() {
        tracing::warn!(
            "stopped before the inbox had everything on disk: the hub sends the missing messages again"
        );
    }
}

/// Writes what is left, closes everything, and puts the pins into their `on_exit` state.
pub(super) async fn close(mut desk: Desk, mut requests: Requests) -> Result<(), AgentError> {
    let now = desk.now();
    desk.inbox.submit(on_since(desk.machine.actions.pins_on_after_exit(), now));
    for answer in desk.inbox.close().await {
        recorded::recorded(&mut desk, &mut requests, answer);
    }
    let Desk { machine, sessions, in_hand, .. } = desk;
    end::give_back_all(in_hand);
    let Some(Machine { actions, .. }) = Arc::into_inner(machine) else {
        sessions.close().await;
        return Err(AgentError::Broken("an action is still running at the end".to_owned()));
    };
    let (pins, ()) = tokio::join!(actions.close(), sessions.close());
    Ok(pins?)
}
