//! Direct methods and the twin, against the emulator: a hub that calls, waits, and keeps what is written.

use std::time::Duration;

use bytes::Bytes;
use serde_json::{Map, Value, json};

use super::emulator::{published, settings, settings_of, start};
use super::{DEADLINE, Delivery, Event, Session, Settings, delivery, next};
use crate::emulator::Emulator;
use crate::emulator::hub::{BackEndCall, CallError, CallId, CallProgress, TwinWrite};
use crate::message::{C2dMessage, Source};
use crate::session::Upstream;

fn call(emulator: &Emulator, name: &str, payload: &str) -> CallId {
    let call = BackEndCall {
        name: name.to_owned(),
        payload: serde_json::from_str(payload).expect("JSON"),
        response_timeout: Duration::from_secs(30),
        connect_timeout: Duration::from_secs(30),
    };
    emulator.hub().with(|hub, now| hub.call_method("dev1", call, now)).expect("taken")
}

/// How a call ends.
async fn end(emulator: &Emulator, id: CallId) -> Result<(i32, String), CallError> {
    let mut changes = emulator.hub().watch();
    let ended = async {
        loop {
            match emulator.hub().with(|hub, now| hub.method_progress("dev1", id, now)) {
                CallProgress::Done(end) => {
                    return end.map(|answer| (answer.status, answer.payload.get().into()));
                }
                CallProgress::Pending(_) => changes.changed().await.expect("a hub"),
            }
        }
    };
    tokio::time::timeout(DEADLINE, ended).await.expect("an end in time")
}

fn method(call: &Delivery) -> (String, String) {
    let message = call.message.as_ref().expect("a call");
    let Source::Method(name) = message.source() else { panic!("a call, not {:?}", message.source()) };
    (name.to_owned(), String::from_utf8_lossy(&message.body).into_owned())
}

fn write_desired(emulator: &Emulator, desired: Value) {
    let Value::Object(desired) = desired else { panic!("an object") };
    let write = TwinWrite::Patch { tags: None, desired: Some(desired) };
    emulator.hub().with(|hub, now| hub.write_twin("dev1", write, None, now)).expect("written");
}

async fn calls_are_answered(settings: impl Fn(&Emulator, &std::path::Path) -> Settings) {
    let dir = tempfile::tempdir().expect("a directory");
    let emulator = start(dir.path()).await;
    let mut session = Session::open(settings(&emulator, dir.path())).expect("a session");
    assert!(matches!(next(&mut session).await, Event::Subscribed { .. }));
    let first = call(&emulator, "set point/ü?#+%", r#"{"b": 1,  "a": 1e400}"#);
    let second = call(&emulator, "reboot", "null");
    let mut taken = Vec::new();
    for _ in 0..2 {
        let call = delivery(&mut session).await;
        assert!(call.receipt.is_call() && call.receipt.is_current());
        taken.push(call);
    }
    let methods: Vec<_> = taken.iter().map(method).collect();
    let expected = [("set point/ü?#+%", r#"{"b": 1,  "a": 1e400}"#), ("reboot", "null")];
    assert_eq!(methods, expected.map(|(name, payload)| (name.to_owned(), payload.to_owned())));
    taken.remove(1).receipt.answer(202, Bytes::from_static(br#"{"id":"method-1"}"#));
    assert_eq!(end(&emulator, second).await, Ok((202, r#"{"id":"method-1"}"#.to_owned())));
    taken.remove(0).receipt.answer(404, Bytes::new());
    assert_eq!(end(&emulator, first).await, Ok((404, "null".to_owned())));
    // The first call is dropped. The second one is answered while the session ends.
    let dropped = call(&emulator, "x", "1");
    drop(delivery(&mut session).await);
    let (status, said) = end(&emulator, dropped).await.expect("an answer");
    assert!(status == 503 && said.contains("call again later"), "{status} {said}");
    let late = call(&emulator, "late", "1");
    let late_call = delivery(&mut session).await;
    let ((), answered) = tokio::join!(session.close(), async {
        late_call.receipt.answer(200, Bytes::from_static(b"2"));
        end(&emulator, late).await
    });
    assert_eq!(answered, Ok((200, "2".to_owned())));
    emulator.stop().await;
}

async fn the_twin_is_read(settings: impl Fn(&Emulator, &std::path::Path) -> Settings) {
    let dir = tempfile::tempdir().expect("a directory");
    let emulator = start(dir.path()).await;
    write_desired(&emulator, json!({ "before": true }));
    let mut session = Session::open(settings(&emulator, dir.path())).expect("a session");
    assert!(matches!(next(&mut session).await, Event::Subscribed { .. }));
    let patch = |text: &'static str| Upstream::Reported { patch: Bytes::from_static(text.as_bytes()) };
    session.publish(1, patch(r#"{"on":true}"#));
    assert_eq!(published(&mut session).await, (1, Ok(Bytes::new())));
    let read = |result: (u64, Result<Bytes, _>)| -> (u64, Map<String, Value>) {
        (result.0, serde_json::from_slice(&result.1.expect("a twin")).expect("an object"))
    };
    session.publish(2, Upstream::ReadTwin);
    let (ticket, twin) = read(published(&mut session).await);
    assert_eq!((ticket, &twin["desired"]), (2, &json!({ "before": true, "$version": 2 })));
    assert_eq!(twin["reported"], json!({ "on": true, "$version": 2 }));
    write_desired(&emulator, json!({ "rules": [1, 2], "before": null }));
    assert!(matches!(next(&mut session).await, Event::DesiredChanged));
    session.publish(3, Upstream::ReadTwin);
    let (ticket, twin) = read(published(&mut session).await);
    assert_eq!((ticket, &twin["desired"]), (3, &json!({ "rules": [1, 2], "$version": 3 })));
    session.close().await;
    emulator.stop().await;
}

#[tokio::test]
async fn calls_are_answered_over_mqtt() {
    calls_are_answered(|emulator, dir| Settings { methods: true, ..settings(emulator, dir) }).await;
}

#[cfg(feature = "full")]
#[tokio::test]
async fn calls_are_answered_over_amqp() {
    calls_are_answered(|emulator, dir| Settings { methods: true, ..over_amqp(emulator, dir) }).await;
}

#[cfg(feature = "full")]
#[tokio::test]
async fn the_twin_is_read_over_amqp() {
    the_twin_is_read(|emulator, dir| Settings { desired: true, twin: false, ..over_amqp(emulator, dir) })
        .await;
}

#[cfg(feature = "full")]
fn over_amqp(emulator: &Emulator, dir: &std::path::Path) -> Settings {
    let mut settings = Settings { transport: crate::credentials::Transport::Amqp, ..settings(emulator, dir) };
    settings.identity.hub.port = Some(emulator.amqp_address().port());
    settings
}

#[tokio::test]
async fn the_twin_is_read_over_mqtt() {
    the_twin_is_read(|emulator, dir| Settings { desired: true, twin: false, ..settings(emulator, dir) })
        .await;
}

#[tokio::test]
async fn a_module_gets_what_is_sent_to_its_inputs_and_settles_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let emulator = start(dir.path()).await;
    let settings = settings_of(&emulator, dir.path(), "edge1/agent");
    let mut session = Session::open(settings).expect("a session");
    assert!(matches!(next(&mut session).await, Event::Subscribed { .. }));
    for (number, input) in [(1, "in1"), (2, "in-2")] {
        let bag = format!("%24.mid=m-{number}&number={number}");
        let message = C2dMessage::from_bag(&bag, Bytes::from_static(b"{}")).expect("a bag");
        emulator
            .hub()
            .with(|hub, now| hub.send_to_input("edge1/agent", input, message, now))
            .expect("queued");
    }
    let (first, second) = (delivery(&mut session).await, delivery(&mut session).await);
    let message = first.message.as_ref().expect("a message");
    assert_eq!((message.source(), message.message_id()), (Source::Input("in1"), Some("m-1")));
    let message = second.message.as_ref().expect("a message");
    assert_eq!((message.source(), message.property("number")), (Source::Input("in-2"), Some("2")));
    second.receipt.complete();
    first.receipt.complete();
    session.close().await;
    let left = emulator.hub().with(|hub, _| hub.twin("edge1/agent")).expect("a twin");
    assert_eq!(left["cloudToDeviceMessageCount"], 0);
    emulator.stop().await;
}
