//! Tests with an AMQP client over an in-memory stream.

use std::time::{Duration, SystemTime};

use fe2o3_amqp::connection::ConnectionHandle;
use fe2o3_amqp::link::{ReceiverAttachError, SenderAttachError};
use fe2o3_amqp::sasl_profile::SaslProfile;
use fe2o3_amqp::session::SessionHandle;
use fe2o3_amqp::types::definitions;
use fe2o3_amqp::types::messaging::annotations::OwnedKey;
use fe2o3_amqp::types::messaging::{
    AmqpValue, ApplicationProperties, Body, Data, Message, MessageId, Outcome, Properties,
};
use fe2o3_amqp::types::primitives::{Binary, SimpleValue, Symbol, Timestamp, Uuid, Value};
use fe2o3_amqp::{Connection, Receiver, Sender, Session};
use futures_util::FutureExt as _;

use super::*;
use crate::credentials::{SasToken, SharedAccessKey};
use crate::emulator::hub::{Hub, HubSize, Subscription, Tier};
use crate::emulator::registry::{
    AccessPolicy, Device, DeviceCredential, IdentityRecord, KeyPair, Registry, RegistryRight,
};
use crate::emulator::shared::SharedHub;
use crate::feedback::{FeedbackStatus, decode_batch};
use crate::message;

mod clock;
mod device;
mod events;
mod faults;
mod hubs;
mod method;
mod readers;
mod registration;
mod twin;

const NOW: u64 = 1_800_000_000;
const HOUR: Duration = Duration::from_secs(3600);
const GENERATION: &str = "637000000000000001";

fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(NOW)
}

fn key(byte: u8) -> SharedAccessKey {
    SharedAccessKey::from_bytes([byte; 32])
}

fn pair(byte: u8) -> KeyPair {
    KeyPair { primary: key(byte), secondary: key(byte + 1) }
}

fn hub() -> SharedHub {
    hub_at("hub.local.test")
}

fn hub_at(name: &str) -> SharedHub {
    let policy = |name: &str, byte, service_connect| AccessPolicy {
        name: name.to_owned(),
        keys: pair(byte),
        service_connect,
        device_connect: !service_connect,
        registry: RegistryRight::None,
    };
    let mut registry = Registry::new(name, vec![policy("service", 10, true), policy("device", 20, false)]);
    registry.add_device(Device { id: "dev1".to_owned(), credential: DeviceCredential::Keys(pair(30)) });
    registry.set_record("dev1", IdentityRecord::new(GENERATION.to_owned()));
    SharedHub::new(Hub::new(registry, Duration::ZERO), now)
}

fn token(policy: &str, key: &SharedAccessKey) -> String {
    SasToken::sign(key, "hub.local.test", Some(policy), now() + HOUR).expose().to_owned()
}

/// A client, and the server's task, which ends with the client.
struct Client {
    session: SessionHandle<()>,
    _connection: ConnectionHandle<()>,
    _server: JoinSet<()>,
}

impl Client {
    async fn open(hub: &SharedHub, profile: Option<SaslProfile>) -> Result<Self, OpenError> {
        Self::open_at(Hubs::of(hub, &[]), None, profile).await
    }

    /// Opens a connection with this host name in Open.
    async fn open_at(
        hubs: Hubs,
        host: Option<&str>,
        profile: Option<SaslProfile>,
    ) -> Result<Self, OpenError> {
        Self::open_with(hubs, Reception::closed(), host, profile).await
    }

    async fn open_with(
        hubs: Hubs,
        reception: Reception,
        host: Option<&str>,
        profile: Option<SaslProfile>,
    ) -> Result<Self, OpenError> {
        let (near, far) = tokio::io::duplex(64 * 1024);
        let mut server = JoinSet::new();
        let peer = SocketAddr::from(([127, 0, 0, 1], 1));
        let served = serve_connection(far, None, reception, peer, hubs, CancellationToken::new());
        server.spawn(served.map(drop));
        let mut builder = Connection::builder().container_id("test").scheme("amqp").hostname(host);
        if let Some(profile) = profile {
            builder = builder.sasl_profile(profile);
        }
        let mut connection = builder.open_with_stream(near).await?;
        let session = Session::begin(&mut connection).await.expect("a session");
        Ok(Self { session, _connection: connection, _server: server })
    }

    async fn signed_in(hub: &SharedHub) -> Self {
        Self::open(hub, Some(plain("service", &key(10)))).await.expect("signed in")
    }

    async fn sender(&mut self, address: &str) -> Result<Sender, SenderAttachError> {
        Sender::attach(&mut self.session, uuid::Uuid::new_v4().to_string(), address).await
    }

    async fn receiver(&mut self, address: &str) -> Result<Receiver, ReceiverAttachError> {
        Receiver::attach(&mut self.session, uuid::Uuid::new_v4().to_string(), address).await
    }
}

fn plain(policy: &str, key: &SharedAccessKey) -> SaslProfile {
    SaslProfile::Plain { username: format!("{policy}@sas.root.hub"), password: token(policy, key) }
}

fn c2d(message_id: impl Into<MessageId>) -> Message<Data> {
    let properties = Properties {
        to: Some("/devices/dev1/messages/deviceBound".to_owned()),
        message_id: Some(message_id.into()),
        ..Properties::default()
    };
    let mut application = ApplicationProperties::default();
    application.0.insert("iothub-ack".to_owned(), SimpleValue::String("Full".to_owned()));
    application.0.insert("times".to_owned(), SimpleValue::Int(3));
    Message::builder()
        .properties(properties)
        .application_properties(application)
        .data(Data(Binary::from(b"body".to_vec())))
        .build()
}

fn rejection(outcome: Outcome) -> (String, String, bool) {
    let Outcome::Rejected(rejected) = outcome else { panic!("not rejected: {outcome:?}") };
    let error = rejected.error.expect("a reason");
    let tracked =
        error.info.as_ref().is_some_and(|info| info.contains_key(&Symbol::from("com.microsoft:tracking-id")));
    (condition(&error), error.description.unwrap_or_default(), tracked)
}

fn condition(error: &definitions::Error) -> String {
    match &error.condition {
        definitions::ErrorCondition::AmqpError(error) => Symbol::from(error).into_inner(),
        definitions::ErrorCondition::LinkError(error) => Symbol::from(error).into_inner(),
        definitions::ErrorCondition::Custom(symbol) => symbol.as_str().to_owned(),
        other => format!("{other:?}"),
    }
}

/// Removes the oldest message of `dev1` from its queue.
fn take(hub: &SharedHub) -> message::C2dMessage {
    hub.with(|hub, now| {
        let connection = hub.connect("dev1", false, now).expect("the device").connection;
        assert!(hub.subscribe("dev1", connection, Subscription::DeviceBound, 1));
        let locked = hub.next_delivery("dev1", connection, now).expect("a message");
        hub.complete("dev1", locked.lock, now).expect("completed");
        (*locked.message).clone()
    })
}

#[tokio::test]
async fn a_message_is_accepted_and_its_properties_reach_the_device() {
    let hub = hub();
    let mut client = Client::signed_in(&hub).await;
    let mut sender = client.sender("amqps://hub.local.test/messages/deviceBound").await.expect("a link");
    let id = Uuid::from([0x11; 16]);
    let outcome = sender.send(c2d(MessageId::Uuid(id))).await.expect("an outcome");
    assert!(matches!(outcome, Outcome::Accepted(_)), "{outcome:?}");
    let message = take(&hub);
    assert_eq!(message.message_id(), Some("11111111-1111-1111-1111-111111111111"));
    assert_eq!(message.property("$.to"), Some("/devices/dev1/messages/deviceBound"));
    assert_eq!(message.property("iothub-ack"), Some("Full"));
    assert_eq!(message.property("times"), Some("3"));
    assert_eq!(&message.body[..], b"body");
}

#[tokio::test]
async fn each_refusal_has_its_condition_and_leaves_the_link_alone() {
    let hub = hub();
    let mut client = Client::signed_in(&hub).await;
    let mut sender = client.sender("/messages/devicebound").await.expect("a link");
    let mut refused = async |change: &dyn Fn(&mut Message<Data>)| {
        let mut message = c2d("m-1".to_owned());
        change(&mut message);
        let (condition, description, tracked) = rejection(sender.send(message).await.expect("an outcome"));
        assert!(tracked, "no tracking id: {description}");
        (condition, description)
    };
    fn section(message: &mut Message<Data>) -> &mut Properties {
        message.properties.as_mut().expect("properties")
    }
    let (condition, _) =
        refused(&|m| section(m).to = Some("/devices/nope/messages/devicebound".into())).await;
    assert_eq!(condition, "amqp:not-found");
    let (condition, description) = refused(&|m| section(m).to = Some("elsewhere".into())).await;
    assert_eq!(condition, "com.microsoft:argument-error");
    assert!(description.contains("\"elsewhere\""), "{description}");
    let (condition, _) = refused(&|m| m.body = Data(Binary::from(vec![0; 70_000]))).await;
    assert_eq!(condition, "amqp:link:message-size-exceeded");
    let past = Timestamp::from_milliseconds(1_000);
    let (condition, description) =
        refused(&move |m| section(m).absolute_expiry_time = Some(past.clone())).await;
    assert_eq!(condition, "com.microsoft:argument-error");
    assert!(description.contains("in the past"), "{description}");
    let (condition, _) = refused(&|m| section(m).message_id = Some("a b".to_owned().into())).await;
    assert_eq!(condition, "com.microsoft:argument-error");
    let binary = || SimpleValue::Binary(Binary::from(vec![0]));
    let (condition, description) = refused(&|m| {
        let properties = m.application_properties.as_mut().expect("application properties");
        properties.0.insert("raw".to_owned(), binary());
    })
    .await;
    assert_eq!(condition, "com.microsoft:argument-error");
    assert!(description.contains("\"raw\""), "{description}");

    for n in 0..50 {
        let outcome = sender.send(c2d(format!("m-{n}"))).await.expect("an outcome");
        assert!(matches!(outcome, Outcome::Accepted(_)), "{n}: {outcome:?}");
    }
    let (condition, _, _) = rejection(sender.send(c2d("m-51".to_owned())).await.expect("an outcome"));
    assert_eq!(condition, "amqp:resource-limit-exceeded");
}

#[tokio::test]
async fn a_hub_of_a_tier_refuses_what_is_too_much_for_a_minute_and_says_when_to_come_again() {
    let hub = hub();
    hub.with(|hub, _| hub.throttle_as(HubSize::new(Tier::S1, 1).expect("a size")));
    let mut client = Client::signed_in(&hub).await;
    let mut sender = client.sender("/messages/devicebound").await.expect("a link");
    for number in 0..100 {
        let outcome = sender.send(c2d(format!("m-{number}"))).await.expect("an outcome");
        assert!(matches!(outcome, Outcome::Accepted(_)), "{number}: {outcome:?}");
        take(&hub);
    }
    let outcome = sender.send(c2d("m-100".to_owned())).await.expect("an outcome");
    let Outcome::Rejected(rejected) = outcome else { panic!("not rejected: {outcome:?}") };
    let error = rejected.error.expect("an error");
    assert_eq!(condition(&error), "com.microsoft:device-container-throttled");
    let info = error.info.expect("info");
    assert_eq!(info.get(&Symbol::from("com.microsoft:error-code")), Some(&Value::Int(429_001)));
    assert_eq!(info.get(&Symbol::from("Retry-After")), Some(&Value::Uint(1)));
}

#[tokio::test]
async fn feedback_comes_as_a_batch_and_is_gone_once_accepted() {
    let hub = hub();
    let mut client = Client::signed_in(&hub).await;
    let mut sender = client.sender("/messages/devicebound").await.expect("a link");
    let mut receiver = client.receiver("/messages/serviceBound/feedback").await.expect("a link");
    sender.send(c2d("m-1".to_owned())).await.expect("accepted");
    take(&hub);
    let first = receiver.recv::<Body<Value>>().await.expect("a batch");
    receiver.release(&first).await.expect("released");
    let delivery = receiver.recv::<Body<Value>>().await.expect("the batch again");
    let properties = delivery.message().properties.clone().expect("properties");
    assert_eq!(
        properties.content_type.map(|kind| kind.into_inner()).as_deref(),
        Some("application/vnd.microsoft.iothub.feedback.json")
    );
    assert_eq!(properties.user_id.map(|id| id.into_vec()), Some(b"hub.local.test".to_vec()));
    let annotations = delivery.message().message_annotations.clone().expect("annotations").0;
    let stamp = annotations.get::<OwnedKey>(&Symbol::from("iothub-enqueuedtime").into());
    assert!(matches!(stamp, Some(Value::Timestamp(_))), "{annotations:?}");
    let Body::Data(sections) = delivery.body() else { panic!("{:?}", delivery.body()) };
    let bytes: Vec<u8> = sections.iter().flat_map(|section| section.0.to_vec()).collect();
    let records = decode_batch(&bytes).expect("a batch");
    assert_eq!(records.len(), 1);
    assert_eq!(
        (records[0].original_message_id.as_str(), records[0].status_code),
        ("m-1", FeedbackStatus::Success)
    );
    receiver.accept(&delivery).await.expect("accepted");
    receiver.close().await.expect("closed");
    assert!(hub.with(|hub, now| hub.next_feedback_batch(now)).is_none());
}

#[tokio::test]
async fn a_batch_on_a_link_that_goes_comes_again_to_the_next() {
    let hub = hub();
    let mut client = Client::signed_in(&hub).await;
    let mut sender = client.sender("/messages/devicebound").await.expect("a link");
    let mut receiver = client.receiver("/messages/servicebound/feedback").await.expect("a link");
    sender.send(c2d("m-1".to_owned())).await.expect("accepted");
    take(&hub);
    let delivery = receiver.recv::<Body<Value>>().await.expect("a batch");
    drop(delivery);
    drop(client);
    let mut client = Client::signed_in(&hub).await;
    let mut receiver = client.receiver("/messages/servicebound/feedback").await.expect("a link");
    receiver.recv::<Body<Value>>().await.expect("the batch again");
}

#[tokio::test]
async fn the_wrong_key_policy_or_mechanism_is_refused_at_sign_in() {
    let hub = hub();
    let device_user = SaslProfile::Plain { username: "dev1@sas.hub".into(), password: "x".into() };
    let mixed = SaslProfile::Plain {
        username: "iothubowner@sas.root.hub".into(),
        password: token("service", &key(10)),
    };
    for profile in [plain("service", &key(99)), plain("device", &key(20)), device_user, mixed] {
        let refused = Client::open(&hub, Some(profile)).await.err();
        assert!(matches!(refused, Some(OpenError::SaslError { .. })), "{refused:?}");
    }
}

#[tokio::test]
async fn links_without_a_token_and_unknown_addresses_are_refused_in_words() {
    let hub = hub();
    // Use a new connection each time: this client library loses a second link on the handle of a refused one.
    let refused = async |address: &str| {
        let mut client = Client::open(&hub, None).await.expect("no SASL");
        match client.sender(address).await.expect_err("refused") {
            SenderAttachError::RemoteClosedWithError(error) => {
                (condition(&error), error.description.unwrap_or_default())
            }
            other => panic!("{other:?}"),
        }
    };
    let (condition, _) = refused("/messages/devicebound").await;
    assert_eq!(condition, "amqp:unauthorized-access");
    let (condition, _) = refused("/devices/dev1/messages/events").await;
    assert_eq!(condition, "amqp:unauthorized-access");
    let (condition, _) = refused("/devices/dev1/twin").await;
    assert_eq!(condition, "amqp:unauthorized-access");
    let (condition, words) = refused("/devices/dev1/modules/m/twin").await;
    assert_eq!(condition, "amqp:not-implemented");
    assert!(words.contains("modules over MQTT only"), "{words}");
    let (condition, words) = refused("/nowhere").await;
    assert_eq!(condition, "amqp:not-found");
    assert!(words.contains("\"/nowhere\""), "{words}");
    let mut client = Client::open(&hub, None).await.expect("no SASL");
    let error = client.receiver("/messages/servicebound/feedback").await.expect_err("unauthorised");
    assert!(matches!(error, ReceiverAttachError::RemoteClosedWithError(_)), "{error:?}");
}

#[tokio::test]
async fn a_token_put_to_cbs_opens_the_links_and_a_bad_one_is_answered_401_or_400() {
    let hub = hub();
    let mut client = Client::open(&hub, Some(SaslProfile::Anonymous)).await.expect("anonymous");
    let mut requests = client.sender("$cbs").await.expect("a link");
    let mut replies = client.receiver("$cbs").await.expect("a link");
    let mut put = async |id: u64, token: String| {
        let properties = Properties { message_id: Some(MessageId::Ulong(id)), ..Properties::default() };
        let mut application = ApplicationProperties::default();
        for (name, value) in [("operation", "put-token"), ("type", "servicebus.windows.net:sastoken")] {
            application.0.insert(name.to_owned(), SimpleValue::String(value.to_owned()));
        }
        let request = Message::builder()
            .properties(properties)
            .application_properties(application)
            .value(Value::String(token))
            .build();
        let outcome = requests.send(request).await.expect("an outcome");
        assert!(matches!(outcome, Outcome::Accepted(_)), "{outcome:?}");
        let delivery = replies.recv::<AmqpValue<Value>>().await.expect("a reply");
        replies.accept(&delivery).await.expect("settled");
        let message = delivery.into_message();
        let correlation = message.properties.and_then(|properties| properties.correlation_id);
        assert_eq!(correlation, Some(MessageId::Ulong(id)));
        let application = message.application_properties.expect("application properties").0;
        application.get("status-code").cloned()
    };
    assert_eq!(put(0, "nonsense".into()).await, Some(SimpleValue::Int(400)));
    assert_eq!(put(1, token("service", &key(99))).await, Some(SimpleValue::Int(401)));
    let other = SasToken::sign(&key(10), "hub.other.local.test", Some("service"), now() + HOUR);
    assert_eq!(put(2, other.expose().to_owned()).await, Some(SimpleValue::Int(401)));
    // Each name of the hub will do, for back ends and for devices.
    for (id, name) in
        ["hub.local.test", "hub.device.local.test", "hub.service.local.test"].into_iter().enumerate()
    {
        let id = 10 * (id as u64 + 1);
        let back_end = SasToken::sign(&key(11), name, Some("service"), now() + HOUR);
        assert_eq!(put(id, back_end.expose().to_owned()).await, Some(SimpleValue::Int(200)), "{name}");
        let resource = format!("{name}/devices/dev1");
        let device = SasToken::sign(&key(30), &resource, None, now() + HOUR);
        assert_eq!(put(id + 1, device.expose().to_owned()).await, Some(SimpleValue::Int(200)), "{name}");
    }
    let mut sender = client.sender("/messages/devicebound").await.expect("a link");
    let outcome = sender.send(c2d("m-1".to_owned())).await.expect("an outcome");
    assert!(matches!(outcome, Outcome::Accepted(_)), "{outcome:?}");
}

#[tokio::test]
async fn an_expired_token_ends_the_session_with_the_reason() {
    let hub = hub();
    let expiry = now() + Duration::from_millis(1_200);
    let short = SasToken::sign(&key(10), "hub.local.test", Some("service"), expiry);
    let profile =
        SaslProfile::Plain { username: "service@sas.root.hub".into(), password: short.expose().to_owned() };
    let mut client = Client::open(&hub, Some(profile)).await.expect("signed in");
    let ended = client.session.on_end().await.expect_err("ended by the hub");
    let fe2o3_amqp::session::Error::RemoteEndedWithError(error) = ended else { panic!("{ended:?}") };
    assert_eq!(condition(&error), "amqp:unauthorized-access");
}

#[tokio::test]
async fn bytes_that_are_not_amqp_get_the_header_and_the_end() {
    let (mut near, far) = tokio::io::duplex(64);
    let peer = SocketAddr::from(([127, 0, 0, 1], 1));
    let server = serve_connection(
        far,
        None,
        Reception::closed(),
        peer,
        Hubs::of(&hub(), &[]),
        CancellationToken::new(),
    );
    let client = async {
        near.write_all(b"GET / HTTP/1.1\r\n\r\n").await.expect("sent");
        let mut answer = Vec::new();
        near.read_to_end(&mut answer).await.expect("read");
        answer
    };
    let (end, answer) = tokio::join!(server, client);
    assert_eq!(answer, PLAIN_AMQP);
    assert_eq!(end, AmqpEnd::Breach("the first bytes are not those of AMQP 1.0".to_owned()));
}

#[tokio::test]
async fn stopping_cuts_connections_at_once() {
    let hub = hub();
    let stop = CancellationToken::new();
    let (near, far) = tokio::io::duplex(64 * 1024);
    let peer = SocketAddr::from(([127, 0, 0, 1], 1));
    let server = serve_connection(far, None, Reception::closed(), peer, Hubs::of(&hub, &[]), stop.clone());
    let client = async {
        let builder = Connection::builder().container_id("test").scheme("amqp");
        let mut connection = builder.open_with_stream(near).await.expect("open");
        let mut session = Session::begin(&mut connection).await.expect("a session");
        stop.cancel();
        session.on_end().await.ok();
    };
    let ended = tokio::time::timeout(Duration::from_secs(5), async { tokio::join!(server, client) });
    ended.await.expect("it ends");
}
