//! Calls of direct methods over MQTT, against a scripted broker.

use std::time::Duration;

use bytes::Bytes;
use serde_json::json;

use super::broker::{Broker, Peer, publish, publish_qos_0};
use super::{Delivery, Event, Session, delivery, next, reason, settings};
use crate::message::Source;
use crate::session::Settings;
use crate::session::calls::OPEN_CALLS;

/// A session that takes calls, and its first connection.
async fn connected(broker: &Broker) -> (Session, Peer) {
    let mut session = Session::open(Settings { methods: true, ..settings(broker) }).expect("a session");
    let peer = sign_in(broker, &mut session).await;
    (session, peer)
}

async fn sign_in(broker: &Broker, session: &mut Session) -> Peer {
    let mut peer = broker.accept().await;
    peer.read_connect().await;
    peer.send_connack(0).await;
    let filters = peer.read_subscribe_many().await;
    let asked =
        [("devices/dev1/messages/devicebound/#".to_owned(), 1), ("$iothub/methods/POST/#".to_owned(), 0)];
    assert_eq!(filters, asked);
    peer.send(&[0x90, 4, 0, 1, 1, 0]).await;
    assert!(matches!(next(session).await, Event::Subscribed { .. }));
    peer
}

fn call(name: &str, id: &str, payload: &str) -> Vec<u8> {
    publish_qos_0(&format!("$iothub/methods/POST/{name}/?$rid={id}"), payload)
}

/// The next packet, which must be an answer: what follows `res/`, and the body.
async fn answer(peer: &mut Peer) -> (String, String) {
    let (topic, body) = peer.read_publish_qos_0().await;
    (topic.strip_prefix("$iothub/methods/res/").expect("an answer").to_owned(), body)
}

/// The status and the id of the next packet, which must be an answer with an error.
async fn refusal(peer: &mut Peer) -> (String, String) {
    let (topic, body) = answer(peer).await;
    let body: serde_json::Value = serde_json::from_str(&body).expect("JSON");
    (topic, body["error"].as_str().expect("an error").to_owned())
}

fn method(call: &Delivery) -> (&str, &[u8]) {
    let message = call.message.as_ref().expect("a call");
    let Source::Method(name) = message.source() else { panic!("a call, not {:?}", message.source()) };
    (name, &message.body)
}

#[tokio::test]
async fn a_call_is_handed_on_as_it_is_and_answered_on_its_id() {
    let broker = Broker::start().await;
    let (mut session, mut peer) = connected(&broker).await;
    peer.send(&call("set%20point%2F%C3%BC%3F", "a%2Fb=c/?d", r#"{"v":1}"#)).await;
    let first = delivery(&mut session).await;
    assert_eq!(method(&first), ("set point/ü?", &br#"{"v":1}"#[..]));
    assert!(first.receipt.is_call() && first.receipt.is_current());
    assert_eq!(first.connection, 1);
    let id = first.message.as_ref().expect("a call").message_id().expect("an id").to_owned();
    let digits = id.strip_prefix("method-").expect("a prefix");
    assert!(digits.len() == 32 && digits.bytes().all(|digit| digit.is_ascii_hexdigit()), "{id}");
    first.receipt.answer(200, Bytes::from_static(br#"{"ok":true}"#));
    assert_eq!(answer(&mut peer).await, ("200/?$rid=a%2Fb=c/?d".into(), r#"{"ok":true}"#.into()));
    // The id may come again after its call was answered. Both payloads are empty.
    peer.send(&call("again", "a%2Fb=c/?d", "")).await;
    let second = delivery(&mut session).await;
    assert_eq!(method(&second), ("again", &b""[..]));
    assert_ne!(second.message.as_ref().expect("a call").message_id(), Some(id.as_str()));
    second.receipt.answer(404, Bytes::new());
    assert_eq!(answer(&mut peer).await, ("404/?$rid=a%2Fb=c/?d".into(), String::new()));
}

#[tokio::test]
async fn an_id_under_way_runs_once_and_what_nobody_can_answer_ends_nothing() {
    let broker = Broker::start().await;
    let (mut session, mut peer) = connected(&broker).await;
    peer.send(&call("pump", "7", "1")).await;
    peer.send(&call("pump", "7", "2")).await;
    peer.send(&publish_qos_0("$iothub/methods/POST/pump/", "3")).await;
    peer.send(&call("pump", "a+b", "4")).await;
    peer.send(&call("%ff", "8", "5")).await;
    peer.send(&call("other", "9", "6")).await;
    let pump = delivery(&mut session).await;
    let other = delivery(&mut session).await;
    assert_eq!((method(&pump), method(&other)), (("pump", &b"1"[..]), ("other", &b"6"[..])));
    assert_eq!(refusal(&mut peer).await.0, "400/?$rid=8");
    other.receipt.answer(200, Bytes::from_static(b"9"));
    assert_eq!(answer(&mut peer).await, ("200/?$rid=9".into(), "9".into()));
    pump.receipt.answer(200, Bytes::from_static(b"7"));
    assert_eq!(answer(&mut peer).await, ("200/?$rid=7".into(), "7".into()));
    session.close().await;
    assert_eq!(peer.read().await.0 >> 4, 14, "DISCONNECT, and no second answer before it");
}

#[tokio::test]
async fn more_than_can_be_open_are_told_so_at_once_and_the_others_are_answered() {
    let broker = Broker::start().await;
    let (mut session, mut peer) = connected(&broker).await;
    for id in 0..=OPEN_CALLS {
        peer.send(&call("pump", &id.to_string(), "")).await;
    }
    let (topic, reason) = refusal(&mut peer).await;
    assert_eq!((topic, reason.contains("call again later")), (format!("429/?$rid={OPEN_CALLS}"), true));
    for id in 0..OPEN_CALLS {
        let call = delivery(&mut session).await;
        call.receipt.answer(200, Bytes::from(json!(id).to_string()));
        assert_eq!(answer(&mut peer).await, (format!("200/?$rid={id}"), id.to_string()));
    }
    peer.send(&call("pump", "last", "")).await;
    delivery(&mut session).await.receipt.answer(200, Bytes::new());
    assert_eq!(answer(&mut peer).await.0, "200/?$rid=last");
}

#[tokio::test]
async fn many_answers_at_once_leave_beside_pubacks_and_publishes() {
    let broker = Broker::start().await;
    let (mut session, mut peer) = connected(&broker).await;
    for round in 0..20u16 {
        let mut receipts = Vec::new();
        for number in 0..8u16 {
            peer.send(&call("pump", &format!("{round}-{number}"), "")).await;
            peer.send(&publish(round * 8 + number + 1, "", "x")).await;
        }
        for _ in 0..16 {
            receipts.push(delivery(&mut session).await.receipt);
        }
        for receipt in receipts {
            match receipt.is_call() {
                true => receipt.answer(200, Bytes::new()),
                false => receipt.complete(),
            }
        }
        let (mut answers, mut pubacks) = (Vec::new(), Vec::new());
        for _ in 0..16 {
            match peer.read().await {
                (0x30, rest) => {
                    let topic = String::from_utf8_lossy(&rest[2..]).into_owned();
                    answers.push(topic.strip_prefix("$iothub/methods/res/200/?$rid=").map(str::to_owned));
                }
                (0x40, rest) => pubacks.push(u16::from_be_bytes([rest[0], rest[1]])),
                (other, _) => panic!("an unexpected packet {other:#x}"),
            }
        }
        answers.sort();
        assert_eq!(answers, (0..8).map(|number| Some(format!("{round}-{number}"))).collect::<Vec<_>>());
        assert_eq!(pubacks, (round * 8 + 1..=round * 8 + 8).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn calls_are_answered_while_messages_are_unsettled_and_while_there_is_no_room_for_one() {
    let broker = Broker::start().await;
    let (mut session, mut peer) = connected(&broker).await;
    peer.send(&publish(1, "", "unsettled")).await;
    let unsettled = delivery(&mut session).await;
    peer.send(&call("first", "1", "")).await;
    delivery(&mut session).await.receipt.answer(200, Bytes::new());
    assert_eq!(answer(&mut peer).await.0, "200/?$rid=1");
    for id in ["2", "3", "4"] {
        peer.send(&call("pump", id, "")).await;
    }
    let calls = [
        delivery(&mut session).await.receipt,
        delivery(&mut session).await.receipt,
        delivery(&mut session).await.receipt,
    ];
    // These are more than the channel holds: the reader waits for room for the last of them.
    for id in 2..=100 {
        peer.send(&publish(id, "", "x")).await;
    }
    let sent = publish_qos_0("$iothub/methods/POST/late/?$rid=5", "");
    peer.send(&sent).await;
    for (id, receipt) in (2..).zip(calls) {
        receipt.answer(200, Bytes::new());
        assert_eq!(answer(&mut peer).await.0, format!("200/?$rid={id}"));
    }
    unsettled.receipt.complete();
    assert_eq!(peer.read_puback().await, 1);
    let (mut messages, mut late) = (0, 0);
    while messages < 99 || late < 1 {
        let receipt = delivery(&mut session).await.receipt;
        match receipt.is_call() {
            true => (receipt.answer(200, Bytes::new()), late += 1).0,
            false => (receipt.complete(), messages += 1).0,
        }
    }
    let mut expected = 2..=100;
    for _ in 0..100 {
        match peer.read().await {
            (0x40, rest) => assert_eq!(Some(u16::from_be_bytes([rest[0], rest[1]])), expected.next()),
            (first, _) => assert_eq!(first, 0x30, "an answer"),
        }
    }
}

#[tokio::test]
async fn an_answer_after_a_reconnect_reaches_nobody() {
    let broker = Broker::start().await;
    let (mut session, mut peer) = connected(&broker).await;
    peer.send(&call("pump", "1", "old")).await;
    let old = delivery(&mut session).await;
    drop(peer);
    reason(&mut session).await;
    let mut peer = sign_in(&broker, &mut session).await;
    peer.send(&call("pump", "1", "new")).await;
    let new = delivery(&mut session).await;
    assert_eq!((method(&new), new.connection), (("pump", &b"new"[..]), 2));
    assert!(!old.receipt.is_current() && new.receipt.is_current());
    old.receipt.answer(200, Bytes::from_static(b"\"old\""));
    new.receipt.answer(200, Bytes::from_static(b"\"new\""));
    assert_eq!(answer(&mut peer).await, ("200/?$rid=1".into(), "\"new\"".into()));
    session.close().await;
    assert_eq!(peer.read().await.0 >> 4, 14, "DISCONNECT");
}

#[tokio::test]
async fn a_call_with_qos_1_is_acknowledged_in_its_place() {
    let broker = Broker::start().await;
    let (mut session, mut peer) = connected(&broker).await;
    peer.send(&publish(1, "", "first")).await;
    let first = delivery(&mut session).await;
    let mut sent = call("pump", "1", "");
    sent[0] |= 0b10;
    sent[1] += 2;
    sent.extend([0, 2]);
    peer.send(&sent).await;
    let call = delivery(&mut session).await;
    assert_eq!(method(&call).0, "pump");
    // This is its retransmission, with the flag of a duplicate.
    sent[0] |= 0b1000;
    peer.send(&sent).await;
    peer.send(&publish(3, "", "third")).await;
    delivery(&mut session).await.receipt.complete();
    call.receipt.answer(200, Bytes::new());
    assert_eq!(answer(&mut peer).await.0, "200/?$rid=1");
    first.receipt.complete();
    for id in 1..=3 {
        assert_eq!(peer.read_puback().await, id);
    }
}

#[tokio::test]
async fn what_is_not_taken_or_not_answered_is_told_to_the_caller() {
    let broker = Broker::start().await;
    let (mut session, mut peer) = connected(&broker).await;
    for id in ["left", "dropped", "answered", "waiting"] {
        peer.send(&call("pump", id, "")).await;
    }
    delivery(&mut session).await.receipt.leave();
    let (topic, reason) = refusal(&mut peer).await;
    assert_eq!((topic.as_str(), reason.contains("call again later")), ("503/?$rid=left", true));
    drop(delivery(&mut session).await);
    assert_eq!(refusal(&mut peer).await.0, "503/?$rid=dropped");
    let answered = delivery(&mut session).await;
    // The session ends: one call waits in its channel, another one is open and answered at that moment.
    let ((), ()) = tokio::join!(session.close(), async {
        assert_eq!(refusal(&mut peer).await.0, "503/?$rid=waiting");
        answered.receipt.answer(200, Bytes::from_static(b"1"));
        assert_eq!(answer(&mut peer).await, ("200/?$rid=answered".into(), "1".into()));
        assert_eq!(peer.read().await.0 >> 4, 14, "DISCONNECT");
    });
}

#[tokio::test]
async fn a_renewal_waits_for_a_call_under_way_and_takes_no_other() {
    let broker = Broker::start().await;
    let short = Settings { token_lifetime: Duration::from_secs(5), methods: true, ..settings(&broker) };
    let mut session = Session::open(short).expect("a session");
    let mut peer = sign_in(&broker, &mut session).await;
    peer.send(&call("pump", "in-hand", "")).await;
    let in_hand = delivery(&mut session).await;
    // The receipt has no event for the renewal, so a refused call shows that it has begun.
    let mut id = 0;
    loop {
        id += 1;
        peer.send(&call("probe", &id.to_string(), "")).await;
        let ended = tokio::select! {
            taken = delivery(&mut session) => { taken.receipt.answer(200, Bytes::new()); answer(&mut peer).await }
            refused = answer(&mut peer) => refused,
        };
        if ended.0 == format!("503/?$rid={id}") {
            break;
        }
        assert_eq!(ended.0, format!("200/?$rid={id}"));
    }
    assert!(!in_hand.receipt.is_current());
    in_hand.receipt.answer(200, Bytes::from_static(b"1"));
    assert_eq!(answer(&mut peer).await, ("200/?$rid=in-hand".into(), "1".into()));
    assert_eq!(peer.read().await.0 >> 4, 14, "DISCONNECT");
    drop(peer);
    let mut peer = sign_in(&broker, &mut session).await;
    peer.send(&call("pump", "in-hand", "")).await;
    delivery(&mut session).await.receipt.answer(200, Bytes::new());
    assert_eq!(answer(&mut peer).await.0, "200/?$rid=in-hand");
}

#[tokio::test]
async fn a_hub_that_refuses_methods_still_sends_messages() {
    let broker = Broker::start().await;
    let mut session = Session::open(Settings { methods: true, ..settings(&broker) }).expect("a session");
    let mut peer = broker.accept().await;
    peer.read_connect().await;
    peer.send_connack(0).await;
    peer.read_subscribe_many().await;
    peer.send(&[0x90, 4, 0, 1, 1, 0x80]).await;
    assert!(matches!(next(&mut session).await, Event::Subscribed { .. }));
    peer.send(&publish(1, "", "x")).await;
    delivery(&mut session).await.receipt.complete();
    assert_eq!(peer.read_puback().await, 1);
}
