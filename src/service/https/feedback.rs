//! Feedback and purges over HTTPS, for networks that let only 443 through.
//!
//! Owns: their requests and answers. Must not know: how often feedback is requested.
//!
//! Source: wire reference 4.4 and 4.5.

use hyper::header::ETAG;
use hyper::http::response::Parts;
use hyper::{Method, StatusCode};
use percent_encoding::utf8_percent_encode;

use super::{API_VERSION, ENCODED, HttpsService, ServiceRequest, answer};
use crate::feedback::{batch_id, decode_batch};
use crate::message::parse_time;
use crate::service::ServiceError;
use crate::service::feedback::{BatchReceipt, FeedbackBatch};

const PATH: &str = "/messages/serviceBound/feedback";

/// Most bytes of a batch: 64 records with ids of at most 128 characters.
const MAX_BATCH: usize = 1024 * 1024;

/// Most bytes of an answer with little content.
const MAX_SHORT: usize = 64 * 1024;

impl HttpsService {
    /// Removes all messages that wait for a device from its queue, and returns how many there were.
    ///
    /// # Errors
    /// As for [`HttpsService::twin`].
    ///
    /// # Cancel safety
    /// If the future is dropped, the queue may or may not be purged.
    pub async fn purge(&mut self, device_id: &str) -> Result<u64, ServiceError> {
        let device = utf8_percent_encode(device_id, ENCODED);
        let path = format!("/devices/{device}/commands?api-version={API_VERSION}");
        let (body, _) = self.json(ServiceRequest::new(Method::DELETE, path, MAX_SHORT), device_id).await?;
        let purged = body.get("totalMessagesPurged").and_then(serde_json::Value::as_u64);
        purged.ok_or_else(|| answer::no_hub(&self.host, "no number of purged messages"))
    }

    /// Asks for the next feedback batch; `None` if the hub has none.
    ///
    /// # Errors
    /// As for [`HttpsService::twin`]; or when the batch cannot be read: then it is given back.
    ///
    /// # Cancel safety
    /// If the future is dropped, a batch may have been on its way; it comes again when its lock expires, after a
    /// minute.
    pub(in crate::service) async fn next_feedback(&mut self) -> Result<Option<FeedbackBatch>, ServiceError> {
        let path = format!("{PATH}?api-version={API_VERSION}");
        let (head, body) = self.exchange(ServiceRequest::new(Method::GET, path, MAX_BATCH)).await?;
        match head.status {
            StatusCode::NO_CONTENT => return Ok(None),
            StatusCode::OK => {}
            status => return Err(self.refusal(status, &body, "")),
        }
        let lock = lock(&head).ok_or_else(|| answer::no_hub(&self.host, "feedback without a lock token"))?;
        let enqueued = head.headers.get("iothub-enqueuedtime").and_then(|time| time.to_str().ok());
        match decode_batch(&body) {
            Ok(records) => Ok(Some(FeedbackBatch {
                id: batch_id(&body),
                enqueued: enqueued.and_then(parse_time),
                records,
                receipt: BatchReceipt::Https(lock),
            })),
            Err(error) => {
                let path = format!("{PATH}/{lock}/abandon?api-version={API_VERSION}");
                self.exchange(ServiceRequest::new(Method::POST, path, MAX_SHORT)).await?;
                Err(error.into())
            }
        }
    }

    /// Consumes the batch with this lock token.
    ///
    /// # Errors
    /// As for [`HttpsService::twin`]; or when the lock has expired: then the batch comes again.
    ///
    /// # Cancel safety
    /// If the future is dropped, the batch may or may not be consumed.
    pub(in crate::service) async fn complete_feedback(&mut self, lock: &str) -> Result<(), ServiceError> {
        let path = format!("{PATH}/{lock}?api-version={API_VERSION}");
        let (head, body) = self.exchange(ServiceRequest::new(Method::DELETE, path, MAX_SHORT)).await?;
        match head.status {
            status if status.is_success() => Ok(()),
            StatusCode::PRECONDITION_FAILED => Err(ServiceError::Answer(format!(
                "{} no longer holds a feedback batch for this reader (412): its lock has expired, so the hub \
                 sends the batch again",
                self.host
            ))),
            status => Err(self.refusal(status, &body, "")),
        }
    }
}

/// The lock token, if it can stand in a path without escapes.
fn lock(head: &Parts) -> Option<String> {
    let token = head.headers.get(ETAG)?.to_str().ok()?.trim_matches('"');
    let is_plain = |c: char| c.is_ascii_alphanumeric() || c == '-';
    (!token.is_empty() && token.len() <= 128 && token.chars().all(is_plain)).then(|| token.to_owned())
}
