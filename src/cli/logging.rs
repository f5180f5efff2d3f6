//! Logs to standard error.
//!
//! Owns: the subscriber. Must not know: subcommands.

use std::io::{IsTerminal as _, Write as _};
use std::time::Duration;

use anyhow::anyhow;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::writer::BoxMakeWriter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Layer as _, fmt};

use super::{Failure, LogFormat};

mod fields;
mod queue;

use fields::Fields;
use queue::Queue;

/// How long the last lines may take to be written, of a shutdown that must end in time. Only a reader that is stuck takes so
/// long, and it would not read them later either.
const LAST_LINES: Duration = Duration::from_millis(200);
/// The same when the last line says why the program fails: that is worth the time of a slow console.
const LAST_WORD: Duration = Duration::from_secs(1);

/// Who waits for whoever reads standard error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Patience {
    /// The program: no line is lost.
    Waits,
    /// Nobody: lines are lost when they are not read.
    Goes,
}

/// The log of this process.
pub(super) struct Log {
    queue: Option<Queue>,
}

impl Log {
    /// Writes the last line, for people, and waits for the lines before it, though not for long.
    pub(super) fn end(self, last: Option<String>) {
        match (self.queue, last) {
            (None, last) => last.iter().for_each(super::tell),
            (Some(queue), None) => queue.flush(LAST_LINES),
            (Some(mut queue), Some(last)) => {
                drop(queue.write_all(format!("{last}\n").as_bytes())); // never fails
                queue.flush(LAST_WORD);
            }
        }
    }
}

/// Installs the process-wide subscriber. Called once, before anything logs.
///
/// # Errors
/// When `level` is no level and no list of `target=level`.
pub(super) fn install(level: &str, format: LogFormat, patience: Patience) -> Result<Log, Failure> {
    let filter = filter(level).ok_or_else(|| {
        Failure::usage(anyhow!(
            "--log-level (or C2D_LOG) is \"{}\": use off, error, warn, info, debug, trace or target=level,…",
            level.escape_debug()
        ))
    })?;
    let stderr = std::io::stderr;
    let queue = match patience {
        Patience::Waits => None,
        // Without a thread to be had the program waits, too.
        Patience::Goes => Queue::to_stderr().ok(),
    };
    let writer = match queue.clone() {
        Some(queue) => BoxMakeWriter::new(move || queue.clone()),
        None => BoxMakeWriter::new(stderr),
    };
    // As https://no-color.org has it: any text but an empty one.
    let plain = std::env::var_os("NO_COLOR").is_some_and(|text| !text.is_empty());
    let layer = match format {
        // Without the module path: people read these lines.
        LogFormat::Text => {
            let coloured = stderr().is_terminal() && !plain;
            let layer = fmt::layer().with_target(false).with_ansi(coloured).fmt_fields(Fields);
            layer.with_writer(writer).boxed()
        }
        LogFormat::Json => fmt::layer().with_writer(writer).json().flatten_event(true).boxed(),
    };
    tracing_subscriber::registry().with(layer.with_filter(filter)).init();
    Ok(Log { queue })
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
