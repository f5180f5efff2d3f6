//! What a request asks for, and the answer.
//!
//! Owns: paths, queries and the order of checks: authorisation, route, method, arguments, device.
//! Must not know: connections, TLS. Used by: `https`.
//!
//! Routes of the real hub need an `api-version`, of any date; those below `/emulator/` are this emulator's own.

use std::borrow::Cow;

use hyper::header::{ALLOW, AUTHORIZATION, HeaderMap};
use hyper::{Method, Response, StatusCode, Uri};
use percent_encoding::percent_decode_str;

use super::events;
use super::reply::{self, Reply};
use crate::emulator::shared::SharedHub;
use crate::message::excerpt;

/// Answers one request of a back end.
pub(super) fn answer(method: &Method, uri: &Uri, headers: &HeaderMap, hub: &SharedHub) -> Response<Reply> {
    if let Err(reason) = authorise(headers, hub) {
        tracing::warn!(reason, path = uri.path(), "refused a back end's request");
        return reply::error(StatusCode::UNAUTHORIZED, "IotHubUnauthorizedAccess", "Unauthorized");
    }
    let segments = uri.path().strip_prefix('/').unwrap_or_default().split('/');
    let segments: Option<Vec<_>> = segments.map(|text| percent_decode_str(text).decode_utf8().ok()).collect();
    let segments = segments.unwrap_or_default();
    let segments: Vec<&str> = segments.iter().map(Cow::as_ref).collect();
    let query = uri.query().unwrap_or_default();
    match (method, segments.as_slice()) {
        (&Method::GET, ["twins", device_id]) => versioned(query, || twin(device_id, hub)),
        (&Method::GET, ["emulator", "devices", device_id, "events"]) => device_events(device_id, query, hub),
        (_, ["twins", _] | ["emulator", "devices", _, "events"]) => {
            let sentence = "this resource can be read only here";
            reply::with(
                reply::error(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed", sentence),
                ALLOW,
                "GET",
            )
        }
        _ => {
            reply::error(StatusCode::NOT_FOUND, "ResourceNotFound", "this emulator does not serve that path")
        }
    }
}

fn twin(device_id: &str, hub: &SharedHub) -> Response<Reply> {
    match hub.with(|hub, _| hub.twin(device_id)) {
        Some(twin) => reply::ok(&twin),
        None => no_device(device_id),
    }
}

fn device_events(device_id: &str, query: &str, hub: &SharedHub) -> Response<Reply> {
    let after = match argument(query, "after").map(|text| text.parse()) {
        None => 0,
        Some(Ok(number)) => number,
        Some(Err(_)) => return bad_argument("\"after\" is not the number of a message"),
    };
    match hub.with(|hub, _| hub.events(device_id).map(|events| events::page(events, after))) {
        Some(page) => reply::ok(&page),
        None => no_device(device_id),
    }
}

/// The reason is for the log; the wire only says that access is denied.
fn authorise(headers: &HeaderMap, hub: &SharedHub) -> Result<(), String> {
    let token = headers.get(AUTHORIZATION).ok_or("there is no Authorization header")?;
    let token = token.to_str().map_err(|_| "the Authorization header is not text")?;
    if token.get(..7).is_some_and(|start| start.eq_ignore_ascii_case("bearer ")) {
        return Err("this emulator knows no Microsoft Entra tokens: use a SAS token".to_owned());
    }
    hub.with(|hub, now| hub.authenticate_service(token, now)).map(drop).map_err(|error| error.to_string())
}

fn versioned(query: &str, answer: impl FnOnce() -> Response<Reply>) -> Response<Reply> {
    match argument(query, "api-version") {
        Some(version) if !version.is_empty() => answer(),
        _ => bad_argument("the query has no api-version, such as 2021-04-12"),
    }
}

/// One argument of a query; of several with the same name, the first.
fn argument<'a>(query: &'a str, name: &str) -> Option<Cow<'a, str>> {
    let pairs = query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    let (_, value) = pairs.into_iter().find(|(key, _)| key.eq_ignore_ascii_case(name))?;
    Some(percent_decode_str(value).decode_utf8_lossy())
}

fn bad_argument(sentence: &str) -> Response<Reply> {
    reply::error(StatusCode::BAD_REQUEST, "ArgumentInvalid", sentence)
}

fn no_device(device_id: &str) -> Response<Reply> {
    let sentence = format!("the hub has no device \"{}\"", excerpt(device_id));
    reply::error(StatusCode::NOT_FOUND, "DeviceNotFound", &sentence)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::credentials::{SasToken, SharedAccessKey};
    use crate::emulator::hub::Hub;
    use crate::emulator::registry::{Device, DeviceCredential, KeyPair, Policy, Registry};
    use bytes::Bytes;
    use http_body_util::BodyExt as _;
    use serde_json::{Value, json};
    use std::time::{Duration, SystemTime};

    const NOW: SystemTime = SystemTime::UNIX_EPOCH;

    fn key() -> SharedAccessKey {
        SharedAccessKey::from_bytes([7; 32])
    }

    fn shared() -> SharedHub {
        let keys = KeyPair { primary: key(), secondary: key() };
        let policy = |name: &str, service_connect| Policy {
            name: name.to_owned(),
            keys: keys.clone(),
            service_connect,
            device_connect: !service_connect,
        };
        let mut registry = Registry::new("hub.test", vec![policy("service", true), policy("device", false)]);
        let credential = DeviceCredential::Keys(keys.clone());
        registry.add_device(Device { id: "dev#1".into(), credential });
        SharedHub::new(Hub::new(registry, Duration::from_secs(15)), || NOW)
    }

    fn token(policy: &str, expires: u64) -> String {
        let expiry = NOW + Duration::from_secs(expires);
        SasToken::sign(&key(), "hub.test", Some(policy), expiry).expose().to_owned()
    }

    fn ask(method: Method, uri: &str, token: Option<&str>, hub: &SharedHub) -> (u16, Value) {
        let mut headers = HeaderMap::new();
        if let Some(token) = token {
            headers.insert(AUTHORIZATION, token.parse().expect("a header"));
        }
        let uri = uri.parse().expect("a URI");
        let reply = answer(&method, &uri, &headers, hub);
        assert!(reply.headers()["server"].to_str().expect("text").starts_with("c2d-agent-emulator/"));
        let status = reply.status().as_u16();
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let body = runtime.block_on(reply.into_body().collect()).expect("a body").to_bytes();
        (status, serde_json::from_slice(&body).expect("JSON"))
    }

    fn get(uri: &str, hub: &SharedHub) -> (u16, Value) {
        ask(Method::GET, uri, Some(&token("service", 100)), hub)
    }

    #[test]
    fn a_twin_and_its_reported_properties_are_shown() {
        let hub = shared();
        let patched = hub.with(|hub, now| hub.patch_reported("dev#1", &json!({ "led": "on" }), now));
        patched.expect("patched");
        let (status, twin) = get("/twins/dev%231?api-version=2021-04-12", &hub);
        assert_eq!((status, &twin["deviceId"]), (200, &json!("dev#1")));
        assert_eq!(twin["properties"]["reported"]["led"], "on");
    }

    #[test]
    fn events_are_shown_after_a_number() {
        let hub = shared();
        for body in ["one", "two"] {
            hub.with(|hub, now| hub.record_event("dev#1", Default::default(), Bytes::from(body), now));
        }
        let (status, events) = get("/emulator/devices/dev%231/events?after=1", &hub);
        assert_eq!(
            (status, events.as_array().map(Vec::len), &events[0]["body"]),
            (200, Some(1), &json!("two"))
        );
        let (_, events) = get("/emulator/devices/dev%231/events", &hub);
        assert_eq!(events.as_array().map(Vec::len), Some(2));
    }

    #[test]
    fn wrong_requests_get_the_hubs_error_body() {
        let hub = shared();
        let cases = [
            ("/twins/dev%231", 400, "ErrorCode:ArgumentInvalid;the query has no api-version"),
            ("/twins/dev%231?api-version=", 400, "ErrorCode:ArgumentInvalid;"),
            ("/twins/none?api-version=1", 404, "ErrorCode:DeviceNotFound;the hub has no device \"none\""),
            ("/twins/%ff?api-version=1", 404, "ErrorCode:ResourceNotFound;"),
            ("/twins/a/b?api-version=1", 404, "ErrorCode:ResourceNotFound;"),
            ("/", 404, "ErrorCode:ResourceNotFound;"),
            ("/emulator/devices/none/events", 404, "ErrorCode:DeviceNotFound;"),
            ("/emulator/devices/dev%231/events?after=-1", 400, "ErrorCode:ArgumentInvalid;\"after\""),
        ];
        for (uri, status, message) in cases {
            let (answered, body) = get(uri, &hub);
            let text = body["Message"].as_str().expect("a message");
            assert!(answered == status && text.starts_with(message), "{uri}: {answered} {body}");
            assert!(
                body["ExceptionMessage"].as_str().is_some_and(|id| id.starts_with("Tracking ID:")),
                "{body}"
            );
        }
        let token = token("service", 100);
        assert_eq!(ask(Method::DELETE, "/twins/dev%231?api-version=1", Some(&token), &hub).0, 405);
    }

    #[test]
    fn only_a_policy_with_service_connect_is_let_in() {
        let hub = shared();
        let uri = "/twins/dev%231?api-version=1";
        let device = SasToken::sign(&key(), "hub.test/devices/dev%231", None, NOW + Duration::from_secs(9));
        let (other_policy, expired) = (token("device", 100), token("service", 0));
        let refused =
            [None, Some("Bearer x"), Some("é"), Some(&*other_policy), Some(&*expired), Some(device.expose())];
        for token in refused {
            let (status, body) = ask(Method::GET, uri, token, &hub);
            assert_eq!(
                (status, &body["Message"]),
                (401, &json!("ErrorCode:IotHubUnauthorizedAccess;Unauthorized"))
            );
        }
        // Who is not let in does not learn what there is.
        assert_eq!(ask(Method::GET, "/nothing", None, &hub).0, 401);
    }
}
