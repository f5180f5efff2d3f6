//! Puts tokens of Microsoft Entra to the hub's `$cbs`, and puts the next one before one ends.
//!
//! Owns: what is put, and when again. Must not know: where tokens come from.
//!
//! Source: wire reference 2.3 and 4.7.

use std::sync::Arc;
use std::time::Duration;

use fe2o3_amqp::session::SessionHandle;
use fe2o3_amqp::types::primitives::Value;

use super::identity::Who;
use super::node::{AmqpNode, NodeReply};
use super::refusal::RefusedRequest;
use super::{EntraTokens, ServiceError};
use crate::credentials::BearerToken;

const ADDRESS: &str = "$cbs";
const TOKEN_TYPE: &str = "Bearer";
/// The longest pause after a renewal that failed. Source: wire reference 4.7.
const PAUSE: Duration = Duration::from_secs(30);
/// The shortest time between two tokens, whatever an issuer says about their ends.
const SHORTEST: Duration = Duration::from_secs(1);

/// The token service of one connection.
pub(super) struct ServiceCbs {
    node: AmqpNode,
    /// The hub, as in the connection string.
    host: String,
    tokens: Arc<EntraTokens>,
}

impl ServiceCbs {
    /// Attaches the links, and puts a first token. If the hub refuses one that is not new, a new one is put, once.
    ///
    /// # Errors
    /// When there is no token, or the hub refuses it. The caller limits the time.
    pub(super) async fn sign_in(
        session: &mut SessionHandle<()>,
        host: String,
        (tokens, first): (Arc<EntraTokens>, &BearerToken),
    ) -> Result<Self, ServiceError> {
        let node = AmqpNode::attach(session, ADDRESS, RefusedRequest::Link { who: &Who::Entra }).await?;
        let mut cbs = Self { node, host, tokens };
        match cbs.put(first).await {
            Err(ServiceError::NotAuthorised { .. }) if cbs.tokens.drop_refused(first) => {
                let next = cbs.tokens.token().await?;
                cbs.put(&next).await?;
            }
            put => put?,
        }
        Ok(cbs)
    }

    /// Puts the next token whenever it is due, until the connection ends. Without a new token, the hub ends the
    /// connection when the old one ends.
    pub(super) async fn keep(mut self, first: Duration) {
        let (mut pause, mut after_failure) = (first, pause_after_failure(first));
        loop {
            tokio::time::sleep(pause.max(SHORTEST)).await;
            let renewed = async {
                let (token, rest) = self.tokens.token_and_rest().await?;
                let put = self.put(&token).await;
                if matches!(put, Err(ServiceError::NotAuthorised { .. })) {
                    self.tokens.drop_refused(&token);
                }
                put.map(|()| rest)
            };
            pause = match renewed.await {
                // It is the old token, because the next one is being asked for.
                Ok(Duration::ZERO) => after_failure,
                Ok(rest) => {
                    tracing::debug!("put the token in hand to the hub");
                    after_failure = pause_after_failure(rest);
                    rest
                }
                Err(ServiceError::Lost(reason)) => {
                    tracing::debug!(reason, "the links for tokens have ended");
                    return;
                }
                Err(error) => {
                    tracing::warn!("the sign-in could not be renewed, trying again: {error}");
                    after_failure
                }
            };
        }
    }

    async fn put(&mut self, token: &BearerToken) -> Result<(), ServiceError> {
        let audience = format!("amqps://{}/", self.host);
        let request = [("operation", "put-token"), ("type", TOKEN_TYPE), ("name", &audience)];
        let NodeReply { status, description: said, .. } =
            self.node.ask(&request, Value::String(token.expose())).await?;
        match status {
            200..300 => Ok(()),
            401 | 403 => Err(ServiceError::NotAuthorised {
                host: self.host.clone(),
                who: Who::Entra.to_string(),
                remedy: format!("{said}; {}", Who::Entra.needed()),
            }),
            0 => Err(ServiceError::Answer("the hub answered a token without a status".to_owned())),
            status => Err(ServiceError::Answer(format!(
                "the hub refuses the token of Microsoft Entra (status {status}: {said})"
            ))),
        }
    }
}

/// Short enough for another try before a token ends that was due after `rest`.
fn pause_after_failure(rest: Duration) -> Duration {
    if rest.is_zero() { PAUSE } else { (rest / 2).min(PAUSE) }
}
