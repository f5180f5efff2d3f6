//! Faults on purpose: what the hub does wrong for a device because somebody asked for it.
//!
//! Owns: which faults there are, their names and values in text, the faults of each device, and every decision they take.
//! Must not know: packets, HTTP, how a fault shows on the wire.
//!
//! Source: wire reference 8 (line 25). Faults end with the process: none is kept on disk.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use crate::message::excerpt;

use super::{ConnectionId, DeviceState, Hub, Lock, Locked, Subscription};

#[cfg(test)]
mod tests;

/// The highest count of a fault.
pub const MAX_COUNT: u32 = 1_000_000;

/// The longest delay: as long as a message lives that has no expiry of its own.
pub const MAX_DELAY: Duration = super::DEFAULT_TTL;

/// What can be asked for, without its value.
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
}

/// Every fault, its name, and how its value is written.
const NAMES: [(FaultName, &str, &str); 9] = [
    (FaultName::DropAt, "drop-at", "=N"),
    (FaultName::Delay, "delay", "=DURATION"),
    (FaultName::Duplicate, "duplicate", "[=N]"),
    (FaultName::IgnorePuback, "ignore-puback", "[=N]"),
    (FaultName::ExpireToken, "expire-token", ""),
    (FaultName::Throttle, "throttle", ""),
    (FaultName::QueueFull, "queue-full", ""),
    (FaultName::ReverseOrder, "reverse-order", ""),
    (FaultName::EarlyPublish, "early-publish", ""),
];

impl FaultName {
    /// Its text.
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

/// A fault with its value. A count that is reached ends the fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The connection is dropped at this packet of the device, counted in both directions from now on; once.
    DropAt(u32),
    /// A C2D message goes out this much after the hub took it, and no sooner.
    Delay(Duration),
    /// The next so many deliveries go out twice; without a count, all.
    Duplicate(Option<u32>),
    /// The next so many PUBACKs are passed over, and their messages stay locked; without a count, all.
    IgnorePuback(Option<u32>),
    /// The token of the device's connection has expired, or that of its next one; once.
    ExpireToken,
    /// The hub has had too much of the device.
    Throttle,
    /// Nothing more is queued for the device.
    QueueFull,
    /// Of the messages that wait, the newest goes out first.
    ReverseOrder,
    /// C2D messages go out from CONNACK on, whether or not the device has subscribed.
    EarlyPublish,
}

impl Fault {
    /// Puts a fault together from its name and its value; an empty value is none.
    ///
    /// # Errors
    /// [`FaultError::Value`] when the value is not one of this fault's.
    pub fn new(name: FaultName, value: &str) -> Result<Self, FaultError> {
        let refused = |expected| FaultError::Value { name: name.as_str(), value: excerpt(value), expected };
        let count = |value: &str| {
            let count = value.parse().ok().filter(|count| (1..=MAX_COUNT).contains(count));
            count.ok_or_else(|| refused("give a number from 1 to 1000000"))
        };
        let counted = |value: &str| if value.is_empty() { Ok(None) } else { count(value).map(Some) };
        let plain = |fault| if value.is_empty() { Ok(fault) } else { Err(refused("it takes no value")) };
        match name {
            FaultName::DropAt => count(value).map(Self::DropAt),
            FaultName::Delay => {
                let delay = humantime::parse_duration(value).ok().filter(|delay| *delay <= MAX_DELAY);
                delay
                    .map(Self::Delay)
                    .ok_or_else(|| refused("give a time with its unit, such as 500ms or 2s, of at most 1h"))
            }
            FaultName::Duplicate => counted(value).map(Self::Duplicate),
            FaultName::IgnorePuback => counted(value).map(Self::IgnorePuback),
            FaultName::ExpireToken => plain(Self::ExpireToken),
            FaultName::Throttle => plain(Self::Throttle),
            FaultName::QueueFull => plain(Self::QueueFull),
            FaultName::ReverseOrder => plain(Self::ReverseOrder),
            FaultName::EarlyPublish => plain(Self::EarlyPublish),
        }
    }

    /// Which one it is.
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
        }
    }

    /// Its value as it is written; of a count, what is left of it.
    pub fn value(self) -> Option<String> {
        match self {
            Self::DropAt(left) => Some(left.to_string()),
            Self::Delay(delay) => Some(humantime::format_duration(delay).to_string()),
            Self::Duplicate(left) | Self::IgnorePuback(left) => left.map(|left| left.to_string()),
            _ => None,
        }
    }
}

/// A fault for one device, or for all of them: `[DEVICE:]NAME[=VALUE]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FaultOrder {
    /// `None`: every device, those that are made later, too.
    pub device_id: Option<String>,
    /// What is to go wrong.
    pub fault: Fault,
}

impl FromStr for FaultOrder {
    type Err = FaultError;

    /// A device id may have a colon in it, and a fault has none: the last one counts.
    fn from_str(text: &str) -> Result<Self, FaultError> {
        let (device_id, fault) = match text.rsplit_once(':') {
            Some((device_id, fault)) => (Some(device_id.to_owned()), fault),
            None => (None, text),
        };
        let (name, value) = match fault.split_once('=') {
            // An equals sign with nothing behind it is a value that was forgotten.
            Some((name, "")) => return Err(FaultError::Forgotten(name.parse::<FaultName>()?.as_str())),
            Some(parts) => parts,
            None => (fault, ""),
        };
        Ok(Self { device_id, fault: Fault::new(name.parse()?, value)? })
    }
}

/// Why a fault is not one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FaultError {
    /// No such fault.
    #[error("there is no fault \"{0}\"; there are {list}", list = list())]
    UnknownName(String),
    /// A value that the fault does not take.
    #[error("\"{value}\" is not a value for the fault {name}: {expected}")]
    Value {
        /// The fault.
        name: &'static str,
        /// What was given.
        value: String,
        /// What it takes.
        expected: &'static str,
    },
    /// `NAME=`.
    #[error("there is no value after \"{0}=\": give one, or remove the equals sign")]
    Forgotten(&'static str),
    /// A fault of a device that is not there.
    #[error("there is no device \"{0}\" for this fault: name it with --device, too")]
    UnknownDevice(String),
}

/// All faults as they are written.
fn list() -> String {
    NAMES.map(|(_, name, value)| format!("{name}{value}")).join(", ")
}

/// The faults of one device.
#[derive(Debug, Clone, Default)]
pub(super) struct Faults {
    set: BTreeMap<FaultName, Fault>,
    /// When the first message that [`Fault::Delay`] holds back may go, as far as somebody asked for it.
    due: Option<SystemTime>,
    /// The second of two deliveries, and the connection that it is for; `None` for those who poll.
    copy: Option<(Option<ConnectionId>, Locked)>,
}

impl Faults {
    fn has(&self, name: FaultName) -> bool {
        self.set.contains_key(&name)
    }

    /// Whether the fault holds for one more time.
    fn use_up(&mut self, name: FaultName) -> bool {
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

    /// Counts a packet; whether the connection ends with it.
    fn drops_packet(&mut self) -> bool {
        match self.set.get_mut(&FaultName::DropAt) {
            Some(Fault::DropAt(left)) if *left > 1 => {
                *left -= 1;
                false
            }
            _ => self.use_up(FaultName::DropAt),
        }
    }

    fn delay(&self) -> Duration {
        match self.set.get(&FaultName::Delay) {
            Some(Fault::Delay(delay)) => *delay,
            _ => Duration::ZERO,
        }
    }

    pub(super) fn queue_is_full(&self) -> bool {
        self.has(FaultName::QueueFull)
    }

    pub(super) fn is_throttled(&self) -> bool {
        self.has(FaultName::Throttle)
    }

    /// When [`Faults::pass_time`] next has something to do.
    pub(super) fn next_deadline(&self) -> Option<SystemTime> {
        self.due
    }

    /// Whether a message is held back no longer.
    pub(super) fn pass_time(&mut self, now: SystemTime) -> bool {
        self.due.take_if(|due| *due <= now).is_some()
    }
}

impl DeviceState {
    /// The quality of service for a subscription, granted or taken for granted.
    pub(super) fn granted(&self, subscription: Subscription) -> Option<u8> {
        let early = subscription == Subscription::DeviceBound && self.faults.has(FaultName::EarlyPublish);
        self.session.granted(subscription).or(early.then_some(1))
    }

    /// Locks the next message for a connection, or, where `polls`, for whoever asks for one at a time. The flag says
    /// whether the hub's next deadline is another one.
    pub(super) fn lock_next(
        &mut self,
        lock: Lock,
        connection: ConnectionId,
        polls: bool,
        now: SystemTime,
    ) -> (Option<Locked>, bool) {
        let taker = (!polls).then_some(connection);
        if let Some((_, copy)) =
            self.faults.copy.take_if(|(own, _)| own.is_none() == polls).filter(|(own, _)| *own == taker)
        {
            return (Some(copy), false);
        }
        let (delay, newest_first) = (self.faults.delay(), self.faults.has(FaultName::ReverseOrder));
        let Some(locked) = self.queue.lock_next(lock, connection, now, delay, newest_first) else {
            let due = self.queue.next_ripe(delay, now);
            let earlier = due.is_some() && due != self.faults.due;
            if earlier {
                self.faults.due = due;
            }
            return (None, earlier);
        };
        if self.faults.use_up(FaultName::Duplicate) {
            let copy = Locked { redelivered: true, copy: true, ..locked.clone() };
            self.faults.copy = Some((taker, copy));
        }
        (Some(locked), false)
    }
}

impl Hub {
    /// Has a fault happen to a device, in place of one of the same name. Answers whether there is such a device.
    pub fn set_fault(&mut self, device_id: &str, fault: Fault) -> bool {
        let Some(state) = self.devices.get_mut(device_id) else { return false };
        state.faults.set.insert(fault.name(), fault);
        self.version += 1;
        true
    }

    /// Carries out orders; all or none.
    ///
    /// # Errors
    /// [`FaultError::UnknownDevice`].
    pub fn order_faults(&mut self, orders: &[FaultOrder]) -> Result<(), FaultError> {
        let named = orders.iter().filter_map(|order| order.device_id.as_deref());
        if let Some(missing) = named.into_iter().find(|id| !self.devices.contains_key(*id)) {
            return Err(FaultError::UnknownDevice(excerpt(missing)));
        }
        for FaultOrder { device_id, fault } in orders {
            tracing::info!(device_id, ?fault, "a fault was set");
        }
        // Those of one device last, so that they replace what holds for all.
        for FaultOrder { fault, .. } in orders.iter().filter(|order| order.device_id.is_none()) {
            self.faults_of_all.set.insert(fault.name(), *fault);
            for state in self.devices.values_mut() {
                state.faults.set.insert(fault.name(), *fault);
            }
        }
        for order in orders {
            if let Some(device_id) = &order.device_id {
                self.set_fault(device_id, order.fault);
            }
        }
        self.version += 1;
        Ok(())
    }

    /// Ends a fault of a device, or all of them; what is not there needs no end. Answers whether there is such a device.
    pub fn clear_faults(&mut self, device_id: &str, name: Option<FaultName>) -> bool {
        let Some(state) = self.devices.get_mut(device_id) else { return false };
        state.faults.set.retain(|own, _| name.is_some_and(|name| name != *own));
        self.version += 1;
        true
    }

    /// The faults of a device; `None` when there is no such device.
    pub fn faults(&self, device_id: &str) -> Option<Vec<Fault>> {
        self.devices.get(device_id).map(|state| state.faults.set.values().copied().collect())
    }

    /// Counts a packet of the device, sent or received: whether its connection is to be dropped in its place.
    pub fn drops_packet(&mut self, device_id: &str) -> bool {
        self.decide(device_id, Faults::drops_packet)
    }

    /// Whether the device's next PUBACK is to be passed over.
    pub fn ignores_puback(&mut self, device_id: &str) -> bool {
        self.decide(device_id, |faults| faults.use_up(FaultName::IgnorePuback))
    }

    /// Whether the token that the device has shown is to count as expired from now on.
    pub fn expires_token(&mut self, device_id: &str) -> bool {
        self.decide(device_id, |faults| faults.use_up(FaultName::ExpireToken))
    }

    /// Whether the hub is to have had too much of the device.
    pub fn is_throttled(&self, device_id: &str) -> bool {
        self.devices.get(device_id).is_some_and(|state| state.faults.is_throttled())
    }

    fn decide(&mut self, device_id: &str, decide: impl FnOnce(&mut Faults) -> bool) -> bool {
        let Some(state) = self.devices.get_mut(device_id) else { return false };
        // Who looks on sees counts go down, and faults end.
        self.quiet_changes += u64::from(!state.faults.set.is_empty());
        decide(&mut state.faults)
    }
}
