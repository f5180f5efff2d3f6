//! The agent: takes messages from the session, records them in the inbox, acts on them by the rules, and completes them.
//!
//! Owns: policy. Which message is acted on, in which order, when it is completed, recovery at start, what is reported, and
//! what happens at shutdown. Must not know: MQTT, files, child processes, pins.
//!
//! One loop (`Agent::dispatch`) serves everything, so that nothing here needs a lock: messages from the session,
//! answers of the inbox, actions that end, the control socket, scrapes, another configuration (`reload.rs`), and time.
//! Nothing in the loop waits. A message goes through `intake.rs` (what is it, whose turn is it), `work.rs` (begin, try again, end) and the answers of the inbox,
//! and it is completed at the hub only when the inbox has it on disk: as ended, or for `settle = "on-accept"` as accepted.
//!
//! How it is settled is up to its rule (`on_failure`) and to what the transport has. Over MQTT a device can only complete. So
//! there a message whose action failed is completed, too, and stays in the inbox as a dead letter: to leave it at the hub
//! would run it again and again.

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
mod answers;
mod board;
mod connection;
pub(crate) mod control;
mod ending;
mod guards;
mod hand;
mod intake;
mod lanes;
mod life;
mod outbox;
mod recovery;
mod reload;
mod report;
mod scrape;
mod sessions;
pub(crate) mod status;
mod stopping;
mod supervision;
mod tally;
mod twin;
mod wishes;
mod work;

pub(crate) use answers::check_payload;
use board::Board;
use control::{Control, Request};
use guards::Guards;
use hand::{Hand, RuleFacts};
use lanes::{LaneNames, Lanes, Ticket};
use outbox::Outbox;
use reload::{Progress, Reader};
pub use reload::{Read, Reload};
pub use report::AgentEvent;
use scrape::Scraper;
use sessions::{Role, Sessions};
use supervision::Supervision;
use twin::{TwinRulesState, Verdict};
use wishes::Asked;
pub(crate) use wishes::not_to_retry;
use work::Done;

/// How long pins wait for the inbox at the start.
const OPEN_LIMIT: Duration = Duration::from_secs(2);
/// How often a control socket that could not be opened is tried again, at most.
const CONTROL_RETRY: Duration = Duration::from_secs(30);

/// What an agent needs.
#[derive(Debug)]
pub struct Settings {
    /// The device, the pins, the rules, the inbox.
    pub config: Config,
    /// What became of the twin's rules when it was read.
    pub twin: TwinPart,
    /// Where the time comes from.
    pub clock: fn() -> SystemTime,
    /// Cancelled when actions in flight are not to be waited for any longer, as at a second SIGTERM.
    pub hurry: CancellationToken,
    /// Where another configuration comes from while the agent runs, if from anywhere.
    pub reload: Option<Reload>,
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
    /// Another process has the inbox, or may have it.
    #[error("{0}")]
    NotAlone(String),
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

/// Runs an agent until `shutdown` resolves. Then no message is taken any more; actions in flight may go on for two
/// seconds before they are ended; what ended is recorded and completed, the session is closed and pins
/// are put into their `on_exit` state. All of it takes at most eight seconds.
///
/// # Errors
/// When the agent cannot start, another process has its inbox, or the hub refuses the device at the first sign-in. A hub that cannot be reached, and
/// an inbox that cannot be written, are no errors: the agent keeps trying.
///
/// # Cancel safety
/// Dropping it kills the actions in flight, cuts the connection, and puts pins into their `on_exit` state.
pub async fn run(settings: Settings, shutdown: impl Future<Output = ()>) -> Result<(), AgentError> {
    let Settings { config, twin, clock, hurry, reload, observer } = settings;
    let mut shutdown = pin!(shutdown);
    // It lives until the pins are released and the connection is closed: what comes next needs both.
    let claim = Inbox::claim(&config.inbox);
    if matches!(alone::claim(&claim, &mut shutdown).await?, Next::Stop) {
        return Ok(());
    }
    let mut inbox = Inbox::open(&claim, &config.inbox, clock);
    // Before the first connection attempt, which may take its time.
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
    // The inbox knows since when pins are on; when it is in trouble, they are claimed without that.
    let first = tokio::time::timeout(OPEN_LIMIT, inbox.next()).await.ok();
    let actions = Actions::open(&config.gpio, &recovery::been_on(first.as_ref(), clock()))?;
    let mut agent = Agent::new(config, twin, clock, observer, actions, sessions, inbox);
    agent.reader = Reader::new(reload, clock);
    if let Some(first) = first {
        agent.news(first);
    }
    let result = agent.dispatch(shutdown).await;
    // Also when the session has ended: what the inbox had to run may be under way.
    let result = result.and(agent.wind_down(&hurry).await);
    agent.close().await.and(result)
}

/// What actions run on, shared with each that runs.
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
    /// By rule name.
    rules: HashMap<String, Arc<RuleFacts>>,
    hand: Hand,
    lanes: Lanes,
    guards: Guards,
    running: FuturesUnordered<Running>,
    outbox: Outbox,
    control: Option<Control>,
    control_retry: Option<Instant>,
    scraper: Scraper,
    /// Who waits for the answer to a query.
    queries: HashMap<Ticket, Asked>,
    board: Board,
    reader: Reader,
    twin: TwinRulesState,
    supervision: Supervision,
    /// The inbox has told what it holds: messages may be taken.
    opened: bool,
    stopping: bool,
    /// A write of the pins that are on is under way; another is wanted.
    pins_noted: PinsNoted,
    /// Messages that the inbox had no room for, until it is asked again.
    turned_away: Vec<Ticket>,
    turned_away_retry: Option<Instant>,
    /// It was said that messages of this agent's own come back to it.
    own_told: bool,
    /// It was said that the clock seems to be ahead.
    clock_told: bool,
    /// When to look for messages that the hub was to send again and cannot have any more.
    held_look: Option<Instant>,
}

/// How the record of the pins that are on stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PinsNoted {
    Yes,
    UnderWay,
    /// Under way, and out of date already.
    Again,
}

/// One thing for the loop to look at.
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

    /// Waits for one thing to happen, and deals with it.
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
        // Here and not only when its time comes: a backlog keeps that last arm from its turn.
        self.supervision.alive(now);
        self.machine.actions.alive();
        self.follow_twin(now);
        if self.outbox.wants_to_look(now) {
            self.show_in_twin();
        }
        self.outbox.pump(&self.sessions, &mut self.inbox, now);
        Ok(Next::Go)
    }

    /// When something must be looked at although nothing happens.
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

    /// Opens the control socket; where that fails the agent goes on without, and tries again.
    fn open_control(&mut self) {
        if self.control.is_some() {
            return;
        }
        match Control::open(&self.config.inbox.socket) {
            Ok(control) => (self.control, self.control_retry) = (Some(control), None),
            Err(error) => {
                // Once: the inbox in trouble says itself what is wrong with their directory.
                if self.control_retry.is_none() {
                    tracing::warn!(%error, "`inbox` and `status` cannot reach this agent");
                }
                self.control_retry = Some(Instant::now() + CONTROL_RETRY);
            }
        }
    }

    /// Notes since when pins are on, so that their `max_on` holds across a restart.
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

/// Whether the reported properties of the twin are written: a rule reports there, its rules are answered there, or the agent
/// is a module, which nobody sees otherwise.
fn writes_twin(config: &Config) -> bool {
    let reports = config.reports.twin || config.rules.iter().any(|rule| rule.policy().reports.twin);
    reports || config.twin.accepts_rules || config.identities.module().is_some()
}

/// Whether the loop goes on.
enum Next {
    Go,
    Stop,
}

/// Another configuration, or other rules of the twin: one after the other.
async fn next_change(reader: &mut Reader, twin: &mut TwinRulesState) -> Happening {
    if twin.is_judging() {
        return Happening::Twin(twin.next().await);
    }
    Happening::Reload(reader.next(twin.kept()).await)
}

/// The next request; never, without a control socket.
async fn next_request(control: &mut Option<Control>) -> Request {
    match control {
        Some(control) => control.next().await,
        None => std::future::pending().await,
    }
}

/// Waits for a point in time; for ever, when there is none.
async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
