//! `c2d-agent devices`: the hub's registry of devices.
//!
//! Owns: its subcommands, what is printed, the exit codes. Must not know: HTTP.

use std::io::{IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::time::SystemTime;

use anyhow::{Context as _, anyhow};
use futures_util::StreamExt as _;
use serde::Serialize;
use serde_json::{Value, json};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook_tokio::Signals;

use super::back_end::{self, HubArgs, OutputArgs, print};
use super::query::{self, LimitArgs};
use super::rows::RowsOutput;
use super::shown::{aligned, json as json_line, plain, shell, width};
use super::{Exit, Failure, found, sentence, tell, transport};
use crate::credentials::{HostPort, check_device_id};
use crate::service::{HttpsService, RegisteredDevice, ServiceError, ServiceIdentity, TOKEN_LIFETIME};

mod create;
mod string_file;

use create::NewDeviceArgs;
use string_file::StringFile;

/// What `list` asks for: little of each twin, whatever is in it.
const LISTED: &str = "SELECT deviceId, status, connectionState, lastActivityTime, authenticationType, \
                      capabilities FROM devices";
/// What a hub shows for a time that never was.
const NEVER: &str = "0001-01-01T00:00:00";

/// List, show, create and delete the devices of the hub.
///
/// The service connection string comes from --connection-string-file or from the variable
/// C2D_SERVICE_CONNECTION_STRING, never from an argument. All but list need a policy with registry rights, such as
/// iothubowner.
#[derive(Debug, clap::Args)]
pub(super) struct DevicesArgs {
    #[command(subcommand)]
    command: DevicesCommand,
}

#[derive(Debug, clap::Subcommand)]
enum DevicesCommand {
    List(DevicesList),
    Show(DevicesShow),
    Create(DevicesCreate),
    Delete(DevicesDelete),
}

/// List devices: whether they may sign in, are connected, and how they sign in.
///
/// It asks a query, which needs ServiceConnect only. The hub's index is some seconds to minutes behind the registry.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  c2d-agent devices list
  c2d-agent devices list --query \"tags.site = '12'\" --json

Exit codes: 0 done; 1 an error; 2 the query or the arguments are wrong.", mut_arg("transport", |argument| transport::only(argument, transport::OF_REST)))]
struct DevicesList {
    /// Only those for which this condition holds, as behind WHERE.
    #[arg(long, value_name = "SQL")]
    query: Option<String>,
    #[command(flatten)]
    limit: LimitArgs,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    hub: HubArgs,
}

/// Show a device, and write its connection string to a file.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  c2d-agent devices show pi-01
  c2d-agent devices show pi-01 --out pi-01.connection-string

Exit codes: 0 done; 1 an error; 2 the arguments are wrong.", mut_arg("transport", |argument| transport::only(argument, transport::OF_REST)))]
struct DevicesShow {
    /// The device.
    #[arg(value_name = "ID")]
    device: String,
    /// Write the device's connection string to a new file, which only you can read.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Print the device's keys, too.
    #[arg(long)]
    show_keys: bool,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    hub: HubArgs,
}

/// Register a device. It signs in with keys that the hub makes, unless an option says how else.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  c2d-agent devices create pi-01 --out pi-01.connection-string
  c2d-agent devices create gateway --edge --x509-ca
  c2d-agent devices create pi-02 --x509-thumbprint \"$(cat pi-02.sha256)\"

Exit codes: 0 done; 1 an error, for example when there is such a device already; 2 the arguments are wrong.", mut_arg("transport", |argument| transport::only(argument, transport::OF_REST)))]
struct DevicesCreate {
    /// The device's id.
    #[arg(value_name = "ID")]
    device: String,
    #[command(flatten)]
    new: NewDeviceArgs,
    /// Write the device's connection string to a new file, which only you can read.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    hub: HubArgs,
}

/// Delete devices with their twins, their modules and the messages that wait for them.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  c2d-agent devices delete pi-01
  c2d-agent devices delete pi-01 pi-02 --yes

Exit codes: 0 all are deleted; 1 an error, or the answer was no; 2 the arguments are wrong; 3 some are not deleted.", mut_arg("transport", |argument| transport::only(argument, transport::OF_REST)))]
struct DevicesDelete {
    /// The devices.
    #[arg(value_name = "ID", required = true, num_args = 1..)]
    devices: Vec<String>,
    /// Ask nothing. Without a terminal, this is needed.
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    hub: HubArgs,
}

/// The objects of `--json`: stable for scripts; fields are added, never renamed.
#[derive(Serialize)]
#[serde(tag = "event", rename_all = "kebab-case", rename_all_fields = "camelCase")]
enum DevicesLine<'a> {
    Created { device_id: &'a str, sign_in: &'a str, edge: bool, out: Option<String> },
    Deleted { device_id: &'a str },
    Failed { device_id: &'a str, error: String },
}

/// Does what the subcommand says.
///
/// # Errors
/// When the hub cannot be reached or refuses, or a file cannot be written.
pub(super) fn run(args: &DevicesArgs) -> Result<Exit, Failure> {
    match &args.command {
        DevicesCommand::List(list) => list.run(),
        DevicesCommand::Show(show) => show.run(),
        DevicesCommand::Create(create) => create.run(),
        DevicesCommand::Delete(delete) => delete.run(),
    }
}

impl DevicesList {
    fn run(&self) -> Result<Exit, Failure> {
        let condition = match self.query.as_deref() {
            Some(sql) => Some(found::condition(sql).ok_or_else(|| {
                Failure::usage(anyhow!(
                    "--query is a whole query, but devices list takes a condition: give what is behind WHERE, or use \
                     c2d-agent query"
                ))
            })?),
            None => None,
        };
        let sql =
            condition.map_or_else(|| LISTED.to_owned(), |condition| format!("{LISTED} WHERE {condition}"));
        let columns = ["device", "status", "connection", "lastActivity", "signIn", "edge"];
        let wanted = RowsOutput {
            json: self.output.json,
            limit: self.limit.rows(),
            columns: columns.map(str::to_owned).to_vec(),
            shape: &listed,
        };
        query::ask(&self.hub, &sql, &wanted)
    }
}

/// A device as a row of the table.
fn listed(row: &Value) -> Value {
    json!({
        "device": row["deviceId"],
        "status": row["status"],
        "connection": row["connectionState"],
        "lastActivity": row["lastActivityTime"].as_str().map(moment),
        "signIn": row["authenticationType"],
        "edge": if is_edge(row) { "yes" } else { "no" },
    })
}

/// A time of the hub, to the second.
fn moment(text: &str) -> String {
    match text.get(..NEVER.len()) {
        Some(NEVER) => "never".to_owned(),
        Some(seconds) => format!("{seconds}Z"),
        None => text.to_owned(),
    }
}

fn is_edge(identity: &Value) -> bool {
    identity["capabilities"]["iotEdge"] == true
}

fn sign_in(identity: &Value) -> &str {
    identity["authentication"]["type"].as_str().unwrap_or("sas")
}

impl DevicesShow {
    fn run(&self) -> Result<Exit, Failure> {
        let device_id = self.device.as_str();
        check_device_id(device_id).map_err(Failure::usage)?;
        let out = self.out.as_deref().map(StringFile::create).transpose().map_err(Failure::usage)?;
        let identity = self.hub.identity().map_err(Failure::usage)?;
        let device = asked(&self.hub, &identity, async |service| service.device(device_id).await)?;
        let out = out.map(|file| file.write(&identity.host, &device)).transpose()?;
        if self.output.json {
            print(&json_line(&with_keys(&device, self.show_keys))?)?;
        } else {
            let rows = described(&device, self.show_keys);
            print(&format!("device {device_id}\n{}", aligned(&rows, width()).join("\n")))?;
            if let Some(path) = out {
                print(&format!("its connection string is in {}", path.display()))?;
            }
        }
        Ok(Exit::Done)
    }
}

/// The identity, with its keys if the user asked for them.
fn with_keys(device: &RegisteredDevice, shows_keys: bool) -> Value {
    let mut identity = device.identity.clone();
    if let Some(keys) = device.keys.as_ref().filter(|_| shows_keys) {
        identity["authentication"]["symmetricKey"] = json!({
            "primaryKey": keys.primary.expose_base64(),
            "secondaryKey": keys.secondary.expose_base64(),
        });
    }
    identity
}

fn described(device: &RegisteredDevice, shows_keys: bool) -> Vec<(&'static str, String)> {
    let identity = &device.identity;
    let text = |name: &str| plain(identity[name].as_str().unwrap_or("-"));
    let status = match identity["statusReason"].as_str() {
        Some(reason) => format!("{}: {}", text("status"), plain(reason)),
        None => text("status"),
    };
    let thumbprints = &identity["authentication"]["x509Thumbprint"];
    let thumbprints = ["primaryThumbprint", "secondaryThumbprint"].map(|name| thumbprints[name].as_str());
    let by = std::iter::once(sign_in(identity)).chain(thumbprints.into_iter().flatten());
    let mut rows = vec![
        ("  status", status),
        ("  connection", text("connectionState")),
        ("  last activity", plain(&moment(identity["lastActivityTime"].as_str().unwrap_or("-")))),
        ("  messages", format!("{} wait", identity["cloudToDeviceMessageCount"].as_u64().unwrap_or(0))),
        ("  signs in by", plain(&by.collect::<Vec<_>>().join(" "))),
        ("  edge", if is_edge(identity) { "yes" } else { "no" }.to_owned()),
        ("  generation", text("generationId")),
        ("  etag", text("etag")),
    ];
    if let Some(keys) = device.keys.as_ref().filter(|_| shows_keys) {
        rows.push(("  primary key", keys.primary.expose_base64()));
        rows.push(("  secondary key", keys.secondary.expose_base64()));
    }
    rows
}

impl DevicesCreate {
    fn run(&self) -> Result<Exit, Failure> {
        let device_id = self.device.as_str();
        check_device_id(device_id).map_err(Failure::usage)?;
        let credential = self.new.credential().map_err(Failure::usage)?;
        let identity = self.hub.identity().map_err(Failure::usage)?;
        // Made before the device is, so that no device is made whose string has no place.
        let out = self.out.as_deref().map(StringFile::create).transpose().map_err(Failure::usage)?;
        let made = asked(&self.hub, &identity, async |service| {
            service.create_device(device_id, &credential, self.new.edge).await
        });
        let device = match made {
            Err(error) if self.output.json => {
                print(&json_line(&DevicesLine::Failed { device_id, error: sentence(&error.error) })?)?;
                return Err(error);
            }
            device => device?,
        };
        let out = out.map(|file| file.write(&identity.host, &device)).transpose()?;
        let (sign_in, edge) = (sign_in(&device.identity), is_edge(&device.identity));
        let out = out.map(|path| path.display().to_string());
        if self.output.json {
            print(&json_line(&DevicesLine::Created { device_id, sign_in, edge, out })?)?;
        } else {
            let kind = if edge { "edge device" } else { "device" };
            let with = match sign_in {
                "sas" => "with a key",
                "selfSigned" => "with a certificate of this thumbprint",
                "certificateAuthority" => "with a certificate of an authority",
                other => &format!("by {}", plain(other)),
            };
            print(&format!("created {kind} {device_id}, which signs in {with}"))?;
            print(&match out {
                Some(path) => format!("its connection string is in {path}"),
                None => format!(
                    "to get its connection string: c2d-agent devices show {} --out FILE",
                    shell(device_id)
                ),
            })?;
        }
        Ok(Exit::Done)
    }
}

impl DevicesDelete {
    fn run(&self) -> Result<Exit, Failure> {
        self.devices.iter().try_for_each(|id| check_device_id(id)).map_err(Failure::usage)?;
        let rest = self.hub.rest().map_err(Failure::usage)?;
        if !self.yes && !self.is_confirmed(rest.host())? {
            return Err(anyhow!("nothing was deleted").into());
        }
        super::block_on(async {
            back_end::end_at_the_second_signal().context("signals cannot be received")?;
            let mut signals = Signals::new([SIGTERM, SIGINT]).context("signals cannot be received")?;
            let mut service = rest.service(TOKEN_LIFETIME).map_err(anyhow::Error::new)?;
            let mut exit = Exit::Done;
            for device_id in &self.devices {
                let deleted = tokio::select! {
                    deleted = service.delete_device(device_id) => deleted,
                    Some(_signal) = signals.next() => {
                        let words = "interrupted by a signal: it may or may not be deleted";
                        return Err(anyhow!("device {device_id}: {words}").into());
                    }
                };
                match deleted {
                    Ok(()) if self.output.json => print(&json_line(&DevicesLine::Deleted { device_id })?)?,
                    Ok(()) => print(&format!("deleted device {device_id}"))?,
                    Err(error @ ServiceError::UnknownDevice(_)) => {
                        exit = Exit::NegativeFeedback;
                        let error = sentence(&in_words(error));
                        match self.output.json {
                            true => print(&json_line(&DevicesLine::Failed { device_id, error })?)?,
                            false => tell(error),
                        }
                    }
                    // The others would fail for the same reason.
                    Err(error) => {
                        if self.output.json {
                            let error = error.to_string();
                            print(&json_line(&DevicesLine::Failed { device_id, error })?)?;
                        }
                        let context = format!("device {device_id} is not deleted");
                        return Err(back_end::failed(anyhow::Error::new(error).context(context)));
                    }
                }
            }
            Ok(exit)
        })
    }

    /// Asks at the terminal.
    fn is_confirmed(&self, hub: &HostPort) -> Result<bool, Failure> {
        let stdin = std::io::stdin();
        if !stdin.is_terminal() {
            return Err(Failure::usage(anyhow!(
                "--yes is missing: without a terminal, devices delete cannot ask whether to delete"
            )));
        }
        let what = match &self.devices[..] {
            [one] => format!("device {one}"),
            more => format!("{} devices", more.len()),
        };
        let mut error = std::io::stderr();
        // If the question cannot be shown, the answer is still read.
        drop(write!(error, "delete {what} at {hub}, with twin and waiting messages? [y/N] "));
        drop(error.flush());
        let mut answer = String::new();
        stdin.read_line(&mut answer).context("the answer cannot be read")?;
        Ok(["y", "yes"].contains(&answer.trim().to_ascii_lowercase().as_str()))
    }
}

/// Asks the hub once.
fn asked<T>(
    hub: &HubArgs,
    identity: &ServiceIdentity,
    ask: impl AsyncFnOnce(&mut HttpsService) -> Result<T, ServiceError>,
) -> Result<T, Failure> {
    let (way, ca_file) = (hub.https().map_err(Failure::usage)?, hub.ca_file());
    super::block_on(async {
        back_end::end_at_the_second_signal().context("signals cannot be received")?;
        let mut signals = Signals::new([SIGTERM, SIGINT]).context("signals cannot be received")?;
        let service = HttpsService::new(identity, way, ca_file.as_deref(), TOKEN_LIFETIME, SystemTime::now);
        let mut service = service.map_err(anyhow::Error::new)?;
        tokio::select! {
            answer = ask(&mut service) => answer.map_err(|error| back_end::failed(in_words(error))),
            Some(_signal) = signals.next() => {
                Err(anyhow!("interrupted by a signal: the registry may or may not be changed").into())
            }
        }
    })
}

/// The remedy of these commands, which have no --device.
fn in_words(error: ServiceError) -> anyhow::Error {
    match error {
        ServiceError::UnknownDevice(id) => {
            anyhow!("the hub knows no device \"{id}\": c2d-agent devices list shows those that it knows")
        }
        error => error.into(),
    }
}
