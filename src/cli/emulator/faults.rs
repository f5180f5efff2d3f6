//! `emulator faults`: shows, sets and ends the faults of a running emulator.
//!
//! Owns: its arguments and lines. Must not know: HTTPS, what a fault does.

use anyhow::anyhow;
use serde_json::Value;

use super::running::{RunningArgs, WhomArgs, failure};
use crate::cli::shown::{Output, plain};
use crate::cli::{Exit, Failure};
use crate::emulator::client::RunningEmulator;
use crate::emulator::hub::{Fault, FaultName, FaultOrder};

/// Show, set or end the faults of the running emulator.
///
/// Without a fault, it shows the active ones. The faults are those of `c2d-agent emulator --fault`;
/// `c2d-agent emulator --help` says what each one does. They end with the emulator.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  c2d-agent emulator faults
  c2d-agent emulator faults --device pi-01 drop-at=6 duplicate=1
  c2d-agent emulator faults --device pi-01 --clear duplicate
  c2d-agent emulator faults --clear

Exit codes: 0 done; 1 an error, for example no emulator is running; 2 the arguments are wrong, or the directory is not a state directory.")]
pub(super) struct FaultsArgs {
    /// The faults to set; with --clear, the faults to end.
    #[arg(value_name = "NAME[=VALUE]")]
    faults: Vec<String>,
    /// End these faults, or all if none is given.
    #[arg(long)]
    clear: bool,
    #[command(flatten)]
    whom: WhomArgs,
    #[command(flatten)]
    running: RunningArgs,
}

/// The change that the arguments ask for.
enum Change {
    Set(Fault),
    End(Option<FaultName>),
}

/// Does what the arguments say, and prints the faults that are then active.
///
/// # Errors
/// When a fault does not exist, or the emulator does not answer.
pub(super) fn run(args: &FaultsArgs) -> Result<Exit, Failure> {
    let changes = args.changes().map_err(Failure::usage)?;
    let client = args.running.client()?;
    super::super::block_on(async {
        let mut out = Output::new();
        for id in args.whom.ids(&client).await? {
            let faults = change(&client, &id, &changes).await?;
            if args.running.json {
                out.json(&faults)?;
            } else {
                out.line(&line(&id, &faults["faults"]))?;
            }
        }
        out.flush()?;
        Ok(Exit::Done)
    })
}

impl FaultsArgs {
    fn changes(&self) -> anyhow::Result<Vec<Change>> {
        if self.clear && self.faults.is_empty() {
            return Ok(vec![Change::End(None)]);
        }
        let change = |text: &String| {
            if self.clear {
                return Ok(Change::End(Some(text.parse()?)));
            }
            match text.parse()? {
                FaultOrder { device_id: None, fault } => Ok(Change::Set(fault)),
                FaultOrder { device_id: Some(_), .. } => {
                    Err(anyhow!("\"{}\" names a device: name it with --device", plain(text)))
                }
            }
        };
        self.faults.iter().map(change).collect()
    }
}

async fn change(client: &RunningEmulator, id: &str, changes: &[Change]) -> Result<Value, Failure> {
    let mut left = None;
    for change in changes {
        left = Some(match change {
            Change::Set(fault) => client.set_fault(id, *fault).await.map_err(failure)?,
            Change::End(name) => client.clear_faults(id, *name).await.map_err(failure)?,
        });
    }
    match left {
        Some(left) => Ok(left),
        None => client.faults(id).await.map_err(failure),
    }
}

fn line(id: &str, faults: &Value) -> String {
    let named = faults.as_object().into_iter().flatten().map(|(name, value)| match value.as_str() {
        Some(value) => format!("{name}={value}"),
        None => name.clone(),
    });
    let named = named.collect::<Vec<_>>().join(" ");
    format!("{}  {}", plain(id), if named.is_empty() { "no faults" } else { &named })
}
