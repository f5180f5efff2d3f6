//! What a condition looks at and a template takes: properties and fields of a JSON body, by name.
//!
//! Owns: the names, and looking them up in one message. Must not know: conditions, templates.
//! Used by: `rules::condition`, `rules::template`.

use std::borrow::Cow;
use std::cell::OnceCell;
use std::fmt;

use serde_json::Value;

use crate::message::{C2dMessage, MAX_C2D_BYTES, is_system_property};

/// A name in a rule: `state`, `$.cid` or `body.zone`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Subject {
    /// An application property, or a system property such as `$.cid`.
    Property(String),
    /// A field of the JSON body: the names from the outermost object inwards.
    Body(Vec<String>),
}

impl Subject {
    /// Reads a name; `None` when it, or a part of it, is empty.
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

    /// The name of an application property, when it is one.
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

/// What a message has under a name.
#[derive(Debug, PartialEq)]
pub(super) enum Found<'m> {
    /// Nothing, or JSON's null.
    Missing,
    /// Text; numbers, true and false of a JSON body as they are written there.
    Text(Cow<'m, str>),
    /// A JSON object or array, which has no text.
    Structure,
}

/// The values of one message; the body is parsed when first needed, and once.
pub(super) struct Values<'m> {
    message: &'m C2dMessage,
    body: OnceCell<Option<Value>>,
}

impl<'m> Values<'m> {
    pub(super) fn of(message: &'m C2dMessage) -> Self {
        Self { message, body: OnceCell::new() }
    }

    pub(super) fn find(&self, subject: &Subject) -> Found<'_> {
        match subject {
            Subject::Property(name) => match self.message.property(name) {
                Some(text) => Found::Text(Cow::Borrowed(text)),
                None => Found::Missing,
            },
            Subject::Body(path) => self.find_in_body(path),
        }
    }

    /// Why a body field is missing, where the field itself is not the reason.
    pub(super) fn remark(&self, subject: &Subject) -> &'static str {
        match subject {
            Subject::Property(_) => "",
            Subject::Body(_) if self.message.body.is_empty() => " (the body is empty)",
            Subject::Body(_) if self.json().is_none() => " (the body is not JSON)",
            Subject::Body(_) => "",
        }
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

    /// The body as JSON. A body past the size that the hub delivers is not looked into.
    fn json(&self) -> Option<&Value> {
        let body = &self.message.body;
        let parse = || {
            if body.len() > MAX_C2D_BYTES { None } else { serde_json::from_slice(body).ok() }
        };
        self.body.get_or_init(parse).as_ref()
    }
}
