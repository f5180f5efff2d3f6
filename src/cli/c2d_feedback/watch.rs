//! Keeps, prints and completes batch after batch, and reconnects when the hub goes away.
//!
//! Owns: that order, reconnecting and its delays. Must not know: AMQP, how records look.

use std::path::PathBuf;
use std::pin::Pin;
use std::time::{Duration, Instant, SystemTime};

use super::reader::BatchReader;
use super::spool::Spool;
use crate::cli::sentence;
use crate::service::{
    FeedbackBatch, FeedbackSource, FeedbackTransport, ServiceError, ServiceIdentity, TOKEN_LIFETIME,
};

/// When to connect again with a new token, between two batches: before the old token expires.
const RENEW_AFTER: Duration = Duration::from_secs(TOKEN_LIFETIME.as_secs() / 6 * 5);

/// The first and the longest delay before another attempt.
const FIRST_DELAY: Duration = Duration::from_secs(1);
const LONGEST_DELAY: Duration = Duration::from_secs(60);

/// After a connection that held this long, the delays start again with the first.
const STABLE: Duration = Duration::from_secs(60);

/// What ended the watch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::cli) enum WatchEnd {
    /// SIGTERM or SIGINT.
    Signal,
    /// `--for`.
    Time,
    /// `--count`.
    Count,
    /// Standard output has no reader any more.
    ReaderGone,
}

/// Why one connection is not read further.
enum ReadEnd {
    Ended(WatchEnd),
    Renew,
}

/// The watcher.
pub(in crate::cli) struct Watch<R> {
    transport: FeedbackTransport,
    identity: ServiceIdentity,
    ca_file: Option<PathBuf>,
    spool: Option<Spool>,
    output: R,
    count: Option<u64>,
    /// The last batch that was printed and kept. The hub may have missed its completion. If the batch comes again, only
    /// the completion is repeated.
    last: Option<String>,
}

impl<R: BatchReader> Watch<R> {
    pub(in crate::cli) fn new(
        transport: FeedbackTransport,
        identity: ServiceIdentity,
        ca_file: Option<PathBuf>,
        spool: Option<Spool>,
        output: R,
        count: Option<u64>,
    ) -> Self {
        Self { transport, identity, ca_file, spool, output, count, last: None }
    }

    pub(in crate::cli) fn output(&self) -> &R {
        &self.output
    }

    /// Watches until `end`, or until `count` records are printed. A batch that has arrived is finished first.
    ///
    /// # Errors
    /// When the first connection fails, the hub refuses the policy, or a record cannot be kept or printed.
    pub(in crate::cli) async fn run(
        &mut self,
        end: impl Future<Output = WatchEnd>,
    ) -> anyhow::Result<WatchEnd> {
        let mut end = std::pin::pin!(end);
        let mut delay = FIRST_DELAY;
        let mut is_first = true;
        let mut is_lost = false;
        loop {
            let opened = tokio::select! {
                biased;
                end = end.as_mut() => return Ok(end),
                opened = self.open() => opened,
            };
            let error = match opened {
                Ok(mut source) => {
                    match (is_first, is_lost) {
                        (true, _) => {
                            self.output.note(&format!("watching the feedback of {}", self.identity.host))
                        }
                        (false, true) => self.output.note("connected again"),
                        (false, false) => tracing::debug!("connected with a new token"),
                    }
                    (is_first, is_lost) = (false, false);
                    let since = Instant::now();
                    let read = self.read(&mut source, end.as_mut()).await;
                    if since.elapsed() >= STABLE {
                        delay = FIRST_DELAY;
                    }
                    match read {
                        Ok(read) => {
                            source.close().await;
                            match read {
                                ReadEnd::Ended(end) => return Ok(end),
                                ReadEnd::Renew => continue,
                            }
                        }
                        Err(error) => error,
                    }
                }
                Err(error) => error.into(),
            };
            // A failure of the first connection is not retried, so that wrong arguments are told at once.
            if is_first || !error.downcast_ref().is_some_and(passes) {
                return Err(error);
            }
            is_lost = true;
            // Half of the delay is random, so that many watchers do not come back at the same moment.
            let wait = delay.mul_f64(0.5 + fastrand::f64() / 2.0);
            self.output.note(&format!("{}; trying again in {:.1} s", sentence(&error), wait.as_secs_f64()));
            tokio::select! {
                biased;
                end = end.as_mut() => return Ok(end),
                () = tokio::time::sleep(wait) => delay = delay.saturating_mul(2).min(LONGEST_DELAY),
            }
        }
    }

    async fn open(&self) -> Result<FeedbackSource, ServiceError> {
        let ca_file = self.ca_file.as_deref();
        FeedbackSource::open(&self.transport, &self.identity, ca_file, SystemTime::now).await
    }

    async fn read(
        &mut self,
        source: &mut FeedbackSource,
        mut end: Pin<&mut impl Future<Output = WatchEnd>>,
    ) -> anyhow::Result<ReadEnd> {
        let mut renewal = std::pin::pin!(tokio::time::sleep(RENEW_AFTER));
        loop {
            let batch = tokio::select! {
                biased;
                end = end.as_mut() => return Ok(ReadEnd::Ended(end)),
                () = renewal.as_mut() => return Ok(ReadEnd::Renew),
                batch = source.next() => batch?,
            };
            let is_new = self.last.as_ref() != Some(&batch.id);
            if is_new {
                self.keep_and_print(&batch).await?;
                // The records may have reached no reader and no file, so the batch stays at the hub.
                if !self.output.is_open() && self.spool.is_none() {
                    return Ok(ReadEnd::Ended(WatchEnd::ReaderGone));
                }
                self.output.consumed(&batch);
                self.last = Some(batch.id.clone());
            }
            source.complete(batch).await?;
            if !self.output.is_open() {
                return Ok(ReadEnd::Ended(WatchEnd::ReaderGone));
            }
            if self.count.is_some_and(|count| self.output.printed() >= count) {
                return Ok(ReadEnd::Ended(WatchEnd::Count));
            }
        }
    }

    async fn keep_and_print(&mut self, batch: &FeedbackBatch) -> anyhow::Result<()> {
        if let Some(spool) = &self.spool {
            spool.append(super::output::lines(batch, None)?).await?;
        }
        self.output.print(batch)
    }
}

/// Whether another attempt may succeed. This includes most links that the hub ends: it ends links when a token expires,
/// when it is busy, and when it is moved.
fn passes(error: &ServiceError) -> bool {
    error.is_passing() || error.refusal().is_some_and(|refusal| !refusal.is_lasting())
}
