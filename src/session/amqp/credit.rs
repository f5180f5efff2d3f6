//! How many messages the hub may send.
//!
//! Owns: the room that credit is given for, and when a flow is due. Must not know: what a message is.
//!
//! A flow gives credit for all the room. It is sent when there is enough new room, when the hub has no credit left, and
//! as a sign of life.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::session::arrivals::DELIVERIES;
use crate::session::delivery::Delivery;

/// A link that waits sends a flow at least this often. The AMQP crate sends its own heartbeats as late as the hub's
/// time-out allows, which a strict hub takes for silence; hubs allow four minutes. Source: wire reference 2.1.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// More credit is given for this much new room. A flow for each message would double the traffic.
const CREDIT_STEP: usize = DELIVERIES / 4;

/// Places in the agent's channel, and what the hub knows of them.
pub(super) struct Credit {
    room: Vec<mpsc::OwnedPermit<Delivery>>,
    granted: usize,
    /// The channel is open.
    accepts: bool,
    pause: Duration,
    next_flow: Instant,
}

impl Credit {
    pub(super) fn new(keep_alive: Duration) -> Self {
        let pause = keep_alive.min(LONGEST_PAUSE);
        Self { room: Vec::new(), granted: 0, accepts: true, pause, next_flow: Instant::now() + pause }
    }

    /// The credit of a flow that is due. The flow counts as sent.
    pub(super) fn due(&mut self) -> Option<u32> {
        let is_due = self.room.len() >= self.granted + CREDIT_STEP
            || (self.granted == 0 && !self.room.is_empty())
            || self.next_flow <= Instant::now();
        is_due.then(|| {
            (self.granted, self.next_flow) = (self.room.len(), Instant::now() + self.pause);
            u32::try_from(self.room.len()).unwrap_or(u32::MAX)
        })
    }

    /// Waits until a flow may be due: until there is more room, or for the sign of life. Cancel safe.
    pub(super) async fn changed(&mut self, deliveries: &mpsc::Sender<Delivery>) {
        let more_room = deliveries.clone().reserve_owned();
        tokio::select! {
            permit = more_room, if self.accepts && self.room.len() < DELIVERIES => match permit {
                Ok(permit) => self.room.push(permit),
                // The channel is closed, because the session ends.
                Err(_closed) => self.accepts = false,
            },
            () = tokio::time::sleep_until(self.next_flow) => {}
        }
    }

    /// The hub has used one credit. `None` if it had none.
    pub(super) fn use_one(&mut self) -> Option<mpsc::OwnedPermit<Delivery>> {
        self.granted = self.granted.saturating_sub(1);
        self.room.pop()
    }
}
