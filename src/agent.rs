//! The agent: takes messages from the session, records them in the inbox, runs their actions by the rules, completes
//! them.
//!
//! Owns: policy: which message is acted on, in which order, when it is completed, recovery at start, what is
//! reported, and what happens at shutdown. Must not know: MQTT, files, child processes, pins.
//!
//! One loop (`Agent::dispatch`) handles everything, so nothing here needs a lock: messages from the session, answers
//! of the inbox, ended actions, the control socket, scrapes, another configuration (`reload.rs`), and time. Nothing
//! in the loop waits. A message passes through `message/arrive.rs` (what is it, whose turn is it), `message/act.rs` (begin, try
//! again, end) and the answers of the inbox. It is completed at the hub only when the inbox has it on disk: as ended,
//! or with `settle = "on-accept"` as accepted.
//!
//! The rule (`on_failure`) and the transport decide how a message is settled. Over MQTT a device can only complete.
//! So a message whose action failed is completed there, too, and stays in the inbox as a dead letter. If it stayed at
//! the hub, it would run again and again.

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::action::{ActionError, Actions};
use crate::config::{Config, TwinPart};
use crate::inbox::{Inbox, News, Op};
use crate::metrics::Scrape;
use crate::session::{Event, SessionError};
use crate::tls::TlsError;

mod alone;
mod board;
pub(crate) mod control;
mod hub_events;
mod message;
mod recovery;
mod reload;
mod report;
mod reports;
mod requests;
mod scrape;
mod sessions;
pub(crate) mod status;
mod stopping;
mod supervision;
mod tally;
mod twin;

use board::Board;
use control::{Control, Request};
use message::act::Done;
pub(crate) use message::calls::check_payload;
use message::guards::Guards;
use message::in_hand::{Hand, RuleFacts};
use message::lanes::{LaneNames, Lanes, Ticket};
use reload::{Progress, Reader};
pub use reload::{Read, Reload};
pub use report::AgentEvent;
use reports::Outbox;
use requests::Asked;
pub(crate) use requests::not_to_retry;
use scrape::Scraper;
use sessions::{Role, Sessions};
use supervision::Supervision;
use twin::{TwinRulesState, Verdict};

/// How long the start waits for the inbox before it claims the pins.
const OPEN_LIMIT: Duration = Duration::from_secs(2);
/// The shortest time between two attempts to open the control socket.
const CONTROL_RETRY: Duration = Duration::from_secs(30);

/// What an agent needs.
#[derive(Debug)]
pub struct Settings {
    /// The device, the pins, the rules, the inbox.
    pub config: Config,
    /// What happened to the twin's rules when the configuration was read.
    pub twin: TwinPart,
    /// Where the time comes from.
    pub clock: fn() -> SystemTime,
    /// When cancelled, the agent stops waiting for actions in flight, for example at a second SIGTERM.
    pub hurry: CancellationToken,
    /// The source of another configuration while the agent runs, if there is one.
    pub reload: Option<Reload>,
    /// An observer, if there is one. If this channel is full, the event is logged and dropped, because the agent does
    /// not wait.
    pub observer: Option<mpsc::Sender<AgentEvent>>,
}

/// Why an agent could not start, or ended without a request to stop.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AgentError {
    /// A certificate, key or CA file cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// A pin cannot be claimed, or could not be left as configured.
    #[error(transparent)]
    Action(#[from] ActionError),
    /// Another process has the inbox, or may have it.
    #[error("{0}")]
    NotAlone(String),
    /// The hub refused the device, and has not accepted it since the start.
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

/// Runs an agent until `shutdown` resolves. Then it takes no more messages. Actions in flight may go on for two
/// seconds before they are ended. Then the ends are recorded and completed, the session is closed, and the pins are
/// put into their `on_exit` state. All of this takes at most eight seconds.
///
/// # Errors
/// When the agent cannot start, another process has its inbox, or the hub refuses the device at the first sign-in. If
/// the hub cannot be reached or the inbox cannot be written, that is no error: the agent keeps trying.
///
/// # Cancel safety
/// Dropping it kills the actions in flight, cuts the connection, and puts pins into their `on_exit` state.
pub async fn run(settings: Settings, shutdown: impl Future<Output = ()>) -> Result<(), AgentError> {
    let Settings { config, twin, clock, hurry, reload, observer } = settings;
    let mut shutdown = pin!(shutdown);
    // The claim must outlive the pins and the connection, because the next agent needs both to be free.
    let claim = Inbox::claim(&config.inbox);
    if matches!(alone::claim(&claim, &mut shutdown).await?, Next::Stop) {
        return Ok(());
    }
    let mut inbox = Inbox::open(&claim, &config.inbox, clock);
    // Logged before the first connection attempt, which may take long.
    for identity in config.identities.iter() {
        tracing::info!(
            hub = %identity.dialled(),
            device_id = identity.device_id,
            module_id = identity.module_id,
            rules = config.rules.len(),
            pins = config.gpio.pins.len(),
            "connecting"
        );
    }
    let sessions = Sessions::open(&config, clock)?;
    // The inbox knows since when pins are on. If the inbox is in trouble, the pins are claimed without that.
    let first = tokio::time::timeout(OPEN_LIMIT, inbox.next()).await.ok();
    let actions = Actions::open(&config.gpio, &recovery::been_on(first.as_ref(), clock()))?;
    let mut agent = Agent::new(config, twin, clock, observer, actions, sessions, inbox);
    agent.reader = Reader::new(reload, clock);
    if let Some(first) = first {
        agent.news(first);
    }
    let result = agent.dispatch(shutdown).await;
    // This runs also if the session has ended with an error, because actions may still be running.
    let result = result.and(agent.wind_down(&hurry).await);
    agent.close().await.and(result)
}

/// What actions run on. Every running action shares it.
struct Machine {
    actions: Actions,
    /// Ends every action.
    stop: CancellationToken,
}

/// An action, or a wait before its next attempt.
type Running = Pin<Box<dyn Future<Output = Done> + Send>>;

struct Agent {
    config: Config,
    clock: fn() -> SystemTime,
    observer: Option<mpsc::Sender<AgentEvent>>,
    machine: Arc<Machine>,
    sessions: Sessions,
    inbox: Inbox,
    /// The rules by name.
    rules: HashMap<String, Arc<RuleFacts>>,
    hand: Hand,
    lanes: Lanes,
    guards: Guards,
    running: FuturesUnordered<Running>,
    outbox: Outbox,
    control: Option<Control>,
    control_retry: Option<Instant>,
    scraper: Scraper,
    /// Clients that wait for the answer to a query.
    queries: HashMap<Ticket, Asked>,
    board: Board,
    reader: Reader,
    twin: TwinRulesState,
    supervision: Supervision,
    /// Whether the inbox has told what it holds. Before that, no message is taken.
    opened: bool,
    stopping: bool,
    /// Whether the pins that are on are recorded.
    pins_noted: PinsNoted,
    /// Messages that the inbox had no room for, until they are offered to it again.
    turned_away: Vec<Ticket>,
    turned_away_retry: Option<Instant>,
    /// Whether the log says already that this agent's own messages come back to it.
    own_told: bool,
    /// Whether the log says already that the clock seems to be ahead.
    clock_told: bool,
    /// When to look for messages that the hub should send again but no longer has.
    held_look: Option<Instant>,
}

/// The state of the record of the pins that are on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PinsNoted {
    Yes,
    UnderWay,
    /// A write is under way, but it is out of date already, so another one follows.
    Again,
}

/// One thing that the loop handles.
enum Happening {
    Stop,
    News(News),
    Done(Done),
    Session(Role, Event),
    Control(Request),
    Scrape(Scrape),
    PinSwitched,
    PinMoved,
    PinsBroken,
    Reload(Progress),
    Twin(Verdict),
    Time,
}

impl Agent {
    fn new(
        config: Config,
        twin: TwinPart,
        clock: fn() -> SystemTime,
        observer: Option<mpsc::Sender<AgentEvent>>,
        actions: Actions,
        sessions: Sessions,
        inbox: Inbox,
    ) -> Self {
        let mut names = LaneNames::default();
        let rules = RuleFacts::of_all(&config, &mut names);
        Self {
            lanes: Lanes::new(names.len(), config.max_children),
            clock,
            observer,
            machine: Arc::new(Machine { actions, stop: CancellationToken::new() }),
            sessions,
            inbox,
            rules,
            hand: Hand::default(),
            guards: Guards::default(),
            running: FuturesUnordered::new(),
            outbox: Outbox::new(writes_twin(&config)),
            control: None,
            control_retry: None,
            scraper: Scraper::new(config.metrics.as_ref()),
            queries: HashMap::new(),
            board: Board::new(clock(), &config.identities),
            reader: Reader::new(None, clock),
            twin: TwinRulesState::new(&config, twin),
            supervision: Supervision::new(),
            opened: false,
            stopping: false,
            pins_noted: PinsNoted::Yes,
            turned_away: Vec::new(),
            turned_away_retry: None,
            held_look: None,
            own_told: false,
            clock_told: false,
            config,
        }
    }

    /// Serves everything until `shutdown`.
    async fn dispatch(&mut self, shutdown: impl Future<Output = ()>) -> Result<(), AgentError> {
        let mut shutdown = pin!(shutdown);
        self.machine.actions.hub_lost();
        self.open_control();
        self.tell_systemd();
        loop {
            if matches!(self.step(&mut shutdown).await?, Next::Stop) {
                return Ok(());
            }
        }
    }

    /// Waits for one thing to happen, and handles it.
    async fn step(&mut self, mut stop: impl Future<Output = ()> + Unpin) -> Result<Next, AgentError> {
        let take = self.opened && !self.stopping && self.hand.has_room();
        let wake = self.wake();
        let Self {
            sessions,
            inbox,
            running,
            control,
            scraper,
            machine,
            pins_noted,
            reader,
            twin,
            outbox,
            ..
        } = self;
        // The order of the arms matters: what ends work comes before what brings new work.
        let happening = tokio::select! {
            biased;
            () = &mut stop => Happening::Stop,
            news = inbox.next() => Happening::News(news),
            Some(done) = running.next(), if !running.is_empty() => Happening::Done(done),
            (role, event) = sessions.next(take) => Happening::Session(role, event),
            request = next_request(control) => Happening::Control(request),
            scrape = scraper.next() => Happening::Scrape(scrape),
            () = machine.actions.switched(), if *pins_noted != PinsNoted::Again => Happening::PinSwitched,
            () = machine.actions.moved(), if outbox.has_twin() => Happening::PinMoved,
            () = machine.actions.broken() => Happening::PinsBroken,
            change = next_change(reader, twin), if !self.stopping => change,
            () = sleep_until(wake) => Happening::Time,
        };
        self.refuse_late();
        match happening {
            Happening::Stop => return Ok(Next::Stop),
            Happening::News(news) => self.news(news),
            Happening::Done(done) => self.done(done),
            Happening::Session(role, event) => self.session_event(role, event)?,
            Happening::Control(request) => self.request(request),
            Happening::Scrape(scrape) => scrape.answer(self.figures()),
            Happening::PinSwitched => self.note_pins(),
            Happening::PinMoved => self.outbox.look_again(),
            Happening::PinsBroken => {
                return Err(AgentError::Broken("pins cannot be switched in time any more".to_owned()));
            }
            Happening::Reload(progress) => self.reload_progress(progress),
            Happening::Twin(verdict) => self.twin_judged(verdict),
            Happening::Time => self.time_passed(),
        }
        while let Some(ticket) = self.lanes.next() {
            self.turn(ticket);
        }
        let now = Instant::now();
        // This runs at each step, because the timer arm of the select gets no turn while there is a backlog.
        self.supervision.alive(now);
        self.machine.actions.alive();
        self.follow_twin(now);
        if self.outbox.wants_to_look(now) {
            self.show_in_twin();
        }
        self.outbox.pump(&self.sessions, &mut self.inbox, now);
        Ok(Next::Go)
    }

    /// When the loop must look at something even if nothing happens.
    fn wake(&self) -> Option<Instant> {
        let (outbox, watchdog) = (self.outbox.wake(), self.supervision.wake());
        let twin = self.twin.wake().filter(|_| self.may_follow_twin());
        let lanes = self.lanes.wake().filter(|_| !self.stopping);
        let sign = self.machine.actions.next_sign();
        [outbox, twin, watchdog, lanes, sign, self.control_retry, self.turned_away_retry, self.held_look]
            .into_iter()
            .flatten()
            .min()
    }

    fn time_passed(&mut self) {
        let now = Instant::now();
        self.supervision.alive(now);
        if self.control_retry.is_some_and(|at| at <= now) {
            self.open_control();
        }
        if self.turned_away_retry.is_some_and(|at| at <= now) {
            self.offer_again();
        }
        if self.held_look.is_some_and(|at| at <= now) {
            self.look_at_held();
        }
    }

    /// Opens the control socket. If that fails, the agent runs without it and tries again later.
    fn open_control(&mut self) {
        if self.control.is_some() {
            return;
        }
        match Control::open(&self.config.inbox.socket) {
            Ok(control) => (self.control, self.control_retry) = (Some(control), None),
            Err(error) => {
                // Logged only once: if their directory is at fault, the inbox says so itself.
                if self.control_retry.is_none() {
                    tracing::warn!(%error, "`inbox` and `status` cannot reach this agent");
                }
                self.control_retry = Some(Instant::now() + CONTROL_RETRY);
            }
        }
    }

    /// Records since when pins are on, so that their `max_on` holds across a restart.
    fn note_pins(&mut self) {
        if self.pins_noted != PinsNoted::Yes {
            self.pins_noted = PinsNoted::Again;
            return;
        }
        self.submit_pins(self.machine.actions.pins_on());
        self.pins_noted = PinsNoted::UnderWay;
    }

    fn submit_pins(&mut self, on: BTreeMap<String, Duration>) {
        let now = (self.clock)();
        let since = |on: Duration| now.checked_sub(on).unwrap_or(SystemTime::UNIX_EPOCH);
        self.inbox.submit(Op::PinsOn(on.into_iter().map(|(pin, on)| (pin, since(on))).collect()));
    }

    fn tell(&self, event: AgentEvent) {
        if let Some(Err(error)) = self.observer.as_ref().map(|observer| observer.try_send(event)) {
            tracing::warn!(%error, "an event was not observed");
        }
    }
}

/// Whether the agent writes the reported properties of the twin. It does if a rule reports there, if the twin's rules
/// are answered there, or if the agent is a module, which would not be visible otherwise.
fn writes_twin(config: &Config) -> bool {
    let reports = config.reports.twin || config.rules.iter().any(|rule| rule.policy().reports.twin);
    reports || config.twin.accepts_rules || config.identities.module().is_some()
}

/// Whether the loop goes on.
enum Next {
    Go,
    Stop,
}

/// Another configuration, or other rules of the twin. Only one of them is handled at a time.
async fn next_change(reader: &mut Reader, twin: &mut TwinRulesState) -> Happening {
    if twin.is_judging() {
        return Happening::Twin(twin.next().await);
    }
    Happening::Reload(reader.next(twin.kept()).await)
}

/// The next request. Without a control socket it never resolves.
async fn next_request(control: &mut Option<Control>) -> Request {
    match control {
        Some(control) => control.next().await,
        None => std::future::pending().await,
    }
}

/// Waits for a point in time. If there is none, it waits for ever.
async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
