//! Pages of a long answer, by the headers `x-ms-max-item-count` and `x-ms-continuation`.
//!
//! Owns: the size of a page, and continuations: what they hold, and how a wrong one is told. Must not know: what the
//! rows are.
//!
//! Source: the operations `query` and `jobs` of Microsoft's Node and Python service SDKs. The last page has no
//! `x-ms-continuation`. A continuation is opaque to clients. It holds where the page before ended, and a hash over that
//! and the question, so that one of another question or a damaged one is found out. Names of headers go out in small
//! letters: the Java SDK looks for them so.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use hyper::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use ring::digest::{SHA256, digest};
use serde_json::Value;

use super::call::HttpCall;
use super::reply::{self, HttpRefusal, HttpReply};
use crate::message::excerpt;

/// Rows of a page if the client does not say.
const DEFAULT_ROWS: usize = 100;

/// Most rows of a page; the client may ask for more and gets so many.
const MAX_ROWS: usize = 1_000;

/// At this size, a page ends before it has all its rows.
const MAX_BYTES: usize = 4 * 1024 * 1024;

const CONTINUATION: &str = "x-ms-continuation";

/// Bytes of the hash in a continuation.
const HASH: usize = 12;

/// Where a page begins, and how many rows it may have.
pub(super) struct PageStart {
    question: String,
    rows: usize,
    /// The rows of all pages before, and the place after which this page begins; `None` for the first page.
    after: Option<(usize, String)>,
}

/// A page that is being filled.
pub(super) struct RowPage {
    question: String,
    rows: Vec<String>,
    bytes: usize,
    most: usize,
    /// The rows of the whole answer that are left, if the question limits them.
    left: Option<usize>,
    /// The rows of all pages before.
    before: usize,
    last: String,
    more: bool,
}

impl PageStart {
    /// Reads the headers of a request. `question` is what the client asks for, with all its conditions.
    ///
    /// # Errors
    /// 400 for a size that is no number, and for a continuation of another question.
    pub(super) fn read(call: &HttpCall, question: &str) -> Result<Self, HttpRefusal> {
        // A header that is no text is as wrong as any other text.
        let header = |name| call.headers.get(name).map(|value| value.to_str().unwrap_or("?").trim());
        let rows = match header("x-ms-max-item-count").map(|text| (text, text.parse::<usize>())) {
            None => DEFAULT_ROWS,
            Some((_, Ok(rows))) if rows > 0 => rows.min(MAX_ROWS),
            Some((text, _)) => {
                let shown = excerpt(text);
                let sentence = format!("x-ms-max-item-count is \"{shown}\", but must be a number of rows");
                return Err(reply::bad_argument(&sentence).into());
            }
        };
        let after = match header(CONTINUATION) {
            None | Some("") => None,
            Some(token) => Some(opened(question, token).ok_or_else(wrong)?),
        };
        Ok(Self { question: question.to_owned(), rows, after })
    }

    /// The place after which the page begins; `None` for the first page.
    pub(super) fn after(&self) -> Option<&str> {
        self.after.as_ref().map(|(_, place)| place.as_str())
    }

    /// The same for places that are numbers; 0 for the first page.
    ///
    /// # Errors
    /// 400 if the place is not a number.
    pub(super) fn number(&self) -> Result<usize, HttpRefusal> {
        self.after().map_or(Ok(0), |place| place.parse().map_err(|_| wrong()))
    }
}

impl RowPage {
    /// An empty page. `top` limits the rows of the whole answer.
    pub(super) fn new(start: PageStart, top: Option<usize>) -> Self {
        let before = start.after.map_or(0, |(before, _)| before);
        Self {
            question: start.question,
            rows: Vec::new(),
            bytes: 0,
            most: start.rows,
            left: top.map(|top| top.saturating_sub(before)),
            before,
            last: String::new(),
            more: false,
        }
    }

    /// Adds a row at a place. Returns `false` if the page was full: the row belongs to the next page, if there is one.
    pub(super) fn push(&mut self, place: &str, row: &Value) -> bool {
        if self.left.is_some_and(|left| self.rows.len() >= left) {
            return false;
        }
        let row = row.to_string();
        if self.rows.len() >= self.most || (self.bytes > 0 && self.bytes + row.len() > MAX_BYTES) {
            self.more = true;
            return false;
        }
        self.bytes += row.len();
        self.rows.push(row);
        place.clone_into(&mut self.last);
        true
    }

    /// The page as an answer, with a continuation if rows are left.
    ///
    /// # Errors
    /// None in practice: a continuation is always allowed in a header.
    pub(super) fn reply(self) -> Result<HttpReply, HttpRefusal> {
        let body = Bytes::from(format!("[{}]", self.rows.join(",")));
        let kind = HeaderValue::from_static("application/json; charset=utf-8");
        let page = reply::bytes(body).with(CONTENT_TYPE, kind);
        if !self.more {
            return Ok(page);
        }
        let token = continuation(&self.question, self.before.saturating_add(self.rows.len()), &self.last);
        let token = HeaderValue::from_str(&token).map_err(|_| wrong())?;
        Ok(page.with(HeaderName::from_static(CONTINUATION), token))
    }
}

fn continuation(question: &str, before: usize, place: &str) -> String {
    let place = format!("{before} {place}");
    URL_SAFE_NO_PAD.encode([hash(question, &place).as_slice(), place.as_bytes()].concat())
}

/// What a continuation of this question holds; `None` if it is another's, or damaged.
fn opened(question: &str, token: &str) -> Option<(usize, String)> {
    let bytes = URL_SAFE_NO_PAD.decode(token).ok()?;
    let (kept, place) = bytes.split_at_checked(HASH)?;
    let place = std::str::from_utf8(place).ok()?;
    if hash(question, place) != kept {
        return None;
    }
    let (before, place) = place.split_once(' ')?;
    Some((before.parse().ok()?, place.to_owned()))
}

fn hash(question: &str, place: &str) -> Vec<u8> {
    let hash = digest(&SHA256, format!("{question}\n{place}").as_bytes());
    hash.as_ref().iter().take(HASH).copied().collect()
}

fn wrong() -> HttpRefusal {
    let sentence = format!("the {CONTINUATION} is not one that this query was given: begin again without it");
    reply::bad_argument(&sentence).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_continuation_is_opened_for_its_own_question_only() {
        let token = continuation("SELECT * FROM devices", 100, "dev 1");
        assert_eq!(opened("SELECT * FROM devices", &token), Some((100, "dev 1".to_owned())));
        assert_eq!(opened("SELECT * FROM devices ", &token), None);
        for at in 0..token.len() {
            let mut damaged = token.clone().into_bytes();
            damaged[at] = if damaged[at] == b'A' { b'B' } else { b'A' };
            let damaged = String::from_utf8(damaged).expect("text");
            assert_eq!(opened("SELECT * FROM devices", &damaged), None, "{damaged}");
            assert_eq!(opened("SELECT * FROM devices", &token[..at]), None);
        }
    }

    proptest! {
        #[test]
        fn no_text_is_taken_for_a_continuation(text in ".{0,60}") {
            prop_assert_eq!(opened("SELECT * FROM devices", &text), None);
        }
    }
}
