//! The agent over a WebSocket: directly, through a proxy, with other servers in the hub's place, and from one transport
//! to another.
//!
//! Must not know: how the connection is made.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::Command;

use rustix::process::Signal;

use crate::harness::{Emulator, Process, binary, run, wait_for_file, wait_for_status, write_config};
use crate::over::WEBSOCKETS;
use crate::proxied::{ConnectProxy, Portal};

/// `us@er` and `p:a%ss`, in a URL and in the header.
const LOGIN: &str = "us%40er:p%3Aa%25ss";
const HEADER: &str = "Basic dXNAZXI6cDphJXNz";

/// A rule that writes the body of each message into `out`, one per line.
const RULE: &str =
    "[[rule]]\nname = \"write\"\nwhen = \"any\"\ndo = [ { shell = \"cat >> out; echo >> out\" } ]\n";

fn config(dir: &Path, device: &str) -> String {
    let text = format!("[device]\n{device}\n{}", RULE.replace("out", &dir.join("out").display().to_string()));
    write_config(dir, &text).display().to_string()
}

/// `c2d-agent run` as `dev1`, with WebSockets at `https`.
fn agent(emulator: &Emulator, dir: &Path, device: &str, https: SocketAddr) -> Command {
    let mut command = binary();
    command.arg("run").arg("-c").arg(config(dir, device));
    command.env("C2D_CA_FILE", emulator.ca_file()).env("C2D_HTTPS_PORT", https.port().to_string());
    if !device.contains("hub") {
        command.env("C2D_DEVICE_CONNECTION_STRING", emulator.device_string("dev1"));
    }
    command
}

/// Starts the agent and waits until it has subscribed.
fn start(command: &mut Command) -> Process {
    let agent = Process::spawn(command);
    agent.stderr.wait_for("subscribed");
    agent
}

/// An address without a listener.
fn closed() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address")
}

#[test]
fn messages_come_over_a_websocket_through_a_proxy_and_again_after_a_cut() {
    WEBSOCKETS.iter().for_each(|transport| messages_come(transport));
}

fn messages_come(transport: &str) {
    let emulator = Emulator::start();
    let dir = tempfile::tempdir().expect("a directory");
    let proxy = ConnectProxy::to(emulator.https, Some(HEADER));
    let url = format!("http://{LOGIN}@{}", proxy.address);
    let mut command = agent(&emulator, dir.path(), &format!("transport = \"{transport}\""), emulator.https);
    let agent = start(command.env("HTTPS_PROXY", &url).env("C2D_LOG", "debug"));
    let signed_in = agent.stderr.wait_for("signed in");
    let port = format!("port={}", emulator.https.port());
    let over = format!("transport=\"{transport}\"");
    assert!(signed_in.contains(&over) && signed_in.contains(&port), "{signed_in}");

    let large = "x".repeat(60_000);
    emulator.send("dev1", &["--data", &large, "--wait=20s"]);
    proxy.cut();
    agent.stderr.wait_for_nth("subscribed", 2);
    emulator.send("dev1", &["--data", "after the cut", "--wait=20s"]);
    let out = wait_for_file(&dir.path().join("out"), "after the cut");
    assert!(out.starts_with(&large));
    assert_eq!(agent.terminate(), Some(0));
    assert_eq!(proxy.requests().len(), 2, "both connections went through the proxy");
    let log = agent.stderr.text();
    assert!(!log.contains("p:a%ss") && !log.contains("p%3Aa") && !log.contains("dXNAZX"), "{log}");
    if transport == "mqtt-ws" {
        // The agent ended the connection in order: the emulator reports a device that vanishes with another line.
        emulator.process.stderr.wait_for("the device sent DISCONNECT");
    }
}

#[test]
fn a_certificate_signs_in_over_a_websocket_and_a_token_is_renewed_there() {
    WEBSOCKETS.iter().for_each(|transport| certificate_and_token(transport));
}

fn certificate_and_token(transport: &str) {
    let emulator = Emulator::start_with(&["--device", "dev1", "--x509-device", "pi-01"]);
    let dir = tempfile::tempdir().expect("a directory");
    let device = format!(
        "transport = \"{transport}\"\nhub = \"localhost\"\ndevice_id = \"pi-01\"\ncertificate = \"{0}/devices/pi-01.cert.pem\"\n\
         private_key = \"{0}/devices/pi-01.key.pem\"",
        emulator.state.display()
    );
    let with_certificate = start(&mut agent(&emulator, dir.path(), &device, emulator.https));
    emulator.send("pi-01", &["--data", "x", "--wait=20s"]);
    assert_eq!(with_certificate.terminate(), Some(0));

    let dir = tempfile::tempdir().expect("a directory");
    let device = format!("transport = \"{transport}\"\ntoken_lifetime = \"5s\"");
    let renewing = start(&mut agent(&emulator, dir.path(), &device, emulator.https));
    if transport == "amqp-ws" {
        renewing.stderr.wait_for_nth("renewed the token", 2);
    } else {
        renewing.stderr.wait_for("disconnected to renew the token");
        renewing.stderr.wait_for_nth("subscribed", 2);
    }
    emulator.send("dev1", &["--data", "renewed", "--wait=20s"]);
    // Over AMQP the token is renewed without a new connection.
    let again = renewing.stderr.count("signed in") > 1;
    assert_eq!(again, transport == "mqtt-ws", "{}", renewing.stderr.text());
    assert_eq!(renewing.stderr.count("not connected"), 0, "{}", renewing.stderr.text());
    wait_for_file(&dir.path().join("out"), "renewed");
    assert_eq!(renewing.terminate(), Some(0));
}

#[test]
fn auto_takes_whichever_way_works_and_a_reload_takes_another() {
    let emulator = Emulator::start();
    let dir = tempfile::tempdir().expect("a directory");
    let blocked = emulator
        .device_string("dev1")
        .replace(&format!("localhost:{}", emulator.mqtt.port()), &format!("localhost:{}", closed().port()));
    let mut command = agent(&emulator, dir.path(), "transport = \"auto\"", emulator.https);
    let found = start(command.env("C2D_DEVICE_CONNECTION_STRING", blocked));
    assert_eq!(found.stderr.count("not connected"), 1, "one attempt on the port that is closed");
    found.stderr.wait_for("transport=\"mqtt-ws\"");
    wait_for_status(dir.path(), " over mqtt-ws, ");
    emulator.send("dev1", &["--data", "x", "--wait=20s"]);
    assert_eq!(found.terminate(), Some(0));

    let dir = tempfile::tempdir().expect("a directory");
    let reloading = start(&mut agent(&emulator, dir.path(), "transport = \"auto\"", emulator.https));
    reloading.stderr.wait_for("transport=\"mqtt\"");
    config(dir.path(), "transport = \"mqtt-ws\"");
    reloading.signal(Signal::HUP);
    reloading.stderr.wait_for("transport=\"mqtt-ws\"");
    reloading.stderr.wait_for_nth(" subscribed", 2);
    emulator.send("dev1", &["--data", "reloaded", "--wait=20s"]);
    for (transport, n) in WEBSOCKETS.iter().rev().zip(3..) {
        config(dir.path(), &format!("transport = \"{transport}\"\ntoken_lifetime = \"{n}h\""));
        reloading.signal(Signal::HUP);
        reloading.stderr.wait_for_nth("subscribed", n);
        wait_for_status(dir.path(), &format!(" over {transport}, "));
        emulator.send("dev1", &["--data", "reloaded", "--wait=20s"]);
    }
    assert_eq!(reloading.terminate(), Some(0));
}

#[test]
fn each_obstacle_on_the_way_has_its_sentence() {
    WEBSOCKETS.iter().for_each(|transport| obstacles(transport));
}

fn obstacles(transport: &str) {
    let emulator = Emulator::start();
    let dir = tempfile::tempdir().expect("a directory");
    let said = |https: SocketAddr, change: &dyn Fn(&mut Command)| {
        let mut command = agent(&emulator, dir.path(), &format!("transport = \"{transport}\""), https);
        change(&mut command);
        let agent = Process::spawn(&mut command);
        let line = agent.stderr.wait_for("not connected");
        assert!(!line.contains("p:a%ss") && !line.contains("p%3Aa"), "{line}");
        assert_eq!(agent.terminate(), Some(0));
        line
    };
    let proxied = |proxy: &ConnectProxy, login: &str| {
        let url = format!("http://{login}{}", proxy.address);
        said(emulator.https, &|command| {
            command.env("HTTPS_PROXY", &url);
        })
    };
    let wants_login = ConnectProxy::to(emulator.https, Some(HEADER));
    let line = proxied(&wants_login, "");
    assert!(line.contains("asks for credentials (status 407)"), "{line}");
    let line = proxied(&wants_login, "us%40er:wrong@");
    assert!(line.contains("refuses the name and password of HTTPS_PROXY (status 407)"), "{line}");
    let forbids =
        ConnectProxy::answering(|_| Err("HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n".into()));
    let line = proxied(&forbids, "");
    assert!(line.contains("refuses to connect to localhost:") && line.contains("(status 403)"), "{line}");
    let nowhere = format!("http://{}", closed());
    let line = said(emulator.https, &|command| {
        command.env("https_proxy", &nowhere);
    });
    assert!(line.contains("of HTTPS_PROXY cannot be reached (Connection refused"), "{line}");

    let page = "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 2\r\n\r\nhi";
    let portal = Portal::answering(dir.path(), page);
    let line = said(portal.address, &|command| {
        command.env("C2D_CA_FILE", &portal.ca_file);
    });
    assert!(line.contains("answered with a web page (status 200, text/html)"), "{line}");
    let busy = Portal::answering(dir.path(), "HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n");
    let line = said(busy.address, &|command| {
        command.env("C2D_CA_FILE", &busy.ca_file);
    });
    assert!(line.contains("the WebSocket upgrade was refused with status 503"), "{line}");

    let elsewhere = ConnectProxy::to(emulator.https, None);
    let url = format!("http://{}", elsewhere.address);
    let other = emulator.device_string("dev1").replace("HostName=localhost", "HostName=hub.example");
    let line = said(emulator.https, &|command| {
        command.env("HTTPS_PROXY", &url).env("C2D_DEVICE_CONNECTION_STRING", &other);
    });
    assert!(line.contains("the certificate that hub.example presents is for another host name"), "{line}");
    let line = said(closed(), &|_| {});
    assert!(line.contains("refused the connection: nothing listens on that port"), "{line}");
}

#[test]
fn check_says_the_way_and_what_is_wrong_with_it() {
    let emulator = Emulator::start();
    let dir = tempfile::tempdir().expect("a directory");
    let check = |device: &str, proxy: &str, port: &str| {
        let mut command = binary();
        command.args(["check", "-c"]).arg(config(dir.path(), device)).env("HTTPS_PROXY", proxy);
        command
            .env("C2D_HTTPS_PORT", port)
            .env("C2D_DEVICE_CONNECTION_STRING", emulator.device_string("dev1"));
        let output = run(&mut command);
        let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        (output.status.code(), text.concat())
    };
    let (code, text) = check("transport = \"mqtt-ws\"", "", "");
    assert!(code == Some(0) && text.contains("MQTT over a WebSocket on port 443"), "{text}");
    {
        let (code, text) = check("transport = \"amqp-ws\"", "", "8443");
        assert!(code == Some(0) && text.contains("AMQP over a WebSocket on port 8443"), "{text}");
    }
    let (code, text) = check("transport = \"mqtt-ws\"", "socks5://n:secret@h:1", "x");
    assert!(code == Some(2) && text.contains("HTTPS_PROXY does not begin with http://"), "{text}");
    assert!(text.contains("C2D_HTTPS_PORT is not a port") && !text.contains("secret"), "{text}");
    let (code, text) = check("transport = \"carrier-pigeon\"", "", "");
    assert!(code == Some(2) && text.contains("mqtt-ws"), "{text}");
}

#[test]
fn the_doctor_signs_in_through_the_proxy() {
    WEBSOCKETS.iter().for_each(|transport| doctor(transport));
}

fn doctor(transport: &str) {
    let emulator = Emulator::start();
    let dir = tempfile::tempdir().expect("a directory");
    let proxy = ConnectProxy::to(emulator.https, Some(HEADER));
    let mut command = binary();
    command
        .args(["doctor", "--sign-in", "-c"])
        .arg(config(dir.path(), &format!("transport = \"{transport}\"")));
    command.env("C2D_CA_FILE", emulator.ca_file()).env("C2D_HTTPS_PORT", emulator.https.port().to_string());
    command.env("C2D_DEVICE_CONNECTION_STRING", emulator.device_string("dev1"));
    let output = run(command.env("HTTPS_PROXY", format!("http://{LOGIN}@{}", proxy.address)));
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("the hub accepts dev1"), "{text}");
    assert!(text.contains(&format!("uses the proxy {}", proxy.address)), "{text}");
    assert_eq!(proxy.requests().len(), 1);
}

#[test]
fn check_says_what_is_known_of_certificates_over_a_websocket() {
    let emulator = Emulator::start_with(&["--x509-device", "pi-01"]);
    let dir = tempfile::tempdir().expect("a directory");
    let check = |transport: &str| {
        let device = format!(
            "transport = \"{transport}\"\nhub = \"localhost\"\ndevice_id = \"pi-01\"\n\
             certificate = \"{0}/devices/pi-01.cert.pem\"\nprivate_key = \"{0}/devices/pi-01.key.pem\"",
            emulator.state.display()
        );
        let output = run(binary().args(["check", "-c"]).arg(config(dir.path(), &device)));
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        String::from_utf8_lossy(&output.stdout).contains("some hubs have refused client certificates")
    };
    assert!(!check("mqtt"));
    assert!(WEBSOCKETS.iter().all(|transport| check(transport)));
}
