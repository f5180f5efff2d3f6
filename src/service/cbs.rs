//! Puts tokens of Microsoft Entra to the hub's `$cbs`, and puts the next one before one ends.
//!
//! Owns: the two links, which reply belongs to which request, and when a token is put again. Must not know: where tokens
//! come from.
//!
//! Source: wire reference 2.3 and 4.7.

use std::sync::Arc;
use std::time::Duration;

use fe2o3_amqp::session::SessionHandle;
use fe2o3_amqp::types::messaging::{
    AmqpValue, ApplicationProperties, Body, Message, MessageId, Outcome, Properties,
};
use fe2o3_amqp::types::primitives::{SimpleValue, Value};
use fe2o3_amqp::{Receiver, Sender};

use super::identity::Who;
use super::refusal::{RefusedRequest, excerpt};
use super::{EntraTokens, ServiceError, answered, failure};
use crate::amqp_frames;
use crate::credentials::BearerToken;

/// What is refused if a link is.
const LINK: RefusedRequest<'_> = RefusedRequest::Link { who: &Who::Entra };
const ADDRESS: &str = "$cbs";
const TOKEN_TYPE: &str = "Bearer";
/// The longest pause after a renewal that failed. Source: wire reference 4.7.
const PAUSE: Duration = Duration::from_secs(30);
/// The shortest time between two tokens, whatever an issuer says about their ends.
const SHORTEST: Duration = Duration::from_secs(1);

/// The links to the token service of one connection.
pub(super) struct ServiceCbs {
    requests: Sender,
    replies: Receiver,
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
        let requests = Sender::attach(session, "$cbs-sender", ADDRESS).await;
        let requests = requests.map_err(|error| failure::of_sender_attach(error, LINK))?;
        let replies = Receiver::attach(session, "$cbs-receiver", ADDRESS).await;
        let replies = replies.map_err(|error| failure::of_receiver_attach(error, LINK))?;
        let mut cbs = Self { requests, replies, host, tokens };
        match cbs.put(first).await {
            Err(ServiceError::NotAuthorised { .. }) if cbs.tokens.drop_refused() => {
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
                answered("an answer to a token", self.put(&token)).await?;
                Ok::<_, ServiceError>(rest)
            };
            pause = match renewed.await {
                // No time is left when the token in hand is the old one.
                Ok(Duration::ZERO) => after_failure,
                Ok(rest) => {
                    tracing::debug!("put a new token to the hub");
                    after_failure = pause_after_failure(rest);
                    rest
                }
                Err(ServiceError::Lost(reason)) => {
                    tracing::debug!(reason, "the links for tokens have ended");
                    return;
                }
                Err(error) => {
                    if matches!(error, ServiceError::NotAuthorised { .. }) {
                        self.tokens.drop_refused();
                    }
                    tracing::warn!("the sign-in could not be renewed, trying again: {error}");
                    after_failure
                }
            };
        }
    }

    async fn put(&mut self, token: &BearerToken) -> Result<(), ServiceError> {
        let id = MessageId::String(uuid::Uuid::new_v4().to_string());
        match self.requests.send(request(&id, &self.host, token)).await.map_err(failure::of_token)? {
            Outcome::Accepted(_) => {}
            other => return Err(ServiceError::Answer(format!("the hub did not take a token: {other:?}"))),
        }
        loop {
            let reply = self.replies.recv::<Body<Value>>().await.map_err(failure::of_receive)?;
            let (info, reply) = reply.into_parts();
            self.replies.accept(info).await.map_err(failure::of_settlement)?;
            if let Some(reason) = amqp_frames::refusal(&reply.body) {
                return Err(ServiceError::Lost(reason.to_string()));
            }
            let answers = reply.properties.and_then(|properties| properties.correlation_id);
            if answers.as_ref() != Some(&id) {
                tracing::debug!("ignored a reply to another token");
                continue;
            }
            let properties = reply.application_properties.unwrap_or_default().0;
            let said = match properties.get("status-description") {
                Some(SimpleValue::String(text)) => excerpt(text),
                _ => String::new(),
            };
            return match properties.get("status-code") {
                Some(SimpleValue::Int(200..300)) => Ok(()),
                Some(SimpleValue::Int(401 | 403)) => Err(ServiceError::NotAuthorised {
                    host: self.host.clone(),
                    who: Who::Entra.to_string(),
                    remedy: format!("{said}; {}", Who::Entra.needed()),
                }),
                Some(SimpleValue::Int(status)) => Err(ServiceError::Answer(format!(
                    "the hub refuses the token of Microsoft Entra (status {status}: {said})"
                ))),
                _ => Err(ServiceError::Answer("the hub answered a token without a status".to_owned())),
            };
        }
    }
}

/// Short enough for another try before a token ends that was due after `rest`.
fn pause_after_failure(rest: Duration) -> Duration {
    if rest.is_zero() { PAUSE } else { (rest / 2).min(PAUSE) }
}

fn request(id: &MessageId, host: &str, token: &BearerToken) -> Message<AmqpValue<Value>> {
    let properties = Properties {
        message_id: Some(id.clone()),
        to: Some(ADDRESS.to_owned()),
        reply_to: Some("cbs".to_owned()),
        ..Properties::default()
    };
    let mut application = ApplicationProperties::default();
    let audience = format!("amqps://{host}/");
    for (name, value) in [("operation", "put-token"), ("type", TOKEN_TYPE), ("name", &audience)] {
        application.0.insert(name.to_owned(), SimpleValue::String(value.to_owned()));
    }
    Message::builder()
        .properties(properties)
        .application_properties(application)
        .value(Value::String(token.expose()))
        .build()
}
