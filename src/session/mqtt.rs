//! One MQTT connection to the hub as a device, or to a gateway as a module.
//!
//! Owns: everything that names rumqttc: its options, its event loop, its errors (`mqtt/fault.rs`). One event loop
//! serves exactly one connection and is dropped with it, so no packet id and no request outlives its connection.
//! Must not know: reconnecting, how long tokens live, what is done with messages.
//!
//! [`Reader`] is a task of its own. Only it calls `poll()`, never as an arm of a `select!`, and it does nothing slow.
//! Between two polls it writes all PUBACKs that may leave into rumqttc's network buffer and flushes once; see
//! [`Link`]. Publishes go through rumqttc's request channel, which wakes a parked `poll()`; see [`Outbox`]. A PUBACK
//! that uses the channel may have to wait behind publishes, and no other PUBACK leaves until it is sent. Answers to
//! calls leave in the same two ways as PUBACKs; see [`Calls`].

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use rumqttc::{
    AsyncClient, ConnectionError, Event, EventLoop, MqttOptions, Outgoing, Packet, PubAck, Publish, QoS,
    SubAck, SubscribeFilter, SubscribeReasonCode, TlsConfiguration, Transport,
};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use crate::credentials::Proxy;
use crate::message::{Properties, excerpt};

use super::arrivals::Arrivals;
use super::bridge::{self, Bridge, Carrier, Failed};
use super::calls::{Answer, Calls, Request};
use super::delivery::{Delivery, Receipt};
use super::failure::Fault;
use super::link::Link;
use super::outbox::{Outbox, Publisher, UNDER_WAY};
use super::subscriptions::{Other, Subscriptions};
use super::topics::{self, Kind};

mod fault;
mod hand_over;
mod room;

use hand_over::hand_over;

/// The largest packet, in both directions. A C2D message has at most 64 KiB. With rumqttc's own limit of 10 KiB, the
/// first larger message would cause endless reconnects.
const PACKET_LIMIT: usize = 256 * 1024;
/// The limit from the name look-up to CONNACK, and for the peer to take a write.
pub(super) const ANSWER_LIMIT: Duration = Duration::from_secs(30);
/// How long to wait after DISCONNECT until the peer closes. If this side closed first with unread data in the socket,
/// it would reset the connection, and the last PUBACKs could be lost.
const LINGER: Duration = Duration::from_millis(300);
/// Requests in rumqttc's channel: at most one SUBSCRIBE, one PUBACK and one answer that wake the task, the publishes,
/// and one DISCONNECT.
const REQUESTS: usize = 4 + UNDER_WAY;

/// Where to connect, and as whom.
pub(super) struct Dial {
    /// The number of this connection in the session.
    pub(super) number: u64,
    /// DNS name or address; also the name that the certificate must have.
    pub(super) host: String,
    /// The hub itself, also if a gateway is dialled in its place.
    #[allow(dead_code)] // AMQP is a feature.
    pub(super) hub: String,
    pub(super) port: u16,
    pub(super) carrier: Carrier,
    /// The protocol and its carrier, as the configuration names them.
    pub(super) transport: &'static str,
    /// From the route.
    pub(super) keep_alive: Duration,
    /// For a WebSocket only.
    pub(super) proxy: Option<Proxy>,
    /// The device whose topics these are.
    pub(super) device_id: String,
    /// The module on the device, if a module signs in.
    pub(super) module_id: Option<String>,
    pub(super) client_id: String,
    pub(super) user_name: String,
    pub(super) password: Option<String>,
    pub(super) tls: Arc<rustls::ClientConfig>,
    pub(super) clock: fn() -> SystemTime,
    /// Whether to subscribe to the answers of the twin.
    pub(super) twin: bool,
    /// Whether to subscribe to calls of direct methods.
    pub(super) methods: bool,
    /// Whether to subscribe to changes of desired properties, and to the answers of the twin.
    pub(super) desired: bool,
    /// Whether the peer must forget an earlier session, so that it sends nothing of that session's subscriptions.
    pub(super) clean: bool,
}

/// How far a connection has got.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Progress {
    /// When CONNACK arrived.
    pub(super) signed_in: Option<Instant>,
    /// Whether SUBACK arrived.
    pub(super) subscribed: bool,
}

/// The keeper's end of a connection. Its drop declares the connection gone.
pub(super) struct Connection {
    pub(super) link: Arc<Link>,
    pub(super) calls: Arc<Calls>,
    pub(super) outbox: Arc<Outbox>,
    pub(super) progress: watch::Receiver<Progress>,
    client: AsyncClient,
}

impl Connection {
    /// Prepares a connection. Nothing is sent before [`Reader::run`], so no message can come before its handler is in
    /// place.
    pub(super) fn prepare(dial: Dial, arrivals: Arrivals, publisher: &Arc<Publisher>) -> (Self, Reader) {
        let bridge = (dial.carrier == Carrier::WebSocket).then(Bridge::open);
        let (peer, transport) = match &bridge {
            Some(Ok(bridge)) => (bridge.path(), Transport::unix()),
            _ => {
                let tls = TlsConfiguration::Rustls(Arc::clone(&dial.tls));
                (dial.host.clone(), Transport::tls_with_config(tls))
            }
        };
        let mut options = MqttOptions::new(&dial.client_id, peer, dial.port);
        options
            .set_transport(transport)
            .set_credentials(&dial.user_name, dial.password.as_deref().unwrap_or_default())
            // MQTT has whole seconds. A dead network is noticed within two of these intervals.
            .set_keep_alive(Duration::from_secs(dial.keep_alive.as_secs()))
            .set_clean_session(dial.clean)
            .set_manual_acks(true)
            .set_max_packet_size(PACKET_LIMIT, PACKET_LIMIT);
        let (client, mut event_loop) = AsyncClient::new(options, REQUESTS);
        event_loop.network_options.set_connection_timeout(ANSWER_LIMIT.as_secs());
        event_loop.network_options.set_tcp_nodelay(true);
        let waker = client.clone();
        let wake = move |packet_id| {
            let mut publish = Publish::from_bytes("", QoS::AtLeastOnce, Bytes::new());
            publish.pkid = packet_id;
            waker.try_ack(&publish).is_ok()
        };
        let link = Arc::new(Link::new(Box::new(wake), Arc::clone(&arrivals.confirmations)));
        let answering = client.clone();
        let wake = move |Answer { id, status, payload }: &Answer| {
            let topic = topics::method_answer(*status, id);
            answering.try_publish(topic, QoS::AtMostOnce, false, payload.as_ref()).is_ok()
        };
        let calls = Arc::new(Calls::new(Box::new(wake)));
        let publishing = client.clone();
        let (device_id, module_id) = (dial.device_id.clone(), dial.module_id.clone());
        let telemetry =
            move |properties: &Properties| topics::telemetry(&device_id, module_id.as_deref(), properties);
        let hand = move |upstream, request| hand_over(&publishing, &telemetry, upstream, request);
        let outbox = Arc::new(Outbox::new(Box::new(hand), Arc::clone(publisher)));
        let (report, progress) = watch::channel(Progress::default());
        let reader = Reader {
            event_loop,
            client: client.clone(),
            link: Arc::clone(&link),
            calls: Arc::clone(&calls),
            outbox: Arc::clone(&outbox),
            arrivals,
            progress: report,
            dial,
            set_aside: VecDeque::new(),
            bridge,
            carrying: JoinSet::new(),
            far: Failed::default(),
        };
        (Self { link, calls, outbox, progress, client }, reader)
    }

    /// Asks for DISCONNECT after the PUBACKs and answers that are ready; [`Reader::run`] then returns. False if it
    /// could not ask.
    pub(super) fn hang_up(&self) -> bool {
        self.client.try_disconnect().is_ok()
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // The reader closes them, too, but the runtime may drop a task that was cut off only later.
        self.link.close();
        self.calls.close();
        self.outbox.close();
    }
}

/// The task that reads one connection.
pub(super) struct Reader {
    event_loop: EventLoop,
    client: AsyncClient,
    link: Arc<Link>,
    calls: Arc<Calls>,
    outbox: Arc<Outbox>,
    arrivals: Arrivals,
    progress: watch::Sender<Progress>,
    dial: Dial,
    /// What came while the task sent something before a wait for room; see [`room`].
    set_aside: VecDeque<Event>,
    /// Until the WebSocket is made. The event loop dials the near end of the bridge.
    bridge: Option<std::io::Result<Bridge>>,
    /// The task that carries the bytes of the WebSocket.
    carrying: JoinSet<()>,
    far: Failed,
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.link.close();
        self.calls.close();
        self.outbox.close();
    }
}

impl Reader {
    /// Signs in, subscribes, and hands messages on until the connection ends. `Ok` after [`Connection::hang_up`].
    ///
    /// # Errors
    /// Why the connection failed.
    ///
    /// # Cancel safety
    /// A drop cuts the connection; the keeper ends a dead connection in this way.
    pub(super) async fn run(mut self) -> Result<(), Fault> {
        self.sign_in().await?;
        self.subscribe()?;
        loop {
            let event = match self.set_aside.pop_front() {
                Some(event) => event,
                None => self.next_event().await?,
            };
            match event {
                Event::Incoming(Packet::Publish(publish)) => self.hand_on(publish).await?,
                Event::Incoming(Packet::SubAck(answer)) => self.subscribed(&answer)?,
                Event::Incoming(Packet::PubAck(answer)) => self.outbox.acknowledged(answer.pkid),
                Event::Outgoing(Outgoing::PubAck(_)) => self.link.woken(),
                Event::Outgoing(Outgoing::PingReq) => self.link.pinged(),
                Event::Incoming(Packet::PingResp) => self.link.ping_answered(),
                // Only answers have QoS 0.
                Event::Outgoing(Outgoing::Publish(0)) => self.calls.woken(),
                Event::Outgoing(Outgoing::Publish(packet_id)) => self.outbox.sent(packet_id),
                // The packet ids start again and have reached one that is still unanswered: rumqttc takes no more
                // requests.
                Event::Outgoing(Outgoing::AwaitAck(_)) => {
                    return Err(Fault::Protocol { reason: "it left out the PUBACK of a publish".into() });
                }
                Event::Outgoing(Outgoing::Disconnect) => {
                    self.linger().await;
                    return Ok(());
                }
                Event::Incoming(_) | Event::Outgoing(_) => {}
            }
        }
    }

    async fn next_event(&mut self) -> Result<Event, Fault> {
        if self.event_loop.state.events.is_empty() {
            self.send_ready_and_park().await?;
        }
        let event = self.event_loop.poll().await;
        self.link.unpark();
        self.calls.unpark();
        event.map_err(|error| self.fault(error))
    }

    /// Signs in, subscribes to nothing, and signs out.
    ///
    /// # Errors
    /// As [`Reader::run`].
    pub(super) async fn sign_in_and_out(mut self) -> Result<(), Fault> {
        self.sign_in().await?;
        let asked = self.client.try_disconnect();
        asked.map_err(|error| Fault::Network { reason: format!("DISCONNECT could not be sent: {error}") })?;
        while !matches!(self.event_loop.poll().await, Ok(Event::Outgoing(Outgoing::Disconnect)) | Err(_)) {}
        self.linger().await;
        Ok(())
    }

    async fn sign_in(&mut self) -> Result<(), Fault> {
        if let Some(bridge) = self.bridge.take() {
            self.far = bridge::cross(bridge, &self.dial, &mut self.carrying).await?;
        }
        let connack = match self.event_loop.poll().await {
            Ok(Event::Incoming(Packet::ConnAck(connack))) => connack,
            Ok(_) => return Err(Fault::Protocol { reason: "its first answer is not CONNACK".into() }),
            Err(error) => return Err(self.fault(error)),
        };
        let Dial { host, port, client_id: device_id, transport, .. } = &self.dial;
        let session_present = connack.session_present;
        tracing::info!(hub = %host, port, transport, device_id, session_present, "signed in");
        self.progress.send_modify(|progress| progress.signed_in = Some(Instant::now()));
        Ok(())
    }

    fn subscriptions(&self) -> Subscriptions {
        let Dial { device_id, module_id, twin, methods, desired, .. } = &self.dial;
        let others = [
            // A session that hears of desired properties must be able to read them.
            (*twin || *desired, Other::TwinAnswers),
            (*methods, Other::Methods),
            (*desired, Other::Desired),
        ];
        let others = others.into_iter().filter(|(wanted, _)| *wanted).map(|(_, other)| other);
        Subscriptions::new(topics::messages(device_id, module_id.as_deref()), others)
    }

    fn subscribe(&self) -> Result<(), Fault> {
        // For every session, because the hub may have lost the subscription with its state.
        let subscriptions = self.subscriptions();
        let filters = subscriptions.filters().map(|(filter, at_least_once)| {
            let qos = if at_least_once { QoS::AtLeastOnce } else { QoS::AtMostOnce };
            SubscribeFilter::new(filter.to_owned(), qos)
        });
        let asked = self.client.try_subscribe_many(filters);
        asked.map_err(|error| Fault::Network {
            reason: format!("the subscription could not be sent: {error}"),
        })
    }

    fn subscribed(&self, answer: &SubAck) -> Result<(), Fault> {
        let Dial { host, client_id: device_id, .. } = &self.dial;
        let answers = answer.return_codes.iter().map(|code| match code {
            SubscribeReasonCode::Success(qos) => Some(*qos as u8),
            SubscribeReasonCode::Failure => None,
        });
        let granted = self.subscriptions().granted(&answers.collect::<Vec<_>>(), host, device_id)?;
        tracing::info!(hub = %host, device_id, "subscribed");
        self.outbox.open(granted.contains(&Other::TwinAnswers));
        self.progress.send_modify(|progress| progress.subscribed = true);
        Ok(())
    }

    /// Hands on what came. For a message it waits until there is room. It reads nothing meanwhile, so TCP holds the
    /// sender back; PUBACKs, answers and pings still leave.
    async fn hand_on(&mut self, publish: Publish) -> Result<(), Fault> {
        let packet_id = match publish.qos {
            QoS::AtMostOnce => None,
            QoS::AtLeastOnce => Some(publish.pkid),
            QoS::ExactlyOnce => {
                return Err(Fault::Protocol {
                    reason: "it sent QoS 2, which the agent did not ask for".into(),
                });
            }
        };
        let kind = topics::kind(&publish.topic);
        if kind != Kind::Message && packet_id.is_none() {
            self.serve(kind, publish);
            return Ok(());
        }
        let Some(ticket) = self.link.arrive(packet_id, publish.dup) else {
            tracing::debug!(
                packet_id,
                "message ignored for now: it is a retransmission, or the connection is ending"
            );
            return Ok(());
        };
        let receipt = Receipt::new(Arc::clone(&self.link), ticket);
        if kind != Kind::Message {
            self.serve(kind, publish);
            receipt.complete();
            return Ok(());
        }
        let Dial { device_id, module_id, .. } = &self.dial;
        let message = topics::message(device_id, module_id.as_deref(), &publish.topic, publish.payload);
        let (connection, redelivered, arrived) = (self.dial.number, publish.dup, Instant::now());
        let delivery = Delivery { message, connection, redelivered, sequence: None, arrived, receipt };
        match self.arrivals.deliveries.try_send(delivery) {
            Ok(()) => Ok(()),
            Err(mpsc::error::TrySendError::Full(delivery)) => self.wait_for_room(delivery).await,
            Err(mpsc::error::TrySendError::Closed(delivery)) => {
                delivery.receipt.leave();
                Ok(())
            }
        }
    }

    /// Handles everything that is not a message; never waits.
    fn serve(&self, kind: Kind, publish: Publish) {
        match kind {
            Kind::Message => {}
            Kind::TwinAnswer => self.answered(publish),
            Kind::DesiredChange => self.arrivals.desired.notify_one(),
            Kind::MethodCall => {
                let Some((name, id)) = topics::method_call(&publish.topic) else {
                    let topic = excerpt(&publish.topic);
                    return tracing::warn!(topic, "ignored a method call: it has no usable request id");
                };
                let request = Request { name, id: id.to_owned(), payload: publish.payload };
                self.calls.hand_on(request, self.dial.number, &self.arrivals.calls);
            }
        }
    }

    /// An answer of the twin.
    fn answered(&self, publish: Publish) {
        let topic = excerpt(&publish.topic);
        let Some(answer) = topics::twin_answer(&publish.topic) else {
            return tracing::debug!(
                topic,
                "ignored an answer of the twin: it answers no request of this agent"
            );
        };
        let body = excerpt(&String::from_utf8_lossy(&publish.payload));
        if !self.outbox.answered(answer, publish.payload) {
            tracing::debug!(topic, "ignored an answer of the twin: no request waits for it any more");
        } else if answer.status >= 400 {
            tracing::warn!(status = answer.status, body, "the hub refused a request to the twin");
        }
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
        let answers = self.calls.take_ready().into_iter().map(|Answer { id, status, payload }| {
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

    async fn linger(&mut self) {
        let closed = async {
            while let Ok(event) = self.event_loop.poll().await {
                match event {
                    Event::Incoming(Packet::PubAck(answer)) => self.outbox.acknowledged(answer.pkid),
                    Event::Incoming(Packet::PingResp) => self.link.ping_answered(),
                    _ => {}
                }
            }
        };
        if timeout(LINGER, closed).await.is_err() {
            tracing::debug!("the hub did not close the connection after DISCONNECT");
        }
    }
}
