//! Tokens of Microsoft Entra: asks for one when it is needed, and keeps it in memory until shortly before its end.
//!
//! Owns: the token in hand, when the next one is due, and the failures in words. Must not know: the hub, where a token
//! is put.
//!
//! - `flow` makes the requests of each source, and reads the answers. `assertion` signs for an application with a
//!   certificate; `az` runs the Azure CLI.
//! - `http` sends a request: over TLS, or over plain HTTP on this machine.
//!
//! There is no fall-back: a source that refuses is told, and no other one is asked.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use super::ServiceError;
use crate::credentials::{BearerToken, EntraLogin, ProxySettings};

mod assertion;
mod az;
mod flow;
mod http;

/// A token is renewed this long before its end, so that a failure can be repaired in time.
const SPARE: Duration = Duration::from_secs(5 * 60);

/// A refused token that is older than this may be at fault itself, as by a clock that is late or by a new key of the issuer.
const STALE: Duration = Duration::from_secs(60);

/// The way to an authority on the network.
#[derive(Debug, Clone, Default)]
pub struct EntraRoute {
    /// Further roots to trust.
    pub ca_file: Option<PathBuf>,
    /// The proxies of the environment. An endpoint of this machine is asked without one.
    pub proxies: ProxySettings,
}

/// The tokens of one principal.
#[derive(Debug)]
pub struct EntraTokens {
    login: EntraLogin,
    route: EntraRoute,
    clock: fn() -> SystemTime,
    /// Held for one look, and never across an await.
    in_hand: Mutex<Option<TokenInHand>>,
    /// Held while a token is asked for, so that no two requests are under way.
    asking: tokio::sync::Mutex<()>,
}

#[derive(Debug, Clone)]
struct TokenInHand {
    token: BearerToken,
    /// When to ask for the next one.
    due: SystemTime,
    obtained: SystemTime,
}

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
pub(super) enum TokenFailure {
    /// The same request may succeed a little later.
    #[error("{0}")]
    Passing(String),
    /// It will not, until a person has changed something.
    #[error("{0}")]
    Lasting(String),
}

impl EntraTokens {
    /// Asks for nothing yet.
    pub fn new(login: EntraLogin, route: EntraRoute, clock: fn() -> SystemTime) -> Self {
        Self { login, route, clock, in_hand: Mutex::default(), asking: tokio::sync::Mutex::default() }
    }

    /// A token that is valid now. When a new one is due and cannot be had, the one in hand serves until its end.
    ///
    /// # Errors
    /// [`ServiceError::NoToken`].
    ///
    /// # Cancel safety
    /// A drop of the future drops the request.
    pub async fn token(&self) -> Result<BearerToken, ServiceError> {
        self.next().await.map(|in_hand| in_hand.token)
    }

    /// The same, and how long until the next one is due.
    pub(super) async fn token_and_rest(&self) -> Result<(BearerToken, Duration), ServiceError> {
        let TokenInHand { token, due, .. } = self.next().await?;
        Ok((token, due.duration_since((self.clock)()).unwrap_or_default()))
    }

    /// Drops the token in hand, which the hub has just refused, and says whether another one may fare better: not if this
    /// one was new.
    pub(super) fn drop_refused(&self) -> bool {
        let mut in_hand = self.in_hand.lock().unwrap_or_else(PoisonError::into_inner);
        let is_stale =
            |known: &TokenInHand| (self.clock)().duration_since(known.obtained).is_ok_and(|age| age > STALE);
        in_hand.take_if(|known| is_stale(known)).is_some()
    }

    async fn next(&self) -> Result<TokenInHand, ServiceError> {
        let _alone = self.asking.lock().await;
        let now = (self.clock)();
        let known = self.in_hand.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(known) = known.as_ref().filter(|known| now < known.due) {
            return Ok(known.clone());
        }
        tracing::debug!(login = %self.login, "asking for a token");
        let failure = match flow::ask(&self.login, &self.route, self.clock).await {
            Ok(token) => {
                let now = (self.clock)();
                let life = token.end().duration_since(now).unwrap_or_default();
                let due = token.end() - SPARE.min(life / 2);
                let fresh = TokenInHand { due, token, obtained: now };
                *self.in_hand.lock().unwrap_or_else(PoisonError::into_inner) = Some(fresh.clone());
                return Ok(fresh);
            }
            Err(failure) => failure,
        };
        let error = ServiceError::NoToken {
            login: self.login.to_string(),
            is_passing: matches!(failure, TokenFailure::Passing(_)),
            reason: failure.to_string(),
        };
        match known.filter(|known| now < known.token.end()) {
            Some(known) => {
                let end = humantime::format_rfc3339_seconds(known.token.end());
                tracing::warn!("the token in hand serves until {end}, because there is no new one: {error}");
                Ok(known)
            }
            None => Err(error),
        }
    }
}

#[cfg(test)]
mod tests;
