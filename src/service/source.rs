//! Where feedback is read from: a link over AMQP, or polls over HTTPS.
//!
//! Owns: the choice, and how often HTTPS is asked. Must not know: who reads, what is done with it.

use std::path::Path;
use std::time::{Duration, SystemTime};

use super::feedback::Receipt;
use super::{
    FeedbackBatch, FeedbackReceiver, HttpsService, HttpsWay, Service, ServiceError, TOKEN_LIFETIME, Way,
};
use crate::credentials::ServiceConnectionString;

/// The time between two polls: the shortest, and the longest when nothing comes. The hub counts each poll against its limits.
const SHORTEST_REST: Duration = Duration::from_secs(1);
const LONGEST_REST: Duration = Duration::from_secs(10);

/// How feedback travels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FeedbackTransport {
    /// A link, by one of AMQP's ways.
    Amqp(Way),
    /// Polls.
    Https(HttpsWay),
}

/// A reader of feedback. Dropping it gives back an uncompleted batch; over HTTPS only when its lock lapses.
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
    /// Dropping the future closes whatever was open.
    pub async fn open(
        transport: &FeedbackTransport,
        identity: &ServiceConnectionString,
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
                // Nothing else shows whether this hub lets this policy read.
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
    /// No batch is lost when the future is dropped. Over HTTPS one may have been on its way, and comes a minute later.
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
                let Receipt::Https(lock) = batch.receipt else {
                    return Err(ServiceError::Lost("the batch came over another connection".into()));
                };
                service.complete_feedback(&lock).await?;
                // Where one was, more may wait: no rest before the next poll.
                *rest = Duration::ZERO;
                Ok(())
            }
        }
    }

    /// Ends it in good order.
    pub async fn close(self) {
        if let Inner::Amqp { service, .. } = self.0 {
            service.close().await;
        }
    }
}
