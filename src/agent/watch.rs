//! Those who watch: the status board, the counts for scrapers, the service manager, the observer, the log.
//!
//! Owns: what each of them learns when a message arrives or ends. Must not know: how messages are handled.

use std::time::SystemTime;

use tokio::sync::mpsc;

use crate::config::Config;
use crate::message::C2dMessage;
use crate::outcome::OutcomeReport;

use super::board::Board;
use super::message::life::Since;
use super::report::{self, AgentEvent};
use super::scrape::Scraper;
use super::supervision::Supervision;
use super::tally::DUPLICATE;

/// All who watch.
pub(super) struct Watchers {
    pub(super) board: Board,
    pub(super) scraper: Scraper,
    pub(super) supervision: Supervision,
    observer: Option<mpsc::Sender<AgentEvent>>,
    /// Whether the log says already that this agent's own messages come back to it.
    pub(super) own_told: bool,
    /// Whether the log says already that the clock seems to be ahead.
    clock_told: bool,
}

impl Watchers {
    pub(super) fn new(config: &Config, now: SystemTime, observer: Option<mpsc::Sender<AgentEvent>>) -> Self {
        Self {
            board: Board::new(now, &config.identities),
            scraper: Scraper::new(config.metrics.as_ref()),
            supervision: Supervision::new(),
            observer,
            own_told: false,
            clock_told: false,
        }
    }

    /// A message arrived.
    pub(super) fn received(&mut self, message: &C2dMessage, since: Since, now: SystemTime) {
        self.board.last_received = Some(now);
        if self.observer.is_some() {
            self.tell(AgentEvent::Received { message: message.clone() });
        }
        since.tell_of_clock(message, now, &mut self.clock_told);
    }

    /// A message has ended, and that is on disk.
    pub(super) fn ended(&mut self, outcome: &OutcomeReport) {
        self.scraper.tally.ended(outcome.rule.as_deref(), outcome.outcome.as_str());
        if self.observer.is_some() {
            let OutcomeReport { message_id, rule, text, output, .. } = outcome.clone();
            self.tell(AgentEvent::Settled { message_id, rule, outcome: text, output: output.into_bytes() });
        }
    }

    /// A message came again after it had ended.
    pub(super) fn ended_before(&mut self, rule: Option<&str>, message_id: Option<&str>) {
        self.scraper.tally.ended(rule, DUPLICATE);
        report::log_already_done(message_id);
    }

    pub(super) fn tell(&self, event: AgentEvent) {
        if let Some(Err(error)) = self.observer.as_ref().map(|observer| observer.try_send(event)) {
            tracing::warn!(%error, "an event was not observed");
        }
    }
}
