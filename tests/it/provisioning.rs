//! Our agent and the Device Provisioning Service: the first hub, refusals, bad answers, the kept assignment, another hub.
//!
//! Owns: nothing. Must not know: how a registration goes over the wire.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use rustix::process::Signal;
use serde_json::Value;

use crate::emulator_hubs::Named;
use crate::emulator_running::asking;
use crate::harness::{Emulator, Process, binary, run, wait_for_file, wait_for_status, write_config};

mod command;
mod moved;

/// A pin, and a rule that switches it.
const PUMP: &str = "[gpio]\nbackend = \"simulated\"\nstate_file = \"pins.json\"\n[gpio.pins.pump]\nline = 17\n\
                    [[rule]]\nname = \"pump\"\nwhen = { state = { one_of = [\"on\", \"off\"] } }\n\
                    do = [ { gpio = \"pump\", set = \"{state}\" } ]\n";

/// A gateway that knows only who it is.
struct Gateway {
    dir: tempfile::TempDir,
    ca_file: PathBuf,
    https_port: u16,
}

impl Gateway {
    /// With `proof` in `[provisioning]` and `device` in `[device]`; `rest` begins with a table.
    fn new(emulator: &Emulator, id: &str, proof: &str, device: &str, rest: &str) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let port = emulator.mqtt.port();
        let text = format!(
            "[provisioning]\nid_scope = \"0ne00000001\"\nregistration_id = \"{id}\"\nendpoint = \"localhost:{port}\"\n\
             {proof}\n[device]\n{device}\n{rest}"
        );
        write_config(dir.path(), &text);
        Self { dir, ca_file: emulator.ca_file(), https_port: emulator.https.port() }
    }

    /// With the key of an individual enrolment.
    fn with_key(emulator: &Emulator, id: &str, rest: &str) -> Self {
        Self::new(emulator, id, &key_file(emulator, id), "", rest)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn assignment(&self) -> PathBuf {
        self.path("inbox.journal.assignment")
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = binary();
        command.args(arguments).arg("-c").arg(self.path("config.toml"));
        command.env("C2D_CA_FILE", &self.ca_file).env("C2D_HTTPS_PORT", self.https_port.to_string());
        command
    }

    fn run(&self) -> Process {
        Process::spawn(&mut self.command(&["run"]))
    }

    fn provision(&self, arguments: &[&str]) -> Output {
        run(&mut self.command(&[&["provision"], arguments].concat()))
    }
}

fn key_file(emulator: &Emulator, id: &str) -> String {
    format!("key_file = \"{}\"", emulator.state.join(format!("dps/devices/{id}.key")).display())
}

/// A certificate with this name, and its key, in files of `dir`; the lines of `[provisioning]` that name them.
fn certificate(dir: &Path, name: &str, authority: &rcgen::CertifiedIssuer<'_, rcgen::KeyPair>) -> String {
    let key = rcgen::KeyPair::generate().expect("a key");
    let mut params = rcgen::CertificateParams::new(Vec::<String>::new()).expect("no names");
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    let own = params.signed_by(&key, authority).expect("a certificate");
    let [certificate, private_key] = ["cert", "key"].map(|kind| dir.join(format!("{name}.{kind}.pem")));
    std::fs::write(&certificate, own.pem()).expect("written");
    std::fs::write(&private_key, key.serialize_pem()).expect("written");
    std::fs::set_permissions(&private_key, std::fs::Permissions::from_mode(0o600)).expect("a mode");
    format!("certificate = \"{}\"\nprivate_key = \"{}\"", certificate.display(), private_key.display())
}

fn authority() -> rcgen::CertifiedIssuer<'static, rcgen::KeyPair> {
    let mut params = rcgen::CertificateParams::new(Vec::<String>::new()).expect("no names");
    params.distinguished_name.push(rcgen::DnType::CommonName, "fleet authority");
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    rcgen::CertifiedIssuer::self_signed(params, rcgen::KeyPair::generate().expect("a key")).expect("a root")
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Sets or ends a fault of the service.
fn fault(emulator: &Emulator, arguments: &[&str]) {
    let output = run(&mut asking(&emulator.state, &[&["faults"], arguments].concat()));
    assert!(output.status.success(), "{}", said(&output));
}

#[test]
fn a_gateway_that_knows_only_who_it_is_takes_a_message_and_switches_a_pin() {
    let dir = tempfile::tempdir().expect("a directory");
    let (authority, ca) = (authority(), dir.path().join("fleet.pem"));
    std::fs::write(&ca, authority.pem()).expect("written");
    let group = format!("fleet={}", ca.display());
    let arguments = ["--dps-device", "a", "--dps-device", "b", "--dps-group", &group];
    let emulator = Emulator::start_with(&arguments);
    for (id, transport) in [("a", "mqtt"), ("b", "mqtt-ws"), ("x", "mqtt"), ("y", "mqtt-ws")] {
        let is_key = matches!(id, "a" | "b");
        let proof = if is_key { key_file(&emulator, id) } else { certificate(dir.path(), id, &authority) };
        let device = format!("transport = \"{transport}\"");
        let gateway = Gateway::new(&emulator, id, &proof, &device, PUMP);
        let agent = gateway.run();
        agent.stderr.wait_for("assigned by the provisioning service");
        agent.stderr.wait_for("subscribed");
        emulator.send(id, &["--property", "state=on", "--wait=20s"]);
        wait_for_file(&gateway.path("pins.json"), "\"on\"");
        wait_for_status(gateway.dir.path(), &format!("device        {id} on hub localhost:"));
        wait_for_status(gateway.dir.path(), &format!("by localhost:{}, to {id}", emulator.mqtt.port()));
        assert_eq!(agent.terminate(), Some(0), "{id}");

        let mode = std::fs::metadata(gateway.assignment()).expect("kept").permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{id}");
        let kept = std::fs::read_to_string(gateway.assignment()).expect("kept");
        let kept: Value = serde_json::from_str(&kept).expect("JSON");
        let mut names: Vec<_> = kept.as_object().expect("an object").keys().map(String::as_str).collect();
        names.retain(|name| *name != "etag");
        assert_eq!(
            names,
            ["assignedAt", "deviceId", "endpoint", "format", "hub", "idScope", "registrationId"],
            "no key is kept"
        );

        let again = gateway.run();
        again.stderr.wait_for("subscribed");
        assert_eq!(again.stderr.count("asking the provisioning service"), 0, "{id}: the assignment is kept");
        assert_eq!(again.terminate(), Some(0));
    }
}

#[test]
fn a_refusal_of_the_first_registration_ends_the_agent_with_a_sentence_as_a_wrong_key_does() {
    let emulator = Emulator::start_with(&["--dps-device", "a", "--dps-device", "b"]);
    let refused = |gateway: &Gateway, sentence: &str| {
        let (ran, asked) = (gateway.run(), gateway.provision(&[]));
        assert_eq!(ran.wait_exit().code(), Some(1), "{}", ran.stderr.text());
        ran.stderr.wait_for(sentence);
        assert_eq!(asked.status.code(), Some(3), "{}", said(&asked));
        assert!(said(&asked).contains(sentence), "{}", said(&asked));
        assert!(!gateway.assignment().exists());
    };
    let unknown = Gateway::new(&emulator, "c", &key_file(&emulator, "a"), "", "");
    refused(
        &unknown,
        "refused the registration id c (401002: Unauthorized): the enrolment does not exist or",
    );
    refused(&unknown, "clock is wrong (it says 20");
    let wrong_key = Gateway::new(&emulator, "a", &key_file(&emulator, "b"), "", "");
    refused(&wrong_key, "refused the registration id a (401002: Unauthorized)");
    let gateway = Gateway::with_key(&emulator, "a", "");
    for (name, sentence) in [
        ("dps-failed=400207", "its custom allocation failed: look at the log of the function"),
        ("dps-failed=400208", "no hub is linked to the enrolment: link one at the provisioning service"),
        ("dps-disabled", "the enrolment of a is disabled: enable it at the provisioning service"),
    ] {
        fault(&emulator, &["--device", "a", name]);
        refused(&gateway, sentence);
        let examined = said(&run(&mut gateway.command(&["doctor"])));
        assert!(examined.contains("FAILED   registration"), "{examined}");
        let (_, remedy) = sentence.split_once(": ").expect("a remedy");
        let plain = examined.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(plain.contains(&format!("→ {remedy}")), "{examined}");
        fault(&emulator, &["--clear"]);
    }
    let examined = said(&run(&mut gateway.command(&["doctor"])));
    assert!(examined.contains("it assigns device a on hub localhost:"), "{examined}");
    assert!(!gateway.assignment().exists(), "the doctor keeps nothing");
}

#[test]
fn a_busy_service_is_asked_until_it_has_an_answer_and_all_say_so_meanwhile() {
    let emulator = Emulator::start_with(&["--dps-device", "a", "--fault", "dps-throttle"]);
    let gateway = Gateway::with_key(&emulator, "a", "[metrics]\nlisten = \"127.0.0.1:0\"\n");
    let agent = gateway.run();
    agent.stderr.wait_for("it is busy (status 429)");
    let port = emulator.mqtt.port();
    let first = agent.stderr.wait_for("not assigned yet");
    let who = format!("provisioning=localhost:{port} registration_id=\"a\"");
    assert!(first.contains(&who) && !first.contains("hub="), "{first}");
    wait_for_status(gateway.dir.path(), &format!("not assigned yet: asking localhost:{port} as a"));
    wait_for_status(gateway.dir.path(), "it is busy (status 429)");
    let asked = gateway.provision(&[]);
    assert_eq!(asked.status.code(), Some(1), "{}", said(&asked));
    let examined = said(&run(&mut gateway.command(&["doctor", "--json"])));
    assert!(examined.contains("no hub is assigned yet, and the running agent asks for one"), "{examined}");
    let examined = said(&run(&mut gateway.command(&["doctor", "--sign-in"])));
    assert!(examined.contains("it is busy (status 429)"), "{examined}");
    assert!(examined.contains("warning  registration"), "{examined}");

    fault(&emulator, &["--clear"]);
    agent.stderr.wait_for("subscribed");
    wait_for_status(gateway.dir.path(), "device        a on hub localhost:");
    assert_eq!(agent.terminate(), Some(0));
    let examined = said(&run(&mut gateway.command(&["doctor"])));
    assert!(examined.contains("device a on hub localhost:"), "{examined}");
    assert!(examined.contains("0 days ago") && examined.contains("0 failed"), "{examined}");
}

#[test]
fn a_file_that_does_not_count_is_a_warning_and_the_service_is_asked_anew() {
    let emulator = Emulator::start_with(&["--dps-device", "a"]);
    let gateway = Gateway::with_key(&emulator, "a", "");
    let asks = |warning: &str| {
        let checked = said(&run(&mut gateway.command(&["check"])));
        assert!(checked.contains(warning) && checked.contains("is asked anew"), "{checked}");
        let agent = gateway.run();
        agent.stderr.wait_for(warning);
        agent.stderr.wait_for("subscribed");
        assert_eq!(agent.stderr.count("asking the provisioning service"), 1);
        assert_eq!(agent.terminate(), Some(0));
    };
    std::fs::write(gateway.assignment(), "{\"format\": 1, \"hub\"").expect("written");
    asks("it is not an assignment as this version of c2d-agent writes it");
    std::fs::set_permissions(gateway.assignment(), std::fs::Permissions::from_mode(0o666)).expect("a mode");
    asks("writable by users other than its owner");
    let kept = std::fs::read_to_string(gateway.assignment()).expect("kept");
    let other = kept.replace("\"registrationId\": \"a\"", "\"registrationId\": \"b\"");
    std::fs::write(gateway.assignment(), other).expect("written");
    asks("it belongs to the registration b of 0ne00000001");

    // Nothing can be written there, as on a full disk: the device has its hub all the same, also after a reload.
    std::fs::remove_file(gateway.assignment()).expect("removed");
    std::fs::create_dir(gateway.assignment()).expect("made");
    let agent = gateway.run();
    agent.stderr.wait_for("the assignment is used, but not kept yet; the agent goes on trying");
    agent.stderr.wait_for("subscribed");
    agent.signal(Signal::HUP);
    assert!(agent.stderr.wait_for("applied the new configuration").contains("signs_in_anew=false"));
    wait_for_status(gateway.dir.path(), "device        a on hub localhost:");
    std::fs::remove_dir(gateway.assignment()).expect("removed");
    agent.stderr.wait_for("the assignment is kept now");
    assert_eq!(agent.terminate(), Some(0));
    let again = gateway.run();
    again.stderr.wait_for("subscribed");
    assert_eq!(again.stderr.count("asking the provisioning service"), 0, "{}", again.stderr.text());
    assert_eq!(again.terminate(), Some(0));
}

#[test]
fn an_agent_that_waited_for_another_one_takes_up_what_that_one_was_assigned() {
    let emulator = Emulator::start_with(&["--dps-device", "a", "--fault", "dps-throttle"]);
    let gateway = Gateway::with_key(&emulator, "a", "");
    let first = gateway.run();
    first.stderr.wait_for("it is busy (status 429)");
    let second = gateway.run();
    second.stderr.wait_for("which has the inbox");
    fault(&emulator, &["--clear"]);
    first.stderr.wait_for("subscribed");
    assert_eq!(first.terminate(), Some(0));
    second.stderr.wait_for("subscribed");
    assert_eq!(second.stderr.count("asking the provisioning service"), 0, "{}", second.stderr.text());
    assert_eq!(second.terminate(), Some(0));
}

#[test]
fn a_reload_asks_only_for_another_registration() {
    let emulator = Emulator::start_with(&["--dps-device", "a", "--dps-device", "b"]);
    let gateway = Gateway::with_key(&emulator, "a", "");
    let agent = gateway.run();
    agent.stderr.wait_for("subscribed");
    agent.signal(Signal::HUP);
    assert!(agent.stderr.wait_for("applied the new configuration").contains("signs_in_anew=false"));

    let config = gateway.path("config.toml");
    let text = std::fs::read_to_string(&config).expect("text");
    let other = text.replace("registration_id = \"a\"", "registration_id = \"b\"");
    std::fs::write(&config, other.replace("devices/a.key", "devices/b.key")).expect("written");
    agent.signal(Signal::HUP);
    agent.stderr.wait_for_nth("assigned by the provisioning service", 2);
    agent.stderr.wait_for_nth("subscribed", 2);
    wait_for_status(gateway.dir.path(), "device        b on hub localhost:");
    assert_eq!(agent.terminate(), Some(0));
}

#[test]
fn two_agents_with_one_registration_are_told() {
    let emulator = Emulator::start_with(&["--dps-device", "a"]);
    let [one, two] = [(); 2].map(|()| Gateway::with_key(&emulator, "a", ""));
    let (one, two) = (one.run(), two.run());
    let both = "another program probably signs in with the same device id a";
    let told = |agent: &Process| {
        agent.stderr.wait_until(both, |lines| lines.iter().any(|line| line.contains(both)).then_some(()));
    };
    std::thread::scope(|scope| {
        scope.spawn(|| told(&one));
        told(&two);
    });
    assert_eq!((one.terminate(), two.terminate()), (Some(0), Some(0)));
}
