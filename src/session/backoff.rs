//! How long to wait before the next attempt to connect.
//!
//! Owns: how the delays grow, their limits, and when they start again. Pure: the time that the connection held and the
//! random number are arguments. Must not know: what failed.

use std::time::Duration;

/// The first window, as in docs/src/guides/offline.md.
const FIRST_WINDOW: Duration = Duration::from_secs(1);
/// The widest window.
const WIDEST_WINDOW: Duration = Duration::from_secs(5 * 60);
/// A connection that held this long resets the delays.
pub(super) const STABLE: Duration = Duration::from_secs(60);

/// Exponential backoff with full jitter. Each delay is drawn from zero to a window that doubles from 1 s to 5 min, so
/// that a thousand gateways behind one failed router do not return in the same second.
#[derive(Debug)]
pub(super) struct Backoff {
    window: Duration,
}

impl Backoff {
    /// The first delay will be at most one second.
    pub(super) fn new() -> Self {
        Self { window: FIRST_WINDOW }
    }

    /// The delay before the next attempt. `held` is how long the connection that just ended was signed in (zero when
    /// it never was); `fraction` is a random number from 0 to 1.
    pub(super) fn next_delay(&mut self, held: Duration, fraction: f64) -> Duration {
        if held >= STABLE {
            self.window = FIRST_WINDOW;
        }
        let delay = self.window.mul_f64(fraction.clamp(0.0, 1.0));
        self.window = self.window.saturating_mul(2).min(WIDEST_WINDOW);
        delay
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEVER_SIGNED_IN: Duration = Duration::ZERO;

    fn longest_delays(count: usize) -> Vec<u64> {
        let mut backoff = Backoff::new();
        (0..count).map(|_| backoff.next_delay(NEVER_SIGNED_IN, 1.0).as_secs()).collect()
    }

    #[test]
    fn the_window_doubles_from_one_second_and_stops_at_five_minutes() {
        assert_eq!(longest_delays(11), [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]);
    }

    #[test]
    fn the_delay_lies_anywhere_in_the_window() {
        let mut backoff = Backoff::new();
        assert_eq!(backoff.next_delay(NEVER_SIGNED_IN, 0.0), Duration::ZERO);
        assert_eq!(backoff.next_delay(NEVER_SIGNED_IN, 0.25), Duration::from_millis(500));
    }

    #[test]
    fn a_short_success_does_not_start_over() {
        let mut backoff = Backoff::new();
        backoff.next_delay(NEVER_SIGNED_IN, 1.0);
        assert_eq!(backoff.next_delay(STABLE - Duration::from_millis(1), 1.0), Duration::from_secs(2));
    }

    #[test]
    fn a_stable_connection_starts_over() {
        let mut backoff = Backoff::new();
        for _ in 0..9 {
            backoff.next_delay(NEVER_SIGNED_IN, 1.0);
        }
        assert_eq!(backoff.next_delay(STABLE, 1.0), Duration::from_secs(1));
    }

    #[test]
    fn a_fraction_out_of_range_stays_within_the_window() {
        let mut backoff = Backoff::new();
        assert_eq!(backoff.next_delay(NEVER_SIGNED_IN, 7.0), Duration::from_secs(1));
        assert_eq!(backoff.next_delay(NEVER_SIGNED_IN, -1.0), Duration::ZERO);
    }
}
