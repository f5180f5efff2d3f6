//! The session against a scripted broker: what goes over the wire, in which order.

use std::time::{Duration, SystemTime};

use crate::credentials::{DeviceAuth, DeviceIdentity, HostPort, Route, SasToken, SharedAccessKey};

use super::{Delivery, Event, Session, SessionError, Settings};
use broker::{Broker, Peer, publish};

#[cfg(feature = "emulator")]
mod amqp;
mod broker;
mod certificates;
#[cfg(feature = "emulator")]
mod doors;
#[cfg(feature = "emulator")]
mod emulator;
mod enrol;
#[cfg(feature = "emulator")]
mod fleet;
mod inputs;
mod methods;
#[cfg(feature = "full")]
mod module;
#[cfg(feature = "full")]
mod over_https;
mod probe;
mod publish;
mod twin;

const KEY: &[u8] = b"0123456789abcdef0123456789abcdef";
/// How long any wait may take before a test fails.
const DEADLINE: Duration = Duration::from_secs(30);

fn settings(broker: &Broker) -> Settings {
    Settings {
        transport: crate::credentials::Transport::Mqtt,
        identity: DeviceIdentity {
            hub: HostPort { name: "localhost".into(), port: Some(broker.port()) },
            device_id: "dev1".into(),
            module_id: None,
            gateway: None,
            auth: DeviceAuth::Key(SharedAccessKey::from_bytes(KEY)),
        },
        ca_file: Some(broker.ca_file()),
        token_lifetime: Duration::from_secs(3600),
        route: Route::default(),
        clock: SystemTime::now,
        twin: false,
        methods: false,
        desired: false,
        hub_source: crate::session::HubSource::Configured,
        alone: true,
        issuing: crate::session::Issuing::default(),
    }
}

/// A session and its first connection, signed in and subscribed.
async fn connected(broker: &Broker, settings: Settings) -> (Session, Peer) {
    let mut session = Session::open(settings).expect("a session");
    let mut peer = broker.accept().await;
    peer.sign_in_and_subscribe().await;
    assert!(matches!(next(&mut session).await, Event::Subscribed { .. }));
    (session, peer)
}

async fn next(session: &mut Session) -> Event {
    tokio::time::timeout(DEADLINE, session.next()).await.expect("an event in time")
}

async fn delivery(session: &mut Session) -> Delivery {
    match next(session).await {
        Event::Delivery(delivery) => delivery,
        other => panic!("a delivery, not {other:?}"),
    }
}

async fn reason(session: &mut Session) -> String {
    match next(session).await {
        Event::Disconnected { reason } => reason,
        other => panic!("a disconnection, not {other:?}"),
    }
}

fn body(delivery: &Delivery) -> String {
    String::from_utf8_lossy(&delivery.message.as_ref().expect("a message").body).into_owned()
}

#[tokio::test]
async fn the_sign_in_is_as_the_hub_wants_it() {
    let broker = Broker::start().await;
    let session = Session::open(settings(&broker)).expect("a session");
    let mut peer = broker.accept().await;
    let connect = peer.read_connect().await;
    assert_eq!((connect.protocol.as_str(), connect.level), ("MQTT", 4));
    assert!(!connect.clean_session, "the session is persistent");
    assert_eq!(connect.keep_alive, 60);
    assert_eq!(connect.client_id, "dev1");
    let version = env!("CARGO_PKG_VERSION");
    let query = format!("api-version=2021-04-12&DeviceClientType=c2d-agent%2F{version}");
    assert_eq!(connect.user_name, format!("localhost/dev1/?{query}"));
    let token = SasToken::parse(&connect.password.expect("a password")).expect("a token");
    assert!(token.is_signed_by(&SharedAccessKey::from_bytes(KEY)) && token.covers("localhost/devices/dev1"));
    peer.send_connack(0).await;
    let (filter, qos) = peer.read_subscribe().await;
    assert_eq!((filter.as_str(), qos), ("devices/dev1/messages/devicebound/#", 1));
    drop(session);
}

#[tokio::test]
async fn completions_out_of_order_are_acknowledged_in_arrival_order() {
    let broker = Broker::start().await;
    let (mut session, mut peer) = connected(&broker, settings(&broker)).await;
    for id in [11, 12, 13] {
        peer.send(&publish(id, "", "x")).await;
    }
    let first = delivery(&mut session).await;
    let second = delivery(&mut session).await;
    let third = delivery(&mut session).await;
    third.receipt.complete();
    second.receipt.complete();
    first.receipt.complete();
    for id in [11, 12, 13] {
        assert_eq!(peer.read_puback().await, id);
    }
}

#[tokio::test]
async fn a_message_before_suback_is_handed_on_and_completed() {
    let broker = Broker::start().await;
    let mut session = Session::open(settings(&broker)).expect("a session");
    let mut peer = broker.accept().await;
    peer.read_connect().await;
    peer.send_connack(0).await;
    peer.send(&publish(1, "%24.mid=early", "")).await;
    let early = delivery(&mut session).await;
    assert_eq!(early.message.as_ref().expect("a message").message_id(), Some("early"));
    early.receipt.complete();
    let mut acknowledged = false;
    let mut subscribed = false;
    while !(acknowledged && subscribed) {
        match peer.read().await.0 >> 4 {
            4 => acknowledged = true,
            8 => subscribed = true,
            other => panic!("an unexpected packet of type {other}"),
        }
    }
}

#[tokio::test]
async fn a_completion_after_a_reconnect_completes_nothing() {
    let broker = Broker::start().await;
    let (mut session, mut peer) = connected(&broker, settings(&broker)).await;
    peer.send(&publish(1, "", "old")).await;
    let old = delivery(&mut session).await;
    drop(peer);
    assert!(reason(&mut session).await.contains("closed the connection"));
    let mut peer = broker.accept().await;
    peer.sign_in_and_subscribe().await;
    assert!(matches!(next(&mut session).await, Event::Subscribed { .. }));
    // The hub gives the packet id to another message, which the old receipt must not complete.
    peer.send(&publish(1, "", "new")).await;
    let new = delivery(&mut session).await;
    assert!(!old.receipt.is_current() && new.receipt.is_current());
    old.receipt.complete();
    peer.send(&publish(2, "", "newer")).await;
    let newer = delivery(&mut session).await;
    newer.receipt.complete();
    session.close().await;
    assert_eq!(peer.read().await.0 >> 4, 14, "DISCONNECT, and no PUBACK before it");
    drop(new);
}

#[tokio::test]
async fn a_dropped_delivery_sends_nothing_and_holds_back_later_ones() {
    let broker = Broker::start().await;
    let (mut session, mut peer) = connected(&broker, settings(&broker)).await;
    for id in [1, 2, 3] {
        peer.send(&publish(id, "", "x")).await;
    }
    delivery(&mut session).await.receipt.complete();
    drop(delivery(&mut session).await);
    delivery(&mut session).await.receipt.complete();
    assert_eq!(peer.read_puback().await, 1);
    session.close().await;
    assert_eq!(peer.read().await.0 >> 4, 14);
}

#[tokio::test]
async fn a_slow_agent_loses_nothing_and_its_acknowledgements_leave_meanwhile() {
    const COUNT: u16 = 300;
    let broker = Broker::start().await;
    let (mut session, mut peer) = connected(&broker, settings(&broker)).await;
    for id in 1..=COUNT {
        peer.send(&publish(id, "", &id.to_string())).await;
    }
    // The reader fills its channel now or soon; each completion must get out while it waits for room.
    for id in 1..=COUNT {
        let delivery = delivery(&mut session).await;
        assert_eq!(body(&delivery), id.to_string());
        delivery.receipt.complete();
        if id <= 150 {
            assert_eq!(peer.read_puback().await, id);
        }
    }
    for id in 151..=COUNT {
        assert_eq!(peer.read_puback().await, id);
    }
}

#[tokio::test]
async fn a_retransmission_on_the_same_connection_is_handed_on_once() {
    let broker = Broker::start().await;
    let (mut session, mut peer) = connected(&broker, settings(&broker)).await;
    peer.send(&publish(1, "", "once")).await;
    let mut again = publish(1, "", "once");
    again[0] |= 0b1000;
    peer.send(&again).await;
    peer.send(&publish(2, "", "next")).await;
    let once = delivery(&mut session).await;
    let following = delivery(&mut session).await;
    assert_eq!((body(&once), body(&following)), ("once".into(), "next".into()));
    once.receipt.complete();
    following.receipt.complete();
    assert_eq!(peer.read_puback().await, 1);
    assert_eq!(peer.read_puback().await, 2);
}

#[tokio::test]
async fn an_undecodable_bag_is_handed_on_as_such_and_can_be_completed() {
    let broker = Broker::start().await;
    let (mut session, mut peer) = connected(&broker, settings(&broker)).await;
    peer.send(&publish(1, "a=%zz", "")).await;
    let undecodable = delivery(&mut session).await;
    assert!(undecodable.message.is_err());
    undecodable.receipt.complete();
    assert_eq!(peer.read_puback().await, 1);
}

#[tokio::test]
async fn a_refused_sign_in_ends_a_session_that_never_signed_in() {
    let broker = Broker::start().await;
    let mut session = Session::open(settings(&broker)).expect("a session");
    let mut peer = broker.accept().await;
    peer.read_connect().await;
    peer.send_connack(5).await;
    match next(&mut session).await {
        Event::Ended(SessionError::Refused(sentence)) => {
            let port = broker.port();
            assert!(sentence.contains(&format!("localhost:{port} refused device dev1")), "{sentence}");
        }
        other => panic!("an end, not {other:?}"),
    }
}

#[tokio::test]
async fn a_refused_sign_in_is_retried_once_the_hub_has_known_the_device() {
    let broker = Broker::start().await;
    let (mut session, peer) = connected(&broker, settings(&broker)).await;
    drop(peer);
    reason(&mut session).await;
    let mut peer = broker.accept().await;
    peer.read_connect().await;
    peer.send_connack(5).await;
    assert!(reason(&mut session).await.contains("refused device dev1"));
    let mut peer = broker.accept().await;
    peer.sign_in_and_subscribe().await;
    assert!(matches!(next(&mut session).await, Event::Subscribed { .. }));
}

#[tokio::test]
async fn a_refused_subscription_is_said_and_retried() {
    let broker = Broker::start().await;
    let mut session = Session::open(settings(&broker)).expect("a session");
    let mut peer = broker.accept().await;
    peer.read_connect().await;
    peer.send_connack(0).await;
    peer.read_subscribe().await;
    peer.send(&[0x90, 3, 0, 1, 0x80]).await;
    let reason = reason(&mut session).await;
    assert!(reason.contains("refused the subscription to devices/dev1/messages/devicebound/#"), "{reason}");
    let mut peer = broker.accept().await;
    peer.sign_in_and_subscribe().await;
    assert!(matches!(next(&mut session).await, Event::Subscribed { .. }));
}

#[tokio::test]
async fn repeated_hang_ups_after_the_sign_in_point_at_a_second_program() {
    let broker = Broker::start().await;
    let (mut session, peer) = connected(&broker, settings(&broker)).await;
    drop(peer);
    assert!(!reason(&mut session).await.contains("another program"));
    let mut peer = broker.accept().await;
    peer.sign_in_and_subscribe().await;
    assert!(matches!(next(&mut session).await, Event::Subscribed { .. }));
    drop(peer);
    let reason = reason(&mut session).await;
    assert!(reason.contains("another program probably signs in with the same device id dev1"), "{reason}");
}

#[tokio::test]
async fn a_token_is_renewed_after_outstanding_messages_are_completed() {
    let broker = Broker::start().await;
    let short = Settings { token_lifetime: Duration::from_secs(5), ..settings(&broker) };
    let mut session = Session::open(short).expect("a session");
    let mut peer = broker.accept().await;
    let first = peer.read_connect().await;
    peer.send_connack(0).await;
    peer.read_subscribe().await;
    peer.send_suback().await;
    assert!(matches!(next(&mut session).await, Event::Subscribed { .. }));
    peer.send(&publish(1, "", "in hand")).await;
    let in_hand = delivery(&mut session).await;
    let ended = std::time::Instant::now() + DEADLINE;
    while in_hand.receipt.is_current() {
        assert!(std::time::Instant::now() < ended, "the renewal did not begin");
        tokio::time::sleep(Duration::from_millis(5)).await; // the receipt has no event to wait for
    }
    peer.send(&publish(2, "", "too late")).await;
    in_hand.receipt.complete();
    assert_eq!(peer.read_puback().await, 1);
    assert_eq!(peer.read().await.0 >> 4, 14, "DISCONNECT");
    drop(peer);
    let mut peer = broker.accept().await;
    let second = peer.read_connect().await;
    assert_ne!(first.password, second.password);
    peer.send_connack(0).await;
    peer.send(&publish(1, "", "too late")).await;
    assert_eq!(body(&delivery(&mut session).await), "too late");
}

#[tokio::test]
async fn a_hub_that_is_not_there_is_named_with_its_port_and_retried() {
    let broker = Broker::start().await;
    let settings = settings(&broker);
    let port = broker.port();
    let broker = broker.stop();
    let mut session = Session::open(settings).expect("a session");
    let reason = reason(&mut session).await;
    assert!(reason.contains(&format!("localhost:{port} refused the connection")), "{reason}");
    let mut peer = broker.restart().await.accept().await;
    peer.sign_in_and_subscribe().await;
    while !matches!(next(&mut session).await, Event::Subscribed { .. }) {}
}

#[tokio::test]
async fn a_peer_that_speaks_no_tls_is_named() {
    let broker = Broker::start().await;
    let mut settings = settings(&broker);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    settings.identity.hub.port = Some(listener.local_addr().expect("an address").port());
    let mut session = Session::open(settings).expect("a session");
    let (mut socket, _) = listener.accept().await.expect("a connection");
    tokio::io::AsyncWriteExt::write_all(&mut socket, b"HTTP/1.1 400 Bad Request\r\n\r\n")
        .await
        .expect("sent");
    let reason = reason(&mut session).await;
    assert!(reason.contains("not with TLS"), "{reason}");
}
