//! The emulator's own route that puts a message into an input of a module, as if another module had sent it.
//!
//! Owns: the path and the answers of this route. Must not know: queues, connections.

use serde_json::json;

use super::call::HttpCall;
use super::page::{self, MAX_FORM};
use super::reply::{self, HttpResult};
use crate::emulator::hub::{EnqueueError, InputError, SOURCE_DEVICE};
use crate::emulator::identity;

/// `POST /emulator/devices/{id}/modules/{id}/inputs/{input}`: a message in the form of the page, without the fields for
/// feedback and expiry. Its source is the device itself, as for a message of a leaf device.
pub(super) async fn send(call: &mut HttpCall) -> HttpResult {
    let body = call.body(MAX_FORM).await?;
    let mut message = page::message(&body).map_err(|sentence| reply::bad_argument(&sentence))?;
    let message_id = message.message_id().map(str::to_owned);
    let (device_id, input) = (call.segment(2), call.segment(6));
    message.system.set(SOURCE_DEVICE, device_id);
    let id = identity::join(device_id, Some(call.segment(4)));
    let sent = call.hub.with(|hub, now| hub.send_to_input(&id, input, message, now));
    sent.map_err(|error| match error {
        InputError::UnknownModule(..) => reply::no_device(&id),
        InputError::Queue(EnqueueError::Throttled(_)) => reply::throttled(),
        error => reply::bad_argument(&error.to_string()),
    })?;
    tracing::info!(module = id, input, message_id, "queued a message for an input");
    Ok(reply::ok(&json!({ "messageId": message_id })))
}
