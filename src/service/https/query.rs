//! Asks the hub's query language.
//!
//! Owns: pages. Must not know: what is asked.
//!
//! Source: `registry.ts` of Microsoft's Node service SDK: the size of a page and its continuation are headers.

use hyper::header::HeaderValue;
use hyper::{Method, StatusCode};
use serde_json::{Value, json};

use super::{API_VERSION, HttpsService, ServiceRequest, answer};
use crate::service::ServiceError;

/// Most items of a page. A hub allows few queries a minute, so pages are large. UNVERIFIED: whether it takes more.
const PAGE: u32 = 1000;
/// Most bytes of a page: twins have 80 KiB at most, and a query for ids has few.
const MAX_PAGE: usize = 64 * 1024 * 1024;
const PAGE_SIZE: &str = "x-ms-max-item-count";
pub(super) const CONTINUATION: &str = "x-ms-continuation";

/// A part of what a query finds.
#[derive(Debug)]
pub struct QueryPage {
    /// In the form that the query selects.
    pub items: Vec<Value>,
    /// How to ask for the next page; absent on the last one.
    pub continuation: Option<HeaderValue>,
}

impl HttpsService {
    /// Asks for one page. Without `continuation`, it is the first.
    ///
    /// # Errors
    /// As for [`HttpsService::twin`]; or [`ServiceError::Query`].
    ///
    /// # Cancel safety
    /// As for [`HttpsService::twin`].
    pub async fn query(
        &mut self,
        query: &str,
        continuation: Option<HeaderValue>,
    ) -> Result<QueryPage, ServiceError> {
        let mut ask =
            ServiceRequest::new(Method::POST, format!("/devices/query?api-version={API_VERSION}"), MAX_PAGE);
        ask.body = json!({ "query": query }).to_string().into();
        ask.headers.push((PAGE_SIZE, PAGE.into()));
        ask.headers.extend(continuation.map(|token| (CONTINUATION, token)));
        let (head, body) = self.exchange(ask).await?;
        match head.status {
            StatusCode::OK => {
                let items = serde_json::from_slice(&body)
                    .map_err(|_| answer::no_hub(&self.host, "status 200 without a list"))?;
                Ok(QueryPage { items, continuation: head.headers.get(CONTINUATION).cloned() })
            }
            StatusCode::BAD_REQUEST => Err(ServiceError::Query(
                answer::hub_message(&body).unwrap_or_else(|| "status 400".to_owned()),
            )),
            status => Err(self.refusal(status, &body, "")),
        }
    }
}
