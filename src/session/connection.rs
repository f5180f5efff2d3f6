//! The keeper's end of one connection, for any transport.
//!
//! Owns: the choice of the transport. Must not know: packets, frames, when to connect.

use std::sync::Arc;

use tokio::sync::watch;
use tokio::task::JoinSet;

use super::arrivals::Arrivals;
use super::calls::Calls;
use super::failure::Fault;
use super::mqtt::Progress;
use super::outbox::{Outbox, Publisher};
use super::signin::SignIn;
use super::{Terms, amqp, mqtt};
use crate::credentials::Transport;

/// A connection. Its drop declares it gone.
pub(super) enum Connection {
    Mqtt(mqtt::Connection),
    Amqp(amqp::Connection),
}

impl Connection {
    /// Begins a connection; the task signs in, receives, and ends with the connection.
    pub(super) fn begin(
        terms: &Terms,
        dial: mqtt::Dial,
        arrivals: Arrivals,
        publisher: &Arc<Publisher>,
    ) -> (Self, JoinSet<Result<(), Fault>>) {
        let mut task = JoinSet::new();
        let connection = match terms.settings.transport {
            Transport::Mqtt => {
                let (connection, reader) = mqtt::Connection::prepare(dial, arrivals, publisher);
                task.spawn(reader.run());
                Self::Mqtt(connection)
            }
            Transport::Amqp => {
                let (connection, reader) = amqp::Connection::prepare(dial, arrivals, publisher);
                task.spawn(reader.run());
                Self::Amqp(connection)
            }
        };
        (connection, task)
    }

    pub(super) fn outbox(&self) -> &Arc<Outbox> {
        match self {
            Self::Mqtt(connection) => &connection.outbox,
            Self::Amqp(connection) => &connection.outbox,
        }
    }

    pub(super) fn progress(&self) -> watch::Receiver<Progress> {
        match self {
            Self::Mqtt(connection) => connection.progress.clone(),
            Self::Amqp(connection) => connection.progress.clone(),
        }
    }

    /// From now on no new message is taken, and no call.
    pub(super) fn stop_taking(&self) {
        match self {
            Self::Mqtt(connection) => connection.link.stop_taking(),
            Self::Amqp(connection) => connection.settlements.stop_taking(),
        }
        self.calls().stop_taking();
    }

    /// Waits until every message that was taken is settled or left, and every call answered. Cancel safe.
    pub(super) async fn drained(&self) {
        match self {
            Self::Mqtt(connection) => connection.link.drained().await,
            Self::Amqp(connection) => connection.settlements.drained().await,
        }
        // No message was taken since.
        self.calls().drained().await;
    }

    fn calls(&self) -> &Arc<Calls> {
        match self {
            Self::Mqtt(connection) => &connection.calls,
            Self::Amqp(connection) => &connection.calls,
        }
    }

    /// Asks for a goodbye after the settlements that are ready. False if it could not ask.
    pub(super) fn hang_up(&self) -> bool {
        match self {
            Self::Mqtt(connection) => connection.hang_up(),
            Self::Amqp(connection) => connection.hang_up(),
        }
    }

    /// Whether [`Self::renew`] can succeed.
    pub(super) fn renews(&self) -> bool {
        match self {
            Self::Mqtt(_) => false,
            Self::Amqp(_) => true,
        }
    }

    /// Renews the token and keeps the connection. False if the transport cannot do that.
    pub(super) fn renew(&self, sign_in: &SignIn) -> bool {
        match self {
            Self::Mqtt(_) => false,
            Self::Amqp(connection) => connection.renew(sign_in),
        }
    }
}
