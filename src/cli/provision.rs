//! `c2d-agent provision`: asks the Device Provisioning Service which hub this device belongs to.
//!
//! Owns: its arguments, what is printed, the exit code. Must not know: how a registration is made.

use std::io::Read as _;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use anyhow::anyhow;
use clap::Subcommand;
use serde::Serialize;

use super::shown::{Output, relative};
use super::{DEFAULT_CONFIG, Exit, Failure};
use crate::config::{self, Provisioning};
use crate::credentials::SharedAccessKey;
use crate::message::format_time;
use crate::provisioning::{Enrolment, EnrolmentAuth, check_registration_id, derive_key};
use crate::session::{self, EnrolSettings};
use crate::trust;

/// How long one registration may take.
const LIMIT: Duration = Duration::from_secs(120);
/// A key in base64 is shorter.
const MAX_KEY_BYTES: u64 = 1024;

/// Ask the Device Provisioning Service which hub this device belongs to, and keep the answer.
///
/// The answer is the assignment: a hub, and the device's name there. The agent asks by itself when it starts without an
/// assignment, and when its hub refuses it. If an assignment is kept, this command only shows it; --again asks all the
/// same. A running agent uses a new assignment after its next reload: systemctl reload c2d-agent. Run this command as
/// root or as the agent's user.
#[derive(Debug, clap::Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Examples:\n  sudo c2d-agent provision\n  sudo c2d-agent provision --again\n  \
    c2d-agent provision derive-key --group-key-file g.key --registration-id p-12\n\n\
    Exit codes: 0 the device has a hub; 1 the service cannot be reached or is busy, or the answer cannot be kept; 2 the \
    arguments or the configuration are wrong; 3 the service refused the device."
)]
pub(super) struct ProvisionArgs {
    /// The configuration file.
    #[arg(short, long, value_name = "FILE", default_value = DEFAULT_CONFIG)]
    config: PathBuf,
    /// Ask the service even if an assignment is kept.
    #[arg(long)]
    again: bool,
    /// Only show which service would be asked, as which device, and where the answer would be kept; ask nothing.
    #[arg(long, conflicts_with = "again")]
    dry_run: bool,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
    #[command(subcommand)]
    command: Option<ProvisionCommand>,
}

#[derive(Debug, Subcommand)]
enum ProvisionCommand {
    DeriveKey(DeriveKeyArgs),
}

/// Print the key of one device of an enrolment group, derived from the key of the group.
///
/// Run it on the computer that prepares the devices. Never copy the key of the group to a device, because it signs in as
/// every device of the group. Put the printed key into the file that key_file in the configuration names.
#[derive(Debug, clap::Args)]
struct DeriveKeyArgs {
    /// The file that holds the key of the group in base64, as the provisioning service shows it; - for standard input.
    #[arg(long, value_name = "FILE")]
    group_key_file: PathBuf,
    /// The device's registration id, exactly as in its configuration: with other capitals, the key is another one.
    #[arg(long, value_name = "ID")]
    registration_id: String,
}

/// The objects of `--json`: stable for scripts; fields are added, never renamed.
#[derive(Serialize)]
#[serde(tag = "event", rename_all = "kebab-case", rename_all_fields = "camelCase")]
enum ProvisionLine<'a> {
    WouldAsk {
        service: String,
        id_scope: &'a str,
        registration_id: &'a str,
        proof: &'static str,
        file: String,
        /// Whether an assignment is kept, so that only `--again` asks.
        kept: bool,
    },
    Assigned {
        service: String,
        registration_id: &'a str,
        hub: String,
        device_id: &'a str,
        assigned_at: String,
        file: String,
        /// Whether the service was asked now.
        asked: bool,
    },
}

/// Registers, or shows what an earlier registration has brought.
///
/// # Errors
/// When the configuration has problems, or there is no assignment.
pub(super) fn run(args: &ProvisionArgs) -> Result<Exit, Failure> {
    if let Some(ProvisionCommand::DeriveKey(args)) = &args.command {
        return derive(args);
    }
    let inspection = config::inspect(&args.config, &|name| std::env::var(name).ok());
    if inspection.report.problems() > 0 {
        return Err(Failure::usage(anyhow!("the configuration has problems:\n{}", inspection.report)));
    }
    for warning in inspection.report.warning_lines() {
        super::tell(format_args!("warning: {warning}"));
    }
    let Some(mut provisioning) = inspection.provisioning else {
        let path = args.config.display();
        let message = format!("{path} has no [provisioning]: it names its device and hub by itself");
        return Err(Failure::usage(anyhow!(message)));
    };
    if args.dry_run {
        return would_ask(&provisioning, args.json);
    }
    let asks = args.again || provisioning.assigned.is_none();
    if asks {
        // Before the service is asked, whose answer would be lost.
        let folder = trust::directory_of(&provisioning.file);
        if !folder.is_dir() {
            let folder = folder.display();
            let message = format!(
                "the answer of the service cannot be kept, because there is no {folder}: start the agent once, or make it"
            );
            return Err(Failure::usage(anyhow!(message)));
        }
        // A registration without a request could have the hub forget the certificates of the device.
        let untried = provisioning.pairs.as_ref().and_then(|pairs| pairs.untried());
        provisioning.begin(untried).map_err(|error| anyhow!("no certificate can be asked for: {error}"))?;
        let enrolment = provisioning.enrolment.clone();
        let (route, transport) = (inspection.route, inspection.transport);
        let settings = EnrolSettings::new(enrolment, inspection.ca_file, route, transport, SystemTime::now);
        let csr = provisioning.csr();
        let assignment =
            super::block_on(async { Ok(session::enrol(&settings, csr.as_deref(), LIMIT).await) })?;
        let assignment = assignment.map_err(|error| {
            let exit = if error.is_refusal() { Exit::NegativeFeedback } else { Exit::Error };
            Failure { exit, error: error.into() }
        })?;
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        let issued = assignment.issued.clone();
        provisioning.assign(assignment, now);
        provisioning.write().map_err(|error| anyhow!("the device has a hub, but {error}"))?;
        if !issued.is_empty() {
            provisioning.issued(&issued).map_err(|error| anyhow!("the device has a hub, but {error}"))?;
        }
    }
    assigned(&provisioning, asks, args.json)
}

fn derive(args: &DeriveKeyArgs) -> Result<Exit, Failure> {
    check_registration_id(&args.registration_id).map_err(|error| Failure::usage(anyhow!("{error}")))?;
    super::check_is_no_secret("--group-key-file", &args.group_key_file).map_err(Failure::usage)?;
    let mut text = String::new();
    let read = if args.group_key_file.as_os_str() == "-" {
        std::io::stdin().take(MAX_KEY_BYTES).read_to_string(&mut text)
    } else {
        let file = std::fs::File::open(&args.group_key_file);
        file.and_then(|file| file.take(MAX_KEY_BYTES).read_to_string(&mut text))
    };
    let name = match args.group_key_file.to_string_lossy() {
        name if name == "-" => "standard input".into(),
        name => name,
    };
    read.map_err(|error| {
        let reason = trust::in_words(&error);
        anyhow!("cannot read the key of the group from {name}: {reason}; correct --group-key-file")
    })?;
    let group = SharedAccessKey::from_base64_in_limits(&text)
        .map_err(|error| Failure::usage(anyhow!("{name} does not hold the key of a group: {error}")))?;
    if args.registration_id.contains(|c: char| c.is_ascii_uppercase()) {
        super::tell(
            "warning: the registration id has capitals, and only a device that sends exactly these has this key",
        );
    }
    let key = derive_key(&group, &args.registration_id);
    let mut output = Output::new();
    output.line(&key.expose_base64())?;
    output.flush()?;
    Ok(Exit::Done)
}

fn would_ask(provisioning: &Provisioning, as_json: bool) -> Result<Exit, Failure> {
    let Enrolment { endpoint, id_scope, registration_id, auth, .. } = &provisioning.enrolment;
    let (service, file) = (endpoint.to_string(), provisioning.file.display().to_string());
    let proof = match auth {
        EnrolmentAuth::Key(_) => "key",
        EnrolmentAuth::Certificate { .. } => "certificate",
    };
    let kept = provisioning.assigned.is_some();
    let (when, what) = if kept { ("with --again, ", "replace") } else { ("", "keep the answer in") };
    let text = format!(
        "{when}this would ask the provisioning service at {service} for a hub, as registration id {registration_id} of ID scope \
         {id_scope}, with the device's {proof}, and {what} {file}"
    );
    print(as_json, &text, &ProvisionLine::WouldAsk { service, id_scope, registration_id, proof, file, kept })
}

fn assigned(provisioning: &Provisioning, asked: bool, as_json: bool) -> Result<Exit, Failure> {
    let (Some((assignment, _)), Some(at)) = (&provisioning.assigned, provisioning.assigned_at()) else {
        return Err(anyhow!("the device has no hub yet").into());
    };
    let Enrolment { endpoint, registration_id, .. } = &provisioning.enrolment;
    let assigned_at = format_time(at);
    let (hub, device_id) = (assignment.hub.to_string(), &*assignment.device_id);
    let (service, file) = (endpoint.to_string(), provisioning.file.display().to_string());
    let text = format!(
        "{registration_id} is device {device_id} on hub {hub}, assigned {} by {service}; kept in {file}",
        relative(at, SystemTime::now())
    );
    let line = ProvisionLine::Assigned { service, registration_id, hub, device_id, assigned_at, file, asked };
    print(as_json, &text, &line)
}

fn print(as_json: bool, text: &str, line: &ProvisionLine<'_>) -> Result<Exit, Failure> {
    let mut output = Output::new();
    if as_json {
        output.json(line)?
    } else {
        output.line(text)?
    }
    output.flush()?;
    Ok(Exit::Done)
}
