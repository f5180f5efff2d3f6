//! The choice of the transport.
//!
//! Owns: which module makes a connection. Must not know: packets, frames, when to connect.

use std::sync::Arc;

use super::arrivals::Arrivals;
use super::connection::{Connection, Reading};
use super::dial::Dial;
use super::failure::Fault;
use super::mqtt;
use super::publish::Publisher;
use crate::credentials::Transport;

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
