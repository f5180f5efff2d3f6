//! `invoke-method` and `twin patch` for many devices, as a user sees them.
//!
//! Owns: nothing. Must not know: how calls are paced.

use std::io::{PipeReader, Read as _, Write as _};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::c2d_send::Running;
use crate::emulator_methods::{called, listening, respond};
use crate::harness::{DEADLINE, Emulator, Process, binary, run};
use crate::invoke_method::{back_end, seen};
use crate::json_lines::json_lines;

/// As fast as the hub takes them.
const FAST: [&str; 2] = ["--rate", "100000/s"];

fn ids(count: usize) -> Vec<String> {
    (1..=count).map(|number| format!("pump-{number}")).collect()
}

/// A command of the back end to a hub in this process.
fn command(running: &Running, arguments: &[&str]) -> Command {
    let mut command = binary();
    command.args(arguments).arg("--ca-file").arg(running.file("ca.pem"));
    command.env("C2D_HTTPS_PORT", running.https.port().to_string());
    command.env("C2D_SERVICE_CONNECTION_STRING", running.service_string());
    command.env("XDG_STATE_HOME", running.file("xdg"));
    command
}

fn desired(running: &Running, device: &str) -> Value {
    running.hub.with(|hub, _| hub.twin(device).expect("a twin")["properties"]["desired"].clone())
}

fn listed(running: &Running, list: &str) -> (PathBuf, PathBuf) {
    let path = running.file("pumps.txt");
    std::fs::write(&path, list).expect("written");
    (path, running.file("pumps.txt.failed"))
}

#[test]
fn each_twin_of_a_list_is_patched_and_what_failed_is_a_list_again() {
    let running = Running::with_devices(ids(25));
    let (list, failed) = listed(&running, &format!("gone\n{}\n", ids(25).join("\n")));
    let list = list.to_str().expect("UTF-8");
    let patch = ["twin", "patch", "--devices-from", list, "--desired", "{\"interval\": 30}"];
    let (stdout, stderr, code) = seen(&run(command(&running, &patch).args(FAST)));
    assert_eq!((stderr.as_str(), code), ("", Some(3)));
    let lines: Vec<_> = stdout.lines().collect();
    assert_eq!(lines[0], "patching twins at 26 devices, at most 6000000/min: at least 0 s");
    assert!(lines.contains(&"pump-7  patched: desired version 2"), "{stdout}");
    assert!(lines.contains(&"gone  failed: not known to the hub"), "{stdout}");
    let path = failed.display();
    assert_eq!(
        lines[27..],
        [
            "        1  not known to the hub".to_owned(),
            "       25  patched".to_owned(),
            format!("the devices where it was not done are in {path}, for --devices-from"),
        ]
    );
    assert_eq!(std::fs::read_to_string(&failed).expect("a list"), "gone\n");
    assert!(ids(25).iter().all(|id| desired(&running, id)["interval"] == 30));

    // A patch of tags alone does not speak of desired properties.
    let tags = ["twin", "patch", "--devices-from", list, "--tags", "{\"site\": \"12\"}"];
    let (stdout, ..) = seen(&run(command(&running, &tags).args(FAST)));
    assert!(stdout.lines().any(|line| line == "pump-7  patched"), "{stdout}");

    // A query, with JSON. All succeed, so there is no file.
    let patch = ["twin", "patch", "--query", "properties.desired.interval = 30", "--tags", "{\"a\": 1}"];
    let (stdout, stderr, code) = seen(&run(command(&running, &patch).args(FAST).arg("--json")));
    assert_eq!((stderr.as_str(), code), ("", Some(0)));
    let lines = json_lines(&stdout);
    assert_eq!((&lines[0]["event"], &lines[0]["devices"]), (&"run".into(), &25.into()));
    assert_eq!(lines.iter().filter(|line| line["event"] == "patched").count(), 25);
    let summary = lines.last().expect("a summary");
    assert_eq!(summary["outcomes"], json!([{ "outcome": "patched", "devices": 25 }]));
    assert_eq!((&summary["succeeded"], &summary["failedFile"]), (&25.into(), &Value::Null));
}

#[test]
fn a_dry_run_does_nothing_and_a_list_may_come_from_standard_input() {
    let running = Running::with_devices(ids(2));
    let (list, _) = listed(&running, "pump-1\ngone\n");
    let patch = ["twin", "patch", "--devices-from", "-", "--desired", "{\"a\": 1}"];
    let from_stdin = |arguments: &[&str]| {
        let mut command = command(&running, &[&patch[..], arguments].concat());
        command.stdin(std::fs::File::open(&list).expect("the list"));
        let process = Process::spawn_with_stdin(&mut command);
        let code = process.wait_exit().code();
        (process.stdout.text(), process.stderr.text(), code)
    };
    let (stdout, stderr, code) = from_stdin(&["--dry-run", "--rate", "1/min"]);
    let words = "dry run: patching twins at 2 devices, at most 1.0/min: at least 2 min";
    assert_eq!((stdout.as_str(), stderr.as_str(), code), (words, "", Some(0)));
    assert!(desired(&running, "pump-1").get("a").is_none());
    let (stdout, _, code) = from_stdin(&["--json"]);
    let summary = json_lines(&stdout).pop().expect("a summary");
    let file = PathBuf::from(summary["failedFile"].as_str().expect("a file"));
    assert!(file.starts_with(running.file("xdg/c2d-agent/runs")), "{file:?}");
    assert_eq!(std::fs::read_to_string(file).expect("a list"), "gone\n");
    assert_eq!((&desired(&running, "pump-1")["a"], code), (&1.into(), Some(3)));
}

#[test]
fn a_signal_ends_the_run_and_the_rest_is_in_the_list() {
    let running = Running::with_devices(ids(3));
    let (list, failed) = listed(&running, "{\"deviceId\":\"pump-1\",\"x\":1}\n{\"deviceId\":\"pump-2\"}");
    let list = list.to_str().expect("UTF-8");
    let patch = ["twin", "patch", "--devices-from", list, "--desired", "{\"a\": 1}", "--rate", "1/min"];
    let process = Process::spawn(&mut command(&running, &patch));
    process.stdout.wait_for("pump-1  patched");
    assert_eq!(process.terminate(), Some(1));
    assert_eq!(
        process.stderr.text(),
        "stopping, which takes up to 5 s; a second signal ends at once\nc2d-agent: interrupted by a signal"
    );
    let printed = process.stdout.text();
    assert!(printed.contains("        1  patched\n        1  not called\n"), "{printed}");
    assert_eq!(std::fs::read_to_string(failed).expect("a list"), "{\"deviceId\":\"pump-2\"}\n");
    assert!(desired(&running, "pump-2").get("a").is_none());
}

#[test]
fn each_device_is_called_once_and_the_table_says_what_became_of_it() {
    let emulator = Emulator::start_with(&["--device", "dev1", "--device", "dev2"]);
    let mut device = listening(&emulator);
    let list = emulator.state.join("devices.txt");
    std::fs::write(&list, "dev1\ndev2\ngone").expect("written");
    let list = list.to_str().expect("UTF-8");
    let answered = |device: &mut _, status: &str, arguments: &[&str]| {
        std::thread::scope(|scope| {
            let call = ["invoke-method", "--devices-from", list, "--method", "ping"];
            let mut command = back_end(&emulator, &[&call[..], arguments].concat());
            let caller = scope.spawn(move || seen(&run(&mut command)));
            let (_, rid, _) = called(device);
            respond(device, status, &rid, "{\"up\": true}");
            caller.join().expect("an end")
        })
    };
    let (stdout, stderr, code) = answered(&mut device, "200", &[]);
    assert_eq!((stderr.as_str(), code), ("", Some(3)));
    let mut lines: Vec<_> = stdout.lines().collect();
    assert_eq!(lines[0], "calling ping at 3 devices, at most 2400/min: at least 0 s");
    lines[1..4].sort_unstable();
    assert_eq!(
        lines[1..7],
        [
            "dev1  200  {\"up\": true}",
            "dev2  failed: not connected, or takes no methods",
            "gone  failed: not known to the hub",
            "        1  answered with status 200",
            "        1  not connected, or takes no methods: --connect-timeout waits for them",
            "        1  not known to the hub",
        ]
    );
    let failed = std::fs::read_to_string(format!("{list}.failed")).expect("a list");
    assert_eq!(failed, "dev2\ngone\n");

    std::fs::write(list, "dev1").expect("written");
    let elsewhere = emulator.state.join("elsewhere");
    let to = ["--json", "--failed", elsewhere.to_str().expect("UTF-8")];
    let (stdout, _, code) = answered(&mut device, "500", &to);
    let lines = json_lines(&stdout);
    assert_eq!(
        (&lines[1]["event"], &lines[1]["status"], &lines[1]["payload"]["up"]),
        (&"answered".into(), &500.into(), &true.into())
    );
    assert_eq!((&lines[2]["failed"], code), (&1.into(), Some(3)));
    assert_eq!(std::fs::read_to_string(&elsewhere).expect("a list"), "dev1\n");
}

#[test]
fn what_cannot_be_meant_is_said_before_anything_is_done() {
    let running = Running::with_devices(ids(1));
    let (list, _) = listed(&running, "pump-1\npump-1\n");
    let list = list.to_str().expect("UTF-8");
    for (arguments, words) in [
        (&["twin", "patch", "--devices-from", list, "--tags", "{}"][..], "\"pump-1\" is on line 1, too"),
        (&["twin", "patch", "--tags", "{}"], "required arguments were not provided"),
        (&["twin", "patch", "--device", "a", "--devices-from", list, "--tags", "{}"], "cannot be used with"),
        (&["twin", "patch", "--device", "a", "--tags", "{}", "--rate", "1/s"], "cannot be used with"),
        (&["twin", "patch", "--query", "a = 1", "--tags", "{}", "--etag", "x"], "cannot be used with"),
        (
            &["invoke-method", "--devices-from", "-", "--file", "-", "--method", "m"],
            "--devices-from and --file both read standard input",
        ),
        (&["invoke-method", "--query", "deviceId =", "--method", "m"], "the hub refuses the query: "),
        (
            &["invoke-method", "--query", "deviceId = 'x'", "--method", "m"],
            "the query finds no device: SELECT",
        ),
        (&["invoke-method", "--query", "a = 1", "--method", "m", "--rate", "fast"], "such as 100/min or 5/s"),
    ] {
        let (stdout, stderr, code) = seen(&run(&mut command(&running, arguments)));
        assert!(
            stdout.is_empty() && stderr.contains(words) && code == Some(2),
            "{arguments:?}: {code:?} {stderr}"
        );
    }
}

#[test]
fn devices_where_it_may_have_been_done_are_in_a_list_of_their_own() {
    let emulator = Emulator::start_with(&["--device", "dev1", "--device", "dev2"]);
    let mut device = listening(&emulator);
    let list = emulator.state.join("devices.txt");
    std::fs::write(&list, "dev1\ndev2\n").expect("written");
    let list = list.to_str().expect("UTF-8");
    let call = ["invoke-method", "--devices-from", list, "--method", "open-valve"];
    let process = Process::spawn(&mut back_end(&emulator, &call));
    called(&mut device);
    // It has the call, and may have opened the valve.
    drop(device);
    assert_eq!(process.wait_exit().code(), Some(3), "{}", process.stderr.text());
    let printed = process.stdout.text();
    let end = format!(
        "        1  no answer in time: it may or may not have been done\n        1  not connected, or takes no methods: \
         --connect-timeout waits for them\n\
         the devices where it was not done are in {list}.failed, for --devices-from\n\
         in {list}.unknown are the devices where it may have been done: look at each of them before you do it again"
    );
    assert!(printed.ends_with(&end), "{printed}");
    let kept = |ending: &str| std::fs::read_to_string(format!("{list}.{ending}")).expect("a list");
    assert_eq!([kept("failed"), kept("unknown")], ["dev2\n", "dev1\n"]);
}

#[test]
fn a_list_that_cannot_be_written_is_told_before_the_first_call_or_after_the_sums() {
    let running = Running::with_devices(ids(2));
    let (list, failed) = listed(&running, "pump-1\npump-2\n");
    let list = list.to_str().expect("UTF-8");
    let patch = ["twin", "patch", "--devices-from", list, "--desired", "{\"a\": 1}", "--rate", "1/min"];
    let (stdout, stderr, code) =
        seen(&run(command(&running, &patch).args(["--failed", "/proc/none/failed"])));
    assert!(stderr.contains("/proc/none/failed") && stderr.contains("with --failed"), "{stderr}");
    assert_eq!((stdout.lines().count(), code), (1, Some(2)));
    assert!(desired(&running, "pump-1").get("a").is_none());

    let process = Process::spawn(&mut command(&running, &patch));
    process.stdout.wait_for("pump-1  patched");
    std::fs::create_dir(&failed).expect("a folder in the way");
    assert_eq!(process.terminate(), Some(1));
    let (printed, told) = (process.stdout.text(), process.stderr.text());
    assert!(printed.ends_with("        1  patched\n        1  not called"), "{printed}");
    assert!(told.contains("c2d-agent: interrupted by a signal"), "{told}");
    assert!(told.contains(&format!("cannot write the devices to {}", failed.display())), "{told}");
}

#[test]
fn a_list_of_an_earlier_run_is_told_from_that_of_this_one() {
    let running = Running::with_devices(ids(1));
    let (list, failed) = listed(&running, "pump-1\n");
    std::fs::write(&failed, "pump-7\n").expect("written");
    let list = list.to_str().expect("UTF-8");
    let patch = ["twin", "patch", "--devices-from", list, "--desired", "{\"a\": 1}"];
    let (_, stderr, code) = seen(&run(&mut command(&running, &patch)));
    assert_eq!(stderr, format!("{} is of an earlier run, not of this one\n", failed.display()));
    assert_eq!((std::fs::read_to_string(failed).expect("a list").as_str(), code), ("pump-7\n", Some(0)));
}

#[test]
fn calls_that_end_after_the_output_has_failed_are_in_the_list() {
    let running = Running::with_devices(ids(1));
    let missing: String = (10..60).map(|number| format!("gone-{number}\n")).collect();
    let (list, failed) = listed(&running, &missing);
    let list = list.to_str().expect("UTF-8");
    let patch = ["twin", "patch", "--devices-from", list, "--desired", "{\"a\": 1}"];
    let of = command(&running, &patch);
    // There is room for the list, and not for a line of each device.
    let mut limited = Command::new("sh");
    limited.args(["-c", "ulimit -f 1; exec \"$@\"", "sh"]).arg(of.get_program());
    limited.args(of.get_args()).args(FAST);
    limited.envs(of.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let out = std::fs::File::create(running.file("out")).expect("a file");
    limited.stdin(Stdio::null()).stdout(out).stderr(Stdio::piped());
    let output = limited.spawn().expect("it starts").wait_with_output().expect("it ends");
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(told.contains("cannot write to standard output: ") && output.status.code() == Some(1), "{told}");
    assert_eq!(std::fs::read_to_string(failed).expect("a list"), missing);
}

/// What a pipe gives to a program that reads it once.
fn pipe(text: &str) -> PipeReader {
    let (reader, mut writer) = std::io::pipe().expect("a pipe");
    writer.write_all(text.as_bytes()).expect("a pipe holds 64 KiB");
    reader
}

#[test]
fn a_list_or_a_connection_string_may_come_through_a_pipe() {
    let running = Running::with_devices(ids(2));
    let folder = running.file("xdg/c2d-agent/runs");
    let piped = |arguments: &[&str], text: &str| {
        let process = Process::spawn_with_stdin(command(&running, arguments).stdin(pipe(text)));
        let code = process.wait_exit().code();
        (process.stdout.text(), process.stderr.text(), code)
    };
    let patch = ["twin", "patch", "--devices-from", "/dev/stdin", "--desired", "{\"a\": 1}", "--json"];
    let (stdout, stderr, code) = piped(&patch, "pump-1\ngone\n");
    assert_eq!((stderr.as_str(), code), ("", Some(3)));
    let summary = json_lines(&stdout).pop().expect("a summary");
    let file = PathBuf::from(summary["failedFile"].as_str().expect("a file"));
    assert!(file.starts_with(&folder), "{file:?}");
    let (stdout, stderr, code) = piped(&["c2d-send", "--devices-from", "/dev/stdin"], "pump-1\n");
    assert_eq!((stderr.as_str(), code), ("", Some(0)));
    assert!(stdout.contains(&format!("journal {}/", folder.display())), "{stdout}");

    let string = running.service_string();
    let named = ["--connection-string-file", "/dev/stdin"];
    for arguments in [
        &["twin", "patch", "--query", "deviceId != ''", "--desired", "{\"b\": 2}"][..],
        &["c2d-send", "--query", "deviceId != ''"],
    ] {
        let (stdout, stderr, code) = piped(&[arguments, &named].concat(), &string);
        assert_eq!((stderr.as_str(), code), ("", Some(0)), "{arguments:?}: {stdout}");
    }
    assert!(ids(2).iter().all(|id| desired(&running, id)["b"] == 2));
    let owner = running.file("iothubowner.connection-string");
    let owner = std::fs::read_to_string(owner).expect("a connection string");
    let (stdout, stderr, code) = piped(&[&["devices", "show", "pump-1"], &named[..]].concat(), &owner);
    assert_eq!((stderr.as_str(), code), ("", Some(0)), "{stdout}");
}

/// Sends signals until the program ends.
fn interrupted(mut program: Child) -> Option<i32> {
    let pid = rustix::process::Pid::from_child(&program);
    let end = Instant::now() + DEADLINE;
    loop {
        rustix::process::kill_process(pid, Signal::INT).expect("it is there");
        if let Some(status) = program.try_wait().expect("a status") {
            return status.code();
        }
        assert!(Instant::now() < end, "signals do not end it");
        std::thread::park_timeout(Duration::from_millis(5)); // two signals that come together count as one: send again
    }
}

#[test]
fn signals_end_commands_whose_output_is_not_read() {
    let running = Running::with_devices(ids(400));
    let spawned = |mut command: Command, stdout: std::io::PipeWriter| {
        let command = command.stdin(Stdio::null()).stdout(stdout).stderr(Stdio::null());
        command.spawn().expect("it starts")
    };
    // More than a pipe holds.
    let (mut reader, writer) = std::io::pipe().expect("a pipe");
    let query = spawned(command(&running, &["query", "SELECT * FROM devices", "--json"]), writer);
    reader.read_exact(&mut [0]).expect("a byte");
    assert_eq!(interrupted(query), Some(1));

    // The first line fits, and the second one does not.
    let first = "patching twins at 1 device, at most 6000000/min: at least 0 s\n";
    let (_unread, mut writer) = std::io::pipe().expect("a pipe");
    writer.write_all(&vec![b' '; 64 * 1024 - first.len()]).expect("a pipe holds 64 KiB");
    let (list, _) = listed(&running, "pump-1\n");
    let list = list.to_str().expect("UTF-8");
    let patch = ["twin", "patch", "--devices-from", list, "--desired", "{\"a\": 1}"];
    let mut patch = command(&running, &patch);
    patch.args(FAST);
    let patch = spawned(patch, writer);
    let end = Instant::now() + DEADLINE;
    while desired(&running, "pump-1").get("a").is_none() {
        assert!(Instant::now() < end, "the twin is not patched");
        std::thread::park_timeout(Duration::from_millis(5)); // no event to wait for with a deadline: poll
    }
    assert_eq!(interrupted(patch), Some(1));
}
