//! The emulator's page in a real browser, as a person would use it to try the agent; and its routes without a browser.
//!
//! Must not know: how the page is made. `tests/browser/page.py` has the steps of the person.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::harness::{Agent, Emulator, Process, program, skip};
use crate::rest::{exchange, service_token};

/// An action that runs until the file `go` exists.
const RULE: &str = r#"
[report]
outcomes = ["telemetry", "twin"]
[[rule]]
name = "write"
when = { action = "write" }
do = [ { run = ["/bin/sh", "-c", "until [ -e go ]; do sleep 0.05; done"] } ]
[[rule]]
name = "fail"
when = { action = "fail" }
do = [ { run = ["/bin/sh", "-c", "exit 3"] } ]
"#;

#[test]
fn the_page_shows_what_the_hub_does_and_sends_messages() {
    let test = "the emulator's page in a browser";
    let (Some(chromium), Some(driver), Some(python)) =
        (program("chromium"), program("chromedriver"), program("python3"))
    else {
        return skip(
            test,
            "chromium, chromedriver or python3 is not installed; scripts/setup.sh installs them",
        );
    };
    let emulator = Emulator::start();
    let address = std::fs::read_to_string(emulator.state.join("page.address")).expect("an address");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/browser/page.py");
    let mut person = Command::new(python);
    person.arg(script).args([&driver, &chromium]).arg(address.trim()).stdin(Stdio::piped());
    let person = Process::spawn_with_stdin(&mut person);
    let done = || person.tell("done");

    person.wait_stdout("start the device");
    let dir = tempfile::tempdir().expect("a directory");
    let rule = RULE.replace("-e go", &format!("-e {}", dir.path().join("go").display()));
    let agent = Agent::start(&emulator, "dev1", dir.path(), &rule);
    done();
    person.wait_stdout("let the action end");
    std::fs::write(dir.path().join("go"), "").expect("written");
    done();
    person.wait_stdout("have two PUBACKs ignored and throttle the device");
    for (name, value) in [("ignore-puback", "2"), ("throttle", "")] {
        let path = format!("/emulator/devices/dev1/faults/{name}");
        let answer = ask(&emulator, "PUT", &path, &service_token(&emulator), value);
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    }
    done();
    person.wait_stdout("stop the emulator");
    assert_eq!(agent.process.terminate(), Some(0));
    assert_eq!(emulator.process.terminate(), Some(0));
    done();
    assert_eq!(person.wait_exit().code(), Some(0), "{}", person.stderr.text());
    person.stdout.wait_for("seen");
}

/// Asks for `path` and returns the whole answer, head and body.
fn ask(emulator: &Emulator, method: &str, path: &str, token: &str, body: &str) -> String {
    let length = body.len();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: {token}\r\nContent-Length: {length}\r\nConnection: close"
    );
    exchange(emulator, format!("{head}\r\n\r\n{body}").as_bytes())
}

fn json(answer: &str) -> Value {
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    assert!(head.starts_with("HTTP/1.1 200 "), "{answer}");
    serde_json::from_str(body).expect("JSON")
}

#[test]
fn the_page_itself_has_no_data_and_its_data_needs_a_token() {
    let emulator = Emulator::start();
    let page = ask(&emulator, "GET", "/", "", "").to_lowercase();
    assert!(page.starts_with("http/1.1 200 ") && page.contains("script-src 'self'"), "{page}");
    assert!(!page.contains("dev1"), "{page}");
    for (method, path) in [("GET", "/emulator/overview"), ("POST", "/emulator/devices/dev1/messages")] {
        for token in ["", "SharedAccessSignature sr=localhost&sig=eHg%3D&se=4102444800&skn=service"] {
            let answer = ask(&emulator, method, path, token, "");
            assert!(answer.starts_with("HTTP/1.1 401 "), "{path}: {answer}");
        }
    }
    let mode = std::fs::metadata(emulator.state.join("page.address")).expect("a file").permissions().mode();
    assert_eq!(mode & 0o077, 0, "others could read the token");
}

#[test]
fn an_overview_waits_until_there_is_something_new_and_shows_no_more_than_a_beginning() {
    let emulator = Emulator::start();
    let token = service_token(&emulator);
    let first = json(&ask(&emulator, "GET", "/emulator/overview", &token, ""));
    assert_eq!(first["devices"][0]["queue"], serde_json::json!([]));

    let version = &first["version"];
    let path = format!("/emulator/overview?after={version}");
    let (waiting, sent) = std::thread::scope(|scope| {
        let waiting = scope.spawn(|| json(&ask(&emulator, "GET", &path, &token, "")));
        let form = format!(r#"{{"messageId": "m-1", "body": "{}"}}"#, "ü".repeat(30_000));
        let sent = json(&ask(&emulator, "POST", "/emulator/devices/dev1/messages", &token, &form));
        (waiting.join().expect("an answer"), sent)
    });
    assert_eq!(sent["messageId"], "m-1");
    let message = &waiting["devices"][0]["queue"][0];
    assert_eq!((&message["messageId"], &message["state"]), (&"m-1".into(), &"enqueued".into()));
    assert_eq!(message["bodyBytes"], 60_000);
    assert_eq!(message["body"], "ü".repeat(256).as_str());

    // The answer has the hub's own words for a refusal.
    let none = ask(&emulator, "POST", "/emulator/devices/none/messages", &token, "{}");
    assert!(
        none.starts_with("HTTP/1.1 400 ") && none.contains("the hub has no device \\\"none\\\""),
        "{none}"
    );
    let large = format!(r#"{{"body": "{}"}}"#, "x".repeat(70_000));
    let large = ask(&emulator, "POST", "/emulator/devices/dev1/messages", &token, &large);
    assert!(large.starts_with("HTTP/1.1 400 ") && large.contains("more than 65536"), "{large}");
}
