//! Throttling as an IoT Hub of a size does it: so much of each kind in a minute.
//!
//! Owns: the sizes of hubs, what they allow, and what is left of it. Must not know: who asks, protocols.
//!
//! Source of the rates: azure-docs, "IoT Hub quotas and throttling". The shape is a choice, because the documents only
//! say that bursts pass for a while: a minute's worth may come at once, and comes back evenly. A real hub delays requests
//! before it refuses them; this one does not delay. The daily quota is not counted.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use crate::message::excerpt;

/// Bytes of a method's payload that count as one call. Source: the same page, "throttling meter size".
const METER: usize = 4 * 1024;
/// The time for which the rates are.
const MINUTE: Duration = Duration::from_secs(60);

/// The tier of a hub.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tier {
    /// Free: one unit, as S1.
    Free,
    /// S1.
    S1,
    /// S2, which allows as many C2D messages as S1.
    S2,
    /// S3.
    S3,
}

/// Each tier, its word, and the most units that a hub of it has. Source of the units: the same page.
const TIERS: [(Tier, &str, u32); 4] =
    [(Tier::Free, "free", 1), (Tier::S1, "s1", 200), (Tier::S2, "s2", 200), (Tier::S3, "s3", 10)];

/// The size of a hub.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HubSize {
    tier: Tier,
    units: u32,
}

/// Why there is no such hub.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HubSizeError {
    /// The tier does not exist.
    #[error("\"{0}\" is not a tier: use free, s1, s2 or s3")]
    Tier(String),
    /// A hub of the tier has not so many units.
    #[error("a hub of the tier {tier} has 1 to {most} units, not {units}: change --units")]
    Units {
        /// The tier.
        tier: &'static str,
        /// The most units.
        most: u32,
        /// What was given.
        units: u32,
    },
}

/// What is counted by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Metered {
    /// A C2D message of a back end.
    C2dSend,
    /// A query for twins.
    Query,
    /// A request to the registry of devices. One with many devices counts once, which is a choice.
    Registry,
    /// A write of a twin, by a back end or by its device.
    TwinUpdate,
    /// A direct method.
    Method,
}

/// A request came too soon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the hub throttles {what}: its tier allows {per_minute} a minute", what = .kind.words())]
pub struct TooSoon {
    kind: Metered,
    per_minute: u32,
    /// Whole seconds until there is room for it; at least one.
    pub retry_after: u32,
}

/// What is left of each kind.
#[derive(Debug, Default)]
pub(super) struct Throttle {
    /// `None` means that nothing is throttled.
    size: Option<HubSize>,
    buckets: BTreeMap<Metered, Bucket>,
}

/// What is left of a minute's worth, as the part of the minute that it stands for.
#[derive(Debug)]
struct Bucket {
    left: Duration,
    since: SystemTime,
}

impl FromStr for Tier {
    type Err = HubSizeError;

    fn from_str(text: &str) -> Result<Self, HubSizeError> {
        let found = TIERS.iter().find(|(_, word, _)| word.eq_ignore_ascii_case(text));
        found.map(|(tier, ..)| *tier).ok_or_else(|| HubSizeError::Tier(excerpt(text)))
    }
}

impl HubSize {
    /// A hub of a tier.
    ///
    /// # Errors
    /// [`HubSizeError::Units`].
    pub fn new(tier: Tier, units: u32) -> Result<Self, HubSizeError> {
        let found = TIERS.iter().find(|(own, ..)| *own == tier);
        let (word, most) = found.map_or(("", 0), |(_, word, most)| (*word, *most));
        if (1..=most).contains(&units) {
            return Ok(Self { tier, units });
        }
        Err(HubSizeError::Units { tier: word, most, units })
    }

    /// How many of a kind a minute allows.
    fn per_minute(self, kind: Metered) -> u32 {
        let units = self.units;
        let is_large = self.tier == Tier::S3;
        match kind {
            Metered::C2dSend | Metered::Registry => units * if is_large { 5_000 } else { 100 },
            Metered::Query => units * if is_large { 1_000 } else { 20 },
            Metered::TwinUpdate => match self.tier {
                Tier::Free | Tier::S1 => 50 * 60,
                Tier::S2 => (5 * units).max(50) * 60,
                Tier::S3 => 250 * units * 60,
            },
            // 160 KB, 480 KB and 24 MB in a second.
            Metered::Method => {
                let in_second = match self.tier {
                    Tier::Free | Tier::S1 => 40,
                    Tier::S2 => 120,
                    Tier::S3 => 6_000,
                };
                in_second * units * 60
            }
        }
    }
}

impl Metered {
    fn words(self) -> &'static str {
        match self {
            Self::C2dSend => "C2D messages",
            Self::Query => "queries",
            Self::Registry => "registry operations",
            Self::TwinUpdate => "twin updates",
            Self::Method => "direct methods",
        }
    }
}

impl Throttle {
    /// From now on, what a hub of this size allows.
    pub(super) fn set(&mut self, size: HubSize) {
        *self = Self { size: Some(size), buckets: BTreeMap::new() };
    }

    /// Takes one of a kind, or as many as a method with this payload counts for.
    ///
    /// # Errors
    /// [`TooSoon`]; in this case nothing was taken.
    pub(super) fn take(&mut self, kind: Metered, bytes: usize, now: SystemTime) -> Result<(), TooSoon> {
        let Some(size) = self.size else { return Ok(()) };
        let per_minute = size.per_minute(kind);
        let count = match kind {
            Metered::Method => bytes.div_ceil(METER).max(1),
            _ => 1,
        };
        // A method that is larger than a minute's worth takes the whole minute.
        let count = u32::try_from(count).unwrap_or(u32::MAX).min(per_minute);
        let needed = MINUTE * count / per_minute;
        let bucket = self.buckets.entry(kind).or_insert(Bucket { left: MINUTE, since: now });
        // A clock that was set back gives nothing, and takes nothing.
        let passed = now.duration_since(bucket.since).unwrap_or_default();
        *bucket = Bucket { left: bucket.left.saturating_add(passed).min(MINUTE), since: now };
        if let Some(left) = bucket.left.checked_sub(needed) {
            bucket.left = left;
            return Ok(());
        }
        let missing = needed.saturating_sub(bucket.left);
        let retry_after = missing.as_secs() + u64::from(missing.subsec_nanos() > 0);
        Err(TooSoon { kind, per_minute, retry_after: u32::try_from(retry_after).unwrap_or(u32::MAX) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: SystemTime = SystemTime::UNIX_EPOCH;

    fn size(tier: &str, units: u32) -> HubSize {
        HubSize::new(tier.parse().expect("a tier"), units).expect("a size")
    }

    #[test]
    fn each_tier_has_its_rates() {
        let rates = |tier: &str, units| {
            let kinds =
                [Metered::C2dSend, Metered::Query, Metered::Registry, Metered::TwinUpdate, Metered::Method];
            kinds.map(|kind| size(tier, units).per_minute(kind))
        };
        assert_eq!(rates("free", 1), [100, 20, 100, 3_000, 2_400]);
        assert_eq!(rates("S1", 9), [900, 180, 900, 3_000, 21_600]);
        assert_eq!(rates("s2", 20), [2_000, 400, 2_000, 6_000, 144_000]);
        assert_eq!(rates("s3", 2), [10_000, 2_000, 10_000, 30_000, 720_000]);
        for (tier, units, said) in [
            ("free", 2, "a hub of the tier free has 1 to 1 units, not 2: change --units"),
            ("s3", 11, "a hub of the tier s3 has 1 to 10 units, not 11: change --units"),
            ("s1", 0, "a hub of the tier s1 has 1 to 200 units, not 0: change --units"),
        ] {
            let refused = HubSize::new(tier.parse().expect("a tier"), units).expect_err("refused");
            assert_eq!(refused.to_string(), said);
        }
        assert_eq!("b1".parse::<Tier>(), Err(HubSizeError::Tier("b1".to_owned())));
    }

    #[test]
    fn a_minutes_worth_passes_at_once_and_comes_back_evenly() {
        let mut throttle = Throttle::default();
        assert!((0..1_000).all(|_| throttle.take(Metered::Query, 0, NOW).is_ok()), "no size, no limit");
        throttle.set(size("s1", 1));
        let taken = |throttle: &mut Throttle, seconds| {
            let now = NOW + Duration::from_secs(seconds);
            std::iter::from_fn(|| throttle.take(Metered::Query, 0, now).ok()).count()
        };
        assert_eq!(taken(&mut throttle, 0), 20);
        let refused = throttle.take(Metered::Query, 0, NOW).expect_err("throttled");
        assert_eq!(refused.retry_after, 3);
        assert_eq!(refused.to_string(), "the hub throttles queries: its tier allows 20 a minute");
        assert!(throttle.take(Metered::C2dSend, 0, NOW).is_ok(), "each kind is counted by itself");
        assert_eq!(taken(&mut throttle, 2), 0);
        assert_eq!(taken(&mut throttle, 3), 1);
        assert_eq!(taken(&mut throttle, 33), 10);
        assert_eq!(taken(&mut throttle, 10_000), 20, "not more than a minute's worth");
        assert_eq!(taken(&mut throttle, 0), 0, "a clock that was set back gives nothing");
        assert_eq!(taken(&mut throttle, 6), 2);
    }

    #[test]
    fn a_method_counts_by_its_payload() {
        let mut throttle = Throttle::default();
        throttle.set(size("s1", 1));
        // 2,400 a minute: 75 of 128 KiB.
        let calls = std::iter::from_fn(|| throttle.take(Metered::Method, 128 * 1024, NOW).ok()).count();
        assert_eq!(calls, 75);
        let refused = throttle.take(Metered::Method, 1, NOW).expect_err("throttled");
        assert_eq!(refused.retry_after, 1);
    }
}
