//! D2C messages over AMQP: single ones and batches of devices, and their limits.

use fe2o3_amqp::link::SendError;
use fe2o3_amqp::link::delivery::Sendable;
use fe2o3_amqp::types::messaging::Batch;

use super::device::signed_in;
use super::*;
use crate::emulator::hub::D2cMessage;

const EVENTS: &str = "/devices/dev1/messages/events";

pub(super) fn events(hub: &SharedHub) -> Vec<D2cMessage> {
    hub.with(|hub, _| hub.events("dev1").expect("the device").cloned().collect())
}

/// A batch as the C SDK sends it: each data section is an encoded message.
fn batch(messages: &[Vec<u8>]) -> Sendable<Body<Value>> {
    let sections = messages.iter().map(|bytes| Data(Binary::from(bytes.clone()))).collect::<Vec<_>>();
    let message = Message::builder().body(Body::<Value>::Data(Batch::new(sections))).build();
    Sendable::builder().message(message).message_format(0x8001_3700).build()
}

/// Text with its length in one byte.
fn short(code: u8, text: &str) -> Vec<u8> {
    [&[code, u8::try_from(text.len()).expect("short")][..], text.as_bytes()].concat()
}

/// A list or map with its size and count in one byte each.
fn compound(code: u8, elements: &[Vec<u8>]) -> Vec<u8> {
    let inside = elements.concat();
    let size = u8::try_from(inside.len() + 1).expect("short");
    [&[code, size, u8::try_from(elements.len()).expect("few")][..], &inside].concat()
}

/// A message in the bytes of `message_create_uamqp_encoding_from_iothub_message`: properties, application properties,
/// annotations and data, in this order.
fn of_the_c_sdk(id: &str, body: &str) -> Vec<u8> {
    let properties = compound(0xc0, &[short(0xa1, id)]);
    let created = [short(0xa1, "iothub-creation-time-utc"), short(0xa1, "2026-11-30T10:00:00Z")];
    let application = compound(0xc1, &[&created[..], &[short(0xa1, "zone"), short(0xa1, "north")]].concat());
    let annotations = compound(0xc1, &[short(0xa3, "iothub-interface-id"), short(0xa1, "urn:i")]);
    let data = short(0xa0, body);
    [
        &b"\x00\x53\x73"[..],
        &properties,
        b"\x00\x53\x74",
        &application,
        b"\x00\x53\x72",
        &annotations,
        b"\x00\x53\x75",
        &data,
    ]
    .concat()
}

#[tokio::test]
async fn each_message_of_a_batch_is_an_event_with_its_own_properties() {
    let hub = hub();
    let mut client = signed_in(&hub).await;
    let mut link = client.sender(EVENTS).await.expect("a link");
    let sent = link.send(batch(&[of_the_c_sdk("m-1", "one"), of_the_c_sdk("m-2", "two")])).await;
    assert!(matches!(sent, Ok(Outcome::Accepted(_))), "{sent:?}");
    let events = events(&hub);
    let seen: Vec<_> = events.iter().map(|event| (event.properties.get("$.mid"), &event.body[..])).collect();
    assert_eq!(seen, [(Some("m-1"), &b"one"[..]), (Some("m-2"), b"two")]);
    let properties: Vec<_> = events[0].properties.iter().collect();
    let created = ("$.ctime", Some("2026-11-30T10:00:00Z"));
    assert_eq!(properties, [("$.mid", Some("m-1")), created, ("zone", Some("north"))]);
}

#[tokio::test]
async fn a_batch_with_a_message_that_cannot_be_read_is_refused_as_a_whole() {
    let hub = hub();
    let mut client = signed_in(&hub).await;
    let mut link = client.sender(EVENTS).await.expect("a link");
    let good = of_the_c_sdk("m-1", "one");
    let cut = good[..good.len() - 1].to_vec();
    let without_body = good[..good.len() - 8].to_vec();
    let lists = (0..1000_u32).fold(vec![0x45], |inside: Vec<u8>, _| {
        let size = u32::try_from(inside.len() + 4).expect("short").to_be_bytes();
        [&[0xd0][..], &size, &1_u32.to_be_bytes(), &inside].concat()
    });
    let nested = [&b"\x00\x53\x77"[..], &lists].concat();
    for (bad, reason) in [
        (cut, "it is malformed"),
        (without_body, "it has no body"),
        (Vec::new(), "it has no body"),
        (nested, "its values nest more than 16 deep"),
        (b"\x00\x53\x77\xc0\x01\x00".to_vec(), "neither data nor text"),
    ] {
        let sent = link.send(batch(&[good.clone(), bad])).await.expect("an outcome");
        let (condition, words, tracked) = rejection(sent);
        assert_eq!((condition.as_str(), tracked), ("com.microsoft:argument-error", true));
        assert!(words.contains(reason), "{words}");
    }
    assert_eq!(events(&hub), [], "nothing of these batches is stored");
    let other = Sendable::builder().message(c2d("m".to_owned())).message_format(7).build();
    let (_, words, _) = rejection(link.send(other).await.expect("an outcome"));
    assert!(words.contains("0x00000007 is not known"), "{words}");
    let sent = link.send(batch(&[good])).await;
    assert!(matches!(sent, Ok(Outcome::Accepted(_))), "the link goes on: {sent:?}");
    assert_eq!(events(&hub).len(), 1);
}

#[tokio::test]
async fn a_link_for_events_says_its_limit_of_256_kib() {
    let hub = hub();
    let mut client = signed_in(&hub).await;
    let mut link = client.sender(EVENTS).await.expect("a link");
    assert_eq!(link.max_message_size(), Some(256 * 1024));
    let most = Message::builder().data(Data(Binary::from(vec![0; 256 * 1024 - 8]))).build();
    assert!(matches!(link.send(most).await, Ok(Outcome::Accepted(_))));
    // This client heeds the limit; `tests/it/conformance` has one that does not.
    let more = Message::builder().data(Data(Binary::from(vec![0; 256 * 1024]))).build();
    let sent = link.send(more).await;
    assert!(matches!(sent, Err(SendError::MessageSizeExceeded(_))), "{sent:?}");
    assert_eq!(events(&hub).len(), 1);
}

#[tokio::test]
async fn the_creation_time_is_a_system_property_wherever_the_client_writes_it() {
    let hub = hub();
    let mut client = signed_in(&hub).await;
    let mut link = client.sender(EVENTS).await.expect("a link");
    let mut in_properties = c2d("m-1".to_owned());
    let created = Timestamp::from_milliseconds(1_796_032_800_000);
    in_properties.properties.as_mut().expect("properties").creation_time = Some(created);
    let mut in_application = c2d("m-2".to_owned());
    let text = SimpleValue::String("2026-11-30T10:00:00Z".to_owned());
    let application = in_application.application_properties.as_mut().expect("properties");
    application.0.insert("iothub-creation-time-utc".to_owned(), text);
    for message in [in_properties, in_application] {
        assert!(matches!(link.send(message).await, Ok(Outcome::Accepted(_))));
    }
    let times: Vec<_> =
        events(&hub).iter().map(|event| event.properties.get("$.ctime").map(str::to_owned)).collect();
    let expected = ["2026-11-30T10:00:00.0000000Z", "2026-11-30T10:00:00Z"];
    assert_eq!(times, expected.map(|time| Some(time.to_owned())));
    assert!(events(&hub).iter().all(|event| !event.properties.contains("iothub-creation-time-utc")));
}
