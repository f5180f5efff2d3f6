//! Only one agent: the inbox is claimed before anything else is touched.
//!
//! Owns: how long a process is waited for that is about to end, and what becomes of an agent that is the second one. Must not
//! know: how an inbox is locked.

use std::future::Future;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use super::{AgentError, Next};
use crate::inbox::{Claim, InboxError};

/// How long another process is waited for. An agent that stops has ended after eight seconds.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often the lock is tried: it has no event to wait for with a deadline.
const LOOK: Duration = Duration::from_millis(50);
/// How long the disk may take to answer.
const DISK_LIMIT: Duration = Duration::from_secs(2);

/// Makes the claim good, or finds that the agent is to stop. Without an answer of the disk, or with one that means trouble, the
/// agent goes on: the inbox says so, keeps trying, and is not opened before it is claimed.
pub(super) async fn claim(
    claim: &Claim,
    shutdown: &mut (impl Future<Output = ()> + Unpin),
) -> Result<Next, AgentError> {
    tokio::select! {
        biased;
        () = shutdown => Ok(Next::Stop),
        claimed = wait(claim) => claimed.map(|()| Next::Go),
    }
}

async fn wait(claim: &Claim) -> Result<(), AgentError> {
    let begun = Instant::now();
    let mut told = false;
    loop {
        let own = claim.clone();
        let taking = tokio::task::spawn_blocking(move || own.make_good());
        let (path, holder) = match timeout(DISK_LIMIT, taking).await {
            Ok(Ok(Err(InboxError::InUse { path, holder }))) => (path, holder),
            Ok(Ok(Err(InboxError::Foreign(sentence)))) => return Err(AgentError::NotAlone(sentence)),
            Ok(Ok(Ok(()) | Err(_)) | Err(_)) | Err(_) => return Ok(()),
        };
        if begun.elapsed() >= PATIENCE {
            return Err(AgentError::NotAlone(format!(
                "the inbox {path} is in use by {holder}: end that process first, or give this agent a device and an [inbox] path \
                 of its own"
            )));
        }
        if !std::mem::replace(&mut told, true) {
            tracing::info!("waiting up to {} s for {holder}, which has the inbox {path}", PATIENCE.as_secs());
        }
        sleep(LOOK).await;
    }
}
