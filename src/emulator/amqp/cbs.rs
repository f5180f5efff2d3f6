//! Claims-based security: tokens that clients send to `$cbs`.
//!
//! Owns: the requests and their replies. Must not know: what a token allows.
//! Source: wire reference 2.3.

use std::sync::Arc;

use fe2o3_amqp::link::RecvError;
use fe2o3_amqp::types::definitions::Error;
use fe2o3_amqp::types::messaging::{AmqpValue, ApplicationProperties, Body, Message, MessageId, Properties};
use fe2o3_amqp::types::primitives::{SimpleValue, Value};
use fe2o3_amqp::{Receiver, Sender};
use tokio::sync::{Mutex, mpsc};
use tokio::time::timeout;

use super::claims::{ClaimError, Claims};
use super::condition::LinkRefusal;
use super::ending::ANSWER_TIMEOUT;
use crate::emulator::registry::AuthError;

/// Most replies that wait for the reply link. A client sends one token at a time.
const MAX_WAITING_REPLIES: usize = 16;

/// Types of tokens, compared without case. The second is for Entra tokens; Node sends those with the first type.
const TOKEN_TYPES: [&str; 2] = ["servicebus.windows.net:sastoken", "bearer"];

type CbsReply = Message<AmqpValue<Value>>;

/// The token service of one session: requests arrive on one link, replies leave on another.
#[derive(Clone)]
pub(super) struct TokenService {
    claims: Arc<Claims>,
    queue: mpsc::Sender<CbsReply>,
    /// The reply link holds the lock. A second reply link waits until the first has ended.
    replies: Arc<Mutex<mpsc::Receiver<CbsReply>>>,
}

impl TokenService {
    pub(super) fn new(claims: Arc<Claims>) -> Self {
        let (queue, replies) = mpsc::channel(MAX_WAITING_REPLIES);
        Self { claims, queue, replies: Arc::new(Mutex::new(replies)) }
    }

    /// Answers requests until the link ends.
    pub(super) async fn answer(self, mut link: Receiver) {
        loop {
            let (delivery, message) = match link.recv::<Body<Value>>().await {
                Ok(delivery) => delivery.into_parts(),
                Err(RecvError::MessageDecode(error)) => {
                    let refusal = LinkRefusal::argument("the request cannot be decoded");
                    if let Err(error) = link.reject(error.info, Error::from(&refusal)).await {
                        tracing::debug!(%error, "a request could not be settled");
                    }
                    continue;
                }
                Err(error) => {
                    tracing::debug!(%error, "the token request link ended");
                    return;
                }
            };
            // Settle before the reply: Python ignores a reply that comes earlier.
            if let Err(error) = link.accept(delivery).await {
                tracing::debug!(%error, "a request could not be settled");
                return;
            }
            let status = self.put(&message);
            let id = message.properties.and_then(|properties| properties.message_id);
            if let Err(error) = self.queue.try_send(reply(id, &status)) {
                tracing::warn!(%error, "dropped the reply to a token: the client does not read its replies");
            }
        }
    }

    /// Sends replies until the link ends.
    pub(super) async fn send_replies(self, mut link: Sender) {
        let mut replies = self.replies.lock().await;
        loop {
            let reply = tokio::select! {
                reply = replies.recv() => reply,
                reason = link.on_detach() => {
                    tracing::debug!(%reason, "the token reply link ended");
                    return;
                }
            };
            let Some(reply) = reply else { return };
            match timeout(ANSWER_TIMEOUT, link.send(reply)).await {
                Ok(Ok(_outcome)) => {}
                Ok(Err(error)) => {
                    tracing::debug!(%error, "a token reply could not be sent");
                    return;
                }
                Err(_) => tracing::debug!("a client did not settle a token reply"),
            }
        }
    }

    fn put(&self, request: &Message<Body<Value>>) -> TokenStatus {
        let (token, audience) = match token_of(request) {
            Ok(found) => found,
            Err(words) => return TokenStatus::malformed(words),
        };
        match self.claims.put(token, audience) {
            Ok(()) => TokenStatus { code: 200, description: "OK".to_owned() },
            Err(ClaimError::Auth(AuthError::Token(error))) => TokenStatus::malformed(error.to_string()),
            Err(error) => {
                tracing::warn!(%error, "refused a token");
                TokenStatus { code: 401, description: error.to_string() }
            }
        }
    }
}

struct TokenStatus {
    code: i32,
    description: String,
}

impl TokenStatus {
    fn malformed(description: impl Into<String>) -> Self {
        Self { code: 400, description: description.into() }
    }
}

/// The token, and the audience that it is for.
fn token_of(request: &Message<Body<Value>>) -> Result<(&str, &str), &'static str> {
    let text = |name: &str| match request.application_properties.as_ref()?.0.get(name)? {
        SimpleValue::String(text) => Some(text.as_str()),
        SimpleValue::Symbol(symbol) => Some(symbol.as_str()),
        _ => None,
    };
    if !text("operation").is_some_and(|operation| operation.eq_ignore_ascii_case("put-token")) {
        return Err("the operation is not put-token");
    }
    let known = |kind: &str| TOKEN_TYPES.iter().any(|own| own.eq_ignore_ascii_case(kind));
    if !text("type").is_some_and(known) {
        return Err("the type is not servicebus.windows.net:sastoken");
    }
    match &request.body {
        Body::Value(AmqpValue(Value::String(token))) if token.to_ascii_lowercase().starts_with("bearer ") => {
            Err("the emulator does not accept Microsoft Entra tokens: use a SAS token")
        }
        Body::Value(AmqpValue(Value::String(token))) => Ok((token, text("name").unwrap_or_default())),
        _ => Err("the body is not a token in an AMQP string"),
    }
}

/// A reply. Python requires that the correlation id keeps the type of the request's id, and that the code is an int.
fn reply(id: Option<MessageId>, status: &TokenStatus) -> CbsReply {
    let properties = Properties { correlation_id: id, ..Properties::default() };
    let mut application = ApplicationProperties::default();
    application.0.insert("status-code".to_owned(), SimpleValue::Int(status.code));
    application.0.insert("status-description".to_owned(), SimpleValue::String(status.description.clone()));
    Message::builder().properties(properties).application_properties(application).value(Value::Null).build()
}
