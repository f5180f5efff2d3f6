//! What the provisioning service answers.
//!
//! Owns: the shapes of answers and errors, and their codes. Must not know: topics, frames, HTTP.
//!
//! Source: wire reference 12.3 and 12.4.

use std::time::SystemTime;

use serde_json::{Value, json};

use crate::message::format_time;

/// Seconds until the client should ask again. The service says 3; an emulator need not keep tests waiting, and less
/// than 1 is not believed by all clients.
const RETRY_AFTER: u32 = 1;

/// Most characters of a reason that may repeat foreign text.
const MAX_REASON: usize = 300;

/// An answer over any protocol.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::emulator) struct DpsAnswer {
    /// As of HTTP.
    pub(in crate::emulator) status: u16,
    /// Seconds, if the client should ask again.
    pub(in crate::emulator) retry_after: Option<u32>,
    pub(in crate::emulator) body: Value,
}

/// An error. The client gets its code and its words; the reason is for the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::emulator) struct DpsRefusal {
    pub(in crate::emulator) status: u16,
    pub(in crate::emulator) code: u32,
    pub(in crate::emulator) said: String,
    pub(in crate::emulator) reason: String,
    retry_after: Option<u32>,
}

/// How a registration ended that was let in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Ending {
    /// The device has a hub.
    Assigned,
    /// The service found no hub: a code and a sentence.
    Failed(u32, String),
    /// The enrolment is disabled.
    Disabled,
}

impl Ending {
    /// The word in answers.
    pub(super) fn word(&self) -> &'static str {
        match self {
            Self::Assigned => "assigned",
            Self::Failed(..) => "failed",
            Self::Disabled => "disabled",
        }
    }
}

impl DpsAnswer {
    /// 202: the registration has begun, or is not over. `polled` is the registration id if the client has asked again.
    pub(super) fn assigning(operation_id: &str, polled: Option<&str>) -> Self {
        let mut body = json!({ "operationId": operation_id, "status": "assigning" });
        if let Some(id) = polled {
            body["registrationState"] = json!({ "registrationId": id, "status": "assigning" });
        }
        Self { status: 202, retry_after: Some(RETRY_AFTER), body }
    }

    /// 200: the registration is over. `state` says how.
    pub(super) fn ended(operation_id: &str, ending: &Ending, state: Value) -> Self {
        let body =
            json!({ "operationId": operation_id, "status": ending.word(), "registrationState": state });
        Self { status: 200, retry_after: None, body }
    }

    /// 200 with any body.
    pub(super) fn ok(body: Value) -> Self {
        Self { status: 200, retry_after: None, body }
    }
}

impl DpsRefusal {
    fn new(status: u16, code: u32, said: &str, reason: impl Into<String>) -> Self {
        Self { status, code, said: said.to_owned(), reason: reason.into(), retry_after: None }
    }

    /// 401: the client is not enrolled, or its proof is wrong. It does not learn which.
    pub(in crate::emulator) fn unauthorized(reason: impl Into<String>) -> Self {
        Self::new(401, 401_002, "Unauthorized", reason)
    }

    /// 400: the body is wrong, and the client may know how. The code is a choice. A reason may repeat what the client
    /// has sent, so only its beginning is kept.
    pub(super) fn bad_request(reason: String) -> Self {
        let reason: String = reason.chars().take(MAX_REASON).collect();
        Self { said: reason.clone(), ..Self::new(400, 400_004, "", reason) }
    }

    /// 413. The code is a choice.
    pub(super) fn too_large() -> Self {
        Self::new(413, 413_001, "Request entity too large.", "the request has more than 96 KiB")
    }

    /// 404: no such enrolment, operation or registration.
    pub(super) fn not_found(reason: impl Into<String>) -> Self {
        let reason = reason.into();
        Self { said: reason.clone(), ..Self::new(404, 404_201, "", reason) }
    }

    /// 404: there is no such service here.
    pub(in crate::emulator) fn closed(reason: String) -> Self {
        Self::not_found(reason)
    }

    /// 409. The code is a choice.
    pub(super) fn exists(reason: String) -> Self {
        Self { said: reason.clone(), ..Self::new(409, 409_001, "", reason) }
    }

    /// 412. The code is a choice.
    pub(super) fn changed() -> Self {
        let said = "It has another etag now: read it again.";
        Self::new(412, 412_001, said, "the etag is an old one")
    }

    /// 429.
    pub(super) fn throttled(reason: &str) -> Self {
        let said = "Too many requests: the service is throttling.";
        Self { retry_after: Some(RETRY_AFTER), ..Self::new(429, 429_001, said, reason) }
    }

    /// 403: there is no room. The code is a choice.
    pub(super) fn full(reason: String) -> Self {
        Self::new(403, 403_002, "Quota exceeded.", reason)
    }

    /// 500.
    pub(super) fn internal(reason: impl Into<String>) -> Self {
        Self { retry_after: Some(RETRY_AFTER), ..Self::new(500, 500_001, "Internal server error.", reason) }
    }

    /// The answer with this error. A user finds it in the log by `tracking_id`.
    pub(in crate::emulator) fn answer(&self, tracking_id: uuid::Uuid, now: SystemTime) -> DpsAnswer {
        let body = json!({
            "errorCode": self.code,
            "trackingId": tracking_id.to_string(),
            "message": self.said,
            "timestampUtc": format_time(now),
        });
        DpsAnswer { status: self.status, retry_after: self.retry_after, body }
    }
}
