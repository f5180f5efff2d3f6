//! Work for many devices that the hub does by itself, as a job.
//!
//! Owns: its arguments, its condition, following it, its results. Must not know: HTTP.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, anyhow};
use futures_util::StreamExt as _;
use serde::Serialize;
use serde_json::Value;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook_tokio::Signals;
use tokio::time::Instant;

use super::outcomes::{self, CallEnd, CallsOutput, ToldCall};
use super::{ManyCalls, ManyDevicesArgs, check_files};
use crate::cli::back_end::{self, HubArgs, print};
use crate::cli::shown::{json, plain, shell, shorten};
use crate::cli::{Exit, Failure, found, rows, sentence, tell};
use crate::fleet::MAX_ENTRIES;
use crate::message::parse_time;
use crate::service::{
    HttpsService, HubJob, JobDevices, JobOrder, JobWork, ServiceError, ServiceIdentity, TOKEN_LIFETIME,
};

/// Most bytes of a condition. Users met the hub's limit at about 8,200 (Azure/azure-iot-sdk-csharp issue 1680).
const MAX_CONDITION: usize = 8_000;
/// From one look at a job to the next, at first and later.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// The longest time of a job; a hub keeps no job longer.
const LONGEST: Duration = Duration::from_secs(30 * 24 * 3600);
/// How much later than it may run a job can end.
const GRACE: Duration = Duration::from_secs(120);
/// Most characters of a device's answer in its line; --json has all.
const MOST_SHOWN: usize = 200;

// Not a doc comment, which would become part of the help of the command.
// Work as a job.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Many devices")]
pub(in crate::cli) struct JobArgs {
    /// Hand the work to the hub as a job, which goes on without this program, and follow it. A list must be short.
    #[arg(long, conflicts_with_all = ["device", "module", "rate"])]
    pub(super) job: bool,
    /// When the job begins, such as 2026-12-31T22:00:00Z [default: at once]. A later one is not followed.
    #[arg(long, value_name = "TIME", requires = "job", value_parser = time)]
    start: Option<SystemTime>,
    /// How long the job may run.
    #[arg(long, value_name = "DURATION", requires = "job", default_value = "1h", value_parser = within)]
    within: Duration,
}

/// The objects of `--json`: stable for scripts; fields are added, never renamed.
#[derive(Serialize)]
#[serde(tag = "event", rename_all = "kebab-case", rename_all_fields = "camelCase")]
enum JobLine<'a> {
    Job {
        job_id: &'a str,
        status: &'a str,
        devices: u64,
        succeeded: u64,
        failed: u64,
        running: u64,
        pending: u64,
        #[serde(skip_serializing_if = "Option::is_none")]
        failure_reason: Option<&'a str>,
    },
    /// As the hub has it.
    Result { device_id: &'a str, status: &'a str, outcome: &'a Value, error: &'a Value },
}

/// Schedules a job, and follows it to its end.
///
/// # Errors
/// When it cannot be scheduled or does not complete, or a signal comes; then it goes on at the hub.
pub(in crate::cli) fn run(calls: &ManyCalls<'_>, work: JobWork<'_>) -> Result<Exit, Failure> {
    let many = calls.many;
    let args = &many.job;
    let failed_file = many.failed_file().map_err(Failure::usage)?;
    let identity = calls.hub.identity().map_err(Failure::usage)?;
    let (way, ca_file) = (calls.hub.https().map_err(Failure::usage)?, calls.hub.ca_file());
    let id = uuid::Uuid::new_v4().to_string();
    crate::cli::block_on(async {
        // As for calls from here: a signal ends the program while it reads a list.
        let condition = wanted(many, calls.hub, &identity).await?;
        check_files(&failed_file)?;
        back_end::end_at_the_second_signal().context("signals cannot be received")?;
        let mut signals = Signals::new([SIGTERM, SIGINT]).context("signals cannot be received")?;
        let lifetime = TOKEN_LIFETIME + args.within;
        let service = HttpsService::new(&identity, way, ca_file.as_deref(), lifetime, SystemTime::now);
        let mut service = service.map_err(anyhow::Error::new)?;
        let order =
            JobOrder { id: &id, work, condition: &condition, start: args.start, longest: args.within };
        let job = tokio::select! {
            job = service.schedule_job(&order) => job.map_err(|error| unscheduled(error, &id))?,
            Some(_signal) = signals.next() => {
                let words = "interrupted by a signal: the job may or may not be scheduled";
                return Err(anyhow!("{words}; to look: c2d-agent jobs show {id}").into());
            }
        };
        tell_job(&job, calls.json)?;
        if args.start.is_some_and(|start| start > SystemTime::now()) {
            if !calls.json {
                print(&format!("to look: c2d-agent jobs show {id}; to end it: c2d-agent jobs cancel {id}"))?;
            }
            return Ok(Exit::Done);
        }
        let end = Instant::now() + args.within + GRACE;
        let following = async {
            let job = follow(&mut service, job, calls.json, end).await?;
            results(&mut service, &job, calls.json, Some(failed_file)).await
        };
        tokio::select! {
            followed = following => followed,
            Some(_signal) = signals.next() => Err(left(&id).into()),
        }
    })
}

/// Why a job is not scheduled, or may be: scheduled again, it would be done twice.
fn unscheduled(error: ServiceError, id: &str) -> Failure {
    match outcomes::end(&error) {
        CallEnd::Unknown => {
            let words = "the job may or may not be scheduled; to look before you do it again";
            anyhow!("{error}; {words}: c2d-agent jobs show {id}").into()
        }
        _ => back_end::failed(error.into()),
    }
}

/// What to do about a job that goes on.
pub(in crate::cli) fn left(id: &str) -> anyhow::Error {
    let id = shell(id);
    anyhow!(
        "interrupted by a signal: the job goes on at the hub; to look: c2d-agent jobs show {id} --wait; to end it: \
         c2d-agent jobs cancel {id}"
    )
}

/// The condition of the devices that are meant.
async fn wanted(
    many: &ManyDevicesArgs,
    hub: &HubArgs,
    identity: &ServiceIdentity,
) -> Result<String, Failure> {
    if let Some(sql) = &many.query {
        let condition = found::condition(sql).ok_or_else(|| {
            Failure::usage(anyhow!(
                "--query is a whole query, but a job takes a condition: give what is behind WHERE, or leave out --job"
            ))
        })?;
        return Ok(condition.to_owned());
    }
    let entries = many.entries(hub, identity).await?;
    let quoted = |id: &str| format!("'{}'", id.replace('\'', "''"));
    let ids: Vec<_> = entries.iter().map(|entry| quoted(&entry.device_id)).collect();
    let condition = format!("deviceId IN [{}]", ids.join(","));
    if condition.len() > MAX_CONDITION {
        return Err(Failure::usage(anyhow!(
            "the list has {} devices, whose ids do not fit into the condition of a job ({MAX_CONDITION} bytes): select \
             them by a tag with --query, or leave out --job",
            entries.len()
        )));
    }
    Ok(condition)
}

/// Looks at a job until it has ended.
///
/// # Errors
/// When the hub refuses to show it, or it has not ended at `end`.
pub(in crate::cli) async fn follow(
    service: &mut HttpsService,
    mut job: HubJob,
    as_json: bool,
    end: Instant,
) -> Result<HubJob, Failure> {
    let (mut pause, mut was_away) = (FIRST_PAUSE, false);
    while !job.has_ended() {
        let id = job.job_id.clone();
        if Instant::now() > end {
            return Err(
                anyhow!("the hub has not ended the job in time: c2d-agent jobs show {id} --wait").into()
            );
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
        match service.job(&id).await {
            Ok(now) => {
                if now != job {
                    tell_job(&now, as_json)?;
                }
                (job, was_away) = (now, false);
            }
            Err(error) if error.is_passing() => {
                if !was_away {
                    tell(format_args!("the job cannot be seen now, trying again: {error}"));
                }
                was_away = true;
            }
            Err(error) => return Err(back_end::failed(error.into())),
        }
    }
    Ok(job)
}

/// Prints the state of a job.
pub(in crate::cli) fn tell_job(job: &HubJob, as_json: bool) -> anyhow::Result<()> {
    let HubJob { job_id, status, failure_reason, devices } = job;
    let counts = devices.unwrap_or_default();
    if as_json {
        return print(&json(&JobLine::Job {
            job_id,
            status,
            devices: counts.device_count,
            succeeded: counts.succeeded_count,
            failed: counts.failed_count,
            running: counts.running_count,
            pending: counts.pending_count,
            failure_reason: failure_reason.as_deref(),
        })?);
    }
    let ended = counts.succeeded_count.saturating_add(counts.failed_count);
    let mut line = format!("job {} is {}", plain(job_id), plain(status));
    if counts.device_count > 0 {
        let (all, failed) = (counts.device_count, counts.failed_count);
        line = format!("{line}: ended at {ended} of {all} devices, {failed} of them with a failure");
    }
    print(&line)
}

/// Prints what a job that has ended did at each device, and the sums.
///
/// # Errors
/// When the hub does not show it, or the job has not completed.
pub(in crate::cli) async fn results(
    service: &mut HttpsService,
    job: &HubJob,
    as_json: bool,
    failed_file: Option<PathBuf>,
) -> Result<Exit, Failure> {
    let id = job.job_id.replace('\'', "''");
    let query = format!("SELECT * FROM devices.jobs WHERE devices.jobs.jobId = '{id}'");
    let mut output = CallsOutput::new(as_json, Vec::new(), failed_file);
    let mut shown = 0;
    rows::pages(service, &query, |rows, _| {
        for row in &rows {
            let device_id = row["deviceId"].as_str().unwrap_or("?");
            output.ended_at(device_id, told(row, device_id, as_json)?)?;
            shown += 1;
        }
        if shown > MAX_ENTRIES as u64 {
            return Err(
                anyhow!("the hub shows more than {MAX_ENTRIES} results of one job: try again later").into()
            );
        }
        Ok(ControlFlow::Continue(()))
    })
    .await?;
    let finished = output.finished(&[], &[]);
    let JobDevices { device_count: all, succeeded_count: succeeded, .. } = job.devices.unwrap_or_default();
    let lacks = shown < all;
    if lacks {
        let id = shell(&job.job_id);
        tell(format_args!(
            "the hub shows {shown} of {all} results so far, so the lists may lack devices: c2d-agent jobs show {id}"
        ));
    }
    if !job.is_completed() {
        let reason = job.failure_reason.as_deref().map(|reason| format!(": {}", plain(reason)));
        // What the hub says of the job is worth more than a list that cannot be written.
        finished.err().iter().for_each(|error| tell(sentence(error)));
        return Err(anyhow!("the job is {}{}", plain(&job.status), reason.unwrap_or_default()).into());
    }
    let failed = finished?;
    if all == 0 && !as_json {
        tell("the condition of the job finds no device");
    }
    // The results come later than the sums, which know of failures that no result shows yet.
    let is_done = failed == 0 && (!lacks || succeeded >= all);
    Ok(if is_done { Exit::Done } else { Exit::NegativeFeedback })
}

/// What a job did at one device. Source: the rows of `devices.jobs`, as `az iot hub query` prints them.
fn told(row: &Value, device_id: &str, as_json: bool) -> anyhow::Result<ToldCall> {
    let (status, error) = (row["status"].as_str().unwrap_or("unknown"), &row["error"]);
    let answer = &row["outcome"]["deviceMethodResponse"];
    let is_completed = ["completed", "finished"].iter().any(|word| status.eq_ignore_ascii_case(word));
    let device = plain(device_id);
    let (line, outcome, end) = match answer["status"].as_i64() {
        Some(number) if is_completed => {
            let payload = shorten(&plain(&answer["payload"].to_string()), MOST_SHOWN);
            let end = if (200..300).contains(&number) { CallEnd::Done } else { CallEnd::Failed };
            (format!("{device}  {number}  {payload}"), format!("answered with status {number}"), end)
        }
        _ if is_completed => (format!("{device}  done"), "done".to_owned(), CallEnd::Done),
        _ => {
            let code = plain(error["code"].as_str().unwrap_or(status));
            let words = plain(error["description"].as_str().unwrap_or_default());
            (
                format!("{device}  failed: {code} {words}").trim_end().to_owned(),
                format!("failed: {code}"),
                // The device may have run a method that it has not answered. A device of another status, such as one of a
                // job that was cancelled, may have begun.
                match status.eq_ignore_ascii_case("failed") && !code.contains("Timeout") {
                    true => CallEnd::Failed,
                    false => CallEnd::Unknown,
                },
            )
        }
    };
    let line = match as_json {
        true => json(&JobLine::Result { device_id, status, outcome: &row["outcome"], error })?,
        false => line,
    };
    Ok(ToldCall { line, outcome, end })
}

fn within(text: &str) -> Result<Duration, String> {
    match back_end::duration(text)? {
        time if time > LONGEST => Err("must be at most 30d, because a hub keeps a job no longer".to_owned()),
        time => Ok(time),
    }
}

fn time(text: &str) -> Result<SystemTime, String> {
    parse_time(text).ok_or_else(|| "use a time in UTC, such as 2026-12-31T22:00:00Z".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_that_no_hub_has_are_no_panic() {
        let many = JobDevices {
            device_count: u64::MAX,
            failed_count: u64::MAX,
            succeeded_count: 1,
            ..JobDevices::default()
        };
        let (job_id, status) = ("a".to_owned(), "running".to_owned());
        let job = HubJob { job_id, status, failure_reason: None, devices: Some(many) };
        assert!(tell_job(&job, false).is_ok());
    }

    #[test]
    fn what_a_device_of_a_job_may_have_done_is_unknown() {
        for (status, code, end) in [
            ("failed", "DeviceNotOnline", CallEnd::Failed),
            ("failed", "GatewayTimeout", CallEnd::Unknown),
            ("canceled", "", CallEnd::Unknown),
        ] {
            let row = serde_json::json!({ "status": status, "error": { "code": code } });
            assert_eq!(told(&row, "a", false).expect("told").end, end, "{status} {code}");
        }
    }
}
