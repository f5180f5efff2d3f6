//! The three names of a hub: in the certificate, in tokens and in user names.
//!
//! Owns: nothing. Must not know: the agent.

use std::io::Read as _;
use std::io::Write as _;
use std::time::{Duration, SystemTime};

use bytes::BytesMut;
use c2d_agent::credentials::{
    DeviceConnectionString, DeviceSecret, SasToken, ServiceConnectionString, ServiceSecret,
};
use rumqttc::mqttbytes::v4::{Connect, Packet};

use crate::harness::{Emulator, binary, run};
use crate::rest::{dial_at, send};

const HUB: &str = "hub.local.test";

/// The first four bytes after a CONNECT of `dev1`: its CONNACK.
fn connack(emulator: &Emulator, name: &str, user: &str, token: &str) -> [u8; 4] {
    let config = c2d_agent::tls::client_config(Some(&emulator.ca_file()), None).expect("a configuration");
    let mut stream = dial_at(emulator.mqtt, config, name);
    let mut connect = Connect::new("dev1");
    connect.set_login(user, token);
    let mut bytes = BytesMut::new();
    Packet::Connect(connect).write(&mut bytes, 1 << 20).expect("writable");
    stream.write_all(&bytes).and_then(|()| stream.flush()).expect("sent");
    let mut answer = [0; 4];
    stream.read_exact(&mut answer).expect("a CONNACK");
    answer
}

#[test]
fn a_hub_answers_to_its_name_and_to_those_of_its_endpoints() {
    let emulator = Emulator::start_with(&["--device", "dev1", "--hostname", HUB]);
    let identity = DeviceConnectionString::parse(&emulator.device_string("dev1")).expect("valid");
    let DeviceSecret::Key(key) = &identity.secret else { panic!("not a key") };
    let service = ServiceConnectionString::parse(&emulator.service_string()).expect("valid");
    let ServiceSecret::Key(service_key) = &service.secret else { panic!("not a key") };
    let expiry = SystemTime::now() + Duration::from_secs(600);
    let config = || c2d_agent::tls::client_config(Some(&emulator.ca_file()), None).expect("a configuration");
    let ask = |name: &str, path: &str, token: &str| {
        let head = format!("Host: {name}\r\nAuthorization: {token}\r\nConnection: close\r\n");
        let request = format!("GET {path}?api-version=2021-04-12 HTTP/1.1\r\n{head}\r\n");
        let answer = send(dial_at(emulator.https, config(), name), request.as_bytes());
        answer.get(9..12).unwrap_or_default().to_owned()
    };
    for name in [HUB, "hub.device.local.test", "hub.service.local.test"] {
        let own = SasToken::sign(key, &format!("{name}/devices/dev1"), None, expiry);
        assert_eq!(ask(name, "/devices/dev1/messages/devicebound", own.expose()), "204", "{name}");
        let back_end = SasToken::sign(service_key, name, Some("service"), expiry);
        assert_eq!(ask(name, "/twins/dev1", back_end.expose()), "200", "{name}");
        let user = format!("{name}/dev1/?api-version=2021-04-12");
        assert_eq!(connack(&emulator, name, &user, own.expose()), [0x20, 2, 0, 0], "{name}");
    }
    emulator.process.stderr.wait_for("\"hub.service.local.test\" is the hub's name for back ends");
    assert_eq!(emulator.process.stderr.count("the hub's name for back ends"), 1);
    // Another name is another hub.
    let other = "hub.other.local.test";
    let token = SasToken::sign(key, &format!("{other}/devices/dev1"), None, expiry);
    let user = |name: &str| format!("{name}/dev1/?api-version=2021-04-12");
    assert_eq!(connack(&emulator, HUB, &user(HUB), token.expose()), [0x20, 2, 0, 5]);
    let token = SasToken::sign(key, &format!("{HUB}/devices/dev1"), None, expiry);
    assert_eq!(connack(&emulator, HUB, &user(other), token.expose()), [0x20, 2, 0, 5]);
}

#[test]
fn the_certificate_of_a_state_directory_gets_the_names_of_the_next_start() {
    let dir = tempfile::tempdir().expect("a directory");
    let start = |name: &str| {
        Emulator::start_in(&dir.path().join("state"), "0", "0", &["--device", "dev1", "--hostname", name])
    };
    let first = start("first.test");
    let authority = std::fs::read(first.ca_file()).expect("read");
    assert_eq!(first.process.terminate(), Some(0));
    let second = start("second.test");
    assert_eq!(std::fs::read(second.ca_file()).expect("read"), authority, "clients trust it already");
    let dialled = |name: &str| {
        let config = c2d_agent::tls::client_config(Some(&second.ca_file()), None).expect("a configuration");
        let answer =
            send(dial_at(second.https, config, name), b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n");
        answer.starts_with("HTTP/1.1 200 ")
    };
    assert!(dialled("second.service.test") && dialled("localhost") && !dialled("first.test"));
}

#[test]
fn a_name_that_is_not_for_this_side_is_told_before_anything_is_dialled() {
    let dir = tempfile::tempdir().expect("a directory");
    let config = dir.path().join("config.toml");
    std::fs::write(&config, "").expect("written");
    let service = "h.service.azure-devices.net is the hub's name for back ends, which refuses devices: use \
                   h.azure-devices.net";
    let string = "HostName=h.service.azure-devices.net;DeviceId=d;SharedAccessKey=AAAA";
    let mut check = binary();
    let checked = run(check.args(["check", "-c"]).arg(&config).env("C2D_DEVICE_CONNECTION_STRING", string));
    assert_eq!(checked.status.code(), Some(2));
    let told =
        String::from_utf8_lossy(&checked.stdout).into_owned() + &String::from_utf8_lossy(&checked.stderr);
    assert!(told.contains(service), "{told}");

    let hub = "[device]\nhub = \"h.service.azure-devices.net\"\ndevice_id = \"d\"\n";
    std::fs::write(&config, format!("{hub}certificate = \"c.pem\"\nprivate_key = \"k.pem\"\n"))
        .expect("written");
    let checked = run(binary().args(["check", "-c"]).arg(&config));
    let told =
        String::from_utf8_lossy(&checked.stdout).into_owned() + &String::from_utf8_lossy(&checked.stderr);
    assert!(told.contains(service) && told.contains("config.toml:2"), "{told}");

    let string = "HostName=h.device.azure-devices.net;SharedAccessKeyName=service;SharedAccessKey=AAAA";
    let mut send = binary();
    send.args(["c2d-send", "--device", "d", "--count", "2", "--dry-run"]);
    let sent = run(send.env("C2D_SERVICE_CONNECTION_STRING", string));
    assert_eq!(sent.status.code(), Some(0));
    let told = String::from_utf8_lossy(&sent.stderr);
    let note = "h.device.azure-devices.net is the hub's name for devices: if it refuses this command, use \
                h.azure-devices.net";
    assert!(told.contains(note), "{told}");
}
