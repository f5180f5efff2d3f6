//! The connections: what the sessions report, and what follows from it.
//!
//! Owns: what follows when a connection comes or goes. Must not know: which protocol a session uses.

use tokio::time::Instant;

use crate::inbox::{Number, Op};
use crate::session::Event;

use super::recovery::HELD_PATIENCE;
use super::sessions::{Role, Sessions};
use super::{Agent, AgentError, AgentEvent, twin};

impl Agent {
    pub(super) fn session_event(&mut self, role: Role, event: Event) -> Result<(), AgentError> {
        let now = (self.clock)();
        let speaks = role == Sessions::speaker(&self.config);
        match event {
            Event::Delivery(delivery) => {
                self.take(role, delivery);
                // Messages that arrived together are recorded in one write.
                while self.hand.has_room() {
                    let Some(delivery) = self.sessions.try_delivery(role) else { break };
                    self.take(role, delivery);
                }
            }
            Event::Subscribed { transport, renewal, expiry } => {
                if let Some(sight) = self.board.sight(role) {
                    sight.connected(now, transport, renewal, expiry);
                }
                self.machine.actions.hub_back();
                if speaks {
                    self.outbox.connected();
                    self.twin.connected();
                    self.outbox.look_again();
                }
                self.held_look = Some(Instant::now() + HELD_PATIENCE);
                self.supervision.subscribed();
                self.tell_systemd();
                self.tell(AgentEvent::Subscribed);
            }
            Event::Renewed { renewal, expiry } => {
                if let Some(sight) = self.board.sight(role) {
                    sight.renewed(renewal, expiry);
                }
            }
            Event::Disconnected { reason } => {
                if let Some(sight) = self.board.sight(role) {
                    sight.disconnected(now, &reason);
                }
                // While one connection is up, the pins can still be switched from outside.
                if self.board.is_alone() {
                    self.machine.actions.hub_lost();
                }
                if speaks {
                    self.outbox.disconnected();
                    self.twin.disconnected();
                }
                self.tell_systemd();
                self.tell(AgentEvent::Disconnected { reason });
            }
            Event::Published { ticket: twin::READ, result } => self.twin_read(result),
            Event::Published { ticket, result } => {
                self.outbox.published(ticket, result.map(drop), Instant::now());
            }
            Event::Confirmed(numbers) => {
                let numbers = numbers.into_iter().map(Number).collect();
                self.inbox.submit(Op::Confirmed(numbers));
            }
            Event::DesiredChanged => self.twin.changed(),
            Event::Ended(error) => {
                self.sessions.ended(role);
                if !self.stopping {
                    return Err(error.into());
                }
                tracing::warn!(%error, "a session ended while the agent stops");
            }
        }
        Ok(())
    }
}
