//! A local IoT Hub for development and tests. It needs no Azure account. It serves devices over MQTT, back ends over
//! AMQP 1.0 and HTTPS, and all of these also over WebSockets.
//!
//! Owns: starting and stopping the listeners around one hub. Must not know: `session`, `service`, `agent`, `action`: a
//! double built from the code under test proves nothing.
//!
//! - `clock` is the offset of a clock that was moved.
//! - `identity` writes the ids of devices and modules, `hub_names` the names of the hub; `hub` is the state machine,
//!   pure; `registry` decides who may sign in; `shared` wraps the hub for listeners; `registrar` changes devices in the
//!   hub and in the state directory; `event_hub` says where back ends read D2C messages.
//! - `query` is the hub's query language, pure. `job_runner` keeps the hub's jobs going.
//! - `mqtt`, `amqp` and `https` serve one connection each; `listener` accepts connections; `tls` is the server's side
//!   of TLS.
//! - `workload` is the daemon of an edge device.
//! - `client` sends requests to an emulator that runs in another process.
//! - `state_dir` and `certificates` make keys and certificates that survive a restart; `keeper` stores what the hub
//!   holds.

use std::collections::HashSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::FutureExt as _;
use rustls::pki_types::ServerName;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::credentials::{CredentialError, HostPort, check_device_id};

mod amqp;
mod certificates;
pub mod client;
pub mod clock;
mod event_hub;
mod event_log;
mod https;
pub mod hub;
pub mod hub_names;
mod identity;
mod job_runner;
mod journal;
mod keeper;
mod listener;
mod mqtt;
mod query;
mod registrar;
pub mod registry;
pub mod shared;
mod state_dir;
mod tls;
mod workload;

use clock::{ClockError, ClockOffset, ClockSetting};
use hub::{FaultError, FaultOrder, Hub, InputRoute};
use hub_names::HubNames;
use keeper::HubFile;
use listener::Accepted;
pub use listener::{AMQP_PORT, HTTPS_PORT, MQTT_PORT};
pub use mqtt::{UserName, UserNameError};
pub use registrar::MAX_DEVICES;
use registrar::Registrar;
use registry::Registry;
pub use shared::Clock;
use shared::SharedHub;
pub use state_dir::{STATE_DIR_VARIABLE, StateDirError, WELL_KNOWN_KEYS};
use state_dir::{Served, StateDir};
use tls::DeviceAuthority;
use workload::Workload;
pub use workload::WorkloadSocketError;

/// The HTTPS port if no port was given and the standard port is not available.
const SPARE_HTTPS_PORT: u16 = 8443;

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
    /// The faults that are set from the start.
    pub faults: Vec<FaultOrder>,
    /// How the clock is set at the start; `None` means the real time.
    pub clock: Option<ClockSetting>,
    /// Whether policies and devices use [`WELL_KNOWN_KEYS`]. Only allowed on loopback.
    pub well_known_keys: bool,
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
    /// The workload socket cannot be served.
    #[error(transparent)]
    Workload(#[from] WorkloadSocketError),
    /// rustls refuses the server's certificate.
    #[error("TLS cannot be set up")]
    Tls(#[from] rustls::Error),
}

/// A running emulator. Dropping it stops it without closing the connections in order; see [`Emulator::stop`].
pub struct Emulator {
    hub: SharedHub,
    mqtt_address: SocketAddr,
    amqp_address: SocketAddr,
    https_address: SocketAddr,
    state_dir: PathBuf,
    stop: CancellationToken,
    tasks: JoinSet<()>,
    keeper: HubFile,
    /// Keeps the state directory locked.
    _registrar: Registrar,
}

/// Starts the emulator. When this returns, all listeners accept connections. Needs a tokio runtime. `clock` gives the
/// real time; certificates are always made by it.
///
/// # Errors
/// [`EmulatorError`] names the option, file or port that is wrong. In this case nothing is running.
///
/// # Cancel safety
/// Cancel safe: the listeners that were already open are closed.
pub async fn start(options: Options, clock: Clock) -> Result<Emulator, EmulatorError> {
    options.check()?;
    let Options { state_dir: root, bind, hostname, mqtt_port, amqp_port, .. } = &options;
    let now = clock();
    let setting = options.clock.unwrap_or(ClockSetting::Offset(ClockOffset::default()));
    let moved = setting.offset(ClockOffset::default(), now)?;
    let (with_keys, known_keys) = (options.with_keys(), options.well_known_keys);
    let mut state = StateDir::open(root, &with_keys, &options.x509_devices, known_keys, now)?;
    // Back ends may have made more than the command line names.
    if state.devices().len() > MAX_DEVICES {
        return Err(EmulatorError::TooManyDevices(state.devices().len()));
    }
    let of_hub = HubNames::new(hostname.as_str());
    let names: Vec<&str> = of_hub.iter().chain(options.gateway_hostname.as_deref()).collect();
    let identity = state.make_server_identity(&names, now)?;
    let tls = tls::server_config(identity.chain, identity.key)?;
    let authority = DeviceAuthority::new(state.authority_certificate()?)?;

    let mqtt = listen(SocketAddr::new(*bind, *mqtt_port), "MQTT", "--mqtt-port").await?;
    let amqp = listen(SocketAddr::new(*bind, *amqp_port), "AMQP", "--amqp-port").await?;
    let (mqtt_address, mqtt) = mqtt;
    let (amqp_address, amqp) = amqp;
    let (https_address, https) = listen_https(*bind, options.https_port).await?;
    // The files for clients name the ports, so the listeners come first.
    let served = Served {
        hostname: hostname.clone(),
        gateway: options.gateway_hostname.clone(),
        mqtt_port: mqtt_address.port(),
        amqp_port: amqp_address.port(),
        https: dialled_here(https_address),
        workload: options.workload()?,
    };
    state.write_client_files(served, now)?;

    let mut registry = Registry::new(hostname, state.policies());
    for (device, record) in state.devices() {
        registry.add_device(device.clone());
        registry.set_record(&device.id, record.clone());
    }
    let hub = SharedHub::new(Hub::new(registry, options.feedback_interval), clock);
    // Restore before a connection is served, so that no client sees an empty hub.
    let keeper = HubFile::restore(&hub, root)?;
    // What was restored may be of a clock that was ahead.
    hub.move_clock(ClockSetting::Offset(moved))?;
    hub.with(|hub, _| {
        hub.serve_events_at(amqp_address.port());
        hub.set_input_routes(options.routes.clone());
        hub.order_faults(&options.faults)
    })?;
    let workload = match (options.workload()?, &options.workload_socket) {
        (Some((device, _)), Some(path)) => {
            Some(Workload::bind(path, device, state.authority().to_owned(), hub.clone())?)
        }
        _ => None,
    };
    let registrar = Registrar::new(hub.clone(), state);
    let stop = CancellationToken::new();
    let mut tasks = JoinSet::new();
    if let Some(workload) = workload {
        tasks.spawn(workload.run(stop.clone()));
    }
    tasks.spawn(keeper.clone().run(stop.clone()));
    let timer = hub.clone();
    let timer_stop = stop.clone();
    tasks.spawn(async move {
        tokio::select! {
            () = timer_stop.cancelled() => {}
            () = timer.run_timer() => {}
        }
    });
    let (own, token) = (hub.clone(), stop.clone());
    tasks.spawn(async move {
        tokio::select! {
            () = token.cancelled() => {}
            () = job_runner::run(own) => {}
        }
    });
    let (own, token, devices) = (hub.clone(), stop.clone(), authority.clone());
    let serve_mqtt = move |stream: Accepted, peer| {
        let certificate = devices.peer_thumbprint(stream.get_ref().1);
        mqtt::serve_connection(stream, certificate, peer, own.clone(), token.clone())
    };
    tasks.spawn(listener::serve("mqtt", mqtt, tls.clone(), stop.clone(), serve_mqtt));
    let (own, token, devices) = (hub.clone(), stop.clone(), authority.clone());
    let serve_amqp = move |stream: Accepted, peer| {
        let certificate = devices.peer_thumbprint(stream.get_ref().1);
        amqp::serve_connection(stream, certificate, peer, own.clone(), token.clone()).map(drop)
    };
    tasks.spawn(listener::serve("amqp", amqp, tls.clone(), stop.clone(), serve_amqp));
    let (own, token) = (registrar.clone(), stop.clone());
    let serve_https = move |stream, peer| {
        https::serve_connection(stream, peer, own.clone(), authority.clone(), token.clone())
    };
    tasks.spawn(listener::serve("https", https, tls, stop.clone(), serve_https));
    let (state_dir, _registrar) = (options.state_dir, registrar);
    Ok(Emulator {
        hub,
        mqtt_address,
        amqp_address,
        https_address,
        state_dir,
        stop,
        tasks,
        keeper,
        _registrar,
    })
}

impl Emulator {
    /// The hub itself, for tests that inspect it or enqueue messages directly.
    pub fn hub(&self) -> &SharedHub {
        &self.hub
    }

    /// The address that devices connect to.
    pub fn mqtt_address(&self) -> SocketAddr {
        self.mqtt_address
    }

    /// The address that back ends connect to.
    pub fn amqp_address(&self) -> SocketAddr {
        self.amqp_address
    }

    /// The address of the REST side.
    pub fn https_address(&self) -> SocketAddr {
        self.https_address
    }

    /// The directory with `ca.pem` and the connection strings.
    pub fn state_dir(&self) -> &Path {
        &self.state_dir
    }

    /// Closes all connections, writes what the hub holds, and stops. This takes about a second at most. Returns whether
    /// all was written; the log says why not.
    ///
    /// # Cancel safety
    /// If dropped early, the remaining connections are cut.
    pub async fn stop(mut self) -> bool {
        self.stop.cancel();
        while self.tasks.join_next().await.is_some() {}
        // The listeners are closed, so the hub does not change any more.
        self.keeper.write(false).await
    }
}

impl Options {
    /// The devices and modules that sign in with tokens made from keys.
    fn with_keys(&self) -> Vec<String> {
        let mut named: HashSet<&str> =
            self.devices.iter().chain(&self.x509_devices).map(String::as_str).collect();
        let of_modules = self.modules.iter().map(|module| identity::split(module).0);
        let added = of_modules.filter(|device| named.insert(device)).map(str::to_owned);
        self.devices.iter().cloned().chain(added).chain(self.modules.iter().cloned()).collect()
    }

    /// The device whose modules use the workload socket, and the socket's path as a program in another folder can use
    /// it.
    fn workload(&self) -> Result<Option<(String, PathBuf)>, WorkloadSocketError> {
        let Some(path) = &self.workload_socket else { return Ok(None) };
        let mut devices = self.modules.iter().map(|id| identity::split(id).0);
        let device = devices.next().ok_or(WorkloadSocketError::NoDevice)?;
        if devices.any(|other| other != device) {
            return Err(WorkloadSocketError::NoDevice);
        }
        Ok(Some((device.to_owned(), std::path::absolute(path).unwrap_or_else(|_| path.clone()))))
    }

    fn check(&self) -> Result<(), EmulatorError> {
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
            let is_host = matches!(HostPort::parse(name), Some(HostPort { port: None, .. }));
            if !is_host || ServerName::try_from(name.as_str()).is_err() {
                let shown = name.chars().take(60).flat_map(char::escape_debug).collect();
                return Err(EmulatorError::Hostname(shown));
            }
        }
        Ok(())
    }
}

/// The address at which a client on this machine can dial a listener. The listener may listen on every address.
fn dialled_here(listener: SocketAddr) -> SocketAddr {
    let ip = match listener.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, listener.port())
}

/// Listens for HTTPS. If a port was given, only this port is tried.
async fn listen_https(bind: IpAddr, asked: Option<u16>) -> Result<(SocketAddr, TcpListener), EmulatorError> {
    let on = |port| listen(SocketAddr::new(bind, port), "HTTPS", "--https-port");
    if let Some(port) = asked {
        return on(port).await;
    }
    for port in [HTTPS_PORT, SPARE_HTTPS_PORT] {
        match on(port).await {
            Ok(listening) => return Ok(listening),
            Err(error) => tracing::info!("{error}; trying another port"),
        }
    }
    on(0).await
}

async fn listen(
    address: SocketAddr,
    protocol: &'static str,
    option: &str,
) -> Result<(SocketAddr, TcpListener), EmulatorError> {
    let failed = |error: io::Error| {
        let reason = match error.kind() {
            io::ErrorKind::AddrInUse => {
                format!("the port is in use; stop what listens there, or choose another with {option}")
            }
            io::ErrorKind::PermissionDenied => {
                format!("ports below 1024 need privileges; choose another with {option}")
            }
            io::ErrorKind::AddrNotAvailable => {
                "this machine has no such address; choose one of its own with --bind".to_owned()
            }
            _ => error.to_string(),
        };
        EmulatorError::Listen { address, protocol, reason }
    };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    Ok((listener.local_addr().map_err(failed)?, listener))
}
