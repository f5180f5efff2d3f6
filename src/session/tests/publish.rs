//! What the session publishes, against a scripted broker.

use std::time::{Duration, SystemTime};

use bytes::Bytes;

use super::broker::{Broker, Peer, publish, publish_qos_0};
use super::{Event, Session, connected, delivery, next, reason, settings};
use crate::message::Properties;
use crate::session::{PublishError, Settings, Upstream};

const LOST: Result<Bytes, PublishError> = Err(PublishError::Lost);

fn telemetry(body: &str) -> Upstream {
    let properties = Properties::decode("%24.cid=m%2F1&outcome=succeeded").expect("a bag");
    Upstream::Telemetry { properties, body: Bytes::copy_from_slice(body.as_bytes()) }
}

fn patch(body: &'static str) -> Upstream {
    Upstream::Reported { patch: Bytes::from_static(body.as_bytes()) }
}

async fn published(session: &mut Session) -> (u64, Result<Bytes, PublishError>) {
    match next(session).await {
        Event::Published { ticket, result } => (ticket, result),
        other => panic!("what became of a publish, not {other:?}"),
    }
}

/// Reads this many PUBLISHes and PUBACKs, in any order, and returns the packet ids of both.
async fn read_all(peer: &mut Peer, publishes: usize, pubacks: usize) -> (Vec<u16>, Vec<u16>) {
    let (mut published, mut acknowledged) = (Vec::new(), Vec::new());
    while published.len() < publishes || acknowledged.len() < pubacks {
        let (first, rest) = peer.read().await;
        let id = |at: usize| u16::from_be_bytes([rest[at], rest[at + 1]]);
        match first {
            0x40 => acknowledged.push(id(0)),
            0x32 => published.push(id(2 + usize::from(id(0)))),
            other => panic!("an unexpected packet {other:#x}"),
        }
    }
    (published, acknowledged)
}

/// A session with a twin, and its first connection.
async fn connected_with_twin(broker: &Broker) -> (Session, Peer) {
    let mut session = Session::open(Settings { twin: true, ..settings(broker) }).expect("a session");
    let mut peer = broker.accept().await;
    peer.read_connect().await;
    peer.send_connack(0).await;
    let filters = peer.read_subscribe_many().await;
    let asked = [("devices/dev1/messages/devicebound/#".to_owned(), 1), ("$iothub/twin/res/#".to_owned(), 0)];
    assert_eq!(filters, asked);
    peer.send(&[0x90, 4, 0, 1, 1, 0]).await;
    assert!(matches!(next(&mut session).await, Event::Subscribed { .. }));
    (session, peer)
}

#[tokio::test]
async fn a_d2c_message_wakes_the_parked_reader_and_is_done_at_the_puback() {
    let broker = Broker::start().await;
    let (mut session, mut peer) = connected(&broker, settings(&broker)).await;
    session.publish(41, telemetry("{}"));
    session.publish(42, telemetry("second"));
    let (topic, first, body) = peer.read_publish().await;
    assert_eq!(topic, "devices/dev1/messages/events/%24.cid=m%2F1&outcome=succeeded");
    assert_eq!(body, "{}");
    let (_, second, body) = peer.read_publish().await;
    assert_eq!(body, "second");
    peer.send_puback(second).await;
    assert_eq!(published(&mut session).await, (42, Ok(Bytes::new())));
    peer.send_puback(first).await;
    assert_eq!(published(&mut session).await, (41, Ok(Bytes::new())));
}

#[tokio::test]
async fn messages_are_read_and_completed_while_publishes_wait() {
    let broker = Broker::start().await;
    let (mut session, mut peer) = connected(&broker, settings(&broker)).await;
    for ticket in 1..=8 {
        session.publish(ticket, telemetry("x"));
    }
    let mut ids = Vec::new();
    for _ in 0..8 {
        ids.push(peer.read_publish().await.1);
    }
    for id in 1..=3 {
        peer.send(&publish(id, "", "x")).await;
        delivery(&mut session).await.receipt.complete();
        assert_eq!(peer.read_puback().await, id);
    }
    for (ticket, id) in (1..).zip(ids) {
        peer.send_puback(id).await;
        assert_eq!(published(&mut session).await, (ticket, Ok(Bytes::new())));
    }
}

#[tokio::test]
async fn pubacks_keep_their_order_when_they_share_the_channel_with_publishes() {
    const ROUNDS: u16 = 40;
    let broker = Broker::start().await;
    let (mut session, mut peer) = connected(&broker, settings(&broker)).await;
    let mut tickets = 0;
    for round in 0..ROUNDS {
        let mut deliveries = Vec::new();
        for id in 1..=4 {
            peer.send(&publish(round * 4 + id, "", "x")).await;
        }
        for _ in 0..4 {
            deliveries.push(delivery(&mut session).await);
        }
        // The reader is parked: the first completion goes behind these publishes, and the others wait for it.
        for _ in 0..8 {
            tickets += 1;
            session.publish(tickets, telemetry("x"));
        }
        for late in deliveries.into_iter().rev() {
            late.receipt.complete();
        }
        let (to_answer, acknowledged) = read_all(&mut peer, 8, 4).await;
        assert_eq!(acknowledged, (1..=4).map(|id| round * 4 + id).collect::<Vec<_>>());
        for id in to_answer {
            peer.send_puback(id).await;
        }
        for ticket in tickets - 7..=tickets {
            assert_eq!(published(&mut session).await, (ticket, Ok(Bytes::new())));
        }
    }
}

#[tokio::test]
async fn more_than_eight_under_way_are_lost_at_once_and_the_channel_never_fills() {
    let broker = Broker::start().await;
    let (mut session, mut peer) = connected(&broker, settings(&broker)).await;
    peer.send(&publish(1, "", "x")).await;
    let waiting = delivery(&mut session).await;
    for ticket in 1..=20 {
        session.publish(ticket, telemetry("x"));
    }
    waiting.receipt.complete();
    for ticket in 9..=20 {
        assert_eq!(published(&mut session).await, (ticket, LOST));
    }
    let (ids, acknowledged) = read_all(&mut peer, 8, 1).await;
    assert_eq!(acknowledged, [1]);
    for id in ids {
        peer.send_puback(id).await;
    }
    for ticket in 1..=8 {
        assert_eq!(published(&mut session).await, (ticket, Ok(Bytes::new())));
    }
    session.close().await;
    assert_eq!(peer.read().await.0 >> 4, 14, "DISCONNECT");
}

#[tokio::test]
async fn a_patch_is_done_when_the_twin_answers_and_not_before() {
    let broker = Broker::start().await;
    let (mut session, mut peer) = connected_with_twin(&broker).await;
    session.publish(5, patch(r#"{"a":1}"#));
    session.publish(6, patch(r#"{"b":1}"#));
    session.publish(7, telemetry("x"));
    let (topic, first, body) = peer.read_publish().await;
    assert_eq!(
        (topic.as_str(), body.as_str()),
        ("$iothub/twin/PATCH/properties/reported/?$rid=1", r#"{"a":1}"#)
    );
    let (topic, second, _) = peer.read_publish().await;
    assert_eq!(topic, "$iothub/twin/PATCH/properties/reported/?$rid=2");
    let (_, third, _) = peer.read_publish().await;
    for id in [first, second, third] {
        peer.send_puback(id).await;
    }
    assert_eq!(
        published(&mut session).await,
        (7, Ok(Bytes::new())),
        "the D2C message first: patches wait for their answers"
    );
    peer.send(&publish_qos_0("$iothub/twin/res/429/?$rid=2", "")).await;
    assert_eq!(published(&mut session).await, (6, Err(PublishError::Busy(429))));
    peer.send(&publish_qos_0("$iothub/twin/res/204/?$rid=99&$version=2", "")).await;
    peer.send(&publish_qos_0("$iothub/twin/res/204/?$rid=1&$version=2", "")).await;
    assert_eq!(published(&mut session).await, (5, Ok(Bytes::new())));
    session.publish(8, patch("{}"));
    let (_, id, _) = peer.read_publish().await;
    peer.send(&publish_qos_0("$iothub/twin/res/400/?$rid=3", r#"{"message":"no"}"#)).await;
    assert_eq!(published(&mut session).await, (8, Err(PublishError::Refused(400))));
    peer.send_puback(id).await;
}

#[tokio::test]
async fn an_answer_with_qos_1_is_acknowledged_in_its_place_and_handed_to_nobody() {
    let broker = Broker::start().await;
    let (mut session, mut peer) = connected_with_twin(&broker).await;
    session.publish(1, patch("{}"));
    peer.read_publish().await;
    peer.send(&publish(1, "", "first")).await;
    let first = delivery(&mut session).await;
    let mut answer = publish_qos_0("$iothub/twin/res/204/?$rid=1", "");
    answer[0] |= 0b10;
    answer[1] += 2;
    answer.extend([0, 2]);
    peer.send(&answer).await;
    assert_eq!(published(&mut session).await, (1, Ok(Bytes::new())));
    peer.send(&publish(3, "", "third")).await;
    delivery(&mut session).await.receipt.complete();
    first.receipt.complete();
    for id in 1..=3 {
        assert_eq!(peer.read_puback().await, id);
    }
}

#[tokio::test]
async fn a_refused_twin_is_no_reason_to_receive_nothing() {
    let broker = Broker::start().await;
    let mut session = Session::open(Settings { twin: true, ..settings(&broker) }).expect("a session");
    let mut peer = broker.accept().await;
    peer.read_connect().await;
    peer.send_connack(0).await;
    peer.read_subscribe_many().await;
    peer.send(&[0x90, 4, 0, 1, 1, 0x80]).await;
    assert!(matches!(next(&mut session).await, Event::Subscribed { .. }));
    session.publish(1, patch("{}"));
    assert_eq!(published(&mut session).await, (1, Err(PublishError::Refused(403))));
}

#[tokio::test]
async fn a_hub_that_closes_at_the_subscription_is_said_to_have_no_twins() {
    let broker = Broker::start().await;
    let mut session = Session::open(Settings { twin: true, ..settings(&broker) }).expect("a session");
    let mut peer = broker.accept().await;
    peer.read_connect().await;
    peer.send_connack(0).await;
    peer.read_subscribe_many().await;
    drop(peer);
    assert!(reason(&mut session).await.contains("remove \"twin\" from the reports"));
}

#[tokio::test]
async fn a_hub_that_leaves_out_a_puback_loses_the_connection_before_packet_ids_collide() {
    let broker = Broker::start().await;
    let (mut session, mut peer) = connected(&broker, settings(&broker)).await;
    session.publish(1, telemetry("never acknowledged"));
    let (_, unanswered, _) = peer.read_publish().await;
    // rumqttc counts packet ids up to 100 and then from 1 again.
    let mut ticket = 1;
    let mut last = unanswered;
    while last != unanswered - 1 {
        ticket += 1;
        session.publish(ticket, telemetry("x"));
        (_, last, _) = peer.read_publish().await;
        peer.send_puback(last).await;
        assert_eq!(published(&mut session).await, (ticket, Ok(Bytes::new())));
    }
    session.publish(ticket + 1, telemetry("x"));
    assert_eq!(published(&mut session).await, (1, LOST));
    assert_eq!(published(&mut session).await, (ticket + 1, LOST));
    assert!(reason(&mut session).await.contains("left out the PUBACK"));
}

#[tokio::test]
async fn what_is_under_way_is_lost_with_its_connection_and_told_before_anything_else() {
    let broker = Broker::start().await;
    let mut session = Session::open(settings(&broker)).expect("a session");
    session.publish(1, telemetry("x"));
    assert_eq!(published(&mut session).await, (1, LOST), "no connection yet");
    let mut peer = broker.accept().await;
    peer.read_connect().await;
    peer.send_connack(0).await;
    peer.read_subscribe().await;
    session.publish(2, telemetry("x"));
    assert_eq!(published(&mut session).await, (2, LOST), "not subscribed yet");
    peer.send_suback().await;
    assert!(matches!(next(&mut session).await, Event::Subscribed { .. }));
    for ticket in 3..=5 {
        session.publish(ticket, telemetry("x"));
    }
    let (_, id, _) = peer.read_publish().await;
    peer.send_puback(id).await;
    assert_eq!(published(&mut session).await, (3, Ok(Bytes::new())));
    drop(peer);
    assert_eq!(published(&mut session).await, (4, LOST));
    assert_eq!(published(&mut session).await, (5, LOST));
    let reason = reason(&mut session).await;
    assert!(reason.contains("closed the connection with 2 unanswered publishes of device dev1"), "{reason}");
    session.publish(6, telemetry("x"));
    assert_eq!(published(&mut session).await, (6, LOST), "between two connections");

    let mut peer = broker.accept().await;
    peer.sign_in_and_subscribe().await;
    assert!(matches!(next(&mut session).await, Event::Subscribed { .. }));
    session.publish(7, telemetry("again"));
    let (_, id, body) = peer.read_publish().await;
    assert_eq!(body, "again", "nothing of the old connection is sent again by itself");
    peer.send_puback(id).await;
    assert_eq!(published(&mut session).await, (7, Ok(Bytes::new())));
}

#[tokio::test]
async fn a_hub_that_closes_at_every_publish_is_given_more_and_more_time() {
    let broker = Broker::start().await;
    let (mut session, mut peer) = connected(&broker, settings(&broker)).await;
    for ticket in 1..=2 {
        session.publish(ticket, telemetry("x"));
        peer.read_publish().await;
        drop(peer);
        assert_eq!(published(&mut session).await, (ticket, LOST));
        // The reason is never "another program", because the publish is a likelier cause.
        let reason = reason(&mut session).await;
        assert!(reason.contains("1 unanswered publishes"), "{reason}");
        peer = broker.accept().await;
        peer.sign_in_and_subscribe().await;
        assert!(matches!(next(&mut session).await, Event::Subscribed { .. }));
    }
}

#[tokio::test]
async fn what_no_packet_can_hold_is_refused_and_ends_nothing() {
    let broker = Broker::start().await;
    let (mut session, mut peer) = connected(&broker, settings(&broker)).await;
    let body = "x".repeat(256 * 1024);
    session.publish(1, telemetry(&body));
    assert_eq!(published(&mut session).await, (1, Err(PublishError::Refused(413))));
    let mut properties = Properties::default();
    properties.set("long", "x".repeat(65_600));
    session.publish(2, Upstream::Telemetry { properties, body: Bytes::new() });
    assert_eq!(published(&mut session).await, (2, Err(PublishError::Refused(413))));
    session.publish(3, telemetry(&body[..255 * 1024]));
    let (_, id, received) = peer.read_publish().await;
    assert_eq!(received.len(), 255 * 1024);
    peer.send_puback(id).await;
    assert_eq!(published(&mut session).await, (3, Ok(Bytes::new())));
}

#[tokio::test]
async fn publishes_wait_while_the_agent_takes_no_messages() {
    let broker = Broker::start().await;
    let (mut session, mut peer) = connected(&broker, settings(&broker)).await;
    // These are more than the channel holds: the reader waits for room.
    for id in 1..=100 {
        peer.send(&publish(id, "", "x")).await;
    }
    session.publish(1, telemetry("x"));
    for id in 1..=100 {
        delivery(&mut session).await.receipt.complete();
        if id == 50 {
            session.publish(2, telemetry("x"));
        }
    }
    let (ids, acknowledged) = read_all(&mut peer, 2, 100).await;
    assert_eq!(acknowledged, (1..=100).collect::<Vec<_>>());
    for (ticket, id) in (1..).zip(ids) {
        peer.send_puback(id).await;
        assert_eq!(published(&mut session).await, (ticket, Ok(Bytes::new())));
    }
}

#[tokio::test]
async fn deliveries_say_which_connection_they_came_on_and_subscribed_says_when_the_token_is_renewed() {
    let broker = Broker::start().await;
    let before = SystemTime::now();
    let mut session = Session::open(settings(&broker)).expect("a session");
    for number in 1..=3 {
        let mut peer = broker.accept().await;
        peer.read_connect().await;
        if number == 2 {
            // A connection that fails before the sign-in does not count.
            drop(peer);
            reason(&mut session).await;
            peer = broker.accept().await;
            peer.read_connect().await;
        }
        peer.send_connack(0).await;
        peer.read_subscribe().await;
        peer.send_suback().await;
        let Event::Subscribed { renewal: Some(renewal), expiry: Some(expiry), .. } = next(&mut session).await
        else {
            panic!("a subscription with the time of a renewal");
        };
        let after = renewal.duration_since(before).expect("ahead").as_secs();
        let left = expiry.duration_since(renewal).expect("later").as_secs();
        assert!((718..=720).contains(&left), "a fifth of an hour, not {left} s");
        assert!((2870..2880 + super::DEADLINE.as_secs()).contains(&after), "80 % of an hour, not {after} s");
        peer.send(&publish(1, "", "x")).await;
        let delivery = delivery(&mut session).await;
        assert_eq!(delivery.connection, number);
        delivery.receipt.leave();
        drop(peer);
        reason(&mut session).await;
    }
}

#[tokio::test]
async fn a_renewal_loses_what_is_under_way_and_says_so_before_it_subscribes_again() {
    let broker = Broker::start().await;
    let short = Settings { token_lifetime: Duration::from_secs(5), ..settings(&broker) };
    let (mut session, mut peer) = connected(&broker, short).await;
    session.publish(1, telemetry("x"));
    peer.read_publish().await;
    assert_eq!(peer.read().await.0 >> 4, 14, "DISCONNECT");
    drop(peer);
    assert_eq!(published(&mut session).await, (1, LOST));
    let mut peer = broker.accept().await;
    peer.sign_in_and_subscribe().await;
    assert!(matches!(next(&mut session).await, Event::Subscribed { .. }));
}
