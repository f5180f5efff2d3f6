//! Faults of the provisioning service: errors that it makes because a user set them.
//!
//! Owns: which faults exist, their names and values as text, whom they are for, and their counts. Must not know: bodies,
//! protocols.
//!
//! Source: wire reference 12.8. Faults end with the process.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::time::Duration;

use crate::emulator::fault_text::{self, FaultValue, FaultValueError};
use crate::message::excerpt;

/// The longest delay: clients give up after a minute.
const MAX_SLOWNESS: Duration = Duration::from_secs(600);
/// Most registrations that faults are set for.
const MAX_TARGETS: usize = 10_000;

/// The kinds of faults, without values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum DpsFaultName {
    /// `dps-assigning`
    Assigning,
    /// `dps-throttle`
    Throttle,
    /// `dps-error`
    Error,
    /// `dps-refuse`
    Refuse,
    /// `dps-failed`
    Failed,
    /// `dps-disabled`
    Disabled,
    /// `dps-slow`
    Slow,
    /// `dps-move`
    Move,
    /// `dps-html`
    Html,
}

/// Every fault, its name, and how its value is written.
const NAMES: [(DpsFaultName, &str, &str); 9] = [
    (DpsFaultName::Assigning, "dps-assigning", "=N"),
    (DpsFaultName::Throttle, "dps-throttle", "[=N]"),
    (DpsFaultName::Error, "dps-error", "[=N]"),
    (DpsFaultName::Refuse, "dps-refuse", "[=N]"),
    (DpsFaultName::Failed, "dps-failed", "=CODE"),
    (DpsFaultName::Disabled, "dps-disabled", ""),
    (DpsFaultName::Slow, "dps-slow", "=DURATION"),
    (DpsFaultName::Move, "dps-move", ""),
    (DpsFaultName::Html, "dps-html", "[=N]"),
];

/// The beginning of all names.
const PREFIX: &str = "dps-";

/// A fault with its value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DpsFault {
    /// So many questions after the state of a registration are answered with "assigning".
    Assigning(u32),
    /// This many requests are answered with 429; without a count, all.
    Throttle(Option<u32>),
    /// This many requests are answered with 500; without a count, all.
    Error(Option<u32>),
    /// This many requests are answered with 401; without a count, all.
    Refuse(Option<u32>),
    /// Registrations fail with this code.
    Failed(u32),
    /// Registrations end as if the enrolment were disabled.
    Disabled,
    /// Each answer comes this much later.
    Slow(Duration),
    /// The next registration leads to another hub; once.
    Move,
    /// This many answers are a page in HTML, as of a proxy; without a count, all.
    Html(Option<u32>),
}

/// A fault for one registration, or for all: `[REGISTRATION:]NAME[=VALUE]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DpsFaultOrder {
    /// The registration id; `None` means all.
    pub registration_id: Option<String>,
    /// The fault.
    pub fault: DpsFault,
}

/// Why a text is not a fault of the provisioning service.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DpsFaultError {
    /// The fault does not exist.
    #[error("there is no fault \"{0}\" of the provisioning service; there are {list}", list = list())]
    UnknownName(String),
    /// The fault does not allow this value.
    #[error(transparent)]
    Value(#[from] FaultValueError),
    /// There is no provisioning service.
    #[error("there is no provisioning service for the fault {0}: start one with --dps-device or --dps-group")]
    NoService(&'static str),
    /// Too many registrations have faults.
    #[error("{MAX_TARGETS} registrations have faults of their own, which is the most: end some")]
    TooMany,
}

impl DpsFaultName {
    /// The fault's name as text.
    pub fn as_str(self) -> &'static str {
        NAMES.iter().find(|(own, ..)| *own == self).map_or("", |(_, name, _)| name)
    }

    /// Whether a text names a fault of the provisioning service, and not one of a device.
    pub fn is_meant(text: &str) -> bool {
        text.rsplit(':').next().is_some_and(|fault| fault.starts_with(PREFIX))
    }
}

impl FromStr for DpsFaultName {
    type Err = DpsFaultError;

    fn from_str(text: &str) -> Result<Self, DpsFaultError> {
        let found = NAMES.iter().find(|(_, name, _)| *name == text);
        found.map(|(own, ..)| *own).ok_or_else(|| DpsFaultError::UnknownName(excerpt(text)))
    }
}

impl DpsFault {
    /// Makes a fault from its name and its value. An empty value means no value.
    ///
    /// # Errors
    /// [`DpsFaultError::Value`].
    pub fn new(name: DpsFaultName, value: &str) -> Result<Self, DpsFaultError> {
        let value = FaultValue { name: name.as_str(), text: value };
        let plain = |fault| value.none().map(|()| fault);
        let fault = match name {
            DpsFaultName::Assigning => value.count().map(Self::Assigning),
            DpsFaultName::Throttle => value.count_if_any().map(Self::Throttle),
            DpsFaultName::Error => value.count_if_any().map(Self::Error),
            DpsFaultName::Refuse => value.count_if_any().map(Self::Refuse),
            DpsFaultName::Failed => {
                let expected = "give a code of the service, such as 400207 or 400208";
                value.number(400_000..=599_999, expected).map(Self::Failed)
            }
            DpsFaultName::Disabled => plain(Self::Disabled),
            DpsFaultName::Slow => {
                let expected = "give a time with its unit, such as 2s, of at most 10m";
                value.time(MAX_SLOWNESS, expected).map(Self::Slow)
            }
            DpsFaultName::Move => plain(Self::Move),
            DpsFaultName::Html => value.count_if_any().map(Self::Html),
        };
        Ok(fault?)
    }

    /// The kind of this fault.
    pub fn name(self) -> DpsFaultName {
        match self {
            Self::Assigning(_) => DpsFaultName::Assigning,
            Self::Throttle(_) => DpsFaultName::Throttle,
            Self::Error(_) => DpsFaultName::Error,
            Self::Refuse(_) => DpsFaultName::Refuse,
            Self::Failed(_) => DpsFaultName::Failed,
            Self::Disabled => DpsFaultName::Disabled,
            Self::Slow(_) => DpsFaultName::Slow,
            Self::Move => DpsFaultName::Move,
            Self::Html(_) => DpsFaultName::Html,
        }
    }

    /// The fault's value as text. For a count, this is the remaining count.
    pub fn value(self) -> Option<String> {
        match self {
            Self::Assigning(number) | Self::Failed(number) => Some(number.to_string()),
            Self::Throttle(left) | Self::Error(left) | Self::Refuse(left) | Self::Html(left) => {
                left.map(|left| left.to_string())
            }
            Self::Slow(slow) => Some(humantime::format_duration(slow).to_string()),
            Self::Disabled | Self::Move => None,
        }
    }
}

impl FromStr for DpsFaultOrder {
    type Err = DpsFaultError;

    fn from_str(text: &str) -> Result<Self, DpsFaultError> {
        let (registration_id, name, value) = fault_text::parts(text)?;
        Ok(Self { registration_id, fault: DpsFault::new(name, value)? })
    }
}

/// The list of all faults, in the form in which they are written.
fn list() -> String {
    NAMES.map(|(_, name, value)| format!("{name}{value}")).join(", ")
}

/// The faults that are set: those for all, and those of single registrations, which take precedence.
#[derive(Debug, Clone, Default)]
pub(super) struct DpsFaults {
    of_all: BTreeMap<DpsFaultName, DpsFault>,
    of_one: BTreeMap<String, BTreeMap<DpsFaultName, DpsFault>>,
}

impl DpsFaults {
    /// Sets a fault, and replaces one with the same name.
    ///
    /// # Errors
    /// [`DpsFaultError::TooMany`].
    pub(super) fn set(&mut self, order: DpsFaultOrder) -> Result<(), DpsFaultError> {
        let DpsFaultOrder { registration_id, fault } = order;
        let Some(id) = registration_id.map(|id| id.to_ascii_lowercase()) else {
            self.of_all.insert(fault.name(), fault);
            return Ok(());
        };
        if self.of_one.len() >= MAX_TARGETS && !self.of_one.contains_key(&id) {
            return Err(DpsFaultError::TooMany);
        }
        self.of_one.entry(id).or_default().insert(fault.name(), fault);
        Ok(())
    }

    /// Ends a fault, or all; of one registration, or those for all and of each.
    pub(super) fn clear(&mut self, registration_id: Option<&str>, name: Option<DpsFaultName>) {
        let keeps = |own: &DpsFaultName| name.is_some_and(|name| name != *own);
        match registration_id {
            None => {
                self.of_all.retain(|own, _| keeps(own));
                self.of_one.values_mut().for_each(|faults| faults.retain(|own, _| keeps(own)));
            }
            Some(id) => {
                if let Some(faults) = self.of_one.get_mut(&id.to_ascii_lowercase()) {
                    faults.retain(|own, _| keeps(own));
                }
            }
        }
        self.of_one.retain(|_, faults| !faults.is_empty());
    }

    /// All faults, and whom they are for.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Option<&str>, DpsFault)> {
        let of_one = self
            .of_one
            .iter()
            .flat_map(|(id, faults)| faults.values().map(move |fault| (Some(id.as_str()), *fault)));
        self.of_all.values().map(|fault| (None, *fault)).chain(of_one)
    }

    /// The fault of this kind that counts for a registration. It is not used up.
    pub(super) fn get(&self, id: &str, name: DpsFaultName) -> Option<DpsFault> {
        let own = self.of_one.get(&id.to_ascii_lowercase()).and_then(|faults| faults.get(&name));
        own.or_else(|| self.of_all.get(&name)).copied()
    }

    /// Whether the fault applies now. This uses up one of its count.
    pub(super) fn use_up(&mut self, id: &str, name: DpsFaultName) -> bool {
        let id = id.to_ascii_lowercase();
        let is_own = self.of_one.get(&id).is_some_and(|faults| faults.contains_key(&name));
        let faults = match self.of_one.get_mut(&id) {
            Some(faults) if is_own => faults,
            _ => &mut self.of_all,
        };
        match faults.get_mut(&name) {
            None => return false,
            Some(
                DpsFault::Throttle(left)
                | DpsFault::Error(left)
                | DpsFault::Refuse(left)
                | DpsFault::Html(left),
            ) => match left {
                None => return true,
                Some(left) if *left > 1 => {
                    *left -= 1;
                    return true;
                }
                Some(_) => {}
            },
            // These have no count of uses.
            Some(DpsFault::Assigning(_) | DpsFault::Failed(_) | DpsFault::Disabled | DpsFault::Slow(_)) => {
                return true;
            }
            Some(DpsFault::Move) => {}
        }
        faults.remove(&name);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(text: &str) -> DpsFaultOrder {
        text.parse().expect("a fault")
    }

    #[test]
    fn faults_are_read_and_written_alike() {
        for text in [
            "dps-assigning=3",
            "dps-throttle",
            "dps-throttle=2",
            "dps-error=1",
            "dps-refuse",
            "dps-failed=400208",
            "dps-disabled",
            "dps-slow=2s",
            "dps-move",
            "dps-html=1",
        ] {
            let DpsFaultOrder { registration_id, fault } = order(&format!("a:b:{text}"));
            assert_eq!(registration_id.as_deref(), Some("a:b"));
            let value = fault.value().map(|value| format!("={value}")).unwrap_or_default();
            assert_eq!(format!("{}{value}", fault.name().as_str()), text);
            assert!(DpsFaultName::is_meant(text));
        }
        assert!(!DpsFaultName::is_meant("dps-1:throttle"));
        for wrong in [
            "dps-nothing",
            "dps-slow",
            "dps-slow=11m",
            "dps-failed=1",
            "dps-throttle=0",
            "dps-error=",
            "dps-move=1",
        ] {
            assert!(wrong.parse::<DpsFaultOrder>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_count_is_used_up_and_a_fault_of_one_takes_precedence() {
        let mut faults = DpsFaults::default();
        for text in ["dps-throttle=1", "A:dps-throttle=2", "dps-slow=1s", "b:dps-move"] {
            faults.set(order(text)).expect("set");
        }
        let throttled = |faults: &mut DpsFaults, id| faults.use_up(id, DpsFaultName::Throttle);
        assert_eq!(
            ["a", "a", "b", "b", "a"].map(|id| throttled(&mut faults, id)),
            [true, true, true, false, false]
        );
        assert_eq!(faults.get("a", DpsFaultName::Slow), Some(DpsFault::Slow(Duration::from_secs(1))));
        assert_eq!([0, 1].map(|_| faults.use_up("b", DpsFaultName::Move)), [true, false]);
        faults.clear(None, None);
        assert_eq!(faults.iter().count(), 0);
    }
}
