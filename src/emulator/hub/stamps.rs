//! When each property of a twin last changed, and with which version: the `$metadata` that back ends see.
//!
//! Owns: these stamps, and their form in a twin. Must not know: who changes a twin, merging.
//!
//! Source: Microsoft's page "Understand and use device twins in IoT Hub", which shows `$metadata` with `$lastUpdated` for
//! each object and value, and a time of the year 1 for what was never written. `$lastUpdatedVersion` is as its SDKs read
//! it (TwinCollection in C#, TwinProperties in Java): for desired properties only. Arrays have one stamp.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::message;

/// The hub's text for a time, or for one that does not exist.
pub(super) fn time(time: Option<SystemTime>) -> String {
    time.map_or_else(|| "0001-01-01T00:00:00Z".to_owned(), message::format_time)
}

/// The stamps of an object and of all below it, or of another value.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Stamps {
    /// When it last changed, in milliseconds of Unix time; 0 if it never did.
    at: u64,
    /// The version of that change.
    version: u64,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    keys: BTreeMap<String, Self>,
}

impl Stamps {
    /// Whether nothing was ever stamped.
    pub(super) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Stamps what `patch` has changed. `after` is the object after the change.
    pub(super) fn note(
        &mut self,
        patch: &Map<String, Value>,
        after: &Map<String, Value>,
        version: u64,
        now: SystemTime,
    ) {
        let since = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        (self.at, self.version) = (u64::try_from(since.as_millis()).unwrap_or(u64::MAX), version);
        for (key, value) in patch {
            match (value, after.get(key)) {
                (_, None) => drop(self.keys.remove(key)),
                (Value::Object(patch), Some(Value::Object(after))) => {
                    self.keys.entry(key.clone()).or_default().note(patch, after, version, now);
                }
                _ => {
                    let leaf = Self { at: self.at, version, keys: BTreeMap::new() };
                    self.keys.insert(key.clone(), leaf);
                }
            }
        }
    }

    /// The `$metadata` of `properties`. What has no stamp of its own, because an older emulator wrote it, has that of
    /// the object around it.
    pub(super) fn show(&self, properties: &Map<String, Value>, with_version: bool) -> Value {
        let at = SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(self.at)).filter(|_| self.at > 0);
        let mut shown = Map::new();
        shown.insert("$lastUpdated".to_owned(), time(at).into());
        if with_version && self.version > 0 {
            shown.insert("$lastUpdatedVersion".to_owned(), json!(self.version));
        }
        let around = Self { keys: BTreeMap::new(), ..*self };
        for (key, value) in properties {
            let nothing = Map::new();
            let stamps = self.keys.get(key).unwrap_or(&around);
            shown.insert(key.clone(), stamps.show(value.as_object().unwrap_or(&nothing), with_version));
        }
        shown.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(value: Value) -> Map<String, Value> {
        value.as_object().expect("an object").clone()
    }

    #[test]
    fn each_change_stamps_what_it_touches_and_all_around_it() {
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let mut stamps = Stamps::default();
        assert_eq!(stamps.show(&Map::new(), true), json!({ "$lastUpdated": time(None) }));
        let first = object(json!({ "led": { "on": true, "old": 1 }, "list": [{ "x": 1 }] }));
        stamps.note(&first, &first, 2, at(1));
        let after = object(json!({ "led": { "on": false }, "list": [{ "x": 1 }] }));
        stamps.note(&object(json!({ "led": { "on": false, "old": null } })), &after, 3, at(2));
        let stamp = |second, version| {
            let time = format!("1970-01-01T00:00:0{second}.0000000Z");
            json!({ "$lastUpdated": time, "$lastUpdatedVersion": version })
        };
        let mut expected = stamp(2, 3);
        expected["led"] = stamp(2, 3);
        expected["led"]["on"] = stamp(2, 3);
        expected["list"] = stamp(1, 2);
        assert_eq!(stamps.show(&after, true), expected);
        let reported = stamps.show(&after, false);
        assert_eq!(reported["list"], json!({ "$lastUpdated": "1970-01-01T00:00:01.0000000Z" }));
    }

    #[test]
    fn what_has_no_stamp_has_that_of_the_object_around_it() {
        let after = object(json!({ "new": 1, "older": { "than": "stamps" } }));
        let mut stamps = Stamps::default();
        stamps.note(&object(json!({ "new": 1 })), &after, 7, SystemTime::UNIX_EPOCH + Duration::from_secs(1));
        let shown = stamps.show(&after, true);
        assert_eq!(shown["older"]["than"], shown["new"]);
    }
}
