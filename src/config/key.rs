//! A key of the configuration: its name, its values, and what it means.
//!
//! Owns: the kinds of values with their limits. Must not know: which keys exist.

use std::time::Duration;

use super::field::Field;
use super::report::Report;

/// One key. A parser has a constant for each, so the reference of a key says what the parser does.
#[cfg_attr(
    not(any(feature = "full", feature = "manual")),
    expect(dead_code, reason = "only the reference reads absent and about")
)]
pub(super) struct Key<K> {
    pub(super) name: &'static str,
    pub(super) kind: K,
    pub(super) absent: Absent,
    /// Markdown for the reference: a part of a sentence, or sentences. Links are relative to `docs/src/reference/`.
    pub(super) about: &'static str,
}

/// What an absent key means.
#[derive(Clone, Copy)]
#[cfg_attr(
    not(any(feature = "full", feature = "manual")),
    expect(dead_code, reason = "only the reference reads it")
)]
pub(crate) enum Absent {
    /// An absent key means this value, here without the quotes of a text.
    Means(&'static str),
    /// An absent key means no value, or what `about` says.
    Nothing,
    /// An absent key is a problem.
    Refused,
}

/// A kind of value that can be read with nothing but its key.
pub(super) trait ValueKind {
    type Value;

    /// The value; `None` after a problem was reported.
    fn read(&self, field: &Field<'_>, report: &mut Report) -> Option<Self::Value>;
}

/// A text that is not empty and has no control characters.
pub(super) struct Text;
/// A text that names a file, not empty and without control characters.
pub(super) struct FilePath;
/// `true` or `false`.
pub(super) struct Flag;
/// One of a few words, each with its value.
pub(super) struct Words<T: 'static>(pub(super) &'static [(&'static str, T)]);
/// A duration such as `"400ms"`, between two limits.
pub(super) struct Span(pub(super) Duration, pub(super) Duration);
/// A whole number, between two limits.
pub(super) struct Whole(pub(super) u64, pub(super) u64);
/// A number of bytes, or a text such as `"16MiB"`, between two limits.
pub(super) struct Size(pub(super) u64, pub(super) u64);
/// A value with a parser of its own. The first text describes its values, in Markdown; the second one is the name of
/// its definition in the schema.
#[cfg_attr(
    not(any(feature = "full", feature = "manual")),
    expect(dead_code, reason = "only the reference reads it")
)]
pub(super) struct Form(pub(super) &'static str, pub(super) &'static str);

impl<K: ValueKind> Key<K> {
    /// The value of `field`, which belongs to this key; `None` after a problem was reported.
    pub(super) fn read(&self, field: &Field<'_>, report: &mut Report) -> Option<K::Value> {
        self.kind.read(field, report)
    }
}

impl ValueKind for Text {
    type Value = String;

    fn read(&self, field: &Field<'_>, report: &mut Report) -> Option<String> {
        field.text(report).map(str::to_owned)
    }
}

impl ValueKind for Flag {
    type Value = bool;

    fn read(&self, field: &Field<'_>, report: &mut Report) -> Option<bool> {
        field.flag(report)
    }
}

impl<T: Copy> ValueKind for Words<T> {
    type Value = T;

    fn read(&self, field: &Field<'_>, report: &mut Report) -> Option<T> {
        field.word(self.0, report)
    }
}

impl ValueKind for Span {
    type Value = Duration;

    fn read(&self, field: &Field<'_>, report: &mut Report) -> Option<Duration> {
        field.duration((self.0, self.1), report)
    }
}

impl ValueKind for Whole {
    type Value = u64;

    fn read(&self, field: &Field<'_>, report: &mut Report) -> Option<u64> {
        field.whole((self.0, self.1), report)
    }
}

impl ValueKind for Size {
    type Value = u64;

    fn read(&self, field: &Field<'_>, report: &mut Report) -> Option<u64> {
        field.size((self.0, self.1), report)
    }
}
