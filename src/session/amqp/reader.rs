//! The task that serves one AMQP connection.
//!
//! Owns: what happens next, and what each thing that happens is to the session. Must not know: sockets, frames, what is
//! done with messages.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fe2o3_amqp::link::SendError;
use fe2o3_amqp::types::messaging::{Body, Outcome};
use fe2o3_amqp::types::primitives::Value;
use futures_util::StreamExt as _;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout};

use super::credit::Credit;
use super::links::{Answered, Handed, Links, Renewed};
use super::methods::{Called, Methods};
use super::opened::{OpenedConnection, open, say_goodbye};
use super::pending::until;
use super::received::{self, Received};
use super::settlements::Settlements;
use super::twin::{Heard, TwinLinks, TwinNews};
use super::{fault, message};
use crate::session::arrivals::Arrivals;
use crate::session::calls::Calls;
use crate::session::connection::{Shared, SignInProgress};
use crate::session::delivery::{Delivery, Receipt};
use crate::session::dial::{ANSWER_LIMIT, Dial};
use crate::session::failure::{self, Fault};
use crate::session::upstream::Upstream;

/// How long ready answers may take before a goodbye.
const LAST_ANSWERS: Duration = Duration::from_millis(200);

/// What the keeper asks of the task.
pub(super) enum Order {
    /// Put this token.
    Renew(String),
    HangUp,
}

/// The task that serves one connection.
pub(super) struct AmqpReader {
    pub(super) shared: Shared,
    pub(super) settlements: Arc<Settlements>,
    pub(super) calls: Arc<Calls>,
    pub(super) arrivals: Arrivals,
    /// Publishes that are to be sent, each with the number of its twin request (0 if it is none).
    pub(super) upstream: mpsc::Receiver<(Upstream, u64)>,
    pub(super) progress: watch::Sender<SignInProgress>,
    pub(super) orders: mpsc::Receiver<Order>,
    pub(super) dial: Dial,
}

/// What the task has to handle next.
enum AmqpEvent {
    /// Settlements, answers or a flow may be due: [`AmqpReader::send_ready`] looks.
    Ready,
    Renew(String),
    HangUp,
    Received(Received),
    Upstream(Upstream, u64),
    Handed(Handed),
    Answered(Answered),
    Twin(Heard),
    Called(Called),
    Renewed(Renewed),
}

impl AmqpReader {
    /// Signs in, attaches, and hands messages on until the connection ends.
    ///
    /// # Errors
    /// Why the connection failed.
    ///
    /// # Cancel safety
    /// A drop cuts the connection; the keeper ends a dead connection in this way.
    pub(super) async fn run(mut self) -> Result<(), Fault> {
        let opened = match timeout(ANSWER_LIMIT, open(&self.dial)).await {
            Ok(opened) => opened?,
            Err(_elapsed) => return Err(Fault::Unanswered { within: ANSWER_LIMIT }),
        };
        if self.dial.signs_in_only {
            // No message came, because no credit was given.
            say_goodbye(opened.sessions, opened.connection).await;
            return Ok(());
        }
        let Dial { host, port, device_id, transport, .. } = &self.dial;
        tracing::info!(hub = %host, port, transport, device_id, "signed in over AMQP and subscribed");
        self.shared.in_flight.open(opened.links.twin.is_some());
        let now = Some(Instant::now());
        self.progress.send_modify(|progress| (progress.signed_in, progress.subscribed) = (now, true));
        let failed = Arc::clone(&opened.failed);
        let served = self.serve(opened).await;
        served.map_err(|fault| match (fault, failed.get()) {
            (Fault::Closed, Some(error)) => failure::from_io(error, &self.dial.host),
            (fault, _) => fault,
        })
    }

    async fn serve(&mut self, opened: OpenedConnection) -> Result<(), Fault> {
        // Dropped from the last to the first: the links before their session, and the stream is cut at the end.
        let OpenedConnection { _cut, connection, sessions, mut links, .. } = opened;
        let mut credit = Credit::new(self.dial.keep_alive);
        loop {
            self.send_ready(&mut links, &mut credit).await?;
            match self.next(&mut links, &mut credit).await {
                AmqpEvent::HangUp => {
                    links.settle(self.settlements.take_ready(), self.now()).await?;
                    if let Some(methods) = links.methods.take() {
                        self.answer_the_last(methods).await;
                    }
                    say_goodbye(sessions, connection).await;
                    return Ok(());
                }
                happening => self.step(happening, &mut links, &mut credit).await?,
            }
        }
    }

    /// Sends the settlements, the answers and the flow that are due.
    async fn send_ready(&self, links: &mut Links, credit: &mut Credit) -> Result<(), Fault> {
        links.settle(self.settlements.take_ready(), self.now()).await?;
        if let Some(methods) = &mut links.methods {
            methods.send(self.calls.take_ready());
        }
        match credit.due() {
            Some(credit) => links.give_credit(credit, self.now()).await,
            None => Ok(()),
        }
    }

    /// Waits for what happens next. Cancel safe.
    async fn next(&mut self, links: &mut Links, credit: &mut Credit) -> AmqpEvent {
        let free = links.are_free();
        let Links { receiver, sending, sent, twin, methods, renewing, .. } = links;
        // `biased`: orders of the keeper come first, so that no input of the hub can delay them.
        tokio::select! {
            biased;
            order = self.orders.recv() => match order {
                Some(Order::Renew(token)) => AmqpEvent::Renew(token),
                Some(Order::HangUp) | None => AmqpEvent::HangUp,
            },
            () = self.settlements.changed() => AmqpEvent::Ready,
            () = self.calls.changed() => AmqpEvent::Ready,
            () = credit.changed(&self.arrivals.deliveries) => AmqpEvent::Ready,
            received = receiver.recv::<Body<Value>>() => AmqpEvent::Received(received),
            Some((upstream, request)) = self.upstream.recv(), if free => AmqpEvent::Upstream(upstream, request),
            heard = next_heard(twin) => AmqpEvent::Twin(heard),
            handed = until(sending) => AmqpEvent::Handed(handed),
            Some(answered) = sent.next() => AmqpEvent::Answered(answered),
            renewed = until(renewing) => AmqpEvent::Renewed(renewed),
            // The last of this list, because a hub may call without a limit and must not keep the other arms waiting.
            called = next_called(methods) => AmqpEvent::Called(called),
        }
    }

    async fn step(&self, happening: AmqpEvent, links: &mut Links, credit: &mut Credit) -> Result<(), Fault> {
        match happening {
            AmqpEvent::Ready | AmqpEvent::HangUp => Ok(()),
            AmqpEvent::Renew(token) => links.renew(token, self.now()),
            AmqpEvent::Received(received) => self.received(received, links, credit),
            AmqpEvent::Upstream(upstream, request) => {
                let id = links.publish(upstream, request);
                self.shared.in_flight.sent(id);
                Ok(())
            }
            AmqpEvent::Handed(handed) => links.handed(handed, self.now()),
            AmqpEvent::Answered((id, outcome)) => self.answered(id, outcome),
            AmqpEvent::Twin(heard) => match &mut links.twin {
                Some(twin) => self.heard(twin, heard).await,
                None => Ok(()),
            },
            AmqpEvent::Called(called) => match &mut links.methods {
                Some(methods) => self.called(methods, called).await,
                None => Ok(()),
            },
            AmqpEvent::Renewed(renewed) => {
                links.renewed(renewed)?;
                tracing::info!(device_id = self.dial.device_id, "renewed the token");
                Ok(())
            }
        }
    }

    /// A message came.
    fn received(&self, received: Received, links: &mut Links, credit: &mut Credit) -> Result<(), Fault> {
        let room = credit.use_one();
        let (info, message) = received::read(received, self.now())?;
        let sequence = message.as_ref().ok().and_then(message::sequence);
        let message = message.and_then(message::c2d);
        let Some(arrival) = self.settlements.arrive() else { return Ok(()) };
        let receipt = Receipt::of_message(self.settlements.clone(), arrival);
        links.unsettled.insert(arrival, info);
        let (connection, arrived) = (self.dial.number, Instant::now());
        let (origin, redelivered) = (Some(self.dial.origin.clone()), false);
        let delivery = Delivery { message, origin, connection, redelivered, sequence, arrived, receipt };
        match room {
            Some(permit) => {
                permit.send(delivery);
                Ok(())
            }
            None => Err(Fault::Protocol { reason: "it sent more than it had credit for".into() }),
        }
    }

    /// The hub has answered a publish.
    fn answered(&self, id: u16, outcome: Result<Outcome, SendError>) -> Result<(), Fault> {
        match outcome.map_err(|error| fault::of_send(error, self.now()))? {
            Outcome::Accepted(_) => self.shared.in_flight.acknowledged(id),
            other => self.shared.in_flight.refused(id, fault::publish_error(&other)),
        }
        Ok(())
    }

    /// A request to the twin was sent, or an answer came.
    async fn heard(&self, twin: &mut TwinLinks, heard: Heard) -> Result<(), Fault> {
        match heard {
            Heard::Sent(link, id, outcome) => {
                twin.sent(link);
                self.answered(id, outcome)
            }
            Heard::Reply(reply) => {
                let (answer, body) = match twin.read(reply, self.now()).await? {
                    Some(TwinNews::Answer(answer, body)) => (answer, body),
                    Some(TwinNews::Desired) => {
                        self.arrivals.desired.notify_one();
                        return Ok(());
                    }
                    None => return Ok(()),
                };
                if !self.shared.in_flight.answered(answer, body) {
                    tracing::debug!("ignored an answer of the twin: no request waits for it any more");
                }
                Ok(())
            }
        }
    }

    /// A call came, or an answer was sent.
    async fn called(&self, methods: &mut Methods, called: Called) -> Result<(), Fault> {
        match called {
            Called::Sent(link, sent) => methods.sent(link, sent, self.now()),
            Called::Request(request) => {
                if let Some(request) = methods.read(request, self.now()).await? {
                    self.calls.hand_on(request, self.dial.number, &self.arrivals.calls);
                }
                Ok(())
            }
        }
    }

    /// Sends the answers that are ready, before a goodbye.
    async fn answer_the_last(&self, mut methods: Methods) {
        methods.send(self.calls.take_ready());
        if timeout(LAST_ANSWERS, methods.flush()).await.is_err() {
            tracing::debug!("the hub did not accept the last answers to calls");
        }
    }

    fn now(&self) -> SystemTime {
        (self.dial.clock)()
    }
}

/// What happens next on the links of the twin; waits for ever if there are none. Cancel safe.
async fn next_heard(twin: &mut Option<TwinLinks>) -> Heard {
    match twin {
        Some(twin) => twin.next().await,
        None => std::future::pending().await,
    }
}

/// What happens next on the links of methods; waits for ever if there are none. Cancel safe.
async fn next_called(methods: &mut Option<Methods>) -> Called {
    match methods {
        Some(methods) => methods.next().await,
        None => std::future::pending().await,
    }
}
