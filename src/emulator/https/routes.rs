//! Finds the route of a request.
//!
//! Owns: paths, methods, and which route answers them. Must not know: connections, TLS, what a route does.
//!
//! Each route except the page's files first asks `call` whether the sender may use it. An unknown path is a 404 only
//! for back ends.

use hyper::{Method, StatusCode};

use super::call::Call;
use super::reply::{self, Refusal, Reply};
use super::{device, events, faults, feedback, inputs, methods, page, purge, registry, twins};

/// Answers one request.
pub(super) async fn answer(mut call: Call) -> Reply {
    let reply = if call.has_unread_body() && [Method::GET, Method::DELETE].contains(&call.method) {
        reply::bad_argument("this request must not have a body")
    } else {
        route(&mut call).await.unwrap_or_else(Reply::from)
    };
    if call.has_unread_body() { reply.closing() } else { reply }
}

/// All routes.
enum Route {
    ListDevices,
    ListModules,
    GetDevice,
    PutDevice,
    DeleteDevice,
    Receive,
    CompleteOrReject,
    Abandon,
    SendEvent,
    Purge,
    ReceiveFeedback,
    CompleteFeedback,
    AbandonFeedback,
    GetTwin,
    PatchTwin,
    ReplaceTwin,
    InvokeMethod,
    SendToInput,
    ShowEvents,
    ShowFaults,
    SetFault,
    ClearFault,
    ClearFaults,
    /// A file of the page. It needs no token, because it has no data.
    File(fn() -> Reply),
    Overview,
    SendFromPage,
    SendAgain,
    /// The path exists, but only for the named methods.
    Other(&'static str),
    Unknown,
}

fn find(method: &Method, words: &[&str]) -> Route {
    match (method.as_str(), words) {
        ("GET", ["devices"]) => Route::ListDevices,
        (_, ["devices"]) => Route::Other("GET"),
        ("GET", ["devices", _, "modules"]) => Route::ListModules,
        (_, ["devices", _, "modules"]) => Route::Other("GET"),
        ("GET", ["devices", _] | ["devices", _, "modules", _]) => Route::GetDevice,
        ("PUT", ["devices", _] | ["devices", _, "modules", _]) => Route::PutDevice,
        ("DELETE", ["devices", _] | ["devices", _, "modules", _]) => Route::DeleteDevice,
        (_, ["devices", _] | ["devices", _, "modules", _]) => Route::Other("GET, PUT, DELETE"),
        ("GET", ["devices", _, "messages", "devicebound"]) => Route::Receive,
        (_, ["devices", _, "messages", "devicebound"]) => Route::Other("GET"),
        ("DELETE", ["devices", _, "messages", "devicebound", _]) => Route::CompleteOrReject,
        (_, ["devices", _, "messages", "devicebound", _]) => Route::Other("DELETE"),
        ("POST", ["devices", _, "messages", "devicebound", _, "abandon"]) => Route::Abandon,
        (_, ["devices", _, "messages", "devicebound", _, "abandon"]) => Route::Other("POST"),
        ("POST", ["devices", _, "messages", "events"]) => Route::SendEvent,
        (_, ["devices", _, "messages", "events"]) => Route::Other("POST"),
        ("DELETE", ["devices", _, "commands"]) => Route::Purge,
        (_, ["devices", _, "commands"]) => Route::Other("DELETE"),
        ("GET", ["messages", "servicebound", "feedback"]) => Route::ReceiveFeedback,
        (_, ["messages", "servicebound", "feedback"]) => Route::Other("GET"),
        ("DELETE", ["messages", "servicebound", "feedback", _]) => Route::CompleteFeedback,
        (_, ["messages", "servicebound", "feedback", _]) => Route::Other("DELETE"),
        ("POST", ["messages", "servicebound", "feedback", _, "abandon"]) => Route::AbandonFeedback,
        (_, ["messages", "servicebound", "feedback", _, "abandon"]) => Route::Other("POST"),
        ("GET", ["twins", _] | ["twins", _, "modules", _]) => Route::GetTwin,
        ("PATCH", ["twins", _] | ["twins", _, "modules", _]) => Route::PatchTwin,
        ("PUT", ["twins", _] | ["twins", _, "modules", _]) => Route::ReplaceTwin,
        (_, ["twins", _] | ["twins", _, "modules", _]) => Route::Other("GET, PATCH, PUT"),
        ("POST", ["twins", _, "methods"] | ["twins", _, "modules", _, "methods"]) => Route::InvokeMethod,
        (_, ["twins", _, "methods"] | ["twins", _, "modules", _, "methods"]) => Route::Other("POST"),
        ("GET", [""]) => Route::File(page::index),
        ("GET", ["emulator", "page.css"]) => Route::File(page::style),
        ("GET", ["emulator", "page.js"]) => Route::File(page::script),
        ("GET", ["emulator", "overview"]) => Route::Overview,
        ("POST", ["emulator", "devices", _, "messages"]) => Route::SendFromPage,
        (_, ["emulator", "devices", _, "messages"]) => Route::Other("POST"),
        ("POST", ["emulator", "devices", _, "messages", _, "again"]) => Route::SendAgain,
        (_, ["emulator", "devices", _, "messages", _, "again"]) => Route::Other("POST"),
        ("POST", ["emulator", "devices", _, "modules", _, "inputs", _]) => Route::SendToInput,
        (_, ["emulator", "devices", _, "modules", _, "inputs", _]) => Route::Other("POST"),
        (_, [""] | ["emulator", "page.css" | "page.js" | "overview"]) => Route::Other("GET"),
        ("GET", ["emulator", "devices", _, "events"]) => Route::ShowEvents,
        (_, ["emulator", "devices", _, "events"]) => Route::Other("GET"),
        ("GET", ["emulator", "devices", _, "faults"]) => Route::ShowFaults,
        ("DELETE", ["emulator", "devices", _, "faults"]) => Route::ClearFaults,
        (_, ["emulator", "devices", _, "faults"]) => Route::Other("GET, DELETE"),
        ("PUT", ["emulator", "devices", _, "faults", _]) => Route::SetFault,
        ("DELETE", ["emulator", "devices", _, "faults", _]) => Route::ClearFault,
        (_, ["emulator", "devices", _, "faults", _]) => Route::Other("PUT, DELETE"),
        _ => Route::Unknown,
    }
}

async fn route(call: &mut Call) -> Result<Reply, Refusal> {
    let words = call.words();
    // The real hub's paths have separate segments for device and module. A segment with DEVICE/MODULE is only allowed
    // in the emulator's own paths.
    let words = if words.iter().any(|word| word.contains('/'))
        && words.first().is_none_or(|word| word != "emulator")
    {
        Vec::new()
    } else {
        words
    };
    let route = find(&call.method, &words.iter().map(String::as_str).collect::<Vec<_>>());
    match route {
        Route::ListDevices => registry::list(call),
        Route::ListModules => registry::modules(call),
        Route::GetDevice => registry::get(call),
        Route::PutDevice => registry::put(call).await,
        Route::DeleteDevice => registry::delete(call).await,
        Route::Receive => device::receive(call),
        Route::CompleteOrReject => device::complete_or_reject(call),
        Route::Abandon => device::abandon(call),
        Route::SendEvent => device::send_event(call).await,
        Route::Purge => purge::purge(call),
        Route::ReceiveFeedback => feedback::receive(call),
        Route::CompleteFeedback => feedback::complete(call),
        Route::AbandonFeedback => feedback::abandon(call),
        Route::GetTwin => twins::get(call),
        Route::PatchTwin => twins::patch(call).await,
        Route::ReplaceTwin => twins::replace(call).await,
        Route::InvokeMethod => methods::invoke(call).await,
        Route::File(file) => Ok(file()),
        Route::Overview => page::overview(call).await,
        Route::SendFromPage => page::send(call).await,
        Route::SendAgain => page::send_again(call),
        Route::SendToInput => inputs::send(call).await,
        Route::ShowEvents => events::show_after(call),
        Route::ShowFaults => faults::show(call),
        Route::SetFault => faults::set(call).await,
        Route::ClearFault => faults::clear(call),
        Route::ClearFaults => faults::clear_all(call),
        Route::Other(allowed) => {
            call.own_service()?;
            Ok(reply::method_not_allowed(allowed))
        }
        Route::Unknown => {
            call.own_service()?;
            let sentence = "this emulator does not serve that path";
            Ok(reply::error(StatusCode::NOT_FOUND, "ResourceNotFound", sentence))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::credentials::{SasToken, SharedAccessKey};
    use crate::emulator::hub::Hub;
    use crate::emulator::registrar::Registrar;
    use crate::emulator::registry::{Device, DeviceCredential, KeyPair, Policy, Registry, RegistryRight};
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
        let policy = |name: &str, service_connect| Policy {
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
        let reply: Response<_> = answer(Call::new(request, None, peer, Registrar::of(hub))).await.into();
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
            for method in [Method::PUT, Method::DELETE] {
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
