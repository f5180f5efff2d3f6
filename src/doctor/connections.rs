//! The connections that the agent makes: one as a device, one as a module, or both side by side; and before, one to the
//! provisioning service.
//!
//! Owns: the settings of each connection, and the order of its checks. Must not know: what the checks examine.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use futures_util::future::join_all;

use super::network;
use super::subject::NetworkSubject;
use super::{Finding, RunningAgent, registration, signin, workload};
use crate::config::{Inspection, Provisioning};
use crate::credentials::{DeviceIdentity, Route, Transport};

/// A connection, as far as the configuration describes it.
pub(super) struct ConfiguredConnection {
    /// `None` if the configuration does not say who signs in.
    identity: Option<DeviceIdentity>,
    ca_file: Option<PathBuf>,
    transport: Transport,
    route: Route,
    /// If it leads to the provisioning service: what the service is asked.
    provisioning: Option<Provisioning>,
    /// The client id, if there are two connections.
    name: Option<String>,
}

/// What is the same for all connections.
pub(super) struct SharedFacts {
    pub(super) agent: RunningAgent,
    pub(super) token_lifetime: Duration,
    pub(super) offline: bool,
    pub(super) sign_in: bool,
    pub(super) https_port: u16,
    pub(super) clock: fn() -> SystemTime,
}

/// The connections to examine: at least one, that to the provisioning service first, then the device's.
pub(super) fn of(inspection: &Inspection) -> Vec<ConfiguredConnection> {
    let as_device = |identity: Option<&DeviceIdentity>| ConfiguredConnection {
        identity: identity.cloned(),
        ca_file: inspection.ca_file.clone(),
        transport: inspection.transport,
        route: inspection.route.clone(),
        provisioning: None,
        name: None,
    };
    // The agent also uses MQTT and no proxy here: every gateway speaks MQTT, and it is near.
    let module = inspection.module.as_ref().map(|module| ConfiguredConnection {
        identity: Some(module.identity.clone()),
        ca_file: module.ca_file.clone(),
        transport: Transport::Mqtt,
        route: Route { keep_alive: inspection.route.keep_alive, ..Route::default() },
        provisioning: None,
        name: None,
    });
    let service = inspection.provisioning.as_ref().map(to_service(inspection));
    let is_assigned = inspection.provisioning.as_ref().is_none_or(|enrolled| enrolled.assigned.is_some());
    let device = inspection.identity.as_ref().filter(|_| is_assigned);
    let device = device.map(|device| as_device(Some(device)));
    let all: Vec<_> = [service, device, module].into_iter().flatten().collect();
    match all.len() {
        0 => vec![as_device(None)],
        1 => all,
        _ => all.into_iter().map(ConfiguredConnection::named).collect(),
    }
}

/// The connection to the provisioning service. It speaks MQTT with every device.
fn to_service(inspection: &Inspection) -> impl Fn(&Provisioning) -> ConfiguredConnection {
    let (ca_file, route) = (inspection.ca_file.clone(), inspection.route.clone());
    move |provisioning| ConfiguredConnection {
        identity: Some(provisioning.unassigned()),
        ca_file: ca_file.clone(),
        transport: Transport::Mqtt,
        route: route.clone(),
        provisioning: Some(provisioning.clone()),
        name: None,
    }
}

/// Examines all connections side by side, and tells the findings of one after the other. Takes at most 20 seconds.
pub(super) async fn examine(
    connections: &[ConfiguredConnection],
    circumstances: &SharedFacts,
    tell: &mut impl FnMut(Finding),
) {
    let Some((first, others)) = connections.split_first() else { return };
    let others = join_all(others.iter().map(|other| async {
        let mut findings = Vec::new();
        other.examine(circumstances, &mut |finding| findings.push(finding)).await;
        findings
    }));
    let ((), others) = tokio::join!(first.examine(circumstances, tell), others);
    others.into_iter().flatten().for_each(tell);
}

impl ConfiguredConnection {
    fn named(self) -> Self {
        let name = match &self.provisioning {
            Some(provisioning) => Some(format!("registration {}", provisioning.enrolment.registration_id)),
            None => self.identity.as_ref().map(DeviceIdentity::client_id),
        };
        Self { name, ..self }
    }

    async fn examine(&self, circumstances: &SharedFacts, tell: &mut impl FnMut(Finding)) {
        let SharedFacts { agent, token_lifetime, offline, sign_in, https_port, clock } = circumstances;
        let mut tell = |finding: Finding| tell(finding.on(self.name.as_deref()));
        let subject = NetworkSubject {
            identity: self.identity.as_ref(),
            is_service: self.provisioning.is_some(),
            ca_file: self.ca_file.as_deref(),
            bundle: "",
            token_lifetime: *token_lifetime,
            transport: self.transport,
            route: &self.route,
            offline: *offline,
            https_port: *https_port,
            clock: *clock,
        };
        let no_tls = "there is no TLS connection to sign in over";
        let may_try = match subject.workload() {
            None => {
                let way = network::reach(&subject, &mut tell).await;
                network::meet(&subject, way, &mut tell).await.then_some(()).ok_or(no_tls)
            }
            Some(access) => {
                let mut later = Vec::new();
                let mut keep = |finding| later.push(finding);
                let reached = network::reach(&subject, &mut keep);
                let (given, way) = tokio::join!(workload::examine(access, &mut tell), reached);
                later.into_iter().for_each(&mut tell);
                match given.bundle {
                    None => {
                        network::pass_by(&subject, &way, &mut tell);
                        Err("without a trust bundle the module cannot sign in")
                    }
                    Some(bundle) => {
                        let subject = NetworkSubject { bundle: &bundle, ..subject };
                        let met = network::meet(&subject, way, &mut tell).await;
                        let has_token = given.signs.then_some(()).ok_or("there is no token to sign in with");
                        met.then_some(()).ok_or(no_tls).and(has_token)
                    }
                }
            }
        };
        tell(match &self.provisioning {
            Some(provisioning) => {
                registration::registration(&subject, provisioning, agent, *sign_in, may_try).await
            }
            None => signin::sign_in(&subject, agent, *sign_in, may_try).await,
        });
    }
}
