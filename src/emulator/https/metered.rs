//! Requests that count against what the tier of a hub allows.
//!
//! Owns: what a request counts as. Must not know: rates, what a route does.

use hyper::Method;
use hyper::header::CONTENT_LENGTH;

use super::call::{HttpCall, RouteRight};
use super::reply::{self, HttpRefusal};
use crate::emulator::hub::Metered;
use crate::emulator::registry::BackEndRight;

/// Counts a request that its sender may make, by the pattern and the right of its route.
///
/// # Errors
/// 429 with `Retry-After`.
pub(super) fn count(call: &HttpCall, pattern: &str, right: RouteRight) -> Result<(), HttpRefusal> {
    let Some(kind) = kind(&call.method, pattern, right) else { return Ok(()) };
    let length = call.headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    let counted = call.hub.with(|hub, now| hub.meter(kind, length.unwrap_or_default(), now));
    counted.map_err(|error| {
        tracing::info!(retry_after = error.retry_after, "refused a request of a back end: {error}");
        reply::too_soon(&error).into()
    })
}

fn kind(method: &Method, pattern: &str, right: RouteRight) -> Option<Metered> {
    let RouteRight::BackEnd(right) = right else { return None };
    match (right, pattern.trim_start_matches('/').split('/').next()?) {
        (BackEndRight::RegistryRead | BackEndRight::RegistryWrite, "devices" | "statistics") => {
            Some(Metered::Registry)
        }
        (_, "devices") if pattern == "/devices/query" => Some(Metered::Query),
        (_, "twins") if pattern.ends_with("/methods") => Some(Metered::Method),
        (_, "twins") if [Method::PATCH, Method::PUT].contains(method) => Some(Metered::TwinUpdate),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_back_ends_ask_counts_as_one_kind_or_not_at_all() {
        let read = RouteRight::BackEnd(BackEndRight::RegistryRead);
        let write = RouteRight::BackEnd(BackEndRight::RegistryWrite);
        let service = RouteRight::BackEnd(BackEndRight::ServiceConnect);
        for (method, pattern, right, expected) in [
            (Method::GET, "/devices", read, Some(Metered::Registry)),
            (Method::POST, "/devices", write, Some(Metered::Registry)),
            (Method::GET, "/statistics/service", read, Some(Metered::Registry)),
            (Method::POST, "/devices/query", service, Some(Metered::Query)),
            (Method::PATCH, "/twins/*/modules/*", service, Some(Metered::TwinUpdate)),
            (Method::GET, "/twins/*", service, None),
            (Method::POST, "/twins/*/methods", service, Some(Metered::Method)),
            (Method::GET, "/configurations", read, None),
            (Method::POST, "/emulator/devices/*/messages", RouteRight::OwnRoute, None),
            (Method::POST, "/devices/*/messages/events", RouteRight::Device, None),
        ] {
            assert_eq!(kind(&method, pattern, right), expected, "{method} {pattern}");
        }
    }
}
