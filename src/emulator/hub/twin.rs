//! A device's twin: tags, desired and reported properties, and their versions.
//!
//! Owns: who changes which part, versions, the etag. Pure: no topics, no clock.
//! Must not know: MQTT, HTTPS, sessions; merging and limits are `document`'s.
//!
//! Choices where Microsoft's pages are silent. The etag only covers what back ends write, so a report of the device
//! does not make it out of date. A patch with empty desired properties or tags does not change them. A device does not
//! see `$metadata`, as the SDKs expect it.

use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::document::{TwinError, TwinSection, difference, merged};
use super::stamps::Stamps;

/// One device's twin.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct DeviceTwin {
    tags: Map<String, Value>,
    desired: Map<String, Value>,
    /// Rises by one with each change of the desired properties by a back end.
    desired_version: u64,
    #[serde(skip_serializing_if = "Stamps::is_empty")]
    desired_stamps: Stamps,
    reported: Map<String, Value>,
    /// Rises by one with each patch of the reported properties.
    reported_version: u64,
    #[serde(skip_serializing_if = "Stamps::is_empty")]
    reported_stamps: Stamps,
    /// Rises by one with each change by a back end.
    written: u64,
}

impl Default for DeviceTwin {
    fn default() -> Self {
        Self {
            tags: Map::new(),
            desired: Map::new(),
            desired_version: 1,
            desired_stamps: Stamps::default(),
            reported: Map::new(),
            reported_version: 1,
            reported_stamps: Stamps::default(),
            written: 1,
        }
    }
}

/// A change by a back end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TwinWrite {
    /// Merges the given parts into the twin.
    Patch {
        /// A patch of the tags.
        tags: Option<Map<String, Value>>,
        /// A patch of the desired properties.
        desired: Option<Map<String, Value>>,
    },
    /// Replaces both parts.
    Replace {
        /// All tags.
        tags: Map<String, Value>,
        /// All desired properties.
        desired: Map<String, Value>,
    },
}

/// A change of the desired properties, as the device receives it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DesiredChange {
    /// The version after the change.
    pub version: u64,
    /// The patch, including `$version`.
    pub patch: Value,
}

impl DeviceTwin {
    /// Merges a patch into the reported properties, and returns their new version.
    ///
    /// # Errors
    /// [`TwinError`]; in this case nothing has changed.
    pub(super) fn patch_reported(&mut self, patch: &Value, now: SystemTime) -> Result<u64, TwinError> {
        let patch = patch.as_object().ok_or(TwinError::NotAnObject(TwinSection::Reported))?;
        self.reported = merged(TwinSection::Reported, &self.reported, patch)?;
        self.reported_version += 1;
        self.reported_stamps.note(patch, &self.reported, self.reported_version, now);
        Ok(self.reported_version)
    }

    /// Writes tags and desired properties, and returns the change that the device must receive.
    ///
    /// # Errors
    /// [`TwinError`]; in this case nothing has changed.
    pub(super) fn write(
        &mut self,
        write: TwinWrite,
        now: SystemTime,
    ) -> Result<Option<DesiredChange>, TwinError> {
        let nothing = Map::new();
        let (tags, desired, patch) = match write {
            TwinWrite::Patch { tags, desired } => {
                let tags = merged(TwinSection::Tags, &self.tags, &tags.unwrap_or_default())?;
                let patch = desired.unwrap_or_default();
                let desired = merged(TwinSection::Desired, &self.desired, &patch)?;
                (tags, desired, Some(patch).filter(|patch| !patch.is_empty()))
            }
            TwinWrite::Replace { tags, desired } => {
                let tags = merged(TwinSection::Tags, &nothing, &tags)?;
                let desired = merged(TwinSection::Desired, &nothing, &desired)?;
                let patch = difference(&self.desired, &desired);
                self.desired_stamps = Stamps::default();
                self.desired_stamps.note(&desired, &desired, self.desired_version + 1, now);
                (tags, desired, Some(patch))
            }
        };
        (self.tags, self.desired) = (tags, desired);
        self.written += 1;
        Ok(patch.map(|patch| {
            self.desired_version += 1;
            let version = self.desired_version;
            self.desired_stamps.note(&patch, &self.desired, version, now);
            DesiredChange { version, patch: with_version(&patch, version) }
        }))
    }

    /// Desired and reported properties with their versions, as a device gets them.
    pub(super) fn properties(&self) -> Value {
        json!({
            "desired": with_version(&self.desired, self.desired_version),
            "reported": with_version(&self.reported, self.reported_version),
        })
    }

    /// The same with `$metadata`, as a back end gets them.
    pub(super) fn properties_with_metadata(&self) -> Value {
        let mut shown = self.properties();
        shown["desired"]["$metadata"] = self.desired_stamps.show(&self.desired, true);
        shown["reported"]["$metadata"] = self.reported_stamps.show(&self.reported, false);
        shown
    }

    pub(super) fn tags(&self) -> &Map<String, Value> {
        &self.tags
    }

    /// The version of the whole twin. It rises with each change of any part.
    pub(super) fn version(&self) -> u64 {
        self.written + self.reported_version
    }

    /// The version of the back ends' part, in the form that the hub uses for `etag`.
    pub(super) fn etag(&self) -> String {
        STANDARD.encode(self.written.to_be_bytes())
    }
}

fn with_version(properties: &Map<String, Value>, version: u64) -> Value {
    let mut shown = properties.clone();
    shown.insert("$version".to_owned(), version.into());
    shown.into()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    const NOW: SystemTime = SystemTime::UNIX_EPOCH;

    fn patched(patches: &[Value]) -> Value {
        let mut twin = DeviceTwin::default();
        for patch in patches {
            twin.patch_reported(patch, NOW).expect("taken");
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
        let twin = DeviceTwin::default();
        assert_eq!(twin.properties(), json!({ "desired": { "$version": 1 }, "reported": { "$version": 1 } }));
        assert_eq!((twin.version(), twin.etag().as_str()), (2, "AAAAAAAAAAE="));
    }

    fn too_large<T>(part: TwinSection, bytes: usize) -> Result<T, TwinError> {
        Err(TwinError::TooLarge { part, bytes })
    }

    fn object(value: Value) -> Map<String, Value> {
        value.as_object().expect("an object").clone()
    }

    fn patch(tags: Value, desired: Value) -> TwinWrite {
        let part = |value: Value| (!value.is_null()).then(|| object(value));
        TwinWrite::Patch { tags: part(tags), desired: part(desired) }
    }

    #[test]
    fn a_back_end_patches_tags_and_desired_properties_and_the_device_hears_of_the_latter() {
        let mut twin = DeviceTwin::default();
        let heard = twin
            .write(patch(json!({ "room": 1, "floor": 2 }), json!({ "led": { "on": true, "old": 1 } })), NOW);
        let told = json!({ "led": { "on": true, "old": 1 }, "$version": 2 });
        assert_eq!(heard, Ok(Some(DesiredChange { version: 2, patch: told })));
        // A deletion reaches the device as null, and keys that are not in the patch stay.
        let heard = twin.write(patch(Value::Null, json!({ "led": { "old": null } })), NOW).expect("taken");
        assert_eq!(heard.expect("told").patch, json!({ "led": { "old": null }, "$version": 3 }));
        let only_tags = [patch(json!({ "room": null }), Value::Null), patch(json!({}), json!({}))];
        assert_eq!(only_tags.map(|write| twin.write(write, NOW)), [Ok(None), Ok(None)]);
        assert_eq!(twin.properties()["desired"], json!({ "led": { "on": true }, "$version": 3 }));
        assert_eq!(*twin.tags(), object(json!({ "floor": 2 })));
        assert_eq!((twin.version(), twin.etag().as_str()), (6, "AAAAAAAAAAU="));
        twin.patch_reported(&json!({ "a": 1 }), NOW).expect("taken");
        assert_eq!((twin.version(), twin.etag().as_str()), (7, "AAAAAAAAAAU="));
    }

    #[test]
    fn a_replacement_reaches_the_device_as_the_patch_that_comes_to_it() {
        let mut twin = DeviceTwin::default();
        twin.write(patch(json!({ "room": 1 }), json!({ "a": 1, "b": { "x": 1, "y": 2 } })), NOW)
            .expect("taken");
        let desired = object(json!({ "b": { "y": 2, "z": null }, "c": [1] }));
        let heard = twin.write(TwinWrite::Replace { tags: Map::new(), desired }, NOW).expect("taken");
        let told = json!({ "a": null, "b": { "x": null }, "c": [1], "$version": 3 });
        assert_eq!(heard, Some(DesiredChange { version: 3, patch: told }));
        assert_eq!(twin.properties()["desired"], json!({ "b": { "y": 2 }, "c": [1], "$version": 3 }));
        assert!(twin.tags().is_empty());
    }

    #[test]
    fn what_a_back_end_may_not_write_changes_nothing() {
        let mut twin = DeviceTwin::default();
        let long = |count: usize| {
            (0..count).map(|n| (n.to_string(), Value::from("x".repeat(4095)))).collect::<Map<_, _>>()
        };
        let write =
            |tags: usize, desired: usize| TwinWrite::Replace { tags: long(tags), desired: long(desired) };
        twin.write(write(2, 8), NOW).expect("8 KiB and 32 KiB");
        assert_eq!(twin.write(write(3, 0), NOW), too_large(TwinSection::Tags, 12 * 1024));
        assert_eq!(twin.write(write(0, 9), NOW), too_large(TwinSection::Desired, 36 * 1024));
        assert_eq!(
            twin.write(patch(json!({ "2": false }), Value::Null), NOW),
            too_large(TwinSection::Tags, 8 * 1024 + 5)
        );
        let keys = [patch(json!({ "a.b": 1 }), Value::Null), patch(Value::Null, json!({ "a": { "$b": 1 } }))];
        for refused in keys.map(|write| twin.write(write, NOW)) {
            assert!(matches!(refused, Err(TwinError::Key(_))), "{refused:?}");
        }
        let deep = patch(Value::Null, nested(12));
        assert_eq!(twin.write(deep, NOW), Err(TwinError::TooDeep(TwinSection::Desired)));
        assert_eq!(twin.version(), 3);
    }

    #[test]
    fn what_earlier_versions_kept_of_a_twin_is_read() {
        let kept = r#"{"reported": {"led": "on"}, "reported_version": 7}"#;
        let twin: DeviceTwin = serde_json::from_str(kept).expect("a twin");
        assert_eq!((twin.version(), twin.properties()["desired"]["$version"].as_u64()), (8, Some(1)));
    }

    fn nested(levels: usize) -> Value {
        (0..levels).fold(json!(1), |inner, _| json!({ "k": inner }))
    }

    #[test]
    fn what_a_twin_cannot_hold_is_refused_and_changes_nothing() {
        let mut twin = DeviceTwin::default();
        twin.patch_reported(&json!({ "kept": true }), NOW).expect("taken");
        let before = twin.properties();
        let long = "x".repeat(1025);
        for patch in [json!([1]), json!("x"), json!(null)] {
            assert_eq!(twin.patch_reported(&patch, NOW), Err(TwinError::NotAnObject(TwinSection::Reported)));
        }
        for key in ["$version", "a.b", "a b", "", "a\u{7f}", "\u{85}", &long] {
            let refused = twin.patch_reported(&json!({ "fine": { key: 1 } }), NOW);
            assert!(matches!(refused, Err(TwinError::Key(_))), "{key:?}");
        }
        assert_eq!(twin.patch_reported(&nested(12), NOW), Err(TwinError::TooDeep(TwinSection::Reported)));
        let mut array = json!([]);
        for _ in 0..10 {
            array = json!([array]);
        }
        assert_eq!(
            twin.patch_reported(&json!({ "a": array }), NOW),
            Err(TwinError::TooDeep(TwinSection::Reported))
        );
        for number in [json!(4_503_599_627_370_496_u64), json!(u64::MAX), json!(i64::MIN)] {
            assert!(matches!(twin.patch_reported(&json!({ "n": number }), NOW), Err(TwinError::Integer(_))));
        }
        let text = "é".repeat(2049);
        assert!(matches!(
            twin.patch_reported(&json!({ "a": [text] }), NOW),
            Err(TwinError::StringTooLong { bytes: 4098, .. })
        ));
        assert_eq!(twin.properties(), before);
    }

    #[test]
    fn what_is_just_within_the_limits_is_taken() {
        let mut twin = DeviceTwin::default();
        twin.patch_reported(&nested(11), NOW).expect("ten levels below the top");
        twin.patch_reported(&json!({ "k": null, "n": [-4_503_599_627_370_496_i64, 1e300] }), NOW)
            .expect("numbers");
        let (key, text) = ("k".repeat(1024), "x".repeat(4096));
        twin.patch_reported(&json!({ "n": null, key: text }), NOW).expect("a long key and a long text");
    }

    #[test]
    fn the_whole_is_limited_to_32_kib_and_can_shrink_again() {
        let mut twin = DeviceTwin::default();
        let text = "x".repeat(4095);
        for n in 0..8 {
            twin.patch_reported(&json!({ n.to_string(): text }), NOW).expect("room");
        }
        assert_eq!(
            twin.patch_reported(&json!({ "b": false }), NOW),
            too_large(TwinSection::Reported, 32 * 1024 + 5)
        );
        let twelve = twin.patch_reported(&json!({ "b": false, "0": null }), NOW).expect("room again");
        assert_eq!(twelve, 10);
    }

    /// A twin as paths to leaves: a second model of merging, to compare with. An empty object is a leaf.
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

    /// The model: each leaf of the patch first clears everything at, above and below its path, and then is set there
    /// unless it is null. Keys on the path become objects, and stay when they become empty.
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
        // An object with content is not a leaf; an empty object is.
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
            let mut twin = DeviceTwin::default();
            let mut expected = Leaves::new();
            for (index, patch) in patches.iter().enumerate() {
                let version = twin.patch_reported(patch, NOW).expect("within the limits");
                prop_assert_eq!(version, index as u64 + 2);
                expected = model(expected, patch, &[]);
                let mut found = Leaves::new();
                leaves(&Value::Object(twin.reported.clone()), &[], &mut found);
                found.remove(&Vec::new());  // the root, if it is empty
                prop_assert_eq!(&found, &expected);
                // A patch with the present values changes only the version.
                let same = Value::Object(twin.reported.clone());
                let mut again = DeviceTwin { reported: twin.reported.clone(), reported_version: 7, ..DeviceTwin::default() };
                prop_assert_eq!(again.patch_reported(&same, NOW), Ok(8));
                prop_assert_eq!(again.reported, twin.reported.clone());
            }
        }
    }
}
