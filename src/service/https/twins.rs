//! Reads and writes twins, as a back end does.
//!
//! Owns: their requests. Must not know: what a twin says.
//!
//! Source: the REST definitions in Microsoft's Python service SDK (azure-iot-hub, `protocol/`).

use hyper::{Method, StatusCode};
use serde_json::{Map, Value, json};

use super::{API_VERSION, HttpsService, MAX_TWIN, ServiceRequest, answer};
use crate::service::{Addressee, ServiceError};

/// The changes that a back end makes. A `null` removes a key; keys that are not named stay.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TwinPatch {
    /// Seen by back ends only.
    pub tags: Option<Map<String, Value>>,
    /// The state that the device should have.
    pub desired: Option<Map<String, Value>>,
    /// The patch is refused if the twin has another etag by then.
    pub etag: Option<String>,
}

impl HttpsService {
    /// Reads a whole twin, unchanged.
    ///
    /// # Errors
    /// As for [`HttpsService::twin`].
    ///
    /// # Cancel safety
    /// As for [`HttpsService::twin`].
    pub async fn whole_twin(&mut self, target: &Addressee) -> Result<Value, ServiceError> {
        self.twin_of(target, ServiceRequest::new(Method::GET, twin_path(target), MAX_TWIN)).await
    }

    /// Merges a patch into a twin, and returns the whole twin.
    ///
    /// # Errors
    /// As for [`HttpsService::twin`]; or [`ServiceError::Changed`].
    ///
    /// # Cancel safety
    /// If the future is dropped, the twin may or may not be patched.
    pub async fn patch_twin(&mut self, target: &Addressee, patch: &TwinPatch) -> Result<Value, ServiceError> {
        let mut body = Map::new();
        if let Some(tags) = &patch.tags {
            body.insert("tags".into(), tags.clone().into());
        }
        if let Some(desired) = &patch.desired {
            body.insert("properties".into(), json!({ "desired": desired }));
        }
        let mut ask = ServiceRequest::new(Method::PATCH, twin_path(target), MAX_TWIN);
        ask.body = Value::from(body).to_string().into();
        ask.if_match = patch.etag.as_ref().map(|etag| format!("\"{etag}\""));
        self.twin_of(target, ask).await
    }

    async fn twin_of(&mut self, target: &Addressee, ask: ServiceRequest) -> Result<Value, ServiceError> {
        let (head, body) = self.exchange(ask).await?;
        match head.status {
            StatusCode::OK => serde_json::from_slice(&body)
                .map_err(|_| answer::no_hub(&self.host, "status 200 without JSON")),
            StatusCode::PRECONDITION_FAILED => Err(ServiceError::Changed(target.to_string())),
            status => Err(self.refusal_about(status, &body, target)),
        }
    }
}

fn twin_path(target: &Addressee) -> String {
    format!("{}?api-version={API_VERSION}", target.twin_path())
}
