//! Lines 16 and 18: what a hub delivers over AMQP, to devices and to readers of feedback.
//!
//! Owns: credit and dispositions of a receiver. Must not know: how bytes are made (`frames`).

use std::time::{Duration, SystemTime};

use c2d_agent::credentials::SharedAccessKey;
use c2d_agent::emulator::hub::{Hub, QueuedMessage};
use c2d_agent::emulator::registry::{Device, DeviceCredential, KeyPair, Registry};
use c2d_agent::feedback::DeliveryAck;
use c2d_agent::message::{self, C2dMessage};

use super::{OF_DEV1, attach, device, service};
use crate::frames::{
    ACCEPTED, APPLICATION_PROPERTIES, DATA, DISPOSITION, FLOW, Frame, MESSAGE_ANNOTATIONS, PROPERTIES, Peer,
    REJECTED, RELEASED, TRANSFER, Value,
};
use crate::harness::Emulator;

const FEEDBACK: &str = "/messages/serviceBound/feedback";

/// Grants credit on a link.
pub(super) fn give_credit(peer: &mut Peer, handle: u32, credit: u32) {
    let window = || Value::Uint(1_000);
    let fields = vec![
        Value::Uint(0),
        window(),
        Value::Uint(0),
        window(),
        Value::Uint(handle),
        Value::Uint(0),
        Value::Uint(credit),
    ];
    peer.send(0, FLOW, fields, &[]);
}

/// Settles a delivery.
pub(super) fn settle(peer: &mut Peer, delivery: &Frame, outcome: u64) {
    decide(peer, delivery, outcome, true);
}

/// Decides on a delivery. If the decision is unsettled, the hub must answer.
fn decide(peer: &mut Peer, delivery: &Frame, outcome: u64, settled: bool) {
    let id = delivery.field(1).clone();
    let outcome = Value::composite(outcome, Vec::new());
    let fields = vec![Value::Bool(true), id, Value::Null, Value::Bool(settled), outcome];
    peer.send(0, DISPOSITION, fields, &[]);
}

/// The state in the answer to a decision. The answer must be settled, from the sender, and for this delivery.
#[track_caller]
fn answer(peer: &mut Peer, delivery: &Frame) -> Value {
    let answer = peer.expect(DISPOSITION);
    assert_eq!(answer.field(0), &Value::Bool(false), "from the sender: {answer:?}");
    assert_eq!((answer.field(1), answer.field(3)), (delivery.field(1), &Value::Bool(true)), "{answer:?}");
    answer.field(4).clone()
}

/// The lock token in the tag as text. The tag has the bytes of a .NET GUID.
#[track_caller]
fn token_in_tag(delivery: &Frame) -> String {
    let Value::Binary(tag) = delivery.field(2) else { panic!("no tag: {delivery:?}") };
    let tag: [u8; 16] = tag.as_slice().try_into().expect("16 bytes");
    let [a, b, c, d, e, f, g, h, rest @ ..] = tag;
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let (first, second) = (hex(&[d, c, b, a]), hex(&[f, e]));
    format!("{first}-{second}-{}-{}-{}", hex(&[h, g]), hex(&rest[..2]), hex(&rest[2..]))
}

/// Asserts that a value is a time of this minute, in milliseconds.
#[track_caller]
fn is_now(value: Option<&Value>) {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("a clock").as_millis();
    let Some(Value::Timestamp(time)) = value else { panic!("no timestamp: {value:?}") };
    let ago = i128::try_from(now).expect("small") - i128::from(*time);
    assert!((-1_000..60_000).contains(&ago), "{ago} ms ago");
}

#[test]
fn line_16_a_device_gets_unsettled_deliveries_with_a_guid_and_is_answered_when_it_settles_second() {
    let emulator = Emulator::start();
    for settle_mode in [0, 1] {
        let mut peer = device(&emulator);
        let attached = attach(&mut peer, 4, true, OF_DEV1, settle_mode);
        let granted = match attached.field(4) {
            Value::Null => 0,
            Value::Ubyte(mode) => *mode,
            other => panic!("{other:?}"),
        };
        assert_eq!(granted, settle_mode, "as was asked for");
        assert_ne!(attached.field(3), &Value::Ubyte(1), "unsettled: {attached:?}");
        give_credit(&mut peer, 4, 100);
        let large = "y".repeat(60_000);
        for (n, (outcome, body)) in
            [(RELEASED, "x"), (ACCEPTED, "x"), (REJECTED, large.as_str())].into_iter().enumerate()
        {
            if outcome != ACCEPTED {
                let id = format!("m-{settle_mode}-{n}");
                emulator
                    .send("dev1", &["--message-id", &id, "--data", body, "--property", "a=b", "--ack=full"]);
            }
            let delivery = peer.expect(TRANSFER);
            assert_ne!(delivery.field(4), &Value::Bool(true), "unsettled: {delivery:?}");
            let annotations = delivery.section(MESSAGE_ANNOTATIONS);
            let token = token_in_tag(&delivery);
            assert_eq!(annotations.get("x-opt-lock-token"), Some(&Value::text(&token)));
            // The second delivery has the first message, which was given back.
            let (number, count) = match outcome {
                RELEASED => (1 + 2 * u64::from(settle_mode), 0),
                ACCEPTED => (1 + 2 * u64::from(settle_mode), 1),
                _ => (2 + 2 * u64::from(settle_mode), 0),
            };
            assert_eq!(annotations.get("x-opt-sequence-number"), Some(&Value::Ulong(number)));
            assert_eq!(annotations.get("iothub-deliverycount"), Some(&Value::Ubyte(count)));
            is_now(annotations.get("iothub-enqueuedtime"));
            let properties = delivery.section(PROPERTIES);
            assert_eq!(properties.fields().get(2), Some(&Value::text(OF_DEV1)));
            let application = delivery.section(APPLICATION_PROPERTIES);
            assert_eq!(application.get("a"), Some(&Value::text("b")));
            assert_eq!(application.get("iothub-ack"), Some(&Value::text("full")));
            assert_eq!(delivery.section(DATA), Value::Binary(body.as_bytes().to_vec()));

            decide(&mut peer, &delivery, outcome, settle_mode == 0);
            if settle_mode == 1 {
                // The answer is Accepted for every outcome. Source: wire reference 2.6.
                assert_eq!(answer(&mut peer, &delivery), Value::composite(ACCEPTED, Vec::new()));
            }
        }
        let (token, next) = (
            crate::rest_ask::device_token(&emulator, "dev1"),
            "GET /devices/dev1/messages/devicebound?api-version=1",
        );
        let end = std::time::Instant::now() + crate::harness::DEADLINE;
        // In first mode, no answer tells that the hub has the decision.
        while crate::rest_ask::ask(&emulator, next, &token, "", b"").status != 204 {
            assert!(std::time::Instant::now() < end);
        }
    }
}

#[test]
fn line_18_feedback_is_a_json_array_with_its_properties_and_a_guid() {
    let emulator = Emulator::start();
    for id in ["m-1", "m-2"] {
        emulator.send("dev1", &["--message-id", id, "--ack=full"]);
    }
    let token = crate::rest::service_token(&emulator);
    let purge = "DELETE /devices/dev1/commands?api-version=2021-04-12";
    assert_eq!(crate::rest_ask::ask(&emulator, purge, &token, "", b"").status, 200);
    let mut peer = service(&emulator);
    attach(&mut peer, 2, true, FEEDBACK, 1);
    give_credit(&mut peer, 2, 10);
    let mut tokens = Vec::new();
    for outcome in [RELEASED, ACCEPTED] {
        let batch = peer.expect(TRANSFER);
        tokens.push(token_in_tag(&batch));
        let properties = batch.section(PROPERTIES);
        let kind = Value::symbol("application/vnd.microsoft.iothub.feedback.json");
        assert_eq!(properties.fields().get(6), Some(&kind), "content-type");
        assert_eq!(properties.fields().get(1), Some(&Value::Binary(b"localhost".to_vec())), "user-id");
        is_now(batch.section(MESSAGE_ANNOTATIONS).get("iothub-enqueuedtime"));
        let Value::Binary(body) = batch.section(DATA) else { panic!("no data: {batch:?}") };
        let records: serde_json::Value = serde_json::from_slice(&body).expect("JSON");
        let ids: Vec<_> =
            records.as_array().expect("an array").iter().map(|record| &record["originalMessageId"]).collect();
        assert_eq!(ids, ["m-1", "m-2"]);
        assert!(records.as_array().expect("an array").iter().all(|record| record["statusCode"] == "Purged"));
        // A batch that is given back comes again. The C# SDK waits for the answer.
        decide(&mut peer, &batch, outcome, false);
        assert_eq!(answer(&mut peer, &batch), Value::composite(ACCEPTED, Vec::new()));
    }
    assert_ne!(tokens[0], tokens[1], "each delivery has a lock of its own");
}

#[test]
fn line_18_batches_go_out_with_64_records_or_after_the_interval() {
    let start = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
    let keys = || {
        let key = SharedAccessKey::from_bytes([7; 32]);
        DeviceCredential::Keys(KeyPair { primary: key.clone(), secondary: key })
    };
    let mut hub = Hub::new(Registry::new("hub.test", Vec::new()), Duration::from_secs(15));
    for id in ["dev1", "dev2"] {
        hub.add_device(Device { id: id.into(), credential: keys() });
    }
    let purge = |hub: &mut Hub, device: &str, count: usize, now: SystemTime| {
        for n in 0..count {
            let mut message = C2dMessage::default();
            message.system.set(message::MESSAGE_ID, format!("{device}-{n}"));
            let (device_id, ack) = (device.to_owned(), DeliveryAck::Full);
            hub.enqueue(QueuedMessage { device_id, message, ack, expiry: None }, now).expect("room");
        }
        assert_eq!(hub.purge(device, now), Some(count));
    };
    let due = |hub: &mut Hub, now: SystemTime| {
        let batch = hub.next_feedback_batch(now)?;
        hub.complete_feedback(batch.lock).expect("held");
        Some(batch.records.len())
    };
    let after = |seconds| start + Duration::from_secs(seconds);
    // The first record goes out at once or within the interval. After that, the interval counts from the last batch.
    purge(&mut hub, "dev1", 1, start);
    assert_eq!(due(&mut hub, after(15)), Some(1));
    purge(&mut hub, "dev1", 50, after(16));
    purge(&mut hub, "dev2", 13, after(16));
    assert_eq!(due(&mut hub, after(16)), None, "63");
    purge(&mut hub, "dev2", 2, after(17));
    assert_eq!(due(&mut hub, after(17)), Some(64), "the 64th");
    assert_eq!(due(&mut hub, after(31)), None, "one is left");
    assert_eq!(due(&mut hub, after(32)), Some(1), "15 s after the last");
    assert_eq!(due(&mut hub, after(60)), None);
}
