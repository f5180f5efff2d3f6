//! Asks a node of AMQP that answers requests: `$cbs`, `$management`.
//!
//! Owns: the two links, and which answer belongs to which request. Must not know: what is asked.
//! Source: wire reference 2.3 for `$cbs`; `$management` of Event Hubs has the same form (`_client_base.py` of
//! azure-eventhub 5.15).

use fe2o3_amqp::session::SessionHandle;
use fe2o3_amqp::types::messaging::{
    AmqpValue, ApplicationProperties, Body, Message, MessageId, Outcome, Properties,
};
use fe2o3_amqp::types::primitives::{SimpleValue, Value};
use fe2o3_amqp::{Receiver, Sender};

use super::refusal::{RefusedRequest, excerpt};
use super::{ServiceError, answered, failure};
use crate::amqp_frames;

/// Answers to other requests that are passed over.
const MOST_OTHERS: usize = 16;

/// The two links to a node.
#[derive(Debug)]
pub(super) struct AmqpNode {
    address: &'static str,
    requests: Sender,
    answers: Receiver,
    /// Where the node sends its answers: the target of the second link.
    reply_to: String,
}

/// What a node answers.
#[derive(Debug)]
pub(super) struct NodeReply {
    /// As in HTTP; 0 if it has none.
    pub(super) status: i32,
    pub(super) description: String,
    pub(super) value: Value,
}

impl AmqpNode {
    pub(super) async fn attach(
        session: &mut SessionHandle<()>,
        address: &'static str,
        asked: RefusedRequest<'_>,
    ) -> Result<Self, ServiceError> {
        let id = uuid::Uuid::new_v4();
        let reply_to = format!("c2d-{id}");
        let requests = Sender::attach(session, format!("c2d-ask-{id}"), address).await;
        let requests = requests.map_err(|error| failure::of_sender_attach(error, asked))?;
        let answers = Receiver::builder()
            .name(format!("c2d-answer-{id}"))
            .source(address)
            .target(reply_to.as_str())
            .attach(session)
            .await;
        let answers = answers.map_err(|error| failure::of_receiver_attach(error, asked))?;
        Ok(Self { address, requests, answers, reply_to })
    }

    /// Sends a request with these application properties, and waits for its answer, for a limited time.
    pub(super) async fn ask(
        &mut self,
        properties: &[(&str, &str)],
        body: Value,
    ) -> Result<NodeReply, ServiceError> {
        let what = format!("an answer of {}", self.address);
        answered(&what, self.exchange(properties, body)).await
    }

    async fn exchange(
        &mut self,
        properties: &[(&str, &str)],
        body: Value,
    ) -> Result<NodeReply, ServiceError> {
        let id = MessageId::String(uuid::Uuid::new_v4().to_string());
        let section = Properties {
            message_id: Some(id.clone()),
            to: Some(self.address.to_owned()),
            reply_to: Some(self.reply_to.clone()),
            ..Properties::default()
        };
        let mut application = ApplicationProperties::default();
        for (name, value) in properties {
            application.0.insert((*name).to_owned(), SimpleValue::String((*value).to_owned()));
        }
        let request: Message<AmqpValue<Value>> =
            Message::builder().properties(section).application_properties(application).value(body).build();
        let outcome = self.requests.send(request).await.map_err(failure::of_request)?;
        if !matches!(outcome, Outcome::Accepted(_)) {
            let what = format!("{} did not take the request", self.address);
            return Err(ServiceError::Answer(format!("{what}: check HostName, or try again later")));
        }
        for _ in 0..MOST_OTHERS {
            let delivery = self.answers.recv::<Body<Value>>().await.map_err(failure::of_receive)?;
            self.answers.accept(&delivery).await.map_err(failure::of_settlement)?;
            let reply = delivery.into_message();
            if let Some(reason) = amqp_frames::refusal(&reply.body) {
                return Err(ServiceError::Lost(reason));
            }
            let answers = reply.properties.and_then(|properties| properties.correlation_id);
            if answers.as_ref() != Some(&id) {
                tracing::debug!("ignored an answer to another request");
                continue;
            }
            let properties = reply.application_properties.unwrap_or_default().0;
            // Event Hubs writes both spellings.
            let field = |names: [&str; 2]| names.iter().find_map(|name| properties.get(*name).cloned());
            let status = match field(["status-code", "statusCode"]) {
                Some(SimpleValue::Int(status)) => status,
                _ => 0,
            };
            let description = match field(["status-description", "statusDescription"]) {
                Some(SimpleValue::String(text)) => excerpt(&text),
                _ => String::new(),
            };
            let value = match reply.body {
                Body::Value(AmqpValue(value)) => value,
                _ => Value::Null,
            };
            return Ok(NodeReply { status, description, value });
        }
        Err(ServiceError::Answer(format!("{} answers other requests only: try again later", self.address)))
    }
}
