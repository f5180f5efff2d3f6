//! What a new user does after the installation: each mistake ends in a sentence with the value and the remedy.
//!
//! Owns: mistakes with files, options and samples. Must not know: how the program is built. Mistakes within a
//! configuration are fixtures of `config.rs`.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use rustix::process::Signal;

use crate::harness::{Agent, Emulator, binary, run, wait_for_file, write_config};

const KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

/// The output for people, and the exit code.
fn told(command: &mut Command) -> (String, Option<i32>) {
    let Output { status, stdout, stderr } = run(command);
    (String::from_utf8_lossy(&[stdout, stderr].concat()).into_owned(), status.code())
}

fn device() -> String {
    format!("HostName=hub.example;DeviceId=pi-01;SharedAccessKey={KEY}")
}

/// A service connection string of a hub that does not exist.
fn service() -> String {
    format!("HostName=localhost:1;SharedAccessKeyName=service;SharedAccessKey={KEY}")
}

fn check(config: &Path, arguments: &[&str]) -> (String, Option<i32>) {
    told(
        binary()
            .arg("check")
            .arg("-c")
            .arg(config)
            .args(arguments)
            .env("C2D_DEVICE_CONNECTION_STRING", device()),
    )
}

#[test]
fn without_a_configuration_every_command_says_how_to_come_by_one() {
    let dir = tempfile::tempdir().expect("a directory");
    let none = dir.path().join("none.toml");
    let commands: [(&[&str], i32); 6] = [
        (&["check"], 2),
        (&["run"], 2),
        (&["inbox", "list"], 2),
        (&["status"], 2),
        (&["healthcheck"], 2),
        (&["doctor", "--offline"], 1),
    ];
    for (command, code) in commands {
        let (text, found) = told(binary().args(command).arg("-c").arg(&none));
        // The doctor wraps its lines.
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        let sentence = format!(
            "there is no such file; write one with c2d-agent init -c {}, or name another file with -c FILE",
            none.display()
        );
        assert!(text.contains(&sentence), "{command:?}: {text}");
        assert_eq!(found, Some(code), "{command:?}");
    }
    let (text, code) = check(dir.path(), &[]);
    assert!(text.contains("it is a directory; name a file in it with -c FILE"), "{text}");
    assert_eq!(code, Some(2));
}

#[test]
fn a_configuration_from_an_editor_of_windows_is_read() {
    let dir = tempfile::tempdir().expect("a directory");
    let config = dir.path().join("config.toml");
    let text = "\u{feff}[inbox]\r\npath = \"inbox.journal\"\r\n[[rule]]\r\nname = \"r\"\r\nwhen = \"any\"\r\n\
                do = [ { shell = \"true\" } ]\r\n";
    fs::write(&config, text).expect("written");
    let valid = "configuration is valid: 1 rule, 0 pins, device pi-01 on hub hub.example\n";
    assert_eq!(check(&config, &[]), (valid.to_owned(), Some(0)));
    fs::write(&config, text.replace("\r\n", "\r")).expect("written");
    let (text, code) = check(&config, &[]);
    assert!(text.contains("save the file with Unix line endings"), "{text}");
    assert!(!text.contains('\r'), "nothing moves the cursor: {text:?}");
    assert_eq!(code, Some(2));
}

#[test]
fn a_connection_string_in_the_json_of_az_is_told_how_az_prints_it_alone() {
    let dir = tempfile::tempdir().expect("a directory");
    let config = write_config(dir.path(), "");
    let json = |string: String| format!("{{\n  \"connectionString\": \"{string}\"\n}}");
    let file = dir.path().join("service");
    fs::write(&file, json(service())).expect("written");
    let cases = [
        told(
            binary().arg("check").arg("-c").arg(&config).env("C2D_DEVICE_CONNECTION_STRING", json(device())),
        ),
        told(
            binary()
                .args(["c2d-send", "--device", "d"])
                .env("C2D_SERVICE_CONNECTION_STRING", json(service())),
        ),
        told(binary().args(["c2d-send", "--device", "d", "--connection-string-file"]).arg(&file)),
    ];
    for (text, code) in cases {
        assert!(text.contains(": this is JSON, not only the connection string"), "{text}");
        assert!(text.contains("with --query connectionString -o tsv"), "{text}");
        assert!(!text.contains(KEY), "{text}");
        assert_eq!(code, Some(2));
    }
}

#[test]
fn a_connection_string_of_the_other_kind_is_told() {
    let dir = tempfile::tempdir().expect("a directory");
    let config = write_config(dir.path(), "");
    let mut check = binary();
    check.arg("check").arg("-c").arg(&config).env("C2D_DEVICE_CONNECTION_STRING", service());
    let (text, code) = told(&mut check);
    assert!(text.contains("this is a service connection string"), "{text}");
    assert_eq!(code, Some(2));
    let mut send = binary();
    send.args(["c2d-send", "--device", "d"]).env("C2D_SERVICE_CONNECTION_STRING", device());
    let (text, code) = told(&mut send);
    assert!(text.contains("this is a device connection string"), "{text}");
    assert_eq!(code, Some(2));
}

const PUMP: &str = "[[rule]]\nname = \"pump\"\nwhen = { action = \"pump\" }\ndo = [ { shell = \"true\" } ]\n";

#[test]
fn a_sample_that_is_json_is_told_how_a_sample_looks() {
    let dir = tempfile::tempdir().expect("a directory");
    let config = write_config(dir.path(), PUMP);
    for sample in ["{\"action\":\"pump\"}", "{'action':'pump'}", " [1]"] {
        let (text, code) = check(&config, &["--message", sample]);
        assert_eq!(
            text,
            "c2d-agent: the message looks like JSON, but takes properties as on the wire, such as 'action=pump&state=on': give a JSON \
             body as data\n"
        );
        assert_eq!(code, Some(2), "{sample}");
    }
}

#[test]
fn a_sample_that_nothing_takes_is_told_what_it_has() {
    let dir = tempfile::tempdir().expect("a directory");
    let config = write_config(dir.path(), PUMP);
    let cases: [(&[&str], &[&str]); 7] = [
        (
            &["--message", "Action=pump"],
            &[
                "action is missing (there is Action: upper and lower case differ), not \"pump\"",
                "the message has the properties \"Action\"",
            ],
        ),
        (&["--message", "acton=pump"], &["action is missing (there is \"acton\"), not \"pump\""]),
        (&["--message", " action=pump"], &["action is missing (there is \" action\"), not \"pump\""]),
        (
            &["--data", "{\"action\":\"pump\"}"],
            &[
                "action is missing (the body has it: in a rule write \"body.action\"), not \"pump\"",
                "the message has no properties: --message gives them, as in 'action=pump&state=on'",
            ],
        ),
        (
            &["--message", "$.foo=1"],
            &[
                "the message has the properties \"$.foo\"",
                "\"$.foo\" is not one of the hub's properties ($.mid, $.cid, ",
                "a sender's own properties cannot begin with $.",
            ],
        ),
        (&["--message", "x=1&y=2"], &["action is missing, not \"pump\"", "the properties \"x\", \"y\""]),
        (&["--message", "action:pump"], &["the message has the properties \"action:pump\""]),
    ];
    for (arguments, sentences) in cases {
        let (text, code) = check(&config, arguments);
        for sentence in sentences {
            assert!(text.contains(sentence), "{arguments:?} has no {sentence}:\n{text}");
        }
        assert!(text.contains("no rule matches"), "{text}");
        assert_eq!(code, Some(3));
    }
}

#[test]
fn a_file_that_is_not_there_is_named_with_what_to_do() {
    let cases: [(&[&str], &str); 8] = [
        (
            &["c2d-send", "--device", "d", "--file", "no/body"],
            "cannot read the body from no/body: there is no such file; correct the path",
        ),
        (
            &["c2d-send", "--device", "d", "--connection-string-file", "no/string"],
            "cannot read the connection string from no/string: there is no such file; write it there (az prints it \
             with --query connectionString -o tsv), or correct --connection-string-file",
        ),
        (
            &["c2d-send", "--device", "d", "--ca-file", "no/ca.pem"],
            "cannot read no/ca.pem: there is no such file; correct the path",
        ),
        (
            &["c2d-feedback", "--spool", "no/spool"],
            "the spool no/spool cannot be opened: there is no such file; create its directory, or give another file",
        ),
        (
            &["invoke-method", "--device", "d", "--method", "m", "--file", "no/payload"],
            "cannot read the payload from no/payload: there is no such file; correct the path",
        ),
        (
            &["twin", "patch", "--device", "d", "--desired-file", "no/twin"],
            "cannot read the JSON of --desired from no/twin: there is no such file; correct the path",
        ),
        (
            &["c2d-send", "--device", "d", "--file", "/tmp"],
            "cannot read the body from /tmp: it is a directory; correct",
        ),
        (
            &["c2d-feedback", "--spool", "/tmp"],
            "the spool /tmp is not a regular file: give the path of a file",
        ),
    ];
    for (arguments, sentence) in cases {
        let (text, code) = told(binary().args(arguments).env("C2D_SERVICE_CONNECTION_STRING", service()));
        assert!(text.contains(sentence), "{arguments:?}: {text}");
        assert!(!text.contains("os error"), "{text}");
        assert_eq!(code, Some(2), "{arguments:?}");
    }
    let dir = tempfile::tempdir().expect("a directory");
    let config = write_config(dir.path(), "[device]\nconnection_string_file = \"none\"\n");
    let (text, code) = told(binary().arg("check").arg("-c").arg(&config));
    let sentence =
        "none: there is no such file; write the device's connection string to it, or correct the path";
    assert!(text.contains(sentence), "{text}");
    assert_eq!(code, Some(2));
}

#[test]
fn a_root_that_the_sender_does_not_trust_is_told_in_the_words_of_its_options() {
    let (first, second) = (Emulator::start(), Emulator::start());
    let mut command = binary();
    command.args(["c2d-send", "--device", "dev1"]);
    command.env("C2D_SERVICE_CONNECTION_STRING", first.service_string());
    let (text, code) = told(&mut command);
    let port = first.amqp.port();
    let sentence = format!(
        "the certificate of localhost on port {port} is not signed by a root that this machine trusts: name \
         the private root with --ca-file or C2D_CA_FILE (the emulator's is ca.pem in its state directory), \
         check host and port in HostName, or"
    );
    assert!(text.contains(&sentence), "{text}");
    assert_eq!(code, Some(1));
    for command in [&["twin", "get"][..], &["c2d-purge"], &["c2d-send", "--transport", "amqp-ws"]] {
        let mut asked = binary();
        asked.args(command).args(["--device", "dev1", "--https-port", &second.https.port().to_string()]);
        asked
            .env("C2D_SERVICE_CONNECTION_STRING", first.service_string())
            .env("C2D_CA_FILE", first.ca_file());
        let (text, code) = told(&mut asked);
        let sentence =
            format!("the certificate of localhost on port {} is not signed by a root", second.https.port());
        assert!(text.contains(&sentence), "{command:?}: {text}");
        assert!(text.contains("check --https-port where several emulators run"), "{command:?}: {text}");
        assert!(!text.contains("module"), "{command:?}: {text}");
        assert_eq!(code, Some(1), "{command:?}");
    }
}

#[test]
fn feedback_that_does_not_come_in_time_is_told() {
    let emulator = Emulator::start();
    let mut command = binary();
    command.args(["c2d-feedback", "--count", "2", "--for", "300ms", "--ca-file"]).arg(emulator.ca_file());
    let (text, code) = told(command.env("C2D_SERVICE_CONNECTION_STRING", emulator.service_string()));
    let sentence =
        "0 of 2 records came within 300ms: the hub makes records only for messages that were sent with --ack";
    assert!(text.contains(sentence), "{text}");
    assert_eq!(code, Some(4));
}

#[test]
fn a_duration_without_a_unit_has_the_same_sentence_everywhere() {
    let cases: [&[&str]; 4] = [
        &["healthcheck", "--max-offline", "5"],
        &["healthcheck", "--timeout", "5"],
        &["c2d-send", "--device", "d", "--expiry", "5"],
        &["c2d-feedback", "--for", "5"],
    ];
    for arguments in cases {
        let (text, code) = told(binary().args(arguments));
        assert!(text.contains("use a number with a unit, such as 30s, 10m or 2h"), "{arguments:?}: {text}");
        assert_eq!(code, Some(2), "{arguments:?}");
    }
}

#[cfg(not(feature = "manual"))]
#[test]
fn a_command_that_is_not_built_in_is_not_offered_and_names_its_feature() {
    let (help, _) = told(binary().arg("--help"));
    assert!(!help.contains("manual"), "{help}");
    let (text, code) = told(binary().args(["manual", "dir"]));
    let sentence = "c2d-agent: manual is not in this program: no package has it, so build it; its Cargo feature is manual\n";
    assert_eq!((text.as_str(), code), (sentence, Some(2)));
}

#[test]
fn an_agent_that_stops_without_a_hub_announces_no_other_attempt() {
    let dir = tempfile::tempdir().expect("a directory");
    let emulator = Emulator::start();
    let begun = dir.path().join("begun");
    let rule = format!(
        "[[rule]]\nname = \"long\"\nwhen = \"any\"\ndo = [ {{ shell = \"echo begun > {}; sleep 60\" }} ]\ntimeout = \"50s\"\n",
        begun.display()
    );
    let agent = Agent::start(&emulator, "dev1", dir.path(), &rule);
    emulator.send("dev1", &[]);
    wait_for_file(&begun, "begun");
    emulator.process.kill();
    agent.process.stderr.wait_for("not connected");
    // The agent waits two seconds for the action, and the first pause between attempts is at most one second.
    agent.process.signal(Signal::TERM);
    assert_eq!(agent.process.wait_exit().code(), Some(0));
    let lines = agent.process.stderr.all();
    let signal = lines.iter().position(|line| line.contains("signal received")).expect("told");
    let later: Vec<_> = lines[signal..].iter().filter(|line| line.contains("not connected")).collect();
    assert!(later.is_empty(), "{later:?}");
}
