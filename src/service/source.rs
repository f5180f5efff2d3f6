//! Reads feedback from a link over AMQP, or by polls over HTTPS.
//!
//! Owns: the choice, and how often HTTPS is polled. Must not know: the reader, what is done with feedback.

use std::path::Path;
use std::time::{Duration, SystemTime};

use super::feedback::BatchReceipt;
use super::{
    FeedbackBatch, FeedbackReceiver, HttpsService, HttpsWay, Service, ServiceError, ServiceIdentity,
    ServiceTransport, TOKEN_LIFETIME,
};

/// The shortest time between two polls, and the longest one if nothing comes. The hub counts each poll against its
/// limits.
const SHORTEST_REST: Duration = Duration::from_secs(1);
const LONGEST_REST: Duration = Duration::from_secs(10);

/// The way of the feedback.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FeedbackTransport {
    /// A link, by one of the ways of AMQP.
    Amqp(ServiceTransport),
    /// Polls.
    Https(HttpsWay),
}

/// A reader of feedback. Its drop gives back an uncompleted batch; over HTTPS that happens when the lock expires.
#[derive(Debug)]
pub struct FeedbackSource(Inner);

#[derive(Debug)]
enum Inner {
    Amqp { service: Box<Service>, receiver: Box<FeedbackReceiver> },
    Https { service: Box<HttpsService>, polled: Option<FeedbackBatch>, rest: Duration },
}

impl FeedbackSource {
    /// Signs in, and makes sure that feedback may be read.
    ///
    /// # Errors
    /// When the hub cannot be reached or refuses.
    ///
    /// # Cancel safety
    /// A drop of the future closes everything that was open.
    pub async fn open(
        transport: &FeedbackTransport,
        identity: &ServiceIdentity,
        ca_file: Option<&Path>,
        clock: fn() -> SystemTime,
    ) -> Result<Self, ServiceError> {
        match transport {
            FeedbackTransport::Amqp(way) => {
                let mut service =
                    Service::connect_by(way, identity, ca_file, TOKEN_LIFETIME, clock()).await?;
                let receiver = service.feedback_receiver().await?;
                Ok(Self(Inner::Amqp { service: Box::new(service), receiver: Box::new(receiver) }))
            }
            FeedbackTransport::Https(way) => {
                let mut service = HttpsService::new(identity, way.clone(), ca_file, TOKEN_LIFETIME, clock)?;
                // Only a poll shows whether this policy may read feedback here.
                let polled = service.next_feedback().await?;
                Ok(Self(Inner::Https { service: Box::new(service), polled, rest: SHORTEST_REST }))
            }
        }
    }

    /// Waits for the next batch.
    ///
    /// # Errors
    /// As [`FeedbackReceiver::next`].
    ///
    /// # Cancel safety
    /// No batch is lost if the future is dropped. Over HTTPS, a batch may have been on its way: it comes again a
    /// minute later.
    pub async fn next(&mut self) -> Result<FeedbackBatch, ServiceError> {
        match &mut self.0 {
            Inner::Amqp { receiver, .. } => receiver.next().await,
            Inner::Https { service, polled, rest } => loop {
                if let Some(batch) = polled.take() {
                    *rest = SHORTEST_REST;
                    return Ok(batch);
                }
                tokio::time::sleep(*rest).await;
                *rest = rest.saturating_mul(2).clamp(SHORTEST_REST, LONGEST_REST);
                *polled = service.next_feedback().await?;
            },
        }
    }

    /// Consumes a batch at the hub. Call it when its records are printed or stored, not before.
    ///
    /// # Errors
    /// When the connection or the lock is lost; the batch then comes again.
    pub async fn complete(&mut self, batch: FeedbackBatch) -> Result<(), ServiceError> {
        match &mut self.0 {
            Inner::Amqp { receiver, .. } => receiver.complete(batch).await,
            Inner::Https { service, rest, .. } => {
                let BatchReceipt::Https(lock) = batch.receipt else {
                    return Err(ServiceError::Lost("the batch came over another connection".into()));
                };
                service.complete_feedback(&lock).await?;
                // After a batch, more may wait, so the next poll comes without a pause.
                *rest = Duration::ZERO;
                Ok(())
            }
        }
    }

    /// Ends the connection in good order.
    pub async fn close(self) {
        if let Inner::Amqp { service, .. } = self.0 {
            service.close().await;
        }
    }
}
