//! Back ends that read D2C messages as Event Hubs have them, and the addresses that send them there.

use fe2o3_amqp::link::{LinkStateError, RecvError};
use fe2o3_amqp::types::definitions::Fields;
use fe2o3_amqp::types::messaging::Source;
use fe2o3_amqp::types::primitives::OrderedMap;
use serde_amqp::described::Described;
use serde_amqp::descriptor::Descriptor;

use super::*;
use crate::emulator::hub::{MAX_READERS, partition_of};

const NAME: &str = "iothub-ehub-hub";
const FILTER: &str = "apache.org:selector-filter:string";

fn send(hub: &SharedHub, body: &'static str) {
    let properties = message::Properties::decode("%24.mid=m-1&%24.ctime=then&zone=north").expect("a bag");
    hub.with(|hub, now| hub.record_event("dev1", properties, body.into(), now));
}

fn partition() -> String {
    format!("{NAME}/ConsumerGroups/$Default/Partitions/{}", partition_of("dev1"))
}

async fn read(
    client: &mut Client,
    address: &str,
    selector: Option<&str>,
    epoch: Option<i64>,
) -> Result<Receiver, ReceiverAttachError> {
    let mut source = Source::builder().address(address);
    if let Some(selector) = selector {
        let described = Described {
            descriptor: Descriptor::Name(Symbol::from(FILTER)),
            value: Value::String(selector.to_owned()),
        };
        let mut filters = OrderedMap::new();
        filters.insert(Symbol::from(FILTER), Value::Described(Box::new(described)));
        source = source.filter(filters);
    }
    let mut fields = Fields::new();
    if let Some(epoch) = epoch {
        fields.insert(Symbol::from("com.microsoft:epoch"), Value::Long(epoch));
    }
    Receiver::builder()
        .name(uuid::Uuid::new_v4().to_string())
        .source(source.build())
        .properties(fields)
        .attach(&mut client.session)
        .await
}

async fn body(link: &mut Receiver) -> String {
    let received = tokio::time::timeout(Duration::from_secs(10), link.recv::<Body<Value>>()).await;
    let message = received.expect("in time").expect("a message").into_message();
    let Body::Data(sections) = message.body else { panic!("no data") };
    let bytes = sections.into_iter().flat_map(|section| section.0.into_vec()).collect();
    String::from_utf8(bytes).expect("UTF-8")
}

fn refusal(refused: Result<Receiver, ReceiverAttachError>) -> definitions::Error {
    match refused {
        Err(ReceiverAttachError::RemoteClosedWithError(error)) => error,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_reader_gets_what_came_before_and_what_comes_with_the_annotations_of_the_hub() {
    let hub = hub();
    send(&hub, "one");
    let mut client = Client::signed_in(&hub).await;
    let mut link = read(&mut client, &partition(), Some("amqp.annotation.x-opt-offset > '-1'"), None)
        .await
        .expect("a link");
    let delivery = link.recv::<Body<Value>>().await.expect("a message");
    let message = delivery.into_message();
    let annotations = message.message_annotations.expect("annotations").0;
    let annotation = |name: &str| annotations.get::<OwnedKey>(&Symbol::from(name).into()).cloned();
    let text = |text: &str| Some(Value::String(text.to_owned()));
    assert_eq!(annotation("iothub-connection-device-id"), text("dev1"));
    assert_eq!(annotation("iothub-message-source"), text("Telemetry"));
    let method = r#"{"scope":"device","type":"sas","issuer":"iothub","acceptingIpFilterRule":null}"#;
    assert_eq!(annotation("iothub-connection-auth-method"), text(method));
    assert_eq!(annotation("iothub-connection-auth-generation-id"), text(GENERATION));
    let stamp =
        Some(Value::Timestamp(Timestamp::from_milliseconds(i64::try_from(NOW).expect("a time") * 1000)));
    assert_eq!(
        (annotation("x-opt-enqueued-time"), annotation("iothub-enqueuedtime")),
        (stamp.clone(), stamp)
    );
    let Some(Value::Long(number)) = annotation("x-opt-sequence-number") else { panic!("no number") };
    assert_eq!(annotation("x-opt-offset"), text(&number.to_string()));
    assert_eq!(
        message.properties.and_then(|section| section.message_id),
        Some(MessageId::String("m-1".into()))
    );
    let application = message.application_properties.expect("application properties").0;
    let application: Vec<_> = application.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(application, ["iothub-creation-time-utc", "zone"]);

    send(&hub, "two");
    send(&hub, "three");
    assert_eq!((body(&mut link).await.as_str(), body(&mut link).await.as_str()), ("two", "three"));
    let from = format!("amqp.annotation.x-opt-sequence-number > '{number}'");
    let mut later = read(&mut client, &partition(), Some(&from), None).await.expect("a link");
    assert_eq!(body(&mut later).await, "two");
    let latest = Some("amqp.annotation.x-opt-offset > '@latest'");
    let mut last = read(&mut client, &partition(), latest, None).await.expect("a link");
    send(&hub, "four");
    assert_eq!(body(&mut last).await, "four");
    // A reader without a filter begins with what is kept, and the name's case does not count.
    let mut all = read(&mut client, &partition().to_lowercase(), None, None).await.expect("a link");
    assert_eq!(body(&mut all).await, "one");
}

#[tokio::test]
async fn a_higher_epoch_takes_a_partition_over_and_too_many_readers_are_refused() {
    let hub = hub();
    let mut client = Client::signed_in(&hub).await;
    let mut low = read(&mut client, &partition(), None, Some(1)).await.expect("a link");
    let mut other = Client::signed_in(&hub).await;
    let mut high = read(&mut other, &partition(), None, Some(2)).await.expect("a link");
    let lost = low.recv::<Body<Value>>().await.expect_err("stolen");
    let RecvError::LinkStateError(LinkStateError::RemoteClosedWithError(error)) = lost else {
        panic!("{lost:?}")
    };
    assert_eq!(condition(&error), "amqp:link:stolen");
    send(&hub, "one");
    assert_eq!(body(&mut high).await, "one");
    let error = refusal(read(&mut Client::signed_in(&hub).await, &partition(), None, Some(1)).await);
    assert_eq!(condition(&error), "amqp:link:stolen");
    assert!(error.description.is_some_and(|words| words.contains("the epoch 2")));
    let group = partition().replace("$Default", "own");
    let mut links = Vec::new();
    for _ in 0..MAX_READERS {
        links.push(read(&mut other, &group, None, None).await.expect("a link"));
    }
    let error = refusal(read(&mut Client::signed_in(&hub).await, &group, None, None).await);
    assert_eq!(condition(&error), "amqp:resource-limit-exceeded");
}

#[tokio::test]
async fn addresses_filters_and_rights_that_are_not_known_are_refused_in_words() {
    let hub = hub();
    let partition = partition();
    let other = partition.replace(NAME, "other");
    let beyond = format!("{NAME}/ConsumerGroups/$Default/Partitions/4");
    let group = format!("{NAME}/ConsumerGroups/a b/Partitions/0");
    for (address, selector, expected, part) in [
        (&other, None, "amqp:not-found", "its name is iothub-ehub-hub"),
        (&beyond, None, "amqp:not-found", "they are 0 to 3"),
        (&group, None, "amqp:not-found", "\"a b\" is not the name of a consumer group"),
        (&partition, Some("offset > 1"), "com.microsoft:argument-error", "\"offset > 1\" is not known"),
    ] {
        let error = refusal(read(&mut Client::signed_in(&hub).await, address, selector, None).await);
        assert_eq!(condition(&error), expected, "{address}");
        let words = error.description.unwrap_or_default();
        assert!(words.contains(part), "{words}");
    }
    let error = refusal(read(&mut device::signed_in(&hub).await, &partition, None, None).await);
    assert_eq!(condition(&error), "amqp:unauthorized-access");
    let refused = Client::signed_in(&hub).await.sender(&partition).await.expect_err("refused");
    assert!(format!("{refused:?}").contains("can be read here, not sent"), "{refused:?}");
}

#[tokio::test]
async fn the_hubs_own_address_redirects_to_the_event_hub() {
    let hub = hub();
    hub.with(|hub, _| hub.serve_events_at(15671));
    for below in ["$management", "ConsumerGroups/$Default/Partitions/0", ""] {
        let address = format!("amqps://hub.local.test/messages/events/{below}");
        let error = refusal(Client::signed_in(&hub).await.receiver(&address).await);
        assert_eq!(condition(&error), "amqp:link:redirect");
        let info = error.info.expect("where it is");
        let field = |name: &str| info.get(&Symbol::from(name)).cloned();
        let text = |text: &str| Some(Value::String(text.to_owned()));
        assert_eq!(field("hostname"), text("hub.local.test:15671"));
        assert_eq!(
            (field("network-host"), field("port")),
            (text("hub.local.test"), Some(Value::Uint(15671)))
        );
        let whole = format!("amqps://hub.local.test:15671/{NAME}/{below}");
        assert_eq!(field("address"), text(whole.trim_end_matches('/')));
    }
    let error = refusal(Client::open(&hub, None).await.expect("open").receiver("messages/events").await);
    assert_eq!(condition(&error), "amqp:unauthorized-access");
}

#[tokio::test]
async fn the_link_for_file_notifications_stays_silent() {
    let hub = hub();
    let mut client = Client::signed_in(&hub).await;
    let mut link = client.receiver("/messages/serviceBound/FileNotifications").await.expect("a link");
    send(&hub, "one");
    assert!(link.recv::<Body<Value>>().now_or_never().is_none());
    link.close().await.expect("closed by the client, and not before");
    let refused = device::signed_in(&hub).await.receiver("/messages/servicebound/filenotifications").await;
    assert_eq!(condition(&refusal(refused)), "amqp:unauthorized-access");
}

#[tokio::test]
async fn a_token_for_the_event_hub_reads_and_does_nothing_else() {
    let hub = hub();
    send(&hub, "one");
    let mut client = Client::open(&hub, Some(SaslProfile::Anonymous)).await.expect("anonymous");
    let mut requests = client.sender("$cbs").await.expect("a link");
    let mut replies = client.receiver("$cbs").await.expect("a link");
    let mut put = async |resource: &str, policy: Option<(&str, u8)>| {
        let expiry = now() + Duration::from_secs(3600);
        let (policy, byte) = policy.map_or((None, 30), |(policy, byte)| (Some(policy), byte));
        let token = SasToken::sign(&key(byte), resource, policy, expiry).expose().to_owned();
        requests.send(put_token(token)).await.expect("an outcome");
        let delivery = replies.recv::<AmqpValue<Value>>().await.expect("a reply");
        replies.accept(&delivery).await.expect("settled");
        let application = delivery.into_message().application_properties.expect("properties").0;
        let Some(SimpleValue::String(words)) = application.get("status-description").cloned() else {
            panic!("no words")
        };
        (application.get("status-code").cloned().expect("a code"), words)
    };
    let resource = "sb://hub.local.test/iothub-ehub-hub/ConsumerGroups/$Default/Partitions/0";
    assert_eq!(put(resource, Some(("device", 20))).await.0, SimpleValue::Int(401));
    assert_eq!(put(resource, Some(("service", 99))).await.0, SimpleValue::Int(401));
    let (status, words) = put("hub.local.test/devices/dev1/modules/m", None).await;
    assert_eq!(status, SimpleValue::Int(501));
    assert!(words.contains("modules over MQTT only"), "{words}");
    assert_eq!(put(resource, Some(("service", 10))).await.0, SimpleValue::Int(200));
    let mut link = read(&mut client, &partition(), None, None).await.expect("a link");
    assert_eq!(body(&mut link).await, "one");
    // Clients of Event Hubs sign with the text of the key.
    let text = SharedAccessKey::from_bytes(key(10).expose_base64());
    let token = SasToken::sign(&text, resource, Some("service"), now() + Duration::from_secs(3600));
    let mut other = Client::open(&hub, Some(SaslProfile::Anonymous)).await.expect("anonymous");
    let mut requests = other.sender("$cbs").await.expect("a link");
    requests.send(put_token(token.expose().to_owned())).await.expect("an outcome");
    let mut link = read(&mut other, &partition(), None, None).await.expect("a link");
    assert_eq!(body(&mut link).await, "one");
    let refused = client.sender("/messages/devicebound").await.expect_err("refused");
    assert!(format!("{refused:?}").contains("UnauthorizedAccess"), "{refused:?}");
}

/// A request to `$cbs`.
pub(super) fn put_token(token: String) -> Message<AmqpValue<Value>> {
    let application = ApplicationProperties::builder()
        .insert("operation", "put-token")
        .insert("type", "servicebus.windows.net:sastoken");
    Message::builder().application_properties(application.build()).value(Value::String(token)).build()
}

#[tokio::test]
async fn management_tells_of_the_event_hub_and_its_partitions() {
    let hub = hub();
    send(&hub, "one");
    let mut client = Client::signed_in(&hub).await;
    let mut requests = client.sender("$management").await.expect("a link");
    let mut replies = client.receiver("$management").await.expect("a link");
    let mut ask = async |fields: &[(&str, &str)]| {
        let builder = ApplicationProperties::builder();
        let asked = fields.iter().fold(builder, |all, (name, value)| all.insert(*name, *value));
        let properties = Properties { message_id: Some(MessageId::Ulong(7)), ..Properties::default() };
        let request = Message::builder().properties(properties).application_properties(asked.build());
        requests.send(request.value(Value::Null).build()).await.expect("an outcome");
        let delivery = replies.recv::<AmqpValue<Value>>().await.expect("a reply");
        replies.accept(&delivery).await.expect("settled");
        let message = delivery.into_message();
        let id = message.properties.and_then(|properties| properties.correlation_id);
        assert_eq!(id, Some(MessageId::Ulong(7)));
        let application = message.application_properties.expect("properties").0;
        let field = |name: &str| application.get(name).cloned().expect("a field");
        (field("status-code"), field("status-description"), message.body.0)
    };
    let ok = SimpleValue::Int(200);
    let (read, eventhub) = (("operation", "READ"), ("type", "com.microsoft:eventhub"));
    let (status, _, Value::Map(map)) = ask(&[read, eventhub, ("name", NAME)]).await else { panic!("no map") };
    let field =
        |map: &OrderedMap<Value, Value>, name: &str| map.get(&Value::String(name.to_owned())).cloned();
    assert_eq!((status, field(&map, "partition_count")), (ok.clone(), Some(Value::Int(4))));
    let Some(Value::Array(ids)) = field(&map, "partition_ids") else { panic!("no ids") };
    assert_eq!(ids.0.len(), 4);
    let own = partition_of("dev1").to_string();
    let kind = ("type", "com.microsoft:partition");
    let asked = [read, kind, ("name", NAME), ("partition", own.as_str())];
    let (status, _, Value::Map(map)) = ask(&asked).await else { panic!("no map") };
    assert_eq!((status, field(&map, "is_partition_empty")), (ok, Some(Value::Bool(false))));
    let first = field(&map, "begin_sequence_number");
    assert_eq!(first, field(&map, "last_enqueued_sequence_number"));
    for (fields, code, part) in [
        (vec![("operation", "DELETE"), eventhub, ("name", NAME)], 400, "no operation \"DELETE\""),
        (vec![read, eventhub, ("name", "other")], 404, "its name is iothub-ehub-hub"),
        (vec![read, ("type", "x"), ("name", NAME)], 400, "no type \"x\""),
        (vec![read, kind, ("name", NAME), ("partition", "9")], 404, "no partition \"9\""),
    ] {
        let (status, words, _) = ask(&fields).await;
        assert_eq!(status, SimpleValue::Int(code));
        assert!(format!("{words:?}").contains(&part.replace('"', "\\\"")), "{words:?}");
    }
}
