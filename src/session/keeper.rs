//! Keeps the device connected: makes connections one after the other, renews them, and retries with growing delays.
//!
//! Owns: when to connect, renew, retry and give up. Must not know: MQTT packets, what is done with messages.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::future::BoxFuture;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::arrivals::Arrivals;
use super::backoff::{Backoff, STABLE};
use super::carrier::Carrier;
use super::certificates::NextRegistration;
use super::connection::Connection;
use super::dial::{ANSWER_LIMIT, Dial};
use super::due::{Due, SignInStart, reached_renewal};
use super::enrol::{self, EnrolError, EnrolSettings};
use super::event::{Event, SessionError};
use super::failure::Fault;
use super::proof::Trusted;
use super::publish::{Publisher, UNACKNOWLEDGED_LIMIT};
use super::registrations::Registrations;
use super::signin::{LONGEST_DRAIN, SignIn};
use super::terms::{HubSource, LoadedPair, Terms};
use super::transports;
use super::trial::{Trial, TrialRefusal};
use crate::certificate::CertificateFacts;

/// How long the end of the session waits for unsettled messages. The agent settles all of them before it ends the
/// session.
const STOP_DRAIN: Duration = Duration::from_millis(200);
/// How long the last PUBACKs and DISCONNECT may take.
const HANG_UP_LIMIT: Duration = Duration::from_millis(800);

/// After this many refusals in a row of a module that was accepted before, its generation is gone. Fewer can be a hub
/// that forgot the module for a moment.
const MOST_REFUSALS: u32 = 3;

/// How long one registration at the Device Provisioning Service may take: three of the longest pauses that it may ask for.
/// Silence ends one much sooner, because each answer has a limit of its own.
const REGISTRATION_LIMIT: Duration = Duration::from_secs(15 * 60);
/// How long the agent may take until it gives the session terms with the assigned hub: it writes a file and reads others.
const TAKE_UP_LIMIT: Duration = Duration::from_secs(60);

/// The task that keeps the session.
pub(super) struct Keeper {
    /// What to connect with; it may change at any time.
    pub(super) terms: watch::Receiver<Arc<Terms>>,
    pub(super) arrivals: Arrivals,
    pub(super) events: mpsc::Sender<Event>,
    pub(super) publisher: Arc<Publisher>,
    /// The next registration.
    pub(super) registration: Arc<NextRegistration>,
    /// Makes the current connection the last one.
    pub(super) no_more: CancellationToken,
    /// Ends the session.
    pub(super) stop: CancellationToken,
}

/// How a connection ended.
enum ConnectionEnd {
    /// The session must end.
    Stopped,
    /// It was closed in good order: the next connection signs in with a new token.
    Renewing,
    /// It was closed in good order: the Device Provisioning Service is asked again.
    Registering,
    /// The next connection uses other terms.
    Changed {
        /// How long it was signed in, if it was.
        held: Option<Duration>,
    },
    Failed {
        fault: Fault,
        /// How long it was signed in, if it was.
        held: Option<Duration>,
    },
}

impl ConnectionEnd {
    fn signed_in(&self) -> bool {
        match self {
            Self::Stopped => false,
            Self::Renewing | Self::Registering => true,
            Self::Changed { held } | Self::Failed { held, .. } => held.is_some(),
        }
    }
}

impl Keeper {
    /// Runs until [`Self::stop`] is cancelled.
    ///
    /// # Errors
    /// When the hub refuses a device whose session is alone and that it has never accepted since this process began;
    /// and when a module of IoT Edge was deployed again, because this process can then never sign in again. Everything
    /// else is retried.
    pub(super) async fn run(mut self) -> Result<(), SessionError> {
        self.keep().await?;
        self.stop.cancelled().await;
        Ok(())
    }

    async fn keep(&mut self) -> Result<(), SessionError> {
        let mut backoff = Backoff::new();
        let mut ever_signed_in = false;
        let (mut hang_ups, mut refusals) = (0, 0);
        let mut trusted = Trusted::default();
        let mut trial = Trial::default();
        let mut registrations = Registrations::new();
        let mut number = 1;
        let mut carrier = self.terms.borrow().first_carrier();
        loop {
            let terms = Arc::clone(&self.terms.borrow_and_update());
            let source = &terms.settings.hub_source;
            carrier = terms.carrier(carrier);
            if let Some(settings) =
                EnrolSettings::of(&terms).filter(|_| registrations.due_in(source) == Some(Duration::ZERO))
            {
                let error = match self.register(&settings, &terms).await {
                    Registered::Stopped => return Ok(()),
                    Registered::Anew => {
                        registrations.asked(None, fastrand::f64());
                        (backoff, carrier) = (Backoff::new(), self.terms.borrow().first_carrier());
                        continue;
                    }
                    Registered::Failed(error) => error,
                };
                if matches!(source, HubSource::Unassigned(_)) {
                    if error.is_refusal() && terms.settings.alone && !ever_signed_in {
                        return Err(SessionError::Refused(error.to_string()));
                    }
                    // What the service asks for is the least, and a random part keeps a thousand devices apart.
                    let retry_in = backoff.next_delay(Duration::ZERO, fastrand::f64());
                    let retry_in = retry_in + error.wait().unwrap_or_default();
                    match self.wait_after(error.to_string(), retry_in).await {
                        None => return Ok(()),
                        Some(Waited::Enough) => {}
                        Some(Waited::ForChange) => backoff = Backoff::new(),
                    }
                    continue;
                }
                registrations.asked(error.wait(), fastrand::f64());
                if let Some(pause) = error.wait() {
                    self.registration.rest(pause, fastrand::f64());
                }
                tracing::warn!(reason = %error, "the hub that was assigned before is tried again");
            }
            let pair = trial.pair(&terms);
            let end = self.connection(&terms, &pair, &mut trusted, number, carrier).await;
            if end.signed_in() {
                trial.signed_in(&terms, pair);
            }
            let (fault, held) = match end {
                ConnectionEnd::Stopped => return Ok(()),
                ConnectionEnd::Changed { held } => {
                    (backoff, hang_ups, refusals) = (Backoff::new(), 0, 0);
                    trusted = Trusted::default();
                    registrations.accepted(held.unwrap_or_default());
                    ever_signed_in |= held.is_some();
                    number += u64::from(held.is_some());
                    continue;
                }
                ConnectionEnd::Renewing => {
                    // The connection lasted until its renewal, so earlier failures do not count any more.
                    (backoff, hang_ups, refusals, ever_signed_in) = (Backoff::new(), 0, 0, true);
                    registrations.accepted(STABLE);
                    number += 1;
                    continue;
                }
                ConnectionEnd::Registering => {
                    (backoff, hang_ups, refusals, ever_signed_in) = (Backoff::new(), 0, 0, true);
                    registrations.wanted_now();
                    number += 1;
                    continue;
                }
                ConnectionEnd::Failed { fault, held } => (fault, held),
            };
            let signed_in = held.is_some();
            ever_signed_in |= signed_in;
            number += u64::from(signed_in);
            let held = held.unwrap_or_default();
            let mut failure = terms.failure(fault, carrier);
            let refused = if signed_in { None } else { trial.failed(&terms, &failure) };
            if let Some(TrialRefusal { certificate, goes_back, is_news: true }) = refused {
                let reason = failure.to_string();
                let refused = Event::CertificateRefused { certificate, goes_back, reason };
                drop(self.events.send(refused).await); // closed: as in `wait_after`
                if goes_back {
                    continue;
                }
            }
            // A hang-up long after the sign-in is normal. If it comes soon after it, again and again, another program
            // probably uses this identity.
            hang_ups = if failure.is_hang_up() && held < STABLE { hang_ups + 1 } else { 0 };
            if hang_ups > 1 && matches!(failure.fault, Fault::Closed) {
                failure.fault = Fault::Displaced { times: hang_ups };
            }
            refusals = if failure.is_refusal() && !signed_in { refusals + 1 } else { 0 };
            match signed_in {
                true => registrations.accepted(held),
                // A certificate that is over or revoked is often refused in TLS, or by a hang-up.
                false if refusals > 0 || refused.is_some() => registrations.refused(fastrand::f64()),
                false => registrations.unreached(),
            }
            let is_last = !ever_signed_in && terms.settings.alone && *source == HubSource::Configured;
            let ends_it = refusals > 0 && is_last;
            if failure.is_final() || ends_it {
                return Err(SessionError::Refused(failure.to_string()));
            }
            if refusals == MOST_REFUSALS && terms.generation().is_some() {
                return Err(SessionError::Refused(format!(
                    "{failure}; it has done so {refusals} times in a row, so this process ends, and edgeAgent starts the module's \
                     newest deployment"
                )));
            }
            // The network may block this carrier, so the next attempt uses the other one. A refusal came from the hub,
            // so the network lets this one through. A failure before dialling says nothing about the network.
            if !signed_in && !failure.is_refusal() && !failure.is_before_dialling() {
                carrier = terms.other_carrier(carrier);
            }
            let retry_in = backoff.next_delay(held, fastrand::f64());
            let retry_in = registrations.due_in(source).map_or(retry_in, |due| due.min(retry_in));
            match self.wait_after(failure.to_string(), retry_in).await {
                None => return Ok(()),
                Some(Waited::Enough) => {}
                Some(Waited::ForChange) => backoff = Backoff::new(),
            }
        }
    }

    /// Reports a failure, then waits for `retry_in` or until there are other terms. `None` if no other connection is
    /// wanted.
    async fn wait_after(&self, reason: String, retry_in: Duration) -> Option<Waited> {
        if self.no_more.is_cancelled() {
            return None;
        }
        tracing::warn!(%reason, retry_in_ms = retry_in.as_millis(), "not connected");
        let mut terms = self.terms.clone();
        let told = async {
            // The channel is closed when the session is being dropped: the stop follows.
            drop(self.events.send(Event::Disconnected { reason }).await);
            tokio::select! {
                () = tokio::time::sleep(retry_in) => Waited::Enough,
                Ok(()) = terms.changed() => Waited::ForChange,
            }
        };
        self.no_more.run_until_cancelled(told).await
    }

    /// Asks the Device Provisioning Service for a hub. If it is another one, waits for terms with it.
    async fn register(&self, settings: &EnrolSettings, terms: &Terms) -> Registered {
        let mut new_terms = self.terms.clone();
        tracing::info!(service = %settings.enrolment.endpoint, "asking the provisioning service for a hub");
        let csr = self.registration.csr();
        let asked = tokio::select! {
            biased;
            () = self.no_more.cancelled() => return Registered::Stopped,
            Ok(()) = new_terms.changed() => return Registered::Anew,
            asked = enrol::enrol(settings, csr.as_deref(), REGISTRATION_LIMIT) => asked,
        };
        let assignment = match asked {
            Ok(assignment) => assignment,
            Err(error) => return Registered::Failed(error),
        };
        let present = &terms.settings.identity;
        let is_another = (&assignment.hub.name, &assignment.device_id)
            != (&present.hub.name, &present.device_id)
            || !assignment.issued.is_empty()
            || matches!(terms.settings.hub_source, HubSource::Unassigned(_));
        let (enrolment, assignment) = (Box::new(settings.enrolment.clone()), Box::new(assignment));
        drop(self.events.send(Event::Assigned { enrolment, assignment }).await); // closed: as in `wait_after`
        if is_another {
            // Without terms in time, as when its files cannot be read, the service is asked again.
            let taken_up = timeout(TAKE_UP_LIMIT, new_terms.changed());
            if self.no_more.run_until_cancelled(taken_up).await.is_none() {
                return Registered::Stopped;
            }
        }
        self.registration.fulfilled();
        Registered::Anew
    }

    /// Makes a connection and serves it until its end. `number` counts the connections that signed in, from 1.
    async fn connection(
        &self,
        terms: &Terms,
        pair: &LoadedPair,
        trusted: &mut Trusted,
        number: u64,
        carrier: Carrier,
    ) -> ConnectionEnd {
        let mut new_terms = self.terms.clone();
        // The life of the token counts from before the sign-in, so that a slow workload API cannot make the renewal
        // late.
        let start = SignInStart::now(terms);
        let proof = tokio::select! {
            biased;
            () = self.no_more.cancelled() => return ConnectionEnd::Stopped,
            Ok(()) = new_terms.changed() => return ConnectionEnd::Changed { held: None },
            proof = terms.proof(trusted, pair) => match proof {
                Ok(proof) => proof,
                Err(fault) => return ConnectionEnd::Failed { fault, held: None },
            },
        };
        let (due, expiry, certificate) = (start.due(&proof.sign_in), proof.sign_in.expiry, pair.certificate);
        let dial = Dial::new(terms, proof, number, carrier);
        let signed = SignedWith { transport: dial.transport, due, expiry, certificate };
        let kind = terms.settings.transport;
        let (connection, reading) =
            match transports::prepare(kind, dial, self.arrivals.clone(), &self.publisher) {
                Ok(prepared) => prepared,
                Err(fault) => return ConnectionEnd::Failed { fault, held: None },
            };
        let mut task = JoinSet::new();
        task.spawn(reading);
        self.publisher.use_connection(&connection.shared.in_flight);
        self.attend(terms, connection, task, signed).await
    }

    /// Serves a connection until something ends it, and says what did.
    async fn attend(
        &self,
        terms: &Terms,
        connection: Connection,
        mut task: JoinSet<Result<(), Fault>>,
        signed: SignedWith,
    ) -> ConnectionEnd {
        let SignedWith { transport, mut due, expiry, certificate } = signed;
        let (mut coming, in_flight) = (connection.progress.clone(), Arc::clone(&connection.shared.in_flight));
        let mut told_subscribed = false;
        let mut renewing: Option<(SignInStart, BoxFuture<'_, Result<SignIn, Fault>>)> = None;
        let mut new_terms = self.terms.clone();
        loop {
            let progress = *coming.borrow_and_update();
            if progress.subscribed && !told_subscribed {
                told_subscribed = true;
                let renewal = due.as_ref().map(Due::time);
                let subscribed =
                    Event::Subscribed { transport, renewal, expiry, certificate, issues: progress.issues };
                drop(self.events.send(subscribed).await); // closed: as in `wait_after`
            }
            // The reading task limits the time of the sign-in itself, but not of the subscription.
            let unanswered = progress.signed_in.filter(|_| !progress.subscribed).map(|at| at + ANSWER_LIMIT);
            // `biased`: if the task has ended, its own reason counts, and no limit that ran out at the same time.
            tokio::select! {
                biased;
                Some(ended) = task.join_next() => {
                    let fault = match ended {
                        Ok(Ok(())) => Fault::Closed,
                        Ok(Err(fault)) => fault,
                        Err(error) => unreachable!("a panic ends the process, and nothing aborts this task: {error}"),
                    };
                    // A bare close gives no reason. What was unanswered at that moment is the likeliest cause.
                    let fault = match (fault, in_flight.lost()) {
                        (Fault::Closed, count) if count > 0 => Fault::ClosedUnanswered { count },
                        (Fault::Closed, _) if terms.asks_for_more() && !coming.borrow().subscribed => {
                            Fault::ClosedAtTwin
                        }
                        (fault, _) => fault,
                    };
                    let signed_in = coming.borrow().signed_in;
                    return ConnectionEnd::Failed { fault, held: signed_in.map(|at| at.elapsed()) };
                }
                // Before the sign-in there is nothing to drain: a drop is enough.
                () = self.no_more.cancelled(), if progress.signed_in.is_none() => return ConnectionEnd::Stopped,
                () = self.stop.cancelled() => {
                    finish(&connection, task, STOP_DRAIN).await;
                    return ConnectionEnd::Stopped;
                }
                // The progress is read again at the top of the loop.
                Ok(()) = coming.changed() => {}
                Some(drain) = reached_renewal(due.as_ref()), if progress.signed_in.is_some() && renewing.is_none() => {
                    // MQTT has no renewal in place: the next connection brings the new token.
                    if connection.renew.is_none() {
                        finish(&connection, task, drain).await;
                        tracing::info!("disconnected to renew the token");
                        return ConnectionEnd::Renewing;
                    }
                    renewing = Some((SignInStart::now(terms), Box::pin(terms.sign_in())));
                }
                Some((start, made)) = made(&mut renewing) => {
                    match made {
                        Ok(sign_in) if renewed(&connection, &sign_in) => {
                            due = start.due(&sign_in);
                            let (renewal, expiry) = (due.as_ref().map(Due::time), sign_in.expiry);
                            drop(self.events.send(Event::Renewed { renewal, expiry }).await); // closed: as in `wait_after`
                        }
                        // The next connection reports what is wrong.
                        _ => {
                            finish(&connection, task, due.as_ref().map_or(STOP_DRAIN, |due| due.renewal.drain)).await;
                            tracing::info!("disconnected, since the token could not be renewed");
                            return ConnectionEnd::Renewing;
                        }
                    }
                }
                Ok(()) = new_terms.changed() => {
                    // Without a sign-in there is nothing to settle: the drop cuts the attempt.
                    if progress.signed_in.is_some() {
                        finish(&connection, task, LONGEST_DRAIN).await;
                        tracing::info!("disconnected to sign in with the new configuration");
                    }
                    return ConnectionEnd::Changed { held: progress.signed_in.map(|at| at.elapsed()) };
                }
                // Without a request, the service has nothing to issue.
                () = self.registration.wanted(), if progress.signed_in.is_some() => {
                    if self.registration.csr().is_none() {
                        continue;
                    }
                    finish(&connection, task, LONGEST_DRAIN).await;
                    tracing::info!("disconnected to ask the provisioning service for a certificate");
                    return ConnectionEnd::Registering;
                }
                Some(()) = reached(unanswered) => {
                    let held = progress.signed_in.map(|at| at.elapsed());
                    return ConnectionEnd::Failed { fault: Fault::SubscriptionUnanswered { within: ANSWER_LIMIT }, held };
                }
                () = in_flight.overdue() => {
                    let held = progress.signed_in.map(|at| at.elapsed());
                    return ConnectionEnd::Failed { fault: Fault::Unacknowledged { within: UNACKNOWLEDGED_LIMIT }, held };
                }
            }
        }
    }
}

/// How a registration ended.
enum Registered {
    /// The session must end.
    Stopped,
    /// There is an assignment, or there are other terms.
    Anew,
    Failed(EnrolError),
}

/// Why a wait ended.
enum Waited {
    Enough,
    /// There are other terms: try them now.
    ForChange,
}

/// Ends a connection in good order: takes no new messages, waits at most `drain` until those that were taken are
/// settled, then sends the PUBACKs and DISCONNECT. The hub sends the unsettled ones again on the next connection.
async fn finish(connection: &Connection, mut task: JoinSet<Result<(), Fault>>, drain: Duration) {
    connection.shared.stop_taking();
    if timeout(drain, connection.shared.drained()).await.is_err() {
        tracing::debug!(
            waited_ms = drain.as_millis(),
            "messages are still unsettled: the hub sends them again"
        );
    }
    if !(connection.hang_up)() || timeout(HANG_UP_LIMIT, task.join_next()).await.is_err() {
        tracing::debug!("the connection was dropped without a close");
    }
}

/// Renews the token in place. False if that is not possible.
fn renewed(connection: &Connection, sign_in: &SignIn) -> bool {
    let (renew, token) = (connection.renew.as_ref(), sign_in.password.as_deref());
    renew.zip(token).is_some_and(|(renew, token)| renew(token))
}

/// Waits for the sign-in that is being made; `None` at once if there is none, which disables the arm. Cancel safe.
async fn made(
    renewing: &mut Option<(SignInStart, BoxFuture<'_, Result<SignIn, Fault>>)>,
) -> Option<(SignInStart, Result<SignIn, Fault>)> {
    let (_, making) = renewing.as_mut()?;
    let result = making.await;
    renewing.take().map(|(start, _)| (start, result))
}

/// What a connection signs in with.
struct SignedWith {
    transport: &'static str,
    due: Option<Due>,
    expiry: Option<SystemTime>,
    certificate: Option<CertificateFacts>,
}

/// Waits for a point in time; `None` at once if there is none, which disables the arm.
async fn reached(at: Option<Instant>) -> Option<()> {
    sleep_until(at?).await;
    Some(())
}
