//! Splits a query into tokens.
//!
//! Owns: words, constants and signs, and where each begins. Must not know: grammar.
//!
//! Source: the table of symbols below "Expressions and conditions". A string has single or double quotes. Its quote is
//! written twice, or after a backslash, which also comes before a backslash and `uXXXX`. A name in `[[…]]` is a name
//! with any characters, as in `configurations.[[my-config]].status`.

use serde_json::{Number, Value};

use super::MAX_QUERY_CHARS;
use crate::message::excerpt;

/// A fault of a query, and its place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, column {column}: {problem}")]
pub(in crate::emulator) struct QueryError {
    line: usize,
    column: usize,
    problem: String,
}

impl QueryError {
    /// A fault at a byte of the text. Lines and columns count from 1, columns count characters.
    pub(super) fn new(text: &str, at: usize, problem: impl Into<String>) -> Self {
        let before = text.get(..at).unwrap_or(text);
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
        Self { line, column, problem: problem.into() }
    }
}

/// A word, a constant, a sign, or the end of the query.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum TokenKind {
    /// A keyword, or a name.
    Word(String),
    /// A name in `[[…]]`.
    Bracketed(String),
    /// A number or a string.
    Constant(Value),
    /// `,`, `<=`, …
    Sign(&'static str),
    End,
}

/// One token, and the byte where it begins.
#[derive(Debug, Clone)]
pub(super) struct QueryToken {
    pub(super) kind: TokenKind,
    pub(super) at: usize,
}

/// The signs; of two that fit, the first one counts.
const SIGNS: [&str; 18] =
    ["<=", ">=", "<>", "!=", "<", ">", "=", ",", ".", "(", ")", "[", "]", "*", "+", "-", "/", "%"];

/// The tokens of a query. The last one is [`TokenKind::End`].
///
/// # Errors
/// [`QueryError`] for a text that is too long, a sign that the language does not have, and a constant or a name that
/// does not end.
pub(super) fn tokens(text: &str) -> Result<Vec<QueryToken>, QueryError> {
    let chars = text.chars().count();
    if chars > MAX_QUERY_CHARS {
        let problem = format!("the query has {chars} characters, more than {MAX_QUERY_CHARS}");
        return Err(QueryError::new(text, 0, problem));
    }
    let mut found = Vec::new();
    let mut rest = text;
    loop {
        rest = rest.trim_start();
        let at = text.len() - rest.len();
        let fault = |problem: String| QueryError::new(text, at, problem);
        let (kind, length) = match rest.chars().next() {
            None => {
                found.push(QueryToken { kind: TokenKind::End, at });
                return Ok(found);
            }
            Some(quote @ ('\'' | '"')) => string(text, at, quote)?,
            Some('0'..='9') => number(rest).map_err(fault)?,
            Some(_) if rest.starts_with("[[") => {
                let end = rest.find("]]").ok_or_else(|| fault("the name has no \"]]\"".to_owned()))?;
                (TokenKind::Bracketed(rest.get(2..end).unwrap_or_default().to_owned()), end + 2)
            }
            Some(first) if begins_word(first) => {
                let end = rest.find(|c| !continues_word(c)).unwrap_or(rest.len());
                (TokenKind::Word(rest.get(..end).unwrap_or_default().to_owned()), end)
            }
            Some(first) => {
                let sign = SIGNS.iter().find(|sign| rest.starts_with(**sign));
                let unknown = || fault(format!("the query language has no \"{}\"", first.escape_debug()));
                sign.map(|sign| (TokenKind::Sign(sign), sign.len())).ok_or_else(unknown)?
            }
        };
        found.push(QueryToken { kind, at });
        rest = rest.get(length..).unwrap_or_default();
    }
}

/// Names of the hub such as `$version` have a dollar sign.
fn begins_word(c: char) -> bool {
    c.is_alphabetic() || matches!(c, '_' | '$')
}

fn continues_word(c: char) -> bool {
    begins_word(c) || c.is_numeric()
}

/// A decimal or hexadecimal number at the beginning of a text, and its length.
fn number(text: &str) -> Result<(TokenKind, usize), String> {
    let bytes = text.as_bytes();
    let digits = |from: usize| bytes.iter().skip(from).take_while(|c| c.is_ascii_digit()).count();
    let is = |at: usize, chars: &[u8]| bytes.get(at).is_some_and(|c| chars.contains(c));
    let (value, length) = if is(0, b"0") && is(1, b"xX") {
        let length = bytes.iter().skip(2).take_while(|c| c.is_ascii_hexdigit()).count() + 2;
        let value = text.get(2..length).and_then(|digits| u64::from_str_radix(digits, 16).ok());
        (value.map(Number::from), length)
    } else {
        let mut length = digits(0);
        if is(length, b".") {
            length += 1 + digits(length + 1);
        }
        if is(length, b"eE") {
            let sign = usize::from(is(length + 1, b"+-"));
            length += 1 + sign + digits(length + 1 + sign);
        }
        let text = text.get(..length).unwrap_or_default();
        let whole = text.parse::<u64>().ok().map(Number::from);
        (whole.or_else(|| Number::from_f64(text.parse().ok()?)), length)
    };
    let shown = || format!("\"{}\" is not a number", excerpt(text.get(..length).unwrap_or_default()));
    Ok((TokenKind::Constant(Value::Number(value.ok_or_else(shown)?)), length))
}

/// A string that begins at a byte of the query, and its length with its quotes.
fn string(text: &str, at: usize, quote: char) -> Result<(TokenKind, usize), QueryError> {
    let mut value = String::new();
    let body = text.get(at + 1..).unwrap_or_default();
    let mut chars = body.char_indices().peekable();
    while let Some((offset, c)) = chars.next() {
        if c == quote {
            if chars.next_if(|(_, next)| *next == quote).is_none() {
                return Ok((TokenKind::Constant(Value::String(value)), offset + 2));
            }
            value.push(quote);
            continue;
        }
        if c != '\\' {
            value.push(c);
            continue;
        }
        let escaped = match chars.next().map(|(_, c)| c) {
            Some(c @ ('\'' | '"' | '\\')) => Some(c),
            Some('u') => {
                let digits: String = chars.by_ref().take(4).map(|(_, c)| c).collect();
                let code = u32::from_str_radix(&digits, 16).ok().filter(|_| digits.len() == 4);
                code.and_then(char::from_u32)
            }
            _ => None,
        };
        let problem = "a backslash in a string stands before ', \", \\ or uXXXX: write \\\\ for a backslash";
        value.push(escaped.ok_or_else(|| QueryError::new(text, at + 1 + offset, problem))?);
    }
    Err(QueryError::new(text, at, format!("the string has no closing {quote}")))
}
