//! A device that its hub refuses moves to another one with its inbox: nothing is lost, nothing is done twice.

use super::*;

/// The further hub. It is also the address where it is dialled.
const OTHER: &str = "127.0.0.2";

/// A hub that has `a`, and another one.
fn two_hubs() -> Emulator {
    Emulator::start_with(&["--dps-device", "a", "--hub", OTHER])
}

/// A gateway that was assigned long ago, so that it may ask again at once.
fn assigned(emulator: &Emulator, rest: &str) -> Gateway {
    let gateway = Gateway::with_key(emulator, "a", rest);
    let asked = gateway.provision(&[]);
    assert_eq!(asked.status.code(), Some(0), "{}", said(&asked));
    gateway
}

/// One action at a time: it writes the id of its message into `out`, and ends when there is a file `go`.
fn waiting(dir: &Path) -> String {
    let script = "echo $C2D_MESSAGE_ID >>$0/out; while [ ! -e $0/go ]; do sleep 0.05; done";
    format!(
        "[[rule]]\nname = \"wait\"\nwhen = \"any\"\nreport = \"telemetry\"\ntimeout = \"50s\"\n\
         do = [ {{ run = [\"/bin/sh\", \"-c\", '{script}', \"{}\"] }} ]\n",
        dir.display()
    )
}

/// The next registration of `a` leads to the other hub, and the present one forgets it.
fn move_away(emulator: &Emulator) {
    fault(emulator, &["--device", "a", "dps-move"]);
    forget(emulator);
}

/// The hub has no device `a` any more.
fn forget(emulator: &Emulator) {
    let hub = Named::main(emulator);
    let token = hub.token("iothubowner", "localhost");
    let (status, body) = hub.ask("DELETE /devices/a?api-version=2021-04-12", &token, "");
    assert_eq!(status, "204", "{body}");
}

/// The outcomes that the other hub was told, by the ids of their messages, as soon as there are `count`.
fn reported(emulator: &Emulator, count: usize) -> Vec<(String, String)> {
    let state = emulator.state.join("hubs").join(OTHER);
    let process = Process::spawn(&mut asking(&state, &["events", "--follow", "--json"]));
    process.stdout.wait_until("the outcomes", |lines| (lines.len() >= count).then_some(()));
    let texts = |line: String| {
        let event: Value = serde_json::from_str(&line).expect("JSON");
        let body: Value = serde_json::from_str(event["body"].as_str().expect("a text")).expect("JSON");
        let of = |name: &str| body[name].as_str().unwrap_or_default().to_owned();
        (of("messageId"), of("outcome"))
    };
    let mut all: Vec<_> = process.stdout.all().into_iter().map(texts).collect();
    all.sort();
    all
}

fn send_to_other(emulator: &Emulator, id: &str) {
    let state = emulator.state.join("hubs").join(OTHER);
    let mut command = binary();
    command.args(["c2d-send", "--device", "a", "--message-id", id, "--wait=20s", "--connection-string-file"]);
    let sent =
        run(command.arg(state.join("service.connection-string")).arg("--ca-file").arg(emulator.ca_file()));
    assert!(sent.status.success(), "{}", said(&sent));
}

#[test]
fn what_is_in_hand_when_the_hub_refuses_is_finished_once_and_reported_to_the_new_hub() {
    let emulator = two_hubs();
    let dir = tempfile::tempdir().expect("a directory");
    let gateway = assigned(&emulator, &waiting(dir.path()));
    let agent = gateway.run();
    agent.stderr.wait_for("subscribed");
    ["m1", "m2"].iter().for_each(|id| drop(emulator.send("a", &["--message-id", id])));
    wait_for_file(&dir.path().join("out"), "m1");
    wait_for_status(gateway.dir.path(), "1 running, 1 waiting");

    move_away(&emulator);
    agent.stderr.wait_for(&format!("hub={OTHER}:{}", emulator.mqtt.port()));
    agent.stderr.wait_for_nth("subscribed", 2);
    wait_for_status(gateway.dir.path(), &format!("device        a on hub {OTHER}:"));
    std::fs::write(dir.path().join("go"), "").expect("written");
    send_to_other(&emulator, "m3");
    let out = wait_for_file(&dir.path().join("out"), "m3");
    assert_eq!(out, "m1\nm2\nm3\n");
    let succeeded = |id: &str| (id.to_owned(), "succeeded".to_owned());
    assert_eq!(reported(&emulator, 3), ["m1", "m2", "m3"].map(succeeded));
    wait_for_status(gateway.dir.path(), "3 records (0 not ended");
    assert_eq!(agent.terminate(), Some(0));
}

#[test]
fn what_a_killed_agent_had_not_begun_is_finished_at_the_new_hub() {
    let emulator = two_hubs();
    let dir = tempfile::tempdir().expect("a directory");
    let gateway = assigned(&emulator, &waiting(dir.path()));
    let agent = gateway.run();
    agent.stderr.wait_for("subscribed");
    ["m1", "m2"].iter().for_each(|id| drop(emulator.send("a", &["--message-id", id])));
    wait_for_file(&dir.path().join("out"), "m1");
    wait_for_status(gateway.dir.path(), "1 running, 1 waiting");
    // What waits may not be on disk yet.
    wait_for_status(gateway.dir.path(), "2 records (2 not ended");
    agent.kill();

    move_away(&emulator);
    std::fs::write(dir.path().join("go"), "").expect("written");
    let agent = gateway.run();
    agent.stderr.wait_for("what the hub before had is finished from the inbox");
    let out = wait_for_file(&dir.path().join("out"), "m2");
    assert_eq!(out, "m1\nm2\n", "what was interrupted is a dead letter, and what had not begun runs once");
    let outcomes = [("m1", "interrupted"), ("m2", "succeeded")];
    assert_eq!(reported(&emulator, 2), outcomes.map(|(id, what)| (id.to_owned(), what.to_owned())));
    assert_eq!(agent.terminate(), Some(0));
}

#[test]
fn a_hub_that_refuses_and_a_service_that_does_too_are_tried_with_pauses() {
    let emulator = Emulator::start_with(&["--dps-device", "a"]);
    let gateway = assigned(&emulator, "");
    let agent = gateway.run();
    agent.stderr.wait_for("subscribed");
    fault(&emulator, &["--device", "a", "dps-refuse"]);
    forget(&emulator);
    agent.stderr.wait_for("the hub that was assigned before is tried again");
    agent.stderr.wait_for_nth("refused device a", 3);
    assert_eq!(agent.stderr.count("asking the provisioning service"), 1, "the next time is later");
    assert!(agent.is_running());
    assert_eq!(agent.terminate(), Some(0));
}
