//! Jobs of back ends over HTTPS: what they do to twins and devices, and what is told of them.
//!
//! Owns: nothing. Must not know: the steps of a job; the unit tests of the hub have them.

use std::time::{Duration, Instant, SystemTime};

use serde_json::{Value, json};

use crate::emulator_methods::{called, listening, respond};
use crate::emulator_query::{patch, query};
use crate::harness::{Agent, DEADLINE, Emulator, Process};
use crate::rest::policy_token;
use crate::rest_ask::{Answer, ask};
use crate::sdk::{emulator, json as read, may_use_443, python, script};

fn request(emulator: &Emulator, method: &str, path: &str, headers: &str, body: &str) -> Answer {
    let line = format!("{method} /jobs{path}api-version=2021-04-12");
    ask(emulator, &line, &policy_token(emulator, "service"), headers, body.as_bytes())
}

fn put(emulator: &Emulator, id: &str, job: &Value) -> Answer {
    request(emulator, "PUT", &format!("/v2/{id}?"), "", &job.to_string())
}

fn get(emulator: &Emulator, id: &str) -> Value {
    let answer = request(emulator, "GET", &format!("/v2/{id}?"), "", "");
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()
}

/// The job, once it is in this state.
fn wait(emulator: &Emulator, id: &str, status: &str) -> Value {
    let begin = Instant::now();
    loop {
        let job = get(emulator, id);
        if job["status"] == status {
            return job;
        }
        assert!(begin.elapsed() < DEADLINE, "not {status}: {job}");
    }
}

fn statistics(all: u64, failed: u64, succeeded: u64, running: u64, pending: u64) -> Value {
    json!({
        "deviceCount": all, "failedCount": failed, "succeededCount": succeeded, "runningCount": running,
        "pendingCount": pending,
    })
}

/// A job as the Node SDK sends it.
fn method_job(condition: &str) -> Value {
    json!({
        "jobId": "m1", "type": "scheduleDeviceMethod", "startTime": null, "queryCondition": condition,
        "cloudToDeviceMethod": { "methodName": "re boot", "payload": { "b": 1.0 }, "responseTimeoutInSeconds": 30 },
    })
}

fn rows(emulator: &Emulator, job: &str) -> Vec<Value> {
    let answer =
        query(emulator, "", &format!("SELECT * FROM devices.jobs WHERE devices.jobs.jobId = '{job}'"));
    assert_eq!(answer.header("x-ms-item-type"), Some("DeviceJob"));
    answer.json().as_array().expect("rows").clone()
}

#[test]
fn a_job_writes_the_twins_that_its_condition_holds_for() {
    let emulator = Emulator::start_with(&["--device", "dev1", "--device", "dev2", "--device", "dev3"]);
    patch(&emulator, "dev2", &json!({ "tags": { "site": "b43" } }));
    patch(&emulator, "dev3", &json!({ "tags": { "site": "b43" } }));
    // As `az iot hub job create` sends it.
    let twin = json!({ "etag": "*", "tags": { "floor": 2 }, "properties": { "desired": { "led": "on" } } });
    let sent = json!({
        "jobId": "t1", "type": "scheduleUpdateTwin", "updateTwin": twin, "queryCondition": "tags.site = 'b43'",
        "maxExecutionTimeInSeconds": 300,
    });
    let answer = put(&emulator, "t1", &sent);
    assert_eq!(answer.status, 200, "{answer:?}");
    let answer = answer.json();
    assert_eq!(
        (&answer["jobId"], &answer["status"], &answer["type"]),
        (&json!("t1"), &json!("queued"), &sent["type"])
    );
    let job = wait(&emulator, "t1", "completed");
    assert_eq!(job["deviceJobStatistics"], statistics(2, 0, 2, 0, 0));
    for field in ["queryCondition", "updateTwin", "maxExecutionTimeInSeconds"] {
        assert_eq!(job[field], sent[field], "{field}");
    }
    for time in ["createdTime", "startTime", "endTime"] {
        assert!(job[time].as_str().is_some_and(|time| time.ends_with('Z')), "{job}");
    }
    let lit = query(
        &emulator,
        "",
        "SELECT deviceId FROM devices WHERE tags.floor = 2 AND properties.desired.led = 'on'",
    );
    assert_eq!(lit.json(), json!([{ "deviceId": "dev2" }, { "deviceId": "dev3" }]));
    let rows = rows(&emulator, "t1");
    assert_eq!(rows.len(), 2);
    for name in [
        "jobId",
        "jobType",
        "status",
        "startTimeUtc",
        "endTimeUtc",
        "createdDateTimeUtc",
        "lastUpdatedDateTimeUtc",
    ] {
        assert!(rows[0][name].is_string(), "{name}: {}", rows[0]);
    }
    assert_eq!((&rows[0]["deviceId"], &rows[0]["status"]), (&json!("dev2"), &json!("completed")));
    assert_eq!(rows[0]["outcome"], json!({ "deviceMethodResponse": null }));
    assert_eq!(put(&emulator, "t1", &sent).status, 409);
}

#[test]
fn a_job_calls_a_method_and_fails_at_devices_that_are_away() {
    let emulator = Emulator::start_with(&["--device", "dev1", "--device", "dev2"]);
    let mut device = listening(&emulator);
    assert_eq!(put(&emulator, "m1", &method_job("deviceId IN ['dev1', 'dev2']")).status, 200);
    let (name, rid, body) = called(&mut device);
    assert_eq!((name.as_str(), body.as_str()), ("re%20boot", r#"{"b":1.0}"#));
    assert_eq!(get(&emulator, "m1")["status"], "running");
    respond(&mut device, "201", &rid, r#"{"a": 2}"#);
    let job = wait(&emulator, "m1", "completed");
    assert_eq!(job["deviceJobStatistics"], statistics(2, 1, 1, 0, 0));
    assert_eq!(job["cloudToDeviceMethod"], method_job("")["cloudToDeviceMethod"]);
    let rows = rows(&emulator, "m1");
    let answer = json!({ "deviceMethodResponse": { "status": 201, "payload": { "a": 2 } } });
    assert_eq!((&rows[0]["status"], &rows[0]["outcome"]), (&json!("completed"), &answer));
    let error =
        json!({ "code": "DeviceNotOnline", "description": "Timed out waiting for device to connect." });
    assert_eq!((&rows[1]["status"], &rows[1]["error"]), (&json!("failed"), &error));
}

#[test]
fn a_job_calls_the_agents_method() {
    let dir = tempfile::tempdir().expect("a directory");
    let emulator = Emulator::start();
    let rule = "[[rule]]\nname = \"ping\"\nwhen = { \"$.method\" = \"ping\" }\ndo = []\n";
    let _agent = Agent::start(&emulator, "dev1", dir.path(), rule);
    let job = json!({
        "type": "scheduleDeviceMethod", "queryCondition": "*",
        "cloudToDeviceMethod": { "methodName": "ping", "payload": null, "connectTimeoutInSeconds": 30 },
    });
    assert_eq!(put(&emulator, "ping", &job).status, 200);
    let job = wait(&emulator, "ping", "completed");
    assert_eq!(job["deviceJobStatistics"], statistics(1, 0, 1, 0, 0), "{:?}", rows(&emulator, "ping"));
    assert_eq!(rows(&emulator, "ping")[0]["outcome"]["deviceMethodResponse"]["status"], 200);
}

#[test]
fn a_job_begins_at_its_time_and_can_be_cancelled_before() {
    let emulator = Emulator::start();
    let at = |seconds: u64| c2d_agent::message::format_time(SystemTime::now() + Duration::from_secs(seconds));
    let job = |start: String| json!({ "type": "scheduleUpdateTwin", "queryCondition": "*", "startTime": start, "updateTwin": { "tags": { "n": 1 } } });
    let first = put(&emulator, "soon", &job(at(1))).json();
    assert_eq!(first["status"], "scheduled");
    assert_eq!(put(&emulator, "later", &job(at(3_600))).json()["status"], "scheduled");
    let done = wait(&emulator, "soon", "completed");
    assert_eq!(done["startTime"], first["startTime"]);
    assert!(done["endTime"].as_str() >= done["startTime"].as_str(), "{done}");
    let cancel = |id: &str| request(&emulator, "POST", &format!("/v2/{id}/cancel?"), "", "");
    assert_eq!(cancel("later").json()["status"], "cancelled");
    for (answer, status, part) in [
        (cancel("later"), 409, "the job \"later\" has ended already: it is cancelled"),
        (cancel("soon"), 409, "it is completed"),
        (cancel("none"), 404, "ErrorCode:JobNotFound;the hub has no job \"none\""),
        (request(&emulator, "GET", "/v2/none?", "", ""), 404, "ErrorCode:JobNotFound"),
        (request(&emulator, "GET", "/none?", "", ""), 404, "ErrorCode:JobNotFound"),
        (request(&emulator, "POST", "/create?", "", "{}"), 400, "does not import or export devices"),
    ] {
        let said = answer.json()["Message"].as_str().expect("a message").to_owned();
        assert!(answer.status == status && said.contains(part), "{} {said}", answer.status);
    }
    // What `az iot hub job list` asks for beside it.
    assert_eq!(request(&emulator, "GET", "?", "", "").json(), json!([]));
}

#[test]
fn a_job_begins_and_times_out_by_the_emulators_clock() {
    let emulator = Emulator::start();
    let later = c2d_agent::message::format_time(SystemTime::now() + Duration::from_secs(48 * 3_600));
    let mut job = method_job("*");
    job["startTime"] = json!(later);
    job["maxExecutionTimeInSeconds"] = json!(100);
    job["cloudToDeviceMethod"]["connectTimeoutInSeconds"] = json!(300);
    assert_eq!(put(&emulator, "m1", &job).json()["status"], "scheduled");
    let advance = |by: &str| {
        let body = json!({ "advance": by }).to_string();
        let token = policy_token(&emulator, "service");
        assert_eq!(ask(&emulator, "PUT /emulator/clock", &token, "", body.as_bytes()).status, 200);
    };
    advance("48h");
    assert_eq!(wait(&emulator, "m1", "running")["startTime"], later);
    advance("100s");
    let job = wait(&emulator, "m1", "completed");
    assert_eq!(job["deviceJobStatistics"], statistics(1, 1, 0, 0, 0));
    assert_eq!(rows(&emulator, "m1")[0]["error"]["code"], "JobTimeout");
}

#[test]
fn jobs_are_listed_page_by_page() {
    let emulator = Emulator::start();
    for n in 0..3 {
        let job =
            json!({ "type": "scheduleUpdateTwin", "queryCondition": "deviceId = 'none'", "updateTwin": {} });
        put(&emulator, &format!("t{n}"), &job);
        wait(&emulator, &format!("t{n}"), "completed");
    }
    let ids = |answer: &Answer| -> Vec<String> {
        let jobs = answer.json().as_array().expect("jobs").clone();
        jobs.iter().map(|job| job["jobId"].as_str().expect("an id").to_owned()).collect()
    };
    let list = |arguments: &str, headers: &str| {
        request(&emulator, "GET", &format!("/v2/query?{arguments}"), headers, "")
    };
    let all = list("", "");
    assert_eq!(
        (ids(&all).len(), all.header("x-ms-item-type"), all.header("x-ms-continuation")),
        (3, Some("JobResponse"), None)
    );
    let first = list("jobStatus=completed&", "x-ms-max-item-count: 2\r\n");
    assert_eq!(ids(&first), ["t0", "t1"]);
    let token = format!("x-ms-continuation: {}\r\n", first.header("x-ms-continuation").expect("more"));
    assert_eq!(ids(&list("jobStatus=completed&", &token)), ["t2"]);
    // The C# SDK begins the words with a capital.
    assert_eq!(ids(&list("jobType=ScheduleUpdateTwin&jobStatus=Completed&", "")).len(), 3);
    assert_eq!(ids(&list("jobType=scheduleDeviceMethod&", "")), [""; 0]);
    assert_eq!(ids(&list("jobType=export&", "")), [""; 0]);
    for (answer, part) in [
        (list("", &token), "x-ms-continuation is not one that this query was given"),
        (list("jobStatus=done&", ""), "jobStatus is \"done\", but must be one of unknown, enqueued, running"),
    ] {
        let said = answer.json()["Message"].as_str().expect("a message").to_owned();
        assert!(answer.status == 400 && said.contains(part), "{said}");
    }
}

#[test]
fn a_job_that_is_wrong_is_told_in_words() {
    let emulator = Emulator::start();
    let twin = |more: Value| {
        let mut job =
            json!({ "type": "scheduleUpdateTwin", "queryCondition": "*", "updateTwin": { "tags": {} } });
        job.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        job.to_string()
    };
    let deep = (0..200).fold(json!(1), |inner, _| json!({ "k": inner }));
    let method = |method: Value| {
        json!({ "type": "scheduleDeviceMethod", "queryCondition": "*", "cloudToDeviceMethod": method })
            .to_string()
    };
    let cases = [
        (String::new(), "the body is not a job: EOF"),
        ("[]".to_owned(), "the body is not a job"),
        (twin(json!({ "jobId": "other" })), "the jobId in the body is not the one in the path"),
        (
            twin(json!({ "type": "scheduleTwinUpdate" })),
            "the type is \"scheduleTwinUpdate\", but must be scheduleDeviceMethod or scheduleUpdateTwin",
        ),
        (twin(json!({ "type": null })), "the type is \"\""),
        (
            twin(json!({ "queryCondition": " " })),
            "the job has no queryCondition: give one, or * for all devices",
        ),
        (twin(json!({ "updateTwin": null })), "the job has no updateTwin"),
        (twin(json!({ "updateTwin": { "tags": [] } })), "updateTwin is not a twin: invalid type"),
        (twin(json!({ "updateTwin": { "etag": "AAAA" } })), "updateTwin.etag is \"AAAA\", but must be *"),
        (twin(json!({ "updateTwin": { "tags": deep } })), "recursion limit"),
        (twin(json!({ "startTime": "tomorrow" })), "startTime is \"tomorrow\", but must be a time in UTC"),
        (
            twin(json!({ "maxExecutionTimeInSeconds": -1 })),
            "the body is not a job: invalid value: integer `-1`",
        ),
        (method(json!({})), "methodName must have 1 to 100 bytes"),
        (
            method(json!({ "methodName": "x", "responseTimeoutInSeconds": 301 })),
            "responseTimeoutInSeconds must be 5 to 300",
        ),
        (method(json!(null)), "the job has no cloudToDeviceMethod"),
    ];
    for (body, part) in cases {
        let answer = request(&emulator, "PUT", "/v2/j1?", "", &body);
        let said = answer.json()["Message"].as_str().expect("a message").to_owned();
        assert!(
            answer.status == 400 && said.starts_with("ErrorCode:ArgumentInvalid;"),
            "{} {said}",
            answer.status
        );
        assert!(said.contains(part), "{said}");
    }
    assert_eq!(request(&emulator, "GET", "/v2/j1?", "", "").status, 404);
    for id in ["query", "a%20b"] {
        assert_eq!(
            request(&emulator, "PUT", &format!("/v2/{id}?"), "", &twin(json!({}))).status,
            400,
            "{id}"
        );
    }
    // A wrong condition fails the job, as at the hub.
    let wrong =
        json!({ "type": "scheduleUpdateTwin", "queryCondition": "tags.x ==", "updateTwin": { "tags": {} } });
    assert_eq!(put(&emulator, "wrong", &wrong).status, 200);
    let reason = wait(&emulator, "wrong", "failed")["failureReason"].as_str().expect("a reason").to_owned();
    assert!(
        reason.contains(
            "the queryCondition is wrong at line 1, column 9: expected a property, but found \"=\""
        ),
        "{reason}"
    );
}

#[test]
fn a_job_goes_on_after_a_restart() {
    let dir = tempfile::tempdir().expect("a directory");
    let start =
        || Emulator::start_in(&dir.path().join("state"), "0", "0", &["--device", "dev1", "--device", "dev2"]);
    let emulator = start();
    let mut device = listening(&emulator);
    let mut job = method_job("*");
    job["cloudToDeviceMethod"]["connectTimeoutInSeconds"] = json!(300);
    assert_eq!(put(&emulator, "m1", &job).status, 200);
    called(&mut device);
    let later = c2d_agent::message::format_time(SystemTime::now() + Duration::from_secs(3_600));
    let update = json!({ "type": "scheduleUpdateTwin", "queryCondition": "*", "startTime": later, "updateTwin": { "tags": { "n": 1 } } });
    let scheduled = put(&emulator, "later", &update).json();
    assert_eq!(emulator.process.terminate(), Some(0));
    let emulator = start();
    assert_eq!(get(&emulator, "later"), scheduled);
    let job = wait(&emulator, "m1", "completed");
    assert_eq!(job["deviceJobStatistics"], statistics(2, 2, 0, 0, 0));
    let description = rows(&emulator, "m1")[0]["error"]["description"].clone();
    assert_eq!(description, "the emulator ended before the device had answered");
}

#[test]
fn a_device_that_is_deleted_fails_and_the_job_goes_on() {
    let emulator = Emulator::start_with(&["--device", "dev1", "--device", "dev2"]);
    let mut device = listening(&emulator);
    let mut job = method_job("*");
    job["cloudToDeviceMethod"]["connectTimeoutInSeconds"] = json!(300);
    assert_eq!(put(&emulator, "m1", &job).status, 200);
    let (_, rid, _) = called(&mut device);
    let line = "DELETE /devices/dev2?api-version=2021-04-12";
    assert_eq!(
        ask(&emulator, line, &policy_token(&emulator, "iothubowner"), "If-Match: *\r\n", b"").status,
        204
    );
    respond(&mut device, "200", &rid, "null");
    assert_eq!(wait(&emulator, "m1", "completed")["deviceJobStatistics"], statistics(2, 1, 1, 0, 0));
    let error = json!({ "code": "DeviceNotFound", "description": "the hub has no device \"dev2\"" });
    assert_eq!(rows(&emulator, "m1")[1]["error"], error);
}

#[test]
fn the_sdks_back_end_schedules_jobs() {
    let test = "the SDK's back end schedules jobs";
    let Some(python) = python(test).filter(|_| may_use_443(test)) else { return };
    let (emulator, _dir) = emulator(&["--https-port", "443", "--device", "dev1"]);
    let mut service = script(&python, "service_jobs.py");
    service.env("SERVICE_CONNECTION_STRING", emulator.service_string());
    let service = Process::spawn(service.env("REQUESTS_CA_BUNDLE", emulator.ca_file()));
    assert_eq!(service.wait_exit().code(), Some(0), "{}", service.stderr.text());
    let expected = json!({
        "made": ["twin-1", "queued"], "status": "completed", "counts": [1, 0, 1], "tags": { "floor": 2 },
        "method": ["completed", [1, 1, 0]], "cancelled": "cancelled", "again": 409, "unknown": 404,
    });
    assert_eq!(read(&service.stdout.wait_for("made")), expected);
}
