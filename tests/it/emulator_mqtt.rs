//! The emulator's device side, packet by packet over real TLS.
//!
//! Owns: behaviour that has no line in `conformance`, and faulty devices. Must not know: the agent.

use std::io::Write as _;

use c2d_agent::credentials::{SasToken, SharedAccessKey};
use c2d_agent::emulator::hub::EnqueueError;
use c2d_agent::feedback::FeedbackStatus;
use c2d_agent::tls;
use rumqttc::mqttbytes::QoS;
use rumqttc::mqttbytes::v4::{
    Connect, ConnectReturnCode, LastWill, Packet, Publish, SubscribeReasonCode, Unsubscribe,
};

use crate::harness::Emulator;

pub(crate) mod device;
mod upstream;

use device::{Device, Local};

const DEVICEBOUND: &str = "devices/dev1/messages/devicebound/#";

#[test]
fn nothing_flows_before_a_subscription_nor_after_its_end() {
    let local = Local::start();
    local.send("early").expect("room");
    let (mut device, _) = local.sign_in();
    device.expect_silence();
    device.subscribe(&[(DEVICEBOUND, QoS::AtLeastOnce)]);
    assert_eq!(device.bodies(1), ["early"]);
    device.send(Packet::Unsubscribe(Unsubscribe { pkid: 3, topics: vec![DEVICEBOUND.into()] }));
    assert!(matches!(device.next(), Some(Packet::UnsubAck(ack)) if ack.pkid == 3));
    local.send("late").expect("room");
    device.expect_silence();
}

#[test]
fn a_property_bag_that_cannot_be_decoded_ends_the_connection() {
    let local = Local::start();
    let (mut device, _) = local.sign_in();
    device.send(Packet::Publish(Publish::new("devices/dev1/messages/events/a=%zz", QoS::AtMostOnce, "body")));
    device.expect_close();
}

#[test]
fn fifty_messages_fit_into_the_window_and_keep_their_places_until_they_are_completed() {
    let local = Local::start();
    let ids: Vec<String> = (0..50).map(|index| format!("m{index}")).collect();
    for id in &ids {
        local.send(id).expect("room");
    }
    assert_eq!(local.send("m50"), Err(EnqueueError::QueueFull("dev1".into())));
    let mut device = local.subscribed();
    let publishes: Vec<Publish> = (0..50).map(|_| device.publish()).collect();
    let bodies: Vec<_> = publishes.iter().map(|publish| String::from_utf8_lossy(&publish.payload)).collect();
    assert_eq!(bodies, ids, "first in, first out");
    assert!(local.send("m50").is_err(), "delivered messages have their place until they are completed");
    device.puback(&publishes[0]);
    device.expect_silence();
    local.send("m50").expect("room");
    assert_eq!(device.bodies(1), ["m50"]);
}

#[test]
fn another_protocol_level_gets_connack_1() {
    let local = Local::start();
    let mut device = local.dial();
    device.send_bytes(b"\x10\x11\x00\x04MQTT\x05\x02\x00\x3c\x00\x00\x04dev1");
    assert_eq!(device.connack().code, ConnectReturnCode::RefusedProtocolVersion);
    device.expect_close();
}

#[test]
fn a_puback_for_nothing_is_passed_over() {
    let local = Local::start();
    let mut device = local.subscribed();
    device.send_bytes(b"\x40\x02\x12\x34");
    device.expect_silence();
}

#[test]
fn a_subscription_with_qos_0_completes_messages_as_they_are_sent() {
    let local = Local::start();
    let (mut device, _) = local.sign_in();
    let ack = device.subscribe(&[(DEVICEBOUND, QoS::AtMostOnce)]);
    assert_eq!(ack.return_codes, [SubscribeReasonCode::Success(QoS::AtMostOnce)]);
    local.send("once").expect("room");
    let publish = device.publish();
    assert_eq!((publish.qos, publish.dup), (QoS::AtMostOnce, false));
    assert_eq!(local.feedback(), [("once".to_owned(), FeedbackStatus::Success)]);
}

#[test]
fn telemetry_is_acknowledged() {
    let local = Local::start();
    let (mut device, _) = local.sign_in();
    for (index, topic) in [
        "devices/dev1/messages/events/",
        "devices/dev1/messages/events/%24.mid=a&x=1/",
        "devices/dev1/messages/events/$.mid=a&x=1",
        "$iothub/twin/GET/?$rid=1",
    ]
    .into_iter()
    .enumerate()
    {
        let mut publish = Publish::new(topic, QoS::AtLeastOnce, "body");
        publish.pkid = u16::try_from(index).expect("few") + 1;
        device.send(Packet::Publish(publish.clone()));
        assert!(matches!(device.next(), Some(Packet::PubAck(ack)) if ack.pkid == publish.pkid), "{topic}");
    }
}

#[test]
fn a_device_with_a_certificate_signs_in_with_its_own_only() {
    let local = Local::start();
    let connect = || {
        let mut connect = Connect::new("cert1");
        connect.set_login("localhost/cert1/?api-version=2021-04-12", "");
        Packet::Connect(connect)
    };
    let mut own = local.dial_with_certificate("cert1");
    own.send(connect());
    assert_eq!(own.connack().code, ConnectReturnCode::Success);
    let mut other = local.dial_with_certificate("cert2");
    other.send(connect());
    assert_eq!(other.connack().code, ConnectReturnCode::NotAuthorized);
    let mut none = local.dial();
    none.send(connect());
    assert_eq!(none.connack().code, ConnectReturnCode::NotAuthorized);
}

#[test]
fn a_silent_device_is_closed_after_one_and_a_half_times_its_keep_alive() {
    let local = Local::start();
    let mut connect = local.connect_packet();
    connect.keep_alive = 1;
    let mut device = local.dial();
    device.send(Packet::Connect(connect));
    assert_eq!(device.connack().code, ConnectReturnCode::Success);
    let since = std::time::Instant::now();
    device.expect_close();
    assert!(since.elapsed() >= std::time::Duration::from_millis(1400), "closed after {:?}", since.elapsed());
}

#[test]
fn faulty_devices_lose_their_connection_and_hurt_nobody_else() {
    let local = Local::start();
    let (mut bystander, _) = local.sign_in();
    let mut plain = std::net::TcpStream::connect(local.address).expect("connected");
    plain.write_all(b"GET / HTTP/1.1\r\n\r\n").expect("sent");
    for first in
        [&b"\x00\x00"[..], b"\xf0\x01\x00", b"\x30\xff\xff\xff\xff", b"\x10\x02\x00\x04", b"\xc0\x00"]
    {
        let mut device = local.dial();
        device.send_bytes(first);
        device.expect_close();
    }
    bystander.expect_silence();
    bystander.send(Packet::Connect(local.connect_packet()));
    bystander.expect_close();
    for bad in [&b"\x30\x05\x00\x09abc"[..], b"\x82\x02\x00\x01", b"\x62\x02\x00\x01", b"\x30\x81\x80\x10"] {
        let (mut device, _) = local.sign_in();
        device.send_bytes(bad);
        device.expect_close();
    }
    local.subscribed().expect_silence();
}

#[test]
fn telemetry_and_wills_are_in_the_log() {
    let emulator = Emulator::start();
    let token = {
        let text = emulator.device_string("dev1");
        let key = text.split("SharedAccessKey=").nth(1).expect("a key");
        let key = SharedAccessKey::from_base64(key).expect("base64");
        let expiry = std::time::SystemTime::now() + std::time::Duration::from_secs(600);
        SasToken::sign(&key, "localhost/devices/dev1", None, expiry).expose().to_owned()
    };
    let config = tls::client_config(Some(&emulator.ca_file()), None).expect("a configuration");
    let mut device = Device::dial_with(emulator.mqtt, config);
    let mut connect = Connect::new("dev1");
    connect.set_login("localhost/dev1/?api-version=2021-04-12", &token);
    connect.last_will = Some(LastWill::new("devices/dev1/messages/events/", "gone", QoS::AtLeastOnce, false));
    device.send(Packet::Connect(connect));
    assert_eq!(device.connack().code, ConnectReturnCode::Success);
    let topic = "devices/dev1/messages/events/%24.mid=t-1&unit=C";
    device.send(Packet::Publish(Publish::new(topic, QoS::AtMostOnce, "21.5")));
    let line = emulator.process.stderr.wait_for("received a D2C message");
    for part in ["t-1", "unit=C", "21.5", "device_id=\"dev1\""] {
        assert!(line.contains(part), "{part} in {line}");
    }
    drop(device);
    let will = emulator.process.stderr.wait_for("the device's will");
    assert!(will.contains("gone") && will.contains("iothub-MessageType=Will"), "{will}");
    assert!(!emulator.process.stderr.text().contains(&token), "a token is in the log");
}
