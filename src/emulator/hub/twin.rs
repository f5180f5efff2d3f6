//! A device's twin: its reported properties, and the rules by which a patch changes them.
//!
//! Owns: merging, what a patch may contain, versions. Pure: no topics, no clock.
//! Must not know: MQTT, HTTPS, sessions. Used by: `hub`.
//!
//! Merging is that of JSON merge patches: null deletes, an object merges, anything else replaces, arrays as a whole.
//! The limits are those of Microsoft's page "Understand and use device twins in IoT Hub". Nobody can write desired
//! properties here, so they stay empty at version 1; `$metadata` is left out.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

/// Largest reported properties, as `size` counts.
pub const MAX_REPORTED_BYTES: usize = 32 * 1024;

/// Deepest nesting below the reported properties themselves.
pub const MAX_DEPTH: usize = 10;

/// Longest key in bytes.
pub const MAX_KEY_BYTES: usize = 1024;

/// Longest string value in bytes.
pub const MAX_STRING_BYTES: usize = 4 * 1024;

/// The integers that a twin can hold.
const INTEGERS: std::ops::RangeInclusive<i64> = -4_503_599_627_370_496..=4_503_599_627_370_495;

/// Why a patch was not taken. Nothing has changed then.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TwinError {
    /// There is no such device.
    #[error("the hub has no device \"{0}\"")]
    UnknownDevice(String),
    /// An array, a string, a number, …
    #[error("a patch of reported properties must be a JSON object")]
    NotAnObject,
    /// A key that no property can have.
    #[error(
        "\"{0}\" cannot be a key: it is empty or longer than {MAX_KEY_BYTES} bytes, or holds '.', '$', a space or a \
         control character"
    )]
    Key(String),
    /// Objects or arrays in one another.
    #[error("the patch is nested more than {MAX_DEPTH} levels deep")]
    TooDeep,
    /// A long text.
    #[error("the string of key \"{key}\" has {bytes} bytes, more than {MAX_STRING_BYTES}")]
    StringTooLong {
        /// The nearest key.
        key: String,
        /// Its length.
        bytes: usize,
    },
    /// An integer that the hub cannot hold.
    #[error("{0} is not an integer from {start} to {end}", start = INTEGERS.start(), end = INTEGERS.end())]
    Integer(String),
    /// What is kept, not the patch, is too large.
    #[error("the reported properties would have {0} bytes, more than {MAX_REPORTED_BYTES}")]
    TooLarge(usize),
}

/// One device's twin.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Twin {
    reported: Map<String, Value>,
    /// Rises by one with each patch.
    reported_version: u64,
}

impl Default for Twin {
    fn default() -> Self {
        Self { reported: Map::new(), reported_version: 1 }
    }
}

impl Twin {
    /// Merges a patch in and answers the new version.
    ///
    /// # Errors
    /// [`TwinError`]; nothing has changed then.
    pub(super) fn patch_reported(&mut self, patch: &Value) -> Result<u64, TwinError> {
        let patch = patch.as_object().ok_or(TwinError::NotAnObject)?;
        check_object(patch, 0)?;
        let mut merged = self.reported.clone();
        merge(&mut merged, patch);
        let size = size_of_object(&merged);
        if size > MAX_REPORTED_BYTES {
            return Err(TwinError::TooLarge(size));
        }
        self.reported = merged;
        self.reported_version += 1;
        Ok(self.reported_version)
    }

    /// Desired and reported properties with their versions, as a device gets them and as they stand in
    /// `properties` of the back end's view.
    pub(super) fn properties(&self) -> Value {
        let mut reported = self.reported.clone();
        reported.insert("$version".to_owned(), self.reported_version.into());
        json!({ "desired": { "$version": 1 }, "reported": reported })
    }

    /// The version of the whole twin: it rises with each change of any part.
    pub(super) fn version(&self) -> u64 {
        1 + self.reported_version
    }

    /// The version as the hub writes it in `etag`.
    pub(super) fn etag(&self) -> String {
        STANDARD.encode(self.version().to_be_bytes())
    }
}

/// Merges `patch` into `target`.
fn merge(target: &mut Map<String, Value>, patch: &Map<String, Value>) {
    for (key, value) in patch {
        match value {
            Value::Null => {
                target.remove(key);
            }
            Value::Object(patch) => match target.get_mut(key) {
                Some(Value::Object(inner)) => merge(inner, patch),
                _ => {
                    let mut inner = Map::new();
                    merge(&mut inner, patch);
                    target.insert(key.clone(), Value::Object(inner));
                }
            },
            other => {
                target.insert(key.clone(), other.clone());
            }
        }
    }
}

fn check_object(object: &Map<String, Value>, depth: usize) -> Result<(), TwinError> {
    if depth > MAX_DEPTH {
        return Err(TwinError::TooDeep);
    }
    for (key, value) in object {
        let refused = |c: char| c.is_control() || matches!(c, '.' | '$' | ' ');
        if key.is_empty() || key.len() > MAX_KEY_BYTES || key.contains(refused) {
            return Err(TwinError::Key(key.chars().take(60).collect()));
        }
        check_value(key, value, depth)?;
    }
    Ok(())
}

fn check_value(key: &str, value: &Value, depth: usize) -> Result<(), TwinError> {
    match value {
        Value::Null | Value::Bool(_) => Ok(()),
        Value::Number(number) if number.is_f64() => Ok(()),
        Value::Number(number) if number.as_i64().is_some_and(|number| INTEGERS.contains(&number)) => Ok(()),
        Value::Number(number) => Err(TwinError::Integer(number.to_string())),
        Value::String(text) if text.len() > MAX_STRING_BYTES => {
            Err(TwinError::StringTooLong { key: key.chars().take(60).collect(), bytes: text.len() })
        }
        Value::String(_) => Ok(()),
        Value::Array(_) if depth >= MAX_DEPTH => Err(TwinError::TooDeep),
        Value::Array(values) => values.iter().try_for_each(|value| check_value(key, value, depth + 1)),
        Value::Object(object) => check_object(object, depth + 1),
    }
}

/// Keys and strings by their bytes, numbers 8, the rest 4; a whole counts what it holds, and 4 when it is empty, so
/// that nothing is free.
fn size(value: &Value) -> usize {
    match value {
        Value::Null | Value::Bool(_) => 4,
        Value::Number(_) => 8,
        Value::String(text) => text.len(),
        Value::Array(values) => values.iter().map(size).sum::<usize>().max(4),
        Value::Object(object) => size_of_object(object).max(4),
    }
}

fn size_of_object(object: &Map<String, Value>) -> usize {
    object.iter().map(|(key, value)| key.len() + size(value)).sum()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn patched(patches: &[Value]) -> Value {
        let mut twin = Twin::default();
        for patch in patches {
            twin.patch_reported(patch).expect("taken");
        }
        twin.properties()["reported"].clone()
    }

    #[test]
    fn null_deletes_objects_merge_and_the_rest_replaces() {
        let before = json!({ "a": 1, "b": { "x": 1, "y": 2 }, "c": [1, 2], "d": "text" });
        let patch =
            json!({ "a": null, "b": { "y": null, "z": { "deep": true, "none": null } }, "c": [3], "d": {} });
        assert_eq!(
            patched(&[before, patch]),
            json!({ "b": { "x": 1, "z": { "deep": true } }, "c": [3], "d": {}, "$version": 3 })
        );
    }

    #[test]
    fn a_new_twin_is_empty_at_version_1() {
        let twin = Twin::default();
        assert_eq!(twin.properties(), json!({ "desired": { "$version": 1 }, "reported": { "$version": 1 } }));
        assert_eq!((twin.version(), twin.etag().as_str()), (2, "AAAAAAAAAAI="));
    }

    fn nested(levels: usize) -> Value {
        (0..levels).fold(json!(1), |inner, _| json!({ "k": inner }))
    }

    #[test]
    fn what_a_twin_cannot_hold_is_refused_and_changes_nothing() {
        let mut twin = Twin::default();
        twin.patch_reported(&json!({ "kept": true })).expect("taken");
        let before = twin.properties();
        let long = "x".repeat(1025);
        for patch in [json!([1]), json!("x"), json!(null)] {
            assert_eq!(twin.patch_reported(&patch), Err(TwinError::NotAnObject));
        }
        for key in ["$version", "a.b", "a b", "", "a\u{7f}", "\u{85}", &long] {
            let refused = twin.patch_reported(&json!({ "fine": { key: 1 } }));
            assert!(matches!(refused, Err(TwinError::Key(_))), "{key:?}");
        }
        assert_eq!(twin.patch_reported(&nested(12)), Err(TwinError::TooDeep));
        let mut array = json!([]);
        for _ in 0..10 {
            array = json!([array]);
        }
        assert_eq!(twin.patch_reported(&json!({ "a": array })), Err(TwinError::TooDeep));
        for number in [json!(4_503_599_627_370_496_u64), json!(u64::MAX), json!(i64::MIN)] {
            assert!(matches!(twin.patch_reported(&json!({ "n": number })), Err(TwinError::Integer(_))));
        }
        let text = "é".repeat(2049);
        assert!(matches!(
            twin.patch_reported(&json!({ "a": [text] })),
            Err(TwinError::StringTooLong { bytes: 4098, .. })
        ));
        assert_eq!(twin.properties(), before);
    }

    #[test]
    fn what_is_just_within_the_limits_is_taken() {
        let mut twin = Twin::default();
        twin.patch_reported(&nested(11)).expect("ten levels below the top");
        twin.patch_reported(&json!({ "k": null, "n": [-4_503_599_627_370_496_i64, 1e300] }))
            .expect("numbers");
        let (key, text) = ("k".repeat(1024), "x".repeat(4096));
        twin.patch_reported(&json!({ "n": null, key: text })).expect("a long key and a long text");
    }

    #[test]
    fn the_whole_is_limited_to_32_kib_and_can_shrink_again() {
        let mut twin = Twin::default();
        let text = "x".repeat(4095);
        for n in 0..8 {
            twin.patch_reported(&json!({ n.to_string(): text })).expect("room");
        }
        assert_eq!(twin.patch_reported(&json!({ "b": false })), Err(TwinError::TooLarge(32 * 1024 + 5)));
        let twelve = twin.patch_reported(&json!({ "b": false, "0": null })).expect("room again");
        assert_eq!(twelve, 10);
    }

    /// A twin as paths to leaves: what merging must come to, written the other way round. An empty object is a leaf.
    type Leaves = BTreeMap<Vec<String>, Value>;

    fn leaves(value: &Value, path: &[String], out: &mut Leaves) {
        match value {
            Value::Object(object) if !object.is_empty() => {
                for (key, value) in object {
                    leaves(value, &[path, std::slice::from_ref(key)].concat(), out);
                }
            }
            other => {
                out.insert(path.to_vec(), other.clone());
            }
        }
    }

    /// The model: each leaf of the patch clears what stands at, above and below its path, then stands there itself
    /// unless it is null. Keys in between turn into objects and stay when they become empty.
    fn model(mut state: Leaves, patch: &Value, path: &[String]) -> Leaves {
        let Value::Object(patch) = patch else { return state };
        if state.get(path).is_some_and(|leaf| !path.is_empty() && !leaf.is_object()) {
            state.remove(path);
        }
        for (key, value) in patch {
            let path = [path, std::slice::from_ref(key)].concat();
            if value.is_object() {
                let emptied = model(state.clone(), value, &path);
                state = emptied;
            } else {
                state.retain(|other, _| !other.starts_with(&path));
                if !value.is_null() {
                    state.insert(path, value.clone());
                }
            }
        }
        // An object that holds something is no leaf; one that holds nothing is.
        let holds = state.keys().any(|other| other.len() > path.len() && other.starts_with(path));
        if holds {
            state.remove(path);
        } else if !path.is_empty() {
            state.insert(path.to_vec(), json!({}));
        }
        state
    }

    fn any_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            (-9_i64..9).prop_map(Value::from),
            "[a-z]{0,3}".prop_map(Value::from),
            proptest::collection::vec(-9_i64..9, 0..3).prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 24, 4, |inner| any_object(inner).boxed())
    }

    fn any_object(inner: impl Strategy<Value = Value>) -> impl Strategy<Value = Value> {
        proptest::collection::btree_map("[abc]", inner, 0..4)
            .prop_map(|object| Value::Object(object.into_iter().collect()))
    }

    proptest! {
        #[test]
        fn merging_comes_to_what_the_model_says_and_versions_count_up(
            patches in proptest::collection::vec(any_object(any_value()), 0..8)
        ) {
            let mut twin = Twin::default();
            let mut expected = Leaves::new();
            for (index, patch) in patches.iter().enumerate() {
                let version = twin.patch_reported(patch).expect("within the limits");
                prop_assert_eq!(version, index as u64 + 2);
                expected = model(expected, patch, &[]);
                let mut found = Leaves::new();
                leaves(&Value::Object(twin.reported.clone()), &[], &mut found);
                found.remove(&Vec::new()); // the whole, when it is empty
                prop_assert_eq!(&found, &expected);
                // Patching with what is there changes nothing but the version.
                let same = Value::Object(twin.reported.clone());
                let mut again = Twin { reported: twin.reported.clone(), reported_version: 7 };
                prop_assert_eq!(again.patch_reported(&same), Ok(8));
                prop_assert_eq!(again.reported, twin.reported.clone());
            }
        }
    }
}
