//! Methods of a device over AMQP: calls, answers, and which connection has the link.

use std::time::SystemTime;

use fe2o3_amqp::types::messaging::ApplicationProperties;
use fe2o3_amqp::types::primitives::SimpleValue;
use serde_json::value::RawValue;

use super::device::{next, signed_in};
use super::*;
use crate::emulator::hub::{BackEndCall, CallError, CallId, CallProgress};

const METHODS: &str = "amqps://hub.local.test/devices/dev%31/methods/deviceBound";

fn call(hub: &SharedHub, name: &str) -> CallId {
    let payload = RawValue::from_string(r#"{"b": 1,  "a": 2}"#.to_owned()).expect("JSON");
    let call = BackEndCall {
        name: name.to_owned(),
        payload,
        response_timeout: Duration::from_secs(5),
        connect_timeout: Duration::ZERO,
    };
    hub.with(|hub, now| hub.call_method("dev1", call, now)).expect("a call")
}

/// The result of a call that is over: status and payload.
fn end(hub: &SharedHub, id: CallId, later: Duration) -> Result<(i32, String), CallError> {
    match hub.with(|hub, now| hub.method_progress("dev1", id, now + later)) {
        CallProgress::Done(end) => end.map(|answer| (answer.status, answer.payload.get().to_owned())),
        CallProgress::Pending(until) => panic!("pending for {:?}", until.duration_since(SystemTime::now())),
    }
}

/// Correlation id, name and payload of the next call. The call is already settled.
async fn called(link: &mut Receiver) -> (MessageId, SimpleValue, String) {
    let message = next(link).await.into_message();
    let id = message.properties.and_then(|properties| properties.correlation_id).expect("an id");
    let properties = message.application_properties.expect("properties").0;
    let name = properties.get("IoThub-methodname").expect("a name").clone();
    let Body::Data(sections) = message.body else { panic!("no data") };
    let body: Vec<u8> = sections.into_iter().flat_map(|section| section.0.into_vec()).collect();
    (id, name, String::from_utf8(body).expect("UTF-8"))
}

async fn answer(
    link: &mut Sender,
    id: impl Into<MessageId>,
    status: impl Into<SimpleValue>,
    body: &str,
) -> Outcome {
    let message = Message::builder()
        .properties(Properties { correlation_id: Some(id.into()), ..Properties::default() })
        .application_properties(ApplicationProperties::builder().insert("IoThub-status", status).build())
        .data(Data(Binary::from(body.as_bytes().to_vec())))
        .build();
    link.send(message).await.expect("an outcome")
}

#[tokio::test]
async fn a_device_is_called_and_answers_once() {
    let hub = hub();
    let mut client = signed_in(&hub).await;
    let mut link = client.receiver(METHODS).await.expect("a link");
    let mut out = client.sender(METHODS).await.expect("a link");
    let (first, second, third) = (call(&hub, "re boot/now"), call(&hub, "second"), call(&hub, "third"));
    let (first_id, name, payload) = called(&mut link).await;
    assert!(matches!(first_id, MessageId::Uuid(_)), "{first_id:?}");
    assert_eq!((name, &*payload), (SimpleValue::String("re boot/now".into()), r#"{"b": 1,  "a": 2}"#));
    let (second_id, ..) = called(&mut link).await;
    let (third_id, ..) = called(&mut link).await;
    // Answer the last call first, with the id in the types that clients use.
    let MessageId::Uuid(id) = third_id else { panic!("no uuid") };
    let text = uuid::Uuid::from_bytes(id.into_inner()).to_string();
    assert!(matches!(answer(&mut out, text, 204_i64, "").await, Outcome::Accepted(_)));
    assert!(matches!(answer(&mut out, second_id.clone(), 200_i32, "{oops").await, Outcome::Accepted(_)));
    assert!(matches!(answer(&mut out, first_id.clone(), -3_i32, "[1e400]").await, Outcome::Accepted(_)));
    assert_eq!(end(&hub, first, Duration::ZERO), Ok((-3, "[1e400]".into())));
    let bad = end(&hub, second, Duration::ZERO).expect_err("no JSON");
    assert!(bad.to_string().contains("it is not JSON"), "{bad}");
    assert_eq!(end(&hub, third, Duration::ZERO), Ok((204, "null".into())));

    // A late answer is accepted, because the C SDK leaves both links when it is not.
    assert!(matches!(answer(&mut out, first_id.clone(), 200_i32, "{}").await, Outcome::Accepted(_)));

    let other = MessageId::Uuid(Uuid::from([7; 16]));
    let foreign = SimpleValue::String("200".into());
    for (id, status, part) in [
        (other, SimpleValue::Int(200), "not that of a call"),
        (MessageId::Ulong(1), SimpleValue::Int(200), "not that of a call"),
        (first_id, foreign, "IoThub-status must be a whole number"),
    ] {
        let Outcome::Rejected(rejected) = answer(&mut out, id, status, "{}").await else { panic!("{part}") };
        let words = format!("{:?}", rejected.error);
        assert!(words.contains(part), "{words}");
    }
}

#[tokio::test]
async fn a_device_is_there_for_its_methods_while_it_has_the_link() {
    let hub = hub();
    let mut client = signed_in(&hub).await;
    // A device with only a message link takes no calls.
    let _messages = client.receiver("/devices/dev1/messages/devicebound").await.expect("a link");
    let early = call(&hub, "early");
    assert!(matches!(end(&hub, early, Duration::ZERO), Err(CallError::NotOnline(_))));

    let mut link = client.receiver(METHODS).await.expect("a link");
    let silent = call(&hub, "silent");
    assert_eq!(called(&mut link).await.1, SimpleValue::String("silent".into()));
    assert_eq!(end(&hub, silent, Duration::from_secs(6)), Err(CallError::TimedOut));

    let lost = call(&hub, "lost");
    called(&mut link).await;
    let mut newer = signed_in(&hub).await;
    let mut newer_link = newer.receiver(METHODS).await.expect("a link");
    assert_eq!(end(&hub, lost, Duration::ZERO), Err(CallError::Gone));
    let stolen = link.recv::<Body<Value>>().await.expect_err("stolen");
    assert!(format!("{stolen:?}").contains("Stolen"), "{stolen:?}");
    let taken = call(&hub, "taken");
    assert_eq!(called(&mut newer_link).await.1, SimpleValue::String("taken".into()));
    hub.with(|hub, _| hub.forget_method("dev1", taken));

    // One of two links ends; the other continues.
    let second = newer.receiver(METHODS).await.expect("a link");
    second.close().await.expect("closed");
    // When another link is attached, the hub has already heard of that end.
    let mut out = newer.sender(METHODS).await.expect("a link");
    let still = call(&hub, "still");
    let (id, name, _) = called(&mut newer_link).await;
    assert_eq!(name, SimpleValue::String("still".into()));
    assert!(matches!(answer(&mut out, id, 200_i32, "1").await, Outcome::Accepted(_)));
    assert_eq!(end(&hub, still, Duration::ZERO), Ok((200, "1".into())));

    newer_link.close().await.expect("closed");
    let mut changed = hub.watch();
    let gone = |hub: &SharedHub| {
        let id = call(hub, "gone");
        let progress = hub.with(|hub, now| hub.method_progress("dev1", id, now));
        matches!(progress, CallProgress::Done(Err(CallError::NotOnline(_))))
    };
    while !gone(&hub) {
        tokio::time::timeout(Duration::from_secs(10), changed.changed())
            .await
            .expect("in time")
            .expect("a hub");
    }
}
