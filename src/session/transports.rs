//! The choice of the transport.
//!
//! Owns: which module makes a connection, also one to the provisioning service. Must not know: packets, frames, when to connect.

use std::sync::Arc;

use bytes::Bytes;
use tokio::time::Instant;

use super::arrivals::Arrivals;
use super::connection::{Connection, Reading};
use super::dial::Dial;
use super::failure::Fault;
use super::mqtt;
use super::publish::Publisher;
use super::questions::Answered;
use crate::credentials::Transport;
use crate::provisioning::Enrolment;

/// Prepares a connection and the task that serves it. Nothing is sent before that task runs.
///
/// # Errors
/// When this program has no such transport. The configuration refuses it earlier.
pub(super) fn prepare(
    transport: Transport,
    dial: Dial,
    arrivals: Arrivals,
    publisher: &Arc<Publisher>,
) -> Result<(Connection, Reading), Fault> {
    match transport {
        Transport::Mqtt => Ok(mqtt::prepare(dial, arrivals, publisher)),
        #[cfg(feature = "full")]
        Transport::Amqp => Ok(super::amqp::prepare(dial, arrivals, publisher)),
        #[cfg(not(feature = "full"))]
        Transport::Amqp => {
            Err(Fault::Protocol { reason: "this program is built without the feature full".into() })
        }
    }
}

/// Registers over MQTT.
///
/// # Errors
/// Why the connection failed.
pub(super) async fn register(
    dial: Dial,
    enrolment: &Enrolment,
    body: Bytes,
    until: Instant,
) -> Result<Answered, Fault> {
    mqtt::enrol::register(dial, &enrolment.registration_id, body, until).await
}

/// Registers over HTTPS, if this program can; `None` if it cannot.
///
/// # Errors
/// Why a connection failed.
#[cfg(feature = "full")]
pub(super) async fn register_over_https(
    dial: Dial,
    enrolment: &Enrolment,
    body: Bytes,
    until: Instant,
) -> Option<Result<Answered, Fault>> {
    Some(super::https_registration::register(dial, enrolment, body, until).await)
}

#[cfg(not(feature = "full"))]
pub(super) async fn register_over_https(
    _dial: Dial,
    _enrolment: &Enrolment,
    _body: Bytes,
    _until: Instant,
) -> Option<Result<Answered, Fault>> {
    None
}
