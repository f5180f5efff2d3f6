//! The values that conditions look at and templates use: properties and fields of a JSON body, by name.
//!
//! Owns: the names, and their lookup in one message. Must not know: conditions, templates.

use std::borrow::Cow;
use std::cell::OnceCell;
use std::collections::HashMap;

use serde::de::IgnoredAny;
use serde_json::Value;

use crate::message::{C2dMessage, MAX_C2D_BYTES, SOURCE, excerpt, is_system_property};

use super::body::BodyFields;
use super::subject::Subject;

/// With at most this many properties, a search is faster than an index.
const FEW: usize = 16;
/// How many properties are searched for a name like a missing one, and how long their names may be.
const MOST_COMPARED: usize = 50;
const LONGEST_COMPARED: usize = 100;

/// The value that a message has under a name.
#[derive(Debug, PartialEq)]
pub(super) enum Found<'m> {
    /// There is no value, or it is JSON's null.
    Missing,
    /// Text. Numbers, true and false of a JSON body are as they are written there.
    Text(Cow<'m, str>),
    /// A JSON object or array, which has no text.
    Structure,
}

/// The values of one message. The index of its properties and the fields of its body are made only once, when first
/// needed, because there may be thousands of properties and thousands of conditions.
pub(super) struct Values<'m> {
    message: &'m C2dMessage,
    /// The body fields that may be asked for.
    fields: &'m BodyFields,
    index: OnceCell<HashMap<&'m str, &'m str>>,
    body: OnceCell<Option<Value>>,
    /// All fields of the body.
    body_names: OnceCell<HashMap<String, IgnoredAny>>,
}

impl<'m> Values<'m> {
    pub(super) fn of(message: &'m C2dMessage, fields: &'m BodyFields) -> Self {
        Self { message, fields, index: OnceCell::new(), body: OnceCell::new(), body_names: OnceCell::new() }
    }

    pub(super) fn find(&self, subject: &Subject) -> Found<'_> {
        match subject {
            Subject::Property(name) => match self.property(name) {
                Some(text) => Found::Text(Cow::Borrowed(text)),
                None => Found::Missing,
            },
            Subject::Body(path) => self.find_in_body(path),
        }
    }

    fn property(&self, name: &str) -> Option<&'m str> {
        let C2dMessage { system, application, .. } = self.message;
        if system.len() + application.len() <= FEW {
            return self.message.property(name);
        }
        let index = self.index.get_or_init(|| {
            let system = system.iter().filter(|(name, _)| is_system_property(name));
            let application = application.iter().filter(|(name, _)| !is_system_property(name));
            let text = |(name, value): (&'m str, Option<&'m str>)| (name, value.unwrap_or(""));
            let mut index: HashMap<_, _> = application.chain(system).map(text).collect();
            index.insert(SOURCE, self.message.source().word());
            index
        });
        index.get(name).copied()
    }

    /// A hint at the mistake if a value is missing: a space and text in brackets. Empty if there is no hint.
    pub(super) fn remark(&self, subject: &Subject) -> String {
        match subject {
            Subject::Property(name) => self.remark_on_property(name),
            Subject::Body(_) if self.message.body.is_empty() => " (the body is empty)".to_owned(),
            Subject::Body(_) if self.json().is_none() => " (the body is not JSON)".to_owned(),
            Subject::Body(_) => String::new(),
        }
    }

    fn remark_on_property(&self, name: &str) -> String {
        let application = self.message.application.iter().map(|(name, _)| name).take(MOST_COMPARED);
        let names: Vec<&str> = application.filter(|name| name.len() <= LONGEST_COMPARED).collect();
        if let Some(other) = names.iter().find(|other| other.eq_ignore_ascii_case(name)) {
            return format!(" (there is {}: upper and lower case differ)", excerpt(other));
        }
        let is_near =
            |other: &&&str| name.len() <= LONGEST_COMPARED && strsim::jaro_winkler(other, name) > 0.8;
        if let Some(other) = names.iter().find(is_near) {
            return format!(" (there is \"{}\")", excerpt(other));
        }
        if !is_system_property(name) && self.body_has(name) {
            return format!(" (the body has it: in a rule write \"body.{}\")", excerpt(name));
        }
        String::new()
    }

    /// Whether the body is a JSON object with this field, even if no rule looks at it.
    fn body_has(&self, name: &str) -> bool {
        let body = &self.message.body;
        let parse = || match body.len() {
            ..=MAX_C2D_BYTES => serde_json::from_slice(body).unwrap_or_default(),
            _ => HashMap::new(),
        };
        self.body_names.get_or_init(parse).contains_key(name)
    }

    fn find_in_body(&self, path: &[String]) -> Found<'_> {
        let mut value = self.json();
        for name in path {
            value = value.and_then(|value| value.as_object()).and_then(|object| object.get(name));
        }
        match value {
            None | Some(Value::Null) => Found::Missing,
            Some(Value::String(text)) => Found::Text(Cow::Borrowed(text)),
            Some(Value::Bool(flag)) => Found::Text(Cow::Borrowed(if *flag { "true" } else { "false" })),
            Some(Value::Number(number)) => Found::Text(Cow::Owned(number.to_string())),
            Some(Value::Array(_) | Value::Object(_)) => Found::Structure,
        }
    }

    /// The body as JSON. A body above the hub's size limit is not parsed.
    fn json(&self) -> Option<&Value> {
        let body = &self.message.body;
        let parse = || if body.len() > MAX_C2D_BYTES { None } else { self.fields.read(body) };
        self.body.get_or_init(parse).as_ref()
    }
}
