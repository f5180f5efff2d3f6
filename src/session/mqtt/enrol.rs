//! One registration at the Device Provisioning Service, over MQTT.
//!
//! Owns: its topics, and the order of its packets. Must not know: what the bodies say, retries.
//!
//! Source of the exchange: wire reference 12.1.

use bytes::Bytes;
use rumqttc::{Event, EventLoop, Packet, QoS, SubscribeReasonCode};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use super::bridge::{self, FarFailure};
use super::fault;
use super::options::options;
use crate::session::dial::{ANSWER_LIMIT, Dial};
use crate::session::failure::{self, Fault};
use crate::session::questions::{self, Answered, Asks, Question, ServiceAnswer};

const ANSWERS: &str = "$dps/registrations/res/";
/// SUBSCRIBE, one PUBLISH and DISCONNECT.
const REQUESTS: usize = 3;

/// The connection to the service.
struct Service {
    event_loop: EventLoop,
    client: rumqttc::AsyncClient,
    dial: Dial,
    far: FarFailure,
    is_signed_in: bool,
    body: Bytes,
    /// The questions so far; the number of a question is its id.
    asked: u32,
}

/// Signs in, asks until the service has answered, and signs out.
///
/// # Errors
/// Why the connection failed.
pub(crate) async fn register(
    dial: Dial,
    registration_id: &str,
    body: Bytes,
    until: Instant,
) -> Result<Answered, Fault> {
    let (mut options, bridge) = options(&dial);
    options.set_manual_acks(false);
    let (client, mut event_loop) = rumqttc::AsyncClient::new(options, REQUESTS);
    event_loop.network_options.set_connection_timeout(ANSWER_LIMIT.as_secs());
    let mut carrying = JoinSet::new();
    let far = match bridge {
        Some(bridge) => bridge::cross(bridge, &dial, &mut carrying).await?,
        None => FarFailure::default(),
    };
    let mut service = Service { event_loop, client, dial, far, is_signed_in: false, body, asked: 0 };
    service.sign_in().await?;
    let answered = questions::register(&mut service, registration_id, until).await?;
    service.sign_out().await;
    Ok(answered)
}

impl Asks for Service {
    async fn ask(&mut self, question: Question<'_>) -> Result<ServiceAnswer, Fault> {
        self.asked += 1;
        let rid = self.asked.to_string();
        let (topic, body) = match question {
            Question::Register => (format!("PUT/iotdps-register/?$rid={rid}"), self.body.clone()),
            Question::State(operation) => {
                (format!("GET/iotdps-get-operationstatus/?$rid={rid}&operationId={operation}"), Bytes::new())
            }
        };
        let topic = format!("$dps/registrations/{topic}");
        self.client.try_publish(topic, QoS::AtLeastOnce, false, body).map_err(not_sent)?;
        let answer = async {
            loop {
                if let Packet::Publish(publish) = self.next().await?
                    && let Some(answer) = read(&publish.topic, &rid, &publish.payload)
                {
                    return Ok(answer);
                }
            }
        };
        timeout(ANSWER_LIMIT, answer).await.unwrap_or(Err(Fault::Unanswered { within: ANSWER_LIMIT }))
    }
}

impl Service {
    async fn sign_in(&mut self) -> Result<(), Fault> {
        match self.next().await? {
            Packet::ConnAck(_) => self.is_signed_in = true,
            _ => return Err(Fault::Protocol { reason: "its first answer is not CONNACK".into() }),
        }
        let filter = format!("{ANSWERS}#");
        self.client.try_subscribe(&filter, QoS::AtLeastOnce).map_err(not_sent)?;
        loop {
            match self.next().await? {
                Packet::SubAck(answer) if answer.return_codes.contains(&SubscribeReasonCode::Failure) => {
                    return Err(Fault::SubscriptionRefused { filter });
                }
                Packet::SubAck(_) => return Ok(()),
                _ => {}
            }
        }
    }

    /// Says goodbye. What fails now changes nothing: the answer is here.
    async fn sign_out(&mut self) {
        if self.client.try_disconnect().is_ok() {
            let said = async {
                loop {
                    match self.event_loop.poll().await {
                        Ok(Event::Outgoing(rumqttc::Outgoing::Disconnect)) | Err(_) => return,
                        Ok(_) => {}
                    }
                }
            };
            if timeout(ANSWER_LIMIT, said).await.is_err() {
                tracing::debug!("the provisioning service did not take DISCONNECT");
            }
        }
    }

    /// The next packet from the service.
    async fn next(&mut self) -> Result<Packet, Fault> {
        loop {
            match self.event_loop.poll().await {
                Ok(Event::Incoming(packet)) => return Ok(packet),
                Ok(Event::Outgoing(_)) => {}
                Err(error) => {
                    let fault = match (fault::of_connection(error, &self.dial), self.far.get()) {
                        (Fault::Closed, Some(error)) => failure::from_io(error, &self.dial.host),
                        (fault, _) => fault,
                    };
                    return Err(match fault {
                        Fault::Closed if !self.is_signed_in => Fault::ClosedBeforeSignIn,
                        fault => fault,
                    });
                }
            }
        }
    }
}

fn not_sent(error: rumqttc::ClientError) -> Fault {
    Fault::Network { reason: format!("a packet could not be sent: {error}") }
}

/// Reads an answer on `$dps/registrations/res/{status}/?$rid={rid}&retry-after={seconds}`. None if it answers another
/// question.
fn read(topic: &str, rid: &str, body: &Bytes) -> Option<ServiceAnswer> {
    let (status, query) = topic.strip_prefix(ANSWERS)?.split_once("/?")?;
    let value = |name: &str| query.split('&').find_map(|field| field.strip_prefix(name)?.strip_prefix('='));
    (value("$rid") == Some(rid)).then_some(())?;
    let retry_after = value("retry-after").map(str::to_owned);
    Some(ServiceAnswer { status: status.parse().ok()?, retry_after, body: body.clone() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_known_by_the_id_of_its_question() {
        let read = |topic: &str| read(topic, "12", &Bytes::from_static(b"{}"));
        let answer = |status, wait: Option<&str>| {
            let retry_after = wait.map(str::to_owned);
            Some(ServiceAnswer { status, retry_after, body: Bytes::from_static(b"{}") })
        };
        assert_eq!(read("$dps/registrations/res/202/?$rid=12&retry-after=3"), answer(202, Some("3")));
        assert_eq!(read("$dps/registrations/res/200/?$rid=12"), answer(200, None));
        for other in ["res/200/?$rid=1", "res/200/?$rid=123", "res/x/?$rid=12", "res/200", "PUT/200/?$rid=12"]
        {
            assert_eq!(read(&format!("$dps/registrations/{other}")), None, "{other}");
        }
    }
}
