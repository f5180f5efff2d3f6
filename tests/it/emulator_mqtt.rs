//! The emulator's device side, packet by packet over real TLS.
//!
//! Owns: lines 1 to 10 and 24 of the wire reference's section 8, as far as MQTT goes, and faulty devices.
//! Must not know: the agent. Used by: nobody.

use std::io::Write as _;
use std::sync::Arc;

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

/// What a CONNECT, changed by `change`, is answered with; a refusal must also close the connection.
#[track_caller]
fn answer(local: &Local, change: impl FnOnce(&mut Connect)) -> ConnectReturnCode {
    let mut connect = local.connect_packet();
    change(&mut connect);
    let mut device = local.dial();
    device.send(Packet::Connect(connect));
    let code = device.connack().code;
    if code != ConnectReturnCode::Success {
        device.expect_close();
    }
    code
}

fn set_user(connect: &mut Connect, user: &str) {
    connect.login.as_mut().expect("a login").username = user.to_owned();
}

fn set_password(connect: &mut Connect, password: &str) {
    connect.login.as_mut().expect("a login").password = password.to_owned();
}

#[test]
fn line_1_tls_1_2_and_1_3_are_both_spoken() {
    let local = Local::start();
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let mut roots = rustls::RootCertStore::empty();
        roots.add_parsable_certificates(
            tls::read_certificates(&local.state().join("ca.pem")).expect("readable"),
        );
        let config = rustls::ClientConfig::builder_with_provider(tls::provider())
            .with_protocol_versions(&[version])
            .expect("a version")
            .with_root_certificates(roots)
            .with_no_client_auth();
        let mut device = Device::dial_with(local.address, Arc::new(config));
        device.send(Packet::Connect(local.connect_packet()));
        assert_eq!(device.connack().code, ConnectReturnCode::Success, "{version:?}");
    }
}

#[test]
fn line_2_user_names_come_with_or_without_a_question_mark_and_a_port() {
    let local = Local::start();
    for user in [
        "localhost/dev1/?api-version=2021-04-12&DeviceClientType=x%2F1",
        "localhost/dev1/api-version=2018-06-30",
        "LOCALHOST:18883/dev1/?api-version=2021-04-12",
    ] {
        assert_eq!(answer(&local, |connect| set_user(connect, user)), ConnectReturnCode::Success, "{user}");
    }
    for user in
        ["localhost/dev1/?DeviceClientType=x", "localhost/dev1", "other/dev1/?api-version=2021-04-12", ""]
    {
        let code = answer(&local, |connect| set_user(connect, user));
        assert_eq!(code, ConnectReturnCode::NotAuthorized, "{user}");
    }
}

#[test]
fn line_2_the_client_id_must_be_the_id_in_the_user_name() {
    let local = Local::start();
    for id in ["", "dev2", "DEV1"] {
        let code = answer(&local, |connect| id.clone_into(&mut connect.client_id));
        assert_eq!(code, ConnectReturnCode::BadClientId, "{id}");
    }
}

#[test]
fn line_3_a_wrong_key_an_expired_token_and_an_unknown_device_get_connack_5() {
    let local = Local::start();
    let refused = ConnectReturnCode::NotAuthorized;
    let other_key = SharedAccessKey::from_bytes([7; 32]);
    let good = SasToken::parse(&local.token(600)).expect("a token");
    let wrong = SasToken::sign(&other_key, "localhost/devices/dev1", None, good.expiry());
    assert_eq!(answer(&local, |connect| set_password(connect, wrong.expose())), refused);
    let elsewhere = SasToken::sign(&local.key(), "localhost/devices/dev2", None, good.expiry());
    assert_eq!(answer(&local, |connect| set_password(connect, elsewhere.expose())), refused);
    let expired = local.token(-1);
    assert_eq!(answer(&local, |connect| set_password(connect, &expired)), refused);
    assert_eq!(answer(&local, |connect| set_password(connect, "password")), refused);
    assert_eq!(answer(&local, |connect| set_password(connect, "")), refused);
    assert_eq!(answer(&local, |connect| connect.login = None), refused);
    let unknown = answer(&local, |connect| {
        connect.client_id = "dev9".into();
        set_user(connect, "localhost/dev9/?api-version=2021-04-12");
    });
    assert_eq!(unknown, refused);
    let module = answer(&local, |connect| {
        connect.client_id = "dev1/module".into();
        set_user(connect, "localhost/dev1/module/?api-version=2021-04-12");
    });
    assert_eq!(module, refused);
}

#[test]
fn line_3_a_connection_is_closed_when_its_token_expires() {
    let local = Local::start();
    let mut connect = local.connect_packet();
    set_password(&mut connect, &local.token(2));
    let mut device = local.dial();
    device.send(Packet::Connect(connect));
    assert_eq!(device.connack().code, ConnectReturnCode::Success);
    device.expect_silence();
    device.expect_close();
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
fn line_4_a_stored_subscription_delivers_right_after_connack() {
    let local = Local::start();
    let (mut device, present) = local.sign_in();
    assert!(!present, "the first session is new");
    device.subscribe(&[(DEVICEBOUND, QoS::AtLeastOnce)]);
    device.send(Packet::Disconnect);
    device.expect_close();
    local.send("waiting").expect("room");
    let (mut device, present) = local.sign_in();
    assert!(present);
    assert_eq!(device.bodies(1), ["waiting"], "without another SUBSCRIBE");
}

#[test]
fn line_4_a_clean_session_starts_and_ends_without_subscriptions() {
    let local = Local::start();
    drop(local.subscribed());
    local.send("waiting").expect("room");
    let mut connect = local.connect_packet();
    connect.clean_session = true;
    let mut device = local.dial();
    device.send(Packet::Connect(connect));
    assert!(!device.connack().session_present);
    device.expect_silence();
    device.subscribe(&[(DEVICEBOUND, QoS::AtLeastOnce)]);
    assert_eq!(device.bodies(1), ["waiting"], "the queue is no part of the session");
    device.send(Packet::Disconnect);
    device.expect_close();
    let (mut device, present) = local.sign_in();
    assert!(!present);
    device.expect_silence();
}

#[test]
fn line_4_a_second_connection_of_the_device_closes_the_first() {
    let local = Local::start();
    let mut first = local.subscribed();
    local.send("one").expect("room");
    let one = first.publish();
    let (mut second, present) = local.sign_in();
    assert!(present);
    first.expect_close();
    let again = second.publish();
    assert_eq!((again.payload.clone(), again.dup), (one.payload, true));
    second.puback(&again);
    assert_eq!(local.feedback(), [("one".to_owned(), FeedbackStatus::Success)]);
}

#[test]
fn line_5_the_documented_filters_are_granted_with_at_most_qos_1() {
    let local = Local::start();
    let (mut device, _) = local.sign_in();
    let ack = device.subscribe(&[
        (DEVICEBOUND, QoS::ExactlyOnce),
        ("$iothub/methods/POST/#", QoS::AtMostOnce),
        ("$iothub/twin/res/#", QoS::AtLeastOnce),
        ("$iothub/twin/PATCH/properties/desired/#", QoS::AtMostOnce),
    ]);
    let granted = [QoS::AtLeastOnce, QoS::AtMostOnce, QoS::AtLeastOnce, QoS::AtMostOnce];
    assert_eq!(ack.return_codes, granted.map(SubscribeReasonCode::Success));
    device.expect_silence();
}

#[test]
fn line_5_other_filters_get_0x80_and_the_connection_is_closed() {
    let local = Local::start();
    for filter in ["devices/dev2/messages/devicebound/#", "#", "devices/dev1/messages/devicebound/+"] {
        let (mut device, _) = local.sign_in();
        let ack = device.subscribe(&[(DEVICEBOUND, QoS::AtLeastOnce), (filter, QoS::AtLeastOnce)]);
        let expected = [SubscribeReasonCode::Success(QoS::AtLeastOnce), SubscribeReasonCode::Failure];
        assert_eq!(ack.return_codes, expected, "{filter}");
        device.expect_close();
    }
}

#[test]
fn line_5_a_publish_with_qos_2_or_to_another_topic_closes_the_connection() {
    let local = Local::start();
    for (topic, qos) in [
        ("devices/dev1/messages/events/", QoS::ExactlyOnce),
        ("devices/dev2/messages/events/", QoS::AtLeastOnce),
        ("somewhere", QoS::AtMostOnce),
        ("devices/dev1/messages/events/a=%zz", QoS::AtLeastOnce),
    ] {
        let (mut device, _) = local.sign_in();
        let mut publish = Publish::new(topic, qos, "body");
        publish.pkid = 1;
        device.send(Packet::Publish(publish));
        device.expect_close();
    }
}

#[test]
fn lines_6_and_7_the_topic_has_the_bytes_of_the_reference() {
    use bytes::Bytes;
    use c2d_agent::emulator::hub::QueuedMessage;
    use c2d_agent::feedback::DeliveryAck;
    use c2d_agent::message::C2dMessage;
    let local = Local::start();
    let mut device = local.subscribed();
    let mut message = C2dMessage { body: Bytes::from_static(b"{\"delay\":5}"), ..C2dMessage::default() };
    for (name, value) in [
        ("$.ct", "application/json"),
        ("$.to", "/devices/dev1/messages/deviceBound"),
        ("$.mid", "m-1"),
        ("iothub-ack", "full"),
    ] {
        message.system.set(name, value);
    }
    for (name, value) in [("cmd", "re boot"), ("empty", ""), ("sum", "1+1=2&é")] {
        message.application.set(name, value);
    }
    let expiry = c2d_agent::message::parse_time("2100-01-01T00:00:00.5Z").expect("a time");
    let queued =
        |message, expiry| QueuedMessage { device_id: "dev1".into(), message, ack: DeliveryAck::Full, expiry };
    let far = local.hub.with(|hub, now| hub.enqueue(queued(message.clone(), Some(expiry)), now));
    assert!(matches!(far, Err(EnqueueError::ExpiryTooFar(_))), "more than two days ahead");
    local.hub.with(|hub, now| hub.enqueue(queued(message, None), now)).expect("room");
    local.hub.with(|hub, now| hub.enqueue(queued(C2dMessage::default(), None), now)).expect("room");
    assert_eq!(
        device.publish().topic,
        "devices/dev1/messages/devicebound/%24.mid=m-1&%24.to=%2Fdevices%2Fdev1%2Fmessages%2FdeviceBound\
         &%24.ct=application%2Fjson&iothub-ack=full&cmd=re%20boot&empty=&sum=1%2B1%3D2%26%C3%A9"
    );
    assert_eq!(
        device.publish().topic,
        "devices/dev1/messages/devicebound/%24.to=%2Fdevices%2Fdev1%2Fmessages%2Fdevicebound",
        "a message without properties still names its destination"
    );
}

#[test]
fn line_8_a_puback_completes_in_any_order() {
    let local = Local::start();
    let mut device = local.subscribed();
    for id in ["a", "b", "c"] {
        local.send(id).expect("room");
    }
    let publishes = [device.publish(), device.publish(), device.publish()];
    assert!(
        publishes.iter().all(|publish| publish.qos == QoS::AtLeastOnce && !publish.dup && publish.pkid > 0)
    );
    for publish in publishes.iter().rev() {
        device.puback(publish);
    }
    device.expect_silence();
    local.wait(|hub, _| (hub.queue_length("dev1") == Some(0)).then_some(()));
    let mut told = Vec::new();
    while told.len() < 3 {
        told.extend(local.feedback());
    }
    assert_eq!(told, ["c", "b", "a"].map(|id| (id.to_owned(), FeedbackStatus::Success)));
}

#[test]
fn line_8_messages_without_puback_come_again_in_order_on_the_next_connection() {
    let local = Local::start();
    let mut device = local.subscribed();
    for id in ["a", "b", "c", "d"] {
        local.send(id).expect("room");
    }
    let publishes: Vec<Publish> = (0..4).map(|_| device.publish()).collect();
    device.puback(&publishes[1]);
    device.expect_silence();
    drop(device);
    let (mut device, _) = local.sign_in();
    local.send("e").expect("room");
    let again: Vec<Publish> = (0..4).map(|_| device.publish()).collect();
    let seen: Vec<_> = again.iter().map(|publish| (publish.payload.as_ref(), publish.dup)).collect();
    assert_eq!(seen, [(&b"a"[..], true), (b"c", true), (b"d", true), (b"e", false)]);
}

#[test]
fn a_puback_for_nothing_is_passed_over() {
    let local = Local::start();
    let mut device = local.subscribed();
    device.send_bytes(b"\x40\x02\x12\x34");
    device.expect_silence();
}

#[test]
fn line_10_nothing_flows_before_the_subscription_and_the_suback_comes_first() {
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
fn line_24_a_queue_holds_fifty_and_they_all_fit_into_the_window() {
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
