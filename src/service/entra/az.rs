//! Tokens of the account that the Azure CLI is signed in with.
//!
//! Owns: running `az`, and its answer. Must not know: how `az` signs in.
//!
//! Source: wire reference 4.7. `expiresOn` is not read: it is local time without a zone.

use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Stdio;
use std::time::{Duration, SystemTime};

use rustix::process::{Pid, Signal, kill_process_group};
use serde::Deserialize;
use tokio::io::AsyncReadExt as _;
use tokio::process::Command;

use super::{TokenFailure, in_time};
use crate::credentials::{BearerToken, ENTRA_RESOURCE};
use crate::service::refusal::excerpt;
use crate::trust;

/// `az` is slow to start, above all the first time.
const PATIENCE: Duration = Duration::from_secs(60);
const MAX_OUTPUT: u64 = 64 * 1024;

/// Words of failures of the network, in small letters, as `az` and its libraries print them.
const OF_THE_NETWORK: [&str; 5] =
    ["connection", "timed out", "timeout", "name resolution", "network is unreachable"];

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Printed {
    access_token: String,
    /// Seconds since 1970; only newer ones print it.
    #[serde(rename = "expires_on")]
    expires_on: Option<u64>,
}

/// Runs `az`. A drop of the future kills it, with all programs that it has started.
pub(super) async fn ask(
    tenant: Option<&str>,
    clock: fn() -> SystemTime,
) -> Result<BearerToken, TokenFailure> {
    let scope = format!("{ENTRA_RESOURCE}/.default");
    let mut command = Command::new(az_program().map_err(TokenFailure::Lasting)?);
    command.args(["account", "get-access-token", "--output", "json", "--scope", &scope]);
    command.args(tenant.into_iter().flat_map(|tenant| ["--tenant", tenant]));
    let is_own = |name: &str| name.starts_with("C2D_") || name == "EdgeHubConnectionString";
    // Some of them are secrets, and `az` needs none of them.
    for (name, _) in std::env::vars_os().filter(|(name, _)| is_own(&name.to_string_lossy())) {
        command.env_remove(name);
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.process_group(0).kill_on_drop(true);
    let late = || TokenFailure::Passing(format!("az did not answer within {} s", PATIENCE.as_secs()));
    let (succeeded, stdout, stderr) =
        tokio::time::timeout(PATIENCE, output(command)).await.map_err(|_| late())?.map_err(unstarted)?;
    if !succeeded {
        return Err(refused(&String::from_utf8_lossy(&stderr)));
    }
    let printed = serde_json::from_slice::<Printed>(&stdout).ok();
    let printed = printed.and_then(|Printed { access_token, expires_on }| Some((access_token, expires_on?)));
    let token = printed.and_then(|(text, seconds)| {
        let end = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds))?;
        BearerToken::new(&text, end)
    });
    let token = token.ok_or_else(|| {
        let words = "az printed no token with the time of its end (expires_on): use version 2.54 or newer";
        TokenFailure::Lasting(words.to_owned())
    })?;
    in_time(token, "az", clock())
}

/// The first `az` of PATH. An entry that is empty or relative does not count: it leads into the current directory, which
/// may be anyone's.
///
/// # Errors
/// Why there is none to run, in a sentence.
pub(crate) fn az_program() -> Result<String, String> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let is_program = |file: &std::path::PathBuf| {
        file.metadata().is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
    };
    let folders = std::env::split_paths(&path).filter(|folder| folder.is_absolute());
    let found = folders.map(|folder| folder.join("az")).find(is_program);
    let words = "there is no program az in PATH: install the Azure CLI, or choose another --auth";
    let found = found.and_then(|file| file.into_os_string().into_string().ok());
    let found = found.ok_or_else(|| words.to_owned())?;
    match trust::foreign_program(&found) {
        Some(reason) => Err(reason),
        None => Ok(found),
    }
}

/// What `az` says: its error is the first line that begins so; lines before it are warnings.
fn refused(stderr: &str) -> TokenFailure {
    let mut lines = stderr.lines().map(str::trim).filter(|line| !line.is_empty());
    let last = lines.clone().next_back().unwrap_or("nothing");
    let said = lines.find(|line| line.starts_with("ERROR")).unwrap_or(last);
    let words = format!("az gives no token and says: {}", excerpt(said));
    let lower = said.to_ascii_lowercase();
    match OF_THE_NETWORK.iter().any(|word| lower.contains(word)) {
        true => TokenFailure::Passing(format!("{words}; try again, or check this machine's network")),
        false => TokenFailure::Lasting(format!("{words}; sign in with az login")),
    }
}

/// The group of a program that runs. Its drop kills all in it.
struct RunningAz(Option<Pid>);

impl Drop for RunningAz {
    fn drop(&mut self) {
        let killed = self.0.map(|id| kill_process_group(id, Signal::KILL));
        if let Some(Err(error)) = killed {
            tracing::debug!(%error, "nothing of az was left to kill");
        }
    }
}

/// Whether it succeeded, and what it printed, of which the rest is not read.
async fn output(mut command: Command) -> io::Result<(bool, Vec<u8>, Vec<u8>)> {
    let mut child = command.spawn()?;
    let mut running = RunningAz(child.id().and_then(|id| Pid::from_raw(id.try_into().ok()?)));
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let read = async |pipe: Option<&mut (dyn tokio::io::AsyncRead + Unpin + Send)>| {
        let mut bytes = Vec::new();
        if let Some(pipe) = pipe {
            pipe.take(MAX_OUTPUT).read_to_end(&mut bytes).await?;
        }
        io::Result::Ok(bytes)
    };
    let (mut stdout, mut stderr) = (stdout, stderr);
    let (out, err) = tokio::join!(
        read(stdout.as_mut().map(|pipe| pipe as &mut (dyn tokio::io::AsyncRead + Unpin + Send))),
        read(stderr.as_mut().map(|pipe| pipe as &mut (dyn tokio::io::AsyncRead + Unpin + Send))),
    );
    // A program that has more to say ends now.
    drop((stdout, stderr));
    let status = child.wait().await?;
    // The number of a program that was waited for may become that of another one.
    running.0 = None;
    Ok((status.success(), out?, err?))
}

fn unstarted(error: io::Error) -> TokenFailure {
    TokenFailure::Lasting(format!("az cannot be run: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_of_the_network_passes_and_a_missing_sign_in_does_not() {
        let is_passing = |said: &str| matches!(refused(said), TokenFailure::Passing(_));
        let network =
            "ERROR: HTTPSConnectionPool(host='login.microsoftonline.com', port=443): Max retries exceeded";
        assert!(is_passing(network));
        assert!(is_passing("WARNING: slow\nERROR: The read operation timed out"));
        assert!(!is_passing("ERROR: Please run 'az login' to setup account."));
        assert!(!is_passing(
            "WARNING: the connection is slow\nERROR: Please run 'az login' to setup account."
        ));
        assert!(!is_passing(""));
    }
}
