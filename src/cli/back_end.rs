//! Shared by the commands of the back end: the hub, the identity, the way to the hub, how results are printed, how
//! values are read, and what a second signal does.
//!
//! Owns: these arguments, and the proxies of the environment. Must not know: what a command does with them.

use std::io::{Read as _, Write as _};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, anyhow};
use clap::ValueEnum;
use signal_hook::consts::{SIGINT, SIGTERM};

use super::transport::TransportArg;
use super::{Exit, Failure, check_is_no_secret, tell};
use crate::credentials::{
    AuthMethod, EntraError, EntraLogin, HostPort, HubEndpoint, HubName, ProxySettings,
    ServiceConnectionString,
};
use crate::service::{
    Addressee, EntraRoute, EntraTokens, FeedbackTransport, HTTPS_PORT, HttpsService, HttpsWay, ServiceError,
    ServiceIdentity, ServiceProof, ServiceTransport,
};
use crate::trust;

const CONNECTION_STRING_VARIABLE: &str = "C2D_SERVICE_CONNECTION_STRING";
const HUB_VARIABLE: &str = "C2D_HUB";
const CA_FILE_VARIABLE: &str = "C2D_CA_FILE";

// Not a doc comment, which would become part of the help of each command.
// The hub, the identity, and the way to the hub.
#[derive(Debug, clap::Args)]
pub(super) struct HubArgs {
    /// A file with the service connection string.
    #[arg(long, value_name = "FILE")]
    connection_string_file: Option<PathBuf>,
    /// The hub's host name, in place of a service connection string: for Microsoft Entra [default: C2D_HUB, if set].
    #[arg(long, value_name = "NAME", value_parser = hub, conflicts_with = "connection_string_file")]
    hub: Option<HostPort>,
    /// How to sign in [default: the connection string, or else what the variables AZURE_… and IDENTITY_… declare].
    #[arg(long, value_name = "METHOD")]
    auth: Option<AuthArg>,
    /// A PEM file with more roots to trust, such as the emulator's ca.pem [default: the file in C2D_CA_FILE, if set].
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,
    /// How to connect to the hub. amqp-ws and https use the proxy in HTTPS_PROXY, except for the hosts in NO_PROXY.
    #[arg(long, value_name = "TRANSPORT")]
    transport: TransportArg,
    /// The hub's port for HTTPS and WebSockets.
    #[arg(
        long,
        value_name = "PORT",
        env = "C2D_HTTPS_PORT",
        default_value_t = HTTPS_PORT,
        value_parser = port
    )]
    https_port: u16,
}

/// How to sign in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum AuthArg {
    /// The key of the service connection string.
    Sas,
    /// The account of the Azure CLI.
    Az,
    /// An application with AZURE_CLIENT_SECRET.
    Secret,
    /// An application with AZURE_CLIENT_CERTIFICATE_PATH.
    Certificate,
    /// An application with AZURE_FEDERATED_TOKEN_FILE.
    Federated,
    /// The managed identity of this machine or service.
    Managed,
    /// The identity of a server with Azure Arc.
    Arc,
}

impl From<AuthArg> for AuthMethod {
    fn from(argument: AuthArg) -> Self {
        match argument {
            AuthArg::Sas => Self::Sas,
            AuthArg::Az => Self::Az,
            AuthArg::Secret => Self::Secret,
            AuthArg::Certificate => Self::Certificate,
            AuthArg::Federated => Self::Federated,
            AuthArg::Managed => Self::Managed,
            AuthArg::Arc => Self::Arc,
        }
    }
}

/// The way to sign in that was chosen.
pub(super) struct SignIn {
    pub(super) host: HostPort,
    pub(super) method: AuthMethod,
    /// Why it was chosen, in words.
    pub(super) reason: String,
    pub(super) proof: Proof,
}

/// With what.
pub(super) enum Proof {
    Policy(ServiceConnectionString),
    /// What the method lacks, or its login.
    Entra(Result<EntraLogin, EntraError>),
}

// The device or module of a request.
#[derive(Debug, clap::Args)]
pub(super) struct TargetArgs {
    /// The device.
    #[arg(long, value_name = "ID")]
    device: String,
    /// A module of the device.
    #[arg(long, value_name = "ID")]
    module: Option<String>,
}

/// The hub to ask over HTTPS, and the identity to ask with.
pub(super) struct Rest {
    identity: ServiceIdentity,
    way: HttpsWay,
    ca_file: Option<PathBuf>,
}

impl Rest {
    /// The hub.
    pub(super) fn host(&self) -> &HostPort {
        &self.identity.host
    }

    /// Connects nothing yet; requests will carry a token that is valid for `lifetime`.
    ///
    /// # Errors
    /// When the user gave a token and it has expired.
    pub(super) fn service(self, lifetime: Duration) -> Result<HttpsService, ServiceError> {
        let Self { identity, way, ca_file } = self;
        HttpsService::new(&identity, way, ca_file.as_deref(), lifetime, SystemTime::now)
    }
}

// How results are printed.
#[derive(Debug, clap::Args)]
pub(super) struct OutputArgs {
    /// Print JSON: one object per line.
    #[arg(long)]
    pub(super) json: bool,
}

impl TargetArgs {
    /// # Errors
    /// When one of the ids is not valid.
    pub(super) fn target(&self) -> anyhow::Result<Addressee> {
        Ok(Addressee::new(&self.device, self.module.as_deref())?)
    }
}

impl HubArgs {
    /// An empty variable counts as none, as it does for the agent.
    pub(super) fn ca_file(&self) -> Option<PathBuf> {
        let variable = || std::env::var_os(CA_FILE_VARIABLE).filter(|path| !path.is_empty());
        self.ca_file.clone().or_else(|| variable().map(PathBuf::from))
    }

    /// Who signs in to which hub.
    ///
    /// # Errors
    /// When the connection string, the hub or a variable is missing or wrong.
    pub(super) fn identity(&self) -> anyhow::Result<ServiceIdentity> {
        let chosen = self.sign_in()?;
        let name = HubName::of(&chosen.host.name);
        if let Some(name) = name.filter(|name| name.endpoint == HubEndpoint::Device) {
            let (host, own) = (&chosen.host.name, name.classic());
            tell(format_args!("{host} is the hub's name for devices: if it refuses this command, use {own}"));
        }
        let login = match chosen.proof {
            Proof::Policy(string) => return Ok(string.into()),
            Proof::Entra(login) => login?,
        };
        tracing::debug!(%login, "signing in with Microsoft Entra");
        let tokens = Arc::new(self.tokens(login)?);
        Ok(ServiceIdentity { host: chosen.host, proof: ServiceProof::Entra(tokens) })
    }

    /// The tokens of this login; none is asked for yet.
    ///
    /// # Errors
    /// When the proxy settings of the environment cannot be read.
    pub(super) fn tokens(&self, login: EntraLogin) -> anyhow::Result<EntraTokens> {
        let route = EntraRoute { ca_file: self.ca_file(), proxies: self.https()?.proxies };
        Ok(EntraTokens::new(login, route, SystemTime::now))
    }

    /// Chooses the way to sign in. There is no fall-back: a way that lacks something is chosen all the same.
    ///
    /// # Errors
    /// When no way is given, or the connection string or the hub cannot be used.
    pub(super) fn sign_in(&self) -> anyhow::Result<SignIn> {
        let asked = self.auth.map(AuthMethod::from);
        let given = self.connection_string()?;
        if let (None | Some(AuthMethod::Sas), Some((origin, text))) = (asked, &given) {
            let (host, has_more) = ServiceConnectionString::hub(text).with_context(|| origin.clone())?;
            if has_more || asked.is_some() {
                let string = ServiceConnectionString::parse(text).with_context(|| origin.clone())?;
                let (method, reason) = (AuthMethod::Sas, format!("the connection string in {origin}"));
                return Ok(SignIn { host, method, reason, proof: Proof::Policy(string) });
            }
        }
        let host = self.hub_for_entra(given.as_ref())?;
        let (method, reason) = match (asked, AuthMethod::declared(&variable)) {
            (None | Some(AuthMethod::Sas), _) if host.is_none() => return Err(no_string()),
            (Some(AuthMethod::Sas), _) => return Err(no_string()),
            (Some(method), _) => (method, format!("--auth {}", method.name())),
            (None, Some((method, name))) => (method, format!("the environment has {name}")),
            (None, None) => {
                return Err(anyhow!(
                    "the hub is given, but not how to sign in: give --auth, such as --auth az, or set the variables of an \
                     application, such as AZURE_CLIENT_SECRET"
                ));
            }
        };
        let host = host.ok_or_else(|| {
            anyhow!("no hub: give --hub, such as --hub myhub.azure-devices.net, or set {HUB_VARIABLE}")
        })?;
        self.check_may_have_token(&host)?;
        Ok(SignIn { host, method, reason, proof: Proof::Entra(EntraLogin::read(method, &variable)) })
    }

    /// The hub that gets a token of Entra: of `--hub`, else of the connection string's file, else of the environment,
    /// whose two variables must not name different ones. What is given for this command comes first.
    fn hub_for_entra(&self, given: Option<&(String, String)>) -> anyhow::Result<Option<HostPort>> {
        if let Some(host) = &self.hub {
            return Ok(Some(host.clone()));
        }
        let of_string =
            given.map(|(origin, text)| ServiceConnectionString::hub(text).with_context(|| origin.clone()));
        let of_string = of_string.transpose()?.map(|(host, _)| host);
        if self.connection_string_file.is_some() {
            return Ok(of_string);
        }
        let named = variable(HUB_VARIABLE)
            .map(|text| hub(&text).map_err(|words| anyhow!("{HUB_VARIABLE} is \"{text}\": {words}")));
        match (named.transpose()?, of_string) {
            (Some(named), Some(other)) if !is_one_hub(&named, &other) => Err(anyhow!(
                "{HUB_VARIABLE} names the hub {named}, but {CONNECTION_STRING_VARIABLE} names {other}: unset one of them, \
                 or give --hub"
            )),
            (named, of_string) => Ok(named.or(of_string)),
        }
    }

    /// A token of Entra is valid at every hub of its principal, so a host with a mistyped or foreign name could use it
    /// elsewhere.
    fn check_may_have_token(&self, host: &HostPort) -> anyhow::Result<()> {
        let is_own = HubName::of(&host.name).is_some() || is_this_machine(&host.name);
        if is_own || self.ca_file().is_some() {
            return Ok(());
        }
        Err(anyhow!(
            "{host} is not the name of a hub in Azure, and a token of Microsoft Entra would be valid at all hubs of its \
             principal: correct the name, or give --ca-file for a hub of your own, such as the emulator"
        ))
    }

    /// The connection string of the file, or else of the variable, and where it was. `--hub` stands in its place.
    fn connection_string(&self) -> anyhow::Result<Option<(String, String)>> {
        match &self.connection_string_file {
            Some(path) => {
                check_is_no_secret("--connection-string-file", path)?;
                let text = std::fs::read_to_string(path).map_err(|error| {
                    anyhow!(
                        "cannot read the connection string from {}: {}; write it there (az prints it with --query \
                         connectionString -o tsv), or correct --connection-string-file",
                        path.display(),
                        trust::in_words(&error)
                    )
                })?;
                Ok(Some((path.display().to_string(), text)))
            }
            None if self.hub.is_some() => Ok(None),
            None => Ok(std::env::var(CONNECTION_STRING_VARIABLE)
                .ok()
                // An empty one counts as none where there is another way, and has its own error elsewhere.
                .filter(|text| !text.trim().is_empty() || variable(HUB_VARIABLE).is_none())
                .map(|text| (CONNECTION_STRING_VARIABLE.to_owned(), text))),
        }
    }

    /// The hub's REST side, not dialled yet.
    ///
    /// # Errors
    /// When the arguments are wrong.
    pub(super) fn rest(&self) -> anyhow::Result<Rest> {
        Ok(Rest { identity: self.identity()?, way: self.https()?, ca_file: self.ca_file() })
    }

    /// The options as a command needs them that goes on with this one: each name with its value.
    pub(super) fn as_given(&self) -> Vec<(&'static str, String)> {
        let path = |path: &PathBuf| path.display().to_string();
        let given = [
            ("--connection-string-file", self.connection_string_file.as_ref().map(path)),
            ("--hub", self.hub.as_ref().map(HostPort::to_string)),
            ("--auth", self.auth.map(|auth| AuthMethod::from(auth).name().to_owned())),
            ("--ca-file", self.ca_file.as_ref().map(path)),
            ("--transport", (self.transport != TransportArg::Amqp).then(|| self.transport.name().to_owned())),
            ("--https-port", (self.https_port != HTTPS_PORT).then(|| self.https_port.to_string())),
        ];
        given.into_iter().filter_map(|(option, value)| Some((option, value?))).collect()
    }

    /// The transport that `--transport` names.
    ///
    /// # Errors
    /// When the proxy settings of the environment cannot be read.
    pub(super) fn transport(&self) -> anyhow::Result<FeedbackTransport> {
        Ok(match self.transport {
            TransportArg::Amqp => FeedbackTransport::Amqp(ServiceTransport::Amqp),
            TransportArg::AmqpWs => FeedbackTransport::Amqp(ServiceTransport::WebSocket(self.https()?)),
            TransportArg::Https => FeedbackTransport::Https(self.https()?),
        })
    }

    /// The transport of a command that has AMQP only.
    ///
    /// # Errors
    /// As for [`HubArgs::transport`].
    pub(super) fn amqp(&self) -> anyhow::Result<ServiceTransport> {
        match self.transport()? {
            FeedbackTransport::Amqp(way) => Ok(way),
            FeedbackTransport::Https(_) => Err(anyhow!("this is done over AMQP only: leave --transport out")),
        }
    }

    /// The HTTPS port, with the proxies of the environment.
    ///
    /// # Errors
    /// When the proxy settings cannot be read.
    pub(super) fn https(&self) -> anyhow::Result<HttpsWay> {
        let proxies = ProxySettings::read(&|name| std::env::var(name).ok())?;
        Ok(HttpsWay { port: self.https_port, proxies })
    }
}

fn no_string() -> anyhow::Error {
    anyhow!(
        "no service connection string: give --connection-string-file, or set {CONNECTION_STRING_VARIABLE}; or sign in with \
         Microsoft Entra: give --hub and --auth"
    )
}

/// A variable of the environment that is set and not empty.
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// Whether two names with ports are of one hub. Its names in Azure lead to the same hub.
fn is_one_hub(one: &HostPort, other: &HostPort) -> bool {
    let name = |host: &HostPort| {
        HubName::of(&host.name).map_or_else(|| host.name.clone(), |name| name.classic()).to_ascii_lowercase()
    };
    name(one) == name(other) && one.port.zip(other.port).is_none_or(|(one, other)| one == other)
}

fn is_this_machine(host: &str) -> bool {
    let address = host.parse::<IpAddr>().map(|address| address.to_canonical());
    address.map_or_else(|_| host.eq_ignore_ascii_case("localhost"), |address| address.is_loopback())
}

/// A hub's host name, perhaps with the port of AMQP.
fn hub(text: &str) -> Result<HostPort, String> {
    HostPort::parse(text).ok_or_else(|| "write it as in myhub.azure-devices.net".to_owned())
}

/// Writes a line to standard output.
///
/// # Errors
/// When standard output cannot be written.
pub(super) fn print(line: &str) -> anyhow::Result<()> {
    writeln!(std::io::stdout(), "{line}").context("cannot write to standard output")
}

/// Text from an argument or from a file (`-` is standard input), of at most `limit` bytes; empty when there is neither.
///
/// # Errors
/// When the text cannot be read, or is longer than `limit`.
pub(super) fn text_of(
    what: &str,
    text: Option<&str>,
    file: Option<&Path>,
    limit: usize,
) -> anyhow::Result<String> {
    // Reads one byte above the limit, to tell a text that is too long from one that just fits.
    let most = limit as u64 + 1;
    let mut read = String::new();
    match (text, file) {
        (Some(text), _) => read.push_str(text),
        (None, Some(path)) if path.as_os_str() == "-" => {
            let bytes = std::io::stdin().take(most).read_to_string(&mut read);
            bytes.with_context(|| format!("cannot read the {what} from standard input"))?;
        }
        (None, Some(path)) => {
            let bytes = std::fs::File::open(path).and_then(|file| file.take(most).read_to_string(&mut read));
            bytes.map_err(|error| unreadable(what, path, &error))?;
        }
        (None, None) => {}
    }
    if read.len() > limit {
        return Err(anyhow!("the {what} has more than {} KiB, more than the hub takes", limit / 1024));
    }
    Ok(read)
}

/// The folder in which this user's programs keep their state.
///
/// # Errors
/// When the environment names none.
pub(super) fn state_folder() -> anyhow::Result<PathBuf> {
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|dir| dir.is_absolute());
    let state = absolute("XDG_STATE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".local/state")));
    Ok(state.ok_or_else(|| anyhow!("neither XDG_STATE_HOME nor HOME is set"))?.join("c2d-agent"))
}

/// The error for a file of the command line that cannot be read.
pub(super) fn unreadable(what: &str, path: &Path, error: &std::io::Error) -> anyhow::Error {
    anyhow!(
        "cannot read the {what} from {}: {}; correct the path, or its owner and mode",
        path.display(),
        trust::in_words(error)
    )
}

/// A failure with its exit code: some refusals of the hub mean that the arguments are wrong.
pub(super) fn failed(error: anyhow::Error) -> Failure {
    if error.downcast_ref().is_some_and(ServiceError::is_configuration) {
        Failure::usage(error)
    } else {
        error.into()
    }
}

/// The first signal ends a command in good order. If that hangs, because standard output is not read or the disk does
/// not answer, a second signal ends the process.
///
/// # Errors
/// When signals cannot be received.
pub(super) fn end_at_the_second_signal() -> std::io::Result<()> {
    let asked = Arc::new(AtomicBool::new(false));
    for signal in [SIGTERM, SIGINT] {
        // The order matters: at the first signal the shutdown must still find the flag unset.
        signal_hook::flag::register_conditional_shutdown(signal, Exit::Error as i32, Arc::clone(&asked))?;
        signal_hook::flag::register(signal, Arc::clone(&asked))?;
    }
    Ok(())
}

/// A port. An empty value means the default port, because it may come from an empty variable.
fn port(text: &str) -> Result<u16, String> {
    match text.parse() {
        _ if text.is_empty() => Ok(HTTPS_PORT),
        Ok(port) if port > 0 => Ok(port),
        _ => Err("use a number from 1 to 65535".to_owned()),
    }
}

/// A duration such as `10m`, more than zero.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    match super::duration(text)? {
        Duration::ZERO => Err("must be more than 0".to_owned()),
        duration => Ok(duration),
    }
}
