//! What the agent says and does when a hub ends its link, its session or its connection, for each condition.
//!
//! Must not know: how links work.
//! Source: wire reference 2.8.

use std::path::Path;

use crate::amqp_peer::{AmqpPeer, Level, WORDS};
use crate::harness::Agent;

/// Each condition, and the part that the agent's sentence must contain.
const CONDITIONS: &[(&str, &str)] = &[
    ("amqp:not-found", "has no device pi-01 (words of the hub): check the device id"),
    ("amqp:unauthorized-access", "refused device pi-01: the key (or certificate) is wrong"),
    ("amqp:not-allowed", "ended the connection of device pi-01 (amqp:not-allowed: words of the hub)"),
    ("amqp:resource-limit-exceeded", "is throttling device pi-01 or its quota is used up (words of the hub)"),
    ("amqp:link:message-size-exceeded", "(amqp:link:message-size-exceeded: words of the hub)"),
    ("amqp:link:stolen", "another program has signed in at localhost:"),
    ("amqp:link:detach-forced", "(amqp:link:detach-forced: words of the hub)"),
    ("amqp:internal-error", "(amqp:internal-error: words of the hub)"),
    ("com.microsoft:argument-error", "(com.microsoft:argument-error: words of the hub)"),
    ("com.microsoft:argument-out-of-range", "(com.microsoft:argument-out-of-range: words of the hub)"),
    ("com.microsoft:message-lock-lost", "(com.microsoft:message-lock-lost: words of the hub)"),
    ("com.microsoft:device-container-throttled", "is throttling device pi-01 or its quota is used up"),
    ("com.microsoft:timeout", "(com.microsoft:timeout: words of the hub)"),
    ("com.microsoft:iot-hub-suspended", "is suspended or gone (words of the hub): check it"),
    ("com.microsoft:iot-hub-not-found-error", "is suspended or gone (words of the hub): check it"),
    ("com.microsoft:precondition-failed", "(com.microsoft:precondition-failed: words of the hub)"),
    ("com.microsoft:device-already-exists", "(com.microsoft:device-already-exists: words of the hub)"),
    ("com.microsoft:quota-exceeded", "is throttling device pi-01 or its quota is used up"),
];

/// How many agents run at the same time.
const AT_ONCE: usize = 4;

/// An agent `pi-01` that signs in at this port and whose rule matches any message.
pub(crate) fn spawn(port: u16, ca_file: &Path, dir: &Path, [device, more]: [&str; 2]) -> Agent {
    let any = "[[rule]]\nname = \"any\"\nwhen = \"any\"\ndo = [ { shell = \"true\" } ]\n";
    spawn_with(port, ca_file, dir, &format!("{device}\n{any}{more}"))
}

/// An agent `pi-01` that signs in at this port, with a certificate that the hub does not check. `rest` begins with keys
/// of `[device]`.
pub(crate) fn spawn_with(port: u16, ca_file: &Path, dir: &Path, rest: &str) -> Agent {
    let made = rcgen::generate_simple_self_signed(["pi-01".to_owned()]).expect("a certificate");
    std::fs::write(dir.join("cert.pem"), made.cert.pem()).expect("written");
    std::fs::write(dir.join("key.pem"), made.signing_key.serialize_pem()).expect("written");
    let config = format!(
        "[device]\ntransport = \"amqp\"\nhub = \"localhost:{port}\"\ndevice_id = \"pi-01\"\ncertificate = \"cert.pem\"\n\
         private_key = \"key.pem\"\n{rest}"
    );
    Agent::spawn("", ca_file, dir, &config)
}

fn said_and_recovered(level: Level, condition: &'static str, part: &str) {
    let dir = tempfile::tempdir().expect("a directory");
    let peer = AmqpPeer::ending(dir.path(), vec![(level, condition)]);
    let agent = spawn(peer.address.port(), &peer.ca_file, dir.path(), ["", ""]);
    let line = agent.process.stderr.wait_for("not connected");
    assert!(line.contains(part), "{level:?} {condition}: {line}");
    let times = if level == Level::Attach { 1 } else { 2 };
    agent.process.stderr.wait_for_nth("signed in over AMQP and subscribed", times);
    assert_eq!(agent.process.stderr.count("not connected"), 1, "{}", agent.process.stderr.text());
    assert_eq!(agent.process.terminate(), Some(0));
}

#[test]
fn a_link_that_is_taken_away_with_any_condition_is_told_in_one_sentence_and_attached_again() {
    for some in CONDITIONS.chunks(AT_ONCE) {
        std::thread::scope(|scope| {
            for (condition, part) in some {
                scope.spawn(move || said_and_recovered(Level::Link, condition, part));
            }
        });
    }
}

#[test]
fn so_is_a_link_that_is_refused_a_session_and_a_connection() {
    let (_, sentence) = CONDITIONS[7];
    assert!(sentence.contains(WORDS));
    std::thread::scope(|scope| {
        for level in [Level::Attach, Level::Session, Level::Connection] {
            scope.spawn(move || said_and_recovered(level, CONDITIONS[7].0, sentence));
        }
    });
}

#[test]
fn a_hub_without_twins_is_told_once_and_messages_come_all_the_same() {
    let dir = tempfile::tempdir().expect("a directory");
    let peer = AmqpPeer::ending(dir.path(), vec![(Level::Twin, "amqp:not-allowed")]);
    let more = "[report]\noutcomes = \"twin\"\n";
    let agent = spawn(peer.address.port(), &peer.ca_file, dir.path(), ["", more]);
    agent.process.stderr.wait_for("signed in over AMQP and subscribed");
    let line = agent.process.stderr.wait_for("the hub refused the twin: the agent cannot report there");
    assert!(line.contains("amqp:not-allowed") && line.contains(WORDS), "{line}");
    assert_eq!(agent.process.terminate(), Some(0));
    assert_eq!(agent.process.stderr.count("not connected"), 0, "{}", agent.process.stderr.text());
}
