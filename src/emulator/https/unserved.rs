//! What the real hub serves and this emulator does not: each is refused with one sentence that says so.
//!
//! Owns: these sentences. Must not know: which paths belong to which service.
//!
//! The status is 501 with the hub's word FeatureNotSupported, which is a choice. The SDKs show it with its sentence:
//! they read 400, 401, 403 and 404 as other errors, such as a device that is missing, and try again after 500, 502, 503
//! and 504. Source: `rest_api_client` of azure-iot-http-base, the retry policy of msrest, which azure-iot-hub uses.

use hyper::StatusCode;

use super::call::HttpCall;
use super::reply::{self, HttpResult};

/// File upload by devices, and what back ends hear of it.
pub(super) fn files(_: &HttpCall) -> HttpResult {
    refuse("this emulator has no file upload: no storage account belongs to it")
}

/// Configurations of devices and deployments of IoT Edge.
pub(super) fn configurations(_: &HttpCall) -> HttpResult {
    refuse("this emulator has no device configurations and no edge deployments: write the twins instead")
}

/// Digital twins.
pub(super) fn digital_twins(_: &HttpCall) -> HttpResult {
    refuse("this emulator has no digital twins: use /twins, which also has the modelId, and direct methods")
}

/// Device streams.
pub(super) fn streams(_: &HttpCall) -> HttpResult {
    refuse("this emulator has no device streams")
}

fn refuse(sentence: &str) -> HttpResult {
    Ok(reply::error(StatusCode::NOT_IMPLEMENTED, "FeatureNotSupported", sentence))
}
