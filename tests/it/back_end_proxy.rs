//! The back end over HTTPS, through a proxy: `c2d-purge`, `c2d-feedback --transport https`, `twin`,
//! `c2d-send --wait-outcome`; also through proxies that use TLS themselves.
//!
//! Must not know: how the connection is made.

use std::io::Write as _;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::harness::{Agent, Emulator, Process, binary, run, wait_for_file, write_config};
use crate::proxied::{ConnectProxy, TlsFront};
use crate::rest_ask::{ask, device_token};

/// `us@er` and `p:a%ss`, in a URL and in the header.
const LOGIN: &str = "us%40er:p%3Aa%25ss";
const HEADER: &str = "Basic dXNAZXI6cDphJXNz";

/// A rule that reports in the twin.
const RULE: &str =
    "[[rule]]\nname = \"any\"\nwhen = \"any\"\nreport = \"twin\"\ndo = [ { shell = \"true\" } ]\n";

/// A back-end command with the emulator's HTTPS port; AMQP of `c2d-send` needs no proxy.
fn command(emulator: &Emulator, arguments: &[&str]) -> Command {
    let mut command = binary();
    command.args(arguments).arg("--connection-string-file");
    command.arg(emulator.state.join("service.connection-string")).arg("--ca-file").arg(emulator.ca_file());
    command.env("C2D_HTTPS_PORT", emulator.https.port().to_string());
    command
}

/// The commands under test; `invoke-method` uses the same way as `twin`.
const COMMANDS: [&[&str]; 4] = [
    &["c2d-purge", "--device", "dev1"],
    &["c2d-feedback", "--transport", "https", "--for", "3s"],
    &["twin", "get", "--device", "dev1"],
    &["c2d-send", "--device", "dev1", "--wait-outcome=20s"],
];

/// Runs a command that must fail, and returns what it logs. The log must not contain a secret.
#[track_caller]
fn refused(command: &mut Command) -> String {
    let output = run(command);
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(
        !stderr.contains("p:a%ss") && !stderr.contains("p%3Aa") && !stderr.contains("dXNAZX"),
        "{stderr}"
    );
    stderr
}

/// An address without a listener.
fn closed() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address")
}

#[test]
fn https_goes_through_the_proxy_with_a_login_and_past_it_to_the_hosts_in_no_proxy() {
    let emulator = Emulator::start();
    let dir = tempfile::tempdir().expect("a directory");
    let agent = Agent::start(&emulator, "dev1", dir.path(), RULE);
    let proxy = ConnectProxy::to(emulator.https, Some(HEADER));
    let url = format!("http://{LOGIN}@{}", proxy.address);
    let asked = format!("CONNECT localhost:{} HTTP/1.1\r\n", emulator.https.port());
    for arguments in COMMANDS {
        let output = run(command(&emulator, arguments).env("HTTPS_PROXY", &url));
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let requests = proxy.requests();
        // One connection needs one CONNECT, for any number of requests. AMQP does not use the proxy.
        assert!(requests.len() == 1 && requests[0].starts_with(&asked), "{arguments:?}: {requests:?}");

        let mut past = command(&emulator, arguments);
        past.env("HTTPS_PROXY", "http://127.0.0.1:1").env("NO_PROXY", "example,localhost");
        assert!(run(&mut past).status.success(), "{arguments:?}");
    }
    assert_eq!(proxy.requests(), Vec::<String>::new());
    assert_eq!(agent.process.terminate(), Some(0));
}

#[test]
fn feedback_over_https_comes_through_the_proxy_again_after_a_cut() {
    let emulator = Emulator::start();
    let dir = tempfile::tempdir().expect("a directory");
    let agent = Agent::start(&emulator, "dev1", dir.path(), RULE);
    let proxy = ConnectProxy::to(emulator.https, Some(HEADER));
    let arguments = ["c2d-feedback", "--transport", "https", "--count", "2"];
    let mut watching = command(&emulator, &arguments);
    let watcher = Process::spawn(watching.env("HTTPS_PROXY", format!("http://{LOGIN}@{}", proxy.address)));
    emulator.send("dev1", &["--message-id=m-1", "--ack=full"]);
    watcher.stdout.wait_for("m-1");
    proxy.cut();
    emulator.send("dev1", &["--message-id=m-2", "--ack=full"]);
    assert_eq!(watcher.wait_exit().code(), Some(0), "{}", watcher.stderr.text());
    watcher.stdout.wait_for("m-2");
    let requests = proxy.requests();
    // A cut in the middle of an answer costs one more connection.
    assert!(requests.len() >= 2 && requests.iter().all(|head| head.contains(HEADER)), "{requests:?}");
    assert_eq!(agent.process.terminate(), Some(0));
}

#[test]
fn monitor_reads_over_a_websocket_through_the_proxy_and_again_after_a_cut() {
    let emulator = Emulator::start();
    let proxy = ConnectProxy::to(emulator.https, Some(HEADER));
    let url = format!("http://{LOGIN}@{}", proxy.address);
    let asked = format!("CONNECT localhost:{} HTTP/1.1\r\n", emulator.https.port());
    let file = emulator.state.join("events.connection-string");
    let given = ["--event-hub-connection-string-file", file.to_str().expect("UTF-8")];
    for (given, connections) in [(&[][..], 2), (&given, 1)] {
        let mut command = command(&emulator, &["monitor", "--transport", "amqp-ws"]);
        let process = Process::spawn(command.args(given).env("HTTPS_PROXY", &url));
        process.stderr.wait_for("watching the messages of devices");
        let requests = proxy.requests();
        // The hub is asked where the endpoint is, unless that is given.
        assert_eq!(requests.len(), connections, "{requests:?}");
        assert!(requests.iter().all(|head| head.starts_with(&asked)), "{requests:?}");
        let send = |body: &[u8]| {
            let line = "POST /devices/dev1/messages/events?api-version=2021-04-12";
            assert_eq!(ask(&emulator, line, &device_token(&emulator, "dev1"), "", body).status, 204);
        };
        send(b"one");
        process.stdout.wait_for("one");
        proxy.cut();
        process.stderr.wait_for("trying again in 1 s");
        send(b"two");
        process.stdout.wait_for("two");
        assert_eq!(process.terminate(), Some(0));
        proxy.requests();
    }
}

#[test]
fn each_way_in_which_a_proxy_refuses_has_its_sentence_and_nothing_is_sent() {
    let emulator = Emulator::start();
    let wants_login = ConnectProxy::to(emulator.https, Some(HEADER));
    let forbids =
        ConnectProxy::answering(|_| Err("HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n".into()));
    let (port, closed) = (emulator.https.port(), closed());
    for arguments in COMMANDS {
        let said = |url: String| {
            let stderr = refused(command(&emulator, arguments).env("HTTPS_PROXY", url));
            stderr.lines().last().expect("a sentence").to_owned()
        };
        let sentence = said(format!("http://{}", wants_login.address));
        let words = format!("the proxy {} asks for credentials (status 407)", wants_login.address);
        assert!(sentence.contains(&words), "{sentence}");
        let sentence = said(format!("http://us%40er:wrong@{}", wants_login.address));
        assert!(
            sentence.contains("refuses the name and password of HTTPS_PROXY (status 407)")
                && !sentence.contains("wrong"),
            "{sentence}"
        );
        let sentence = said(format!("http://{LOGIN}@{}", forbids.address));
        let words =
            format!("the proxy {} refuses to connect to localhost:{port} (status 403)", forbids.address);
        assert!(sentence.contains(&words), "{sentence}");
        let sentence = said(format!("http://{LOGIN}@{closed}"));
        let words = format!("the proxy {closed} of HTTPS_PROXY cannot be reached (Connection refused");
        assert!(sentence.contains(&words), "{sentence}");

        // A wrong variable is found before the command connects anywhere.
        let output = run(command(&emulator, arguments).env("HTTPS_PROXY", "socks5://n:secret@h:1"));
        let stderr = String::from_utf8_lossy(&output.stderr);
        let words = "HTTPS_PROXY does not begin with http:// or https://: use an HTTP proxy";
        assert!(output.status.code() == Some(2) && stderr.contains(words), "{stderr}");
        assert!(!stderr.contains("secret"), "{stderr}");
    }
    let purged = run(&mut command(&emulator, COMMANDS[0]));
    assert_eq!(purged.stdout, b"purged nothing: no message waited for device dev1\n");
}

/// A file with the emulator's root and that of a front.
fn both_roots(emulator: &Emulator, front: &TlsFront, dir: &Path) -> PathBuf {
    let roots = [emulator.ca_file(), front.ca_file.clone()].map(|path| std::fs::read(path).expect("a root"));
    let file = dir.join("roots.pem");
    std::fs::write(&file, roots.concat()).expect("written");
    file
}

/// `c2d-purge` with these roots, through the proxy at `url`.
fn purge(emulator: &Emulator, roots: &Path, url: &str) -> Command {
    let mut command = binary();
    command.args(["c2d-purge", "--device", "dev1"]).arg("--connection-string-file");
    command.arg(emulator.state.join("service.connection-string")).arg("--ca-file").arg(roots);
    command.env("C2D_HTTPS_PORT", emulator.https.port().to_string()).env("HTTPS_PROXY", url);
    command
}

#[test]
fn a_proxy_over_tls_is_spoken_to_with_the_same_roots() {
    let emulator = Emulator::start();
    let dir = tempfile::tempdir().expect("a directory");
    let proxy = ConnectProxy::to(emulator.https, Some(HEADER));
    let front = TlsFront::to(proxy.address, dir.path(), "localhost", None);
    let roots = both_roots(&emulator, &front, dir.path());
    let port = front.address.port();
    let url = format!("https://{LOGIN}@localhost:{port}");
    let output = run(&mut purge(&emulator, &roots, &url));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let large = "y".repeat(60_000);
    let mut sender = binary();
    sender.args(["c2d-send", "--device", "dev1", "--transport", "amqp-ws", "--data", &large]);
    sender.env("C2D_SERVICE_CONNECTION_STRING", emulator.service_string()).env("C2D_CA_FILE", &roots);
    sender.env("C2D_HTTPS_PORT", emulator.https.port().to_string()).env("HTTPS_PROXY", &url);
    let output = run(&mut sender);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(proxy.requests().len(), 2);

    let said = refused(&mut purge(&emulator, &emulator.ca_file(), &url));
    let words = format!(
        "no TLS with the proxy localhost:{port} of HTTPS_PROXY: the certificate of localhost is not signed \
         by a root"
    );
    assert!(said.contains(&words), "{said}");
    let said = refused(&mut purge(&emulator, &roots, &format!("https://127.0.0.1:{port}")));
    assert!(
        said.contains("its certificate is for another host name: write the name from the certificate"),
        "{said}"
    );
    let said = refused(&mut purge(&emulator, &roots, &format!("http://{LOGIN}@localhost:{port}")));
    assert!(said.contains("check HTTPS_PROXY, also whether http:// or https:// is right"), "{said}");

    // This proxy takes CONNECT without TLS.
    let plain = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = plain.local_addr().expect("an address").port();
    std::thread::spawn(move || {
        for mut client in plain.incoming().flatten() {
            drop(client.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n"));
        }
    });
    let said = refused(&mut purge(&emulator, &roots, &format!("https://{LOGIN}@localhost:{port}")));
    assert!(
        said.contains("it answers, but not with TLS: write http:// instead of https:// in HTTPS_PROXY"),
        "{said}"
    );
}

#[test]
fn a_proxy_over_tls_does_not_get_to_see_the_certificate_of_a_device() {
    let emulator = Emulator::start_with(&["--x509-device", "pi-01"]);
    let dir = tempfile::tempdir().expect("a directory");
    let proxy = ConnectProxy::to(emulator.https, None);
    let certificate = emulator.state.join("devices/pi-01.cert.pem");
    let front = TlsFront::to(proxy.address, dir.path(), "localhost", Some(&certificate));
    let roots = both_roots(&emulator, &front, dir.path());
    let text = format!(
        "[device]\ntransport = \"mqtt-ws\"\nhub = \"localhost\"\ndevice_id = \"pi-01\"\ncertificate = \"{}\"\n\
         private_key = \"{}\"\n[[rule]]\nname = \"write\"\nwhen = \"any\"\ndo = [ {{ shell = \"cat > {}\" }} ]\n",
        certificate.display(),
        emulator.state.join("devices/pi-01.key.pem").display(),
        dir.path().join("out").display()
    );
    let mut agent = binary();
    agent.arg("run").arg("-c").arg(write_config(dir.path(), &text)).env("C2D_CA_FILE", roots);
    agent.env("C2D_HTTPS_PORT", emulator.https.port().to_string());
    let agent =
        Process::spawn(agent.env("HTTPS_PROXY", format!("https://localhost:{}", front.address.port())));
    agent.stderr.wait_for(" subscribed");
    emulator.send("pi-01", &["--data", "by certificate", "--wait=20s"]);
    wait_for_file(&dir.path().join("out"), "by certificate");
    assert_eq!(agent.terminate(), Some(0));
    assert_eq!(front.certificates(), [false]);
}
