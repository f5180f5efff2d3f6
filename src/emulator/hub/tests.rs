//! The hub's rules one by one, and its invariants under any sequence of operations.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::credentials::SharedAccessKey;
use crate::emulator::registry::{Device, DeviceCredential, KeyPair, Registry};
use crate::feedback::{DeliveryAck, FeedbackStatus};
use crate::message::{self, C2dMessage, Properties};

mod saved;

pub(super) const NOW: SystemTime = SystemTime::UNIX_EPOCH;

pub(super) fn after(seconds: u64) -> SystemTime {
    NOW + Duration::from_secs(seconds)
}

pub(super) fn hub() -> Hub {
    let mut hub = Hub::new(Registry::new("hub.local.test", Vec::new()), Duration::from_secs(15));
    for id in ["dev1", "dev2"] {
        hub.add_device(device(id));
    }
    hub
}

pub(super) fn device(id: &str) -> Device {
    let key = SharedAccessKey::from_bytes([1; 32]);
    let keys = KeyPair { primary: key.clone(), secondary: key };
    Device { id: id.into(), credential: DeviceCredential::Keys(keys) }
}

pub(super) fn connect(hub: &mut Hub, clean: bool) -> ConnectionId {
    let connection = hub.connect("dev1", clean, NOW).expect("a device").connection;
    assert!(hub.subscribe("dev1", connection, Subscription::DeviceBound, 1));
    connection
}

fn message(id: &str, ack: DeliveryAck) -> QueuedMessage {
    let mut message = C2dMessage::default();
    message.system.set(message::MESSAGE_ID, id);
    QueuedMessage { device_id: "dev1".into(), message, ack, expiry: None }
}

pub(super) fn send(hub: &mut Hub, id: &str, ack: DeliveryAck) {
    hub.enqueue(message(id, ack), NOW).expect("room");
}

pub(super) fn next_id(hub: &mut Hub, connection: ConnectionId, now: SystemTime) -> Option<String> {
    hub.next_delivery("dev1", connection, now).map(|locked| id_of(&locked))
}

pub(super) fn id_of(locked: &Locked) -> String {
    locked.message.message_id().expect("an id").to_owned()
}

fn outcomes(batch: LockedBatch) -> Vec<(String, FeedbackStatus)> {
    batch.records.into_iter().map(|record| (record.original_message_id, record.status_code)).collect()
}

#[test]
fn a_queue_holds_fifty_messages_and_refuses_the_next() {
    let mut hub = hub();
    for index in 0..50 {
        send(&mut hub, &format!("m{index}"), DeliveryAck::None);
    }
    let refused = hub.enqueue(message("m50", DeliveryAck::None), NOW);
    assert_eq!(refused, Err(EnqueueError::QueueFull("dev1".into())));
    let connection = connect(&mut hub, false);
    let first = hub.next_delivery("dev1", connection, NOW).expect("waiting");
    assert!(hub.enqueue(message("m50", DeliveryAck::None), NOW).is_err(), "a locked message has its place");
    hub.complete("dev1", first.lock, NOW).expect("locked");
    send(&mut hub, "m50", DeliveryAck::None);
}

#[test]
fn bad_messages_are_refused_with_their_reason() {
    let mut hub = hub();
    let with_expiry = |expiry| QueuedMessage { expiry: Some(expiry), ..message("m", DeliveryAck::None) };
    let unknown = QueuedMessage { device_id: "dev9".into(), ..message("m", DeliveryAck::None) };
    assert_eq!(hub.enqueue(unknown, NOW), Err(EnqueueError::UnknownDevice("dev9".into())));
    let past = hub.enqueue(with_expiry(after(5)), after(5));
    assert_eq!(past, Err(EnqueueError::ExpiryPast("1970-01-01T00:00:05.0000000Z".into())));
    let two_days = 2 * 24 * 60 * 60;
    assert!(hub.enqueue(with_expiry(after(two_days)), NOW).is_ok());
    assert!(matches!(hub.enqueue(with_expiry(after(two_days + 1)), NOW), Err(EnqueueError::ExpiryTooFar(_))));
    let mut large = message("m", DeliveryAck::None);
    large.message.body = Bytes::from(vec![0; message::MAX_C2D_BYTES]);
    assert!(matches!(hub.enqueue(large, NOW), Err(EnqueueError::TooLarge(_))));
}

#[test]
fn an_expiry_and_a_destination_are_in_what_the_device_gets() {
    let mut hub = hub();
    let connection = connect(&mut hub, false);
    let mut sent = QueuedMessage { expiry: Some(after(60)), ..message("m", DeliveryAck::None) };
    sent.message.system.set(message::TO, "/devices/dev1/messages/deviceBound");
    hub.enqueue(sent, NOW).expect("room");
    send(&mut hub, "n", DeliveryAck::None);
    let first = hub.next_delivery("dev1", connection, NOW).expect("waiting").message;
    assert_eq!(first.property(message::TO), Some("/devices/dev1/messages/deviceBound"));
    assert_eq!(first.property(message::EXPIRY), Some("1970-01-01T00:01:00.0000000Z"));
    let second = hub.next_delivery("dev1", connection, NOW).expect("waiting").message;
    assert_eq!(second.property(message::TO), Some("/devices/dev1/messages/devicebound"));
    assert_eq!(second.property(message::EXPIRY), None);
}

#[test]
fn nothing_is_delivered_before_the_device_subscribes() {
    let mut hub = hub();
    send(&mut hub, "m", DeliveryAck::None);
    let connection = hub.connect("dev1", false, NOW).expect("a device").connection;
    assert_eq!(next_id(&mut hub, connection, NOW), None);
    hub.subscribe("dev1", connection, Subscription::Methods, 0);
    assert_eq!(next_id(&mut hub, connection, NOW), None);
    hub.subscribe("dev1", connection, Subscription::DeviceBound, 1);
    assert_eq!(next_id(&mut hub, connection, NOW), Some("m".into()));
}

#[test]
fn a_session_survives_unless_it_is_clean() {
    let mut hub = hub();
    let first = connect(&mut hub, false);
    hub.disconnect("dev1", first, NOW);
    let second = hub.connect("dev1", false, NOW).expect("a device");
    assert!(second.session_present);
    assert_eq!(hub.granted("dev1", second.connection, Subscription::DeviceBound), Some(1));
    hub.disconnect("dev1", second.connection, NOW);
    let clean = hub.connect("dev1", true, NOW).expect("a device");
    assert!(!clean.session_present);
    assert_eq!(hub.granted("dev1", clean.connection, Subscription::DeviceBound), None);
    hub.subscribe("dev1", clean.connection, Subscription::DeviceBound, 1);
    hub.disconnect("dev1", clean.connection, NOW);
    let after_clean = hub.connect("dev1", false, NOW).expect("a device");
    assert!(!after_clean.session_present);
    assert_eq!(hub.granted("dev1", after_clean.connection, Subscription::DeviceBound), None);
}

#[test]
fn the_newer_connection_wins_and_gets_what_the_older_had_not_settled() {
    let mut hub = hub();
    send(&mut hub, "a", DeliveryAck::Full);
    send(&mut hub, "b", DeliveryAck::Full);
    let old = connect(&mut hub, false);
    let lock = hub.next_delivery("dev1", old, NOW).expect("waiting").lock;
    let new = hub.connect("dev1", false, NOW).expect("a device");
    assert_eq!(new.displaced, Some(old));
    assert!(!hub.is_current("dev1", old) && hub.is_current("dev1", new.connection));
    assert_eq!(hub.complete("dev1", lock, NOW), Err(LockLost), "the older connection's lock is void");
    let again = hub.next_delivery("dev1", new.connection, NOW).expect("waiting");
    assert_eq!((id_of(&again).as_str(), again.redelivered), ("a", true));
    hub.disconnect("dev1", old, NOW);
    assert!(hub.is_current("dev1", new.connection), "a late goodbye of the older one changes nothing");
    assert_eq!(next_id(&mut hub, old, NOW), None);
}

#[test]
fn unsettled_messages_return_in_order_when_the_connection_is_lost() {
    let mut hub = hub();
    for id in ["a", "b", "c"] {
        send(&mut hub, id, DeliveryAck::None);
    }
    let first = connect(&mut hub, false);
    let locks: Vec<_> = (0..3).filter_map(|_| hub.next_delivery("dev1", first, NOW)).collect();
    hub.complete("dev1", locks[1].lock, NOW).expect("locked");
    hub.disconnect("dev1", first, NOW);
    let second = connect(&mut hub, false);
    assert_eq!(next_id(&mut hub, second, NOW), Some("a".into()));
    let again = hub.next_delivery("dev1", second, NOW).expect("waiting");
    assert_eq!((id_of(&again).as_str(), again.delivery_count), ("c", 0), "losing a link is no abandon");
}

#[test]
fn a_lock_lapses_after_a_minute_without_a_count_and_late_completion_is_refused() {
    let mut hub = hub();
    send(&mut hub, "a", DeliveryAck::Full);
    let first = connect(&mut hub, false);
    let lock = hub.next_delivery("dev1", first, NOW).expect("waiting").lock;
    assert_eq!(hub.complete("dev1", lock, after(60)), Err(LockLost));
    assert_eq!(next_id(&mut hub, first, after(61)), None, "not to the same connection");
    let second = connect(&mut hub, false);
    let again = hub.next_delivery("dev1", second, after(62)).expect("waiting");
    assert_eq!((again.delivery_count, again.redelivered), (0, true));
    hub.complete("dev1", again.lock, after(63)).expect("locked");
}

#[test]
fn a_message_abandoned_ten_times_is_dead_lettered() {
    let mut hub = hub();
    send(&mut hub, "a", DeliveryAck::Negative);
    let connection = connect(&mut hub, false);
    for count in 0..10 {
        let locked = hub.next_delivery("dev1", connection, NOW).expect("waiting");
        assert_eq!(locked.delivery_count, count);
        hub.abandon("dev1", locked.lock, NOW).expect("locked");
    }
    assert_eq!(hub.queue_length("dev1"), Some(0));
    let batch = hub.next_feedback_batch(NOW).expect("feedback");
    assert_eq!(outcomes(batch), [("a".into(), FeedbackStatus::DeliveryCountExceeded)]);
}

#[test]
fn messages_expire_after_an_hour_or_at_their_expiry_even_while_locked() {
    let mut hub = hub();
    send(&mut hub, "hour", DeliveryAck::Full);
    let short = QueuedMessage { expiry: Some(after(30)), ..message("short", DeliveryAck::Full) };
    hub.enqueue(short, NOW).expect("room");
    let connection = connect(&mut hub, false);
    hub.next_delivery("dev1", connection, NOW).expect("waiting");
    let lock = hub.next_delivery("dev1", connection, NOW).expect("waiting").lock;
    assert_eq!(hub.next_deadline(), Some(after(30)));
    hub.tick(after(30));
    assert_eq!(hub.complete("dev1", lock, after(30)), Err(LockLost));
    assert_eq!(
        outcomes(hub.next_feedback_batch(after(30)).expect("feedback")),
        [("short".into(), FeedbackStatus::Expired)]
    );
    hub.tick(after(3600));
    assert_eq!(hub.queue_length("dev1"), Some(0));
}

#[test]
fn feedback_follows_the_table() {
    use DeliveryAck::{Full, Negative, None, Positive};
    let mut hub = hub();
    let connection = connect(&mut hub, false);
    for ack in [None, Positive, Negative, Full] {
        for outcome in ["complete", "reject"] {
            send(&mut hub, &format!("{} {outcome}", ack.as_str()), ack);
        }
    }
    while let Some(locked) = hub.next_delivery("dev1", connection, NOW) {
        let settled = if id_of(&locked).ends_with("complete") {
            hub.complete("dev1", locked.lock, NOW)
        } else {
            hub.reject("dev1", locked.lock, NOW)
        };
        settled.expect("locked");
    }
    let batch = hub.next_feedback_batch(NOW).expect("feedback");
    let (id, generation) = (batch.records[0].device_id.clone(), batch.records[0].device_generation_id.len());
    assert_eq!((id.as_str(), generation), ("dev1", 18));
    let expected = [
        ("positive complete", FeedbackStatus::Success),
        ("negative reject", FeedbackStatus::Rejected),
        ("full complete", FeedbackStatus::Success),
        ("full reject", FeedbackStatus::Rejected),
    ];
    assert_eq!(outcomes(batch), expected.map(|(id, status)| (id.to_owned(), status)));
}

fn with_feedback(records: usize) -> Hub {
    let mut hub = hub();
    let connection = connect(&mut hub, false);
    for index in 0..records {
        send(&mut hub, &format!("m{index}"), DeliveryAck::Full);
        let lock = hub.next_delivery("dev1", connection, NOW).expect("waiting").lock;
        hub.complete("dev1", lock, NOW).expect("locked");
    }
    hub
}

#[test]
fn feedback_goes_out_in_batches_of_64_or_when_the_interval_is_over() {
    let mut hub = with_feedback(130);
    let first = hub.next_feedback_batch(NOW).expect("due");
    assert_eq!(first.records.len(), 64);
    assert_eq!(hub.next_feedback_batch(NOW), None, "only one batch is out at a time");
    hub.complete_feedback(first.lock).expect("locked");
    let second = hub.next_feedback_batch(NOW).expect("64 more");
    hub.complete_feedback(second.lock).expect("locked");
    assert_eq!(hub.next_feedback_batch(after(14)), None, "two records wait for the interval");
    assert_eq!(hub.next_deadline(), Some(after(15)));
    let version = hub.version();
    hub.tick(after(15));
    assert_ne!(hub.version(), version, "listeners are told that a batch is due");
    assert_ne!(hub.next_deadline(), Some(after(15)), "and the timer rests");
    let third = hub.next_feedback_batch(after(15)).expect("due");
    assert_eq!(third.records.len(), 2);
    hub.complete_feedback(third.lock).expect("locked");
    assert_eq!(hub.complete_feedback(third.lock), Err(LockLost));
    assert_eq!(hub.next_deadline(), None);
}

#[test]
fn a_feedback_batch_comes_back_when_it_is_not_settled() {
    let mut hub = with_feedback(1);
    let first = hub.next_feedback_batch(NOW).expect("due");
    hub.release_feedback(first.lock).expect("locked");
    let second = hub.next_feedback_batch(NOW).expect("again");
    assert_eq!((second.delivery_count, &second.records), (0, &first.records));
    assert_eq!(hub.complete_feedback(first.lock), Err(LockLost), "an old lock is void");
    let third = hub.next_feedback_batch(after(60)).expect("its lock lapsed");
    hub.abandon_feedback(third.lock).expect("locked");
    for count in 1..10 {
        let again = hub.next_feedback_batch(after(60)).expect("again");
        assert_eq!(again.delivery_count, count);
        hub.abandon_feedback(again.lock).expect("locked");
    }
    assert_eq!(hub.next_feedback_batch(after(60)), None, "abandoned ten times");
}

#[test]
fn feedback_that_nobody_reads_is_dropped_after_an_hour() {
    let mut hub = with_feedback(65);
    let batch = hub.next_feedback_batch(NOW).expect("due");
    hub.release_feedback(batch.lock).expect("locked");
    hub.tick(after(3600));
    assert_eq!(hub.next_feedback_batch(after(3600)), None);
    assert_eq!(hub.next_deadline(), None);
}

#[derive(Debug, Clone)]
enum Step {
    Send { ack: DeliveryAck, ttl: Option<u64> },
    Connect { clean: bool },
    Disconnect,
    Subscribe,
    Take,
    Settle { which: usize, how: u8 },
    Wait { seconds: u64 },
    ReadFeedback { accept: bool },
}

fn step() -> impl Strategy<Value = Step> {
    let ack = prop_oneof![
        Just(DeliveryAck::None),
        Just(DeliveryAck::Positive),
        Just(DeliveryAck::Negative),
        Just(DeliveryAck::Full)
    ];
    prop_oneof![
        6 => (ack, proptest::option::of(1_u64..200)).prop_map(|(ack, ttl)| Step::Send { ack, ttl }),
        1 => any::<bool>().prop_map(|clean| Step::Connect { clean }),
        1 => Just(Step::Disconnect),
        1 => Just(Step::Subscribe),
        6 => Just(Step::Take),
        5 => (any::<usize>(), 0_u8..3).prop_map(|(which, how)| Step::Settle { which, how }),
        3 => (1_u64..18).prop_map(|seconds| Step::Wait { seconds }),
        2 => any::<bool>().prop_map(|accept| Step::ReadFeedback { accept }),
    ]
}

proptest! {
    /// Invariants: at most fifty messages; each delivery is of the oldest message that may be sent; every message ends
    /// once; each outcome that was asked for gives feedback exactly once.
    #[test]
    fn any_sequence_of_operations_keeps_the_invariants(steps in proptest::collection::vec(step(), 1..200)) {
        let mut hub = hub();
        let mut now = NOW;
        let mut connection = None;
        let (mut sent, mut refused) = (0_usize, 0_usize);
        let mut asked: BTreeMap<String, DeliveryAck> = BTreeMap::new();
        let mut locks: Vec<Locked> = Vec::new();
        let mut settled: BTreeMap<String, FeedbackStatus> = BTreeMap::new();
        let mut feedback: BTreeMap<String, FeedbackStatus> = BTreeMap::new();
        let mut last_taken: Option<usize> = None;
        for step in steps {
            match step {
                Step::Send { ack, ttl } => {
                    let id = sent.to_string();
                    let expiry = ttl.map(|ttl| now + Duration::from_secs(ttl));
                    let message = QueuedMessage { expiry, ..message(&id, ack) };
                    match hub.enqueue(message, now) {
                        Ok(()) => { asked.insert(id, ack); sent += 1; }
                        Err(EnqueueError::QueueFull(_)) => refused += 1,
                        Err(other) => prop_assert!(false, "{other}"),
                    }
                }
                Step::Connect { clean } => {
                    connection = hub.connect("dev1", clean, NOW).map(|connected| connected.connection);
                    last_taken = None;
                }
                Step::Disconnect => if let Some(own) = connection.take() { hub.disconnect("dev1", own, NOW) },
                Step::Subscribe => if let Some(own) = connection {
                    prop_assert!(hub.subscribe("dev1", own, Subscription::DeviceBound, 1));
                },
                Step::Take => if let Some(own) = connection
                    && let Some(locked) = hub.next_delivery("dev1", own, now)
                {
                    let number: usize = id_of(&locked).parse().expect("a number");
                    prop_assert!(!settled.contains_key(&id_of(&locked)), "no delivery after the end");
                    if locked.delivery_count == 0 {
                        prop_assert!(last_taken.is_none_or(|last| last < number), "first in, first out");
                        last_taken = Some(number);
                    }
                    locks.push(locked);
                },
                Step::Settle { which, how } => if !locks.is_empty() {
                    let locked = locks.swap_remove(which % locks.len());
                    let id = id_of(&locked);
                    let (result, status) = match how {
                        0 => (hub.complete("dev1", locked.lock, now), Some(FeedbackStatus::Success)),
                        1 => (hub.reject("dev1", locked.lock, now), Some(FeedbackStatus::Rejected)),
                        _ => {
                            let last = locked.delivery_count + 1 == MAX_DELIVERY_COUNT;
                            let status = last.then_some(FeedbackStatus::DeliveryCountExceeded);
                            (hub.abandon("dev1", locked.lock, now), status)
                        }
                    };
                    if result.is_ok() && let Some(status) = status {
                        prop_assert!(settled.insert(id, status).is_none(), "settled twice");
                    }
                },
                Step::Wait { seconds } => {
                    now += Duration::from_secs(seconds);
                    hub.tick(now);
                    prop_assert!(hub.next_deadline().is_none_or(|deadline| deadline > now), "the timer rests");
                }
                Step::ReadFeedback { accept } => if let Some(batch) = hub.next_feedback_batch(now) {
                    if accept {
                        let lock = batch.lock;
                        for (id, status) in outcomes(batch) {
                            prop_assert!(feedback.insert(id, status).is_none(), "feedback twice");
                        }
                        prop_assert!(hub.complete_feedback(lock).is_ok());
                    } else {
                        prop_assert!(hub.release_feedback(batch.lock).is_ok());
                    }
                },
            }
            prop_assert!(hub.queue_length("dev1").is_some_and(|length| length <= MAX_QUEUE));
            prop_assert!(hub.queue_length("dev2") == Some(0));
        }
        prop_assert!(refused == 0 || sent >= MAX_QUEUE);
        // Read all feedback, let all remaining messages expire, and read the rest.
        for wait in [Duration::ZERO, DEFAULT_TTL] {
            now += wait;
            hub.tick(now);
            while let Some(batch) = {
                now += Duration::from_secs(60);
                hub.next_feedback_batch(now)
            } {
                let lock = batch.lock;
                for (id, status) in outcomes(batch) {
                    prop_assert!(feedback.insert(id, status).is_none(), "feedback twice");
                }
                prop_assert!(hub.complete_feedback(lock).is_ok());
            }
        }
        prop_assert_eq!(hub.queue_length("dev1"), Some(0));
        for (id, ack) in asked {
            let outcome = settled.get(&id).copied().unwrap_or(FeedbackStatus::Expired);
            let told = feedback.get(&id).copied();
            prop_assert_eq!(told, ack.reports(outcome).then_some(outcome), "feedback of {}", id);
        }
    }
}

#[test]
fn a_twin_shows_the_device_as_a_back_end_sees_it() {
    let mut hub = hub();
    let twin = hub.twin("dev1").expect("a twin");
    assert_eq!(twin["deviceId"], "dev1");
    assert_eq!(twin["connectionState"], "Disconnected");
    assert_eq!(twin["lastActivityTime"], "0001-01-01T00:00:00Z");
    assert_eq!(twin["properties"]["reported"]["$version"], 1);

    let connection = connect(&mut hub, false);
    send(&mut hub, "m1", DeliveryAck::None);
    let patch = serde_json::json!({ "led": "on" });
    let version = hub.version();
    assert_eq!(hub.patch_reported("dev1", &patch, after(5)), Ok(2));
    assert!(hub.version() > version, "whoever waits for the twin is woken");
    let twin = hub.twin("dev1").expect("a twin");
    assert_eq!(twin["connectionState"], "Connected");
    assert_eq!(twin["lastActivityTime"], "1970-01-01T00:00:05.0000000Z");
    assert_eq!(twin["cloudToDeviceMessageCount"], 1);
    assert_eq!(twin["version"], 3);
    let own = hub.twin_properties("dev1").expect("properties");
    assert_eq!(own["reported"], serde_json::json!({ "led": "on", "$version": 2 }), "without metadata");
    let stamp = serde_json::json!({ "$lastUpdated": "1970-01-01T00:00:05.0000000Z" });
    assert_eq!(twin["properties"]["reported"]["$metadata"]["led"], stamp);
    assert_eq!((&twin["authenticationType"], &twin["modelId"]), (&"sas".into(), &"".into()));
    assert_eq!(hub.identity("dev1").expect("there").show()["etag"], twin["deviceEtag"]);
    hub.disconnect("dev1", connection, after(7));
    assert_eq!(hub.twin("dev1").expect("a twin")["connectionState"], "Disconnected");
    let identity = hub.identity("dev1").expect("there").show();
    assert_eq!(identity["connectionStateUpdatedTime"], "1970-01-01T00:00:07.0000000Z");

    assert_eq!(hub.twin("dev2").expect("a twin")["version"], 2, "another device's twin");
    assert_eq!(hub.twin("nobody"), None);
    assert_eq!(hub.patch_reported("nobody", &patch, NOW), Err(TwinError::UnknownDevice("nobody".into())));
}
