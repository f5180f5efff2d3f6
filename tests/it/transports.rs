//! What is true for every transport, and that a user can see which transport is in use.
//!
//! Must not know: how any transport works.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::harness::{Emulator, Proxy, binary, run, wait_for_file};
use crate::over::{self, TRANSPORTS};

const RULE: &str = "[[rule]]\nname = \"any\"\nwhen = \"any\"\ndo = [ { shell = \"true\" } ]\n";

fn dir() -> tempfile::TempDir {
    tempfile::tempdir().expect("a directory")
}

#[test]
fn the_transport_is_in_the_log_in_the_status_and_in_the_metrics() {
    let emulator = Emulator::start();
    for transport in TRANSPORTS {
        let dir = dir();
        let rest = format!("{RULE}[metrics]\nlisten = \"127.0.0.1:0\"\n");
        let agent = over::start(&emulator, transport, dir.path(), &rest);
        let line = agent.process.stderr.wait_for("signed in");
        assert!(line.contains(&format!("transport=\"{transport}\"")), "{line}");
        crate::harness::wait_for_status(dir.path(), &format!(" over {transport}, 0 reconnects"));
        let config = dir.path().join("config.toml");
        let told = run(binary().args(["status", "--json", "-c"]).arg(&config));
        let told: serde_json::Value = serde_json::from_slice(&told.stdout).expect("JSON");
        assert_eq!(told["connection"]["transport"], **transport);
        for other in TRANSPORTS {
            use crate::metrics::scraper::{address, scrape};
            let figure = format!("c2d_agent_connection_transport{{transport=\"{other}\"}}");
            let expected = if other == transport { 1.0 } else { 0.0 };
            assert_eq!(scrape(address(&agent.process)).figure(&figure), Some(expected), "{figure}");
        }
        assert_eq!(agent.process.terminate(), Some(0));
    }
}

/// A rule that writes its message's id into the file `done`, and ends when the file `go` exists.
fn gated_rule(dir: &Path) -> String {
    let [done, go] = ["done", "go"].map(|name| dir.join(name).display().to_string());
    format!(
        "[[rule]]\nname = \"any\"\nwhen = \"any\"\nlane = \"one\"\n\
         do = [ {{ shell = \"echo $C2D_MESSAGE_ID >> {done}; until [ -e {go} ] || [ ! -e {done} ]; do sleep 0.02; done\" }} ]\n"
    )
}

fn lines(path: &Path) -> Vec<String> {
    std::fs::read_to_string(path).unwrap_or_default().lines().map(str::to_owned).collect()
}

#[test]
fn a_connection_whose_other_end_has_vanished_is_noticed_and_no_message_is_done_twice() {
    over::each(|transport| {
        let (emulator, dir) = (Emulator::start(), dir());
        let proxy = Proxy::to(over::address(&emulator, transport));
        let port = proxy.address.port();
        let rule = gated_rule(dir.path());
        let agent = over::spawn(&emulator, transport, port, dir.path(), ["keep_alive = \"1s\"", &rule]);
        agent.process.stderr.wait_for("subscribed");
        emulator.send("dev1", &["--message-id", "m-1", "--ack", "full"]);
        wait_for_file(&dir.path().join("done"), "m-1");
        // Without messages, both sides keep the connection alive.
        std::thread::park_timeout(Duration::from_secs(3));
        assert_eq!(agent.process.stderr.count("not connected"), 0, "{transport}");
        proxy.freeze();
        let frozen = Instant::now();
        // The hub sends one message that is lost, and the settlement of another message is lost.
        emulator.send("dev1", &["--message-id", "m-2", "--ack", "full"]);
        std::fs::write(dir.path().join("go"), "").expect("written");
        let said = agent.process.stderr.wait_for("not connected");
        let sentence = format!("localhost:{port} does not answer any more");
        assert!(said.contains(&sentence), "{transport}: {said}");
        let took = frozen.elapsed();
        assert!(took < Duration::from_secs(5), "{transport} took {took:?} for a keep-alive of 1 s");
        agent.process.stderr.wait_for_nth("subscribed", 2);
        let arguments = ["--message-id", "m-3", "--wait=20s"];
        emulator.send("dev1", &arguments);
        assert_eq!(lines(&dir.path().join("done")), ["m-1", "m-2", "m-3"], "{transport}");
        assert_eq!(agent.process.terminate(), Some(0));
    });
}

#[test]
fn a_hub_that_restarts_in_the_middle_of_an_action_is_found_again_and_hears_how_it_ended() {
    over::each(|transport| {
        let (state, dir) = (dir(), dir());
        let state = state.path().join("state");
        let emulator = Emulator::start_in(&state, "0", "0", &["--device", "dev1"]);
        let agent = over::start(&emulator, transport, dir.path(), &gated_rule(dir.path()));
        emulator.send("dev1", &["--message-id", "m-1", "--ack", "full"]);
        wait_for_file(&dir.path().join("done"), "m-1");
        let [mqtt, amqp, https] =
            [emulator.mqtt, emulator.amqp, emulator.https].map(|address| address.port().to_string());
        assert_eq!(emulator.process.terminate(), Some(0));
        agent.process.stderr.wait_for("not connected");
        std::fs::write(dir.path().join("go"), "").expect("written");
        agent.process.stderr.wait_for("action ended");
        let emulator =
            Emulator::start_in(&state, &mqtt, &amqp, &["--device", "dev1", "--https-port", &https]);
        agent.process.stderr.wait_for_nth("subscribed", 2);
        emulator.send("dev1", &["--message-id", "m-2", "--wait=20s"]);
        assert_eq!(lines(&dir.path().join("done")), ["m-1", "m-2"], "{transport}");
        // The agent knew the message that came again.
        let line = agent.process.stderr.wait_for("already done");
        assert!(line.contains("message_id=\"m-1\""), "{transport}: {line}");
        assert_eq!(agent.process.terminate(), Some(0));
    });
}

#[test]
fn sigterm_lets_a_short_action_end_tells_the_hub_and_leaves_what_has_not_begun_there() {
    over::each(|transport| {
        let (emulator, dir) = (Emulator::start(), dir());
        let done = dir.path().join("done");
        let rule = format!(
            "[[rule]]\nname = \"short\"\nwhen = \"any\"\n\
             do = [ {{ shell = \"echo $C2D_MESSAGE_ID began >> {0}; sleep 1; echo $C2D_MESSAGE_ID ended >> {0}\" }} ]\n",
            done.display()
        );
        let agent = over::start(&emulator, transport, dir.path(), &rule);
        emulator.send("dev1", &["--message-id", "m-1", "--ack", "full"]);
        wait_for_file(&done, "m-1 began");
        emulator.send("dev1", &["--message-id", "m-2", "--ack", "full"]);
        assert_eq!(agent.process.terminate(), Some(0));
        assert_eq!(lines(&done), ["m-1 began", "m-1 ended"], "{transport}");
        let agent = over::start(&emulator, transport, dir.path(), &rule);
        wait_for_file(&done, "m-2 ended");
        emulator.send("dev1", &["--message-id", "m-3", "--wait=20s"]);
        let expected = ["m-1", "m-2", "m-3"].map(|id| [format!("{id} began"), format!("{id} ended")]);
        assert_eq!(lines(&done), expected.concat(), "{transport}");
        assert_eq!(agent.process.stderr.count("already done"), 0, "m-1 was completed in time");
        assert_eq!(agent.process.terminate(), Some(0));
    });
}
