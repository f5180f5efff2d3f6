//! How a run of `c2d-send` ends, is resumed and is told: what was refused or postponed, output that fails, the size of
//! the process.
//!
//! Owns: nothing. Must not know: how a run is sent.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::Instant;

use c2d_agent::emulator::hub::{Fault, FaultOrder};
use rustix::process::Signal;

use crate::fleet::{FAST, ids, stderr, stdout, to_list, waiting, with_list};
use crate::harness::{Process, Proxy, binary, run};
use crate::json_lines::json_lines;
use crate::service_peer::ServicePeer;

#[test]
fn a_run_that_goes_on_counts_what_was_refused_before() {
    let (running, path) = with_list(2, "nobody\npump-1\npump-2\n");
    let journal = running.file("run.journal");
    let mut command = running.sender();
    command.arg("--devices-from").arg(&path).args(["--rate", "1/min", "--json", "--journal"]).arg(&journal);
    let process = Process::spawn(&mut command);
    process.stdout.wait_for("\"refused\"");
    assert_eq!(process.terminate(), Some(1));
    for open in [2, 0] {
        let rest = run(running.sender().arg("--resume").arg(&journal).args(FAST).arg("--json"));
        assert_eq!(rest.status.code(), Some(3), "{}", stderr(&rest));
        let lines = json_lines(&stdout(&rest));
        assert_eq!(lines[0]["messages"], open, "what is left");
        let summary = lines.last().expect("a summary");
        assert_eq!(
            ["accepted", "refused", "postponed", "open"].map(|name| summary[name].as_u64()),
            [Some(2), Some(1), Some(0), Some(0)],
            "{summary}"
        );
        let file = summary["refusedFile"].as_str().expect("a file");
        assert_eq!(std::fs::read_to_string(file).expect("a list"), "nobody\n");
    }
}

#[test]
fn a_full_queue_postpones_a_message_and_a_run_that_goes_on_sends_it_with_the_same_id() {
    let (running, path) = with_list(3, "pump-1\npump-2\npump-3\n");
    let full = FaultOrder { device_id: Some("pump-2".into()), fault: Fault::QueueFull };
    running.hub.with(|hub, _| hub.order_faults(&[full])).expect("set");
    let journal = running.file("run.journal");
    let sent = run(to_list(&running, &path).arg("--journal").arg(&journal));
    let text = stdout(&sent);
    assert_eq!(sent.status.code(), Some(3), "{text}{}", stderr(&sent));
    assert!(
        text.contains("        1  not taken now, the first: the queue of device \"pump-2\" is full"),
        "{text}"
    );
    let last = text.lines().last().expect("a line");
    let remedy = format!(
        "what was not taken now can be sent with the same ids: c2d-agent c2d-send --resume {}",
        journal.display()
    );
    assert!(last.starts_with(&remedy), "{text}");
    running.hub.with(|hub, _| hub.clear_faults("pump-2", None));
    let rest = run(running.sender().arg("--resume").arg(&journal).args(FAST).arg("--json"));
    assert_eq!(rest.status.code(), Some(0), "{}", stderr(&rest));
    let lines = json_lines(&stdout(&rest));
    let accepted: Vec<_> = lines.iter().filter(|line| line["event"] == "accepted").collect();
    assert!(accepted.len() == 1 && accepted[0]["deviceId"] == "pump-2", "{lines:?}");
    assert_eq!(waiting(&running, "pump-2"), [accepted[0]["messageId"].as_str().expect("an id")]);
    assert_eq!(waiting(&running, "pump-1").len(), 1);
}

#[test]
fn all_that_a_query_finds_get_one_message_from_a_hub_that_throttles_in_the_middle() {
    const DEVICES: usize = 1_200;
    let (running, _) = with_list(DEVICES, "");
    let mut command = running.sender();
    command.args(["--query", "STARTSWITH(deviceId, 'pump-')", "--data", "{deviceId}", "--json"]).args(FAST);
    command.arg("--journal").arg(running.file("run.journal"));
    let order = FaultOrder { device_id: Some("pump-600".into()), fault: Fault::Throttle };
    running.hub.with(|hub, _| hub.order_faults(&[order])).expect("set");
    let process = Process::spawn(&mut command);
    process.stdout.wait_for("\"throttled\"");
    running.hub.with(|hub, _| hub.clear_faults("pump-600", None));
    assert_eq!(process.wait_exit().code(), Some(0), "{}", process.stderr.text());
    let lines = json_lines(&process.stdout.text());
    let throttled = lines.iter().find(|line| line["event"] == "throttled").expect("it is told");
    assert_eq!((&throttled["perMinute"], &throttled["secondsLeft"]), (&3_000_000.0.into(), &10.into()));
    for device in ids(DEVICES) {
        let bodies: Vec<_> = running
            .hub
            .with(|hub, _| hub.queued(&device).map(|queued| queued.message.body.clone()).collect());
        assert_eq!(bodies, [device.as_bytes()], "{device}");
    }
}

#[test]
fn standard_output_that_fails_is_told_and_hides_nothing() {
    let (running, path) = with_list(3, "pump-1\npump-2\npump-3\n");
    let mut command = to_list(&running, &path);
    command.stdin(Stdio::null()).stdout(File::create("/dev/full").expect("a device")).stderr(Stdio::piped());
    let output = command.spawn().expect("it starts").wait_with_output().expect("it ends");
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("standard output cannot be written"), "{}", stderr(&output));
    for device in ids(3) {
        assert_eq!(waiting(&running, &device).len(), 1, "{device}");
    }
    // A reader that has seen enough is no error.
    let program = binary();
    let mut command = Command::new("sh");
    command.args(["-c", "\"$@\" | head -n 1; exit 0", "sh"]).arg(program.get_program());
    let of = to_list(&running, &path);
    command.args(of.get_args());
    for (name, value) in of.get_envs().filter_map(|(name, value)| Some((name, value?))) {
        command.env(name, value);
    }
    let output = run(&mut command);
    assert_eq!(stderr(&output), "");
    for device in ids(3) {
        assert_eq!(waiting(&running, &device).len(), 2, "{device}");
    }
}

#[test]
fn a_connection_that_is_cut_again_and_again_costs_no_message() {
    const DEVICES: usize = 600;
    let (running, path) = with_list(DEVICES, &ids(DEVICES).join("\n"));
    let proxy = Proxy::to(running.amqp);
    let port = |port: u16| format!("HostName=localhost:{port};");
    let service = running.service_string().replace(&port(running.amqp.port()), &port(proxy.address.port()));
    let mut command = running.sender();
    command.env("C2D_SERVICE_CONNECTION_STRING", service).arg("--devices-from").arg(&path).arg("--json");
    let process = Process::spawn(command.args(FAST));
    for cuts in 1..=4 {
        process.stdout.wait_for_nth("\"accepted\"", cuts * 100);
        proxy.cut();
        process.stdout.wait_for_nth("\"lost\"", cuts);
    }
    assert_eq!(process.wait_exit().code(), Some(0), "{}", process.stderr.text());
    let mut doubled = 0;
    for device in ids(DEVICES) {
        let messages = waiting(&running, &device);
        assert!(
            !messages.is_empty() && messages.iter().all(|id| *id == messages[0]),
            "{device}: {messages:?}"
        );
        doubled += messages.len() - 1;
    }
    assert!(doubled <= 4 * 16, "{doubled}");
    let lines = process.stdout.all();
    let accepted = lines.iter().filter(|line| line.contains("\"accepted\",")).count();
    assert_eq!(accepted, DEVICES, "each is told once");
}

#[test]
fn a_disk_that_is_full_in_the_middle_ends_a_run_that_goes_on_when_there_is_room() {
    const DEVICES: usize = 200;
    let (running, path) = with_list(DEVICES, &ids(DEVICES).join("\n"));
    let journal = running.file("run.journal");
    let of = to_list(&running, &path);
    let mut command = Command::new("sh");
    // 16 KiB: room for the run, and for the answers to some of its messages.
    command.args(["-c", "ulimit -f 32; exec \"$@\"", "sh"]).arg(of.get_program()).args(of.get_args());
    command.arg("--journal").arg(&journal);
    for (name, value) in of.get_envs().filter_map(|(name, value)| Some((name, value?))) {
        command.env(name, value);
    }
    let failed = run(&mut command);
    let said = stderr(&failed);
    assert_eq!(failed.status.code(), Some(1), "{said}");
    let words = format!("make room, then go on with --resume {}; what is sent until then", journal.display());
    assert!(said.contains("run.journal cannot be written (") && said.contains(&words), "{said}");
    let rest = run(running.sender().arg("--resume").arg(&journal).args(FAST));
    assert!(rest.status.success() && stdout(&rest).contains("      200  accepted"), "{rest:?}");
    for device in ids(DEVICES) {
        let messages = waiting(&running, &device);
        assert!(
            !messages.is_empty() && messages.iter().all(|id| *id == messages[0]),
            "{device}: {messages:?}"
        );
    }
}

#[test]
fn a_journal_that_cannot_be_written_whole_is_removed_again() {
    let (running, path) = with_list(0, &ids(2_000).join("\n"));
    let journal = running.file("run.journal");
    let of = to_list(&running, &path);
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -f 1; exec \"$@\"", "sh"]).arg(of.get_program()).args(of.get_args());
    command.arg("--journal").arg(&journal);
    for (name, value) in of.get_envs().filter_map(|(name, value)| Some((name, value?))) {
        command.env(name, value);
    }
    let failed = run(&mut command);
    let said = stderr(&failed);
    assert_eq!(failed.status.code(), Some(1), "{said}");
    assert!(
        said.contains("run.journal cannot be written (") && said.contains("so nothing was sent: make room"),
        "{said}"
    );
    assert!(!journal.exists());
}

#[test]
fn a_list_of_what_was_refused_keeps_the_numbers_that_the_messages_have() {
    let (running, path) = with_list(1, "pump-1\nnobody\n");
    let sent =
        run(to_list(&running, &path).args(["--data", "{n} of {run}", "--message-id", "{run}/{n}", "--json"]));
    // A slash is no part of an id.
    assert!(
        sent.status.code() == Some(2) && stderr(&sent).contains("line 1 (pump-1): the message id is "),
        "{sent:?}"
    );
    let sent =
        run(to_list(&running, &path).args(["--data", "{n} of {run}", "--message-id", "{run}-{n}", "--json"]));
    let lines = json_lines(&stdout(&sent));
    let id = lines[0]["run"].as_str().expect("a run");
    assert_eq!(waiting(&running, "pump-1"), [format!("{id}-1")]);
    assert!(!stderr(&sent).contains("have no UUID"), "{}", stderr(&sent));
    let file = lines.last().expect("a summary")["refusedFile"].as_str().expect("a file");
    let list = std::fs::read_to_string(file).expect("a list");
    assert_eq!(list, "{\"deviceId\":\"nobody\",\"n\":2}\n");
}

#[test]
fn a_second_signal_ends_a_run_at_once() {
    let dir = tempfile::tempdir().expect("a directory");
    let peer = ServicePeer::playing(dir.path(), |_, session| {
        let link = session.asked_for_link();
        session.attach(&link);
        // It answers nothing.
        session.wait_for_close();
    });
    let mut command = binary();
    command
        .args(["c2d-send", "--device", "dev1", "--count", "3", "--journal"])
        .arg(dir.path().join("journal"));
    command.arg("--ca-file").arg(&peer.ca_file).env("C2D_SERVICE_CONNECTION_STRING", peer.service_string());
    let process = Process::spawn(&mut command);
    process.stdout.wait_for("journal ");
    process.signal(Signal::INT);
    process.stderr.wait_for("a second signal ends at once");
    let begun = Instant::now();
    process.signal(Signal::INT);
    assert_eq!(process.wait_exit().code(), Some(1));
    assert!(begun.elapsed().as_secs() < 4, "{:?}", begun.elapsed());
}

#[test]
fn a_run_over_100_000_devices_stays_below_64_mib() {
    const MOST_KIB: u64 = 64 * 1024;
    let nobody = |number: usize| format!("nobody-{number}");
    let list = ["pump-1".to_owned()].into_iter().chain((2..100_000).map(nobody)).chain(["pump-2".to_owned()]);
    let (running, path) = with_list(2, &list.collect::<Vec<_>>().join("\n"));
    let mut command = running.sender();
    command.arg("--devices-from").arg(&path).args(["--rate", "1/min", "--data", "x{n}", "--json"]);
    let process = Process::spawn(&mut command);
    process.stdout.wait_for("\"accepted\"");
    assert!(peak(&process) < MOST_KIB, "{} KiB", peak(&process));
    assert_eq!(process.terminate(), Some(1));
    let said = process.stdout.wait_for("\"summary\"");
    assert!(said.contains("\"accepted\":1,\"refused\":0,\"postponed\":0,\"open\":99999"), "{said}");

    // As if nearly all had been refused.
    let journal = json_lines(&process.stdout.text())[1]["file"].as_str().expect("a file").to_owned();
    let mut file = OpenOptions::new().append(true).open(&journal).expect("a journal");
    let error = "x".repeat(200);
    let line = |number| {
        format!(
            "{{\"line\":\"settled\",\"number\":{number},\"device\":\"{}\",\"at\":\"\",\"state\":\"refused\",\
             \"condition\":\"c\",\"error\":\"{error}\"}}\n",
            nobody(number)
        )
    };
    let lines: String = (2..100_000).map(line).collect();
    file.write_all(lines.as_bytes()).expect("written");
    let order = FaultOrder { device_id: Some("pump-2".into()), fault: Fault::Throttle };
    running.hub.with(|hub, _| hub.order_faults(&[order])).expect("set");
    let process = Process::spawn(running.sender().arg("--resume").arg(&journal).arg("--json"));
    process.stdout.wait_for("\"throttled\"");
    assert!(peak(&process) < MOST_KIB, "{} KiB", peak(&process));
    assert_eq!(process.terminate(), Some(1));
    let said = process.stdout.wait_for("\"summary\"");
    assert!(said.contains("\"accepted\":1,\"refused\":99998,\"postponed\":0,\"open\":1"), "{said}");
}

/// The most memory that a process has had so far, in KiB.
fn peak(process: &Process) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.id())).expect("a status");
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a peak");
    peak.trim().trim_end_matches(" kB").parse().expect("a number")
}
