//! Faults as a device and a back end see them over AMQP.

use super::device::{enqueue, id, next, signed_in};
use super::*;
use crate::emulator::hub::Fault;

const DEVICEBOUND: &str = "/devices/dev1/messages/devicebound";
const EVENTS: &str = "/devices/dev1/messages/events";
const THROTTLED: &str = "com.microsoft:device-container-throttled";

fn set(hub: &SharedHub, fault: Fault) {
    assert!(hub.with(|hub, _| hub.set_fault("dev1", fault)));
}

/// Waits until every fault has ended.
async fn used_up(hub: &SharedHub) {
    let none = async {
        let mut changes = hub.watch_changes();
        while hub.with(|hub, _| hub.faults("dev1")) != Some(Vec::new()) {
            changes.changed().await.expect("a hub");
        }
    };
    tokio::time::timeout(Duration::from_secs(10), none).await.expect("in time");
}

#[tokio::test]
async fn throttling_refuses_links_messages_of_the_device_and_messages_to_it() {
    let hub = hub();
    let mut device = signed_in(&hub).await;
    let mut events = device.sender(EVENTS).await.expect("a link");
    let mut back_end = Client::signed_in(&hub).await;
    let mut sender = back_end.sender("/messages/devicebound").await.expect("a link");
    set(&hub, Fault::Throttle);
    for link in [&mut events, &mut sender] {
        let outcome = link.send(c2d("m-1".to_owned())).await.expect("an outcome");
        let (condition, description, tracked) = rejection(outcome);
        assert!(condition == THROTTLED && tracked, "{condition}: {description}");
    }
    let refused = device.receiver(DEVICEBOUND).await.expect_err("refused");
    let ReceiverAttachError::RemoteClosedWithError(error) = refused else { panic!("{refused:?}") };
    assert_eq!(condition(&error), THROTTLED);
    let code = error.info.and_then(|info| info.get(&Symbol::from("com.microsoft:error-code")).cloned());
    assert_eq!(code, Some(Value::Int(429_001)));
    hub.with(|hub, _| hub.clear_faults("dev1", None));
    let outcome = sender.send(c2d("m-2".to_owned())).await.expect("an outcome");
    assert!(matches!(outcome, Outcome::Accepted(_)), "{outcome:?}");
}

#[tokio::test]
async fn a_full_queue_is_a_resource_limit() {
    let hub = hub();
    let mut client = Client::signed_in(&hub).await;
    let mut sender = client.sender("/messages/devicebound").await.expect("a link");
    set(&hub, Fault::QueueFull);
    let (condition, description, _) =
        rejection(sender.send(c2d("m-1".to_owned())).await.expect("an outcome"));
    assert_eq!(condition, "amqp:resource-limit-exceeded");
    assert!(description.contains("already holds 50 messages"), "{description}");
}

#[tokio::test]
async fn a_duplicate_is_delivered_under_another_tag_and_one_outcome_is_enough() {
    let hub = hub();
    let mut client = signed_in(&hub).await;
    let mut link = client.receiver(DEVICEBOUND).await.expect("a link");
    set(&hub, Fault::Duplicate(Some(1)));
    enqueue(&hub, "m-1");
    enqueue(&hub, "m-2");
    let (first, copy, other) = (next(&mut link).await, next(&mut link).await, next(&mut link).await);
    assert_eq!([&first, &copy, &other].map(id), ["m-1", "m-1", "m-2"]);
    assert_ne!(first.delivery_tag(), copy.delivery_tag());
    link.accept(&copy).await.expect("accepted");
    link.accept(&first).await.expect("accepted");
    link.accept(&other).await.expect("accepted");
    while hub.with(|hub, _| hub.queue_length("dev1")) != Some(0) {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn what_waits_comes_newest_first_and_no_sooner_than_its_delay() {
    let hub = hub();
    set(&hub, Fault::ReverseOrder);
    for id in ["m-1", "m-2", "m-3"] {
        enqueue(&hub, id);
    }
    let mut client = signed_in(&hub).await;
    let mut link = client.receiver(DEVICEBOUND).await.expect("a link");
    let mut seen = Vec::new();
    for _ in 0..3 {
        let delivery = next(&mut link).await;
        seen.push(id(&delivery));
        link.accept(&delivery).await.expect("accepted");
    }
    assert_eq!(seen, ["m-3", "m-2", "m-1"]);
    // The clock of this hub stands still, so the message is only sent when the fault ends.
    set(&hub, Fault::Delay(Duration::from_secs(1)));
    enqueue(&hub, "m-4");
    let early = tokio::time::timeout(Duration::from_millis(100), link.recv::<Body<Value>>()).await;
    assert!(early.is_err(), "{early:?}");
    hub.with(|hub, _| hub.clear_faults("dev1", None));
    assert_eq!(id(&next(&mut link).await), "m-4");
}

#[tokio::test]
async fn a_connection_is_cut_at_a_message_an_outcome_or_an_event() {
    let hub = hub();
    // Drop at the message.
    let mut client = signed_in(&hub).await;
    let mut link = client.receiver(DEVICEBOUND).await.expect("a link");
    set(&hub, Fault::DropAt(1));
    enqueue(&hub, "m-1");
    link.recv::<Body<Value>>().await.expect_err("cut");
    used_up(&hub).await;
    // Drop at its outcome.
    set(&hub, Fault::DropAt(2));
    let mut client = signed_in(&hub).await;
    let mut link = client.receiver(DEVICEBOUND).await.expect("a link");
    let delivery = next(&mut link).await;
    link.accept(&delivery).await.expect("sent");
    link.recv::<Body<Value>>().await.expect_err("cut");
    assert_eq!(hub.with(|hub, _| hub.queue_length("dev1")), Some(1), "the outcome was lost");
    // Drop at a D2C message.
    set(&hub, Fault::DropAt(1));
    let mut client = signed_in(&hub).await;
    let mut events = client.sender(EVENTS).await.expect("a link");
    // The client's library does not report the end of the connection to a task that waits for an outcome.
    tokio::select! {
        sent = events.send(c2d("e-1".to_owned())) => drop(sent.expect_err("cut")),
        () = used_up(&hub) => {}
    }
    assert_eq!(hub.with(|hub, _| hub.events("dev1").map(Iterator::count)), Some(0));
    let mut client = signed_in(&hub).await;
    let mut link = client.receiver(DEVICEBOUND).await.expect("a link");
    assert_eq!(id(&next(&mut link).await), "m-1");
}

#[tokio::test]
async fn a_token_that_expires_early_cuts_the_connection_of_a_device() {
    let hub = hub();
    let mut client = signed_in(&hub).await;
    let mut link = client.receiver(DEVICEBOUND).await.expect("a link");
    set(&hub, Fault::ExpireToken);
    link.recv::<Body<Value>>().await.expect_err("ended");
    used_up(&hub).await;
    // With a reason, the Node SDK would not connect again.
    let ended = client.session.on_end().await;
    assert!(!matches!(ended, Err(fe2o3_amqp::session::Error::RemoteEndedWithError(_))), "{ended:?}");
    let mut client = signed_in(&hub).await;
    client.receiver(DEVICEBOUND).await.expect("the next token is good");
}
