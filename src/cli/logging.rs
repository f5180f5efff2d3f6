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

use fields::LogFields;
use queue::Queue;

/// How long a shutdown waits until the last lines are written, because it must end in time. Only a reader that is stuck
/// takes longer, and it would not read the lines later either.
const LAST_LINES: Duration = Duration::from_millis(200);
/// A longer wait, when the last line says why the program fails: a slow console should still show it.
const LAST_WORD: Duration = Duration::from_secs(1);

/// Whether the program waits for the reader of standard error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Patience {
    /// The program waits: no line is lost.
    Waits,
    /// The program goes on: lines are lost if they are not read.
    Goes,
}

/// The log of this process.
#[derive(Clone)]
pub(super) struct Log {
    queue: Option<Queue>,
}

impl Log {
    /// Writes the last line, for people. Waits a short time until the lines are written.
    pub(super) fn end(self, last: Option<String>) {
        match (&self.queue, last) {
            (Some(queue), None) => queue.flush(LAST_LINES),
            (None, None) => {}
            (_, Some(last)) => {
                self.tell(&last);
                self.flush_last_word();
            }
        }
    }

    /// Writes a line for people, whatever the log's level.
    pub(super) fn tell(&self, line: &str) {
        match self.queue.clone() {
            None => super::tell(line),
            Some(mut queue) => drop(queue.write_all(format!("{line}\n").as_bytes())), // never fails
        }
    }

    /// Waits a short time until all lines are written, because the last one says why the program fails.
    pub(super) fn flush_last_word(&self) {
        if let Some(queue) = &self.queue {
            queue.flush(LAST_WORD);
        }
    }
}

/// Installs the subscriber of the process. Called once, before the first log line.
///
/// # Errors
/// When `level` is neither a level nor a list of `target=level`.
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
        // If no thread can be started, the program waits for the reader.
        Patience::Goes => Queue::to_stderr().ok(),
    };
    let writer = match queue.clone() {
        Some(queue) => BoxMakeWriter::new(move || queue.clone()),
        None => BoxMakeWriter::new(stderr),
    };
    // As https://no-color.org says: any value but an empty one turns colours off.
    let plain = std::env::var_os("NO_COLOR").is_some_and(|text| !text.is_empty());
    let layer = match format {
        // The module path is left out, because people read these lines.
        LogFormat::Text => {
            let coloured = stderr().is_terminal() && !plain;
            let layer = fmt::layer().with_target(false).with_ansi(coloured).fmt_fields(LogFields);
            layer.with_writer(writer).boxed()
        }
        LogFormat::Json => fmt::layer().with_writer(writer).json().flatten_event(true).boxed(),
    };
    tracing_subscriber::registry().with(layer.with_filter(filter)).init();
    Ok(Log { queue })
}

/// Parses a level or a list of `target=level`. `Targets` would take a misspelled level for a target's name, and log
/// nothing else; so a word without `=` must be a level.
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
