//! How jobs go on: which devices they are for, and what is done at each of them.
//!
//! Owns: the order of the steps, and how much one step may do. Must not know: HTTP, who asks for the next step.
//!
//! Source: "Schedule jobs on multiple devices": a job that runs has asked for its devices, and a device that comes later
//! is not part of it. Choices where the page is silent: [`JOBS_IN_FLIGHT`]; when the time of a job is over, it fails at
//! the devices where it has not ended; a job that runs can be cancelled, too, and then it is given up at these devices;
//! a condition that is wrong fails the job and not the request, as users of the hub report (Azure/azure-iot-sdk-csharp
//! issue 40).

use std::time::SystemTime;

use serde_json::Value;
use serde_json::value::RawValue;

use super::calls::{BackEndCall, CallError, CallProgress, DeviceAnswer};
use super::jobs::{JobAction, JobError, JobOrder, JobStatus, MAX_RUNNING, RowStatus, ScheduledJob};
use super::state::Hub;
use super::twin::TwinWrite;
use crate::emulator::identity;
use crate::emulator::query::Expression;

/// Most devices that are called at once, over all jobs.
pub const JOBS_IN_FLIGHT: usize = 100;

/// Most twins that one step of one job reads or writes.
const SLICE: usize = 16;

impl Hub {
    /// Takes a job, and returns it as back ends see it.
    ///
    /// # Errors
    /// [`JobError`]; in this case there is no new job.
    pub fn schedule_job(&mut self, order: JobOrder, now: SystemTime) -> Result<Value, JobError> {
        let shown = self.jobs.add(order, now)?;
        self.version += 1;
        Ok(shown)
    }

    /// A job as back ends see it.
    ///
    /// # Errors
    /// [`JobError::Unknown`].
    pub fn job(&self, id: &str) -> Result<Value, JobError> {
        let number = self.jobs.number(id).ok_or_else(|| JobError::Unknown(id.to_owned()))?;
        self.jobs.show(number).ok_or_else(|| JobError::Unknown(id.to_owned()))
    }

    /// Cancels a job, and returns it as back ends see it.
    ///
    /// # Errors
    /// [`JobError`]; in this case nothing has changed.
    pub fn cancel_job(&mut self, id: &str, now: SystemTime) -> Result<Value, JobError> {
        let unknown = || JobError::Unknown(id.to_owned());
        let number = self.jobs.number(id).ok_or_else(unknown)?;
        let mut job = self.jobs.take(number).ok_or_else(unknown)?;
        if job.status.has_ended() {
            let status = job.status.word();
            self.jobs.put(number, job);
            return Err(JobError::Ended(id.to_owned(), status));
        }
        self.forget_calls(&mut job);
        for row in job.rows.values_mut().filter(|row| row.is_open()) {
            row.end(RowStatus::Canceled, now);
        }
        job.end(JobStatus::Cancelled, None, now);
        self.jobs.put(number, job);
        self.version += 1;
        self.job(id)
    }

    /// The jobs after a number, oldest first, with their numbers; after 0 come all.
    pub fn jobs_after(&self, number: u64) -> impl Iterator<Item = (u64, Value)> {
        self.jobs.after(number)
    }

    /// What jobs did with devices, in the order of jobs and of ids, after a device of a job, with their places.
    pub fn device_jobs_after<'h>(
        &'h self,
        number: u64,
        device_id: &'h str,
    ) -> impl Iterator<Item = (u64, &'h str, Value)> {
        self.jobs.rows_after(number, device_id)
    }

    /// Takes all jobs one step further. Returns when the next step is due, unless the hub changes before: now, if more
    /// can be done at once, and `None` if nothing waits.
    pub fn advance_jobs(&mut self, now: SystemTime) -> Option<SystemTime> {
        let mut due = None;
        for number in self.jobs.open() {
            let (running, before) = (self.jobs.running(), (self.version, self.quiet_changes));
            let Some(mut job) = self.jobs.take(number) else { continue };
            let next = if running >= MAX_RUNNING && job.status != JobStatus::Running {
                None
            } else {
                self.advance(&mut job, now)
            };
            if before == (self.version, self.quiet_changes) {
                self.jobs.put_back(number, job);
            } else {
                self.jobs.put(number, job);
            }
            due = due.into_iter().chain(next).min();
        }
        due
    }

    fn advance(&mut self, job: &mut ScheduledJob, now: SystemTime) -> Option<SystemTime> {
        if job.status != JobStatus::Running {
            // Without a start, it begins at once, also if the clock was set back since it was made.
            if let Some(start) = job.order.start.filter(|start| now < *start) {
                return Some(start);
            }
            job.status = JobStatus::Running;
            job.running_since = Some(now);
            self.version += 1;
        }
        let latest = job.running_since.and_then(|since| since.checked_add(job.order.max_execution));
        if latest.is_some_and(|latest| latest <= now) {
            self.give_up(job, now);
            return None;
        }
        if !job.selected {
            match self.select(job, now) {
                Ok(()) => return Some(now),
                Err(failure) => {
                    tracing::warn!(job_id = job.order.id, "a job failed: {failure}");
                    job.end(JobStatus::Failed, Some(failure), now);
                    self.version += 1;
                    return None;
                }
            }
        }
        let answers = self.collect_answers(job, now);
        let more = self.begin_rows(job, now);
        if more {
            return Some(now);
        }
        let all_begun = job.begun_to.as_ref() == job.rows.keys().next_back();
        if all_begun && job.calls.is_empty() {
            job.end(JobStatus::Completed, None, now);
            self.version += 1;
            tracing::info!(job_id = job.order.id, devices = job.rows.len(), "a job completed");
            return None;
        }
        latest.into_iter().chain(answers).min()
    }

    /// Asks the condition about the next twins.
    fn select(&mut self, job: &mut ScheduledJob, now: SystemTime) -> Result<(), String> {
        let condition = Expression::parse(&job.order.condition)
            .map_err(|error| format!("the queryCondition is wrong at {error}"))?;
        let ids: Vec<String> =
            self.ids_after(job.selected_to.as_deref()).take(SLICE).map(str::to_owned).collect();
        for id in ids.iter().filter(|id| !identity::is_module(id)) {
            if self.twin(id).is_some_and(|twin| condition.holds(&twin)) {
                job.add(id, now);
            }
        }
        job.selected = ids.len() < SLICE;
        job.selected_to = ids.into_iter().next_back().or(job.selected_to.take());
        // Whether there is room is only asked so that old jobs go.
        self.jobs.make_room(job.bytes);
        self.quiet_changes += 1;
        Ok(())
    }

    /// Begins at the next devices. Returns whether more can be done at once.
    fn begin_rows(&mut self, job: &mut ScheduledJob, now: SystemTime) -> bool {
        for _ in 0..SLICE {
            if self.jobs.in_flight() + job.calls.len() >= JOBS_IN_FLIGHT {
                return false;
            }
            let after = job.begun_to.as_deref().unwrap_or_default();
            let later = (std::ops::Bound::Excluded(after), std::ops::Bound::Unbounded);
            let Some(id) = job.rows.range::<str, _>(later).next().map(|(id, _)| id.clone()) else {
                return false;
            };
            if !self.begin_row(job, &id, now) {
                return false;
            }
            job.begun_to = Some(id);
            self.version += 1;
        }
        true
    }

    /// Begins at one device. Returns whether it has begun: a device can be busy with other calls.
    fn begin_row(&mut self, job: &mut ScheduledJob, id: &str, now: SystemTime) -> bool {
        let Some(row) = job.rows.get_mut(id).filter(|row| row.is_open()) else { return true };
        match &job.order.action {
            JobAction::Twin { tags, desired } => {
                row.begin(now);
                let patch = TwinWrite::Patch { tags: tags.clone(), desired: desired.clone() };
                match self.write_twin(id, patch, None, now) {
                    Ok(_) => row.complete(None, now),
                    Err(error) => row.fail(error.word(), error.to_string(), now),
                }
            }
            JobAction::Method { name, payload, response_timeout, connect_timeout } => {
                let Ok(payload) = RawValue::from_string(payload.clone()) else {
                    row.fail("ArgumentInvalid", "the payload is not JSON".to_owned(), now);
                    return true;
                };
                let (response_timeout, connect_timeout) = (*response_timeout, *connect_timeout);
                let call = BackEndCall { name: name.clone(), payload, response_timeout, connect_timeout };
                let called = self.call_method(id, call, now);
                if matches!(called, Err(CallError::TooManyCalls(_))) {
                    return false;
                }
                row.begin(now);
                match called {
                    Ok(call) => job.calls.push((id.to_owned(), call)),
                    Err(error) => row.fail(error.word(), error.to_string(), now),
                }
            }
        }
        true
    }

    /// Takes the answers that have come. Returns when the next call ends at the latest.
    fn collect_answers(&mut self, job: &mut ScheduledJob, now: SystemTime) -> Option<SystemTime> {
        let mut due = None;
        for (id, call) in std::mem::take(&mut job.calls) {
            let ended = match self.method_progress(&id, call, now) {
                CallProgress::Pending(until) => {
                    job.calls.push((id, call));
                    due = due.into_iter().chain([until]).min();
                    continue;
                }
                CallProgress::Done(ended) => ended,
            };
            self.version += 1;
            let Some(row) = job.rows.get_mut(&id) else { continue };
            let deleted = CallError::UnknownDevice(id.clone());
            let ended = if self.devices.contains(&id) { ended } else { Err(deleted) };
            match ended {
                Ok(DeviceAnswer { status, payload }) => {
                    let payload = payload.get();
                    let has_room = self.jobs.make_room(job.bytes + payload.len());
                    if !has_room {
                        tracing::warn!(
                            job_id = job.order.id,
                            device_id = id,
                            "no room for an answer's payload"
                        );
                    }
                    let payload = if has_room { payload } else { "null" };
                    job.bytes += payload.len();
                    row.complete(Some((status, payload.to_owned())), now);
                }
                Err(error) => row.fail(error.word(), error.to_string(), now),
            }
        }
        due
    }

    /// Ends a job whose time is over.
    fn give_up(&mut self, job: &mut ScheduledJob, now: SystemTime) {
        self.forget_calls(job);
        for row in job.rows.values_mut().filter(|row| row.is_open()) {
            let sentence = "the job's maxExecutionTimeInSeconds is over".to_owned();
            row.fail("JobTimeout", sentence, now);
        }
        job.end(JobStatus::Completed, None, now);
        self.version += 1;
    }

    fn forget_calls(&mut self, job: &mut ScheduledJob) {
        for (id, call) in std::mem::take(&mut job.calls) {
            self.forget_method(&id, call);
        }
    }
}

#[cfg(test)]
mod tests;
