//! The names of what a rule looks at.
//!
//! Owns: how a name is read and written. Must not know: messages.

use std::fmt;

use crate::message::is_system_property;

/// A name in a rule: `state`, `$.cid` or `body.zone`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Subject {
    /// An application property, or a system property such as `$.cid`.
    Property(String),
    /// A field of the JSON body: the names from the outermost object inwards.
    Body(Vec<String>),
}

impl Subject {
    /// Reads a name. `None` if the name, or a part of it, is empty.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        match text.strip_prefix("body.") {
            Some(path) => {
                let path: Vec<_> = path.split('.').map(str::to_owned).collect();
                (!path.iter().any(String::is_empty)).then_some(Self::Body(path))
            }
            None if text.is_empty() || text == "$." => None,
            None => Some(Self::Property(text.to_owned())),
        }
    }

    /// The name of the application property, if it is one.
    pub(crate) fn application(&self) -> Option<&str> {
        match self {
            Self::Property(name) if !is_system_property(name) => Some(name),
            _ => None,
        }
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Property(name) => f.write_str(name),
            Self::Body(path) => write!(f, "body.{}", path.join(".")),
        }
    }
}
