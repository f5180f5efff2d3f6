//! A message or a call together with the right to settle or answer it, once.
//!
//! Owns: what happens to a delivery that the agent does not settle. Must not know: what is done with messages.

use std::sync::Arc;

use bytes::Bytes;
use tokio::time::Instant;

use crate::message::{C2dMessage, MessageError, Sequence};

use super::confirmations::Mark;
use super::gate::{Answers, ArrivalNo, Phase, Settlement, Settles};

/// A message or a call of a direct method that arrived. The receipt of a message must be settled, or left at the hub
/// on purpose. The receipt of a call must be answered.
#[must_use = "a delivery that is not settled comes again, and holds back all later ones of its connection"]
#[derive(Debug)]
pub(crate) struct Delivery {
    /// The message, or why its topic could not be decoded. For a call: the source
    /// [`Method`](crate::message::Source::Method), an id that this program made, and the unchanged payload.
    pub(crate) message: Result<C2dMessage, MessageError>,
    /// Where it came from, as [`origin`](crate::credentials::DeviceIdentity::origin) names it. A call has none.
    pub(crate) origin: Option<Arc<str>>,
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
#[derive(Debug)]
pub(crate) struct Receipt {
    right: Right,
    mark: Option<Mark>,
    settled: bool,
}

/// What a receipt may settle or answer: the connection that brought it, and its place or request id there.
enum Right {
    Message(Arc<dyn Settles>, ArrivalNo),
    /// A call, by its request id.
    Call(Arc<dyn Answers>, String),
}

impl Right {
    fn phase(&self) -> Phase {
        match self {
            Self::Message(connection, _) => connection.phase(),
            Self::Call(connection, _) => connection.phase(),
        }
    }

    fn leave(&self) -> Phase {
        match self {
            Self::Message(connection, arrival) => connection.leave(*arrival),
            Self::Call(connection, id) => connection.leave(id),
        }
    }
}

impl std::fmt::Debug for Right {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Message(_, ArrivalNo(number)) => f.debug_tuple("Message").field(number).finish(),
            Self::Call(_, id) => f.debug_tuple("Call").field(id).finish(),
        }
    }
}

impl Receipt {
    pub(super) fn of_message(connection: Arc<dyn Settles>, arrival: ArrivalNo) -> Self {
        Self { right: Right::Message(connection, arrival), mark: None, settled: false }
    }

    pub(super) fn of_call(connection: Arc<dyn Answers>, id: String) -> Self {
        Self { right: Right::Call(connection, id), mark: None, settled: false }
    }

    /// Whether to begin work on the delivery now. False if its connection is gone or takes no more: then a message
    /// comes again on the next connection. A call does not, and its caller gets an error when it is left.
    pub(crate) fn is_current(&self) -> bool {
        self.right.phase() == Phase::Open
    }

    /// Whether it belongs to a call of a direct method, which needs an answer.
    pub(crate) fn is_call(&self) -> bool {
        matches!(self.right, Right::Call(..))
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
        let Right::Call(connection, id) = &self.right else { return self.complete() };
        self.settled = true;
        if connection.answer(id, status, payload) == Phase::Closed {
            tracing::debug!(
                id,
                status,
                "a call was answered after its connection had ended: the answer is lost"
            );
        }
    }

    /// Settles the message, as far as the connection can: see [`super::Session::can_settle`]. Never blocks. MQTT cannot
    /// give a message back or refuse it, so it is completed: its PUBACK leaves after those of all earlier messages.
    /// After the connection has gone this does nothing, because the hub has given the packet id to another message. A
    /// call cannot be settled without an answer: it is left.
    pub(crate) fn settle(mut self, settlement: Settlement) {
        self.settled = true;
        let phase = match &self.right {
            Right::Message(connection, arrival) => connection.settle(*arrival, settlement, self.mark),
            Right::Call(connection, id) => connection.leave(id),
        };
        if phase == Phase::Closed {
            let delivery = &self.right;
            tracing::debug!(
                ?delivery,
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
        self.right.leave();
    }
}

impl Drop for Receipt {
    fn drop(&mut self) {
        if self.settled || self.right.leave() != Phase::Open {
            return;
        }
        match &self.right {
            Right::Call(_, id) => {
                tracing::warn!(id, "a call was dropped without an answer: its caller gets 503")
            }
            Right::Message(_, ArrivalNo(arrival)) => {
                tracing::warn!(arrival, "a delivery was dropped unsettled: the hub sends the message again")
            }
        }
    }
}
