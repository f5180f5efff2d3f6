//! What follows the acceptance of a run's messages: their feedback, and the outcomes that the devices report.
//!
//! Owns: which message a record or a report belongs to, the spool of a run, when enough is known. Must not know: AMQP,
//! HTTP, how a run is sent.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use rustix::fs::OFlags;
use serde::Deserialize;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::super::many_output::{Aftermath, ManyOutput};
use super::super::telemetry::Telemetry;
use crate::cli::back_end::HubArgs;
use crate::cli::c2d_feedback::reader::BatchReader;
use crate::cli::c2d_feedback::spool::Spool;
use crate::cli::c2d_feedback::watch::{Watch, WatchEnd};
use crate::feedback::FeedbackStatus;
use crate::fleet::{Run, Settlement};
use crate::outcome::{OutcomeKind, OutcomeReport, TwinReport};
use crate::service::{
    EventStart, FeedbackBatch, HttpsService, ServiceError, ServiceIdentity, TOKEN_LIFETIME,
};
use crate::trust;

/// From one look at all twins to the next one, and after a look that failed.
const PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// From one twin to the next: half of what the smallest hub allows. Source: azure-docs, iot-hub-devguide-quotas-throttling.
const BETWEEN_TWINS: Duration = Duration::from_millis(20);
/// By how much the hub's clock and this one may differ, for what was reported before a run is resumed.
const CLOCKS_DIFFER: Duration = Duration::from_secs(600);
/// Longer than any line of a spool.
const LONGEST_LINE: u64 = 64 * 1024;

/// What is awaited, and how long after the last message.
#[derive(Debug, Clone, Copy)]
pub(super) enum Awaited {
    Feedback(Duration),
    Outcome(Duration),
}

/// What is known of each message that the hub has accepted.
pub(super) struct Follow<'a> {
    run: &'a Run,
    output: &'a RefCell<ManyOutput<'a>>,
    awaited: Awaited,
    /// `DEVICE/ID` to the index of the entry. A device id has no slash.
    indices: HashMap<String, usize>,
    known: RefCell<Vec<Known>>,
    /// Of how many accepted messages enough is known.
    heard: Cell<usize>,
    changed: Notify,
    spool: PathBuf,
    /// Until the run begins to read it.
    telemetry: Cell<Telemetry>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Known {
    is_accepted: bool,
    feedback: Option<FeedbackStatus>,
    outcome: Option<OutcomeKind>,
}

/// The records of one run among all that the hub has.
struct OwnRecords<'f, 'a> {
    follow: &'f Follow<'a>,
    others: u64,
}

impl Awaited {
    pub(super) fn wait(self) -> Duration {
        match self {
            Self::Feedback(wait) | Self::Outcome(wait) => wait,
        }
    }
}

impl Known {
    /// Whether nothing more is to come of a message.
    fn is_enough(&self, awaited: Awaited) -> bool {
        match awaited {
            _ if !self.is_accepted => true,
            Awaited::Feedback(_) => self.feedback.is_some(),
            Awaited::Outcome(_) => self.outcome.is_some() || self.is_undelivered(),
        }
    }

    fn is_undelivered(&self) -> bool {
        self.feedback.is_some_and(|status| status != FeedbackStatus::Success)
    }
}

impl<'a> Follow<'a> {
    /// Reads what the spool of an earlier attempt has.
    ///
    /// # Errors
    /// When there is a spool and it cannot be read.
    pub(super) fn new(
        run: &'a Run,
        output: &'a RefCell<ManyOutput<'a>>,
        awaited: Awaited,
        journal: &Path,
    ) -> anyhow::Result<Self> {
        let mut indices = HashMap::with_capacity(run.entries.len());
        for (index, entry) in run.entries.iter().enumerate() {
            let id = run.message_id(entry).map_err(anyhow::Error::msg)?;
            indices.insert(format!("{}/{id}", entry.device_id), index);
        }
        let mut spool = journal.as_os_str().to_owned();
        spool.push(".feedback");
        let (known, heard) = (RefCell::new(vec![Known::default(); run.entries.len()]), Cell::new(0));
        let (changed, spool, telemetry) = (Notify::new(), spool.into(), Cell::default());
        let follow = Self { run, output, awaited, indices, known, heard, changed, spool, telemetry };
        follow
            .read_spool()
            .with_context(|| format!("the spool {} cannot be read", follow.spool.display()))?;
        Ok(follow)
    }

    fn read_spool(&self) -> std::io::Result<()> {
        /// The fields of a line that matter here.
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Kept {
            message_id: String,
            device_id: String,
            status: FeedbackStatus,
        }
        let file = match trust::open(&self.spool, OFlags::RDONLY) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            file => file?,
        };
        // A pipe would be waited for, and a device may have no end.
        if !file.metadata()?.is_file() {
            return Err(std::io::Error::other("it is no regular file: remove it"));
        }
        let mut reader = BufReader::new(file);
        let mut line = Vec::new();
        while reader.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut line)? > 0 {
            if let Ok(Kept { message_id, device_id, status }) = serde_json::from_slice(&line) {
                self.keep(&device_id, &message_id, status);
            }
            line.clear();
        }
        Ok(())
    }

    /// Makes sure that twins can be read, where outcomes are awaited, and begins to read telemetry: of a resumed run from
    /// its first message on, since nothing else has kept what was told meanwhile.
    ///
    /// # Errors
    /// When twins cannot be read. Nothing was sent yet.
    pub(super) async fn look_first(
        &self,
        hub: &HubArgs,
        identity: &ServiceIdentity,
        first_settled: Option<SystemTime>,
    ) -> anyhow::Result<()> {
        let Some(entry) = self.run.entries.first().filter(|_| matches!(self.awaited, Awaited::Outcome(_)))
        else {
            return Ok(());
        };
        match self.twins(hub, identity)?.twin(&entry.device_id).await {
            // The hub refuses its message, too.
            Ok(_) | Err(ServiceError::UnknownDevice(_) | ServiceError::Throttled(_)) => {}
            Err(error) => {
                return Err(error).context("nothing was sent, because the outcomes could not be seen");
            }
        }
        let start = first_settled.and_then(|first| first.checked_sub(CLOCKS_DIFFER));
        let start = start.map_or(EventStart::Latest, EventStart::After);
        self.telemetry.set(Telemetry::open(identity, &hub.amqp()?, hub.ca_file().as_deref(), start).await);
        Ok(())
    }

    fn twins(&self, hub: &HubArgs, identity: &ServiceIdentity) -> anyhow::Result<HttpsService> {
        let lifetime = TOKEN_LIFETIME + self.awaited.wait();
        let ca_file = hub.ca_file();
        Ok(HttpsService::new(identity, hub.https()?, ca_file.as_deref(), lifetime, SystemTime::now)?)
    }

    /// The hub has a message, or has refused it.
    pub(super) fn settled(&self, index: usize, settlement: &Settlement) {
        self.learn(index, |known| known.is_accepted = *settlement == Settlement::Accepted);
    }

    /// Returns the entry whose message it is.
    fn keep(&self, device_id: &str, message_id: &str, status: FeedbackStatus) -> Option<usize> {
        let index = *self.indices.get(&format!("{device_id}/{message_id}"))?;
        // A message that was sent twice has two records. One of them was delivered if any says so.
        self.learn(index, |known| {
            if known.feedback != Some(FeedbackStatus::Success) {
                known.feedback = Some(status);
            }
        });
        Some(index)
    }

    /// Changes what is known of a message, and shows of how many accepted ones enough is known.
    fn learn(&self, index: usize, change: impl FnOnce(&mut Known)) {
        let mut all = self.known.borrow_mut();
        let Some(known) = all.get_mut(index) else { return };
        let is_heard = |known: &Known| known.is_accepted && known.is_enough(self.awaited);
        let before = is_heard(known);
        change(known);
        // Feedback can come before the journal has that the message was accepted.
        if is_heard(known) && !before {
            self.heard.set(self.heard.get() + 1);
            self.output.borrow_mut().heard(self.heard.get(), self.what());
        }
    }

    fn is_enough(&self) -> bool {
        self.known.borrow().iter().all(|known| known.is_enough(self.awaited))
    }

    /// Reads feedback, and looks at twins once all is sent, until enough is known, or until the time is over. `over` ends
    /// the sending, and `stop` everything.
    ///
    /// # Errors
    /// When feedback cannot be read or kept, or twins may not be read.
    pub(super) async fn run(
        &self,
        hub: &HubArgs,
        identity: &ServiceIdentity,
        over: &CancellationToken,
        stop: &CancellationToken,
    ) -> anyhow::Result<()> {
        let spool = Spool::open(&self.spool)?;
        if let Some(note) = spool.note() {
            self.output.borrow().say(&note);
        }
        let records = OwnRecords { follow: self, others: 0 };
        let mut watch =
            Watch::new(hub.transport()?, identity.clone(), hub.ca_file(), Some(spool), records, None);
        let failed = RefCell::new(None);
        let end = async {
            let awaited = async {
                over.cancelled().await;
                if stop.is_cancelled() || self.is_enough() {
                    return;
                }
                self.output.borrow().waiting(&self.words());
                let looked = async {
                    match self.awaited {
                        Awaited::Feedback(_) => std::future::pending().await,
                        Awaited::Outcome(_) => self.look_at_twins(hub, identity).await,
                    }
                };
                let enough = async {
                    while !self.is_enough() {
                        self.changed.notified().await;
                    }
                };
                tokio::select! {
                    looked = looked => *failed.borrow_mut() = looked.err(),
                    () = enough => {}
                    () = tokio::time::sleep(self.awaited.wait()) => {}
                }
            };
            stop.run_until_cancelled(awaited).await;
            WatchEnd::Time
        };
        let watched = tokio::select! {
            watched = watch.run(end) => watched,
            never = self.hear_reports() => match never {},
        };
        let others = watch.output().others;
        if others > 0 {
            let spool = self.spool.display();
            let note = format!("{others} records of other messages came with the feedback: {spool} has them");
            self.output.borrow().say(&note);
        }
        watched?;
        failed.into_inner().map_or(Ok(()), Err)
    }

    /// Takes what devices tell by telemetry, also while the run is sent.
    async fn hear_reports(&self) -> Infallible {
        let mut telemetry = self.telemetry.take();
        loop {
            let told = telemetry.next(|note| self.output.borrow().say(note)).await;
            let index = self.indices.get(&format!("{}/{}", told.device_id, told.message_id));
            if let Some((index, report)) = index.and_then(|index| Some((*index, told.read()?))) {
                self.reported(index, &report);
            }
        }
    }

    /// Keeps the first report on a message; it may come by twin and by telemetry.
    fn reported(&self, index: usize, report: &OutcomeReport) {
        if self.known.borrow().get(index).is_none_or(|known| known.outcome.is_some()) {
            return;
        }
        self.learn(index, |known| known.outcome = Some(report.outcome));
        self.output.borrow_mut().outcome(index, report);
        self.changed.notify_one();
    }

    fn what(&self) -> &'static str {
        match self.awaited {
            Awaited::Feedback(_) => "feedback",
            Awaited::Outcome(_) => "an outcome",
        }
    }

    fn words(&self) -> String {
        let wait = humantime::format_duration(self.awaited.wait());
        match self.awaited {
            Awaited::Feedback(_) => format!("all is sent: waiting up to {wait} for feedback"),
            Awaited::Outcome(_) => {
                format!("all is sent: waiting up to {wait} for the outcomes that the devices report")
            }
        }
    }

    /// Looks at the twins of those devices whose outcome is not known, again and again. Ends when all are known.
    async fn look_at_twins(&self, hub: &HubArgs, identity: &ServiceIdentity) -> anyhow::Result<()> {
        let mut service = self.twins(hub, identity)?;
        let mut pause = PAUSE;
        loop {
            let open = |known: &Known| !known.is_enough(self.awaited);
            let open: Vec<_> = self
                .known
                .borrow()
                .iter()
                .enumerate()
                .filter(|(_, known)| open(known))
                .map(|(index, _)| index)
                .collect();
            if open.is_empty() {
                return Ok(());
            }
            for entry in open.into_iter().filter_map(|index| Some((index, self.run.entries.get(index)?))) {
                let (index, entry) = entry;
                match service.twin(&entry.device_id).await {
                    Ok(twin) => {
                        pause = PAUSE;
                        let id = self.run.message_id(entry).map_err(anyhow::Error::msg)?;
                        let report = TwinReport::read(&twin.reported).unwrap_or_default();
                        if let Some(report) = report.outcomes_of(&id).next() {
                            self.reported(index, report);
                        }
                    }
                    // It was removed meanwhile; its outcome stays unknown.
                    Err(ServiceError::UnknownDevice(_)) => {}
                    Err(error) if error.is_passing() => {
                        tracing::warn!("outcomes cannot be read now, trying again: {error}");
                        tokio::time::sleep(pause).await;
                        pause = (pause * 2).min(LONGEST_PAUSE);
                    }
                    Err(error) => return Err(error.into()),
                }
                tokio::time::sleep(BETWEEN_TWINS).await;
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// The sums.
    pub(super) fn aftermath(&self, is_cut_short: bool) -> Aftermath {
        let known = self.known.borrow();
        let (mut counts, mut undelivered, mut failed) = (BTreeMap::new(), Vec::new(), Vec::new());
        let (mut missing, mut delivered) = (Vec::new(), 0);
        for (index, known) in known.iter().enumerate().filter(|(_, known)| known.is_accepted) {
            let word = match (known.outcome, known.feedback, self.awaited) {
                (Some(outcome), _, _) => outcome.as_str(),
                (None, Some(status), _) if known.is_undelivered() => status.as_str(),
                (None, Some(status), Awaited::Feedback(_)) => status.as_str(),
                _ => {
                    missing.push(index);
                    delivered += usize::from(known.feedback.is_some());
                    continue;
                }
            };
            *counts.entry(word).or_default() += 1;
            match known.outcome {
                Some(OutcomeKind::Succeeded) => {}
                Some(_) => failed.push(index),
                None if known.is_undelivered() => undelivered.push(index),
                None => {}
            }
        }
        let (awaited, wait) = (self.what(), self.awaited.wait());
        Aftermath { counts, undelivered, failed, awaited, missing, delivered, is_cut_short, wait }
    }
}

impl BatchReader for OwnRecords<'_, '_> {
    fn print(&mut self, batch: &FeedbackBatch) -> anyhow::Result<()> {
        let follow = self.follow;
        for record in &batch.records {
            match follow.keep(&record.device_id, &record.original_message_id, record.status_code) {
                Some(index) => follow.output.borrow_mut().feedback(index, record),
                None => self.others = self.others.saturating_add(1),
            }
        }
        follow.changed.notify_one();
        Ok(())
    }

    fn consumed(&mut self, _batch: &FeedbackBatch) {}

    fn printed(&self) -> u64 {
        0
    }

    fn is_open(&self) -> bool {
        true
    }

    fn note(&self, line: &str) {
        self.follow.output.borrow().say(line);
    }
}
