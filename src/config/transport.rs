//! Reads how the agent gets to its hub: `transport` in `[device]`, and the related variables of the environment.
//!
//! Owns: the words, and whether this build supports them. Must not know: sockets.

use crate::credentials::{Over, ProxySettings, Route, Transport};
use crate::features;

use super::field::Field;
use super::key::{Absent, Key, Words};
use super::report::{Place, Report};

/// The hub's HTTPS port, which also serves its WebSockets. Source: wire reference 1.1.
const HTTPS_PORT: u16 = 443;

/// Sets another port, for the emulator.
const HTTPS_PORT_VARIABLE: &str = "C2D_HTTPS_PORT";

pub(super) const TRANSPORT: Key<Words<(Transport, Over)>> = Key {
    name: "transport",
    kind: Words(&[
        ("mqtt", (Transport::Mqtt, Over::Tls)),
        ("mqtt-ws", (Transport::Mqtt, Over::WebSocket)),
        ("auto", (Transport::Mqtt, Over::Either)),
        ("amqp", (Transport::Amqp, Over::Tls)),
        ("amqp-ws", (Transport::Amqp, Over::WebSocket)),
    ]),
    absent: Absent::Means("mqtt"),
    about: "`mqtt` (port 8883); `mqtt-ws` (the same over a WebSocket, port 443); `auto` (tries MQTT first and falls back to \
            WebSockets when it does not reach a sign-in; what worked is tried first while the agent runs); `amqp` (5671) or \
            `amqp-ws` (443): over AMQP a device can also refuse a message or give it back, see `on_failure`. Not every hub has \
            accepted X.509 over a WebSocket at all times (`check` says so)",
};

pub(super) fn read(
    field: &Field<'_>,
    env: &dyn Fn(&str) -> Option<String>,
    report: &mut Report,
) -> (Transport, Route) {
    let (transport, over) = TRANSPORT.read(field, report).unwrap_or_default();
    let needed = [
        (transport == Transport::Amqp, features::FULL, "AMQP"),
        (over != Over::Tls, features::FULL, "WebSocket support"),
    ];
    for (_, part, what) in needed.into_iter().filter(|(is_needed, part, _)| *is_needed && !part.is_built()) {
        let message = format!("{}; or write transport = \"mqtt\"", part.lacks(what));
        report.problem(field.value.place.clone(), message);
    }
    if over == Over::Tls {
        return (transport, Route::default());
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
        let refused = problems.contains("WebSocket support is not in this program");
        assert_eq!(refused, !cfg!(feature = "full"), "{problems}");
        assert_eq!(problems.contains("its Cargo feature is full; or write"), refused, "{problems}");
        let (route, problems) = inspect("[device]\ntransport = \"amqp-ws\"", &env);
        assert_eq!((route.over, route.https_port), (Over::WebSocket, 8443));
        let lacks = |text: &str| problems.contains(text);
        assert_eq!(lacks("WebSocket support is not in this program"), !cfg!(feature = "full"), "{problems}");
        assert_eq!(lacks("AMQP is not in this program"), !cfg!(feature = "full"), "{problems}");
    }
}
