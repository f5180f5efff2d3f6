//! The doctor's checks of the way to the hub: names, ports, TLS, the clock, the sign-in.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use super::servers::{self, BlackHole, GOOD, Terms};
use super::{Found, KEY, LED, doctor, healthy, within};
use crate::clock::clock_set_to;
use crate::harness::{Agent, Emulator, Proxy, binary, run, skip, write_config};
use crate::mosquitto::Mosquitto;

/// How long all checks of the network may take together.
const LIMIT: Duration = Duration::from_secs(30);

/// A port of loopback without a listener.
pub(super) fn closed_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").expect("a free port").local_addr().expect("an address").port()
}

/// `doctor` as a device of a hub at this address.
fn at(dir: &Path, hub: SocketAddr, ca_file: Option<&Path>) -> Command {
    let mut command = doctor(&write_config(dir, LED));
    let string = format!("HostName=localhost:{};DeviceId=dev1;SharedAccessKey={KEY}", hub.port());
    command.env("C2D_DEVICE_CONNECTION_STRING", string);
    if let Some(ca_file) = ca_file {
        command.env("C2D_CA_FILE", ca_file);
    }
    command.env("C2D_HTTPS_PORT", closed_port().to_string());
    command
}

fn dir() -> tempfile::TempDir {
    tempfile::tempdir().expect("a directory")
}

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

#[test]
fn a_name_that_nobody_knows_ends_the_checks_of_the_network_only() {
    let dir = dir();
    let mut command = doctor(&write_config(dir.path(), LED));
    let string = format!("HostName=no-such-hub.invalid;DeviceId=dev1;SharedAccessKey={KEY}");
    let found = within(LIMIT, command.env("C2D_DEVICE_CONNECTION_STRING", string));
    found.failed(&["name-lookup"]);
    found.says("name-lookup", "failed", "no-such-hub.invalid", "DNS (/etc/resolv.conf) and network");
    found.says("mqtt-port", "skipped", "there is no address", "");
    found.says("sign-in", "skipped", "no TLS connection", "");
    found.says("pin", "ok", "simulated", "");
}

#[test]
fn a_firewall_is_told_by_the_other_port() {
    let (dir, emulator, hole) = (dir(), Emulator::start(), BlackHole::open());
    let mut command = at(dir.path(), hole.address, Some(&emulator.ca_file()));
    let found = Found::by(command.env("C2D_HTTPS_PORT", emulator.https.port().to_string()));
    found.failed(&["mqtt-port"]);
    let open = format!("no answer within 5 s, but port {} answers", emulator.https.port());
    let blocked = hole.address.port();
    let remedy = format!("a firewall blocks {blocked}: allow outgoing connections to localhost:{blocked}");
    found.says("mqtt-port", "failed", &open, &remedy);
    found.says("clock", "ok", "as the server's", "");
}

#[test]
fn a_port_of_this_machine_that_nothing_listens_on_is_no_matter_of_a_firewall() {
    let (dir, emulator) = (dir(), Emulator::start());
    let closed = closed_port();
    let mut command = at(dir.path(), loopback(closed), Some(&emulator.ca_file()));
    let found = Found::by(command.env("C2D_HTTPS_PORT", emulator.https.port().to_string()));
    found.failed(&["mqtt-port"]);
    let open = format!("the connection is refused, but port {} answers", emulator.https.port());
    let remedy =
        format!("nothing listens on port {closed} of this machine: check that HostName has the port");
    found.says("mqtt-port", "failed", &open, &remedy);
    // Neither port answers.
    let found = Found::by(&mut at(dir.path(), loopback(closed), None));
    found.failed(&["mqtt-port"]);
    found.says(
        "mqtt-port",
        "failed",
        "the connection is refused",
        "whether the hub (emulator, gateway) runs",
    );
    found.says("https-port", "warning", "does not answer, either", "the network first");
}

#[test]
fn a_port_that_swallows_what_comes_is_given_up_in_time() {
    let (dir, hole) = (dir(), BlackHole::open());
    let found = within(LIMIT, &mut at(dir.path(), hole.address, None));
    found.failed(&["mqtt-port"]);
    found.says("mqtt-port", "failed", "no answer within 5 s", "whether a firewall drops everything");
}

#[test]
fn a_server_that_never_answers_is_given_up_in_time() {
    let dir = dir();
    // The kernel makes the connections, but no program accepts them.
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let found = within(LIMIT, &mut at(dir.path(), listener.local_addr().expect("an address"), None));
    found.failed(&["tls"]);
    found.says(
        "tls",
        "failed",
        "accepts the connection, but does not answer within 5 s",
        "proxy or a firewall",
    );
    found.says("server-certificate", "skipped", "presented none", "");
}

#[test]
fn a_server_without_tls_is_told() {
    let dir = dir();
    let found = Found::by(&mut at(dir.path(), servers::plain_text(), None));
    found.failed(&["tls"]);
    found.says("tls", "failed", "localhost answers, but not with TLS", "check the port");
    let found = Found::by(&mut at(dir.path(), servers::hangs_up(), None));
    found.failed(&["tls"]);
    found.says("tls", "failed", "localhost closes the connection during the TLS handshake", "check the port");
}

#[test]
fn a_certificate_of_nobody_that_is_known_names_who_signed_it() {
    let dir = dir();
    let (address, _) = servers::tls(dir.path(), &GOOD);
    let found = Found::by(&mut at(dir.path(), address, None));
    found.failed(&["tls"]);
    let signed = "\"localhost\" is signed by \"Example CA\", which this machine does not trust";
    found.says("tls", "failed", signed, "C2D_CA_FILE (emulator, IoT Edge gateway)");
    found.says("server-certificate", "ok", "good until 2090-01-01", "");
    found.says("clock", "ok", "within the dates of the server's certificate", "");
}

#[test]
fn a_certificate_for_another_host_names_it() {
    let dir = dir();
    let terms = Terms { name: "hub.example", ..GOOD };
    let (address, ca_file) = servers::tls(dir.path(), &terms);
    let found = Found::by(&mut at(dir.path(), address, Some(&ca_file)));
    found.failed(&["tls"]);
    let detail = "the certificate is for hub.example, signed by \"Example CA\", not for localhost";
    found.says("tls", "failed", detail, "check HostName or GatewayHostName");
}

#[test]
fn a_certificate_out_of_its_dates_is_told_with_them() {
    let dir = dir();
    let (address, ca_file) = servers::tls(dir.path(), &Terms { until: 2021, ..GOOD });
    let found = Found::by(&mut at(dir.path(), address, Some(&ca_file)));
    found.failed(&["tls", "server-certificate"]);
    found.says("tls", "failed", "has expired", "renew it there, or check this machine's clock");
    found.says("server-certificate", "failed", "that of \"localhost\" expired on 2021-01-01", "clock first");
    found.says(
        "clock",
        "warning",
        "not within the dates of the server's certificate, 2020-01-01 to 2021-01-01",
        "set it",
    );
    let (address, ca_file) = servers::tls(dir.path(), &Terms { from: 2080, ..GOOD });
    let found = Found::by(&mut at(dir.path(), address, Some(&ca_file)));
    found.failed(&["tls", "server-certificate"]);
    found.says("server-certificate", "failed", "is good from 2080-01-01 on only", "clock first");
}

#[test]
fn a_clock_that_is_off_is_told_by_the_servers_time() {
    if clock_set_to("+0").is_none() {
        return skip("a clock that is off is told by doctor", "faketime is not installed");
    }
    let (dir, emulator) = (dir(), Emulator::start());
    let shifted = |by: &str| {
        let mut command = healthy(&emulator, dir.path());
        Found::by(command.envs(clock_set_to(by).unwrap_or_default()))
    };
    let ahead = shifted("+5h");
    ahead.failed(&[]);
    ahead.says("clock", "warning", ", 5 h ahead of the server's", "timedatectl set-ntp true");
    let behind = shifted("-3h");
    behind.failed(&["clock", "sign-in"]);
    behind.says(
        "clock",
        "failed",
        ", 3 h behind the server's: its tokens are expired as soon as it makes them",
        "set it",
    );
    behind.says("sign-in", "failed", "refused device dev1", "this machine's clock");
    // The clock is so far behind that the server's certificate is not valid yet. The doctor still asks for the time.
    let year = shifted("-400d");
    year.failed(&["tls", "server-certificate", "clock"]);
    year.says("clock", "failed", ", 400 days behind the server's", "set it");
    let unset = shifted("1970-01-01 00:01:40");
    unset.says("clock", "failed", "it has not been set, and says 1970-01-01 00:01:40 UTC", "set it");
}

#[test]
fn a_hub_that_refuses_the_device_is_quoted() {
    let (dir, emulator) = (dir(), Emulator::start());
    let sign_in = |from: &str, to: &str| {
        let string = emulator.device_string("dev1").replace(from, to);
        Found::by(healthy(&emulator, dir.path()).env("C2D_DEVICE_CONNECTION_STRING", string))
    };
    let own_key = emulator.device_string("dev1").split_once("SharedAccessKey=").expect("a key").1.to_owned();
    for found in [sign_in(&own_key, KEY), sign_in("DeviceId=dev1", "DeviceId=dev2")] {
        found.failed(&["sign-in"]);
        found.says(
            "sign-in",
            "failed",
            "the hub at localhost:",
            "the key (or certificate) is wrong, the device does not",
        );
    }
}

#[test]
fn a_device_with_a_certificate_signs_in_to_a_broker_that_is_not_ours_without_a_trace() {
    let broker = match Mosquitto::start() {
        Ok(broker) => broker,
        Err(lack) => return skip("doctor with Mosquitto", lack),
    };
    let dir = dir();
    drop(broker.start_agent(dir.path(), LED));
    let found = Found::by(&mut doctor(&dir.path().join("config.toml")));
    found.failed(&[]);
    found.says("device-certificate", "ok", "\"dev1\" in ", "");
    found.says("secret-file", "ok", "client.key, mode 0600", "");
    found.says("sign-in", "ok", "the hub accepts dev1", "");
    broker.process.stderr.wait_for("Received DISCONNECT from dev1");
    let clean = broker.process.stderr.wait_for_nth("as dev1 (p2,", 2);
    assert!(clean.contains("c1"), "a clean session: {clean}");
    assert_eq!(broker.process.stderr.count("Received SUBSCRIBE from dev1"), 1, "the agent's");
}

#[test]
fn a_gateway_at_an_ipv6_address_is_dialled_by_agent_and_doctor() {
    let Ok(_free) = TcpListener::bind("[::1]:0") else {
        return skip("an IPv6 address as gateway", "there is no IPv6 on loopback");
    };
    let (dir, emulator) = (dir(), Emulator::start_with(&["--device", "dev1", "--bind", "::1"]));
    let string = emulator.device_string("dev1");
    let string = format!("{string};GatewayHostName=[::1]:{}", emulator.mqtt.port());
    let found = Found::by(healthy(&emulator, dir.path()).env("C2D_DEVICE_CONNECTION_STRING", &string));
    found.failed(&[]);
    found.says("name-lookup", "ok", "::1 is an address itself", "");
    found.says("sign-in", "ok", "the hub accepts dev1", "");
    let agent = Agent::spawn(&string, &emulator.ca_file(), dir.path(), LED);
    agent.process.stderr.wait_for("subscribed");
    assert_eq!(agent.process.terminate(), Some(0));
}

#[test]
fn a_connection_that_is_cut_at_the_sign_in_is_told() {
    let (dir, emulator) = (dir(), Emulator::start());
    let proxy = Proxy::to(emulator.amqp);
    let found = Found::by(&mut at(dir.path(), proxy.address, Some(&emulator.ca_file())));
    found.failed(&["sign-in"]);
    found.says(
        "sign-in",
        "failed",
        "closed the connection before it answered the sign-in",
        "IoT Hub (or gateway)",
    );
}

#[test]
fn a_bad_port_is_a_mistake_of_the_command_line() {
    for port in ["0", "70000", "x"] {
        let output = run(binary().args(["doctor", "--https-port", port]));
        assert_eq!(output.status.code(), Some(2), "{port}");
    }
}
