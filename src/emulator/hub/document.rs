//! Parts of a twin as JSON documents: what they may contain, and how a patch changes them.
//!
//! Owns: merging, differences, limits. Pure: no versions, no topics. Must not know: devices, MQTT, HTTPS.
//!
//! The merge rules are those of JSON merge patches: null deletes, an object merges, any other value replaces; an array
//! is replaced as a whole.
//! The limits are those of Microsoft's page "Understand and use device twins in IoT Hub".

use serde_json::{Map, Value};

/// Largest tags, in bytes as `size` counts them.
pub const MAX_TAGS_BYTES: usize = 8 * 1024;

/// Largest desired and largest reported properties, in bytes as `size` counts them.
pub const MAX_PROPERTIES_BYTES: usize = 32 * 1024;

/// Deepest nesting below the tags, the desired or the reported properties.
pub const MAX_DEPTH: usize = 10;

/// Longest key in bytes.
pub const MAX_KEY_BYTES: usize = 1024;

/// Longest string value in bytes.
pub const MAX_STRING_BYTES: usize = 4 * 1024;

/// The integers that a twin can hold.
const INTEGERS: std::ops::RangeInclusive<i64> = -4_503_599_627_370_496..=4_503_599_627_370_495;

/// A part of a twin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TwinSection {
    /// What the back end knows about a device. The device does not see it.
    Tags,
    /// What the back end wants.
    Desired,
    /// What the device reports.
    Reported,
}

impl TwinSection {
    /// The largest size of this part, as `size` counts.
    pub fn max_bytes(self) -> usize {
        match self {
            Self::Tags => MAX_TAGS_BYTES,
            Self::Desired | Self::Reported => MAX_PROPERTIES_BYTES,
        }
    }
}

impl std::fmt::Display for TwinSection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Tags => "the tags",
            Self::Desired => "the desired properties",
            Self::Reported => "the reported properties",
        })
    }
}

/// Why a change was refused. In this case nothing has changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TwinError {
    /// The device does not exist.
    #[error("the hub has no device \"{0}\"")]
    UnknownDevice(String),
    /// The back end's If-Match names another version. Hub code 412001.
    #[error("the twin of device \"{device_id}\" has the etag {etag} now: read it again")]
    Changed {
        /// The device with the twin.
        device_id: String,
        /// The twin's present etag.
        etag: String,
    },
    /// The part is an array, a string, a number, …
    #[error("{0} must be a JSON object")]
    NotAnObject(TwinSection),
    /// The key is not allowed.
    #[error(
        "\"{0}\" cannot be a key: it is empty or longer than {MAX_KEY_BYTES} bytes, or holds '.', '$', a space or a \
         control character"
    )]
    Key(String),
    /// Objects or arrays are nested too deep.
    #[error("{0} are nested more than {MAX_DEPTH} levels deep")]
    TooDeep(TwinSection),
    /// A string is too long.
    #[error("the string of key \"{key}\" has {bytes} bytes, more than {MAX_STRING_BYTES}")]
    StringTooLong {
        /// The nearest key.
        key: String,
        /// The string's length in bytes.
        bytes: usize,
    },
    /// The hub cannot store this integer.
    #[error("{0} is not an integer from {start} to {end}", start = INTEGERS.start(), end = INTEGERS.end())]
    Integer(String),
    /// The part would be too large after the patch. The size of the patch itself does not count.
    #[error("{part} would have {bytes} bytes, more than {max}", max = part.max_bytes())]
    TooLarge {
        /// The part of the twin.
        part: TwinSection,
        /// The size that the part would have.
        bytes: usize,
    },
}

impl TwinError {
    /// The hub's word for the error.
    pub fn word(&self) -> &'static str {
        match self {
            Self::UnknownDevice(_) => "DeviceNotFound",
            Self::Changed { .. } => "PreconditionFailed",
            _ => "ArgumentInvalid",
        }
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

/// The patch that turns `before` into `after`.
pub(super) fn difference(before: &Map<String, Value>, after: &Map<String, Value>) -> Map<String, Value> {
    let gone = before.keys().filter(|key| !after.contains_key(*key));
    let mut patch: Map<String, Value> = gone.map(|key| (key.clone(), Value::Null)).collect();
    for (key, value) in after {
        let changed = match (before.get(key), value) {
            (Some(before), after) if before == after => continue,
            // A patch cannot replace an object by an empty one, because objects merge. So each old key needs its own
            // null.
            (Some(Value::Object(before)), Value::Object(after)) => Value::Object(difference(before, after)),
            (_, after) => after.clone(),
        };
        patch.insert(key.clone(), changed);
    }
    patch
}

/// Merges a patch into a part of a twin, if the result is within the limits.
///
/// # Errors
/// [`TwinError`].
pub(super) fn merged(
    part: TwinSection,
    before: &Map<String, Value>,
    patch: &Map<String, Value>,
) -> Result<Map<String, Value>, TwinError> {
    check_object(part, patch, 0)?;
    let mut merged = before.clone();
    merge(&mut merged, patch);
    let bytes = size_of_object(&merged);
    if bytes > part.max_bytes() {
        return Err(TwinError::TooLarge { part, bytes });
    }
    Ok(merged)
}

fn check_object(part: TwinSection, object: &Map<String, Value>, depth: usize) -> Result<(), TwinError> {
    if depth > MAX_DEPTH {
        return Err(TwinError::TooDeep(part));
    }
    for (key, value) in object {
        let refused = |c: char| c.is_control() || matches!(c, '.' | '$' | ' ');
        if key.is_empty() || key.len() > MAX_KEY_BYTES || key.contains(refused) {
            return Err(TwinError::Key(key.chars().take(60).collect()));
        }
        check_value(part, key, value, depth)?;
    }
    Ok(())
}

fn check_value(part: TwinSection, key: &str, value: &Value, depth: usize) -> Result<(), TwinError> {
    match value {
        Value::Null | Value::Bool(_) => Ok(()),
        Value::Number(number) if number.is_f64() => Ok(()),
        Value::Number(number) if number.as_i64().is_some_and(|number| INTEGERS.contains(&number)) => Ok(()),
        Value::Number(number) => Err(TwinError::Integer(number.to_string())),
        Value::String(text) if text.len() > MAX_STRING_BYTES => {
            Err(TwinError::StringTooLong { key: key.chars().take(60).collect(), bytes: text.len() })
        }
        Value::String(_) => Ok(()),
        Value::Array(_) if depth >= MAX_DEPTH => Err(TwinError::TooDeep(part)),
        Value::Array(values) => values.iter().try_for_each(|value| check_value(part, key, value, depth + 1)),
        Value::Object(object) => check_object(part, object, depth + 1),
    }
}

/// The size of a value: keys and strings count their bytes, a number counts 8, other values count 4. An object or array
/// counts its content; an empty one counts 4, so that every value has a cost.
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
    use proptest::prelude::*;

    use super::*;

    fn any_object() -> impl Strategy<Value = Map<String, Value>> {
        let leaf = prop_oneof![any::<bool>().prop_map(Value::from), (0_i64..3).prop_map(Value::from)];
        let object = |inner: BoxedStrategy<Value>| {
            proptest::collection::btree_map("[abc]", inner, 0..4)
                .prop_map(|object| object.into_iter().collect::<Map<_, _>>())
        };
        let value = leaf.prop_recursive(3, 16, 4, move |inner| object(inner.boxed()).prop_map(Value::Object));
        object(value.boxed())
    }

    proptest! {
        #[test]
        fn a_difference_is_the_patch_that_makes_the_one_of_the_other(
            before in any_object(), after in any_object()
        ) {
            let patch = difference(&before, &after);
            prop_assert_eq!(patch.is_empty(), before == after);
            prop_assert_eq!(merged(TwinSection::Desired, &before, &patch), Ok(after));
        }
    }
}
