//! Certificates that the service issues, as a client without an agent sees them.
//!
//! Owns: when a certificate is issued, how long the hub takes it, and who may ask for the next one. Must not know: our
//! agent's client.

use std::path::Path;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use c2d_agent::credentials::SharedAccessKey;
use c2d_agent::tls::ClientCertificate;
use rcgen::{CertificateParams, DnType, KeyPair};
use rumqttc::mqttbytes::QoS;
use rumqttc::mqttbytes::v4::ConnectReturnCode;
use serde_json::{Value, json};

use super::client::{self, Client, hub_connect, polled, registered};
use super::device_key;
use crate::harness::Emulator;

/// A certificate request for a device.
fn request(id: &str, key: &KeyPair) -> String {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, id);
    BASE64_STANDARD.encode(params.serialize_request(key).expect("a request").der())
}

/// Registers with a certificate request, and keeps what was issued.
fn issued(emulator: &Emulator, key: &SharedAccessKey, folder: &Path) -> ClientCertificate {
    let own = KeyPair::generate().expect("a key");
    let body = json!({ "csr": request("reg-01", &own) }).to_string();
    let state = registered(emulator, "reg-01", key, &body);
    let leaf = state["issuedCertificateChain"][0].as_str().expect("a certificate");
    let (certificate, private_key) = (folder.join("own.pem"), folder.join("own.key.pem"));
    let pem = format!("-----BEGIN CERTIFICATE-----\n{leaf}\n-----END CERTIFICATE-----\n");
    std::fs::write(&certificate, pem).expect("written");
    std::fs::write(&private_key, own.serialize_pem()).expect("written");
    ClientCertificate { certificate, private_key }
}

fn signs_in_with(emulator: &Emulator, certificate: &ClientCertificate) -> bool {
    let connect = client::connect("reg-01", "localhost/reg-01/?api-version=2021-04-12", "");
    Client::dial(emulator, Some(certificate)).connack_to(connect) == ConnectReturnCode::Success
}

fn signs_in_by_key(emulator: &Emulator, key: &SharedAccessKey) -> bool {
    let connect = hub_connect("reg-01", key, "localhost");
    Client::dial(emulator, None).connack_to(connect) == ConnectReturnCode::Success
}

#[test]
fn a_registration_without_a_request_leaves_the_certificate_as_it_is_and_lets_the_key_in() {
    let dir = tempfile::tempdir().expect("a directory");
    let state = dir.path().join("state");
    let start = || Emulator::start_in(&state, "0", "0", &["--dps-device", "reg-01"]);
    let emulator = start();
    let key = device_key(&emulator, "reg-01");
    let certificate = issued(&emulator, &key, dir.path());
    assert!(signs_in_with(&emulator, &certificate));
    assert!(!signs_in_by_key(&emulator, &key), "the hub knows it by its certificate");
    let plain = registered(&emulator, "reg-01", &key, "");
    assert_eq!(plain["issuedCertificateChain"], Value::Null);
    assert!(signs_in_with(&emulator, &certificate), "it was not revoked");
    assert!(signs_in_by_key(&emulator, &key), "a client that got no chain goes on with its key");
    assert_eq!(emulator.process.terminate(), Some(0));
    let emulator = start();
    assert!(signs_in_with(&emulator, &certificate) && signs_in_by_key(&emulator, &key));
    // A new certificate ends the time of the key.
    let next = issued(&emulator, &key, dir.path());
    assert!(signs_in_with(&emulator, &next) && !signs_in_by_key(&emulator, &key));
}

#[test]
fn the_fault_for_certificates_counts_at_the_first_registration() {
    let emulator = Emulator::start_with(&["--dps-device", "reg-01", "--fault", "certificate=broken"]);
    let own = KeyPair::generate().expect("a key");
    let body = json!({ "csr": request("reg-01", &own) }).to_string();
    let state = registered(&emulator, "reg-01", &device_key(&emulator, "reg-01"), &body);
    let authority = state["issuedCertificateChain"][1].as_str().expect("a member of the chain");
    assert_eq!(authority.len(), 100, "the chain has a member that is no certificate");
}

#[test]
fn a_request_that_cannot_be_granted_is_told_and_nothing_is_registered() {
    let emulator = Emulator::start_with(&["--dps-device", "reg-01"]);
    let key = device_key(&emulator, "reg-01");
    let own = KeyPair::generate().expect("a key");
    for (csr, said) in [
        (request("REG-01", &own), "the common name of csr is not reg-01"),
        ("?".to_owned(), "csr is not base64"),
        ("MIIB".to_owned(), "csr is not a certificate request"),
    ] {
        let refused = polled(&emulator, "reg-01", &key, &json!({ "csr": csr }).to_string());
        let (status, body) = refused.last().expect("an answer");
        assert!(*status == 400 && body["message"].as_str().is_some_and(|own| own.contains(said)), "{body}");
        assert!(!signs_in_by_key(&emulator, &key), "there is no device");
    }
}

#[test]
fn the_hub_renews_only_for_a_device_that_signed_in_with_a_certificate() {
    let dir = tempfile::tempdir().expect("a directory");
    let emulator = Emulator::start_with(&["--dps-device", "reg-01"]);
    let key = device_key(&emulator, "reg-01");
    let certificate = issued(&emulator, &key, dir.path());
    registered(&emulator, "reg-01", &key, "");
    let own = KeyPair::generate().expect("a key");
    let body = json!({ "id": "reg-01", "csr": request("reg-01", &own) }).to_string();
    let by_certificate = client::connect("reg-01", "localhost/reg-01/?api-version=2021-04-12", "");
    for (identity, connect, status) in
        [(None, hub_connect("reg-01", &key, "localhost"), "403"), (Some(&certificate), by_certificate, "202")]
    {
        let mut device = Client::dial(&emulator, identity);
        assert_eq!(device.connack_to(connect), ConnectReturnCode::Success);
        device.subscribe(&[("$iothub/credentials/res/#", QoS::AtMostOnce)]);
        device.publish("$iothub/credentials/POST/issueCertificate/?$rid=rid-1", QoS::AtMostOnce, &body);
        let answer = device.answer();
        assert_eq!(answer.topic, format!("$iothub/credentials/res/{status}/?$rid=rid-1"));
    }
}
