//! Reads delivery feedback.
//!
//! Owns: the feedback link, one batch at a time. Must not know: connecting, which sender a record belongs to.

use std::time::{Duration, SystemTime};

use fe2o3_amqp::Receiver;
use fe2o3_amqp::link::RecvError;
use fe2o3_amqp::link::delivery::DeliveryInfo;
use fe2o3_amqp::link::receiver::CreditMode;
use fe2o3_amqp::session::SessionHandle;
use fe2o3_amqp::types::messaging::annotations::OwnedKey;
use fe2o3_amqp::types::messaging::{Body, Message};
use fe2o3_amqp::types::primitives::{Symbol, Value};

use super::identity::Who;
use super::refusal::RefusedRequest;
use super::{ServiceError, answered, failure};
use crate::amqp_frames::{self, Failed};
use crate::feedback::{FeedbackRecord, batch_id, decode_batch};

/// Source: wire reference 4.4, in the spelling of the CLI and the C SDK.
const ADDRESS: &str = "/messages/servicebound/feedback";

/// How often a waiting link sends a flow. The AMQP crate sends its own heartbeats as late as the hub's time-out (four
/// minutes) allows, which a strict hub takes for silence.
const KEEP_ALIVE: Duration = Duration::from_secs(60);

/// The link that reads feedback. Its drop gives an uncompleted batch back to the hub.
#[derive(Debug)]
pub struct FeedbackReceiver {
    link: Receiver,
    /// Whether the hub was asked for a batch that has not come yet.
    asked: bool,
    failed: Failed,
}

/// One feedback message. It is consumed at the hub only by [`FeedbackReceiver::complete`].
#[must_use = "a batch that is not completed comes again"]
#[derive(Debug)]
pub struct FeedbackBatch {
    /// The id of this batch; it does not change if the batch comes again.
    pub id: String,
    /// When the hub made it, if the hub says so.
    pub enqueued: Option<SystemTime>,
    /// Its records; they may belong to messages of any sender of this hub.
    pub records: Vec<FeedbackRecord>,
    pub(super) receipt: BatchReceipt,
}

/// What completes a batch.
#[derive(Debug)]
pub(super) enum BatchReceipt {
    /// For the link that brought it.
    Amqp(DeliveryInfo),
    /// Its lock token.
    Https(String),
}

impl FeedbackReceiver {
    pub(super) async fn attach(
        session: &mut SessionHandle<()>,
        who: &Who,
        failed: Failed,
    ) -> Result<Self, ServiceError> {
        let attached = Receiver::builder()
            .name(format!("c2d-feedback-{}", uuid::Uuid::new_v4()))
            .source(ADDRESS)
            // This reader takes one batch at a time, so that other readers get the batches that it does not look at.
            .credit_mode(CreditMode::Manual)
            .attach(session)
            .await;
        let attached =
            attached.map_err(|error| failure::of_receiver_attach(error, RefusedRequest::Link { who }));
        let link = attached.map_err(|error| failure::explained(error, &failed))?;
        Ok(Self { link, asked: false, failed })
    }

    /// Waits for the next batch. A real hub gathers records for up to 15 s before it sends one.
    ///
    /// # Errors
    /// When the link or connection is lost, or the records of the batch cannot be read; such a batch is given back to
    /// the hub. A message that is not even readable AMQP has no records: it is rejected, so that it does not come
    /// again for ever.
    ///
    /// # Cancel safety
    /// No batch is lost if the future is dropped: the next call returns it.
    pub async fn next(&mut self) -> Result<FeedbackBatch, ServiceError> {
        let next = loop {
            match self.received().await {
                Ok(Some((delivery, message))) => break self.read(delivery, message).await,
                Ok(None) => {}
                Err(error) => break Err(error),
            }
        };
        next.map_err(|error| failure::explained(error, &self.failed))
    }

    /// The next message; `None` if it could not be decoded.
    async fn received(&mut self) -> Result<Option<(DeliveryInfo, Message<Body<Value>>)>, ServiceError> {
        if !self.asked {
            self.ask().await?;
            self.asked = true;
        }
        let received = loop {
            match tokio::time::timeout(KEEP_ALIVE, self.link.recv::<Body<Value>>()).await {
                Ok(received) => break received,
                // The credit is unchanged, so this asks for no second batch.
                Err(_) => self.ask().await?,
            }
        };
        self.asked = false;
        let (delivery, reason) = match received {
            Ok(delivery) => {
                let (info, message) = delivery.into_parts();
                match amqp_frames::refusal(&message.body) {
                    None => return Ok(Some((info, message))),
                    Some(reason) => (info, reason),
                }
            }
            Err(RecvError::MessageDecode(error)) => (error.info, error.source.to_string()),
            Err(error) => return Err(failure::of_receive(error)),
        };
        tracing::warn!("rejected a feedback batch that cannot be read: {reason}");
        self.link.reject(delivery, None).await.map_err(failure::of_settlement)?;
        Ok(None)
    }

    async fn read(
        &mut self,
        delivery: DeliveryInfo,
        message: Message<Body<Value>>,
    ) -> Result<FeedbackBatch, ServiceError> {
        let enqueued = enqueued(&message);
        let body: Vec<u8> = match message.body {
            Body::Data(sections) => sections.into_iter().flat_map(|section| section.0.into_vec()).collect(),
            _ => Vec::new(),
        };
        match decode_batch(&body) {
            Ok(records) => Ok(FeedbackBatch {
                id: batch_id(&body),
                enqueued,
                records,
                receipt: BatchReceipt::Amqp(delivery),
            }),
            Err(error) => {
                let released = self.link.release(delivery).await;
                released.map_err(failure::of_settlement)?;
                Err(error.into())
            }
        }
    }

    /// Consumes a batch at the hub. Call it when its records are printed or stored, not before.
    ///
    /// # Errors
    /// When the link or connection is lost; the batch then comes again.
    pub async fn complete(&mut self, batch: FeedbackBatch) -> Result<(), ServiceError> {
        let BatchReceipt::Amqp(delivery) = batch.receipt else {
            return Err(ServiceError::Lost("the batch came over another connection".into()));
        };
        let completed = async {
            let accepted = self.link.accept(delivery).await;
            accepted.map_err(failure::of_settlement)
        };
        let completed = answered("the feedback link", completed).await;
        completed.map_err(|error| failure::explained(error, &self.failed))
    }

    async fn ask(&mut self) -> Result<(), ServiceError> {
        self.link.set_credit(1).await.map_err(failure::of_settlement)
    }
}

/// Source: wire reference 4.4.
fn enqueued(message: &Message<Body<Value>>) -> Option<SystemTime> {
    let annotations = &message.message_annotations.as_ref()?.0;
    match annotations.get::<OwnedKey>(&Symbol::from("iothub-enqueuedtime").into())? {
        Value::Timestamp(time) => {
            let since = Duration::from_millis(u64::try_from(time.milliseconds()).ok()?);
            SystemTime::UNIX_EPOCH.checked_add(since)
        }
        _ => None,
    }
}
