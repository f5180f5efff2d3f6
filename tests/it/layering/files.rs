//! Inside a module: which file may import which.
//!
//! Owns: the order of the files of a module. Must not know: what any file does.

use super::imports::{imported, shipped_files};

/// For each module that has an order: its files below `src/`, without `.rs`, from bottom to top. A file may import
/// only files of its module that stand before it, so no circle can come about.
const ORDER: &[(&str, &[&str])] = &[("session", SESSION), ("agent", AGENT)];

const SESSION: &[&str] = &[
    // What all others may name.
    "session/backoff",
    "session/carrier",
    "session/certificates",
    "session/confirmations",
    "session/failure",
    "session/upstream",
    // How a connection is made.
    "session/signin",
    "session/terms",
    "session/due",
    "session/proof",
    "session/dial",
    // What a connection shares with those who settle, answer and publish.
    "session/gate",
    "session/delivery",
    "session/calls",
    "session/arrivals",
    "session/publish",
    "session/connection",
    "session/questions",
    // MQTT.
    "session/mqtt/topics",
    "session/mqtt/subscriptions",
    "session/mqtt/hand_over",
    "session/mqtt/fault",
    "session/mqtt/bridge",
    "session/mqtt/release",
    "session/mqtt/link",
    "session/mqtt/wire",
    "session/mqtt/options",
    "session/mqtt/enrol",
    "session/mqtt/reader",
    "session/mqtt",
    // AMQP, which knows nothing of MQTT.
    "session/amqp/pending",
    "session/amqp/message",
    "session/amqp/fault",
    "session/amqp/received",
    "session/amqp/stream",
    "session/amqp/pair",
    "session/amqp/cbs",
    "session/amqp/twin",
    "session/amqp/methods",
    "session/amqp/settlements",
    "session/amqp/credit",
    "session/amqp/links",
    "session/amqp/opened",
    "session/amqp/reader",
    "session/amqp",
    // One connection after the other.
    "session/trial",
    "session/https_registration",
    "session/transports",
    "session/probe",
    "session/enrol",
    "session/registrations",
    "session/event",
    "session/keeper",
    "session",
];

const AGENT: &[&str] = &[
    // What all others may name.
    "agent/error",
    "agent/alone",
    "agent/status",
    "agent/certificates",
    "agent/tally",
    "agent/report",
    "agent/sessions",
    // The control socket.
    "agent/control/view",
    "agent/control/wire",
    "agent/control/socket",
    "agent/control/serve",
    "agent/control/client",
    "agent/control",
    // The parts of the desk.
    "agent/message/reason",
    "agent/message/life",
    "agent/message/lanes",
    "agent/message/guards",
    "agent/rulebook",
    "agent/message/in_hand",
    "agent/machine",
    "agent/leftovers",
    "agent/board",
    "agent/supervision",
    "agent/scrape",
    "agent/watch",
    "agent/reports",
    "agent/desk",
    // The way of a message, from its end to its arrival.
    "agent/message/calls",
    "agent/message/end",
    "agent/message/act",
    "agent/message/arrive",
    // What starts or changes the way.
    "agent/recovery",
    "agent/requests",
    "agent/message/recorded",
    "agent/message",
    "agent/new_rules",
    "agent/twin",
    "agent/reload",
    "agent/assigning",
    "agent/renewing",
    "agent/hub_events",
    "agent/stopping",
    "agent",
];

#[test]
fn a_file_imports_only_files_below_it() {
    let files = shipped_files();
    let problems: Vec<String> =
        ORDER.iter().flat_map(|(module, order)| problems(module, order, &files)).collect();
    assert!(problems.is_empty(), "{} imports point up:\n{}", problems.len(), problems.join("\n"));
}

/// What is wrong in one module, a sentence each.
fn problems(module: &str, order: &[&str], files: &[(String, String)]) -> Vec<String> {
    let below = format!("{module}/");
    let own: Vec<&(String, String)> =
        files.iter().filter(|(file, _)| file == module || file.starts_with(&below)).collect();
    let names: Vec<&str> = own.iter().map(|(file, _)| file.as_str()).collect();
    let mut found = Vec::new();
    for gone in order.iter().filter(|file| !names.contains(file)) {
        found.push(format!("src/{gone}.rs is in the list of {} and does not exist: take it out", file!()));
    }
    for (file, code) in own {
        let Some(place) = order.iter().position(|known| known == file) else {
            found.push(format!(
                "src/{file}.rs is not in the list of {}: add it after the last file that it imports",
                file!()
            ));
            continue;
        };
        let mut up: Vec<&str> = imported(file, code, &names);
        up.retain(|other| order.iter().position(|known| known == other).is_some_and(|at| at > place));
        up.dedup();
        found.extend(up.iter().map(|other| {
            format!(
                "src/{file}.rs may not import src/{other}.rs, which stands above it in the list of {}: take a \
                 value as an argument, or move what both need to a file below both; or move this file up in \
                 the list, if no file between them imports it",
                file!()
            )
        }));
    }
    found
}

mod its_own_rules {
    use super::problems;

    const LIST: &[&str] = &["a/low", "a/deep/one", "a/deep", "a/high", "a"];

    fn found(file: &str, code: &str) -> Vec<String> {
        let text =
            |name: &&str| (name.to_string(), if *name == file { code.to_owned() } else { String::new() });
        problems("a", LIST, &LIST.iter().map(text).collect::<Vec<_>>())
    }

    #[test]
    fn an_import_that_points_up_is_found_however_it_is_written() {
        for (file, code, up) in [
            ("a/low", "use super::high::X;", "a/high"),
            ("a/low", "use super::Top;", "a"),
            ("a/low", "use crate::{b::B, a::{deep::{one::X, Y}, Z}};", "a/deep/one"),
            ("a/low", "fn f() { crate::a::high::run(); }", "a/high"),
            ("a/deep/one", "use super::Y;", "a/deep"),
            ("a/deep/one", "use super::super::{low::X, high};", "a/high"),
            ("a/deep", "pub(crate) use super::high::X;", "a/high"),
        ] {
            let found = found(file, code);
            let sentence = format!("src/{file}.rs may not import src/{up}.rs,");
            assert!(found.iter().any(|problem| problem.starts_with(&sentence)), "{code}: {found:?}");
        }
    }

    #[test]
    fn imports_that_point_down_or_stay_inside_are_fine() {
        for (file, code) in [
            ("a", "use deep::one::X;\nuse low::Y;"),
            ("a/high", "use super::deep::{self, one::{X, Y}};\nuse super::low;"),
            ("a/deep", "mod one;\nuse one::X;\nuse crate::b::high::Y;"),
            ("a/low", "mod inner {\n    use super::X;\n}"),
        ] {
            assert_eq!(found(file, code), [""; 0], "{code}");
        }
    }

    #[test]
    fn a_file_that_is_new_or_gone_is_found() {
        let files =
            ["a/low", "a/new", "a/deep/one", "a/deep", "a"].map(|name| (name.to_owned(), String::new()));
        let found = problems("a", LIST, &files);
        assert!(found[0].starts_with("src/a/high.rs is in the list of"), "{found:?}");
        assert!(found[1].starts_with("src/a/new.rs is not in the list of"), "{found:?}");
    }
}
