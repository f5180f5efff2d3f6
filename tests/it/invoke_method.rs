//! `invoke-method` as a user sees it, against the emulator and a device that speaks MQTT by hand.
//!
//! Owns: nothing. Must not know: how the command is built.

use std::process::{Command, Output};

use crate::emulator_methods::{called, listening, respond};
use crate::emulator_twins::sign_in;
use crate::harness::{Emulator, binary, run};
use crate::json_lines::json_lines;

/// A command of the back end over HTTPS.
pub(crate) fn back_end(emulator: &Emulator, arguments: &[&str]) -> Command {
    let mut command = binary();
    command.args(arguments).args(["--https-port", &emulator.https.port().to_string()]);
    command.arg("--ca-file").arg(emulator.ca_file());
    command.env("C2D_SERVICE_CONNECTION_STRING", emulator.service_string());
    command
}

/// Standard output, standard error, exit code.
pub(crate) fn seen(output: &Output) -> (String, String, Option<i32>) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("UTF-8");
    (text(&output.stdout), text(&output.stderr), output.status.code())
}

fn invoke(emulator: &Emulator, arguments: &[&str]) -> (String, String, Option<i32>) {
    let all = [&["invoke-method", "--device", "dev1"], arguments].concat();
    seen(&run(&mut back_end(emulator, &all)))
}

#[test]
fn the_devices_status_and_answer_are_printed_and_decide_the_exit_code() {
    let emulator = Emulator::start();
    let mut device = listening(&emulator);
    std::thread::scope(|scope| {
        let arguments =
            ["--method", "re boot", "--data", r#"{"z": [1e400, "é"], "a": 18446744073709551616}"#];
        let caller = scope.spawn(move || invoke(&emulator, &arguments));
        let (name, rid, body) = called(&mut device);
        assert_eq!(
            (name.as_str(), body.as_str()),
            ("re%20boot", r#"{"z": [1e400, "é"], "a": 18446744073709551616}"#)
        );
        respond(&mut device, "200", &rid, r#"{"z": 1e400,  "a": true}"#);
        let (stdout, stderr, code) = caller.join().expect("an answer");
        let (line, payload) = stdout.split_once('\n').expect("two parts");
        assert!(line.starts_with("device dev1 answered re boot with status 200 after 0."), "{line}");
        assert_eq!((payload, stderr.as_str(), code), ("{\"z\": 1e400,  \"a\": true}\n", "", Some(0)));
    });
}

#[test]
fn a_status_that_is_no_success_is_exit_code_5_and_json_is_one_line_whatever_the_device_writes() {
    let emulator = Emulator::start();
    let mut device = listening(&emulator);
    std::thread::scope(|scope| {
        let (status, emulator) = ("404", &emulator);
        let caller = scope.spawn(move || invoke(emulator, &["--method", "nope", "--json"]));
        let (_, rid, body) = called(&mut device);
        assert_eq!(body, "null");
        respond(&mut device, status, &rid, "{\n\t\"a_b\": \"\u{9b}\"\n}");
        let (stdout, stderr, code) = caller.join().expect("an answer");
        assert!(json_lines(&stdout)[0]["durationMs"].is_u64(), "{stdout}");
        let start = r#"{"event":"answered","deviceId":"dev1","method":"nope","status":404,"payload":{  "a_b": "\u009b" },"#;
        assert!(stdout.starts_with(start), "{stdout}");
        assert_eq!((stderr.as_str(), code), ("", Some(5)));
    });
}

#[test]
fn who_is_not_there_and_who_does_not_answer_are_told_apart() {
    let emulator = Emulator::start();
    let (stdout, stderr, code) = invoke(&emulator, &["--method", "ping"]);
    let words = "c2d-agent: device dev1 is not connected, or takes no methods: --connect-timeout waits until it \
                 connects, --timeout for its answer\n";
    assert_eq!((stdout.as_str(), stderr.as_str(), code), ("", words, Some(3)));
    let (_, stderr, code) = invoke(&emulator, &["--method", "ping", "--connect-timeout", "1s"]);
    let words = "c2d-agent: device dev1 did not connect within 1s, which --connect-timeout sets, or takes no methods\n";
    assert_eq!((stderr.as_str(), code), (words, Some(3)));

    let _connected_but_deaf = sign_in(&emulator, true);
    assert_eq!(invoke(&emulator, &["--method", "ping"]).2, Some(3));

    let mut device = listening(&emulator);
    let (stdout, stderr, code) = invoke(&emulator, &["--method", "ping", "--timeout", "5s", "--json"]);
    called(&mut device);
    let error = "device dev1 did not answer ping, and may have run it or may still run it: its connection \
                 ended, or it took longer than 5 s, which --timeout sets";
    let line =
        format!("{{\"event\":\"failed\",\"deviceId\":\"dev1\",\"method\":\"ping\",\"error\":\"{error}\"}}\n");
    assert_eq!((stdout, stderr, code), (line, format!("c2d-agent: {error}\n"), Some(4)));

    // A device that took the call and went away may have run it. A script must not take this for an absent device.
    std::thread::scope(|scope| {
        let caller = scope.spawn(|| invoke(&emulator, &["--method", "reboot"]));
        called(&mut device);
        drop(device);
        let (_, stderr, code) = caller.join().expect("an end");
        assert!(stderr.contains("may have run it") && code == Some(4), "{stderr}");
    });
}

#[test]
fn wrong_arguments_call_nobody() {
    let emulator = Emulator::start();
    for (arguments, part) in [
        (&["--method", "m", "--data", "on"][..], "the payload is not JSON: text needs quotes of its own"),
        (&["--method", ""], "--method is empty"),
        (&["--method", "m", "--timeout", "4s"], "must be whole seconds, from 5s to 300s"),
        (&["--method", "m", "--connect-timeout", "1500ms"], "must be whole seconds, from 0s to 300s"),
        (&["--method", "m", "--module", "a/b"], "\"a/b\" is not a module id"),
        (&["--method", "m", "--file", "/nonexistent/x"], "cannot read the payload from /nonexistent/x"),
        (&["--method", "m", "--data", "1", "--file", "-"], "cannot be used with"),
        (&["--method", "m", "--transport", "amqp"], "[possible values: https]"),
    ] {
        let (stdout, stderr, code) = invoke(&emulator, arguments);
        assert!(
            stdout.is_empty() && stderr.contains(part) && code == Some(2),
            "{arguments:?}: {code:?} {stderr}"
        );
    }
    let file = tempfile::NamedTempFile::new().expect("a file");
    file.as_file().set_len(128 * 1024 + 1).expect("long");
    let path = file.path().to_str().expect("UTF-8");
    let (_, stderr, code) = invoke(&emulator, &["--method", "m", "--file", path]);
    assert!(stderr.contains("the payload has more than 128 KiB") && code == Some(2), "{stderr}");
    let expired = "SharedAccessSignature sr=localhost&sig=Yg%3D%3D&se=1700000000&skn=service";
    let expired = format!("HostName=localhost;SharedAccessKeyName=service;SharedAccessSignature={expired}");
    for command in
        ["invoke-method --method m --json --device dev1", "twin get --device dev1", "c2d-purge --device dev1"]
    {
        let arguments: Vec<_> = command.split(' ').collect();
        let mut command = back_end(&emulator, &arguments);
        let (_, stderr, code) = seen(&run(command.env("C2D_SERVICE_CONNECTION_STRING", &expired)));
        assert!(
            stderr.contains("expired at 2023-11-14T22:13:20Z") && code == Some(1),
            "{command:?}: {stderr}"
        );
    }
    let mut unknown = back_end(&emulator, &["invoke-method", "--device", "nope", "--method", "m"]);
    let (_, stderr, code) = seen(&run(&mut unknown));
    assert_eq!(
        (stderr.as_str(), code),
        ("c2d-agent: the hub knows no device \"nope\": check --device\n", Some(1))
    );
}
