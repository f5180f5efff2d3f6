//! The device side over MQTT 3.1.1: one connection, from CONNECT to its end.
//!
//! Owns: what each packet of a device does to the hub, the packet ids in flight, keep-alive, token expiry, the will.
//! Must not know: queues and locks (the hub's), TLS set-up, AMQP.
//!
//! Source: wire reference 1.2 to 1.7. Where the reference says "unverified", this emulator does the following. A
//! message whose lock lapsed is sent again on the device's next connection, with DUP set. A PUBACK for a lost lock is
//! ignored.
//!
//! D2C messages are logged, and the hub keeps the last ones. A device can get its twin, patch its reported properties,
//! receive changes of desired ones and receive method calls. Answers, changes and calls are sent at QoS 0, if the
//! device has subscribed to them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use crate::message::Properties;

use super::event_log;
use super::hub::{ConnectionId, Hub, Lock, Locked, Subscription, input_topic};
use super::hubs::Hubs;
use super::identity;
use super::listener::ARRIVAL_TIMEOUT;
use super::provisioning::Reception;
use super::registry::Thumbprint;
use super::shared::SharedHub;

mod certificates;
mod codec;
mod desired;
mod ending;
mod methods;
mod provisioning;
mod sign_in;
mod topics;
mod twin;
mod username;

use codec::{
    ConnAck, ConnectReturnCode, LastWill, Packet, PubAck, Publish, QoS, SubAck, Subscribe,
    SubscribeReasonCode, UnsubAck, Unsubscribe, Wire, WireError,
};
use ending::MqttEnd;
use sign_in::SignedIn;
use topics::Destination;
pub use username::{UserName, UserNameError};

/// Most deliveries of one connection that wait for their PUBACK: as many as a queue holds.
const MAX_IN_FLIGHT: usize = 50;

/// The longest silence that the hub allows, even if the keep-alive is longer. Source: wire reference 1.4.
const MAX_SILENCE: Duration = Duration::from_secs(1767);

/// Serves one connection until it ends, and logs the reason of the end. `certificate` is the one that the peer has
/// shown in its TLS handshake. `reception` is for clients of the provisioning service.
pub(super) async fn serve_connection<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    certificate: Option<Thumbprint>,
    reception: Reception,
    peer: SocketAddr,
    hubs: Hubs,
    stop: CancellationToken,
) {
    let mut wire = Wire::new(stream);
    let first = tokio::select! {
        () = stop.cancelled() => return,
        first = timeout(ARRIVAL_TIMEOUT, wire.next()) => first,
    };
    let request = match first {
        Ok(Ok(Some(Packet::Connect(connect)))) => match provisioning::user_name(&connect, &hubs) {
            Some(user) => match provisioning::check(&connect, &user, &reception, &hubs) {
                Ok(admitted) => return provisioning::serve(wire, &connect, admitted, peer, stop).await,
                Err(refusal) => Err(refusal),
            },
            None => {
                sign_in::check(&connect, certificate.as_ref(), &hubs).map(|signed_in| (connect, signed_in))
            }
        },
        Ok(Err(WireError::ProtocolLevel(level))) => Err(sign_in::SignInRefusal::protocol_level(level)),
        Ok(Ok(None)) => return tracing::debug!(%peer, "closed a connection that sent nothing"),
        other => {
            match other {
                Ok(Err(error)) => tracing::info!(%peer, %error, "closed a connection before its sign-in"),
                Ok(Ok(_)) => tracing::info!(%peer, "closed a connection that did not begin with CONNECT"),
                Err(_) => tracing::info!(%peer, "closed a connection that sent no CONNECT in time"),
            }
            return wire.close().await;
        }
    };
    match request {
        Ok((connect, signed_in)) => {
            let keep_alive = Duration::from_secs(connect.keep_alive.into());
            let connection = DeviceConnection::open(wire, signed_in, keep_alive, connect.last_will);
            connection.run(stop, peer).await;
        }
        Err(refusal) => {
            let (code, device_id, reason) = (refusal.code, &refusal.device_id, &refusal.reason);
            tracing::warn!(%peer, device_id, ?code, "refused a sign-in: {reason}");
            let answer = Packet::ConnAck(ConnAck { session_present: false, code });
            let sent = match wire.push(&answer) {
                Ok(()) => wire.flush().await,
                Err(error) => Err(error),
            };
            if let Err(error) = sent {
                tracing::debug!(%peer, %error, "the refusal could not be sent");
            }
            wire.close().await;
        }
    }
}

/// How long a client with this keep-alive may be silent.
fn longest_silence(keep_alive: Duration) -> Duration {
    if keep_alive.is_zero() { MAX_SILENCE } else { (keep_alive * 3 / 2).min(MAX_SILENCE) }
}

struct DeviceConnection<S> {
    wire: Wire<S>,
    hub: SharedHub,
    device_id: String,
    id: ConnectionId,
    session_present: bool,
    /// Packet ids that wait for their PUBACK. At most [`MAX_IN_FLIGHT`].
    in_flight: BTreeMap<u16, Locked>,
    /// The certificate that waits for its PUBACK: the packet id, and the request.
    certificate_in_flight: Option<(u16, String)>,
    last_packet_id: u16,
    max_silence: Duration,
    last_heard: Instant,
    token_expires: Option<SystemTime>,
    will: Option<LastWill>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> DeviceConnection<S> {
    fn open(wire: Wire<S>, signed_in: SignedIn, keep_alive: Duration, will: Option<LastWill>) -> Self {
        let SignedIn { hub, device_id, connected, token_expires } = signed_in;
        let max_silence = longest_silence(keep_alive);
        Self {
            wire,
            hub,
            device_id,
            id: connected.connection,
            session_present: connected.session_present,
            in_flight: BTreeMap::new(),
            certificate_in_flight: None,
            last_packet_id: 0,
            max_silence,
            last_heard: Instant::now(),
            token_expires,
            will,
        }
    }

    async fn run(mut self, stop: CancellationToken, peer: SocketAddr) {
        let device_id = self.device_id.clone();
        let session_present = self.session_present;
        tracing::info!(%peer, device_id, session_present, "a device signed in over MQTT");
        let end = match self.serve(&stop).await {
            Ok(end) | Err(end) => end,
        };
        self.hub.with(|hub, now| hub.disconnect(&device_id, self.id, now));
        // The fault ends the connection at one packet. The packets before it must still reach the device.
        if matches!(end, MqttEnd::Dropped)
            && let Err(error) = self.wire.flush().await
        {
            tracing::debug!(%peer, %error, "what came before the fault could not be sent");
        }
        match (&end, self.will.take()) {
            // A DISCONNECT of the device cancels the will.
            (MqttEnd::Goodbye, _) | (_, None) => {}
            (_, Some(will)) => self.publish_will(&will),
        }
        match &end {
            MqttEnd::Refused(_)
            | MqttEnd::TokenExpired
            | MqttEnd::Throttled
            | MqttEnd::Dropped
            | MqttEnd::Wire(WireError::Malformed(_)) => {
                tracing::warn!(%peer, device_id, "closed a device's connection: {end}");
            }
            _ => tracing::info!(%peer, device_id, "a device's connection ended: {end}"),
        }
        self.wire.close().await;
    }

    /// Runs until the connection must end. Both `Ok` and `Err` mean an end; `Err` only exists for `?`.
    async fn serve(&mut self, stop: &CancellationToken) -> Result<MqttEnd, MqttEnd> {
        let mut changed = self.hub.watch_device(&self.device_id);
        self.count_packet()?;
        self.push(&Packet::ConnAck(ConnAck {
            session_present: self.session_present,
            code: ConnectReturnCode::Success,
        }))?;
        // A newer connection may have come before `changed` did: look at it first.
        changed.mark_changed();
        loop {
            // First, because a moved clock may have brought what is due after the token's end.
            if self.token_expires.is_some_and(|expires| expires <= self.hub.now()) {
                return Ok(MqttEnd::TokenExpired);
            }
            self.deliver()?;
            while let Some(change) = desired::next(&self.hub, &self.device_id, self.id) {
                self.push(&Packet::Publish(change))?;
            }
            while let Some(call) = methods::next_call(&self.hub, &self.device_id, self.id) {
                self.push(&Packet::Publish(call))?;
            }
            while let Some((mut answer, awaited)) = certificates::next(&self.hub, &self.device_id, self.id) {
                if let Some(request) = awaited {
                    answer.pkid = self.next_packet_id();
                    self.certificate_in_flight = Some((answer.pkid, request));
                }
                self.push(&Packet::Publish(answer))?;
            }
            // The flush is outside the select: if it were cancelled, the device could get half a packet.
            self.wire.flush().await?;
            if self.token_expires.is_some() && self.hub.with(|hub, _| hub.expires_token(&self.device_id)) {
                return Ok(MqttEnd::TokenExpired);
            }
            tokio::select! {
                () = stop.cancelled() => return Ok(MqttEnd::Stopped),
                // `self.hub` holds the sender, so this cannot fail.
                _changed = changed.changed() => {
                    if !self.hub.with(|hub, _| hub.is_current(&self.device_id, self.id)) {
                        return Ok(MqttEnd::Displaced);
                    }
                }
                packet = self.wire.next() => {
                    let Some(packet) = packet? else { return Ok(MqttEnd::Closed) };
                    self.last_heard = Instant::now();
                    self.handle(packet).await?;
                    // Handle all packets that have arrived, so that one flush sends all answers.
                    while let Some(packet) = self.wire.next_buffered()? {
                        self.handle(packet).await?;
                    }
                }
                () = sleep_until(self.last_heard + self.max_silence) => return Ok(MqttEnd::Silent),
                () = self.hub.reached(self.token_expires) => {}
            }
        }
    }

    async fn handle(&mut self, packet: Packet) -> Result<(), MqttEnd> {
        self.count_packet()?;
        match packet {
            Packet::PubAck(ack) => {
                self.complete(ack.pkid);
                Ok(())
            }
            Packet::Publish(publish) => self.receive(&publish),
            Packet::Subscribe(subscribe) => self.subscribe(&subscribe).await,
            Packet::Unsubscribe(unsubscribe) => self.unsubscribe(&unsubscribe),
            Packet::PingReq => self.push(&Packet::PingResp),
            Packet::Disconnect => Err(MqttEnd::Goodbye),
            Packet::Connect(_) => Err(MqttEnd::Refused("the device sent CONNECT twice".to_owned())),
            // The codec refuses all other packets.
            _ => Err(MqttEnd::Refused("the device sent a packet that only a server sends".to_owned())),
        }
    }

    /// Sends waiting messages, up to the limit of deliveries in flight.
    fn deliver(&mut self) -> Result<(), MqttEnd> {
        let room = MAX_IN_FLIGHT.saturating_sub(self.in_flight.len());
        if room == 0 {
            return Ok(());
        }
        let (device_id, id) = (self.device_id.clone(), self.id);
        let ready = self.hub.with(|hub, now| {
            let qos = hub.granted(&device_id, id, Subscription::DeviceBound)?;
            let next = || hub.next_delivery(&device_id, id, now);
            Some((qos, std::iter::from_fn(next).take(room).collect::<Vec<Locked>>()))
        });
        let Some((qos, ready)) = ready else { return Ok(()) };
        for locked in ready {
            let message_id = locked.message.message_id();
            let topic = if identity::is_module(&device_id) {
                input_topic(&locked.message)
            } else {
                locked.message.to_topic(&device_id)
            };
            // The topic contains the properties. Each delivery of this message would fail, so reject it now.
            if topic.len() > codec::MAX_TOPIC {
                let bytes = topic.len();
                tracing::warn!(
                    device_id,
                    message_id,
                    bytes,
                    "rejected a C2D message: its properties exceed a topic"
                );
                self.settle(&locked, Hub::reject);
                continue;
            }
            tracing::debug!(
                device_id,
                message_id,
                qos,
                redelivered = locked.redelivered,
                "delivered a C2D message"
            );
            let mut publish = Publish::from_bytes(topic, QoS::AtMostOnce, locked.message.body.clone());
            // At QoS 0 there is no PUBACK, so the message is complete when it is sent.
            if qos == 0 {
                self.push(&Packet::Publish(publish))?;
                self.settle(&locked, Hub::complete);
            } else {
                publish.qos = QoS::AtLeastOnce;
                publish.dup = locked.redelivered;
                publish.pkid = self.next_packet_id();
                self.in_flight.insert(publish.pkid, locked);
                self.push(&Packet::Publish(publish))?;
            }
        }
        Ok(())
    }

    fn complete(&mut self, packet_id: u16) {
        let device_id = &self.device_id;
        if let Some((_, request)) = self.certificate_in_flight.take_if(|(own, _)| *own == packet_id) {
            return self.hub.with(|hub, _| hub.certificate_taken(device_id, &request));
        }
        if self.hub.with(|hub, _| hub.ignores_puback(device_id)) {
            return tracing::info!(
                device_id,
                packet_id,
                "ignored a PUBACK because of the fault ignore-puback"
            );
        }
        match self.in_flight.remove(&packet_id) {
            Some(locked) => self.settle(&locked, Hub::complete),
            None => tracing::warn!(device_id, packet_id, "ignored a PUBACK that belongs to no delivery"),
        }
    }

    fn settle(
        &self,
        locked: &Locked,
        how: fn(&mut Hub, &str, Lock, SystemTime) -> Result<(), super::hub::LockLost>,
    ) {
        let (device_id, message_id) = (&self.device_id, locked.message.message_id());
        match self.hub.with(|hub, now| how(hub, device_id, locked.lock, now)) {
            Ok(()) => tracing::debug!(device_id, message_id, "settled a C2D message"),
            Err(error) => {
                tracing::warn!(device_id, message_id, "ignored a late settlement: {error}");
            }
        }
    }

    fn receive(&mut self, publish: &Publish) -> Result<(), MqttEnd> {
        if publish.qos == QoS::ExactlyOnce {
            return Err(MqttEnd::Refused("the device published with QoS 2".to_owned()));
        }
        let shown = event_log::excerpt(&publish.topic);
        let mut answer = None;
        match topics::destination(&self.device_id, &publish.topic) {
            Ok(Some(Destination::Events(mut properties))) => {
                // MQTT has no negative answer to a message, so the connection must end.
                if self.hub.with(|hub, _| hub.is_throttled(&self.device_id)) {
                    return Err(MqttEnd::Throttled);
                }
                if publish.retain {
                    properties.set("mqtt-retain", "true");
                }
                self.record_event(properties, &publish.payload, "");
            }
            Ok(Some(Destination::Twin(request))) => {
                answer = twin::answer(&self.hub, &self.device_id, &request, &publish.payload);
                if answer.is_none() {
                    return Err(MqttEnd::Refused(format!(
                        "the device sent \"{shown}\", without a request id"
                    )));
                }
            }
            Ok(Some(Destination::Certificate(request))) => {
                let device = (&*self.device_id, self.token_expires.is_none());
                certificates::take(&self.hub, device, &request, &publish.payload);
            }
            Ok(Some(Destination::MethodAnswer(topic))) => {
                methods::take_answer(&self.hub, &self.device_id, self.id, &topic, &publish.payload);
            }
            Ok(None) => return Err(MqttEnd::Refused(format!("the device published to \"{shown}\""))),
            Err(error) => {
                return Err(MqttEnd::Refused(format!("the device published a bad property bag: {error}")));
            }
        }
        if publish.qos == QoS::AtLeastOnce {
            self.push(&Packet::PubAck(PubAck::new(publish.pkid)))?;
        }
        answer.map_or(Ok(()), |answer| self.answer(answer))
    }

    fn record_event(&self, properties: Properties, body: &[u8], note: &str) {
        event_log::log_event(&self.device_id, &properties, body, note);
        // Copy the body: the slice belongs to a larger buffer, and keeping it would keep the whole buffer.
        let body = Bytes::copy_from_slice(body);
        self.hub.with(|hub, now| hub.record_event(&self.device_id, properties, body, now));
    }

    /// Answers a twin request, if the device has subscribed to the answers.
    fn answer(&mut self, answer: twin::TwinResponse) -> Result<(), MqttEnd> {
        let device_id = &self.device_id;
        if self.hub.with(|hub, _| hub.granted(device_id, self.id, Subscription::TwinResponses)).is_none() {
            tracing::warn!(
                device_id,
                "a twin request gets no answer: the device is not subscribed to answers"
            );
            return Ok(());
        }
        let publish = Publish::from_bytes(answer.topic, QoS::AtMostOnce, answer.body);
        self.push(&Packet::Publish(publish))
    }

    async fn subscribe(&mut self, subscribe: &Subscribe) -> Result<(), MqttEnd> {
        let mut refused = None;
        let mut codes = Vec::with_capacity(subscribe.filters.len());
        for filter in &subscribe.filters {
            let known = topics::subscription(&self.device_id, &filter.path);
            let qos = if filter.qos == QoS::AtMostOnce { QoS::AtMostOnce } else { QoS::AtLeastOnce };
            let stored = |subscription| {
                self.hub.with(|hub, _| hub.subscribe(&self.device_id, self.id, subscription, qos as u8))
            };
            if certificates::are_refused(&self.hub, &self.device_id, known) {
                codes.push(SubscribeReasonCode::Failure);
            } else if known.is_some_and(stored) || topics::brings_nothing(&self.device_id, &filter.path) {
                codes.push(SubscribeReasonCode::Success(qos));
            } else {
                codes.push(SubscribeReasonCode::Failure);
                refused.get_or_insert_with(|| event_log::excerpt(&filter.path));
            }
        }
        self.push(&Packet::SubAck(SubAck::new(subscribe.pkid, codes)))?;
        match refused {
            None => Ok(()),
            Some(filter) => {
                self.wire.flush().await?;
                Err(MqttEnd::Refused(format!("the device subscribed to \"{filter}\"")))
            }
        }
    }

    fn unsubscribe(&mut self, unsubscribe: &Unsubscribe) -> Result<(), MqttEnd> {
        for filter in &unsubscribe.topics {
            if let Some(subscription) = topics::subscription(&self.device_id, filter) {
                self.hub.with(|hub, _| hub.unsubscribe(&self.device_id, self.id, subscription));
            }
        }
        self.push(&Packet::UnsubAck(UnsubAck::new(unsubscribe.pkid)))
    }

    /// Stores the will as a D2C message.
    fn publish_will(&self, will: &LastWill) {
        match topics::destination(&self.device_id, &will.topic) {
            Ok(Some(Destination::Events(mut properties))) => {
                properties.set("iothub-MessageType", "Will");
                if will.retain {
                    properties.set("mqtt-retain", "true");
                }
                self.record_event(properties, &will.message, ": the device's will");
            }
            _ => {
                let topic = event_log::excerpt(&will.topic);
                tracing::warn!(
                    device_id = self.device_id,
                    topic,
                    "ignored a will: its topic is not an events topic"
                );
            }
        }
    }

    fn push(&mut self, packet: &Packet) -> Result<(), MqttEnd> {
        self.count_packet()?;
        Ok(self.wire.push(packet)?)
    }

    /// Counts a packet that the device has sent or is about to get. A fault can end the connection at this packet.
    fn count_packet(&self) -> Result<(), MqttEnd> {
        let drops = self.hub.with(|hub, _| hub.drops_packet(&self.device_id));
        if drops { Err(MqttEnd::Dropped) } else { Ok(()) }
    }

    /// The next packet id that is not in flight. The loop ends because there are far more ids than deliveries in
    /// flight.
    fn next_packet_id(&mut self) -> u16 {
        loop {
            self.last_packet_id = self.last_packet_id.checked_add(1).unwrap_or(1);
            let is_of_certificate =
                self.certificate_in_flight.as_ref().is_some_and(|(own, _)| *own == self.last_packet_id);
            if !is_of_certificate && !self.in_flight.contains_key(&self.last_packet_id) {
                return self.last_packet_id;
            }
        }
    }
}
