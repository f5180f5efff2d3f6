//! The device's certificate: taken up when its files change, and given up when the hub refuses it.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::{CertificateParams, DnType, Issuer, KeyPair};
use serde_json::{Value, json};

use crate::emulator_registry::owner;
use crate::harness::{Emulator, Process, binary, run, wait_for_file, write_config};

mod issued;
mod trouble;

/// Pin `pump`, and a rule that sets it.
const PUMP: &str = "[gpio]\nbackend = \"simulated\"\nstate_file = \"pins.json\"\n[gpio.pins.pump]\nline = 1\n\
    [[rule]]\nname = \"pump\"\nwhen = { action = \"pump\" }\ndo = [ { gpio = \"pump\", set = \"{state}\" } ]\n";
const CHANGED: &str = "the files of the certificate have changed: signing in with the new pair";

/// Certificates and keys as PEM.
struct Authority(Issuer<'static, KeyPair>);

impl Authority {
    /// The authority of the emulator.
    fn of(emulator: &Emulator) -> Self {
        let secrets = fs::read_to_string(emulator.state.join("secrets.json")).expect("the secrets");
        let secrets: Value = serde_json::from_str(&secrets).expect("JSON");
        let text = |name: &str| secrets["authority"][name].as_str().expect("PEM").to_owned();
        let key = KeyPair::from_pem(&text("private_key")).expect("a key");
        Self(Issuer::from_ca_cert_pem(&text("certificate"), key).expect("a certificate"))
    }

    fn stranger() -> Self {
        Self(Issuer::new(CertificateParams::default(), KeyPair::generate().expect("a key")))
    }

    /// A certificate for `name` that ends `ends_in` from now and began an hour ago, and its key.
    fn pair(&self, name: &str, ends_in: Duration) -> (String, String) {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        let now = SystemTime::now();
        (params.not_before, params.not_after) = ((now - HOUR).into(), (now + ends_in).into());
        let key = KeyPair::generate().expect("a key");
        (params.signed_by(&key, &self.0).expect("signed").pem(), key.serialize_pem())
    }
}

const HOUR: Duration = Duration::from_secs(60 * 60);

/// A gateway with the certificate of a device that the emulator's authority vouches for.
struct Gateway {
    emulator: Emulator,
    authority: Authority,
    dir: tempfile::TempDir,
    config: PathBuf,
}

impl Gateway {
    fn new(first: impl Fn(&Authority) -> (String, String), rest: &str) -> Self {
        let emulator = Emulator::start();
        let by_authority = json!({ "authentication": { "type": "certificateAuthority" } });
        assert_eq!(owner(&emulator, "PUT", "/devices/pump-12", "", &by_authority).status, 200);
        let authority = Authority::of(&emulator);
        let dir = tempfile::tempdir().expect("a directory");
        let port = emulator.mqtt.port();
        let text = format!(
            "[device]\nhub = \"localhost:{port}\"\ndevice_id = \"pump-12\"\ncertificate = \"pair/cert.pem\"\n\
             private_key = \"pair/key.pem\"\n{rest}\n{PUMP}"
        );
        let config = write_config(dir.path(), &text);
        let gateway = Self { emulator, dir, config, authority };
        fs::create_dir(gateway.dir.path().join("pair")).expect("a directory");
        gateway.write(&first(&gateway.authority));
        gateway
    }

    fn command(&self, arguments: &[&str]) -> std::process::Command {
        let mut command = binary();
        command.args(arguments).arg("-c").arg(&self.config).env("C2D_CA_FILE", self.emulator.ca_file());
        command
    }

    fn start(&self) -> Process {
        let agent = Process::spawn(&mut self.command(&["run"]));
        agent.stderr.wait_for("subscribed");
        agent
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join("pair").join(name)
    }

    fn write(&self, (certificate, key): &(String, String)) {
        replace(&self.file("cert.pem"), certificate);
        replace(&self.file("key.pem"), key);
    }

    fn send(&self, id: &str, state: &str) {
        let state = format!("state={state}");
        let arguments = ["--message-id", id, "--property", "action=pump", "--property", &state];
        let sent = self.emulator.send("pump-12", &arguments);
        assert!(sent.status.success(), "{sent:?}");
    }

    fn status(&self) -> Value {
        let output = self.command(&["status", "--json"]).output().expect("an output");
        serde_json::from_slice(&output.stdout).expect("JSON")
    }
}

fn replace(file: &Path, text: &str) {
    let new = file.with_extension("new");
    fs::write(&new, text).expect("written");
    fs::rename(&new, file).expect("renamed");
}

#[test]
fn a_pair_that_another_program_renews_is_taken_up_and_one_that_the_hub_refuses_gives_way() {
    let gateway = Gateway::new(|authority| authority.pair("pump-12", HOUR * 10), "");
    let agent = gateway.start();
    let until = |status: &Value| status["certificate"]["validUntil"].as_str().expect("a time").to_owned();
    let first = until(&gateway.status());
    gateway.send("1", "on");
    wait_for_file(&gateway.dir.path().join("pins.json"), "\"pump\":\"on\"");

    // Half a pair is waited for; with its key it is taken up.
    let (certificate, key) = gateway.authority.pair("pump-12", HOUR * 20);
    replace(&gateway.file("cert.pem"), &certificate);
    gateway.send("2", "off");
    wait_for_file(&gateway.dir.path().join("pins.json"), "\"pump\":\"off\"");
    assert_eq!(agent.stderr.count(CHANGED), 0);
    replace(&gateway.file("key.pem"), &key);
    agent.stderr.wait_for(CHANGED);
    agent.stderr.wait_for_nth("subscribed", 2);
    let second = until(&gateway.status());
    assert!(second > first, "{first} {second}");

    // One of a stranger's is refused, and the one before stays, although its files have gone.
    gateway.write(&Authority::stranger().pair("pump-12", HOUR * 30));
    agent
        .stderr
        .wait_for("the hub refused the certificate in the files: the earlier one is used, from memory");
    agent.stderr.wait_for_nth("subscribed", 3);
    assert_eq!(until(&gateway.status()), second);
    gateway.send("3", "on");
    wait_for_file(&gateway.dir.path().join("pins.json"), "\"pump\":\"on\"");

    // A good one mends that without a restart.
    gateway.write(&gateway.authority.pair("pump-12", HOUR * 40));
    agent.stderr.wait_for_nth("subscribed", 4);
    assert!(until(&gateway.status()) > second);
    assert_eq!(agent.terminate(), Some(0));
    assert_eq!(agent.stderr.count("outcome=succeeded"), 3, "{}", agent.stderr.text());
    assert_eq!(agent.stderr.count("cannot be used"), 0, "{}", agent.stderr.text());
}

#[test]
fn a_disk_of_the_files_that_hangs_holds_up_neither_messages_nor_reloads_for_long() {
    let gateway = Gateway::new(|authority| authority.pair("pump-12", HOUR * 10), "");
    let agent = gateway.start();
    // Who opens such a file to read it waits until another process writes to it.
    let (file, made) = (gateway.file("cert.pem"), gateway.file("made"));
    assert!(run(std::process::Command::new("mkfifo").arg(&made)).status.success());
    fs::rename(&made, &file).expect("renamed");
    agent.stderr.wait_for("the files of the certificate could not be read within 10 s: their disk hangs");
    gateway.send("1", "on");
    wait_for_file(&gateway.dir.path().join("pins.json"), "\"pump\":\"on\"");
    drop(fs::OpenOptions::new().write(true).open(&file).expect("the disk answers"));
    gateway.write(&gateway.authority.pair("pump-12", HOUR * 20));
    agent.stderr.wait_for(CHANGED);
    agent.stderr.wait_for_nth("subscribed", 2);
    assert_eq!(agent.terminate(), Some(0));
    assert_eq!(agent.stderr.count("their disk hangs"), 1, "{}", agent.stderr.text());
}

#[test]
fn the_end_of_a_certificate_is_in_the_log_the_status_the_twin_and_the_doctor() {
    // An hour is over, and a tenth of that is left.
    let short = |authority: &Authority| authority.pair("pump-12", HOUR / 10);
    let gateway = Gateway::new(short, "[report]\noutcomes = \"twin\"\n[metrics]\nlisten = \"127.0.0.1:0\"");
    let agent = gateway.start();
    agent.stderr.wait_for("less than a fifth of the life of the device's certificate is left: renew it");
    let status = gateway.status();
    let until = status["certificate"]["validUntil"].as_str().expect("a time").to_owned();
    let told = gateway.command(&["status"]).output().expect("an output");
    let told = String::from_utf8_lossy(&told.stdout).into_owned();
    assert!(told.contains("\nCERTIFICATE   valid until "), "{told}");
    // The twin has it where Microsoft asks for it.
    let twin = agent.stderr.wait_until("the twin", |_| {
        let twin = owner(&gateway.emulator, "GET", "/twins/pump-12", "", &Value::Null).json();
        let reported = twin["properties"]["reported"].clone();
        reported["certificate"].is_object().then_some(reported)
    });
    assert_eq!(twin["certificate"]["validUntil"], until);
    assert!(twin["certificate"]["validFrom"].is_string());
    let doctor = gateway.command(&["doctor", "--offline"]).output().expect("an output");
    let doctor = String::from_utf8_lossy(&doctor.stdout).into_owned();
    assert!(doctor.contains("pump-12") && doctor.contains("ends on"), "{doctor}");
}
