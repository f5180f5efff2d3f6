//! Only one agent: the inbox is claimed before anything else is used.
//!
//! Owns: how long to wait for another process that is about to end, and what happens to a second agent. Must not
//! know: how an inbox is locked.

use std::future::Future;
use std::ops::ControlFlow;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use super::error::AgentError;
use crate::inbox::{Claim, InboxError};

/// How long to wait for another process. An agent that stops has ended after eight seconds.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often to try the lock: it offers no wait with a deadline.
const LOOK: Duration = Duration::from_millis(50);
/// How long the disk may take to answer.
const DISK_LIMIT: Duration = Duration::from_secs(2);

/// Takes the claim, or finds that the agent is to stop. If the disk does not answer or is in trouble, the agent goes
/// on: the inbox reports the trouble, keeps trying, and is not opened before it is claimed.
pub(super) async fn claim(
    claim: &Claim,
    shutdown: &mut (impl Future<Output = ()> + Unpin),
) -> Result<ControlFlow<()>, AgentError> {
    tokio::select! {
        biased;
        () = shutdown => Ok(ControlFlow::Break(())),
        claimed = wait(claim) => claimed.map(ControlFlow::Continue),
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
