//! The limit of an action: it must end at its deadline, or when the agent stops.
//!
//! Owns: which of the two came first. Must not know: processes, pins.

use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// The deadline of one action, and the agent's signal to stop.
pub(super) struct Limit<'a> {
    deadline: Instant,
    stop: &'a CancellationToken,
}

/// Why a step was cut off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cut {
    /// The action has reached its timeout.
    TimedOut,
    /// The agent is stopping.
    Interrupted,
}

impl<'a> Limit<'a> {
    /// The deadline is `timeout` from now.
    pub(super) fn new(timeout: Duration, stop: &'a CancellationToken) -> Self {
        const CENTURY: Duration = Duration::from_secs(100 * 365 * 24 * 3600);
        Self { deadline: Instant::now() + timeout.min(CENTURY), stop }
    }

    /// Whether the action may start another step.
    pub(super) fn check(&self) -> Result<(), Cut> {
        if self.stop.is_cancelled() {
            Err(Cut::Interrupted)
        } else if Instant::now() >= self.deadline {
            Err(Cut::TimedOut)
        } else {
            Ok(())
        }
    }

    /// Resolves when the action must end. Cancel safe.
    pub(super) async fn reached(&self) -> Cut {
        tokio::select! {
            biased;
            () = self.stop.cancelled() => Cut::Interrupted,
            () = tokio::time::sleep_until(self.deadline) => Cut::TimedOut,
        }
    }

    /// When the action must end at the latest.
    pub(super) fn deadline(&self) -> Instant {
        self.deadline
    }
}
