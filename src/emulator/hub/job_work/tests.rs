//! Jobs, step by step.
//!
//! Owns: nothing. Must not know: HTTP.

use super::super::jobs::{MAX_JOB_BYTES, MAX_JOBS};
use super::super::session::{ConnectionId, Subscription};
use super::super::tests::{NOW, after, device, hub};
use super::*;
use serde_json::json;
use serde_json::value::RawValue;
use std::time::Duration;

const HOUR: Duration = Duration::from_secs(3_600);

/// A hub with the devices `d000`, `d001`, …, a module, and `dev1`.
fn fleet(count: usize) -> Hub {
    let mut hub = hub();
    hub.remove_device("dev2");
    (0..count).for_each(|n| hub.add_device(device(&format!("d{n:03}"))));
    hub.add_device(device("d000/filter"));
    hub
}

fn order(id: &str, condition: &str, action: JobAction) -> JobOrder {
    JobOrder {
        id: id.into(),
        action,
        sent: RawValue::from_string("{}".to_owned()).expect("JSON"),
        condition: condition.into(),
        start: None,
        max_execution: HOUR,
    }
}

fn tags(id: &str, condition: &str) -> JobOrder {
    let tags = json!({ "n": 1 }).as_object().cloned();
    order(id, condition, JobAction::Twin { tags, desired: None })
}

fn method(id: &str, condition: &str, connect_timeout: u64) -> JobOrder {
    let action = JobAction::Method {
        name: "reboot".into(),
        payload: "{\"b\":1}".into(),
        response_timeout: Duration::from_secs(30),
        connect_timeout: Duration::from_secs(connect_timeout),
    };
    order(id, condition, action)
}

/// Takes jobs further until nothing can be done at once. Returns when the next step is due.
fn settle(hub: &mut Hub, now: SystemTime) -> Option<SystemTime> {
    (0..1_000).find_map(|_| match hub.advance_jobs(now) {
        Some(due) if due <= now => None,
        due => Some(due),
    })?
}

/// Status, and the counts: all, failed, succeeded, running, pending.
fn state(hub: &Hub, id: &str) -> (String, [u64; 5]) {
    let job = hub.job(id).expect("a job");
    let names = ["deviceCount", "failedCount", "succeededCount", "runningCount", "pendingCount"];
    let counts = names.map(|name| job["deviceJobStatistics"][name].as_u64().expect("a count"));
    (job["status"].as_str().expect("a status").to_owned(), counts)
}

fn is(status: &str, counts: [u64; 5]) -> (String, [u64; 5]) {
    (status.to_owned(), counts)
}

fn rows(hub: &Hub) -> Vec<(String, String, Value)> {
    let rows = hub.device_jobs_after(0, "").map(|(_, id, row)| {
        (id.to_owned(), row["status"].as_str().expect("a status").to_owned(), row["error"]["code"].clone())
    });
    rows.collect()
}

fn connect(hub: &mut Hub, id: &str) -> ConnectionId {
    let connection = hub.connect(id, true, NOW).expect("a device").connection;
    assert!(hub.subscribe(id, connection, Subscription::Methods, 0));
    connection
}

#[test]
fn a_twin_job_reaches_each_device_that_its_condition_holds_for_in_small_steps() {
    let mut hub = fleet(200);
    hub.schedule_job(tags("j", "NOT deviceId IN ['d007', 'dev1']"), NOW).expect("taken");
    assert_eq!(state(&hub, "j"), is("queued", [0; 5]));
    let mut steps = 0;
    while hub.advance_jobs(NOW).is_some() {
        let [all, _, done, _, _] = state(&hub, "j").1;
        assert!(all <= (steps + 1) * 64 && done <= steps * 64, "step {steps}: {all} {done}");
        steps += 1;
    }
    assert_eq!(state(&hub, "j"), is("completed", [199, 0, 199, 0, 0]));
    let n = |hub: &Hub, id: &str| hub.twin(id).expect("a twin")["tags"]["n"].clone();
    assert_eq!(
        ["d000", "d007", "d000/filter", "d199"].map(|id| n(&hub, id)),
        [json!(1), json!(null), json!(null), json!(1)]
    );
    assert_eq!(rows(&hub).len(), 199);
    // A device that comes later is not part of the job.
    hub.add_device(device("d999"));
    assert_eq!((settle(&mut hub, after(10)), state(&hub, "j").1[0]), (None, 199));
}

#[test]
fn a_method_job_calls_a_hundred_devices_at_once_and_fails_at_those_that_are_away() {
    let mut hub = fleet(250);
    let here = connect(&mut hub, "d001");
    hub.schedule_job(
        method("j", "STARTSWITH(deviceId, 'd0') OR deviceId >= 'd1' AND deviceId < 'd3'", 60),
        NOW,
    )
    .expect("taken");
    assert_eq!(settle(&mut hub, NOW), Some(after(60)));
    assert_eq!(state(&hub, "j"), is("running", [250, 0, 0, 100, 150]));
    let call = hub.next_method("d001", here, NOW).expect("a call");
    assert_eq!((call.name.as_str(), call.payload.get()), ("reboot", "{\"b\":1}"));
    assert!(hub.answer_method("d001", here, call.id, 500, b"{\"why\": \"busy\"}"));
    settle(&mut hub, after(1));
    assert_eq!(state(&hub, "j"), is("running", [250, 0, 1, 100, 149]));
    settle(&mut hub, after(60));
    assert_eq!(state(&hub, "j"), is("running", [250, 99, 1, 100, 50]));
    settle(&mut hub, after(121));
    settle(&mut hub, after(181));
    assert_eq!(state(&hub, "j"), is("completed", [250, 249, 1, 0, 0]));
    let row = hub.device_jobs_after(1, "d000").next().expect("a row").2;
    let answer = json!({ "status": 500, "payload": { "why": "busy" } });
    assert_eq!((&row["deviceId"], &row["outcome"]["deviceMethodResponse"]), (&json!("d001"), &answer));
    let row = hub.device_jobs_after(1, "d001").next().expect("a row").2;
    assert_eq!(
        row["error"],
        json!({ "code": "DeviceNotOnline", "description": "Timed out waiting for device to connect." })
    );
}

#[test]
fn a_device_that_goes_away_fails_and_the_others_go_on() {
    let mut hub = fleet(3);
    let connections = ["d000", "d002"].map(|id| connect(&mut hub, id));
    hub.schedule_job(method("j", "deviceId <> 'dev1'", 60), NOW).expect("taken");
    settle(&mut hub, NOW);
    assert!(hub.next_method("d000", connections[0], NOW).is_some());
    // d000 is deleted with its call, d001 while its call waits, and d002 answers.
    hub.remove_device("d000");
    hub.remove_device("d001");
    let call = hub.next_method("d002", connections[1], NOW).expect("a call");
    assert!(hub.answer_method("d002", connections[1], call.id, 200, b""));
    assert_eq!(settle(&mut hub, after(1)), None);
    let row = |id: &str, status: &str, code: Value| (id.to_owned(), status.to_owned(), code);
    let gone = || json!("DeviceNotFound");
    let expected =
        [row("d000", "failed", gone()), row("d001", "failed", gone()), row("d002", "completed", json!(null))];
    assert_eq!(rows(&hub), expected);
    assert_eq!(state(&hub, "j").0, "completed");
    // One that goes before its turn fails, too.
    hub.schedule_job(tags("k", "deviceId = 'd002'"), NOW).expect("taken");
    hub.advance_jobs(NOW);
    hub.remove_device("d002");
    settle(&mut hub, NOW);
    assert_eq!(rows(&hub)[3], row("d002", "failed", gone()));
}

#[test]
fn a_job_begins_at_its_time_and_ends_when_its_time_is_over() {
    let mut hub = fleet(2);
    let mut order = method("j", "deviceId <> 'dev1'", 300);
    (order.start, order.max_execution) = (Some(after(3_600)), Duration::from_secs(20));
    let job = hub.schedule_job(order, NOW).expect("taken");
    assert_eq!(
        (&job["status"], &job["startTime"]),
        (&json!("scheduled"), &json!(crate::message::format_time(after(3_600))))
    );
    assert_eq!(settle(&mut hub, after(3_599)), Some(after(3_600)));
    assert_eq!(state(&hub, "j"), is("scheduled", [0; 5]));
    assert_eq!(settle(&mut hub, after(3_600)), Some(after(3_620)));
    assert_eq!(state(&hub, "j"), is("running", [2, 0, 0, 2, 0]));
    assert_eq!(settle(&mut hub, after(3_620)), None);
    assert_eq!(state(&hub, "j"), is("completed", [2, 2, 0, 0, 0]));
    assert!(rows(&hub).iter().all(|(_, _, code)| code == "JobTimeout"));
    // The call is given up: the device does not get it later.
    let late = connect(&mut hub, "d000");
    assert!(hub.next_method("d000", late, after(3_621)).is_none());
    // A clock that goes backwards does no harm.
    assert_eq!(settle(&mut hub, NOW), None);
}

#[test]
fn a_cancelled_job_is_given_up_where_it_has_not_ended() {
    let mut hub = fleet(2);
    let here = connect(&mut hub, "d000");
    hub.schedule_job(method("j", "deviceId <> 'dev1'", 60), NOW).expect("taken");
    settle(&mut hub, NOW);
    let call = hub.next_method("d000", here, NOW).expect("a call");
    assert!(hub.answer_method("d000", here, call.id, 200, b"1"));
    settle(&mut hub, NOW);
    let cancelled = hub.cancel_job("j", after(1)).expect("running");
    assert_eq!(cancelled["status"], "cancelled");
    let states: Vec<_> = rows(&hub).into_iter().map(|(_, status, _)| status).collect();
    assert_eq!(states, ["completed", "canceled"]);
    assert_eq!(hub.cancel_job("j", NOW), Err(JobError::Ended("j".into(), "cancelled")));
    assert_eq!(hub.cancel_job("k", NOW), Err(JobError::Unknown("k".into())));
    let late = connect(&mut hub, "d001");
    assert!(hub.next_method("d001", late, after(2)).is_none());
}

#[test]
fn a_wrong_condition_fails_the_job_with_its_place() {
    let mut hub = fleet(1);
    hub.schedule_job(tags("j", "SELECT * FROM devices"), NOW).expect("taken");
    assert_eq!(settle(&mut hub, NOW), None);
    let job = hub.job("j").expect("a job");
    let reason = job["failureReason"].as_str().expect("a reason");
    assert!(reason.starts_with("the queryCondition is wrong at line 1, column 1: expected"), "{reason}");
    assert_eq!(state(&hub, "j"), is("failed", [0; 5]));
}

#[test]
fn a_twin_that_takes_no_more_fails_its_own_row() {
    let mut hub = fleet(2);
    let much =
        json!({ "a": "x".repeat(4_000), "b": "x".repeat(4_000) }).as_object().cloned().expect("an object");
    let write = TwinWrite::Patch { tags: Some(much), desired: None };
    hub.write_twin("d000", write, None, NOW).expect("room");
    let more = json!({ "c": "x".repeat(400) }).as_object().cloned();
    hub.schedule_job(order("j", "*", JobAction::Twin { tags: more, desired: None }), NOW).expect("taken");
    settle(&mut hub, NOW);
    assert_eq!(state(&hub, "j"), is("completed", [3, 1, 2, 0, 0]));
    assert_eq!(rows(&hub)[0].2, "ArgumentInvalid");
}

#[test]
fn jobs_run_ten_at_a_time_and_a_hundred_are_kept() {
    let mut hub = fleet(1);
    for n in 0..MAX_JOBS {
        hub.schedule_job(method(&format!("j{n}"), "deviceId = 'd000'", 60), NOW).expect("room");
    }
    assert_eq!(hub.schedule_job(tags("j1", "*"), NOW), Err(JobError::Exists("j1".into())));
    assert_eq!(hub.schedule_job(tags("new", "*"), NOW), Err(JobError::TooMany));
    settle(&mut hub, NOW);
    let with = |hub: &Hub, status: &str| hub.jobs_after(0).filter(|(_, job)| job["status"] == status).count();
    assert_eq!((with(&hub, "running"), with(&hub, "queued")), (10, 90));
    settle(&mut hub, after(60));
    assert_eq!((with(&hub, "completed"), with(&hub, "running")), (10, 10));
    hub.schedule_job(tags("new", "*"), NOW).expect("the oldest one goes");
    assert_eq!(hub.job("j0"), Err(JobError::Unknown("j0".into())));
    assert_eq!(hub.jobs_after(0).count(), MAX_JOBS);
}

#[test]
fn answers_have_a_bound_and_old_jobs_go_first() {
    let mut hub = fleet(8);
    let connections: Vec<_> = (0..8).map(|n| connect(&mut hub, &format!("d00{n}"))).collect();
    let large = format!("\"{}\"", "x".repeat(128 * 1024 - 2));
    let most = MAX_JOB_BYTES / (8 * large.len());
    for n in 0..most + 3 {
        hub.schedule_job(method(&format!("j{n}"), "deviceId <> 'dev1'", 0), NOW).expect("room");
        settle(&mut hub, NOW);
        for (n, connection) in connections.iter().enumerate() {
            let id = format!("d00{n}");
            let call = hub.next_method(&id, *connection, NOW).expect("a call");
            assert!(hub.answer_method(&id, *connection, call.id, 200, large.as_bytes()));
        }
        settle(&mut hub, NOW);
    }
    let kept = hub.jobs_after(0).count();
    assert!((most - 2..=most).contains(&kept), "{kept}");
    assert_eq!(state(&hub, &format!("j{}", most + 2)), is("completed", [8, 0, 8, 0, 0]));
    assert_eq!(hub.job("j0"), Err(JobError::Unknown("j0".into())));
}

#[test]
fn a_restart_goes_on_with_jobs_and_calls_no_device_twice() {
    let mut hub = fleet(3);
    let here = connect(&mut hub, "d001");
    hub.schedule_job(method("j", "deviceId IN ['d000', 'd001']", 60), NOW).expect("taken");
    settle(&mut hub, NOW);
    assert!(hub.next_method("d001", here, NOW).is_some());
    hub.schedule_job(tags("k", "*"), NOW).expect("taken");
    hub.advance_jobs(NOW);
    let text = |piece| serde_json::value::to_raw_value(&piece).expect("JSON");
    let pieces = hub.take_changes().into_iter().filter_map(|(key, piece)| Some((key, text(piece?))));
    let mut next = fleet(3);
    next.restore(pieces.collect()).expect("pieces");
    assert_eq!(next.job("k"), hub.job("k"));
    let again = connect(&mut next, "d001");
    assert_eq!(settle(&mut next, after(1)), None);
    assert!(next.next_method("d001", again, after(1)).is_none());
    assert_eq!(state(&next, "j"), is("completed", [2, 2, 0, 0, 0]));
    assert_eq!(state(&next, "k"), is("completed", [4, 0, 4, 0, 0]));
    let row = next.device_jobs_after(0, "").next().expect("a row").2;
    assert_eq!(row["error"]["description"], "the emulator ended before the device had answered");
}
