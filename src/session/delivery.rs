//! A message or a call together with the right to settle or answer it, once; and the meaning of each settlement.
//!
//! Owns: what happens to a delivery that the agent does not settle. Must not know: what is done with messages.

use std::sync::Arc;

use bytes::Bytes;
use tokio::time::Instant;

use crate::message::{C2dMessage, MessageError, Sequence};

use super::calls::Calls;
use super::confirmations::Mark;
use super::link::{Link, Phase};
use super::release::Ticket;
use super::settlements::Settlements;

/// What a device may say about a message. Not every transport can say all of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Settlement {
    /// Done: the hub forgets it, and reports `Success` to a sender who asked for that.
    Complete,
    /// Given back: the hub counts a delivery and sends it again, or drops it after the last allowed delivery.
    Abandon,
    /// Refused: the hub drops it, and reports `Rejected` to a sender who asked for that.
    Reject,
}

/// A message or a call of a direct method that arrived. The receipt of a message must be settled, or left at the hub
/// on purpose. The receipt of a call must be answered.
#[must_use = "a delivery that is not settled comes again, and holds back all later ones of its connection"]
#[derive(Debug)]
pub(crate) struct Delivery {
    /// The message, or why its topic could not be decoded. For a call: the source
    /// [`Method`](crate::message::Source::Method), an id that this program made, and the unchanged payload.
    pub(crate) message: Result<C2dMessage, MessageError>,
    /// The connection of this session that brought it, counted from 1.
    pub(crate) connection: u64,
    /// Whether the hub says that it sent the message before. A hub may send one again without saying so.
    pub(crate) redelivered: bool,
    /// The message's place in the hub's queue, if the transport tells it.
    pub(crate) sequence: Option<Sequence>,
    /// When it was read from that connection.
    pub(crate) arrived: Instant,
    /// Settles it.
    pub(crate) receipt: Receipt,
}

/// The right to settle one delivery. If it is dropped unsettled, it logs that, and sends nothing for a message.
///
/// MQTT can only complete a message, not reject or abandon it (wire reference 1.6). AMQP can do all three (wire
/// reference 2.6). A call is answered instead, over either.
#[must_use = "a receipt that is not settled makes the message come again"]
pub(crate) struct Receipt {
    way: Way,
    mark: Option<Mark>,
    settled: bool,
}

/// The connection that brought it, and its number there.
#[allow(dead_code)] // AMQP is a feature.
enum Way {
    Mqtt(Arc<Link>, Ticket),
    Amqp(Arc<Settlements>, Ticket),
    /// A call, by its request id.
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

    /// Whether to begin work on the delivery now. False if its connection is gone or takes no more: then a message
    /// comes again on the next connection. A call does not, and its caller gets an error when it is left.
    pub(crate) fn is_current(&self) -> bool {
        self.way.phase() == Phase::Open
    }

    /// Whether it belongs to a call of a direct method, which needs an answer.
    pub(crate) fn is_call(&self) -> bool {
        matches!(self.way, Way::Call(..))
    }

    /// Marks the message: [`super::Event::Confirmed`] reports the mark when the hub is known to have the completion.
    /// Over AMQP it never does: there [`Delivery::sequence`] tells which message comes again.
    pub(crate) fn marked(self, mark: Mark) -> Self {
        // A type with `Drop` does not allow the update syntax.
        let mut marked = self;
        marked.mark = Some(mark);
        marked
    }

    /// Answers a call: `status` as in HTTP, `payload` JSON of at most 128 KiB, or empty. A larger payload is replaced
    /// by an error that says so. Never blocks. After the connection has gone this does nothing, because the caller
    /// cannot be reached. A message, which needs no answer, is completed.
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

    /// Settles the message, as far as the connection can: see [`super::Session::can`]. Never blocks. MQTT cannot give
    /// a message back or refuse it, so it is completed: its PUBACK leaves after those of all earlier messages. After
    /// the connection has gone this does nothing, because the hub has given the packet id to another message. A call
    /// cannot be settled without an answer: it is left.
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

    /// Leaves the message at the hub, which sends it again on a later connection. Nothing that arrived after it on
    /// this connection can be completed any more. A caller gets 503: call again later.
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
