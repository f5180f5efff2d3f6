//! Jobs of back ends: methods and changes of twins for many devices.
//!
//! Owns: the routes below `/jobs`, and their JSON. Must not know: connections, how a job goes on.
//!
//! Source: the operations `jobs` of Microsoft's Node, Python and C# service SDKs, and the `az iot hub job` commands, which
//! send and read this JSON. UNVERIFIED: which right jobs need; here it is ServiceConnect. Not served: import and export
//! of devices, which need a storage account. Without them there are no jobs of version 1, so their list is empty: `az iot
//! hub job list` asks for both lists.

use std::time::Duration;

use hyper::StatusCode;
use hyper::header::{HeaderName, HeaderValue};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::call::HttpCall;
use super::methods;
use super::pages::{PageStart, RowPage};
use super::reply::{self, HttpReply, HttpResult};
use super::twins;
use crate::credentials::check_device_id;
use crate::emulator::hub::{Hub, JobAction, JobError, JobOrder, TwinWrite};
use crate::message::{excerpt, parse_time};

/// Most bytes of a job: the largest payload or patch, and the JSON around it.
const MAX_BODY: usize = 320 * 1024;

/// How long a job may run if the back end does not say. It is what the Node SDK and `az` send.
const MAX_EXECUTION: u64 = 3_600;

/// The words for a state in `jobStatus`. Source: `JobStatus` of the Python SDK.
const STATUSES: [&str; 8] =
    ["unknown", "enqueued", "running", "completed", "failed", "cancelled", "scheduled", "queued"];

/// The types of jobs. Source: `JobRequest` of the Python SDK.
const METHOD: &str = "scheduleDeviceMethod";
const TYPES: [&str; 2] = [METHOD, "scheduleUpdateTwin"];

/// A job as a back end sends it. Other fields are ignored.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", expecting = "an object with \"type\" and \"queryCondition\"")]
struct JobBody {
    job_id: Option<Value>,
    #[serde(rename = "type")]
    kind: Option<String>,
    cloud_to_device_method: Option<Box<RawValue>>,
    update_twin: Option<Box<RawValue>>,
    query_condition: Option<String>,
    start_time: Option<String>,
    max_execution_time_in_seconds: Option<u64>,
}

/// `PUT /jobs/v2/{id}`.
pub(super) async fn schedule(call: &mut HttpCall) -> HttpResult {
    let body = call.body(MAX_BODY).await?;
    let sent: JobBody = serde_json::from_slice(&body)
        .map_err(|error| reply::bad_argument(&format!("the body is not a job: {error}")))?;
    let order = order(call.segment(2), sent).map_err(|sentence| reply::bad_argument(&sentence))?;
    let job_id = order.id.clone();
    let job = call.hub.with(|hub, now| hub.schedule_job(order, now)).map_err(|error| refusal(&error))?;
    tracing::info!(job_id, "a back end scheduled a job");
    Ok(reply::ok(&job))
}

/// `GET /jobs/v2/{id}`.
pub(super) fn get(call: &HttpCall) -> HttpResult {
    let job = call.hub.with(|hub, _| hub.job(call.segment(2))).map_err(|error| refusal(&error))?;
    Ok(reply::ok(&job))
}

/// `POST /jobs/v2/{id}/cancel`. The C# SDK sends a body, which says nothing.
pub(super) async fn cancel(call: &mut HttpCall) -> HttpResult {
    call.body(MAX_BODY).await?;
    let id = call.segment(2);
    let job = call.hub.with(|hub, now| hub.cancel_job(id, now)).map_err(|error| refusal(&error))?;
    tracing::info!(job_id = excerpt(id), "a back end cancelled a job");
    Ok(reply::ok(&job))
}

/// `GET /jobs/v2/query?jobType=TYPE&jobStatus=STATUS`: all jobs, oldest first, page by page. The C# SDK writes the words
/// with a capital.
pub(super) fn query(call: &HttpCall) -> HttpResult {
    let given =
        |name| call.argument(name).filter(|word| !word.is_empty()).map(|word| word.to_ascii_lowercase());
    let (kind, status) = (given("jobType"), given("jobStatus"));
    if let Some(status) = status.as_deref().filter(|status| !STATUSES.contains(status)) {
        let sentence =
            format!("jobStatus is \"{}\", but must be one of {}", excerpt(status), STATUSES.join(", "));
        return Err(reply::bad_argument(&sentence).into());
    }
    let start = PageStart::read(call, &format!("jobs {kind:?} {status:?}"))?;
    let first = start.number()?;
    let is = |job: &Value, field: &str, wanted: &Option<String>| {
        wanted
            .as_ref()
            .is_none_or(|wanted| job[field].as_str().is_some_and(|word| word.eq_ignore_ascii_case(wanted)))
    };
    let mut page = RowPage::new(start, None);
    call.hub.with(|hub, _| {
        let jobs = hub.jobs_after(first as u64);
        for (number, job) in jobs.filter(|(_, job)| is(job, "type", &kind) && is(job, "status", &status)) {
            if !page.push(&number.to_string(), &job) {
                break;
            }
        }
    });
    let item_type = HeaderValue::from_static("JobResponse");
    Ok(page.reply()?.with(HeaderName::from_static("x-ms-item-type"), item_type))
}

/// `GET /jobs`: the jobs of version 1.
pub(super) fn list_old(_: &HttpCall) -> HttpResult {
    Ok(reply::ok(&json!([])))
}

/// `GET /jobs/{id}`, `DELETE /jobs/{id}`: a job of version 1.
pub(super) fn get_old(call: &HttpCall) -> HttpResult {
    Err(refusal(&JobError::Unknown(excerpt(call.segment(1)))).into())
}

/// `POST /jobs/create`: a job of version 1.
pub(super) async fn create_old(call: &mut HttpCall) -> HttpResult {
    call.body(MAX_BODY).await?;
    let sentence = "this emulator does not import or export devices: make them with POST /devices";
    Ok(reply::error(StatusCode::BAD_REQUEST, "InvalidOperation", sentence))
}

fn order(id: &str, sent: JobBody) -> Result<JobOrder, String> {
    // UNVERIFIED: which characters the hub allows. `query` is the list of all jobs.
    if check_device_id(id).is_err() || id.eq_ignore_ascii_case("query") {
        let shown = excerpt(id);
        return Err(format!("\"{shown}\" cannot be a job's id: give one as for a device, but not \"query\""));
    }
    // The Node SDK allows a number.
    let own = sent.job_id.filter(|own| !own.is_null());
    let own = own.map(|own| own.as_str().map_or_else(|| own.to_string(), str::to_owned));
    if own.is_some_and(|own| own != id) {
        return Err("the jobId in the body is not the one in the path".to_owned());
    }
    let kind = sent.kind.as_deref().unwrap_or_default();
    if !TYPES.contains(&kind) {
        return Err(format!("the type is \"{}\", but must be {}", excerpt(kind), TYPES.join(" or ")));
    }
    let condition = sent.query_condition.filter(|condition| !condition.trim().is_empty());
    let condition = condition.ok_or("the job has no queryCondition: give one, or * for all devices")?;
    let start = match sent.start_time.as_deref().filter(|text| !text.is_empty()) {
        None => None,
        Some(text) => Some(parse_time(text).ok_or_else(|| {
            format!(
                "startTime is \"{}\", but must be a time in UTC such as 2026-01-31T12:00:00Z",
                excerpt(text)
            )
        })?),
    };
    let (action, raw) = match kind {
        METHOD => {
            let raw = sent.cloud_to_device_method.ok_or("the job has no cloudToDeviceMethod")?;
            (method(raw.get())?, raw)
        }
        _ => {
            let raw = sent.update_twin.ok_or("the job has no updateTwin")?;
            let (tags, desired) = twins::patch_for_all(raw.get())?;
            // A patch that no empty twin takes would fail at each device.
            Hub::check_twin(&TwinWrite::Patch { tags: tags.clone(), desired: desired.clone() })
                .map_err(|error| error.to_string())?;
            (JobAction::Twin { tags, desired }, raw)
        }
    };
    let seconds = sent.max_execution_time_in_seconds.filter(|seconds| *seconds > 0).unwrap_or(MAX_EXECUTION);
    Ok(JobOrder {
        id: id.to_owned(),
        action,
        sent: shown(raw)?,
        condition,
        start,
        max_execution: Duration::from_secs(seconds),
    })
}

/// The text, if a back end can be shown it again.
fn shown(raw: Box<RawValue>) -> Result<Box<RawValue>, String> {
    let read: Result<Value, _> = serde_json::from_str(raw.get());
    read.map(|_| raw).map_err(|error| error.to_string())
}

fn method(text: &str) -> Result<JobAction, String> {
    let call = methods::read(text.as_bytes())?;
    call.check()?;
    Ok(JobAction::Method {
        name: call.name,
        payload: call.payload.get().to_owned(),
        response_timeout: call.response_timeout,
        connect_timeout: call.connect_timeout,
    })
}

/// The error of a job. UNVERIFIED: the code words other than `JobNotFound`.
fn refusal(error: &JobError) -> HttpReply {
    let (status, code) = match error {
        JobError::Exists(_) => (StatusCode::CONFLICT, "JobAlreadyExists"),
        JobError::Unknown(_) => (StatusCode::NOT_FOUND, "JobNotFound"),
        JobError::TooMany => (StatusCode::TOO_MANY_REQUESTS, "ThrottlingException"),
        JobError::Ended(..) => (StatusCode::CONFLICT, "JobAlreadyEnded"),
    };
    reply::error(status, code, &error.to_string())
}
