//! Two links that belong together: one from the device, one from the hub.
//!
//! Owns: attaching both, and a refusal of either. Must not know: what the links carry.
//! Source: wire reference 2.4.

use std::time::SystemTime;

use fe2o3_amqp::link::{ReceiverAttachError, SenderAttachError};
use fe2o3_amqp::session::SessionHandle;
use fe2o3_amqp::types::definitions::{Error, Fields, SenderSettleMode};
use fe2o3_amqp::types::primitives::{Symbol, Value};
use fe2o3_amqp::{Receiver, Sender};

use super::fault;
use crate::session::failure::Fault;

/// The property that says which two links belong together.
const CORRELATION: &str = "com.microsoft:channel-correlation-id";
const API_VERSION: (&str, &str) = ("com.microsoft:api-version", "2021-04-12");

/// The names of a pair.
pub(super) struct LinkNames {
    /// Stands before the id in the property that joins the links, such as `twin`.
    pub(super) purpose: &'static str,
    /// The beginnings of the names of the links.
    pub(super) outgoing: &'static str,
    pub(super) incoming: &'static str,
}

/// Both links. The id is in their names, and tells this pair from all others.
pub(super) struct LinkPair {
    pub(super) outgoing: Sender,
    pub(super) incoming: Receiver,
    pub(super) id: uuid::Uuid,
}

/// Attaches both to one address, the outgoing one first, because the hub may send as soon as the other one is
/// attached. The inner error is the hub's, if it does not offer that address to this device.
///
/// # Errors
/// When the connection is gone.
pub(super) async fn attach(
    session: &mut SessionHandle<()>,
    address: &str,
    names: &LinkNames,
    now: SystemTime,
) -> Result<Result<LinkPair, Error>, Fault> {
    let id = uuid::Uuid::new_v4();
    let mut properties = Fields::new();
    for (key, value) in
        [(CORRELATION, format!("{}:{id}", names.purpose)), (API_VERSION.0, API_VERSION.1.to_owned())]
    {
        properties.insert(Symbol::from(key), Value::String(value));
    }
    let outgoing = Sender::builder()
        .name(format!("{}-{id}", names.outgoing))
        .target(address)
        .sender_settle_mode(SenderSettleMode::Settled)
        .properties(properties.clone())
        .attach(session)
        .await;
    let outgoing = match outgoing {
        Ok(link) => link,
        Err(SenderAttachError::RemoteClosedWithError(error)) => return Ok(Err(error)),
        Err(error) => return Err(fault::of_sender_attach(error, now)),
    };
    let incoming = Receiver::builder()
        .name(format!("{}-{id}", names.incoming))
        .source(address)
        .sender_settle_mode(SenderSettleMode::Settled)
        .properties(properties)
        .attach(session)
        .await;
    match incoming {
        Ok(incoming) => Ok(Ok(LinkPair { outgoing, incoming, id })),
        Err(ReceiverAttachError::RemoteClosedWithError(error)) => Ok(Err(error)),
        Err(error) => Err(fault::of_receiver_attach(error, now)),
    }
}
