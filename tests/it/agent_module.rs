//! The agent as an IoT Edge module, alone and beside a device: its doors, and what is the same behind all of them.
//!
//! Owns: how a module is started. Must not know: how the agent is built.

use std::io::{Read as _, Write as _};
use std::path::Path;

use rumqttc::mqttbytes::QoS;
use rumqttc::mqttbytes::v4::{Packet, Publish};
use serde_json::json;

use crate::agent_methods::call;
use crate::emulator_modules::{feed, module};
use crate::emulator_mqtt::device::Device;
use crate::harness::{Agent, Emulator, Process, binary, run, wait_for_file, wait_for_status, write_config};
use crate::invoke_method::seen;

const ROUTE: &str =
    "FROM /messages/modules/sensor/outputs/alarms INTO BrokeredEndpoint(\"/modules/agent/inputs/commands\")";
/// A route that brings the agent's own reports back to it.
const LOOP: &str =
    "FROM /messages/modules/agent/outputs/* INTO BrokeredEndpoint(\"/modules/agent/inputs/commands\")";
const EDGE: [&str; 10] = [
    "--device",
    "dev1",
    "--module",
    "edge1/agent",
    "--module",
    "edge1/sensor",
    "--route",
    ROUTE,
    "--route",
    LOOP,
];
const MODULE: [&str; 4] = ["--device", "edge1", "--module", "agent"];

/// Starts the agent as the module `agent` of `edge1` with a connection string, as on a developer's machine.
pub(crate) fn spawn(emulator: &Emulator, dir: &Path, rest: &str, beside: Option<&str>) -> Agent {
    match beside {
        Some(device) => spawn_beside(emulator, dir, rest, &emulator.device_string(device)),
        None => spawn_beside(emulator, dir, rest, ""),
    }
}

/// As [`spawn`], with the connection string of a device beside the module, unless `device` is empty.
fn spawn_beside(emulator: &Emulator, dir: &Path, rest: &str, device: &str) -> Agent {
    let config = write_config(dir, rest);
    let string = emulator.state.join("modules/edge1/agent.connection-string");
    let string = std::fs::read_to_string(string).expect("a connection string");
    let mut command = binary();
    command.arg("run").arg("-c").arg(&config);
    command
        .env("EdgeHubConnectionString", string.trim())
        .env("EdgeModuleCACertificateFile", emulator.ca_file());
    if !device.is_empty() {
        command.env("C2D_DEVICE_CONNECTION_STRING", device);
        command.env("C2D_CA_FILE", emulator.ca_file());
    }
    Agent { process: Process::spawn(&mut command), dir: dir.to_owned() }
}

/// Each rule matches one door, and writes what it sees.
fn doors(dir: &Path) -> String {
    let rule = |name: &str, when: &str| {
        let done = dir.join(name);
        format!(
            "[[rule]]\nname = \"{name}\"\nwhen = {{ {when} }}\nreport = \"telemetry\"\n\
             do = [ {{ shell = \"echo $C2D_MESSAGE_ID $C2D_DEVICE_ID $C2D_PROPERTIES >> {}\" }} ]\n",
            done.display()
        )
    };
    let input = "\"$.source\" = \"input\", \"$.input\" = \"commands\", \"$.cdid\" = \"edge1\", \"$.cmid\" = \"sensor\"";
    [
        rule("c2d", "\"$.source\" = \"c2d\", action = \"on\""),
        rule("input", input),
        rule("method", "\"$.source\" = \"method\", \"$.method\" = \"on\""),
    ]
    .concat()
}

fn alarm(sensor: &mut Device, packet_id: u16, id: &str) {
    let topic = format!("devices/edge1/modules/sensor/messages/events/%24.on=alarms&%24.mid={id}&zone=n/");
    let mut publish = Publish::new(topic, QoS::AtLeastOnce, "hot");
    publish.pkid = packet_id;
    sensor.send(Packet::Publish(publish));
    assert!(matches!(sensor.next(), Some(Packet::PubAck(ack)) if ack.pkid == packet_id));
}

#[test]
fn a_module_alone_takes_inputs_and_methods_and_its_own_reports_do_not_come_back_to_it() {
    let (emulator, dir) = (Emulator::start_with(&EDGE), tempfile::tempdir().expect("a directory"));
    let agent = spawn(&emulator, dir.path(), &doors(dir.path()), None);
    agent.process.stderr.wait_for("subscribed");
    let mut sensor = module(&emulator, "sensor");
    alarm(&mut sensor, 1, "a-1");
    assert_eq!(wait_for_file(&dir.path().join("input"), "\n"), "a-1 edge1 {\"zone\":\"n\"}\n");
    emulator.process.stderr.wait_for("%24.cid=a-1");
    agent.process.stderr.wait_for("a route leads its output back to its input");

    // An id is its sender's own: a message from another input with the same id is another message. No rule matches it.
    let form = json!({ "messageId": "a-1", "properties": {}, "body": "" });
    assert_eq!(feed(&emulator, "edge1/modules/agent/inputs/other", &form).0, 200);
    let line = agent.process.stderr.wait_for("unmatched: no rule matches it");
    assert!(line.contains("input=\"other\""), "{line}");

    let (status, payload, _) = call(&emulator, &MODULE, "on", None);
    assert_eq!(status, 200, "{payload}");
    let (stdout, _, _) = seen(&run(binary().arg("status").arg("-c").arg(dir.path().join("config.toml"))));
    assert!(stdout.contains("module        edge1/agent of hub localhost"), "{stdout}");
    // Two reports of the agent came back to it, and neither was run or recorded.
    emulator.process.stderr.wait_for_nth("c2d-report=outcome", 2);
    let (stdout, stderr, _) =
        seen(&run(binary().args(["inbox", "list", "-c"]).arg(dir.path().join("config.toml"))));
    assert_eq!(stdout.lines().filter(|line| line.starts_with('#')).count(), 3, "{stdout}{stderr}");
}

#[test]
fn a_device_and_a_module_sign_in_side_by_side_into_one_agent() {
    let (emulator, dir) = (Emulator::start_with(&EDGE), tempfile::tempdir().expect("a directory"));
    let agent = spawn(&emulator, dir.path(), &doors(dir.path()), Some("dev1"));
    agent.process.stderr.wait_for_nth("subscribed", 2);
    for peer in ["device_id=\"dev1\"", "device_id=\"edge1/agent\""] {
        emulator.process.stderr.wait_for(peer);
    }
    emulator.send("dev1", &["--property", "action=on", "--message-id", "m-1", "--wait"]);
    assert!(wait_for_file(&dir.path().join("c2d"), "\n").starts_with("m-1 dev1 "));
    let mut sensor = module(&emulator, "sensor");
    // The id is the same as that of the C2D message, but this is another message.
    alarm(&mut sensor, 1, "m-1");
    assert!(wait_for_file(&dir.path().join("input"), "\n").starts_with("m-1 dev1 "));
    assert_eq!(call(&emulator, &MODULE, "on", None).0, 200);
    // The module sends all reports.
    let report = emulator.process.stderr.wait_for("%24.cid=m-1");
    assert!(report.contains("device_id=\"edge1/agent\"") && report.contains("%24.on=outcomes"), "{report}");
    let config = dir.path().join("config.toml");
    let (stdout, _, _) = seen(&run(binary().arg("status").arg("-c").arg(&config)));
    for part in ["device        dev1 on hub localhost", "module        edge1/agent by localhost"] {
        assert!(stdout.contains(part), "{stdout}");
    }
    assert_eq!(stdout.matches("connection    connected").count(), 2, "{stdout}");
    assert_eq!(agent.process.terminate(), Some(0));
}

#[test]
fn a_device_that_the_hub_refuses_does_not_shut_the_doors_of_the_module() {
    let (emulator, dir) = (Emulator::start_with(&EDGE), tempfile::tempdir().expect("a directory"));
    let unknown = emulator.device_string("dev1").replace("DeviceId=dev1", "DeviceId=dev9");
    let agent = spawn_beside(&emulator, dir.path(), &doors(dir.path()), &unknown);
    agent.process.stderr.wait_for("subscribed");
    agent.process.stderr.wait_for("refused device dev9");
    wait_for_status(dir.path(), "refused device dev9");
    assert_eq!(call(&emulator, &MODULE, "on", None).0, 200);
    assert_eq!(agent.process.terminate(), Some(0), "{}", agent.process.stderr.text());
}

#[test]
fn nobody_to_sign_in_as_is_explained_and_half_a_module_too() {
    let dir = tempfile::tempdir().expect("a directory");
    let config = write_config(dir.path(), "");
    let (_, stderr, code) = seen(&run(binary().arg("run").arg("-c").arg(&config)));
    for part in ["C2D_DEVICE_CONNECTION_STRING", "connection_string_file", "IOTEDGE_WORKLOADURI"] {
        assert!(stderr.contains(part) && code == Some(2), "{stderr}");
    }
    let mut half = binary();
    half.arg("run").arg("-c").arg(&config).env("IOTEDGE_WORKLOADURI", "http://localhost:1/");
    let (_, stderr, code) = seen(&run(&mut half));
    for part in ["IOTEDGE_WORKLOADURI is \"http://localhost:1/\"", "IOTEDGE_DEVICEID is not set"] {
        assert!(stderr.contains(part) && code == Some(2), "{stderr}");
    }
    assert!(!stderr.contains("the device is not named"), "{stderr}");
    wait_for_status(dir.path(), "not running");
}

/// A workload socket that gives this answer to each request, or never answers.
fn scripted_socket(path: &Path, answer: Option<&'static str>) -> std::thread::JoinHandle<()> {
    let listener = std::os::unix::net::UnixListener::bind(path).expect("a socket");
    std::thread::spawn(move || {
        let mut held = Vec::new();
        // The thread ends with the test, which connects once more to tell it.
        for mut stream in listener.incoming().flatten() {
            let mut request = [0; 4096];
            let length = stream.read(&mut request).unwrap_or_default();
            if request[..length].starts_with(b"end") {
                return;
            }
            match answer {
                Some(answer) => drop(stream.write_all(answer.as_bytes())),
                None => held.push(stream),
            }
        }
    })
}

#[test]
fn a_workload_socket_that_hangs_or_answers_html_stops_no_other_door() {
    const HTML: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: 26\r\n\r\n<html>It works!</html>\r\n\r\n";
    for (answer, words) in [(None, "connecting"), (Some(HTML), "without JSON, but with \"<html>It")] {
        let (emulator, dir) = (Emulator::start_with(&EDGE), tempfile::tempdir().expect("a directory"));
        let socket = dir.path().join("workload.sock");
        let script = scripted_socket(&socket, answer);
        let config = write_config(dir.path(), &doors(dir.path()));
        let mut command = binary();
        command.arg("run").arg("-c").arg(&config);
        command.env("C2D_DEVICE_CONNECTION_STRING", emulator.device_string("dev1"));
        command.env("C2D_CA_FILE", emulator.ca_file());
        for (name, value) in [
            ("IOTEDGE_WORKLOADURI", format!("unix://{}", socket.display())),
            ("IOTEDGE_APIVERSION", "2021-12-07".to_owned()),
            ("IOTEDGE_IOTHUBHOSTNAME", "localhost".to_owned()),
            ("IOTEDGE_GATEWAYHOSTNAME", emulator.mqtt.to_string().replace("127.0.0.1", "localhost")),
            ("IOTEDGE_DEVICEID", "edge1".to_owned()),
            ("IOTEDGE_MODULEID", "agent".to_owned()),
            ("IOTEDGE_MODULEGENERATIONID", "1".to_owned()),
        ] {
            command.env(name, value);
        }
        let agent = Agent { process: Process::spawn(&mut command), dir: dir.path().to_owned() };
        agent.process.stderr.wait_for("subscribed");
        emulator.send("dev1", &["--property", "action=on", "--message-id", "m-1", "--wait"]);
        assert!(wait_for_file(&dir.path().join("c2d"), "\n").starts_with("m-1 "));
        wait_for_status(dir.path(), words);
        assert_eq!(agent.process.terminate(), Some(0), "{}", agent.process.stderr.text());
        let mut last = std::os::unix::net::UnixStream::connect(&socket).expect("connected");
        last.write_all(b"end").expect("written");
        script.join().expect("ended");
    }
}
