//! The socket of one MQTT connection, and the packets that need no decision of the reading task.
//!
//! Owns: when `poll()` is called, what leaves between two polls and during a wait, and the bookkeeping of what left and
//! was acknowledged. Must not know: what a message, an answer or a call says.
//!
//! Only the reading task calls `poll()`, never as an arm of a `select!`. Between two polls it writes all PUBACKs and
//! answers that may leave into rumqttc's network buffer and flushes once. While the task is parked in `poll()`, they go
//! through rumqttc's request channel, which wakes it; see [`Gate`](crate::session::gate::Gate). Publishes always go
//! through that channel. A PUBACK that uses it may have to wait behind publishes, and no other PUBACK leaves until it is
//! sent.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use rumqttc::{
    AsyncClient, ConnectionError, Event, EventLoop, Outgoing, Packet, PubAck, Publish, QoS, SubscribeFilter,
};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use super::bridge::{self, Bridge, FarFailure};
use super::fault;
use super::link::Link;
use super::topics;
use crate::session::calls::{CallAnswer, Calls};
use crate::session::delivery::Delivery;
use crate::session::dial::{ANSWER_LIMIT, Dial};
use crate::session::failure::{self, Fault};
use crate::session::gate::Phase;
use crate::session::publish::InFlight;

/// How long to wait after DISCONNECT until the peer closes. If this side closed first with unread data in the socket,
/// it would reset the connection, and the last PUBACKs could be lost.
const LINGER: Duration = Duration::from_millis(300);
/// How many events may be set aside. There are far fewer: the hub has at most 50 messages of a device under way, and
/// each poll either reads or sends.
const MOST_SET_ASIDE: usize = 1024;

/// The socket, and what is under way on it.
pub(super) struct Wire {
    event_loop: EventLoop,
    client: AsyncClient,
    pub(super) dial: Dial,
    pub(super) link: Arc<Link>,
    pub(super) calls: Arc<Calls>,
    pub(super) in_flight: Arc<InFlight>,
    /// What came while the task sent something before a wait for room.
    set_aside: VecDeque<PacketEvent>,
    signed_in: bool,
    /// Kept until the WebSocket is made: the event loop then dials the near end of the bridge.
    bridge: Option<std::io::Result<Bridge>>,
    /// The task that carries the bytes of the WebSocket.
    carrying: JoinSet<()>,
    far: FarFailure,
}

/// What the reading task must decide about.
pub(super) enum PacketEvent {
    Packet(Packet),
    /// DISCONNECT is on the wire.
    SaidGoodbye,
}

impl Wire {
    pub(super) fn new(
        event_loop: EventLoop,
        client: AsyncClient,
        bridge: Option<std::io::Result<Bridge>>,
        dial: Dial,
        link: Arc<Link>,
        calls: Arc<Calls>,
        in_flight: Arc<InFlight>,
    ) -> Self {
        Self {
            event_loop,
            client,
            dial,
            link,
            calls,
            in_flight,
            set_aside: VecDeque::new(),
            signed_in: false,
            bridge,
            carrying: JoinSet::new(),
            far: FarFailure::default(),
        }
    }

    /// Dials and signs in. Returns whether the hub kept the session.
    ///
    /// # Errors
    /// Why the hub cannot be reached, or refuses.
    pub(super) async fn sign_in(&mut self) -> Result<bool, Fault> {
        if let Some(bridge) = self.bridge.take() {
            self.far = bridge::cross(bridge, &self.dial, &mut self.carrying).await?;
        }
        match self.event_loop.poll().await {
            Ok(Event::Incoming(Packet::ConnAck(connack))) => {
                self.signed_in = true;
                Ok(connack.session_present)
            }
            Ok(_) => Err(Fault::Protocol { reason: "its first answer is not CONNACK".into() }),
            Err(error) => Err(self.fault(error)),
        }
    }

    /// Asks for subscriptions; SUBACK answers.
    ///
    /// # Errors
    /// When the connection has ended.
    pub(super) fn subscribe(&self, filters: impl IntoIterator<Item = SubscribeFilter>) -> Result<(), Fault> {
        let asked = self.client.try_subscribe_many(filters);
        asked.map_err(|error| Fault::Network {
            reason: format!("the subscription could not be sent: {error}"),
        })
    }

    /// Says goodbye, and waits until the peer has closed.
    ///
    /// # Errors
    /// When the connection has ended.
    pub(super) async fn sign_out(&mut self) -> Result<(), Fault> {
        let asked = self.client.try_disconnect();
        asked.map_err(|error| Fault::Network { reason: format!("DISCONNECT could not be sent: {error}") })?;
        loop {
            match self.poll().await {
                Ok(Some(PacketEvent::SaidGoodbye)) => break,
                Ok(_) => {}
                // The next `poll()` would dial again.
                Err(_) => return Ok(()),
            }
        }
        self.linger().await;
        Ok(())
    }

    /// Waits until the peer has closed, for a moment.
    pub(super) async fn linger(&mut self) {
        let closed = async { while self.poll().await.is_ok() {} };
        if timeout(LINGER, closed).await.is_err() {
            tracing::debug!("the hub did not close the connection after DISCONNECT");
        }
    }

    /// What happens next.
    ///
    /// # Errors
    /// Why the connection failed.
    pub(super) async fn next(&mut self) -> Result<PacketEvent, Fault> {
        loop {
            if let Some(event) = self.set_aside.pop_front() {
                return Ok(event);
            }
            if self.event_loop.state.events.is_empty() {
                self.send_ready_and_park().await?;
            }
            if let Some(event) = self.poll().await? {
                return Ok(event);
            }
        }
    }

    /// Waits until the channel takes the delivery. Nothing is read meanwhile, so TCP holds the sender back; PUBACKs,
    /// answers and pings leave.
    ///
    /// # Errors
    /// Why the connection failed.
    pub(super) async fn wait_for_room(
        &mut self,
        delivery: Delivery,
        deliveries: &mpsc::Sender<Delivery>,
    ) -> Result<(), Fault> {
        match self.room(deliveries).await {
            Ok(Some(room)) => {
                room.send(delivery);
                Ok(())
            }
            Ok(None) => {
                delivery.receipt.leave();
                Ok(())
            }
            Err(fault) => {
                delivery.receipt.leave();
                Err(fault)
            }
        }
    }

    /// Room for one delivery; `None` if the connection takes no more.
    async fn room<'d>(
        &mut self,
        deliveries: &'d mpsc::Sender<Delivery>,
    ) -> Result<Option<mpsc::Permit<'d, Delivery>>, Fault> {
        self.send_what_woke().await?;
        // Nothing is read during the wait, so the time that the hub takes for its answers must not count.
        self.in_flight.hold();
        let mut next_ping = Instant::now() + self.dial.keep_alive / 2;
        let room = loop {
            tokio::select! {
                // An error means that the session takes no more.
                room = deliveries.reserve() => break room.ok(),
                () = self.link.changed() => {
                    if self.link.phase() != Phase::Open {
                        break None;
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
        };
        // An answer to an earlier ping may be unread behind this message: its absence proves nothing.
        self.event_loop.state.await_pingresp = false;
        self.in_flight.go_on();
        Ok(room)
    }

    /// Polls once, and does the bookkeeping. `None` if there is nothing to think about.
    async fn poll(&mut self) -> Result<Option<PacketEvent>, Fault> {
        let event = self.event_loop.poll().await;
        self.link.unpark();
        self.calls.unpark();
        match event.map_err(|error| self.fault(error))? {
            Event::Incoming(Packet::PubAck(answer)) => self.in_flight.acknowledged(answer.pkid),
            Event::Incoming(Packet::PingResp) => self.link.ping_answered(),
            Event::Incoming(packet) => return Ok(Some(PacketEvent::Packet(packet))),
            Event::Outgoing(Outgoing::PubAck(_)) => self.link.woken_by_puback(),
            Event::Outgoing(Outgoing::PingReq) => self.link.pinged(),
            // Only answers have QoS 0.
            Event::Outgoing(Outgoing::Publish(0)) => self.calls.woken(),
            Event::Outgoing(Outgoing::Publish(packet_id)) => self.in_flight.sent(packet_id),
            // The packet ids start again and have reached one that is still unanswered: rumqttc takes no more
            // requests.
            Event::Outgoing(Outgoing::AwaitAck(_)) => {
                return Err(Fault::Protocol { reason: "it left out the PUBACK of a publish".into() });
            }
            Event::Outgoing(Outgoing::Disconnect) => return Ok(Some(PacketEvent::SaidGoodbye)),
            Event::Outgoing(_) => {}
        }
        Ok(None)
    }

    /// Has rumqttc send the PUBACK and the answer that woke a parked `poll()`: that `poll()` may have read messages
    /// instead, and only another one takes them out of its request channel. What comes meanwhile is set aside.
    async fn send_what_woke(&mut self) -> Result<(), Fault> {
        while (self.link.is_waking() || self.calls.is_waking()) && self.set_aside.len() < MOST_SET_ASIDE {
            let Some(event) = self.poll().await? else { continue };
            let is_the_last = matches!(event, PacketEvent::SaidGoodbye);
            self.set_aside.push_back(event);
            if is_the_last {
                break;
            }
        }
        Ok(())
    }

    /// Lets the consumer settle what was read, sends all that is ready with one flush, and parks.
    async fn send_ready_and_park(&mut self) -> Result<(), Fault> {
        loop {
            tokio::task::yield_now().await;
            self.send_ready().await?;
            if self.link.park() && self.calls.park() {
                return Ok(());
            }
        }
    }

    /// Sends the PUBACKs that may leave, then a ping if their arrival must be confirmed, then the answers.
    async fn send_ready(&mut self) -> Result<(), Fault> {
        let pubacks = self.link.take_ready().into_iter().map(|id| Packet::PubAck(PubAck::new(id)));
        let ping = self.link.wants_ping().then_some(Packet::PingReq);
        let answers = self.calls.take_ready().into_iter().map(|CallAnswer { id, status, payload }| {
            let topic = topics::method_answer(status, &id);
            Packet::Publish(Publish::from_bytes(topic, QoS::AtMostOnce, payload))
        });
        self.send(pubacks.chain(ping).chain(answers)).await
    }

    /// Writes packets to the socket without the request channel, and flushes them together. Only between two polls.
    async fn send(&mut self, packets: impl IntoIterator<Item = Packet>) -> Result<(), Fault> {
        let mut packets = packets.into_iter().peekable();
        let Some(network) = self.event_loop.network.as_mut().filter(|_| packets.peek().is_some()) else {
            return Ok(());
        };
        let written = async {
            for packet in packets {
                network.write(packet).await?;
            }
            network.flush().await
        };
        match timeout(ANSWER_LIMIT, written).await {
            Ok(done) => done.map_err(|error| self.fault(ConnectionError::MqttState(error))),
            Err(_elapsed) => Err(Fault::Silent),
        }
    }

    /// What an error of this connection means.
    fn fault(&self, error: ConnectionError) -> Fault {
        let fault = match (fault::of_connection(error, &self.dial), self.far.get()) {
            (Fault::Closed, Some(error)) => failure::from_io(error, &self.dial.host),
            (fault, _) => fault,
        };
        match (fault, self.signed_in) {
            (Fault::Closed, false) => Fault::ClosedBeforeSignIn,
            (Fault::Silent, false) => Fault::Unanswered { within: ANSWER_LIMIT },
            (fault, _) => fault,
        }
    }
}
