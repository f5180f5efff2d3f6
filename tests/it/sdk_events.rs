//! D2C messages as back ends read them: Microsoft's azure-eventhub, and what `az iot hub monitor-events` does.
//!
//! Owns: devices over each protocol that send messages. Must not know: how the SDKs work; the programs are in
//! `tests/sdk/`.

use std::path::Path;

use serde_json::Value;

use crate::emulator_running::asking;
use crate::harness::{Emulator, Process, run};
use crate::sdk::{emulator, json, may_use_443, python, script};

/// The partitions of the two devices.
const OF_DEV1: &str = "3";
const OF_DEV2: &str = "2";

/// The connection string of the Event Hub-compatible endpoint.
fn events_string(emulator: &Emulator) -> String {
    let file = emulator.state.join("events.connection-string");
    std::fs::read_to_string(file).expect("a connection string").trim().to_owned()
}

/// Sends a message of a device over a protocol.
fn send(python: &Path, emulator: &Emulator, device: &str, transport: &str, body: &str) {
    let mut sender = script(python, "device_sends.py");
    sender.arg(transport).arg(emulator.ca_file()).arg(body);
    sender.env("DEVICE_CONNECTION_STRING", emulator.device_string(device));
    let sent = run(sender.env("HTTPS_PORT", emulator.https.port().to_string()));
    assert!(sent.status.success(), "{transport}: {}", String::from_utf8_lossy(&sent.stderr));
}

/// A reader of D2C messages that has begun.
struct Reader(Process);

impl Reader {
    fn start(python: &Path, emulator: &Emulator, arguments: &[&str], options: &[(&str, &str)]) -> Self {
        let mut reader = script(python, "event_hub_consumer.py");
        reader.arg(emulator.ca_file()).args(arguments).envs(options.iter().copied());
        let reader = Process::spawn(reader.env("EVENTHUB_CONNECTION_STRING", events_string(emulator)));
        reader.stdout.wait_for("reading");
        Self(reader)
    }

    /// What it has asked for at the beginning, and then the messages, in the order of their bodies.
    fn end(self) -> (Value, Vec<Value>) {
        assert_eq!(self.0.wait_exit().code(), Some(0), "{}", self.0.stderr.text());
        let mut lines =
            self.0.stdout.all().into_iter().filter(|line| line != "reading").map(|line| json(&line));
        let about = lines.next().expect("the Event Hub");
        let mut messages: Vec<_> = lines.collect();
        messages.sort_by_key(|message| message["body"].to_string());
        (about, messages)
    }
}

fn bodies(messages: &[Value]) -> Vec<&str> {
    messages.iter().filter_map(|message| message["body"].as_str()).collect()
}

#[test]
fn azure_eventhub_reads_what_devices_sent_over_each_protocol() {
    let Some(python) = python("azure-eventhub reads D2C messages") else { return };
    let (emulator, _dir) = emulator(&["--device", "dev1", "--device", "dev2"]);
    for (device, transport, body) in
        [("dev1", "mqtt", "1"), ("dev1", "amqp", "2"), ("dev1", "https", "3"), ("dev2", "mqtt", "4")]
    {
        send(&python, &emulator, device, transport, body);
    }
    // Everything that came before, over both partitions.
    let (about, all) = Reader::start(&python, &emulator, &["4", "-1"], &[]).end();
    assert_eq!(bodies(&all), ["1", "2", "3", "4"]);
    let partitions: Vec<_> = all.iter().map(|message| message["partition"].as_str()).collect();
    assert_eq!(partitions, [OF_DEV1, OF_DEV1, OF_DEV1, OF_DEV2].map(Some));
    for (message, transport) in all.iter().zip(["mqtt", "amqp", "https", "mqtt"]) {
        let system = &message["system"];
        assert_eq!(system["message-id"], format!("m-{transport}"), "{message}");
        assert_eq!(
            (&system["content-type"], &system["content-encoding"]),
            (&json("\"text/plain\""), &json("\"utf-8\""))
        );
        assert_eq!(system["iothub-message-source"], "Telemetry");
        assert_eq!(system["iothub-enqueuedtime"], message["enqueued"]);
        let created = json(r#"{"zone": "north", "iothub-creation-time-utc": "2026-11-30T10:00:00Z"}"#);
        assert_eq!(message["properties"], created, "{transport}");
    }
    assert_eq!(all[3]["system"]["iothub-connection-device-id"], "dev2");
    assert!(about["name"].as_str().is_some_and(|name| name.starts_with("iothub-ehub-")), "{about}");
    let own = &about["partitions"][OF_DEV1];
    assert_eq!(own["beginning_sequence_number"], all[0]["number"]);
    assert_eq!(own["last_enqueued_sequence_number"], all[2]["number"]);
    assert_eq!(
        (own["is_empty"].as_bool(), about["partitions"]["0"]["is_empty"].as_bool()),
        (Some(false), Some(true))
    );

    // From an offset, a number and a time, each without and with what stands there.
    let offset = all[0]["offset"].as_str().expect("an offset");
    let time = all[1]["enqueued"].to_string();
    for (position, expected) in [
        (format!("offset={offset}"), &["2", "3"][..]),
        (format!("offset=={offset}"), &["1", "2", "3"]),
        (format!("number={}", all[1]["number"]), &["3"]),
        (format!("time={time}"), &["3"]),
        (format!("time=={time}"), &["2", "3"]),
    ] {
        let count = expected.len().to_string();
        let (_, read) = Reader::start(&python, &emulator, &[&count, &position, OF_DEV1], &[]).end();
        assert_eq!(bodies(&read), expected, "{position}");
    }
    // Only what comes, with the client for asyncio.
    let reader = Reader::start(&python, &emulator, &["1", "@latest", OF_DEV1], &[("ASYNC", "1")]);
    emulator.process.stderr.wait_for_nth("a back end reads D2C messages", 4 + 5 + 1);
    send(&python, &emulator, "dev1", "https", "5");
    assert_eq!(bodies(&reader.end().1), ["5"]);
}

#[test]
fn azure_eventhub_reads_on_when_its_token_is_over_by_the_moved_clock() {
    let Some(python) = python("azure-eventhub reads on after its token") else { return };
    let (emulator, _dir) = emulator(&["--device", "dev1"]);
    let reader = Reader::start(&python, &emulator, &["2", "@latest", OF_DEV1], &[("RETRIES", "3")]);
    emulator.process.stderr.wait_for("a back end reads D2C messages");
    send(&python, &emulator, "dev1", "https", "1");
    reader.0.stdout.wait_for("\"body\": \"1\"");
    let moved = run(&mut asking(&emulator.state, &["clock", "advance", "48h"]));
    assert!(moved.status.success(), "{moved:?}");
    send(&python, &emulator, "dev1", "https", "2");
    assert_eq!(bodies(&reader.end().1), ["1", "2"]);
}

#[test]
fn uamqp_sends_messages_of_several_frames() {
    let Some(python) = python("uamqp sends a large message") else { return };
    let (emulator, _dir) = emulator(&["--device", "dev1"]);
    let large = "x".repeat(100_000);
    send(&python, &emulator, "dev1", "amqp", &large);
    let (_, read) = Reader::start(&python, &emulator, &["1", "-1"], &[]).end();
    assert_eq!(bodies(&read), [large]);
}

#[test]
fn azure_eventhub_reads_over_a_websocket_and_on_another_port() {
    let test = "azure-eventhub reads over a WebSocket";
    let Some(python) = python(test) else { return };
    let other = Emulator::start();
    // The second message needs several frames.
    send_json(&other, b"1");
    send_json(&other, &[b'2'; 250_000]);
    let port = other.amqp.port().to_string();
    let (_, read) = Reader::start(&python, &other, &["2", "-1"], &[("PORT", &port)]).end();
    assert_eq!(bodies(&read), ["1", "2".repeat(250_000).as_str()]);
    if !may_use_443(test) {
        return;
    }
    let (emulator, _dir) = emulator(&["--device", "dev1", "--https-port", "443"]);
    send(&python, &emulator, "dev1", "amqp", "1");
    // The client for asyncio needs another library for WebSockets, which is not installed.
    let (_, read) = Reader::start(&python, &emulator, &["1", "-1"], &[("WEBSOCKETS", "1")]).end();
    assert_eq!(bodies(&read), ["1"]);
}

/// Sends a message of `dev1` over HTTPS, to an emulator named localhost.
fn send_json(emulator: &Emulator, body: &[u8]) {
    let line = "POST /devices/dev1/messages/events?api-version=2021-04-12";
    let own = crate::rest_ask::device_token(emulator, "dev1");
    assert_eq!(crate::rest_ask::ask(emulator, line, &own, "", body).status, 204);
}

#[test]
fn the_hub_redirects_what_az_dials_to_monitor_events() {
    let Some(python) = python("the redirect that az iot hub monitor-events follows") else { return };
    let (emulator, _dir) = emulator(&["--device", "dev1"]);
    send(&python, &emulator, "dev1", "mqtt", "1");
    let host = emulator.amqp.ip().to_string();
    let service = emulator.service_string();
    let (_, key) = service.split_once("SharedAccessKey=").expect("a key");
    let mut monitor = script(&python, "monitor_events.py");
    monitor.arg(&host).arg(OF_DEV1).arg(emulator.ca_file());
    let monitor = Process::spawn(monitor.env("POLICY_KEY", key).env("SSL_CERT_FILE", emulator.ca_file()));
    assert_eq!(monitor.wait_exit().code(), Some(0), "{}", monitor.stderr.text());
    let lines: Vec<_> = monitor.stdout.all().iter().map(|line| json(line)).collect();
    let name = events_string(&emulator);
    let (_, name) = name.split_once("EntityPath=").expect("a name");
    let redirect = serde_json::json!({
        "hostname": host,
        "network-host": host,
        "port": 5671,
        "address": format!("amqps://{host}:5671/{name}/$management"),
    });
    let read = serde_json::json!({ "origin": "dev1", "payload": "1" });
    assert_eq!(lines, [redirect.clone(), redirect, read]);
}
