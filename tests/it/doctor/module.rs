//! The doctor of an IoT Edge module: alone, beside a device, and with a faulty workload API.

use std::io::{Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::network::closed_port;
use super::{Found, LED, doctor, stdout, within};
use crate::agent_module;
use crate::harness::{Emulator, Process, binary, run, wait_for_status, write_config};
use crate::places::{set_mode, without_rights};

/// An emulator with a module, its environment, and a directory for everything.
struct Edge {
    emulator: Emulator,
    dir: tempfile::TempDir,
    environment: Vec<(String, String)>,
}

impl Edge {
    fn start() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let socket = dir.path().join("workload.sock");
        let socket = socket.to_str().expect("UTF-8");
        let arguments = ["--device", "dev1", "--module", "edge1/agent", "--workload-socket", socket];
        let emulator = Emulator::start_with(&arguments);
        let environment = emulator.state.join("modules/edge1/agent.env");
        let environment = std::fs::read_to_string(environment).expect("an environment");
        let pairs = environment.lines().filter_map(|line| line.split_once('='));
        let environment = pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        Self { emulator, dir, environment }
    }

    /// `doctor` as the module, with only the environment that edgeAgent gives.
    fn doctor(&self) -> Command {
        let mut command = doctor(&write_config(self.dir.path(), LED));
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.env("C2D_HTTPS_PORT", self.emulator.https.port().to_string());
        command
    }

    /// As [`Edge::doctor`], with another workload API.
    fn doctor_with(&self, socket: &Path) -> Command {
        let mut command = self.doctor();
        command.env("IOTEDGE_WORKLOADURI", format!("unix://{}", socket.display()));
        command
    }

    fn generation(&self) -> &str {
        let found = self.environment.iter().find(|(name, _)| name == "IOTEDGE_MODULEGENERATIONID");
        &found.expect("a generation").1
    }
}

/// A socket that reads a request, gives this answer, and closes. Without an answer it keeps the connection.
fn daemon(dir: &Path, answer: Option<&'static str>) -> PathBuf {
    let path = dir.join("scripted.sock");
    let listener = UnixListener::bind(&path).expect("a socket");
    std::thread::spawn(move || {
        let mut open: Vec<UnixStream> = Vec::new();
        for mut stream in listener.incoming().flatten() {
            let Some(answer) = answer else {
                open.push(stream);
                continue;
            };
            // A client that only checks for a listener closes without a request.
            drop(stream.read(&mut [0; 4096]));
            drop(stream.write_all(answer.as_bytes()));
        }
    });
    path
}

const MODULE_CHECKS: [&str; 3] = ["workload-api", "trust-bundle", "generation"];

#[test]
fn a_module_that_is_well_has_its_own_checks_and_none_of_a_device() {
    let edge = Edge::start();
    let output = run(&mut edge.doctor());
    let text = stdout(&output);
    assert_eq!(output.status.code(), Some(0), "{text}");
    let heads = text.lines().take_while(|line| !line.is_empty()).map(|line| line[..24].trim_end());
    // Long details continue on another line.
    let heads: Vec<&str> = heads.filter(|head| !head.is_empty()).collect();
    let ports = [edge.emulator.mqtt.port(), edge.emulator.https.port()];
    let [mqtt, https] = ports.map(|port| format!("ok       port {port}"));
    assert_eq!(
        heads,
        [
            "ok       configuration",
            "ok       identity",
            "ok       user",
            "ok       agent",
            "ok       workload API",
            "ok       trust bundle",
            "ok       generation",
            "ok       name lookup",
            &mqtt,
            &https,
            "ok       TLS",
            "ok       server cert",
            "ok       clock",
            "ok       sign-in",
            "ok       inbox",
            "skipped  program",
            "ok       GPIO",
            "ok       pin",
        ]
    );
    let socket = edge.dir.path().join("workload.sock");
    for part in [
        &format!("module edge1/agent on hub localhost, through the gateway localhost:{}", ports[0]),
        ", by its workload API",
        &format!("{}, mode ", socket.display()),
        "1 root: \"c2d-agent emulator CA\"",
        &format!("{}: the workload API signs for agent", edge.generation()),
        "which is in the trust bundle",
        " UTC, the same as the server's",
        "the hub accepts edge1/agent",
    ] {
        assert!(text.contains(part), "no \"{part}\" in {text}");
    }
    assert!(!text.contains("secret file"), "{text}");
    let found = Found::by(&mut edge.doctor());
    assert!(found.checks.iter().all(|check| check["connection"].is_null()), "{:#?}", found.checks);
}

#[test]
fn a_device_and_a_module_have_each_their_checks() {
    let edge = Edge::start();
    let mut command = edge.doctor();
    command.env("C2D_DEVICE_CONNECTION_STRING", edge.emulator.device_string("dev1"));
    // No setting names the hub's root. Only the device needs it, not the module.
    let found = Found::by(&mut command);
    found.failed(&["tls"]);
    let of = |check: &str| {
        let all = found.checks.iter().filter(|found| found["check"] == check);
        all.map(|found| (found["connection"].as_str(), found["status"].as_str())).collect::<Vec<_>>()
    };
    let (device, module) = (Some("dev1"), Some("edge1/agent"));
    assert_eq!(of("identity"), [(device, Some("ok")), (module, Some("ok"))]);
    assert_eq!(of("tls"), [(device, Some("failed")), (module, Some("ok"))]);
    assert_eq!(of("sign-in"), [(device, Some("skipped")), (module, Some("ok"))]);
    assert_eq!(of("mqtt-port").len(), 2);
    for check in MODULE_CHECKS {
        assert_eq!(of(check), [(module, Some("ok"))]);
    }
    assert_eq!(of("secret-file"), [(None, Some("skipped"))]);
    found.says("tls", "failed", "which this machine does not trust", "C2D_CA_FILE");

    let mut command = edge.doctor();
    command.env("C2D_DEVICE_CONNECTION_STRING", edge.emulator.device_string("dev1"));
    let text = stdout(&run(command.env("C2D_CA_FILE", edge.emulator.ca_file())));
    for line in ["sign-in        dev1: the hub accepts dev1", "edge1/agent: the hub accepts edge1/agent"] {
        assert!(text.contains(line), "{text}");
    }
    assert!(text.contains(" 0 failed, 2 skipped\n"), "{text}");
}

#[test]
fn a_module_by_its_connection_string_has_neither_workload_api_nor_secret_file() {
    let edge = Edge::start();
    let config = write_config(edge.dir.path(), LED);
    let string = edge.emulator.state.join("modules/edge1/agent.connection-string");
    let string = std::fs::read_to_string(string).expect("a connection string");
    let module = || {
        let mut command = doctor(&config);
        command.env("EdgeHubConnectionString", string.trim());
        command
    };
    let found = Found::by(&mut module());
    found.failed(&["tls"]);
    found.says("tls", "failed", "which this machine does not trust", "EdgeModuleCACertificateFile");
    let found = Found::by(module().env("EdgeModuleCACertificateFile", edge.emulator.ca_file()));
    found.failed(&[]);
    found.says("sign-in", "ok", "the hub accepts edge1/agent", "");
    for check in found.checks {
        let name = check["check"].as_str().expect("a name");
        assert!(!MODULE_CHECKS.contains(&name) && name != "secret-file", "{name}");
    }
}

#[test]
fn a_running_module_is_left_alone_and_a_redeployed_one_is_told() {
    let edge = Edge::start();
    let agent = agent_module::spawn(&edge.emulator, edge.dir.path(), LED, None);
    wait_for_status(edge.dir.path(), "connected");
    let found = Found::by(&mut edge.doctor());
    found.failed(&[]);
    found.says("sign-in", "skipped", "it would disconnect the running agent", "");
    found.says("generation", "ok", "signs for agent", "");
    assert_eq!(agent.process.terminate(), Some(0));

    let found = Found::by(edge.doctor().env("IOTEDGE_MODULEGENERATIONID", "1"));
    found.failed(&["generation"]);
    let detail = "the workload API does not sign for agent in generation 1 (status 404: ";
    found.says("generation", "failed", detail, "restart the container");
    found.says("tls", "ok", "which is in the trust bundle", "");
    found.says("sign-in", "skipped", "there is no token to sign in with", "");
}

#[test]
fn a_running_agent_whose_module_is_away_is_quoted_although_its_device_is_connected() {
    let edge = Edge::start();
    let gateway = format!("localhost:{}", closed_port());
    let mut command = edge.doctor();
    command.env("C2D_DEVICE_CONNECTION_STRING", edge.emulator.device_string("dev1"));
    command.env("C2D_CA_FILE", edge.emulator.ca_file()).env("IOTEDGE_GATEWAYHOSTNAME", &gateway);
    let mut agent = binary();
    agent.arg("run").arg("-c").arg(edge.dir.path().join("config.toml"));
    agent.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let agent = Process::spawn(&mut agent);
    agent.stderr.wait_for("subscribed");
    agent.stderr.wait_for(&format!("{gateway} refused the connection"));
    wait_for_status(edge.dir.path(), "connected");
    let found = Found::by(&mut command);
    let reason = format!("is not connected: module edge1/agent: {gateway} refused the connection");
    found.says("agent", "warning", &reason, "see the checks below");
    found.failed(&["mqtt-port"]);
    assert_eq!(agent.terminate(), Some(0));
}

#[test]
fn a_workload_socket_that_is_missing_in_the_way_or_closed_is_told() {
    let edge = Edge::start();
    let elsewhere = edge.dir.path().join("elsewhere.sock");
    let found = Found::by(&mut edge.doctor_with(&elsewhere));
    found.failed(&["workload-api"]);
    found.says("workload-api", "failed", "elsewhere.sock is not there", "docker exec NAME c2d-agent doctor");
    found.says("trust-bundle", "skipped", "the workload socket cannot be used", "");
    found.says("tls", "skipped", "there is no trust bundle", "");
    found.says("sign-in", "skipped", "without a trust bundle", "");
    found.says("mqtt-port", "ok", "answers in ", "");

    std::fs::create_dir(&elsewhere).expect("a directory");
    let found = Found::by(&mut edge.doctor_with(&elsewhere));
    found.says("workload-api", "failed", "is not a socket", "mounts a directory if the socket is missing");
    std::fs::remove_dir(&elsewhere).expect("removed");

    drop(UnixListener::bind(&elsewhere).expect("a socket"));
    let found = Found::by(&mut edge.doctor_with(&elsewhere));
    found.says("workload-api", "failed", "nothing listens on ", "restart this container");
}

#[test]
fn a_workload_socket_that_this_user_may_not_open_is_told_with_its_mode() {
    let edge = Edge::start();
    set_mode(edge.dir.path(), 0o755);
    let closed = edge.dir.path().join("closed.sock");
    let _listener = UnixListener::bind(&closed).expect("a socket");
    set_mode(&closed, 0o600);
    let command = edge.doctor_with(&closed);
    let Some(mut command) = without_rights("doctor and a closed workload socket", &command) else { return };
    let found = Found::by(&mut command);
    assert_eq!(found.code, Some(1));
    found.says("workload-api", "failed", "may not connect to ", "a user that the socket's mode allows");
    found.says("workload-api", "failed", "closed.sock, mode 0600, of ", "");
}

#[test]
fn a_workload_api_that_hangs_is_given_up_in_time_and_nothing_else_waits_for_it() {
    let edge = Edge::start();
    let socket = daemon(edge.dir.path(), None);
    let found = within(Duration::from_secs(25), &mut edge.doctor_with(&socket));
    found.failed(&["trust-bundle", "generation"]);
    for check in ["trust-bundle", "generation"] {
        found.says(check, "failed", "accepts the request, but does not answer within 5 s", "restart it");
    }
    found.says("pin", "ok", "simulated", "");
}

#[test]
fn a_workload_api_that_answers_with_a_page_or_nothing_is_quoted() {
    let edge = Edge::start();
    let page = "HTTP/1.1 200 OK\r\ncontent-length: 21\r\n\r\n<html>Sign in: </html";
    let found = Found::by(&mut edge.doctor_with(&daemon(edge.dir.path(), Some(page))));
    found.failed(&["trust-bundle", "generation"]);
    let detail = "gives its trust bundle without JSON, but with \"<html>Sign in: </html\"";
    found.says("trust-bundle", "failed", detail, "check that IOTEDGE_WORKLOADURI names the socket");
    found.says("generation", "failed", "signs without JSON", "IOTEDGE_WORKLOADURI");

    std::fs::remove_file(edge.dir.path().join("scripted.sock")).expect("removed");
    let found = Found::by(&mut edge.doctor_with(&daemon(edge.dir.path(), Some(""))));
    found.failed(&["trust-bundle", "generation"]);
    found.says("generation", "failed", "closed the connection without an answer (", "iotedge system status");

    std::fs::remove_file(edge.dir.path().join("scripted.sock")).expect("removed");
    let bundle = "HTTP/1.1 200 OK\r\ncontent-length: 24\r\n\r\n{\"certificate\":\"nothing\"}"; // one byte is cut off
    let bundle = Found::by(&mut edge.doctor_with(&daemon(edge.dir.path(), Some(bundle))));
    bundle.says("trust-bundle", "failed", "JSON of another form", "IOTEDGE_WORKLOADURI");
}

#[test]
fn a_gateway_that_is_not_there_or_not_the_right_one_is_told_in_the_words_of_edge() {
    let edge = Edge::start();
    let port = closed_port();
    let found = Found::by(edge.doctor().env("IOTEDGE_GATEWAYHOSTNAME", format!("localhost:{port}")));
    found.failed(&["mqtt-port"]);
    found.says("mqtt-port", "failed", "the connection is refused", "check that edgeHub runs (iotedge list)");
    found.says("sign-in", "skipped", "no TLS connection", "");
    let found = Found::by(edge.doctor().env("IOTEDGE_GATEWAYHOSTNAME", "no-such-gateway.invalid"));
    found.failed(&["name-lookup"]);
    let remedy = "check IOTEDGE_GATEWAYHOSTNAME, and that this container is in the network of edgeHub";
    found.says("name-lookup", "failed", "no-such-gateway.invalid was not found", remedy);
    // The other emulator has its own authority.
    let other = Emulator::start();
    let found =
        Found::by(edge.doctor().env("IOTEDGE_GATEWAYHOSTNAME", format!("localhost:{}", other.mqtt.port())));
    found.failed(&["tls"]);
    found.says(
        "tls",
        "failed",
        "which this machine does not trust",
        "trust_bundle_cert in /etc/aziot/config.toml",
    );
}

#[test]
fn half_an_environment_is_a_matter_of_the_identity_and_a_good_device_beside_it_is_examined() {
    let edge = Edge::start();
    let found = Found::by(edge.doctor().env_remove("IOTEDGE_DEVICEID"));
    found.failed(&["configuration", "identity"]);
    found.says("identity", "failed", "IOTEDGE_DEVICEID is not set", "let edgeAgent start it");
    found.says("sign-in", "skipped", "does not say who signs in", "");
    let mut command = edge.doctor();
    command.env_remove("IOTEDGE_DEVICEID").env("C2D_CA_FILE", edge.emulator.ca_file());
    let found = Found::by(command.env("C2D_DEVICE_CONNECTION_STRING", edge.emulator.device_string("dev1")));
    found.failed(&["configuration", "identity"]);
    found.says("sign-in", "ok", "the hub accepts dev1", "");
}

#[test]
fn offline_the_workload_api_of_this_machine_is_asked_all_the_same() {
    let edge = Edge::start();
    let found = Found::by(edge.doctor().arg("--offline"));
    found.failed(&[]);
    for check in MODULE_CHECKS {
        assert_eq!(found.check(check)["status"], "ok", "{check}");
    }
    for check in ["name-lookup", "tls", "sign-in"] {
        found.says(check, "skipped", "--offline", "");
    }
}
