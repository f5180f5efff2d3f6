//! `emulator`: runs the local IoT Hub until a signal; its subcommands ask an emulator that runs.
//!
//! Owns: its arguments, the `ready` line, signals, and the exit code. Must not know: protocols.
//!
//! - `events`, `faults` and `send_input` are the subcommands; `running` finds the running emulator for them.
//! - `pattern` reads one argument that names many devices; `entra` has the arguments of Microsoft Entra's stand-in.

use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use clap::Subcommand;
use futures_util::StreamExt as _;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook_tokio::Signals;

use crate::emulator::clock::ClockSetting;
use crate::emulator::hub::{FaultError, FaultOrder, HubSize, InputRoute, Tier};
use crate::emulator::{
    self, AMQP_PORT, DEFAULT_ID_SCOPE, DpsFaultError, DpsFaultName, DpsFaultOrder, EmulatorError,
    EnrolmentOption, MQTT_PORT, Options, ProvisioningError, ProvisioningSettings, WorkloadSocketError,
};

use super::{Exit, Failure};

mod announce;
mod clock;
mod entra;
mod events;
mod faults;
mod pattern;
mod running;
mod send_input;

use entra::EntraArgs;
use running::state_dir;

/// Most devices with a key that the start tells one by one.
const MAX_LINES: usize = 20;

/// The device of an emulator when no option names one.
const DEFAULT_DEVICE: &str = "dev1";

/// Run a local IoT Hub for development and tests; no Azure account is needed.
///
/// Devices connect over MQTT 3.1.1, AMQP 1.0 or HTTPS, and back ends over AMQP 1.0
/// or HTTPS. All use TLS, as with the real hub. MQTT and AMQP also work over
/// WebSockets, on the HTTPS port. C2D messages follow the rules of the real hub: 50
/// in a queue, a lock of one minute, expiry, delivery feedback. Twins have tags,
/// desired and reported properties. Back ends call direct methods. Modules of an
/// edge device sign in over MQTT, and routes feed their inputs. The state directory
/// keeps all of it over a restart; each change is on disk after a quarter of a
/// second. Only connections and locks end with the process.
///
/// When the emulator is ready, it prints one line to standard output:
///   ready mqtt=ADDRESS amqp=ADDRESS https=ADDRESS state=DIR
///
/// The other commands find this hub when the shell has sourced DIR/env:
///   . DIR/env
/// It sets C2D_DEVICE_CONNECTION_STRING (of the first --device),
/// C2D_SERVICE_CONNECTION_STRING, C2D_CA_FILE, C2D_HTTPS_PORT and
/// C2D_EMULATOR_STATE_DIR.
///
/// With --dps-device, --dps-group or --id-scope it is a Device Provisioning Service
/// (DPS), too, on the same ports: over MQTT, MQTT over a WebSocket, and HTTPS. A
/// device registers there and learns its hub: this one, or one of --hub. Without a
/// --device, DIR/env names the service and the first --dps-device with a key
/// (C2D_PROVISIONING_…).
///
/// With --entra-app it stands in for Microsoft Entra, too: applications get tokens
/// on the HTTPS port, as machines do on --imds-port, and back ends sign in with
/// them. The ready line then also has imds=ADDRESS.
///
/// The subcommands ask an emulator that runs: its clock, what devices sent, faults,
/// inputs of modules. The HTTPS port serves a page for a browser, too: devices,
/// queues, feedback, twins, and a form that sends a message. Its address, with a
/// token, is in page.address.
///
/// Faults to test with. Set them with --fault or with the subcommand faults:
///   drop-at=N           drops the connection at the N-th packet that the device
///                       sends or gets from now on; once
///   delay=DURATION      delivers each C2D message this much later
///   duplicate[=N]       delivers every C2D message, or the next N, twice
///   ignore-puback[=N]   ignores all PUBACKs, or the next N (MQTT)
///   expire-token        expires the token of the device's connection, or of its
///                       next one; once
///   throttle            throttles the device
///   queue-full          accepts no more messages for the device's queue
///   reverse-order       delivers the newest waiting message first
///   early-publish       delivers C2D messages before the device subscribes (MQTT)
///   certificate=WORD    certificates that it asks for: refuse, hold, other-key,
///                       broken, critical or unsupported (MQTT)
/// Of the provisioning service, for one registration or for all:
///   dps-assigning=N     answers N questions after a registration with "assigning"
///   dps-throttle[=N]    answers all requests, or the next N, with 429
///   dps-error[=N]       the same with 500
///   dps-refuse[=N]      the same with 401
///   dps-failed=CODE     ends registrations with this code, such as 400208
///   dps-disabled        ends registrations as if the enrolment were disabled
///   dps-slow=DURATION   answers this much later
///   dps-move            assigns another hub at the next registration of a
///                       device that has one; ends when it has moved
///   dps-html[=N]        answers with a page in HTML, as a proxy does (HTTPS)
/// A restart removes them.
///
/// Move the clock with --clock or with the subcommand clock: locks, expiry,
/// feedback and the tokens of connections follow. A restart sets it to the real
/// time.
///
/// The state directory then holds:
///   env                            what a shell sources; see above
///   secrets.json, devices.jsonl    all keys and certificates
///   hub.jsonl                      queues, twins, sessions, feedback, D2C messages
///   ca.pem                         the root that clients must trust (C2D_CA_FILE)
///   service.connection-string      for back ends
///   iothubowner.connection-string  for creating and deleting devices
///   page.address                   the page's address, with a token
///   https.address                  where the subcommands connect to
///   devices/ID.connection-string   for a device with a key
///   devices/ID.cert.pem, .key.pem  for a device with a certificate
///   leaf/ID.connection-string      for a device with a key behind the gateway,
///                                  with --gateway-hostname
///   modules/ID/MODULE.connection-string  for a module
///   modules/ID/MODULE.env          with --workload-socket: the environment
///                                  that edgeAgent would give it
///   hubs/NAME/                     the same files for a further hub (--hub)
///   provisioning.jsonl             enrolments and registrations
///   dps/devices/ID.key, dps/groups/NAME.key  keys of --dps-device, --dps-group
///   dps/service.connection-string  for back ends that make enrolments
/// Each start makes all files but the .json and .jsonl files anew.
///
/// SIGTERM and SIGINT end the emulator.
#[derive(Debug, clap::Args)]
#[command(
    verbatim_doc_comment,
    args_conflicts_with_subcommands = true,
    disable_help_subcommand = true,
    after_help = "Examples:
  c2d-agent emulator
  c2d-agent emulator --state-dir ./hub --device pi-01 --well-known-keys
  c2d-agent emulator --device pi-01 --device pi-02 --x509-device pi-03
  c2d-agent emulator --device pi-01 --fault pi-01:drop-at=6 --fault duplicate
  c2d-agent emulator --device pi-01 --hub 127.0.0.2
  c2d-agent emulator --state-dir ./hub --mqtt-port 0 --amqp-port 0
  c2d-agent emulator --dps-device pi-01 --dps-group fleet --hub 127.0.0.2
  c2d-agent emulator --entra-app contoso/sender=s3cret --imds-port 0

Exit codes: 0 ended by a signal; 1 a port is in use, or the state directory cannot be used or written; 2 the arguments are wrong."
)]
pub(super) struct EmulatorArgs {
    #[command(subcommand)]
    command: Option<EmulatorCommand>,
    /// Directory for keys and certificates [default: $C2D_EMULATOR_STATE_DIR, or else c2d-agent/emulator in
    /// $XDG_STATE_HOME or ~/.local/state].
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Address to listen on. An address other than loopback opens this test tool to the network.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    bind: IpAddr,
    /// The hub's host name. Clients connect to it, and user names and tokens contain it.
    #[arg(long, value_name = "NAME", default_value = "localhost")]
    hostname: String,
    /// For an edge gateway: the host name that modules and leaf devices connect to [default: --hostname].
    #[arg(long, value_name = "NAME")]
    gateway_hostname: Option<String>,
    /// Host name of a further hub, with devices and keys of its own; may be given several times. It may be a loopback
    /// address such as 127.0.0.2: the emulator listens there, too.
    #[arg(long = "hub", value_name = "NAME")]
    hubs: Vec<String>,
    /// Port for devices (MQTT); 0 means any free port.
    #[arg(long, value_name = "PORT", default_value_t = MQTT_PORT)]
    mqtt_port: u16,
    /// Port for back ends and devices (AMQP); 0 means any free port.
    #[arg(long, value_name = "PORT", default_value_t = AMQP_PORT)]
    amqp_port: u16,
    /// Port for back ends and devices (HTTPS, WebSockets); 0 means any free port [default: the first free one of 443,
    /// 8443 and any other].
    #[arg(long, value_name = "PORT")]
    https_port: Option<u16>,
    /// A device that signs in with a key; may be given several times [default: dev1, if no device is given].
    /// 'load-{0000..9999}' means all ids in this range.
    #[arg(long = "device", value_name = "ID")]
    devices: Vec<String>,
    /// A device that signs in with a certificate; may be given several times.
    #[arg(long = "x509-device", value_name = "ID")]
    x509_devices: Vec<String>,
    /// A module, which signs in with a key; may be given several times. Its device is created, too.
    #[arg(long = "module", value_name = "DEVICE/MODULE")]
    modules: Vec<String>,
    /// Unix socket where modules get their tokens signed, as by the daemon of an IoT Edge device.
    #[arg(long, value_name = "PATH")]
    workload_socket: Option<PathBuf>,
    /// A route from an output of a module to an input of another module, as in a deployment manifest; may be given
    /// several times: FROM /messages/modules/A/outputs/* INTO BrokeredEndpoint("/modules/B/inputs/in").
    #[arg(long = "route", value_name = "ROUTE")]
    routes: Vec<InputRoute>,
    /// Time between two batches of delivery feedback, at most 1h; the real hub takes 15s.
    #[arg(long, value_name = "TIME", default_value = "15s", value_parser = interval)]
    feedback_interval: Duration,
    /// How long certificates are valid that devices ask for, from 1s to 1000days; the real service takes 7 to 90 days.
    #[arg(long, value_name = "TIME", default_value = "30days", value_parser = lifetime)]
    certificate_lifetime: Duration,
    /// The ID scope of the Device Provisioning Service (DPS) [default: 0ne00000001, if one of the next two is given].
    #[arg(long, value_name = "SCOPE")]
    id_scope: Option<String>,
    /// A device that may register at the provisioning service: with a key, which is made if none is given, or with the
    /// certificate in a PEM file; may be given several times.
    #[arg(long = "dps-device", value_name = "ID[=KEY|CERT.PEM]")]
    dps_devices: Vec<EnrolmentOption>,
    /// A group of devices that may register: each has a key that derives from the group's, or a certificate that the
    /// authority in a PEM file has signed; may be given several times.
    #[arg(long = "dps-group", value_name = "NAME[=KEY|CA.PEM]")]
    dps_groups: Vec<EnrolmentOption>,
    /// The tier whose throttling is emulated: free, s1, s2 or s3 [default: nothing is throttled].
    #[arg(long, value_name = "TIER")]
    tier: Option<Tier>,
    /// With --tier: the units of the hub.
    #[arg(long, value_name = "N", default_value_t = 1, requires = "tier")]
    units: u32,
    #[command(flatten)]
    entra: EntraArgs,
    /// A fault that is set from the start, for one device or for all; may be given several times.
    #[arg(long = "fault", value_name = "[DEVICE:]NAME[=VALUE]")]
    faults: Vec<AnyFault>,
    /// How the clock is set at the start: a time such as 2030-01-01T00:00:00Z, or an offset such as +48h or -1h
    /// [default: the real time].
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    clock: Option<ClockSetting>,
    /// Use well-known keys, so that connection strings can be in documents and files; on loopback only. The
    /// key is c2dAgentEmulatorWellKnownKeyThatIsNoSecret0=.
    #[arg(long)]
    well_known_keys: bool,
}

/// A fault of a device at its hub, or of a registration at the provisioning service.
#[derive(Debug, Clone)]
enum AnyFault {
    Hub(FaultOrder),
    Dps(DpsFaultOrder),
}

impl FromStr for AnyFault {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if DpsFaultName::is_meant(text) {
            return text.parse().map(Self::Dps).map_err(|error: DpsFaultError| error.to_string());
        }
        text.parse().map(Self::Hub).map_err(|error: FaultError| error.to_string())
    }
}

/// What asks an emulator that runs.
#[derive(Debug, Subcommand)]
enum EmulatorCommand {
    Clock(clock::ClockArgs),
    Events(events::EventsArgs),
    Faults(faults::FaultsArgs),
    SendInput(send_input::SendInputArgs),
}

/// Runs the emulator until a signal, or asks the running one.
///
/// # Errors
/// When the emulator cannot start, or when the running one does not do what it is asked.
pub(super) fn run(args: EmulatorArgs) -> Result<Exit, Failure> {
    match args.command {
        Some(EmulatorCommand::Clock(args)) => return clock::run(&args),
        Some(EmulatorCommand::Events(args)) => return events::run(&args),
        Some(EmulatorCommand::Faults(args)) => return faults::run(&args),
        Some(EmulatorCommand::SendInput(args)) => return send_input::run(&args),
        None => {}
    }
    let options = options(args)?;
    raise_file_limit(options.devices.len());
    super::block_on(async {
        let mut signals = Signals::new([SIGTERM, SIGINT]).context("signals cannot be received")?;
        let running = emulator::start(options.clone(), SystemTime::now).await.map_err(failure)?;
        announce::announce(&options, &running)?;
        if let Some(signal) = signals.next().await {
            tracing::info!(signal = signal_hook::low_level::signal_name(signal), "signal received");
        }
        Ok(if running.stop().await { Exit::Done } else { Exit::Error })
    })
}

/// Lets this process open as many files as the system allows: each connection is one. The usual limit is 1,024.
fn raise_file_limit(devices: usize) {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, ..limit };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::debug!(%error, "the limit of open files stays as it is");
    }
    let Some(most) = getrlimit(Resource::Nofile).current else { return };
    // The other half is for back ends, and for connections that replace others.
    if most < 2 * devices as u64 {
        tracing::warn!(
            "this process may have {most} files open, which is few for {devices} devices: raise the hard limit, as by \
             ulimit -Hn {}",
            2 * devices
        );
    }
}

/// A duration of at most an hour: the hub drops feedback that waits longer.
fn lifetime(text: &str) -> Result<Duration, String> {
    let limits = Duration::from_secs(1)..=Duration::from_secs(1000 * 24 * 60 * 60);
    let lifetime = humantime::parse_duration(text).ok().filter(|lifetime| limits.contains(lifetime));
    lifetime.ok_or_else(|| "give a time from 1s to 1000days, such as 5m".to_owned())
}

fn interval(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(interval) if interval <= Duration::from_secs(3600) => Ok(interval),
        Ok(_) => Err("must be at most 1h: feedback that waits longer is dropped".to_owned()),
        Err(_) => Err("use a number with a unit, such as 500ms or 15s".to_owned()),
    }
}

fn options(args: EmulatorArgs) -> Result<Options, Failure> {
    let state_dir = state_dir(args.state_dir)?;
    let devices = args.devices.iter().map(|text| pattern::devices(text)).collect::<Result<Vec<_>, _>>();
    let mut devices = devices.map_err(|sentence| Failure::usage(anyhow::Error::msg(sentence)))?.concat();
    let (mut faults, mut dps_faults) = (Vec::new(), Vec::new());
    for fault in args.faults {
        match fault {
            AnyFault::Hub(order) => faults.push(order),
            AnyFault::Dps(order) => dps_faults.push(order),
        }
    }
    let is_provisioned =
        args.id_scope.is_some() || !args.dps_devices.is_empty() || !args.dps_groups.is_empty();
    if let Some(order) = dps_faults.first().filter(|_| !is_provisioned) {
        return Err(Failure::usage(DpsFaultError::NoService(order.fault.name().as_str())));
    }
    let provisioning = is_provisioned.then(|| ProvisioningSettings {
        id_scope: args.id_scope.unwrap_or_else(|| DEFAULT_ID_SCOPE.to_owned()),
        devices: args.dps_devices,
        groups: args.dps_groups,
        faults: dps_faults,
    });
    let is_empty = devices.is_empty() && args.x509_devices.is_empty() && args.modules.is_empty();
    if is_empty && !is_provisioned {
        devices.push(DEFAULT_DEVICE.to_owned());
    }
    let size = args.tier.map(|tier| HubSize::new(tier, args.units)).transpose().map_err(Failure::usage)?;
    Ok(Options {
        state_dir,
        bind: args.bind,
        hostname: args.hostname,
        gateway_hostname: args.gateway_hostname,
        hubs: args.hubs,
        mqtt_port: args.mqtt_port,
        amqp_port: args.amqp_port,
        https_port: args.https_port,
        devices,
        x509_devices: args.x509_devices,
        modules: args.modules,
        workload_socket: args.workload_socket,
        routes: args.routes,
        feedback_interval: args.feedback_interval,
        certificate_lifetime: args.certificate_lifetime,
        size,
        faults,
        clock: args.clock,
        well_known_keys: args.well_known_keys,
        provisioning,
        entra: args.entra.settings(),
    })
}

fn failure(error: EmulatorError) -> Failure {
    match error {
        EmulatorError::DeviceId(_)
        | EmulatorError::DoubledDevice(_)
        | EmulatorError::TooManyDevices(_)
        | EmulatorError::Fault(_)
        | EmulatorError::Clock(_)
        | EmulatorError::Entra(_)
        | EmulatorError::Provisioning(ProvisioningError::Option(_) | ProvisioningError::Fault(_))
        | EmulatorError::Workload(WorkloadSocketError::NoDevice)
        | EmulatorError::WellKnownKeys(_)
        | EmulatorError::DoubledHub(_)
        | EmulatorError::TooManyHubs(_)
        | EmulatorError::Hostname(_) => Failure::usage(error),
        error => anyhow::Error::new(error).into(),
    }
}
