//! The agent under each fault, over each transport that has the fault: every action runs once and every message is
//! completed, without help by a person.
//!
//! Owns: nothing. Must not know: how faults are done.

use crate::harness::{Emulator, wait_for_file};
use crate::rest::service_token;
use crate::rest_ask::ask;
use crate::soak::back_end::Hub;
use crate::soak::gateway::Gateway;

/// Rules: each message toggles its own pin and writes a line into the file `done`. Two runs would show in both.
fn rules(transport: &str) -> String {
    let pins = (1..=5).map(|pin| format!("[gpio.pins.p{pin}]\nline = {pin}\n")).collect::<String>();
    let rule = |pin| {
        format!(
            "[[rule]]\nname = \"p{pin}\"\nwhen = {{ action = \"turn\", pin = \"p{pin}\" }}\n\
             do = [ {{ gpio = \"p{pin}\", set = \"toggle\" }}, {{ shell = \"echo $C2D_MESSAGE_ID >> DIR/done\" }} ]\n"
        )
    };
    let rules = (1..=5).map(rule).collect::<String>();
    format!(
        "[device]\ntransport = \"{transport}\"\n[gpio]\nbackend = \"simulated\"\nstate_file = \"pins.json\"\n{pins}{rules}"
    )
}

fn set(emulator: &Emulator, name: &str, value: &str) {
    let line = format!("PUT /emulator/devices/dev1/faults/{name}");
    let answer = ask(emulator, &line, &service_token(emulator), "", value.as_bytes());
    assert_eq!(answer.status, 200, "{answer:?}");
}

fn send(hub: &Hub, number: u32) {
    hub.send(&format!("m-{number}"), "turn", &[("pin", &format!("p{number}"))]).expect("room");
}

/// Sends five messages under a fault, or under none at first. Three wait when the agent starts, one follows when it
/// runs, and the last one follows after `meanwhile`.
fn live_through(transport: &str, name: &str, value: &str, meanwhile: impl FnOnce(&Hub, &Gateway)) -> String {
    let hub = Hub::start();
    if !name.is_empty() {
        set(&hub.emulator, name, value);
    }
    let mut gateway = Gateway::new(&hub, &rules(transport));
    (1..=3).for_each(|number| send(&hub, number));
    gateway.start();
    gateway.agent().stderr.wait_for("subscribed");
    send(&hub, 4);
    meanwhile(&hub, &gateway);
    send(&hub, 5);
    let ids: Vec<String> = (1..=5).map(|number| format!("m-{number}")).collect();
    for id in &ids {
        hub.wait_success(id);
    }
    gateway.expect_running();
    let effects = gateway.effects("done");
    let once: Vec<_> = ids.iter().map(|id| (id.clone(), 1)).collect();
    assert_eq!(effects.into_iter().collect::<Vec<_>>(), once, "{transport} {name}={value}");
    let pins = wait_for_file(&gateway.path("pins.json"), "\"p5\":\"on\"");
    assert_eq!(pins.matches("\"on\"").count(), 5, "{pins}");
    for (id, all) in hub.feedback() {
        assert_eq!(all.len(), 1, "one record for {id}: {all:?}");
    }
    let log = gateway.agent().stderr.text();
    gateway.terminate();
    log
}

fn nothing(_hub: &Hub, _gateway: &Gateway) {}

#[test]
fn a_connection_that_is_dropped_at_any_packet_is_made_again() {
    // The first packets over MQTT are CONNECT, CONNACK, SUBSCRIBE, SUBACK, three PUBLISHes, and the first PUBACK.
    for at in ["1", "2", "4", "6", "8"] {
        let log = live_through("mqtt", "drop-at", at, nothing);
        assert!(log.contains("not connected"), "drop-at={at}: {log}");
    }
}

#[test]
fn a_websocket_that_is_dropped_with_the_first_puback_is_made_again() {
    let log = live_through("mqtt-ws", "drop-at", "8", nothing);
    assert!(log.contains("not connected"), "{log}");
}

#[test]
fn an_amqp_connection_that_is_dropped_at_a_message_or_an_outcome_is_made_again() {
    // Over AMQP, messages and outcomes count as packets: three messages out, and three outcomes.
    for at in ["2", "4"] {
        let log = live_through("amqp", "drop-at", at, nothing);
        assert!(log.contains("not connected"), "drop-at={at}: {log}");
    }
}

#[test]
fn messages_that_come_twice_are_acted_on_once() {
    for transport in ["mqtt", "mqtt-ws", "amqp", "amqp-ws"] {
        live_through(transport, "duplicate", "", nothing);
    }
}

#[test]
fn pubacks_that_are_ignored_bring_messages_again_and_no_action() {
    let log = live_through("mqtt", "ignore-puback", "3", |hub, gateway| {
        // The hub delivers the messages again only on another connection.
        hub.emulator.process.stderr.wait_for_nth("ignored a PUBACK because of the fault ignore-puback", 3);
        gateway.proxy.cut();
    });
    assert!(log.contains("already done"), "{log}");
}

#[test]
fn messages_that_come_late_are_acted_on_late() {
    for transport in ["mqtt", "amqp"] {
        live_through(transport, "delay", "500ms", nothing);
    }
}

#[test]
fn a_token_that_expires_early_is_followed_by_a_new_one() {
    let in_the_middle = |lost| {
        move |hub: &Hub, gateway: &Gateway| {
            set(&hub.emulator, "expire-token", "");
            gateway.agent().stderr.wait_for_nth("not connected", lost);
        }
    };
    // The token expires right after the sign-in, and once more.
    live_through("mqtt", "expire-token", "", in_the_middle(2));
    for transport in ["mqtt-ws", "amqp", "amqp-ws"] {
        live_through(transport, "", "", in_the_middle(1));
    }
}

#[test]
fn messages_in_the_wrong_order_are_all_acted_on() {
    for transport in ["mqtt", "amqp"] {
        live_through(transport, "reverse-order", "", nothing);
    }
}

#[test]
fn messages_before_the_suback_are_acted_on_and_completed() {
    live_through("mqtt", "early-publish", "", nothing);
}

#[test]
fn a_throttled_agent_waits_and_signs_in_when_it_may() {
    for transport in ["mqtt", "amqp"] {
        let hub = Hub::start();
        set(&hub.emulator, "throttle", "");
        let mut gateway = Gateway::new(&hub, &rules(transport));
        gateway.start();
        gateway.agent().stderr.wait_for("throttling");
        let line = "DELETE /emulator/devices/dev1/faults";
        assert_eq!(ask(&hub.emulator, line, &service_token(&hub.emulator), "", b"").status, 200);
        gateway.agent().stderr.wait_for("subscribed");
        send(&hub, 1);
        hub.wait_success("m-1");
        gateway.terminate();
    }
}

#[test]
fn a_report_that_is_lost_with_its_connection_is_sent_again() {
    // Outcome and report may come in any order; one of them is the last packet.
    for (transport, at) in [("mqtt", "6"), ("mqtt", "7"), ("amqp", "2"), ("amqp", "3"), ("amqp-ws", "3")] {
        let hub = Hub::start();
        set(&hub.emulator, "drop-at", at);
        let text = format!("{}[report]\noutcomes = \"telemetry\"\n", rules(transport));
        let mut gateway = Gateway::new(&hub, &text);
        send(&hub, 1);
        gateway.start();
        hub.wait_success("m-1");
        gateway.agent().stderr.wait_for("not connected");
        let events = || {
            let line = "GET /emulator/devices/dev1/events";
            ask(&hub.emulator, line, &service_token(&hub.emulator), "", b"").json()
        };
        let end = std::time::Instant::now() + crate::harness::DEADLINE;
        while events()[0]["systemProperties"]["$.cid"] != "m-1" {
            assert!(
                std::time::Instant::now() < end,
                "no report over {transport}, {at}: {}",
                gateway.agent().stderr.text()
            );
            std::thread::park_timeout(std::time::Duration::from_millis(20)); // the route has no event: poll
        }
        assert_eq!(gateway.effects("done").into_values().collect::<Vec<_>>(), [1], "{transport}, {at}");
        gateway.terminate();
    }
}
