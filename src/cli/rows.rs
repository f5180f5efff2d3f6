//! The rows that a query of the hub finds, page by page, and how they are printed.
//!
//! Owns: pages, a hub that throttles queries, the limit. Must not know: what is asked, what a column means.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::time::Duration;

use serde_json::Value;

use super::shown::{Output, plain, shorten, terminal_width};
use super::{Failure, tell};
use crate::service::{HttpsService, ServiceError};

mod table;

use table::RowsTable;

/// A hub takes 20 queries a minute for each unit. Source: azure-docs, iot-hub-devguide-quotas-throttling.
const THROTTLED: Duration = Duration::from_secs(10);
/// As long as ten minutes, for all pages together.
const MOST_TRIES: usize = 60;
/// A page may be empty although more follow, but not for ever.
const MOST_EMPTY: usize = 100;
/// Most characters of a query that an error repeats.
const MOST_SHOWN: usize = 500;

/// How rows are printed.
pub(super) struct RowsOutput<'a> {
    /// Each row as an object on a line.
    pub(super) json: bool,
    /// Most rows.
    pub(super) limit: usize,
    /// The columns that come first.
    pub(super) columns: Vec<String>,
    /// What a row is in the table.
    pub(super) shape: &'a dyn Fn(&Value) -> Value,
}

/// Asks the hub, and gives each page to `take` until that breaks, and whether more pages follow.
///
/// # Errors
/// When the hub does not answer or refuses the query, and those of `take`.
pub(super) async fn pages(
    service: &mut HttpsService,
    query: &str,
    mut take: impl FnMut(Vec<Value>, bool) -> Result<ControlFlow<()>, Failure>,
) -> Result<(), Failure> {
    let (mut continuation, mut tries, mut empty, mut is_first) = (None, 0, 0, true);
    loop {
        let page = match service.query(query, continuation.clone()).await {
            // At first, a wrong name, a wrong root or a wrong server must be told at once.
            Err(error)
                if (matches!(error, ServiceError::Throttled(_)) || (!is_first && error.is_passing()))
                    && tries < MOST_TRIES =>
            {
                tries += 1;
                let seconds = THROTTLED.as_secs();
                tell(format_args!("the query has no answer yet, asking again in {seconds} s: {error}"));
                tokio::time::sleep(THROTTLED).await;
                continue;
            }
            // The hub names a column of the whole query, of which the user may have given the condition.
            Err(error @ ServiceError::Query(_)) => {
                let query = shorten(&plain(query), MOST_SHOWN);
                return Err(Failure::usage(anyhow::anyhow!("{error}; the query was: {query}")));
            }
            page => page.map_err(|error| super::back_end::failed(error.into()))?,
        };
        is_first = false;
        empty = if page.items.is_empty() { empty + 1 } else { 0 };
        if empty > MOST_EMPTY {
            return Err(anyhow::anyhow!("the hub gives one empty page after another: try again later").into());
        }
        continuation = page.continuation;
        if take(page.items, continuation.is_some())?.is_break() || continuation.is_none() {
            return Ok(());
        }
    }
}

/// Asks the hub, and prints what it finds.
///
/// # Errors
/// As [`pages`]; when standard output cannot be written.
pub(super) async fn print(
    service: &mut HttpsService,
    query: &str,
    wanted: &RowsOutput<'_>,
) -> Result<(), Failure> {
    let (mut out, mut left, mut cut) = (Output::new(), wanted.limit, false);
    let (mut table, mut unseen): (Option<RowsTable>, BTreeSet<String>) = (None, BTreeSet::new());
    pages(service, query, |mut rows, has_more| {
        cut = rows.len() > left || (rows.len() == left && has_more);
        rows.truncate(left);
        left -= rows.len();
        if wanted.json {
            rows.iter().try_for_each(|row| out.json(row))?;
        } else if !rows.is_empty() {
            let rows: Vec<Value> = rows.iter().map(wanted.shape).collect();
            let table = match &mut table {
                Some(table) => table,
                None => {
                    let made = RowsTable::new(&wanted.columns, &rows, terminal_width());
                    out.line(&made.heading())?;
                    table.insert(made)
                }
            };
            for row in &rows {
                out.line(&table.line(row))?;
                unseen.extend(table.unseen(row).map(str::to_owned));
            }
        }
        out.flush()?;
        Ok(if cut || !out.is_open() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    })
    .await?;
    if !unseen.is_empty() {
        let names: Vec<String> = unseen.iter().map(|name| super::shown::plain(name)).collect();
        tell(format_args!("the table has no room for {}: --json has all", names.join(", ")));
    }
    if left == wanted.limit {
        tell("the query finds nothing");
    }
    if cut {
        tell(format_args!("there is more: raise --limit (now {})", wanted.limit));
    }
    Ok(())
}
