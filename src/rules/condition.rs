//! Conditions: what a rule requires of a message.
//!
//! Owns: the tests and their words. Must not know: TOML, steps.

use crate::message::excerpt;

use super::glob::{self, Glob};
use super::subject::Subject;
use super::values::{Found, Values};

/// Most values of a list that a mismatch names.
const MOST_NAMED: usize = 20;
/// Longest text that is read as a number, in bytes.
const MAX_NUMBER: usize = 64;

/// One condition: a name, and what its value must be.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Condition {
    pub(crate) subject: Subject,
    pub(crate) test: Test,
}

/// What a value must be. If the value is missing, only [`Test::Absent`] holds.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Test {
    /// This text.
    Equals(String),
    /// One of these texts.
    OneOf(Choices),
    /// Text with this beginning.
    Prefix(String),
    /// Text that a shell-style pattern matches as a whole. `*` also matches slashes.
    Glob(Glob),
    /// A decimal number from `min` to `max`, both included.
    Range { min: f64, max: f64 },
    /// Any value, but it must exist.
    Present,
    /// The value must not exist.
    Absent,
}

/// A list of texts with a fast search.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Choices {
    texts: Vec<String>,
    /// The positions of the texts in alphabetical order.
    sorted: Vec<usize>,
}

impl Choices {
    pub(crate) fn new(texts: Vec<String>) -> Self {
        let mut sorted: Vec<usize> = (0..texts.len()).collect();
        sorted.sort_by_key(|at| texts.get(*at));
        Self { texts, sorted }
    }

    /// The texts in the order in which they were written.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &String> {
        self.texts.iter()
    }

    fn has(&self, text: &str) -> bool {
        let order = |at: &usize| self.texts.get(*at).map(String::as_str).cmp(&Some(text));
        self.sorted.binary_search_by(order).is_ok()
    }
}

impl Condition {
    pub(super) fn holds(&self, values: &Values<'_>) -> bool {
        match values.find(&self.subject) {
            Found::Missing => self.test == Test::Absent,
            Found::Structure => self.test == Test::Present,
            Found::Text(text) => self.test.takes(&text),
        }
    }

    /// Whether the condition does not hold because its value is missing.
    pub(super) fn misses(&self, values: &Values<'_>) -> bool {
        values.find(&self.subject) == Found::Missing && self.test != Test::Absent
    }

    /// Why the condition does not hold: the present value, and what it should be.
    pub(super) fn mismatch(&self, values: &Values<'_>) -> Option<String> {
        if self.holds(values) {
            return None;
        }
        let wanted = self.test.wanted();
        let (found, remark) = (values.find(&self.subject), values.remark(&self.subject));
        let subject = excerpt(&self.subject.to_string());
        Some(match found {
            Found::Missing => format!("{subject} is missing{remark}, not {wanted}"),
            Found::Structure => format!("{subject} is an object or array, not {wanted}"),
            Found::Text(text) => match self.test.longest().filter(|longest| text.len() > *longest) {
                Some(longest) => format!(
                    "{subject} has {} bytes, but at most {longest} can be compared with {wanted}",
                    text.len()
                ),
                None => format!("{subject} is \"{}\", not {wanted}", excerpt(&text)),
            },
        })
    }

    /// Whether the condition lists exactly this value of `subject`.
    pub(super) fn lists(&self, subject: &Subject, text: &str) -> bool {
        self.subject == *subject
            && match &self.test {
                Test::Equals(value) => value == text,
                Test::OneOf(choices) => choices.has(text),
                _ => false,
            }
    }

    /// Whether a message that meets the condition may have this value of `subject`.
    pub(super) fn allows(&self, subject: &Subject, text: &str) -> bool {
        self.subject != *subject || self.test.takes(text)
    }

    /// Whether a message that meets the condition always has a value under `subject`.
    pub(super) fn guarantees(&self, subject: &Subject) -> bool {
        self.subject == *subject && self.test != Test::Absent
    }
}

impl Test {
    pub(crate) fn takes(&self, text: &str) -> bool {
        match self {
            Self::Equals(value) => value == text,
            Self::OneOf(choices) => choices.has(text),
            Self::Prefix(prefix) => text.starts_with(prefix.as_str()),
            Self::Glob(pattern) => pattern.matches(text),
            Self::Range { min, max } => {
                text.len() <= MAX_NUMBER
                    && decimal(text).is_some_and(|number| (*min..=*max).contains(&number))
            }
            Self::Present => true,
            Self::Absent => false,
        }
    }

    /// The texts of which the value must be one. Empty if the test asks for something else.
    pub(crate) fn texts(&self) -> &[String] {
        match self {
            Self::Equals(text) => std::slice::from_ref(text),
            Self::OneOf(choices) => &choices.texts,
            _ => &[],
        }
    }

    /// The longest text that the test accepts for comparison, in bytes, if there is a limit.
    fn longest(&self) -> Option<usize> {
        match self {
            Self::Glob(_) => Some(glob::MAX_TEXT),
            Self::Range { .. } => Some(MAX_NUMBER),
            _ => None,
        }
    }

    fn wanted(&self) -> String {
        match self {
            Self::Equals(value) => format!("\"{}\"", excerpt(value)),
            Self::OneOf(choices) => {
                let named = choices.iter().take(MOST_NAMED);
                let mut quoted: Vec<_> = named.map(|value| format!("\"{}\"", excerpt(value))).collect();
                if let more @ 1.. = choices.texts.len().saturating_sub(MOST_NAMED) {
                    quoted.push(format!("… {more} more"));
                }
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

/// A decimal number in plain notation, `-?(0|[1-9][0-9]*)(\.[0-9]+)?`. Other notations are no numbers, because
/// programs read them in different ways: `1e1`, `+5`, `010` (8 to some), `inf`.
fn decimal(text: &str) -> Option<f64> {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let unsigned = text.strip_prefix('-').unwrap_or(text);
    let (whole, is_fraction) = match unsigned.split_once('.') {
        Some((whole, fraction)) => (whole, digits(fraction)),
        None => (unsigned, true),
    };
    let is_plain = digits(whole) && (whole == "0" || !whole.starts_with('0')) && is_fraction;
    text.parse().ok().filter(|_| is_plain)
}
