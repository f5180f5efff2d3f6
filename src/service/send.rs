//! Sends C2D messages.
//!
//! Owns: the form of a message for the hub over AMQP, the sender link, the hub's outcome.
//! Must not know: connecting, feedback.

use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use fe2o3_amqp::Sender;
use fe2o3_amqp::link::SendError;
use fe2o3_amqp::session::SessionHandle;
use fe2o3_amqp::types::definitions::LinkError;
use fe2o3_amqp::types::messaging::{ApplicationProperties, Data, Message, Outcome, Properties as Section};
use fe2o3_amqp::types::primitives::{Binary, SimpleValue, Symbol, Timestamp};
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;

use super::identity::Who;
use super::refusal::{OPEN_QUESTION, Refusal, RefusedRequest};
use super::{ServiceError, answered, failure};
use crate::amqp_frames::Failed;
use crate::feedback::{ACK_PROPERTY, DeliveryAck};
use crate::message::Properties;

/// Source: wire reference 4.1.
const ADDRESS: &str = "/messages/devicebound";

/// What an answer of the hub is about, for an error.
const OUTCOME: &str = "the outcome of the message";

/// A message to be sent. The caller checks sizes and characters; the hub checks them again.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct OutgoingMessage {
    /// The device it is for.
    pub device_id: String,
    /// The id that feedback refers to.
    pub message_id: String,
    /// The id of a message that this one belongs to.
    pub correlation_id: Option<String>,
    /// Who sends it.
    pub user_id: Option<String>,
    /// What the body is, such as `application/json`.
    pub content_type: Option<String>,
    /// How the body is encoded, such as `utf-8`.
    pub content_encoding: Option<String>,
    /// When the hub drops it if it is not delivered. Without one, the hub's default is used.
    pub expiry: Option<SystemTime>,
    /// Which outcomes the hub reports to the sender.
    pub ack: DeliveryAck,
    /// Application properties.
    pub properties: Properties,
    /// The payload.
    pub body: Bytes,
}

impl OutgoingMessage {
    /// Bytes that count towards the hub's limit: the body, the values of system properties, and the names and values
    /// of application properties. Source: wire reference 5.1.
    pub fn wire_size(&self) -> usize {
        let optional = [&self.correlation_id, &self.user_id, &self.content_type, &self.content_encoding];
        let system = optional.into_iter().flatten().map(String::len).sum::<usize>();
        let expiry = if self.expiry.is_some() { size_of::<i64>() } else { 0 };
        let ack = if self.ack == DeliveryAck::None { 0 } else { self.ack.as_str().len() };
        let application = |(name, value): (&str, Option<&str>)| name.len() + value.map_or(0, str::len);
        self.body.len()
            + self.message_id.len()
            + self.to().len()
            + system
            + expiry
            + ack
            + self.properties.iter().map(application).sum::<usize>()
    }

    fn to(&self) -> String {
        format!("/devices/{}/messages/devicebound", self.device_id)
    }

    fn encode(&self) -> Message<Data> {
        let properties = Section {
            message_id: Some(self.message_id.clone().into()),
            user_id: self.user_id.as_ref().map(|id| Binary::from(id.as_bytes())),
            to: Some(self.to()),
            correlation_id: self.correlation_id.clone().map(Into::into),
            content_type: self.content_type.clone().map(Symbol),
            content_encoding: self.content_encoding.clone().map(Symbol),
            absolute_expiry_time: self.expiry.map(timestamp),
            ..Section::default()
        };
        let mut application = ApplicationProperties::default();
        if self.ack != DeliveryAck::None {
            application.0.insert(ACK_PROPERTY.to_owned(), SimpleValue::String(self.ack.as_str().to_owned()));
        }
        for (name, value) in self.properties.iter() {
            let value = SimpleValue::String(value.unwrap_or_default().to_owned());
            application.0.insert(name.to_owned(), value);
        }
        let application = Some(application).filter(|properties| !properties.0.is_empty());
        Message::builder()
            .properties(properties)
            .application_properties(application)
            .data(Data(Binary::from(self.body.to_vec())))
            .build()
    }
}

/// What the hub says to a message.
#[derive(Debug)]
pub enum HubAnswer {
    /// It is in the device's queue.
    Accepted,
    /// It is not.
    Refused(Refusal),
    /// It is not, and the hub does not say why: it released or changed the message, or rejected it without an error.
    Returned(&'static str),
}

/// The link that sends. Its drop detaches it.
#[derive(Debug)]
pub struct C2dSender {
    link: Sender,
    failed: Failed,
}

impl C2dSender {
    pub(super) async fn attach(
        session: &mut SessionHandle<()>,
        who: &Who,
        failed: Failed,
    ) -> Result<Self, ServiceError> {
        let name = format!("c2d-send-{}", uuid::Uuid::new_v4());
        let attached = Sender::attach(session, name, ADDRESS).await;
        let attached =
            attached.map_err(|error| failure::of_sender_attach(error, RefusedRequest::Link { who }));
        let link = attached.map_err(|error| failure::explained(error, &failed))?;
        Ok(Self { link, failed })
    }

    /// Sends a message and waits for the hub's outcome. `Ok` means that the message is in the device's queue, not that
    /// it was delivered.
    ///
    /// # Errors
    /// [`ServiceError::Refused`] with a sentence; or the connection is lost, or the hub does not answer.
    ///
    /// # Cancel safety
    /// If the future is dropped, the message may or may not have been sent.
    pub async fn send(&mut self, message: &OutgoingMessage) -> Result<(), ServiceError> {
        let answer = async {
            let answer = self.begin(message).await?;
            let answer = async {
                tokio::select! {
                    biased;
                    answer = answer => answer,
                    error = self.lost() => Err(error),
                }
            };
            answered(OUTCOME, answer).await
        };
        match answer.await.map_err(in_doubt)? {
            HubAnswer::Accepted => Ok(()),
            HubAnswer::Refused(refusal) => Err(ServiceError::Refused(refusal)),
            HubAnswer::Returned(how) => Err(ServiceError::Answer(how.to_owned())),
        }
    }

    /// Sends a message without waiting for its outcome, as soon as the hub gives credit for it. The future that is
    /// returned is the hub's answer. While the link is lost, it may wait for ever: see [`C2dSender::lost`].
    ///
    /// # Errors
    /// When the connection is lost, or the hub gives no credit. Then it is not known whether the message was sent. The
    /// same goes for an error of the answer.
    ///
    /// # Cancel safety
    /// As for [`C2dSender::send`].
    pub async fn begin(
        &mut self,
        message: &OutgoingMessage,
    ) -> Result<BoxFuture<'static, Result<HubAnswer, ServiceError>>, ServiceError> {
        let device_id = message.device_id.clone();
        let sending = async {
            match self.link.send_batchable(message.encode()).await {
                Ok(sent) => Ok(Some(sent)),
                // Nothing was sent, and the link goes on.
                Err(SendError::MessageSizeExceeded(_)) => Ok(None),
                Err(error) => Err(failure::of_send(error)),
            }
        };
        let sent = answered("credit for the message", sending)
            .await
            .map_err(|error| failure::explained(error, &self.failed))?;
        let Some(sent) = sent else {
            let asked = RefusedRequest::Message { device_id: &device_id };
            let refusal = Refusal::new(&LinkError::MessageSizeExceeded.into(), asked);
            return Ok(std::future::ready(Ok(HubAnswer::Refused(refusal))).boxed());
        };
        let failed = Arc::clone(&self.failed);
        let answer = async move {
            let outcome = sent.await.map_err(|error| failure::explained(failure::of_send(error), &failed))?;
            Ok(match outcome {
                Outcome::Accepted(_) => HubAnswer::Accepted,
                Outcome::Rejected(rejected) => match rejected.error {
                    Some(error) => {
                        let asked = RefusedRequest::Message { device_id: &device_id };
                        HubAnswer::Refused(Refusal::new(&error, asked))
                    }
                    None => HubAnswer::Returned("the hub rejected the message and gave no reason"),
                },
                Outcome::Released(_) | Outcome::Modified(_) => {
                    HubAnswer::Returned("the hub returned the message without queueing it: send it again")
                }
            })
        };
        Ok(answer.boxed())
    }

    /// Waits until the hub ends the link, and says why. The crate goes on waiting for outcomes then, because the link
    /// could be attached again.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn lost(&mut self) -> ServiceError {
        let reason = self.link.on_detach().await;
        failure::explained(failure::of_send(SendError::Detached(reason)), &self.failed)
    }
}

/// For a person who sends one message, which may or may not be queued.
fn in_doubt(error: ServiceError) -> ServiceError {
    match error {
        ServiceError::Lost(reason) => ServiceError::Lost(format!("{reason}; {OPEN_QUESTION}")),
        ServiceError::Refused(refusal) => {
            let meaning = format!("{}; {OPEN_QUESTION}", refusal.meaning);
            ServiceError::Refused(Refusal { meaning, ..refusal })
        }
        error => error,
    }
}

/// Milliseconds since 1970, the AMQP form. Times that do not fit become the nearest ones that do; the hub refuses
/// these.
fn timestamp(time: SystemTime) -> Timestamp {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_milliseconds(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn the_message_has_the_sections_of_the_wire_reference() {
        let mut message = OutgoingMessage {
            device_id: "dev1".into(),
            message_id: "m-1".into(),
            correlation_id: Some("c".into()),
            user_id: Some("u".into()),
            expiry: Some(SystemTime::UNIX_EPOCH + Duration::from_millis(1_500)),
            ack: DeliveryAck::Full,
            body: Bytes::from_static(b"hi"),
            ..OutgoingMessage::default()
        };
        message.properties.set("action", "pump");
        let encoded = message.encode();
        let properties = encoded.properties.expect("properties");
        assert_eq!(properties.to.as_deref(), Some("/devices/dev1/messages/devicebound"));
        assert_eq!(properties.absolute_expiry_time, Some(Timestamp::from_milliseconds(1_500)));
        assert_eq!(properties.user_id.map(|id| id.into_vec()), Some(b"u".to_vec()));
        let application = encoded.application_properties.expect("application properties").0;
        let pairs: Vec<_> = application.into_iter().collect();
        let text = |text: &str| SimpleValue::String(text.to_owned());
        assert_eq!(pairs, [("iothub-ack".into(), text("full")), ("action".into(), text("pump"))]);
        // body 2, id 3, to 34, correlation 1, user 1, expiry 8, ack 4, action 6 + pump 4
        assert_eq!(message.wire_size(), 2 + 3 + 34 + 1 + 1 + 8 + 4 + 10);
    }
}
