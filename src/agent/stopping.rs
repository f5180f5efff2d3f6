//! Stopping: actions that have begun come to their end, and everything is closed.
//!
//! Owns: the order of a shutdown and its time limits. Must not know: signals.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::message::in_hand::Phase;
use super::{Agent, AgentError, Machine, Next};

/// How long actions in flight may go on after a request to stop.
const GRACE: Duration = Duration::from_secs(2);
/// How long they may then take to end after they were told to. Longer than `action` needs for TERM and KILL.
const STOP_LIMIT: Duration = Duration::from_millis(3500);
/// How long the inbox may then take to write everything to disk.
const RECORD_LIMIT: Duration = Duration::from_millis(500);

impl Agent {
    /// Lets everything that has begun come to its end: first actions, then their records, then their PUBACKs.
    pub(super) async fn wind_down(&mut self, hurry: &CancellationToken) -> Result<(), AgentError> {
        self.stopping = true;
        self.supervision.stopping();
        self.sessions.connect_no_more();
        let running = self.hand.entries().filter(|entry| entry.phase == Phase::Running).count();
        if running == 0 {
            tracing::info!("stopping");
        } else {
            let grace_ms = GRACE.as_millis();
            tracing::info!(actions = running, grace_ms, "stopping: waiting for the actions in flight");
        }
        self.leave_what_has_not_begun();
        let machine = Arc::clone(&self.machine);
        let mut cut_off = pin!(async {
            // The code below treats both reasons alike.
            tokio::select! {
                () = tokio::time::sleep(GRACE) => {}
                () = hurry.cancelled() => {}
            }
            machine.stop.cancel();
            tokio::time::sleep(STOP_LIMIT).await;
        });
        // The agent does not wait for a pause between attempts, because its message has been left.
        while self.hand.entries().any(|entry| entry.phase == Phase::Running) {
            if matches!(self.step(&mut cut_off).await?, Next::Stop) {
                return Err(AgentError::Broken("an action did not end".to_owned()));
            }
        }
        // Waits for starts to be taken back and ends to be recorded, then for confirmation that the hub has the
        // completions.
        let mut waited_enough = pin!(tokio::time::sleep(RECORD_LIMIT));
        while self.hand.awaits_the_inbox() || self.sessions.awaits_confirmation() {
            if matches!(self.step(&mut waited_enough).await?, Next::Go) {
                continue;
            }
            if self.hand.awaits_the_inbox() {
                tracing::warn!(
                    "stopped before the inbox had everything on disk: the hub sends the missing messages \
                     again"
                );
            }
            break;
        }
        Ok(())
    }

    /// Writes what is left, closes everything, and puts the pins into their `on_exit` state.
    pub(super) async fn close(mut self) -> Result<(), AgentError> {
        self.submit_pins(self.machine.actions.pins_on_after_exit());
        for answer in self.inbox.close().await {
            self.answer(answer);
        }
        let Self { machine, sessions, running, hand, .. } = self;
        drop(running);
        hand.leave_all();
        let Some(Machine { actions, .. }) = Arc::into_inner(machine) else {
            sessions.close().await;
            return Err(AgentError::Broken("an action is still running at the end".to_owned()));
        };
        let (pins, ()) = tokio::join!(actions.close(), sessions.close());
        Ok(pins?)
    }
}
