//! Calls of direct methods over AMQP, against a hub that follows each test's script.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use fe2o3_amqp::acceptor::{
    ConnectionAcceptor, LinkAcceptor, LinkEndpoint, ListenerConnectionHandle, ListenerSessionHandle,
    SessionAcceptor,
};
use fe2o3_amqp::link::delivery::Sendable;
use fe2o3_amqp::types::definitions::{AmqpError, Error, Role};
use fe2o3_amqp::types::messaging::{ApplicationProperties, Body, Data, Message, MessageId, Properties};
use fe2o3_amqp::types::performatives::Attach;
use fe2o3_amqp::types::primitives::{Binary, SimpleValue, Value};
use fe2o3_amqp::{Receiver, Sender};
use tokio::time::timeout;

use super::broker::Broker;
use super::{DEADLINE, Event, Session, delivery, next, reason, settings};
use crate::credentials::{DeviceAuth, Transport};
use crate::message::Source;
use crate::session::Settings;
use crate::session::calls::OPEN_CALLS;

/// The hub's ends of the links.
struct Hub {
    messages: Sender,
    calls: Sender,
    answers: Receiver,
    _events: Receiver,
    _session: ListenerSessionHandle,
    _connection: ListenerConnectionHandle,
}

/// Settings with a certificate, so that no token need be put.
fn over_amqp(broker: &Broker, dir: &Path) -> Settings {
    let made = rcgen::generate_simple_self_signed(["dev1".to_owned()]).expect("a certificate");
    let (certificate, private_key) = (dir.join("dev1.cert.pem"), dir.join("dev1.key.pem"));
    std::fs::write(&certificate, made.cert.pem()).expect("written");
    std::fs::write(&private_key, made.signing_key.serialize_pem()).expect("written");
    let mut settings = Settings { transport: Transport::Amqp, methods: true, ..settings(broker) };
    settings.identity.auth = DeviceAuth::Certificate { certificate, private_key };
    settings
}

async fn connected(broker: &Broker, dir: &Path) -> (Session, Hub) {
    let mut session = Session::open(over_amqp(broker, dir)).expect("a session");
    let hub = sign_in(broker, &mut session).await;
    (session, hub)
}

async fn sign_in(broker: &Broker, session: &mut Session) -> Hub {
    let hub = timeout(DEADLINE, attach(broker)).await.expect("the links in time");
    assert!(matches!(next(session).await, Event::Subscribed { .. }));
    hub
}

async fn begin(broker: &Broker) -> (ListenerConnectionHandle, ListenerSessionHandle) {
    let stream = broker.accept().await.into_stream();
    let acceptor = ConnectionAcceptor::builder().container_id("hub").build();
    let mut connection = acceptor.accept(stream).await.expect("opened");
    let session = next_session(&mut connection).await;
    (connection, session)
}

async fn next_session(connection: &mut ListenerConnectionHandle) -> ListenerSessionHandle {
    let begun = connection.next_incoming_session().await.expect("a session");
    SessionAcceptor::builder().build().accept_incoming_session(begun, connection).await.expect("begun")
}

async fn accept(session: &mut ListenerSessionHandle) -> LinkEndpoint {
    let attach = session.next_incoming_attach().await.expect("a link");
    LinkAcceptor::builder().build().accept_incoming_attach(attach, session).await.expect("attached")
}

async fn attach(broker: &Broker) -> Hub {
    let (connection, mut session) = begin(broker).await;
    let (mut senders, mut receivers) = (Vec::new(), Vec::new());
    for _ in 0..4 {
        match accept(&mut session).await {
            LinkEndpoint::Sender(link) => senders.push(link),
            LinkEndpoint::Receiver(link) => receivers.push(link),
        }
    }
    let address = |link: &Sender| link.source().as_ref().and_then(|source| source.address.clone());
    let addresses: Vec<_> = senders.iter().map(|link| address(link).expect("an address")).collect();
    assert_eq!(addresses, ["/devices/dev1/messages/devicebound", "/devices/dev1/methods/devicebound"]);
    let (calls, messages) = (senders.pop().expect("a link"), senders.pop().expect("a link"));
    let (answers, events) = (receivers.pop().expect("a link"), receivers.pop().expect("a link"));
    Hub { messages, calls, answers, _events: events, _session: session, _connection: connection }
}

fn uuid(number: u64) -> MessageId {
    MessageId::Uuid(uuid::Uuid::from_u64_pair(1, number).into_bytes().into())
}

impl Hub {
    async fn call(&mut self, id: MessageId, name: &str, payload: &str) {
        let message = Message::builder()
            .properties(Properties { correlation_id: Some(id), ..Properties::default() })
            .application_properties(
                ApplicationProperties::builder().insert("IoThub-methodname", name).build(),
            )
            .data(Data(Binary::from(payload.as_bytes())))
            .build();
        let sendable = Sendable::builder().message(message).settled(true).build();
        timeout(DEADLINE, self.calls.send(sendable)).await.expect("sent in time").expect("sent");
    }

    /// The next answer: its id, status and payload.
    async fn answer(&mut self) -> (MessageId, i32, String) {
        let received = timeout(DEADLINE, self.answers.recv::<Body<Value>>()).await;
        let received = received.expect("an answer in time").expect("an answer");
        self.answers.accept(&received).await.expect("settled");
        let (_, message) = received.into_parts();
        let id = message.properties.and_then(|properties| properties.correlation_id).expect("an id");
        let properties = message.application_properties.expect("properties").0;
        let Some(SimpleValue::Int(status)) = properties.get("IoThub-status") else {
            panic!("an int: {properties:?}")
        };
        let status = *status;
        let Body::Data(sections) = message.body else { panic!("data") };
        let payload: Vec<u8> = sections.into_iter().flat_map(|section| section.0.into_vec()).collect();
        (id, status, String::from_utf8(payload).expect("text"))
    }
}

#[tokio::test]
async fn a_call_is_answered_with_its_id_as_it_was_and_runs_once() {
    let (broker, dir) = (Broker::start().await, tempfile::tempdir().expect("a directory"));
    let (mut session, mut hub) = connected(&broker, dir.path()).await;
    let text = MessageId::String(uuid::Uuid::from_u64_pair(1, 7).to_string());
    hub.call(uuid(7), "set point/ü", r#"{"v":1}"#).await;
    // This call is still open; an id with its number in another type is another call.
    hub.call(uuid(7), "set point/ü", r#"{"v":2}"#).await;
    hub.call(text.clone(), "other", "").await;
    hub.call(uuid(8), "", "").await;
    let first = delivery(&mut session).await;
    let other = delivery(&mut session).await;
    let message = first.message.as_ref().expect("a call");
    assert_eq!(
        (message.source(), message.body.as_ref()),
        (Source::Method("set point/ü"), &br#"{"v":1}"#[..])
    );
    assert_eq!(other.message.as_ref().expect("a call").source(), Source::Method("other"));
    let (id, status, _) = hub.answer().await;
    assert_eq!((id, status), (uuid(8), 400), "it has no name");
    other.receipt.answer(200, Bytes::new());
    assert_eq!(hub.answer().await, (text, 200, String::new()));
    first.receipt.answer(404, Bytes::from_static(b"{}"));
    assert_eq!(hub.answer().await, (uuid(7), 404, "{}".to_owned()));
    hub.call(uuid(7), "again", "").await;
    delivery(&mut session).await.receipt.answer(200, Bytes::from_static(b"1"));
    assert_eq!(hub.answer().await, (uuid(7), 200, "1".to_owned()));
}

/// Attaches without a terminus, which announces a detach with the reason, and then detaches.
async fn refuse(mut attach: Attach, session: &mut ListenerSessionHandle) {
    match attach.role {
        Role::Sender => attach.target = None,
        Role::Receiver => attach.source = None,
    }
    let acceptor =
        LinkAcceptor::builder().verify_incoming_source(false).verify_incoming_target(false).build();
    let error = Error::new(AmqpError::NotAllowed, Some("words of the hub".to_owned()), None);
    // Whichever side closes first, the goodbye of the other one may carry the reason back.
    match acceptor.accept_incoming_attach(attach, session).await.expect("attached") {
        LinkEndpoint::Sender(link) => drop(link.close_with_error(error).await),
        LinkEndpoint::Receiver(link) => drop(link.close_with_error(error).await),
    }
}

/// Whether the hub sends on this link.
fn sends(link: &LinkEndpoint) -> bool {
    matches!(link, LinkEndpoint::Sender(_))
}

#[tokio::test]
async fn a_refused_twin_takes_neither_methods_nor_messages_with_it() {
    let (broker, dir) = (Broker::start().await, tempfile::tempdir().expect("a directory"));
    // The defect that this test looks for depends on timing.
    for _ in 0..20 {
        let with_twin = Settings { twin: true, ..over_amqp(&broker, dir.path()) };
        let mut session = Session::open(with_twin).expect("a session");
        let hub = async {
            let (mut connection, mut first) = begin(&broker).await;
            let mut links = vec![accept(&mut first).await, accept(&mut first).await];
            refuse(first.next_incoming_attach().await.expect("a link"), &mut first).await;
            let mut second = next_session(&mut connection).await;
            links.extend([accept(&mut second).await, accept(&mut second).await]);
            assert_eq!(links.iter().map(sends).collect::<Vec<_>>(), [true, false, false, true]);
            (connection, first, second, links)
        };
        let _hub = timeout(DEADLINE, hub).await.expect("the links in time");
        assert!(matches!(next(&mut session).await, Event::Subscribed { .. }));
    }
}

#[tokio::test]
async fn more_than_can_be_open_are_told_so_at_once_while_a_message_is_unsettled() {
    let (broker, dir) = (Broker::start().await, tempfile::tempdir().expect("a directory"));
    let (mut session, mut hub) = connected(&broker, dir.path()).await;
    let message = Message::builder().data(Data(Binary::from(*b"x"))).build();
    let settled =
        timeout(DEADLINE, hub.messages.send_batchable(message)).await.expect("in time").expect("sent");
    let unsettled = delivery(&mut session).await;
    assert!(!unsettled.receipt.is_call());
    let most = u64::try_from(OPEN_CALLS).expect("a number");
    for number in 0..=most {
        hub.call(uuid(number), "pump", "").await;
    }
    let (id, status, reason) = hub.answer().await;
    assert_eq!((id, status, reason.contains("call again later")), (uuid(most), 429, true));
    for number in 0..most {
        let call = delivery(&mut session).await;
        call.receipt.answer(200, Bytes::from(number.to_string()));
        assert_eq!(hub.answer().await, (uuid(number), 200, number.to_string()));
    }
    unsettled.receipt.complete();
    timeout(DEADLINE, settled).await.expect("settled in time").expect("settled");
}

#[tokio::test]
async fn an_answer_after_a_reconnect_reaches_nobody() {
    let (broker, dir) = (Broker::start().await, tempfile::tempdir().expect("a directory"));
    let (mut session, mut hub) = connected(&broker, dir.path()).await;
    hub.call(uuid(1), "pump", "\"old\"").await;
    let old = delivery(&mut session).await;
    hub._connection.close().await.expect("closed");
    reason(&mut session).await;
    let mut hub = sign_in(&broker, &mut session).await;
    hub.call(uuid(1), "pump", "\"new\"").await;
    let new = delivery(&mut session).await;
    assert!(!old.receipt.is_current() && new.receipt.is_current());
    old.receipt.answer(200, Bytes::from_static(b"\"old\""));
    new.receipt.answer(200, Bytes::from_static(b"\"new\""));
    assert_eq!(hub.answer().await, (uuid(1), 200, "\"new\"".to_owned()));
}

#[tokio::test]
async fn the_end_of_a_session_answers_what_is_not_taken_and_what_is_ready() {
    let (broker, dir) = (Broker::start().await, tempfile::tempdir().expect("a directory"));
    let (mut session, mut hub) = connected(&broker, dir.path()).await;
    for number in 1..=2 {
        hub.call(uuid(number), "pump", "").await;
    }
    let under_way = delivery(&mut session).await;
    // The reader takes this one, too. So the call before it waits in the channel when the session ends.
    hub.call(uuid(3), "", "").await;
    assert_eq!(hub.answer().await.1, 400);
    let ((), ()) = tokio::join!(session.close(), async {
        let (id, status, said) = hub.answer().await;
        assert_eq!((id, status, said.contains("call again later")), (uuid(2), 503, true));
        under_way.receipt.answer(200, Bytes::from_static(b"1"));
        assert_eq!(hub.answer().await, (uuid(1), 200, "1".to_owned()));
    });
    // The end has a time limit, although the hub answers no goodbye.
    timeout(Duration::from_secs(30), hub.messages.on_detach()).await.expect("the end");
}
