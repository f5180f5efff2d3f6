//! The emulator's clock as tests move it: by how much it differs from the real one.
//!
//! Owns: the offset, its bounds, and its form as text. Must not know: the hub, timers, HTTP.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::message::{excerpt, format_time, parse_time};

/// The clock can be moved to times before the year 9999, because times in JSON have four digits for the year. It cannot
/// be moved to times before 1970.
const LATEST: Duration = Duration::from_secs(253_370_764_800);

/// By how much the emulator's clock is ahead of the real one, or behind it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ClockOffset {
    /// False if `by` is zero.
    is_behind: bool,
    by: Duration,
}

/// How to set the clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClockSetting {
    /// To this time. From then on it runs as the real one does.
    At(SystemTime),
    /// To this offset from the real clock.
    Offset(ClockOffset),
    /// Forward by this duration.
    Advance(Duration),
}

/// Why the clock was not moved.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ClockError {
    /// The text is no setting.
    #[error(
        "\"{0}\" is neither a time, such as 2030-01-01T00:00:00Z, nor an offset from the real clock, such as +48h or -1h"
    )]
    Setting(String),
    /// The text is no duration.
    #[error("\"{0}\" is not a duration: use a number with a unit, such as 48h or 90s")]
    Advance(String),
    /// The time would be out of bounds.
    #[error("the emulator's clock cannot be set to that time: choose one from 1970 to 9998")]
    OutOfBounds,
}

impl ClockOffset {
    /// The emulator's time at a real time. A time that the system cannot express stays as it is.
    pub fn of(self, real: SystemTime) -> SystemTime {
        let moved = if self.is_behind { real.checked_sub(self.by) } else { real.checked_add(self.by) };
        moved.unwrap_or(real)
    }

    /// Whether the emulator's clock is the real one.
    pub fn is_zero(self) -> bool {
        self.by.is_zero()
    }

    /// Milliseconds that the emulator's clock is ahead; negative if it is behind.
    pub fn as_millis(self) -> i64 {
        let millis = i64::try_from(self.by.as_millis()).unwrap_or(i64::MAX);
        if self.is_behind { -millis } else { millis }
    }

    fn between(real: SystemTime, moved: SystemTime) -> Self {
        match moved.duration_since(real) {
            Ok(by) => Self { is_behind: false, by },
            Err(earlier) => Self { is_behind: true, by: earlier.duration() },
        }
    }
}

impl ClockSetting {
    /// A setting that goes forward, from text such as `48h`.
    ///
    /// # Errors
    /// [`ClockError::Advance`].
    pub fn advance(text: &str) -> Result<Self, ClockError> {
        let wrong = |_| ClockError::Advance(excerpt(text));
        humantime::parse_duration(text).map(Self::Advance).map_err(wrong)
    }

    /// The offset after this setting.
    ///
    /// # Errors
    /// [`ClockError::OutOfBounds`].
    pub(super) fn offset(self, present: ClockOffset, real: SystemTime) -> Result<ClockOffset, ClockError> {
        let moved = match self {
            Self::At(time) => Some(time),
            Self::Offset(offset) if offset.is_behind => real.checked_sub(offset.by),
            Self::Offset(offset) => real.checked_add(offset.by),
            Self::Advance(by) => present.of(real).checked_add(by),
        };
        let is_allowed = |time: &SystemTime| (UNIX_EPOCH..UNIX_EPOCH + LATEST).contains(time);
        let moved = moved.filter(is_allowed).ok_or(ClockError::OutOfBounds)?;
        Ok(ClockOffset::between(real, moved))
    }
}

impl FromStr for ClockOffset {
    type Err = ClockError;

    /// Reads `+48h` or `-1h`.
    fn from_str(text: &str) -> Result<Self, ClockError> {
        let wrong = || ClockError::Setting(excerpt(text));
        let (is_behind, duration) = match text.split_at_checked(1) {
            Some(("+", duration)) => (false, duration),
            Some(("-", duration)) => (true, duration),
            _ => return Err(wrong()),
        };
        let by = humantime::parse_duration(duration).map_err(|_| wrong())?;
        Ok(Self { is_behind: is_behind && !by.is_zero(), by })
    }
}

impl FromStr for ClockSetting {
    type Err = ClockError;

    /// Reads a time in RFC 3339, or an offset from the real clock.
    fn from_str(text: &str) -> Result<Self, ClockError> {
        match parse_time(text) {
            Some(time) => Ok(Self::At(time)),
            None => text.parse().map(Self::Offset),
        }
    }
}

impl fmt::Display for ClockOffset {
    /// In milliseconds, without spaces: `+2days`, `-1h30m`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let by = Duration::from_millis(self.as_millis().unsigned_abs());
        let by = humantime::format_duration(by).to_string().replace(' ', "");
        write!(f, "{}{by}", if self.is_behind { '-' } else { '+' })
    }
}

impl fmt::Display for ClockSetting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::At(time) => f.write_str(&format_time(*time)),
            Self::Offset(offset) => offset.fmt(f),
            Self::Advance(by) => humantime::format_duration(*by).fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DAY: Duration = Duration::from_secs(24 * 60 * 60);

    fn setting(text: &str) -> Result<ClockSetting, ClockError> {
        text.parse()
    }

    #[test]
    fn a_setting_is_a_time_or_an_offset_and_comes_out_as_text_again() {
        let real = UNIX_EPOCH + 1_000 * DAY;
        let set = |text: &str| {
            setting(text).expect("valid").offset(ClockOffset::default(), real).expect("in bounds")
        };
        assert_eq!(set("+48h").of(real), real + 2 * DAY);
        assert_eq!(set("-1h").of(real), real - DAY / 24);
        assert_eq!(set("1970-01-03T00:00:00Z").of(real), UNIX_EPOCH + 2 * DAY);
        assert_eq!(set("1970-01-01T00:00:01").as_millis(), -86_399_999_000);
        for (text, shown) in [("+48h", "+2days"), ("-90m", "-1h30m"), ("+0s", "+0s"), ("-0s", "+0s")] {
            assert_eq!(set(text).to_string(), shown);
            assert_eq!(shown.parse::<ClockOffset>(), Ok(set(text)));
        }
        assert!(set("-0s").is_zero() && !set("-1ms").is_zero());
    }

    #[test]
    fn the_clock_goes_forward_from_where_it_is() {
        let real = UNIX_EPOCH + 1_000 * DAY;
        let back = setting("-24h").expect("valid").offset(ClockOffset::default(), real).expect("in bounds");
        let on = ClockSetting::advance("36h").expect("valid").offset(back, real).expect("in bounds");
        assert_eq!(on.to_string(), "+12h");
    }

    #[test]
    fn other_texts_and_times_out_of_bounds_are_refused_with_a_sentence() {
        for text in ["", "48h", "+", "-x", "+48", "2030-13-01T00:00:00Z", "now", "+1h\u{7}", "é"] {
            let said = setting(text).expect_err(text).to_string();
            assert!(said.contains("is neither a time") && !said.contains('\u{7}'), "{said}");
        }
        assert!(matches!(ClockSetting::advance("-1h"), Err(ClockError::Advance(_))));
        let real = UNIX_EPOCH + 1_000 * DAY;
        for text in ["-1000days", "-9000000years", "+8100years", "+500000000000years", "9999-12-31T00:00:00Z"]
        {
            let Ok(setting) = setting(text) else { continue };
            let offset = setting.offset(ClockOffset::default(), real);
            assert_eq!(offset.is_err(), text != "-1000days", "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_a_setting_or_refused_without_a_panic(text in "[+-]?[0-9a-zT:. -]{0,30}|.{0,30}") {
            if let Ok(setting) = setting(&text) {
                let _offset = setting.offset(ClockOffset::default(), UNIX_EPOCH);
                let _shown = setting.to_string();
            }
        }
    }
}
