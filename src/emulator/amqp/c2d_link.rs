//! The link on which a back end sends C2D messages.
//!
//! Owns: one settled answer to each message. Must not know: how a message is decoded, queues.

use std::sync::Arc;

use fe2o3_amqp::Receiver;
use fe2o3_amqp::link::RecvError;
use fe2o3_amqp::types::definitions::Error;
use fe2o3_amqp::types::messaging::{Body, Message};
use fe2o3_amqp::types::primitives::Value;

use super::claims::Claims;
use super::condition::LinkRefusal;
use super::convert;
use crate::emulator::hub::Metered;

/// Accepts messages until the link ends. Each one is queued and accepted, or rejected with the reason. A rejection does
/// not end the link.
pub(super) async fn receive(mut link: Receiver, claims: Arc<Claims>) {
    loop {
        let (delivery, verdict) = match link.recv::<Body<Value>>().await {
            Ok(delivery) => {
                let plain = delivery.message_format().unwrap_or(0) == 0;
                let (delivery, message) = delivery.into_parts();
                let verdict = if plain {
                    queue(message, &claims)
                } else {
                    Err(LinkRefusal::argument(
                        "the emulator takes no batches: send one message in each transfer",
                    ))
                };
                (delivery, verdict)
            }
            Err(RecvError::MessageDecode(error)) => {
                let verdict =
                    LinkRefusal::argument(format!("the message cannot be decoded: {}", error.source));
                (error.info, Err(verdict))
            }
            Err(error) => {
                tracing::debug!(%error, "a C2D sender link ended");
                return;
            }
        };
        let settled = match verdict {
            Ok(()) => link.accept(delivery).await,
            Err(refusal) => {
                tracing::warn!(reason = refusal.description, "refused a C2D message");
                link.reject(delivery, Error::from(&refusal)).await
            }
        };
        if let Err(error) = settled {
            tracing::debug!(%error, "a C2D message could not be settled");
            return;
        }
    }
}

fn queue(message: Message<Body<Value>>, claims: &Claims) -> Result<(), LinkRefusal> {
    if !claims.are_valid() {
        return Err(LinkRefusal::unauthorized("the token has expired"));
    }
    let queued = convert::c2d_message(message)?;
    let device_id = queued.device_id.clone();
    let message_id = queued.message.message_id().map(str::to_owned);
    claims.hub().with(|hub, now| {
        hub.meter(Metered::C2dSend, 0, now)?;
        hub.enqueue(queued, now).map_err(LinkRefusal::from)
    })?;
    tracing::info!(device_id, message_id, "queued a C2D message");
    Ok(())
}
