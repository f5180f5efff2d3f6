//! `c2d-agent twin`: prints the twin of a device or a module, and patches its tags and desired properties.
//!
//! Owns: its arguments, what is printed, the exit code. Must not know: HTTP.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use futures_util::StreamExt as _;
use serde::Serialize;
use serde_json::{Map, Value};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook_tokio::Signals;

use super::back_end::{self, HubArgs, OutputArgs, TargetArgs, print};
use super::many_devices::outcomes::{self, CallEnd, ToldCall};
use super::many_devices::{self, ManyCalls, ManyDevicesArgs, OneOrManyArgs, job};
use super::shown::{json, without_controls};
use super::{Exit, Failure, transport};
use crate::service::{Addressee, HttpsService, JobWork, ServiceError, TOKEN_LIFETIME, TwinPatch};

/// Most bytes of a part of a twin: the 32 KiB of desired properties that the hub accepts, and room for white space.
const MAX_PART: usize = 128 * 1024;

/// Print or patch the twin of a device: its tags, desired and reported properties.
///
/// The service connection string comes from --connection-string-file or from the variable
/// C2D_SERVICE_CONNECTION_STRING, never from an argument.
#[derive(Debug, clap::Args)]
pub(super) struct TwinArgs {
    #[command(subcommand)]
    command: TwinCommand,
}

#[derive(Debug, clap::Subcommand)]
enum TwinCommand {
    Get(Get),
    Patch(Box<Patch>),
}

/// Print the twin, as JSON.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  c2d-agent twin get --device pi-01
  c2d-agent twin get --device pi-01 --json | jq .properties.reported

Exit codes: 0 done; 1 an error; 2 the arguments are wrong.", mut_arg("transport", |argument| transport::only(argument, transport::OF_REST)))]
struct Get {
    #[command(flatten)]
    target: TargetArgs,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    hub: HubArgs,
}

/// Merge into the tags and desired properties, of one twin or of many; null removes a property.
#[derive(Debug, clap::Args)]
#[command(override_usage = "c2d-agent twin patch [OPTIONS] --device <ID>
       c2d-agent twin patch [OPTIONS] --devices-from <FILE>
       c2d-agent twin patch [OPTIONS] --query <SQL>")]
#[command(after_help = "Examples:
  c2d-agent twin patch --device pi-01 --desired '{\"interval\": 30, \"old\": null}'
  c2d-agent twin patch --device pi-01 --tags '{\"room\": 7}' --etag AAAAAAAAAAI=
  c2d-agent twin patch --device gateway --module relay --desired-file rules.json
  c2d-agent twin patch --devices-from pumps.txt --desired '{\"interval\": 30}'

Exit codes: 0 done; 1 an error; 2 the arguments are wrong; 3 with --etag, the twin has changed since (of many: some are \
not patched).", mut_arg("transport", |argument| transport::only(argument, transport::OF_REST)))]
struct Patch {
    #[command(flatten)]
    target: OneOrManyArgs,
    /// A JSON object for the desired properties.
    #[arg(long, value_name = "JSON", conflicts_with = "desired_file")]
    desired: Option<String>,
    /// The same, from a file; - is standard input.
    #[arg(long, value_name = "PATH")]
    desired_file: Option<PathBuf>,
    /// A JSON object for the tags, which the device cannot see.
    #[arg(long, value_name = "JSON")]
    tags: Option<String>,
    /// Patch only if the twin still has this etag; `twin get` shows it.
    #[arg(long, value_name = "ETAG", conflicts_with_all = ["devices_from", "query"])]
    etag: Option<String>,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    hub: HubArgs,
    #[command(flatten)]
    many: ManyDevicesArgs,
}

/// The objects of `--json` for many twins: stable for scripts; fields are added, never renamed.
#[derive(Serialize)]
#[serde(tag = "event", rename_all = "kebab-case", rename_all_fields = "camelCase")]
enum PatchLine<'a> {
    Patched {
        device_id: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        module_id: Option<&'a str>,
        desired_version: Option<u64>,
        etag: Option<&'a str>,
    },
    Failed {
        device_id: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        module_id: Option<&'a str>,
        error: String,
    },
}

/// Asks the hub once.
///
/// # Errors
/// When the hub cannot be reached or refuses.
pub(super) fn run(args: &TwinArgs) -> Result<Exit, Failure> {
    let (target, output, hub) = match &args.command {
        TwinCommand::Get(get) => (Some(get.target.target().map_err(Failure::usage)?), &get.output, &get.hub),
        TwinCommand::Patch(patch) => (patch.target.one().map_err(Failure::usage)?, &patch.output, &patch.hub),
    };
    let patch = match &args.command {
        TwinCommand::Get(_) => None,
        TwinCommand::Patch(patch) => Some((patch, patch.read().map_err(Failure::usage)?)),
    };
    let (target, patch) = match (target, patch) {
        (Some(target), patch) => (target, patch.map(|(_, patch)| patch)),
        (None, Some((args, patch))) => return args.patch_many(&patch),
        (None, None) => return Err(anyhow!("no device is named").into()),
    };
    let rest = hub.rest().map_err(Failure::usage)?;
    super::block_on(async {
        let mut signals = Signals::new([SIGTERM, SIGINT]).context("signals cannot be received")?;
        let ask = async {
            let mut service = rest.service(TOKEN_LIFETIME)?;
            match &patch {
                None => service.whole_twin(&target).await,
                Some(patch) => service.patch_twin(&target, patch).await,
            }
        };
        let what = if patch.is_some() { ": the twin may or may not be patched" } else { "" };
        let twin = tokio::select! {
            twin = ask => twin.map_err(failed)?,
            Some(_signal) = signals.next() => return Err(anyhow!("interrupted by a signal{what}").into()),
        };
        let text = match &patch {
            _ if output.json => json(&twin)?,
            None => pretty(&twin)?,
            Some(patch) => changed(&target.to_string(), patch, &twin),
        };
        print(&text)?;
        Ok(Exit::Done)
    })
}

/// The twin with a line for each property.
fn pretty(twin: &Value) -> anyhow::Result<String> {
    let text = serde_json::to_string_pretty(twin).context("a twin cannot be printed")?;
    Ok(text.lines().map(without_controls).collect::<Vec<_>>().join("\n"))
}

/// The result of a patch, in words.
fn changed(target: &str, patch: &TwinPatch, twin: &Value) -> String {
    let mut lines = Vec::new();
    if patch.desired.is_some() {
        let version = &twin["properties"]["desired"]["$version"];
        lines.push(format!("the desired properties of {target} have version {version} now"));
    }
    if patch.tags.is_some() {
        lines.push(format!("the tags of {target} are {} now", twin["tags"]));
    }
    lines.push(format!("etag {}", twin["etag"].as_str().unwrap_or("none")));
    lines.join("\n")
}

fn failed(error: ServiceError) -> Failure {
    match error {
        ServiceError::Changed(_) => Failure { exit: Exit::NegativeFeedback, error: error.into() },
        error => back_end::failed(error.into()),
    }
}

/// A line about one of many twins.
fn told_of_many(
    as_json: bool,
    patch: &TwinPatch,
    target: &Addressee,
    result: &Result<Value, ServiceError>,
) -> anyhow::Result<ToldCall> {
    let (device_id, module_id) = (target.device_id(), target.module_id());
    Ok(match result {
        Ok(twin) => {
            let desired_version = twin["properties"]["desired"]["$version"].as_u64();
            let etag = twin["etag"].as_str();
            let line = match (as_json, desired_version) {
                (true, _) => json(&PatchLine::Patched { device_id, module_id, desired_version, etag })?,
                (false, Some(version)) if patch.desired.is_some() => {
                    format!("{device_id}  patched: desired version {version}")
                }
                (false, _) => format!("{device_id}  patched"),
            };
            ToldCall { line, outcome: "patched".to_owned(), end: CallEnd::Done }
        }
        Err(error) => {
            let end = outcomes::end(error);
            let (outcome, error) = (outcomes::kind(error).to_owned(), outcomes::sentence(error));
            let line = match as_json {
                true => json(&PatchLine::Failed { device_id, module_id, error })?,
                false => format!("{device_id}  failed: {error}"),
            };
            ToldCall { line, outcome, end }
        }
    })
}

impl Patch {
    /// Patches the twins of many devices.
    fn patch_many(&self, patch: &TwinPatch) -> Result<Exit, Failure> {
        let calls = ManyCalls {
            many: &self.many,
            module: self.target.module(),
            hub: &self.hub,
            json: self.output.json,
            doing: "patching twins".to_owned(),
            per_minute: &|tier, units| tier.twin_updates_per_minute(units),
            longest: Duration::ZERO,
        };
        if self.many.is_job() {
            return job::run(&calls, JobWork::Twin(patch));
        }
        let call =
            async |service: &mut HttpsService, target: &Addressee| service.patch_twin(target, patch).await;
        many_devices::run(&calls, call, |target, result| {
            told_of_many(self.output.json, patch, target, result)
        })
    }

    fn read(&self) -> anyhow::Result<TwinPatch> {
        self.many.check_stdin("--desired-file", self.desired_file.as_deref())?;
        let desired = object("--desired", self.desired.as_deref(), self.desired_file.as_deref())?;
        let tags = object("--tags", self.tags.as_deref(), None)?;
        if desired.is_none() && tags.is_none() {
            return Err(anyhow!("there is nothing to patch: give --desired, --desired-file or --tags"));
        }
        let etag = self.etag.as_deref().map(|etag| etag.trim_matches('"').to_owned());
        Ok(TwinPatch { tags, desired, etag })
    }
}

/// A part of the twin, if the user gave it.
fn object(name: &str, text: Option<&str>, file: Option<&Path>) -> anyhow::Result<Option<Map<String, Value>>> {
    if text.is_none() && file.is_none() {
        return Ok(None);
    }
    let text = back_end::text_of(&format!("JSON of {name}"), text, file, MAX_PART)?;
    let example = "give an object, such as '{\"interval\": 30}'";
    serde_json::from_str(&text).map(Some).with_context(|| format!("{name} is not a JSON object: {example}"))
}
