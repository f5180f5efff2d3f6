//! The inbox's thread: takes batches from the handle, writes them, and tries again if the disk is in trouble.
//!
//! Owns: delays, news, the order of answers. Must not know: what an operation does.

use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use tokio::sync::mpsc::Sender;

use super::file::JournalPlace;
use super::keeper::InboxKeeper;
use super::operation::{News, Op};
use super::record::Opened;
use super::trouble::Trouble;

/// Most operations in one batch.
pub(super) const MOST_OPS: usize = 256;

/// Time between tries while the disk is in trouble. It doubles each time.
const FIRST_DELAY: Duration = Duration::from_secs(1);
const LONGEST_DELAY: Duration = Duration::from_secs(30);

/// How long another process may have the file at the start before that counts as trouble.
const PATIENCE: Duration = Duration::from_millis(500);
const PAUSE: Duration = Duration::from_millis(10);

/// How often to look for old records while nothing arrives.
const TIDY: Duration = Duration::from_secs(600);

/// A command from the handle.
#[derive(Debug)]
pub(super) enum Job {
    /// Write at most [`MOST_OPS`] operations. The next batch follows after this one's news.
    Write(Vec<Op>),
    /// Write this and the waiting batches, with one more try if there is trouble, and then end.
    Close(Vec<Op>),
}

/// The handle is gone, so the thread must end.
struct Alone;

pub(super) struct Worker<P> {
    keeper: InboxKeeper<P>,
    commands: Receiver<Job>,
    news: Sender<(News, Vec<Op>)>,
    batches: VecDeque<Vec<Op>>,
    /// The batch that was written. It goes back with the news, because memory is best freed by the thread that took it:
    /// otherwise both threads wait for one lock.
    spent: Vec<Op>,
    /// Whether a compaction has more to do.
    compacting: bool,
    opened: bool,
    closing: bool,
    /// When to try again, and how long to wait after that. None if there is no trouble.
    trouble: Option<(Instant, Duration)>,
}

impl<P: JournalPlace> Worker<P> {
    pub(super) fn new(
        keeper: InboxKeeper<P>,
        commands: Receiver<Job>,
        news: Sender<(News, Vec<Op>)>,
    ) -> Self {
        Self {
            keeper,
            commands,
            news,
            batches: VecDeque::new(),
            spent: Vec::new(),
            compacting: false,
            opened: false,
            closing: false,
            trouble: None,
        }
    }

    /// Serves the handle until it is closed or dropped. The file is closed when this returns.
    pub(super) fn run(mut self) {
        // The handle is gone, so this cannot be reported either.
        let Err(Alone) = self.serve() else { return };
    }

    fn serve(&mut self) -> Result<(), Alone> {
        loop {
            if self.due() {
                match self.step() {
                    Ok(news) => {
                        self.well()?;
                        news.map_or(Ok(()), |news| self.tell(news))?;
                    }
                    Err(failure) => {
                        self.failed(&failure)?;
                        if self.closing {
                            return Ok(());
                        }
                    }
                }
            }
            if self.closing && self.batches.is_empty() {
                return Ok(());
            }
            if self.opened && !self.closing && self.trouble.is_none() {
                match self.keeper.compact() {
                    Ok(more) => self.compacting = more,
                    Err(failure) => self.failed(&failure)?,
                }
            }
            self.listen()?;
        }
    }

    fn due(&self) -> bool {
        self.closing || self.trouble.is_none_or(|(at, _)| at <= Instant::now())
    }

    /// Opens the file if it is not open yet. Otherwise writes a batch if there is one.
    fn step(&mut self) -> Result<Option<News>, Trouble> {
        if !self.opened {
            let opened = self.first_opened()?;
            self.opened = true;
            return Ok(Some(News::Opened(Box::new(opened))));
        }
        let Some(batch) = self.batches.front() else { return self.keeper.open().map(|()| None) };
        let (answers, counts) = self.keeper.write(batch)?;
        self.spent = self.batches.pop_front().unwrap_or_default();
        Ok(Some(News::Done { answers, counts }))
    }

    /// Opens the file for the first time. Another process may just be ending, or only reading, so it gets a moment.
    fn first_opened(&mut self) -> Result<Opened, Trouble> {
        let end = Instant::now() + PATIENCE;
        loop {
            match self.keeper.opened() {
                Err(Trouble::InUse(_)) if self.trouble.is_none() && Instant::now() < end => {
                    std::thread::park_timeout(PAUSE); // a lock has no event to wait for with a deadline, so poll
                }
                opened => return opened,
            }
        }
    }

    fn failed(&mut self, failure: &Trouble) -> Result<(), Alone> {
        let (news, delay) = match self.trouble {
            Some((_, delay)) => (None, delay),
            None => {
                let sentence = failure.sentence(self.keeper.place().path());
                tracing::error!(
                    "{sentence}; the agent tries again by itself, and messages stay at the hub until it succeeds"
                );
                (Some(News::Trouble { sentence }), FIRST_DELAY)
            }
        };
        self.trouble = Some((Instant::now() + delay, (delay * 2).min(LONGEST_DELAY)));
        news.map_or(Ok(()), |news| self.tell(news))
    }

    fn well(&mut self) -> Result<(), Alone> {
        if self.trouble.take().is_none() {
            return Ok(());
        }
        tracing::info!("the inbox {} can be used again", self.keeper.place().path().display());
        self.tell(News::Well)
    }

    /// Takes the next command, or waits until there is something to do.
    fn listen(&mut self) -> Result<(), Alone> {
        let wait = match self.trouble {
            _ if self.closing => Duration::ZERO,
            Some((at, _)) => at.saturating_duration_since(Instant::now()),
            None if self.batches.is_empty() && !self.compacting => TIDY,
            None => Duration::ZERO,
        };
        match self.commands.recv_timeout(wait) {
            Ok(Job::Write(ops)) => self.batches.push_back(ops),
            Ok(Job::Close(mut ops)) => {
                self.closing = true;
                while !ops.is_empty() {
                    let rest = ops.split_off(ops.len().min(MOST_OPS));
                    self.batches.push_back(std::mem::replace(&mut ops, rest));
                }
            }
            Err(RecvTimeoutError::Timeout) if wait == TIDY => {
                if let Err(failure) = self.keeper.tidy() {
                    self.failed(&failure)?;
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) if self.closing => {}
            Err(RecvTimeoutError::Disconnected) => return Err(Alone),
        }
        Ok(())
    }

    fn tell(&mut self, news: News) -> Result<(), Alone> {
        self.news.blocking_send((news, std::mem::take(&mut self.spent))).map_err(|_| Alone)
    }
}
