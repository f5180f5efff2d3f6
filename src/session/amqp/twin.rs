//! The pair of links for the twin: the device reports in it, reads it, and hears of its desired properties.
//!
//! Owns: both links, and which answer belongs to which request. Must not know: when something is reported.
//! Source: wire reference 2.4 and 2.7.

use std::time::SystemTime;

use bytes::Bytes;
use fe2o3_amqp::link::SendError;
use fe2o3_amqp::link::delivery::DeliveryInfo;
use fe2o3_amqp::session::SessionHandle;
use fe2o3_amqp::types::definitions::Error;
use fe2o3_amqp::types::messaging::annotations::OwnedKey;
use fe2o3_amqp::types::messaging::{Body, Data, Message, MessageAnnotations, MessageId, Outcome, Properties};
use fe2o3_amqp::types::primitives::{Binary, Symbol, Value};
use fe2o3_amqp::{Receiver, Sender};
use futures_util::future::BoxFuture;

use crate::message::excerpt;
use crate::session::failure::Fault;
use crate::session::publish::TwinAnswer;

use super::pair::{self, LinkNames, LinkPair};
use super::pending::until;
use super::received::{self, Received};
use super::{fault, message};

const REPORTED: &str = "/properties/reported";
const DESIRED: &str = "/notifications/twin/properties/desired";
/// The number of the request for changes of desired properties. The session's own numbers begin with 1.
const LISTEN: u64 = 0;

/// The links of one connection.
pub(super) struct TwinLinks {
    /// Absent while a request is being sent.
    requests: Option<Sender>,
    replies: Receiver,
    /// The first half of the ids of its requests; the second half is their number.
    ids: u64,
    reporting: Option<Reporting>,
}

type Reporting = BoxFuture<'static, (Sender, u16, Result<Outcome, SendError>)>;

/// What a message from the hub says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum TwinNews {
    /// The answer to a request, with its body.
    Answer(TwinAnswer, Bytes),
    /// Desired properties have changed.
    Desired,
}

/// What happened on the links.
pub(super) enum Heard {
    /// A request is on the wire, or its send failed.
    Sent(Sender, u16, Result<Outcome, SendError>),
    Reply(Received),
}

impl TwinLinks {
    /// Attaches both links; `None` if the hub has no twin for this device.
    ///
    /// # Errors
    /// When the connection is gone.
    pub(super) async fn attach(
        session: &mut SessionHandle<()>,
        device_id: &str,
        now: SystemTime,
    ) -> Result<Option<Self>, Fault> {
        let address = format!("/devices/{}/twin", message::in_address(device_id));
        let names = LinkNames { purpose: "twin", outgoing: "twin-requests", incoming: "twin-replies" };
        let LinkPair { outgoing, incoming, id } = match pair::attach(session, &address, &names, now).await? {
            Ok(pair) => pair,
            Err(error) => return Ok(refused(device_id, &error)),
        };
        let (ids, _) = id.as_u64_pair();
        Ok(Some(Self { requests: Some(outgoing), replies: incoming, ids, reporting: None }))
    }

    /// Asks for changes of desired properties; the answer comes like any other.
    ///
    /// # Errors
    /// When the link is gone.
    pub(super) async fn listen(&mut self, now: SystemTime) -> Result<(), Fault> {
        self.request(0, LISTEN, [("operation", "PUT"), ("resource", DESIRED)], &[]);
        let (link, _, outcome) = until(&mut self.reporting).await;
        self.sent(link);
        outcome.map(drop).map_err(|error| fault::of_send(error, now))
    }

    /// Whether the last request was sent.
    pub(super) fn is_free(&self) -> bool {
        self.requests.is_some()
    }

    /// Sends a patch of the reported properties: publish `id`, twin request `request`. Call it only while the link is
    /// free.
    pub(super) fn report(&mut self, id: u16, request: u64, patch: &[u8]) {
        self.request(id, request, [("operation", "PATCH"), ("resource", REPORTED)], patch);
    }

    /// Asks for the whole twin: publish `id`, twin request `request`. Call it only while the link is free.
    pub(super) fn get(&mut self, id: u16, request: u64) {
        self.request(id, request, [("operation", "GET")], &[]);
    }

    fn request<const N: usize>(
        &mut self,
        id: u16,
        request: u64,
        annotations: [(&str, &str); N],
        body: &[u8],
    ) {
        let Some(mut link) = self.requests.take() else { return };
        // SDKs do the same: a UUID as text.
        let correlation_id = uuid::Uuid::from_u64_pair(self.ids, request).to_string();
        let annotations =
            annotations.into_iter().fold(MessageAnnotations::builder(), |all, (name, value)| {
                all.insert(Symbol::from(name), Value::String(value.to_owned()))
            });
        let section =
            Properties { correlation_id: Some(MessageId::String(correlation_id)), ..Properties::default() };
        let message = Message::builder()
            .message_annotations(annotations.build())
            .properties(section)
            .data(Data(Binary::from(body.to_vec())))
            .build();
        self.reporting = Some(Box::pin(async move {
            let outcome = link.send(message).await;
            (link, id, outcome)
        }));
    }

    /// Waits for the next thing that happens. Cancel safe: what happened is returned at once.
    pub(super) async fn next(&mut self) -> Heard {
        tokio::select! {
            (link, id, outcome) = until(&mut self.reporting) => Heard::Sent(link, id, outcome),
            reply = self.replies.recv::<Body<Value>>() => Heard::Reply(reply),
        }
    }

    /// The link is free again.
    pub(super) fn sent(&mut self, link: Sender) {
        (self.requests, self.reporting) = (Some(link), None);
    }

    /// What a reply says; `None` if the session needs nothing of it.
    ///
    /// # Errors
    /// When the link is gone.
    pub(super) async fn read(&mut self, reply: Received, now: SystemTime) -> Result<Option<TwinNews>, Fault> {
        let (info, reply) = received::read(reply, now)?;
        self.settle(info).await?;
        let reply = match reply {
            Ok(reply) => reply,
            Err(error) => {
                tracing::warn!(%error, "ignored a message on the link of the twin");
                return Ok(None);
            }
        };
        if is_news_of_desired(&reply) {
            return Ok(Some(TwinNews::Desired));
        }
        let Some(answer) = answer(self.ids, &reply) else {
            tracing::debug!("ignored an answer of the twin: it answers no request of this agent");
            return Ok(None);
        };
        let body = message::body(reply.body).unwrap_or_default();
        if answer.request == LISTEN {
            if answer.status >= 400 {
                tracing::warn!(
                    status = answer.status,
                    "the hub refused to notify of desired properties: the agent sees changes only at the \
                     next sign-in"
                );
            }
            return Ok(None);
        }
        if answer.status >= 400 {
            let body = excerpt(&String::from_utf8_lossy(&body));
            tracing::warn!(status = answer.status, body, "the hub refused a request to the twin");
        }
        Ok(Some(TwinNews::Answer(answer, body.into())))
    }

    async fn settle(&mut self, info: DeliveryInfo) -> Result<(), Fault> {
        self.replies.accept(info).await.map_err(|_link_is_gone| Fault::Closed)
    }
}

fn refused(device_id: &str, error: &Error) -> Option<TwinLinks> {
    let (condition, said) = (fault::symbol(&error.condition), error.description.as_deref());
    tracing::warn!(device_id, condition, said, "the hub refused the twin: the agent cannot report there");
    None
}

/// A message that answers no request. Source: wire reference 2.7.
fn is_news_of_desired(reply: &Message<Body<Value>>) -> bool {
    let id = reply.properties.as_ref().and_then(|properties| properties.correlation_id.as_ref());
    let annotations = reply.message_annotations.as_ref();
    let resource = annotations.and_then(|all| all.0.get::<OwnedKey>(&Symbol::from("resource").into()));
    let resource = match resource {
        Some(Value::String(text)) => text.as_str(),
        Some(Value::Symbol(symbol)) => symbol.as_str(),
        _ => return false,
    };
    id.is_none() && resource.trim_end_matches('/') == DESIRED
}

fn answer(ids: u64, reply: &Message<Body<Value>>) -> Option<TwinAnswer> {
    let id = match reply.properties.as_ref()?.correlation_id.as_ref()? {
        MessageId::String(text) => uuid::Uuid::parse_str(text).ok()?,
        MessageId::Uuid(id) => uuid::Uuid::from_bytes(id.clone().into_inner()),
        _ => return None,
    };
    let (own, request) = id.as_u64_pair();
    let annotations = reply.message_annotations.as_ref()?;
    let status = match annotations.0.get::<OwnedKey>(&Symbol::from("status").into())? {
        Value::Int(status) => u16::try_from(*status),
        Value::Uint(status) => u16::try_from(*status),
        Value::Long(status) => u16::try_from(*status),
        Value::Ulong(status) => u16::try_from(*status),
        _ => return None,
    };
    (own == ids).then_some(TwinAnswer { request, status: status.ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(id: Option<MessageId>, status: Value) -> Message<Body<Value>> {
        let annotations = MessageAnnotations::builder().insert(Symbol::from("status"), status).build();
        let section = Properties { correlation_id: id, ..Properties::default() };
        Message::builder().message_annotations(annotations).properties(section).body(Body::Empty).build()
    }

    #[test]
    fn an_answer_is_known_by_its_id_whatever_its_type() {
        let id = uuid::Uuid::from_u64_pair(7, 3);
        let text = Some(MessageId::String(id.to_string()));
        let binary = Some(MessageId::Uuid(id.into_bytes().into()));
        let expected = Some(TwinAnswer { request: 3, status: 200 });
        assert_eq!(answer(7, &reply(text.clone(), Value::Int(200))), expected);
        assert_eq!(answer(7, &reply(binary, Value::Long(200))), expected);
        for other in [
            answer(8, &reply(text.clone(), Value::Int(200))),
            answer(7, &reply(text, Value::Int(-1))),
            answer(7, &reply(Some(MessageId::String("3".into())), Value::Int(200))),
            answer(7, &reply(None, Value::Int(200))),
        ] {
            assert_eq!(other, None);
        }
    }

    #[test]
    fn news_of_desired_properties_answer_nothing() {
        let news = |id, resource: Value| {
            let annotations =
                MessageAnnotations::builder().insert(Symbol::from("resource"), resource).build();
            let section = Properties { correlation_id: id, ..Properties::default() };
            let news: Message<Body<Value>> = Message::builder()
                .message_annotations(annotations)
                .properties(section)
                .body(Body::Empty)
                .build();
            is_news_of_desired(&news)
        };
        assert!(news(None, Value::String(DESIRED.into())) && news(None, Value::Symbol(DESIRED.into())));
        assert!(!news(Some(MessageId::Ulong(1)), Value::String(DESIRED.into())));
        assert!(!news(None, Value::String(REPORTED.into())) && !news(None, Value::Null));
        assert!(!is_news_of_desired(&reply(None, Value::Int(200))));
    }
}
