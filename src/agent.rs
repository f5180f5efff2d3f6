//! The agent: takes messages from the session, records them in the inbox, runs their actions by the rules, completes
//! them.
//!
//! Owns: the loop and the start: in which order things are handled. Must not know: MQTT, files, child processes, pins.
//!
//! One loop (`Agent::dispatch`) handles everything, so nothing here needs a lock: messages from the session, answers
//! of the inbox, ended actions, the control socket, scrapes, another configuration, and time. Nothing in the loop
//! waits. The agent has its state in parts (`desk.rs`), and each thing that happens is handled by a function of the
//! file that owns it. What happens to a message is in the folder `message/`. A message is completed at the hub only
//! when the inbox has it on disk: as ended, or with `settle = "on-accept"` as accepted.
//!
//! The rule (`on_failure`) and the transport decide how a message is settled. Over MQTT a device can only complete.
//! So a message whose action failed is completed there, too, and stays in the inbox as a dead letter. If it stayed at
//! the hub, it would run again and again.
//!
//! Each file imports only files that stand before it in the list of `tests/it/layering/files.rs`.

use std::future::Future;
use std::ops::ControlFlow;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::StreamExt as _;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::action::Actions;
use crate::config::{Config, TwinPart};
use crate::inbox::{Inbox, News};
use crate::metrics::Scrape;
use crate::session::Event;

mod alone;
mod assigning;
mod board;
mod certificates;
pub(crate) mod control;
mod desk;
mod error;
mod hub_events;
mod leftovers;
mod machine;
mod message;
mod new_rules;
mod recovery;
mod reload;
mod renewing;
mod report;
mod reports;
mod requests;
mod rulebook;
mod scrape;
mod sessions;
pub(crate) mod status;
mod stopping;
mod supervision;
mod tally;
mod twin;
mod watch;

use assigning::{Assigning, Reassigned};
use control::ControlRequest;
use desk::Desk;
pub use error::AgentError;
use leftovers::Leftovers;
use machine::{PinsNoted, been_on};
pub(crate) use message::calls::check_payload;
use message::in_hand::RunResult;
use message::{act, arrive, recorded};
use reload::{ConfigReader, ReloadProgress};
pub use reload::{ReadConfig, Reload};
pub use report::AgentEvent;
use requests::Requests;
pub(crate) use requests::not_to_retry;
use sessions::{Role, Sessions};
use twin::{TwinRulesState, TwinVerdict};

/// How long the start waits for the inbox before it claims the pins.
const OPEN_LIMIT: Duration = Duration::from_secs(2);

/// What an agent needs.
#[derive(Debug)]
pub struct AgentSettings {
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
pub async fn run(settings: AgentSettings, shutdown: impl Future<Output = ()>) -> Result<(), AgentError> {
    let AgentSettings { mut config, twin, clock, hurry, reload, observer } = settings;
    let mut shutdown = pin!(shutdown);
    // The claim must outlive the pins and the connection, because the next agent needs both to be free.
    let claim = Inbox::claim(&config.inbox);
    if alone::claim(&claim, &mut shutdown).await?.is_break() {
        return Ok(());
    }
    // An agent that had the inbox until now may have a newer assignment, and newer certificates.
    for warning in config.read_enrolment_again().warning_lines() {
        tracing::warn!("{warning}");
    }
    let mut inbox = Inbox::open(&claim, &config.inbox, clock);
    // Logged before the first connection attempt, which may take long.
    let is_assigned = config.provisioning.as_ref().is_none_or(|enrolled| enrolled.assigned.is_some());
    for identity in config.identities.iter() {
        let peer = Some(tracing::field::display(identity.dialled()));
        let has_hub = is_assigned || identity.module_id.is_some();
        // Before there is an assignment, the identity says only who asks whom for one.
        let (hub, provisioning, what) =
            if has_hub { (peer, None, "connecting") } else { (None, peer, "not assigned yet") };
        tracing::info!(
            hub,
            provisioning,
            device_id = has_hub.then_some(&*identity.device_id),
            registration_id = (!has_hub).then_some(&*identity.device_id),
            module_id = identity.module_id,
            rules = config.rules.len(),
            pins = config.gpio.pins.len(),
            "{what}"
        );
    }
    prepare(&mut config);
    let assigning = Assigning::new(&config, clock);
    let sessions = Sessions::open(&config, clock)?;
    // The inbox knows since when pins are on. If the inbox is in trouble, the pins are claimed without that.
    let first = tokio::time::timeout(OPEN_LIMIT, inbox.next()).await.ok();
    let actions = Actions::open(&config.gpio, &been_on(first.as_ref(), clock()))?;
    let twin = TwinRulesState::new(&config, twin);
    let leftovers = Leftovers::new(&config.inbox.path, first);
    let mut desk = Desk::new(config, clock, observer, actions, sessions, inbox);
    recovery::tell_origin(&mut desk);
    let mut agent = Agent {
        desk,
        leftovers,
        requests: Requests::default(),
        reader: ConfigReader::new(reload, clock),
        assigning,
        twin,
    };
    renewing::configured(&mut agent.desk);
    let result = agent.dispatch(shutdown).await;
    // This runs also if the session has ended with an error, because actions may still be running.
    let result = result.and(agent.wind_down(&hurry).await);
    stopping::close(agent.desk, agent.requests).await.and(result)
}

struct Agent {
    desk: Desk,
    leftovers: Leftovers,
    requests: Requests,
    reader: ConfigReader,
    assigning: Assigning,
    twin: TwinRulesState,
}

/// One thing that the loop handles.
enum Happening {
    Stop,
    News(News),
    Ran(RunResult),
    Session(Role, Event),
    Request(ControlRequest),
    Scrape(Scrape),
    PinSwitched,
    PinMoved,
    Reload(ReloadProgress),
    Assigned(Box<Reassigned>),
    Twin(TwinVerdict),
    Time,
}

impl Agent {
    /// Serves everything until `shutdown`.
    async fn dispatch(&mut self, shutdown: impl Future<Output = ()>) -> Result<(), AgentError> {
        let mut shutdown = pin!(shutdown);
        self.desk.machine.actions.hub_lost();
        self.requests.open(&self.desk.rules.config().inbox.socket);
        self.desk.tell_systemd();
        while self.step(&mut shutdown).await?.is_continue() {}
        Ok(())
    }

    /// Waits for one thing to happen, and handles it. Breaks when `stop` resolves.
    async fn step(
        &mut self,
        mut stop: impl Future<Output = ()> + Unpin,
    ) -> Result<ControlFlow<()>, AgentError> {
        let wake = self.wake();
        let Self { desk, leftovers, requests, reader, assigning, twin } = self;
        let Desk { rules, in_hand, sessions, inbox, machine, pins_noted, reports, watch, .. } = desk;
        let (take, stopping) = (in_hand.has_room(), in_hand.stopping);
        // The order of the arms matters: what ends work comes before what brings new work.
        let happening = tokio::select! {
            biased;
            () = &mut stop => Happening::Stop,
            news = leftovers.next(inbox, &machine.actions) => Happening::News(news),
            Some(done) = in_hand.running.next(), if !in_hand.running.is_empty() => Happening::Ran(done),
            (role, event) = sessions.next(take) => Happening::Session(role, event),
            request = requests.next() => Happening::Request(request),
            scrape = watch.scraper.next() => Happening::Scrape(scrape),
            () = machine.actions.switched(), if *pins_noted != PinsNoted::Again => Happening::PinSwitched,
            () = machine.actions.moved(), if reports.has_twin() => Happening::PinMoved,
            change = next_change(reader, assigning, twin, rules.config()), if !stopping => change,
            () = sleep_until(wake) => Happening::Time,
        };
        act::refuse_late(desk);
        match happening {
            Happening::Stop => return Ok(ControlFlow::Break(())),
            Happening::News(news) => recorded::reported(desk, requests, news),
            Happening::Ran(done) => act::done(desk, done),
            Happening::Session(role, event) => {
                hub_events::happened(desk, twin, reader.is_reading(), assigning, role, event)?;
            }
            // If the client has gone, it needs no answer.
            Happening::Request(ControlRequest::Status(answer)) => drop(answer.send(desk.status(twin.told()))),
            Happening::Request(ControlRequest::Query(query, answer)) => requests.ask(desk, query, answer),
            Happening::Scrape(scrape) => {
                let (status, watch) = (desk.status(twin.told()), &mut desk.watch);
                scrape.answer(watch.scraper.figures(&status, &watch.board, desk.rules.config()));
            }
            Happening::PinSwitched => {
                let now = desk.now();
                desk.pins_noted.note(&desk.machine, &mut desk.inbox, now);
            }
            Happening::PinMoved => desk.reports.look_again(),
            Happening::Reload(progress) => {
                reload::progressed(desk, twin, progress);
                renewing::configured(desk);
            }
            Happening::Assigned(reassigned) => renewing::done(desk, *reassigned),
            Happening::Twin(verdict) => twin::judged(desk, twin, verdict),
            Happening::Time => self.time_passed(),
        }
        self.follow_up();
        Ok(ControlFlow::Continue(()))
    }

    /// What must be looked at after each step. The timer arm of the select gets no turn while there is a backlog.
    fn follow_up(&mut self) {
        let may_follow_twin = self.may_follow_twin();
        let Self { desk, twin, .. } = self;
        act::begin_those_in_turn(desk);
        let now = Instant::now();
        desk.watch.supervision.alive(now);
        desk.machine.actions.alive();
        if may_follow_twin {
            twin.follow(&desk.sessions, now);
        }
        if desk.reports.wants_to_look(now) {
            twin::show(desk, twin);
        }
        desk.reports.pump(&desk.sessions, &mut desk.inbox, now);
    }

    /// When the loop must look at something even if nothing happens.
    fn wake(&self) -> Option<Instant> {
        let Self { desk, requests, twin, .. } = self;
        let twin = twin.wake().filter(|_| self.may_follow_twin());
        let (reports, in_hand) = (desk.reports.wake(), desk.in_hand.wake());
        let (watchdog, sign) = (desk.watch.supervision.wake(), desk.machine.actions.next_sign());
        // While the agent stops, no step of the enrolment is taken, so it must not wake for one.
        let may_change = !desk.in_hand.stopping && !self.assigning.is_busy();
        let enrolment = [desk.certificates.wake(), self.assigning.wake()];
        let enrolment = enrolment.into_iter().flatten().min().filter(|_| may_change);
        [enrolment, reports, in_hand, twin, watchdog, sign, requests.wake()].into_iter().flatten().min()
    }

    fn time_passed(&mut self) {
        let Self { desk, requests, assigning, .. } = self;
        let over = |at: Option<Instant>| at.is_some_and(|at| at <= Instant::now());
        if over(requests.wake()) {
            requests.open(&desk.rules.config().inbox.socket);
        }
        if over(desk.in_hand.next_offer()) {
            arrive::offer_again(desk);
        }
        let may_change = |assigning: &Assigning| !assigning.is_busy() && !desk.in_hand.stopping;
        if over(assigning.wake()) && may_change(assigning) {
            assigning.look();
        }
        if over(desk.certificates.wake()) && may_change(assigning) {
            renewing::look(desk, assigning);
        }
        if over(desk.in_hand.held_look) {
            recovery::look_at_held(desk);
        }
    }

    /// Whether the agent may read the twin now: it is not stopping, and no reload is being read.
    fn may_follow_twin(&self) -> bool {
        !self.desk.in_hand.stopping && !self.reader.is_reading()
    }

    /// Lets everything that has begun come to its end: first actions, then their records, then their PUBACKs.
    async fn wind_down(&mut self, hurry: &CancellationToken) -> Result<(), AgentError> {
        stopping::begin(&mut self.desk);
        let mut cut_off = pin!(stopping::cut_off(Arc::clone(&self.desk.machine), hurry));
        // The agent does not wait for a pause between attempts, because its message has been given back.
        while self.desk.in_hand.is_running() {
            if self.step(&mut cut_off).await?.is_break() {
                return Err(AgentError::Broken("an action did not end".to_owned()));
            }
        }
        let mut record_limit = pin!(stopping::record_limit());
        while stopping::has_more_to_record(&self.desk) {
            if self.step(&mut record_limit).await?.is_break() {
                stopping::gave_up_waiting(&self.desk);
                break;
            }
        }
        Ok(())
    }
}

/// Another configuration, another hub, or other rules of the twin. Only one of them is handled at a time.
async fn next_change(
    reader: &mut ConfigReader,
    assigning: &mut Assigning,
    twin: &mut TwinRulesState,
    config: &Arc<Config>,
) -> Happening {
    if twin.is_judging() {
        return Happening::Twin(twin.next().await);
    }
    if assigning.is_busy() && !reader.is_reading() {
        return Happening::Assigned(Box::new(assigning.next(config).await));
    }
    Happening::Reload(reader.next(twin.kept(), config.provisioning.as_ref()).await)
}

/// Makes sure that a certificate can be asked for, if the configuration wants one.
fn prepare(config: &mut Config) {
    if let Some(mut provisioning) = config.provisioning.clone() {
        if let Err(reason) = provisioning.prepare() {
            tracing::error!(%reason, "no certificate is asked for");
        }
        config.enrol(provisioning);
    }
}

/// Waits for a point in time. If there is none, it waits for ever.
async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
