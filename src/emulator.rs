//! A local IoT Hub for development and tests. It needs no Azure account. It serves devices over MQTT, back ends over
//! AMQP 1.0 and HTTPS, and all of these also over WebSockets.
//!
//! Owns: starting and stopping the listeners around the hubs. Must not know: `session`, `service`, `agent`, `action`: a
//! double built from the code under test proves nothing.
//!
//! - `options` is what the emulator is started with; `sockets` are what it listens on.
//! - `clock` is the offset of a clock that was moved.
//! - `identity` writes the ids of devices and modules, `hub_names` the names of the hub; `hub` is the state machine,
//!   pure; `registry` decides who may sign in; `shared` wraps the hub for listeners; `registrar` changes devices in the
//!   hub and in the state directory; `event_hub` says where back ends read D2C messages.
//! - `hubs` are all hubs of the emulator, and find the one that a client means.
//! - `query` is the hub's query language, pure. `job_runner` keeps the hub's jobs going.
//! - `provisioning` is the Device Provisioning Service.
//! - `mqtt`, `amqp` and `https` serve one connection each; `listener` accepts connections; `tls` is the server's side
//!   of TLS.
//! - `workload` is the daemon of an edge device.
//! - `entra` gives tokens to back ends and knows them again; `imds` gives them to a machine.
//! - `json_server` is what `workload` and `imds` are served with.
//! - `client` sends requests to an emulator that runs in another process.
//! - `state_dir` and `certificates` make keys and certificates that survive a restart; `keeper` stores what the hub
//!   holds.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use futures_util::FutureExt as _;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

mod amqp;
mod certificates;
pub mod client;
pub mod clock;
mod entra;
mod event_hub;
mod event_log;
mod fault_text;
mod https;
pub mod hub;
pub mod hub_names;
mod hubs;
mod identity;
mod imds;
mod job_runner;
mod journal;
mod json_server;
mod keeper;
mod listener;
mod mqtt;
mod options;
mod provisioning;
mod query;
mod registrar;
pub mod registry;
pub mod shared;
mod sockets;
mod state_dir;
mod tls;
mod workload;

use clock::{ClockOffset, ClockSetting};
use entra::EntraIssuer;
pub use entra::{AppOption, AppOptionError, AppSecret, EntraRole, EntraSettings};
use hub::Hub;
use hubs::Hubs;
use imds::Imds;
use keeper::HubFile;
use listener::Accepted;
pub use listener::{AMQP_PORT, HTTPS_PORT, MQTT_PORT};
pub use mqtt::{UserName, UserNameError};
pub use options::{EmulatorError, Options};
pub use provisioning::{
    DEFAULT_ID_SCOPE, DpsFault, DpsFaultError, DpsFaultName, DpsFaultOrder, EnrolmentOption,
    EnrolmentOptionError, ProvisioningError, ProvisioningSettings,
};
use provisioning::{OpenedProvisioning, Reception};
pub use registrar::MAX_DEVICES;
use registrar::Registrar;
use registry::Registry;
pub use shared::Clock;
use shared::SharedHub;
use sockets::Sockets;
pub use state_dir::{STATE_DIR_VARIABLE, StateDirError, WELL_KNOWN_KEYS};
use state_dir::{Served, StateDir};
use tls::DeviceAuthority;
use workload::Workload;
pub use workload::WorkloadSocketError;

/// A running emulator. Dropping it stops it without closing the connections in order; see [`Emulator::stop`].
pub struct Emulator {
    /// Keeps the state directories locked, too.
    hubs: Hubs,
    mqtt_address: SocketAddr,
    amqp_address: SocketAddr,
    https_address: SocketAddr,
    imds_address: Option<SocketAddr>,
    state_dir: PathBuf,
    stop: CancellationToken,
    tasks: JoinSet<()>,
    keepers: Vec<HubFile>,
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
    let further = options.further_hubs()?;
    let now = clock();
    let setting = options.clock.unwrap_or(ClockSetting::Offset(ClockOffset::default()));
    let moved = setting.offset(ClockOffset::default(), now)?;
    let root = &options.state_dir;
    let main =
        StateDir::open(root, &options.with_keys(), &options.x509_devices, options.well_known_keys, now)?;
    let others = further.iter().map(|name| main.open_further(name)).collect::<Result<Vec<_>, _>>()?;
    // Back ends may have made more than the command line names.
    if main.devices().len() > MAX_DEVICES {
        return Err(EmulatorError::TooManyDevices(main.devices().len()));
    }
    let identity = main.make_server_identity(&options.names(&further), now)?;
    let tls = tls::server_config(identity.chain, identity.key)?;
    let authority = DeviceAuthority::new(main.authority_certificate()?)?;
    let trust_bundle = main.authority().to_owned();

    let addresses = options.addresses(&further);
    let mqtt = Sockets::listen(&addresses, options.mqtt_port, "MQTT", "--mqtt-port").await?;
    let amqp = Sockets::listen(&addresses, options.amqp_port, "AMQP", "--amqp-port").await?;
    let https = Sockets::listen_https(&addresses, options.https_port).await?;
    let (mqtt_address, amqp_address, https_address) = (mqtt.address, amqp.address, https.address);
    let provisioning = options
        .provisioning
        .as_ref()
        .map(|settings| provisioning::open(settings, root, options.well_known_keys, now));
    let provisioning = provisioning.transpose()?;
    // The files for clients name the ports, so the listeners come first.
    let served = |hostname: &str| Served {
        hostname: hostname.to_owned(),
        gateway: None,
        mqtt_port: mqtt_address.port(),
        amqp_port: amqp_address.port(),
        https: https.dialled_here(),
        workload: None,
        provisioning: None,
    };
    let of_main = Served {
        gateway: options.gateway_hostname.clone(),
        workload: options.workload()?,
        provisioning: provisioning.as_ref().map(OpenedProvisioning::served),
        ..served(&options.hostname)
    };
    let issuer =
        options.entra.as_ref().map(|settings| main.entra_issuer(settings)).transpose()?.map(Arc::new);
    let make = |state, served| make_hub(state, served, &options, issuer.clone(), clock, (now, moved));
    let (main, keeper) = make(main, of_main)?;
    let others = others.into_iter().zip(&further).map(|(state, name)| make(state, served(name)));
    let (others, mut keepers): (Vec<_>, Vec<_>) = others.collect::<Result<Vec<_>, _>>()?.into_iter().unzip();
    keepers.push(keeper);
    main.hub().with(|hub, _| {
        hub.set_input_routes(options.routes.clone());
        hub.order_faults(&options.faults)
    })?;
    let workload = match (options.workload()?, &options.workload_socket) {
        (Some((device, _)), Some(path)) => {
            Some(Workload::bind(path, device, trust_bundle, main.hub().clone())?)
        }
        _ => None,
    };
    let imds_port = options.entra.as_ref().and_then(|settings| settings.imds_port);
    let imds = match (imds_port, issuer) {
        (Some(port), Some(issuer)) => Some(Imds::bind(port, issuer, main.hub().clone()).await?),
        _ => None,
    };
    let imds_address = imds.as_ref().map(|(_, address)| *address);
    let hubs = Hubs::new(main, others);
    let ports = [mqtt_address.port(), amqp_address.port(), https_address.port()];
    let reception = Reception::new(provisioning, &hubs, ports).await?;
    let stop = CancellationToken::new();
    let mut tasks = JoinSet::new();
    if let Some(workload) = workload {
        tasks.spawn(workload.run(stop.clone()));
    }
    if let Some((imds, _)) = imds {
        tasks.spawn(imds.run(stop.clone()));
    }
    for keeper in &keepers {
        tasks.spawn(keeper.clone().run(stop.clone()));
    }
    for hub in hubs.iter().map(|registrar| registrar.hub().clone()) {
        let stop = stop.clone();
        tasks.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = hub.run_timer() => {}
                () = job_runner::run(hub.clone()) => {}
            }
        });
    }
    let (own, token, devices) = (hubs.clone(), stop.clone(), authority.clone());
    let provisioning = reception.clone();
    let serve_mqtt = move |stream: Accepted, peer| {
        let connection = stream.get_ref().1;
        let (certificate, reception) = (devices.peer_thumbprint(connection), provisioning.of(connection));
        mqtt::serve_connection(stream, certificate, reception, peer, own.clone(), token.clone())
    };
    for listener in mqtt.listeners {
        tasks.spawn(listener::serve("mqtt", listener, tls.clone(), stop.clone(), serve_mqtt.clone()));
    }
    let (own, token, devices) = (hubs.clone(), stop.clone(), authority.clone());
    let provisioning = reception.clone();
    let serve_amqp = move |stream: Accepted, peer| {
        let connection = stream.get_ref().1;
        let (certificate, reception) = (devices.peer_thumbprint(connection), provisioning.of(connection));
        amqp::serve_connection(stream, certificate, reception, peer, own.clone(), token.clone()).map(drop)
    };
    for listener in amqp.listeners {
        tasks.spawn(listener::serve("amqp", listener, tls.clone(), stop.clone(), serve_amqp.clone()));
    }
    let (own, token) = (hubs.clone(), stop.clone());
    let serve_https = move |stream, peer| {
        let (authority, reception) = (authority.clone(), reception.clone());
        https::serve_connection(stream, peer, own.clone(), authority, reception, token.clone())
    };
    for listener in https.listeners {
        tasks.spawn(listener::serve("https", listener, tls.clone(), stop.clone(), serve_https.clone()));
    }
    let state_dir = options.state_dir;
    Ok(Emulator {
        hubs,
        mqtt_address,
        amqp_address,
        https_address,
        imds_address,
        state_dir,
        stop,
        tasks,
        keepers,
    })
}

/// Makes a hub with what an earlier emulator has left in its state directory. The clock was moved at the start.
fn make_hub(
    mut state: StateDir,
    served: Served,
    options: &Options,
    issuer: Option<Arc<EntraIssuer>>,
    clock: Clock,
    (now, moved): (SystemTime, ClockOffset),
) -> Result<(Registrar, HubFile), EmulatorError> {
    let (hostname, amqp_port) = (served.hostname.clone(), served.amqp_port);
    state.write_client_files(served, now)?;
    let mut registry = Registry::new(hostname, state.policies());
    if let Some(issuer) = issuer {
        registry.set_issuer(issuer);
    }
    for (device, record) in state.devices() {
        registry.add_device(device.clone());
        registry.set_record(&device.id, record.clone());
    }
    let hub = SharedHub::new(Hub::new(registry, options.feedback_interval), clock);
    hub.issue_certificates(state.issuer(options.certificate_lifetime));
    // Restore before a connection is served, so that no client sees an empty hub.
    let keeper = HubFile::restore(&hub, state.root())?;
    // What was restored may be of a clock that was ahead.
    hub.move_clock(ClockSetting::Offset(moved))?;
    hub.with(|hub, _| {
        hub.serve_events_at(amqp_port);
        options.size.into_iter().for_each(|size| hub.throttle_as(size));
    });
    Ok((Registrar::new(hub, state).with_file(keeper.clone()), keeper))
}

impl Emulator {
    /// The main hub itself, for tests that inspect it or enqueue messages directly.
    pub fn hub(&self) -> &SharedHub {
        self.hubs.main().hub()
    }

    /// The hub that has this host name.
    pub fn hub_named(&self, host: &str) -> Option<&SharedHub> {
        self.hubs.named(host).map(Registrar::hub)
    }

    /// The own names of the further hubs, each with its directory.
    pub fn further_hubs(&self) -> impl Iterator<Item = (&str, PathBuf)> {
        self.hubs.names().skip(1).map(|name| (name, state_dir::further(&self.state_dir, name)))
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

    /// The address where a machine gets the tokens of its identity, if there is one.
    pub fn imds_address(&self) -> Option<SocketAddr> {
        self.imds_address
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
        // The listeners are closed, so the hubs do not change any more.
        let mut is_written = true;
        for keeper in &self.keepers {
            is_written &= keeper.write(false).await;
        }
        is_written
    }
}
