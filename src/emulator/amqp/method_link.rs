//! The pair of links on which a device receives method calls and answers them.
//!
//! Owns: the form of calls and answers, and which call an answer is for. Must not know: who calls, time-outs.
//! Source: wire reference 2.4 and 2.7.
//!
//! The correlation id names the call to the hub, so the two links of a pair need not know each other. Choices where the
//! source is silent: a device can be called as soon as its receiving link is attached; calls are sent settled unless
//! the device requires otherwise; a call without credit from the device is lost, and ends by its time-out.

use std::sync::Arc;

use fe2o3_amqp::link::RecvError;
use fe2o3_amqp::link::delivery::Sendable;
use fe2o3_amqp::types::definitions::Error;
use fe2o3_amqp::types::messaging::{ApplicationProperties, Body, Data, Message, MessageId, Properties};
use fe2o3_amqp::types::primitives::{Binary, SimpleValue, Value};
use fe2o3_amqp::{Receiver, Sender};
use tokio::time::timeout;
use uuid::Uuid;

use super::claims::Claims;
use super::condition::LinkRefusal;
use super::convert;
use super::ending::{ANSWER_TIMEOUT, steal};
use crate::emulator::hub::{CallId, ConnectionId, MethodRequest};

const NAME: &str = "IoThub-methodname";
const STATUS: &str = "IoThub-status";

/// The upper half of every correlation id. The lower half is the call's number.
const UPPER_HALF: u64 = 0x6332_642d_6361_6c6c;

/// Sends calls until the link ends or another connection of the device replaces it.
pub(super) async fn send(mut link: Sender, claims: Arc<Claims>, device_id: String, own: ConnectionId) {
    let hub = claims.hub().clone();
    let mut changed = hub.watch_device(&device_id);
    claims.begin_calls(&device_id, own);
    loop {
        changed.mark_unchanged();
        if !hub.with(|hub, _| hub.is_current(&device_id, own)) {
            claims.end_calls(&device_id, own);
            return steal(link, &hub, &device_id).await;
        }
        let Some(request) = hub.with(|hub, now| hub.next_method(&device_id, own, now)) else {
            tokio::select! {
                // The hub holds the sender, so this is always a change.
                _changed = changed.changed() => continue,
                reason = link.on_detach() => {
                    tracing::debug!(device_id, %reason, "a method link ended");
                    break;
                }
            }
        };
        let method = request.name.clone();
        tracing::debug!(device_id, method, "called a method");
        match timeout(ANSWER_TIMEOUT, link.send(call(request))).await {
            Ok(Ok(_outcome)) => {}
            Ok(Err(error)) => {
                tracing::debug!(device_id, %error, "a method link ended");
                break;
            }
            Err(_) => tracing::warn!(
                device_id,
                method,
                "dropped a method call: the device does not accept method calls"
            ),
        }
    }
    claims.end_calls(&device_id, own);
}

/// Passes answers to the waiting callers until the link ends. A bad answer does not end the link.
pub(super) async fn receive(mut link: Receiver, claims: Arc<Claims>, device_id: String, own: ConnectionId) {
    loop {
        let (delivery, verdict) = match link.recv::<Body<Value>>().await {
            Ok(delivery) => {
                let (delivery, message) = delivery.into_parts();
                (delivery, take(message, &claims, &device_id, own))
            }
            Err(RecvError::MessageDecode(error)) => {
                let verdict =
                    LinkRefusal::argument(format!("the message cannot be decoded: {}", error.source));
                (error.info, Err(verdict))
            }
            Err(error) => return tracing::debug!(device_id, %error, "a method link ended"),
        };
        let settled = match verdict {
            Ok(()) => link.accept(delivery).await,
            Err(refusal) => {
                tracing::warn!(device_id, reason = refusal.description, "refused an answer to a method");
                link.reject(delivery, Error::from(&refusal)).await
            }
        };
        if let Err(error) = settled {
            return tracing::debug!(device_id, %error, "an answer to a method could not be settled");
        }
    }
}

fn call(request: MethodRequest) -> Sendable<Data> {
    let id = MessageId::Uuid(Uuid::from_u64_pair(UPPER_HALF, request.id.number()).into_bytes().into());
    let body = String::from(Box::<str>::from(request.payload)).into_bytes();
    let message = Message::builder()
        .properties(Properties { correlation_id: Some(id), ..Properties::default() })
        .application_properties(ApplicationProperties::builder().insert(NAME, request.name).build())
        .data(Data(Binary::from(body)))
        .build();
    Sendable::builder().message(message).settled(true).build()
}

fn take(
    message: Message<Body<Value>>,
    claims: &Claims,
    device_id: &str,
    own: ConnectionId,
) -> Result<(), LinkRefusal> {
    claims.check_device(device_id)?;
    let id = message.properties.and_then(|properties| properties.correlation_id);
    let id = id.as_ref().and_then(call_id);
    let id = id.ok_or_else(|| LinkRefusal::argument("the correlation-id is not that of a call"))?;
    let properties = message.application_properties.unwrap_or_default().0;
    let status = properties.iter().find(|(name, _)| name.eq_ignore_ascii_case(STATUS));
    let status = status.and_then(|(_, value)| number(value));
    let status = status
        .ok_or_else(|| LinkRefusal::argument(format!("the property {STATUS} must be a whole number")))?;
    let body = convert::body(message.body)?;
    if !claims.hub().with(|hub, _| hub.answer_method(device_id, own, id, status, &body)) {
        // A rejection would not help, and the C SDK answers it by leaving both links.
        tracing::warn!(
            device_id,
            status,
            "no call waits for this answer: the call has ended, or already has an answer"
        );
    }
    Ok(())
}

/// The call in a correlation id. Clients send the UUID back in several types.
fn call_id(id: &MessageId) -> Option<CallId> {
    let uuid = match id {
        MessageId::Uuid(uuid) => Uuid::from_bytes(uuid.clone().into_inner()),
        MessageId::String(text) => Uuid::parse_str(text).ok()?,
        MessageId::Binary(bytes) => Uuid::from_slice(bytes).ok()?,
        MessageId::Ulong(_) => return None,
    };
    let (upper, number) = uuid.as_u64_pair();
    (upper == UPPER_HALF).then(|| CallId::from_number(number))
}

/// A whole number of any type: SDKs write the smallest type that fits.
fn number(value: &SimpleValue) -> Option<i32> {
    match *value {
        SimpleValue::Byte(value) => Some(value.into()),
        SimpleValue::Ubyte(value) => Some(value.into()),
        SimpleValue::Short(value) => Some(value.into()),
        SimpleValue::Ushort(value) => Some(value.into()),
        SimpleValue::Int(value) => Some(value),
        SimpleValue::Uint(value) => value.try_into().ok(),
        SimpleValue::Long(value) => value.try_into().ok(),
        SimpleValue::Ulong(value) => value.try_into().ok(),
        _ => None,
    }
}
