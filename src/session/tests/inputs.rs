//! A module's session over MQTT, against a scripted gateway.

use bytes::Bytes;

use super::broker::{Broker, Peer, publish_on, publish_qos_0};
use super::{Event, Session, delivery, next, reason, settings};
use crate::credentials::SasToken;
use crate::message::{Properties, Source};
use crate::session::{Settings, Upstream};

fn as_module(broker: &Broker) -> Settings {
    let mut settings = Settings { methods: true, ..settings(broker) };
    settings.identity.device_id = "edge1".into();
    settings.identity.module_id = Some("agent".into());
    settings
}

async fn sign_in(broker: &Broker, session: &mut Session) -> Peer {
    let mut peer = broker.accept().await;
    let connect = peer.read_connect().await;
    assert_eq!(connect.client_id, "edge1/agent");
    assert!(connect.user_name.starts_with("localhost/edge1/agent/?api-version="), "{}", connect.user_name);
    let token = SasToken::parse(&connect.password.expect("a password")).expect("a token");
    assert_eq!(token.resource(), "localhost/devices/edge1/modules/agent");
    peer.send_connack(0).await;
    let filters = peer.read_subscribe_many().await;
    let asked =
        [("devices/edge1/modules/agent/inputs/#".to_owned(), 1), ("$iothub/methods/POST/#".to_owned(), 0)];
    assert_eq!(filters, asked);
    peer.send(&[0x90, 4, 0, 1, 1, 0]).await;
    assert!(matches!(next(session).await, Event::Subscribed { .. }));
    peer
}

async fn connected(broker: &Broker) -> (Session, Peer) {
    let mut session = Session::open(as_module(broker)).expect("a session");
    let peer = sign_in(broker, &mut session).await;
    (session, peer)
}

fn input(packet_id: u16, rest: &str, body: &str) -> Vec<u8> {
    publish_on(&format!("devices/edge1/modules/agent/inputs/{rest}"), packet_id, body)
}

#[tokio::test]
async fn messages_for_inputs_are_handed_on_and_acknowledged_in_their_order() {
    let broker = Broker::start().await;
    let (mut session, mut peer) = connected(&broker).await;
    let sent = ["in1/%24.cdid=edge1&%24.cmid=sensor&a=1", "in1/", "in1", "two%20words/b=2", "in1/a=%zz"];
    for (id, rest) in (1..).zip(sent) {
        peer.send(&input(id, rest, "{}")).await;
    }
    let mut taken = Vec::new();
    for _ in sent {
        taken.push(delivery(&mut session).await);
    }
    let inputs: Vec<_> = taken[..4].iter().map(|taken| taken.message.as_ref().expect("a message")).collect();
    assert_eq!(
        inputs.iter().map(|message| message.source()).collect::<Vec<_>>(),
        ["in1", "in1", "in1", "two words"].map(Source::Input)
    );
    let first = ["$.cdid", "$.cmid", "a"].map(|name| inputs[0].property(name));
    assert_eq!(first, [Some("edge1"), Some("sensor"), Some("1")]);
    assert_eq!((inputs[3].property("b"), inputs[3].body.as_ref()), (Some("2"), &b"{}"[..]));
    assert!(taken[4].message.is_err(), "what cannot be decoded is handed on as such");
    for delivery in taken.into_iter().rev() {
        assert!(!delivery.receipt.is_call());
        delivery.receipt.complete();
    }
    for id in 1..=5 {
        assert_eq!(peer.read_puback().await, id);
    }
}

#[tokio::test]
async fn a_message_of_another_module_or_of_the_device_is_no_input() {
    let broker = Broker::start().await;
    let (mut session, mut peer) = connected(&broker).await;
    for (id, topic) in
        (1..).zip(["devices/edge1/messages/devicebound/a=1", "devices/edge1/modules/other/inputs/in1/"])
    {
        peer.send(&publish_on(topic, id, "x")).await;
        let foreign = delivery(&mut session).await;
        assert!(foreign.message.is_err(), "{topic}");
        foreign.receipt.complete();
        assert_eq!(peer.read_puback().await, id);
    }
}

#[tokio::test]
async fn a_module_is_called_and_publishes_under_its_own_name() {
    let broker = Broker::start().await;
    let (mut session, mut peer) = connected(&broker).await;
    peer.send(&publish_qos_0("$iothub/methods/POST/pump/?$rid=1", "1")).await;
    delivery(&mut session).await.receipt.answer(200, Bytes::from_static(b"2"));
    let answer = ("$iothub/methods/res/200/?$rid=1".to_owned(), "2".to_owned());
    assert_eq!(peer.read_publish_qos_0().await, answer);
    let properties = Properties::decode("%24.on=outcome&a=1").expect("a bag");
    session.publish(1, Upstream::Telemetry { properties, body: Bytes::from_static(b"{}") });
    let (topic, id, _) = peer.read_publish().await;
    assert_eq!(topic, "devices/edge1/modules/agent/messages/events/%24.on=outcome&a=1");
    peer.send_puback(id).await;
    assert!(matches!(next(&mut session).await, Event::Published { ticket: 1, result: Ok(_) }));
}

#[tokio::test]
async fn what_was_not_acknowledged_comes_again_after_a_reconnect() {
    let broker = Broker::start().await;
    let (mut session, mut peer) = connected(&broker).await;
    peer.send(&input(1, "in1/", "once")).await;
    let lost = delivery(&mut session).await;
    drop(peer);
    reason(&mut session).await;
    let mut peer = sign_in(&broker, &mut session).await;
    lost.receipt.complete();
    peer.send(&input(1, "in1/", "once")).await;
    let again = delivery(&mut session).await;
    assert_eq!(again.connection, 2);
    again.receipt.complete();
    assert_eq!(peer.read_puback().await, 1);
}

#[cfg(feature = "full")]
#[tokio::test]
async fn a_module_over_amqp_is_refused_in_words() {
    let broker = Broker::start().await;
    let amqp = Settings { transport: crate::credentials::Transport::Amqp, ..as_module(&broker) };
    let mut session = Session::open(amqp).expect("a session");
    let reason = reason(&mut session).await;
    assert!(reason.contains("module edge1/agent cannot speak AMQP"), "{reason}");
}
