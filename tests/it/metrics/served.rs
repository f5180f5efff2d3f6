//! What the agent serves, to good scrapers and to bad ones.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use rustix::process::Signal;
use serde_json::Value;

use super::scraper::{address, ask, connect, scrape, wait_for_figure};
use super::without_hub;
use crate::harness::{Agent, Emulator, Process, Proxy, skip, wait_for_file, write_config};

const SERVED: &str = "[metrics]\nlisten = \"127.0.0.1:0\"\n";

/// A pin, a rule that switches it, one that fails, and one that waits for the file `go`.
fn rules(dir: &Path) -> String {
    let (go, began) = (dir.join("go"), dir.join("began"));
    let (go, began) = (go.display(), began.display());
    format!(
        "{SERVED}[gpio]\nbackend = \"simulated\"\n[gpio.pins.led]\nline = 1\n\
         [[rule]]\nname = \"led\"\nwhen = {{ action = \"led\" }}\ndo = [ {{ gpio = \"led\", set = \"on\" }} ]\n\
         [[rule]]\nname = \"fa\\\\il \\\"é\\\"\"\nwhen = {{ action = \"fail\" }}\ndo = [ {{ shell = \"exit 3\" }} ]\n\
         [[rule]]\nname = \"slow\"\nwhen = {{ action = \"slow\" }}\nsettle = \"on-accept\"\n\
         do = [ {{ shell = \"touch {began}; until [ -e {go} ] || [ ! -e {began} ]; do sleep 0.02; done\" }} ]\n"
    )
}

fn send(emulator: &Emulator, action: &str, more: &[&str]) {
    let action = format!("action={action}");
    emulator.send("dev1", &[&["--property", &action, "--wait=20s"], more].concat());
}

fn now() -> f64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_secs_f64()
}

#[test]
fn figures_follow_what_the_agent_does() {
    let (emulator, dir) = (Emulator::start(), tempfile::tempdir().expect("a directory"));
    let proxy = Proxy::to(emulator.mqtt);
    let string = emulator.device_string("dev1");
    let string = string.replace(&emulator.mqtt.port().to_string(), &proxy.address.port().to_string());
    let before = now();
    let agent = Agent::spawn(&string, &emulator.ca_file(), dir.path(), &rules(dir.path()));
    let metrics = address(&agent.process);
    let first = wait_for_figure(metrics, "c2d_agent_connection_state{state=\"connected\"}", 1.0);
    for zero in [
        "c2d_agent_messages_total{rule=\"led\",outcome=\"succeeded\"}",
        "c2d_agent_messages_total{rule=\"none\",outcome=\"unmatched\"}",
        "c2d_agent_action_duration_seconds_count{rule=\"led\"}",
        "c2d_agent_pin_on{pin=\"led\"}",
        "c2d_agent_reconnects_total",
        "c2d_agent_inbox_trouble",
        "c2d_agent_connection_state{state=\"disconnected\"}",
    ] {
        assert_eq!(first.figure(zero), Some(0.0), "{zero} in\n{}", first.body);
    }
    assert_eq!(first.figure("c2d_agent_last_message_timestamp_seconds"), None, "there was none");
    let started = first.figure("c2d_agent_start_timestamp_seconds").expect("a time");
    assert!(before - 1.0 < started && started < now() + 1.0, "{started}");
    let renewal = first.figure("c2d_agent_token_renewal_timestamp_seconds").expect("a time");
    assert!((renewal - now() - 2880.0).abs() < 60.0, "80 % of an hour: {renewal}");
    let expiry = first.figure("c2d_agent_token_expiry_timestamp_seconds").expect("a time");
    assert!((expiry - renewal - 720.0).abs() < 3.0, "the rest of it: {expiry}");

    for _ in 0..2 {
        send(&emulator, "led", &["--message-id", "6e9ab0f3-1b59-4c4f-8e1d-1f6a2f0a3f11"]);
    }
    send(&emulator, "fail", &[]);
    send(&emulator, "nobody", &[]);
    send(&emulator, "slow", &[]);
    wait_for_file(&dir.path().join("began"), "");
    let then = wait_for_figure(metrics, "c2d_agent_actions{state=\"running\"}", 1.0);
    for (name, value) in [
        ("messages_total{rule=\"led\",outcome=\"succeeded\"}", 1.0),
        ("messages_total{rule=\"led\",outcome=\"duplicate\"}", 1.0),
        ("messages_total{rule=\"fa\\\\il \\\"é\\\"\",outcome=\"failed\"}", 1.0),
        ("messages_total{rule=\"none\",outcome=\"unmatched\"}", 1.0),
        ("action_duration_seconds_count{rule=\"led\"}", 1.0),
        ("action_duration_seconds_bucket{le=\"+Inf\",rule=\"slow\"}", 0.0),
        ("inbox_messages{state=\"unfinished\"}", 1.0),
        ("inbox_messages{state=\"finished\"}", 1.0),
        ("inbox_messages{state=\"dead\"}", 2.0),
        ("inbox_limit_bytes", 16.0 * 1024.0 * 1024.0),
        ("pin_on{pin=\"led\"}", 1.0),
        ("reports_waiting", 0.0),
        ("reports_dropped_total", 0.0),
    ] {
        assert_eq!(then.figure(&format!("c2d_agent_{name}")), Some(value), "{name} in\n{}", then.body);
    }
    assert!(then.figure("c2d_agent_inbox_size_bytes").expect("bytes") > 0.0);
    let last = then.figure("c2d_agent_last_message_timestamp_seconds").expect("a time");
    assert!((now() - last).abs() < 60.0, "{last}");

    std::fs::write(dir.path().join("go"), "").expect("written");
    wait_for_figure(metrics, "c2d_agent_messages_total{rule=\"slow\",outcome=\"succeeded\"}", 1.0);
    proxy.set_open(false);
    proxy.cut();
    let away = wait_for_figure(metrics, "c2d_agent_connection_state{state=\"disconnected\"}", 1.0);
    assert_eq!(away.figure("c2d_agent_token_renewal_timestamp_seconds"), None);
    proxy.set_open(true);
    let back = wait_for_figure(metrics, "c2d_agent_connection_state{state=\"connected\"}", 1.0);
    assert_eq!(back.figure("c2d_agent_reconnects_total"), Some(1.0));
    assert_eq!(agent.process.terminate(), Some(0));
}

#[test]
fn the_parser_of_the_prometheus_project_reads_every_figure() {
    let test = "the parser of the Prometheus project reads every figure";
    let python = Path::new(env!("CARGO_MANIFEST_DIR")).join(".venv/bin/python");
    let has_parser = Command::new(&python).args(["-c", "import prometheus_client"]).status();
    if !has_parser.is_ok_and(|status| status.success()) {
        return skip(test, "prometheus_client is not in .venv/; scripts/setup.sh installs it");
    }
    let (emulator, dir) = (Emulator::start(), tempfile::tempdir().expect("a directory"));
    let agent = Agent::start(&emulator, "dev1", dir.path(), &rules(dir.path()));
    send(&emulator, "led", &[]);
    send(&emulator, "fail", &[]);
    let answer = scrape(address(&agent.process));
    let content_type = "content-type: application/openmetrics-text; version=1.0.0; charset=utf-8";
    assert!(answer.head.contains(content_type), "{}", answer.head);
    assert!(answer.body.ends_with("\n# EOF\n"), "{}", answer.body);

    let file = dir.path().join("metrics.txt");
    std::fs::write(&file, &answer.body).expect("written");
    let mut parser = Command::new(&python);
    parser.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/sdk/openmetrics.py"));
    parser.stdin(Stdio::from(std::fs::File::open(&file).expect("a file")));
    let parser = Process::spawn_with_stdin(&mut parser);
    assert!(parser.wait_exit().success(), "{}\n{}", parser.stderr.text(), answer.body);
    let samples: Vec<Value> =
        parser.stdout.all().iter().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let lines = answer.body.lines().filter(|line| !line.starts_with('#')).count();
    assert_eq!(samples.len(), lines, "every line is a sample");
    for sample in &samples {
        let name = sample["name"].as_str().expect("a name");
        assert!(name.starts_with("c2d_agent_"), "{sample}");
        assert!(sample["help"].as_str().is_some_and(|help| help.ends_with('.')), "{sample}");
    }
    let failed = samples
        .iter()
        .find(|sample| sample["labels"]["rule"] == "fa\\il \"é\"" && sample["labels"]["outcome"] == "failed");
    let failed = failed.and_then(|sample| sample["value"].as_f64());
    assert_eq!(failed, Some(1.0), "the rule's name came through as it is");
    let kind =
        |name: &str| samples.iter().find(|sample| sample["name"] == name).map(|sample| &sample["type"]);
    for (name, expected) in [
        ("c2d_agent_messages_total", "counter"),
        ("c2d_agent_action_duration_seconds_bucket", "histogram"),
        ("c2d_agent_pin_on", "gauge"),
        ("c2d_agent_build_info", "info"),
    ] {
        assert_eq!(kind(name), Some(&Value::from(expected)), "{name}");
    }

    // The documents list exactly these metrics.
    let page = include_str!("../../../docs/src/reference/metrics.md");
    let cells = page.lines().filter_map(|line| line.strip_prefix("| ")?.split(" | ").next());
    let names = cells.flat_map(|cell| {
        cell.split(", ").filter_map(|name| name.strip_prefix('`')?.split(['`', '{']).next())
    });
    let mut told: Vec<String> =
        names.filter(|name| !name.contains('…')).map(|name| format!("c2d_agent_{name}")).collect();
    let plain = |name: &str| {
        let suffixes = ["_bucket", "_sum", "_count"].iter();
        suffixes.fold(name.to_owned(), |name, suffix| name.trim_end_matches(suffix).to_owned())
    };
    let mut served: Vec<String> =
        samples.iter().map(|sample| plain(sample["name"].as_str().expect("a name"))).collect();
    for names in [&mut told, &mut served] {
        names.sort();
        names.dedup();
    }
    assert_eq!(told, served);
}

#[test]
fn another_path_or_method_is_told_what_to_do() {
    let (agent, _dir) = without_hub(SERVED);
    let metrics = address(&agent.process);
    let answer = ask(metrics, b"GET / HTTP/1.1\r\nHost: gateway\r\n\r\n").expect("an answer");
    assert!(answer.head.starts_with("http/1.1 404 "), "{}", answer.head);
    assert_eq!(answer.body, "the metrics are at /metrics\n");
    let post = b"POST /metrics HTTP/1.1\r\nHost: gateway\r\nContent-Length: 4\r\n\r\nbody";
    let answer = ask(metrics, post).expect("an answer");
    assert!(answer.head.starts_with("http/1.1 405 "), "{}", answer.head);
    assert!(answer.head.contains("\r\nallow: get, head"), "{}", answer.head);
    let head = ask(metrics, b"HEAD /metrics HTTP/1.1\r\nHost: gateway\r\n\r\n").expect("an answer");
    assert!(head.head.starts_with("http/1.1 200 ") && head.body.is_empty(), "{}", head.head);
    assert_eq!(agent.process.terminate(), Some(0));
}

#[test]
fn a_reload_moves_the_endpoint_and_counts_go_on() {
    let (emulator, dir) = (Emulator::start(), tempfile::tempdir().expect("a directory"));
    let agent = Agent::start(&emulator, "dev1", dir.path(), &rules(dir.path()));
    let first = address(&agent.process);
    send(&emulator, "led", &[]);
    let reload = |config: &str| {
        write_config(dir.path(), config);
        agent.process.signal(Signal::HUP);
    };
    reload("nonsense = 1\n");
    wait_for_figure(first, "c2d_agent_reload_refused", 1.0);
    reload(&rules(dir.path()).replace(SERVED, ""));
    agent.process.stderr.wait_for("metrics are no longer served");
    assert!(TcpStream::connect(first).is_err(), "it still listens");
    reload(&rules(dir.path()));
    let line = agent.process.stderr.wait_for_nth("metrics are served address", 2);
    let second = line.split_once("address=").and_then(|(_, address)| address.trim().parse().ok());
    let answer = scrape(second.unwrap_or_else(|| panic!("no address in {line}")));
    assert_eq!(answer.figure("c2d_agent_messages_total{rule=\"led\",outcome=\"succeeded\"}"), Some(1.0));
    assert_eq!(answer.figure("c2d_agent_reload_refused"), Some(0.0));
    assert_eq!(agent.process.terminate(), Some(0));
}

#[test]
fn a_port_in_use_is_named_and_keeps_no_message_from_its_rule() {
    let (emulator, dir) = (Emulator::start(), tempfile::tempdir().expect("a directory"));
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let listen = taken.local_addr().expect("an address").to_string();
    let config = rules(dir.path()).replace("127.0.0.1:0", &listen);
    let agent = Agent::start(&emulator, "dev1", dir.path(), &config);
    let line = agent.process.stderr.wait_for("there are no metrics");
    let sentence = format!(
        "metrics cannot be served at {listen}: the port is in use: stop what listens there, or set [metrics] listen to \
         another one"
    );
    assert!(line.contains("ERROR") && line.contains(&sentence), "{line}");
    send(&emulator, "led", &[]);
    assert_eq!(agent.process.terminate(), Some(0));
}

#[test]
fn scrapers_that_misbehave_disturb_no_message_and_no_other_scraper_for_long() {
    let (emulator, dir) = (Emulator::start(), tempfile::tempdir().expect("a directory"));
    let agent = Agent::start(&emulator, "dev1", dir.path(), &rules(dir.path()));
    let metrics = address(&agent.process);

    // Some clients send nothing, some send a few bytes and stop, and there are too many of both.
    let mut lazy: Vec<_> = (0..100).map(|_| connect(metrics)).collect();
    for (n, stream) in lazy.iter_mut().enumerate().filter(|(n, _)| n % 2 == 0) {
        // The connections above the limit may be closed already.
        drop(write!(stream, "GET /metrics HTTP/1.1\r\nX-{n}: "));
    }
    let begun = Instant::now();
    send(&emulator, "led", &["--message-id", "m-1"]);
    assert!(begun.elapsed() < Duration::from_secs(3), "a message took {:?}", begun.elapsed());
    // All clients are cut off, although they do nothing.
    for mut stream in lazy {
        // An error is also an end, but a time-out is not.
        let ended = stream.read_to_end(&mut Vec::new());
        assert!(
            !ended.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock),
            "it is still there"
        );
    }
    scrape(metrics);

    // One request has a head without an end, another has too many headers.
    let huge = [b"GET /metrics HTTP/1.1\r\nX: ".as_slice(), &[b'x'; 4 * 1024 * 1024]].concat();
    let refused = ask(metrics, &huge);
    assert!(refused.is_none_or(|answer| answer.head.starts_with("http/1.1 431 ")));
    let many: String = (0..1_000).map(|n| format!("X-{n}: y\r\n")).collect();
    let refused = ask(metrics, format!("GET /metrics HTTP/1.1\r\n{many}\r\n").as_bytes());
    assert!(refused.is_none_or(|answer| answer.head.starts_with("http/1.1 431 ")));
    let noise = ask(metrics, b"\x16\x03\x01 no HTTP\r\n\r\n");
    assert!(noise.is_none_or(|answer| answer.head.starts_with("http/1.1 400 ")));

    send(&emulator, "led", &["--message-id", "m-2"]);
    let after = scrape(metrics);
    assert_eq!(after.figure("c2d_agent_messages_total{rule=\"led\",outcome=\"succeeded\"}"), Some(2.0));
    assert_eq!(agent.process.stderr.count("ERROR"), 0, "{}", agent.process.stderr.text());
    assert_eq!(agent.process.terminate(), Some(0));
}
