//! Devices over AMQP: receiving with each outcome, sending, and which connection has the link.

use fe2o3_amqp::link::LinkStateError;
use fe2o3_amqp::link::RecvError;
use fe2o3_amqp::link::delivery::Delivery;
use fe2o3_amqp::link::receiver::CreditMode;
use fe2o3_amqp::types::definitions::Fields;

use super::*;
use crate::emulator::hub::QueuedMessage;
use crate::feedback::{DeliveryAck, FeedbackRecord};

const DEVICEBOUND: &str = "/devices/dev1/messages/devicebound";

fn device(user: &str) -> SaslProfile {
    let expiry = now() + Duration::from_secs(3600);
    let token = SasToken::sign(&key(30), "hub.local.test/devices/dev1", None, expiry);
    SaslProfile::Plain { username: user.to_owned(), password: token.expose().to_owned() }
}

pub(super) async fn signed_in(hub: &SharedHub) -> Client {
    Client::open(hub, Some(device("dev1@sas.hub"))).await.expect("signed in")
}

pub(super) fn enqueue(hub: &SharedHub, id: &str) {
    let bag =
        format!("%24.mid={id}&%24.cid=c-1&%24.ct=text%2Fplain&iothub-ack=full&%24.schema=s&zone=north&bare");
    let message = message::C2dMessage::from_bag(&bag, "body".into()).expect("a bag");
    let queued = QueuedMessage {
        device_id: "dev1".into(),
        message,
        ack: DeliveryAck::Full,
        expiry: Some(now() + Duration::from_secs(60)),
    };
    hub.with(|hub, now| hub.enqueue(queued, now)).expect("queued");
}

fn feedback(hub: &SharedHub) -> Vec<FeedbackRecord> {
    hub.with(|hub, now| {
        let Some(batch) = hub.next_feedback_batch(now) else { return Vec::new() };
        hub.complete_feedback(batch.lock).expect("completed");
        batch.records
    })
}

pub(super) async fn next(link: &mut Receiver) -> Delivery<Body<Value>> {
    tokio::time::timeout(Duration::from_secs(10), link.recv()).await.expect("in time").expect("a message")
}

pub(super) fn id(delivery: &Delivery<Body<Value>>) -> String {
    match delivery.message().properties.as_ref().and_then(|properties| properties.message_id.clone()) {
        Some(MessageId::String(id)) => id,
        other => panic!("{other:?}"),
    }
}

fn delivery_count(delivery: &Delivery<Body<Value>>) -> Value {
    let annotations = delivery.message().message_annotations.clone().expect("annotations").0;
    annotations.get::<OwnedKey>(&Symbol::from("iothub-deliverycount").into()).expect("a count").clone()
}

#[tokio::test]
async fn the_model_that_a_link_names_is_in_the_twin() {
    let hub = hub();
    let mut client = signed_in(&hub).await;
    let mut properties = Fields::new();
    properties.insert(Symbol::from("com.microsoft:model-id"), Value::String("dtmi:a:b;1".to_owned()));
    let link = Receiver::builder().name("with a model").source(DEVICEBOUND).properties(properties);
    let _link = link.attach(&mut client.session).await.expect("a link");
    let _other = client.sender("/devices/dev1/messages/events").await.expect("a link");
    assert_eq!(hub.with(|hub, _| hub.twin("dev1").expect("a twin")["modelId"].clone()), "dtmi:a:b;1");
}

#[tokio::test]
async fn each_outcome_has_its_feedback_and_order_is_free() {
    let hub = hub();
    let mut client = signed_in(&hub).await;
    let mut link =
        client.receiver("amqps://hub.local.test/devices/dev%31/messages/deviceBound").await.expect("a link");
    for id in ["taken", "refused", "given-back"] {
        enqueue(&hub, id);
    }
    let (taken, refused) = (next(&mut link).await, next(&mut link).await);
    let mut given_back = next(&mut link).await;
    link.reject(&refused, None).await.expect("rejected");
    link.accept(&taken).await.expect("accepted");
    for count in 0..10 {
        assert_eq!(
            (id(&given_back), delivery_count(&given_back)),
            ("given-back".into(), Value::Ubyte(count))
        );
        link.release(&given_back).await.expect("released");
        if count < 9 {
            given_back = next(&mut link).await;
        }
    }
    let mut records = Vec::new();
    while records.len() < 3 {
        records.extend(
            feedback(&hub).into_iter().map(|record| (record.original_message_id, record.status_code)),
        );
        tokio::task::yield_now().await;
    }
    let expected = [
        ("refused", FeedbackStatus::Rejected),
        ("taken", FeedbackStatus::Success),
        ("given-back", FeedbackStatus::DeliveryCountExceeded),
    ];
    assert_eq!(records, expected.map(|(id, status)| (id.to_owned(), status)));
}

#[tokio::test]
async fn a_message_has_its_properties_in_the_fields_of_amqp() {
    let hub = hub();
    let mut client = signed_in(&hub).await;
    let mut link = client.receiver(DEVICEBOUND).await.expect("a link");
    enqueue(&hub, "m-1");
    let message = next(&mut link).await.into_message();
    let section = message.properties.expect("properties");
    assert_eq!(section.message_id, Some(MessageId::String("m-1".into())));
    assert_eq!(section.correlation_id, Some(MessageId::String("c-1".into())));
    assert_eq!(section.to.as_deref(), Some(DEVICEBOUND));
    assert_eq!(section.content_type, Some(Symbol::from("text/plain")));
    let expiry = section.absolute_expiry_time.map(|time| time.milliseconds());
    assert_eq!(expiry, Some(i64::try_from(NOW + 60).expect("a time") * 1000));
    let application = message.application_properties.expect("application properties").0;
    let text = |name: &str| match application.get(name) {
        Some(SimpleValue::String(text)) => text.clone(),
        other => panic!("{name}: {other:?}"),
    };
    assert_eq!(
        (text("zone"), text("bare"), text("iothub-ack")),
        ("north".into(), String::new(), "full".into())
    );
    assert_eq!(text("iothub-message-schema"), "s");
}

#[tokio::test]
async fn without_credit_nothing_is_sent_and_outcomes_still_count() {
    let hub = hub();
    let mut client = signed_in(&hub).await;
    let builder =
        Receiver::builder().name("one at a time").source(DEVICEBOUND).credit_mode(CreditMode::Manual);
    let mut link = builder.attach(&mut client.session).await.expect("a link");
    for id in ["m-1", "m-2"] {
        enqueue(&hub, id);
    }
    link.set_credit(1).await.expect("credit");
    let first = next(&mut link).await;
    link.accept(&first).await.expect("accepted");
    while hub.with(|hub, _| hub.queue_length("dev1")) != Some(1) {
        tokio::task::yield_now().await;
    }
    link.set_credit(1).await.expect("credit");
    assert_eq!(id(&next(&mut link).await), "m-2");
}

#[tokio::test]
async fn what_was_not_settled_comes_again_and_a_newer_connection_takes_the_link() {
    let hub = hub();
    let mut first = signed_in(&hub).await;
    let mut link = first.receiver(DEVICEBOUND).await.expect("a link");
    enqueue(&hub, "m-1");
    let held = next(&mut link).await;
    let mut second = signed_in(&hub).await;
    let mut newer = second.receiver(DEVICEBOUND).await.expect("a link");
    assert_eq!(id(&next(&mut newer).await), "m-1");
    let lost = link.recv::<Body<Value>>().await.expect_err("stolen");
    let RecvError::LinkStateError(LinkStateError::RemoteClosedWithError(error)) = lost else {
        panic!("{lost:?}")
    };
    assert_eq!(condition(&error), "amqp:link:stolen");
    drop((held, newer, second));
    let mut third = signed_in(&hub).await;
    let mut link = third.receiver(DEVICEBOUND).await.expect("a link");
    let again = next(&mut link).await;
    assert_eq!((id(&again), delivery_count(&again)), ("m-1".into(), Value::Ubyte(0)));
}

#[tokio::test]
async fn a_device_sends_events_and_has_no_other_device() {
    let hub = hub();
    let mut client = signed_in(&hub).await;
    let mut events = client.sender("/devices/dev1/messages/events").await.expect("a link");
    let outcome = events.send(c2d("e-1".to_owned())).await.expect("an outcome");
    assert!(matches!(outcome, Outcome::Accepted(_)), "{outcome:?}");
    hub.with(|hub, _| {
        let event = hub.events("dev1").expect("the device").next().expect("an event").clone();
        assert_eq!((event.properties.get("$.mid"), event.properties.get("times")), (Some("e-1"), Some("3")));
        assert_eq!(&event.body[..], b"body");
    });
    let refused = client.receiver("/devices/dev2/messages/devicebound").await.expect_err("refused");
    let ReceiverAttachError::RemoteClosedWithError(error) = refused else { panic!("{refused:?}") };
    assert_eq!(condition(&error), "amqp:not-found");
    // A device has no rights of a back end.
    let mut client = signed_in(&hub).await;
    let refused = client.sender("/messages/devicebound").await.expect_err("refused");
    let SenderAttachError::RemoteClosedWithError(error) = refused else { panic!("{refused:?}") };
    assert_eq!(condition(&error), "amqp:unauthorized-access");
}
