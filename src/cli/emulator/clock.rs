//! `emulator clock`: shows and moves the clock of a running emulator.
//!
//! Owns: its arguments and lines. Must not know: HTTPS, what follows the clock.

use anyhow::anyhow;
use clap::ValueEnum;
use serde_json::Value;

use super::running::{RunningArgs, failure};
use crate::cli::shown::{Output, plain};
use crate::cli::{Exit, Failure};
use crate::emulator::clock::ClockSetting;

/// Show or move the clock of the running emulator.
///
/// Locks, expiry, feedback, time-outs of methods and the tokens of connections follow the clock, so a
/// test of 48 hours takes a second. Clients keep to the real time: they sign in with tokens as before.
/// A restart sets the clock to the real time.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  c2d-agent emulator clock
  c2d-agent emulator clock advance 48h
  c2d-agent emulator clock set 2030-01-01T00:00:00Z
  c2d-agent emulator clock set -1h
  c2d-agent emulator clock reset

Exit codes: 0 done; 1 an error, for example no emulator is running; 2 the arguments are wrong, or the directory is not a state directory.")]
pub(super) struct ClockArgs {
    /// What to do with the clock.
    #[arg(value_enum, default_value_t = ClockAction::Show)]
    action: ClockAction,
    /// With advance, a duration such as 48h. With set, a time such as 2030-01-01T00:00:00Z, or an offset from the real
    /// time such as +48h or -1h.
    #[arg(value_name = "VALUE", allow_hyphen_values = true)]
    value: Option<String>,
    #[command(flatten)]
    running: RunningArgs,
}

/// What to do with the clock.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum ClockAction {
    /// Show it.
    Show,
    /// Move it forward.
    Advance,
    /// Set it.
    Set,
    /// Set it to the real time.
    Reset,
}

/// Does what the arguments say, and prints what the clock shows then.
///
/// # Errors
/// When the value is wrong, or the emulator does not answer.
pub(super) fn run(args: &ClockArgs) -> Result<Exit, Failure> {
    let setting = args.setting().map_err(Failure::usage)?;
    let client = args.running.client()?;
    super::super::block_on(async {
        let shown = match setting {
            None => client.clock().await,
            Some(setting) => client.move_clock(setting).await,
        };
        let shown = shown.map_err(failure)?;
        let mut out = Output::new();
        if args.running.json {
            out.json(&shown)?;
        } else {
            out.line(&line(&shown))?;
        }
        out.flush()?;
        Ok(Exit::Done)
    })
}

impl ClockArgs {
    /// `None` to show the clock, `Some(None)` for the real time.
    fn setting(&self) -> anyhow::Result<Option<Option<ClockSetting>>> {
        match (self.action, self.value.as_deref()) {
            (ClockAction::Show, None) => Ok(None),
            (ClockAction::Reset, None) => Ok(Some(None)),
            (ClockAction::Advance, Some(text)) => Ok(Some(Some(ClockSetting::advance(text)?))),
            (ClockAction::Set, Some(text)) => Ok(Some(Some(text.parse()?))),
            (ClockAction::Show | ClockAction::Reset, Some(text)) => {
                Err(anyhow!("\"{}\" is too much: show and reset take no value", plain(text)))
            }
            (ClockAction::Advance, None) => Err(anyhow!("say by how much, such as: advance 48h")),
            (ClockAction::Set, None) => Err(anyhow!("say to what, such as: set +48h")),
        }
    }
}

fn line(shown: &Value) -> String {
    let now = plain(shown["now"].as_str().unwrap_or_default());
    match shown["offsetMs"].as_i64() {
        Some(0) => format!("{now}  the real time"),
        millis => {
            let millis = millis.unwrap_or_default();
            let by = std::time::Duration::from_millis(millis.unsigned_abs());
            let side = if millis < 0 { "behind" } else { "ahead of" };
            format!("{now}  {} {side} the real time", humantime::format_duration(by))
        }
    }
}
