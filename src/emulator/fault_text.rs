//! How faults are written, those of the hub and those of the provisioning service: `[TARGET:]NAME[=VALUE]`.
//!
//! Owns: the parts of the text, and what counts and times may be. Must not know: which faults exist.

use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

use crate::message::excerpt;

/// The highest count that a fault may have.
pub(super) const MAX_COUNT: u32 = 1_000_000;

/// Why the value of a fault is not valid.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FaultValueError {
    /// The fault does not allow this value.
    #[error("\"{value}\" is not a value for the fault {name}: {expected}")]
    Value {
        /// The fault.
        name: &'static str,
        /// The value that was given.
        value: String,
        /// The values that the fault allows.
        expected: &'static str,
    },
    /// The text is `NAME=`, without a value: most likely a mistake.
    #[error("there is no value after \"{0}=\": give one, or remove the equals sign")]
    Forgotten(String),
}

/// Target, name and value of a fault. An empty value means no value. A target may have a colon and a fault has none, so
/// the last colon separates them.
///
/// # Errors
/// That of the name, or [`FaultValueError::Forgotten`].
pub(super) fn parts<N, E>(text: &str) -> Result<(Option<String>, N, &str), E>
where
    N: FromStr<Err = E>,
    E: From<FaultValueError>,
{
    let (target, fault) = match text.rsplit_once(':') {
        Some((target, fault)) => (Some(target.to_owned()), fault),
        None => (None, text),
    };
    match fault.split_once('=') {
        Some((name, "")) => {
            name.parse::<N>()?;
            Err(FaultValueError::Forgotten(name.to_owned()).into())
        }
        Some((name, value)) => Ok((target, name.parse::<N>()?, value)),
        None => Ok((target, fault.parse::<N>()?, "")),
    }
}

/// The value of a fault.
#[derive(Clone, Copy)]
pub(super) struct FaultValue<'a> {
    pub(super) name: &'static str,
    /// Empty without a value.
    pub(super) text: &'a str,
}

impl FaultValue<'_> {
    pub(super) fn refused(self, expected: &'static str) -> FaultValueError {
        FaultValueError::Value { name: self.name, value: excerpt(self.text), expected }
    }

    pub(super) fn none(self) -> Result<(), FaultValueError> {
        if self.text.is_empty() { Ok(()) } else { Err(self.refused("it takes no value")) }
    }

    pub(super) fn number(
        self,
        range: RangeInclusive<u32>,
        expected: &'static str,
    ) -> Result<u32, FaultValueError> {
        let number = self.text.parse().ok().filter(|number| range.contains(number));
        number.ok_or_else(|| self.refused(expected))
    }

    pub(super) fn count(self) -> Result<u32, FaultValueError> {
        self.number(1..=MAX_COUNT, "give a number from 1 to 1000000")
    }

    /// A count, or `None` for "always".
    pub(super) fn count_if_any(self) -> Result<Option<u32>, FaultValueError> {
        if self.text.is_empty() { Ok(None) } else { self.count().map(Some) }
    }

    pub(super) fn time(self, most: Duration, expected: &'static str) -> Result<Duration, FaultValueError> {
        let time = humantime::parse_duration(self.text).ok().filter(|time| *time <= most);
        time.ok_or_else(|| self.refused(expected))
    }
}
