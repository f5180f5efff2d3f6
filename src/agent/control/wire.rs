//! The lines on the control socket: one JSON object per line, each way, one answer for each request.
//!
//! Owns: the shapes of the lines and their limits. Must not know: sockets.
//!
//! | Request | Answer |
//! |---|---|
//! | `{"status":{}}` | `{"status":{…}}` |
//! | `{"query":{"list":{"after":0,"limit":50}}}` (also `show`, `retry`, `drop`) | `{"reply":{…}}` |
//! | anything else | `{"error":"…"}` |

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::view::ReplyView;
use crate::agent::status::Status;
use crate::inbox::Query;

/// Longest request, with its line feed.
pub(super) const MAX_REQUEST_BYTES: u64 = 64 * 1024;
/// Longest answer that a client takes: a page of records, all with full outputs, which get longer when JSON escapes
/// them.
pub(super) const MAX_ANSWER_BYTES: u64 = 16 * 1024 * 1024;
/// Most records in one answer.
pub(crate) const MAX_PAGE: usize = 200;
/// How long an answer may take.
pub(super) const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// A request.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum ControlCall {
    Status {},
    Query(Query),
}

/// An answer.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum ControlAnswer {
    Status(Box<Status>),
    Reply(Box<ReplyView>),
    /// In one sentence.
    Error(String),
}

/// An object as its line. The shapes have text for all keys, so this cannot fail. If it did, the line would say so.
pub(super) fn line(object: &impl Serialize) -> Vec<u8> {
    let text = serde_json::to_vec(object);
    let mut line = text.unwrap_or_else(|error| format!("{{\"error\":\"defect: {error}\"}}").into_bytes());
    line.push(b'\n');
    line
}
