//! Puts tokens to `$cbs`.
//!
//! Owns: the two links, and which reply belongs to which request. Must not know: when a token is due.
//! Source: wire reference 2.3.

use std::time::SystemTime;

use fe2o3_amqp::session::SessionHandle;
use fe2o3_amqp::types::messaging::{ApplicationProperties, Body, Message, MessageId, Outcome, Properties};
use fe2o3_amqp::types::primitives::{SimpleValue, Value};
use fe2o3_amqp::{Receiver, Sender};

use crate::session::failure::Fault;

use super::{fault, received};

const ADDRESS: &str = "$cbs";

/// The links to the token service of one connection.
pub(super) struct Cbs {
    requests: Sender,
    replies: Receiver,
    audience: String,
}

impl Cbs {
    pub(super) async fn attach(
        session: &mut SessionHandle<()>,
        audience: String,
        now: SystemTime,
    ) -> Result<Self, Fault> {
        let requests = Sender::attach(session, "$cbs-sender", ADDRESS).await;
        let requests = requests.map_err(|error| fault::of_sender_attach(error, now))?;
        let replies = Receiver::attach(session, "$cbs-receiver", ADDRESS).await;
        let replies = replies.map_err(|error| fault::of_receiver_attach(error, now))?;
        Ok(Self { requests, replies, audience })
    }

    /// Puts a token, and waits for the answer. The caller limits the time.
    pub(super) async fn put(&mut self, token: &str, now: SystemTime) -> Result<(), Fault> {
        let id = MessageId::String(uuid::Uuid::new_v4().to_string());
        let outcome = self.requests.send(request(&id, &self.audience, token)).await;
        match outcome.map_err(|error| fault::of_send(error, now))? {
            Outcome::Accepted(_) => {}
            other => return Err(Fault::Protocol { reason: format!("it did not take a token: {other:?}") }),
        }
        loop {
            let (info, reply) = received::read(self.replies.recv::<Body<Value>>().await, now)?;
            let accepted = self.replies.accept(info).await;
            accepted.map_err(|error| fault::of_link_state(error.into(), now))?;
            let reply = match reply {
                Ok(reply) => reply,
                Err(error) => {
                    tracing::warn!(%error, "ignored a reply to a token");
                    continue;
                }
            };
            let answers = reply.properties.and_then(|properties| properties.correlation_id);
            if answers.as_ref() != Some(&id) {
                tracing::debug!("ignored a reply to another token");
                continue;
            }
            let properties = reply.application_properties.unwrap_or_default().0;
            let description = match properties.get("status-description") {
                Some(SimpleValue::String(text)) => text.clone(),
                _ => String::new(),
            };
            return match properties.get("status-code") {
                Some(SimpleValue::Int(200..300)) => Ok(()),
                Some(SimpleValue::Int(401 | 403)) => Err(Fault::NotAuthorised { now }),
                Some(SimpleValue::Int(404)) => Err(Fault::UnknownDevice { said: description }),
                other => Err(Fault::HubSaid { condition: format!("status {other:?}"), description }),
            };
        }
    }
}

fn request(
    id: &MessageId,
    audience: &str,
    token: &str,
) -> Message<fe2o3_amqp::types::messaging::AmqpValue<Value>> {
    let properties = Properties {
        message_id: Some(id.clone()),
        to: Some(ADDRESS.to_owned()),
        reply_to: Some("cbs".to_owned()),
        ..Properties::default()
    };
    let mut application = ApplicationProperties::default();
    for (name, value) in
        [("operation", "put-token"), ("type", "servicebus.windows.net:sastoken"), ("name", audience)]
    {
        application.0.insert(name.to_owned(), SimpleValue::String(value.to_owned()));
    }
    Message::builder()
        .properties(properties)
        .application_properties(application)
        .value(Value::String(token.to_owned()))
        .build()
}
