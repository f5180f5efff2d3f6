//! The board: what `status` shows, kept up to date as things happen.
//!
//! Owns: the facts about the connection and the inbox that nobody else keeps, and putting them together with the rest.
//! Must not know: how they are shown. Used by: `agent`.

use std::time::SystemTime;

use crate::inbox::Counts;

use super::Agent;
use super::hand::Phase;
use super::status::{ActionCounts, Connection, ConnectionState, InboxStatus, Status};

/// What is known right now.
#[derive(Debug)]
pub(super) struct Board {
    started: SystemTime,
    connection: Connection,
    renewal: Option<SystemTime>,
    /// Until when the hub takes the token of the last sign-in.
    token_expiry: Option<SystemTime>,
    pub(super) last_received: Option<SystemTime>,
    pub(super) counts: Counts,
    /// What is wrong with the inbox.
    pub(super) trouble: Option<String>,
    ever_connected: bool,
    /// When the configuration that counts was read.
    configured: SystemTime,
    /// How many problems the last reload had, when it was refused.
    refused_reload: Option<usize>,
}

impl Board {
    pub(super) fn new(now: SystemTime) -> Self {
        Self {
            started: now,
            connection: Connection {
                state: ConnectionState::Connecting,
                transport: None,
                since: now,
                reason: None,
                reconnects: 0,
            },
            renewal: None,
            token_expiry: None,
            last_received: None,
            counts: Counts::default(),
            trouble: None,
            ever_connected: false,
            configured: now,
            refused_reload: None,
        }
    }

    /// The configuration was read anew; `refused` with so many problems.
    pub(super) fn reloaded(&mut self, now: SystemTime, refused: Option<usize>) {
        self.refused_reload = refused;
        if refused.is_none() {
            self.configured = now;
        }
    }

    pub(super) fn refused_reload(&self) -> Option<usize> {
        self.refused_reload
    }

    /// Why there is no connection, once an attempt has failed.
    pub(super) fn disconnected_because(&self) -> Option<&str> {
        self.connection.reason.as_deref()
    }

    pub(super) fn connected(
        &mut self,
        now: SystemTime,
        transport: &str,
        renewal: Option<SystemTime>,
        token_expiry: Option<SystemTime>,
    ) {
        let reconnects = self.connection.reconnects + u64::from(self.ever_connected);
        self.connection = Connection {
            state: ConnectionState::Connected,
            transport: Some(transport.to_owned()),
            since: now,
            reason: None,
            reconnects,
        };
        (self.ever_connected, self.renewal, self.token_expiry) = (true, renewal, token_expiry);
    }

    /// The token was renewed on the connection that there is.
    pub(super) fn renewed(&mut self, renewal: Option<SystemTime>, token_expiry: Option<SystemTime>) {
        (self.renewal, self.token_expiry) = (renewal, token_expiry);
    }

    pub(super) fn disconnected(&mut self, now: SystemTime, reason: &str) {
        (self.renewal, self.connection.transport) = (None, None);
        if self.connection.state != ConnectionState::Disconnected {
            (self.connection.state, self.connection.since) = (ConnectionState::Disconnected, now);
        }
        self.connection.reason = Some(reason.to_owned());
    }

    pub(super) fn token_expiry(&self) -> Option<SystemTime> {
        self.token_expiry
    }

    pub(super) fn is_connected(&self) -> bool {
        self.connection.state == ConnectionState::Connected
    }

    pub(super) fn received(&mut self, now: SystemTime) {
        self.last_received = Some(now);
    }
}

impl Agent {
    /// What is wrong when the inbox turned messages away.
    fn full(&self) -> Option<String> {
        (!self.turned_away.is_empty()).then(|| {
            format!(
                "full of messages that have not ended: {} stay at the hub until some have; raise [inbox] max_size if \
                 that happens often",
                self.turned_away.len()
            )
        })
    }

    /// What the agent says of itself.
    pub(super) fn status(&self) -> Status {
        let running = |phase: &Phase| *phase == Phase::Running;
        let (mut actions, entries) = (ActionCounts::default(), self.hand.entries());
        for phase in entries.map(|entry| entry.phase).filter(|phase| *phase != Phase::Ending) {
            let count = if running(&phase) { &mut actions.running } else { &mut actions.waiting };
            *count += 1;
        }
        let Board { started, connection, renewal, last_received, counts, trouble, .. } = &self.board;
        let Board { configured, refused_reload, .. } = &self.board;
        let pins = self.machine.actions.pin_states().into_iter();
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            device_id: self.config.identity.device_id.clone(),
            hub: self.config.identity.hub.to_string(),
            started: *started,
            configured: Some(*configured),
            refused_reload: *refused_reload,
            connection: connection.clone(),
            next_token_renewal: *renewal,
            last_message_received: *last_received,
            actions,
            inbox: InboxStatus {
                path: self.config.inbox.path.display().to_string(),
                counts: counts.clone(),
                trouble: trouble.clone().or_else(|| self.full()),
            },
            pins: pins.map(|(pin, state)| (pin, state.to_string())).collect(),
        }
    }
}
