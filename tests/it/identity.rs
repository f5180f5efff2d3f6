//! The identity of messages: senders that use an id again, messages that come again, and ids that must be unique.

use std::path::Path;

use crate::harness::{Agent, Emulator, binary, run, wait_for_file};
use crate::over;
use crate::soak::back_end::{Hub, message};
use crate::soak::gateway::Gateway;

const UUID: &str = "6e9ab0f3-1b59-4c4f-8e1d-1f6a2f0a3f11";

/// A rule that appends the body to `ran`, one line for each run.
fn writing_rule(dir: &Path) -> String {
    format!(
        "[[rule]]\nname = \"write\"\nwhen = {{ action = \"write\" }}\n\
         do = [ {{ shell = \"(cat; echo) >> {}\" }} ]\n",
        dir.join("ran").display()
    )
}

fn send(emulator: &Emulator, id: &str, body: &str) {
    let arguments = ["--property", "action=write", "--message-id", id, "--data", body, "--wait=20s"];
    emulator.send("dev1", &arguments);
}

fn ran(dir: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(dir.join("ran")).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

fn inbox_list(dir: &Path) -> String {
    let output = run(binary().args(["inbox", "list", "--json", "-c"]).arg(dir.join("config.toml")));
    String::from_utf8(output.stdout).expect("UTF-8")
}

#[test]
fn the_same_bytes_under_a_plain_id_run_each_time_on_one_connection() {
    over::each(|transport| {
        let (emulator, dir) = (Emulator::start(), tempfile::tempdir().expect("a directory"));
        let agent = over::start(&emulator, transport, dir.path(), &writing_rule(dir.path()));
        for _ in 0..3 {
            send(&emulator, "My-Message-ID", "Cloud to device message.");
        }
        assert_eq!(ran(dir.path()), ["Cloud to device message."; 3], "{}", agent.process.stderr.text());
        // All three come at once: none is completed before the next one comes.
        for _ in 0..3 {
            emulator.send(
                "dev1",
                &["--property", "action=write", "--message-id", "My-Message-ID", "--data", "x"],
            );
        }
        wait_for_file(&dir.path().join("ran"), "x\nx\nx\n");
        assert_eq!(agent.process.terminate(), Some(0));
    });
}

#[test]
fn an_id_that_is_used_again_with_another_body_is_another_message_also_after_a_restart() {
    over::each(|transport| {
        let (emulator, dir) = (Emulator::start(), tempfile::tempdir().expect("a directory"));
        for body in ["first run", "second run"] {
            let agent = over::start(&emulator, transport, dir.path(), &writing_rule(dir.path()));
            send(&emulator, "message_0", body);
            send(&emulator, "message_0", &format!("{body}, again"));
            assert_eq!(agent.process.terminate(), Some(0));
        }
        assert_eq!(ran(dir.path()), ["first run", "first run, again", "second run", "second run, again"]);
    });
}

#[test]
fn the_same_uuid_runs_once_and_other_content_under_it_is_told_in_log_and_inbox() {
    let (emulator, dir) = (Emulator::start(), tempfile::tempdir().expect("a directory"));
    let agent = Agent::start(&emulator, "dev1", dir.path(), &writing_rule(dir.path()));
    send(&emulator, UUID, "on");
    send(&emulator, UUID, "on");
    agent.process.stderr.wait_for("already done");
    assert_eq!(ran(dir.path()), ["on"]);
    assert!(!agent.process.stderr.text().contains("other content"), "nothing is wrong with a repeated send");

    send(&emulator, UUID, "off");
    let line = agent.process.stderr.wait_for("other content");
    assert!(line.contains("WARN") && line.contains(UUID) && line.contains("message #1"), "{line}");
    assert_eq!(ran(dir.path()), ["on"]);
    let list = inbox_list(dir.path());
    let repeated: Vec<_> = list.lines().filter(|line| line.contains("\"repeated\"")).collect();
    assert!(matches!(repeated[..], [line] if line.contains(UUID)), "{list}");
}

#[test]
fn known_by_id_takes_each_id_as_a_key_and_known_by_delivery_none() {
    for (known_by, id, runs) in
        [("id", "message_0", 1), ("delivery", UUID, 2), ("auto", UUID, 1), ("auto", "message_0", 2)]
    {
        let (emulator, dir) = (Emulator::start(), tempfile::tempdir().expect("a directory"));
        let inbox = format!("[inbox]\npath = \"inbox.journal\"\nknown_by = \"{known_by}\"\n");
        let rest = format!("{inbox}{}", writing_rule(dir.path()));
        let _agent = Agent::start(&emulator, "dev1", dir.path(), &rest);
        send(&emulator, id, "one");
        send(&emulator, id, "two");
        assert_eq!(ran(dir.path()).len(), runs, "{known_by} {id}");
    }
}

/// The hub has each completion before the next connection: the agent knows this by the answer to a later ping. If no
/// window for late hubs is set, the same bytes are then a new message. This also holds after a restart, because the
/// inbox has it on disk.
#[test]
fn the_same_bytes_run_again_on_another_connection_once_the_first_completion_has_reached_the_hub() {
    let hub = Hub::start();
    let rule = "[inbox]\npath = \"inbox.journal\"\ndigest_window = \"0s\"\n[[rule]]\nname = \"write\"\n\
                when = { action = \"write\" }\ndo = [ { shell = \"echo ran >> DIR/ran\" } ]\n";
    let mut gateway = Gateway::new(&hub, rule);
    gateway.start_subscribed();
    let send = |times: usize| {
        hub.send_message(message("again", "write")).expect("queued");
        let told = |feedback: &crate::soak::back_end::Feedback| {
            feedback.get("again").is_some_and(|all| all.len() == times)
        };
        assert!(hub.wait_feedback(crate::harness::DEADLINE, told), "{:?}", hub.feedback());
    };
    send(1);
    // The agent already has the answer to the ping, or waits for it before it ends.
    gateway.terminate();
    gateway.start_subscribed();
    send(2);
    assert_eq!(gateway.effects("ran").get("ran"), Some(&2), "{:?}", gateway.lives());
    gateway.terminate();
}

/// The sender of IoT Hub's tutorial uses the same ids in each run.
#[test]
fn both_runs_of_the_tutorials_sender_run() {
    let Some(python) = crate::sdk::python("the tutorial's sender runs twice") else { return };
    let (emulator, dir) = crate::sdk::emulator(&["--device", "dev1"]);
    let agent = Agent::start(&emulator, "dev1", dir.path(), &writing_rule(dir.path()));
    for run in ["first", "second"] {
        let messages: Vec<String> = (0..3)
            .map(|at| {
                format!(
                    r#"{{"body": "{run} {at}", "properties": {{"messageId": "message_{at}", "action": "write"}}}}"#
                )
            })
            .collect();
        let messages: Vec<&str> = messages.iter().map(String::as_str).collect();
        let key = emulator.service_string();
        let service = crate::sdk::send_with_the_sdk(&python, &emulator, &key, dir.path(), &messages, false);
        service.stdout.wait_for("sent 3");
        wait_for_file(&dir.path().join("ran"), &format!("{run} 2"));
    }
    let expected = ["first 0", "first 1", "first 2", "second 0", "second 1", "second 2"];
    let mut found = ran(dir.path());
    found.sort_unstable();
    assert_eq!(found, expected, "{}", agent.process.stderr.text());
}
