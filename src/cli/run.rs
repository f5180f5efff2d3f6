//! `run`: runs the device agent until a signal.
//!
//! Owns: its arguments, signals, and the exit code. Must not know: what the agent does.

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::SystemTime;

use anyhow::Context as _;
use futures_util::StreamExt as _;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGXFSZ};
use signal_hook_tokio::Signals;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::agent::{self, AgentError};
use crate::config::{self, Remote};

use super::{DEFAULT_CONFIG, Exit, Failure};

/// Run the agent: act on C2D messages, on messages to a module's inputs, and on calls of direct methods.
///
/// The device signs in with the connection string or certificate of the configuration, or with the connection string in
/// C2D_DEVICE_CONNECTION_STRING. C2D_CA_FILE names a private root to trust, too (emulator, IoT Edge gateway). A device
/// gets C2D messages and calls of direct methods.
///
/// An IoT Edge module needs only the environment that edgeAgent gives it. IOTEDGE_WORKLOADURI makes it a module and
/// leads to the API that signs its tokens and has its roots; the other IOTEDGE_ variables say which module it is.
/// Outside an edge device, use EdgeHubConnectionString and EdgeModuleCACertificateFile. A module gets messages to its
/// inputs and calls of direct methods. If a device is configured, too, both sign in side by side: C2D messages come to
/// the device, all others to the module. The small device image has no modules.
///
/// If the hub cannot be reached, the agent keeps trying. SIGTERM and SIGINT end it in at most 8 seconds: the running
/// action may end first, then pins take their on_exit state. After a second signal it waits for no action.
///
/// On SIGHUP it reads the configuration and the secrets again. If they are valid, it applies them between two messages,
/// and pins keep their states. If not, it logs every problem and keeps the old configuration.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Exit codes: 0 ended by a signal; 1 an error: another agent has the inbox, a pin cannot be \
                  claimed, or the hub refused the device or module at its first sign-in (later refusals are \
                  retried), or the module was redeployed or removed (edgeAgent starts the new one); 2 the \
                  configuration has problems."
)]
pub(super) struct RunArgs {
    /// The configuration file; files of config.d beside it whose names end in .toml are read after it.
    #[arg(short, long, value_name = "FILE", default_value = DEFAULT_CONFIG)]
    config: PathBuf,
}

/// What the signals ask for.
struct Wishes {
    stop: CancellationToken,
    hurry: CancellationToken,
    reload: mpsc::Sender<()>,
}

/// Runs the agent until a signal.
///
/// # Errors
/// When the configuration has problems, or the agent ends by itself.
pub(super) fn run(args: &RunArgs) -> Result<Exit, Failure> {
    let path = args.config.clone();
    let env = |name: &str| std::env::var(name).ok();
    let read: Arc<agent::ReadConfig> = Arc::new(move |remote| config::load_with(&path, remote, &env));
    super::block_on(async {
        survive_file_size_limit()?;
        // Handled before the configuration is read: a signal must neither be lost nor end the process at once.
        let signals = Signals::new([SIGTERM, SIGINT, SIGHUP]).context("signals cannot be received")?;
        let (stop, hurry) = (CancellationToken::new(), CancellationToken::new());
        let (reload, reloads) = mpsc::channel(1);
        let wishes = Wishes { stop: stop.clone(), hurry: hurry.clone(), reload };
        tokio::select! {
            ended = serve(read, reloads, stop, hurry) => ended,
            () = watch(signals, &wishes) => Ok(Exit::Done),
        }
    })
}

async fn serve(
    read: Arc<agent::ReadConfig>,
    wishes: mpsc::Receiver<()>,
    stop: CancellationToken,
    hurry: CancellationToken,
) -> Result<Exit, Failure> {
    let first = Arc::clone(&read);
    // Read in another thread, because the disk may hang.
    let loading = tokio::task::spawn_blocking(move || first(Remote::Stored));
    let Some(loaded) = stop.run_until_cancelled(loading).await else { return Ok(Exit::Done) };
    let (config, twin) = loaded
        .context("the configuration could not be read")?
        .map_err(|report| Failure::usage(anyhow::anyhow!("the configuration has problems:\n{report}")))?;
    if let Some((path, drop_ins)) = config.files.split_first() {
        tracing::info!(path = %path.display(), drop_ins = drop_ins.len(), "configuration read");
    }
    for warning in config.warnings.warning_lines() {
        tracing::warn!("{warning}");
    }
    let reload = Some(agent::Reload { wishes, read });
    let settings =
        agent::AgentSettings { config, twin, clock: SystemTime::now, hurry, reload, observer: None };
    agent::run(settings, stop.cancelled()).await.map(|()| Exit::Done).map_err(failure)
}

/// Handles the signal of a write past the file size limit (`ulimit -f`, systemd's `LimitFSIZE`). Without a handler, it
/// ends the process; with a handler, the write fails as on a full disk. The signal is not ignored, because child
/// processes would inherit that.
pub(super) fn survive_file_size_limit() -> Result<(), anyhow::Error> {
    let raised = Arc::new(AtomicBool::new(false));
    signal_hook::flag::register(SIGXFSZ, raised).map(drop).context("the signal SIGXFSZ cannot be handled")
}

/// Passes signals on: SIGHUP to reload, others to stop, and after a stop to hurry. Never returns.
async fn watch(mut signals: Signals, wishes: &Wishes) {
    let had_terminal = std::io::stdin().is_terminal();
    while let Some(signal) = signals.next().await {
        // The kernel also sends SIGHUP when a terminal is closed. Standard input is no terminal any more then.
        let terminal_closed = had_terminal && !std::io::stdin().is_terminal();
        tracing::info!(signal = signal_hook::low_level::signal_name(signal), "signal received");
        if signal == SIGHUP && !terminal_closed {
            if let Err(mpsc::error::TrySendError::Full(())) = wishes.reload.try_send(()) {
                tracing::debug!("a reload is already pending");
            }
        } else if wishes.stop.is_cancelled() {
            wishes.hurry.cancel();
        } else {
            wishes.stop.cancel();
        }
    }
    std::future::pending().await
}

fn failure(error: AgentError) -> Failure {
    if error.is_configuration() { Failure::usage(error) } else { anyhow::Error::new(error).into() }
}
