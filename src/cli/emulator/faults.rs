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
use crate::emulator::{DpsFault, DpsFaultName, DpsFaultOrder};

/// Show, set or end the faults of the running emulator.
///
/// Without a fault, it shows the active ones. The faults are those of `c2d-agent emulator --fault`;
/// `c2d-agent emulator --help` says what each one does. They end with the emulator. A fault of the
/// provisioning service (dps-…) is for the registration that --device names, or for all.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  c2d-agent emulator faults
  c2d-agent emulator faults --device pi-01 drop-at=6 duplicate=1
  c2d-agent emulator faults --device pi-01 --clear duplicate
  c2d-agent emulator faults --clear
  c2d-agent emulator faults dps-throttle=3
  c2d-agent emulator faults --device pi-01 dps-failed=400208

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

/// The changes that the arguments ask for: at the hub, and at the provisioning service.
#[derive(Default)]
struct Changes {
    hub: Vec<Change<Fault, FaultName>>,
    dps: Vec<Change<DpsFault, DpsFaultName>>,
}

enum Change<F, N> {
    Set(F),
    End(Option<N>),
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
        // Faults of one of the two say nothing about the other one.
        if changes.dps.is_empty() || !changes.hub.is_empty() {
            for id in args.whom.ids(&client).await? {
                let faults = change(&client, &id, &changes.hub).await?;
                if args.running.json {
                    out.json(&faults)?;
                } else {
                    out.line(&line(&id, &faults["faults"]))?;
                }
            }
        }
        let is_meant = !changes.dps.is_empty() && !args.faults.is_empty();
        let is_shown = changes.hub.is_empty() || args.faults.is_empty();
        if is_meant || (is_shown && !client.overview(None).await.map_err(failure)?["provisioning"].is_null())
        {
            let rows = change_dps(&client, args.whom.id().as_deref(), &changes.dps).await?;
            for row in rows.as_array().into_iter().flatten() {
                if args.running.json {
                    out.json(row)?;
                } else {
                    let id = row["registrationId"].as_str().map(|id| format!("registration {id}"));
                    out.line(&line(id.as_deref().unwrap_or("provisioning service"), &row["faults"]))?;
                }
            }
        }
        out.flush()?;
        Ok(Exit::Done)
    })
}

impl FaultsArgs {
    fn changes(&self) -> anyhow::Result<Changes> {
        let mut changes = Changes::default();
        if self.clear && self.faults.is_empty() {
            return Ok(Changes { hub: vec![Change::End(None)], dps: vec![Change::End(None)] });
        }
        for text in &self.faults {
            let names_device = || anyhow!("\"{}\" names a device: name it with --device", plain(text));
            match (DpsFaultName::is_meant(text), self.clear) {
                (false, true) => changes.hub.push(Change::End(Some(text.parse()?))),
                (true, true) => changes.dps.push(Change::End(Some(text.parse()?))),
                (false, false) => match text.parse()? {
                    FaultOrder { device_id: None, fault } => changes.hub.push(Change::Set(fault)),
                    FaultOrder { device_id: Some(_), .. } => return Err(names_device()),
                },
                (true, false) => match text.parse()? {
                    DpsFaultOrder { registration_id: None, fault } => changes.dps.push(Change::Set(fault)),
                    DpsFaultOrder { registration_id: Some(_), .. } => return Err(names_device()),
                },
            }
        }
        Ok(changes)
    }
}

async fn change_dps(
    client: &RunningEmulator,
    id: Option<&str>,
    changes: &[Change<DpsFault, DpsFaultName>],
) -> Result<Value, Failure> {
    for change in changes {
        match change {
            Change::Set(fault) => client.set_dps_fault(id, *fault).await.map_err(failure)?,
            Change::End(name) => client.clear_dps_faults(id, *name).await.map_err(failure)?,
        };
    }
    client.dps_faults().await.map_err(failure)
}

async fn change(
    client: &RunningEmulator,
    id: &str,
    changes: &[Change<Fault, FaultName>],
) -> Result<Value, Failure> {
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
