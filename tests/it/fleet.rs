//! `c2d-send` to many devices, and many messages to one, as a user sees it, against a hub in this process.
//!
//! Owns: nothing. Must not know: how a run is sent.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::{Command, Output};

use c2d_agent::emulator::hub::{Fault, FaultOrder, HubSize, Tier};

use crate::c2d_send::Running;
use crate::harness::{Process, run};
use crate::json_lines::json_lines;

/// As fast as the hub takes them.
pub(crate) const FAST: [&str; 2] = ["--rate", "100000/s"];

pub(crate) fn ids(count: usize) -> Vec<String> {
    (1..=count).map(|number| format!("pump-{number}")).collect()
}

/// The hub, and a list in a file.
pub(crate) fn with_list(known: usize, list: &str) -> (Running, PathBuf) {
    let running = Running::with_devices(ids(known));
    let path = running.file("pumps.txt");
    std::fs::write(&path, list).expect("written");
    (running, path)
}

pub(crate) fn to_list(running: &Running, list: &PathBuf) -> Command {
    let mut command = running.sender();
    command.arg("--devices-from").arg(list).args(FAST);
    command
}

/// The ids of the messages that wait for a device.
pub(crate) fn waiting(running: &Running, device: &str) -> Vec<String> {
    running.hub.with(|hub, _| {
        hub.queued(device).map(|queued| queued.message.message_id().expect("an id").to_owned()).collect()
    })
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

pub(crate) fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn each_device_of_a_list_gets_one_message_and_what_is_refused_can_be_sent_again() {
    let mut list = ids(20);
    list.insert(7, "nobody".to_owned());
    let (running, path) = with_list(20, &list.join("\n"));
    let sent =
        run(to_list(&running, &path).args(["--property", "action=pump", "--data", "{deviceId}!", "--json"]));
    assert_eq!(sent.status.code(), Some(3), "{}", stderr(&sent));
    let lines = json_lines(&stdout(&sent));
    let id = lines[0]["run"].as_str().expect("a run");
    assert_eq!((&lines[0]["event"], &lines[0]["messages"]), (&"run".into(), &21.into()));
    for device in ids(20) {
        assert_eq!(waiting(&running, &device), [format!("{id}-{device}")]);
    }
    let body =
        running.hub.with(|hub, _| hub.queued("pump-3").next().expect("a message").message.body.clone());
    assert_eq!(&body[..], b"pump-3!");
    let accepted: BTreeSet<_> = lines
        .iter()
        .filter(|line| line["event"] == "accepted")
        .map(|line| line["deviceId"].to_string())
        .collect();
    assert_eq!(accepted.len(), 20);
    let refused: Vec<_> = lines.iter().filter(|line| line["event"] == "refused").collect();
    assert_eq!(refused.len(), 1);
    assert_eq!(
        (&refused[0]["deviceId"], &refused[0]["condition"]),
        (&"nobody".into(), &"amqp:not-found".into())
    );
    let summary = lines.last().expect("a summary");
    assert_eq!(
        (&summary["accepted"], &summary["refused"], &summary["open"]),
        (&20.into(), &1.into(), &0.into())
    );
    let refused = std::fs::read_to_string(summary["refusedFile"].as_str().expect("a file")).expect("a list");
    assert_eq!(refused, "nobody\n");
}

#[test]
fn people_see_what_will_be_sent_where_the_journal_is_and_the_sums() {
    let (running, path) = with_list(3, "pump-1\npump-2\nnobody\n");
    let sent = run(&mut to_list(&running, &path));
    let (text, said) = (stdout(&sent), stderr(&sent));
    let lines: Vec<_> = text.lines().collect();
    assert!(
        lines[0].starts_with(
            "sending 3 messages at 6000000/min: about 0 s, 0.0 % of the daily quota of a hub of tier S1 with 1 unit  (run "
        ),
        "{text}"
    );
    let journal = format!("journal {}.", path.display());
    assert!(lines[1].starts_with(&journal) && lines[1].contains("c2d-agent c2d-send --resume "), "{text}");
    assert_eq!(lines[2], "        2  accepted by the hub (queued, not yet delivered)");
    assert!(lines[3].starts_with("        1  refused, the first: the hub knows no device"), "{text}");
    assert!(lines[4].starts_with("what was refused can be sent again with --devices-from "), "{text}");
    assert_eq!((said.as_str(), sent.status.code()), ("", Some(3)));
}

#[test]
fn a_dry_run_only_says_how_long_it_takes() {
    let (running, path) = with_list(0, &ids(10_000).join("\n"));
    let mut command = running.sender();
    let said = run(command.arg("--devices-from").arg(&path).arg("--dry-run"));
    assert!(
        stdout(&said).starts_with(
            "would send 10000 messages at 100/min: about 1 h 40 min, 2.5 % of the daily quota of a hub of tier S1 with 1 unit"
        ),
        "{said:?}"
    );
    assert!(stderr(&said).contains("if it is a setting, a desired property suits better"), "{said:?}");
    let mut command = running.sender();
    let said = run(command.arg("--devices-from").arg(&path).args(["--dry-run", "--data", "{n}"]));
    assert_eq!(stderr(&said), "", "each has another message");
    let mut command = running.sender();
    let said =
        run(command.arg("--devices-from").arg(&path).args(["--dry-run", "--tier", "s3", "--units", "2"]));
    assert!(stdout(&said).starts_with("would send 10000 messages at 10000/min: about 1 min"), "{said:?}");
    let files: Vec<_> =
        std::fs::read_dir(path.parent().expect("a folder")).expect("a folder").flatten().collect();
    assert!(files.iter().all(|file| !file.file_name().to_string_lossy().contains("journal")), "{files:?}");
}

#[test]
fn a_query_finds_the_devices_page_by_page() {
    let running = Running::with_devices(ids(1_500));
    let mut command = running.sender();
    let sent = run(command.args(["--query", "STARTSWITH(deviceId, 'pump-1')", "--dry-run"]));
    // 1, 10 to 19, 100 to 199, 1000 to 1500.
    assert!(stdout(&sent).starts_with("would send 612 messages"), "{sent:?}");
    let ask = |query: &str| {
        let said = run(running.sender().args(["--query", query, "--dry-run"]));
        (said.status.code(), stderr(&said))
    };
    let (code, said) = ask("SELECT deviceId FROM devices");
    assert_eq!(code, Some(0), "{said}");
    let (code, said) = ask("select * from devices");
    assert!(code == Some(2) && said.contains("finds whole twins: name the columns"), "{said}");
    let (code, said) = ask("SELECT tags FROM devices");
    assert!(code == Some(2) && said.contains("without a deviceId: select deviceId"), "{said}");
    let (code, said) = ask("deviceId = ");
    assert!(code == Some(2) && said.contains("the hub refuses the query: "), "{said}");
    let (code, said) = ask("deviceId = 'x'");
    assert!(code == Some(2) && said.contains("the query finds no device"), "{said}");
}

#[test]
fn one_device_can_have_many_messages_over_one_link() {
    let running = Running::start();
    let sent = run(running.command("dev1").args(["--count", "40", "--data", "{\"n\": {n}}"]).args(FAST));
    assert_eq!(sent.status.code(), Some(0), "{}", stderr(&sent));
    let messages = waiting(&running, "dev1");
    assert!(messages.len() == 40 && messages[4].ends_with("-5"), "{messages:?}");
    let body = running.hub.with(|hub, _| hub.queued("dev1").nth(4).expect("a message").message.body.clone());
    assert_eq!(&body[..], b"{\"n\": 5}");

    let list = running.file("messages.jsonl");
    std::fs::write(
        &list,
        "{\"body\": \"a\", \"id\": 7}\n{\"properties\": {\"action\": \"pump\"}, \"id\": 8}\n",
    )
    .expect("written");
    let mut command = running.command("dev2");
    let sent = run(command.arg("--messages-from").arg(&list).args(["--message-id", "m-{id}"]).args(FAST));
    assert_eq!(sent.status.code(), Some(0), "{}", stderr(&sent));
    assert_eq!(waiting(&running, "dev2"), ["m-7", "m-8"]);
    assert!(stderr(&sent).contains("put {run} into --message-id"), "{}", stderr(&sent));
}

#[test]
fn a_hub_that_throttles_is_left_alone_and_everything_arrives_in_the_end() {
    let (running, path) = with_list(3, "pump-1\npump-2\npump-3");
    let throttle = || {
        let order = FaultOrder { device_id: None, fault: Fault::Throttle };
        running.hub.with(|hub, _| hub.order_faults(&[order])).expect("set");
    };
    throttle();
    let process = Process::spawn(&mut to_list(&running, &path));
    process.stderr.wait_for("the hub throttles: waiting 10 s, then 3000000/min: 10 s left");
    running.hub.with(|hub, _| ids(3).iter().all(|device| hub.clear_faults(device, None)));
    assert_eq!(process.wait_exit().code(), Some(0), "{}", process.stderr.text());
    for device in ids(3) {
        assert_eq!(waiting(&running, &device).len(), 1);
    }
    throttle();
    let mut command = to_list(&running, &path);
    let gave_up = run(command.args(["--give-up-after", "1ms"]));
    let said = stderr(&gave_up);
    assert!(said.contains("the hub has taken nothing for 1ms: the hub is throttling"), "{said}");
    assert!(said.contains("to go on: c2d-agent c2d-send --resume "), "{said}");
}

#[test]
fn a_hub_of_a_tier_takes_a_minutes_worth_at_once_and_says_when_it_takes_the_next() {
    let (running, path) = with_list(102, &ids(102).join("\n"));
    let size = HubSize::new(Tier::S1, 1).expect("a size");
    running.hub.with(|hub, _| hub.throttle_as(size));
    let process = Process::spawn(&mut to_list(&running, &path));
    process.stderr.wait_for("the hub throttles: waiting 1 s, then ");
    assert_eq!(process.wait_exit().code(), Some(0), "{}", process.stderr.text());
    for device in ids(102) {
        assert_eq!(waiting(&running, &device).len(), 1, "{device}");
    }
}

#[test]
fn ten_thousand_devices_get_one_message_each_though_the_hub_throttles_and_the_sender_is_killed_fifty_times() {
    const DEVICES: usize = 10_000;
    const WINDOW: usize = 16;
    let running = Running::with_devices(ids(DEVICES));
    // 4,000 messages pass at once, and then 67 in a second: less than a slow machine sends.
    let size = HubSize::new(Tier::S1, 40).expect("a size");
    running.hub.with(|hub, _| hub.throttle_as(size));
    let journal = running.file("run.journal");
    let mut first = running.sender();
    first.args(["--query", "STARTSWITH(deviceId, 'pump-')", "--json", "--journal"]).arg(&journal).args(FAST);
    let (mut kills, mut throttled) = (0, 0);
    let mut chance = fastrand::Rng::with_seed(7);
    let mut process = Process::spawn(&mut first);
    loop {
        let at = chance.usize(1..350);
        let count = |lines: &[String]| lines.iter().filter(|line| line.contains("\"accepted\"")).count();
        let seen = process.stdout.wait_until("messages, or the end", |lines| {
            let ended = lines.iter().any(|line| line.contains("\"summary\""));
            (ended || count(lines) >= at).then_some(ended)
        });
        throttled += usize::from(process.stdout.text().contains("\"event\":\"throttled\""));
        if seen {
            break;
        }
        process.kill();
        kills += 1;
        let mut next = running.sender();
        process = Process::spawn(next.arg("--resume").arg(&journal).args(FAST).arg("--json"));
    }
    assert_eq!(process.wait_exit().code(), Some(0), "{}", process.stderr.text());
    assert!(kills >= 50 && throttled > 0, "{kills} kills, throttled in {throttled} of the processes");
    let mut doubled = 0;
    for device in ids(DEVICES) {
        let messages = waiting(&running, &device);
        let ids: BTreeSet<_> = messages.iter().collect();
        assert_eq!(ids.len(), 1, "{device}: {messages:?}");
        doubled += messages.len() - 1;
    }
    // What was on its way, or accepted and not in the journal yet.
    assert!(doubled <= kills * WINDOW, "{doubled} in {kills}");
}

#[test]
fn a_signal_ends_the_run_in_order_and_says_how_to_go_on() {
    let (running, path) = with_list(3, "pump-1\npump-2\npump-3");
    let journal = running.file("run.journal");
    let mut command = running.sender();
    command.arg("--devices-from").arg(&path).args(["--rate", "1/min", "--json", "--journal"]).arg(&journal);
    let process = Process::spawn(&mut command);
    process.stdout.wait_for("\"accepted\"");
    assert_eq!(process.terminate(), Some(1));
    let said = process.stderr.text();
    let words = format!(
        "c2d-agent: interrupted by a signal; to go on: c2d-agent c2d-send --resume {}",
        journal.display()
    );
    assert!(said.contains(&words), "{said}");
    let summary =
        process.stdout.all().into_iter().find(|line| line.contains("\"summary\"")).expect("a summary");
    assert!(summary.contains("\"accepted\":1,\"refused\":0,\"postponed\":0,\"open\":2"), "{summary}");
    let rest = run(running.sender().arg("--resume").arg(&journal).args(FAST));
    assert!(rest.status.success() && stdout(&rest).contains("        3  accepted"), "{rest:?}");
    for device in ids(3) {
        assert_eq!(waiting(&running, &device).len(), 1, "{device}");
    }
}

#[test]
fn what_cannot_be_sent_is_said_before_anything_is_sent() {
    let (running, path) = with_list(3, "pump-1\n\npump-3\n");
    let refused = |arguments: &[&str], words: &str| {
        let said = run(to_list(&running, &path).args(arguments));
        let text = stderr(&said);
        assert!(said.status.code() == Some(2) && text.contains(words), "{arguments:?}: {text}");
    };
    refused(&[], "pumps.txt, line 2: it is empty: remove it, or add the id that is missing");
    std::fs::write(&path, "pump-1\npump-2\npump-1").expect("written");
    refused(&[], "pumps.txt, line 3: \"pump-1\" is on line 1, too: remove one");
    std::fs::write(&path, "a/b").expect("written");
    refused(&[], "pumps.txt, line 1: ");
    std::fs::write(&path, "").expect("written");
    refused(&[], "pumps.txt is empty");
    let large = format!(
        "{{\"deviceId\":\"pump-1\"}}\n{{\"deviceId\":\"pump-2\",\"body\":\"{}\"}}",
        "x".repeat(70_000)
    );
    std::fs::write(&path, large).expect("written");
    refused(&[], "line 2 (pump-2): the message has 70");
    std::fs::write(&path, "pump-1").expect("written");
    refused(&["--data", "{valve}"], "line 1 (pump-1): there is no value for {valve}");
    refused(&["--units", "0"], "0 is not in 1..=10000");
    let said = run(running.sender().arg("--devices-from").arg(&path).args(["--rate", "fast"]));
    assert!(
        said.status.code() == Some(2)
            && stderr(&said).contains("use a number for a minute or a second, such as 100/min or 5/s"),
        "{said:?}"
    );
    refused(
        &["--file", "-", "--devices-from", "-"],
        "the argument '--devices-from <FILE>' cannot be used multiple times",
    );
    let said = run(running.sender().args(["--file", "-", "--devices-from", "-"]));
    assert!(
        said.status.code() == Some(2) && stderr(&said).contains("give one of them as a file"),
        "{said:?}"
    );
    std::fs::write(&path, "{\"deviceId\":\"pump-1\",\"properties\":{\"$.cid\":\"x\"}}").expect("written");
    refused(&[], "line 1 (pump-1): \"properties\" has \"$.cid\", a system property");
    std::fs::write(&path, "pump-1").expect("written");
    let said = run(running.command("dev1").args(["--count", "3", "--message-id", "same"]));
    assert!(said.status.code() == Some(2), "{said:?}");
    assert!(
        stderr(&said).contains("line 2 (dev1): its message id \"same\" is that of an earlier line"),
        "{said:?}"
    );
    assert_eq!(waiting(&running, "pump-1"), [""; 0]);

    let journal = running.file("foreign.journal");
    std::fs::write(&journal, "{\"line\":\"run\",\"format\":9}\n").expect("written");
    let resumed = |journal: &PathBuf| stderr(&run(running.sender().arg("--resume").arg(journal)));
    assert!(resumed(&journal).contains("has format 9, and this version of c2d-send knows 2"));
    std::fs::write(&journal, "pump-1\n").expect("written");
    assert!(resumed(&journal).contains("line 1 is no line of a journal"));
}

#[test]
fn a_count_is_for_one_device_only() {
    let (running, path) = with_list(2, "pump-1\npump-2\n");
    let list = path.to_str().expect("UTF-8");
    for selector in [["--devices-from", list], ["--query", "true = true"], ["--resume", list]] {
        for more in [["--count", "1"], ["--messages-from", list]] {
            let said = run(running.sender().args(selector).args(more));
            assert_eq!(said.status.code(), Some(2), "{selector:?} {more:?}");
            assert!(stderr(&said).contains("cannot be used with"), "{said:?}");
        }
    }
    assert_eq!(waiting(&running, "pump-1"), [""; 0]);
}

#[test]
fn a_hub_that_is_not_there_is_told_at_once_and_the_run_can_go_on() {
    let (running, path) = with_list(2, "pump-1\npump-2\n");
    let mut command = to_list(&running, &path);
    let said = run(command.args(["--transport", "amqp-ws", "--https-port", "1"]));
    let text = stderr(&said);
    assert_eq!(said.status.code(), Some(1), "{text}");
    assert!(text.contains("port 1") && !text.contains("trying again"), "{text}");
    assert!(text.contains("c2d-agent c2d-send --resume "), "{text}");
    let mut command = running.sender();
    let asked = run(command.args(["--query", "true = true", "--https-port", "1"]));
    assert!(!stderr(&asked).contains("asking again"), "{asked:?}");
}

#[test]
fn the_journal_of_another_hub_is_refused() {
    let (running, path) = with_list(1, "pump-1");
    let journal = running.file("run.journal");
    assert!(run(to_list(&running, &path).arg("--journal").arg(&journal)).status.success());
    let again = run(to_list(&running, &path).arg("--journal").arg(&journal));
    assert!(stderr(&again).contains("exists already: go on with it by --resume"), "{again:?}");
    // A run that has ended has nothing left.
    let done = run(running.sender().arg("--resume").arg(&journal));
    assert!(done.status.success() && stdout(&done).contains("        1  accepted"), "{done:?}");
    assert_eq!(waiting(&running, "pump-1").len(), 1);
    let text = std::fs::read_to_string(&journal).expect("a journal");
    std::fs::write(&journal, text.replace("\"hub\":\"localhost\"", "\"hub\":\"other\"")).expect("written");
    let other = stderr(&run(running.sender().arg("--resume").arg(&journal)));
    assert!(other.contains("is the journal of a run at other, but the hub given is localhost"), "{other}");
}
