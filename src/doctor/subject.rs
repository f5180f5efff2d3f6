//! What the checks of the network need to know.
//!
//! Owns: which settings a finding names. Must not know: the checks.

use std::path::Path;
use std::time::{Duration, SystemTime};

use crate::credentials::{DeviceAuth, DeviceIdentity, Over, Proxy, Route, Transport, WorkloadAccess};
use crate::session::standard_port;

/// What the checks of the network need to know.
#[derive(Clone, Copy)]
pub(super) struct NetworkSubject<'c> {
    pub(super) identity: Option<&'c DeviceIdentity>,
    /// Whether the peer is the provisioning service, and no hub.
    pub(super) is_service: bool,
    pub(super) ca_file: Option<&'c Path>,
    /// More roots, in PEM; often none.
    pub(super) bundle: &'c str,
    pub(super) token_lifetime: Duration,
    pub(super) transport: Transport,
    pub(super) route: &'c Route,
    pub(super) offline: bool,
    pub(super) https_port: u16,
    pub(super) clock: fn() -> SystemTime,
}

impl<'c> NetworkSubject<'c> {
    /// The workload API, where a module has its tokens signed and gets its roots.
    pub(super) fn workload(&self) -> Option<&'c WorkloadAccess> {
        match &self.identity?.auth {
            DeviceAuth::Workload(access) => Some(access),
            DeviceAuth::Key(_) | DeviceAuth::Token(_) | DeviceAuth::Certificate { .. } => None,
        }
    }

    /// The settings that say where to connect.
    pub(super) fn names(&self) -> &'static str {
        match self.workload() {
            Some(_) => "IOTEDGE_GATEWAYHOSTNAME",
            None if self.is_service => "endpoint in [provisioning]",
            None => "HostName or GatewayHostName",
        }
    }

    pub(super) fn is_module(&self) -> bool {
        self.identity.is_some_and(|identity| identity.module_id.is_some())
    }

    /// The settings that name files of certificates and keys.
    pub(super) fn files(&self) -> &'static str {
        match self.is_module() {
            true => "EdgeModuleCACertificateFile",
            false if self.is_service => "[provisioning], [device] or C2D_CA_FILE",
            false => "[device] or C2D_CA_FILE",
        }
    }

    /// The settings that name a root to trust.
    pub(super) fn root_settings(&self) -> &'static str {
        if self.is_module() { "EdgeModuleCACertificateFile" } else { "ca_file or C2D_CA_FILE" }
    }

    /// The port to which the agent connects.
    pub(super) fn mqtt_port(&self) -> u16 {
        match self.route.over {
            Over::WebSocket => self.route.https_port,
            Over::Tls | Over::Either => {
                let own = self.identity.and_then(|identity| identity.dialled().port);
                own.unwrap_or(standard_port(self.transport))
            }
        }
    }

    /// The proxy through which the agent connects.
    pub(super) fn proxy(&self, host: &str) -> Option<&Proxy> {
        let Route { over, https_port, proxies, .. } = self.route;
        proxies.on_the_way_to(host, *https_port).filter(|_| *over == Over::WebSocket)
    }
}
