//! Sends a run over one link.
//!
//! Owns: the window, what follows from each answer of the hub, new connections. Must not know: how a run is chosen or
//! shown.
//!
//! At most a window of messages is on its way or settled without being in the journal. So that is how many are sent
//! twice if the program is killed.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt as _, StreamExt as _};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::{JournalError, Pace, Run, RunJournal, Settlement};
use crate::service::{C2dSender, HubAnswer, Refusal, ServiceError};

/// The pauses before a new connection.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// How long to wait for the answers to messages that are on their way, once the run must stop.
const LAST_ANSWERS: Duration = Duration::from_secs(5);

/// What happens, for the program that shows it.
#[derive(Debug)]
pub(crate) enum Progress<'a> {
    /// The hub has answered, and the journal has it.
    Settled { entry: usize, settlement: &'a Settlement },
    /// The hub throttles.
    Throttled { wait: Duration, per_minute: f64 },
    /// The connection was lost.
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
    /// How long nothing may be settled before the run gives up.
    pub(crate) patience: Duration,
}

/// A run that is being sent.
pub(crate) struct Sending<'a> {
    run: &'a Run,
    journal: Option<RunJournal>,
    /// The indices of the entries that are still to be sent.
    open: BTreeSet<usize>,
    pace: Pace,
    limits: SendingLimits,
    /// When something was settled last.
    moved: Instant,
    /// Settled, but not in the journal yet.
    unwritten: Vec<(usize, Settlement)>,
    stop: CancellationToken,
    clock: fn() -> SystemTime,
}

/// A message that is on its way.
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
        let open = open.map(|(index, _)| index).collect();
        let (journal, moved) = (Some(journal), Instant::now());
        Self { run, journal, open, pace, limits, moved, unwritten: Vec::new(), stop, clock }
    }

    /// Sends what is open. `connect` makes a link; a lost one is replaced.
    ///
    /// # Errors
    /// [`RunError`]. The journal has all that was settled.
    ///
    /// # Cancel safety
    /// If dropped, up to a window of messages may be sent without being in the journal.
    pub(crate) async fn run<C>(
        &mut self,
        mut connect: impl AsyncFnMut() -> Result<(C, C2dSender), ServiceError>,
        tell: &mut dyn FnMut(Progress<'_>),
    ) -> Result<(), RunError> {
        let mut pause = FIRST_PAUSE;
        while !self.open.is_empty() {
            let before = self.moved;
            let error = match connect().await {
                Ok((_connection, mut link)) => match self.send_over(&mut link, tell).await? {
                    None => break,
                    Some(error) => error,
                },
                Err(error) if !error.is_passing() => return Err(error.into()),
                Err(error) => error,
            };
            if self.stop.is_cancelled() {
                break;
            }
            self.check_patience(&error)?;
            if self.moved > before {
                pause = FIRST_PAUSE;
            }
            tell(Progress::Lost { error: &error, wait: pause });
            if self.stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
                break;
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
        if self.open.is_empty() { Ok(()) } else { Err(RunError::Stopped) }
    }

    /// Sends over one link, until the end or until the link is lost; then returns why.
    async fn send_over(
        &mut self,
        link: &mut C2dSender,
        tell: &mut dyn FnMut(Progress<'_>),
    ) -> Result<Option<ServiceError>, RunError> {
        let mut on_the_way = OnTheWay::new();
        let mut sent = BTreeSet::new();
        let mut last_answers = None;
        let lost = loop {
            let next = self.open.iter().find(|index| !sent.contains(*index)).copied();
            let next = next.filter(|_| last_answers.is_none());
            let has_room = on_the_way.len() + self.unwritten.len() < self.limits.window;
            let due = match next.filter(|_| has_room).map(|index| (index, self.pace.take(Instant::now()))) {
                Some((index, Ok(()))) => {
                    let message =
                        self.run.entries.get(index).map(|entry| self.run.message(entry, (self.clock)()));
                    let Some(message) = message else { break None };
                    match link.begin(&message.map_err(RunError::Entry)?).await {
                        Ok(answer) => {
                            sent.insert(index);
                            on_the_way.push(answer.map(move |answer| (index, answer)).boxed());
                        }
                        Err(error) => break Some(error),
                    }
                    continue;
                }
                Some((_, Err(due))) => Some(due),
                None => None,
            };
            let waits = due.is_some_and(|due| due > Instant::now() + FIRST_PAUSE);
            if !self.unwritten.is_empty() && (waits || on_the_way.is_empty() || !has_room) {
                self.write(tell).await?;
                continue;
            }
            if on_the_way.is_empty() && due.is_none() {
                break None;
            }
            tokio::select! {
                Some((index, answer)) = on_the_way.next(), if !on_the_way.is_empty() => {
                    sent.remove(&index);
                    if let Some(error) = self.take(index, answer, tell).await? {
                        break Some(error);
                    }
                }
                error = link.lost() => break Some(error),
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {}
                () = self.stop.cancelled(), if last_answers.is_none() => {
                    last_answers = Some(Instant::now() + LAST_ANSWERS);
                }
                () = sleep_until(last_answers.unwrap_or_else(Instant::now)), if last_answers.is_some() => break None,
            }
        };
        self.write(tell).await?;
        Ok(lost)
    }

    /// What follows from an answer. Returns the error if the link is lost.
    async fn take(
        &mut self,
        index: usize,
        answer: Result<HubAnswer, ServiceError>,
        tell: &mut dyn FnMut(Progress<'_>),
    ) -> Result<Option<ServiceError>, RunError> {
        let refusal = match answer {
            Ok(HubAnswer::Accepted) => {
                self.settled(index, Settlement::Accepted);
                return Ok(None);
            }
            Ok(HubAnswer::Refused(refusal)) => refusal,
            Err(error) => return Ok(Some(error)),
        };
        if refusal.is_quota() {
            self.write(tell).await?;
            return Err(RunError::Quota(refusal));
        }
        if refusal.is_throttling() {
            let wait = self.pace.throttled(refusal.retry_after(), Instant::now());
            tell(Progress::Throttled { wait, per_minute: self.pace.per_minute() });
            self.check_patience(&ServiceError::Refused(refusal))?;
            return Ok(None);
        }
        let (condition, error) = (refusal.condition.clone(), refusal.to_string());
        self.settled(index, Settlement::Refused { condition, error });
        Ok(None)
    }

    fn settled(&mut self, index: usize, settlement: Settlement) {
        self.open.remove(&index);
        self.unwritten.push((index, settlement));
        self.moved = Instant::now();
    }

    fn check_patience(&self, last: &ServiceError) -> Result<(), RunError> {
        match self.moved.elapsed() > self.limits.patience {
            true => Err(RunError::NoProgress { within: self.limits.patience, last: last.to_string() }),
            false => Ok(()),
        }
    }

    /// Puts what was settled into the journal, and tells it.
    async fn write(&mut self, tell: &mut dyn FnMut(Progress<'_>)) -> Result<(), RunError> {
        let Some(mut journal) = self.journal.take().filter(|_| !self.unwritten.is_empty()) else {
            return Ok(());
        };
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
        written?;
        for (index, settlement) in &unwritten {
            tell(Progress::Settled { entry: *index, settlement });
        }
        Ok(())
    }
}
