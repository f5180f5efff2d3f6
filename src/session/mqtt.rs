//! One MQTT connection to the hub as a device.
//!
//! Owns: everything that names rumqttc: its options, its event loop, its errors. One event loop serves exactly one
//! connection and is dropped with it, so no packet id and no request outlives its connection.
//! Must not know: reconnecting, tokens' life, what is done with messages. Used by: `session::keeper`.
//!
//! [`Reader`] is a task of its own that alone calls `poll()`, never as an arm of a `select!`, and does nothing slow.
//! Between two polls it feeds all releasable PUBACKs into rumqttc's network buffer and flushes once; see [`Link`].

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rumqttc::mqttbytes::Error as CodecError;
use rumqttc::{
    AsyncClient, ConnectReturnCode, ConnectionError, Event, EventLoop, MqttOptions, Outgoing, Packet, PubAck,
    Publish, QoS, StateError, SubAck, SubscribeReasonCode, TlsConfiguration, TlsError, Transport,
};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout};

use crate::message::{C2dMessage, devicebound_topic};
use crate::tls;

use super::delivery::{Delivery, Receipt};
use super::failure::{self, Fault};
use super::link::{Link, Phase};

/// Largest packet either way. A C2D message has at most 64 KiB; rumqttc's own limit of 10 KiB would end in a loop of
/// reconnects on the first larger one.
const PACKET_LIMIT: usize = 256 * 1024;
/// Far below the hub's longest, 1177 s (wire reference 1.4), so that a dead network is noticed in two minutes.
const KEEP_ALIVE: Duration = Duration::from_secs(60);
/// From the name look-up to CONNACK, and for a write to be taken.
pub(super) const ANSWER_LIMIT: Duration = Duration::from_secs(30);
/// How long to wait for the peer to close after DISCONNECT. To close first with unread data in the socket would
/// reset the connection, and could take the last PUBACKs with it.
const LINGER: Duration = Duration::from_millis(300);
/// Requests in rumqttc's channel: at most one SUBSCRIBE, one PUBACK that wakes, and one DISCONNECT.
const REQUESTS: usize = 4;

/// Where to connect, and as whom.
pub(super) struct Dial {
    /// DNS name or address; also the name that the certificate must have.
    pub(super) host: String,
    pub(super) port: u16,
    /// The client id, and the device whose topic is subscribed to.
    pub(super) device_id: String,
    pub(super) user_name: String,
    pub(super) password: Option<String>,
    pub(super) tls: Arc<rustls::ClientConfig>,
    pub(super) clock: fn() -> SystemTime,
}

/// How far a connection has come.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Progress {
    /// When CONNACK arrived.
    pub(super) signed_in: Option<Instant>,
    /// Whether SUBACK arrived.
    pub(super) subscribed: bool,
}

/// The keeper's end of a connection.
pub(super) struct Connection {
    pub(super) link: Arc<Link>,
    pub(super) progress: watch::Receiver<Progress>,
    client: AsyncClient,
}

impl Connection {
    /// Prepares a connection. Nothing is sent before [`Reader::run`], and the handler of messages is in place then.
    pub(super) fn prepare(dial: Dial, deliveries: mpsc::Sender<Delivery>) -> (Self, Reader) {
        let mut options = MqttOptions::new(&dial.device_id, &dial.host, dial.port);
        options
            .set_transport(Transport::tls_with_config(TlsConfiguration::Rustls(Arc::clone(&dial.tls))))
            .set_credentials(&dial.user_name, dial.password.as_deref().unwrap_or_default())
            .set_keep_alive(KEEP_ALIVE)
            .set_clean_session(false)
            .set_manual_acks(true)
            .set_max_packet_size(PACKET_LIMIT, PACKET_LIMIT);
        let (client, mut event_loop) = AsyncClient::new(options, REQUESTS);
        event_loop.network_options.set_connection_timeout(ANSWER_LIMIT.as_secs());
        event_loop.network_options.set_tcp_nodelay(true);
        let waker = client.clone();
        let wake = move |packet_id| {
            let mut publish = Publish::from_bytes("", QoS::AtLeastOnce, bytes::Bytes::new());
            publish.pkid = packet_id;
            waker.try_ack(&publish).is_ok()
        };
        let link = Arc::new(Link::new(Box::new(wake)));
        let (report, progress) = watch::channel(Progress::default());
        let reader = Reader {
            event_loop,
            client: client.clone(),
            link: Arc::clone(&link),
            deliveries,
            progress: report,
            dial,
        };
        (Self { link, progress, client }, reader)
    }

    /// Asks for DISCONNECT after the PUBACKs that are ready; [`Reader::run`] then returns. False when it cannot.
    pub(super) fn hang_up(&self) -> bool {
        self.client.try_disconnect().is_ok()
    }
}

/// The task that reads one connection.
pub(super) struct Reader {
    event_loop: EventLoop,
    client: AsyncClient,
    link: Arc<Link>,
    deliveries: mpsc::Sender<Delivery>,
    progress: watch::Sender<Progress>,
    dial: Dial,
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.link.close();
    }
}

impl Reader {
    /// Signs in, subscribes, and hands messages on until the connection ends. `Ok` after [`Connection::hang_up`].
    ///
    /// # Errors
    /// Why the connection failed.
    ///
    /// # Cancel safety
    /// Dropping it drops the connection; that is how a dead one is ended.
    pub(super) async fn run(mut self) -> Result<(), Fault> {
        self.sign_in().await?;
        loop {
            if self.event_loop.state.events.is_empty() {
                self.send_ready_and_park().await?;
            }
            let event = self.event_loop.poll().await;
            self.link.unpark();
            match event.map_err(|error| self.fault(error))? {
                Event::Incoming(Packet::Publish(publish)) => self.hand_on(publish).await?,
                Event::Incoming(Packet::SubAck(answer)) => self.subscribed(&answer)?,
                Event::Outgoing(Outgoing::PubAck(_)) => self.link.woken(),
                Event::Outgoing(Outgoing::Disconnect) => {
                    self.linger().await;
                    return Ok(());
                }
                Event::Incoming(_) | Event::Outgoing(_) => {}
            }
        }
    }

    async fn sign_in(&mut self) -> Result<(), Fault> {
        let connack = match self.event_loop.poll().await {
            Ok(Event::Incoming(Packet::ConnAck(connack))) => connack,
            Ok(_) => return Err(Fault::Protocol { reason: "its first answer is no CONNACK".into() }),
            Err(error) => return Err(self.fault(error)),
        };
        let Dial { host, port, device_id, .. } = &self.dial;
        let session_present = connack.session_present;
        tracing::info!(hub = %host, port, device_id, session_present, "signed in");
        self.progress.send_modify(|progress| progress.signed_in = Some(Instant::now()));
        // Always, whatever the session: a subscription may have been lost with the hub's state.
        let asked = self.client.try_subscribe(self.filter(), QoS::AtLeastOnce);
        asked.map_err(|error| Fault::Network { reason: format!("the subscription was not taken: {error}") })
    }

    fn subscribed(&self, answer: &SubAck) -> Result<(), Fault> {
        match answer.return_codes.first() {
            Some(SubscribeReasonCode::Success(qos)) => {
                let Dial { host, device_id, .. } = &self.dial;
                if *qos == QoS::AtMostOnce {
                    tracing::warn!(hub = %host, device_id, "subscribed with QoS 0 only: messages may be lost");
                }
                tracing::info!(hub = %host, device_id, "subscribed");
                self.progress.send_modify(|progress| progress.subscribed = true);
                Ok(())
            }
            _ => Err(Fault::SubscriptionRefused { filter: self.filter() }),
        }
    }

    /// Hands a message on, and waits while there is no room. Nothing is read meanwhile, so TCP holds the sender
    /// back; PUBACKs and pings still leave.
    async fn hand_on(&mut self, publish: Publish) -> Result<(), Fault> {
        let packet_id = match publish.qos {
            QoS::AtMostOnce => None,
            QoS::AtLeastOnce => Some(publish.pkid),
            QoS::ExactlyOnce => {
                return Err(Fault::Protocol { reason: "it sent QoS 2, which nobody asked for".into() });
            }
        };
        let Some(ticket) = self.link.arrive(packet_id, publish.dup) else {
            tracing::debug!(
                packet_id,
                "message not taken now: a retransmission, or the connection is ending"
            );
            return Ok(());
        };
        let message = C2dMessage::from_topic(&self.dial.device_id, &publish.topic, publish.payload);
        let delivery =
            Delivery { message, connection: 0, receipt: Receipt::new(Arc::clone(&self.link), ticket) };
        match self.deliveries.try_send(delivery) {
            Ok(()) => Ok(()),
            Err(mpsc::error::TrySendError::Full(delivery)) => self.wait_for_room(delivery).await,
            Err(mpsc::error::TrySendError::Closed(delivery)) => {
                delivery.receipt.leave();
                Ok(())
            }
        }
    }

    async fn wait_for_room(&mut self, delivery: Delivery) -> Result<(), Fault> {
        let deliveries = self.deliveries.clone();
        let mut next_ping = Instant::now() + KEEP_ALIVE / 2;
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
                    let ready = self.link.take_ready();
                    self.send(ready.into_iter().map(|id| Packet::PubAck(PubAck::new(id)))).await?;
                }
                () = tokio::time::sleep_until(next_ping) => {
                    self.send([Packet::PingReq]).await?;
                    next_ping += KEEP_ALIVE / 2;
                }
            }
        }
        // An answer to an earlier ping may lie unread behind what was waited with: its absence proves nothing.
        self.event_loop.state.await_pingresp = false;
        Ok(())
    }

    /// Lets the consumer settle what was read, sends all PUBACKs that became ready with one flush, and parks.
    async fn send_ready_and_park(&mut self) -> Result<(), Fault> {
        loop {
            tokio::task::yield_now().await;
            let ready = self.link.take_ready();
            self.send(ready.into_iter().map(|id| Packet::PubAck(PubAck::new(id)))).await?;
            if self.link.park() {
                return Ok(());
            }
        }
    }

    /// Writes packets past the request channel and flushes them together. Only between two polls.
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
        let closed = async { while self.event_loop.poll().await.is_ok() {} };
        if timeout(LINGER, closed).await.is_err() {
            tracing::debug!("the hub did not close the connection after DISCONNECT");
        }
    }

    fn filter(&self) -> String {
        devicebound_topic(&self.dial.device_id) + "#"
    }

    fn fault(&self, error: ConnectionError) -> Fault {
        let fault = match error {
            ConnectionError::NetworkTimeout => Fault::Unanswered { within: ANSWER_LIMIT },
            ConnectionError::FlushTimeout => Fault::Silent,
            ConnectionError::Io(error) | ConnectionError::Tls(TlsError::Io(error)) => {
                failure::from_io(&error, &self.dial.host)
            }
            ConnectionError::Tls(TlsError::TLS(error)) => {
                Fault::Tls { sentence: tls::describe(&error, &self.dial.host) }
            }
            ConnectionError::Tls(error) => Fault::Tls { sentence: error.to_string() },
            ConnectionError::ConnectionRefused(code) => match code {
                ConnectReturnCode::BadUserNamePassword | ConnectReturnCode::NotAuthorized => {
                    Fault::NotAuthorised { now: (self.dial.clock)() }
                }
                ConnectReturnCode::ServiceUnavailable => Fault::Unavailable,
                other => Fault::Protocol { reason: format!("it refused the sign-in with {other:?}") },
            },
            ConnectionError::NotConnAck(_) => {
                Fault::Protocol { reason: "its first answer is no CONNACK".into() }
            }
            ConnectionError::RequestsDone => Fault::Closed,
            ConnectionError::MqttState(error) => match error {
                StateError::Io(error) | StateError::Deserialization(CodecError::Io(error)) => {
                    failure::from_io(&error, &self.dial.host)
                }
                StateError::Deserialization(CodecError::PayloadSizeLimitExceeded(_)) => {
                    Fault::TooLarge { limit: PACKET_LIMIT }
                }
                StateError::ConnectionAborted => Fault::Closed,
                StateError::AwaitPingResp => Fault::Silent,
                other => Fault::Protocol { reason: other.to_string() },
            },
        };
        match (fault, self.progress.borrow().signed_in) {
            (Fault::Closed, None) => Fault::ClosedBeforeSignIn,
            (Fault::Silent, None) => Fault::Unanswered { within: ANSWER_LIMIT },
            (fault, _) => fault,
        }
    }
}
