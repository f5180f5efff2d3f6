//! What the next agent does with the inbox of the last one, if something has changed in between.
//!
//! Owns: removed rules, an absent hub, a clock that goes on. Must not know: the inbox's file.

use std::fs;
use std::time::{Duration, Instant, SystemTime};

use crate::harness::{run, skip, wait_for_file, write_config};
use crate::over;
use crate::soak::back_end::{Hub, message};
use crate::soak::gateway::Gateway;

/// A rule `work` that writes `ID began` and, once the file `go` exists, `ID ended` into the file `done`.
fn work(keys: &str) -> String {
    format!(
        "[[rule]]\nname = \"work\"\nwhen = {{ action = \"work\" }}\n{keys}\ndo = [ {{ shell = '''\
         echo $C2D_MESSAGE_ID began >> DIR/done; n=0\n\
         until [ -e DIR/go ] || [ $n -gt 1500 ]; do n=$((n + 1)); sleep 0.02; done\n\
         echo $C2D_MESSAGE_ID ended >> DIR/done''' }} ]\n"
    )
}

/// An agent in the middle of `m-1`, with `m-2` in line behind it. `m-2` expires after `life`.
fn one_begun_and_one_in_line(transport: &str, rest: &str, life: Duration) -> (Hub, Gateway) {
    let hub = Hub::start();
    let mut gateway = Gateway::over(transport, &hub, rest);
    line_up(&hub, &mut gateway, life);
    (hub, gateway)
}

fn line_up(hub: &Hub, gateway: &mut Gateway, life: Duration) {
    gateway.start_subscribed();
    hub.send("m-1", "work", &[]).expect("room");
    wait_for_file(&gateway.path("done"), "m-1 began");
    let mut second = message("m-2", "work");
    second.expiry = Some(SystemTime::now() + life);
    hub.send_message(second).expect("room");
    while gateway.inbox().len() < 2 {
        gateway.expect_running();
    }
}

/// Writes another configuration for the next agent.
fn reconfigure(gateway: &Gateway, transport: &str, rest: &str) {
    let dir = gateway.path("");
    let rest = format!("[device]\ntransport = \"{transport}\"\n{rest}");
    write_config(&dir, &rest.replace("DIR", &dir.display().to_string()));
}

fn pass(time: Duration) {
    let end = Instant::now() + time;
    while Instant::now() < end {
        std::thread::park_timeout(end.saturating_duration_since(Instant::now()));
    }
}

#[test]
fn a_completed_message_whose_rule_is_gone_becomes_a_dead_letter_that_can_be_run_when_the_rule_is_back() {
    over::each(|transport| {
        let rule = work("settle = \"on-accept\"");
        let (_hub, mut gateway) = one_begun_and_one_in_line(transport, &rule, Duration::from_secs(600));
        gateway.kill();
        reconfigure(&gateway, transport, "");
        gateway.start_subscribed();
        let second = gateway.settled_inbox()["m-2"].clone();
        assert_eq!((second.state.as_str(), second.outcome.as_deref()), ("dead", Some("refused")));
        gateway.terminate();
        reconfigure(&gateway, transport, &rule);
        fs::write(gateway.path("go"), "").expect("written");
        gateway.start_subscribed();
        let retried = run(&mut gateway.command(&["inbox", "retry", "m-2"]));
        assert!(retried.status.success(), "{}", String::from_utf8_lossy(&retried.stderr));
        wait_for_file(&gateway.path("done"), "m-2 ended");
        gateway.terminate();
    });
}

#[test]
fn a_message_whose_rule_is_gone_when_it_comes_again_is_reported() {
    over::each(|transport| {
        let (hub, mut gateway) = one_begun_and_one_in_line(transport, &work(""), Duration::from_secs(600));
        gateway.kill();
        reconfigure(&gateway, transport, "[report]\noutcomes = \"telemetry\"\n");
        gateway.start_subscribed();
        hub.wait_success("m-2");
        hub.emulator.process.stderr.wait_until("a report on m-2", |lines| {
            let report = |line: &&String| line.contains("received a D2C message") && line.contains("cid=m-2");
            lines.iter().find(report).cloned()
        });
        gateway.terminate();
    });
}

#[test]
fn two_messages_of_one_id_that_come_when_their_rule_is_gone_hold_nothing_up() {
    over::each(|transport| {
        let (hub, mut gateway) = one_begun_and_one_in_line(transport, &work(""), Duration::from_secs(600));
        gateway.kill();
        hub.send("m-2", "work", &[]).expect("room");
        hub.send("m-3", "work", &[]).expect("room");
        reconfigure(&gateway, transport, "");
        gateway.start_subscribed();
        hub.wait_success("m-3");
        assert_eq!(gateway.agent().stderr.count("dropped unsettled"), 0, "{}", gateway.agent().stderr.text());
        gateway.terminate();
    });
}

#[test]
fn a_message_that_the_hub_was_to_send_again_is_given_up_only_when_the_hub_is_there_and_does_not() {
    over::each(|transport| {
        let life = Duration::from_secs(2);
        let (_hub, mut gateway) = one_begun_and_one_in_line(transport, &work(""), life);
        gateway.proxy.set_open(false);
        gateway.kill();
        pass(life);
        gateway.start();
        gateway.agent().stderr.wait_for("not connected");
        assert_eq!(gateway.inbox()["m-2"].state, "accepted", "the clock alone may be wrong");
        gateway.proxy.set_open(true);
        let line = gateway.agent().stderr.wait_for("expired");
        assert!(line.contains("message_id=\"m-2\""), "{line}");
        assert_eq!(gateway.settled_inbox()["m-2"].outcome.as_deref(), Some("expired"));
        gateway.terminate();
    });
}

#[test]
fn a_clock_that_is_ahead_swallows_nothing_neither_fresh_nor_in_line_nor_after_a_restart() {
    for settle in ["after-action", "on-accept"] {
        over::each(|transport| {
            let hub = Hub::start();
            let rule = work(&format!("settle = \"{settle}\""));
            let mut gateway = Gateway::over(transport, &hub, &rule);
            if !gateway.set_clock("+2h") {
                return skip("a clock that is ahead swallows nothing", "faketime is not installed");
            }
            line_up(&hub, &mut gateway, Duration::from_secs(1800));
            let said = gateway.agent().stderr.wait_for("this machine's clock seems to be ahead by 1h");
            assert!(
                said.contains("message_id=\"m-2\"") && said.contains("timedatectl set-ntp true"),
                "{said}"
            );
            gateway.kill();
            fs::write(gateway.path("go"), "").expect("written");
            gateway.start_subscribed();
            wait_for_file(&gateway.path("done"), "m-2 ended");
            hub.wait_success("m-2");
            assert_eq!(gateway.settled_inbox()["m-2"].outcome.as_deref(), Some("succeeded"));
            gateway.terminate();
        });
    }
}

#[test]
fn a_clock_that_is_put_ahead_between_two_starts_swallows_nothing_that_the_hub_still_has() {
    over::each(|transport| {
        let life = Duration::from_secs(1800);
        let (hub, mut gateway) = one_begun_and_one_in_line(transport, &work(""), life);
        gateway.kill();
        if !gateway.set_clock("+2h") {
            return skip("a clock that is put ahead swallows nothing", "faketime is not installed");
        }
        fs::write(gateway.path("go"), "").expect("written");
        gateway.start_subscribed();
        hub.wait_success("m-2");
        assert!(fs::read_to_string(gateway.path("done")).expect("a file").contains("m-2 ended"));
        gateway.terminate();
    });
}

#[test]
fn a_pause_before_another_attempt_does_not_hold_up_the_end() {
    let hub = Hub::start();
    let rule = "[[rule]]\nname = \"work\"\nwhen = { action = \"work\" }\nsettle = \"on-accept\"\nattempts = 2\n\
        backoff = \"1h\"\ndo = [ { shell = \"exit 1\" } ]\n";
    let mut gateway = Gateway::new(&hub, rule);
    gateway.start_subscribed();
    hub.send("m-1", "work", &[]).expect("room");
    gateway.agent().stderr.wait_for("retry_in_ms=");
    let asked = Instant::now();
    gateway.terminate();
    assert!(asked.elapsed() < Duration::from_millis(1_500), "it took {:?}", asked.elapsed());
}

#[test]
fn a_hub_that_refuses_the_device_at_the_start_does_not_cut_off_what_the_inbox_had_to_run() {
    over::each(|transport| {
        let hub = Hub::start();
        let rule = "[[rule]]\nname = \"work\"\nwhen = { action = \"work\" }\nsettle = \"on-accept\"\n\
        do = [ { shell = \"[ -e DIR/go ] || exit 1; echo began >> DIR/done; sleep 0.5; echo ended >> DIR/done\" } ]\n";
        let mut gateway = Gateway::over(transport, &hub, rule);
        gateway.start_subscribed();
        hub.send("m-1", "work", &[]).expect("room");
        hub.wait_success("m-1"); // accepted, so the inbox has it
        assert_eq!(gateway.settled_inbox()["m-1"].state, "dead");
        gateway.terminate();
        assert!(run(&mut gateway.command(&["inbox", "retry", "m-1"])).status.success());
        fs::write(gateway.path("go"), "").expect("written");
        let known = gateway.variable("C2D_DEVICE_CONNECTION_STRING");
        let (known, _) = known.split_once("SharedAccessKey=").expect("a key");
        let unknown = format!("{known}SharedAccessKey=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=");
        let refused = run(gateway.command(&["run"]).env("C2D_DEVICE_CONNECTION_STRING", unknown));
        assert_eq!(refused.status.code(), Some(1), "{}", String::from_utf8_lossy(&refused.stderr));
        // On a slow disk, the refusal comes before the inbox has said what to run. Then the next start runs it.
        let done = || fs::read_to_string(gateway.path("done")).unwrap_or_default();
        assert!(["", "began\nended\n"].contains(&done().as_str()), "{}", done());
        gateway.start_subscribed();
        assert_eq!(gateway.settled_inbox()["m-1"].outcome.as_deref(), Some("succeeded"));
        assert_eq!(fs::read_to_string(gateway.path("done")).expect("begun"), "began\nended\n", "once");
        gateway.terminate();
    });
}
