//! Microsoft's unmodified libraries sign in at the emulator's issuer: azure-identity of Python with azure-iot-hub, and
//! @azure/identity of Node with azure-iothub.
//!
//! Must not know: how they work; the programs are in `tests/sdk/` and `tests/sdk-node/`.

use std::process::Command;

use serde_json::{Value, json};

use crate::entra::{imds, rsa_pair};
use crate::harness::{Emulator, Process, skip};
use crate::node::{has_node, printed, script as node_script};
use crate::sdk::{emulator, json as parse, may_use_443, python, script};

/// An application of the environment.
fn as_app(command: &mut Command, emulator: &Emulator, client_id: &str) {
    command.env("AZURE_AUTHORITY_HOST", format!("https://{}", emulator.https.ip()));
    command
        .env("AZURE_TENANT_ID", "contoso")
        .env("AZURE_CLIENT_ID", client_id)
        .env("AZURE_CLIENT_SECRET", "s3cret");
}

fn seen(mut command: Command, emulator: &Emulator) -> Value {
    command.env("REQUESTS_CA_BUNDLE", emulator.ca_file()).env("SSL_CERT_FILE", emulator.ca_file());
    let process = Process::spawn(&mut command);
    assert_eq!(process.wait_exit().code(), Some(0), "{}", process.stderr.text());
    parse(&process.stdout.text())
}

#[test]
fn azure_identity_of_python_signs_azure_iot_hub_in() {
    let test = "azure-identity of Python signs azure-iot-hub in";
    let Some(python) = python(test) else { return };
    if !may_use_443(test) {
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    let Some(pair) = rsa_pair(dir.path()) else { return skip(test, "openssl is not installed") };
    let signer = format!("contoso/signer={}", pair.display());
    let apps = ["--entra-app", "contoso/sender=s3cret", "--entra-app", "contoso/reader=s3cret:data-reader"];
    let more = ["--entra-app", &signer, "--device", "dev1", "--https-port", "443", "--imds-port", "0"];
    let (emulator, _dir) = emulator(&[&apps[..], &more].concat());
    let ask = |kind: &str, client_id: &str| {
        let mut command = script(&python, "entra.py");
        command.args([&emulator.https.ip().to_string(), "dev1", kind]);
        as_app(&mut command, &emulator, client_id);
        command
    };
    for (kind, client_id) in [("secret", "sender"), ("certificate", "signer"), ("managed", "sender")] {
        let mut command = ask(kind, client_id);
        command.env("AZURE_CLIENT_CERTIFICATE_PATH", &pair);
        command.env("AZURE_POD_IDENTITY_AUTHORITY_HOST", format!("http://{}", imds(&emulator)));
        assert_eq!(
            seen(command, &emulator),
            json!({ "twin": "dev1", "tags": { "room": kind }, "sent": true })
        );
    }
    let reader = seen(ask("secret", "reader"), &emulator);
    assert_eq!(reader["twin"], "dev1");
    assert_eq!(reader["patch"][0], 401, "{reader}");
    let words = reader["patch"][1].as_str().expect("words");
    assert!(
        words.contains("is not authorized for PATCH on /twins/dev1 due to no assigned permissions"),
        "{words}"
    );
    assert!(reader["sent"].is_string(), "{reader}");
    let mut wrong = ask("secret", "sender");
    wrong.env("AZURE_CLIENT_SECRET", "wr0ng");
    let refused = seen(wrong, &emulator);
    assert!(refused["refused"].as_str().expect("words").contains("AADSTS7000215"), "{refused}");
}

#[test]
fn azure_identity_of_node_signs_azure_iothub_in() {
    if !has_node("@azure/identity of Node signs azure-iothub in") {
        return;
    }
    let app = ["--entra-app", "contoso/sender=s3cret", "--device", "dev1", "--https-port", "443"];
    let (emulator, _dir) = emulator(&app);
    for transport in ["amqp", "amqp-ws"] {
        let mut command = node_script(&emulator, "entra.js");
        command.args([transport, &emulator.https.ip().to_string(), "dev1"]);
        as_app(&mut command, &emulator, "sender");
        let process = Process::spawn(&mut command);
        assert_eq!(
            process.wait_exit().code(),
            Some(0),
            "{} {}",
            process.stdout.text(),
            process.stderr.text()
        );
        assert_eq!(printed(&process.stdout, "twin"), [json!({ "twin": "dev1" })]);
        assert_eq!(printed(&process.stdout, "sent"), [json!({ "sent": "MessageEnqueued" })]);
    }
}
