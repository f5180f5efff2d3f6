//! `c2d-feedback` as a user sees it: what it prints and keeps, what survives crashes and full disks, and how it ends.
//!
//! Owns: nothing. Must not know: how the command is built.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use c2d_agent::emulator::hub::Hub;
use rustix::process::Signal;
use serde_json::Value;

use crate::c2d_send::{Running, connect};
use crate::harness::{DEADLINE, Process, Proxy, binary, run};
use crate::json_lines::json_lines;
use crate::soak::disk::limit_file_size;

const WARNING: &str =
    "reading feedback consumes it for the whole hub: no other reader gets what is read here";
const WATCHING: &str = "watching the feedback of";

fn command(running: &Running, arguments: &[&str]) -> Command {
    command_with(running, &running.service_string(), arguments)
}

fn command_with(running: &Running, service: &str, arguments: &[&str]) -> Command {
    let mut command = binary();
    command.arg("c2d-feedback").args(arguments).arg("--ca-file").arg(running.file("ca.pem"));
    command.env("C2D_SERVICE_CONNECTION_STRING", service);
    command
}

/// Lets devices complete messages in one change of the hub, so that their records make one batch.
fn deliver(running: &Running, messages: &[(&'static str, &str)]) {
    let connections: Vec<_> = messages
        .iter()
        .map(|(device, id)| {
            running.enqueue(device, id);
            (*device, connect(&running.hub, device))
        })
        .collect();
    running.hub.with(|hub: &mut Hub, now: SystemTime| {
        for (device, _) in &connections {
            // Only the last connection of a device is valid.
            let current =
                connections.iter().rev().find(|(other, _)| other == device).expect("a connection").1;
            let locked = hub.next_delivery(device, current, now).expect("a message");
            hub.complete(device, locked.lock, now).expect("the lock is held");
        }
    });
}

/// Waits until a file has `count` lines, and reads them.
fn lines(path: &Path, count: usize) -> Vec<Value> {
    let end = Instant::now() + DEADLINE;
    loop {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        if text.ends_with('\n') && text.lines().count() >= count {
            return json_lines(&text);
        }
        assert!(Instant::now() < end, "waited too long for {count} lines of {}:\n{text}", path.display());
        std::thread::park_timeout(Duration::from_millis(5)); // a file has no event to wait for: poll
    }
}

fn ids(lines: &[Value]) -> Vec<&str> {
    lines.iter().map(|line| line["messageId"].as_str().expect("an id")).collect()
}

#[test]
fn every_record_is_printed_in_aligned_lines_and_consumed() {
    let running = Running::start();
    let process = Process::spawn(&mut command(&running, &["--count", "3"]));
    process.stderr.wait_for(WATCHING);
    deliver(&running, &[("dev1", "m-1"), ("dev2", "m-2")]);
    process.stdout.wait_for("m-2");
    running.hub.with(|hub, now| {
        let expiry = now + Duration::from_millis(300);
        let mut message = c2d_agent::message::C2dMessage::default();
        message.system.set(c2d_agent::message::MESSAGE_ID, "m-3");
        let ack = c2d_agent::feedback::DeliveryAck::Full;
        let queued = c2d_agent::emulator::hub::QueuedMessage {
            device_id: "dev1".to_owned(),
            message,
            ack,
            expiry: Some(expiry),
        };
        hub.enqueue(queued, now).expect("room");
    });
    assert_eq!(process.wait_exit().code(), Some(0), "{}", process.stderr.text());
    let printed = process.stdout.all();
    let rest: Vec<_> = printed.iter().map(|line| line.split_at(24)).collect();
    assert_eq!(
        rest.iter().map(|(_, rest)| *rest).collect::<Vec<_>>(),
        [
            "  Success                dev1  m-1",
            "  Success                dev2  m-2",
            "  Expired                dev1  m-3",
        ]
    );
    assert!(rest.iter().all(|(time, _)| time.starts_with("20") && time.ends_with('Z')), "{printed:?}");
    let told = process.stderr.all();
    assert_eq!((told.len(), told[0].as_str()), (2, WARNING), "{told:?}");

    // No feedback is left for another reader.
    let again = run(&mut command(&running, &["--for", "500ms"]));
    assert_eq!((again.stdout.len(), again.status.code()), (0, Some(0)));
}

#[test]
fn of_one_device_alone_are_printed_and_the_others_counted_or_kept() {
    let running = Running::start();
    let arguments = ["--device", "dev1", "--count", "1", "--json"];
    let process = Process::spawn(&mut command(&running, &arguments));
    process.stderr.wait_for(WATCHING);
    deliver(&running, &[("dev2", "other-1"), ("dev1", "m-1"), ("dev2", "other-2")]);
    assert_eq!(process.wait_exit().code(), Some(0));
    let printed = json_lines(&process.stdout.text());
    assert_eq!(ids(&printed), ["m-1"]);
    let record = &printed[0];
    assert_eq!((&record["event"], &record["status"]), (&"feedback".into(), &"Success".into()));
    assert_eq!((&record["record"], &record["records"]), (&2.into(), &3.into()));
    assert_eq!(record["batch"].as_str().map(str::len), Some(32), "{record}");
    assert!(record["batchEnqueuedTimeUtc"].as_str().is_some_and(|time| time.starts_with("20")), "{record}");
    let last = process.stderr.all().pop();
    let words = "2 records of other devices were read and will not come again; --spool FILE keeps them";
    assert_eq!(last.as_deref(), Some(words));

    let spool = running.file("spool");
    let arguments = ["--device", "dev1", "--count", "1", "--spool", spool.to_str().expect("UTF-8")];
    let process = Process::spawn(&mut command(&running, &arguments));
    process.stderr.wait_for(WATCHING);
    deliver(&running, &[("dev2", "other-3"), ("dev1", "m-2")]);
    assert_eq!(process.wait_exit().code(), Some(0));
    assert_eq!(process.stdout.all().len(), 1);
    assert_eq!(ids(&lines(&spool, 2)), ["other-3", "m-2"]);
    assert_eq!(process.stderr.count("will not come again"), 0, "{}", process.stderr.text());
}

#[test]
fn a_crash_between_disk_and_completion_loses_nothing_and_shows_which_records_came_twice() {
    let running = Running::start();
    let spool = running.file("spool");
    let arguments = ["--spool", spool.to_str().expect("UTF-8")];
    for round in 0..3 {
        // The pipe is full and has no reader, so the watcher stops after the disk and before the completion.
        let (_unread, mut full) = std::io::pipe().expect("a pipe");
        full.write_all(&[b' '; 64 * 1024]).expect("a pipe holds 64 KiB");
        let mut watcher = command(&running, &arguments);
        watcher.stdin(Stdio::null()).stdout(full).stderr(Stdio::null());
        let mut watcher = watcher.spawn().expect("started");
        deliver(&running, &[("dev1", &format!("m-{round}-a")), ("dev2", &format!("m-{round}-b"))]);
        let before = lines(&spool, 4 * round + 2);
        watcher.kill().expect("killed");
        watcher.wait().expect("reaped");
        // The last line may have been cut by a crash.
        let whole = std::fs::read_to_string(&spool).expect("read");
        std::fs::write(&spool, whole.trim_end_matches("0Z\"}\n")).expect("written");

        let again = Process::spawn(command(&running, &arguments).args(["--count", "1"]));
        assert_eq!(again.wait_exit().code(), Some(0), "{}", again.stderr.text());
        again.stderr.wait_for("was incomplete: its ");
        let after = lines(&spool, 4 * round + 3);
        assert_eq!(after.len(), 4 * round + 3, "one line was cut off, two came again");
        let known = |line: &Value| (line["batch"].to_string(), line["record"].to_string());
        let distinct: BTreeSet<_> = after.iter().map(known).collect();
        assert_eq!(distinct.len(), 2 * (round + 1), "{after:#?}");
        assert_eq!(known(&before[4 * round + 1]), known(&after[4 * round + 2]));
        assert_eq!(again.stdout.all().len(), 2);
        // Repeats the last line, so that each round has four lines. A reader that wants each record once ignores it.
        let mut padded = std::fs::read_to_string(&spool).expect("read");
        padded.push_str(padded.lines().last().expect("a line").to_owned().as_str());
        std::fs::write(&spool, padded).expect("written");
    }
}

#[test]
fn a_disk_that_is_full_leaves_the_batch_at_the_hub() {
    let running = Running::start();
    let spool = running.file("spool");
    let arguments = ["--spool", spool.to_str().expect("UTF-8")];
    let process = Process::spawn(&mut command(&running, &arguments));
    process.stderr.wait_for(WATCHING);
    deliver(&running, &[("dev1", "m-1")]);
    process.stdout.wait_for("m-1");
    let before = std::fs::read_to_string(&spool).expect("read");
    // The limit leaves room for a part of a line.
    limit_file_size(&process, Some(before.len() as u64 + 40));
    deliver(&running, &[("dev1", "m-2")]);
    assert_eq!(process.wait_exit().code(), Some(1));
    let last = process.stderr.all().pop().expect("a sentence");
    assert!(
        last.starts_with("c2d-agent: the spool /") && last.contains("its batch stays at the hub"),
        "{last}"
    );
    assert_eq!(std::fs::read_to_string(&spool).expect("read"), before);
    assert_eq!(process.stdout.count("m-2"), 0, "what is not kept is not printed");

    let again = run(command(&running, &arguments).args(["--count", "1"]));
    assert_eq!(again.status.code(), Some(0));
    assert_eq!(ids(&lines(&spool, 2)), ["m-1", "m-2"]);
}

#[test]
fn a_hub_that_goes_away_is_waited_for_and_what_was_not_completed_is_not_printed_twice() {
    let running = Running::start();
    let proxy = Proxy::to(running.amqp);
    let port = |port: u16| format!("HostName=localhost:{port};");
    let service = running.service_string().replace(&port(running.amqp.port()), &port(proxy.address.port()));
    let process = Process::spawn(&mut command_with(&running, &service, &["--count", "2"]));
    process.stderr.wait_for(WATCHING);
    deliver(&running, &[("dev1", "m-1")]);
    process.stdout.wait_for("m-1");
    proxy.set_open(false);
    proxy.cut();
    let told = process.stderr.wait_for_nth("trying again in ", 2);
    assert!(told.starts_with("localhost closed the connection"), "{told}");
    proxy.set_open(true);
    process.stderr.wait_for("connected again");
    deliver(&running, &[("dev1", "m-2")]);
    assert_eq!(process.wait_exit().code(), Some(0));
    assert_eq!((process.stdout.count("m-1"), process.stdout.count("m-2")), (1, 1));
    let first = process.stderr.wait_for("trying again in ");
    assert!(first.starts_with("the connection to the hub was lost: "), "{first}");
}

#[test]
fn signals_and_time_end_it_and_the_exit_code_tells_which() {
    let running = Running::start();
    for signal in [Signal::INT, Signal::TERM] {
        let process = Process::spawn(&mut command(&running, &[]));
        process.stderr.wait_for(WATCHING);
        process.signal(signal);
        assert_eq!(process.wait_exit().code(), Some(0), "{signal:?}");
        assert_eq!(process.stderr.all().len(), 2, "{}", process.stderr.text());
    }
    let code = |arguments: &[&str]| run(&mut command(&running, arguments)).status.code();
    assert_eq!(code(&["--for", "100ms"]), Some(0));
    assert_eq!(code(&["--for", "100ms", "--count", "1"]), Some(4));
}

#[test]
fn a_reader_that_has_gone_ends_it_and_the_batch_stays() {
    let running = Running::start();
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let mut watcher = command(&running, &[]);
    watcher.stdin(Stdio::null()).stdout(writer).stderr(Stdio::null());
    let mut watcher = watcher.spawn().expect("started");
    deliver(&running, &[("dev1", "m-1")]);
    assert_eq!(watcher.wait().expect("ended").code(), Some(0));
    let again = run(&mut command(&running, &["--count", "1"]));
    assert!(String::from_utf8_lossy(&again.stdout).contains("m-1"), "{again:?}");
}

#[test]
fn two_watchers_share_the_stream_and_each_record_goes_to_one() {
    let running = Running::start();
    let watchers = [0, 1].map(|_| Process::spawn(&mut command(&running, &["--json"])));
    for watcher in &watchers {
        watcher.stderr.wait_for(WATCHING);
    }
    let all: BTreeSet<String> = (0..40).map(|n| format!("m-{n}")).collect();
    for id in &all {
        deliver(&running, &[("dev1", id)]);
    }
    let end = Instant::now() + DEADLINE;
    let printed = loop {
        let printed: Vec<String> = watchers.iter().flat_map(|watcher| watcher.stdout.all()).collect();
        if printed.len() >= all.len() {
            break printed;
        }
        assert!(Instant::now() < end, "{printed:#?}");
        std::thread::park_timeout(Duration::from_millis(5)); // two outputs have no one event: poll
    };
    for watcher in &watchers {
        assert_eq!(watcher.terminate(), Some(0));
    }
    let lines: Vec<Value> = printed.iter().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(printed.len(), all.len(), "none twice");
    assert_eq!(ids(&lines).into_iter().map(str::to_owned).collect::<BTreeSet<_>>(), all);
}

#[test]
fn over_https_each_record_is_read_once_and_a_hub_that_goes_away_is_waited_for() {
    let running = Running::start();
    let proxy = Proxy::to(running.https);
    let port = proxy.address.port().to_string();
    let spool = running.file("spool");
    let spooled = spool.to_str().expect("UTF-8");
    let arguments = ["--transport", "https", "--https-port", &port, "--spool", spooled, "--count", "4"];
    deliver(&running, &[("dev1", "m-1")]);
    let process = Process::spawn(&mut command(&running, &arguments));
    process.stdout.wait_for("m-1");
    deliver(&running, &[("dev1", "m-2"), ("dev2", "m-3")]);
    process.stdout.wait_for("m-3");
    // The batch must also be completed, or its lock would hold for a minute.
    let end = Instant::now() + DEADLINE;
    while running.hub.with(|hub, _| hub.feedback().count()) > 0 {
        assert!(Instant::now() < end, "the batch is not completed");
        std::thread::park_timeout(Duration::from_millis(5)); // no event of the hub tells this: poll
    }
    proxy.set_open(false);
    proxy.cut();
    process.stderr.wait_for("trying again in ");
    proxy.set_open(true);
    process.stderr.wait_for("connected again");
    deliver(&running, &[("dev1", "m-4")]);
    assert_eq!(process.wait_exit().code(), Some(0), "{}", process.stderr.text());
    assert_eq!(process.stdout.all().len(), 4);
    let kept = lines(&spool, 4);
    assert_eq!(ids(&kept), ["m-1", "m-2", "m-3", "m-4"]);
    assert!(kept.iter().all(|line| line["batchEnqueuedTimeUtc"].is_string()), "{kept:#?}");
    let over_amqp = run(&mut command(&running, &["--for", "500ms"]));
    assert!(over_amqp.stdout.is_empty(), "all is consumed: {over_amqp:?}");
}

#[test]
fn a_batch_that_comes_again_over_https_is_the_one_that_was_read_over_amqp() {
    let running = Running::start();
    let (amqp, https) = (running.file("amqp"), running.file("https"));
    let (_unread, mut full) = std::io::pipe().expect("a pipe");
    full.write_all(&[b' '; 64 * 1024]).expect("a pipe holds 64 KiB");
    let mut watcher = command(&running, &["--spool", amqp.to_str().expect("UTF-8")]);
    let mut watcher =
        watcher.stdin(Stdio::null()).stdout(full).stderr(Stdio::null()).spawn().expect("started");
    deliver(&running, &[("dev1", "m-1")]);
    let first = lines(&amqp, 1);
    watcher.kill().expect("killed");
    watcher.wait().expect("reaped");
    let port = running.https.port().to_string();
    let spool = https.to_str().expect("UTF-8");
    let arguments = ["--transport", "https", "--https-port", &port, "--spool", spool, "--count", "1"];
    let output = run(&mut command(&running, &arguments));
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    // HTTPS gives the time of the batch with more digits.
    let same = |line: &Value| ["batch", "record", "messageId"].map(|key| line[key].clone());
    assert_eq!(same(&lines(&https, 1)[0]), same(&first[0]));
}

#[test]
fn watchers_killed_at_any_instant_lose_nothing_of_a_stream() {
    let running = Running::start();
    let spool = running.file("spool");
    let arguments = ["--spool", spool.to_str().expect("UTF-8")];
    let mut sent = BTreeSet::new();
    for round in 0..8 {
        let process = Process::spawn(&mut command(&running, &arguments));
        process.stderr.wait_for(WATCHING);
        for n in 0..20 {
            let id = format!("m-{round}-{n}");
            deliver(&running, &[("dev1", &id)]);
            sent.insert(id);
            // The kill comes somewhere between reading, writing, printing and completing.
            if n == 10 + round {
                std::thread::park_timeout(Duration::from_millis(7 * round));
                process.kill();
            }
        }
    }
    let last = Process::spawn(&mut command(&running, &arguments));
    let end = Instant::now() + DEADLINE;
    while running.hub.with(|hub, _| hub.feedback().count()) > 0 {
        assert!(Instant::now() < end, "feedback is left:\n{}", last.stderr.text());
        std::thread::park_timeout(Duration::from_millis(5)); // no event of the hub tells this: poll
    }
    assert_eq!(last.terminate(), Some(0));
    let kept = lines(&spool, sent.len());
    let known: BTreeSet<_> =
        kept.iter().map(|line| (line["batch"].to_string(), line["record"].to_string())).collect();
    assert_eq!(known.len(), sent.len(), "what came twice has the same batch and number");
    assert_eq!(ids(&kept).into_iter().map(str::to_owned).collect::<BTreeSet<_>>(), sent);
}

#[test]
fn a_second_signal_ends_one_that_cannot_print() {
    let running = Running::start();
    let spool = running.file("spool");
    let (_unread, mut full) = std::io::pipe().expect("a pipe");
    full.write_all(&[b' '; 64 * 1024]).expect("a pipe holds 64 KiB");
    let mut watcher = command(&running, &["--spool", spool.to_str().expect("UTF-8")]);
    let mut watcher =
        watcher.stdin(Stdio::null()).stdout(full).stderr(Stdio::null()).spawn().expect("started");
    deliver(&running, &[("dev1", "m-1")]);
    lines(&spool, 1);
    let pid = rustix::process::Pid::from_child(&watcher);
    let end = Instant::now() + DEADLINE;
    let code = loop {
        rustix::process::kill_process(pid, Signal::INT).expect("it is there");
        if let Some(status) = watcher.try_wait().expect("a status") {
            break status.code();
        }
        assert!(Instant::now() < end, "signals do not end it");
        std::thread::park_timeout(Duration::from_millis(5)); // two signals that come together count as one: send again
    };
    assert_eq!(code, Some(1));
}

#[test]
fn over_a_websocket_it_waits_as_over_amqp() {
    let running = Running::start();
    let port = running.https.port().to_string();
    let arguments = ["--transport", "amqp-ws", "--https-port", &port, "--count", "1"];
    let process = Process::spawn(&mut command(&running, &arguments));
    process.stderr.wait_for(WATCHING);
    deliver(&running, &[("dev1", "m-1")]);
    assert_eq!(process.wait_exit().code(), Some(0), "{}", process.stderr.text());
    assert_eq!(process.stdout.count("m-1"), 1);
}

#[test]
fn what_is_wrong_at_the_start_is_one_sentence() {
    let running = Running::start();
    let text = |output: &std::process::Output| String::from_utf8_lossy(&output.stderr).into_owned();
    let mut without = binary();
    let output = run(without.arg("c2d-feedback"));
    assert!(text(&output).starts_with("c2d-agent: no service connection string: give "), "{output:?}");
    assert_eq!(output.status.code(), Some(2));

    let notes = running.file("notes");
    std::fs::write(&notes, "my notes").expect("written");
    let cases: [(&[&str], &str); 5] = [
        (&["--device", "a/b"], "\"a/b\" is not a device id"),
        (&["--count", "0"], "--count"),
        (&["--for", "1"], "use a number with a unit"),
        (&["--spool", "/dev/full"], "/dev/full is not a regular file"),
        (&["--spool", notes.to_str().expect("UTF-8")], "notes does not end with a line of c2d-feedback"),
    ];
    for (arguments, words) in cases {
        let output = run(&mut command(&running, arguments));
        assert!(text(&output).contains(words), "{arguments:?}: {output:?}");
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
    }

    let wrong = format!(
        "HostName=localhost:{};SharedAccessKeyName=service;SharedAccessKey=AAAA",
        running.amqp.port()
    );
    let output = run(&mut command_with(&running, &wrong, &[]));
    assert!(text(&output).contains("does not accept the policy \"service\""), "{output:?}");
    assert_eq!(output.status.code(), Some(1));
}
