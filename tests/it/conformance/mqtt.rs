//! Lines 1 to 5: sign-in over MQTT, byte by byte. This file makes the packets itself, without a library.
//!
//! Owns: packets as bytes. Must not know: what travels on a connection (`messages`).

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use c2d_agent::credentials::{SasToken, SharedAccessKey};
use c2d_agent::emulator::registry::{Device as Registered, DeviceCredential, IdentityRecord, KeyPair};
use c2d_agent::emulator::{HTTPS_PORT, MQTT_PORT};
use c2d_agent::tls;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use rustls::{ClientConfig, ClientConnection, ProtocolVersion, StreamOwned};

use crate::emulator_mqtt::device::{Device, Local};
use crate::harness::{DEADLINE, Emulator, own_address};
use crate::rest_ask::device_token;

mod messages;

const USER: &str = "localhost/dev1/?api-version=2021-04-12";
const DEVICEBOUND: &str = "devices/dev1/messages/devicebound/#";

const ACCEPTED: [u8; 4] = [0x20, 2, 0, 0];
const ACCEPTED_WITH_SESSION: [u8; 4] = [0x20, 2, 1, 0];
const BAD_CLIENT_ID: [u8; 4] = [0x20, 2, 0, 2];
const NOT_AUTHORIZED: [u8; 4] = [0x20, 2, 0, 5];

/// Text in MQTT's form: its length, then its bytes.
fn text(text: &str) -> Vec<u8> {
    let length = u16::try_from(text.len()).expect("short");
    [&length.to_be_bytes()[..], text.as_bytes()].concat()
}

/// A packet: its first byte, the length of the rest, the rest.
fn packet(first: u8, rest: &[u8]) -> Vec<u8> {
    let mut bytes = vec![first];
    let mut left = rest.len();
    loop {
        let low = u8::try_from(left % 128).expect("seven bits");
        left /= 128;
        bytes.push(if left > 0 { low | 0x80 } else { low });
        if left == 0 {
            break;
        }
    }
    bytes.extend(rest);
    bytes
}

/// CONNECT with user name and password, keep-alive 60 s.
fn connect(client_id: &str, user: &str, password: &str, clean: bool) -> Vec<u8> {
    let flags = 0xc0 | u8::from(clean) << 1;
    let head = [&text("MQTT")[..], &[4, flags, 0, 60]].concat();
    packet(0x10, &[head, text(client_id), text(user), text(password)].concat())
}

/// SUBSCRIBE with the packet id 7.
fn subscribe(filters: &[(&str, u8)]) -> Vec<u8> {
    let filters = filters.iter().flat_map(|(filter, qos)| [text(filter), vec![*qos]].concat());
    packet(0x82, &[0, 7].into_iter().chain(filters).collect::<Vec<u8>>())
}

/// PUBLISH at QoS 0.
fn publish(topic: &str, body: &str) -> Vec<u8> {
    packet(0x30, &[&text(topic)[..], body.as_bytes()].concat())
}

/// A PUBLISH from the emulator in parts: its first byte, topic, packet id and body.
fn published(frame: Option<Vec<u8>>) -> (u8, String, Option<u16>, Vec<u8>) {
    let frame = frame.expect("a packet");
    assert_eq!(frame[0] & 0xf0, 0x30, "not a PUBLISH: {frame:?}");
    let start = 1 + frame.iter().skip(1).position(|byte| byte & 0x80 == 0).expect("a length") + 1;
    let topic_end = start + 2 + usize::from(u16::from_be_bytes([frame[start], frame[start + 1]]));
    let topic = String::from_utf8(frame[start + 2..topic_end].to_vec()).expect("UTF-8");
    if frame[0] & 0x06 == 0 {
        return (frame[0], topic, None, frame[topic_end..].to_vec());
    }
    let id = u16::from_be_bytes([frame[topic_end], frame[topic_end + 1]]);
    (frame[0], topic, Some(id), frame[topic_end + 2..].to_vec())
}

/// The answer to a CONNECT. After a refusal, the connection must be closed.
#[track_caller]
fn answer(local: &Local, client_id: &str, user: &str, password: &str) -> Vec<u8> {
    let mut device = local.dial();
    device.send_bytes(&connect(client_id, user, password, false));
    let answer = device.frame().expect("an answer");
    if answer[3] != 0 {
        assert_eq!(device.frame(), None, "refused, and closed");
    }
    answer
}

/// Signs `dev1` in and returns the CONNACK.
fn sign_in(local: &Local, clean: bool) -> (Device, Vec<u8>) {
    let mut device = local.dial();
    device.send_bytes(&connect("dev1", USER, &local.token(600), clean));
    let connack = device.frame().expect("a CONNACK");
    (device, connack)
}

/// Signs `dev1` in with its session, and subscribes.
fn subscribed(local: &Local) -> Device {
    let (mut device, _) = sign_in(local, false);
    device.send_bytes(&subscribe(&[(DEVICEBOUND, 1)]));
    assert_eq!(device.frame(), Some(vec![0x90, 3, 0, 7, 1]));
    device
}

/// Asserts that the emulator has sent nothing that was not read yet.
#[track_caller]
fn expect_silence(device: &mut Device) {
    device.send_bytes(&[0xc0, 0]);
    assert_eq!(device.frame(), Some(vec![0xd0, 0]), "only the answer to a ping");
}

fn tls_1_2(ca_file: &Path) -> Arc<ClientConfig> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add_parsable_certificates(tls::read_certificates(ca_file).expect("readable"));
    let config = ClientConfig::builder_with_provider(tls::provider());
    let config = config.with_protocol_versions(&[&rustls::version::TLS12]).expect("a version");
    Arc::new(config.with_root_certificates(roots).with_no_client_auth())
}

fn dial(address: SocketAddr, config: Arc<ClientConfig>) -> StreamOwned<ClientConnection, TcpStream> {
    let socket = TcpStream::connect(address).expect("connected");
    socket.set_read_timeout(Some(DEADLINE)).expect("a socket");
    let name = "localhost".try_into().expect("a name");
    StreamOwned::new(ClientConnection::new(config, name).expect("a connection"), socket)
}

#[test]
fn line_01_tls_1_2_on_8883_and_a_websocket_on_443_that_echoes_mqtt() {
    assert_eq!((MQTT_PORT, HTTPS_PORT), (8883, 443));
    let address = own_address();
    // Port 443 may need rights that this test does not have.
    let https = if TcpListener::bind((own_address(), 443)).is_ok() { "443" } else { "0" };
    let dir = tempfile::tempdir().expect("a directory");
    let bind = address.to_string();
    let arguments = ["--device", "dev1", "--bind", &bind, "--https-port", https];
    let emulator = Emulator::start_in(&dir.path().join("state"), "8883", "5671", &arguments);
    assert_eq!(emulator.mqtt.to_string(), format!("{address}:8883"));
    let connect = connect("dev1", USER, &device_token(&emulator, "dev1"), false);

    let mut stream = dial(emulator.mqtt, tls_1_2(&emulator.ca_file()));
    stream.write_all(&connect).expect("sent");
    let mut connack = [0; 4];
    stream.read_exact(&mut connack).expect("a CONNACK");
    assert_eq!((connack, stream.conn.protocol_version()), (ACCEPTED, Some(ProtocolVersion::TLSv1_2)));
    // The port refuses MQTT without TLS.
    let mut plain = TcpStream::connect(emulator.mqtt).expect("connected");
    plain.set_read_timeout(Some(DEADLINE)).expect("a socket");
    plain.write_all(&connect).expect("sent");
    let mut answer = Vec::new();
    drop(plain.read_to_end(&mut answer));
    assert_ne!(answer.first(), Some(&0x20), "{answer:?}");

    let mut stream = dial(emulator.https, tls_1_2(&emulator.ca_file()));
    // The key and the answer to it are those of RFC 6455, 1.3.
    let request = "GET /$iothub/websocket HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                   Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\
                   Sec-WebSocket-Protocol: mqtt\r\n\r\n";
    stream.write_all(request.as_bytes()).expect("sent");
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).expect("an answer");
        head.extend(byte);
    }
    let head = String::from_utf8(head).expect("text").to_lowercase();
    assert!(head.starts_with("http/1.1 101 "), "{head}");
    for line in [
        "upgrade: websocket",
        "sec-websocket-protocol: mqtt",
        "sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo=",
    ] {
        assert!(head.contains(&format!("\r\n{line}\r\n")), "{line} in {head}");
    }
    // The client sends one binary frame, with the mask that clients must use, and gets one binary frame back.
    let mask = [1, 2, 3, 4];
    let length = u16::try_from(connect.len()).expect("short").to_be_bytes();
    let masked = connect.iter().zip(mask.iter().cycle()).map(|(byte, key)| byte ^ key);
    let mut frame = [&[0x82, 0x80 | 126][..], &length, &mask].concat();
    frame.extend(masked);
    stream.write_all(&frame).expect("sent");
    let mut answer = [0; 6];
    stream.read_exact(&mut answer).expect("a frame");
    assert_eq!(answer[..2], [0x82, 4]);
    assert!([ACCEPTED, ACCEPTED_WITH_SESSION].iter().any(|connack| answer[2..] == *connack), "{answer:?}");
}

#[test]
fn line_02_user_names_of_each_form_are_read_and_what_does_not_fit_is_refused() {
    let local = Local::start();
    let token = local.token(600);
    for user in [
        "localhost/dev1/?api-version=2021-04-12",
        "localhost/dev1/api-version=2018-06-30",
        "localhost/dev1/?api-version=2019-10-01&DeviceClientType=azure-iot-device-iothub-py%2F2.14.0%28x%29",
        "localhost/dev1/?DeviceClientType=x&api-version=2020-09-30&model-id=dtmi%3Aa%3Bb&unknown=1&auth-chain=dev1",
        "localhost:18883/dev1/?api-version=2021-04-12",
        "LocalHost:1/dev1/?api-version=anything",
    ] {
        let code = answer(&local, "dev1", user, &token);
        assert!(code == ACCEPTED || code == ACCEPTED_WITH_SESSION, "{user}: {code:?}");
    }
    for user in [
        "localhost/dev1/?DeviceClientType=x",
        "localhost/dev1/?api-version=",
        "localhost/dev1/",
        "localhost/dev1",
        "localhost",
        "",
        "other/dev1/?api-version=2021-04-12",
        "localhost/a/b/c/?api-version=2021-04-12",
    ] {
        assert_eq!(answer(&local, "dev1", user, &token), NOT_AUTHORIZED, "{user}");
    }
    // Ids are compared with case, with three segments and with four. A module's id is refused here.
    for id in ["", "dev2", "DEV1", "dev1/module"] {
        assert_eq!(answer(&local, id, USER, &token), BAD_CLIENT_ID, "{id}");
    }
    for user in
        ["localhost/dev1/module/?api-version=2021-04-12", "localhost/dev1/module/api-version=2021-04-12"]
    {
        assert_eq!(answer(&local, "dev1", user, &token), BAD_CLIENT_ID, "{user}");
        assert_eq!(answer(&local, "dev1/module", user, &token), NOT_AUTHORIZED, "{user}");
    }
}

/// A token made by hand. The signature is over the resource as it is given.
fn signed(key: &[u8], resource: &str, expiry: u64) -> String {
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, key);
    let signature = ring::hmac::sign(&key, format!("{resource}\n{expiry}").as_bytes());
    utf8_percent_encode(&STANDARD.encode(signature), NON_ALPHANUMERIC).to_string()
}

fn in_ten_minutes() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970");
    now.as_secs() + 600
}

#[test]
fn line_03_the_signature_is_over_the_resource_as_it_was_sent() {
    let local = Local::start();
    let key = STANDARD.decode(local.key().expose_base64()).expect("base64");
    let expiry = in_ten_minutes();
    for resource in [
        "localhost%2Fdevices%2Fdev1",
        "localhost%2fdevices%2fdev1",
        "localhost/devices/dev1",
        "LOCALHOST%2Fdevices%2Fdev1",
        "%6cocalhost/devices/%64ev1",
    ] {
        let signature = signed(&key, resource, expiry);
        for token in [
            format!("SharedAccessSignature sr={resource}&sig={signature}&se={expiry}"),
            format!("SharedAccessSignature se={expiry}&skn=&sig={signature}&sr={resource}"),
        ] {
            let code = answer(&local, "dev1", USER, &token);
            assert!(code == ACCEPTED || code == ACCEPTED_WITH_SESSION, "{token}: {code:?}");
        }
        // The token has the signed resource in another spelling.
        let other =
            if resource.contains("%2F") { "localhost/devices/dev1" } else { "localhost%2Fdevices%2Fdev1" };
        let token = format!("SharedAccessSignature sr={other}&sig={signature}&se={expiry}");
        assert_eq!(answer(&local, "dev1", USER, &token), NOT_AUTHORIZED, "{resource} sent as {other}");
    }
}

/// A clock well before the end of the token of wire reference 11.
fn in_2026() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_770_000_000)
}

#[test]
fn line_03_the_token_of_the_worked_example_is_good() {
    let local = Local::start_as("myhub.local.test", in_2026);
    let key = SharedAccessKey::from_base64("AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=").expect("a key");
    let other = SharedAccessKey::from_bytes([1; 32]);
    let user = "myhub.local.test/dev1/?api-version=2021-04-12&DeviceClientType=myagent%2F1.0";
    let token = "SharedAccessSignature sr=myhub.local.test%2Fdevices%2Fdev1&\
                 sig=D6WC8cAd7eTyjLvrQcqiB%2FG6YkR56IpbxzLIrrZMrJc%3D&se=1893456000";
    let keys = [(key.clone(), other.clone()), (other.clone(), key)];
    for (primary, secondary) in keys {
        let credential = DeviceCredential::Keys(KeyPair { primary, secondary });
        local.hub.with(|hub, _| hub.add_device(Registered { id: "dev1".into(), credential }));
        assert_eq!(answer(&local, "dev1", user, token)[3], 0, "as the first key, and as the second");
    }
    let keys = KeyPair { primary: other.clone(), secondary: other };
    let credential = DeviceCredential::Keys(keys);
    local.hub.with(|hub, _| hub.add_device(Registered { id: "dev1".into(), credential }));
    assert_eq!(answer(&local, "dev1", user, token), NOT_AUTHORIZED);
}

#[test]
fn line_02_the_model_of_the_user_name_is_in_the_twin() {
    let local = Local::start();
    let model = || local.hub.with(|hub, _| hub.twin("dev1").expect("a twin")["modelId"].clone());
    assert_eq!(model(), "");
    let user = format!("{USER}&model-id=dtmi%3Acom%3Aexample%3AThermostat%3B1");
    for user in [&user, USER] {
        assert_eq!(answer(&local, "dev1", user, &local.token(600))[3], 0);
        assert_eq!(model(), "dtmi:com:example:Thermostat;1");
    }
}

#[test]
fn line_03_whatever_is_wrong_with_a_token_is_connack_5() {
    let local = Local::start();
    let expiry = SystemTime::now() + Duration::from_secs(600);
    let sign = |key: &SharedAccessKey, resource, policy| {
        SasToken::sign(key, resource, policy, expiry).expose().to_owned()
    };
    let good = sign(&local.key(), "localhost/devices/dev1", None);
    for token in [
        String::new(),
        "password".to_owned(),
        good.replace("SharedAccessSignature ", ""),
        good.replace("&se=", "&se=1"),
        good.replace("sig=", "sig=A"),
        local.token(-1),
        sign(&SharedAccessKey::from_bytes([7; 32]), "localhost/devices/dev1", None),
        sign(&local.key(), "localhost/devices/dev2", None),
        sign(&local.key(), "other/devices/dev1", None),
        sign(&local.key(), "localhost/devices/dev1", Some("service")),
    ] {
        assert_eq!(answer(&local, "dev1", USER, &token), NOT_AUTHORIZED, "{token}");
    }
    let unknown = "localhost/dev9/?api-version=2021-04-12";
    assert_eq!(answer(&local, "dev9", unknown, &good), NOT_AUTHORIZED, "an unknown device");
    local.hub.with(|hub, now| {
        hub.set_record("dev1", IdentityRecord { enabled: false, ..IdentityRecord::default() }, now);
    });
    assert_eq!(answer(&local, "dev1", USER, &good), NOT_AUTHORIZED, "a disabled device");
}

#[test]
fn line_03_a_connection_is_closed_at_the_end_of_its_token() {
    let local = Local::start();
    let token = local.token(2);
    let end = SasToken::parse(&token).expect("a token").expiry();
    let mut device = local.dial();
    device.send_bytes(&connect("dev1", USER, &token, false));
    assert_eq!(device.frame().as_deref(), Some(&ACCEPTED[..]));
    expect_silence(&mut device);
    assert_eq!(device.frame(), None);
    assert!(SystemTime::now() >= end, "not before its time");
}

#[test]
fn line_04_a_persistent_session_is_announced_and_has_its_subscriptions() {
    let local = Local::start();
    let (mut device, connack) = sign_in(&local, false);
    assert_eq!(connack, ACCEPTED, "the first session is new");
    device.send_bytes(&subscribe(&[(DEVICEBOUND, 1)]));
    assert_eq!(device.frame(), Some(vec![0x90, 3, 0, 7, 1]));
    device.send_bytes(&[0xe0, 0]);
    assert_eq!(device.frame(), None);
    local.send("waiting").expect("room");
    let (mut device, connack) = sign_in(&local, false);
    assert_eq!(connack, ACCEPTED_WITH_SESSION);
    let (_, _, _, body) = published(device.frame());
    assert_eq!(body, b"waiting", "without another SUBSCRIBE");
    drop(device);

    // A clean session begins and ends without subscriptions. The queue does not belong to the session.
    let (mut device, connack) = sign_in(&local, true);
    assert_eq!(connack, ACCEPTED);
    expect_silence(&mut device);
    device.send_bytes(&subscribe(&[(DEVICEBOUND, 1)]));
    assert_eq!(device.frame(), Some(vec![0x90, 3, 0, 7, 1]));
    assert_eq!(published(device.frame()).3, b"waiting");
    drop(device);
    let (mut device, connack) = sign_in(&local, false);
    assert_eq!(connack, ACCEPTED);
    expect_silence(&mut device);
}

#[test]
fn line_04_a_second_connection_of_the_id_closes_the_first() {
    let local = Local::start();
    let mut first = subscribed(&local);
    local.send("one").expect("room");
    let (_, topic, _, _) = published(first.frame());
    let (mut second, connack) = sign_in(&local, false);
    assert_eq!(connack, ACCEPTED_WITH_SESSION);
    assert_eq!(first.frame(), None, "closed");
    let (head, again, id, _) = published(second.frame());
    assert_eq!((head, again), (0x3a, topic), "QoS 1, with DUP");
    // An answer of the first connection would not count; the second connection may answer.
    let id = id.expect("an id").to_be_bytes();
    second.send_bytes(&[0x40, 2, id[0], id[1]]);
    expect_silence(&mut second);
    assert_eq!(local.hub.with(|hub, _| hub.queue_length("dev1")), Some(0));
}

#[test]
fn line_05_the_documented_filters_are_granted_with_qos_1_at_most() {
    let local = Local::start();
    let (mut device, _) = sign_in(&local, false);
    device.send_bytes(&subscribe(&[
        (DEVICEBOUND, 2),
        ("$iothub/methods/POST/#", 0),
        ("$iothub/twin/res/#", 1),
        ("$iothub/twin/PATCH/properties/desired/#", 2),
    ]));
    assert_eq!(device.frame(), Some(vec![0x90, 6, 0, 7, 1, 0, 1, 1]));
    expect_silence(&mut device);
}

#[test]
fn line_05_another_filter_gets_0x80_and_ends_the_connection() {
    let local = Local::start();
    for filter in
        ["devices/dev2/messages/devicebound/#", "#", "+", "devices/dev1/messages/devicebound/", "$iothub/#"]
    {
        let (mut device, _) = sign_in(&local, true);
        device.send_bytes(&subscribe(&[(DEVICEBOUND, 1), (filter, 1)]));
        assert_eq!(device.frame(), Some(vec![0x90, 4, 0, 7, 1, 0x80]), "{filter}");
        assert_eq!(device.frame(), None, "{filter}");
    }
}

#[test]
fn line_05_a_publish_with_qos_2_ends_the_connection_and_so_does_another_topic() {
    let local = Local::start();
    let (mut device, _) = sign_in(&local, true);
    device.send_bytes(&packet(0x34, &[&text("devices/dev1/messages/events/")[..], &[0, 9], b"x"].concat()));
    assert_eq!(device.frame(), None, "neither PUBREC nor anything else");
    for topic in ["devices/dev2/messages/events/", "devices/dev1/messages/devicebound/", "somewhere"] {
        let (mut device, _) = sign_in(&local, true);
        device.send_bytes(&publish(topic, "x"));
        assert_eq!(device.frame(), None, "{topic}");
    }
    let (mut device, _) = sign_in(&local, true);
    device.send_bytes(&publish("devices/dev1/messages/events/", "x"));
    expect_silence(&mut device);
}
