//! Reading the twin and news of desired properties over MQTT, against a scripted broker.

use bytes::Bytes;

use super::broker::{Broker, Peer, publish, publish_qos_0};
use super::{Event, Session, delivery, next, reason, settings};
use crate::session::{PublishError, Settings, Upstream};

const DESIRED: &str = "$iothub/twin/PATCH/properties/desired/?$version=";
const TWIN: &str = r#"{"desired":{"$version":3},"reported":{"$version":1}}"#;

/// A session that hears of desired properties and reports nothing, and its first connection.
async fn connected(broker: &Broker) -> (Session, Peer) {
    let mut session = Session::open(Settings { desired: true, ..settings(broker) }).expect("a session");
    let mut peer = broker.accept().await;
    peer.read_connect().await;
    peer.send_connack(0).await;
    let filters = peer.read_subscribe_many().await;
    let asked = [
        ("devices/dev1/messages/devicebound/#".to_owned(), 1),
        ("$iothub/twin/res/#".to_owned(), 0),
        ("$iothub/twin/PATCH/properties/desired/#".to_owned(), 0),
    ];
    assert_eq!(filters, asked);
    peer.send(&[0x90, 5, 0, 1, 1, 0, 0]).await;
    assert!(matches!(next(&mut session).await, Event::Subscribed { .. }));
    (session, peer)
}

async fn published(session: &mut Session) -> (u64, Result<Bytes, PublishError>) {
    match next(session).await {
        Event::Published { ticket, result } => (ticket, result),
        other => panic!("what became of a publish, not {other:?}"),
    }
}

#[tokio::test]
async fn changes_that_come_together_are_told_of_once_and_the_twin_is_read() {
    let broker = Broker::start().await;
    let (mut session, mut peer) = connected(&broker).await;
    // These are more than any channel of events holds, but the reader does not stop for them.
    for version in 2..100 {
        peer.send(&publish_qos_0(&format!("{DESIRED}{version}"), r#"{"a":1}"#)).await;
    }
    peer.send(&publish(1, "", "behind them")).await;
    // The delivery is taken without looking at the events, so all changes have been read.
    let behind = loop {
        if let Some(delivery) = session.try_delivery() {
            break delivery;
        }
        tokio::task::yield_now().await;
    };
    assert!(matches!(next(&mut session).await, Event::DesiredChanged));
    session.publish(7, Upstream::ReadTwin);
    let (topic, id, body) = peer.read_publish().await;
    assert_eq!((topic.as_str(), body.as_str()), ("$iothub/twin/GET/?$rid=1", ""));
    peer.send_puback(id).await;
    peer.send(&publish_qos_0("$iothub/twin/res/200/?$rid=1", TWIN)).await;
    assert_eq!(
        published(&mut session).await,
        (7, Ok(Bytes::from_static(TWIN.as_bytes()))),
        "and no more news"
    );
    peer.send(&publish_qos_0(&format!("{DESIRED}101"), "{}")).await;
    assert!(matches!(next(&mut session).await, Event::DesiredChanged));
    behind.receipt.complete();
    assert_eq!(peer.read_puback().await, 1);
}

#[tokio::test]
async fn only_a_read_has_a_body_and_a_refused_one_says_why() {
    let broker = Broker::start().await;
    let (mut session, mut peer) = connected(&broker).await;
    session.publish(1, Upstream::Reported { patch: Bytes::from_static(b"{}") });
    session.publish(2, Upstream::ReadTwin);
    session.publish(3, Upstream::ReadTwin);
    session.publish(4, Upstream::ReadTwin);
    for _ in 1..=4 {
        let (_, id, _) = peer.read_publish().await;
        peer.send_puback(id).await;
    }
    peer.send(&publish_qos_0("$iothub/twin/res/204/?$rid=1&$version=2", "\"x\"")).await;
    assert_eq!(published(&mut session).await, (1, Ok(Bytes::new())));
    peer.send(&publish_qos_0("$iothub/twin/res/429/?$rid=2", r#"{"errorCode":429001}"#)).await;
    assert_eq!(published(&mut session).await, (2, Err(PublishError::Busy(429))));
    peer.send(&publish_qos_0("$iothub/twin/res/404/?$rid=3", "")).await;
    assert_eq!(published(&mut session).await, (3, Err(PublishError::Refused(404))));
    drop(peer);
    assert_eq!(published(&mut session).await, (4, Err(PublishError::Lost)));
    reason(&mut session).await;
}

#[tokio::test]
async fn refused_news_and_answers_are_no_reason_to_receive_nothing() {
    let broker = Broker::start().await;
    let mut session =
        Session::open(Settings { desired: true, methods: true, ..settings(&broker) }).expect("a session");
    let mut peer = broker.accept().await;
    peer.read_connect().await;
    peer.send_connack(0).await;
    let filters = peer.read_subscribe_many().await;
    assert_eq!(filters[2].0, "$iothub/methods/POST/#");
    peer.send(&[0x90, 6, 0, 1, 1, 0x80, 0, 0x80]).await;
    assert!(matches!(next(&mut session).await, Event::Subscribed { .. }));
    session.publish(1, Upstream::ReadTwin);
    assert_eq!(published(&mut session).await, (1, Err(PublishError::Refused(403))));
    peer.send(&publish_qos_0("$iothub/methods/POST/x/?$rid=1", "")).await;
    delivery(&mut session).await.receipt.answer(200, Bytes::new());
    assert_eq!(peer.read_publish_qos_0().await.0, "$iothub/methods/res/200/?$rid=1");
}
