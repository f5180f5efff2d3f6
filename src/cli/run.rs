//! `run`: the device agent, until a signal ends it.
//!
//! Owns: its arguments, signals, and the exit code. Must not know: what the agent does. Used by: `cli`.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::SystemTime;

use anyhow::Context as _;
use futures_util::StreamExt as _;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGXFSZ};
use signal_hook_tokio::Signals;
use tokio_util::sync::CancellationToken;

use crate::agent::{self, AgentError};
use crate::config;

use super::{DEFAULT_CONFIG, Exit, Failure};

/// Run the device agent: receive C2D messages and act on them.
///
/// The device signs in with the connection string or certificate of the configuration, or with the connection string
/// in C2D_DEVICE_CONNECTION_STRING. C2D_CA_FILE names a private root (emulator, IoT Edge gateway) to trust as well.
///
/// The agent keeps trying while the hub cannot be reached. SIGTERM, SIGINT and SIGHUP (the terminal was closed) end it
/// in at most 8 seconds: the action in flight may end first, then pins are put into their on_exit state. A second signal
/// waits for no action.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Exit codes: 0 ended by a signal; 1 an error: a pin cannot be claimed, or the hub refused the \
    device at its first sign-in (later refusals are retried); 2 the configuration has problems."
)]
pub(super) struct Args {
    /// The configuration file; files of config.d beside it whose names end in .toml are read after it.
    #[arg(short, long, value_name = "FILE", default_value = DEFAULT_CONFIG)]
    config: PathBuf,
}

/// Runs the agent until a signal.
///
/// # Errors
/// When the configuration has problems, or the agent ends by itself.
pub(super) fn run(args: &Args) -> Result<Exit, Failure> {
    let config = config::load(&args.config, &|name| std::env::var(name).ok())
        .map_err(|report| Failure::usage(anyhow::anyhow!("the configuration has problems:\n{report}")))?;
    let drop_ins = config.files.len().saturating_sub(1);
    tracing::info!(path = %args.config.display(), drop_ins, "configuration read");
    for warning in config.warnings.lines() {
        tracing::warn!("{warning}");
    }
    super::block_on(async {
        survive_file_size_limit()?;
        let signals = Signals::new([SIGTERM, SIGINT, SIGHUP]).context("signals cannot be received")?;
        let (stop, hurry) = (CancellationToken::new(), CancellationToken::new());
        let settings =
            agent::Settings { config, clock: SystemTime::now, hurry: hurry.clone(), observer: None };
        let ended = tokio::select! {
            ended = agent::run(settings, stop.cancelled()) => ended,
            () = watch(signals, &stop, &hurry) => Ok(()),
        };
        ended.map(|()| Exit::Done).map_err(failure)
    })
}

/// A write past the file size limit (`ulimit -f`, systemd's `LimitFSIZE`) raises a signal that ends the process, unless it
/// is handled: then the write fails like one on a full disk. A handler, and not to ignore the signal, because children
/// would inherit that.
fn survive_file_size_limit() -> Result<(), anyhow::Error> {
    let raised = Arc::new(AtomicBool::new(false));
    signal_hook::flag::register(SIGXFSZ, raised).map(drop).context("the signal SIGXFSZ cannot be handled")
}

/// The first signal asks to stop, the second to hurry; further ones change nothing. Never ends.
async fn watch(mut signals: Signals, stop: &CancellationToken, hurry: &CancellationToken) {
    for token in [stop, hurry] {
        if let Some(signal) = signals.next().await {
            tracing::info!(signal = signal_hook::low_level::signal_name(signal), "signal received");
            token.cancel();
        }
    }
    std::future::pending().await
}

fn failure(error: AgentError) -> Failure {
    if error.is_configuration() { Failure::usage(error) } else { anyhow::Error::new(error).into() }
}
