//! The link on which a device sends D2C messages.
//!
//! Owns: one settled answer to each transfer. Must not know: how a message or a batch is decoded, what is stored of it.
//! Source: wire reference 2.4. The largest message is the link's max-message-size; the AMQP crate ends a link that
//! exceeds it with `amqp:link:message-size-exceeded`.

use std::sync::Arc;

use fe2o3_amqp::Receiver;
use fe2o3_amqp::link::RecvError;
use fe2o3_amqp::types::definitions::Error;
use fe2o3_amqp::types::messaging::{Body, Message};
use fe2o3_amqp::types::primitives::Value;

use super::batch::{self, BATCH_FORMAT};
use super::claims::Claims;
use super::condition::LinkRefusal;
use super::device_message;
use crate::emulator::event_log;

/// Accepts messages until the link ends. Each one is stored and accepted, or rejected with the reason. A rejection does
/// not end the link.
pub(super) async fn receive(mut link: Receiver, claims: Arc<Claims>, device_id: String) {
    loop {
        let (delivery, verdict) = match link.recv::<Body<Value>>().await {
            Ok(delivery) => {
                if !claims.count_packet(&device_id) {
                    return;
                }
                let format = delivery.message_format().unwrap_or(0);
                let (delivery, message) = delivery.into_parts();
                let messages = match format {
                    0 => Ok(vec![message]),
                    BATCH_FORMAT => batch::messages(message),
                    other => Err(LinkRefusal::argument(format!(
                        "the message format {other:#010x} is not known: send single messages, or batches \
                         ({BATCH_FORMAT:#010x})"
                    ))),
                };
                (delivery, messages.and_then(|messages| keep(messages, &claims, &device_id)))
            }
            Err(RecvError::MessageDecode(error)) => {
                let verdict =
                    LinkRefusal::argument(format!("the message cannot be decoded: {}", error.source));
                (error.info, Err(verdict))
            }
            Err(error) => return tracing::debug!(device_id, %error, "a D2C link ended"),
        };
        let settled = match verdict {
            Ok(()) => link.accept(delivery).await,
            Err(refusal) => {
                tracing::warn!(device_id, reason = refusal.description, "refused a D2C message");
                link.reject(delivery, Error::from(&refusal)).await
            }
        };
        if let Err(error) = settled {
            return tracing::debug!(device_id, %error, "a D2C message could not be settled");
        }
    }
}

/// Stores all messages of a transfer, or none.
fn keep(messages: Vec<Message<Body<Value>>>, claims: &Claims, device_id: &str) -> Result<(), LinkRefusal> {
    claims.check_device(device_id)?;
    let events = messages.into_iter().map(device_message::event).collect::<Result<Vec<_>, _>>()?;
    event_log::log_events(device_id, &events);
    claims.hub().with(|hub, now| {
        for (properties, body) in events {
            hub.record_event(device_id, properties, body.into(), now);
        }
    });
    Ok(())
}
