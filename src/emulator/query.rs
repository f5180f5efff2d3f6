//! The query language of IoT Hub: `SELECT … FROM devices WHERE … GROUP BY …`, over documents as JSON.
//!
//! Owns: what a query means. Pure vocabulary. Must not know: the hub, HTTP, paging, where documents come from.
//!
//! - `lexer` splits the text into tokens; `parser` makes a [`TwinQuery`] or an [`Expression`] of them, or an error with the place
//!   of the fault.
//! - `expression` says whether a condition holds for a document; `path` finds a property in it; `select` makes rows.
//!
//! Source: Microsoft's pages "IoT Hub query language for device and module twins, jobs, and message routing", "Queries
//! for IoT Hub device and module twins" and "Queries for IoT Hub jobs". Choices where these are silent stand at the
//! code.

mod expression;
mod lexer;
mod parser;
mod path;
mod select;
#[cfg(test)]
mod tests;

pub(super) use expression::Expression;
pub(super) use select::{Collection, MAX_GROUP_BYTES, RowGroups, TwinQuery};

/// Longest query, in characters. Source: the page about twin queries, "Twin query limitations".
const MAX_QUERY_CHARS: usize = 8_192;

/// Most items after SELECT, and after GROUP BY. A choice: each of them copies a part of the document.
const MAX_ITEMS: usize = 16;

/// Deepest nesting of a condition, so that neither parsing nor evaluating it can use up the stack. A choice.
const MAX_NESTING: usize = 64;
