//! Registrations that are interrupted: by kill -9 at each write, by a client that goes, by a twin that cannot move.
//!
//! Owns: that a device which moves is at one hub, with its twin, whatever happens. Must not know: the file's form.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use c2d_agent::credentials::SharedAccessKey;
use rumqttc::mqttbytes::QoS;
use serde_json::{Value, json};

use super::back_end::BackEnd;
use super::client::{self, Client, hub_connect, polled, registered, token};
use super::device_key;
use super::hubs::{at_hub, hub_of, signs_in};
use crate::harness::{Emulator, Process, binary, program, run, skip, wait_for_file};
use crate::rest::dial;
use crate::traps::disk::{self, SmallDisk};

const HUBS: [&str; 2] = ["localhost", "hub-two.test"];
const REGISTER: &str = "$dps/registrations/PUT/iotdps-register/?$rid=1";

fn start(state: &Path) -> Emulator {
    Emulator::start_in(state, "0", "0", &["--dps-device", "a", "--hub", "hub-two.test"])
}

fn move_next(emulator: &Emulator) {
    let mut faults = binary();
    faults.args(["emulator", "faults", "--device", "a", "dps-move", "--state-dir"]).arg(&emulator.state);
    assert_eq!(run(&mut faults).status.code(), Some(0));
}

/// Does something to these system calls of the emulator, with any file or with this one.
fn trace(strace: &PathBuf, emulator: &Emulator, calls: &str, file: Option<&Path>, injected: &str) -> Process {
    let mut command = Command::new(strace);
    command.args(["-f", "-o", "/dev/null", "-e", &format!("trace={calls}")]);
    command.args(["-e", &format!("inject={calls}:{injected}"), "-p", &emulator.process.id().to_string()]);
    command.args(file.into_iter().flat_map(|file| [Path::new("-P"), file]));
    let tracer = Process::spawn(&mut command);
    tracer.stderr.wait_for("attached");
    tracer
}

/// The hub of the device, which has its twin, and which is the only one that has the device.
fn only_hub(emulator: &Emulator) -> String {
    let registration = BackEnd::of(emulator).ask("GET /registrations/a", "", &Value::Null).json();
    let own = hub_of(&registration);
    for hub in HUBS {
        let twin = at_hub(emulator, hub, "GET /twins/a", "");
        assert_eq!(twin.status, if hub == own { 200 } else { 404 }, "{hub}, and the device is at {own}");
        if hub == own {
            assert_eq!(twin.json()["tags"]["site"], "b43", "{hub}");
        }
    }
    own
}

#[test]
fn kill_9_at_each_write_of_a_move_leaves_the_device_at_one_hub_with_its_twin() {
    let Some(strace) = program("strace") else {
        return skip("kill -9 at each write of a move", "strace is missing");
    };
    let dir = tempfile::tempdir().expect("a directory");
    let state = dir.path().join("state");
    let mut emulator = start(&state);
    let key = device_key(&emulator, "a");
    registered(&emulator, "a", &key, "");
    assert_eq!(at_hub(&emulator, "localhost", "PATCH /twins/a", r#"{"tags":{"site":"b43"}}"#).status, 200);
    // There and back, so that each hub has all of its files.
    for hub in ["hub-two.test", "localhost"] {
        move_next(&emulator);
        assert_eq!(hub_of(&registered(&emulator, "a", &key, "")), hub);
    }
    // The steps in their order: the note, the device, then the old device, and at last its files. Of the file with the
    // twin not: it is written at other times, too.
    let files = |new: &Path, old: &Path| {
        [
            (state.join("provisioning.jsonl"), "fdatasync"),
            (new.join("devices.jsonl"), "fdatasync"),
            (old.join("devices.jsonl"), "fdatasync"),
            (old.join("devices/a.connection-string"), "?unlink,unlinkat"),
        ]
    };
    let folder = |hub: &str| if hub == "localhost" { state.clone() } else { state.join("hubs").join(hub) };
    for step in 0..4 {
        let before = only_hub(&emulator);
        let other = HUBS.into_iter().find(|hub| *hub != before).expect("two hubs");
        move_next(&emulator);
        let (file, calls) = files(&folder(other), &folder(&before))[step].clone();
        let tracer = trace(&strace, &emulator, calls, Some(&file), "signal=KILL");
        let mut device = Client::sign_in(&emulator, "a", &token("a", &key));
        device.subscribe(&[(client::ANSWERS, QoS::AtLeastOnce)]);
        device.publish(REGISTER, QoS::AtMostOnce, "");
        assert!(device.next().is_none(), "it was not killed at {}", file.display());
        emulator.process.wait_exit();
        tracer.wait_exit();
        emulator = start(&state);
        let hub = only_hub(&emulator);
        assert!(signs_in(&emulator, "a", &key, &hub), "at {hub} after {}", file.display());
        assert_eq!(hub_of(&registered(&emulator, "a", &key, "")), hub, "after {}", file.display());
    }
}

#[test]
fn a_client_that_goes_does_not_leave_its_registration_half_made() {
    let Some(strace) = program("strace") else {
        return skip("a client that goes while it is moved", "strace is missing");
    };
    let dir = tempfile::tempdir().expect("a directory");
    let emulator = start(&dir.path().join("state"));
    let key = device_key(&emulator, "a");
    registered(&emulator, "a", &key, "");
    move_next(&emulator);
    let _tracer = trace(&strace, &emulator, "fdatasync", None, "delay_enter=300000");
    let mut stream = dial(&emulator);
    let (path, token) = ("/0ne00000001/registrations/a/register?api-version=2021-06-01", token("a", &key));
    let head = format!(
        "PUT {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\nAuthorization: {token}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).expect("sent");
    // The work has begun, and its next steps wait for the disk.
    wait_for_file(&emulator.state.join("provisioning.jsonl"), "\"leaves\":[\"localhost\",\"a\"]");
    drop(stream);
    emulator.process.stderr.wait_for_nth("a device registered at the provisioning service", 2);
    let registration = BackEnd::of(&emulator).ask("GET /registrations/a", "", &Value::Null).json();
    assert_eq!(hub_of(&registration), "hub-two.test");
    assert!(signs_in(&emulator, "a", &key, "hub-two.test"));
    assert!(!signs_in(&emulator, "a", &key, "localhost"));
}

/// Has the device report 20 KB below this letter.
fn report(emulator: &Emulator, hub: &str, key: &SharedAccessKey, letter: char) {
    let mut device = Client::dial(emulator, None);
    device.connack_to(hub_connect("a", key, hub));
    let reported: serde_json::Map<_, _> =
        (0..5).map(|number| (format!("{letter}{number}"), json!("x".repeat(4_000)))).collect();
    device.subscribe(&[("$iothub/twin/res/#", QoS::AtLeastOnce)]);
    let body = Value::from(reported).to_string();
    device.publish("$iothub/twin/PATCH/properties/reported/?$rid=1", QoS::AtMostOnce, &body);
    assert!(device.answer().topic.starts_with("$iothub/twin/res/204"));
}

#[test]
fn a_twin_that_cannot_move_is_told_and_the_device_stays_where_it_is() {
    let dir = tempfile::tempdir().expect("a directory");
    let emulator = start(&dir.path().join("state"));
    let key = device_key(&emulator, "a");
    registered(&emulator, "a", &key, "");
    report(&emulator, "localhost", &key, 'a');
    // The next hub has a device of that id, whose reported properties leave too little room.
    let other = SharedAccessKey::from_bytes([6; 32]);
    let (primary, secondary) = (other.expose_base64(), other.expose_base64());
    let keys = json!({ "primaryKey": primary, "secondaryKey": secondary });
    let device = json!({ "deviceId": "a", "authentication": { "type": "sas", "symmetricKey": keys } });
    assert_eq!(at_hub(&emulator, "hub-two.test", "PUT /devices/a", &device.to_string()).status, 200);
    report(&emulator, "hub-two.test", &other, 'b');
    move_next(&emulator);
    for _ in 0..2 {
        assert_eq!(polled(&emulator, "a", &key, "")[0].0, 500);
        assert!(signs_in(&emulator, "a", &key, "localhost"), "it is not deleted");
    }
    emulator.process.stderr.wait_for("the twin of \"a\" cannot be written at hub-two.test: ");
    // Without that device there is room, and what was begun is finished.
    assert_eq!(at_hub(&emulator, "hub-two.test", "DELETE /devices/a", "").status, 204);
    let moved = registered(&emulator, "a", &key, "");
    assert_eq!(
        (hub_of(&moved).as_str(), &moved["substatus"]),
        ("hub-two.test", &json!("deviceDataMigrated"))
    );
    assert!(
        at_hub(&emulator, "hub-two.test", "GET /twins/a", "").json()["properties"]["reported"]["a4"]
            .is_string()
    );
}

#[test]
fn a_full_disk_is_told_and_the_device_moves_once_there_is_room() {
    let dir = tempfile::tempdir().expect("a directory");
    let disk = match SmallDisk::mount(dir.path().join("disk")) {
        Ok(disk) => disk,
        Err(lack) => return disk::skip("a move on a full disk", &lack),
    };
    let emulator = start(&dir.path().join("disk/state"));
    let key = device_key(&emulator, "a");
    registered(&emulator, "a", &key, "");
    assert_eq!(at_hub(&emulator, "localhost", "PATCH /twins/a", r#"{"tags":{"site":"b43"}}"#).status, 200);
    move_next(&emulator);
    disk.fill();
    for _ in 0..2 {
        assert_eq!(polled(&emulator, "a", &key, "")[0].0, 500);
        assert!(signs_in(&emulator, "a", &key, "localhost"), "it stays where it is");
        assert_eq!(only_hub(&emulator), "localhost");
    }
    disk.clear();
    assert_eq!(hub_of(&registered(&emulator, "a", &key, "")), "hub-two.test");
    assert_eq!(only_hub(&emulator), "hub-two.test");
}
