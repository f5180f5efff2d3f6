//! Logs to standard error.
//!
//! Owns: the subscriber. Must not know: subcommands. Used by: `cli`.

use std::io::IsTerminal as _;

use anyhow::anyhow;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Layer as _, fmt};

use super::{Failure, LogFormat};

/// Installs the process-wide subscriber. Called once, before anything logs.
///
/// # Errors
/// When `level` is no level and no list of `target=level`.
pub(super) fn install(level: &str, format: LogFormat) -> Result<(), Failure> {
    let filter = filter(level).ok_or_else(|| {
        Failure::usage(anyhow!(
            "--log-level (or C2D_LOG) is \"{}\": use off, error, warn, info, debug, trace or target=level,…",
            level.escape_debug()
        ))
    })?;
    let stderr = std::io::stderr;
    // As https://no-color.org has it: any text but an empty one.
    let plain = std::env::var_os("NO_COLOR").is_some_and(|text| !text.is_empty());
    let layer = match format {
        // Without the module path: people read these lines.
        LogFormat::Text => {
            let coloured = stderr().is_terminal() && !plain;
            fmt::layer().with_target(false).with_writer(stderr).with_ansi(coloured).boxed()
        }
        LogFormat::Json => fmt::layer().with_writer(stderr).json().flatten_event(true).boxed(),
    };
    tracing_subscriber::registry().with(layer.with_filter(filter)).init();
    Ok(())
}

/// A bare word is a level here: `Targets` would take a misspelled one for the name of a target, and log nothing else.
fn filter(level: &str) -> Option<Targets> {
    let understood =
        |part: &str| part.contains('=') || !part.is_empty() && part.parse::<LevelFilter>().is_ok();
    if level.split(',').all(|part| understood(part.trim())) { level.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::filter;

    #[test]
    fn a_misspelled_level_is_no_target() {
        for level in ["off", "info", "WARN", "info,rumqttc=debug", "c2d_agent::session=trace"] {
            assert!(filter(level).is_some(), "{level}");
        }
        for level in ["", "inof", "info,rumqtc", "x=y"] {
            assert!(filter(level).is_none(), "{level}");
        }
    }
}
