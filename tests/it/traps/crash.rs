//! Trap 10: the agent is killed where it hurts.
//!
//! Owns: the moments: between the inbox's write and the PUBACK, and between an action's start and its result.
//! Must not know: the inbox. Used by: nobody.

use super::{QUICK, gated, open, settled, started, wait_done};

#[test]
fn trap_10_kill_9_between_the_inbox_write_and_the_puback_completes_the_message_and_does_not_run_it_again() {
    let (hub, mut gateway) = started(QUICK);
    gateway.proxy.hold(true);
    hub.send("m-1", "quick", &[]).expect("room");
    gateway.agent().stderr.wait_for("action ended");
    assert!(settled(&hub).is_empty());
    gateway.kill();
    gateway.proxy.cut();
    gateway.proxy.hold(false);
    gateway.start();
    hub.wait_success("m-1");
    hub.send("next", "quick", &[]).expect("room");
    assert_eq!(wait_done(&gateway, "next done"), "m-1 done\nnext done\n");
}

#[test]
fn trap_10_kill_9_after_an_accept_and_before_the_puback_runs_what_waited_once() {
    let (hub, mut gateway) = started(&gated("slow", "settle = \"on-accept\""));
    gateway.proxy.hold(true);
    hub.send("first", "slow", &[]).expect("room");
    hub.send("waiting", "slow", &[]).expect("room");
    wait_done(&gateway, "first began");
    // Until the inbox has the second one, too.
    while gateway.inbox().len() < 2 {
        gateway.expect_running();
    }
    assert!(settled(&hub).is_empty());
    gateway.kill();
    gateway.proxy.cut();
    gateway.proxy.hold(false);
    gateway.start();
    wait_done(&gateway, "waiting began");
    open(&gateway, "slow");
    wait_done(&gateway, "waiting ended");
    hub.wait_success("first");
    hub.wait_success("waiting");
    let inbox = gateway.settled_inbox();
    assert_eq!(inbox["first"].outcome.as_deref(), Some("interrupted"));
    assert_eq!(inbox["waiting"].outcome.as_deref(), Some("succeeded"));
    let done = wait_done(&gateway, "first ended"); // the program outlived its agent
    assert_eq!(done.lines().count(), 4, "nothing was run twice: {done}");
}

#[test]
fn trap_10_kill_9_in_the_middle_of_an_action_makes_a_dead_letter_that_a_person_can_run_again() {
    let (hub, mut gateway) = started(&gated("slow", ""));
    hub.send("m-1", "slow", &[]).expect("room");
    wait_done(&gateway, "m-1 began");
    gateway.kill();
    gateway.start();
    hub.wait_success("m-1");
    let inbox = gateway.settled_inbox();
    assert_eq!((inbox["m-1"].state.as_str(), inbox["m-1"].outcome.as_deref()), ("dead", Some("interrupted")));
    open(&gateway, "slow");
    assert_eq!(wait_done(&gateway, "m-1 ended"), "m-1 began\nm-1 ended\n", "the program outlived its agent");
    let retried = crate::harness::run(&mut gateway.command(&["inbox", "retry", "m-1"]));
    assert!(retried.status.success(), "{}", String::from_utf8_lossy(&retried.stderr));
    let done = wait_done(&gateway, "m-1 ended\nm-1 began\nm-1 ended");
    assert_eq!(done.lines().count(), 4, "{done}");
    assert_eq!(gateway.settled_inbox()["m-1"].outcome.as_deref(), Some("succeeded"));
}

#[test]
fn trap_10_kill_9_in_the_middle_of_an_action_that_may_be_repeated_runs_it_again() {
    let (hub, mut gateway) = started(&gated("slow", "on_crash = \"retry\""));
    hub.send("m-1", "slow", &[]).expect("room");
    wait_done(&gateway, "m-1 began");
    gateway.kill();
    gateway.start();
    wait_done(&gateway, "m-1 began\nm-1 began");
    open(&gateway, "slow");
    hub.wait_success("m-1");
    assert_eq!(gateway.settled_inbox()["m-1"].outcome.as_deref(), Some("succeeded"));
}
