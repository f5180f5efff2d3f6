//! Finds the running emulator, and which of its devices are meant.
//!
//! Owns: the state directory of the command line and the environment, `--device` and `--module`, exit codes of failures.
//! Must not know: HTTPS.

use std::path::PathBuf;

use anyhow::anyhow;
use serde_json::Value;

use crate::cli::{Exit, Failure, back_end};
use crate::emulator::STATE_DIR_VARIABLE;
use crate::emulator::client::{AskError, RunningEmulator};

// Not a doc comment, which would become part of the help of each command.
// The emulator that runs.
#[derive(Debug, clap::Args)]
pub(super) struct RunningArgs {
    /// The state directory of the running emulator [default: $C2D_EMULATOR_STATE_DIR, which its file env sets, or else as
    /// for the emulator itself].
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Print JSON: one object per line.
    #[arg(long)]
    pub(super) json: bool,
}

// The device or module of the command; all of them if none is named.
#[derive(Debug, clap::Args)]
pub(super) struct WhomArgs {
    /// Only this device [default: all devices and modules].
    #[arg(long, value_name = "ID")]
    device: Option<String>,
    /// Only this module of the device.
    #[arg(long, value_name = "ID", requires = "device")]
    module: Option<String>,
}

impl RunningArgs {
    /// A client of the emulator, not connected yet.
    ///
    /// # Errors
    /// When no emulator has used the state directory.
    pub(super) fn client(&self) -> Result<RunningEmulator, Failure> {
        RunningEmulator::find(&state_dir(self.state_dir.clone())?).map_err(failure)
    }
}

impl WhomArgs {
    /// The id as DEVICE or DEVICE/MODULE; `None` for all.
    pub(super) fn id(&self) -> Option<String> {
        let device = self.device.as_ref()?;
        Some(match &self.module {
            Some(module) => format!("{device}/{module}"),
            None => device.clone(),
        })
    }

    /// The ids that are meant.
    ///
    /// # Errors
    /// When the emulator does not answer, or has more devices than it shows.
    pub(super) async fn ids(&self, client: &RunningEmulator) -> Result<Vec<String>, Failure> {
        if let Some(id) = self.id() {
            return Ok(vec![id]);
        }
        let overview = client.overview(None).await.map_err(failure)?;
        let left_out = overview["devicesLeftOut"].as_u64().unwrap_or_default();
        if left_out > 0 {
            let error = anyhow!("{left_out} devices do not fit in one overview: choose one with --device");
            return Err(Failure::usage(error));
        }
        Ok(devices(&overview).filter_map(|device| device["deviceId"].as_str().map(str::to_owned)).collect())
    }
}

/// The devices and modules of an overview.
pub(super) fn devices(overview: &Value) -> impl Iterator<Item = &Value> {
    overview["devices"].as_array().into_iter().flatten()
}

/// The state directory: the given one, or that of the sourced environment, or else the user's default.
///
/// # Errors
/// When no argument or variable leads to a directory.
pub(super) fn state_dir(given: Option<PathBuf>) -> Result<PathBuf, Failure> {
    let variable = || std::env::var_os(STATE_DIR_VARIABLE).filter(|dir| !dir.is_empty()).map(PathBuf::from);
    match given.or_else(variable) {
        Some(dir) => Ok(dir),
        None => default_state_dir(),
    }
}

fn default_state_dir() -> Result<PathBuf, Failure> {
    let state = back_end::state_folder();
    let state =
        state.map_err(|error| Failure::usage(anyhow!("{error}: name a directory with --state-dir")))?;
    Ok(state.join("emulator"))
}

/// A failure with its exit code: a wrong directory is an error of the command line.
pub(super) fn failure(error: AskError) -> Failure {
    match error {
        AskError::NoStateDir(_) => Failure::usage(error),
        error => Failure { exit: Exit::Error, error: error.into() },
    }
}
