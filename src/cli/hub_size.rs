//! The size of a hub and the rate of a run, as arguments, and how a rate is shown.
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

/// A rate in the unit that has a digit before the point.
pub(super) fn per_minute_text(per_minute: f64) -> String {
    match per_minute {
        rate if rate >= 9.95 => format!("{rate:.0}/min"),
        rate if rate >= 0.95 => format!("{rate:.1}/min"),
        rate if rate * 60.0 >= 0.95 => format!("{:.1}/h", rate * 60.0),
        rate => format!("{:.1}/day", rate * 60.0 * 24.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_rate_is_not_shown_as_nothing() {
        let shown: Vec<_> =
            [6_000_000.0, 100.0, 9.0, 1.0, 0.5, 1.0 / 60.0, 1.0 / 1440.0].map(per_minute_text).into();
        assert_eq!(shown, ["6000000/min", "100/min", "9.0/min", "1.0/min", "30.0/h", "1.0/h", "1.0/day"]);
    }
}
