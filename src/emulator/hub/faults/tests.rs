//! Faults as text, and each decision of a fault.

use super::super::tests::{NOW, after, connect, device, hub, id_of, next_id, send};
use super::super::{EnqueueError, Hub, LockLost, Subscription};
use super::*;
use crate::emulator::fault_text::MAX_COUNT;
use crate::feedback::DeliveryAck;
use proptest::prelude::*;

fn order(text: &str) -> Result<FaultOrder, String> {
    text.parse().map_err(|error: FaultError| error.to_string())
}

fn with(fault: Fault) -> (Hub, ConnectionId) {
    let mut hub = hub();
    let connection = connect(&mut hub, false);
    assert!(hub.set_fault("dev1", fault));
    (hub, connection)
}

#[test]
fn every_fault_is_read_as_it_is_written() {
    let second = Duration::from_secs(1);
    let faults = [
        ("drop-at=5", Fault::DropAt(5)),
        ("delay=1s", Fault::Delay(second)),
        ("duplicate", Fault::Duplicate(None)),
        ("duplicate=2", Fault::Duplicate(Some(2))),
        ("ignore-puback", Fault::IgnorePuback(None)),
        ("ignore-puback=1000000", Fault::IgnorePuback(Some(MAX_COUNT))),
        ("expire-token", Fault::ExpireToken),
        ("throttle", Fault::Throttle),
        ("queue-full", Fault::QueueFull),
        ("reverse-order", Fault::ReverseOrder),
        ("early-publish", Fault::EarlyPublish),
    ];
    for (text, fault) in faults {
        assert_eq!(order(text), Ok(FaultOrder { device_id: None, fault }), "{text}");
        let written =
            format!("{}{}", fault.name().as_str(), fault.value().map_or(String::new(), |v| format!("={v}")));
        assert_eq!(written, text);
    }
    let of = |text: &str| order(text).expect("an order").device_id;
    assert_eq!(of("pi-01:throttle").as_deref(), Some("pi-01"));
    assert_eq!(of("a:b=c:drop-at=1").as_deref(), Some("a:b=c"), "ids may have colons and equals signs");
}

#[test]
fn what_is_no_fault_is_named_with_what_there_is() {
    let all = "drop-at=N, delay=DURATION, duplicate[=N], ignore-puback[=N], expire-token, throttle, queue-full, \
               reverse-order, early-publish, certificate=refuse|hold|other-key|broken|critical|unsupported";
    let unknown = |name: &str| Err(format!("there is no fault \"{name}\"; there are {all}"));
    for (text, name) in [("drop", "drop"), ("", ""), ("dev1:", ""), ("Throttle", "Throttle"), ("x=", "x")] {
        assert_eq!(order(text), unknown(name), "{text}");
    }
    for (text, part) in [
        ("drop-at", "\"\" is not a value for the fault drop-at: give a number from 1"),
        ("drop-at=0", "\"0\" is not a value for the fault drop-at"),
        ("duplicate=1000001", "\"1000001\" is not a value for the fault duplicate"),
        ("ignore-puback=-1", "\"-1\" is not a value"),
        ("delay=5", "\"5\" is not a value for the fault delay: give a time with its unit"),
        ("delay=61m", "at most 1h"),
        ("throttle=1", "\"1\" is not a value for the fault throttle: it takes no value"),
        (
            "certificate=x",
            "\"x\" is not a value for the fault certificate: give refuse, hold, other-key, broken, critical or unsupported",
        ),
        ("duplicate=", "there is no value after \"duplicate=\""),
    ] {
        let said = order(text).expect_err(text);
        assert!(said.contains(part), "{text}: {said}");
    }
}

#[test]
fn an_order_is_for_one_device_or_for_all_and_those_to_come() {
    let mut hub = hub();
    let orders = ["dev1:duplicate=1", "duplicate", "throttle"].map(|text| order(text).expect("an order"));
    hub.order_faults(&orders).expect("known devices");
    hub.add_device(device("dev3"));
    let (own, all) = (Fault::Duplicate(Some(1)), Fault::Duplicate(None));
    assert_eq!(hub.faults("dev1"), Some(vec![own, Fault::Throttle]), "its own counts more");
    assert_eq!(hub.faults("dev2"), Some(vec![all, Fault::Throttle]));
    assert_eq!(hub.faults("dev3"), Some(vec![all, Fault::Throttle]));

    let refused =
        hub.order_faults(&[order("queue-full").expect("one"), order("dev9:queue-full").expect("one")]);
    assert_eq!(refused, Err(FaultError::UnknownDevice("dev9".to_owned())));
    assert_eq!(hub.faults("dev2").map(|faults| faults.len()), Some(2), "all or none");
    assert!(!hub.set_fault("dev9", Fault::Throttle) && !hub.clear_faults("dev9", None));
    assert_eq!(hub.faults("dev9"), None);

    assert!(hub.clear_faults("dev1", Some(FaultName::Throttle)));
    assert_eq!(hub.faults("dev1"), Some(vec![own]));
    assert!(hub.clear_faults("dev1", None));
    assert_eq!(hub.faults("dev1"), Some(Vec::new()));
}

#[test]
fn a_connection_is_dropped_at_one_packet_and_no_later_one() {
    let (mut hub, _) = with(Fault::DropAt(3));
    let dropped: Vec<bool> = (0..5).map(|_| hub.drops_packet("dev1")).collect();
    assert_eq!(dropped, [false, false, true, false, false]);
    assert_eq!(hub.faults("dev1"), Some(Vec::new()));
    assert!(!hub.drops_packet("dev2") && !hub.drops_packet("dev9"));
}

#[test]
fn counts_are_used_up_and_without_one_a_fault_stays() {
    let (mut hub, _) = with(Fault::IgnorePuback(Some(2)));
    let ignored: Vec<bool> = (0..3).map(|_| hub.ignores_puback("dev1")).collect();
    assert_eq!(ignored, [true, true, false]);
    hub.set_fault("dev1", Fault::IgnorePuback(None));
    assert!((0..9).all(|_| hub.ignores_puback("dev1")));
    hub.set_fault("dev1", Fault::ExpireToken);
    assert!(hub.expires_token("dev1") && !hub.expires_token("dev1"), "a token expires once");
}

#[test]
fn a_message_is_held_back_and_its_time_wakes_the_listeners() {
    let (mut hub, connection) = with(Fault::Delay(Duration::from_secs(5)));
    send(&mut hub, "m1", DeliveryAck::Full);
    assert_eq!(next_id(&mut hub, connection, after(2)), None);
    assert!(hub.poll("dev1", after(2)).is_none());
    assert_eq!(hub.next_deadline(), Some(after(5)));
    let before = hub.version();
    hub.tick(after(4));
    assert_eq!(next_id(&mut hub, connection, after(4)), None);
    assert_eq!(hub.version(), before, "nobody is woken in vain");
    hub.tick(after(5));
    assert_ne!(hub.version(), before);
    assert_eq!(next_id(&mut hub, connection, after(5)).as_deref(), Some("m1"));
    // The message was given back and has already waited for its delay.
    hub.disconnect("dev1", connection, NOW);
    let connection = connect(&mut hub, false);
    assert_eq!(next_id(&mut hub, connection, after(5)).as_deref(), Some("m1"));
}

#[test]
fn both_of_two_deliveries_have_one_lock() {
    let (mut hub, connection) = with(Fault::Duplicate(Some(1)));
    send(&mut hub, "m1", DeliveryAck::Full);
    send(&mut hub, "m2", DeliveryAck::Full);
    let next = |hub: &mut Hub| hub.next_delivery("dev1", connection, NOW).expect("waiting");
    let (first, copy, second) = (next(&mut hub), next(&mut hub), next(&mut hub));
    let seen = [&first, &copy, &second].map(|locked| (id_of(locked), locked.redelivered, locked.copy));
    let expected = [("m1", false, false), ("m1", true, true), ("m2", false, false)];
    assert_eq!(seen, expected.map(|(id, again, copy)| (id.to_owned(), again, copy)));
    assert_eq!(first.lock, copy.lock);
    hub.put_back("dev1", &copy);
    assert_eq!(next_id(&mut hub, connection, NOW), None, "the first one of the two is still out");
    hub.complete("dev1", first.lock, NOW).expect("locked");
    assert_eq!(hub.complete("dev1", copy.lock, NOW), Err(LockLost));
}

#[test]
fn the_second_delivery_is_for_the_same_connection_only() {
    let (mut hub, connection) = with(Fault::Duplicate(None));
    send(&mut hub, "m1", DeliveryAck::Full);
    assert_eq!(next_id(&mut hub, connection, NOW).as_deref(), Some("m1"));
    assert!(hub.poll("dev1", NOW).is_none(), "whoever polls has no part in it");
    hub.disconnect("dev1", connection, NOW);
    hub.clear_faults("dev1", None);
    let connection = connect(&mut hub, false);
    assert_eq!(next_id(&mut hub, connection, NOW).as_deref(), Some("m1"), "released, and so once more");
    assert_eq!(next_id(&mut hub, connection, NOW), None);

    hub.set_fault("dev1", Fault::Duplicate(None));
    send(&mut hub, "m2", DeliveryAck::Full);
    let polled = [hub.poll("dev1", NOW), hub.poll("dev1", NOW), hub.poll("dev1", NOW)];
    let polled = polled.map(|locked| locked.map(|locked| (id_of(&locked), locked.copy)));
    assert_eq!(polled, [Some(("m2".to_owned(), false)), Some(("m2".to_owned(), true)), None]);
}

#[test]
fn what_waits_goes_out_newest_first() {
    let (mut hub, connection) = with(Fault::ReverseOrder);
    for id in ["m1", "m2", "m3"] {
        send(&mut hub, id, DeliveryAck::None);
    }
    assert_eq!(next_id(&mut hub, connection, NOW).as_deref(), Some("m3"));
    assert_eq!(hub.poll("dev1", NOW).map(|locked| id_of(&locked)).as_deref(), Some("m2"));
    hub.clear_faults("dev1", None);
    assert_eq!(next_id(&mut hub, connection, NOW).as_deref(), Some("m1"));
}

#[test]
fn nothing_is_queued_for_a_full_or_throttled_device() {
    let (mut hub, _) = with(Fault::QueueFull);
    let message = || super::super::QueuedMessage {
        device_id: "dev1".to_owned(),
        message: crate::message::C2dMessage::default(),
        ack: DeliveryAck::None,
        expiry: None,
    };
    assert_eq!(hub.enqueue(message(), NOW), Err(EnqueueError::QueueFull("dev1".into())));
    hub.set_fault("dev1", Fault::Throttle);
    assert!(hub.is_throttled("dev1") && !hub.is_throttled("dev2"));
    assert_eq!(hub.enqueue(message(), NOW), Err(EnqueueError::Throttled("dev1".into())));
    hub.clear_faults("dev1", None);
    assert_eq!(hub.enqueue(message(), NOW), Ok(()));
    assert_eq!(hub.queue_length("dev1"), Some(1));
}

#[test]
fn an_early_publish_needs_no_subscription() {
    let mut hub = hub();
    let connection = hub.connect("dev1", false, NOW).expect("a device").connection;
    send(&mut hub, "m1", DeliveryAck::None);
    assert_eq!(next_id(&mut hub, connection, NOW), None);
    hub.set_fault("dev1", Fault::EarlyPublish);
    assert_eq!(hub.granted("dev1", connection, Subscription::DeviceBound), Some(1));
    assert_eq!(hub.granted("dev1", connection, Subscription::Methods), None);
    assert_eq!(next_id(&mut hub, connection, NOW).as_deref(), Some("m1"));
}

proptest! {
    #[test]
    fn any_text_is_an_order_or_is_refused_with_words(text in ".{0,40}") {
        if let Err(words) = order(&text) {
            let control = words.chars().any(char::is_control);
            prop_assert!(!words.is_empty() && !control);
        }
    }
}
