//! A message or a call together with the right to settle or answer it, once; and what settling means.
//!
//! Owns: what happens to one that nobody settles. Must not know: what is done with messages.

use std::sync::Arc;

use bytes::Bytes;
use tokio::time::Instant;

use crate::message::{C2dMessage, MessageError, Sequence};

use super::calls::Calls;
use super::confirmations::Mark;
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

/// A message or a call of a direct method that arrived. Its receipt must be settled, or left at the hub on purpose; that of
/// a call must be answered.
#[must_use = "a delivery that is not settled comes again, and holds back all later ones of its connection"]
#[derive(Debug)]
pub(crate) struct Delivery {
    /// The message, or why its topic could not be decoded. A call's has the source
    /// [`Method`](crate::message::Source::Method), an id of this program's own, and its payload as it came.
    pub(crate) message: Result<C2dMessage, MessageError>,
    /// Which connection of this session it came on, counted from 1.
    pub(crate) connection: u64,
    /// Whether the hub says that it sent the message before. It may do so without saying it.
    pub(crate) redelivered: bool,
    /// Which message of the hub's queue it is, where the transport tells.
    pub(crate) sequence: Option<Sequence>,
    /// When it was read from that connection.
    pub(crate) arrived: Instant,
    /// Settles it.
    pub(crate) receipt: Receipt,
}

/// The right to settle one delivery. Dropped unsettled, it says so in the log, and sends nothing for a message.
///
/// MQTT can only complete: there is no way to reject or abandon a message (wire reference 1.6). AMQP can do all
/// (wire reference 2.6). A call is answered instead, over either.
#[must_use = "a receipt that is not settled makes the message come again"]
pub(crate) struct Receipt {
    way: Way,
    mark: Option<Mark>,
    settled: bool,
}

/// The connection that it came on, and which of its deliveries it is.
#[allow(dead_code)] // AMQP is a feature.
enum Way {
    Mqtt(Arc<Link>, Ticket),
    Amqp(Arc<Settlements>, Ticket),
    /// A call by its request id.
    Call(Arc<Calls>, String),
}

impl Way {
    fn phase(&self) -> Phase {
        match self {
            Self::Mqtt(link, _) => link.phase(),
            Self::Amqp(settlements, _) => settlements.phase(),
            Self::Call(calls, _) => calls.phase(),
        }
    }

    fn leave(&self) -> Phase {
        match self {
            Self::Mqtt(link, ticket) => link.leave(*ticket),
            Self::Amqp(settlements, ticket) => settlements.leave(*ticket),
            Self::Call(calls, id) => calls.leave(id),
        }
    }

    fn ticket(&self) -> Option<Ticket> {
        match self {
            Self::Mqtt(_, ticket) | Self::Amqp(_, ticket) => Some(*ticket),
            Self::Call(..) => None,
        }
    }
}

impl Receipt {
    pub(super) fn new(link: Arc<Link>, ticket: Ticket) -> Self {
        Self { way: Way::Mqtt(link, ticket), mark: None, settled: false }
    }

    #[allow(dead_code)] // AMQP is a feature.
    pub(super) fn over_amqp(settlements: Arc<Settlements>, ticket: Ticket) -> Self {
        Self { way: Way::Amqp(settlements, ticket), mark: None, settled: false }
    }

    pub(super) fn of_call(calls: Arc<Calls>, id: String) -> Self {
        Self { way: Way::Call(calls, id), mark: None, settled: false }
    }

    /// Whether to begin work on the delivery now. False once its connection is gone or takes no more: a message
    /// then comes again on the next connection; a call does not, and its caller is told when it is left.
    pub(crate) fn is_current(&self) -> bool {
        self.way.phase() == Phase::Open
    }

    /// Whether it is that of a call of a direct method, which wants an answer.
    pub(crate) fn is_call(&self) -> bool {
        matches!(self.way, Way::Call(..))
    }

    /// Marks the message: [`super::Event::Confirmed`] tells the mark once the hub is known to have the completion. Over AMQP it
    /// never does: there [`Delivery::sequence`] tells which message comes again.
    pub(crate) fn marked(self, mark: Mark) -> Self {
        // Not by update syntax, which a type with `Drop` does not have.
        let mut marked = self;
        marked.mark = Some(mark);
        marked
    }

    /// Answers a call: `status` as in HTTP, `payload` JSON of at most 128 KiB, or nothing. A larger one is replaced by an error
    /// that says so. Never blocks. After the connection has gone this does nothing: nobody waits for the answer any more.
    /// A message, which nobody asked an answer of, is completed.
    pub(crate) fn answer(mut self, status: u16, payload: Bytes) {
        let Way::Call(calls, id) = &self.way else { return self.complete() };
        self.settled = true;
        if calls.answer(id, status, payload) == Phase::Closed {
            tracing::debug!(
                id,
                status,
                "a call was answered after its connection had ended: the answer is lost"
            );
        }
    }

    /// Settles the message, as far as the connection can: see [`super::Session::can`]. Never blocks. Over MQTT, which cannot
    /// give a message back or refuse it, it is completed: its PUBACK leaves as soon as those of all earlier messages have.
    /// After the connection has gone this does nothing: the hub has handed the packet id to another message.
    /// A call cannot be settled without an answer: it is left.
    pub(crate) fn settle(mut self, settlement: Settlement) {
        self.settled = true;
        let phase = match &self.way {
            Way::Mqtt(link, ticket) => link.complete(*ticket, self.mark),
            Way::Amqp(settlements, ticket) => settlements.settle(*ticket, settlement),
            Way::Call(calls, id) => calls.leave(id),
        };
        if phase == Phase::Closed {
            tracing::debug!(
                ticket = self.way.ticket(),
                ?settlement,
                "settled after its connection had ended: the hub sends the message again"
            );
        }
    }

    /// Completes the message.
    pub(crate) fn complete(self) {
        self.settle(Settlement::Complete);
    }

    /// Leaves the message at the hub: it comes again on a later connection. Nothing that arrived after it on this
    /// connection can be completed any more. The caller of a call hears 503: call again later.
    pub(crate) fn leave(mut self) {
        self.settled = true;
        self.way.leave();
    }
}

impl Drop for Receipt {
    fn drop(&mut self) {
        if self.settled || self.way.leave() != Phase::Open {
            return;
        }
        match &self.way {
            Way::Call(_, id) => {
                tracing::warn!(id, "a call was dropped without an answer: its caller gets 503")
            }
            way => tracing::warn!(
                ticket = way.ticket(),
                "a delivery was dropped unsettled: the hub sends the message again"
            ),
        }
    }
}

impl std::fmt::Debug for Receipt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Receipt")
            .field("ticket", &self.way.ticket())
            .field("call", &self.is_call())
            .field("settled", &self.settled)
            .finish_non_exhaustive()
    }
}
