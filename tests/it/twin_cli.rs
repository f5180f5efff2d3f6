//! `twin get` and `twin patch` as a user sees them, against the emulator.
//!
//! Owns: nothing. Must not know: how the commands are built.

use std::io::Write as _;

use serde_json::{Value, json};

use crate::harness::{Emulator, run};
use crate::invoke_method::{back_end, seen};

fn twin(emulator: &Emulator, arguments: &[&str]) -> (String, String, Option<i32>) {
    let (verb, rest) = arguments.split_first().expect("a verb");
    let all = [&["twin", verb, "--device", "dev1"], rest].concat();
    seen(&run(&mut back_end(emulator, &all)))
}

fn got(emulator: &Emulator) -> Value {
    let (stdout, stderr, code) = twin(emulator, &["get", "--json"]);
    assert_eq!((stdout.lines().count(), stderr.as_str(), code), (1, "", Some(0)));
    serde_json::from_str(&stdout).expect("JSON")
}

#[test]
fn a_twin_is_printed_and_patched() {
    let emulator = Emulator::start();
    let (stdout, _, code) = twin(&emulator, &["get"]);
    let shown: Value = serde_json::from_str(&stdout).expect("JSON");
    assert_eq!((shown["deviceId"].as_str(), code), (Some("dev1"), Some(0)));
    assert!(stdout.contains("\n  \"properties\": {\n"), "for people it has lines: {stdout}");

    let (stdout, stderr, code) =
        twin(&emulator, &["patch", "--desired", r#"{"interval": 30, "led": {"on": true}}"#]);
    let etag = got(&emulator)["etag"].as_str().expect("an etag").to_owned();
    let words = format!("the desired properties of device dev1 have version 2 now\netag {etag}\n");
    assert_eq!((stdout, stderr.as_str(), code), (words, "", Some(0)));

    // The patch comes from a file, with the twin's present etag.
    let mut file = tempfile::NamedTempFile::new().expect("a file");
    file.write_all(br#"{"interval": null}"#).expect("written");
    let path = file.path().to_str().expect("UTF-8");
    let (stdout, _, code) = twin(
        &emulator,
        &["patch", "--desired-file", path, "--tags", r#"{"room": "kitchen"}"#, "--etag", &etag],
    );
    assert!(
        stdout.contains("have version 3 now\nthe tags of device dev1 are {\"room\":\"kitchen\"} now\n"),
        "{stdout}"
    );
    assert_eq!(code, Some(0));
    let now = got(&emulator);
    assert_eq!(now["tags"], json!({ "room": "kitchen" }));
    assert_eq!(now["properties"]["desired"]["led"], json!({ "on": true }));
    assert!(now["properties"]["desired"].get("interval").is_none(), "{now}");

    let (stdout, stderr, code) = twin(&emulator, &["patch", "--desired", "{}", "--etag", &etag]);
    let words = "c2d-agent: the twin of device dev1 has changed since, so it was not patched: read it again \
                 for its new etag\n";
    assert_eq!((stdout.as_str(), stderr.as_str(), code), ("", words, Some(3)));
    assert_eq!(got(&emulator)["etag"], now["etag"], "a refused patch changes nothing");
}

#[test]
fn each_mistake_has_its_sentence() {
    let emulator = Emulator::start();
    for (arguments, part, code) in [
        (&["patch"][..], "there is nothing to patch: give --desired, --desired-file or --tags", 2),
        (&["patch", "--desired", "[1]"], "--desired is not a JSON object: give an object", 2),
        (&["patch", "--tags", "room"], "--tags is not a JSON object", 2),
        (
            &["patch", "--desired-file", "/nonexistent/x"],
            "cannot read the JSON of --desired from /nonexistent/x",
            2,
        ),
        (
            &["get", "--module", "none"],
            "the hub knows no module none of device dev1: check --device and --module",
            1,
        ),
        (&["patch", "--desired", r#"{"a b": 1}"#], "a b", 1),
    ] {
        let (stdout, stderr, exit) = twin(&emulator, arguments);
        assert!(
            stdout.is_empty() && stderr.contains(part) && exit == Some(code),
            "{arguments:?}: {exit:?} {stderr}"
        );
    }
    let mut other = back_end(&emulator, &["twin", "get", "--device", "nope"]);
    let (_, stderr, code) = seen(&run(&mut other));
    assert_eq!(
        (stderr.as_str(), code),
        ("c2d-agent: the hub knows no device \"nope\": check --device\n", Some(1))
    );
}
