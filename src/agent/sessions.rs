//! The sessions of an agent: as a device, as a module of an edge device, or both side by side.
//!
//! Owns: which session does what. C2D messages come only to the device session; everything else uses the module
//! session if there is one. Must not know: what is done with messages, which protocol a session uses.

use std::path::Path;
use std::time::SystemTime;

use crate::certificate::CertificateFacts;
use crate::config::{Config, Identities, Provisioning};
use crate::credentials::{DeviceAuth, DeviceIdentity, Route, Transport};
use crate::message::Source;
use crate::session::{self, Delivery, Event, HubSource, Session, Settlement, Upstream};
use crate::tls::{ClientCertificate, TlsError};

/// Bag key of the output through which a module sends; routes of the gateway begin there. Source: wire reference 1.5,
/// 6.3.
const OUTPUT: &str = "$.on";
/// The output of outcome reports.
const OUTCOMES: &str = "outcomes";

/// The identity with which a session signs in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Role {
    Device,
    Module,
}

/// Something that is published, so that its result finds its way. A telemetry report has its number in the inbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PublishId(pub(super) u64);

impl PublishId {
    /// A patch of the twin.
    pub(super) const TWIN_PATCH: Self = Self(u64::MAX);
    /// A request for a certificate.
    pub(super) const CERTIFICATE: Self = Self(u64::MAX - 2);
    /// A request for the twin.
    pub(super) const TWIN_READ: Self = Self(u64::MAX - 1);
}

/// One session for each identity that the configuration names.
pub(super) struct Sessions {
    device: Option<Session>,
    module: Option<Session>,
}

/// What the sessions connect with.
#[derive(Debug)]
pub(super) struct RoleTerms {
    device: Option<session::Terms>,
    module: Option<session::Terms>,
}

impl Sessions {
    /// Begins to connect.
    ///
    /// # Errors
    /// [`TlsError`] names the file at fault.
    pub(super) fn open(config: &Config, clock: fn() -> SystemTime) -> Result<Self, TlsError> {
        let open = |role| settings(config, role, clock).map(Session::open).transpose();
        Ok(Self { device: open(Role::Device)?, module: open(Role::Module)? })
    }

    /// The next event or message of any session. Without `take`, messages wait. Cancel safe: nothing is lost.
    pub(super) async fn next(&mut self, take: bool) -> (Role, Event) {
        let Self { device, module } = self;
        tokio::select! {
            event = next(device, take) => (Role::Device, event),
            event = next(module, take) => (Role::Module, event),
        }
    }

    /// A message of this session that has arrived already.
    pub(super) fn try_delivery(&mut self, role: Role) -> Option<Delivery> {
        self.of_mut(role).as_mut().and_then(Session::try_delivery)
    }

    /// Removes a session that has ended.
    pub(super) fn ended(&mut self, role: Role) {
        *self.of_mut(role) = None;
    }

    /// The role that publishes, is called, and has the twin.
    pub(super) fn speaker(config: &Config) -> Role {
        if config.identities.module().is_some() { Role::Module } else { Role::Device }
    }

    /// Publishes something: see [`Session::publish`]. A module sends through its output [`OUTCOMES`]. If there is no
    /// session, as at the end, no result is reported.
    pub(super) fn publish(&self, id: PublishId, mut upstream: Upstream) {
        if let (Some(_), Upstream::Telemetry { properties, .. }) = (&self.module, &mut upstream) {
            properties.set(OUTPUT, OUTCOMES);
        }
        if let Some(session) = self.module.as_ref().or(self.device.as_ref()) {
            session.publish(id.0, upstream);
        }
    }

    /// Asks the device's hub for a certificate.
    pub(super) fn ask_for_certificate(&self, request: String, body: Vec<u8>) {
        if let Some(session) = &self.device {
            let body = body.into();
            session.publish(PublishId::CERTIFICATE.0, Upstream::IssueCertificate { request, body });
        }
    }

    /// Has the device's session ask the provisioning service again: see [`Session::register_again`].
    pub(super) fn register_again(&self) {
        self.device.iter().for_each(Session::register_again);
    }

    /// The certificate that the device signs in with, if it has one.
    pub(super) fn certificate(&self) -> Option<CertificateFacts> {
        self.device.as_ref().and_then(Session::certificate)
    }

    /// Whether messages of this session can be settled in this way.
    pub(super) fn can_settle(&self, role: Role, settlement: Settlement) -> bool {
        self.of(role).map_or(settlement == Settlement::Complete, |session| session.can_settle(settlement))
    }

    /// Whether a session still waits to learn that the hub has a marked completion.
    pub(super) fn awaits_confirmation(&self) -> bool {
        [&self.device, &self.module].into_iter().flatten().any(Session::awaits_confirmation)
    }

    /// Applies other terms to the existing sessions. True if one of them signs in again.
    pub(super) fn change(&self, terms: RoleTerms) -> bool {
        let change = |session: &Option<Session>, terms: Option<session::Terms>| match (session, terms) {
            (Some(session), Some(terms)) => session.change(terms),
            _ => false,
        };
        // No short circuit here, because both must get their terms.
        change(&self.device, terms.device) | change(&self.module, terms.module)
    }

    /// Gives the device's session what came of an assignment with a certificate: see [`Session::go_on_with`].
    pub(super) fn go_on_with(&self, terms: RoleTerms) {
        if let (Some(session), Some(terms)) = (&self.device, terms.device) {
            session.go_on_with(terms);
        }
    }

    /// Makes no more connections: see [`Session::connect_no_more`].
    pub(super) fn connect_no_more(&self) {
        [&self.device, &self.module].into_iter().flatten().for_each(Session::connect_no_more);
    }

    /// Ends all sessions: see [`Session::close`].
    pub(super) async fn close(self) {
        let close = async |session: Option<Session>| {
            if let Some(session) = session {
                session.close().await;
            }
        };
        tokio::join!(close(self.device), close(self.module));
    }

    fn of(&self, role: Role) -> Option<&Session> {
        match role {
            Role::Device => self.device.as_ref(),
            Role::Module => self.module.as_ref(),
        }
    }

    fn of_mut(&mut self, role: Role) -> &mut Option<Session> {
        match role {
            Role::Device => &mut self.device,
            Role::Module => &mut self.module,
        }
    }
}

impl RoleTerms {
    /// Reads the TLS files of the configuration.
    ///
    /// # Errors
    /// [`TlsError`] names the file at fault.
    pub(super) fn read(config: &Config, clock: fn() -> SystemTime) -> Result<Self, TlsError> {
        let read = |role| settings(config, role, clock).map(session::Terms::read).transpose();
        Ok(Self { device: read(Role::Device)?, module: read(Role::Module)? })
    }

    /// Whether the device signs in without the pair that was issued: see [`session::Terms::stands_in`].
    pub(super) fn stands_in(&self) -> bool {
        self.device.as_ref().is_some_and(session::Terms::stands_in)
    }
}

impl Role {
    /// The role of the session through which a message came.
    pub(super) fn of(source: Source<'_>, config: &Config) -> Self {
        match source {
            Source::C2d => Self::Device,
            Source::Input(_) => Self::Module,
            Source::Method(_) => Sessions::speaker(config),
        }
    }
}

/// Whether the agent writes the reported properties of the twin. It does if a rule reports there, if the twin's rules
/// are answered there, or if the agent is a module, which would not be visible otherwise.
pub(super) fn writes_twin(config: &Config) -> bool {
    let reports = config.reports.twin || config.rules.iter().any(|rule| rule.policy().reports.twin);
    reports || config.twin.accepts_rules || config.identities.module().is_some()
}

/// What a session needs from a configuration. None if the configuration does not name this role.
fn settings(config: &Config, role: Role, clock: fn() -> SystemTime) -> Option<session::Settings> {
    let (identity, ca_file, transport, route) = match role {
        Role::Device => {
            let identity = config.identities.device()?;
            (identity, &config.ca_file, config.transport, config.route.clone())
        }
        Role::Module => {
            let module = config.identities.module()?;
            // Every gateway offers MQTT, and is so near that no proxy is needed.
            let route = Route { keep_alive: config.route.keep_alive, ..Route::default() };
            (&module.identity, &module.ca_file, Transport::Mqtt, route)
        }
    };
    let speaks = role == Sessions::speaker(config);
    let twin = speaks && writes_twin(config);
    Some(session::Settings {
        identity: identity.clone(),
        hub_source: hub_source(config, role),
        transport,
        ca_file: ca_file.clone(),
        token_lifetime: config.token_lifetime,
        route,
        clock,
        twin,
        methods: speaks,
        // The twin's rules are also read if they are not accepted: the refusal is reported there.
        desired: twin,
        // If there are two sessions and one cannot connect, that must not end the other.
        alone: !matches!(config.identities, Identities::Both(_)),
        issuing: issuing(config, role, identity),
    })
}

/// What the session needs if the service issues the certificate of `identity`.
fn issuing(config: &Config, role: Role, identity: &DeviceIdentity) -> session::Issuing {
    let provisioning = config.provisioning.as_ref().filter(|_| role == Role::Device);
    let Some((provisioning, pairs)) = provisioning.and_then(|it| Some((it, it.pairs.as_ref()?))) else {
        return session::Issuing::default();
    };
    let own = pairs.file();
    let is_issued =
        matches!(&identity.auth, DeviceAuth::Certificate { certificate, .. } if own == Some(certificate));
    let pair = |file: &Path| ClientCertificate { certificate: file.to_owned(), private_key: file.to_owned() };
    session::Issuing {
        is_issued,
        at_hub: is_issued && config.transport == Transport::Mqtt,
        csr: provisioning.csr(),
        earlier: pairs.earlier_file().filter(|_| is_issued).map(pair),
    }
}

fn hub_source(config: &Config, role: Role) -> HubSource {
    match config.provisioning.as_ref().filter(|_| role == Role::Device) {
        None => HubSource::Configured,
        Some(Provisioning { enrolment, assigned: Some(_), .. }) => HubSource::Assigned(enrolment.clone()),
        Some(Provisioning { enrolment, .. }) => HubSource::Unassigned(enrolment.clone()),
    }
}

/// The next event of a session. Without a session it never resolves.
async fn next(session: &mut Option<Session>, take: bool) -> Event {
    match session {
        Some(session) if take => session.next().await,
        Some(session) => session.next_event().await,
        None => std::future::pending().await,
    }
}
