//! Hands work for many devices to the hub, as a job.
//!
//! Owns: its requests and answers. Must not know: how devices are chosen, what is shown.
//!
//! Source: the operations `jobs` of Microsoft's Node and Python service SDKs, and the `az iot hub job` commands.

use std::time::{Duration, SystemTime};

use hyper::{Method, StatusCode};
use percent_encoding::utf8_percent_encode;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use super::{API_VERSION, HttpsService, MethodCall, ServiceRequest, TwinPatch, answer};
use crate::service::ServiceError;
use crate::service::target::ENCODED;

/// Most bytes of a job in an answer: it has the whole payload or patch.
const MAX_JOB: usize = 1024 * 1024;

/// What a job does at each device.
#[derive(Debug, Clone, Copy)]
pub enum JobWork<'a> {
    /// Call this method.
    Method(&'a MethodCall),
    /// Merge this patch into the twin. Its etag is not used.
    Twin(&'a TwinPatch),
}

/// A job for the hub.
#[derive(Debug, Clone)]
pub struct JobOrder<'a> {
    /// Its id, which no other job of the hub has.
    pub id: &'a str,
    /// What it does.
    pub work: JobWork<'a>,
    /// Which devices, as behind WHERE.
    pub condition: &'a str,
    /// When it begins; at once if `None`.
    pub start: Option<SystemTime>,
    /// How long it may run.
    pub longest: Duration,
}

/// A job as the hub has it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HubJob {
    /// Its id.
    pub job_id: String,
    /// The hub's word, such as `running` or `completed`.
    pub status: String,
    /// Why it failed.
    pub failure_reason: Option<String>,
    /// How far it is; absent until it begins.
    #[serde(default, rename = "deviceJobStatistics")]
    pub devices: Option<JobDevices>,
}

/// How many devices a job has, and in which states they are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct JobDevices {
    /// All that its condition has found.
    pub device_count: u64,
    /// Where it failed.
    pub failed_count: u64,
    /// Where it has ended without a failure.
    pub succeeded_count: u64,
    /// Where it is on its way.
    pub running_count: u64,
    /// Where it is still to begin.
    pub pending_count: u64,
}

impl HubJob {
    /// Whether nothing follows. The SDKs disagree about the words, so all of them count.
    pub fn has_ended(&self) -> bool {
        ["completed", "finished", "failed", "cancelled"].iter().any(|word| self.is(word))
    }

    /// Whether it has been at each device, with or without failures there.
    pub fn is_completed(&self) -> bool {
        self.is("completed") || self.is("finished")
    }

    fn is(&self, word: &str) -> bool {
        self.status.eq_ignore_ascii_case(word)
    }
}

impl HttpsService {
    /// Schedules a job.
    ///
    /// # Errors
    /// As for [`HttpsService::twin`]; a sentence when the hub has too many jobs, or refuses this one.
    ///
    /// # Cancel safety
    /// If the future is dropped, the job may or may not be scheduled.
    pub async fn schedule_job(&mut self, order: &JobOrder<'_>) -> Result<HubJob, ServiceError> {
        let start = order.start.map(|start| humantime::format_rfc3339_seconds(start).to_string());
        let mut body = json!({
            "jobId": order.id,
            "queryCondition": order.condition,
            "startTime": start,
            "maxExecutionTimeInSeconds": order.longest.as_secs(),
        });
        let (kind, name, work) = order.work.sent();
        body["type"] = kind.into();
        // As text, because the payload is the device's own JSON: no number in it may change.
        let mut text = body.to_string();
        text.pop();
        text.push_str(&format!(",\"{name}\":{work}}}"));
        let mut ask = ServiceRequest::new(Method::PUT, path(order.id, ""), MAX_JOB);
        ask.body = text.into();
        match self.job_answer(ask, order.id).await {
            Err(ServiceError::Throttled(host)) => Err(ServiceError::Denied(format!(
                "{host} takes no further job now (429): a hub has 1 job at a time on Free and S1, 5 on S2, 10 on S3; \
                 wait for the other one, or leave out --job"
            ))),
            answer => answer,
        }
    }

    /// Reads a job.
    ///
    /// # Errors
    /// As for [`HttpsService::twin`]; or [`ServiceError::UnknownJob`].
    ///
    /// # Cancel safety
    /// As for [`HttpsService::twin`].
    pub async fn job(&mut self, id: &str) -> Result<HubJob, ServiceError> {
        self.job_answer(ServiceRequest::new(Method::GET, path(id, ""), MAX_JOB), id).await
    }

    /// Cancels a job. Where it has been at a device, that stays.
    ///
    /// # Errors
    /// As for [`HttpsService::job`]; a sentence when it has ended already.
    ///
    /// # Cancel safety
    /// If the future is dropped, the job may or may not be cancelled.
    pub async fn cancel_job(&mut self, id: &str) -> Result<HubJob, ServiceError> {
        self.job_answer(ServiceRequest::new(Method::POST, path(id, "/cancel"), MAX_JOB), id).await
    }

    async fn job_answer(&mut self, ask: ServiceRequest, id: &str) -> Result<HubJob, ServiceError> {
        let (head, body) = self.exchange(ask).await?;
        let said = answer::hub_message(&body);
        match (head.status, said) {
            (StatusCode::OK, _) => serde_json::from_slice(&body)
                .map_err(|_| answer::no_hub(&self.host, "status 200 without a job")),
            (StatusCode::NOT_FOUND, Some(_)) => Err(ServiceError::UnknownJob(id.to_owned())),
            (
                StatusCode::BAD_REQUEST | StatusCode::CONFLICT | StatusCode::PRECONDITION_FAILED,
                Some(said),
            ) => {
                let (host, status) = (&self.host, head.status.as_u16());
                Err(ServiceError::Denied(format!("{host} refuses the job (status {status}: {said})")))
            }
            (status, _) => Err(self.refusal(status, &body, "")),
        }
    }
}

impl JobWork<'_> {
    /// The type of the job, the name of its part, and that as JSON.
    fn sent(&self) -> (&'static str, &'static str, String) {
        match self {
            Self::Method(call) => {
                let MethodCall { name, payload, response_timeout, connect_timeout } = call;
                let payload: &RawValue = payload;
                let work = format!(
                    "{{\"methodName\":{},\"payload\":{},\"responseTimeoutInSeconds\":{},\"connectTimeoutInSeconds\":{}}}",
                    Value::from(name.as_str()),
                    payload.get(),
                    response_timeout.as_secs(),
                    connect_timeout.as_secs()
                );
                ("scheduleDeviceMethod", "cloudToDeviceMethod", work)
            }
            Self::Twin(patch) => {
                let mut work = Map::from_iter([("etag".to_owned(), Value::from("*"))]);
                if let Some(tags) = &patch.tags {
                    work.insert("tags".into(), tags.clone().into());
                }
                if let Some(desired) = &patch.desired {
                    work.insert("properties".into(), json!({ "desired": desired }));
                }
                ("scheduleUpdateTwin", "updateTwin", Value::from(work).to_string())
            }
        }
    }
}

fn path(id: &str, below: &str) -> String {
    format!("/jobs/v2/{}{below}?api-version={API_VERSION}", utf8_percent_encode(id, ENCODED))
}
