//! What the emulator keeps over a restart, as users see it: messages, twins and feedback are there again.
//!
//! Must not know: how the state is written.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use crate::harness::{Agent, Emulator, binary, run, wait_for_file};

const RULE: &str = r#"
[report]
outcomes = ["telemetry", "twin"]
[[rule]]
name = "write"
when = "any"
do = [ { run = ["/bin/sh", "-c", "echo $C2D_MESSAGE_ID >> FILE"] } ]
"#;

fn start(state: &Path) -> Emulator {
    Emulator::start_in(state, "0", "0", &["--device", "dev1"])
}

#[test]
fn a_message_waits_for_its_device_while_the_emulator_is_stopped_and_also_when_it_is_killed() {
    let dir = tempfile::tempdir().expect("a directory");
    let state = dir.path().join("hub");
    let emulator = start(&state);
    emulator.send("dev1", &["--message-id", "m-1", "--ack", "full"]);
    assert_eq!(emulator.process.terminate(), Some(0));

    let emulator = start(&state);
    emulator.send("dev1", &["--message-id", "m-2", "--ack", "full"]);
    wait_for_file(&state.join("hub.jsonl"), "m-2");
    emulator.process.kill();

    let emulator = start(&state);
    let done = dir.path().join("done");
    let rule = RULE.replace("FILE", &done.display().to_string());
    let agent = Agent::start(&emulator, "dev1", dir.path(), &rule);
    assert_eq!(wait_for_file(&done, "m-2"), "m-1\nm-2\n");
    emulator.process.stderr.wait_for_nth("received a D2C message", 2);
    wait_for_file(&state.join("hub.jsonl"), "\"write\"");
    assert_eq!(agent.process.terminate(), Some(0));
    assert_eq!(emulator.process.terminate(), Some(0));

    // Unread feedback, the twin and the D2C messages are there after one more restart.
    let emulator = start(&state);
    let kept = std::fs::read_to_string(state.join("hub.jsonl")).expect("a file");
    let lines = kept.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).expect("JSON"));
    let records = lines.filter(|line| line["key"].as_str().is_some_and(|key| key.starts_with("feedback/")));
    let feedback: Vec<_> = records.map(|line| line["value"][1]["originalMessageId"].clone()).collect();
    assert_eq!(feedback, ["m-1", "m-2"]);
    let sent = run(emulator.sender("dev1").args(["--message-id", "m-3", "--ack", "full", "--wait=100ms"]));
    let told = String::from_utf8_lossy(&sent.stderr);
    assert!(told.contains("2 records of other messages came with the feedback"), "{told}");
}

#[test]
fn a_damaged_memory_is_refused_and_left_as_it_is() {
    let dir = tempfile::tempdir().expect("a directory");
    let state = dir.path().join("hub");
    drop(start(&state));
    for (file, text, part) in [
        ("hub.json", "{\"format\": 1, \"dev", "EOF while parsing"),
        ("hub.json", "{\"format\":9,\"devices\":{},\"feedback\":[]}", "it has format 9"),
        ("hub.jsonl", "{\"format\":9}\n", "it has format 9"),
        ("hub.jsonl", "{\"format\":2}\n{\"key\":\n{\"key\":\"device/dev1\"}\n", "line 2 is damaged: "),
        (
            "hub.jsonl",
            "{\"format\":2}\n{\"key\":\"device/dev1\",\"value\":1}\n",
            "the value of \"device/dev1\"",
        ),
    ] {
        for old in ["hub.json", "hub.jsonl"] {
            drop(std::fs::remove_file(state.join(old)));
        }
        std::fs::write(state.join(file), text).expect("written");
        let mut command = binary();
        command.arg("emulator").arg("--state-dir").arg(&state);
        let output = run(command.args(["--mqtt-port", "0", "--amqp-port", "0", "--https-port", "0"]));
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        for part in [
            part,
            &format!("{file} cannot be used"),
            "move it away: the hub then begins with empty queues and twins",
        ] {
            assert!(stderr.contains(part), "{part}: {stderr}");
        }
        assert_eq!(std::fs::read_to_string(state.join(file)).expect("a file"), text);
    }
}

#[test]
fn a_memory_that_cannot_be_written_is_told_once_and_written_when_it_can_be() {
    let dir = tempfile::tempdir().expect("a directory");
    let state = dir.path().join("hub");
    let emulator = start(&state);
    // A directory has the name of the new file, so the emulator cannot write it.
    let obstacle = state.join("hub.jsonl.new");
    std::fs::create_dir(&obstacle).expect("made");
    emulator.send("dev1", &["--message-id", "m-1"]);
    emulator
        .process
        .stderr
        .wait_for("the hub's state cannot be saved, and is lost if it still cannot when the emulator ends: cannot write");
    std::fs::remove_dir(&obstacle).expect("removed");
    wait_for_file(&state.join("hub.jsonl"), "m-1");
    emulator.process.stderr.wait_for("the hub's state is saved again");
    assert_eq!(emulator.process.terminate(), Some(0));
}

#[test]
fn a_memory_that_cannot_be_written_at_the_end_is_an_error() {
    let dir = tempfile::tempdir().expect("a directory");
    let state = dir.path().join("hub");
    let emulator = start(&state);
    std::fs::create_dir(state.join("hub.jsonl.new")).expect("made");
    emulator.send("dev1", &[]);
    emulator.process.stderr.wait_for("the hub's state cannot be saved");
    assert_eq!(emulator.process.terminate(), Some(1));
}

#[test]
fn a_state_directory_to_which_others_can_write_is_a_warning() {
    let dir = tempfile::tempdir().expect("a directory");
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).expect("permissions");
    let emulator = start(dir.path());
    let line = emulator.process.stderr.wait_for("is writable by users other than its owner");
    assert!(
        line.contains(&dir.path().display().to_string()) && line.contains("use a directory of your own"),
        "{line}"
    );
    assert_eq!(emulator.process.terminate(), Some(0));
}
