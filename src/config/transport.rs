//! How the agent gets to its hub: `transport` in `[device]`, and the variables of the environment that go with it.
//!
//! Owns: the words, and whether this build has what they ask for. Must not know: sockets. Used by: `config::device`.

use crate::credentials::{Over, ProxySettings, Route, Transport};

use super::report::{Place, Report};
use super::table::Field;

/// The hub's HTTPS port, where its WebSockets are. Source: wire reference 1.1.
const HTTPS_PORT: u16 = 443;

/// Names another one: the emulator's.
const HTTPS_PORT_VARIABLE: &str = "C2D_HTTPS_PORT";

pub(super) fn read(
    field: &Field<'_>,
    env: &dyn Fn(&str) -> Option<String>,
    report: &mut Report,
) -> (Transport, Route) {
    let words = [
        ("mqtt", (Transport::Mqtt, Over::Tls)),
        ("mqtt-ws", (Transport::Mqtt, Over::WebSocket)),
        ("auto", (Transport::Mqtt, Over::Either)),
        ("amqp", (Transport::Amqp, Over::Tls)),
        ("amqp-ws", (Transport::Amqp, Over::WebSocket)),
    ];
    let (transport, over) = field.word(&words, report).unwrap_or_default();
    if transport == Transport::Amqp && !cfg!(feature = "amqp") {
        let message = "this program is built without AMQP: use transport = \"mqtt\", or a build with the Cargo feature amqp";
        report.problem(field.value.place.clone(), message);
    }
    if over == Over::Tls {
        return (transport, Route::default());
    }
    if !cfg!(feature = "websocket") {
        let message = "this build has no WebSockets: use transport = \"mqtt\", or a build with the cargo feature \"websocket\"";
        report.problem(field.value.place.clone(), message);
    }
    let https_port = match env(HTTPS_PORT_VARIABLE).filter(|text| !text.trim().is_empty()) {
        None => HTTPS_PORT,
        Some(text) => text.trim().parse().ok().filter(|port| *port > 0).unwrap_or_else(|| {
            let message = format!("{HTTPS_PORT_VARIABLE} is not a port: use a number from 1 to 65535");
            report.problem(Place::Environment, message);
            HTTPS_PORT
        }),
    };
    let proxies = ProxySettings::read(env).unwrap_or_else(|error| {
        report.problem(Place::Environment, error.to_string());
        ProxySettings::default()
    });
    (transport, Route { over, https_port, proxies, ..Route::default() })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::inspect_text;
    use super::*;

    fn inspect(text: &str, env: &dyn Fn(&str) -> Option<String>) -> (Route, String) {
        let inspection = inspect_text(text, Path::new("config.toml"), env);
        (inspection.route.clone(), inspection.report.to_string())
    }

    #[test]
    fn proxies_count_for_websockets_alone_and_a_build_without_them_says_so() {
        let env = |name: &str| match name {
            "HTTPS_PROXY" => Some("http://proxy.example:3128".to_owned()),
            "C2D_HTTPS_PORT" => Some("8443".to_owned()),
            _ => None,
        };
        let (route, _) = inspect("[device]\ntransport = \"mqtt\"", &env);
        assert_eq!(route, Route::default());
        let (route, problems) = inspect("[device]\ntransport = \"mqtt-ws\"", &env);
        assert_eq!((route.over, route.https_port), (Over::WebSocket, 8443));
        assert!(route.proxies.on_the_way_to("hub.example", 8443).is_some());
        let refused = problems.contains("this build has no WebSockets");
        assert_eq!(refused, !cfg!(feature = "websocket"), "{problems}");
        assert_eq!(problems.contains("cargo feature \"websocket\""), refused, "{problems}");
        let (route, problems) = inspect("[device]\ntransport = \"amqp-ws\"", &env);
        assert_eq!((route.over, route.https_port), (Over::WebSocket, 8443));
        let lacks = |text: &str| problems.contains(text);
        assert_eq!(lacks("this build has no WebSockets"), !cfg!(feature = "websocket"), "{problems}");
        assert_eq!(lacks("this program is built without AMQP"), !cfg!(feature = "amqp"), "{problems}");
    }
}
