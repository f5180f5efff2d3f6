//! Queries of back ends: `SELECT … FROM devices …`.
//!
//! Owns: the route `/devices/query`, its JSON, pages and continuations. Must not know: connections, what a query means
//! (`emulator::query`).
//!
//! Source: the REST definitions in Microsoft's Python service SDK (azure-iot-hub, `query_operations.py`), and its page
//! "Control access to IoT Hub": queries need ServiceConnect. Choices where these are silent: pages of 100 rows, and of
//! 1,000 at most; a page ends early when it is large; the documents are those of this moment, and a continuation goes on
//! after the last id of the page before.

use hyper::header::{HeaderName, HeaderValue};
use serde::Deserialize;
use serde_json::Value;

use super::call::HttpCall;
use super::pages::{PageStart, RowPage};
use super::reply::{self, HttpRefusal, HttpResult};
use crate::emulator::hub::Hub;
use crate::emulator::identity;
use crate::emulator::query::{Collection, MAX_GROUP_BYTES, RowGroups, TwinQuery};
use crate::emulator::shared::SharedHub;

/// Most bytes of a request. It has room for a query that is too long, so that the answer can say so.
const MAX_BODY: usize = 128 * 1024;

/// So many twins are looked at before other connections get their turn: about a millisecond.
const SLICE: usize = 16;

#[derive(Deserialize)]
#[serde(expecting = "an object with \"query\"")]
struct QueryBody {
    query: String,
}

/// `POST /devices/query`.
pub(super) async fn run(call: &mut HttpCall) -> HttpResult {
    let body = call.body(MAX_BODY).await?;
    let sent: QueryBody = serde_json::from_slice(&body)
        .map_err(|error| reply::bad_argument(&format!("the body is not a query: {error}")))?;
    let query = TwinQuery::parse(&sent.query)
        .map_err(|error| reply::bad_argument(&format!("the query is wrong at {error}")))?;
    let start = PageStart::read(call, &sent.query)?;
    let page = if query.has_groups() {
        groups(&call.hub, &query, start).await?
    } else {
        documents(&call.hub, &query, start).await
    };
    let item_type = HeaderValue::from_static(query.item_type());
    Ok(page.reply()?.with(HeaderName::from_static("x-ms-item-type"), item_type))
}

/// A page of documents, or of parts of them.
async fn documents(hub: &SharedHub, query: &TwinQuery, start: PageStart) -> RowPage {
    let mut scan = Scan { hub, query, after: start.after().map(str::to_owned) };
    let mut page = RowPage::new(start, query.top());
    while let Some(slice) = scan.next().await {
        for (id, document) in slice {
            let Some(row) = query.row(document) else { continue };
            if !page.push(&id, &row) {
                return page;
            }
        }
    }
    page
}

/// A page of groups. They are counted anew for each page, because devices come and go between two pages.
async fn groups(hub: &SharedHub, query: &TwinQuery, start: PageStart) -> Result<RowPage, HttpRefusal> {
    let mut scan = Scan { hub, query, after: None };
    let mut counted = RowGroups::default();
    while let Some(slice) = scan.next().await {
        slice.into_iter().for_each(|(_, document)| query.count(document, &mut counted));
        if counted.are_too_large() {
            let sentence =
                format!("the groups have more than {MAX_GROUP_BYTES} bytes: group by other properties");
            return Err(reply::bad_argument(&sentence).into());
        }
    }
    let first = start.number()?;
    let mut page = RowPage::new(start, query.top());
    for (number, row) in query.group_rows(counted).iter().enumerate().skip(first) {
        if !page.push(&(number + 1).to_string(), row) {
            break;
        }
    }
    Ok(page)
}

/// A walk through all documents of a collection, in the order of their ids.
struct Scan<'q> {
    hub: &'q SharedHub,
    query: &'q TwinQuery,
    after: Option<String>,
}

impl Scan<'_> {
    /// The next documents with their ids; `None` at the end. The other connections get their turn first.
    async fn next(&mut self) -> Option<Vec<(String, Value)>> {
        tokio::task::yield_now().await;
        let collection = self.query.collection();
        let rows_of_jobs = |hub: &Hub| {
            let place = self.after.as_deref().and_then(|place| place.split_once(' '));
            let (job, device_id) = place.unwrap_or_default();
            let rows = hub.device_jobs_after(job.parse().unwrap_or_default(), device_id).take(SLICE);
            let rows: Vec<_> = rows.map(|(job, id, row)| (format!("{job} {id}"), row)).collect();
            (rows.last().map(|(place, _)| place.clone()), rows)
        };
        let twins = |hub: &Hub| {
            let ids: Vec<&str> = hub.ids_after(self.after.as_deref()).take(SLICE).collect();
            let wanted =
                ids.iter().filter(|id| identity::is_module(id) == (collection == Collection::Modules));
            let twins = wanted.filter_map(|id| Some(((*id).to_owned(), hub.twin(id)?)));
            (ids.last().map(|id| (*id).to_owned()), twins.collect())
        };
        let (last, documents) = self.hub.with(|hub, _| match collection {
            Collection::Jobs => rows_of_jobs(hub),
            Collection::Devices | Collection::Modules => twins(hub),
        });
        self.after = Some(last?);
        Some(documents)
    }
}
