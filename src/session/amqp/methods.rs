//! The pair of links for direct methods: one brings the calls, the other takes the answers.
//!
//! Owns: both links, the form of calls and answers. Must not know: what a method does, how many calls may be open.
//! Source: wire reference 2.4 and 2.7.

use std::collections::VecDeque;
use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use fe2o3_amqp::link::SendError;
use fe2o3_amqp::link::delivery::DeliveryInfo;
use fe2o3_amqp::session::SessionHandle;
use fe2o3_amqp::types::definitions::Error;
use fe2o3_amqp::types::messaging::{
    ApplicationProperties, Body, Data, Message, MessageId, Outcome, Properties,
};
use fe2o3_amqp::types::primitives::{Binary, SimpleValue, Value};
use fe2o3_amqp::{Receiver, Sender};
use futures_util::future::BoxFuture;

use super::pair::{self, LinkNames, LinkPair};
use super::pending::until;
use super::received::{self, Received};
use super::{fault, message};
use crate::session::calls::{CallAnswer, CallRequest, OPEN_CALLS};
use crate::session::failure::Fault;

const NAME: &str = "IoThub-methodname";
const STATUS: &str = "IoThub-status";
/// The longest id of a call that an answer repeats, in bytes.
const LONGEST_ID: usize = 1024;

/// The links of one connection.
pub(super) struct Methods {
    requests: Receiver,
    /// Absent while an answer is being sent.
    answers: Option<Sender>,
    sending: Option<BoxFuture<'static, (Sender, Result<Outcome, SendError>)>>,
    /// Answers that wait for the link. Bounded: while [`OPEN_CALLS`] of them wait, no call is read.
    waiting: VecDeque<CallAnswer>,
}

/// What happened on the links.
pub(super) enum Called {
    Request(Received),
    /// An answer is on the wire, or its send failed.
    Sent(Sender, Result<Outcome, SendError>),
}

impl Methods {
    /// Attaches both links; `None` if the hub allows no calls of this device.
    ///
    /// # Errors
    /// When the connection is gone.
    pub(super) async fn attach(
        session: &mut SessionHandle<()>,
        device_id: &str,
        now: SystemTime,
    ) -> Result<Option<Self>, Fault> {
        let address = format!("/devices/{}/methods/devicebound", message::in_address(device_id));
        let names =
            LinkNames { purpose: "methods", outgoing: "methods-answers", incoming: "methods-requests" };
        let LinkPair { outgoing, incoming, .. } = match pair::attach(session, &address, &names, now).await? {
            Ok(pair) => pair,
            Err(error) => return Ok(refused(device_id, &error)),
        };
        let waiting = VecDeque::new();
        Ok(Some(Self { requests: incoming, answers: Some(outgoing), sending: None, waiting }))
    }

    /// Waits for the next thing that happens. Cancel safe: what happened is returned at once.
    pub(super) async fn next(&mut self) -> Called {
        let room = self.waiting.len() < OPEN_CALLS;
        tokio::select! {
            (link, sent) = until(&mut self.sending) => Called::Sent(link, sent),
            request = self.requests.recv::<Body<Value>>(), if room => Called::Request(request),
        }
    }

    /// Sends answers, one after the other, beginning with the first.
    pub(super) fn send(&mut self, answers: Vec<CallAnswer>) {
        self.waiting.extend(answers);
        while self.answers.is_some()
            && let Some(CallAnswer { id, status, payload }) = self.waiting.pop_front()
        {
            let Some(id) = from_text(&id) else { continue };
            let message = Message::builder()
                .properties(Properties { correlation_id: Some(id), ..Properties::default() })
                .application_properties(
                    ApplicationProperties::builder().insert(STATUS, i32::from(status)).build(),
                )
                .data(Data(Binary::from(payload.to_vec())))
                .build();
            self.sending = self.answers.take().map(|mut link| {
                Box::pin(async move {
                    let sent = link.send(message).await;
                    (link, sent)
                }) as BoxFuture<'static, _>
            });
        }
    }

    /// The link is free again.
    ///
    /// # Errors
    /// When it is gone.
    pub(super) fn sent(
        &mut self,
        link: Sender,
        sent: Result<Outcome, SendError>,
        now: SystemTime,
    ) -> Result<(), Fault> {
        (self.answers, self.sending) = (Some(link), None);
        sent.map(drop).map_err(|error| fault::of_send(error, now))
    }

    /// Waits until all answers are sent, or the link is gone.
    pub(super) async fn flush(&mut self) {
        while self.sending.is_some() {
            let (link, sent) = until(&mut self.sending).await;
            (self.answers, self.sending) = (Some(link), None);
            match sent {
                Ok(_outcome) => self.send(Vec::new()),
                Err(error) => return tracing::debug!(%error, "the last answers to calls could not be sent"),
            }
        }
    }

    /// The call in a message; `None` if an answer to it is impossible.
    ///
    /// # Errors
    /// When the link is gone.
    pub(super) async fn read(
        &mut self,
        received: Received,
        now: SystemTime,
    ) -> Result<Option<CallRequest>, Fault> {
        let (info, message) = received::read(received, now)?;
        self.settle(info).await?;
        let message = match message {
            Ok(message) => message,
            Err(error) => {
                tracing::warn!(%error, "ignored a method call");
                return Ok(None);
            }
        };
        let request = request(message);
        if request.is_none() {
            tracing::warn!("ignored a method call: it has no usable correlation-id");
        }
        Ok(request)
    }

    async fn settle(&mut self, info: DeliveryInfo) -> Result<(), Fault> {
        self.requests.accept(info).await.map_err(|_link_is_gone| Fault::Closed)
    }
}

fn refused(device_id: &str, error: &Error) -> Option<Methods> {
    let (condition, said) = (fault::symbol(&error.condition), error.description.as_deref());
    tracing::warn!(device_id, condition, said, "the hub refused direct methods: none can be called here");
    None
}

fn request(message: Message<Body<Value>>) -> Option<CallRequest> {
    let id = to_text(message.properties?.correlation_id.as_ref()?)?;
    let properties = message.application_properties.unwrap_or_default().0;
    let named = properties.into_iter().find(|(name, _)| name.eq_ignore_ascii_case(NAME));
    let name = named.and_then(|(_, value)| match value {
        SimpleValue::String(name) => Some(name),
        SimpleValue::Symbol(name) => Some(name.into_inner()),
        _ => None,
    });
    // A body that is neither bytes nor text is no JSON either: the check of the payload reports it.
    let payload = message::body(message.body).unwrap_or_else(|error| error.to_string().into_bytes());
    Some(CallRequest { name, id, payload: Bytes::from(payload) })
}

/// An id as text from which the id can be made again: the answer must carry the same id, of the same type.
fn to_text(id: &MessageId) -> Option<String> {
    let text = match id {
        MessageId::Uuid(id) => format!("uuid:{}", uuid::Uuid::from_bytes(id.clone().into_inner())),
        MessageId::String(text) => format!("text:{text}"),
        MessageId::Ulong(number) => format!("number:{number}"),
        MessageId::Binary(bytes) => format!("bytes:{}", STANDARD.encode(bytes)),
    };
    (text.len() <= LONGEST_ID).then_some(text)
}

fn from_text(text: &str) -> Option<MessageId> {
    let (kind, text) = text.split_once(':')?;
    Some(match kind {
        "uuid" => MessageId::Uuid(uuid::Uuid::parse_str(text).ok()?.into_bytes().into()),
        "text" => MessageId::String(text.to_owned()),
        "number" => MessageId::Ulong(text.parse().ok()?),
        _ => MessageId::Binary(Binary::from(STANDARD.decode(text).ok()?)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use fe2o3_amqp::types::messaging::AmqpValue;

    fn call(id: Option<MessageId>, name: &str, value: SimpleValue) -> Message<Body<Value>> {
        Message::builder()
            .properties(Properties { correlation_id: id, ..Properties::default() })
            .application_properties(ApplicationProperties::builder().insert(name, value).build())
            .body(Body::Value(AmqpValue(Value::String("{}".into()))))
            .build()
    }

    #[test]
    fn a_call_is_read_and_its_id_comes_back_as_it_was() {
        let uuid = uuid::Uuid::from_u64_pair(7, 3);
        for id in [
            MessageId::Uuid(uuid.into_bytes().into()),
            MessageId::String(uuid.to_string()),
            MessageId::String("a:b".into()),
            MessageId::Ulong(u64::MAX),
            MessageId::Binary(Binary::from(vec![0, 0xFF])),
        ] {
            let read = request(call(Some(id.clone()), "iothub-MethodName", "pump".into())).expect("a call");
            assert_eq!((read.name.as_deref(), read.payload.as_ref()), (Some("pump"), &b"{}"[..]));
            assert_eq!(from_text(&read.id), Some(id));
        }
    }

    #[test]
    fn what_cannot_be_answered_is_no_call_and_what_has_no_name_is_one_without() {
        assert_eq!(request(call(None, NAME, "pump".into())), None);
        let long = MessageId::String("x".repeat(LONGEST_ID));
        assert_eq!(request(call(Some(long), NAME, "pump".into())), None);
        for (name, value) in [("other", SimpleValue::from("x")), (NAME, SimpleValue::Int(1))] {
            let read = request(call(Some(MessageId::Ulong(1)), name, value)).expect("a call");
            assert_eq!(read.name, None);
        }
    }
}
