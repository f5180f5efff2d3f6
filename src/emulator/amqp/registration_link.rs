//! The two links on which a device asks the provisioning service for its hub.
//!
//! Owns: which operation a message asks for, and the form of answers and errors. Must not know: who may ask, enrolments.
//!
//! Source: wire reference 12.5, and `amqp.ts` of Microsoft's Node SDK (`provisioning/transport/amqp`), which tells
//! errors apart by their condition. Which condition the real service has for which status is not verified, so this is
//! a choice: those that Node takes for throttling and for an error of the server lead to another try.

use std::sync::Arc;

use fe2o3_amqp::link::RecvError;
use fe2o3_amqp::types::definitions::{AmqpError, Error, ErrorCondition, Fields, LinkError};
use fe2o3_amqp::types::messaging::{ApplicationProperties, Body, Data, Message, Properties};
use fe2o3_amqp::types::primitives::{Binary, SimpleValue, Symbol, Value};
use fe2o3_amqp::{Receiver, Sender};
use tokio::time::timeout;

use super::condition::LinkRefusal;
use super::convert;
use super::ending::{ANSWER_TIMEOUT, goodbye};
use super::enrollee::{DpsReply, Enrollee};
use crate::emulator::provisioning::DpsAnswer;
use crate::message::excerpt;

const OPERATION_TYPE: &str = "iotdps-operation-type";
const OPERATION_ID: &str = "iotdps-operation-id";
const REGISTER: &str = "iotdps-register";
const POLL: &str = "iotdps-get-operationstatus";

/// Seconds until the client should ask again, as Node and C read them, and as C# does.
const RETRY_AFTER: [&str; 2] = ["retry-after", "Retry-After"];

/// Answers questions until the link ends. The other link sends the answers.
pub(super) async fn receive(mut link: Receiver, enrollee: Arc<Enrollee>) {
    let registration_id = &enrollee.claim.registration_id;
    loop {
        let (delivery, answer) = match link.recv::<Body<Value>>().await {
            Ok(delivery) => {
                let (delivery, message) = delivery.into_parts();
                (delivery, answer(message, &enrollee).await)
            }
            Err(RecvError::MessageDecode(error)) => {
                let words = format!("the message cannot be decoded: {}", error.source);
                (error.info, Err(Error::from(&LinkRefusal::argument(words))))
            }
            Err(error) => return tracing::debug!(registration_id, %error, "a registration link ended"),
        };
        let settled = match &answer {
            Ok(_) => link.accept(delivery).await,
            Err(error) => link.reject(delivery, error.clone()).await,
        };
        if let Err(error) = settled {
            return tracing::debug!(registration_id, %error, "a question could not be settled");
        }
        let Ok(reply) = answer else { continue };
        if let Err(error) = enrollee.queue.try_send(reply) {
            tracing::warn!(registration_id, %error, "dropped an answer: the device does not receive answers");
        }
    }
}

/// Sends answers until the link ends.
pub(super) async fn send(mut link: Sender, enrollee: Arc<Enrollee>) {
    let registration_id = &enrollee.claim.registration_id;
    let Ok(mut replies) = enrollee.replies.try_lock() else {
        let refusal = LinkRefusal::new(AmqpError::NotAllowed, "another link receives the answers already");
        return goodbye(link, registration_id, &refusal).await;
    };
    loop {
        let reply = tokio::select! {
            // The enrollee holds the sender, so there is always a next one.
            reply = replies.recv() => reply,
            reason = link.on_detach() => {
                return tracing::debug!(registration_id, %reason, "a registration link ended");
            }
        };
        let Some(reply) = reply else { return };
        match timeout(ANSWER_TIMEOUT, link.send(reply)).await {
            Ok(Ok(_outcome)) => {}
            Ok(Err(error)) => return tracing::debug!(registration_id, %error, "a registration link ended"),
            Err(_) => {
                tracing::warn!(registration_id, "dropped an answer: the device does not receive answers")
            }
        }
    }
}

/// Carries out what a message asks for. An error becomes the outcome of the message.
async fn answer(question: Message<Body<Value>>, enrollee: &Enrollee) -> Result<DpsReply, Error> {
    let text = |name| match question.application_properties.as_ref()?.0.get(name)? {
        SimpleValue::String(text) => Some(text.clone()),
        SimpleValue::Symbol(symbol) => Some(symbol.as_str().to_owned()),
        _ => None,
    };
    let (desk, claim) = (&enrollee.desk, &enrollee.claim);
    let answered = match (text(OPERATION_TYPE).as_deref(), text(OPERATION_ID)) {
        (Some(REGISTER), _) => {
            let body = convert::body(question.body).map_err(|refusal| Error::from(&refusal))?;
            desk.register(claim, &body).await
        }
        (Some(POLL), Some(operation)) => desk.poll(claim, &operation, enrollee.port).await,
        (Some(POLL), None) => {
            return Err(Error::from(&LinkRefusal::argument(format!("the message lacks {OPERATION_ID}"))));
        }
        (operation, _) => {
            let shown = excerpt(operation.unwrap_or_default());
            let words = format!("{OPERATION_TYPE} is \"{shown}\": use {REGISTER} or {POLL}");
            return Err(Error::from(&LinkRefusal::argument(words)));
        }
    };
    if answered.status >= 400 {
        return Err(error(&answered));
    }
    let correlation_id = question.properties.and_then(|properties| properties.correlation_id);
    Ok(reply(&answered, Properties { correlation_id, ..Properties::default() }))
}

fn reply(answer: &DpsAnswer, properties: Properties) -> DpsReply {
    let mut application = ApplicationProperties::default();
    if let Some(seconds) = answer.retry_after {
        let seconds = SimpleValue::Int(i32::try_from(seconds).unwrap_or(i32::MAX));
        for name in RETRY_AFTER {
            application.0.insert(name.to_owned(), seconds.clone());
        }
    }
    let body = Data(Binary::from(answer.body.to_string().into_bytes()));
    Message::builder().properties(properties).application_properties(application).data(body).build()
}

/// The error of an answer. Its description is the body, which C# reads as JSON.
fn error(answer: &DpsAnswer) -> Error {
    let custom = |symbol: &str| ErrorCondition::Custom(Symbol::from(symbol));
    let condition = match answer.status {
        401 => AmqpError::UnauthorizedAccess.into(),
        403 => custom("com.microsoft:quota-exceeded"),
        404 => AmqpError::NotFound.into(),
        413 => LinkError::MessageSizeExceeded.into(),
        429 => custom("com.microsoft:device-container-throttled"),
        500.. => AmqpError::InternalError.into(),
        _ => custom("com.microsoft:argument-error"),
    };
    let mut info = Fields::new();
    if let Some(seconds) = answer.retry_after {
        let seconds = Value::Int(i32::try_from(seconds).unwrap_or(i32::MAX));
        for name in RETRY_AFTER {
            info.insert(Symbol::from(name), seconds.clone());
        }
    }
    Error::new(condition, answer.body.to_string(), info)
}
