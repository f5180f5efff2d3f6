//! The requests of one device for a certificate.
//!
//! Owns: which request is active, what is wrong with one, and what waits for the device. Must not know: devices,
//! signing, topics.
//!
//! Source: wire reference 12.6.

use std::collections::VecDeque;
use std::time::{Duration, SystemTime};

use serde::Deserialize;
use serde_json::{Value, json};

use super::faults::CertificateFault;
use super::session::ConnectionId;
use crate::message::{excerpt, format_time};

/// The longest request in base64.
const MAX_CSR: usize = 8 * 1024;
/// How long a request may take, as the answer to it says.
const EXPIRES_AFTER: Duration = Duration::from_secs(12 * 60 * 60);
/// Most answers that wait besides the certificate. More go, the oldest first.
const MAX_ANSWERS: usize = 8;

/// Signs the request in the first text, in base64 of its DER, for the device in the second one. Returns the chain, the
/// device's certificate first, or why there is none.
pub type Sign<'s> = &'s dyn Fn(&str, &str) -> Result<Vec<String>, String>;

/// An answer for the device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateAnswer {
    /// The id of the request.
    pub request: String,
    /// As in HTTP.
    pub status: u16,
    /// JSON.
    pub body: String,
    /// Whether the device must acknowledge it: else it comes again on the next connection.
    pub is_last: bool,
}

/// The requests of one device.
#[derive(Debug, Default)]
pub(super) struct CertificateRequests {
    pub(super) active: Option<ActiveRequest>,
    answers: VecDeque<CertificateAnswer>,
}

/// A request whose last answer the device does not have yet.
#[derive(Debug)]
pub(super) struct ActiveRequest {
    pub(super) id: String,
    correlation_id: String,
    expires: SystemTime,
    result: Result<Vec<String>, String>,
    /// The connection that has it.
    handed_to: Option<ConnectionId>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RequestBody {
    id: String,
    csr: String,
    replace: Option<String>,
}

/// Why a request is refused: the code, whose first three digits are the status, the reason, and details.
pub(super) struct CertificateRefusal(pub(super) u32, pub(super) String, pub(super) Value);

impl CertificateRequests {
    /// An answer that does not wait for long.
    pub(super) fn push(&mut self, answer: CertificateAnswer) {
        self.answers.push_back(answer);
        let excess = self.answers.len().saturating_sub(MAX_ANSWERS);
        self.answers.drain(..excess);
    }

    /// Forgets a request that has taken longer than its answer said.
    fn pass_time(&mut self, now: SystemTime) {
        if let Some(expired) = self.active.take_if(|active| active.expires <= now) {
            tracing::warn!(
                request = expired.id,
                "a request for a certificate has expired: the device did not take its certificate in time"
            );
        }
    }

    /// The next answer for this connection. With `is_held` the certificate waits.
    pub(super) fn next(
        &mut self,
        connection: ConnectionId,
        is_held: bool,
        now: SystemTime,
    ) -> Option<CertificateAnswer> {
        if let Some(answer) = self.answers.pop_front() {
            return Some(answer);
        }
        self.pass_time(now);
        let active =
            self.active.as_mut().filter(|active| !is_held && active.handed_to != Some(connection))?;
        active.handed_to = Some(connection);
        let (request, correlation_id) = (active.id.clone(), active.correlation_id.clone());
        let (status, body) = match &active.result {
            Ok(chain) => (200, json!({ "correlationId": correlation_id, "certificates": chain })),
            Err(reason) => {
                let info = json!({ "credentialError": "RequestRefused", "credentialMessage": reason });
                let refusal =
                    CertificateRefusal(400_040, "the authority refuses the request".to_owned(), info);
                (400, refusal.body(&correlation_id, now))
            }
        };
        Some(CertificateAnswer { request, status, body: body.to_string(), is_last: true })
    }

    /// Takes a request, and returns the body of the answer that it was accepted.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn take(
        &mut self,
        device_id: &str,
        request: &str,
        body: &[u8],
        (sign, tracking): (Sign<'_>, &str),
        now: SystemTime,
        fault: Option<CertificateFault>,
    ) -> Result<Value, CertificateRefusal> {
        let bad = |message: String| CertificateRefusal(400_004, message, Value::Null);
        let json: Value = serde_json::from_slice(body).map_err(|error| {
            CertificateRefusal(400_006, format!("the body is not JSON: {error}"), Value::Null)
        })?;
        let read: RequestBody =
            serde_json::from_value(json).map_err(|error| bad(excerpt(&error.to_string())))?;
        if read.id != device_id {
            return Err(bad(format!("id is \"{}\", and the device is another one", excerpt(&read.id))));
        }
        if read.csr.is_empty() || read.csr.len() > MAX_CSR {
            return Err(bad(format!("csr has {} characters: 1 to {MAX_CSR} are allowed", read.csr.len())));
        }
        self.pass_time(now);
        match (&self.active, read.replace.as_deref()) {
            (_, Some(replace)) if replace != "*" && !is_request_id(replace) => {
                return Err(bad("replace is neither * nor the id of a request".to_owned()));
            }
            (Some(active), Some(replace)) if replace == "*" || replace == active.id => {}
            (None, None) | (None, Some("*")) => {}
            (Some(active), None) => {
                let info = json!({
                    "requestId": active.id,
                    "correlationId": active.correlation_id,
                    "operationExpires": format_time(active.expires),
                });
                return Err(CertificateRefusal(409_004, "another request is active".to_owned(), info));
            }
            (_, Some(_)) => {
                return Err(CertificateRefusal(
                    412_001,
                    "replace names no active request".to_owned(),
                    Value::Null,
                ));
            }
        }
        let result = match fault {
            Some(CertificateFault::Refuse) => Err("the fault certificate=refuse".to_owned()),
            _ => sign(&read.csr, device_id),
        };
        let expires = now + EXPIRES_AFTER;
        let correlation_id = tracking.to_owned();
        tracing::info!(device_id, request, issued = result.is_ok(), "a device asked for a certificate");
        let accepted = json!({ "correlationId": correlation_id, "operationExpires": format_time(expires) });
        let id = request.to_owned();
        self.active = Some(ActiveRequest { id, correlation_id, expires, result, handed_to: None });
        Ok(accepted)
    }
}

/// Whether this can be the id of a request: 4 to 36 letters, digits and `-`, which neither begins nor ends it.
pub fn is_request_id(id: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || c == '-';
    (4..=36).contains(&id.len()) && id.chars().all(allowed) && !id.starts_with('-') && !id.ends_with('-')
}

impl CertificateRefusal {
    /// The device has no certificate that could be renewed. The code is a choice.
    pub(super) fn of_token() -> Self {
        let sentence =
            "a device gets a certificate here only if it has signed in with one: register with a csr first";
        Self(403_004, sentence.to_owned(), Value::Null)
    }

    pub(super) fn body(&self, tracking: &str, now: SystemTime) -> Value {
        let Self(code, message, info) = self;
        json!({
            "errorCode": code,
            "message": message,
            "trackingId": tracking,
            "timestampUtc": format_time(now),
            "info": info,
        })
    }
}
