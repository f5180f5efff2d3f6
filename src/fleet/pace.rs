//! How fast a run sends.
//!
//! Owns: the rate, and what it learns from a hub that throttles. Must not know: what is sent. The time is an argument.
//!
//! A bucket of tokens, filled at the rate. When the hub throttles, the run waits as long as it is told, and then goes on
//! at half the rate. While the hub takes what it gets, the rate comes back, a tenth of the full one at a time.

use std::time::Duration;

use tokio::time::Instant;

/// How long to wait if the hub does not say it.
const DEFAULT_WAIT: Duration = Duration::from_secs(10);
/// The shortest wait: a hub that says 0 would be asked without a pause.
const MIN_WAIT: Duration = Duration::from_secs(1);
/// The longest wait that is believed.
const MAX_WAIT: Duration = Duration::from_secs(300);
/// How long the hub must have taken everything before the rate rises.
const STEADY: Duration = Duration::from_secs(30);
/// The lowest rate is this part of the full one.
const LOWEST: f64 = 1.0 / 64.0;
/// How much may go at once after a pause: what comes in this time.
const BURST: Duration = Duration::from_secs(1);

const ROUNDING: f64 = 1e-6;

/// The pace of one run.
#[derive(Debug, Clone)]
pub(crate) struct Pace {
    /// Messages a second, as they were asked for.
    full: f64,
    /// Messages a second at present.
    rate: f64,
    tokens: f64,
    filled: Instant,
    /// When the rate last changed.
    changed: Instant,
}

impl Pace {
    /// `per_minute` is more than zero.
    pub(crate) fn new(per_minute: f64, now: Instant) -> Self {
        let full = per_minute / 60.0;
        Self { full, rate: full, tokens: 1.0, filled: now, changed: now }
    }

    /// Messages a minute at present.
    pub(crate) fn per_minute(&self) -> f64 {
        self.rate * 60.0
    }

    /// Whether the hub is left alone now.
    pub(crate) fn waits(&self, now: Instant) -> bool {
        now < self.filled
    }

    /// Takes a token if there is one; else says when there will be.
    pub(crate) fn take(&mut self, now: Instant) -> Result<(), Instant> {
        if now.saturating_duration_since(self.changed) >= STEADY && self.rate < self.full {
            self.rate = (self.rate + self.full / 10.0).min(self.full);
            self.changed = now;
        }
        if self.waits(now) {
            return Err(self.filled);
        }
        let gained = now.saturating_duration_since(self.filled).as_secs_f64() * self.rate;
        let most = (self.rate * BURST.as_secs_f64()).max(1.0);
        self.tokens = (self.tokens + gained).min(most);
        self.filled = now;
        // A sum of parts of a token can be a little less than one.
        if self.tokens > 1.0 - ROUNDING {
            self.tokens = (self.tokens - 1.0).max(0.0);
            return Ok(());
        }
        Err(self.filled + Duration::from_secs_f64((1.0 - self.tokens) / self.rate))
    }

    /// The hub throttles, and wants to be left alone for `wait`. Returns how long the run waits. Refusals of messages
    /// that were on their way together count as one.
    pub(crate) fn throttled(&mut self, wait: Option<Duration>, now: Instant) -> Duration {
        let wait = wait.unwrap_or(DEFAULT_WAIT).clamp(MIN_WAIT, MAX_WAIT);
        if !self.waits(now) {
            self.rate = (self.rate / 2.0).max(self.full * LOWEST);
        }
        self.filled = self.filled.max(now + wait);
        self.changed = self.filled;
        self.tokens = 1.0;
        wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many messages go from `from` on within `time`, if each goes as soon as it may.
    fn sent(pace: &mut Pace, from: Instant, time: Duration) -> usize {
        let mut now = from;
        let mut count = 0;
        while now < from + time {
            match pace.take(now) {
                Ok(()) => count += 1,
                Err(next) => now = next,
            }
        }
        count
    }

    #[test]
    fn no_more_goes_than_the_rate_allows() {
        let begin = Instant::now();
        for per_minute in [1.0, 100.0, 5_000.0, 600_000.0] {
            let mut pace = Pace::new(per_minute, begin);
            let count = sent(&mut pace, begin, Duration::from_secs(60)) as f64;
            assert!((count - per_minute).abs() <= 1.0 + per_minute / 100.0, "{count} of {per_minute}");
        }
    }

    #[test]
    fn after_a_pause_a_burst_is_short() {
        let begin = Instant::now();
        let mut pace = Pace::new(600.0, begin);
        let later = begin + Duration::from_secs(3600);
        assert_eq!(std::iter::from_fn(|| pace.take(later).ok()).count(), 10);
    }

    #[test]
    fn a_hub_that_throttles_is_left_alone_and_then_asked_half_as_often() {
        let begin = Instant::now();
        let mut pace = Pace::new(6_000.0, begin);
        sent(&mut pace, begin, Duration::from_secs(1));
        let now = begin + Duration::from_secs(1);
        assert_eq!(pace.throttled(Some(Duration::from_secs(7)), now), Duration::from_secs(7));
        assert_eq!(pace.throttled(None, now), DEFAULT_WAIT, "one that was on its way, too");
        assert!(pace.per_minute() == 3_000.0, "{}", pace.per_minute());
        let again = now + DEFAULT_WAIT;
        assert_eq!(sent(&mut pace, now, DEFAULT_WAIT), 0);
        let count = sent(&mut pace, again, Duration::from_secs(10));
        assert!((499..=502).contains(&count), "{count}");
        // It comes back.
        sent(&mut pace, again, Duration::from_secs(200));
        assert!(pace.per_minute() == 6_000.0, "{}", pace.per_minute());
    }

    #[test]
    fn a_hub_that_asks_for_no_pause_gets_one() {
        let begin = Instant::now();
        let mut pace = Pace::new(600_000.0, begin);
        assert_eq!(pace.throttled(Some(Duration::ZERO), begin), MIN_WAIT);
        assert_eq!(pace.take(begin), Err(begin + MIN_WAIT));
    }

    #[test]
    fn it_never_stops() {
        let begin = Instant::now();
        let mut pace = Pace::new(100.0, begin);
        let mut now = begin;
        for _ in 0..100 {
            now += pace.throttled(Some(Duration::MAX), now);
        }
        assert!(pace.per_minute() >= 100.0 / 64.0);
        assert!(pace.take(now).is_ok());
    }
}
