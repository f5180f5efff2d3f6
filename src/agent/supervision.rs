//! Supervision: what the agent tells the service manager, and when.
//!
//! Owns: when the service is ready, its status in words, the watchdog signal. Must not know: sockets.
//!
//! The loop itself feeds the watchdog, together with its other work. So if the loop hangs, the agent is restarted.

use tokio::time::Instant;

use crate::config::{Config, counted};
use crate::systemd::Systemd;

use super::board::Board;

/// The agent's side of the service manager.
#[derive(Debug)]
pub(super) struct Supervision {
    systemd: Systemd,
    /// Whether the hub has accepted the first subscription, so that the service is ready.
    is_ready: bool,
    next_beat: Option<Instant>,
    /// Whether the agent is stopping, so that the status stays as it is.
    is_stopping: bool,
}

impl Supervision {
    pub(super) fn new() -> Self {
        let systemd = Systemd::from_environment();
        let next_beat = systemd.watchdog_interval().map(|_| Instant::now());
        Self { systemd, is_ready: false, next_beat, is_stopping: false }
    }

    /// When the watchdog is to be fed next.
    pub(super) fn wake(&self) -> Option<Instant> {
        self.next_beat
    }

    /// Feeds the watchdog when its time has come.
    pub(super) fn alive(&mut self, now: Instant) {
        if self.next_beat.is_some_and(|at| at <= now) {
            self.systemd.alive();
            self.next_beat = self.systemd.watchdog_interval().map(|interval| now + interval);
        }
    }

    /// The hub has accepted a subscription.
    pub(super) fn subscribed(&mut self) {
        if !std::mem::replace(&mut self.is_ready, true) {
            self.systemd.ready();
        }
    }

    pub(super) fn stopping(&mut self) {
        self.is_stopping = true;
        self.systemd.stopping();
        self.systemd.status("stopping".to_owned());
    }

    /// Sends the status sentence, if the service manager listens.
    pub(super) fn tell(&mut self, board: &Board, config: &Config) {
        if self.systemd.listens() && !self.is_stopping {
            self.systemd.status(sentence(board, config));
        }
    }

    /// A reload has begun. Before the service is ready, nothing is sent, because the end of the reload would say that
    /// it is ready.
    pub(super) fn reloading(&mut self) {
        if self.is_ready {
            self.systemd.reloading();
        }
    }

    /// A reload has ended, applied or refused.
    pub(super) fn reloaded(&mut self) {
        if self.is_ready {
            self.systemd.ready();
        }
    }
}

/// `connected to myhub.azure-devices.net as pi-01; 3 rules, 2 pins`
fn sentence(board: &Board, config: &Config) -> String {
    let (rules, pins) = (config.rules.len(), config.gpio.pins.len());
    let peers = config.identities.iter();
    let peers: Vec<_> =
        peers.map(|identity| format!("{} as {}", identity.dialled(), identity.client_id())).collect();
    let peers = peers.join(" and to ");
    let is_unassigned = config.provisioning.as_ref().is_some_and(|enrolled| enrolled.assigned.is_none());
    let mut sentence = match (board.is_all_connected(), board.disconnected_because()) {
        (true, _) => format!("connected to {peers}"),
        (false, Some(reason)) if is_unassigned => format!("not assigned yet, trying again: {reason}"),
        (false, Some(reason)) => format!("not connected, trying again: {reason}"),
        (false, None) if is_unassigned => format!("not assigned yet: asking {peers}"),
        (false, None) => format!("connecting to {peers}"),
    };
    sentence = format!("{sentence}; {}, {}", counted(rules, "rule"), counted(pins, "pin"));
    if let Some(trouble) = &board.trouble {
        sentence = format!("{sentence}; the inbox: {trouble}");
    }
    if let Some(problems) = board.refused_reload() {
        let problems = counted(problems, "problem");
        sentence = format!("{sentence}; the last reload was refused ({problems}): see the journal");
    }
    sentence
}
