//! Signing in with Microsoft Entra: our back end's commands at the emulator and its issuer of tokens.
//!
//! Owns: how a command gets an application. Must not know: what a token looks like.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::emulator_running::asking;
use crate::harness::{DEADLINE, Emulator, Process, binary, program, run, skip};

const APPS: [&str; 6] = [
    "--entra-app",
    "contoso/sender=s3cret",
    "--entra-app",
    "contoso/reader=s3cret:data-reader",
    "--entra-app",
    "contoso/twins=s3cret:twin-contributor",
];

fn emulator(more: &[&str]) -> Emulator {
    Emulator::start_with(&[&["--device", "dev1"], &APPS[..], more].concat())
}

/// A command that finds the emulator, and has no connection string.
fn at(emulator: &Emulator, command: &str) -> Command {
    let mut asked = binary();
    asked.args(command.split(' '));
    asked.env("C2D_HUB", format!("localhost:{}", emulator.amqp.port()));
    asked.env("C2D_HTTPS_PORT", emulator.https.port().to_string()).env("C2D_CA_FILE", emulator.ca_file());
    asked
}

/// The same, as an application that the emulator's issuer knows.
fn app(emulator: &Emulator, client_id: &str, command: &str) -> Command {
    let mut asked = at(emulator, command);
    asked.env("AZURE_AUTHORITY_HOST", format!("https://localhost:{}/", emulator.https.port()));
    asked.env("AZURE_TENANT_ID", "contoso").env("AZURE_CLIENT_ID", client_id);
    asked
}

fn with_secret(emulator: &Emulator, client_id: &str, command: &str) -> Command {
    let mut asked = app(emulator, client_id, command);
    asked.env("AZURE_CLIENT_SECRET", "s3cret");
    asked
}

pub(crate) fn said(output: &Output) -> String {
    [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes).into_owned()).concat()
}

#[test]
fn every_command_of_the_back_end_signs_in_with_a_secret_of_the_environment() {
    let emulator = emulator(&[]);
    for (command, code) in [
        ("c2d-send --device dev1 --data one", 0),
        ("c2d-send --device dev1 --data two --transport amqp-ws", 0),
        ("c2d-send --device dev1 --count 3 --data many --journal run.journal", 0),
        ("c2d-send --query deviceId='dev1' --data found --journal query.journal", 0),
        ("twin get --device dev1", 0),
        ("twin patch --device dev1 --tags {\"room\":1}", 0),
        ("c2d-purge --device dev1", 0),
        ("c2d-feedback --for 1ms", 0),
        ("c2d-feedback --for 1ms --transport https", 0),
        // The device is not there, which only a caller hears that may call it.
        ("invoke-method --device dev1 --method m", 3),
    ] {
        let dir = tempfile::tempdir().expect("a directory");
        let output = run(with_secret(&emulator, "sender", command).current_dir(dir.path()));
        assert_eq!(output.status.code(), Some(code), "{command}: {}", said(&output));
        assert!(!said(&output).contains("s3cret"), "{}", said(&output));
    }
}

#[test]
fn a_principal_without_the_role_is_refused_in_words_over_both_protocols() {
    let emulator = emulator(&[]);
    let read = run(&mut with_secret(&emulator, "reader", "twin get --device dev1"));
    assert_eq!(read.status.code(), Some(0), "{}", said(&read));
    let patch = "twin patch --device dev1 --tags {\"room\":1}";
    let refused = run(&mut with_secret(&emulator, "reader", patch));
    assert_eq!(refused.status.code(), Some(1));
    let words = said(&refused);
    assert!(
        words.contains(
            "does not accept the token of Microsoft Entra: ErrorCode:IotHubUnauthorized;Principal "
        ),
        "{words}"
    );
    assert!(
        words.contains(" is not authorized for PATCH on /twins/dev1 due to no assigned permissions; "),
        "{words}"
    );
    assert!(words.contains("needs a role at this hub, such as IoT Hub Data Contributor"), "{words}");
    assert_eq!(run(&mut with_secret(&emulator, "twins", patch)).status.code(), Some(0));
    for client_id in ["reader", "twins"] {
        let refused = run(&mut with_secret(&emulator, client_id, "c2d-send --device dev1 --data x"));
        assert_eq!(refused.status.code(), Some(1));
        let words = said(&refused);
        assert!(words.contains("has no role for this; its principal needs a role at this hub"), "{words}");
    }
}

#[test]
fn a_source_that_refuses_is_told_and_no_other_one_is_asked() {
    let emulator = emulator(&[]);
    let mut asked = app(&emulator, "sender", "c2d-send --device dev1 --data x --auth secret");
    asked.env("AZURE_CLIENT_SECRET", "wr0ng").env("C2D_SERVICE_CONNECTION_STRING", emulator.service_string());
    let refused = run(&mut asked);
    assert_eq!(refused.status.code(), Some(1), "{}", said(&refused));
    let words = said(&refused);
    assert!(
        words.contains("refuses (status 401: AADSTS7000215: Invalid client secret provided.)"),
        "{words}"
    );
    assert!(!words.contains("wr0ng"), "{words}");

    // Without --auth, the connection string comes first, whatever the environment declares.
    let mut asked = app(&emulator, "sender", "c2d-send --device dev1 --data x");
    asked.env("AZURE_CLIENT_SECRET", "wr0ng").env("C2D_SERVICE_CONNECTION_STRING", emulator.service_string());
    assert_eq!(run(&mut asked).status.code(), Some(0));

    let mut lacking = at(&emulator, "c2d-send --device dev1 --data x --auth secret");
    let words = run(lacking.env("AZURE_CLIENT_ID", "sender"));
    assert_eq!(words.status.code(), Some(2));
    let lacks =
        "--auth secret needs AZURE_TENANT_ID and AZURE_CLIENT_SECRET in the environment: set what is missing";
    assert!(said(&words).contains(lacks), "{}", said(&words));
}

#[test]
fn a_hub_in_a_connection_string_without_a_key_is_enough() {
    let emulator = emulator(&[]);
    let mut asked = with_secret(&emulator, "sender", "c2d-send --device dev1 --data x");
    let hub = format!("HostName=localhost:{}", emulator.amqp.port());
    let output = run(asked.env_remove("C2D_HUB").env("C2D_SERVICE_CONNECTION_STRING", hub));
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
}

#[test]
fn a_federated_token_and_a_certificate_prove_an_application() {
    let dir = tempfile::tempdir().expect("a directory");
    let Some(pair) = rsa_pair(dir.path()) else {
        return skip("a certificate proves an application", "openssl is not installed");
    };
    let app_option = format!("contoso/signer={}", pair.display());
    let emulator = emulator(&["--entra-app", &app_option]);
    let command = "c2d-send --device dev1 --data x";
    let mut asked = app(&emulator, "signer", command);
    let output = run(asked.env("AZURE_CLIENT_CERTIFICATE_PATH", &pair));
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));

    let other = dir.path().join("other");
    std::fs::create_dir(&other).expect("a directory");
    let other = rsa_pair(&other).expect("another pair");
    let mut asked = app(&emulator, "signer", command);
    let refused = run(asked.env("AZURE_CLIENT_CERTIFICATE_PATH", &other));
    assert_eq!(refused.status.code(), Some(1));
    assert!(
        said(&refused).contains("AADSTS700027: The client assertion is not accepted"),
        "{}",
        said(&refused)
    );

    let token = dir.path().join("token");
    std::fs::write(&token, "s3cret\n").expect("written");
    let mut asked = app(&emulator, "sender", command);
    let output = run(asked.env("AZURE_FEDERATED_TOKEN_FILE", &token));
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
}

/// A PEM file with a certificate and its RSA key.
pub(crate) fn rsa_pair(dir: &Path) -> Option<PathBuf> {
    let mut openssl = Command::new(program("openssl")?);
    let (key, certificate, both) = (dir.join("k.pem"), dir.join("c.pem"), dir.join("pair.pem"));
    openssl
        .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=app", "-keyout"]);
    let made = run(openssl.arg(&key).arg("-out").arg(&certificate));
    assert!(made.status.success(), "{made:?}");
    let text = [key, certificate].map(|file| std::fs::read_to_string(file).expect("PEM")).concat();
    std::fs::write(&both, text).expect("written");
    Some(both)
}

/// The address in the emulator's ready line.
pub(crate) fn imds(emulator: &Emulator) -> String {
    let ready = emulator.process.wait_stdout("ready ");
    ready.split(' ').find_map(|field| field.strip_prefix("imds=")).expect("an address").to_owned()
}

#[test]
fn a_machine_signs_in_with_its_identity() {
    let emulator = emulator(&["--imds-port", "0"]);
    let mut asked = at(&emulator, "c2d-send --device dev1 --data x");
    let output = run(asked.env("AZURE_POD_IDENTITY_AUTHORITY_HOST", format!("http://{}", imds(&emulator))));
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));

    let mut asked = at(&emulator, "twin get --device dev1 --auth managed");
    asked.env("AZURE_POD_IDENTITY_AUTHORITY_HOST", format!("http://{}", imds(&emulator)));
    let refused = run(asked.env("AZURE_CLIENT_ID", "nobody"));
    assert!(said(&refused).contains("refuses (status 400: Identity not found)"), "{}", said(&refused));

    let answer = get(&imds(&emulator), "/metadata/identity/oauth2/token?api-version=2018-02-01&resource=x");
    assert!(
        answer.starts_with("HTTP/1.1 400 ") && answer.contains("Required metadata header not specified"),
        "{answer}"
    );
}

/// A plain HTTP request, with one more line of its head.
fn ask(address: &str, path: &str, line: &str) -> String {
    let mut stream = TcpStream::connect(address).expect("connected");
    stream.set_read_timeout(Some(DEADLINE)).expect("a socket");
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\n{line}\r\n").expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    answer
}

fn get(address: &str, path: &str) -> String {
    ask(address, path, "")
}

#[test]
fn the_azure_cli_gives_the_token_of_its_account() {
    let emulator = emulator(&["--imds-port", "0"]);
    let path = "/metadata/identity/oauth2/token?api-version=2018-02-01&resource=https://iothubs.azure.net";
    let answer = ask(&imds(&emulator), path, "Metadata: true\r\n");
    let (_, body) = answer.split_once("\r\n\r\n").expect("a body");
    let granted: serde_json::Value = serde_json::from_str(body).expect("JSON");
    let dir = tempfile::tempdir().expect("a directory");
    let az = dir.path().join("az");
    let printed = format!(
        "{{\"accessToken\": {}, \"expires_on\": {}, \"expiresOn\": \"2001-01-01 00:00:00.0\"}}",
        granted["access_token"],
        granted["expires_on"].as_str().expect("digits")
    );
    let script = format!(
        "#!/bin/sh\necho \"$@\" >> {}/arguments\ncat <<'EOF'\n{printed}\nEOF\n",
        dir.path().display()
    );
    std::fs::write(&az, script).expect("written");
    std::fs::set_permissions(&az, std::fs::Permissions::from_mode(0o755)).expect("executable");
    let path = format!("{}:{}", dir.path().display(), std::env::var("PATH").unwrap_or_default());
    let command = "c2d-send --device dev1 --data x --auth az";
    let output = run(at(&emulator, command).env("PATH", &path));
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    assert_eq!(
        std::fs::read_to_string(dir.path().join("arguments")).expect("arguments").trim(),
        "account get-access-token --output json --scope https://iothubs.azure.net/.default"
    );

    // A run for many devices asks once more, and not once for each of its connections.
    let list = dir.path().join("list");
    std::fs::write(&list, "dev1\ngone\nlost\n").expect("written");
    let many = format!("twin patch --devices-from {} --tags {{}} --auth az", list.display());
    let output = run(at(&emulator, &many).env("PATH", &path));
    assert_eq!(output.status.code(), Some(3), "{}", said(&output));
    let asked = std::fs::read_to_string(dir.path().join("arguments")).expect("arguments");
    assert_eq!(asked.lines().count(), 2, "{asked}");

    std::fs::write(&az, "#!/bin/sh\necho 'ERROR: Please run az login.' >&2\nexit 1\n").expect("written");
    let refused = run(at(&emulator, command).env("PATH", &path));
    let words = said(&refused);
    assert!(
        words.contains("az gives no token and says: ERROR: Please run az login.; sign in with az login"),
        "{words}"
    );
    let refused = run(at(&emulator, command).env("PATH", "/nowhere"));
    assert!(said(&refused).contains("there is no program az in PATH"), "{}", said(&refused));
}

#[test]
fn a_token_is_renewed_before_it_ends_and_the_connection_stays() {
    let emulator = Emulator::start_with(
        &[&["--device", "dev1", "--entra-token-lifetime", "4s", "--log-level", "debug"], &APPS[..]].concat(),
    );
    let reader = Process::spawn(&mut with_secret(&emulator, "sender", "c2d-feedback --count 1 --json"));
    // The first one and two renewals: longer than a token lives.
    emulator.process.stderr.wait_for_nth("took a service token", 3);
    let sent = run(&mut with_secret(
        &emulator,
        "sender",
        "c2d-send --device dev1 --message-id m-1 --data x --ack full",
    ));
    assert_eq!(sent.status.code(), Some(0), "{}", said(&sent));
    assert_eq!(run(&mut with_secret(&emulator, "sender", "c2d-purge --device dev1")).status.code(), Some(0));
    assert_eq!(reader.wait_exit().code(), Some(0), "{}", reader.stderr.text());
    assert!(reader.stdout.text().contains("\"Purged\""), "{}", reader.stdout.text());
    assert_eq!(emulator.process.stderr.count("its token has expired"), 0);
    assert!(!reader.stderr.text().contains("trying again"), "{}", reader.stderr.text());
}

#[test]
fn a_reader_whose_token_ends_in_the_middle_signs_in_again() {
    let emulator = emulator(&[]);
    let reader = Process::spawn(&mut with_secret(&emulator, "sender", "c2d-feedback"));
    reader.stderr.wait_for("watching the feedback of");
    let moved = run(&mut asking(&emulator.state, &["clock", "advance", "2h"]));
    assert!(moved.status.success(), "{moved:?}");
    emulator.process.stderr.wait_for("ended a connection: its token has expired");
    reader.stderr.wait_for("connected again");
    assert_eq!(reader.terminate(), Some(0));
}

#[test]
fn auth_says_who_would_sign_in_and_what_is_missing() {
    let emulator = emulator(&[]);
    let port = emulator.https.port();
    let seen = |output: Output| (output.status.code(), said(&output).replace(&port.to_string(), "HTTPS"));
    let hub = format!("localhost:{}", emulator.amqp.port());
    let (code, text) = seen(run(&mut with_secret(&emulator, "sender", "auth --check")));
    assert_eq!(code, Some(0), "{text}");
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(
        lines[..3],
        [
            &format!("hub: {hub}"),
            "auth: secret (the environment has AZURE_CLIENT_SECRET)",
            "signs in: application sender of tenant contoso at https://localhost:HTTPS, with its client secret"
        ]
    );
    assert!(lines[3].starts_with("token: for application sender, object "), "{text}");
    assert!(lines[3].contains(", tenant contoso; valid until 20"), "{text}");
    assert!(!text.contains("eyJ") && !text.contains("s3cret"), "{text}");

    let (code, text) = seen(run(&mut with_secret(&emulator, "sender", "auth --json --check")));
    assert_eq!(code, Some(0), "{text}");
    let lines: Vec<serde_json::Value> =
        text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!((&lines[0]["event"], &lines[0]["auth"]), (&"signs-in".into(), &"secret".into()));
    assert_eq!((&lines[1]["event"], &lines[1]["application"]), (&"token".into(), &"sender".into()));

    let (code, text) = seen(run(app(&emulator, "sender", "auth --auth certificate")
        .env("AZURE_CLIENT_CERTIFICATE_PATH", "/no/file.pem")));
    assert_eq!(code, Some(2), "{text}");
    assert!(
        text.contains("cannot read /no/file.pem: ") && text.contains("correct AZURE_CLIENT_CERTIFICATE_PATH"),
        "{text}"
    );
    let (code, text) = seen(run(&mut at(&emulator, "auth --auth federated")));
    assert_eq!(code, Some(2), "{text}");
    assert!(
        text.contains("needs AZURE_TENANT_ID and AZURE_CLIENT_ID and AZURE_FEDERATED_TOKEN_FILE"),
        "{text}"
    );
    let (code, text) = seen(run(&mut at(&emulator, "auth")));
    assert_eq!(code, Some(2), "{text}");
    assert!(text.contains("the hub is given, but not how to sign in: give --auth"), "{text}");
    let mut policy = at(&emulator, "auth --check");
    let (code, text) = seen(run(policy.env("C2D_SERVICE_CONNECTION_STRING", emulator.service_string())));
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("signs in: the shared access policy \"service\""), "{text}");
}
