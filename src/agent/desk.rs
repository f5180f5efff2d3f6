//! The desk: the parts of the agent that the way of a message works with.
//!
//! Owns: which parts there are. Must not know: what happens to a message; the files below `message/` do.
//!
//! Each part keeps its own state. The functions of a message's way take the
//! whole desk, because a message that ends changes most of the parts.

use std::sync::Arc;
use std::time::SystemTime;

use tokio::sync::mpsc;

use crate::action::Actions;
use crate::config::Config;
use crate::inbox::Inbox;
use crate::outcome::DesiredReport;

use super::certificates::Certificates;
use super::machine::{Machine, PinsNoted};
use super::message::in_hand::InHand;
use super::report::AgentEvent;
use super::reports::Reports;
use super::rulebook::Rulebook;
use super::sessions::{Sessions, writes_twin};
use super::status::{CertificateStatus, Status};
use super::watch::Watchers;

/// What the way of a message works with.
pub(super) struct Desk {
    pub(super) rules: Rulebook,
    pub(super) in_hand: InHand,
    pub(super) sessions: Sessions,
    pub(super) inbox: Inbox,
    pub(super) machine: Arc<Machine>,
    pub(super) pins_noted: PinsNoted,
    pub(super) reports: Reports,
    pub(super) watch: Watchers,
    pub(super) certificates: Certificates,
    /// Where C2D messages come from now, as the inbox was told; none before the device has a hub.
    pub(super) origin: Option<Arc<str>>,
    clock: fn() -> SystemTime,
}

impl Desk {
    pub(super) fn new(
        config: Config,
        clock: fn() -> SystemTime,
        observer: Option<mpsc::Sender<AgentEvent>>,
        actions: Actions,
        sessions: Sessions,
        inbox: Inbox,
    ) -> Self {
        let watch = Watchers::new(&config, clock(), observer);
        let reports = Reports::new(writes_twin(&config));
        let rules = Rulebook::new(config);
        Self {
            in_hand: InHand::new(&rules),
            rules,
            sessions,
            inbox,
            machine: Arc::new(Machine::new(actions)),
            pins_noted: PinsNoted::Yes,
            reports,
            watch,
            certificates: Certificates::default(),
            origin: None,
            clock,
        }
    }

    pub(super) fn now(&self) -> SystemTime {
        (self.clock)()
    }

    /// The answer to `status`. `desired`: what is reported of the twin's rules.
    pub(super) fn status(&self, desired: Option<&DesiredReport>) -> Status {
        let pins = self.machine.pins().collect();
        let config = self.rules.config();
        let certificate = self.certificate();
        Status { certificate, ..self.watch.board.status(config, &self.in_hand, pins, desired) }
    }

    /// The certificate that the device signs in with.
    pub(super) fn certificate(&self) -> Option<CertificateStatus> {
        let provisioning = self.rules.config().provisioning.as_ref();
        let issued = provisioning.and_then(|provisioning| provisioning.pairs.as_ref()?.file());
        self.certificates.status(issued.is_some())
    }

    /// Brings up to date what the service manager shows.
    pub(super) fn tell_systemd(&mut self) {
        self.watch.supervision.tell(&self.watch.board, self.rules.config());
    }
}
