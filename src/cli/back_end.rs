//! Shared by the commands of the back end: the hub, the identity, the way to the hub, how results are printed and how
//! values are read.
//!
//! Owns: these arguments, and the proxies of the environment. Must not know: what a command does with them.

use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, anyhow};

use super::transport::TransportArg;
use super::{Failure, check_is_no_secret, tell};
use crate::credentials::{HubEndpoint, HubName, ProxySettings, ServiceConnectionString};
use crate::service::{
    Addressee, FeedbackTransport, HTTPS_PORT, HttpsService, HttpsWay, ServiceError, ServiceTransport,
};
use crate::trust;

const CONNECTION_STRING_VARIABLE: &str = "C2D_SERVICE_CONNECTION_STRING";
const CA_FILE_VARIABLE: &str = "C2D_CA_FILE";

// Not a doc comment, which would become part of the help of each command.
// The hub, the identity, and the way to the hub.
#[derive(Debug, clap::Args)]
pub(super) struct HubArgs {
    /// A file with the service connection string.
    #[arg(long, value_name = "FILE")]
    connection_string_file: Option<PathBuf>,
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
    identity: ServiceConnectionString,
    way: HttpsWay,
    ca_file: Option<PathBuf>,
}

impl Rest {
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

    /// Reads the connection string from the file, or else from the variable.
    ///
    /// # Errors
    /// When there is no connection string, or it is not one of a service.
    pub(super) fn identity(&self) -> anyhow::Result<ServiceConnectionString> {
        let (origin, text) = match &self.connection_string_file {
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
                (path.display().to_string(), text)
            }
            None => {
                let text = std::env::var(CONNECTION_STRING_VARIABLE).map_err(|_| {
                    anyhow!(
                        "no service connection string: give --connection-string-file, or set \
                         {CONNECTION_STRING_VARIABLE}"
                    )
                })?;
                (CONNECTION_STRING_VARIABLE.to_owned(), text)
            }
        };
        let identity = ServiceConnectionString::parse(&text).with_context(|| origin)?;
        let name = HubName::of(&identity.host.name);
        if let Some(name) = name.filter(|name| name.endpoint == HubEndpoint::Device) {
            let (host, own) = (&identity.host.name, name.classic());
            tell(format_args!("{host} is the hub's name for devices: if it refuses this command, use {own}"));
        }
        Ok(identity)
    }

    /// The hub's REST side, not dialled yet.
    ///
    /// # Errors
    /// When the arguments are wrong.
    pub(super) fn rest(&self) -> anyhow::Result<Rest> {
        Ok(Rest { identity: self.identity()?, way: self.https()?, ca_file: self.ca_file() })
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

    /// The HTTPS port, with the proxies of the environment.
    ///
    /// # Errors
    /// When the proxy settings cannot be read.
    pub(super) fn https(&self) -> anyhow::Result<HttpsWay> {
        let proxies = ProxySettings::read(&|name| std::env::var(name).ok())?;
        Ok(HttpsWay { port: self.https_port, proxies })
    }
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
