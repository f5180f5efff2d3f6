//! Trap 10: the agent is killed at the worst moments.
//!
//! Owns: these moments: between the inbox's write and the PUBACK, and between an action's start and its result.
//! Must not know: the inbox.

use std::io::Write as _;
use std::time::Duration;

use c2d_agent::feedback::FeedbackStatus;

use crate::harness::{DEADLINE, wait_for_file};
use crate::over;
use crate::soak::back_end::{Feedback, Hub};
use crate::soak::gateway::Gateway;

use super::{QUICK, gated, open, settled, settled_after, started, wait_done};

fn skip(test: &str) {
    writeln!(std::io::stderr(), "SKIPPED {test}: strace is not installed").expect("stderr");
}

/// Waits until the program of rule `slow` runs for a message, and the agent has noted its group: on a busy machine, the
/// program may be ahead.
fn wait_begun(gateway: &Gateway, id: &str) {
    wait_done(gateway, &format!("{id} began"));
    wait_for_file(&gateway.path("inbox.journal.children"), " slow");
}

/// Sends one message to its end. After that, over AMQP, the hub has the agent's credit for more messages.
fn flowing(hub: &Hub) -> Vec<String> {
    hub.send("before", "quick", &[]).expect("room");
    hub.wait_success("before");
    settled_after(hub, 1)
}

#[test]
fn trap_10_kill_9_between_the_inbox_write_and_the_puback_completes_the_message_and_does_not_run_it_again() {
    over::each(|transport| {
        let (hub, mut gateway) = started(transport, QUICK);
        let before = flowing(&hub);
        gateway.proxy.hold(true);
        hub.send("m-1", "quick", &[]).expect("room");
        gateway.agent().stderr.wait_for("action ended");
        assert_eq!(gateway.settled_inbox()["m-1"].outcome.as_deref(), Some("succeeded"));
        assert_eq!(settled(&hub), before);
        gateway.kill();
        gateway.proxy.cut();
        gateway.proxy.hold(false);
        gateway.start();
        hub.wait_success("m-1");
        hub.send("next", "quick", &[]).expect("room");
        assert_eq!(wait_done(&gateway, "next done"), "before done\nm-1 done\nnext done\n");
    });
}

#[test]
fn trap_10_kill_9_after_an_accept_and_before_the_puback_runs_what_waited_once() {
    over::each(|transport| {
        let (hub, mut gateway) =
            started(transport, &(QUICK.to_owned() + &gated("slow", "settle = \"on-accept\"")));
        let before = flowing(&hub);
        gateway.proxy.hold(true);
        hub.send("first", "slow", &[]).expect("room");
        hub.send("waiting", "slow", &[]).expect("room");
        wait_begun(&gateway, "first");
        // Waits until the inbox also has the second message.
        while gateway.inbox().len() < 3 {
            gateway.expect_running();
        }
        assert_eq!(settled(&hub), before);
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
        let done = wait_done(&gateway, "waiting ended");
        let expected = "before done\nfirst began\nwaiting began\nwaiting ended\n";
        assert_eq!(done, expected, "nothing was run twice, and the program of the killed agent was ended");
    });
}

#[test]
fn trap_10_kill_9_before_any_write_or_sync_of_the_inbox_loses_no_message_and_runs_none_twice() {
    let hub = Hub::start();
    for call in ["pwrite64", "fdatasync"] {
        for nth in 1.. {
            let mut gateway = Gateway::new(&hub, QUICK);
            if !gateway.start_killed_at(call, nth) {
                return skip("kill -9 at each write and sync");
            }
            let ids = ["a", "b"].map(|name| format!("{call}-{nth}-{name}"));
            ids.iter().for_each(|id| hub.send(id, "quick", &[]).expect("room"));
            let are_settled = |told: &Feedback| ids.iter().all(|id| told.contains_key(id));
            while gateway.agent().is_running() && !hub.wait_feedback(Duration::from_millis(50), are_settled) {
            }
            if gateway.agent().is_running() {
                gateway.agent().signal(rustix::process::Signal::TERM);
            }
            let was_killed = gateway.wait_exit().is_none();
            gateway.start();
            ids.iter().for_each(|id| hub.wait_success(id));
            let (inbox, effects) = (gateway.settled_inbox(), gateway.effects("done"));
            for id in &ids {
                let done = effects.get(&format!("{id} done")).copied().unwrap_or_default();
                let outcome = inbox[id].outcome.as_deref();
                let is_right =
                    matches!((outcome, done), (Some("succeeded"), 1) | (Some("interrupted"), 0 | 1));
                assert!(is_right, "{call} {nth}: {id} is {outcome:?} and was done {done} times");
            }
            gateway.terminate();
            if !was_killed {
                assert!(nth > 4, "{call}: only {nth} of them");
                break;
            }
        }
    }
}

#[test]
fn trap_10_kill_9_in_the_middle_of_an_action_makes_a_dead_letter_that_a_person_can_run_again() {
    over::each(|transport| {
        let (hub, mut gateway) = started(transport, &gated("slow", ""));
        hub.send("m-1", "slow", &[]).expect("room");
        wait_begun(&gateway, "m-1");
        gateway.kill();
        gateway.start();
        // Over AMQP the device can reject a message.
        let told =
            if transport.starts_with("mqtt") { FeedbackStatus::Success } else { FeedbackStatus::Rejected };
        let is_told = |feedback: &Feedback| feedback.get("m-1").is_some_and(|all| *all == [told]);
        assert!(hub.wait_feedback(DEADLINE, is_told), "{transport}: {:?}", hub.feedback());
        let inbox = gateway.settled_inbox();
        assert_eq!(
            (inbox["m-1"].state.as_str(), inbox["m-1"].outcome.as_deref()),
            ("dead", Some("interrupted"))
        );
        open(&gateway, "slow");
        let retried = crate::harness::run(&mut gateway.command(&["inbox", "retry", "m-1"]));
        assert!(retried.status.success(), "{}", String::from_utf8_lossy(&retried.stderr));
        let done = wait_done(&gateway, "m-1 ended");
        assert_eq!(done, "m-1 began\nm-1 began\nm-1 ended\n", "the program of the killed agent was ended");
        assert_eq!(gateway.settled_inbox()["m-1"].outcome.as_deref(), Some("succeeded"));
    });
}

#[test]
fn trap_10_kill_9_in_the_middle_of_an_action_that_may_be_repeated_runs_it_again() {
    over::each(|transport| {
        let (hub, mut gateway) = started(transport, &gated("slow", "on_crash = \"retry\""));
        hub.send("m-1", "slow", &[]).expect("room");
        wait_begun(&gateway, "m-1");
        gateway.kill();
        gateway.start();
        wait_done(&gateway, "m-1 began\nm-1 began");
        open(&gateway, "slow");
        hub.wait_success("m-1");
        assert_eq!(gateway.settled_inbox()["m-1"].outcome.as_deref(), Some("succeeded"));
    });
}
