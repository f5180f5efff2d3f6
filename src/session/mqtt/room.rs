//! The wait of the reading task for room in the channel of deliveries.
//!
//! Owns: what leaves meanwhile. Must not know: what a delivery is.

use rumqttc::{Event, Outgoing, Packet};
use tokio::time::Instant;

use super::Reader;
use crate::session::delivery::Delivery;
use crate::session::failure::Fault;
use crate::session::link::Phase;

/// How many events may be set aside. The hub has at most 50 messages of a device under way, and rumqttc takes a request
/// or reads, by chance, so there are far fewer.
const MOST_SET_ASIDE: usize = 1024;

impl Reader {
    /// Waits until the channel takes the delivery. Nothing is read meanwhile, but PUBACKs, answers and pings leave.
    pub(super) async fn wait_for_room(&mut self, delivery: Delivery) -> Result<(), Fault> {
        self.send_what_woke().await?;
        // Nothing is read during the wait, so the time that the hub takes for its answers must not count.
        self.outbox.hold();
        let deliveries = self.arrivals.deliveries.clone();
        let mut next_ping = Instant::now() + self.dial.keep_alive / 2;
        loop {
            tokio::select! {
                room = deliveries.reserve() => {
                    match room {
                        Ok(room) => room.send(delivery),
                        Err(_closed) => delivery.receipt.leave(),
                    }
                    break;
                }
                () = self.link.changed() => {
                    if self.link.phase() != Phase::Open {
                        delivery.receipt.leave();
                        break;
                    }
                    self.send_ready().await?;
                }
                () = self.calls.changed() => self.send_ready().await?,
                // rumqttc sends its own pings only within `poll()`.
                () = tokio::time::sleep_until(next_ping) => {
                    self.send([Packet::PingReq]).await?;
                    self.link.pinged();
                    next_ping += self.dial.keep_alive / 2;
                }
            }
        }
        // An answer to an earlier ping may be unread behind this message: its absence proves nothing.
        self.event_loop.state.await_pingresp = false;
        self.outbox.go_on();
        Ok(())
    }

    /// Has rumqttc send the PUBACK and the answer that woke a parked `poll()`: that `poll()` may have read messages
    /// instead, and only another one takes them out of its request channel. What comes meanwhile is set aside.
    async fn send_what_woke(&mut self) -> Result<(), Fault> {
        while (self.link.is_waking() || self.calls.is_waking()) && self.set_aside.len() < MOST_SET_ASIDE {
            let event = self.event_loop.poll().await;
            match event.map_err(|error| self.fault(error))? {
                Event::Outgoing(Outgoing::PubAck(_)) => self.link.woken(),
                Event::Outgoing(Outgoing::Publish(0)) => self.calls.woken(),
                event => {
                    let is_the_last = event == Event::Outgoing(Outgoing::Disconnect);
                    self.set_aside.push_back(event);
                    if is_the_last {
                        break;
                    }
                }
            }
        }
        Ok(())
    }
}
