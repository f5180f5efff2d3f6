//! `--job` of `invoke-method` and `twin patch`, and `jobs`, as a user sees them, against the emulator.
//!
//! Owns: nothing. Must not know: how a job goes on.

use std::path::Path;

use serde_json::Value;

use crate::c2d_send_outcome::server;
use crate::emulator_methods::{called, listening, respond};
use crate::emulator_query::patch;
use crate::harness::{Emulator, Process, binary, run};
use crate::invoke_method::{back_end, seen};
use crate::json_lines::json_lines;

fn asked(emulator: &Emulator, arguments: &[&str]) -> (String, String, Option<i32>) {
    seen(&run(back_end(emulator, arguments).env("XDG_STATE_HOME", emulator.state.join("xdg"))))
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// The id in the first line, `job ID is …`.
fn id(stdout: &str) -> &str {
    stdout.split(' ').nth(1).expect("an id")
}

#[test]
fn a_job_patches_the_twins_of_a_condition_and_can_be_shown_again() {
    let emulator = Emulator::start_with(&["--device", "dev1", "--device", "dev2", "--device", "dev3"]);
    for device in ["dev2", "dev3"] {
        patch(&emulator, device, &serde_json::json!({ "tags": { "site": "b43" } }));
    }
    let job = ["twin", "patch", "--query", "tags.site = 'b43'", "--desired", "{\"led\": \"on\"}", "--job"];
    let (stdout, stderr, code) = asked(&emulator, &job);
    assert_eq!((stderr.as_str(), code), ("", Some(0)));
    let id = id(&stdout);
    let ended = format!(
        "job {id} is completed: ended at 2 of 2 devices, 0 of them with a failure\ndev2  done\ndev3  done\n        2  \
         done\n"
    );
    assert!(stdout.starts_with(&format!("job {id} is queued\n")) && stdout.ends_with(&ended), "{stdout}");
    let (twin, ..) = asked(&emulator, &["twin", "get", "--device", "dev3", "--json"]);
    let twin: Value = serde_json::from_str(&twin).expect("JSON");
    assert_eq!(twin["properties"]["desired"]["led"], "on");

    assert_eq!(asked(&emulator, &["jobs", "show", id]), (ended, String::new(), Some(0)));
    let (_, stderr, code) = asked(&emulator, &["jobs", "cancel", id]);
    assert!(stderr.contains("localhost") && stderr.contains("refuses the job (status 409: "), "{stderr}");
    assert_eq!(code, Some(1));
    let (_, stderr, code) = asked(&emulator, &["jobs", "show", "it's gone"]);
    let words = "c2d-agent: the hub knows no job \"it's gone\": check its id; a hub keeps jobs for 30 days\n";
    assert_eq!((stderr.as_str(), code), (words, Some(1)));
}

#[test]
fn a_job_calls_the_devices_of_a_list_and_tells_which_have_failed() {
    let emulator = Emulator::start_with(&["--device", "dev1", "--device", "dev2"]);
    let mut device = listening(&emulator);
    let list = emulator.state.join("devices.txt");
    std::fs::write(&list, "dev1\ndev2\n").expect("written");
    let arguments = ["invoke-method", "--devices-from", text(&list), "--method", "re boot", "--job"];
    let payload = ["--data", "{\"n\": 18446744073709551616}", "--timeout", "20s", "--json"];
    let mut command = back_end(&emulator, &[&arguments[..], &payload].concat());
    let process = Process::spawn(&mut command);
    let (name, rid, body) = called(&mut device);
    // The payload is the device's own: a number that no parser of the way could keep.
    assert_eq!((name.as_str(), body.as_str()), ("re%20boot", "{\"n\": 18446744073709551616}"));
    respond(&mut device, "201", &rid, "{\"a\": 2}");
    assert_eq!(process.wait_exit().code(), Some(3), "{}", process.stderr.text());
    let lines = json_lines(&process.stdout.text());
    let of = |event: &str| lines.iter().filter(|line| line["event"] == event).collect::<Vec<_>>();
    let jobs = of("job");
    let last = jobs.last().expect("a state");
    assert_eq!(
        (&last["status"], &last["devices"], &last["succeeded"], &last["failed"]),
        (&"completed".into(), &2.into(), &1.into(), &1.into())
    );
    let results = of("result");
    assert_eq!(results[0]["outcome"]["deviceMethodResponse"]["status"], 201);
    assert_eq!(
        (&results[1]["deviceId"], &results[1]["error"]["code"]),
        (&"dev2".into(), &"DeviceNotOnline".into())
    );
    let summary = of("summary")[0];
    assert_eq!((&summary["succeeded"], &summary["failed"]), (&1.into(), &1.into()));
    assert_eq!(std::fs::read_to_string(text(&list).to_owned() + ".failed").expect("a list"), "dev2\n");
}

#[test]
fn a_job_goes_on_without_its_caller_who_hears_how_to_look_and_how_to_end_it() {
    let emulator = Emulator::start();
    let _deaf = listening(&emulator);
    let arguments = ["invoke-method", "--query", "deviceId = 'dev1'", "--method", "m", "--job"];
    let process = Process::spawn(&mut back_end(&emulator, &arguments));
    process.stdout.wait_for(" is running: ended at 0 of 1 devices");
    assert_eq!(process.terminate(), Some(1));
    let (stdout, stderr) = (process.stdout.text(), process.stderr.text());
    let id = id(&stdout);
    let words = format!(
        "c2d-agent: interrupted by a signal: the job goes on at the hub; to look: c2d-agent jobs show {id} --wait; to \
         end it: c2d-agent jobs cancel {id}"
    );
    assert_eq!(stderr, words);
    let (stdout, _, code) = asked(&emulator, &["jobs", "show", id]);
    assert!(stdout.starts_with(&format!("job {id} is running: ")) && code == Some(0), "{stdout}");
    let (stdout, _, code) = asked(&emulator, &["jobs", "cancel", id]);
    assert!(stdout.starts_with(&format!("job {id} is cancelled")) && code == Some(0), "{stdout}");
    let (_, stderr, code) = asked(&emulator, &["jobs", "show", id, "--wait"]);
    assert!(stderr.ends_with("c2d-agent: the job is cancelled\n") && code == Some(1), "{stderr}");

    let later = ["twin", "patch", "--query", "*", "--tags", "{}", "--job", "--start", "2999-01-01T00:00:00Z"];
    let (stdout, stderr, code) = asked(&emulator, &later);
    assert!(stdout.contains(" is scheduled\nto look: c2d-agent jobs show "), "{stdout}{stderr}");
    assert_eq!((stderr.as_str(), code), ("", Some(0)));
}

#[test]
fn what_no_job_can_do_is_said_before_one_is_made() {
    let emulator = Emulator::start();
    let list = emulator.state.join("long.txt");
    std::fs::write(&list, (0..1000).map(|n| format!("pump-{n:04}\n")).collect::<String>()).expect("written");
    let work = ["twin", "patch", "--tags", "{}", "--job"];
    for (arguments, words, code) in [
        (
            &["--devices-from", text(&list)][..],
            "the list has 1000 devices, whose ids do not fit into the condition of a job (8000 bytes): select them by a \
             tag with --query, or leave out --job",
            2,
        ),
        (
            &["--query", "SELECT deviceId FROM devices"],
            "--query is a whole query, but a job takes a condition",
            2,
        ),
        (&["--query", "a = 1", "--module", "m"], "cannot be used with", 2),
        (&["--device", "dev1"], "cannot be used with", 2),
        (&["--query", "a = 1", "--start", "tomorrow"], "use a time in UTC, such as 2026-12-31T22:00:00Z", 2),
        (
            &["--query", "a = 1", "--within", "10000000000000000000s"],
            "must be at most 30d, because a hub keeps a job no longer",
            2,
        ),
        (&["--query", "a = ", "--within", "1m"], "the job is failed: ", 1),
    ] {
        let (_, stderr, exit) = asked(&emulator, &[&work, arguments].concat());
        assert!(stderr.contains(words) && exit == Some(code), "{arguments:?}: {exit:?} {stderr}");
    }
}

/// What a job of one device says when the hub gives these answers.
fn with_answers(answers: &[&str]) -> (String, String, Option<i32>) {
    let (port, pem) = server(answers.iter().map(|answer| format!("HTTP/1.1 {answer}")).collect());
    let folder = tempfile::tempdir().expect("a folder");
    let (roots, list) = (folder.path().join("roots.pem"), folder.path().join("l.txt"));
    std::fs::write(&roots, pem).and_then(|()| std::fs::write(&list, "dev1\n")).expect("written");
    let mut command = binary();
    command.args(["twin", "patch", "--tags", "{}", "--job", "--devices-from"]).arg(list);
    command.arg("--ca-file").arg(roots).env("C2D_HTTPS_PORT", port.to_string());
    let key = "HostName=localhost;SharedAccessKeyName=service;SharedAccessKey=c2VydmljZQ==";
    seen(&run(command.env("C2D_SERVICE_CONNECTION_STRING", key)))
}

#[test]
fn a_job_that_may_have_been_scheduled_can_be_looked_for() {
    let (_, stderr, code) = with_answers(&["502 Bad Gateway\r\n\r\n"]);
    let words = "; the job may or may not be scheduled; to look before you do it again: c2d-agent jobs show ";
    let id = stderr.split_once(words).expect(&stderr).1.trim_end();
    assert!(uuid::Uuid::parse_str(id).is_ok() && code == Some(1), "{stderr}");
    // What the hub has refused is not scheduled.
    let (_, stderr, code) = with_answers(&["429 Too Many Requests\r\n\r\n"]);
    assert!(stderr.contains("takes no further job now (429)") && code == Some(1), "{stderr}");
    assert!(!stderr.contains("may or may not"), "{stderr}");
}

#[test]
fn failures_that_no_result_shows_yet_decide_the_exit_code() {
    for (failed, succeeded, exit) in [(1, 0, 3), (0, 1, 0)] {
        let counts = format!("\"deviceCount\":1,\"failedCount\":{failed},\"succeededCount\":{succeeded}");
        let job = format!(
            "200 OK\r\n\r\n{{\"jobId\":\"j\",\"status\":\"completed\",\"deviceJobStatistics\":{{{counts}}}}}"
        );
        let (_, stderr, code) = with_answers(&[&job, "200 OK\r\n\r\n[]"]);
        assert!(stderr.contains("the hub shows 0 of 1 results so far, so the lists may lack"), "{stderr}");
        assert_eq!(code, Some(exit), "{counts}: {stderr}");
    }
}
