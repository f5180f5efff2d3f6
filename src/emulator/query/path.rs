//! The path of a property in a document, such as `tags.site` or `devices.jobs.jobId`.
//!
//! Owns: how a path finds its property. Must not know: conditions, rows.
//!
//! The hub's own names ignore case, because Microsoft's examples write `DeviceId` and `LastActivityTime` for `deviceId`
//! and `lastActivityTime`. Names in tags and properties do not. A path may begin with the name of the collection, as in
//! `devices.jobs.jobId`, or with `devices`, as in `devices.deviceId` for a module.

use serde_json::Value;

/// The parts of a document whose names are chosen by users.
const USERS: [&str; 3] = ["tags", "desired", "reported"];

/// A path: at least one name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::emulator) struct PropertyPath(Vec<String>);

impl PropertyPath {
    pub(super) fn new(names: Vec<String>) -> Self {
        Self(names)
    }

    /// Removes the collection's name from the beginning. The last name always stays.
    pub(super) fn within(mut self, collection: &[&str]) -> Self {
        for word in collection {
            if self.0.len() > 1 && self.0.first().is_some_and(|name| name.eq_ignore_ascii_case(word)) {
                self.0.remove(0);
            }
        }
        self
    }

    /// The property with its name as the document writes it; `None` if the document does not have it.
    pub(super) fn find<'d>(&self, document: &'d Value) -> Option<(&'d str, &'d Value)> {
        let (mut name, mut value) = ("", document);
        let mut hubs = true;
        for wanted in &self.0 {
            let object = value.as_object()?;
            let ignoring_case = || object.iter().find(|(key, _)| key.eq_ignore_ascii_case(wanted));
            let exact = object.get_key_value(wanted);
            let (key, inner) = if hubs { exact.or_else(ignoring_case) } else { exact }?;
            (name, value) = (key, inner);
            hubs = hubs && !USERS.contains(&name);
        }
        Some((name, value))
    }
}

impl std::fmt::Display for PropertyPath {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0.join("."))
    }
}
