//! Signs in once and out again, to see whether the hub accepts this device.
//!
//! Owns: the limit of its time. Must not know: subscriptions, messages.
//!
//! The session is a clean one and subscribes to nothing, so that the hub delivers no message and counts none as
//! delivered. A hub keeps one connection per device, so another connection of this device is displaced.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use super::dial::Dial;
use super::failure::Fault;
use super::proof::Trusted;
use super::publish::Publisher;
use super::terms::{Settings, Terms};
use super::{arrivals, transports};
use crate::tls::TlsError;

/// Why the hub does not accept the device.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SignInError {
    /// A certificate, key or CA file cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The network on the way to the hub failed, or the hub refused.
    #[error("{0}")]
    Failed(String),
}

/// Signs in and out again. `limit` is the time from the name look-up (for a module: from the request for its token) to
/// the answer to the sign-in.
///
/// # Errors
/// Why it failed, in the words of a session.
pub(crate) async fn probe(settings: Settings, limit: Duration) -> Result<(), SignInError> {
    let terms = Terms::read(settings)?;
    let carrier = terms.first_carrier();
    let failed = |fault| SignInError::Failed(terms.failure(fault, carrier).to_string());
    let until = Instant::now() + limit;
    let mut trusted = Trusted::default();
    let proof = match timeout_at(until, terms.proof(&mut trusted, terms.pair())).await {
        Ok(proof) => proof.map_err(failed)?,
        Err(_elapsed) => {
            let sentence = format!("the workload API gave no token within {} s", limit.as_secs());
            return Err(failed(Fault::Workload { sentence }));
        }
    };
    let dial = Dial { signs_in_only: true, ..Dial::new(&terms, proof, 1, carrier) };
    // Nothing comes, because nothing is subscribed to.
    let (arrivals, _none) = arrivals::channels();
    let prepared =
        transports::prepare(terms.settings.transport, dial, arrivals, &Arc::new(Publisher::default()));
    let (_connection, reading) = prepared.map_err(failed)?;
    match timeout_at(until, reading).await {
        Ok(result) => result.map_err(failed),
        Err(_elapsed) => Err(failed(Fault::Unanswered { within: limit })),
    }
}
