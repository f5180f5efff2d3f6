//! Conditions: what a rule asks of a message.
//!
//! Owns: the tests and their words. Must not know: TOML, steps.
//! Used by: `rules`, `config` (builds them), `rules::template` (values that a condition lists).

use crate::message::excerpt;

use super::values::{Found, Subject, Values};

/// One condition: a name, and what its value must be.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Condition {
    pub(crate) subject: Subject,
    pub(crate) test: Test,
}

/// What a value must be. A missing value meets only [`Test::Absent`].
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Test {
    /// This text.
    Equals(String),
    /// One of these texts.
    OneOf(Vec<String>),
    /// Text that begins so.
    Prefix(String),
    /// Text that a shell-style pattern matches whole; `*` also matches slashes.
    Glob(glob::Pattern),
    /// A decimal number from `min` to `max`, both included.
    Range { min: f64, max: f64 },
    /// Anything, as long as it is there.
    Present,
    /// Nothing: it must not be there.
    Absent,
}

impl Condition {
    pub(super) fn holds(&self, values: &Values<'_>) -> bool {
        match values.find(&self.subject) {
            Found::Missing => self.test == Test::Absent,
            Found::Structure => self.test == Test::Present,
            Found::Text(text) => self.test.takes(&text),
        }
    }

    /// Why the condition does not hold: the value that is there, and what it should be.
    pub(super) fn mismatch(&self, values: &Values<'_>) -> Option<String> {
        if self.holds(values) {
            return None;
        }
        let (subject, wanted) = (&self.subject, self.test.wanted());
        Some(match values.find(subject) {
            Found::Missing => format!("{subject} is missing{}, not {wanted}", values.remark(subject)),
            Found::Structure => format!("{subject} is an object or array, not {wanted}"),
            Found::Text(text) => format!("{subject} is \"{}\", not {wanted}", excerpt(&text)),
        })
    }

    /// Whether the condition names this very value of `subject` as good.
    pub(super) fn lists(&self, subject: &Subject, text: &str) -> bool {
        self.subject == *subject
            && match &self.test {
                Test::Equals(value) => value == text,
                Test::OneOf(values) => values.iter().any(|value| value == text),
                _ => false,
            }
    }

    /// Whether a message that meets the condition may have this value of `subject`.
    pub(super) fn allows(&self, subject: &Subject, text: &str) -> bool {
        self.subject != *subject || self.test.takes(text)
    }

    /// Whether a message that meets the condition surely has a text under `subject`.
    pub(super) fn guarantees(&self, subject: &Subject) -> bool {
        self.subject == *subject && self.test != Test::Absent
    }
}

impl Test {
    pub(crate) fn takes(&self, text: &str) -> bool {
        match self {
            Self::Equals(value) => value == text,
            Self::OneOf(values) => values.iter().any(|value| value == text),
            Self::Prefix(prefix) => text.starts_with(prefix.as_str()),
            Self::Glob(pattern) => pattern.matches(text),
            Self::Range { min, max } => {
                text.parse::<f64>().is_ok_and(|number| (*min..=*max).contains(&number))
            }
            Self::Present => true,
            Self::Absent => false,
        }
    }

    fn wanted(&self) -> String {
        match self {
            Self::Equals(value) => format!("\"{}\"", excerpt(value)),
            Self::OneOf(values) => {
                let quoted: Vec<_> = values.iter().map(|value| format!("\"{}\"", excerpt(value))).collect();
                format!("one of {}", quoted.join(", "))
            }
            Self::Prefix(prefix) => format!("text that begins with \"{}\"", excerpt(prefix)),
            Self::Glob(pattern) => format!("text like \"{}\"", excerpt(pattern.as_str())),
            Self::Range { min, max } => format!("a number from {min} to {max}"),
            Self::Present => "present".into(),
            Self::Absent => "absent".into(),
        }
    }
}
