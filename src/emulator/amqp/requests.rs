//! A node that answers requests: they arrive on one link of a session, and the replies leave on another.
//!
//! Owns: settling requests, and the form of replies. Must not know: what a node answers.
//! Source: wire reference 2.3 for `$cbs`; `$management` of Event Hubs has the same form.

use std::sync::Arc;

use fe2o3_amqp::link::RecvError;
use fe2o3_amqp::types::definitions::Error;
use fe2o3_amqp::types::messaging::{AmqpValue, ApplicationProperties, Body, Message, MessageId, Properties};
use fe2o3_amqp::types::primitives::{SimpleValue, Value};
use fe2o3_amqp::{Receiver, Sender};
use tokio::sync::{Mutex, mpsc};
use tokio::time::timeout;

use super::claims::Claims;
use super::condition::LinkRefusal;
use super::ending::ANSWER_TIMEOUT;

/// Most replies that wait for the reply link. A client sends one request at a time.
const MAX_WAITING_REPLIES: usize = 16;

/// A request as it came.
pub(super) type NodeRequest = Message<Body<Value>>;

type NodeReply = Message<AmqpValue<Value>>;

/// What a node answers: an HTTP status, its words, and a value, which may be null.
pub(super) struct NodeAnswer {
    pub(super) status: i32,
    pub(super) description: String,
    pub(super) value: Value,
}

impl NodeAnswer {
    /// An answer without a value.
    pub(super) fn new(status: i32, description: impl Into<String>) -> Self {
        Self { status, description: description.into(), value: Value::Null }
    }
}

/// A text in the application properties of a request.
pub(super) fn text<'a>(request: &'a NodeRequest, name: &str) -> Option<&'a str> {
    match request.application_properties.as_ref()?.0.get(name)? {
        SimpleValue::String(text) => Some(text.as_str()),
        SimpleValue::Symbol(symbol) => Some(symbol.as_str()),
        _ => None,
    }
}

/// A node of one session.
#[derive(Clone)]
pub(super) struct RequestNode {
    claims: Arc<Claims>,
    answer: fn(&Claims, &NodeRequest) -> NodeAnswer,
    queue: mpsc::Sender<NodeReply>,
    /// The reply link holds the lock. A second reply link waits until the first has ended.
    replies: Arc<Mutex<mpsc::Receiver<NodeReply>>>,
}

impl RequestNode {
    /// A node that answers with `answer`.
    pub(super) fn new(claims: Arc<Claims>, answer: fn(&Claims, &NodeRequest) -> NodeAnswer) -> Self {
        let (queue, replies) = mpsc::channel(MAX_WAITING_REPLIES);
        Self { claims, answer, queue, replies: Arc::new(Mutex::new(replies)) }
    }

    /// Answers requests until the link ends.
    pub(super) async fn answer_requests(self, mut link: Receiver) {
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
                    tracing::debug!(%error, "a request link ended");
                    return;
                }
            };
            // Settle before the reply: Python ignores a reply that comes earlier.
            if let Err(error) = link.accept(delivery).await {
                tracing::debug!(%error, "a request could not be settled");
                return;
            }
            let answer = (self.answer)(&self.claims, &message);
            let id = message.properties.and_then(|properties| properties.message_id);
            if let Err(error) = self.queue.try_send(reply(id, answer)) {
                tracing::warn!(%error, "dropped a reply: the client does not read its replies");
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
                    tracing::debug!(%reason, "a reply link ended");
                    return;
                }
            };
            let Some(reply) = reply else { return };
            match timeout(ANSWER_TIMEOUT, link.send(reply)).await {
                Ok(Ok(_outcome)) => {}
                Ok(Err(error)) => {
                    tracing::debug!(%error, "a reply could not be sent");
                    return;
                }
                Err(_) => tracing::debug!("a client did not settle a reply"),
            }
        }
    }
}

/// A reply. Python requires that the correlation id keeps the type of the request's id, and that the code is an int.
fn reply(id: Option<MessageId>, answer: NodeAnswer) -> NodeReply {
    let properties = Properties { correlation_id: id, ..Properties::default() };
    let mut application = ApplicationProperties::default();
    application.0.insert("status-code".to_owned(), SimpleValue::Int(answer.status));
    application.0.insert("status-description".to_owned(), SimpleValue::String(answer.description));
    Message::builder().properties(properties).application_properties(application).value(answer.value).build()
}
