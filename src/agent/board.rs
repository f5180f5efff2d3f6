//! The board: what `status` shows, kept up to date as things happen.
//!
//! Owns: the facts about the connection and the inbox that have no other owner, and how the status is put together.
//! Must not know: how it is shown.

use std::collections::BTreeMap;
use std::time::SystemTime;

use crate::config::{Config, Identities, Provisioning};
use crate::inbox::Counts;
use crate::outcome::DesiredReport;
use crate::provisioning::Enrolment;

use super::message::in_hand::{InHand, Stage};
use super::sessions::Role;
use super::status::{
    ActionCounts, ConnectionState, ConnectionStatus, InboxStatus, ModuleStatus, ProvisioningStatus, Status,
};

/// What is known right now.
#[derive(Debug)]
pub(super) struct Board {
    started: SystemTime,
    /// The connection of each configured role.
    connections: BTreeMap<Role, ConnectionView>,
    pub(super) last_received: Option<SystemTime>,
    pub(super) counts: Counts,
    /// What is wrong with the inbox, if anything.
    pub(super) trouble: Option<String>,
    /// When the configuration in force was read.
    configured: SystemTime,
    /// How many problems the last reload had, if it was refused.
    refused_reload: Option<usize>,
}

/// One connection, as the agent sees it.
#[derive(Debug)]
pub(super) struct ConnectionView {
    pub(super) status: ConnectionStatus,
    renewal: Option<SystemTime>,
    /// When the hub stops accepting the token of the last sign-in.
    token_expiry: Option<SystemTime>,
    ever_connected: bool,
}

impl Board {
    pub(super) fn new(now: SystemTime, identities: &Identities) -> Self {
        let device = identities.device().map(|_| Role::Device);
        let module = identities.module().map(|_| Role::Module);
        Self {
            started: now,
            connections: device
                .into_iter()
                .chain(module)
                .map(|role| (role, ConnectionView::new(now)))
                .collect(),
            last_received: None,
            counts: Counts::default(),
            trouble: None,
            configured: now,
            refused_reload: None,
        }
    }

    /// The configuration was read again. `refused`: the number of its problems, if it was refused.
    pub(super) fn reloaded(&mut self, now: SystemTime, refused: Option<usize>) {
        self.refused_reload = refused;
        if refused.is_none() {
            self.configured = now;
        }
    }

    pub(super) fn refused_reload(&self) -> Option<usize> {
        self.refused_reload
    }

    /// The state of one connection, so that the caller can update it.
    pub(super) fn connection(&mut self, role: Role) -> Option<&mut ConnectionView> {
        self.connections.get_mut(&role)
    }

    /// Why one of the connections is missing, if its last attempt failed.
    pub(super) fn disconnected_because(&self) -> Option<&str> {
        self.connections.values().find_map(|view| view.status.reason.as_deref())
    }

    /// Whether the hub could send the messages of this role again by now. True for a role that is not configured,
    /// because nothing can come there.
    pub(super) fn had_its_chance(&self, role: Role) -> bool {
        self.connections.get(&role).is_none_or(ConnectionView::is_connected)
    }

    /// Whether every configured connection is up.
    pub(super) fn is_all_connected(&self) -> bool {
        self.connections.values().all(ConnectionView::is_connected)
    }

    /// Whether no connection is up, so that the agent cannot be reached.
    pub(super) fn is_alone(&self) -> bool {
        !self.connections.values().any(ConnectionView::is_connected)
    }

    /// When the first of the tokens that the hub has expires.
    pub(super) fn token_expiry(&self) -> Option<SystemTime> {
        self.connections.values().filter_map(|view| view.token_expiry).min()
    }

    /// The whole status. `desired`: what is reported of the twin's rules.
    pub(super) fn status(
        &self,
        config: &Config,
        in_hand: &InHand,
        pins: BTreeMap<String, String>,
        desired: Option<&DesiredReport>,
    ) -> Status {
        let identities = &config.identities;
        let first = identities.first();
        // Every configured role has had one since the start.
        let of = |role| self.connections.get(&role).map(|view| (view.status.clone(), view.renewal));
        let unseen = || ConnectionView::new(self.started);
        let first_role = if identities.device().is_some() { Role::Device } else { Role::Module };
        let (connection, next_token_renewal) = of(first_role).unwrap_or_else(|| (unseen().status, None));
        let beside = match identities {
            Identities::Both(both) => of(Role::Module).map(|(connection, next_token_renewal)| ModuleStatus {
                id: both.1.identity.client_id(),
                hub: both.1.identity.dialled().to_string(),
                connection,
                next_token_renewal,
            }),
            Identities::Device(_) | Identities::Module(_) => None,
        };
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            device_id: first.device_id.clone(),
            module_id: first.module_id.clone(),
            hub: first.hub.to_string(),
            provisioning: config.provisioning.as_ref().map(provisioning),
            started: self.started,
            configured: Some(self.configured),
            refused_reload: self.refused_reload,
            connection,
            next_token_renewal,
            certificate: None,
            module: beside,
            desired: desired.cloned(),
            twin_rules: config.twin_rules.len(),
            last_message_received: self.last_received,
            actions: actions(in_hand),
            inbox: InboxStatus {
                path: config.inbox.path.display().to_string(),
                counts: self.counts.clone(),
                trouble: self.trouble.clone().or_else(|| full(in_hand)),
            },
            pins,
        }
    }
}

fn provisioning(provisioning: &Provisioning) -> ProvisioningStatus {
    let Enrolment { endpoint, id_scope, registration_id, .. } = &provisioning.enrolment;
    let (id_scope, registration_id) = (id_scope.clone(), registration_id.clone());
    let assigned = provisioning.assigned_at();
    ProvisioningStatus { service: endpoint.to_string(), id_scope, registration_id, assigned }
}

/// How many actions run and wait.
fn actions(in_hand: &InHand) -> ActionCounts {
    let mut counts = ActionCounts::default();
    for stage in in_hand.entries().map(|entry| entry.stage) {
        match stage {
            Stage::Ending => {}
            Stage::Running => counts.running += 1,
            _ => counts.waiting += 1,
        }
    }
    counts
}

/// What is wrong if the inbox turned messages away.
fn full(in_hand: &InHand) -> Option<String> {
    let waiting = in_hand.turned_away();
    (waiting > 0).then(|| {
        format!(
            "full of messages that have not ended: {waiting} wait at the hub until some end; raise [inbox] \
             max_size if that happens often"
        )
    })
}

impl ConnectionView {
    fn new(now: SystemTime) -> Self {
        let status = ConnectionStatus {
            state: ConnectionState::Connecting,
            transport: None,
            since: now,
            reason: None,
            reconnects: 0,
        };
        Self { status, renewal: None, token_expiry: None, ever_connected: false }
    }

    pub(super) fn connected(
        &mut self,
        now: SystemTime,
        transport: &str,
        renewal: Option<SystemTime>,
        token_expiry: Option<SystemTime>,
    ) {
        let reconnects = self.status.reconnects + u64::from(self.ever_connected);
        self.status = ConnectionStatus {
            state: ConnectionState::Connected,
            transport: Some(transport.to_owned()),
            since: now,
            reason: None,
            reconnects,
        };
        (self.ever_connected, self.renewal, self.token_expiry) = (true, renewal, token_expiry);
    }

    /// The token was renewed on the existing connection.
    pub(super) fn renewed(&mut self, renewal: Option<SystemTime>, token_expiry: Option<SystemTime>) {
        (self.renewal, self.token_expiry) = (renewal, token_expiry);
    }

    pub(super) fn disconnected(&mut self, now: SystemTime, reason: &str) {
        (self.renewal, self.status.transport) = (None, None);
        if self.status.state != ConnectionState::Disconnected {
            (self.status.state, self.status.since) = (ConnectionState::Disconnected, now);
        }
        self.status.reason = Some(reason.to_owned());
    }

    pub(super) fn is_connected(&self) -> bool {
        self.status.state == ConnectionState::Connected
    }
}
