//! How long a run takes and still takes, and what share of the hub's daily quota it uses.
//!
//! Owns: the limits of each tier. Must not know: what is sent. The time is an argument.
//!
//! Source: azure-docs, iot-hub-devguide-quotas-throttling, and its table of tiers (2026).

use std::time::Duration;

use tokio::time::Instant;

/// The quota counts pieces of this size. For the Free tier they are 512 bytes.
const PIECE: usize = 4096;
const PIECE_OF_FREE: usize = 512;

/// A tier of IoT Hub that has C2D messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tier {
    Free,
    S1,
    S2,
    S3,
}

/// What a run will be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Estimate {
    /// How many messages.
    pub(crate) messages: usize,
    /// Messages a minute.
    pub(crate) per_minute: f64,
    /// How long they take at that rate.
    pub(crate) time: Duration,
    /// The share of what the hub takes in a day; 1 is all of it.
    pub(crate) quota: f64,
}

/// How fast a run goes at present: as fast as its pace allows, or slower if the hub's answers or the disk are slow.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PresentRate {
    /// Messages a minute that the pace allows.
    allowed: f64,
    /// Since when it allows them; later than now while the hub is left alone.
    since: Instant,
    /// How many have ended since then.
    ended: usize,
}

impl PresentRate {
    pub(crate) fn new(allowed: f64, since: Instant) -> Self {
        Self { allowed, since, ended: 0 }
    }

    /// The pace allows so many messages a minute from `since` on. Returns whether that is news.
    pub(crate) fn paced(&mut self, allowed: f64, since: Instant) -> bool {
        let is_news = allowed != self.allowed;
        // What was measured at another rate says nothing of this one.
        if is_news {
            *self = Self::new(allowed, since);
        }
        is_news
    }

    /// One more message has ended.
    pub(crate) fn one_more(&mut self) {
        self.ended += 1;
    }

    /// Messages a minute.
    pub(crate) fn per_minute(&self, now: Instant) -> f64 {
        let elapsed = now.saturating_duration_since(self.since).as_secs_f64();
        // The first message leaves at once, and says nothing of the rate.
        match self.ended {
            0 | 1 => self.allowed,
            ended => self.allowed.min(ended as f64 * 60.0 / elapsed.max(0.001)),
        }
    }

    /// How long `messages` take from now on.
    pub(crate) fn time_for(&self, messages: usize, now: Instant) -> Duration {
        let sending = messages as f64 * 60.0 / self.per_minute(now);
        let sending = Duration::try_from_secs_f64(sending).unwrap_or(Duration::MAX);
        sending.saturating_add(self.since.saturating_duration_since(now))
    }
}

impl Tier {
    /// C2D messages that a hub takes in a minute, for each of its units.
    pub(crate) fn per_minute(self) -> f64 {
        match self {
            Self::Free | Self::S1 | Self::S2 => 100.0,
            Self::S3 => 5_000.0,
        }
    }

    /// Calls of methods that a hub with so many units takes in a minute, if a call has `bytes` of payload. They are
    /// metered in pieces of 4 KiB: 160, 480 and 24,576 KiB a second for each unit.
    pub(crate) fn methods_per_minute(self, units: u32, bytes: usize) -> f64 {
        let a_second = match self {
            Self::Free | Self::S1 => 40.0,
            Self::S2 => 120.0,
            Self::S3 => 6_144.0,
        };
        a_second * 60.0 * f64::from(units) / bytes.div_ceil(PIECE).max(1) as f64
    }

    /// Changes of twins that a hub with so many units takes in a minute.
    pub(crate) fn twin_updates_per_minute(self, units: u32) -> f64 {
        let units = f64::from(units);
        60.0 * match self {
            Self::Free | Self::S1 => 50.0,
            Self::S2 => (5.0 * units).max(50.0),
            Self::S3 => 250.0 * units,
        }
    }

    /// Pieces that a hub takes in a day, for each of its units.
    fn daily(self) -> f64 {
        match self {
            Self::Free => 8_000.0,
            Self::S1 => 400_000.0,
            Self::S2 => 6_000_000.0,
            Self::S3 => 300_000_000.0,
        }
    }

    fn pieces(self, size: usize) -> usize {
        size.div_ceil(if self == Self::Free { PIECE_OF_FREE } else { PIECE }).max(1)
    }
}

impl Estimate {
    /// For messages of these sizes in bytes, at `per_minute`, to a hub with so many units of a tier.
    pub(crate) fn new(sizes: impl Iterator<Item = usize>, per_minute: f64, tier: Tier, units: u32) -> Self {
        let (messages, pieces) =
            sizes.fold((0, 0), |(count, pieces), size| (count + 1, pieces + tier.pieces(size)));
        let seconds = messages as f64 * 60.0 / per_minute;
        let time = Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX);
        let quota = pieces as f64 / (tier.daily() * f64::from(units));
        Self { messages, per_minute, time, quota }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_thousand_devices_take_as_long_as_the_hub_says() {
        let of = |tier: Tier, units: u32| {
            Estimate::new(std::iter::repeat_n(100, 10_000), tier.per_minute() * f64::from(units), tier, units)
        };
        assert_eq!(of(Tier::S1, 1).time, Duration::from_secs(100 * 60));
        assert_eq!(of(Tier::S3, 1).time, Duration::from_secs(2 * 60));
        assert_eq!(of(Tier::S1, 1).quota, 0.025);
        assert_eq!(of(Tier::S1, 2).quota, 0.0125);
        assert!(of(Tier::Free, 1).quota > 1.0);
    }

    #[test]
    fn the_time_that_is_left_follows_the_pace_and_what_the_hub_makes_of_it() {
        let begin = Instant::now();
        let after = |seconds| begin + Duration::from_secs(seconds);
        let mut rate = PresentRate::new(600.0, begin);
        assert_eq!(rate.time_for(100, begin), Duration::from_secs(10));
        (0..100).for_each(|_| rate.one_more());
        assert_eq!(rate.time_for(100, after(10)), Duration::from_secs(10));
        // The hub throttles at 10 s, and is left alone for 20 s.
        assert!(rate.paced(300.0, after(30)) && !rate.paced(300.0, after(31)));
        assert_eq!(rate.time_for(100, after(10)), Duration::from_secs(40));
        assert_eq!(rate.time_for(100, after(29)), Duration::from_secs(21));
        (0..50).for_each(|_| rate.one_more());
        assert_eq!(rate.time_for(50, after(40)), Duration::from_secs(10));
        // It takes fewer than the pace allows.
        assert_eq!(
            (rate.per_minute(after(50)), rate.time_for(50, after(50))),
            (150.0, Duration::from_secs(20))
        );
        assert!(rate.paced(360.0, after(50)));
        assert_eq!(rate.time_for(60, after(50)), Duration::from_secs(10));
    }

    #[test]
    fn methods_and_twins_have_rates_of_their_own() {
        assert_eq!(Tier::S1.methods_per_minute(2, 4096), 4_800.0);
        assert_eq!(Tier::S1.methods_per_minute(2, 4097), 2_400.0);
        assert_eq!(Tier::S1.twin_updates_per_minute(3), 3_000.0);
        assert_eq!(Tier::S2.twin_updates_per_minute(20), 6_000.0);
        assert_eq!(Tier::S3.twin_updates_per_minute(2), 30_000.0);
    }

    #[test]
    fn a_large_message_counts_more_than_once() {
        let of = |size, tier| Estimate::new(std::iter::once(size), 100.0, tier, 1).quota;
        assert_eq!(of(4096, Tier::S1), 1.0 / 400_000.0);
        assert_eq!(of(4097, Tier::S1), 2.0 / 400_000.0);
        assert_eq!(of(0, Tier::Free), 1.0 / 8_000.0);
        assert_eq!(of(513, Tier::Free), 2.0 / 8_000.0);
    }
}
