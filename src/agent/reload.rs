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
use std::time::{Duration, SystemTime};

use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::config::{Config, Remote, Report, TwinPart, TwinRules};
use crate::inbox::Settled;

use super::message::end::PassedOver;
use super::message::in_hand::{Phase, RuleFacts};
use super::message::lanes::{Lane, LaneNames, Lanes, Ticket};
use super::sessions::Terms;
use super::{Agent, writes_twin};

/// How long the read of the configuration may take, because its disk may hang.
pub(super) const READ_LIMIT: Duration = Duration::from_secs(10);

/// Reads the configuration, with these rules of the twin.
pub type Read = dyn Fn(Remote<'_>) -> Result<(Config, TwinPart), Report> + Send + Sync;

/// The source of another configuration.
pub struct Reload {
    /// Requests to read it again. Several requests during one read may be merged into one.
    pub wishes: mpsc::Receiver<()>,
    /// Reads the configuration. Called on a thread where it may block.
    pub read: Arc<Read>,
}

impl fmt::Debug for Reload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reload").finish_non_exhaustive()
    }
}

/// A read of the configuration, beside the loop.
#[derive(Debug)]
pub(super) struct Reader {
    reload: Option<Reload>,
    clock: fn() -> SystemTime,
    /// The read under way, and how long to wait for it.
    under_way: Option<(JoinHandle<ReadAnew>, Instant)>,
}

/// A configuration with the contents of its TLS files, or why it cannot be applied, one sentence each.
type ReadAnew = Result<(Config, TwinPart, Terms), Vec<String>>;

/// A step of a reload, for the loop.
#[derive(Debug)]
pub(super) enum Progress {
    /// Reading has begun.
    Begun,
    Read(Box<ReadAnew>),
}

impl Reader {
    pub(super) fn new(reload: Option<Reload>, clock: fn() -> SystemTime) -> Self {
        Self { reload, clock, under_way: None }
    }

    /// Whether a read is under way.
    pub(super) fn is_reading(&self) -> bool {
        self.under_way.is_some()
    }

    /// Waits for a request, and then for what was read, together with the `kept` rules of the twin. Cancel safe.
    pub(super) async fn next(&mut self, kept: &TwinRules) -> Progress {
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
            return Progress::Read(Box::new(read));
        }
        match wishes.recv().await {
            Some(()) => {
                let (read, clock, kept) = (Arc::clone(read), self.clock, kept.clone());
                let task =
                    tokio::task::spawn_blocking(move || read_anew(|| read(Remote::Given(&kept)), clock));
                self.under_way = Some((task, Instant::now() + READ_LIMIT));
                Progress::Begun
            }
            None => std::future::pending().await,
        }
    }
}

fn read_anew(
    read: impl FnOnce() -> Result<(Config, TwinPart), Report>,
    clock: fn() -> SystemTime,
) -> ReadAnew {
    let (config, part) = read().map_err(|report| report.problem_lines().collect::<Vec<_>>())?;
    let terms = Terms::read(&config, clock).map_err(|error| vec![error.to_string()])?;
    Ok((config, part, terms))
}

impl Agent {
    pub(super) fn reload_progress(&mut self, progress: Progress) {
        match progress {
            Progress::Begun => {
                tracing::info!("reading the configuration again");
                self.systemd_reloading();
            }
            Progress::Read(read) => {
                let refused = (*read).and_then(|(config, part, terms)| self.take_up(config, part, terms));
                self.board.reloaded((self.clock)(), refused.as_ref().err().map(|reasons| reasons.len()));
                if let Err(reasons) = refused {
                    for reason in &reasons {
                        tracing::error!("{reason}");
                    }
                    tracing::error!(
                        problems = reasons.len(),
                        "the new configuration was refused: the agent keeps the old one"
                    );
                }
                self.systemd_reloaded();
            }
        }
    }

    /// Applies another configuration.
    fn take_up(&mut self, config: Config, part: TwinPart, terms: Terms) -> Result<(), Vec<String>> {
        if config.inbox != self.config.inbox {
            return Err(vec![
                "[inbox] cannot be changed while the agent runs: restart it, or put [inbox] back as it was"
                    .to_owned(),
            ]);
        }
        let roles =
            |config: &Config| (config.identities.device().is_some(), config.identities.module().is_some());
        if roles(&config) != roles(&self.config) {
            return Err(vec![
                "a device or a module cannot be added or removed while the agent runs: restart it, or name \
                 the same ones as before"
                    .to_owned(),
            ]);
        }
        let changed = self.machine.actions.change_settings(&config.gpio);
        changed.map_err(|errors| errors.iter().map(ToString::to_string).collect::<Vec<_>>())?;
        let signs_in_anew = self.sessions.change(terms);
        for warning in config.warnings.warning_lines() {
            tracing::warn!("{warning}");
        }
        self.scraper.change(config.metrics.as_ref());
        let (totals, last_received) = (&self.board.counts.totals, self.board.last_received);
        self.outbox.report_in_twin(writes_twin(&config), totals, last_received);
        self.twin.configured(&config, part);
        self.config = config;
        let planned_anew = self.use_rules();
        self.outbox.look_again();
        tracing::info!(
            rules = self.config.rules.len(),
            pins = self.config.gpio.pins.len(),
            drop_ins = self.config.files.len().saturating_sub(1),
            planned_anew,
            signs_in_anew,
            "applied the new configuration"
        );
        Ok(())
    }

    /// Applies the rules of the configuration. The lanes are rebuilt: a message that has begun is at the front as
    /// before. Waiting messages line up behind, in order of arrival and as the new rules say. Returns how many
    /// waited.
    pub(super) fn use_rules(&mut self) -> usize {
        let mut names = LaneNames::default();
        self.rules = RuleFacts::of_all(&self.config, &mut names);
        let begun: Vec<(Ticket, Arc<RuleFacts>, Arc<[Lane]>)> =
            self.hand.begun(|ticket, rule| (ticket, Arc::clone(rule), names.lanes(&rule.policy.lanes)));
        self.lanes = Lanes::new(names.len(), self.config.max_children);
        let mut may_begin = Vec::new();
        for (ticket, rule, lanes) in begun {
            let Some(entry) = self.hand.get(ticket) else { continue };
            let whose = rule.whose(entry.entered);
            if entry.phase == Phase::Waiting {
                entry.turn = self.lanes.enter(ticket, &lanes, rule.slot, whose);
                may_begin.extend(entry.turn.then_some(ticket));
                continue;
            }
            self.lanes.enter_again(ticket, &lanes, rule.slot, whose);
            if entry.phase == Phase::BackingOff {
                self.lanes.pause(ticket);
            }
        }
        let waiting = self.hand.not_begun();
        for ticket in &waiting {
            may_begin.extend(self.plan_anew(*ticket).then_some(*ticket));
        }
        may_begin.into_iter().for_each(|ticket| self.begin(ticket));
        self.forget_rules(&serde_json::Value::Null);
        waiting.len()
    }

    /// Plans a waiting message again with the present rules. True if its turn has come.
    fn plan_anew(&mut self, ticket: Ticket) -> bool {
        let Some(entry) = self.hand.get(ticket) else { return false };
        let (message, since) = (entry.message.clone(), entry.since);
        let planned = self.plan(message, since, (self.clock)());
        let Some(entry) = self.hand.get(ticket) else { return false };
        match planned {
            Ok(new) => {
                let (lanes, slot, whose) =
                    (Arc::clone(&new.rule.lanes), new.rule.slot, new.rule.whose(entry.entered));
                (entry.rule, entry.plan, entry.retry_on_crash) = (new.rule, new.plan, new.retry_on_crash);
                entry.passed_over = None;
                entry.turn = self.lanes.enter(ticket, &lanes, slot, whose);
                entry.turn && entry.phase == Phase::Waiting
            }
            Err((_, why)) => {
                // A message that was completed when it was accepted exists only here, so it must not be lost together
                // with its rule.
                let gone = why == PassedOver::Unmatched && entry.settled == Settled::OnAccept;
                let why = if gone { PassedOver::no_rule_any_more() } else { why };
                (entry.plan, entry.turn) = (None, false);
                if entry.phase == Phase::Waiting {
                    self.pass_over(ticket, &why);
                } else {
                    entry.passed_over = Some(why);
                }
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt as _;
    use std::sync::Mutex;

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
            Reader::new(Some(Reload { wishes, read: Arc::new(read) }), || SystemTime::UNIX_EPOCH);
        wish.send(()).await.unwrap();
        assert!(matches!(reader.next(&none).await, Progress::Begun));
        // The loop has other things to do each second, and calls `next` again.
        for _ in 0..9 {
            assert!(reader.next(&none).now_or_never().is_none());
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        tokio::time::advance(Duration::from_millis(1001)).await;
        let Some(progress) = reader.next(&none).now_or_never() else { panic!("it is waited for still") };
        let Progress::Read(read) = progress else { panic!("nothing was read") };
        let reasons = read.err().unwrap();
        assert_eq!(reasons, ["the configuration could not be read within 10 s: its disk hangs"]);
        drop(release);
    }
}
