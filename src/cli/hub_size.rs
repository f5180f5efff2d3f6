//! The size of a hub and the rate of a run, as arguments.
//!
//! Owns: these words. Must not know: what a tier allows.

use clap::ValueEnum;

use crate::fleet::Tier;

/// More than a hub takes in a year.
const MOST_PER_MINUTE: f64 = 10_000_000.0;

/// A tier on the command line.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum TierArg {
    Free,
    S1,
    S2,
    S3,
}

impl From<TierArg> for Tier {
    fn from(tier: TierArg) -> Self {
        match tier {
            TierArg::Free => Self::Free,
            TierArg::S1 => Self::S1,
            TierArg::S2 => Self::S2,
            TierArg::S3 => Self::S3,
        }
    }
}

/// Messages or calls a minute.
pub(super) fn rate(text: &str) -> Result<f64, String> {
    let wrong = || "use a number for a minute or a second, such as 100/min or 5/s".to_owned();
    let (number, unit) = text.split_once('/').ok_or_else(wrong)?;
    let number: f64 = number.trim().parse().map_err(|_| wrong())?;
    let per_minute = match unit.trim() {
        "s" => number * 60.0,
        "min" | "m" => number,
        _ => return Err(wrong()),
    };
    // One a day is slow enough.
    if (1.0 / 1440.0..=MOST_PER_MINUTE).contains(&per_minute) { Ok(per_minute) } else { Err(wrong()) }
}
