//! Reads a JSON body: only the fields that rules look at.
//!
//! Owns: which fields these are, and how all others are skipped. Must not know: conditions, templates, messages.
//!
//! Building a whole body of 64 KiB takes twenty times as long as finding a few fields in it.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use super::subject::Subject;

/// The parser reads no deeper than this, so there are no deeper fields.
const MAX_DEPTH: usize = 127;

/// Fields by name, each with its inner fields.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct BodyFields(BTreeMap<String, BodyFields>);

impl BodyFields {
    /// The fields among the subjects.
    pub(super) fn of<'s>(subjects: impl Iterator<Item = &'s Subject>) -> Self {
        let mut fields = Self::default();
        for subject in subjects {
            match subject {
                Subject::Body(path) if path.len() <= MAX_DEPTH => {
                    let mut inner = &mut fields;
                    for name in path {
                        inner = inner.0.entry(name.clone()).or_default();
                    }
                }
                Subject::Body(_) | Subject::Property(_) => {}
            }
        }
        fields
    }

    /// The body with only the wanted fields. `None` if it is not JSON.
    pub(super) fn read(&self, body: &[u8]) -> Option<Value> {
        let mut json = serde_json::Deserializer::from_str(std::str::from_utf8(body).ok()?);
        let value = self.deserialize(&mut json).ok()?;
        json.end().ok().map(|()| value)
    }
}

impl<'de> DeserializeSeed<'de> for &BodyFields {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<Value, D::Error> {
        json.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for &BodyFields {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Value, M::Error> {
        let mut kept = Map::new();
        while let Some(found) = map.next_key_seed(FieldName(self))? {
            match found {
                Some((name, fields)) => drop(kept.insert(name.clone(), map.next_value_seed(fields)?)),
                None => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(Value::Object(kept))
    }

    fn visit_seq<S: SeqAccess<'de>>(self, mut all: S) -> Result<Value, S::Error> {
        while all.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Value::Array(Vec::new()))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Value, E> {
        Ok(Value::String(text.to_owned()))
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<Value, E> {
        Ok(Value::Number(number.into()))
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<Value, E> {
        Ok(Value::Number(number.into()))
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<Value, E> {
        Ok(Number::from_f64(number).map_or(Value::Null, Value::Number))
    }

    fn visit_bool<E: Error>(self, flag: bool) -> Result<Value, E> {
        Ok(Value::Bool(flag))
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
}

/// Reads the name of a field. Returns its inner fields if the field is wanted.
struct FieldName<'f>(&'f BodyFields);

impl<'de, 'f> DeserializeSeed<'de> for FieldName<'f> {
    type Value = Option<(&'f String, &'f BodyFields)>;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<Self::Value, D::Error> {
        json.deserialize_str(self)
    }
}

impl<'f> Visitor<'_> for FieldName<'f> {
    type Value = Option<(&'f String, &'f BodyFields)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the name of a field")
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<Self::Value, E> {
        Ok(self.0.0.get_key_value(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn fields(names: &[&str]) -> BodyFields {
        let subjects: Vec<_> = names.iter().map(|name| Subject::parse(name).expect("a name")).collect();
        BodyFields::of(subjects.iter())
    }

    fn json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            "[a-zé\"\\\\\n]{0,4}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 40, 4, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                proptest::collection::btree_map("[abc]{1,2}", inner, 0..4)
                    .prop_map(|all| Value::Object(all.into_iter().collect())),
            ]
        })
    }

    fn look<'v>(mut value: &'v Value, path: &[&str]) -> Option<&'v Value> {
        for name in path {
            value = value.as_object()?.get(*name)?;
        }
        Some(value)
    }

    proptest! {
        #[test]
        fn each_field_that_is_looked_at_is_as_in_the_whole_body(json in json()) {
            let paths = [vec!["a"], vec!["a", "b"], vec!["b"], vec!["c", "a", "b"], vec!["aa", "c"]];
            let names: Vec<_> = paths.iter().map(|path| format!("body.{}", path.join("."))).collect();
            let fields = fields(&names.iter().map(String::as_str).collect::<Vec<_>>());
            let text = json.to_string();
            // The comparison is with serde_json's own reading, because the last digit of a number may differ from the
            // text.
            let whole: Value = serde_json::from_str(&text).expect("JSON");
            let kept = fields.read(text.as_bytes()).expect("JSON");
            for path in paths {
                match (look(&whole, &path), look(&kept, &path)) {
                    (Some(Value::Object(_)), Some(Value::Object(_))) => {}
                    (Some(Value::Array(_)), Some(Value::Array(_))) => {}
                    (whole, kept) => prop_assert_eq!(whole, kept),
                }
            }
        }
    }

    #[test]
    fn what_is_no_json_is_none_of_which_field_so_ever() {
        let fields = fields(&["body.a"]);
        for text in ["", "{", r#"{"a":1}x"#, r#"{"b":nul,"a":1}"#, r#"{"a":1"#, "'a'"] {
            assert_eq!(fields.read(text.as_bytes()), None, "{text}");
        }
        assert_eq!(fields.read(b"{\"a\":\"\xff\"}"), None);
        // If a name comes twice, the last one counts, as everywhere in JSON.
        assert_eq!(fields.read(br#"{"a":1,"b":[{}],"a":2}"#), Some(serde_json::json!({"a": 2})));
    }

    #[test]
    fn a_body_and_a_name_of_any_depth_are_read_without_harm() {
        let deep = "[".repeat(30_000) + &"]".repeat(30_000);
        assert!(fields(&["body.a"]).read(format!("{{\"b\":{deep},\"a\":1}}").as_bytes()).is_some());
        let name = format!("body{}", ".a".repeat(100_000));
        let body = "{\"a\":".repeat(30_000) + "1" + &"}".repeat(30_000);
        assert!(fields(&[&name]).read(body.as_bytes()).is_some());
        assert!(fields(&[&name[..4 + 2 * MAX_DEPTH]]).read(body.as_bytes()).is_none());
    }
}
