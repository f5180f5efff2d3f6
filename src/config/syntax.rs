//! Parses a text as TOML, and explains why it is none, for people who do not know TOML.
//!
//! Owns: recognising other formats, the sentences in place of the parser's messages, places in several texts.
//! Must not know: keys.

use std::ops::Range;

use serde::de::IgnoredAny;
use toml::Spanned;
use toml::de::{DeTable, DeValue, Error};

use super::field::shown;
use super::report::{Place, Report};
use super::sources::SourceFile;

/// How TOML looks, for a person who writes JSON, YAML or another format.
const FORM: &str = "write tables such as [device], and below them lines such as transport = \"mqtt\"";
/// Quotes that word processors and web pages use.
const TYPOGRAPHIC: [char; 9] = ['“', '”', '„', '‘', '’', '‚', '«', '»', '`'];

/// The tree of one file, with its places among all files.
pub(super) fn parse<'t>(source: &'t SourceFile, report: &mut Report) -> DeTable<'t> {
    let (root, errors) = DeTable::parse_recoverable(&source.text);
    for (span, message) in problems(&source.text, &errors) {
        let place = match span {
            Some(span) => Place::Text(moved(&span, source.base)),
            None => Place::File(source.path.clone()),
        };
        report.problem(place, message);
    }
    if errors.is_empty() { moved_table(root.into_inner(), source.base) } else { DeTable::new() }
}

/// The tree of a part of a file; `None` if the part by itself is not TOML.
pub(super) fn parse_part(source: &SourceFile, part: Range<usize>) -> Option<DeTable<'_>> {
    let root = DeTable::parse(&source.text[part.clone()]).ok()?;
    Some(moved_table(root.into_inner(), source.base + part.start))
}

fn moved(span: &Range<usize>, by: usize) -> Range<usize> {
    span.start + by..span.end + by
}

fn moved_table(table: DeTable<'_>, by: usize) -> DeTable<'_> {
    let entries = table.into_iter().map(|(key, value)| {
        let place = moved(&key.span(), by);
        (Spanned::new(place, key.into_inner()), moved_value(value, by))
    });
    entries.collect()
}

fn moved_value(value: Spanned<DeValue<'_>>, by: usize) -> Spanned<DeValue<'_>> {
    let place = moved(&value.span(), by);
    let value = match value.into_inner() {
        DeValue::Table(table) => DeValue::Table(moved_table(table, by)),
        DeValue::Array(array) => {
            DeValue::Array(array.into_iter().map(|value| moved_value(value, by)).collect())
        }
        single => single,
    };
    Spanned::new(place, value)
}

/// The problems of a text, each with its place. Only the first one of each line, because the parser then fails on the
/// rest of it, too.
pub(super) fn problems(text: &str, errors: &[Error]) -> Vec<(Option<Range<usize>>, String)> {
    if errors.is_empty() {
        return Vec::new();
    }
    if let Some(format) = other_format(text) {
        let message = format!("this is {format}, but a configuration must be TOML: {FORM}");
        return vec![(Some(first_line(text)), message)];
    }
    let mut errors: Vec<_> = errors.iter().collect();
    errors.sort_by_key(|error| error.span().map(|span| span.start));
    let mut line = 0..0;
    let mut found = Vec::new();
    for error in errors {
        let start = error.span().map(|span| floor(text, span.start));
        if let Some(start) = start {
            if line.contains(&start) {
                continue;
            }
            let end = text[start..].find('\n').map_or(text.len(), |at| start + at);
            line = text[..start].rfind('\n').map_or(0, |at| at + 1)..end + 1;
        }
        found.push((error.span(), in_words(text, error)));
    }
    found
}

/// The format of a text that is not TOML at all.
fn other_format(text: &str) -> Option<&'static str> {
    let line = &text[first_line(text)];
    let is_json = |text: &str| serde_json::from_str::<IgnoredAny>(text).is_ok();
    let opens_objects =
        |line: &str| line.strip_prefix('[').is_some_and(|rest| rest.trim_start().starts_with('{'));
    if line.starts_with('{') || opens_objects(line) || (line.starts_with('[') && is_json(text)) {
        return Some("JSON");
    }
    if line.starts_with('<') {
        return Some("XML");
    }
    let is_name =
        |name: &str| !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || "_-".contains(c));
    let is_pair = line
        .split_once(':')
        .is_some_and(|(name, value)| is_name(name) && (value.is_empty() || value.starts_with(' ')));
    (line == "---" || is_pair).then_some("YAML")
}

/// The first line with text, without the white space around it.
fn first_line(text: &str) -> Range<usize> {
    let mut start = 0;
    for line in text.split_inclusive('\n') {
        let said = line.trim();
        if !said.is_empty() && !said.starts_with('#') {
            let start = start + (line.len() - line.trim_start().len());
            return start..start + said.len();
        }
        start += line.len();
    }
    0..0
}

fn in_words(text: &str, error: &Error) -> String {
    let message = error.message();
    let span = error.span().unwrap_or_default();
    let (start, end) = (floor(text, span.start), floor(text, span.end));
    let (found, rest) = (&text[start..end.max(start)], &text[start..]);
    let is = |beginning: &str| message.starts_with(beginning);
    if rest.starts_with(TYPOGRAPHIC) {
        return format!(
            "{} is not a quote in TOML: write \" or '",
            shown(&found.chars().take(1).collect::<String>())
        );
    }
    if rest.starts_with(':') {
        return "write = between a key and its value, not :".to_owned();
    }
    if is("carriage return") {
        return "a line ends with only a carriage return: save the file with Unix line endings".to_owned();
    }
    if is("invalid boolean") {
        return format!("write {}, in small letters", found.to_ascii_lowercase());
    }
    if is("string values must be quoted") || is("invalid float") {
        let word = word_around(text, start, end);
        let follows = text[end.max(start)..].trim_start_matches(' ');
        return match word {
            "" => "a value is missing after =".to_owned(),
            word if word.contains(' ') && follows.starts_with('=') => {
                "a line can have only one key and value: put the next key on a line of its own".to_owned()
            }
            word => format!("a text needs quotes: write \"{}\"", shown(word)),
        };
    }
    if is("unexpected leading zero") {
        return "a number must not begin with 0: remove the 0".to_owned();
    }
    if is("missing escaped value") || is("too few unicode") {
        return "\\ has a special meaning between \" and \": write \\\\, or put the text between ' and '"
            .to_owned();
    }
    if is("invalid unquoted key") {
        return "this is not a key: write key = value, or begin a comment with #".to_owned();
    }
    if is("key with no value") {
        return "write = and a value after the key, such as transport = \"mqtt\"".to_owned();
    }
    if is("invalid basic string") || is("invalid literal string") {
        return "a text has no closing quote: add it on the same line".to_owned();
    }
    if is("duplicate key") {
        return format!("{} is already in this file, in another place: combine both", shown(found));
    }
    message.to_owned()
}

/// The value with the mistake, to the end of its word, because the parser may have stopped in the middle of the word.
fn word_around(text: &str, start: usize, end: usize) -> &str {
    let ends = |c: char| c.is_whitespace() || ",]}#=\"'".contains(c);
    let begin = text[..start].rfind(ends).map_or(0, |at| at + 1);
    let end = end.max(start);
    let end = text[end..].find(ends).map_or(text.len(), |at| end + at);
    text[begin..end].trim()
}

fn floor(text: &str, at: usize) -> usize {
    (0..=at.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0)
}
