//! Several hubs in one emulator: each client reaches the hub that it names, whatever its protocol, and no other one.
//!
//! Owns: nothing. Must not know: how the emulator finds the hub.

use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, SystemTime};

use bytes::BytesMut;
use c2d_agent::credentials::{SasToken, SharedAccessKey};
use c2d_agent::emulator::WELL_KNOWN_KEYS;
use rumqttc::mqttbytes::v4::{Connect, Packet};
use serde_json::Value;

use crate::emulator_running::{asking, said};
use crate::harness::{Agent, Emulator, Process, binary, run, write_config};
use crate::over;
use crate::rest::{dial_at, send};

/// The further hub of these tests. It is also the address where it is dialled.
const OTHER: &str = "127.0.0.2";

const ARGUMENTS: [&str; 4] = ["--device", "dev1", "--hub", OTHER];

/// A hub of an emulator, as its clients know it.
pub(crate) struct Named<'a> {
    emulator: &'a Emulator,
    host: String,
    /// The name or address that is dialled.
    dialled: String,
    /// The directory of its files.
    pub(crate) state: PathBuf,
}

impl<'a> Named<'a> {
    /// The main hub.
    pub(crate) fn main(emulator: &'a Emulator) -> Self {
        let state = emulator.state.clone();
        Self { emulator, host: "localhost".to_owned(), dialled: "localhost".to_owned(), state }
    }

    fn other(emulator: &'a Emulator) -> Self {
        Self::further(emulator, OTHER)
    }

    /// A further hub, whose name is an address.
    pub(crate) fn further(emulator: &'a Emulator, host: &str) -> Self {
        Self::at(emulator, host, host)
    }

    /// A further hub that is reached under another name.
    pub(crate) fn at(emulator: &'a Emulator, host: &str, dialled: &str) -> Self {
        let (host, dialled) = (host.to_owned(), dialled.to_owned());
        Self { state: emulator.state.join("hubs").join(&host), emulator, host, dialled }
    }

    pub(crate) fn read(&self, file: &str) -> String {
        std::fs::read_to_string(self.state.join(file)).expect(file).trim().to_owned()
    }

    fn device_string(&self, device: &str) -> String {
        self.read(&format!("devices/{device}.connection-string"))
    }

    /// The address of a port at this hub.
    fn address(&self, address: SocketAddr) -> SocketAddr {
        let ip = self.dialled.parse().unwrap_or(address.ip());
        SocketAddr::new(ip, address.port())
    }

    /// A token of a policy of this hub, for any resource.
    pub(crate) fn token(&self, policy: &str, resource: &str) -> String {
        let secrets: Value = serde_json::from_str(&self.read("secrets.json")).expect("JSON");
        let key = secrets["policies"][policy]["primary"].as_str().expect("a key");
        signed(key, policy, resource)
    }

    /// Status and body.
    pub(crate) fn ask(&self, line: &str, token: &str, body: &str) -> (String, String) {
        self.ask_as(&self.host, line, token, body)
    }

    /// The same with any `Host`.
    fn ask_as(&self, host: &str, line: &str, token: &str, body: &str) -> (String, String) {
        let length = body.len();
        let head = format!(
            "{line} HTTP/1.1\r\nHost: {host}\r\nAuthorization: {token}\r\nContent-Length: {length}\r\n\
             Content-Type: application/json\r\nConnection: close\r\n\r\n"
        );
        let config =
            c2d_agent::tls::client_config(Some(&self.emulator.ca_file()), None).expect("a configuration");
        let stream = dial_at(self.address(self.emulator.https), config, &self.dialled);
        let answer = send(stream, &[head.as_bytes(), body.as_bytes()].concat());
        let (head, body) = answer.split_once("\r\n\r\n").expect("an answer");
        (head.get(9..12).expect("a status").to_owned(), body.to_owned())
    }

    /// Makes a device over the registry, with keys.
    pub(crate) fn make(&self, device: &str) {
        self.make_with(device, "sas");
    }

    /// Makes a device with this type of authentication.
    pub(crate) fn make_with(&self, device: &str, kind: &str) {
        let line = format!("PUT /devices/{device}?api-version=2021-04-12");
        let body = format!(r#"{{"deviceId":"{device}","authentication":{{"type":"{kind}"}}}}"#);
        let made = self.ask(&line, &self.token("iothubowner", &self.host), &body);
        assert_eq!(made.0, "200", "{}", made.1);
    }

    /// `c2d-send` to this hub.
    fn sender(&self, device: &str) -> Command {
        let mut command = binary();
        command.args(["c2d-send", "--device", device, "--connection-string-file"]);
        command.arg(self.state.join("service.connection-string"));
        command.arg("--ca-file").arg(self.state.join("ca.pem"));
        command.args(["--https-port", &self.emulator.https.port().to_string()]);
        command
    }

    fn send(&self, device: &str, arguments: &[&str]) {
        let sent = run(self.sender(device).args(arguments));
        assert!(sent.status.success(), "{sent:?}");
    }

    fn overview(&self) -> Value {
        let (status, body) = self.ask("GET /emulator/overview", &self.token("service", &self.host), "");
        assert_eq!(status, "200", "{body}");
        serde_json::from_str(&body).expect("JSON")
    }

    /// The message ids that wait for a device.
    pub(crate) fn queue(&self, device: &str) -> Vec<String> {
        let overview = self.overview();
        let devices = overview["devices"].as_array().expect("devices");
        let device = devices.iter().find(|one| one["deviceId"] == device).expect("the device");
        let queued = device["queue"].as_array().expect("a queue");
        queued.iter().map(|message| message["messageId"].as_str().expect("an id").to_owned()).collect()
    }
}

fn signed(key: &str, policy: &str, resource: &str) -> String {
    let key = SharedAccessKey::from_base64(key).expect("a key");
    let expiry = SystemTime::now() + Duration::from_secs(600);
    SasToken::sign(&key, resource, Some(policy), expiry).expose().to_owned()
}

#[test]
fn the_same_device_at_two_hubs_has_two_queues_whatever_the_transport() {
    let emulator = Emulator::start_with(&ARGUMENTS);
    let (main, other) = (Named::main(&emulator), Named::other(&emulator));
    emulator.process.stderr.wait_for(&format!("further hub after: . {}", other.state.join("env").display()));
    over::each(|transport| {
        let device = format!("dev-{transport}");
        main.make(&device);
        other.make(&device);
        let dir = tempfile::tempdir().expect("a directory");
        let port = over::address(&emulator, transport).port();
        let own = format!(":{}", emulator.mqtt.port());
        let string = other.device_string(&device).replace(&own, &format!(":{port}"));
        let text = format!(
            "[device]\ntransport = \"{transport}\"\n[[rule]]\nname = \"write\"\nwhen = {{ action = \"write\" }}\n\
             do = [ {{ run = [\"/bin/sh\", \"-c\", \"echo at-$C2D_MESSAGE_ID\"] }} ]\n"
        );
        let mut command = binary();
        command.arg("run").arg("-c").arg(write_config(dir.path(), &text));
        command.env("C2D_DEVICE_CONNECTION_STRING", string).env("C2D_CA_FILE", emulator.ca_file());
        command.env("C2D_HTTPS_PORT", port.to_string());
        let agent = Agent { process: Process::spawn(&mut command), dir: dir.path().to_owned() };
        agent.process.stderr.wait_for("subscribed");
        let ws = if transport.ends_with("-ws") { "amqp-ws" } else { "amqp" };
        main.send(&device, &["--transport", ws, "--message-id", "m-main", "--property", "action=write"]);
        other.send(&device, &["--transport", ws, "--message-id", "m-other", "--property", "action=write"]);
        agent.process.stderr.wait_for("m-other");
        assert_eq!(main.queue(&device), ["m-main"], "{transport}");
        assert_eq!(agent.process.stderr.count("m-main"), 0, "{transport}");
    });
}

/// The return code of the CONNACK for a CONNECT of `dev1`.
fn connack(hub: &Named, user: &str, token: &str) -> u8 {
    let config = c2d_agent::tls::client_config(Some(&hub.emulator.ca_file()), None).expect("a configuration");
    let mut stream = dial_at(hub.address(hub.emulator.mqtt), config, &hub.host);
    let mut connect = Connect::new("dev1");
    connect.set_login(user, token);
    let mut bytes = BytesMut::new();
    Packet::Connect(connect).write(&mut bytes, 1 << 20).expect("writable");
    stream.write_all(&bytes).and_then(|()| stream.flush()).expect("sent");
    let mut answer = [0; 4];
    stream.read_exact(&mut answer).expect("a CONNACK");
    answer[3]
}

#[test]
fn a_token_is_good_at_its_own_hub_only_even_if_the_keys_are_the_same() {
    let emulator = Emulator::start_with(&[&ARGUMENTS[..], &["--well-known-keys"]].concat());
    let (main, other) = (Named::main(&emulator), Named::other(&emulator));
    // The keys of a device that a back end has made are its own, so the policy of devices signs here.
    let put = "PUT /devices/dev1?api-version=2021-04-12";
    let token = |policy: &str, resource: &str| signed(WELL_KNOWN_KEYS[0], policy, resource);
    let made = other.ask(put, &token("iothubowner", OTHER), r#"{"deviceId":"dev1"}"#);
    assert_eq!(made.0, "200", "{}", made.1);
    for (hub, foreign) in [(&main, OTHER), (&other, "localhost")] {
        let user = format!("{}/dev1/?api-version=2021-04-12", hub.host);
        let device = |host: &str| token("device", &format!("{host}/devices/dev1"));
        assert_eq!(connack(hub, &user, &device(&hub.host)), 0, "{}", hub.host);
        assert_eq!(connack(hub, &user, &device(foreign)), 5, "{}", hub.host);
        let ask =
            |resource| hub.ask("GET /twins/dev1?api-version=2021-04-12", &token("service", resource), "").0;
        assert_eq!([ask(&hub.host), ask(foreign)], ["200", "401"], "{}", hub.host);
        // The user name and the Host decide, and not the address.
        let crossed = format!("{foreign}/dev1/?api-version=2021-04-12");
        assert_eq!(connack(hub, &crossed, &device(foreign)), 0, "{}", hub.host);
        let line = "GET /twins/dev1?api-version=2021-04-12";
        assert_eq!(hub.ask_as(foreign, line, &token("service", foreign), "").0, "200", "{}", hub.host);
    }
    // Another Host is none of theirs: the main hub answers.
    let line = "GET /twins/dev1?api-version=2021-04-12";
    assert_eq!(other.ask_as("gateway.test:8443", line, &token("service", "localhost"), "").0, "200");
    assert_eq!(other.ask_as("gateway.test:8443", line, &token("service", OTHER), "").0, "401");
    assert_eq!(
        connack(&main, "c.test/dev1/?api-version=2021-04-12", &token("device", "c.test/devices/dev1")),
        5
    );
    let reason =
        "the user name is for the hub \"c.test\", and the hubs here are \"localhost\", \"127.0.0.2\"";
    emulator.process.stderr.wait_for(reason);
}

#[test]
fn a_back_end_with_the_key_of_another_hub_is_refused_over_amqp() {
    let emulator = Emulator::start_with(&ARGUMENTS);
    let (main, other) = (Named::main(&emulator), Named::other(&emulator));
    other.make("dev1");
    let key =
        |hub: &Named| hub.read("service.connection-string").split(';').next_back().expect("a key").to_owned();
    assert_ne!(key(&main), key(&other));
    let mixed = other.read("service.connection-string").replace(&key(&other), &key(&main));
    let file = other.state.join("service.connection-string");
    std::fs::write(&file, mixed).expect("written");
    for transport in ["amqp", "amqp-ws"] {
        let refused = run(other.sender("dev1").args(["--transport", transport, "--data", "x"]));
        let said = String::from_utf8_lossy(&refused.stderr);
        assert!(said.contains("does not accept the policy \"service\""), "{said}");
        assert_eq!(refused.status.code(), Some(1), "{transport}: {refused:?}");
    }
    assert_eq!((main.queue("dev1"), other.queue("dev1")), (vec![], vec![]));
}

#[test]
fn a_restart_keeps_what_each_hub_holds_also_while_a_hub_is_not_named() {
    let dir = tempfile::tempdir().expect("a directory");
    let state = dir.path().join("state");
    let first = Emulator::start_in(&state, "0", "0", &ARGUMENTS);
    let (main, other) = (Named::main(&first), Named::other(&first));
    other.make("dev1");
    main.send("dev1", &["--message-id", "m-main"]);
    other.send("dev1", &["--message-id", "m-other"]);
    let keys = |hub: &Named| hub.read("secrets.json");
    let (before, authority) = ([keys(&main), keys(&other)], main.read("ca.pem"));
    assert_eq!(other.read("ca.pem"), authority);
    assert_eq!(first.process.terminate(), Some(0));
    let alone = Emulator::start_in(&state, "0", "0", &["--device", "dev1"]);
    assert_eq!(Named::main(&alone).queue("dev1"), ["m-main"]);
    assert_eq!(Named::main(&alone).overview()["otherHubs"], serde_json::json!([]));
    assert_eq!(alone.process.terminate(), Some(0));
    let again = Emulator::start_in(&state, "0", "0", &ARGUMENTS);
    let (main, other) = (Named::main(&again), Named::other(&again));
    assert_eq!([main.queue("dev1"), other.queue("dev1")], [["m-main"], ["m-other"]]);
    assert_eq!([keys(&main), keys(&other)], before);
    assert_eq!(other.read("ca.pem"), authority);
    assert_eq!(main.overview()["otherHubs"], serde_json::json!([OTHER]));
    assert_eq!(other.overview()["otherHubs"], serde_json::json!(["localhost"]));
    // A lost authority is made anew for all of them.
    assert_eq!(again.process.terminate(), Some(0));
    std::fs::remove_file(state.join("secrets.json")).expect("removed");
    let renewed = Emulator::start_in(&state, "0", "0", &ARGUMENTS);
    assert_ne!(Named::main(&renewed).read("ca.pem"), authority);
    assert_eq!(Named::main(&renewed).read("ca.pem"), Named::other(&renewed).read("ca.pem"));
    assert_eq!(Named::other(&renewed).queue("dev1"), ["m-other"]);
}

#[test]
fn the_subcommands_ask_the_hub_of_their_directory_and_the_clock_is_one() {
    let emulator = Emulator::start_with(&ARGUMENTS);
    let other = Named::other(&emulator);
    other.make("pump");
    let faults = said(&mut asking(&other.state, &["faults"]));
    assert_eq!(faults, (Some(0), "pump  no faults".to_owned()));
    let (code, moved) = said(&mut asking(&other.state, &["clock", "advance", "48h"]));
    assert_eq!(code, Some(0), "{moved}");
    let (_, shown) = said(&mut asking(&emulator.state, &["clock"]));
    assert!(shown.contains("2days ahead of the real time"), "{shown}");
    assert!(said(&mut asking(&other.state, &["clock"])).1.contains("2days ahead of the real time"));
    // The environment of the hub has it all, but no device of the command line.
    let script = r#". "$1"; "$2" c2d-send --device pump --message-id m-1; echo "${C2D_DEVICE_CONNECTION_STRING-none}""#;
    let mut shell = Command::new("sh");
    shell.args(["-eu", "-c", script, "sh"]).arg(other.state.join("env")).arg(env!("CARGO_BIN_EXE_c2d-agent"));
    let output = run(&mut shell);
    assert!(output.status.success() && output.stdout.ends_with(b"\nnone\n"), "{output:?}");
    assert_eq!(other.queue("pump"), ["m-1"]);
}

#[test]
fn names_that_cannot_be_told_apart_are_refused() {
    let usage = |arguments: &[&str], sentence: &str| {
        let dir = tempfile::tempdir().expect("a directory");
        let mut command = binary();
        command.arg("emulator").arg("--state-dir").arg(dir.path().join("state")).args(arguments);
        let output = run(&mut command);
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!((output.status.code(), text.contains(sentence)), (Some(2), true), "{arguments:?}: {text}");
        assert!(!dir.path().join("state").exists(), "nothing is made before the arguments are checked");
    };
    let doubled = |name: &str| {
        format!(
            "\"{name}\" is also a name of another hub or of the gateway: give each --hub a name of its own"
        )
    };
    usage(&["--hub", "LOCALHOST"], &doubled("LOCALHOST"));
    usage(&["--hub", "b.test", "--hub", "B.test"], &doubled("B.test"));
    usage(&["--hub", "::1", "--hub", "0:0:0:0:0:0:0:1"], &doubled("::1"));
    usage(&["--hostname", "a.test", "--hub", "a.device.test"], &doubled("a.device.test"));
    usage(&["--hub", "a.service.test", "--hub", "a.test"], &doubled("a.service.test"));
    usage(&["--gateway-hostname", "edge.test", "--hub", "Edge.test"], &doubled("Edge.test"));
    for name in ["b.test:8883", "..", "a/b", "", "a b", "https://b.test"] {
        usage(&["--hub", name], &format!("\"{name}\" is not a host name: give a name without a port"));
    }
    let many: Vec<String> = (2..18).map(|at| format!("--hub=127.0.0.{at}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    usage(&many, "17 hubs are too many: one emulator serves at most 16");
}

#[test]
fn an_address_of_a_hub_that_is_in_use_is_named() {
    let running = Emulator::start_with(&ARGUMENTS);
    let dir = tempfile::tempdir().expect("a directory");
    let port = running.mqtt.port().to_string();
    let mut command = binary();
    command.arg("emulator").arg("--state-dir").arg(dir.path()).args(["--bind", "127.0.0.3", "--hub", OTHER]);
    let output = run(command.args(["--mqtt-port", &port, "--amqp-port", "0", "--https-port", "0"]));
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(
        text.contains(&format!("cannot listen on 127.0.0.2:{port} for MQTT: the port is in use")),
        "{text}"
    );
}
