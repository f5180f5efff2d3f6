//! Faults on purpose: errors that the hub makes for a device because a user set them.
//!
//! Owns: which faults exist, their names and values as text, and the faults of one device with their counts.
//! Must not know: the hub, packets, HTTP, how a fault shows on the wire.
//!
//! Source: wire reference 8 (line 25). Faults end with the process: they are not stored on disk.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use crate::emulator::fault_text::{self, FaultValue, FaultValueError};
use crate::message::excerpt;

use super::queue::{DEFAULT_TTL, Locked};
use super::session::ConnectionId;

#[cfg(test)]
mod tests;

/// The longest delay: the life time of a message without its own expiry.
pub const MAX_DELAY: Duration = DEFAULT_TTL;

/// The kinds of faults, without values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum FaultName {
    /// `drop-at`
    DropAt,
    /// `delay`
    Delay,
    /// `duplicate`
    Duplicate,
    /// `ignore-puback`
    IgnorePuback,
    /// `expire-token`
    ExpireToken,
    /// `throttle`
    Throttle,
    /// `queue-full`
    QueueFull,
    /// `reverse-order`
    ReverseOrder,
    /// `early-publish`
    EarlyPublish,
    /// `certificate`
    Certificate,
}

/// Every fault, its name, and how its value is written.
const NAMES: [(FaultName, &str, &str); 10] = [
    (FaultName::DropAt, "drop-at", "=N"),
    (FaultName::Delay, "delay", "=DURATION"),
    (FaultName::Duplicate, "duplicate", "[=N]"),
    (FaultName::IgnorePuback, "ignore-puback", "[=N]"),
    (FaultName::ExpireToken, "expire-token", ""),
    (FaultName::Throttle, "throttle", ""),
    (FaultName::QueueFull, "queue-full", ""),
    (FaultName::ReverseOrder, "reverse-order", ""),
    (FaultName::EarlyPublish, "early-publish", ""),
    (FaultName::Certificate, "certificate", "=refuse|hold|other-key|broken|critical|unsupported"),
];

impl FaultName {
    /// The fault's name as text.
    pub fn as_str(self) -> &'static str {
        NAMES.iter().find(|(own, ..)| *own == self).map_or("", |(_, name, _)| name)
    }
}

impl FromStr for FaultName {
    type Err = FaultError;

    fn from_str(text: &str) -> Result<Self, FaultError> {
        let found = NAMES.iter().find(|(_, name, _)| *name == text);
        found.map(|(own, ..)| *own).ok_or_else(|| FaultError::UnknownName(excerpt(text)))
    }
}

/// A fault with its value. When its count is used up, the fault ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Drops the connection, once, at this packet of the device. Packets in both directions count from now on.
    DropAt(u32),
    /// Holds each C2D message back until this time has passed since the hub accepted it.
    Delay(Duration),
    /// Sends this many deliveries twice; without a count, all of them.
    Duplicate(Option<u32>),
    /// Ignores this many PUBACKs, so that their messages stay locked; without a count, all of them.
    IgnorePuback(Option<u32>),
    /// Lets the token of the device's connection expire, or of its next connection; once.
    ExpireToken,
    /// The hub throttles the device.
    Throttle,
    /// The hub queues no message for the device.
    QueueFull,
    /// The newest waiting message is sent first.
    ReverseOrder,
    /// C2D messages are sent right after CONNACK, even if the device has not subscribed.
    EarlyPublish,
    /// Certificates that the device asks for are not what they should be.
    Certificate(CertificateFault),
}

/// What is wrong with certificates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CertificateFault {
    /// The authority refuses the request.
    Refuse,
    /// The certificate waits until the fault ends.
    Hold,
    /// The certificate is for another key.
    OtherKey,
    /// The chain has a member that is no certificate.
    Broken,
    /// The certificate has a critical extension that TLS libraries do not know, so they refuse it.
    Critical,
    /// The hub issues none: it refuses the subscription to the answers.
    Unsupported,
}

impl CertificateFault {
    const ALL: [(Self, &str); 6] = [
        (Self::Refuse, "refuse"),
        (Self::Hold, "hold"),
        (Self::OtherKey, "other-key"),
        (Self::Broken, "broken"),
        (Self::Critical, "critical"),
        (Self::Unsupported, "unsupported"),
    ];
}

impl Fault {
    /// Makes a fault from its name and its value. An empty value means no value.
    ///
    /// # Errors
    /// [`FaultError::Value`] if this fault does not allow the value.
    pub fn new(name: FaultName, value: &str) -> Result<Self, FaultError> {
        let value = FaultValue { name: name.as_str(), text: value };
        let plain = |fault| value.none().map(|()| fault);
        let fault = match name {
            FaultName::DropAt => value.count().map(Self::DropAt),
            FaultName::Delay => {
                let expected = "give a time with its unit, such as 500ms or 2s, of at most 1h";
                value.time(MAX_DELAY, expected).map(Self::Delay)
            }
            FaultName::Duplicate => value.count_if_any().map(Self::Duplicate),
            FaultName::IgnorePuback => value.count_if_any().map(Self::IgnorePuback),
            FaultName::ExpireToken => plain(Self::ExpireToken),
            FaultName::Throttle => plain(Self::Throttle),
            FaultName::QueueFull => plain(Self::QueueFull),
            FaultName::ReverseOrder => plain(Self::ReverseOrder),
            FaultName::EarlyPublish => plain(Self::EarlyPublish),
            FaultName::Certificate => {
                let found = CertificateFault::ALL.iter().find(|(_, word)| *word == value.text);
                let refused =
                    || value.refused("give refuse, hold, other-key, broken, critical or unsupported");
                found.map(|(fault, _)| Self::Certificate(*fault)).ok_or_else(refused)
            }
        };
        Ok(fault?)
    }

    /// The kind of this fault.
    pub fn name(self) -> FaultName {
        match self {
            Self::DropAt(_) => FaultName::DropAt,
            Self::Delay(_) => FaultName::Delay,
            Self::Duplicate(_) => FaultName::Duplicate,
            Self::IgnorePuback(_) => FaultName::IgnorePuback,
            Self::ExpireToken => FaultName::ExpireToken,
            Self::Throttle => FaultName::Throttle,
            Self::QueueFull => FaultName::QueueFull,
            Self::ReverseOrder => FaultName::ReverseOrder,
            Self::EarlyPublish => FaultName::EarlyPublish,
            Self::Certificate(_) => FaultName::Certificate,
        }
    }

    /// The fault's value as text. For a count, this is the remaining count.
    pub fn value(self) -> Option<String> {
        match self {
            Self::DropAt(left) => Some(left.to_string()),
            Self::Delay(delay) => Some(humantime::format_duration(delay).to_string()),
            Self::Certificate(fault) => {
                let found = CertificateFault::ALL.iter().find(|(own, _)| *own == fault);
                found.map(|(_, word)| (*word).to_owned())
            }
            Self::Duplicate(left) | Self::IgnorePuback(left) => left.map(|left| left.to_string()),
            _ => None,
        }
    }
}

/// A fault for one device, or for all of them: `[DEVICE:]NAME[=VALUE]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FaultOrder {
    /// The device. `None` means every device, including devices that are made later.
    pub device_id: Option<String>,
    /// The fault to set.
    pub fault: Fault,
}

impl FromStr for FaultOrder {
    type Err = FaultError;

    fn from_str(text: &str) -> Result<Self, FaultError> {
        let (device_id, name, value) = fault_text::parts(text)?;
        Ok(Self { device_id, fault: Fault::new(name, value)? })
    }
}

/// Why a text or an order is not a valid fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FaultError {
    /// The fault does not exist.
    #[error("there is no fault \"{0}\"; there are {list}", list = list())]
    UnknownName(String),
    /// The fault does not allow this value.
    #[error(transparent)]
    Value(#[from] FaultValueError),
    /// The fault is for a device that does not exist.
    #[error("there is no device \"{0}\" for this fault: name it with --device, too")]
    UnknownDevice(String),
}

/// The list of all faults, in the form in which they are written.
fn list() -> String {
    NAMES.map(|(_, name, value)| format!("{name}{value}")).join(", ")
}

/// The faults of one device.
#[derive(Debug, Clone, Default)]
pub(super) struct Faults {
    pub(super) set: BTreeMap<FaultName, Fault>,
    /// When [`Fault::Delay`] releases the first message that it holds back. It is only set after a delivery was asked
    /// for.
    pub(super) due: Option<SystemTime>,
    /// The second of two deliveries, and the connection that gets it; `None` for a device that polls.
    pub(super) copy: Option<(Option<ConnectionId>, Locked)>,
}

impl Faults {
    /// Whether the fault is set.
    pub(super) fn has(&self, name: FaultName) -> bool {
        self.set.contains_key(&name)
    }

    /// Whether the fault applies now. This uses up one of its count.
    pub(super) fn use_up(&mut self, name: FaultName) -> bool {
        match self.set.get_mut(&name) {
            None => return false,
            Some(Fault::Duplicate(Some(left)) | Fault::IgnorePuback(Some(left))) if *left > 1 => {
                *left -= 1;
                return true;
            }
            Some(Fault::Duplicate(None) | Fault::IgnorePuback(None)) => return true,
            Some(_) => {}
        }
        self.set.remove(&name);
        true
    }

    /// Counts a packet, and returns whether it ends the connection.
    pub(super) fn drops_packet(&mut self) -> bool {
        match self.set.get_mut(&FaultName::DropAt) {
            Some(Fault::DropAt(left)) if *left > 1 => {
                *left -= 1;
                false
            }
            _ => self.use_up(FaultName::DropAt),
        }
    }

    /// How long each message is held back.
    pub(super) fn delay(&self) -> Duration {
        match self.set.get(&FaultName::Delay) {
            Some(Fault::Delay(delay)) => *delay,
            _ => Duration::ZERO,
        }
    }

    pub(super) fn queue_is_full(&self) -> bool {
        self.has(FaultName::QueueFull)
    }

    pub(super) fn certificate(&self) -> Option<CertificateFault> {
        self.set.values().find_map(|fault| match fault {
            Fault::Certificate(fault) => Some(*fault),
            _ => None,
        })
    }

    pub(super) fn is_throttled(&self) -> bool {
        self.has(FaultName::Throttle)
    }

    /// When [`Faults::pass_time`] has its next work.
    pub(super) fn next_deadline(&self) -> Option<SystemTime> {
        self.due
    }

    /// Returns whether a message that was held back may now be sent.
    pub(super) fn pass_time(&mut self, now: SystemTime) -> bool {
        self.due.take_if(|due| *due <= now).is_some()
    }
}
