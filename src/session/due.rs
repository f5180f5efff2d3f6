//! When the token of a connection must be renewed.
//!
//! Owns: from when on its life counts. Must not know: how it is renewed.

use std::time::{Duration, SystemTime};

use tokio::time::{Instant, sleep_until};

use super::signin::{Renewal, SignIn};
use super::terms::Terms;

/// The moment before a sign-in is made: its life counts from there.
pub(super) struct SignInStart {
    began: Instant,
    /// That moment by the clock.
    began_at: SystemTime,
}

impl SignInStart {
    pub(super) fn now(terms: &Terms) -> Self {
        Self { began: Instant::now(), began_at: (terms.settings.clock)() }
    }

    pub(super) fn due(self, sign_in: &SignIn) -> Option<Due> {
        sign_in.renewal.map(|renewal| Due { renewal, start: self })
    }
}

/// A renewal of the token, counted from a sign-in.
pub(super) struct Due {
    pub(super) renewal: Renewal,
    start: SignInStart,
}

impl Due {
    pub(super) fn time(&self) -> SystemTime {
        self.start.began_at + self.renewal.after
    }
}

/// Waits until the token must be renewed, and returns how long unsettled messages may take. `None` at once if there is
/// no renewal, which disables the arm.
pub(super) async fn reached_renewal(due: Option<&Due>) -> Option<Duration> {
    let Due { renewal, start } = due?;
    sleep_until(start.began + renewal.after).await;
    Some(renewal.drain)
}
