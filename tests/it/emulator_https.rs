//! The emulator's HTTPS side on the wire, with independent clients: a bare TLS socket, and Python's standard library.
//!
//! Owns: nothing. Must not know: how routes are found.

use std::io::{Read as _, Write as _};
use std::process::Command;
use std::time::Duration;

use crate::harness::{Emulator, Process, own_address, program, run, skip};
use crate::rest::{dial, exchange, service_token};

#[test]
fn hostile_requests_are_refused_and_the_emulator_goes_on() {
    let emulator = Emulator::start();
    let token = service_token(&emulator);
    let many = "x: y\r\n".repeat(1_000);
    let long = "x".repeat(100 * 1024);
    let cases = [
        ("\x10\x07\x00\r\n\r\n".to_owned(), "HTTP/1.1 400 "),
        (format!("GET / HTTP/1.1\r\n{many}\r\n"), "HTTP/1.1 431 "),
        (format!("GET /{long} HTTP/1.1\r\n\r\n"), "HTTP/1.1 4"),
        (format!("GET / HTTP/1.1\r\nx: {long}\r\n\r\n"), "HTTP/1.1 431 "),
        ("GET /twins/dev1 HTTP/1.0\r\n\r\n".to_owned(), "HTTP/1.0 401 "),
        ("GET / HTTP/1.1\r\nContent-Length: 99999999\r\n\r\nxxx".to_owned(), "HTTP/1.1 400 "),
        // The body is never read: the connection ends with the answer.
        ("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n".to_owned(), "HTTP/1.1 401 "),
        ("GET http://[/ HTTP/1.1\r\nConnection: close\r\n\r\n".to_owned(), "HTTP/1.1 400 "),
        (
            format!("GET /%ff/%00 HTTP/1.1\r\nAuthorization: {token}\r\nConnection: close\r\n\r\n"),
            "HTTP/1.1 404 ",
        ),
        // An HTTP/2 connection is closed without an answer.
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(), ""),
    ];
    for (request, status) in cases {
        let answer = exchange(&emulator, request.as_bytes());
        let shown = request.chars().take(60).collect::<String>();
        // If bytes were not read, the system resets the connection, and sometimes the answer is lost with it.
        let cut = answer.is_empty() && request.len() > 32 * 1024;
        assert!(answer.starts_with(status) || cut, "{shown:?}: {answer}");
    }
    let request = format!(
        "GET /twins/dev1?api-version=2021-04-12 HTTP/1.1\r\nHost: localhost\r\nAuthorization: {token}\r\nConnection: close\r\n\r\n"
    );
    let answer = exchange(&emulator, request.as_bytes());
    assert!(
        answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.contains("\"deviceId\":\"dev1\""),
        "{answer}"
    );
    let version = env!("CARGO_PKG_VERSION");
    assert!(
        answer.to_lowercase().contains(&format!("\r\nserver: c2d-agent-emulator/{version}\r\n")),
        "{answer}"
    );
    assert_eq!(emulator.process.stderr.count("panicked"), 0);
}

#[test]
fn an_idle_connection_does_not_hold_up_the_end() {
    let emulator = Emulator::start();
    let mut idle = dial(&emulator);
    let request = "GET /twins HTTP/1.1\r\nHost: localhost\r\n\r\n";
    idle.write_all(request.as_bytes()).and_then(|()| idle.flush()).expect("sent");
    let mut first = [0; 12];
    idle.read_exact(&mut first).expect("an answer");
    assert_eq!(&first, b"HTTP/1.1 401");
    let silent = dial(&emulator);
    let begun = std::time::Instant::now();
    assert_eq!(emulator.process.terminate(), Some(0));
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    drop((idle, silent));
}

/// Twin, error and events through Python's `urllib`, with a token that Python makes.
const PYTHON: &str = r#"
import base64, hashlib, hmac, json, ssl, sys, time, urllib.error, urllib.parse, urllib.request
ca, base = sys.argv[1:3]
fields = dict(part.split("=", 1) for part in sys.stdin.read().strip().split(";"))
resource, expiry = "localhost", int(time.time()) + 600
key = base64.b64decode(fields["SharedAccessKey"])
signature = base64.b64encode(hmac.new(key, f"{resource}\n{expiry}".encode(), hashlib.sha256).digest())
token = "SharedAccessSignature " + urllib.parse.urlencode(
    {"sr": resource, "sig": signature, "se": expiry, "skn": fields["SharedAccessKeyName"]})
context = ssl.create_default_context(cafile=ca)
def get(path):
    request = urllib.request.Request(base + path, headers={"Authorization": token})
    try:
        with urllib.request.urlopen(request, context=context, timeout=20) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)
for path in sys.argv[3:]:
    print(json.dumps(get(path)))
"#;

#[test]
fn pythons_standard_library_reads_twin_events_and_errors() {
    let Some(python) = program("python3") else {
        return skip("Python's standard library reads a twin", "python3 is not installed");
    };
    let emulator = Emulator::start();
    let base = format!("https://localhost:{}", emulator.https.port());
    let mut command = Command::new(python);
    command.args(["-c", PYTHON]).arg(emulator.ca_file()).arg(base);
    command.args([
        "/twins/dev1?api-version=2021-04-12",
        "/twins/none?api-version=2021-04-12",
        "/emulator/devices/dev1/events?after=0",
    ]);
    command.stdin(std::fs::File::open(emulator.state.join("service.connection-string")).expect("open"));
    let process = Process::spawn_with_stdin(&mut command);
    assert_eq!(process.wait_exit().code(), Some(0), "{}", process.stderr.text());
    let answers: Vec<serde_json::Value> =
        process.stdout.all().iter().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!((&answers[0][0], &answers[0][1]["deviceId"]), (&200.into(), &"dev1".into()));
    assert_eq!(answers[1][0], 404);
    let message = answers[1][1]["Message"].as_str().expect("a message");
    assert!(message.starts_with("ErrorCode:DeviceNotFound;"), "{message}");
    assert_eq!(answers[2], serde_json::json!([200, []]));
}

#[test]
fn a_port_that_was_asked_for_and_is_taken_is_named_and_one_that_was_not_is_replaced() {
    let running = Emulator::start();
    let dir = tempfile::tempdir().expect("a directory");
    let port = running.https.port();
    let mut command = crate::harness::binary();
    command.arg("emulator").arg("--state-dir").arg(dir.path());
    command.args(["--mqtt-port", "0", "--amqp-port", "0", "--https-port", &port.to_string()]);
    let output = run(&mut command);
    let stderr = String::from_utf8_lossy(&output.stderr);
    let words = format!(
        "cannot listen on 127.0.0.1:{port} for HTTPS: the port is in use; stop what listens there, or choose another with \
         --https-port"
    );
    assert!(stderr.contains(&words) && output.status.code() == Some(1), "{stderr}");

    // Two emulators without the option share an address: at most one gets port 443, and both start.
    let address = own_address().to_string();
    let start = |name: &str| {
        let mut command = crate::harness::binary();
        command.arg("emulator").arg("--state-dir").arg(dir.path().join(name));
        command.args(["--bind", &address, "--mqtt-port", "0", "--amqp-port", "0"]);
        let process = Process::spawn(&mut command);
        let ready = process.wait_stdout("ready ");
        let own = format!("https={address}:");
        let field = ready.split(' ').find_map(|field| field.strip_prefix(&own));
        let port: u16 = field.expect("an address").parse().expect("a port");
        (process, port)
    };
    let (first, first_port) = start("first");
    let (second, second_port) = start("second");
    assert_ne!(first_port, second_port);
    assert!([443, 8443].contains(&first_port), "{first_port}");
    assert_ne!(second_port, 443);
    second.stderr.wait_for("for HTTPS: the port is in use");
    second.stderr.wait_for(&format!("HTTPS is on port {second_port}, because 443 is not available"));
    let env = std::fs::read_to_string(dir.path().join("second/env")).expect("a file");
    assert!(env.contains(&format!("export C2D_HTTPS_PORT='{second_port}'\n")), "{env}");
    assert_eq!((first.terminate(), second.terminate()), (Some(0), Some(0)));
}
