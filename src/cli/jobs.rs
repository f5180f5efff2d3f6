//! `c2d-agent jobs`: shows and cancels a job of the hub.
//!
//! Owns: its arguments and the exit code. Must not know: HTTP, what is printed.

use std::path::PathBuf;

use anyhow::{Context as _, anyhow};
use futures_util::StreamExt as _;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook_tokio::Signals;
use tokio::time::Instant;

use super::back_end::{self, HubArgs, OutputArgs};
use super::many_devices::{self, job};
use super::{Exit, Failure, transport};
use crate::service::TOKEN_LIFETIME;

/// Show or cancel a job of the hub, which invoke-method --job or twin patch --job has made.
///
/// The service connection string comes from --connection-string-file or from the variable
/// C2D_SERVICE_CONNECTION_STRING, never from an argument.
#[derive(Debug, clap::Args)]
pub(super) struct JobsArgs {
    #[command(subcommand)]
    command: JobsCommand,
}

#[derive(Debug, clap::Subcommand)]
enum JobsCommand {
    Show(JobsShow),
    Cancel(JobsCancel),
}

/// Show how far a job is, and what it did at each device if it has ended.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  c2d-agent jobs show 6f1c8f0e-5f0a-4b54-9c9e-0a5b1f6f4b1d --wait

Exit codes: 0 it goes on, or has ended well at each device; 1 an error, or the job failed; 2 the arguments are wrong; \
3 it has failed at some devices.", mut_arg("transport", |argument| transport::only(argument, transport::OF_REST)))]
struct JobsShow {
    /// The job.
    #[arg(value_name = "ID", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    job: String,
    /// Wait for its end, for an hour at most.
    #[arg(long)]
    wait: bool,
    /// Where to write the devices at which it failed; those at which it may have been done get into a file with the ending
    /// .unknown beside it.
    #[arg(long, value_name = "FILE")]
    failed: Option<PathBuf>,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    hub: HubArgs,
}

/// Cancel a job. What it has done at devices stays.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  c2d-agent jobs cancel 6f1c8f0e-5f0a-4b54-9c9e-0a5b1f6f4b1d

Exit codes: 0 done; 1 an error, for example when it has ended already; 2 the arguments are wrong.", mut_arg("transport", |argument| transport::only(argument, transport::OF_REST)))]
struct JobsCancel {
    /// The job.
    #[arg(value_name = "ID", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    job: String,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    hub: HubArgs,
}

/// Asks the hub.
///
/// # Errors
/// When the hub cannot be reached or refuses, or the job has failed.
pub(super) fn run(args: &JobsArgs) -> Result<Exit, Failure> {
    let (id, hub, as_json) = match &args.command {
        JobsCommand::Show(show) => (&show.job, &show.hub, show.output.json),
        JobsCommand::Cancel(cancel) => (&cancel.job, &cancel.hub, cancel.output.json),
    };
    if let JobsCommand::Show(JobsShow { failed: Some(file), .. }) = &args.command {
        many_devices::check_files(file)?;
    }
    let rest = hub.rest().map_err(Failure::usage)?;
    super::block_on(async {
        back_end::end_at_the_second_signal().context("signals cannot be received")?;
        let mut signals = Signals::new([SIGTERM, SIGINT]).context("signals cannot be received")?;
        // It may wait for an hour.
        let mut service = rest.service(TOKEN_LIFETIME * 2).map_err(anyhow::Error::new)?;
        let failed = |error: crate::service::ServiceError| back_end::failed(error.into());
        let work = async {
            let show = match &args.command {
                JobsCommand::Show(show) => show,
                JobsCommand::Cancel(_) => {
                    job::tell_job(&service.cancel_job(id).await.map_err(failed)?, as_json)?;
                    return Ok(Exit::Done);
                }
            };
            let mut shown = service.job(id).await.map_err(failed)?;
            job::tell_job(&shown, as_json)?;
            if show.wait {
                let end = Instant::now() + TOKEN_LIFETIME;
                shown = job::follow(&mut service, shown, as_json, end).await?;
            }
            if !shown.has_ended() {
                return Ok(Exit::Done);
            }
            job::results(&mut service, &shown, as_json, show.failed.clone()).await
        };
        tokio::select! {
            done = work => done,
            Some(_signal) = signals.next() => Err(match &args.command {
                JobsCommand::Show(_) => job::left(id),
                JobsCommand::Cancel(_) => anyhow!("interrupted by a signal: the job may or may not be cancelled"),
            }.into()),
        }
    })
}
