//! What is saved: every operation hands out its changes, and the changes together make the same hub again.

use serde_json::value::{RawValue, to_raw_value};
use serde_json::{Value, json};

use super::*;
use crate::emulator::clock::ClockOffset;
use crate::emulator::hub::piece::DeviceSnapshot;
use crate::emulator::hub::{HubSize, Metered, Tier};
use crate::emulator::registry::IdentityRecord;

/// The stored pieces, as a file would have them.
#[derive(Default)]
struct Stored(BTreeMap<String, Box<RawValue>>);

impl Stored {
    fn save(&mut self, hub: &mut Hub) {
        for (key, piece) in hub.take_changes() {
            match piece {
                Some(piece) => drop(self.0.insert(key, to_raw_value(&piece).expect("JSON"))),
                None => drop(self.0.remove(&key)),
            }
        }
    }

    fn restart_with(&self, mut next: Hub) -> Hub {
        next.restore(self.0.clone()).expect("pieces");
        next
    }
}

/// A hub without devices.
fn empty() -> Hub {
    Hub::new(Registry::new("hub.local.test", Vec::new()), Duration::from_secs(15))
}

/// Restarts a hub with what it hands out.
fn restarted(hub: &mut Hub) -> Hub {
    let mut stored = Stored::default();
    stored.save(hub);
    stored.restart_with(super::hub())
}

/// All that must survive a restart.
fn all(hub: &Hub) -> Value {
    let of_absent = |(id, kept): (&String, &DeviceSnapshot)| json!([id, kept, kept.twin, kept.events]);
    let of_device = |id: &str| {
        let state = hub.devices.get(id).expect("a device");
        json!([id, state.own_piece(), &*state.twin, state.events.iter().collect::<Vec<_>>()])
    };
    let mut all: Vec<Value> = hub.device_ids().map(of_device).collect();
    all.extend(hub.absent.iter().map(of_absent));
    all.sort_by_key(Value::to_string);
    let feedback: Vec<_> = hub.feedback().map(|view| view.record.clone()).collect();
    let jobs: Vec<_> = hub.jobs_after(0).collect();
    json!([all, feedback, jobs, hub.device_jobs_after(0, "").collect::<Vec<_>>()])
}

/// A hub that holds something of everything, its connection of dev1, and a message that is locked for it.
struct Rich {
    hub: Hub,
    connection: ConnectionId,
    locked: Locked,
}

fn rich() -> Rich {
    let mut hub = hub();
    hub.add_device(device("dev1/mod1"));
    let connection = connect(&mut hub, false);
    for subscription in [Subscription::Methods, Subscription::DesiredProperties] {
        assert!(hub.subscribe("dev1", connection, subscription, 0));
    }
    for number in 1..=5 {
        send(&mut hub, &format!("m{number}"), DeliveryAck::Full);
    }
    for _ in 0..2 {
        let ended = hub.next_delivery("dev1", connection, NOW).expect("a message");
        hub.complete("dev1", ended.lock, NOW).expect("locked");
    }
    let locked = hub.next_delivery("dev1", connection, NOW).expect("a message");
    hub.patch_reported("dev1", &json!({ "led": "on" }), NOW).expect("patched");
    event(&mut hub, "dev1");
    Rich { hub, connection, locked }
}

fn event(hub: &mut Hub, id: &str) {
    let properties = Properties::decode("%24.cid=m%201&flag").expect("a bag");
    hub.record_event(id, properties, Bytes::from_static(b"\xff\x00"), NOW);
}

fn call(hub: &mut Hub) -> CallId {
    let payload = to_raw_value(&1).expect("JSON");
    let (response_timeout, connect_timeout) = (Duration::from_secs(30), Duration::from_secs(10));
    let call = BackEndCall { name: "reboot".to_owned(), payload, response_timeout, connect_timeout };
    hub.call_method("dev1", call, NOW).expect("taken")
}

fn batch(hub: &mut Hub) -> FeedbackLock {
    hub.next_feedback_batch(NOW).expect("due").lock
}

/// Sets a tag of each device.
fn job(id: &str) -> JobOrder {
    let tags = json!({ "floor": 1 }).as_object().cloned();
    JobOrder {
        id: id.to_owned(),
        action: JobAction::Twin { tags, desired: None },
        sent: RawValue::from_string("{}".to_owned()).expect("JSON"),
        condition: "*".to_owned(),
        start: None,
        max_execution: Duration::from_secs(60),
    }
}

type Operation = fn(&mut Rich);

/// Every operation that may change the hub. A name may come twice.
const OPERATIONS: &[(&str, Operation)] = &[
    ("send_again", |it| it.hub.send_again("dev1", 1, "m9", NOW).expect("kept")),
    ("set_fault", |it| assert!(it.hub.set_fault("dev1", Fault::Throttle))),
    ("order_faults", |it| {
        it.hub.order_faults(&["duplicate".parse().expect("a fault")]).expect("set");
    }),
    ("clear_faults", |it| assert!(it.hub.clear_faults("dev1", None))),
    ("drops_packet", |it| assert!(!it.hub.drops_packet("dev1"))),
    ("ignores_puback", |it| assert!(!it.hub.ignores_puback("dev1"))),
    ("expires_token", |it| assert!(!it.hub.expires_token("dev1"))),
    ("throttle_as", |it| it.hub.throttle_as(size())),
    ("meter", |it| it.hub.meter(Metered::Query, 0, NOW).expect("the first one")),
    ("add_device", |it| it.hub.add_device(device("dev3"))),
    ("add_device", |it| {
        it.hub.remove_device("dev1");
        it.hub.add_device(device("dev1"));
    }),
    ("remove_device", |it| it.hub.remove_device("dev1")),
    ("set_record", |it| {
        let record = IdentityRecord { enabled: false, ..IdentityRecord::default() };
        it.hub.set_record("dev1", record, after(1));
    }),
    ("set_model_id", |it| it.hub.set_model_id("dev1", "dtmi:a;1".to_owned())),
    ("clock_moved", |it| it.hub.clock_moved(ClockOffset::default(), after(3_601))),
    ("clock_moved", |it| {
        assert_eq!(it.hub.purge("dev1", after(10)), Some(2));
        it.hub.clock_moved(ClockOffset::default(), after(5));
    }),
    ("schedule_job", |it| drop(it.hub.schedule_job(job("j1"), NOW).expect("room"))),
    ("cancel_job", |it| {
        it.hub.schedule_job(job("j1"), NOW).expect("room");
        it.hub.cancel_job("j1", NOW).expect("not begun");
    }),
    ("advance_jobs", |it| {
        it.hub.schedule_job(job("j1"), NOW).expect("room");
        while it.hub.advance_jobs(NOW).is_some() {}
        assert!(it.hub.twin("dev2").expect("a twin")["tags"]["floor"] == 1);
    }),
    ("serve_events_at", |it| it.hub.serve_events_at(5671)),
    ("begin_reading", |it| {
        it.hub.begin_reading("$Default", 0, None).expect("free");
    }),
    ("end_reading", |it| {
        let reader = it.hub.begin_reading("$Default", 0, None).expect("free");
        it.hub.end_reading(reader);
    }),
    ("set_input_routes", |it| it.hub.set_input_routes(Vec::new())),
    ("send_to_input", |it| {
        it.hub.send_to_input("dev1/mod1", "in", C2dMessage::default(), NOW).expect("room");
    }),
    ("route", |it| {
        let route = r#"FROM /messages/modules/m/* INTO BrokeredEndpoint("/modules/mod1/inputs/in")"#;
        it.hub.set_input_routes(vec![route.parse().expect("a route")]);
        it.hub.route("dev1/m", &Properties::default(), &Bytes::new(), NOW);
        assert_eq!(it.hub.queue_length("dev1/mod1"), Some(1));
    }),
    ("call_method", |it| {
        call(&mut it.hub);
    }),
    ("next_method", |it| {
        call(&mut it.hub);
        it.hub.next_method("dev1", it.connection, NOW).expect("a call");
    }),
    ("answer_method", |it| {
        let id = call(&mut it.hub);
        it.hub.next_method("dev1", it.connection, NOW).expect("a call");
        assert!(it.hub.answer_method("dev1", it.connection, id, 200, b"1"));
    }),
    ("method_progress", |it| {
        let id = call(&mut it.hub);
        it.hub.method_progress("dev1", id, NOW);
    }),
    ("forget_method", |it| {
        let id = call(&mut it.hub);
        it.hub.forget_method("dev1", id);
    }),
    ("put_back", |it| it.hub.put_back("dev1", &it.locked.clone())),
    ("poll", |it| drop(it.hub.poll("dev1", NOW).expect("a message"))),
    ("number_from", |it| it.hub.number_from(after(1))),
    ("purge", |it| assert_eq!(it.hub.purge("dev1", NOW), Some(2))),
    ("take_changes", |_| ()),
    ("take_woken", |it| drop(it.hub.take_woken())),
    ("restore", |it| it.hub.restore(BTreeMap::new()).expect("nothing")),
    ("restore_snapshot", |it| it.hub.restore_snapshot(old_snapshot()).expect("its format")),
    ("connect", |it| assert!(it.hub.connect("dev1", true, after(1)).is_some())),
    ("disconnect", |it| it.hub.disconnect("dev1", it.connection, after(1))),
    ("subscribe", |it| assert!(it.hub.subscribe("dev1", it.connection, Subscription::TwinResponses, 0))),
    ("unsubscribe", |it| it.hub.unsubscribe("dev1", it.connection, Subscription::DeviceBound)),
    ("enqueue", |it| send(&mut it.hub, "m9", DeliveryAck::None)),
    ("next_delivery", |it| drop(it.hub.next_delivery("dev1", it.connection, NOW).expect("a message"))),
    ("complete", |it| it.hub.complete("dev1", it.locked.lock, NOW).expect("locked")),
    ("reject", |it| it.hub.reject("dev1", it.locked.lock, NOW).expect("locked")),
    ("abandon", |it| it.hub.abandon("dev1", it.locked.lock, NOW).expect("locked")),
    ("touch", |it| it.hub.touch("dev2", after(1))),
    ("request_certificate", |it| request_certificate(it)),
    ("next_certificate_answer", |it| {
        request_certificate(it);
        it.hub.next_certificate_answer("dev1", it.connection, NOW);
    }),
    ("certificate_taken", |it| {
        request_certificate(it);
        it.hub.certificate_taken("dev1", "rid-1");
    }),
    ("note_change", |it| it.hub.note_change()),
    ("record_event", |it| (0..150).for_each(|_| event(&mut it.hub, "dev2"))),
    ("record_event", |it| (0..150).for_each(|_| event(&mut it.hub, "dev1"))),
    ("next_feedback_batch", |it| {
        batch(&mut it.hub);
    }),
    ("complete_feedback", |it| {
        let lock = batch(&mut it.hub);
        it.hub.complete_feedback(lock).expect("locked");
    }),
    ("abandon_feedback", |it| {
        for _ in 0..MAX_DELIVERY_COUNT {
            let lock = batch(&mut it.hub);
            it.hub.abandon_feedback(lock).expect("locked");
        }
    }),
    ("release_feedback", |it| {
        let lock = batch(&mut it.hub);
        it.hub.release_feedback(lock).expect("locked");
    }),
    ("tick", |it| it.hub.tick(after(3_601))),
    ("next_deadline", |it| assert!(it.hub.next_deadline().is_some())),
    ("patch_reported", |it| {
        it.hub.patch_reported("dev1", &json!({ "led": null }), NOW).expect("patched");
    }),
    ("write_twin", |it| {
        let tags = json!({ "floor": 1 }).as_object().cloned();
        it.hub.write_twin("dev2", TwinWrite::Patch { tags, desired: None }, None, after(1)).expect("written");
    }),
    ("next_desired_change", |it| drop(it.hub.next_desired_change("dev1", it.connection))),
];

fn size() -> HubSize {
    HubSize::new(Tier::S1, 1).expect("a size")
}

fn request_certificate(it: &mut Rich) {
    let body = br#"{"id":"dev1","csr":"MIIB"}"#;
    let sign = |csr: &str, _: &str| Ok(vec![csr.to_owned()]);
    it.hub.request_certificate(("dev1", true), "rid-1", body, (&sign, "t-1"), NOW);
}

/// The names of the public methods of the hub that may change it.
fn names_in_source() -> std::collections::BTreeSet<String> {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/emulator/hub");
    let files = std::fs::read_dir(folder).expect("the sources").map(|file| file.expect("a file").path());
    let texts = files.filter(|path| path.is_file()).map(|path| std::fs::read_to_string(path).expect("text"));
    let names = |text: String| {
        let functions =
            text.split("    pub fn ").skip(1).map(|rest| rest.split_once('(').expect("arguments"));
        let mutable = functions.filter(|(_, arguments)| arguments.trim_start().starts_with("&mut self"));
        mutable.map(|(name, _)| name.to_owned()).collect::<Vec<_>>()
    };
    texts.flat_map(names).collect()
}

#[test]
fn every_operation_hands_out_what_it_changes() {
    let listed = OPERATIONS.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(names_in_source(), listed, "list each operation of the hub in this file");
    for (name, operation) in OPERATIONS {
        let mut it = rich();
        let mut stored = Stored::default();
        stored.save(&mut it.hub);
        let changes = it.hub.changes();
        let before = all(&it.hub);
        operation(&mut it);
        let after = all(&it.hub);
        assert!(
            before == after || it.hub.changes() > changes,
            "{name} does not tell that it changes the hub"
        );
        stored.save(&mut it.hub);
        let next = stored.restart_with(empty());
        assert_eq!(all(&next), after, "{name}");
        assert!(it.hub.take_changes().is_empty(), "{name}: all of it is taken once");
        // What is gone leaves no piece behind.
        let ids: Vec<String> = it.hub.device_ids().map(str::to_owned).collect();
        let mut next = stored.restart_with(super::hub());
        ids.iter().for_each(|id| next.remove_device(id));
        ["dev1", "dev2", "dev1/mod1", "gone"].iter().for_each(|id| next.remove_device(id));
        stored.save(&mut next);
        let others = next.feedback().count() + next.jobs_after(0).count();
        assert_eq!(stored.0.len(), others, "{name}: {:?}", stored.0.keys());
    }
}

#[test]
fn a_change_of_one_device_hands_out_no_other_one_and_only_the_parts_that_changed() {
    let keys = |hub: &mut Hub| hub.take_changes().into_iter().map(|(key, _)| key).collect::<Vec<_>>();
    let mut it = rich();
    assert_eq!(keys(&mut it.hub).len(), 3 + 1 + 1 + 2, "three devices, a twin, a D2C message, two records");
    send(&mut it.hub, "m9", DeliveryAck::None);
    assert_eq!(keys(&mut it.hub), ["device/dev1"]);
    it.hub.complete("dev1", it.locked.lock, NOW).expect("locked");
    assert_eq!(keys(&mut it.hub), ["device/dev1", "feedback/3"]);
    event(&mut it.hub, "dev2");
    assert_eq!(keys(&mut it.hub), ["device/dev2", "event/dev2/1"]);
    it.hub.patch_reported("dev2", &json!({ "a": 1 }), NOW).expect("patched");
    assert_eq!(keys(&mut it.hub), ["device/dev2", "twin/dev2"]);
    for _ in 0..MAX_EVENTS {
        event(&mut it.hub, "dev2");
    }
    assert_eq!(keys(&mut it.hub)[..2], ["device/dev2", "event/dev2/1"]);
    // A link that asks for work changes nothing.
    it.hub.tick(NOW);
    assert!(it.hub.next_delivery("dev2", it.connection, NOW).is_none());
    assert!(it.hub.next_desired_change("dev1", it.connection).is_none());
    assert!(it.hub.next_method("dev1", it.connection, NOW).is_none());
    assert_eq!(keys(&mut it.hub), Vec::<String>::new());
}

#[test]
fn a_restart_loses_connections_and_locks_and_nothing_else() {
    let mut hub = hub();
    for id in ["m1", "m2", "m3"] {
        send(&mut hub, id, DeliveryAck::Full);
    }
    let connection = connect(&mut hub, false);
    let first = hub.next_delivery("dev1", connection, NOW).expect("a message");
    hub.complete("dev1", first.lock, NOW).expect("locked");
    let second = hub.next_delivery("dev1", connection, NOW).expect("a message");
    hub.abandon("dev1", second.lock, NOW).expect("locked");
    assert_eq!(next_id(&mut hub, connection, NOW).as_deref(), Some("m2"));
    hub.patch_reported("dev1", &json!({ "led": "on" }), after(9)).expect("patched");
    hub.set_model_id("dev1", "dtmi:a;1".to_owned());
    event(&mut hub, "dev1");
    let batch = hub.next_feedback_batch(NOW).expect("one for m1");
    assert_eq!(batch.records.len(), 1);

    let mut stored = Stored::default();
    stored.save(&mut hub);
    let restarted = || stored.restart_with(super::hub());
    let mut next = restarted();
    let twins = [&next, &hub].map(|hub| hub.twin("dev1").expect("a twin"));
    for part in ["properties", "modelId", "lastActivityTime"] {
        assert_eq!(twins[0][part], twins[1][part]);
    }
    let events = |hub: &Hub| hub.events("dev1").expect("a device").cloned().collect::<Vec<_>>();
    assert_eq!(events(&next), events(&hub));
    let kept = next.ended("dev1").next().expect("m1");
    let content = kept.content.as_ref().expect("its content");
    assert_eq!((kept.sequence_number, content.message.message_id()), (1, Some("m1")));
    assert_eq!(next.next_feedback_batch(NOW).expect("m1 again").records, batch.records);
    // The session was restored, so messages come without a new subscription, in the old order and with their
    // counts.
    let connected = next.connect("dev1", false, NOW).expect("a device");
    assert!(connected.session_present);
    let again = next.next_delivery("dev1", connected.connection, NOW).expect("m2");
    assert_eq!((again.message.message_id(), again.delivery_count, again.redelivered), (Some("m2"), 1, true));
    assert_eq!(again.sequence_number, 2);
    assert_eq!(next_id(&mut next, connected.connection, NOW).as_deref(), Some("m3"));
    // Messages also expire while no hub runs.
    let mut next = restarted();
    next.tick(after(3_601));
    assert_eq!((next.queue_length("dev1"), next.ended("dev1").count()), (Some(0), 3));
}

#[test]
fn devices_that_are_not_there_this_time_are_kept_for_the_next() {
    let mut with = hub();
    send(&mut with, "m1", DeliveryAck::None);
    let mut stored = Stored::default();
    stored.save(&mut with);
    let mut without = stored.restart_with(empty());
    assert_eq!(without.queue_length("dev1"), None);
    stored.save(&mut without);
    assert_eq!(stored.restart_with(hub()).queue_length("dev1"), Some(1));
    // The data also returns when the device is made again while the hub runs.
    without.add_device(device("dev1"));
    assert_eq!(without.queue_length("dev1"), Some(1));
}

/// What a hub of the version before stored.
fn old_snapshot() -> Snapshot {
    let time = json!({ "secs_since_epoch": 5, "nanos_since_epoch": 0 });
    let record = json!({
        "originalMessageId": "m-0", "description": "Success", "deviceGenerationId": "1", "deviceId": "dev1",
        "enqueuedTimeUtc": "1970-01-01T00:00:05.0000000Z", "statusCode": "Success",
    });
    let message = json!({
        "message": ["%24.mid=m-1", "eA=="], "ack": "full", "enqueued": time, "sequence_number": 7,
        "expires": { "secs_since_epoch": 3600, "nanos_since_epoch": 0 }, "delivery_count": 0, "redelivered": false,
    });
    let twin = json!({
        "tags": {}, "desired": {}, "desired_version": 1, "reported": { "led": "on" }, "reported_version": 2,
        "written": 1,
    });
    let event = json!({ "number": 3, "enqueued": time, "properties": "a=b", "body": "eA==" });
    let device = json!({
        "queue": [message], "queued": 7, "stored": true, "subscriptions": [["DeviceBound", 1]], "twin": twin,
        "events": [event], "ended": [], "last_activity": null,
    });
    let devices = json!({ "dev1": device, "gone": device });
    let snapshot = json!({ "format": 1, "devices": devices, "feedback": [[time, record]] });
    serde_json::from_value(snapshot).expect("a snapshot")
}

#[test]
fn the_form_of_the_version_before_is_read_and_becomes_pieces() {
    let mut hub = hub();
    hub.restore_snapshot(old_snapshot()).expect("its format");
    let mut next = restarted(&mut hub);
    assert_eq!(next.queue_length("dev1"), Some(1));
    assert_eq!(next.twin_properties("dev1").expect("a twin")["reported"]["led"], "on");
    assert_eq!(next.events("dev1").expect("a device").next().map(|event| event.number), Some(3));
    assert_eq!(next.feedback().next().expect("a record").record.original_message_id, "m-0");
    next.add_device(device("gone"));
    assert_eq!(next.events("gone").expect("a device").count(), 1);
    let other = serde_json::from_value(json!({ "format": 2, "devices": {}, "feedback": [] }));
    let refused = hub.restore_snapshot(other.expect("a snapshot")).expect_err("another format");
    assert_eq!(refused.to_string(), "it has format 2, and this version of c2d-agent knows format 1");
}

#[test]
fn a_piece_that_cannot_be_read_is_named_and_nothing_changes() {
    for (key, value, words) in [
        ("device/dev1", "[1]", "the value of \"device/dev1\" is damaged: "),
        ("event/dev1", "{}", "the key \"event/dev1\" is unknown"),
        ("event/dev1/1", "{}", "the value of \"event/dev1/1\" is damaged: missing field `number`"),
        ("feedback/x", "[]", "the key \"feedback/x\" is unknown"),
        ("other/dev1", "{}", "the key \"other/dev1\" is unknown to this version of c2d-agent"),
        ("", "{}", "the key \"\" is unknown"),
    ] {
        let mut hub = hub();
        let before = all(&hub);
        let piece = (key.to_owned(), RawValue::from_string(value.to_owned()).expect("JSON"));
        let refused = hub.restore([piece].into()).expect_err(key).to_string();
        assert!(refused.starts_with(words), "{refused}");
        assert_eq!(all(&hub), before);
    }
}
