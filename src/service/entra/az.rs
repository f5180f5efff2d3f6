//! Tokens of the account that the Azure CLI is signed in with.
//!
//! Owns: running `az`, and its answer. Must not know: how `az` signs in.
//!
//! Source: wire reference 4.7. `expiresOn` is not read: it is local time without a zone.

use std::io;
use std::process::Stdio;
use std::time::{Duration, SystemTime};

use serde::Deserialize;
use tokio::io::AsyncReadExt as _;
use tokio::process::Command;

use super::{TokenFailure, in_time};
use crate::credentials::{BearerToken, ENTRA_RESOURCE};
use crate::service::refusal::excerpt;

/// `az` is slow to start, above all the first time.
const PATIENCE: Duration = Duration::from_secs(60);
const MAX_OUTPUT: u64 = 64 * 1024;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Printed {
    access_token: String,
    /// Seconds since 1970; only newer ones print it.
    #[serde(rename = "expires_on")]
    expires_on: Option<u64>,
}

/// Runs `az`. A drop of the future kills it.
pub(super) async fn ask(
    tenant: Option<&str>,
    clock: fn() -> SystemTime,
) -> Result<BearerToken, TokenFailure> {
    let scope = format!("{ENTRA_RESOURCE}/.default");
    let mut command = Command::new("az");
    command.args(["account", "get-access-token", "--output", "json", "--scope", &scope]);
    command.args(tenant.into_iter().flat_map(|tenant| ["--tenant", tenant]));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let late = || TokenFailure::Passing(format!("az did not answer within {} s", PATIENCE.as_secs()));
    let (succeeded, stdout, stderr) =
        tokio::time::timeout(PATIENCE, output(command)).await.map_err(|_| late())?.map_err(unstarted)?;
    if !succeeded {
        let said = String::from_utf8_lossy(&stderr);
        let said = said.lines().map(str::trim).find(|line| !line.is_empty()).map_or("nothing", |line| line);
        return Err(TokenFailure::Lasting(format!(
            "az gives no token and says: {}; sign in with az login",
            excerpt(said)
        )));
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

/// Whether it succeeded, and what it printed, of which the rest is not read.
async fn output(mut command: Command) -> io::Result<(bool, Vec<u8>, Vec<u8>)> {
    let mut child = command.spawn()?;
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
    Ok((child.wait().await?.success(), out?, err?))
}

fn unstarted(error: io::Error) -> TokenFailure {
    TokenFailure::Lasting(match error.kind() {
        io::ErrorKind::NotFound => {
            "there is no program az in PATH: install the Azure CLI, or choose another --auth".to_owned()
        }
        _ => format!("az cannot be run: {error}"),
    })
}
