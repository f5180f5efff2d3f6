//! `c2d-agent twin`: prints the twin of a device or a module, and patches its tags and desired properties.
//!
//! Owns: its arguments, what is printed, the exit code. Must not know: HTTP.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow};
use futures_util::StreamExt as _;
use serde_json::{Map, Value};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook_tokio::Signals;

use super::back_end::{self, HubArgs, OutputArgs, TargetArgs, print};
use super::shown::{json, without_controls};
use super::{Exit, Failure, transport};
use crate::service::{ServiceError, TOKEN_LIFETIME, TwinPatch};

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
    Patch(Patch),
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

/// Merge into the tags and desired properties; null removes a property.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  c2d-agent twin patch --device pi-01 --desired '{\"interval\": 30, \"old\": null}'
  c2d-agent twin patch --device pi-01 --tags '{\"room\": 7}' --etag AAAAAAAAAAI=
  c2d-agent twin patch --device gateway --module relay --desired-file rules.json

Exit codes: 0 done; 1 an error; 2 the arguments are wrong; 3 with --etag, the twin has changed since.", mut_arg("transport", |argument| transport::only(argument, transport::OF_REST)))]
struct Patch {
    #[command(flatten)]
    target: TargetArgs,
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
    #[arg(long, value_name = "ETAG")]
    etag: Option<String>,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    hub: HubArgs,
}

/// Asks the hub once.
///
/// # Errors
/// When the hub cannot be reached or refuses.
pub(super) fn run(args: &TwinArgs) -> Result<Exit, Failure> {
    let (target, output, hub) = match &args.command {
        TwinCommand::Get(get) => (&get.target, &get.output, &get.hub),
        TwinCommand::Patch(patch) => (&patch.target, &patch.output, &patch.hub),
    };
    let target = target.target().map_err(Failure::usage)?;
    let patch = match &args.command {
        TwinCommand::Get(_) => None,
        TwinCommand::Patch(patch) => Some(patch.read().map_err(Failure::usage)?),
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

impl Patch {
    fn read(&self) -> anyhow::Result<TwinPatch> {
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
