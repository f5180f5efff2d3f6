//! The doctor's checks of the configuration and of the identity that signs in.

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use c2d_agent::credentials::{SasToken, SharedAccessKey};
use rcgen::{CertificateParams, DnType, KeyPair};

use super::{Found, KEY, LED, doctor};
use crate::harness::write_config;

fn offline(dir: &Path, config: &str, string: Option<&str>) -> Found {
    let mut command = doctor(&write_config(dir, config));
    if let Some(string) = string {
        command.env("C2D_DEVICE_CONNECTION_STRING", string);
    }
    Found::by(command.arg("--offline"))
}

#[test]
fn problems_are_counted_and_the_first_one_is_quoted_and_the_other_checks_are_made() {
    let dir = tempfile::tempdir().expect("a directory");
    let config = "[gpio]\nbackend = \"simulated\"\n[gpio.pins.led]\nline = 1\ncolour = \"red\"\n\
                  [[rule]]\nname = \"r\"\nwhen = \"any\"\ndo = [ { gpio = \"lde\", set = \"on\" } ]\n";
    let found = offline(dir.path(), config, Some(&format!("HostName=h;DeviceId=d;SharedAccessKey={KEY}")));
    found.failed(&["configuration"]);
    found.says("configuration", "failed", "2 problems: ", "run c2d-agent check");
    found.says("configuration", "failed", "config.toml:5:1: ", "run c2d-agent check");
    found.says("identity", "ok", "device d on hub h, by its key", "");
    found.says("inbox", "ok", "will be created", "");
    found.says("program", "skipped", "the rules could not be read", "");
}

#[test]
fn without_a_configuration_what_needs_none_is_looked_at() {
    let dir = tempfile::tempdir().expect("a directory");
    let found = Found::by(&mut doctor(&dir.path().join("none.toml")));
    found.failed(&["configuration"]);
    found.says("configuration", "failed", "there is no such file", "");
    found.says("agent", "skipped", "does not say", "");
    found.says("clock", "skipped", " UTC; there is nothing to compare it with", "");
}

#[test]
fn each_pitfall_of_a_connection_string_has_its_sentence_and_no_key_is_repeated() {
    let dir = tempfile::tempdir().expect("a directory");
    let own = format!("HostName=h;DeviceId=d;SharedAccessKey={KEY}");
    let cases = [
        (own.replace("DeviceId=d", "SharedAccessKeyName=service"), "this is a service connection string"),
        (own.replace("DeviceId=d", "DeviceId=d;ModuleId=m"), "this is a module connection string"),
        (format!("\"{own}\""), "is in quotes, which do not belong to it"),
        (own.trim_end_matches('=').to_owned(), "is not base64: copy the whole key, it usually ends with ="),
        (own.replace("DxAR", "Dx\nAR"), "is not base64: copy the whole key"),
        (own.replace(';', "\n"), "which is not a host name"),
    ];
    for (string, sentence) in &cases {
        let found = offline(dir.path(), LED, Some(string));
        found.failed(&["configuration", "identity"]);
        found.says("identity", "failed", sentence, "correct [device], or the connection string");
        assert!(!format!("{:?}", found.checks).contains(&KEY[..12]), "{:#?}", found.checks);
    }
}

#[test]
fn a_ready_token_that_ends_or_is_for_another_device_is_told() {
    let dir = tempfile::tempdir().expect("a directory");
    let key = SharedAccessKey::from_base64(KEY).expect("a key");
    let with = |resource: &str, expiry: SystemTime| {
        let token = SasToken::sign(&key, resource, None, expiry);
        offline(
            dir.path(),
            LED,
            Some(&format!("HostName=h;DeviceId=d;SharedAccessSignature={}", token.expose())),
        )
    };
    let (now, day) = (SystemTime::now(), Duration::from_secs(86_400));
    with("h/devices/d", now + 3 * day).says("token", "ok", "good until ", "");
    with("h/devices/d", now + day / 2).says(
        "token",
        "warning",
        "and is not renewed",
        "SharedAccessKey instead",
    );
    let expired = with("h/devices/d", now - day);
    expired.failed(&["token"]);
    expired.says("token", "failed", "expired at ", "make a new one");
    with("h/devices/e", now + 3 * day).says(
        "token",
        "failed",
        "it is for h/devices/e, and not for h/devices/d",
        "",
    );
}

/// A configuration with a certificate of this name that ends in that year.
fn certified(dir: &Path, name: &str, until: i32) -> String {
    let key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::new(Vec::new()).expect("parameters");
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = rcgen::date_time_ymd(2020, 1, 1);
    params.not_after = rcgen::date_time_ymd(until, 1, 1);
    fs::write(dir.join("d.pem"), params.self_signed(&key).expect("a certificate").pem()).expect("written");
    fs::write(dir.join("d.key"), key.serialize_pem()).expect("written");
    format!(
        "[device]\nhub = \"h\"\ndevice_id = \"pi-01\"\ncertificate = \"d.pem\"\nprivate_key = \"d.key\"\n{LED}"
    )
}

#[test]
fn the_devices_certificate_is_looked_into() {
    let dir = tempfile::tempdir().expect("a directory");
    let found = offline(dir.path(), &certified(dir.path(), "pi-01", 2090), None);
    found.failed(&[]);
    found.says("device-certificate", "ok", "d.pem, good until 2090-01-01, in ", "");
    let found = offline(dir.path(), &certified(dir.path(), "pi-02", 2090), None);
    found.failed(&[]);
    found.says(
        "device-certificate",
        "warning",
        "its name is \"pi-02\", but the device is pi-01",
        "thumbprint",
    );
    let found = offline(dir.path(), &certified(dir.path(), "pi-01", 2021), None);
    found.failed(&["device-certificate"]);
    found.says("device-certificate", "failed", "expired on 2021-01-01", "register it at the hub");
}
