//! Channels from the connections to the session, for messages and calls.
//!
//! Owns: how much may wait in them. Must not know: connections, settling.
//!
//! Calls have a channel of their own. Full of messages, a shared channel would keep a caller waiting for the answer
//! that the device is busy; and calls would take the room that messages are given credit for.

use std::sync::Arc;

use tokio::sync::{Notify, mpsc};

use super::calls::OPEN_CALLS;
use super::certificates::CertificateAnswers;
use super::confirmations::Confirmations;
use super::delivery::Delivery;

/// Messages that are read and not yet taken by the agent. The hub keeps at most 50 per device, so its messages always
/// find room. TCP holds back a broker with a longer queue.
pub(super) const DELIVERIES: usize = 64;

/// The connections' end of the channels.
#[derive(Clone)]
pub(super) struct Arrivals {
    pub(super) deliveries: mpsc::Sender<Delivery>,
    pub(super) calls: mpsc::Sender<Delivery>,
    /// Desired properties have changed. Several changes give one notification.
    pub(super) desired: Arc<Notify>,
    /// Which completions the hub has.
    pub(super) confirmations: Arc<Confirmations>,
    /// The hub's answers to requests for a certificate.
    pub(super) certificates: Arc<CertificateAnswers>,
}

/// The session's end of the channels.
pub(super) struct Arrived {
    deliveries: mpsc::Receiver<Delivery>,
    calls: mpsc::Receiver<Delivery>,
}

/// Makes both ends.
pub(super) fn channels() -> (Arrivals, Arrived) {
    let (deliveries_in, deliveries) = mpsc::channel(DELIVERIES);
    let (calls_in, calls) = mpsc::channel(OPEN_CALLS);
    let arrivals = Arrivals {
        deliveries: deliveries_in,
        calls: calls_in,
        desired: Arc::default(),
        confirmations: Arc::default(),
        certificates: Arc::default(),
    };
    (arrivals, Arrived { deliveries, calls })
}

impl Arrived {
    /// The next message or call; neither has precedence. `None` if none can come any more. Cancel safe.
    pub(super) async fn next(&mut self) -> Option<Delivery> {
        tokio::select! {
            Some(call) = self.calls.recv() => Some(call),
            Some(delivery) = self.deliveries.recv() => Some(delivery),
            else => None,
        }
    }

    /// A message or call that has arrived already.
    pub(super) fn try_next(&mut self) -> Option<Delivery> {
        self.calls.try_recv().or_else(|_none| self.deliveries.try_recv()).ok()
    }

    /// Takes no new ones, and leaves those that were not taken.
    pub(super) fn close(&mut self) {
        self.deliveries.close();
        self.calls.close();
        while let Some(delivery) = self.try_next() {
            delivery.receipt.leave();
        }
    }
}
