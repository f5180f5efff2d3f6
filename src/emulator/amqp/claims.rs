//! What one connection has proved, by SASL PLAIN or by CBS tokens.
//!
//! Owns: the grant that is in force, and its end. Must not know: frames, how a token arrived.
//! Used by: `amqp` and everything below it.

use std::sync::Arc;

use tokio::sync::watch;

use crate::emulator::registry::{AuthError, Grant};
use crate::emulator::shared::SharedHub;

/// Why a token was not taken. No variant holds secret text.
#[derive(Debug, thiserror::Error)]
pub(super) enum ClaimError {
    #[error(transparent)]
    Auth(#[from] AuthError),
    #[error("the token is of another policy than the user name")]
    OtherPolicy,
}

/// The claims of one connection. A later valid token replaces an earlier one.
pub(super) struct Claims {
    pub(super) hub: SharedHub,
    grant: watch::Sender<Option<Grant>>,
}

impl Claims {
    pub(super) fn new(hub: SharedHub) -> Arc<Self> {
        Arc::new(Self { hub, grant: watch::Sender::new(None) })
    }

    /// Takes a service token. With `user`, it must be a token of that policy.
    pub(super) fn put(&self, token: &str, user: Option<&str>) -> Result<(), ClaimError> {
        let grant = self.hub.with(|hub, now| hub.authenticate_service(token, now))?;
        if user.is_some() && grant.policy.as_deref() != user {
            return Err(ClaimError::OtherPolicy);
        }
        tracing::debug!(policy = grant.policy, "took a service token");
        self.grant.send_replace(Some(grant));
        Ok(())
    }

    /// Whether the connection may act as a back end now.
    pub(super) fn are_valid(&self) -> bool {
        let now = self.hub.now();
        let valid = |grant: &Grant| grant.expires.is_none_or(|end| end > now);
        self.grant.borrow().as_ref().is_some_and(valid)
    }

    /// Returns when the grant in force has expired; a renewal in time puts that off. Cancel safe.
    pub(super) async fn expired(&self) {
        let mut changes = self.grant.subscribe();
        loop {
            let expires = changes.borrow_and_update().as_ref().and_then(|grant| grant.expires);
            let end = async {
                match expires {
                    Some(end) => tokio::time::sleep(self.hub.until(end)).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = end => return,
                // The sender is `self`, so this is always a change.
                _changed = changes.changed() => {}
            }
        }
    }
}
