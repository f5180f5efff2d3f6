//! The agent: takes messages from the session, acts on them by the rules, and completes them.
//!
//! Owns: policy. Which message is acted on, in which order, when it is completed, and what happens at shutdown.
//! Must not know: MQTT, child processes, pins. Used by: `cli` (run, demo).
//!
//! Actions run one at a time, in the order in which the messages arrived. A message is completed after its action
//! ended, whatever the outcome: MQTT cannot reject, and to leave a failed message at the hub would run it again and
//! again. That holds for an action cut off at shutdown too: its message is completed and its outcome logged as
//! interrupted, because a relay that moved half of its way must not move a second time by surprise at the next start.
//!
//! Recently ended actions are remembered by message id, in memory only (`recent.rs`): a message that comes again
//! because its connection broke is completed and not acted on. Messages without an id have no such protection, and
//! none has across a restart of the process.

use std::future::Future;
use std::pin::pin;
use std::time::{Duration, SystemTime};

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::action::{ActionError, Actions, Outcome};
use crate::config::Config;
use crate::message::{C2dMessage, format_time};
use crate::rules::Plan;
use crate::session::{self, Delivery, Event, Session, SessionError};
use crate::tls::TlsError;

pub(crate) mod control;
mod recent;
mod report;
pub(crate) mod status;

use recent::RecentIds;
pub use report::AgentEvent;
use report::PassedOver;

/// How long the action in flight may go on after a request to stop.
const GRACE: Duration = Duration::from_secs(3);
/// How long it may then take to end after it was told to. Above what `action` takes for TERM and KILL.
const STOP_LIMIT: Duration = Duration::from_millis(3500);

/// What an agent needs.
#[derive(Debug)]
pub struct Settings {
    /// The device, the pins, the rules.
    pub config: Config,
    /// Where the time comes from.
    pub clock: fn() -> SystemTime,
    /// Cancelled when the action in flight is not to be waited for any longer, as at a second SIGTERM.
    pub hurry: CancellationToken,
    /// Who watches, if anyone. An event that finds this channel full is logged and dropped: the agent does not wait.
    pub observer: Option<mpsc::Sender<AgentEvent>>,
}

/// Why an agent could not start, or ended by itself.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AgentError {
    /// A certificate, key or CA file cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// A pin cannot be claimed, or could not be left as configured.
    #[error(transparent)]
    Action(#[from] ActionError),
    /// The hub refused the device and had never let it in since the start.
    #[error("{0}")]
    Refused(String),
    /// A defect.
    #[error("{0}")]
    Broken(String),
}

impl AgentError {
    /// Whether the configuration is at fault, or a file that it names.
    pub fn is_configuration(&self) -> bool {
        matches!(self, Self::Tls(_))
    }
}

impl From<SessionError> for AgentError {
    fn from(error: SessionError) -> Self {
        let sentence = error.to_string();
        match error {
            SessionError::Refused(_) => Self::Refused(sentence),
            SessionError::Broken(_) => Self::Broken(sentence),
        }
    }
}

/// Runs an agent until `shutdown` resolves. Then no message is taken any more; the action in flight may go on for
/// three seconds before it is ended; what ended is completed, the session is closed and pins are put into their
/// `on_exit` state. All of it takes at most eight seconds.
///
/// # Errors
/// When the agent cannot start, or the hub refuses the device at the first sign-in. A hub that cannot be reached is
/// no error: the agent keeps trying.
///
/// # Cancel safety
/// Dropping it kills the action in flight, cuts the connection, and puts pins into their `on_exit` state.
pub async fn run(settings: Settings, shutdown: impl Future<Output = ()>) -> Result<(), AgentError> {
    let Settings { config, clock, hurry, observer } = settings;
    let actions = Actions::open(&config.gpio, &std::collections::BTreeMap::new())?;
    // Before the first connection attempt, which may take its time.
    tracing::info!(
        hub = %config.identity.dialled(),
        device_id = config.identity.device_id,
        rules = config.rules.len(),
        pins = config.gpio.pins.len(),
        "connecting"
    );
    let session = Session::open(session::Settings {
        identity: config.identity.clone(),
        ca_file: config.ca_file.clone(),
        token_lifetime: config.token_lifetime,
        clock,
        twin: false,
    })?;
    let mut agent = Agent { config, clock, hurry, observer, actions, session, recent: RecentIds::default() };
    let result = agent.dispatch(shutdown).await;
    let Agent { actions, session, .. } = agent;
    let (pins, ()) = tokio::join!(actions.close(), session.close());
    result.and(pins.map_err(AgentError::from))
}

struct Agent {
    config: Config,
    clock: fn() -> SystemTime,
    hurry: CancellationToken,
    observer: Option<mpsc::Sender<AgentEvent>>,
    actions: Actions,
    session: Session,
    recent: RecentIds,
}

impl Agent {
    /// Takes messages one after the other until `shutdown`.
    async fn dispatch(&mut self, shutdown: impl Future<Output = ()>) -> Result<(), AgentError> {
        let mut shutdown = pin!(shutdown);
        let stopping = CancellationToken::new();
        while !stopping.is_cancelled() {
            let event = tokio::select! {
                biased;
                () = &mut shutdown => break,
                event = self.session.next() => event,
            };
            match event {
                Event::Delivery(delivery) => {
                    let stop = async {
                        (&mut shutdown).await;
                        stopping.cancel();
                    };
                    self.settle(delivery, stop).await?;
                }
                other => self.note(other)?,
            }
        }
        tracing::info!("stopping");
        Ok(())
    }

    /// Does what a message asks for, and completes it.
    async fn settle(
        &mut self,
        delivery: Delivery,
        shutdown: impl Future<Output = ()>,
    ) -> Result<(), AgentError> {
        let Delivery { message, receipt, .. } = delivery;
        if !receipt.is_current() {
            // Its connection has gone: the hub sends it again on the next one.
            receipt.leave();
            return Ok(());
        }
        let message = match message {
            Ok(message) => message,
            Err(error) => {
                self.pass_over(None, None, &PassedOver::Undecodable(error.to_string()));
                receipt.complete();
                return Ok(());
            }
        };
        if self.observer.is_some() {
            self.tell(AgentEvent::Received { message: message.clone() });
        }
        match self.plan(&message) {
            Ok(plan) => {
                let outcome = self.perform(&plan, &message, shutdown).await?;
                if let Some(id) = message.message_id() {
                    self.recent.insert(id);
                }
                receipt.complete();
                report::log_outcome(message.message_id(), &plan.rule, &outcome);
                self.settled(message.message_id(), Some(&plan.rule), &outcome, &outcome.output);
            }
            Err((rule, why)) => {
                receipt.complete();
                self.pass_over(message.message_id(), rule.as_deref(), &why);
            }
        }
        Ok(())
    }

    /// What to do with a message; otherwise the rule that took it, if any, and why nothing is to be done.
    fn plan(&self, message: &C2dMessage) -> Result<Plan, (Option<String>, PassedOver)> {
        if message.message_id().is_some_and(|id| self.recent.contains(id)) {
            return Err((None, PassedOver::AlreadyDone));
        }
        let now = (self.clock)();
        if let Some(expiry) = message.expiry().filter(|expiry| *expiry < now) {
            let [expiry, now] = [expiry, now].map(format_time);
            return Err((None, PassedOver::Expired { expiry, now }));
        }
        let rule = self.config.rules.match_message(message).ok_or((None, PassedOver::Unmatched))?;
        let plan = rule.plan(message, &self.config.identity.device_id);
        plan.map_err(|error| (Some(rule.name().to_owned()), PassedOver::Refused(error.to_string())))
    }

    /// Performs a plan while the session's events are served. After `shutdown` it may go on for [`GRACE`], then it
    /// is told to end, and dropped when it does not.
    async fn perform(
        &mut self,
        plan: &Plan,
        message: &C2dMessage,
        shutdown: impl Future<Output = ()>,
    ) -> Result<Outcome, AgentError> {
        let stop = CancellationToken::new();
        let Self { actions, session, hurry, observer, .. } = self;
        let mut action = pin!(actions.perform(plan, message.body.clone(), &stop));
        let mut cut_off = pin!(async {
            shutdown.await;
            tracing::info!(
                message_id = message.message_id(),
                rule = plan.rule,
                grace_ms = GRACE.as_millis(),
                "stopping: waiting for the action in flight"
            );
            // Either is a reason to go on; which one it was does not matter.
            tokio::select! {
                () = tokio::time::sleep(GRACE) => {}
                () = hurry.cancelled() => {}
            }
            stop.cancel();
            tokio::time::sleep(STOP_LIMIT).await;
        });
        loop {
            tokio::select! {
                biased;
                outcome = &mut action => return Ok(outcome),
                () = &mut cut_off => {
                    return Err(AgentError::Broken(format!("the action of rule {} did not end", plan.rule)));
                }
                event = session.next_event() => note(observer.as_ref(), event)?,
            }
        }
    }

    fn note(&self, event: Event) -> Result<(), AgentError> {
        note(self.observer.as_ref(), event)
    }

    fn pass_over(&self, message_id: Option<&str>, rule: Option<&str>, why: &PassedOver) {
        report::log_passed_over(message_id, rule, why);
        self.settled(message_id, rule, why, &[]);
    }

    fn settled(
        &self,
        message_id: Option<&str>,
        rule: Option<&str>,
        outcome: &impl std::fmt::Display,
        output: &[u8],
    ) {
        if self.observer.is_some() {
            let (message_id, rule) = (message_id.map(str::to_owned), rule.map(str::to_owned));
            let (outcome, output) = (outcome.to_string(), output.to_vec());
            self.tell(AgentEvent::Settled { message_id, rule, outcome, output });
        }
    }

    fn tell(&self, event: AgentEvent) {
        tell(self.observer.as_ref(), event);
    }
}

/// Passes a change of the connection on; the session logs it itself.
fn note(observer: Option<&mpsc::Sender<AgentEvent>>, event: Event) -> Result<(), AgentError> {
    match event {
        Event::Subscribed { .. } => tell(observer, AgentEvent::Subscribed),
        Event::Disconnected { reason } => tell(observer, AgentEvent::Disconnected { reason }),
        Event::Ended(error) => return Err(error.into()),
        Event::Published { .. } => {}
        // `Session::next_event` yields none, and `dispatch` takes those of `Session::next`.
        Event::Delivery(delivery) => delivery.receipt.leave(),
    }
    Ok(())
}

fn tell(observer: Option<&mpsc::Sender<AgentEvent>>, event: AgentEvent) {
    if let Some(Err(error)) = observer.map(|observer| observer.try_send(event)) {
        tracing::warn!(%error, "an event was not observed");
    }
}
