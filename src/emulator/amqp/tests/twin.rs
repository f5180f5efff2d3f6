//! A device's twin over AMQP: requests, answers, changes of desired properties.

use serde_json::json;

use super::device::{next, signed_in};
use super::*;
use crate::emulator::hub::{Fault, TwinWrite};

const TWIN: &str = "amqps://hub.local.test/devices/dev%31/twin";
const DESIRED: &str = "/notifications/twin/properties/desired";

fn common(name: &str) -> definitions::Fields {
    let mut fields = definitions::Fields::new();
    fields.insert(Symbol::from("com.microsoft:channel-correlation-id"), Value::String(name.to_owned()));
    fields
}

/// The two links of a pair.
async fn pair(client: &mut Client, name: &str) -> (Sender, Receiver) {
    let receiver = Receiver::builder().name(format!("{name}-in")).source(TWIN).properties(common(name));
    let receiver = receiver.attach(&mut client.session).await.expect("a link");
    let sender = Sender::builder().name(format!("{name}-out")).target(TWIN).properties(common(name));
    (sender.attach(&mut client.session).await.expect("a link"), receiver)
}

async fn ask(link: &mut Sender, id: impl Into<MessageId>, operation: &str, resource: &str, body: &str) {
    let annotations = fe2o3_amqp::types::messaging::MessageAnnotations::builder()
        .insert(Symbol::from("operation"), Value::String(operation.to_owned()))
        .insert(Symbol::from("resource"), Value::String(resource.to_owned()));
    let properties = Properties { correlation_id: Some(id.into()), ..Properties::default() };
    let request = Message::builder()
        .message_annotations(annotations.build())
        .properties(properties)
        .data(Data(Binary::from(body.as_bytes().to_vec())))
        .build();
    let outcome = link.send(request).await.expect("an outcome");
    assert!(matches!(outcome, Outcome::Accepted(_)), "{outcome:?}");
}

/// Correlation id, annotation and body of the next message.
async fn told(
    link: &mut Receiver,
    name: &'static str,
) -> (Option<MessageId>, Option<Value>, serde_json::Value) {
    let delivery = next(link).await;
    link.accept(&delivery).await.expect("accepted");
    let message = delivery.into_message();
    let annotations = message.message_annotations.expect("annotations").0;
    let annotation = annotations.get::<OwnedKey>(&Symbol::from(name).into()).cloned();
    let Body::Data(sections) = message.body else { panic!("no data") };
    let body: Vec<u8> = sections.into_iter().flat_map(|section| section.0.into_vec()).collect();
    let body = if body.is_empty() { json!(null) } else { serde_json::from_slice(&body).expect("JSON") };
    (message.properties.and_then(|properties| properties.correlation_id), annotation, body)
}

fn write(hub: &SharedHub, desired: serde_json::Value) {
    let desired = desired.as_object().cloned();
    let written =
        hub.with(|hub, now| hub.write_twin("dev1", TwinWrite::Patch { tags: None, desired }, None, now));
    written.expect("written");
}

#[tokio::test]
async fn a_device_reports_and_gets_its_twin() {
    let hub = hub();
    let mut client = signed_in(&hub).await;
    let (mut out, mut link) = pair(&mut client, "twin:1").await;
    // An answer has the id in the type of the request's id.
    let id = MessageId::Uuid(Uuid::from([7; 16]));
    ask(&mut out, id.clone(), "PATCH", "/properties/reported/", r#"{"led": "on"}"#).await;
    assert_eq!(told(&mut link, "version").await, (Some(id), Some(Value::Long(2)), json!(null)));
    ask(&mut out, "2".to_owned(), "GET", "", " ").await;
    let expected = json!({ "desired": { "$version": 1 }, "reported": { "led": "on", "$version": 2 } });
    let id = Some(MessageId::String("2".into()));
    assert_eq!(told(&mut link, "status").await, (id, Some(Value::Int(200)), expected));
    for (operation, resource, body, part) in [
        ("PATCH", "/properties/reported", "[1]", "the reported properties must be a JSON object"),
        ("PATCH", "/properties/reported", "no JSON", "it is not JSON"),
        ("PATCH", "/properties/desired", "{}", "a twin has no operation"),
        ("HEAD", "", "", "a twin has no operation \"HEAD\" on \"\""),
    ] {
        ask(&mut out, 3, operation, resource, body).await;
        let (id, status, body) = told(&mut link, "status").await;
        assert_eq!((id, status), (Some(MessageId::Ulong(3)), Some(Value::Int(400))));
        assert_eq!(body["errorCode"], 400_004);
        assert!(body["message"].as_str().is_some_and(|words| words.contains(part)), "{body}");
    }
    assert_eq!(hub.with(|hub, _| hub.twin("dev1").expect("a twin")["version"].clone()), 3);
}

#[tokio::test]
async fn a_device_hears_of_desired_properties_from_put_to_delete() {
    let hub = hub();
    let mut client = signed_in(&hub).await;
    let (mut out, mut link) = pair(&mut client, "twin:1").await;
    write(&hub, json!({ "n": 1 }));
    ask(&mut out, "1".to_owned(), "PUT", DESIRED, "").await;
    assert_eq!(told(&mut link, "status").await.1, Some(Value::Int(200)));
    write(&hub, json!({ "n": 2 }));
    write(&hub, json!({ "n": null }));
    for expected in [json!({ "n": 2, "$version": 3 }), json!({ "n": null, "$version": 4 })] {
        let resource = Some(Value::String(DESIRED.into()));
        assert_eq!(told(&mut link, "resource").await, (None, resource, expected));
    }
    ask(&mut out, "2".to_owned(), "DELETE", DESIRED, " ").await;
    assert_eq!(told(&mut link, "status").await.1, Some(Value::Int(200)));
    write(&hub, json!({ "n": 3 }));
    ask(&mut out, "3".to_owned(), "GET", "", " ").await;
    assert_eq!(told(&mut link, "status").await.2["desired"], json!({ "n": 3, "$version": 5 }));
}

#[tokio::test]
async fn answers_come_on_the_link_of_the_same_pair_and_a_newer_connection_takes_it() {
    let hub = hub();
    let mut client = signed_in(&hub).await;
    let (mut out, mut link) = pair(&mut client, "twin:1").await;
    let (mut other_out, mut other) = pair(&mut client, "twin:2").await;
    ask(&mut other_out, "other".to_owned(), "GET", "", " ").await;
    ask(&mut out, "own".to_owned(), "GET", "", " ").await;
    assert_eq!(told(&mut link, "status").await.0, Some(MessageId::String("own".into())));
    assert_eq!(told(&mut other, "status").await.0, Some(MessageId::String("other".into())));

    // A pair that did not ask for changes must not take them from the pair that did.
    ask(&mut out, "put".to_owned(), "PUT", DESIRED, "").await;
    assert_eq!(told(&mut link, "status").await.1, Some(Value::Int(200)));
    write(&hub, json!({ "n": 1 }));
    assert_eq!(told(&mut link, "resource").await.2, json!({ "n": 1, "$version": 2 }));
    ask(&mut other_out, "no".to_owned(), "DELETE", DESIRED, " ").await;
    assert_eq!(told(&mut other, "status").await.1, Some(Value::Int(200)));
    write(&hub, json!({ "n": 2 }));
    assert_eq!(told(&mut link, "resource").await.2, json!({ "n": 2, "$version": 3 }));

    assert!(hub.with(|hub, _| hub.set_fault("dev1", Fault::Throttle)));
    ask(&mut out, "often".to_owned(), "GET", "", " ").await;
    let (id, status, body) = told(&mut link, "status").await;
    assert_eq!((id, status), (Some(MessageId::String("often".into())), Some(Value::Int(429))));
    assert_eq!(body["errorCode"], 429_001);
    hub.with(|hub, _| hub.clear_faults("dev1", None));
    let mut newer = signed_in(&hub).await;
    let (_out, _link) = pair(&mut newer, "twin:1").await;
    let lost = link.recv::<Body<Value>>().await.expect_err("stolen");
    assert!(format!("{lost:?}").contains("Stolen"), "{lost:?}");

    let refused = client.receiver("/devices/dev2/twin").await.expect_err("refused");
    let ReceiverAttachError::RemoteClosedWithError(error) = refused else { panic!("{refused:?}") };
    assert_eq!(condition(&error), "amqp:not-found");
}
