//! Obstacles between the agent and its hub, over each transport. The agent names each in one sentence, and tries again.
//!
//! Must not know: how the connection is made.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::harness::{Agent, Emulator, Process, wait_for_file};
use crate::over::{self, WEBSOCKETS};
use crate::proxied::{ConnectProxy, Portal, Relay};

const PAGE: &str = "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 2\r\n\r\nhi";

fn dir() -> tempfile::TempDir {
    tempfile::tempdir().expect("a directory")
}

/// A rule that writes the bodies of its messages into the file `done`.
fn rule(dir: &Path) -> String {
    let done = dir.join("done");
    format!(
        "[[rule]]\nname = \"any\"\nwhen = \"any\"\ndo = [ {{ shell = \"cat >> {}\" }} ]\n",
        done.display()
    )
}

/// A server without TLS that sends the same page to every client.
fn without_tls() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("an address");
    std::thread::spawn(move || {
        for mut client in listener.incoming().flatten() {
            // The client may have closed the connection already.
            drop(client.write_all(PAGE.as_bytes()));
            drop(client.read(&mut [0; 4096]));
        }
    });
    address
}

/// The file `ca.pem` with several roots in it.
fn trusting(dir: &Path, roots: &[&Path]) -> std::path::PathBuf {
    let all: String =
        roots.iter().map(|root| std::fs::read_to_string(root).expect("a root") + "\n").collect();
    std::fs::write(dir.join("ca.pem"), all).expect("written");
    dir.join("ca.pem")
}

/// Asserts that the agent has said these sentences in order, has signed in by itself, and acts on messages.
fn waited_out(agent: &Process, emulator: &Emulator, dir: &Path, sentences: &[&str]) {
    let said = |n: usize| agent.stderr.wait_for_nth("not connected", n + 1);
    for (n, sentence) in sentences.iter().enumerate() {
        let line = said(n);
        assert!(line.contains(sentence), "\"{sentence}\" is not in: {line}");
    }
    agent.stderr.wait_for("subscribed");
    emulator.send("dev1", &["--data", "after all", "--wait=20s"]);
    wait_for_file(&dir.join("done"), "after all");
    assert_eq!(agent.stderr.count("not connected"), sentences.len(), "{}", agent.stderr.text());
    assert_eq!(agent.terminate(), Some(0));
}

#[test]
fn a_certificate_for_another_host_and_a_page_of_a_hotel_are_named_and_waited_out() {
    over::each(|transport| {
        let (emulator, dir) = (Emulator::start(), dir());
        let other = Portal::named(dir.path(), "elsewhere.example", PAGE);
        let hotel = Portal::named(dir.path(), "localhost", PAGE);
        let relay = Relay::leading(vec![other.address, hotel.address, over::address(&emulator, transport)]);
        let roots = [emulator.ca_file(), other.ca_file, hotel.ca_file];
        let ca_file = trusting(dir.path(), &roots.each_ref().map(|root| root.as_path()));
        let rule = rule(dir.path());
        let port = relay.address.port();
        let mut command = over::command(&emulator, transport, port, dir.path(), ["", &rule]);
        let agent = Process::spawn(command.env("C2D_CA_FILE", ca_file));
        let page = match transport {
            "mqtt" => "check that the host is an IoT Hub (or gateway)",
            "amqp" => "does not behave like an IoT Hub (it does not answer with AMQP)",
            _ => "the WebSocket upgrade was answered with a web page (status 200, text/html)",
        };
        let host = "the certificate that localhost presents is for another host name";
        waited_out(&agent, &emulator, dir.path(), &[host, page]);
    });
}

#[test]
fn a_port_that_answers_without_tls_is_named_and_waited_out() {
    over::each(|transport| {
        let (emulator, dir) = (Emulator::start(), dir());
        let relay = Relay::leading(vec![without_tls(), over::address(&emulator, transport)]);
        let Agent { process, .. } =
            over::spawn(&emulator, transport, relay.address.port(), dir.path(), ["", &rule(dir.path())]);
        waited_out(&process, &emulator, dir.path(), &["answers, but not with TLS"]);
    });
}

#[test]
fn a_proxy_that_refuses_is_named_and_waited_out() {
    std::thread::scope(|scope| {
        for transport in WEBSOCKETS {
            scope.spawn(|| refused_by_the_proxy(transport));
        }
    });
}

fn refused_by_the_proxy(transport: &str) {
    let (emulator, dir) = (Emulator::start(), dir());
    let (asked, hub) = (AtomicUsize::new(0), emulator.https);
    let proxy = ConnectProxy::answering(move |_| match asked.fetch_add(1, Ordering::Relaxed) {
        0 => Err("HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n".to_owned()),
        1 => Err("HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n".to_owned()),
        _ => Ok(hub),
    });
    let port = hub.port();
    let mut command = over::command(&emulator, transport, port, dir.path(), ["", &rule(dir.path())]);
    let agent = Process::spawn(command.env("HTTPS_PROXY", format!("http://{}", proxy.address)));
    let sentences = ["asks for credentials (status 407)", "refuses to connect to localhost:"];
    waited_out(&agent, &emulator, dir.path(), &sentences);
}
