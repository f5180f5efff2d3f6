//! The agent against Mosquitto, an independent broker, with TLS and client certificates.

use std::path::Path;

use crate::harness::{Process, Proxy, skip, wait_for_file};
pub(crate) use broker::Mosquitto;

mod broker;

/// A rule that writes one line per action into the file `done`: the message id and the length of the body.
fn record_rule(dir: &Path) -> String {
    let done = dir.join("done");
    format!(
        "[[rule]]\nname = \"record\"\nwhen = {{ action = \"record\" }}\n\
         do = [ {{ shell = \"echo $C2D_MESSAGE_ID $(wc -c) >> {}\" }} ]\n",
        done.display()
    )
}

/// As [`record_rule`], but the action begins with a line `ID began` and goes on only when the file `go` exists.
fn gated_rule(dir: &Path) -> String {
    let (done, go) = (dir.join("done"), dir.join("go"));
    let (done, go) = (done.display(), go.display());
    format!(
        "[[rule]]\nname = \"gated\"\nwhen = {{ action = \"gated\" }}\n\
         do = [ {{ shell = \"echo $C2D_MESSAGE_ID began >> {done}; until [ -e {go} ] || [ ! -e {done} ]; do sleep 0.02; done; \
         echo $C2D_MESSAGE_ID ended >> {done}\" }} ]\n"
    )
}

fn dir() -> tempfile::TempDir {
    tempfile::tempdir().expect("a directory")
}

#[test]
fn a_message_of_any_size_reaches_its_action_and_is_acknowledged() {
    let broker = match Mosquitto::start() {
        Ok(broker) => broker,
        Err(lack) => return skip("the agent receives from Mosquitto with a client certificate", lack),
    };
    let dir = dir();
    let agent = broker.start_agent(dir.path(), &record_rule(dir.path()));
    broker.publish("%24.mid=small&action=record", b"hello");
    wait_for_file(&dir.path().join("done"), "small 5\n");
    broker.publish("%24.mid=empty&action=record", b"");
    wait_for_file(&dir.path().join("done"), "empty 0\n");
    broker.publish("%24.mid=large&action=record", &[b'x'; 64 * 1024]);
    wait_for_file(&dir.path().join("done"), "large 65536\n");
    broker.wait_for_puback(3);
    let line = agent.process.stderr.wait_until("the outcome of the large message", |lines| {
        lines.iter().find(|line| line.contains("action ended") && line.contains("large")).cloned()
    });
    assert!(line.contains("rule=\"record\"") && line.contains("succeeded"), "{line}");
    assert_eq!(agent.process.terminate(), Some(0));
    assert!(agent.process.stdout.all().is_empty(), "results only on standard output, and there are none");
}

#[test]
fn messages_that_no_rule_takes_or_nobody_can_read_and_expired_ones_are_acknowledged_with_a_warning() {
    let broker = match Mosquitto::start() {
        Ok(broker) => broker,
        Err(lack) => return skip("unmatched and undecodable messages are completed", lack),
    };
    let dir = dir();
    let agent = broker.start_agent(dir.path(), &record_rule(dir.path()));
    broker.publish("%24.mid=nobody&action=other", b"");
    agent.process.stderr.wait_for("unmatched: no rule matches it");
    broker.publish("action=%zz", b"");
    agent.process.stderr.wait_for("undecodable:");
    broker.publish("%24.mid=old&%24.exp=2020-01-01T00%3A00%3A00.0000000Z&action=record", b"");
    // A hub does not deliver expired messages. So the clock is wrong, not the message.
    let line = agent.process.stderr.wait_for("this machine's clock seems to be ahead by ");
    assert!(
        line.contains("expiry=\"2020-01-01T00:00:00.0000000Z\"") || line.contains("expiry=2020"),
        "{line}"
    );
    broker.wait_for_puback(3);
    assert_eq!(wait_for_file(&dir.path().join("done"), "old"), "old 0\n", "nothing else was run");
}

#[test]
fn messages_published_while_the_agent_was_away_are_acted_on_in_order() {
    let mut broker = match Mosquitto::start() {
        Ok(broker) => broker,
        Err(lack) => return skip("a persistent session keeps messages for the agent", lack),
    };
    let dir = dir();
    let rule = record_rule(dir.path());
    assert_eq!(broker.start_agent(dir.path(), &rule).process.terminate(), Some(0));
    for n in 1..=5 {
        broker.publish(&format!("%24.mid=away-{n}&action=record"), b"");
    }
    broker.stop();
    broker.restart();
    let agent = broker.spawn_agent(dir.path(), &rule);
    let done = wait_for_file(&dir.path().join("done"), "away-5");
    assert_eq!(done, "away-1 0\naway-2 0\naway-3 0\naway-4 0\naway-5 0\n");
    broker.wait_for_puback(5);
    drop(agent);
}

#[test]
fn the_agent_comes_back_after_the_broker_has_restarted() {
    let mut broker = match Mosquitto::start() {
        Ok(broker) => broker,
        Err(lack) => return skip("the agent reconnects after a broker restart", lack),
    };
    let dir = dir();
    let agent = broker.start_agent(dir.path(), &record_rule(dir.path()));
    broker.stop();
    agent.process.stderr.wait_for("closed the connection");
    agent.process.stderr.wait_for("refused the connection: nothing listens on that port");
    broker.restart();
    broker.publish("%24.mid=after&action=record", b"");
    wait_for_file(&dir.path().join("done"), "after 0\n");
    agent.process.stderr.wait_for_nth("subscribed", 2);
    broker.wait_for_puback(1);
}

#[test]
fn a_second_client_with_the_same_device_id_is_named_as_the_likely_reason() {
    let broker = match Mosquitto::start() {
        Ok(broker) => broker,
        Err(lack) => return skip("a second client with the same id is named", lack),
    };
    let dir = dir();
    let agent = broker.start_agent(dir.path(), &record_rule(dir.path()));
    let mut second = broker.client("mosquitto_sub");
    second.args(["-i", "dev1", "-c", "-t", "devices/dev1/messages/devicebound/#"]);
    let _second = Process::spawn(&mut second);
    agent.process.stderr.wait_for("another program probably signs in with the same device id dev1");
}

#[test]
fn a_connection_cut_in_the_middle_of_an_action_does_not_run_it_twice() {
    let broker = match Mosquitto::start() {
        Ok(broker) => broker,
        Err(lack) => return skip("a cut connection does not run an action twice", lack),
    };
    let proxy = Proxy::to(broker.address());
    let dir = dir();
    let agent = broker.spawn_agent_at(proxy.address, dir.path(), &gated_rule(dir.path()));
    agent.process.stderr.wait_for("subscribed");
    broker.publish("%24.mid=once&action=gated", b"");
    wait_for_file(&dir.path().join("done"), "once began\n");
    proxy.cut();
    agent.process.stderr.wait_for_nth("subscribed", 2);
    assert_eq!(broker.pubacks(), 0, "nothing is acknowledged before the action ended");
    std::fs::write(dir.path().join("go"), "").expect("written");
    broker.wait_for_puback(1);
    // Another message runs, and after it nothing more of the first.
    broker.publish("%24.mid=next&action=gated", b"");
    let done = wait_for_file(&dir.path().join("done"), "next ended\n");
    assert_eq!(done, "once began\nonce ended\nnext began\nnext ended\n");
}

#[test]
fn a_wrong_root_and_a_missing_client_certificate_are_named() {
    let broker = match Mosquitto::start() {
        Ok(broker) => broker,
        Err(lack) => return skip("TLS failures with Mosquitto are named", lack),
    };
    let dir = dir();
    let rest = "[[rule]]\nname = \"r\"\nwhen = { a = \"b\" }\ndo = [ { shell = \"true\" } ]\n";
    let connection_string =
        format!("HostName=localhost:{};DeviceId=dev1;SharedAccessKey=AAECAwQ=", broker.address().port());
    let other = Mosquitto::start().expect("a second broker");
    let agent = crate::harness::Agent::spawn(&connection_string, &other.ca_file(), dir.path(), rest);
    agent.process.stderr.wait_for("not signed by a root that this machine trusts");
    assert_eq!(agent.process.terminate(), Some(0));
    let agent = crate::harness::Agent::spawn(&connection_string, &broker.ca_file(), dir.path(), rest);
    agent.process.stderr.wait_for("refused this device's certificate");
}

#[test]
fn outcome_reports_reach_whoever_reads_telemetry() {
    let broker = match Mosquitto::start() {
        Ok(broker) => broker,
        Err(lack) => return skip("outcome reports go through Mosquitto", lack),
    };
    let mut reader = broker.client("mosquitto_sub");
    let reader = Process::spawn(reader.args(["-v", "-t", "devices/dev1/messages/events/#"]));
    broker.process.stderr.wait_for("Sending SUBACK");
    let dir = dir();
    let agent = broker.start_agent(
        dir.path(),
        &("[report]\noutcomes = \"telemetry\"\n".to_owned() + &record_rule(dir.path())),
    );
    for n in 1..=20 {
        broker.publish(&format!("%24.mid=m%2F{n}&action=record"), b"x");
    }
    for n in 1..=20 {
        let line = reader.stdout.wait_for(&format!("%24.cid=m%2F{n}&"));
        assert!(line.contains("\"outcome\":\"succeeded\"") && line.contains("\"rule\":\"record\""), "{line}");
    }
    // Each report is published once, because the agent understands the broker's PUBACK.
    assert_eq!(agent.process.terminate(), Some(0));
    assert_eq!(reader.stdout.count("devices/dev1/messages/events/"), 20);
}

#[test]
fn a_hub_without_a_twin_answers_no_patch_and_messages_are_acted_on_all_the_same() {
    let broker = match Mosquitto::start() {
        Ok(broker) => broker,
        Err(lack) => return skip("patches of a twin that nobody answers hold nothing up", lack),
    };
    let dir = dir();
    let agent = broker
        .start_agent(dir.path(), &("[report]\noutcomes = \"twin\"\n".to_owned() + &record_rule(dir.path())));
    for n in 1..=3 {
        broker.publish(&format!("%24.mid=m{n}&action=record"), b"");
        broker.wait_for_puback(n);
    }
    broker.process.stderr.wait_for("$iothub/twin/PATCH/properties/reported/?$rid=");
    broker.publish("%24.mid=after&action=record", b"");
    broker.wait_for_puback(4);
    assert_eq!(agent.process.terminate(), Some(0));
}
