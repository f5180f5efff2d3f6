//! Finds the route of a request.
//!
//! Owns: paths, methods, who may use them, and which route answers them. Must not know: connections, TLS, what a route
//! does.
//!
//! An unknown path is a 404 only for back ends.

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use hyper::{Method, StatusCode};

use super::call::HttpCall;
use super::call::RouteRight::{self, Anyone, Device, Enrollee, Enrolments, OwnRoute, OwnRouteHere};
use super::provisioning::{self, enrolments, faults as dps_faults};
use super::registry::bulk;
use super::reply::{self, HttpReply, HttpResult};
use super::{
    clock, device, device_events, entra, events, faults, feedback, inputs, jobs, metered, methods, page,
    purge, query, registry, statistics, twins, unserved,
};
use crate::emulator::registry::BackEndRight;

/// Answers one request.
pub(super) async fn answer(mut call: HttpCall) -> HttpReply {
    let without_body =
        [Method::GET, Method::DELETE].contains(&call.method) && !provisioning::is_polled(&call);
    let reply = if call.has_unread_body() && without_body {
        reply::bad_argument("this request must not have a body")
    } else {
        route(&mut call).await.unwrap_or_else(HttpReply::from)
    };
    if call.discard_body().await { reply } else { reply.closing() }
}

/// The rights of back ends.
const READ: RouteRight = RouteRight::BackEnd(BackEndRight::RegistryRead);
const WRITE: RouteRight = RouteRight::BackEnd(BackEndRight::RegistryWrite);
const SERVICE: RouteRight = RouteRight::BackEnd(BackEndRight::ServiceConnect);
const READ_TWIN: RouteRight = RouteRight::BackEnd(BackEndRight::TwinRead);
const WRITE_TWIN: RouteRight = RouteRight::BackEnd(BackEndRight::TwinWrite);

/// What a route does, once its sender may use it.
enum Handler {
    /// Answers at once.
    At(fn(&HttpCall) -> HttpResult),
    /// Answers after it has read the body, or waited.
    Later(for<'a> fn(&'a mut HttpCall) -> BoxFuture<'a, HttpResult>),
}
use Handler::{At, Later};

/// Method, path, who may use it, and what answers. A `*` stands for one segment, or for any method.
type HttpRoute = (&'static str, &'static str, RouteRight, Handler);

/// All routes. The first line whose method and path fit counts.
const ROUTES: &[HttpRoute] = &[
    ("GET", "/devices", READ, At(registry::list)),
    ("POST", "/devices/query", READ_TWIN, Later(|call| query::run(call).boxed())),
    ("POST", "/devices", WRITE, Later(|call| bulk::change(call).boxed())),
    ("POST", "/devices/keys/regenerate", WRITE, Later(|call| bulk::regenerate(call).boxed())),
    ("GET", "/statistics/devices", READ, At(statistics::devices)),
    ("GET", "/statistics/service", READ, At(statistics::service)),
    ("GET", "/devices/*", READ, At(registry::get)),
    ("PUT", "/devices/*", WRITE, Later(|call| registry::put(call).boxed())),
    ("DELETE", "/devices/*", WRITE, Later(|call| registry::delete(call).boxed())),
    ("GET", "/devices/*/modules", READ, At(registry::modules)),
    ("GET", "/devices/*/modules/*", READ, At(registry::get)),
    ("PUT", "/devices/*/modules/*", WRITE, Later(|call| registry::put(call).boxed())),
    ("DELETE", "/devices/*/modules/*", WRITE, Later(|call| registry::delete(call).boxed())),
    ("GET", "/devices/*/messages/devicebound", Device, At(device::receive)),
    ("DELETE", "/devices/*/messages/devicebound/*", Device, At(device::complete_or_reject)),
    ("POST", "/devices/*/messages/devicebound/*/abandon", Device, At(device::abandon)),
    ("POST", "/devices/*/messages/events", Device, Later(|call| device_events::send(call).boxed())),
    ("DELETE", "/devices/*/commands", SERVICE, At(purge::purge)),
    ("GET", "/messages/servicebound/feedback", SERVICE, At(feedback::receive)),
    ("DELETE", "/messages/servicebound/feedback/*", SERVICE, At(feedback::complete)),
    ("POST", "/messages/servicebound/feedback/*/abandon", SERVICE, At(feedback::abandon)),
    ("GET", "/twins/*", READ_TWIN, At(twins::get)),
    ("PATCH", "/twins/*", WRITE_TWIN, Later(|call| twins::patch(call).boxed())),
    ("PUT", "/twins/*", WRITE_TWIN, Later(|call| twins::replace(call).boxed())),
    ("GET", "/twins/*/modules/*", READ_TWIN, At(twins::get)),
    ("PATCH", "/twins/*/modules/*", WRITE_TWIN, Later(|call| twins::patch(call).boxed())),
    ("PUT", "/twins/*/modules/*", WRITE_TWIN, Later(|call| twins::replace(call).boxed())),
    ("POST", "/twins/*/methods", SERVICE, Later(|call| methods::invoke(call).boxed())),
    ("POST", "/twins/*/modules/*/methods", SERVICE, Later(|call| methods::invoke(call).boxed())),
    ("GET", "/jobs/v2/query", SERVICE, At(jobs::query)),
    ("GET", "/jobs/v2/*", SERVICE, At(jobs::get)),
    ("PUT", "/jobs/v2/*", SERVICE, Later(|call| jobs::schedule(call).boxed())),
    ("POST", "/jobs/v2/*/cancel", SERVICE, Later(|call| jobs::cancel(call).boxed())),
    ("GET", "/jobs", SERVICE, At(jobs::list_old)),
    ("POST", "/jobs/create", SERVICE, Later(|call| jobs::create_old(call).boxed())),
    ("GET", "/jobs/*", SERVICE, At(jobs::get_old)),
    ("DELETE", "/jobs/*", SERVICE, At(jobs::get_old)),
    ("*", "/devices/*/files", Device, At(unserved::files)),
    ("*", "/devices/*/files/notifications", Device, At(unserved::files)),
    ("*", "/devices/*/files/notifications/*", Device, At(unserved::files)),
    ("*", "/messages/servicebound/filenotifications", SERVICE, At(unserved::files)),
    ("*", "/configurations", READ, At(unserved::configurations)),
    ("*", "/configurations/*", READ, At(unserved::configurations)),
    ("*", "/devices/*/applyconfigurationcontent", WRITE, At(unserved::configurations)),
    ("*", "/digitaltwins/*", SERVICE, At(unserved::digital_twins)),
    ("*", "/digitaltwins/*/commands/*", SERVICE, At(unserved::digital_twins)),
    ("*", "/digitaltwins/*/components/*/commands/*", SERVICE, At(unserved::digital_twins)),
    ("*", "/twins/*/streams/*", SERVICE, At(unserved::streams)),
    ("*", "/twins/*/modules/*/streams/*", SERVICE, At(unserved::streams)),
    ("POST", "/enrollments", Enrolments, Later(|call| enrolments::change(call).boxed())),
    ("POST", "/enrollments/query", Enrolments, Later(|call| enrolments::query(call).boxed())),
    ("POST", "/enrollmentgroups/query", Enrolments, Later(|call| enrolments::query(call).boxed())),
    ("POST", "/registrations/*/query", Enrolments, Later(|call| enrolments::query(call).boxed())),
    ("GET", "/enrollments/*", Enrolments, At(enrolments::get)),
    ("PUT", "/enrollments/*", Enrolments, Later(|call| enrolments::put(call).boxed())),
    ("DELETE", "/enrollments/*", Enrolments, Later(|call| enrolments::delete(call).boxed())),
    (
        "POST",
        "/enrollments/*/attestationmechanism",
        Enrolments,
        Later(|call| enrolments::attestation(call).boxed()),
    ),
    ("GET", "/enrollmentgroups/*", Enrolments, At(enrolments::get)),
    ("PUT", "/enrollmentgroups/*", Enrolments, Later(|call| enrolments::put(call).boxed())),
    ("DELETE", "/enrollmentgroups/*", Enrolments, Later(|call| enrolments::delete(call).boxed())),
    (
        "POST",
        "/enrollmentgroups/*/attestationmechanism",
        Enrolments,
        Later(|call| enrolments::attestation(call).boxed()),
    ),
    ("GET", "/registrations/*", Enrolments, At(enrolments::registration)),
    ("DELETE", "/registrations/*", Enrolments, Later(|call| enrolments::delete_registration(call).boxed())),
    ("PUT", "/*/registrations/*/register", Enrollee, Later(|call| provisioning::register(call).boxed())),
    ("GET", "/*/registrations/*/operations/*", Enrollee, Later(|call| provisioning::poll(call).boxed())),
    ("POST", "/*/registrations/*", Enrollee, Later(|call| provisioning::look_up(call).boxed())),
    ("POST", "/*/oauth2/v2.0/token", Anyone, Later(|call| entra::token(call).boxed())),
    ("GET", "/*/v2.0/.well-known/openid-configuration", Anyone, At(entra::discovery)),
    ("GET", "/", Anyone, At(page::index)),
    ("GET", "/emulator/page.css", Anyone, At(page::style)),
    ("GET", "/emulator/page.js", Anyone, At(page::script)),
    ("GET", "/emulator/overview", OwnRoute, Later(|call| page::overview(call).boxed())),
    ("POST", "/emulator/devices/*/messages", OwnRoute, Later(|call| page::send(call).boxed())),
    ("POST", "/emulator/devices/*/messages/*/again", OwnRoute, At(page::send_again)),
    ("POST", "/emulator/devices/*/modules/*/inputs/*", OwnRoute, Later(|call| inputs::send(call).boxed())),
    ("GET", "/emulator/devices/*/events", OwnRoute, At(events::show_after)),
    ("GET", "/emulator/clock", OwnRouteHere, At(clock::show)),
    ("PUT", "/emulator/clock", OwnRouteHere, Later(|call| clock::set(call).boxed())),
    ("DELETE", "/emulator/clock", OwnRouteHere, At(clock::reset)),
    ("GET", "/emulator/provisioning/faults", OwnRouteHere, At(dps_faults::show)),
    ("DELETE", "/emulator/provisioning/faults", OwnRouteHere, At(dps_faults::clear)),
    ("PUT", "/emulator/provisioning/faults/*", OwnRouteHere, Later(|call| dps_faults::set(call).boxed())),
    ("DELETE", "/emulator/provisioning/faults/*", OwnRouteHere, At(dps_faults::clear)),
    ("GET", "/emulator/devices/*/faults", OwnRouteHere, At(faults::show)),
    ("DELETE", "/emulator/devices/*/faults", OwnRouteHere, At(faults::clear_all)),
    ("PUT", "/emulator/devices/*/faults/*", OwnRouteHere, Later(|call| faults::set(call).boxed())),
    ("DELETE", "/emulator/devices/*/faults/*", OwnRouteHere, At(faults::clear)),
];

/// Whether a path, as decoded words in lower case, is the one of a route.
fn fits(pattern: &str, words: &[String]) -> bool {
    let pattern = pattern.split('/').skip(1);
    // The real hub's paths have separate segments for device and module. A segment with DEVICE/MODULE is only allowed
    // in the emulator's own paths.
    let is_own = words.first().is_some_and(|word| word == "emulator");
    let fits =
        |(part, word): (&str, &String)| (part == "*" && (is_own || !word.contains('/'))) || part == word;
    pattern.clone().count() == words.len() && pattern.zip(words).all(fits)
}

async fn route(call: &mut HttpCall) -> HttpResult {
    let words = call.words();
    let of_path: Vec<_> = ROUTES.iter().filter(|(_, pattern, ..)| fits(pattern, &words)).collect();
    if let Some((_, pattern, right, handler)) =
        of_path.iter().find(|(method, ..)| *method == "*" || call.method == *method)
    {
        call.allow(*right)?;
        metered::count(call, pattern, *right)?;
        return match handler {
            At(answer) => answer(call),
            Later(answer) => answer(call).await,
        };
    }
    call.allow(OwnRoute)?;
    if of_path.is_empty() {
        let sentence = "this emulator does not serve that path";
        return Ok(reply::error(StatusCode::NOT_FOUND, "ResourceNotFound", sentence));
    }
    let methods: Vec<_> = of_path.iter().map(|(method, ..)| *method).collect();
    Ok(reply::method_not_allowed(&methods.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::credentials::{SasToken, SharedAccessKey};
    use crate::emulator::hub::Hub;
    use crate::emulator::hubs::Hubs;
    use crate::emulator::provisioning::Reception;
    use crate::emulator::registry::{
        AccessPolicy, Device, DeviceCredential, KeyPair, Registry, RegistryRight,
    };
    use crate::emulator::shared::SharedHub;
    use bytes::Bytes;
    use http_body_util::BodyExt as _;
    use http_body_util::Full;
    use hyper::header::AUTHORIZATION;
    use hyper::{Request, Response};
    use serde_json::{Value, json};
    use std::net::{IpAddr, Ipv4Addr, SocketAddr};
    use std::time::{Duration, SystemTime};

    const NOW: SystemTime = SystemTime::UNIX_EPOCH;
    const PEER: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 1);

    fn key() -> SharedAccessKey {
        SharedAccessKey::from_bytes([7; 32])
    }

    fn shared() -> SharedHub {
        let keys = KeyPair { primary: key(), secondary: key() };
        let policy = |name: &str, service_connect| AccessPolicy {
            name: name.to_owned(),
            keys: keys.clone(),
            service_connect,
            device_connect: !service_connect,
            registry: RegistryRight::None,
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

    async fn ask(method: Method, uri: &str, token: Option<&str>, hub: &SharedHub) -> (u16, Value) {
        ask_from(PEER, method, uri, token, hub).await
    }

    async fn ask_from(
        peer: SocketAddr,
        method: Method,
        uri: &str,
        token: Option<&str>,
        hub: &SharedHub,
    ) -> (u16, Value) {
        let mut request = Request::builder().method(method).uri(uri);
        if let Some(token) = token {
            request = request.header(AUTHORIZATION, token);
        }
        let body = Full::default().map_err(|never| match never {}).boxed_unsync();
        let request = request.body(body).expect("a request");
        let reply: Response<_> =
            answer(HttpCall::new(request, None, Reception::closed(), peer, Hubs::of(hub, &[]))).await.into();
        assert!(reply.headers()["server"].to_str().expect("text").starts_with("c2d-agent-emulator/"));
        let status = reply.status().as_u16();
        let body = reply.into_body().collect().await.expect("a body").to_bytes();
        (status, serde_json::from_slice(&body).expect("JSON"))
    }

    async fn get(uri: &str, hub: &SharedHub) -> (u16, Value) {
        ask(Method::GET, uri, Some(&token("service", 100)), hub).await
    }

    #[tokio::test]
    async fn a_twin_and_its_reported_properties_are_shown() {
        let hub = shared();
        let patched = hub.with(|hub, now| hub.patch_reported("dev#1", &json!({ "led": "on" }), now));
        patched.expect("patched");
        let (status, twin) = get("/twins/dev%231?api-version=2021-04-12", &hub).await;
        assert_eq!((status, &twin["deviceId"]), (200, &json!("dev#1")));
        assert_eq!(twin["properties"]["reported"]["led"], "on");
    }

    #[tokio::test]
    async fn events_are_shown_after_a_number() {
        let hub = shared();
        for body in ["one", "two"] {
            hub.with(|hub, now| hub.record_event("dev#1", Default::default(), Bytes::from(body), now));
        }
        let (status, events) = get("/emulator/devices/dev%231/events?after=1", &hub).await;
        assert_eq!(
            (status, events.as_array().map(Vec::len), &events[0]["body"]),
            (200, Some(1), &json!("two"))
        );
        let (_, events) = get("/emulator/devices/dev%231/events", &hub).await;
        assert_eq!(events.as_array().map(Vec::len), Some(2));
    }

    #[tokio::test]
    async fn wrong_requests_get_the_hubs_error_body() {
        let hub = shared();
        let cases = [
            ("/twins/dev%231", 400, "ErrorCode:ArgumentInvalid;the query has no api-version"),
            ("/twins/dev%231?api-version=", 400, "ErrorCode:ArgumentInvalid;"),
            ("/twins/none?api-version=1", 404, "ErrorCode:DeviceNotFound;the hub has no device \"none\""),
            ("/twins/%ff?api-version=1", 404, "ErrorCode:ResourceNotFound;"),
            ("/twins/a/b?api-version=1", 404, "ErrorCode:ResourceNotFound;"),
            ("/nothing", 404, "ErrorCode:ResourceNotFound;"),
            ("/emulator/overview?after=x", 400, "ErrorCode:ArgumentInvalid;\"after\""),
            ("/emulator/devices/none/events", 404, "ErrorCode:DeviceNotFound;"),
            ("/emulator/devices/dev%231/events?after=-1", 400, "ErrorCode:ArgumentInvalid;\"after\""),
        ];
        for (uri, status, message) in cases {
            let (answered, body) = get(uri, &hub).await;
            let text = body["Message"].as_str().expect("a message");
            assert!(answered == status && text.starts_with(message), "{uri}: {answered} {body}");
            assert!(
                body["ExceptionMessage"].as_str().is_some_and(|id| id.starts_with("Tracking ID:")),
                "{body}"
            );
        }
        let token = token("service", 100);
        assert_eq!(ask(Method::DELETE, "/twins/dev%231?api-version=1", Some(&token), &hub).await.0, 405);
    }

    #[tokio::test]
    async fn faults_are_for_peers_on_this_machine() {
        let (hub, token) = (shared(), token("service", 100));
        let uri = "/emulator/devices/dev%231/faults/throttle";
        for (ip, status) in
            [("192.0.2.1", 403), ("::ffff:192.0.2.1", 403), ("::1", 200), ("::ffff:127.0.0.9", 200)]
        {
            let peer = SocketAddr::new(ip.parse().expect("an address"), 1);
            for (method, uri) in [(Method::PUT, uri), (Method::DELETE, uri), (Method::GET, "/emulator/clock")]
            {
                let (answered, body) = ask_from(peer, method, uri, Some(&token), &hub).await;
                assert_eq!(answered, status, "{ip}: {body}");
                let said = body["Message"].as_str().unwrap_or_default();
                assert_eq!(said.contains("over loopback only"), status == 403, "{body}");
            }
            assert_eq!(ask_from(peer, Method::PUT, uri, None, &hub).await.0, 401, "{ip}");
            assert_eq!(get("/emulator/devices/dev%231/faults", &hub).await.1["faults"], json!({}), "{ip}");
        }
    }

    #[tokio::test]
    async fn only_a_policy_with_service_connect_is_let_in() {
        let hub = shared();
        let uri = "/twins/dev%231?api-version=1";
        let device = SasToken::sign(&key(), "hub.test/devices/dev%231", None, NOW + Duration::from_secs(9));
        let (other_policy, expired) = (token("device", 100), token("service", 0));
        let refused =
            [None, Some("Bearer x"), Some("é"), Some(&*other_policy), Some(&*expired), Some(device.expose())];
        for token in refused {
            let (status, body) = ask(Method::GET, uri, token, &hub).await;
            assert_eq!(
                (status, &body["Message"]),
                (401, &json!("ErrorCode:IotHubUnauthorizedAccess;Unauthorized"))
            );
        }
        // A client without access does not learn which paths exist.
        assert_eq!(ask(Method::GET, "/nothing", None, &hub).await.0, 401);
    }
}
