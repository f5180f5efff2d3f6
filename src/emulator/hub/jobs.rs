//! Jobs: methods and changes of twins for many devices, at a time.
//!
//! Owns: what a job is, what became of it at each device, and how many jobs are kept. Must not know: devices, how a job
//! goes on (`job_work`), HTTP.
//!
//! Source: Microsoft's C# service SDK, `JobResponse.cs`, `DeviceJob.cs` and their enumerations
//! for the words, and the page "Schedule jobs on multiple devices" for the states. Choices where these are silent: a job
//! that has run to its end is completed, even if it failed at some devices; [`MAX_JOBS`], [`MAX_RUNNING`] and
//! [`MAX_JOB_BYTES`].

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use super::calls::CallId;
use super::piece::{Form, Piece, PieceChanges};
use crate::message::format_time;

/// Most jobs that are kept. A new job displaces the oldest one that has ended.
pub const MAX_JOBS: usize = 100;

/// Most jobs that run at once; the others are queued. It is the limit of the largest tier of a real hub. The smallest
/// tier runs one job at a time, and refuses the next one.
pub const MAX_RUNNING: usize = 10;

/// Most bytes of all jobs, with what devices answered. Beyond that, old jobs go, and then answers of new ones.
pub const MAX_JOB_BYTES: usize = 64 * 1024 * 1024;

/// The hub's text for a time that has not come.
const NOT_YET: &str = "0001-01-01T00:00:00Z";

/// What one device of a job costs beside its id and its answer.
const ROW_BYTES: usize = 256;

/// What a back end orders.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct JobOrder {
    /// The id, which the back end chooses. The code that makes the value must check it.
    pub id: String,
    /// What to do at each device.
    pub action: JobAction,
    /// The same as the back end sent it, for the back end.
    pub sent: Box<RawValue>,
    /// The condition on the twins of devices; `*` holds for all.
    pub condition: String,
    /// When to begin; `None` means at once.
    pub start: Option<SystemTime>,
    /// How long the job may run once it has begun.
    pub max_execution: Duration,
}

/// What a job does at each device.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum JobAction {
    /// Calls a method.
    Method {
        /// The method's name.
        name: String,
        /// The payload as JSON.
        payload: String,
        /// How long the device may take to answer.
        response_timeout: Duration,
        /// How long to wait for the device to connect and subscribe.
        connect_timeout: Duration,
    },
    /// Merges tags and desired properties into the twin.
    Twin {
        /// A patch of the tags.
        tags: Option<Map<String, Value>>,
        /// A patch of the desired properties.
        desired: Option<Map<String, Value>>,
    },
}

impl JobOrder {
    /// What the back end sent. The code that made the value has checked that it can be read.
    fn sent(&self) -> Value {
        serde_json::from_str(self.sent.get()).unwrap_or_default()
    }
}

impl JobAction {
    /// The type of the job.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Method { .. } => "scheduleDeviceMethod",
            Self::Twin { .. } => "scheduleUpdateTwin",
        }
    }
}

/// Why a job was not taken, found or cancelled.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum JobError {
    /// Another job has this id.
    #[error("the hub already has a job \"{0}\": choose another id")]
    Exists(String),
    /// There is no such job.
    #[error("the hub has no job \"{0}\"")]
    Unknown(String),
    /// There is no room.
    #[error("the hub has {MAX_JOBS} jobs that have not ended: wait until one ends, or cancel one")]
    TooMany,
    /// The job cannot be cancelled any more.
    #[error("the job \"{0}\" has ended already: it is {1}")]
    Ended(String, &'static str),
}

/// The state of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum JobStatus {
    Queued,
    Scheduled,
    Running,
    Completed,
    Failed,
    Cancelled,
}

impl JobStatus {
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Scheduled => "scheduled",
            Self::Running => "running",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    pub(super) fn has_ended(self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Cancelled)
    }
}

/// What became of a job at one device.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct DeviceRow {
    pub(super) status: RowStatus,
    started: Option<SystemTime>,
    ended: Option<SystemTime>,
    updated: SystemTime,
    /// Status and payload, as JSON, of a method.
    answer: Option<(i32, String)>,
    /// Code and sentence.
    error: Option<(String, String)>,
}

/// The state of a job at one device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum RowStatus {
    Pending,
    Running,
    Completed,
    Failed,
    Canceled,
}

impl RowStatus {
    /// The C# SDK reads `canceled` here, and `cancelled` for the whole job.
    fn word(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Running => "running",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Canceled => "canceled",
        }
    }
}

/// One job.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct ScheduledJob {
    pub(super) order: JobOrder,
    created: SystemTime,
    pub(super) status: JobStatus,
    /// Since when the job runs.
    pub(super) running_since: Option<SystemTime>,
    ended: Option<SystemTime>,
    failure: Option<String>,
    /// The last device whose twin the condition was asked about. All were asked if `selected`.
    pub(super) selected_to: Option<String>,
    pub(super) selected: bool,
    /// The last device at which the job has begun.
    pub(super) begun_to: Option<String>,
    pub(super) rows: BTreeMap<String, DeviceRow>,
    pub(super) bytes: usize,
    /// The calls on their way.
    #[serde(skip)]
    pub(super) calls: Vec<(String, CallId)>,
}

/// All jobs, by a number that rises.
#[derive(Debug, Default)]
pub(super) struct Jobs {
    last: u64,
    jobs: BTreeMap<u64, ScheduledJob>,
    /// The numbers of the jobs that may have changed since they were saved.
    unsaved: BTreeSet<u64>,
}

impl DeviceRow {
    pub(super) fn new(now: SystemTime) -> Self {
        Self {
            status: RowStatus::Pending,
            started: None,
            ended: None,
            updated: now,
            answer: None,
            error: None,
        }
    }

    pub(super) fn begin(&mut self, now: SystemTime) {
        self.status = RowStatus::Running;
        self.started = Some(now);
        self.updated = now;
    }

    pub(super) fn complete(&mut self, answer: Option<(i32, String)>, now: SystemTime) {
        self.answer = answer;
        self.end(RowStatus::Completed, now);
    }

    pub(super) fn fail(&mut self, code: &str, sentence: String, now: SystemTime) {
        self.error = Some((code.to_owned(), sentence));
        self.end(RowStatus::Failed, now);
    }

    pub(super) fn is_open(&self) -> bool {
        matches!(self.status, RowStatus::Pending | RowStatus::Running)
    }

    pub(super) fn end(&mut self, status: RowStatus, now: SystemTime) {
        self.status = status;
        self.ended = Some(now);
        self.updated = now;
    }

    /// The row as `FROM devices.jobs` shows it. The C# SDK needs both times, whether they have been or not.
    fn show(&self, job: &ScheduledJob, device_id: &str) -> Value {
        let time = |time: Option<SystemTime>| time.map_or_else(|| NOT_YET.to_owned(), format_time);
        let answer = self.answer.as_ref().map(|(status, payload)| {
            let payload: Result<Value, _> = serde_json::from_str(payload);
            let payload = payload.unwrap_or_else(|error| json!(format!("it cannot be shown: {error}")));
            json!({ "status": status, "payload": payload })
        });
        let mut shown = json!({
            "deviceId": device_id,
            "jobId": job.order.id,
            "jobType": job.order.action.word(),
            "status": self.status.word(),
            "startTimeUtc": time(self.started),
            "endTimeUtc": time(self.ended),
            "createdDateTimeUtc": format_time(job.created),
            "lastUpdatedDateTimeUtc": format_time(self.updated),
            "outcome": { "deviceMethodResponse": answer },
        });
        if let Some((code, sentence)) = &self.error {
            shown["error"] = json!({ "code": code, "description": sentence });
        }
        shown
    }
}

impl ScheduledJob {
    fn new(order: JobOrder, now: SystemTime) -> Self {
        let waits = order.start.is_some_and(|start| start > now);
        let bytes = order.sent.get().len() + order.condition.len();
        Self {
            order,
            created: now,
            status: if waits { JobStatus::Scheduled } else { JobStatus::Queued },
            running_since: None,
            ended: None,
            failure: None,
            selected_to: None,
            selected: false,
            begun_to: None,
            rows: BTreeMap::new(),
            bytes,
            calls: Vec::new(),
        }
    }

    /// When the job is to begin.
    pub(super) fn start(&self) -> SystemTime {
        self.order.start.unwrap_or(self.created)
    }

    /// Adds a device.
    pub(super) fn add(&mut self, device_id: &str, now: SystemTime) {
        self.bytes += ROW_BYTES + device_id.len();
        self.rows.insert(device_id.to_owned(), DeviceRow::new(now));
    }

    /// Ends the job.
    pub(super) fn end(&mut self, status: JobStatus, failure: Option<String>, now: SystemTime) {
        self.status = status;
        self.failure = failure;
        self.ended = Some(now);
    }

    /// The job as back ends see it.
    fn show(&self) -> Value {
        let count = |status| self.rows.values().filter(|row| row.status == status).count();
        let kind = match self.order.action {
            JobAction::Method { .. } => "cloudToDeviceMethod",
            JobAction::Twin { .. } => "updateTwin",
        };
        let mut shown = json!({
            "jobId": self.order.id,
            "queryCondition": self.order.condition,
            "createdTime": format_time(self.created),
            "startTime": format_time(self.start()),
            "maxExecutionTimeInSeconds": self.order.max_execution.as_secs(),
            "type": self.order.action.word(),
            kind: self.order.sent(),
            "status": self.status.word(),
            "deviceJobStatistics": {
                "deviceCount": self.rows.len(),
                "failedCount": count(RowStatus::Failed),
                "succeededCount": count(RowStatus::Completed),
                "runningCount": count(RowStatus::Running),
                "pendingCount": count(RowStatus::Pending),
            },
        });
        if let Some(ended) = self.ended {
            shown["endTime"] = format_time(ended).into();
        }
        if let Some(failure) = &self.failure {
            shown["failureReason"] = failure.as_str().into();
        }
        shown
    }
}

impl Jobs {
    /// Takes a job, and returns it as back ends see it.
    ///
    /// # Errors
    /// [`JobError`]; in this case there is no new job.
    pub(super) fn add(&mut self, order: JobOrder, now: SystemTime) -> Result<Value, JobError> {
        if self.number(&order.id).is_some() {
            return Err(JobError::Exists(order.id));
        }
        if self.jobs.len() >= MAX_JOBS && !self.drop_oldest() {
            return Err(JobError::TooMany);
        }
        let job = ScheduledJob::new(order, now);
        let shown = job.show();
        self.last += 1;
        self.put(self.last, job);
        Ok(shown)
    }

    /// The number of the job with this id.
    pub(super) fn number(&self, id: &str) -> Option<u64> {
        self.jobs.iter().find(|(_, job)| job.order.id == id).map(|(number, _)| *number)
    }

    /// A job as back ends see it.
    pub(super) fn show(&self, number: u64) -> Option<Value> {
        self.jobs.get(&number).map(ScheduledJob::show)
    }

    /// The jobs after a number, with their numbers.
    pub(super) fn after(&self, number: u64) -> impl Iterator<Item = (u64, Value)> {
        self.jobs.range(number.saturating_add(1)..).map(|(number, job)| (*number, job.show()))
    }

    /// What jobs did with devices, after a device of a job, with their places.
    pub(super) fn rows_after<'j>(
        &'j self,
        number: u64,
        device_id: &'j str,
    ) -> impl Iterator<Item = (u64, &'j str, Value)> {
        self.jobs.range(number..).flat_map(move |(of_job, job)| {
            let after = if *of_job == number { device_id } else { "" };
            let rows =
                job.rows.range::<str, _>((std::ops::Bound::Excluded(after), std::ops::Bound::Unbounded));
            rows.map(move |(id, row)| (*of_job, id.as_str(), row.show(job, id)))
        })
    }

    /// The numbers of the jobs that have not ended, oldest first.
    pub(super) fn open(&self) -> Vec<u64> {
        let open = self.jobs.iter().filter(|(_, job)| !job.status.has_ended());
        open.map(|(number, _)| *number).collect()
    }

    /// How many jobs run.
    pub(super) fn running(&self) -> usize {
        self.jobs.values().filter(|job| job.status == JobStatus::Running).count()
    }

    /// How many calls of all jobs are on their way.
    pub(super) fn in_flight(&self) -> usize {
        self.jobs.values().map(|job| job.calls.len()).sum()
    }

    /// Takes a job out, so that it can use the hub. [`Jobs::put`] puts it back, or [`Jobs::put_back`] if it is the same.
    pub(super) fn take(&mut self, number: u64) -> Option<ScheduledJob> {
        self.jobs.remove(&number)
    }

    pub(super) fn put(&mut self, number: u64, job: ScheduledJob) {
        self.unsaved.insert(number);
        self.jobs.insert(number, job);
    }

    /// Puts a job back that is the same as before.
    pub(super) fn put_back(&mut self, number: u64, job: ScheduledJob) {
        self.jobs.insert(number, job);
    }

    /// Makes room for more bytes of a job that is taken out. Returns whether there is room.
    pub(super) fn make_room(&mut self, bytes: usize) -> bool {
        loop {
            if self.jobs.values().map(|job| job.bytes).sum::<usize>() + bytes <= MAX_JOB_BYTES {
                return true;
            }
            if !self.drop_oldest() {
                return false;
            }
        }
    }

    /// The clock goes back: a job that runs does not run longer than if it began now.
    pub(super) fn go_back_to(&mut self, now: SystemTime) {
        for job in self.jobs.values_mut() {
            job.running_since = job.running_since.map(|since| since.min(now));
        }
        self.unsaved.extend(self.jobs.keys());
    }

    /// Drops the oldest job that has ended. Returns whether there was one.
    fn drop_oldest(&mut self) -> bool {
        let oldest = self.jobs.iter().find(|(_, job)| job.status.has_ended()).map(|(number, _)| *number);
        self.unsaved.extend(oldest);
        oldest.and_then(|number| self.jobs.remove(&number)).is_some()
    }

    /// Hands out the jobs that have changed since the last call.
    pub(super) fn take_changes(&mut self, changes: &mut PieceChanges) {
        for number in std::mem::take(&mut self.unsaved) {
            let text = self.jobs.get(&number).and_then(|job| serde_json::value::to_raw_value(job).ok());
            changes.push((format!("job/{number}"), text.map(|text| Piece(Form::Job(text)))));
        }
    }

    /// Loads what an earlier hub held, by number. A method on its way may have run, so it is not called again.
    pub(super) fn restore(&mut self, jobs: impl IntoIterator<Item = (u64, ScheduledJob)>) {
        for (number, mut job) in jobs {
            for row in job.rows.values_mut().filter(|row| row.status == RowStatus::Running) {
                let sentence = "the emulator ended before the device had answered".to_owned();
                row.fail("GatewayTimeout", sentence, row.updated);
            }
            self.last = self.last.max(number);
            self.put(number, job);
        }
    }
}
