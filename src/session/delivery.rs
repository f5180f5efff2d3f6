//! A message together with the right to settle it, once; and what settling means.
//!
//! Owns: what happens to a message that nobody settles. Must not know: what is done with messages.
//! Used by: `session::{mqtt, amqp}` (make them), `agent` (settles them).

use std::sync::Arc;

use crate::message::{C2dMessage, MessageError};

use super::link::{Link, Phase};
use super::release::Ticket;
use super::settlements::Settlements;

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
/// MQTT can only complete: there is no way to reject or abandon a message (wire reference 1.6). AMQP can do all (2.6).
#[must_use = "a receipt that is not settled makes the message come again"]
pub(crate) struct Receipt {
    way: Way,
    ticket: Ticket,
    settled: bool,
}

/// The connection that a message came on.
#[allow(dead_code)] // AMQP is a feature.
enum Way {
    Mqtt(Arc<Link>),
    Amqp(Arc<Settlements>),
}

impl Way {
    fn phase(&self) -> Phase {
        match self {
            Self::Mqtt(link) => link.phase(),
            Self::Amqp(settlements) => settlements.phase(),
        }
    }

    fn leave(&self, ticket: Ticket) -> Phase {
        match self {
            Self::Mqtt(link) => link.leave(ticket),
            Self::Amqp(settlements) => settlements.leave(ticket),
        }
    }
}

impl Receipt {
    pub(super) fn new(link: Arc<Link>, ticket: Ticket) -> Self {
        Self { way: Way::Mqtt(link), ticket, settled: false }
    }

    #[allow(dead_code)] // AMQP is a feature.
    pub(super) fn over_amqp(settlements: Arc<Settlements>, ticket: Ticket) -> Self {
        Self { way: Way::Amqp(settlements), ticket, settled: false }
    }

    /// Whether to begin work on the delivery now. False once its connection is gone or takes no more: the message
    /// then comes again on the next connection.
    pub(crate) fn is_current(&self) -> bool {
        self.way.phase() == Phase::Open
    }

    /// Settles the message, as far as the connection can: see [`super::Session::can`]. Never blocks. Over MQTT, which cannot
    /// give a message back or refuse it, it is completed: its PUBACK leaves as soon as those of all earlier messages have.
    /// After the connection has gone this does nothing: the hub has handed the packet id to another message.
    pub(crate) fn settle(mut self, settlement: Settlement) {
        self.settled = true;
        let phase = match &self.way {
            Way::Mqtt(link) => link.complete(self.ticket),
            Way::Amqp(settlements) => settlements.settle(self.ticket, settlement),
        };
        if phase == Phase::Closed {
            tracing::debug!(
                ticket = self.ticket,
                ?settlement,
                "settled after its connection had gone: the message comes again"
            );
        }
    }

    /// Completes the message.
    pub(crate) fn complete(self) {
        self.settle(Settlement::Complete);
    }

    /// Leaves the message at the hub: it comes again on a later connection. Nothing that arrived after it on this
    /// connection can be completed any more.
    pub(crate) fn leave(mut self) {
        self.settled = true;
        self.way.leave(self.ticket);
    }
}

impl Drop for Receipt {
    fn drop(&mut self) {
        if !self.settled && self.way.leave(self.ticket) == Phase::Open {
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
