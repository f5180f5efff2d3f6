//! Reads TOML values, and reports every mistake at its place.
//!
//! Owns: types, words, durations, sizes. Must not know: what the keys mean.

use std::ops::Range;
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::report::{Report, holds_a_secret};

/// One key and its value.
#[derive(Debug, Clone)]
pub(super) struct Field<'t> {
    pub(super) key: &'t str,
    pub(super) key_place: Range<usize>,
    pub(super) value: Value<'t>,
}

/// A value and its place.
#[derive(Debug, Clone)]
pub(super) struct Value<'t> {
    pub(super) place: Range<usize>,
    pub(super) value: &'t DeValue<'t>,
}

/// The fields of a table, in the order of the file.
pub(super) fn fields<'t>(table: &'t DeTable<'t>) -> Vec<Field<'t>> {
    let mut fields: Vec<_> = table
        .iter()
        .map(|(key, value)| Field { key: key.get_ref(), key_place: key.span(), value: Value::of(value) })
        .collect();
    fields.sort_by_key(|field| field.key_place.start);
    fields
}

impl<'t> Field<'t> {
    /// The values of an array. `needed` says what it should look like.
    pub(super) fn array(&self, needed: &str, report: &mut Report) -> Option<Vec<Value<'t>>> {
        match self.value.value {
            DeValue::Array(array) => Some(array.iter().map(Value::of).collect()),
            _ => self.wrong_type(needed, report),
        }
    }

    /// A text that is not empty and has no control characters.
    pub(super) fn text(&self, report: &mut Report) -> Option<&'t str> {
        match self.value.value {
            DeValue::String(text) if text.is_empty() => {
                self.wrong(format!("{} is empty", shown(self.key)), report)
            }
            DeValue::String(text) if text.contains(char::is_control) => {
                self.wrong(format!("{} contains control characters", shown(self.key)), report)
            }
            DeValue::String(text) => Some(text),
            _ => self.wrong_type("a text in quotes", report),
        }
    }

    /// `true` or `false`.
    pub(super) fn flag(&self, report: &mut Report) -> Option<bool> {
        match self.value.value {
            DeValue::Boolean(flag) => Some(*flag),
            _ => self.wrong_type("true or false", report),
        }
    }

    /// One of a few words.
    pub(super) fn word<T: Copy>(&self, words: &[(&str, T)], report: &mut Report) -> Option<T> {
        let list = || words.iter().map(|(word, _)| format!("\"{word}\"")).collect::<Vec<_>>().join(", ");
        match self.value.value {
            DeValue::String(text) => match words.iter().find(|(word, _)| word == text) {
                Some((_, value)) => Some(*value),
                None => {
                    self.wrong(format!("{} is \"{}\": use one of {}", self.key, shown(text), list()), report)
                }
            },
            _ => self.wrong_type(&format!("one of {}", list()), report),
        }
    }

    /// A duration such as `"400ms"`, within limits.
    pub(super) fn duration(&self, limits: (Duration, Duration), report: &mut Report) -> Option<Duration> {
        let DeValue::String(text) = self.value.value else {
            return self.wrong_type("a duration in quotes, such as \"400ms\", \"30s\" or \"10m\"", report);
        };
        let Ok(duration) = humantime::parse_duration(text) else {
            let message = format!(
                "{} is \"{}\", which is not a duration: write one such as \"400ms\", \"30s\" or \"10m\"",
                self.key,
                shown(text)
            );
            return self.wrong(message, report);
        };
        if duration < limits.0 || duration > limits.1 {
            let [least, most] = [limits.0, limits.1].map(humantime::format_duration);
            let message = format!("{} is \"{}\": it must be from {least} to {most}", self.key, shown(text));
            return self.wrong(message, report);
        }
        Some(duration)
    }

    /// A whole number within limits.
    pub(super) fn whole(&self, limits: (u64, u64), report: &mut Report) -> Option<u64> {
        let DeValue::Integer(integer) = self.value.value else {
            return self.wrong_type("a whole number", report);
        };
        let number = self.value.integer().and_then(|number| u64::try_from(number).ok());
        let within = number.filter(|number| (limits.0..=limits.1).contains(number));
        if within.is_none() {
            let (least, most) = limits;
            return self
                .wrong(format!("{} is {integer}: it must be from {least} to {most}", self.key), report);
        }
        within
    }

    /// A number of bytes, or a text such as `"16MiB"`, within limits.
    pub(super) fn size(&self, limits: (u64, u64), report: &mut Report) -> Option<u64> {
        let (bytes, written) = match self.value.value {
            DeValue::String(text) => (parse_size(text), format!("\"{}\"", shown(text))),
            DeValue::Integer(integer) => {
                (self.value.integer().and_then(|bytes| u64::try_from(bytes).ok()), integer.to_string())
            }
            _ => return self.wrong_type("a number of bytes, or a text such as \"16MiB\"", report),
        };
        if bytes.is_some_and(|bytes| (limits.0..=limits.1).contains(&bytes)) {
            return bytes;
        }
        let [least, most] = [limits.0, limits.1].map(format_size);
        let message =
            format!("{} is {written}: it must be from {least} to {most}, such as \"16MiB\"", self.key);
        self.wrong(message, report)
    }

    /// Reports that the value has another type than `needed`.
    pub(super) fn wrong_type<T>(&self, needed: &str, report: &mut Report) -> Option<T> {
        let found = self.value.value.type_str();
        let article = if found.starts_with(['a', 'i']) { "an" } else { "a" };
        self.wrong(format!("{} is {article} {found}, but must be {needed}", shown(self.key)), report)
    }

    /// Reports a problem with the value.
    pub(super) fn wrong<T>(&self, message: impl Into<String>, report: &mut Report) -> Option<T> {
        report.problem(self.value.place.clone(), message);
        None
    }
}

impl<'t> Value<'t> {
    pub(super) fn of(value: &'t Spanned<DeValue<'t>>) -> Self {
        Self { place: value.span(), value: value.get_ref() }
    }

    /// The value under the given key, so that the methods of [`Field`] can be used.
    pub(super) fn named(&self, key: &'t str) -> Field<'t> {
        Field { key, key_place: self.place.clone(), value: self.clone() }
    }

    /// A whole number.
    pub(super) fn integer(&self) -> Option<i64> {
        let integer = self.value.as_integer()?;
        i64::from_str_radix(integer.as_str(), integer.radix()).ok()
    }

    /// A whole or fractional number. It is finite.
    pub(super) fn number(&self) -> Option<f64> {
        match self.value {
            DeValue::Integer(_) => self.integer().map(|integer| integer as f64),
            DeValue::Float(float) => float.as_str().parse().ok().filter(|number: &f64| number.is_finite()),
            _ => None,
        }
    }

    /// The text that a property is compared with: a text, or a whole number or `true`/`false` as a message writes it.
    pub(super) fn comparable(&self) -> Option<String> {
        match self.value {
            DeValue::String(text) => Some(text.to_string()),
            DeValue::Integer(_) => self.integer().map(|integer| integer.to_string()),
            DeValue::Boolean(flag) => Some(flag.to_string()),
            _ => None,
        }
    }
}

/// Foreign text for a message: short, escaped, and without pasted secrets.
pub(super) fn shown(text: &str) -> String {
    if holds_a_secret(text) { "(a secret)".to_owned() } else { crate::message::excerpt(text) }
}

const UNITS: [(&str, u64); 3] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];

fn parse_size(text: &str) -> Option<u64> {
    let unit = UNITS.iter().find_map(|(unit, bytes)| Some((text.strip_suffix(unit)?, *bytes)));
    let (number, bytes) = unit.unwrap_or((text, 1));
    number.trim_end().parse::<u64>().ok()?.checked_mul(bytes)
}

/// `16MiB`; the plain number if no unit divides it.
pub(super) fn format_size(bytes: u64) -> String {
    let unit = UNITS.iter().find(|(_, size)| bytes >= *size && bytes.is_multiple_of(*size));
    unit.map_or(bytes.to_string(), |(unit, size)| format!("{}{unit}", bytes / size))
}
