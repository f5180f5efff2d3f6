//! D2C messages over AMQP, in the bytes of the C SDK, and links that Node attaches.
//!
//! Owns: batches and transfers in parts. Must not know: how bytes are made (`frames`).
//! Source: `uamqp_messaging.c` and `iothubtransport_amqp_telemetry_messenger.c` of the C SDK.

use super::{Value, attach, device, error, sent, service, transfer};
use crate::frames::{
    APPLICATION_PROPERTIES, DATA, DETACH, DISPOSITION, MESSAGE_ANNOTATIONS, PROPERTIES, Peer, REJECTED,
    message,
};
use crate::harness::Emulator;
use crate::rest::service_token;
use crate::rest_ask::ask;

const EVENTS: &str = "amqps://localhost/devices/dev1/messages/events";
const BATCH: u32 = 0x8001_3700;

/// A batch: each data section is one message, and its annotations come after its properties.
fn batch(ids: &[&str]) -> Vec<u8> {
    let one = |id: &&str| {
        let zone = Value::Map(vec![(Value::text("zone"), Value::text("north"))]);
        let interface = Value::Map(vec![(Value::symbol("iothub-interface-id"), Value::text("urn:i"))]);
        let bytes = message(&[
            (PROPERTIES, Value::List(vec![Value::text(id)])),
            (APPLICATION_PROPERTIES, zone),
            (MESSAGE_ANNOTATIONS, interface),
            (DATA, Value::Binary(b"{}".to_vec())),
        ]);
        (DATA, Value::Binary(bytes))
    };
    message(&ids.iter().map(one).collect::<Vec<_>>())
}

fn outcome(peer: &mut Peer) -> Value {
    peer.expect(DISPOSITION).field(4).clone()
}

/// The message ids that the emulator shows.
fn stored(emulator: &Emulator) -> Vec<String> {
    let token = service_token(emulator);
    let shown = ask(emulator, "GET /emulator/devices/dev1/events", &token, "", b"").json();
    let shown = shown.as_array().expect("a list");
    let id = |event: &serde_json::Value| event["systemProperties"]["$.mid"].as_str().map(str::to_owned);
    shown.iter().map(|event| id(event).unwrap_or_default()).collect()
}

#[test]
fn each_message_of_a_batch_is_stored_or_none() {
    let emulator = Emulator::start();
    let mut peer = device(&emulator);
    attach(&mut peer, 0, false, EVENTS, 0);
    transfer(&mut peer, 0, 0, BATCH, &batch(&["m-1", "m-2"]));
    assert_eq!(outcome(&mut peer), super::accepted());
    // The last message is cut off, in its data.
    let mut cut = batch(&["m-3"]);
    cut.extend(message(&[(DATA, Value::Binary(b"\x00\x53\x75\xa0\x05ab".to_vec()))]));
    let lists = (0..1_000).fold(Value::List(Vec::new()), |inside, _| {
        let mut bytes = Vec::new();
        Value::List(vec![inside]).encode(&mut bytes);
        Value::Raw(bytes)
    });
    let mut deep = batch(&["m-4"]);
    deep.extend(message(&[(DATA, Value::Binary(message(&[(0x77, lists)])))]));
    for (delivery, bytes) in [(1, cut), (2, deep)] {
        transfer(&mut peer, 0, delivery, BATCH, &bytes);
        let Value::Described(REJECTED, refused) = outcome(&mut peer) else { panic!("{delivery}: taken") };
        let expected = ("com.microsoft:argument-error".to_owned(), true, Some(400_003));
        assert_eq!(error(&refused.fields()[0]), expected);
    }
    transfer(&mut peer, 0, 3, BATCH, &batch(&["m-5"]));
    assert_eq!(outcome(&mut peer), super::accepted());
    assert_eq!(stored(&emulator), ["m-1", "m-2", "m-5"]);
}

#[test]
fn a_message_or_batch_above_256_kib_ends_its_link() {
    let emulator = Emulator::start();
    let large = |bytes: usize| message(&[(DATA, Value::Binary(vec![0; bytes]))]);
    let batch = |bytes: usize| {
        message(&[(DATA, Value::Binary(large(bytes / 2))), (DATA, Value::Binary(large(bytes / 2)))])
    };
    for (format, bytes) in [
        (0, large(300 * 1024)),
        (0, large(900 * 1024)),
        (0, large(2 * 1024 * 1024)),
        (BATCH, batch(300 * 1024)),
    ] {
        let mut peer = device(&emulator);
        let attached = attach(&mut peer, 0, false, EVENTS, 0);
        assert_eq!(attached.field(10), &Value::Ulong(256 * 1024), "max-message-size: {attached:?}");
        transfer(&mut peer, 0, 0, format, &bytes);
        let detach = peer.expect(DETACH);
        let size = "amqp:link:message-size-exceeded";
        let Value::Symbol(condition) = &detach.field(2).fields()[0] else { panic!("{detach:?}") };
        assert_eq!(condition, size);
    }
    let mut peer = device(&emulator);
    attach(&mut peer, 0, false, EVENTS, 0);
    transfer(&mut peer, 0, 0, 0, &large(256 * 1024 - 8));
    assert_eq!(outcome(&mut peer), super::accepted());
    assert_eq!(stored(&emulator).len(), 1);
}

#[test]
fn a_late_answer_of_a_method_is_accepted() {
    let emulator = Emulator::start();
    let mut peer = device(&emulator);
    attach(&mut peer, 0, false, "amqps://localhost/devices/dev1/methods/devicebound", 0);
    let id: [u8; 16] = *b"c2d-call\0\0\0\0\0\0\0\x07";
    let properties = [vec![Value::Null; 5], vec![Value::Uuid(id)]].concat();
    let status = Value::Map(vec![(Value::text("IoThub-status"), Value::Int(200))]);
    let answer = [
        (PROPERTIES, Value::List(properties)),
        (APPLICATION_PROPERTIES, status),
        (DATA, Value::Binary(b"{}".to_vec())),
    ];
    assert_eq!(sent(&mut peer, 0, 0, &answer), super::accepted());
    emulator.process.stderr.wait_for("no call waits for this answer");
}

#[test]
fn the_link_of_file_notifications_stays_and_brings_nothing() {
    let emulator = Emulator::start();
    let mut peer = service(&emulator);
    let attached = attach(&mut peer, 0, true, "/messages/serviceBound/filenotifications", 0);
    assert_ne!(attached.field(5), &Value::Null, "a source, so it is attached: {attached:?}");
    // Another link is answered next, so nothing came before it.
    attach(&mut peer, 1, true, "/messages/serviceBound/feedback", 0);
    peer.send(0, DETACH, vec![Value::Uint(0), Value::Bool(true)], &[]);
    let detach = peer.expect(DETACH);
    assert_eq!(detach.field(2), &Value::Null, "no error: {detach:?}");
}
