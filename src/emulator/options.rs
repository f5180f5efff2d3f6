//! What the emulator is started with.
//!
//! Owns: the options, which of them do not go together, and what follows from them: names, addresses, devices. Must not
//! know: sockets, files.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use super::clock::{ClockError, ClockSetting};
use super::entra::{AppOptionError, EntraSettings};
use super::hub::{FaultError, FaultOrder, HubSize, InputRoute};
use super::hub_names::HubNames;
use super::hubs::{self, MAX_HUBS};
use super::identity;
use super::provisioning::{ProvisioningError, ProvisioningSettings};
use super::registrar::MAX_DEVICES;
use super::state_dir::StateDirError;
use super::workload::WorkloadSocketError;
use crate::credentials::{CredentialError, check_device_id};
use crate::message::excerpt;

/// What to emulate, and on which addresses.
#[derive(Debug, Clone)]
pub struct Options {
    /// Directory for keys and certificates; the emulator makes it if it is missing.
    pub state_dir: PathBuf,
    /// Address to listen on.
    pub bind: IpAddr,
    /// The hub's host name in the server certificate, user names and tokens. The names of its endpoints follow from it;
    /// see [`HubNames`].
    pub hostname: String,
    /// The name that modules and leaf devices dial instead. The server certificate has this name, too.
    pub gateway_hostname: Option<String>,
    /// Host names of further hubs. They begin without devices. At a name that is a loopback address the emulator
    /// listens, too.
    pub hubs: Vec<String>,
    /// Port of the device side; 0 means any free port.
    pub mqtt_port: u16,
    /// Port of the service side; 0 means any free port.
    pub amqp_port: u16,
    /// Port of the REST side; 0 means any free port. `None` means the standard port if it is available, else 8443, else
    /// any free port.
    pub https_port: Option<u16>,
    /// Devices that sign in with tokens made from keys.
    pub devices: Vec<String>,
    /// Devices that sign in with certificates.
    pub x509_devices: Vec<String>,
    /// Modules, as DEVICE/MODULE. Their devices exist, too; they sign in with keys unless they are listed above.
    pub modules: Vec<String>,
    /// The socket where modules get their tokens signed.
    pub workload_socket: Option<PathBuf>,
    /// Routes from outputs of modules to inputs.
    pub routes: Vec<InputRoute>,
    /// Time from one feedback batch to the next; the real hub's is 15 seconds.
    pub feedback_interval: Duration,
    /// How long certificates are valid that devices ask for.
    pub certificate_lifetime: Duration,
    /// The size by which each hub throttles; `None` means that nothing is throttled.
    pub size: Option<HubSize>,
    /// The faults that are set from the start.
    pub faults: Vec<FaultOrder>,
    /// How the clock is set at the start; `None` means the real time.
    pub clock: Option<ClockSetting>,
    /// Whether policies and devices use [`super::WELL_KNOWN_KEYS`]. Only allowed on loopback.
    pub well_known_keys: bool,
    /// The provisioning service, if there is one.
    pub provisioning: Option<ProvisioningSettings>,
    /// The stand-in for Microsoft Entra, if there is one.
    pub entra: Option<EntraSettings>,
}

/// Why the emulator did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EmulatorError {
    /// The device id is not valid for any hub.
    #[error(transparent)]
    DeviceId(#[from] CredentialError),
    /// Two options name the same device.
    #[error("\"{0}\" is named twice: name it once, with a key or with a certificate")]
    DoubledDevice(String),
    /// Too many devices.
    #[error("{0} devices are too many: the emulator serves at most {MAX_DEVICES}")]
    TooManyDevices(usize),
    /// The host name is not valid.
    #[error("\"{0}\" is not a host name: give a name without a port, such as localhost")]
    Hostname(String),
    /// A further hub has a name that means something else already.
    #[error("\"{0}\" is also a name of another hub or of the gateway: give each --hub a name of its own")]
    DoubledHub(String),
    /// Too many hubs.
    #[error("{0} hubs are too many: one emulator serves at most {MAX_HUBS}")]
    TooManyHubs(usize),
    /// A file of the state directory cannot be used.
    #[error(transparent)]
    StateDir(#[from] StateDirError),
    /// Well-known keys are refused if other machines can dial the emulator.
    #[error(
        "--well-known-keys works only on loopback, because everybody knows these keys, but --bind {0} is not \
         a loopback address: remove one of the two"
    )]
    WellKnownKeys(IpAddr),
    /// A listener could not start.
    #[error("cannot listen on {address} for {protocol}: {reason}")]
    Listen {
        /// The address with its port.
        address: SocketAddr,
        /// The protocol that this address should serve.
        protocol: &'static str,
        /// The reason and what to do about it.
        reason: String,
    },
    /// The clock cannot be set so.
    #[error(transparent)]
    Clock(#[from] ClockError),
    /// A fault order names a device that does not exist.
    #[error(transparent)]
    Fault(#[from] FaultError),
    /// The provisioning service cannot start.
    #[error(transparent)]
    Provisioning(#[from] ProvisioningError),
    /// An application of Entra cannot be used.
    #[error("an application of --entra-app cannot be used: {0}")]
    Entra(#[from] AppOptionError),
    /// The workload socket cannot be served.
    #[error(transparent)]
    Workload(#[from] WorkloadSocketError),
    /// rustls refuses the server's certificate.
    #[error("TLS cannot be set up")]
    Tls(#[from] rustls::Error),
}

impl Options {
    /// The devices and modules that sign in with tokens made from keys.
    pub(super) fn with_keys(&self) -> Vec<String> {
        let mut named: HashSet<&str> =
            self.devices.iter().chain(&self.x509_devices).map(String::as_str).collect();
        let of_modules = self.modules.iter().map(|module| identity::split(module).0);
        let added = of_modules.filter(|device| named.insert(device)).map(str::to_owned);
        self.devices.iter().cloned().chain(added).chain(self.modules.iter().cloned()).collect()
    }

    /// The device whose modules use the workload socket, and the socket's path as a program in another folder can use
    /// it.
    pub(super) fn workload(&self) -> Result<Option<(String, PathBuf)>, WorkloadSocketError> {
        let Some(path) = &self.workload_socket else { return Ok(None) };
        let mut devices = self.modules.iter().map(|id| identity::split(id).0);
        let device = devices.next().ok_or(WorkloadSocketError::NoDevice)?;
        if devices.any(|other| other != device) {
            return Err(WorkloadSocketError::NoDevice);
        }
        Ok(Some((device.to_owned(), std::path::absolute(path).unwrap_or_else(|_| path.clone()))))
    }

    pub(super) fn check(&self) -> Result<(), EmulatorError> {
        self.workload()?;
        if self.well_known_keys && !self.bind.to_canonical().is_loopback() {
            return Err(EmulatorError::WellKnownKeys(self.bind));
        }
        let mut ids: Vec<&String> = self.devices.iter().chain(&self.x509_devices).collect();
        for id in &ids {
            check_device_id(id)?;
        }
        self.modules.iter().try_for_each(|id| identity::check_module(id))?;
        ids.extend(&self.modules);
        if ids.len() > MAX_DEVICES {
            return Err(EmulatorError::TooManyDevices(ids.len()));
        }
        ids.sort();
        if let Some((id, _)) = ids.iter().zip(ids.iter().skip(1)).find(|(one, next)| one == next) {
            return Err(EmulatorError::DoubledDevice((**id).clone()));
        }
        for name in std::iter::once(&self.hostname).chain(&self.gateway_hostname) {
            if hubs::checked_name(name).is_none() {
                return Err(EmulatorError::Hostname(excerpt(name)));
            }
        }
        self.further_hubs().map(drop)
    }

    /// The names of the further hubs, as the emulator writes them.
    ///
    /// # Errors
    /// Fails if there are too many, or if a name is no name or means another hub already.
    pub(super) fn further_hubs(&self) -> Result<Vec<String>, EmulatorError> {
        if self.hubs.len() >= MAX_HUBS {
            return Err(EmulatorError::TooManyHubs(self.hubs.len() + 1));
        }
        let mut taken = vec![HubNames::new(self.hostname.as_str())];
        for text in &self.hubs {
            let name = hubs::checked_name(text).ok_or_else(|| EmulatorError::Hostname(excerpt(text)))?;
            let names = HubNames::new(name);
            let is_gateway = |name: &str| {
                self.gateway_hostname.as_ref().is_some_and(|gateway| gateway.eq_ignore_ascii_case(name))
            };
            let is_taken = |name: &&str| is_gateway(name) || taken.iter().any(|hub| hub.contains(name));
            if let Some(name) = names.iter().find(is_taken) {
                return Err(EmulatorError::DoubledHub(name.to_owned()));
            }
            taken.push(names);
        }
        Ok(taken.iter().skip(1).map(|hub| hub.own().to_owned()).collect())
    }

    /// All names in the certificate of the server.
    pub(super) fn names(&self, further_hubs: &[String]) -> Vec<String> {
        let hubs =
            std::iter::once(&self.hostname).chain(further_hubs).map(|name| HubNames::new(name.as_str()));
        let names = hubs.flat_map(|hub| hub.iter().map(str::to_owned).collect::<Vec<_>>());
        names.chain(self.gateway_hostname.clone()).collect()
    }

    /// The addresses to listen on: the one that was given, and those among the names of further hubs that are not
    /// reached there. Only loopback addresses, because other machines must reach the emulator by `bind` alone.
    pub(super) fn addresses(&self, further_hubs: &[String]) -> Vec<IpAddr> {
        let mut addresses = vec![self.bind];
        for ip in
            further_hubs.iter().filter_map(|name| name.parse::<IpAddr>().ok()).filter(IpAddr::is_loopback)
        {
            // On most systems, the IPv6 address for all stands for all of IPv4, too.
            let is_reached =
                |own: &IpAddr| *own == ip || own.is_unspecified() && (own.is_ipv6() || ip.is_ipv4());
            if !addresses.iter().any(is_reached) {
                addresses.push(ip);
            }
        }
        addresses
    }
}
