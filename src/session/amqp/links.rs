//! The links of one connection, and what is under way on them.
//!
//! Owns: settling and publishing on the wire. Must not know: what is done with messages, orders of the keeper.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use fe2o3_amqp::link::delivery::{DeliveryFut, DeliveryInfo};
use fe2o3_amqp::link::{IllegalLinkStateError, SendError};
use fe2o3_amqp::types::messaging::{Body, Outcome};
use fe2o3_amqp::types::primitives::Value;
use fe2o3_amqp::{Receiver, Sender};
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use tokio::time::timeout;

use super::cbs::Cbs;
use super::methods::Methods;
use super::twin::TwinLinks;
use super::{fault, message};
use crate::session::dial::ANSWER_LIMIT;
use crate::session::failure::Fault;
use crate::session::gate::{ArrivalNo, Settlement};
use crate::session::upstream::Upstream;

/// How long to wait for the hub to say why it ended the link.
const WHY_LIMIT: Duration = Duration::from_millis(200);

/// The link, the number of a publish, and the hub's answer to come; or why its D2C message was not sent.
pub(super) type Handed = (Sender, u16, Result<DeliveryFut<Result<Outcome, SendError>>, SendError>);
/// What the hub says of the publish with this number.
pub(super) type Answered = (u16, Result<Outcome, SendError>);
/// The links to the token service, after a token was put.
pub(super) type Renewed = (Box<Cbs>, Result<(), Fault>);

/// The links. An absent one is in use by the future behind it, or was not attached.
pub(super) struct Links {
    pub(super) receiver: Receiver,
    pub(super) unsettled: HashMap<ArrivalNo, DeliveryInfo>,
    events: Option<Sender>,
    pub(super) sending: Option<BoxFuture<'static, Handed>>,
    pub(super) sent: FuturesUnordered<BoxFuture<'static, Answered>>,
    last_publish: u16,
    pub(super) twin: Option<TwinLinks>,
    pub(super) methods: Option<Methods>,
    cbs: Option<Box<Cbs>>,
    pub(super) renewing: Option<BoxFuture<'static, Renewed>>,
}

impl Links {
    pub(super) fn new(
        receiver: Receiver,
        events: Sender,
        twin: Option<TwinLinks>,
        methods: Option<Methods>,
        cbs: Option<Box<Cbs>>,
    ) -> Self {
        Self {
            receiver,
            unsettled: HashMap::new(),
            events: Some(events),
            sending: None,
            sent: FuturesUnordered::new(),
            last_publish: 0,
            twin,
            methods,
            cbs,
            renewing: None,
        }
    }

    /// Whether the next publish can be sent. Both links must be free, because its kind is not known yet.
    pub(super) fn are_free(&self) -> bool {
        self.events.is_some() && self.twin.as_ref().is_none_or(TwinLinks::is_free)
    }

    /// Begins to send a publish, and returns its number. Call it only while the links are free.
    pub(super) fn publish(&mut self, upstream: Upstream, request: u64) -> u16 {
        self.last_publish = self.last_publish.wrapping_add(1).max(1);
        let id = self.last_publish;
        match upstream {
            Upstream::Telemetry { properties, body } => {
                let message = message::d2c(&properties, &body);
                self.sending = self.events.take().map(|mut link| {
                    Box::pin(async move {
                        let result = link.send_batchable(message).await;
                        (link, id, result)
                    }) as BoxFuture<'static, Handed>
                });
            }
            Upstream::Reported { patch } => {
                self.twin.iter_mut().for_each(|twin| twin.report(id, request, &patch));
            }
            Upstream::ReadTwin => self.twin.iter_mut().for_each(|twin| twin.get(id, request)),
            // The hub issues certificates over MQTT only, and the agent asks nothing else. Source: wire reference 12.6.
            Upstream::IssueCertificate { .. } => {}
        }
        id
    }

    /// A D2C message is on the wire; the hub's answer follows.
    ///
    /// # Errors
    /// When the link is gone.
    pub(super) fn handed(&mut self, (link, id, result): Handed, now: SystemTime) -> Result<(), Fault> {
        (self.events, self.sending) = (Some(link), None);
        let settled = result.map_err(|error| fault::of_send(error, now))?;
        self.sent.push(Box::pin(async move { (id, settled.await) }));
        Ok(())
    }

    /// Begins to put another token.
    ///
    /// # Errors
    /// When the last one is not put yet: the hub does not answer.
    pub(super) fn renew(&mut self, token: String, now: SystemTime) -> Result<(), Fault> {
        if self.renewing.is_some() {
            return Err(Fault::Silent);
        }
        self.renewing = self.cbs.take().map(|mut link| {
            let put = async move {
                let put = timeout(ANSWER_LIMIT, link.put(&token, now)).await;
                (link, put.unwrap_or(Err(Fault::Silent)))
            };
            Box::pin(put) as BoxFuture<'static, Renewed>
        });
        Ok(())
    }

    /// A token was put, or refused.
    ///
    /// # Errors
    /// Why the token does not count.
    pub(super) fn renewed(&mut self, (link, result): Renewed) -> Result<(), Fault> {
        result?;
        (self.cbs, self.renewing) = (Some(link), None);
        Ok(())
    }

    /// Sends settlements.
    ///
    /// # Errors
    /// Why the link is gone.
    pub(super) async fn settle(
        &mut self,
        settlements: Vec<(ArrivalNo, Settlement)>,
        now: SystemTime,
    ) -> Result<(), Fault> {
        for (arrival, settlement) in settlements {
            let Some(info) = self.unsettled.remove(&arrival) else { continue };
            let sent = match settlement {
                Settlement::Complete => self.receiver.accept(info).await,
                Settlement::Abandon => self.receiver.release(info).await,
                Settlement::Reject => self.receiver.reject(info, None).await,
            };
            if let Err(error) = sent {
                return Err(self.why(error, now).await);
            }
        }
        Ok(())
    }

    /// Gives credit for so many messages.
    ///
    /// # Errors
    /// Why the link is gone.
    pub(super) async fn give_credit(&mut self, credit: u32, now: SystemTime) -> Result<(), Fault> {
        match self.receiver.set_credit(credit).await {
            Ok(()) => Ok(()),
            Err(error) => Err(self.why(error, now).await),
        }
    }

    /// The reason why the hub ended the link, after a send on it failed. The hub tells it to the receiving side.
    async fn why(&mut self, error: IllegalLinkStateError, now: SystemTime) -> Fault {
        match fault::of_link_state(error.into(), now) {
            Fault::Closed => match timeout(WHY_LIMIT, self.receiver.recv::<Body<Value>>()).await {
                Ok(Err(error)) => fault::of_receive(error, now),
                Ok(Ok(_)) | Err(_) => Fault::Closed,
            },
            fault => fault,
        }
    }
}
