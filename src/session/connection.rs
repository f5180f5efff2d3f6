//! The keeper's end of one connection, for any transport.
//!
//! Owns: that a connection that has gone settles, answers and publishes nothing. Must not know: packets, frames, when to
//! connect.

use std::sync::Arc;

use futures_util::future::{BoxFuture, join_all};
use tokio::sync::watch;
use tokio::time::Instant;

use super::failure::Fault;
use super::gate::Ends;
use super::publish::InFlight;

/// How far a connection has got.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct SignInProgress {
    /// When the hub accepted the sign-in.
    pub(super) signed_in: Option<Instant>,
    /// Whether it accepted the subscriptions.
    pub(super) subscribed: bool,
    /// Whether it also accepted that of the answers to requests for a certificate.
    pub(super) issues: bool,
}

/// The task that serves one connection: it signs in, hands messages on, and ends with the connection; `Ok` after
/// [`Connection::hang_up`]. Its drop cuts the connection.
pub(super) type Reading = BoxFuture<'static, Result<(), Fault>>;

/// Puts another token on a connection. False if it could not, or if the last one is not put yet.
pub(super) type Renew = Box<dyn Fn(&str) -> bool + Send + Sync>;

/// A connection. Its drop declares it gone.
pub(super) struct Connection {
    pub(super) progress: watch::Receiver<SignInProgress>,
    pub(super) shared: Shared,
    /// Asks for a goodbye after the settlements and answers that are ready. False if it could not ask.
    pub(super) hang_up: Box<dyn Fn() -> bool + Send + Sync>,
    /// None if the transport cannot renew the token and keep the connection.
    pub(super) renew: Option<Renew>,
}

/// What the keeper's end and the reading task share. The first drop closes the gates: after a cut, the runtime may
/// drop the task late.
#[derive(Clone)]
pub(super) struct Shared {
    /// The gate of the messages, and the gate of the calls.
    pub(super) gates: [Arc<dyn Ends>; 2],
    pub(super) in_flight: Arc<InFlight>,
}

impl Shared {
    /// From now on no new message, call or publish is taken.
    pub(super) fn stop_taking(&self) {
        self.gates.iter().for_each(|gate| gate.stop_taking());
        self.in_flight.shut();
    }

    /// Waits until every message that was taken is settled or left, and every call answered. Cancel safe.
    pub(super) async fn drained(&self) {
        join_all(self.gates.iter().map(|gate| gate.drained())).await;
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.gates.iter().for_each(|gate| gate.close());
        self.in_flight.close();
    }
}
