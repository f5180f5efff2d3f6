//! Mistakes that other device agents make (traps), each as a user would notice it.
//!
//! Owns: one test or more for each trap, named after it, with its number in the list of traps; 9 is in `faults`, with
//! the other faults of the machine; 15 is in `traps::disk`.
//! Must not know: how the agent avoids them.

use std::fs;

use crate::harness::wait_for_file;
use crate::over;
use crate::soak::back_end::{Hub, message};
use crate::soak::gateway::Gateway;

mod crash;
pub(crate) mod disk;

/// A rule `NAME` with its own lane. It writes `ID began` and, once the file `go-NAME` exists, `ID ended` into the file
/// `done`. It stops waiting after half a minute, so that a failed test leaves no process behind.
fn gated(name: &str, keys: &str) -> String {
    format!(
        "[[rule]]\nname = \"{name}\"\nwhen = {{ action = \"{name}\" }}\n{keys}\ndo = [ {{ shell = '''\
         echo $C2D_MESSAGE_ID began >> DIR/done; n=0\n\
         until [ -e DIR/go-{name} ] || [ $n -gt 1500 ]; do n=$((n + 1)); sleep 0.02; done\n\
         echo $C2D_MESSAGE_ID ended >> DIR/done''' }} ]\n"
    )
}

/// A rule `quick` that writes a line into the file `done`.
const QUICK: &str = "[[rule]]\nname = \"quick\"\nwhen = { action = \"quick\" }\n\
    do = [ { shell = \"echo $C2D_MESSAGE_ID done >> DIR/done\" } ]\n";

/// A rule `size` that writes the length of the body.
const SIZE: &str = "[[rule]]\nname = \"size\"\nwhen = { action = \"size\" }\n\
    do = [ { shell = \"echo $C2D_MESSAGE_ID $(wc -c) >> DIR/done\" } ]\n";

/// An agent over this transport.
fn started(transport: &str, rest: &str) -> (Hub, Gateway) {
    let hub = Hub::start();
    let mut gateway = Gateway::over(transport, &hub, rest);
    gateway.start_subscribed();
    (hub, gateway)
}

fn open(gateway: &Gateway, name: &str) {
    fs::write(gateway.path(&format!("go-{name}")), "").expect("written");
}

/// Waits for a line in the file `done`, and returns the whole file.
fn wait_done(gateway: &Gateway, line: &str) -> String {
    wait_for_file(&gateway.path("done"), &format!("{line}\n"))
}

/// Ids in the order in which messages were settled at the hub.
fn settled(hub: &Hub) -> Vec<String> {
    let log = hub.emulator.process.stderr.all();
    let lines = log.iter().filter(|line| line.contains("settled a C2D message"));
    lines
        .filter_map(|line| line.split("message_id=\"").nth(1)?.split('"').next().map(str::to_owned))
        .collect()
}

/// As [`settled`], once there are `count`: the log may come after the feedback.
fn settled_after(hub: &Hub, count: usize) -> Vec<String> {
    hub.emulator.process.stderr.wait_for_nth("settled a C2D message", count);
    settled(hub)
}

#[test]
fn trap_01_a_late_acknowledgement_after_a_reconnect_completes_no_other_message() {
    over::each(|transport| {
        let (hub, mut gateway) =
            started(transport, &(QUICK.to_owned() + &gated("slow", "") + &gated("other", "")));
        // On the first connection, "slow" is the second message; on the next one, "other" is.
        hub.send("first", "quick", &[]).expect("room");
        hub.wait_success("first");
        hub.send("slow", "slow", &[]).expect("room");
        wait_done(&gateway, "slow began");
        gateway.cut();
        hub.send("other", "other", &[]).expect("room");
        gateway.agent().stderr.wait_for_nth("subscribed", 2);
        wait_done(&gateway, "other began");
        open(&gateway, "slow");
        hub.wait_success("slow");
        assert_eq!(settled_after(&hub, 2), ["first", "slow"], "nobody has finished \"other\" yet");
        open(&gateway, "other");
        hub.wait_success("other");
        let mut done: Vec<_> = wait_done(&gateway, "other ended").lines().map(str::to_owned).collect();
        done.sort();
        assert_eq!(done, ["first done", "other began", "other ended", "slow began", "slow ended"]);
    });
}

#[test]
fn trap_02_parallel_actions_that_finish_out_of_order_are_completed_in_order_of_arrival() {
    let (hub, mut gateway) = started("mqtt", &(gated("a", "") + &gated("b", "") + &gated("c", "")));
    for name in ["a", "b", "c"] {
        hub.send(name, name, &[]).expect("room");
        wait_done(&gateway, &format!("{name} began"));
    }
    for name in ["c", "b"] {
        open(&gateway, name);
        wait_done(&gateway, &format!("{name} ended"));
    }
    assert!(settled(&hub).is_empty(), "the first has not ended");
    open(&gateway, "a");
    for name in ["a", "b", "c"] {
        hub.wait_success(name);
    }
    assert_eq!(settled_after(&hub, 3), ["a", "b", "c"]);
    gateway.terminate();
    gateway.start_subscribed();
    hub.send("again", "a", &[]).expect("room");
    let done = wait_done(&gateway, "again ended");
    assert_eq!(done.lines().count(), 8, "nothing was run twice: {done}");
}

#[test]
fn trap_03_a_body_of_64_kib_is_no_reconnect_loop() {
    over::each(|transport| {
        let (hub, gateway) = started(transport, SIZE);
        let mut large = message("large", "size");
        let size = 64 * 1024 - large.wire_size();
        large.body = vec![b'x'; size].into();
        hub.send_message(large).expect("room");
        wait_done(&gateway, &format!("large {size}"));
        hub.wait_success("large");
        assert_eq!(gateway.agent().stderr.count("not connected"), 0);
    });
}

#[test]
fn trap_04_an_empty_body_is_a_message_like_any_other() {
    over::each(|transport| {
        let (hub, gateway) = started(transport, SIZE);
        hub.send("empty", "size", &[]).expect("room");
        wait_done(&gateway, "empty 0");
        let mut next = message("next", "size");
        next.body = b"hello".as_slice().into();
        hub.send_message(next).expect("room");
        assert_eq!(wait_done(&gateway, "next 5"), "empty 0\nnext 5\n");
        hub.wait_success("empty");
        hub.wait_success("next");
    });
}

#[test]
fn trap_05_messages_that_come_before_the_subscription_are_neither_lost_nor_done_twice() {
    over::each(|transport| {
        let (hub, mut gateway) = started(transport, QUICK);
        gateway.terminate();
        // The hub keeps the session, so it sends these messages right after CONNACK.
        let ids: Vec<String> = (1..=20).map(|n| format!("m-{n}")).collect();
        for id in &ids {
            hub.send(id, "quick", &[]).expect("room");
        }
        gateway.start();
        ids.iter().for_each(|id| hub.wait_success(id));
        let done: Vec<String> = ids.iter().map(|id| format!("{id} done")).collect();
        let text = fs::read_to_string(gateway.path("done")).expect("a file");
        assert_eq!(text.lines().collect::<Vec<_>>(), done);
    });
}

#[test]
fn trap_06_a_session_that_is_not_present_loses_no_report_that_waits() {
    over::each(|transport| {
        let keys = "settle = \"on-accept\"\nreport = \"telemetry\"";
        let (mut hub, gateway) = started(transport, &gated("slow", keys));
        hub.send("m-1", "slow", &[]).expect("room");
        hub.wait_success("m-1");
        wait_done(&gateway, "m-1 began");
        hub.restart_forgetful(|| {
            gateway.agent().stderr.wait_for("not connected");
            open(&gateway, "slow");
            gateway.agent().stderr.wait_for("action ended");
        });
        let hub_log = &hub.emulator.process.stderr;
        if transport.starts_with("mqtt") {
            // A hub that has forgotten its state knows no session.
            hub_log.wait_for("session_present=false");
        }
        let line = hub_log.wait_until("the report", |lines| {
            lines.iter().find(|line| line.contains("received a D2C message") && line.contains("m-1")).cloned()
        });
        assert!(line.contains("succeeded"), "{line}");
    });
}

#[test]
fn trap_07_a_token_that_expires_in_the_middle_of_an_action_does_not_run_it_twice() {
    over::each(|transport| {
        let hub = Hub::start();
        let device = format!("[device]\ntransport = \"{transport}\"\ntoken_lifetime = \"5s\"\n");
        let mut gateway = Gateway::new(&hub, &(device + &gated("slow", "")));
        gateway.start_subscribed();
        hub.send("long", "slow", &[]).expect("room");
        wait_done(&gateway, "long began");
        if transport.starts_with("mqtt") {
            gateway.agent().stderr.wait_for("disconnected to renew the token");
            gateway.agent().stderr.wait_for_nth("subscribed", 2);
        } else {
            gateway.agent().stderr.wait_for("renewed the token");
        }
        open(&gateway, "slow");
        hub.wait_success("long");
        hub.send("next", "slow", &[]).expect("room");
        let done = wait_done(&gateway, "next ended");
        assert_eq!(done, "long began\nlong ended\nnext began\nnext ended\n");
    });
}

#[test]
fn trap_08_a_second_client_with_the_same_device_id_is_named_and_afterwards_all_goes_on() {
    over::each(|transport| {
        let (hub, gateway) = started(transport, QUICK);
        let mut second = Gateway::over(transport, &hub, QUICK);
        second.start();
        // Over MQTT the hub closes the connection without a reason.
        let says = if transport.starts_with("mqtt") { "probably signs in" } else { "has signed in" };
        let line = gateway.agent().stderr.wait_for(&format!("another program {says}"));
        assert!(line.contains("same device id dev1"), "{line}");
        second.terminate();
        hub.send("m-1", "quick", &[]).expect("room");
        hub.wait_success("m-1");
        assert_eq!(wait_done(&gateway, "m-1 done"), "m-1 done\n");
        assert!(!second.path("done").exists());
    });
}
