//! A message together with the right to settle it, once; and what settling means.
//!
//! Owns: what happens to a message that nobody settles. Must not know: what is done with messages.
//! Used by: `session::mqtt` (makes them), `agent` (settles them).

use std::sync::Arc;

use crate::message::{C2dMessage, MessageError};

use super::link::{Link, Phase};
use super::release::Ticket;

/// What a device may say of a message. Not every transport can say all of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Settlement {
    /// It is done with: the hub forgets it, and tells the sender `Success` where that was asked for.
    Complete,
    /// It is given back: the hub counts a delivery and sends it again, or gives it up after its last one.
    Abandon,
    /// It is refused: the hub gives it up, and tells the sender `Rejected` where that was asked for.
    Reject,
}

/// A message that arrived. Its receipt must be settled, or left at the hub on purpose.
#[must_use = "a delivery that is not settled comes again, and holds back all later ones of its connection"]
#[derive(Debug)]
pub(crate) struct Delivery {
    /// The message, or why its topic could not be decoded.
    pub(crate) message: Result<C2dMessage, MessageError>,
    /// Which connection of this session it came on, counted from 1.
    pub(crate) connection: u64,
    /// Settles it.
    pub(crate) receipt: Receipt,
}

/// The right to settle one delivery. Dropped unsettled, it says so in the log and sends nothing.
///
/// MQTT can only complete: there is no way to reject or abandon a message (wire reference 1.6).
#[must_use = "a receipt that is not settled makes the message come again"]
pub(crate) struct Receipt {
    link: Arc<Link>,
    ticket: Ticket,
    settled: bool,
}

impl Receipt {
    pub(super) fn new(link: Arc<Link>, ticket: Ticket) -> Self {
        Self { link, ticket, settled: false }
    }

    /// Whether to begin work on the delivery now. False once its connection is gone or takes no more: the message
    /// then comes again on the next connection.
    pub(crate) fn is_current(&self) -> bool {
        self.link.phase() == Phase::Open
    }

    /// Settles the message, as far as the connection can: see [`super::Session::can`]. One that it cannot give back or
    /// refuse is completed, because it would come again for ever.
    pub(crate) fn settle(self, settlement: Settlement) {
        tracing::trace!(ticket = self.ticket, ?settlement, "settled, over MQTT as complete");
        self.complete();
    }

    /// Completes the message: its PUBACK leaves as soon as those of all earlier messages have. Never blocks. After
    /// the connection has gone this does nothing, because the hub has handed the packet id to another message.
    pub(crate) fn complete(mut self) {
        self.settled = true;
        if self.link.complete(self.ticket) == Phase::Closed {
            tracing::debug!(
                ticket = self.ticket,
                "completion came after its connection had gone: the message comes again"
            );
        }
    }

    /// Leaves the message at the hub: it comes again on a later connection. Nothing that arrived after it on this
    /// connection can be completed any more.
    pub(crate) fn leave(mut self) {
        self.settled = true;
        self.link.leave(self.ticket);
    }
}

impl Drop for Receipt {
    fn drop(&mut self) {
        if !self.settled && self.link.leave(self.ticket) == Phase::Open {
            tracing::warn!(ticket = self.ticket, "a delivery was dropped unsettled: the message comes again");
        }
    }
}

impl std::fmt::Debug for Receipt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Receipt")
            .field("ticket", &self.ticket)
            .field("settled", &self.settled)
            .finish_non_exhaustive()
    }
}
