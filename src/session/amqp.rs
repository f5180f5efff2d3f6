//! One AMQP 1.0 connection to the hub as a device.
//!
//! Owns: the links, their credit, settlements on the wire, renewal of the token in place. In `session`, only this file
//! and the files of its folder name the AMQP crate. Must not know: reconnecting, what is done with messages.
//!
//! Source: wire reference 2. With a key there is no SASL: a token is put to `$cbs`, and another one at each renewal.
//! With a certificate there is only TLS. The twin has a pair of links of its own, and so have methods, if the settings
//! ask for them. Messages come on one link, with credit for as many as the agent's channel has room for. Each message
//! is settled by itself.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use fe2o3_amqp::link::delivery::{DeliveryFut, DeliveryInfo};
use fe2o3_amqp::link::{IllegalLinkStateError, SendError};
use fe2o3_amqp::types::messaging::{Body, Outcome};
use fe2o3_amqp::types::primitives::Value;
use fe2o3_amqp::{Receiver, Sender};
use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout};

use super::arrivals::{Arrivals, DELIVERIES};
use super::calls::Calls;
use super::delivery::{Delivery, Receipt, Settlement};
use super::failure::{self, Fault};
use super::mqtt::{ANSWER_LIMIT, Dial, Progress};
use super::outbox::{Outbox, Publisher, UNDER_WAY};
use super::release::Ticket;
use super::settlements::Settlements;
use super::signin::SignIn;
use super::{PublishError, Upstream};

use cbs::Cbs;
use methods::{Called, Methods};
use opened::{Opened, say_goodbye};
use received::Received;
use twin::{Heard, News, Twin};

mod cbs;
mod dial;
mod fault;
mod message;
mod methods;
mod opened;
mod pair;
mod received;
mod twin;

/// A link that waits sends a flow at least this often. The AMQP crate sends its own heartbeats as late as the hub's
/// time-out allows, which a strict hub takes for silence; hubs allow four minutes. Source: wire reference 2.1.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// More credit is given for this much new room. A flow for each message would double the traffic.
const CREDIT_STEP: usize = DELIVERIES / 4;
/// How long to wait for the hub to say why it ended the link.
const WHY_LIMIT: Duration = Duration::from_millis(200);
/// How long ready answers may take before a goodbye.
const LAST_ANSWERS: Duration = Duration::from_millis(200);

/// What the keeper asks of the reading task.
enum Command {
    /// Put this token.
    Renew(String),
    HangUp,
}

/// The keeper's end of a connection. Its drop declares the connection gone.
pub(super) struct Connection {
    pub(super) settlements: Arc<Settlements>,
    pub(super) calls: Arc<Calls>,
    pub(super) outbox: Arc<Outbox>,
    pub(super) progress: watch::Receiver<Progress>,
    commands: mpsc::Sender<Command>,
}

impl Connection {
    /// Prepares a connection. Nothing is sent before [`Reader::run`].
    pub(super) fn prepare(dial: Dial, arrivals: Arrivals, publisher: &Arc<Publisher>) -> (Self, Reader) {
        let settlements = Arc::new(Settlements::new());
        // This reading task always listens to `changed()`, so no wake-up is needed.
        let calls = Arc::new(Calls::new(Box::new(|_| false)));
        let (publish, upstream) = mpsc::channel(UNDER_WAY);
        let hand = move |upstream, request| {
            publish.try_send((upstream, request)).map_err(|_full_or_gone| PublishError::Lost)
        };
        let outbox = Arc::new(Outbox::new(Box::new(hand), Arc::clone(publisher)));
        let (report, progress) = watch::channel(Progress::default());
        let (commands, asked) = mpsc::channel(2);
        let reader = Reader {
            settlements: Arc::clone(&settlements),
            calls: Arc::clone(&calls),
            outbox: Arc::clone(&outbox),
            arrivals,
            upstream,
            progress: report,
            commands: asked,
            dial,
        };
        (Self { settlements, calls, outbox, progress, commands }, reader)
    }

    /// Asks for a goodbye after the settlements that are ready; [`Reader::run`] then returns. False if it could not
    /// ask.
    pub(super) fn hang_up(&self) -> bool {
        self.commands.try_send(Command::HangUp).is_ok()
    }

    /// Puts another token. False if it could not, or if the last one is not put yet.
    pub(super) fn renew(&self, sign_in: &SignIn) -> bool {
        let token = sign_in.password.clone();
        token.is_some_and(|token| self.commands.try_send(Command::Renew(token)).is_ok())
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // The reader closes them, too, but the runtime may drop a task that was cut off only later.
        self.settlements.close();
        self.calls.close();
        self.outbox.close();
    }
}

/// The task that serves one connection.
pub(super) struct Reader {
    settlements: Arc<Settlements>,
    calls: Arc<Calls>,
    outbox: Arc<Outbox>,
    arrivals: Arrivals,
    /// Each with the number of its twin request.
    upstream: mpsc::Receiver<(Upstream, u64)>,
    progress: watch::Sender<Progress>,
    commands: mpsc::Receiver<Command>,
    dial: Dial,
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.settlements.close();
        self.calls.close();
        self.outbox.close();
    }
}

type Sent = (u16, Result<Outcome, SendError>);
type Sending = BoxFuture<'static, (Sender, u16, Result<DeliveryFut<Result<Outcome, SendError>>, SendError>)>;
type Renewing = BoxFuture<'static, (Box<Cbs>, Result<(), Fault>)>;

/// What the reading task has to handle next.
enum Happening {
    Command(Option<Command>),
    Settled,
    Room(Option<mpsc::OwnedPermit<Delivery>>),
    Received(Received),
    Upstream(Upstream, u64),
    Twin(Heard),
    Called(Called),
    Sending(Sender, u16, Result<DeliveryFut<Result<Outcome, SendError>>, SendError>),
    Sent(Sent),
    Renewed(Box<Cbs>, Result<(), Fault>),
    KeepAlive,
}

impl Reader {
    /// Signs in, attaches, and hands messages on until the connection ends. `Ok` after [`Connection::hang_up`].
    ///
    /// # Errors
    /// Why the connection failed.
    ///
    /// # Cancel safety
    /// A drop cuts the connection; the keeper ends a dead connection in this way.
    pub(super) async fn run(mut self) -> Result<(), Fault> {
        let opened = match timeout(ANSWER_LIMIT, self.open()).await {
            Ok(opened) => opened?,
            Err(_elapsed) => return Err(Fault::Unanswered { within: ANSWER_LIMIT }),
        };
        let Dial { host, port, device_id, transport, .. } = &self.dial;
        tracing::info!(hub = %host, port, transport, device_id, "signed in over AMQP and subscribed");
        self.outbox.open(opened.twin.is_some());
        let now = Some(Instant::now());
        self.progress.send_modify(|progress| (progress.signed_in, progress.subscribed) = (now, true));
        let failed = Arc::clone(&opened.failed);
        let served = self.serve(opened).await;
        served.map_err(|fault| match (fault, failed.get()) {
            (Fault::Closed, Some(error)) => failure::from_io(error, &self.dial.host),
            (fault, _) => fault,
        })
    }

    /// Signs in, attaches and says goodbye. No message comes, because no credit is given.
    ///
    /// # Errors
    /// As [`Reader::run`].
    #[allow(dead_code)] // The doctor is a feature.
    pub(super) async fn sign_in_and_out(self) -> Result<(), Fault> {
        let opened = self.open().await?;
        let Opened { sessions, connection, receiver: _receiver, events: _events, cbs: _cbs, _cut, .. } =
            opened;
        say_goodbye(sessions, connection).await;
        Ok(())
    }

    async fn serve(&mut self, opened: Opened) -> Result<(), Fault> {
        let Opened { mut receiver, events, mut twin, mut methods, cbs, sessions, connection, _cut, .. } =
            opened;
        let (mut events, mut cbs) = (Some(events), cbs);
        let mut unsettled: HashMap<Ticket, DeliveryInfo> = HashMap::new();
        let mut room: Vec<mpsc::OwnedPermit<Delivery>> = Vec::new();
        let (mut granted, mut accepts) = (0usize, true);
        let mut sending: Option<Sending> = None;
        let mut sent: FuturesUnordered<BoxFuture<'static, Sent>> = FuturesUnordered::new();
        let mut renewing: Option<Renewing> = None;
        let mut last_id: u16 = 0;
        let pause = self.dial.keep_alive.min(LONGEST_PAUSE);
        let mut next_flow = Instant::now() + pause;
        loop {
            self.send_settlements(&mut receiver, &mut unsettled).await?;
            if let Some(methods) = &mut methods {
                methods.send(self.calls.take_ready());
            }
            // A flow gives credit for all the room. It is sent when there is enough new room, when the hub has no
            // credit left, and as a sign of life.
            if room.len() >= granted + CREDIT_STEP
                || (granted == 0 && !room.is_empty())
                || next_flow <= Instant::now()
            {
                let credit = u32::try_from(room.len()).unwrap_or(u32::MAX);
                if let Err(error) = receiver.set_credit(credit).await {
                    return Err(self.why(&mut receiver, error).await);
                }
                (granted, next_flow) = (room.len(), Instant::now() + pause);
            }
            let more_room = self.arrivals.deliveries.clone().reserve_owned();
            // Both links must be free, because the kind of the next publish is not known yet.
            let free = events.is_some() && twin.as_ref().is_none_or(Twin::is_free);
            // `biased`: commands of the keeper come first, so that no input of the hub can delay them.
            let happening = tokio::select! {
                biased;
                command = self.commands.recv() => Happening::Command(command),
                () = self.settlements.changed() => Happening::Settled,
                () = self.calls.changed() => Happening::Settled,
                permit = more_room, if accepts && room.len() < DELIVERIES => Happening::Room(permit.ok()),
                received = receiver.recv::<Body<Value>>() => Happening::Received(received),
                Some((upstream, request)) = self.upstream.recv(), if free => Happening::Upstream(upstream, request),
                heard = next_heard(&mut twin) => Happening::Twin(heard),
                (link, id, result) = until(&mut sending) => Happening::Sending(link, id, result),
                Some(done) = sent.next() => Happening::Sent(done),
                (link, result) = until(&mut renewing) => Happening::Renewed(link, result),
                // Near the end of this list, because a hub may call without a limit and must not keep the other arms
                // waiting.
                called = next_called(&mut methods) => Happening::Called(called),
                () = tokio::time::sleep_until(next_flow) => Happening::KeepAlive,
            };
            match happening {
                // The last token is not put yet: the hub does not answer.
                Happening::Command(Some(Command::Renew(_))) if renewing.is_some() => {
                    return Err(Fault::Silent);
                }
                Happening::Command(Some(Command::Renew(token))) => {
                    let now = (self.dial.clock)();
                    renewing = cbs.take().map(|mut link| {
                        let put = async move {
                            let put = timeout(ANSWER_LIMIT, link.put(&token, now)).await;
                            (link, put.unwrap_or(Err(Fault::Silent)))
                        };
                        Box::pin(put) as Renewing
                    });
                }
                Happening::Command(Some(Command::HangUp) | None) => {
                    self.send_settlements(&mut receiver, &mut unsettled).await?;
                    if let Some(methods) = methods {
                        self.answer_the_last(methods).await;
                    }
                    say_goodbye(sessions, connection).await;
                    return Ok(());
                }
                Happening::Settled | Happening::KeepAlive => {}
                Happening::Room(Some(permit)) => room.push(permit),
                // The channel is closed, because the session ends.
                Happening::Room(None) => accepts = false,
                Happening::Received(received) => {
                    granted = granted.saturating_sub(1);
                    let (info, message) = received::read(received, (self.dial.clock)())?;
                    let sequence = message.as_ref().ok().and_then(message::sequence);
                    let message = message.and_then(message::c2d);
                    let Some(ticket) = self.settlements.arrive() else { continue };
                    unsettled.insert(ticket, info);
                    let receipt = Receipt::over_amqp(Arc::clone(&self.settlements), ticket);
                    let (connection, arrived) = (self.dial.number, Instant::now());
                    let delivery =
                        Delivery { message, connection, redelivered: false, sequence, arrived, receipt };
                    match room.pop() {
                        Some(permit) => drop(permit.send(delivery)),
                        // The hub sent more messages than it had credit for.
                        None => {
                            return Err(Fault::Protocol {
                                reason: "it sent more than it had credit for".into(),
                            });
                        }
                    }
                }
                Happening::Upstream(upstream, request) => {
                    last_id = last_id.wrapping_add(1).max(1);
                    let id = last_id;
                    self.outbox.sent(id);
                    match upstream {
                        Upstream::Telemetry { properties, body } => {
                            let message = message::d2c(&properties, &body);
                            sending = events.take().map(|mut link| {
                                Box::pin(async move {
                                    let result = link.send_batchable(message).await;
                                    (link, id, result)
                                }) as Sending
                            });
                        }
                        Upstream::Reported { patch } => {
                            twin.iter_mut().for_each(|twin| twin.report(id, request, &patch));
                        }
                        Upstream::ReadTwin => {
                            twin.iter_mut().for_each(|twin| twin.get(id, request));
                        }
                    }
                }
                Happening::Sending(link, id, result) => {
                    (events, sending) = (Some(link), None);
                    let settled = result.map_err(|error| fault::of_send(error, (self.dial.clock)()))?;
                    sent.push(Box::pin(async move { (id, settled.await) }));
                }
                Happening::Twin(heard) => {
                    if let Some(twin) = &mut twin {
                        self.heard(twin, heard).await?;
                    }
                }
                Happening::Called(called) => {
                    if let Some(methods) = &mut methods {
                        self.called(methods, called).await?;
                    }
                }
                Happening::Sent((id, outcome)) => self.sent(id, outcome)?,
                Happening::Renewed(link, result) => {
                    result?;
                    (cbs, renewing) = (Some(link), None);
                    tracing::info!(device_id = self.dial.device_id, "renewed the token");
                }
            }
        }
    }

    /// The hub has answered a publish.
    fn sent(&self, id: u16, outcome: Result<Outcome, SendError>) -> Result<(), Fault> {
        match outcome.map_err(|error| fault::of_send(error, (self.dial.clock)()))? {
            Outcome::Accepted(_) => self.outbox.acknowledged(id),
            other => self.outbox.refused(id, fault::publish_error(&other)),
        }
        Ok(())
    }

    /// A request to the twin was sent, or an answer came.
    async fn heard(&self, twin: &mut Twin, heard: Heard) -> Result<(), Fault> {
        match heard {
            Heard::Sent(link, id, outcome) => {
                twin.sent(link);
                self.sent(id, outcome)
            }
            Heard::Reply(reply) => {
                let (answer, body) = match twin.read(reply, (self.dial.clock)()).await? {
                    Some(News::Answer(answer, body)) => (answer, body),
                    Some(News::Desired) => {
                        self.arrivals.desired.notify_one();
                        return Ok(());
                    }
                    None => return Ok(()),
                };
                if !self.outbox.answered(answer, body) {
                    tracing::debug!("ignored an answer of the twin: no request waits for it any more");
                }
                Ok(())
            }
        }
    }

    /// A call came, or an answer was sent.
    async fn called(&self, methods: &mut Methods, called: Called) -> Result<(), Fault> {
        let now = (self.dial.clock)();
        match called {
            Called::Sent(link, sent) => methods.sent(link, sent, now),
            Called::Request(request) => {
                if let Some(request) = methods.read(request, now).await? {
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

    /// Sends the settlements that are ready.
    async fn send_settlements(
        &self,
        receiver: &mut Receiver,
        unsettled: &mut HashMap<Ticket, DeliveryInfo>,
    ) -> Result<(), Fault> {
        for (ticket, settlement) in self.settlements.take_ready() {
            let Some(info) = unsettled.remove(&ticket) else { continue };
            let sent = match settlement {
                Settlement::Complete => receiver.accept(info).await,
                Settlement::Abandon => receiver.release(info).await,
                Settlement::Reject => receiver.reject(info, None).await,
            };
            if let Err(error) = sent {
                return Err(self.why(receiver, error).await);
            }
        }
        Ok(())
    }

    /// The reason why the hub ended the link, after a send on it failed. The hub tells it to the receiving side.
    async fn why(&self, receiver: &mut Receiver, error: IllegalLinkStateError) -> Fault {
        let now = (self.dial.clock)();
        match fault::of_link_state(error.into(), now) {
            Fault::Closed => match timeout(WHY_LIMIT, receiver.recv::<Body<Value>>()).await {
                Ok(Err(error)) => fault::of_receive(error, now),
                Ok(Ok(_)) | Err(_) => Fault::Closed,
            },
            fault => fault,
        }
    }
}

/// What happens next on the links of the twin; waits for ever if there are none. Cancel safe.
async fn next_heard(twin: &mut Option<Twin>) -> Heard {
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

/// Waits for a started future; for ever if there is none. Cancel safe: the next call continues it.
async fn until<T>(future: &mut Option<BoxFuture<'static, T>>) -> T {
    match future {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
}
