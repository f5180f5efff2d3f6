//! Logs to standard error.
//!
//! Owns: the subscriber. Must not know: subcommands. Used by: `cli`.

use std::io::IsTerminal as _;

use anyhow::Context as _;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Layer as _, fmt};

use super::{Failure, LogFormat};

/// Installs the process-wide subscriber. Called once, before anything logs.
///
/// # Errors
/// When `level` is no level and no list of `target=level`.
pub(super) fn install(level: &str, format: LogFormat) -> Result<(), Failure> {
    let filter: Targets = level
        .parse()
        .with_context(|| {
            format!("--log-level is \"{level}\": use error, warn, info, debug, trace or target=level,…")
        })
        .map_err(Failure::usage)?;
    let stderr = std::io::stderr;
    let layer = match format {
        // Without the module path: people read these lines.
        LogFormat::Text => {
            fmt::layer().with_target(false).with_writer(stderr).with_ansi(stderr().is_terminal()).boxed()
        }
        LogFormat::Json => fmt::layer().with_writer(stderr).json().flatten_event(true).boxed(),
    };
    tracing_subscriber::registry().with(layer.with_filter(filter)).init();
    Ok(())
}
