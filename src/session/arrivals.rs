//! Where connections hand on what they receive, and where the session takes it up.
//!
//! Owns: how much may wait there. Must not know: connections, settling.
//!
//! Calls have a channel of their own: a queue of messages that nobody takes at present must not keep a caller waiting for
//! the word that the device is busy, and calls must not take the room for which messages are given credit.

use std::sync::Arc;

use tokio::sync::{Notify, mpsc};

use super::calls::OPEN_CALLS;
use super::confirmations::Confirmations;
use super::delivery::Delivery;

/// Messages read and not yet taken by the agent. The hub keeps at most 50 per device, so with the hub there is always
/// room; a broker with a longer queue is held back by TCP.
pub(super) const DELIVERIES: usize = 64;

/// The end of the connections.
#[derive(Clone)]
pub(super) struct Arrivals {
    pub(super) deliveries: mpsc::Sender<Delivery>,
    pub(super) calls: mpsc::Sender<Delivery>,
    /// Desired properties have changed; however often, it is told of once.
    pub(super) desired: Arc<Notify>,
    /// Which completions the hub has.
    pub(super) confirmations: Arc<Confirmations>,
}

/// The end of the session.
pub(super) struct Arrived {
    deliveries: mpsc::Receiver<Delivery>,
    calls: mpsc::Receiver<Delivery>,
}

/// Both ends.
pub(super) fn channels() -> (Arrivals, Arrived) {
    let (deliveries_in, deliveries) = mpsc::channel(DELIVERIES);
    let (calls_in, calls) = mpsc::channel(OPEN_CALLS);
    let arrivals = Arrivals {
        deliveries: deliveries_in,
        calls: calls_in,
        desired: Arc::default(),
        confirmations: Arc::default(),
    };
    (arrivals, Arrived { deliveries, calls })
}

impl Arrived {
    /// The next message or call, neither before the other; `None` when none can come any more. Cancel safe.
    pub(super) async fn next(&mut self) -> Option<Delivery> {
        tokio::select! {
            Some(call) = self.calls.recv() => Some(call),
            Some(delivery) = self.deliveries.recv() => Some(delivery),
            else => None,
        }
    }

    /// One that is here already.
    pub(super) fn try_next(&mut self) -> Option<Delivery> {
        self.calls.try_recv().or_else(|_none| self.deliveries.try_recv()).ok()
    }

    /// Takes nothing more, and leaves what was not taken.
    pub(super) fn close(&mut self) {
        self.deliveries.close();
        self.calls.close();
        while let Some(delivery) = self.try_next() {
            delivery.receipt.leave();
        }
    }
}
