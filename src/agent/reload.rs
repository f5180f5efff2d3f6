//! Reload: another configuration is applied between two messages, or refused as a whole.
//!
//! Owns: how it is read beside the loop, what may change while the agent runs, and in which order. Must not know:
//! files, signals (`cli`), TOML.
//!
//! Everything is checked before anything changes: first the configuration, then the TLS files, then the pins, which
//! are the last that can refuse. An action that has begun goes on as it began. A message that waits for its turn is
//! planned again, as after a restart: the new rules decide.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::config::{Config, Provisioning, Remote, Report, TwinPart, TwinRules};

use super::desk::Desk;
use super::new_rules;
use super::recovery;
use super::sessions::{RoleTerms, writes_twin};
use super::twin::{READ_LIMIT, TwinRulesState};

/// Reads the configuration, with these rules of the twin.
pub type ReadConfig = dyn Fn(Remote<'_>) -> Result<(Config, TwinPart), Report> + Send + Sync;

/// The source of another configuration.
pub struct Reload {
    /// Requests to read it again. Several requests during one read may be merged into one.
    pub wishes: mpsc::Receiver<()>,
    /// Reads the configuration. Called on a thread where it may block.
    pub read: Arc<ReadConfig>,
}

impl fmt::Debug for Reload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reload").finish_non_exhaustive()
    }
}

/// A read of the configuration, beside the loop.
#[derive(Debug)]
pub(super) struct ConfigReader {
    reload: Option<Reload>,
    clock: fn() -> SystemTime,
    /// The read under way, and how long to wait for it.
    under_way: Option<(JoinHandle<ReadAnew>, Instant)>,
}

/// A configuration with the contents of its TLS files, or why it cannot be applied, one sentence each.
type ReadAnew = Result<(Config, TwinPart, RoleTerms), Vec<String>>;

/// A step of a reload, for the loop.
#[derive(Debug)]
pub(super) enum ReloadProgress {
    /// Reading has begun.
    Begun,
    Read(Box<ReadAnew>),
}

impl ConfigReader {
    pub(super) fn new(reload: Option<Reload>, clock: fn() -> SystemTime) -> Self {
        Self { reload, clock, under_way: None }
    }

    /// Whether a read is under way.
    pub(super) fn is_reading(&self) -> bool {
        self.under_way.is_some()
    }

    /// Waits for a request, and then for what was read, together with the `kept` rules of the twin and the `present`
    /// assignment. Cancel safe.
    pub(super) async fn next(&mut self, kept: &TwinRules, present: Option<&Provisioning>) -> ReloadProgress {
        let Some(Reload { wishes, read }) = &mut self.reload else { return std::future::pending().await };
        if let Some((task, deadline)) = &mut self.under_way {
            let read = match tokio::time::timeout_at(*deadline, task).await {
                Ok(Ok(read)) => read,
                Ok(Err(defect)) => Err(vec![format!("it could not be read ({defect}): please report this")]),
                Err(_elapsed) => {
                    let limit = READ_LIMIT.as_secs();
                    Err(vec![format!("the configuration could not be read within {limit} s: its disk hangs")])
                }
            };
            self.under_way = None;
            return ReloadProgress::Read(Box::new(read));
        }
        match wishes.recv().await {
            Some(()) => {
                let (read, clock, kept) = (Arc::clone(read), self.clock, kept.clone());
                let present = present.cloned();
                let task = tokio::task::spawn_blocking(move || {
                    read_anew(|| read(Remote::Given(&kept)), present.as_ref(), clock)
                });
                self.under_way = Some((task, Instant::now() + READ_LIMIT));
                ReloadProgress::Begun
            }
            None => std::future::pending().await,
        }
    }
}

fn read_anew(
    read: impl FnOnce() -> Result<(Config, TwinPart), Report>,
    present: Option<&Provisioning>,
    clock: fn() -> SystemTime,
) -> ReadAnew {
    let (mut config, part) = read().map_err(|report| report.problem_lines().collect::<Vec<_>>())?;
    config.keep_assignment(present);
    let terms = RoleTerms::read(&config, clock).map_err(|error| vec![error.to_string()])?;
    Ok((config, part, terms))
}

/// Handles a step of a reload.
pub(super) fn progressed(desk: &mut Desk, twin: &mut TwinRulesState, progress: ReloadProgress) {
    match progress {
        ReloadProgress::Begun => {
            tracing::info!("reading the configuration again");
            desk.watch.supervision.reloading();
        }
        ReloadProgress::Read(read) => {
            let refused = (*read).and_then(|(config, part, terms)| take_up(desk, twin, config, part, terms));
            let now = desk.now();
            desk.watch.board.reloaded(now, refused.as_ref().err().map(|reasons| reasons.len()));
            if let Err(reasons) = refused {
                for reason in &reasons {
                    tracing::error!("{reason}");
                }
                tracing::error!(
                    problems = reasons.len(),
                    "the new configuration was refused: the agent keeps the old one"
                );
            }
            desk.watch.supervision.reloaded();
            desk.tell_systemd();
        }
    }
}

/// Applies another configuration.
fn take_up(
    desk: &mut Desk,
    twin: &mut TwinRulesState,
    config: Config,
    part: TwinPart,
    terms: RoleTerms,
) -> Result<(), Vec<String>> {
    let present = desk.rules.config();
    if config.inbox != present.inbox {
        return Err(vec![
            "[inbox] cannot be changed while the agent runs: restart it, or put [inbox] back as it was"
                .to_owned(),
        ]);
    }
    let roles =
        |config: &Config| (config.identities.device().is_some(), config.identities.module().is_some());
    if roles(&config) != roles(present) {
        return Err(vec![
            "a device or a module cannot be added or removed while the agent runs: restart it, or name the \
             same ones as before"
                .to_owned(),
        ]);
    }
    let changed = desk.machine.actions.change_settings(&config.gpio);
    changed.map_err(|errors| errors.iter().map(ToString::to_string).collect::<Vec<_>>())?;
    let signs_in_anew = desk.sessions.change(terms);
    for warning in config.warnings.warning_lines() {
        tracing::warn!("{warning}");
    }
    desk.watch.scraper.change(config.metrics.as_ref());
    let (totals, last_received) = (&desk.watch.board.counts.totals, desk.watch.board.last_received);
    desk.reports.report_in_twin(writes_twin(&config), totals, last_received);
    twin.configured(&config, part);
    let planned_anew = new_rules::apply(desk, config);
    recovery::tell_origin(desk);
    desk.reports.look_again();
    let config = desk.rules.config();
    tracing::info!(
        rules = config.rules.len(),
        pins = config.gpio.pins.len(),
        drop_ins = config.files.len().saturating_sub(1),
        planned_anew,
        signs_in_anew,
        "applied the new configuration"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt as _;
    use std::sync::Mutex;
    use std::time::Duration;

    #[tokio::test(start_paused = true)]
    async fn a_disk_that_hangs_is_given_up_whatever_else_happens_meanwhile() {
        let none = TwinRules::default();
        let (wish, wishes) = mpsc::channel(1);
        let (release, hangs) = std::sync::mpsc::sync_channel::<()>(0);
        let hangs = Mutex::new(hangs);
        let read = move |_: Remote<'_>| {
            assert!(hangs.lock().unwrap().recv().is_err(), "the other end goes at the end of the test");
            Err(Report::default())
        };
        let mut reader =
            ConfigReader::new(Some(Reload { wishes, read: Arc::new(read) }), || SystemTime::UNIX_EPOCH);
        wish.send(()).await.unwrap();
        assert!(matches!(reader.next(&none, None).await, ReloadProgress::Begun));
        // The loop has other things to do each second, and calls `next` again.
        for _ in 0..9 {
            assert!(reader.next(&none, None).now_or_never().is_none());
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        tokio::time::advance(Duration::from_millis(1001)).await;
        let Some(progress) = reader.next(&none, None).now_or_never() else {
            panic!("it is waited for still")
        };
        let ReloadProgress::Read(read) = progress else { panic!("nothing was read") };
        let reasons = read.err().unwrap();
        assert_eq!(reasons, ["the configuration could not be read within 10 s: its disk hangs"]);
        drop(release);
    }
}
