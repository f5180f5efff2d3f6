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
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use super::ServiceError;
use crate::credentials::{BearerToken, EntraLogin, ProxySettings};

mod assertion;
mod az;
mod flow;
mod http;

pub(crate) use az::az_program;

/// A token is renewed this long before its end, so that a failure can be repaired in time.
const SPARE: Duration = Duration::from_secs(5 * 60);

/// After a failure, a token in hand serves this long before the next one is asked for again: a source that hangs would
/// hold up each request.
const PAUSE: Duration = Duration::from_secs(30);
const SHORTEST_PAUSE: Duration = Duration::from_secs(1);

/// A token that ends later has its time in another unit, or this machine's clock is wrong. Real ones end within a day.
const LONGEST_LIFE: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);

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

    /// Drops this token, which the hub has just refused, if it is the one in hand, and says whether another one may fare
    /// better: not if it was new. Of several requests that the hub refuses at once, each may try the next token.
    pub(super) fn drop_refused(&self, refused: &BearerToken) -> bool {
        let mut in_hand = self.in_hand();
        let Some(known) = in_hand.as_ref().filter(|known| known.token == *refused) else { return true };
        let is_stale = (self.clock)().duration_since(known.obtained).is_ok_and(|age| age > STALE);
        if is_stale {
            *in_hand = None;
        }
        is_stale
    }

    fn in_hand(&self) -> MutexGuard<'_, Option<TokenInHand>> {
        self.in_hand.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The token in hand, if it is one that `serves`.
    fn known(&self, serves: impl Fn(&TokenInHand, SystemTime) -> bool) -> Option<TokenInHand> {
        let now = (self.clock)();
        self.in_hand().clone().filter(|known| now < known.token.end() && serves(known, now))
    }

    async fn next(&self) -> Result<TokenInHand, ServiceError> {
        let _alone = match self.asking.try_lock() {
            Ok(alone) => alone,
            // Another request asks already.
            Err(_) => match self.known(|_, _| true) {
                Some(known) => return Ok(known),
                None => self.asking.lock().await,
            },
        };
        if let Some(known) = self.known(|known, now| now < known.due) {
            return Ok(known);
        }
        tracing::debug!(login = %self.login, "asking for a token");
        let asked = flow::ask(&self.login, &self.route, self.clock).await;
        // The source may have taken a minute.
        let now = (self.clock)();
        let failure = match asked {
            Ok(token) => {
                let life = token.end().duration_since(now).unwrap_or_default();
                let due = token.end() - SPARE.min(life / 2);
                let fresh = TokenInHand { due, token, obtained: now };
                *self.in_hand() = Some(fresh.clone());
                return Ok(fresh);
            }
            Err(failure) => failure,
        };
        let error = ServiceError::NoToken {
            login: self.login.to_string(),
            is_passing: matches!(failure, TokenFailure::Passing(_)),
            reason: failure.to_string(),
        };
        let mut in_hand = self.in_hand();
        let left = |known: &TokenInHand| known.token.end().duration_since(now).unwrap_or_default();
        match in_hand.as_mut().filter(|known| !left(known).is_zero()) {
            Some(known) => {
                known.due = now + (left(known) / 2).clamp(SHORTEST_PAUSE, PAUSE);
                let end = humantime::format_rfc3339_seconds(known.token.end());
                tracing::warn!("the token in hand serves until {end}, because there is no new one: {error}");
                Ok(known.clone())
            }
            None => Err(error),
        }
    }
}

/// The token, if it ends neither before now nor in another age.
fn in_time(token: BearerToken, source: &str, now: SystemTime) -> Result<BearerToken, TokenFailure> {
    let clock = humantime::format_rfc3339_seconds(now);
    if token.end() <= now {
        let end = humantime::format_rfc3339_seconds(token.end());
        let words = format!(
            "{source} gives a token that ended at {end}, but this machine's clock says {clock}: set the clock"
        );
        return Err(TokenFailure::Lasting(words));
    }
    // Later times may have no date to print.
    if token.end().duration_since(now).is_ok_and(|life| life > LONGEST_LIFE) {
        let seconds = token.end().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        return Err(TokenFailure::Lasting(format!(
            "{source} gives a token that ends {seconds} s after 1970, more than 10 years after this machine's clock \
             ({clock}): set the clock, or update what gives the token"
        )));
    }
    Ok(token)
}

#[cfg(test)]
mod tests;
