//! The provisioning service over MQTT 3.1.1: one connection, from its CONNECT to its end.
//!
//! Owns: user name and topics of provisioning, the order of acknowledgement and answer. Must not know: enrolments,
//! hubs.
//!
//! Source: wire reference 12.1 and 12.8. Only the documented topics are allowed; another one ends the connection, as at
//! a hub. Not verified, so this is a choice: whether the real service closes the connection after an error; this one
//! does not.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use percent_encoding::percent_decode_str;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::codec::{
    ConnAck, Connect, ConnectReturnCode, Packet, PubAck, Publish, QoS, SubAck, Subscribe,
    SubscribeReasonCode, UnsubAck, Wire,
};
use super::sign_in::SignInRefusal;
use super::{MqttEnd, longest_silence};
use crate::emulator::event_log;
use crate::emulator::hubs::Hubs;
use crate::emulator::provisioning::{DpsUserName, ProvisioningDesk, Reception, RegistrationClaim};

/// The only filter.
const ANSWERS: &str = "$dps/registrations/res/#";
const REGISTER: &str = "$dps/registrations/PUT/iotdps-register/?";
const POLL: &str = "$dps/registrations/GET/iotdps-get-operationstatus/?";

/// What a topic asks for. Both have a request id, which the answer repeats as it is.
#[derive(Debug, PartialEq, Eq)]
enum Question<'t> {
    Register(&'t str),
    Poll(&'t str, String),
}

/// One connection.
struct ProvisioningConnection<S> {
    wire: Wire<S>,
    desk: ProvisioningDesk,
    claim: RegistrationClaim,
    /// The port of the hub's MQTT, if it is not the standard one.
    port: Option<u16>,
    /// The QoS of answers; `None` until the client has subscribed to them.
    granted: Option<QoS>,
    last_packet_id: u16,
}

/// A client that has passed the door.
pub(super) struct Admitted {
    desk: ProvisioningDesk,
    claim: RegistrationClaim,
    port: Option<u16>,
}

/// The user name of a client of the provisioning service; `None` for a device of a hub. A hub's name in front means a
/// module of a device that is called "registrations".
pub(super) fn user_name(connect: &Connect, hubs: &Hubs) -> Option<DpsUserName> {
    let user = DpsUserName::parse(&connect.login.as_ref()?.username)?;
    hubs.named(&user.id_scope).is_none().then_some(user)
}

/// Checks a CONNECT.
///
/// # Errors
/// [`SignInRefusal`] for the client and for the log.
pub(super) fn check(
    connect: &Connect,
    user: &DpsUserName,
    reception: &Reception,
    hubs: &Hubs,
) -> Result<Admitted, SignInRefusal> {
    let refuse = |code, reason: String| {
        let device_id = user.registration_id.chars().take(128).flat_map(char::escape_debug).collect();
        SignInRefusal { code, device_id, reason: format!("the provisioning service refuses it: {reason}") }
    };
    if !user.has_version {
        return Err(refuse(ConnectReturnCode::NotAuthorized, "the user name lacks api-version".to_owned()));
    }
    if connect.client_id != user.registration_id {
        let reason = "the client id is not the registration id in the user name".to_owned();
        return Err(refuse(ConnectReturnCode::BadClientId, reason));
    }
    let password = connect.login.as_ref().map(|login| login.password.as_str());
    let token = password.filter(|password| !password.is_empty());
    let admitted = reception.admit(&user.id_scope, &user.registration_id, token, hubs.main().hub().clock().0);
    let (desk, claim) =
        admitted.map_err(|error| refuse(ConnectReturnCode::NotAuthorized, error.to_string()))?;
    Ok(Admitted { desk, claim, port: reception.mqtt_port })
}

/// Serves a client until it is done, and logs the end.
pub(super) async fn serve<S: AsyncRead + AsyncWrite + Unpin>(
    wire: Wire<S>,
    connect: &Connect,
    Admitted { desk, claim, port }: Admitted,
    peer: SocketAddr,
    stop: CancellationToken,
) {
    let silence = longest_silence(Duration::from_secs(connect.keep_alive.into()));
    let registration_id = claim.registration_id.clone();
    tracing::info!(%peer, registration_id, "a device asks the provisioning service over MQTT");
    let mut connection = ProvisioningConnection { wire, desk, claim, port, granted: None, last_packet_id: 0 };
    let served = stop.run_until_cancelled(connection.run(silence)).await;
    let end = served.unwrap_or(Err(MqttEnd::Stopped)).err().unwrap_or(MqttEnd::Closed);
    match &end {
        MqttEnd::Refused(_) => {
            tracing::warn!(%peer, registration_id, "closed a connection of the provisioning service: {end}");
        }
        _ => tracing::info!(%peer, registration_id, "a connection of the provisioning service ended: {end}"),
    }
    connection.wire.close().await;
}

impl<S: AsyncRead + AsyncWrite + Unpin> ProvisioningConnection<S> {
    async fn run(&mut self, silence: Duration) -> Result<(), MqttEnd> {
        self.wire
            .push(&Packet::ConnAck(ConnAck { session_present: false, code: ConnectReturnCode::Success }))?;
        loop {
            self.wire.flush().await?;
            match timeout(silence, self.wire.next()).await {
                Err(_elapsed) => return Err(MqttEnd::Silent),
                Ok(packet) => match packet? {
                    None => return Err(MqttEnd::Closed),
                    Some(packet) => self.handle(packet).await?,
                },
            }
        }
    }

    async fn handle(&mut self, packet: Packet) -> Result<(), MqttEnd> {
        match packet {
            Packet::Publish(publish) => self.receive(&publish).await,
            Packet::Subscribe(subscribe) => self.subscribe(&subscribe).await,
            Packet::Unsubscribe(unsubscribe) => {
                if unsubscribe.topics.iter().any(|topic| topic == ANSWERS) {
                    self.granted = None;
                }
                Ok(self.wire.push(&Packet::UnsubAck(UnsubAck::new(unsubscribe.pkid)))?)
            }
            // An answer has arrived; nothing waits for that.
            Packet::PubAck(_) => Ok(()),
            Packet::PingReq => Ok(self.wire.push(&Packet::PingResp)?),
            Packet::Disconnect => Err(MqttEnd::Goodbye),
            Packet::Connect(_) => Err(MqttEnd::Refused("the device sent CONNECT twice".to_owned())),
            // The codec refuses all other packets.
            _ => Err(MqttEnd::Refused("the device sent a packet that only a server sends".to_owned())),
        }
    }

    /// A QoS above 1 becomes 1.
    async fn subscribe(&mut self, subscribe: &Subscribe) -> Result<(), MqttEnd> {
        let mut refused = None;
        let mut codes = Vec::with_capacity(subscribe.filters.len());
        for filter in &subscribe.filters {
            if filter.path == ANSWERS {
                let qos = if filter.qos == QoS::AtMostOnce { QoS::AtMostOnce } else { QoS::AtLeastOnce };
                self.granted = Some(qos);
                codes.push(SubscribeReasonCode::Success(qos));
            } else {
                codes.push(SubscribeReasonCode::Failure);
                refused.get_or_insert_with(|| event_log::excerpt(&filter.path));
            }
        }
        self.wire.push(&Packet::SubAck(SubAck::new(subscribe.pkid, codes)))?;
        let Some(filter) = refused else { return Ok(()) };
        self.wire.flush().await?;
        Err(MqttEnd::Refused(format!("the device subscribed to \"{filter}\"")))
    }

    async fn receive(&mut self, publish: &Publish) -> Result<(), MqttEnd> {
        if publish.qos == QoS::ExactlyOnce {
            return Err(MqttEnd::Refused("the device published with QoS 2".to_owned()));
        }
        let question = question(&publish.topic).ok_or_else(|| {
            MqttEnd::Refused(format!("the device published to \"{}\"", event_log::excerpt(&publish.topic)))
        })?;
        if publish.qos == QoS::AtLeastOnce {
            // Before the answer: C# waits for it first.
            self.wire.push(&Packet::PubAck(PubAck::new(publish.pkid)))?;
            self.wire.flush().await?;
        }
        let (request_id, answer) = match question {
            Question::Register(id) => (id, self.desk.register(&self.claim, &publish.payload).await),
            Question::Poll(id, operation) => (id, self.desk.poll(&self.claim, &operation, self.port).await),
        };
        let Some(qos) = self.granted else {
            let registration_id = &self.claim.registration_id;
            tracing::warn!(
                registration_id,
                "a request gets no answer: the device is not subscribed to answers"
            );
            return Ok(());
        };
        // `$rid` comes first: C# looks for it there, and C searches for the text of the other.
        let retry = answer.retry_after.map(|seconds| format!("&retry-after={seconds}")).unwrap_or_default();
        let topic = format!("$dps/registrations/res/{}/?$rid={request_id}{retry}", answer.status);
        let mut reply = Publish::from_bytes(topic, qos, Bytes::from(answer.body.to_string()));
        if qos == QoS::AtLeastOnce {
            self.last_packet_id = self.last_packet_id.checked_add(1).unwrap_or(1);
            reply.pkid = self.last_packet_id;
        }
        Ok(self.wire.push(&Packet::Publish(reply))?)
    }
}

/// What a topic asks for; `None` if it is not documented, or has no request id.
fn question(topic: &str) -> Option<Question<'_>> {
    let (query, polls) = match topic.strip_prefix(REGISTER) {
        Some(query) => (query, false),
        None => (topic.strip_prefix(POLL)?, true),
    };
    let value = |name: &str| {
        let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
        pairs.find(|(own, value)| *own == name && !value.is_empty()).map(|(_, value)| value)
    };
    let request_id = value("$rid")?;
    if !polls {
        return Some(Question::Register(request_id));
    }
    let operation = percent_decode_str(value("operationId")?).decode_utf8().ok()?;
    Some(Question::Poll(request_id, operation.into_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_topic_is_a_question_or_not_without_a_panic(rest in "[$a-z=&%0-9-]{0,40}|.{0,40}") {
            for begin in ["", REGISTER, POLL] {
                let topic = format!("{begin}{rest}");
                if let Some(Question::Register(id) | Question::Poll(id, _)) = question(&topic) {
                    prop_assert!(!id.is_empty() && !id.contains('&'));
                }
            }
        }
    }

    #[test]
    fn only_the_documented_topics_are_questions() {
        assert_eq!(question("$dps/registrations/PUT/iotdps-register/?$rid=7"), Some(Question::Register("7")));
        assert_eq!(
            question("$dps/registrations/GET/iotdps-get-operationstatus/?$rid=a-b&operationId=5.1%2Ex"),
            Some(Question::Poll("a-b", "5.1.x".to_owned()))
        );
        for topic in [
            "$dps/registrations/PUT/iotdps-register/",
            "$dps/registrations/PUT/iotdps-register/?$rid=",
            "$dps/registrations/GET/iotdps-get-operationstatus/?$rid=1",
            "$dps/registrations/PUT/other/?$rid=1",
            "devices/dev1/messages/events/",
        ] {
            assert_eq!(question(topic), None, "{topic}");
        }
    }
}
