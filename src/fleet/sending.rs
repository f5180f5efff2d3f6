//! Sends a run over one link.
//!
//! Owns: the window, what follows from each answer of the hub, new connections. Must not know: how a run is chosen or
//! shown.
//!
//! At most a window of messages is on its way or settled without being in the journal. So that is how many are sent
//! twice if the program is killed.
//!
//! A refusal that is about the message settles it. One that may pass does not: the message is sent again, or postponed,
//! which means that the journal says nothing of it and a resumed run sends it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt as _, StreamExt as _};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::{JournalError, Pace, Run, RunJournal, Settlement};
use crate::service::{
    ANSWER_TIMEOUT, C2dSender, HubAnswer, OutgoingMessage, Refusal, RefusalScope, Service, ServiceError,
};

/// The pauses before a new connection.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// If nothing is to be sent for longer, what was settled gets into the journal meanwhile.
const SOON: Duration = Duration::from_millis(100);
/// How long to wait for the answers to messages that are on their way, once the run must stop.
const LAST_ANSWERS: Duration = Duration::from_secs(5);
/// How often a message is sent that the hub gives back without a reason that is its own.
const MOST_TRIES: u32 = 3;

/// What happens, for the program that shows it.
#[derive(Debug)]
pub(crate) enum Progress<'a> {
    /// The hub has answered, and the journal has it. The pace allows so many messages a minute at present.
    Settled { entry: usize, settlement: &'a Settlement, per_minute: f64 },
    /// The hub does not take the message now. The journal has nothing of it, so a resumed run sends it again.
    Postponed { entry: usize, condition: &'a str, error: &'a str },
    /// The hub throttles or fails, and is left alone.
    Slowed { error: &'a str, wait: Duration, per_minute: f64 },
    /// There is no connection.
    Lost { error: &'a ServiceError, wait: Duration },
}

/// Why a run has stopped before its end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RunError {
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The hub takes nothing more today.
    #[error("{0}")]
    Quota(Refusal),
    /// Nothing was settled for too long.
    #[error("the hub has taken nothing for {}: {last}", humantime::format_duration(*.within))]
    NoProgress { within: Duration, last: String },
    /// The hub does not let this program in.
    #[error(transparent)]
    Hub(#[from] ServiceError),
    /// An entry has become impossible; all were checked before.
    #[error("{0}")]
    Entry(String),
    /// It was asked to stop.
    #[error("interrupted by a signal")]
    Stopped,
}

/// What a run may not exceed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SendingLimits {
    /// How many messages may be on their way, or settled without being in the journal.
    pub(crate) window: usize,
    /// How long the hub may fail without settling anything, before the run gives up.
    pub(crate) patience: Duration,
}

/// A link to the hub, with all that must stay open for it.
pub(crate) trait SendingLink {
    /// As [`C2dSender::begin`].
    async fn begin(&mut self, message: &OutgoingMessage) -> Result<Answering, ServiceError>;
    /// As [`C2dSender::lost`].
    async fn lost(&mut self) -> ServiceError;
}

/// The hub's answer, once it comes.
type Answering = BoxFuture<'static, Result<HubAnswer, ServiceError>>;

impl SendingLink for (Service, C2dSender) {
    async fn begin(&mut self, message: &OutgoingMessage) -> Result<Answering, ServiceError> {
        self.1.begin(message).await
    }

    async fn lost(&mut self) -> ServiceError {
        self.1.lost().await
    }
}

/// A run that is being sent.
pub(crate) struct Sending<'a> {
    run: &'a Run,
    journal: Option<RunJournal>,
    /// The indices of the entries that are to be sent.
    queue: BTreeSet<usize>,
    /// The entries that are on their way, and since when.
    sent: BTreeMap<usize, Instant>,
    /// How often the hub has given an entry back.
    returns: BTreeMap<usize, u32>,
    pace: Pace,
    limits: SendingLimits,
    /// Since when the hub has failed and settled nothing.
    failing: Option<Instant>,
    /// How many were settled.
    taken: usize,
    /// Settled, but not in the journal yet.
    unwritten: Vec<(usize, Settlement)>,
    stop: CancellationToken,
    clock: fn() -> SystemTime,
}

/// Messages that are on their way.
type OnTheWay = FuturesUnordered<BoxFuture<'static, (usize, Result<HubAnswer, ServiceError>)>>;

impl<'a> Sending<'a> {
    /// `settled` says what the journal has of each entry.
    pub(crate) fn new(
        run: &'a Run,
        journal: RunJournal,
        settled: &[Option<Settlement>],
        pace: Pace,
        limits: SendingLimits,
        stop: CancellationToken,
        clock: fn() -> SystemTime,
    ) -> Self {
        let open = settled.iter().enumerate().filter(|(_, state)| state.is_none());
        Self {
            run,
            journal: Some(journal),
            queue: open.map(|(index, _)| index).collect(),
            sent: BTreeMap::new(),
            returns: BTreeMap::new(),
            pace,
            limits,
            failing: None,
            taken: 0,
            unwritten: Vec::new(),
            stop,
            clock,
        }
    }

    /// Sends what is open. `connect` makes a link; a lost one is replaced. At the end, all is settled or postponed.
    ///
    /// # Errors
    /// [`RunError`]. The journal has all that was settled.
    ///
    /// # Cancel safety
    /// If dropped, up to a window of messages may be sent without being in the journal.
    pub(crate) async fn run<L: SendingLink>(
        &mut self,
        mut connect: impl AsyncFnMut() -> Result<L, ServiceError>,
        tell: &mut dyn FnMut(Progress<'_>),
    ) -> Result<(), RunError> {
        let stop = self.stop.clone();
        let (mut pause, mut is_first) = (FIRST_PAUSE, true);
        while !self.queue.is_empty() {
            let taken = self.taken;
            let Some(connected) = stop.run_until_cancelled(connect()).await else { break };
            let mut is_failure = true;
            let error = match connected {
                Ok(mut link) => {
                    is_first = false;
                    let lost = self.send_over(&mut link, tell).await;
                    // A slow run asks nothing of many a link. That such a link ends, for example with its token, is no
                    // failure.
                    is_failure = self.failing.is_some() || !self.sent.is_empty();
                    // It is not known whether the hub has what was on its way.
                    self.queue.extend(std::mem::take(&mut self.sent).into_keys());
                    match lost? {
                        None => break,
                        Some(error) => error,
                    }
                }
                // At first, a wrong name, a wrong root or a wrong port is told at once, as for one message.
                Err(error) if !passes(&error) || (is_first && error.refusal().is_none()) => {
                    return Err(self.ended(error));
                }
                Err(error) => error,
            };
            if self.taken > taken {
                pause = FIRST_PAUSE;
            }
            let refusal = error.refusal();
            if refusal.is_some_and(|refusal| refusal.scope() == RefusalScope::Quota) {
                return Err(self.ended(error));
            }
            if is_failure {
                self.failed(&error)?;
            }
            let asked = refusal.and_then(Refusal::retry_after).unwrap_or_default();
            let wait = pause.max(asked.min(LONGEST_PAUSE));
            tell(Progress::Lost { error: &error, wait });
            if stop.run_until_cancelled(tokio::time::sleep(wait)).await.is_none() {
                break;
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
        if self.queue.is_empty() { Ok(()) } else { Err(RunError::Stopped) }
    }

    /// Sends over one link, until the end or until the link is lost; then returns why. However it ends, what the hub has
    /// answered until then is in the journal.
    async fn send_over(
        &mut self,
        link: &mut impl SendingLink,
        tell: &mut dyn FnMut(Progress<'_>),
    ) -> Result<Option<ServiceError>, RunError> {
        let mut on_the_way = OnTheWay::new();
        let end = self.send_until_lost(link, &mut on_the_way, tell).await;
        let last = self.take_ready(&mut on_the_way, tell);
        self.write(tell).await?;
        let end = end?;
        last.map(|_| end)
    }

    async fn send_until_lost(
        &mut self,
        link: &mut impl SendingLink,
        on_the_way: &mut OnTheWay,
        tell: &mut dyn FnMut(Progress<'_>),
    ) -> Result<Option<ServiceError>, RunError> {
        let stop = self.stop.clone();
        let mut last_answers = None;
        // A timer may end a moment before its time.
        let mut woken = Instant::now();
        loop {
            // All that is ready gets into the journal with one fsync.
            if let Some(error) = self.take_ready(on_the_way, tell)? {
                return Ok(Some(error));
            }
            let now = Instant::now().max(woken);
            if stop.is_cancelled() {
                last_answers.get_or_insert(now + LAST_ANSWERS);
            }
            let has_room = self.sent.len() + self.unwritten.len() < self.limits.window;
            let next = self.queue.first().copied().filter(|_| has_room && last_answers.is_none());
            let due = match next.map(|index| (index, self.pace.take(now))) {
                Some((index, Ok(()))) => match self.begin(index, link, on_the_way).await? {
                    None => continue,
                    Some(error) => return Ok(Some(error)),
                },
                Some((_, Err(due))) => Some(due),
                None => None,
            };
            // What is settled is told soon, and not for each message by itself.
            let waits = due.is_some_and(|due| due > now + SOON);
            if !self.unwritten.is_empty() && (waits || next.is_none()) {
                self.write(tell).await?;
                continue;
            }
            if self.sent.is_empty() && due.is_none() {
                return Ok(None);
            }
            let late = self.sent.values().min().map(|begun| *begun + ANSWER_TIMEOUT);
            tokio::select! {
                Some((index, answer)) = on_the_way.next(), if !on_the_way.is_empty() => {
                    if let Some(error) = self.take(index, answer, tell)? {
                        return Ok(Some(error));
                    }
                }
                error = link.lost() => return Ok(Some(error)),
                () = sleep_until(due.unwrap_or(now)), if due.is_some() => woken = due.unwrap_or(now),
                () = sleep_until(late.unwrap_or(now)), if late.is_some() => {
                    let (what, seconds) = ("the outcome of a message".to_owned(), ANSWER_TIMEOUT.as_secs());
                    return Ok(Some(ServiceError::Late { what, seconds }));
                }
                () = stop.cancelled(), if last_answers.is_none() => {}
                () = sleep_until(last_answers.unwrap_or(now)), if last_answers.is_some() => return Ok(None),
            }
        }
    }

    /// Sends one message. Returns the error if the link is lost.
    async fn begin(
        &mut self,
        index: usize,
        link: &mut impl SendingLink,
        on_the_way: &mut OnTheWay,
    ) -> Result<Option<ServiceError>, RunError> {
        let Some(entry) = self.run.entries.get(index) else {
            self.queue.remove(&index);
            return Ok(None);
        };
        let message = self.run.message(entry, (self.clock)()).map_err(RunError::Entry)?;
        self.queue.remove(&index);
        self.sent.insert(index, Instant::now());
        // The hub may give no credit for a while, and the signal to stop may come then.
        let Some(begun) = self.stop.run_until_cancelled(link.begin(&message)).await else {
            self.sent.remove(&index);
            self.queue.insert(index);
            return Ok(None);
        };
        let answer = match begun {
            Ok(answer) => answer,
            Err(error) => return Ok(Some(error)),
        };
        // The hub has its time from when it has the message.
        self.sent.insert(index, Instant::now());
        on_the_way.push(answer.map(move |answer| (index, answer)).boxed());
        Ok(None)
    }

    /// Takes the answers that are there. Returns the error if the link is lost.
    fn take_ready(
        &mut self,
        on_the_way: &mut OnTheWay,
        tell: &mut dyn FnMut(Progress<'_>),
    ) -> Result<Option<ServiceError>, RunError> {
        let mut lost = None;
        while let Some(Some((index, answer))) = on_the_way.next().now_or_never() {
            lost = self.take(index, answer, tell)?.or(lost);
        }
        Ok(lost)
    }

    /// What follows from an answer. Returns the error if the link is lost.
    fn take(
        &mut self,
        index: usize,
        answer: Result<HubAnswer, ServiceError>,
        tell: &mut dyn FnMut(Progress<'_>),
    ) -> Result<Option<ServiceError>, RunError> {
        let answer = match answer {
            Ok(answer) => answer,
            // It stays among those that were sent.
            Err(error) => return Ok(Some(error)),
        };
        self.sent.remove(&index);
        let refusal = match answer {
            HubAnswer::Accepted => {
                self.settled(index, Settlement::Accepted);
                return Ok(None);
            }
            HubAnswer::Returned(how) => {
                return self.given_back(index, ("amqp:released", how), None, tell).map(|()| None);
            }
            HubAnswer::Refused(refusal) => refusal,
        };
        let (condition, error) = (refusal.condition.clone(), refusal.to_string());
        match refusal.scope() {
            RefusalScope::Message => self.settled(index, Settlement::Refused { condition, error }),
            RefusalScope::Device => {
                self.failing = None;
                tell(Progress::Postponed { entry: index, condition: &condition, error: &error });
            }
            RefusalScope::Throttling => {
                self.queue.insert(index);
                self.slow_down("the hub throttles", refusal.retry_after(), tell);
                self.failed(&ServiceError::Refused(refusal))?;
            }
            RefusalScope::Passing => {
                self.given_back(index, (&condition, &error), refusal.retry_after(), tell)?;
            }
            RefusalScope::Quota | RefusalScope::Hub => {
                self.queue.insert(index);
                return Err(self.ended(ServiceError::Refused(refusal)));
            }
        }
        Ok(None)
    }

    /// The hub has not taken a message, for no reason of the message's own. It is sent again, but not for ever.
    fn given_back(
        &mut self,
        index: usize,
        (condition, error): (&str, &str),
        wait: Option<Duration>,
        tell: &mut dyn FnMut(Progress<'_>),
    ) -> Result<(), RunError> {
        let returns = self.returns.entry(index).or_default();
        *returns += 1;
        if *returns < MOST_TRIES {
            self.queue.insert(index);
        } else {
            tell(Progress::Postponed { entry: index, condition, error });
        }
        let wait = wait.or(Some(FIRST_PAUSE * *returns));
        self.slow_down(error, wait, tell);
        self.failed(&ServiceError::Answer(error.to_owned()))
    }

    fn slow_down(&mut self, error: &str, wait: Option<Duration>, tell: &mut dyn FnMut(Progress<'_>)) {
        let now = Instant::now();
        let is_news = !self.pace.waits(now);
        let wait = self.pace.throttled(wait, now);
        if is_news {
            tell(Progress::Slowed { error, wait, per_minute: self.pace.per_minute() });
        }
    }

    fn settled(&mut self, index: usize, settlement: Settlement) {
        self.returns.remove(&index);
        self.unwritten.push((index, settlement));
        self.taken += 1;
        self.failing = None;
    }

    /// Counts the time from the first failure on.
    fn failed(&mut self, last: &ServiceError) -> Result<(), RunError> {
        let since = *self.failing.get_or_insert_with(Instant::now);
        match since.elapsed() > self.limits.patience {
            true => Err(RunError::NoProgress { within: self.limits.patience, last: last.to_string() }),
            false => Ok(()),
        }
    }

    /// The end of the run for an error that does not pass.
    fn ended(&self, error: ServiceError) -> RunError {
        match error {
            ServiceError::Refused(refusal) if refusal.scope() == RefusalScope::Quota => {
                RunError::Quota(refusal)
            }
            error => RunError::Hub(error),
        }
    }

    /// Puts what was settled into the journal, and tells it.
    async fn write(&mut self, tell: &mut dyn FnMut(Progress<'_>)) -> Result<(), RunError> {
        if self.unwritten.is_empty() {
            return Ok(());
        }
        let Some(mut journal) = self.journal.take() else { return Ok(()) };
        let unwritten = std::mem::take(&mut self.unwritten);
        let entries = unwritten
            .iter()
            .filter_map(|(index, state)| Some((self.run.entries.get(*index)?.clone(), state.clone())));
        let entries: Vec<_> = entries.collect();
        let at = (self.clock)();
        // The disk may be slow.
        let written = tokio::task::spawn_blocking(move || {
            let settled: Vec<_> = entries.iter().map(|(entry, state)| (entry, state)).collect();
            let written = journal.settle(&settled, at);
            (journal, written)
        });
        let (journal, written) = match written.await {
            Ok(written) => written,
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        };
        self.journal = Some(journal);
        if let Err(error) = written {
            // The last words of the link try once more.
            self.unwritten = unwritten;
            return Err(error.into());
        }
        let per_minute = self.pace.per_minute();
        for (index, settlement) in &unwritten {
            tell(Progress::Settled { entry: *index, settlement, per_minute });
        }
        Ok(())
    }
}

/// Whether another attempt to connect may succeed.
fn passes(error: &ServiceError) -> bool {
    use RefusalScope::*;
    let passes = |refusal: &Refusal| matches!(refusal.scope(), Throttling | Passing | Device);
    error.is_passing() || error.refusal().is_some_and(passes)
}

#[cfg(test)]
mod tests;
