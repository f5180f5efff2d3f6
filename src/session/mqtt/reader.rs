//! The task that reads one MQTT connection.
//!
//! Owns: what each packet of the hub is to the session. Must not know: sockets, what is done with messages.

use rumqttc::{Packet, Publish, QoS, SubAck, SubscribeFilter, SubscribeReasonCode};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::subscriptions::{OtherSubscription, Subscriptions};
use super::topics::{self, TopicKind};
use super::wire::{PacketEvent, Wire};
use crate::message::excerpt;
use crate::session::arrivals::Arrivals;
use crate::session::calls::CallRequest;
use crate::session::certificates::CertificateAnswer;
use crate::session::connection::{Shared, SignInProgress};
use crate::session::delivery::{Delivery, Receipt};
use crate::session::dial::Dial;
use crate::session::failure::Fault;

/// The state of the task. The task does nothing slow.
pub(super) struct MqttReader {
    /// First, so that receipts find the connection closed before the socket is.
    pub(super) shared: Shared,
    pub(super) wire: Wire,
    pub(super) arrivals: Arrivals,
    pub(super) progress: watch::Sender<SignInProgress>,
}

impl MqttReader {
    /// Signs in, subscribes, and hands messages on until the connection ends.
    ///
    /// # Errors
    /// Why the connection failed.
    ///
    /// # Cancel safety
    /// A drop cuts the connection; the keeper ends a dead connection in this way.
    pub(super) async fn run(mut self) -> Result<(), Fault> {
        let session_present = self.wire.sign_in().await?;
        let Dial { host, port, client_id: device_id, transport, .. } = &self.wire.dial;
        tracing::info!(hub = %host, port, transport, device_id, session_present, "signed in");
        self.progress.send_modify(|progress| progress.signed_in = Some(Instant::now()));
        if self.wire.dial.signs_in_only {
            return self.wire.sign_out().await;
        }
        self.subscribe()?;
        loop {
            match self.wire.next().await? {
                PacketEvent::Packet(Packet::Publish(publish)) => self.hand_on(publish).await?,
                PacketEvent::Packet(Packet::SubAck(answer)) => self.subscribed(&answer)?,
                PacketEvent::Packet(_) => {}
                PacketEvent::SaidGoodbye => {
                    self.wire.linger().await;
                    return Ok(());
                }
            }
        }
    }

    fn subscriptions(&self) -> Subscriptions {
        let Dial { device_id, module_id, twin, methods, desired, certificates, .. } = &self.wire.dial;
        let others = [
            // A session that hears of desired properties must be able to read them.
            (*twin || *desired, OtherSubscription::TwinAnswers),
            (*methods, OtherSubscription::Methods),
            (*desired, OtherSubscription::Desired),
            (*certificates, OtherSubscription::CertificateAnswers),
        ];
        let others = others.into_iter().filter(|(wanted, _)| *wanted).map(|(_, other)| other);
        Subscriptions::new(topics::messages(device_id, module_id.as_deref()), others)
    }

    fn subscribe(&self) -> Result<(), Fault> {
        // Every session subscribes again, because the hub may have lost the subscription with its state.
        let subscriptions = self.subscriptions();
        let filters = subscriptions.filters().map(|(filter, at_least_once)| {
            let qos = if at_least_once { QoS::AtLeastOnce } else { QoS::AtMostOnce };
            SubscribeFilter::new(filter.to_owned(), qos)
        });
        self.wire.subscribe(filters)
    }

    fn subscribed(&self, answer: &SubAck) -> Result<(), Fault> {
        let Dial { host, client_id: device_id, .. } = &self.wire.dial;
        let answers = answer.return_codes.iter().map(|code| match code {
            SubscribeReasonCode::Success(qos) => Some(*qos as u8),
            SubscribeReasonCode::Failure => None,
        });
        let granted = self.subscriptions().granted(&answers.collect::<Vec<_>>(), host, device_id)?;
        tracing::info!(hub = %host, device_id, "subscribed");
        self.shared.in_flight.open(granted.contains(&OtherSubscription::TwinAnswers));
        let issues = granted.contains(&OtherSubscription::CertificateAnswers);
        self.progress.send_modify(|progress| (progress.subscribed, progress.issues) = (true, issues));
        Ok(())
    }

    /// Hands on what came. For a message it waits until there is room.
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
        if kind != TopicKind::Message && packet_id.is_none() {
            self.serve(kind, publish);
            return Ok(());
        }
        let Some(arrival) = self.wire.link.arrive(packet_id, publish.dup) else {
            tracing::debug!(
                packet_id,
                "message ignored for now: it is a retransmission, or the connection is ending"
            );
            return Ok(());
        };
        let receipt = Receipt::of_message(self.wire.link.clone(), arrival);
        if kind != TopicKind::Message {
            self.serve(kind, publish);
            receipt.complete();
            return Ok(());
        }
        let Dial { device_id, module_id, .. } = &self.wire.dial;
        let message = topics::message(device_id, module_id.as_deref(), &publish.topic, publish.payload);
        let (connection, redelivered, arrived) = (self.wire.dial.number, publish.dup, Instant::now());
        let origin = Some(self.wire.dial.origin.clone());
        let delivery =
            Delivery { message, origin, connection, redelivered, sequence: None, arrived, receipt };
        match self.arrivals.deliveries.try_send(delivery) {
            Ok(()) => Ok(()),
            Err(mpsc::error::TrySendError::Full(delivery)) => {
                self.wire.wait_for_room(delivery, &self.arrivals.deliveries).await
            }
            Err(mpsc::error::TrySendError::Closed(delivery)) => {
                delivery.receipt.leave();
                Ok(())
            }
        }
    }

    /// Handles everything that is not a message; never waits.
    fn serve(&self, kind: TopicKind, publish: Publish) {
        match kind {
            TopicKind::Message => {}
            TopicKind::TwinAnswer => self.answered(publish),
            TopicKind::DesiredChange => self.arrivals.desired.notify_one(),
            TopicKind::CertificateAnswer => match topics::certificate_answer(&publish.topic) {
                Some((request, status)) => {
                    let request = request.to_owned();
                    self.arrivals.certificates.push(CertificateAnswer {
                        request,
                        status,
                        body: publish.payload,
                    });
                }
                None => {
                    tracing::warn!(
                        topic = excerpt(&publish.topic),
                        "ignored an answer that names no request"
                    );
                }
            },
            TopicKind::MethodCall => {
                let Some((name, id)) = topics::method_call(&publish.topic) else {
                    let topic = excerpt(&publish.topic);
                    return tracing::warn!(topic, "ignored a method call: it has no usable request id");
                };
                let request = CallRequest { name, id: id.to_owned(), payload: publish.payload };
                self.wire.calls.hand_on(request, self.wire.dial.number, &self.arrivals.calls);
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
        if !self.shared.in_flight.answered(answer, publish.payload) {
            tracing::debug!(topic, "ignored an answer of the twin: no request waits for it any more");
        } else if answer.status >= 400 {
            tracing::warn!(status = answer.status, body, "the hub refused a request to the twin");
        }
    }
}
