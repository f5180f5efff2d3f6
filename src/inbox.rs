//! The inbox: the durable record of each message, so that none is lost and none is acted on twice.
//!
//! Owns: the file, the states of a record (accepted, started, finished, dead), duplicates, retention, dead letters, the reports
//! that wait for the hub; what to do if the disk fails. Must not know: sessions, rules, actions.
//!
//! A separate thread (`worker.rs`) owns the file (`store.rs`), because a write waits for the disk. The agent hands in
//! operations ([`Inbox::submit`]) and gets their answers when they are on disk ([`Inbox::next`]). Operations that are
//! handed in during a write go into one batch together.

use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::{Duration, SystemTime};

use tokio::sync::mpsc::{self, Receiver};
use tokio::time::Instant;

use crate::config::InboxSettings;

mod apply;
mod codec;
mod compaction;
mod departure;
mod entries;
mod file;
mod frame;
mod holder;
mod index;
mod journal;
mod journal_file;
mod keeper;
mod key;
mod ledger;
mod lock;
mod operation;
mod origins;
mod query;
mod record;
mod replay;
mod retention;
mod store;
mod sums;
mod trouble;
mod window;
mod worker;

use file::{InboxPath, JournalPlace};
use keeper::InboxKeeper;
pub(crate) use lock::Claim;
pub(crate) use operation::{
    Arrival, Intent, News, Op, Past, Query, Reply, Selector, Start, Verdict, Written,
};
pub(crate) use record::{Counts, Number, Record, Settled, State};
pub(crate) use record::{Opened, Unfinished, from_millis};
pub(crate) use trouble::InboxError;
use trouble::Trouble;
use worker::{Job, MOST_OPS, Worker};

/// How long [`Inbox::close`] may take: the rest of the agent's eight seconds for a shutdown.
const CLOSE_LIMIT: Duration = Duration::from_millis(700);

/// How long confirmations wait for another write that takes them along. While messages come, they need no fsync of
/// their own. But if a power cut loses them, an equal message that is sent later looks like a redelivery.
const CONFIRMED_REST: Duration = Duration::from_secs(60);

/// The inbox of a running agent. When it is dropped, operations that are not written are lost, as in a crash.
#[derive(Debug)]
pub(crate) struct Inbox {
    /// Operations that the thread does not have yet.
    waiting: Vec<Op>,
    /// Confirmations that wait for another write, and how long they wait at most.
    confirmed: Vec<Number>,
    confirmed_due: Instant,
    /// Whether the thread has a batch. It gets one at a time, so that operations gather meanwhile.
    busy: bool,
    commands: SyncSender<Job>,
    news: Receiver<(News, Vec<Op>)>,
    /// Whether the agent knows already that the thread ended, which is a defect.
    lost: bool,
}

impl Inbox {
    /// The claim to an inbox. The caller must take it with [`Claim::make_good`] before it opens the inbox. As long as
    /// the claim lives, no other agent has the inbox.
    pub(crate) fn claim(settings: &InboxSettings) -> Claim {
        Claim::new(&settings.path, true)
    }

    /// Begins to open the file, and creates it if it is missing. Never fails: trouble is reported as [`News`], and
    /// the inbox tries again by itself.
    pub(crate) fn open(claim: &Claim, settings: &InboxSettings, clock: fn() -> SystemTime) -> Self {
        Self::begin(InboxKeeper::new(InboxPath::claimed(claim.clone()), settings.clone(), clock))
    }

    fn begin<P: JournalPlace + Send + 'static>(keeper: InboxKeeper<P>) -> Self {
        // Room for one batch and for the request to close after it.
        let (commands, received) = sync_channel(2);
        // If the agent takes no news, the thread waits.
        let (news, told) = mpsc::channel(4);
        let thread = std::thread::Builder::new().name("inbox".to_owned());
        if let Err(error) = thread.spawn(move || Worker::new(keeper, received, news).run()) {
            // Both channels are then closed, so `next` says that the inbox is lost.
            tracing::error!("the inbox's thread cannot be started: {error}");
        }
        Self {
            waiting: Vec::new(),
            confirmed: Vec::new(),
            confirmed_due: Instant::now(),
            busy: false,
            commands,
            news: told,
            lost: false,
        }
    }

    /// Hands in an operation. Never blocks. The caller limits how many are under way.
    pub(crate) fn submit(&mut self, op: Op) {
        match op {
            Op::Confirmed(numbers) => {
                if self.confirmed.is_empty() {
                    self.confirmed_due = Instant::now() + CONFIRMED_REST;
                }
                self.confirmed.extend(numbers);
            }
            op => self.waiting.push(op),
        }
    }

    /// The next news. Cancel safe.
    pub(crate) async fn next(&mut self) -> News {
        self.hand_over();
        let told = loop {
            tokio::select! {
                news = self.news.recv() => break news,
                () = tokio::time::sleep_until(self.confirmed_due), if !self.busy && !self.confirmed.is_empty() => {
                    self.take_confirmed();
                    self.hand_over();
                }
            }
        };
        match told {
            Some((news, _spent)) => {
                if matches!(news, News::Done { .. }) {
                    self.busy = false;
                    // The thread writes the next batch while the caller works on these answers.
                    self.hand_over();
                }
                news
            }
            None if self.lost => std::future::pending().await,
            None => {
                self.lost = true;
                let sentence =
                    "the inbox's thread has ended, which is a defect: restart the agent".to_owned();
                tracing::error!("{sentence}");
                News::Trouble { sentence }
            }
        }
    }

    /// Writes what was handed in, closes the file, and returns the remaining answers. Takes at most a second. What is
    /// handed in later is lost.
    pub(crate) async fn close(&mut self) -> Vec<Written> {
        let mut told = Vec::new();
        self.take_confirmed();
        if self.commands.try_send(Job::Close(std::mem::take(&mut self.waiting))).is_err() {
            return told;
        }
        let gather = async {
            while let Some((news, _)) = self.news.recv().await {
                if let News::Done { answers, .. } = news {
                    told.extend(answers);
                }
            }
        };
        if tokio::time::timeout(CLOSE_LIMIT, gather).await.is_err() {
            tracing::error!("the inbox could not be closed in {CLOSE_LIMIT:?}: the disk does not answer");
        }
        told
    }

    /// Puts confirmations first, so that a later message in the same batch counts as another one.
    fn take_confirmed(&mut self) {
        if !self.confirmed.is_empty() {
            self.waiting.insert(0, Op::Confirmed(std::mem::take(&mut self.confirmed)));
        }
    }

    fn hand_over(&mut self) {
        if self.busy || self.waiting.is_empty() {
            return;
        }
        self.take_confirmed();
        let rest = self.waiting.split_off(self.waiting.len().min(MOST_OPS));
        let batch = std::mem::replace(&mut self.waiting, rest);
        // There is room, because no batch is under way. If the thread has ended, `next` reports it.
        self.busy = self.commands.try_send(Job::Write(batch)).is_ok();
    }
}

/// The inbox's file while no agent runs, for the command line.
#[derive(Debug)]
pub(crate) struct InboxFile {
    keeper: InboxKeeper<InboxPath>,
}

impl InboxFile {
    /// Opens a file that exists.
    ///
    /// # Errors
    /// [`InboxError::InUse`] while an agent has it, [`InboxError::Missing`], or the fault of the file.
    pub(crate) fn open(settings: &InboxSettings) -> Result<Self, InboxError> {
        let place = InboxPath::new(settings.path.clone(), false);
        // Only the agent's settings may remove records, when it runs. A look from the command line removes none.
        let settings = InboxSettings { keep: Duration::MAX, max_size: u64::MAX, ..settings.clone() };
        let mut keeper = InboxKeeper::new(place, settings, || SystemTime::UNIX_EPOCH);
        match keeper.try_open() {
            Ok(()) => Ok(Self { keeper }),
            Err(failure) => Err(failure.into_error(keeper.place().path())),
        }
    }

    /// Answers a question or fulfils a request. The change is on disk when this returns.
    ///
    /// # Errors
    /// When the disk fails.
    pub(crate) fn query(&mut self, query: Query, now: SystemTime) -> Result<Reply, InboxError> {
        let answers = self.keeper.write_at(&[Op::Query { ticket: 0, query }], now);
        let path = self.keeper.place().path();
        match answers.map(|(answers, _)| answers.into_iter().next()) {
            Ok(Some(Written::Reply { reply, .. })) => Ok(*reply),
            Ok(_) => Err(Trouble::Defect("a question was not answered".to_owned()).into_error(path)),
            Err(failure) => Err(failure.into_error(path)),
        }
    }

    /// The counts of the file.
    pub(crate) fn counts(&self) -> Counts {
        self.keeper.counts()
    }
}

#[cfg(test)]
mod tests;
