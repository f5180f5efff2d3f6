//! The doors through which a message can come that meets a rule's conditions.
//!
//! Owns: which properties each kind of message always has and never has. Must not know: who signs in.

use crate::message::{CONNECTION_DEVICE_ID, CONNECTION_MODULE_ID, INPUT, MESSAGE_ID, METHOD, SOURCE};

use super::condition::{Condition, Test};
use super::subject::Subject;

/// A door, without the name of the input or method: see [`crate::message::Source`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Door {
    /// The hub's queue for the device.
    C2d,
    /// An input of the module.
    Input,
    /// A direct method.
    Method,
}

impl Door {
    /// All doors.
    pub(crate) const ALL: [Self; 3] = [Self::C2d, Self::Input, Self::Method];

    /// The value of `"$.source"` for this door.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::C2d => "c2d",
            Self::Input => "input",
            Self::Method => "method",
        }
    }

    /// Whether a message through this door can have a value under this name, and whether it always has one.
    fn has(self, name: &str) -> (bool, bool) {
        match name {
            SOURCE => (true, true),
            INPUT => (self == Self::Input, self == Self::Input),
            METHOD => (self == Self::Method, self == Self::Method),
            CONNECTION_DEVICE_ID | CONNECTION_MODULE_ID => (self == Self::Input, false),
            MESSAGE_ID => (true, self == Self::Method),
            // A call has only a name and a payload.
            _ => (self != Self::Method, false),
        }
    }
}

impl Condition {
    /// The doors through which a message can come that meets the condition.
    pub(crate) fn doors(&self) -> Vec<Door> {
        Door::ALL.into_iter().filter(|door| self.opens(*door)).collect()
    }

    fn opens(&self, door: Door) -> bool {
        match &self.subject {
            Subject::Body(_) => true,
            Subject::Property(name) if name == SOURCE => self.test.takes(door.word()),
            Subject::Property(name) => {
                let (can, must) = door.has(name);
                if self.test == Test::Absent { !must } else { can }
            }
        }
    }
}
