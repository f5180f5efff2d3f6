//! `c2d-send --transport amqp-ws`: over the emulator's WebSocket, through a proxy, and with other servers in the hub's
//! place.
//!
//! Must not know: how the connection is made.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::Command;

use crate::harness::{Emulator, binary, run};
use crate::proxied::{ConnectProxy, Portal};

/// `us@er` and `p:a%ss`, in a URL and in the header.
const LOGIN: &str = "us%40er:p%3Aa%25ss";
const HEADER: &str = "Basic dXNAZXI6cDphJXNz";

fn sender(emulator: &Emulator, https: SocketAddr) -> Command {
    let mut command = emulator.sender("dev1");
    command.args(["--transport", "amqp-ws", "--https-port", &https.port().to_string(), "--data", "x"]);
    command
}

/// A sender to `host`, which is not the emulator's.
fn sender_to(host: &str, https: SocketAddr, ca_file: &Path) -> Command {
    let mut command = binary();
    let key = "d3Jvbmcgd3Jvbmcgd3Jvbmcgd3Jvbmcgd3Jvbmc=";
    let text = format!("HostName={host};SharedAccessKeyName=service;SharedAccessKey={key}");
    command
        .env("C2D_SERVICE_CONNECTION_STRING", text)
        .arg("c2d-send")
        .args(["--device", "dev1", "--data", "x"]);
    command.args(["--transport", "amqp-ws", "--https-port", &https.port().to_string()]);
    command.arg("--ca-file").arg(ca_file);
    command
}

/// Runs the sender, and returns what it logs. Its exit code must say that nothing was sent.
#[track_caller]
fn refused(command: &mut Command) -> String {
    let output = run(command);
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "{stderr}");
    assert!(
        !stderr.contains("p:a%ss") && !stderr.contains("p%3Aa") && !stderr.contains("dXNAZX"),
        "{stderr}"
    );
    stderr
}

#[test]
fn a_message_goes_over_the_websocket_also_through_a_proxy_that_wants_a_login() {
    let emulator = Emulator::start();
    let direct = run(&mut sender(&emulator, emulator.https));
    assert!(direct.status.success(), "{}", String::from_utf8_lossy(&direct.stderr));

    let proxy = ConnectProxy::to(emulator.https, Some(HEADER));
    let url = format!("http://{LOGIN}@{}", proxy.address);
    let large = "y".repeat(60_000);
    let mut through = emulator.sender("dev1");
    through.args(["--transport", "amqp-ws", "--https-port", &emulator.https.port().to_string()]);
    let output = run(through.args(["--data", &large]).env("HTTPS_PROXY", &url));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let requests = proxy.requests();
    let asked = format!("CONNECT localhost:{} HTTP/1.1", emulator.https.port());
    assert!(requests.len() == 1 && requests[0].starts_with(&asked), "{requests:?}");

    // No proxy is used: the name in small letters takes precedence, and the hub is one of the exceptions.
    let mut past = sender(&emulator, emulator.https);
    past.env("HTTPS_PROXY", "http://127.0.0.1:1")
        .env("https_proxy", &url)
        .env("no_proxy", "example,localhost");
    assert!(run(&mut past).status.success());
    assert_eq!(proxy.requests(), Vec::<String>::new());
}

#[test]
fn each_way_in_which_a_proxy_refuses_has_its_sentence() {
    let emulator = Emulator::start();
    let with = |url: &str| refused(sender(&emulator, emulator.https).env("HTTPS_PROXY", url));

    let proxy = ConnectProxy::to(emulator.https, Some(HEADER));
    let said = with(&format!("http://{}", proxy.address));
    let words =
        format!("the proxy {} asks for credentials (status 407): give them in HTTPS_PROXY", proxy.address);
    assert!(said.contains(&words), "{said}");
    let said = with(&format!("http://us%40er:wrong@{}", proxy.address));
    assert!(said.contains("refuses the name and password of HTTPS_PROXY (status 407)"), "{said}");
    assert!(!said.contains("wrong"), "{said}");

    let forbids = "HTTP/1.1 403 Forbidden\r\nContent-Type: text/html\r\nContent-Length: 2\r\n\r\nno";
    let proxy = ConnectProxy::answering(move |_| Err(forbids.to_owned()));
    let said = with(&format!("http://{LOGIN}@{}", proxy.address));
    let port = emulator.https.port();
    let words = format!("the proxy {} refuses to connect to localhost:{port} (status 403)", proxy.address);
    assert!(said.contains(&words), "{said}");

    let proxy = ConnectProxy::answering(|_| Err("220 mail.example ESMTP\r\n".to_owned()));
    let said = with(&format!("http://{LOGIN}@{}", proxy.address));
    assert!(said.contains("does not answer as an HTTP proxy does"), "{said}");

    let closed = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address");
    let said = with(&format!("http://{LOGIN}@{closed}"));
    assert!(
        said.contains(&format!("the proxy {closed} of HTTPS_PROXY cannot be reached (Connection refused")),
        "{said}"
    );

    let said = with(&format!("socks5://{LOGIN}@{closed}"));
    assert!(said.contains("HTTPS_PROXY does not begin with http://"), "{said}");
}

#[test]
fn whatever_answers_in_the_hubs_place_is_named() {
    let dir = tempfile::tempdir().expect("a directory");
    let page = "HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\nContent-Length: 13\r\n\r\n<html></html>";
    let portal = Portal::answering(dir.path(), page);
    let said = refused(&mut sender_to("localhost", portal.address, &portal.ca_file));
    let words = format!(
        "no WebSocket to localhost on port {}: the WebSocket upgrade was answered with a web page",
        portal.address.port()
    );
    assert!(said.contains(&words) && said.contains("(status 200, text/html)"), "{said}");

    let moved = "HTTP/1.1 302 Found\r\nLocation: https://portal.example/\r\nContent-Length: 0\r\n\r\n";
    let portal = Portal::answering(dir.path(), moved);
    let said = refused(&mut sender_to("localhost", portal.address, &portal.ca_file));
    assert!(said.contains("a web page (status 302, of no type)"), "{said}");

    let busy =
        "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}";
    let portal = Portal::answering(dir.path(), busy);
    let said = refused(&mut sender_to("localhost", portal.address, &portal.ca_file));
    assert!(said.contains("the WebSocket upgrade was refused with status 503 (application/json)"), "{said}");

    let portal = Portal::answering(dir.path(), "220 mail.example ESMTP\r\n\r\n");
    let said = refused(&mut sender_to("localhost", portal.address, &portal.ca_file));
    assert!(said.contains("the answer to the WebSocket upgrade cannot be understood"), "{said}");
}

#[test]
fn a_certificate_for_another_host_and_a_closed_port_are_named() {
    let emulator = Emulator::start();
    let proxy = ConnectProxy::to(emulator.https, None);
    let url = format!("http://{}", proxy.address);
    let mut elsewhere = sender_to("hub.example", emulator.https, &emulator.ca_file());
    let said = refused(elsewhere.env("HTTPS_PROXY", &url));
    assert!(said.contains("the certificate that hub.example presents is for another host name"), "{said}");
    assert!(proxy.requests()[0].starts_with("CONNECT hub.example:"));

    let closed = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address");
    let said = refused(&mut sender(&emulator, closed));
    let words = format!("localhost refuses connections on port {} (HTTPS)", closed.port());
    assert!(said.contains(&words), "{said}");
}
