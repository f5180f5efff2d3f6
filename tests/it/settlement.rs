//! When a message is completed, what happens to it in a crash, and how failures end: the agent and its inbox on the
//! emulator.

use std::path::Path;

use crate::harness::{Agent, Emulator, wait_for_file};
use crate::over;

fn dir() -> tempfile::TempDir {
    tempfile::tempdir().expect("a directory")
}

/// A rule that writes `ID began` and, once the file `go` exists, `ID ended` into the file `done`. `more` has more keys
/// of the rule.
fn gated_rule(dir: &Path, name: &str, more: &str) -> String {
    let (done, go) = (dir.join("done"), dir.join("go"));
    let (done, go) = (done.display(), go.display());
    format!(
        "[[rule]]\nname = \"{name}\"\nwhen = {{ action = \"{name}\" }}\n{more}\n\
         do = [ {{ shell = \"echo $C2D_MESSAGE_ID began >> {done}; until [ -e {go} ] || [ ! -e {done} ]; do sleep 0.02; done; \
         echo $C2D_MESSAGE_ID ended >> {done}\" }} ]\n"
    )
}

/// A rule that fails `fails` times, and writes `ID NTH` into the file `tries` each time.
fn failing_rule(dir: &Path, fails: u32, more: &str) -> String {
    let tries = dir.join("tries");
    let tries = tries.display();
    format!(
        "[[rule]]\nname = \"flaky\"\nwhen = {{ action = \"flaky\" }}\n{more}\n\
         do = [ {{ shell = \"echo $C2D_MESSAGE_ID >> {tries}; [ $(wc -l < {tries}) -gt {fails} ]\" }} ]\n"
    )
}

fn lines(path: &Path) -> Vec<String> {
    std::fs::read_to_string(path).unwrap_or_default().lines().map(str::to_owned).collect()
}

fn send(emulator: &Emulator, action: &str, id: &str) {
    emulator.send("dev1", &["--property", &format!("action={action}"), "--message-id", id, "--ack", "full"]);
}

/// Sends a message and waits for its feedback. Returns the exit code of `c2d-send`.
fn send_and_wait(emulator: &Emulator, action: &str, id: &str, wait: &str) -> Option<i32> {
    let action = format!("action={action}");
    let mut command = emulator.sender("dev1");
    command.args(["--property", &action, "--message-id", id, wait]);
    crate::harness::run(&mut command).status.code()
}

#[test]
fn an_after_action_message_is_completed_when_its_action_has_ended() {
    over::each(|transport| {
        let (emulator, dir) = (Emulator::start(), dir());
        let _agent = over::start(&emulator, transport, dir.path(), &gated_rule(dir.path(), "work", ""));
        assert_eq!(
            send_and_wait(&emulator, "work", "one", "--wait=1s"),
            Some(4),
            "no feedback while it runs"
        );
        std::fs::write(dir.path().join("go"), "").expect("written");
        assert_eq!(send_and_wait(&emulator, "work", "two", "--wait=20s"), Some(0));
        assert_eq!(lines(&dir.path().join("done")), ["one began", "one ended", "two began", "two ended"]);
    });
}

#[test]
fn over_mqtt_a_failed_message_is_completed_whatever_its_rule_says() {
    let (emulator, dir) = (Emulator::start(), dir());
    let rule = failing_rule(dir.path(), 9, "on_failure = \"abandon\"");
    let agent = Agent::start(&emulator, "dev1", dir.path(), &rule);
    assert_eq!(send_and_wait(&emulator, "flaky", "one", "--wait=20s"), Some(0));
    assert_eq!(lines(&dir.path().join("tries")), ["one"]);
    // The id is a key, so the agent knows the message as a dead letter, and not as one that was given back.
    let key = "6e9ab0f3-1b59-4c4f-8e1d-1f6a2f0a3f11";
    for _ in 0..2 {
        assert_eq!(send_and_wait(&emulator, "flaky", key, "--wait=20s"), Some(0));
    }
    agent.process.stderr.wait_for("already done");
    assert_eq!(lines(&dir.path().join("tries")), ["one", key]);
}

#[test]
fn an_on_accept_message_is_completed_before_its_action_has_ended() {
    over::each(|transport| {
        let (emulator, dir) = (Emulator::start(), dir());
        let rule = gated_rule(dir.path(), "work", "settle = \"on-accept\"\ntimeout = \"10m\"");
        let agent = over::start(&emulator, transport, dir.path(), &rule);
        assert_eq!(send_and_wait(&emulator, "work", "one", "--wait=20s"), Some(0));
        let done = wait_for_file(&dir.path().join("done"), "one began");
        assert_eq!(done, "one began\n", "the hub says Success, and it runs");
        std::fs::write(dir.path().join("go"), "").expect("written");
        wait_for_file(&dir.path().join("done"), "one ended");
        assert_eq!(agent.process.terminate(), Some(0));
    });
}

#[test]
fn after_a_crash_what_was_accepted_runs_and_what_had_begun_is_reported_as_interrupted() {
    over::each(|transport| {
        let (emulator, dir) = (Emulator::start(), dir());
        let rule = gated_rule(dir.path(), "work", "settle = \"on-accept\"");
        let agent = over::start(&emulator, transport, dir.path(), &rule);
        assert_eq!(send_and_wait(&emulator, "work", "one", "--wait=20s"), Some(0));
        wait_for_file(&dir.path().join("done"), "one began");
        assert_eq!(
            send_and_wait(&emulator, "work", "two", "--wait=20s"),
            Some(0),
            "accepted, behind the first"
        );
        agent.process.kill();
        drop(agent);
        std::fs::write(dir.path().join("go"), "").expect("written");
        let agent = over::start(&emulator, transport, dir.path(), &rule);
        wait_for_file(&dir.path().join("done"), "two ended");
        let line = agent.process.stderr.wait_for("action was interrupted");
        assert!(line.contains("message_id=\"one\"") && line.contains("interrupted"), "{line}");
        // The child of the killed agent lives on and may end its action. No action begins twice.
        let began: Vec<_> =
            lines(&dir.path().join("done")).into_iter().filter(|line| line.ends_with("began")).collect();
        assert_eq!(began, ["one began", "two began"]);
    });
}

#[test]
fn after_a_crash_a_rule_that_says_so_runs_again() {
    over::each(|transport| {
        let (emulator, dir) = (Emulator::start(), dir());
        let rule = gated_rule(dir.path(), "work", "settle = \"on-accept\"\non_crash = \"retry\"");
        let agent = over::start(&emulator, transport, dir.path(), &rule);
        send(&emulator, "work", "one");
        wait_for_file(&dir.path().join("done"), "one began");
        agent.process.kill();
        drop(agent);
        std::fs::write(dir.path().join("go"), "").expect("written");
        let agent = over::start(&emulator, transport, dir.path(), &rule);
        agent.process.stderr.wait_for("succeeded");
        let done = lines(&dir.path().join("done"));
        assert_eq!(done.iter().filter(|line| *line == "one began").count(), 2, "{done:?}");
    });
}

#[test]
fn a_message_that_ended_is_not_run_again_by_the_next_process() {
    over::each(|transport| {
        let (emulator, dir) = (Emulator::start(), dir());
        std::fs::write(dir.path().join("go"), "").expect("written");
        let rule = gated_rule(dir.path(), "work", "");
        let agent = over::start(&emulator, transport, dir.path(), &rule);
        let id = "6e9ab0f3-1b59-4c4f-8e1d-1f6a2f0a3f11";
        assert_eq!(send_and_wait(&emulator, "work", id, "--wait=20s"), Some(0));
        agent.process.kill();
        drop(agent);
        let agent = over::start(&emulator, transport, dir.path(), &rule);
        assert_eq!(send_and_wait(&emulator, "work", id, "--wait=20s"), Some(0), "the same id once more");
        agent.process.stderr.wait_for("already done");
        assert_eq!(lines(&dir.path().join("done")), [format!("{id} began"), format!("{id} ended")]);
    });
}

#[test]
fn a_failed_action_is_tried_again_as_often_as_its_rule_says() {
    let (emulator, dir) = (Emulator::start(), dir());
    let rule = failing_rule(dir.path(), 2, "timeout = \"5s\"\nattempts = 3\nbackoff = \"20ms\"");
    let agent = Agent::start(&emulator, "dev1", dir.path(), &rule);
    assert_eq!(send_and_wait(&emulator, "flaky", "one", "--wait=20s"), Some(0));
    assert_eq!(lines(&dir.path().join("tries")), ["one", "one", "one"]);
    let log = agent.process.stderr.text();
    assert!(log.contains("attempt=1 retry_in_ms=20") && log.contains("attempt=2 retry_in_ms=40"), "{log}");
    assert!(log.contains("outcome=succeeded"), "{log}");
}

#[test]
fn the_last_failed_attempt_completes_the_message() {
    let (emulator, dir) = (Emulator::start(), dir());
    let rule = failing_rule(dir.path(), 100, "timeout = \"5s\"\nattempts = 2\nbackoff = \"20ms\"");
    let agent = Agent::start(&emulator, "dev1", dir.path(), &rule);
    assert_eq!(send_and_wait(&emulator, "flaky", "one", "--wait=20s"), Some(0), "MQTT cannot say no");
    assert_eq!(lines(&dir.path().join("tries")), ["one", "one"]);
    assert_eq!(agent.process.terminate(), Some(0));
}

#[test]
fn a_slow_action_does_not_hold_back_another_lane_and_holds_back_its_own() {
    let (emulator, dir) = (Emulator::start(), dir());
    let other = dir.path().join("other");
    let quick = format!(
        "[[rule]]\nname = \"quick\"\nwhen = {{ action = \"quick\" }}\ndo = [ {{ shell = \"echo $C2D_MESSAGE_ID >> {}\" }} ]\n",
        other.display()
    );
    let rules = gated_rule(dir.path(), "work", "") + &quick;
    let _agent = Agent::start(&emulator, "dev1", dir.path(), &rules);
    for id in ["one", "two"] {
        send(&emulator, "work", id);
    }
    wait_for_file(&dir.path().join("done"), "one began");
    send(&emulator, "quick", "three");
    wait_for_file(&other, "three");
    assert_eq!(lines(&dir.path().join("done")), ["one began"], "the second waits for the first");
    std::fs::write(dir.path().join("go"), "").expect("written");
    wait_for_file(&dir.path().join("done"), "two ended");
}

#[test]
fn rules_that_share_a_lane_run_in_order() {
    let (emulator, dir) = (Emulator::start(), dir());
    let rules = gated_rule(dir.path(), "first", "lane = \"shared\"")
        + &gated_rule(dir.path(), "second", "lane = \"shared\"");
    let _agent = Agent::start(&emulator, "dev1", dir.path(), &rules);
    send(&emulator, "first", "one");
    wait_for_file(&dir.path().join("done"), "one began");
    send(&emulator, "second", "two");
    std::fs::write(dir.path().join("go"), "").expect("written");
    wait_for_file(&dir.path().join("done"), "two ended");
    assert_eq!(lines(&dir.path().join("done")), ["one began", "one ended", "two began", "two ended"]);
}

#[test]
fn no_more_programs_run_at_once_than_allowed() {
    let (emulator, dir) = (Emulator::start(), dir());
    let rules = "[actions]\nmax_children = 1\n".to_owned()
        + &gated_rule(dir.path(), "first", "")
        + &gated_rule(dir.path(), "second", "")
        + "[gpio]\nbackend = \"simulated\"\nstate_file = \"pins.json\"\n[gpio.pins.led]\nline = 1\n\
           [[rule]]\nname = \"led\"\nwhen = { action = \"led\" }\ndo = [ { gpio = \"led\", set = \"on\" } ]\n";
    let _agent = Agent::start(&emulator, "dev1", dir.path(), &rules);
    send(&emulator, "first", "one");
    wait_for_file(&dir.path().join("done"), "one began");
    send(&emulator, "second", "two");
    send(&emulator, "led", "three");
    wait_for_file(&dir.path().join("pins.json"), "\"led\":\"on\"");
    assert_eq!(lines(&dir.path().join("done")), ["one began"], "the second has no child slot");
    std::fs::write(dir.path().join("go"), "").expect("written");
    wait_for_file(&dir.path().join("done"), "two ended");
}

#[test]
fn a_message_that_comes_sooner_than_the_minimum_interval_is_refused_also_after_a_restart() {
    over::each(|transport| {
        let (emulator, dir) = (Emulator::start(), dir());
        std::fs::write(dir.path().join("go"), "").expect("written");
        let rule = gated_rule(dir.path(), "work", "min_interval = \"1h\"");
        let agent = over::start(&emulator, transport, dir.path(), &rule);
        assert_eq!(send_and_wait(&emulator, "work", "one", "--wait=20s"), Some(0));
        // Over AMQP the sender gets the feedback Rejected.
        let told = if transport.starts_with("mqtt") { 0 } else { 3 };
        assert_eq!(send_and_wait(&emulator, "work", "two", "--wait=20s"), Some(told));
        let line = agent.process.stderr.wait_for("refused");
        assert!(line.contains("message_id=\"two\"") && line.contains("min_interval is 1h"), "{line}");
        assert_eq!(agent.process.terminate(), Some(0));
        let agent = over::start(&emulator, transport, dir.path(), &rule);
        send(&emulator, "work", "three");
        agent.process.stderr.wait_for("refused");
        assert_eq!(lines(&dir.path().join("done")), ["one began", "one ended"]);
    });
}

#[test]
fn a_guard_holds_after_a_restart_for_a_rule_that_may_run_again_and_waited_for_its_turn() {
    let (emulator, dir) = (Emulator::start(), dir());
    let rules = gated_rule(dir.path(), "work", "lane = \"shared\"")
        + "[gpio]\nbackend = \"simulated\"\nstate_file = \"pins.json\"\n[gpio.pins.led]\nline = 1\n\
           [[rule]]\nname = \"led\"\nwhen = { action = \"led\" }\nlane = \"shared\"\nmin_interval = \"1h\"\n\
           do = [ { gpio = \"led\", set = \"on\" } ]\n";
    let agent = Agent::start(&emulator, "dev1", dir.path(), &rules);
    send(&emulator, "work", "one");
    wait_for_file(&dir.path().join("done"), "one began");
    send(&emulator, "led", "two");
    std::fs::write(dir.path().join("go"), "").expect("written");
    wait_for_file(&dir.path().join("pins.json"), "\"led\":\"on\"");
    agent.process.stderr.wait_for("message_id=\"two\" rule=\"led\" outcome=succeeded");
    assert_eq!(agent.process.terminate(), Some(0));
    let agent = Agent::start(&emulator, "dev1", dir.path(), &rules);
    send(&emulator, "led", "three");
    let line = agent.process.stderr.wait_for("refused");
    assert!(line.contains("message_id=\"three\"") && line.contains("min_interval is 1h"), "{line}");
}

#[test]
fn an_on_accept_message_that_expired_in_line_is_not_run() {
    let (emulator, dir) = (Emulator::start(), dir());
    let rule = gated_rule(dir.path(), "work", "settle = \"on-accept\"");
    let agent = Agent::start(&emulator, "dev1", dir.path(), &rule);
    send(&emulator, "work", "one");
    wait_for_file(&dir.path().join("done"), "one began");
    let arguments = ["--property", "action=work", "--message-id", "two", "--expiry", "2s", "--wait=20s"];
    emulator.send("dev1", &arguments);
    agent.process.kill();
    drop(agent);
    // The test waits until the message has expired by the agent's clock and by the hub's.
    let expired = std::time::Instant::now() + std::time::Duration::from_secs(2);
    while std::time::Instant::now() < expired {
        std::thread::park_timeout(expired.saturating_duration_since(std::time::Instant::now()));
    }
    std::fs::write(dir.path().join("go"), "").expect("written");
    let agent = Agent::start(&emulator, "dev1", dir.path(), &rule);
    let line = agent.process.stderr.wait_for("expired");
    assert!(line.contains("message_id=\"two\""), "{line}");
    assert!(!lines(&dir.path().join("done")).contains(&"two began".to_owned()));
}
