//! The rules of this check, tried on small texts.

use super::problems;

#[track_caller]
fn finds(path: &str, text: &str, part: &str) {
    let found = problems(path, &format!("//! Owns.\n{text}\n"));
    assert!(found.iter().any(|problem| problem.contains(part)), "nothing says \"{part}\" in {found:?}");
}

#[track_caller]
fn accepts(path: &str, text: &str) {
    assert_eq!(problems(path, &format!("//! Owns.\n{text}\n")), Vec::<String>::new());
}

#[test]
fn an_import_that_points_up_is_found_however_it_is_written() {
    finds("src/session/mqtt.rs", "use crate::rules::Rule;", "`session` may not know `rules`");
    finds("src/action.rs", "use crate::{message::C2dMessage, session::{A, B}};", "may not know `session`");
    finds("src/action.rs", "use super::session::Delivery;", "may not know `session`");
    finds("src/emulator/mqtt.rs", "use super::super::session::Delivery;", "may not know `session`");
    finds("src/emulator/hub.rs", "fn f() { crate::agent::run(); }", "may not know `agent`");
    finds("src/message.rs", "use crate::cli;", "`message` may not know `cli`");
    finds("src/main.rs", "use c2d_agent::agent;", "`main` may not know `agent`");
}

#[test]
fn imports_that_point_down_or_stay_inside_are_fine() {
    accepts("src/session/mqtt.rs", "use super::Delivery;\nuse crate::{message::{A, B}, tls};");
    accepts("src/emulator/amqp.rs", "use crate::emulator::hub::Hub;\npub(crate) fn f() {}");
    accepts("src/main.rs", "fn main() { c2d_agent::cli::run() }");
}

#[test]
fn a_module_without_a_layer_is_found() {
    finds("src/outbox.rs", "", "has no layer yet");
}

#[test]
fn vocabulary_that_names_a_runtime_or_a_socket_is_found() {
    finds("src/rules.rs", "use tokio::sync::mpsc;", "may not name `tokio`");
    finds("src/credentials/sas.rs", "use std::net::TcpStream;", "may not name `TcpStream`");
}

#[test]
fn a_crate_outside_its_file_is_found() {
    finds("src/session.rs", "use rumqttc::Event;", "`rumqttc` belongs in");
    finds("src/agent.rs", "use fe2o3_amqp::Sender;", "`fe2o3_amqp` belongs in");
    finds("src/action/gpio.rs", "use gpiocdev::Request;", "`gpiocdev` belongs in");
    finds("src/service.rs", "use anyhow::Context;", "`anyhow` belongs in");
    finds("src/agent.rs", "let now = SystemTime::now();", "take the time as an argument");
    finds("src/agent.rs", "#[cfg(feature = \"gpio\")]", "`cfg(feature` belongs in");
    accepts("src/service/send.rs", "use fe2o3_amqp::Sender;");
    accepts("src/action/gpio.rs", "#[cfg(feature = \"gpio\")]\nmod rppal;\nuse rppal::Pins;");
}

#[test]
fn comments_and_tests_may_name_anything() {
    accepts(
        "src/agent.rs",
        "// not anyhow\nlet a = 1; // SystemTime::now\n#[cfg(test)]\nmod tests {\n    use crate::cli;\n}",
    );
    accepts("src/agent/tests.rs", "use crate::cli;");
}

#[test]
fn the_shape_of_a_file_is_checked() {
    let bare = problems("src/agent.rs", "use std::fmt;");
    assert!(bare[0].contains("open the file with `//!`"), "{bare:?}");
    finds("src/agent.rs", &"\n".repeat(600), "lines are more than 500");
    finds("tests/it/faults.rs", &"\n".repeat(600), "lines are more than 500");
    finds("src/session/mod.rs", "", "`mod` says nothing");
    finds("src/utils/hex.rs", "", "`utils` says nothing");
}

#[test]
fn test_knobs_in_shipped_code_are_found() {
    finds("src/agent.rs", "#[cfg(test)]\nfn fake() {}", "`cfg(test)` changes what is shipped");
    finds("src/agent.rs", "#[cfg(test)]\nmod tests {\n}\nfn late() {}", "tests come last");
    accepts("src/agent.rs", "#[cfg(test)]\nmod tests;");
}
