//! `init`: writes a first configuration, and says what to do next.
//!
//! Owns: its arguments, and the order of its work: ask, inspect, write, say what is next. Must not know: how a terminal is
//! read, how a file is written, what the configuration looks like.

use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow};
use futures_util::StreamExt as _;
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use signal_hook_tokio::Signals;

use crate::config::{self, Inspection};

use self::device::{CA_FILE_VARIABLE, DeviceProof, NewDevice};
use self::duty::Duty;
use self::enrolment::{ENROLMENT_KEY_FILE, NewEnrolment, NewProof};
use self::find::CONNECTION_STRING_VARIABLE;
use self::place::NewFile;
use super::shown::Output;
use super::{DEFAULT_CONFIG, Exit, Failure};

mod ask;
mod device;
mod duty;
mod enrolment;
mod find;
mod next;
mod place;
mod text;
mod toml;

/// Write a first configuration: who the device is, and what a message does.
///
/// On a terminal it asks for what no option gives. It writes the configuration, and the secret into a file of its own beside it.
/// It writes nothing that `c2d-agent check` would refuse by itself, says what does not fit what was there before, and
/// overwrites nothing without --force.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "Examples:\n  sudo c2d-agent init\n  \
    sudo c2d-agent init --connection-string-file secret.txt --pin pump=17\n  \
    sudo c2d-agent init --command backup -- /usr/local/bin/backup --full\n  \
    c2d-agent init -c config.toml --simulated --pin pump=17\n  \
    c2d-agent init --provisioning 0ne00012345 --key-file device.key --pin pump=17\n\n\
    Exit codes: 0 written, or shown; 1 the files cannot be written, or a signal ended it; 2 something is missing or wrong.")]
pub(super) struct InitArgs {
    /// The configuration to write. Its secrets, and a private root, become files beside it.
    #[arg(short, long, value_name = "FILE", default_value = DEFAULT_CONFIG)]
    config: PathBuf,
    /// A file with the device connection string; - is standard input
    /// [default: the string in C2D_DEVICE_CONNECTION_STRING, if set].
    #[arg(long, value_name = "FILE", conflicts_with_all = ["hub", "device_id"])]
    connection_string_file: Option<PathBuf>,
    /// With a certificate: the host name of the IoT Hub.
    #[arg(long, value_name = "HOST", requires = "device_id")]
    hub: Option<String>,
    /// With a certificate: the device.
    #[arg(long, value_name = "ID", requires = "hub")]
    device_id: Option<String>,
    /// Enrol the device: the ID scope of the Device Provisioning Service that tells it its hub.
    #[arg(long, value_name = "ID_SCOPE", conflicts_with_all = ["connection_string_file", "hub", "device_id"])]
    provisioning: Option<String>,
    /// With --provisioning: the registration id [default: the certificate's CN, else this machine's host name].
    #[arg(long, value_name = "ID", requires = "provisioning")]
    registration_id: Option<String>,
    /// With --provisioning: a file with the device's key, as provision derive-key prints it; - is standard input.
    #[arg(long, value_name = "FILE", requires = "provisioning", conflicts_with = "certificate")]
    key_file: Option<PathBuf>,
    /// With --provisioning: the host of the service, if it is another one.
    #[arg(long, value_name = "HOST", requires = "provisioning")]
    endpoint: Option<String>,
    /// The PEM file of the device's certificate; it is copied.
    #[arg(long, value_name = "FILE", requires = "private_key")]
    certificate: Option<PathBuf>,
    /// The PEM file of its private key; it is copied.
    #[arg(long, value_name = "FILE", requires = "certificate")]
    private_key: Option<PathBuf>,
    /// A PEM file with a private root to trust, such as the emulator's ca.pem; it is copied
    /// [default: the file in C2D_CA_FILE, if set].
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,
    /// An output, and the number of its line: BCM on a Raspberry Pi, elsewhere that of the GPIO chip. Can be repeated.
    #[arg(long = "pin", value_name = "NAME=LINE")]
    pins: Vec<String>,
    /// The name of a command; its program and arguments follow at the end, after --.
    #[arg(long, value_name = "NAME", requires = "program")]
    command: Option<String>,
    /// The program of --command, as an absolute path, and its arguments. {name} in an argument becomes that property of the
    /// message; the program gets its arguments as they are, without a shell.
    #[arg(last = true, value_name = "PROGRAM", requires = "command")]
    program: Vec<String>,
    /// Pins without hardware, for a machine without GPIO: their states are in a file and in the log.
    #[arg(long)]
    simulated: bool,
    /// Show what would be written, without the secrets, and write nothing.
    #[arg(long)]
    print: bool,
    /// Replace files that are there already.
    #[arg(long)]
    force: bool,
}

/// The tables that say who signs in.
const DEVICE: &str = "[device]";
const PROVISIONING: &str = "[provisioning]";
/// Stands in for the file of the key before that exists.
const ENROLMENT_KEY_VARIABLE: &str = "C2D_PROVISIONING_KEY";

/// What goes into the configuration.
#[derive(Debug)]
struct NewConfiguration {
    who: NewIdentity,
    ca_file: Option<PathBuf>,
    duties: Vec<Duty>,
    is_simulated: bool,
    /// The configuration to write.
    config: PathBuf,
}

/// Who signs in.
#[derive(Debug)]
enum NewIdentity {
    Device(NewDevice),
    Enrolment(NewEnrolment),
}

/// Asks for what is missing, and writes the files.
///
/// # Errors
/// When an answer is missing or wrong, or a file cannot be written.
pub(super) fn run(args: &InitArgs) -> Result<Exit, Failure> {
    if !args.print {
        place::check(&args.config, args.force)?;
    }
    let missing = missing(args);
    if !std::io::stdin().is_terminal() {
        if !missing.is_empty() {
            return Err(Failure::usage(anyhow!(
                "standard input is not a terminal, so c2d-agent cannot ask: give {}",
                missing.join("; give ")
            )));
        }
        return finish(&gather(args)?, args);
    }
    if !missing.is_empty() {
        super::tell(format_args!(
            "This writes {}. Ctrl-C ends it, and writes nothing.",
            args.config.display()
        ));
    }
    let saved = ask::terminal();
    let asked = super::block_on(async {
        let signals = Signals::new([SIGINT, SIGTERM, SIGHUP, SIGQUIT]);
        let mut signals = signals.context("signals cannot be received")?;
        let own = args.clone();
        let asking = tokio::task::spawn_blocking(move || gather(&own));
        tokio::select! {
            plan = asking => plan.context("the questions could not be asked")?,
            _ = signals.next() => {
                super::tell("");
                Err(anyhow!("a signal ended it: nothing was written").into())
            }
        }
    });
    ask::restore(saved);
    finish(&asked?, args)
}

/// The options that are missing.
fn missing(args: &InitArgs) -> Vec<&'static str> {
    let mut missing = Vec::new();
    let has_string = args.connection_string_file.is_some() || variable(CONNECTION_STRING_VARIABLE).is_some();
    if args.provisioning.is_some() {
        if args.key_file.is_none() && args.certificate.is_none() {
            missing.push("--key-file FILE, or --certificate FILE and --private-key FILE");
        }
    } else if args.hub.is_none() && !has_string {
        missing.push(
            "--connection-string-file FILE, with - for standard input (with a certificate instead --hub, --device-id, \
             --certificate and --private-key)",
        );
    } else if args.hub.is_some() && args.certificate.is_none() {
        missing.push("--certificate FILE and --private-key FILE");
    }
    if args.pins.is_empty() && args.command.is_none() {
        missing.push("--pin NAME=LINE or --command NAME -- PROGRAM");
    }
    missing
}

/// Gathers the plan from the options, and asks at the terminal for what they lack.
fn gather(args: &InitArgs) -> Result<NewConfiguration, Failure> {
    let mut duties = duty::given(&args.pins, args.command.as_deref(), &args.program)?;
    let who = match &args.provisioning {
        Some(id_scope) => NewIdentity::Enrolment(find::enrolment(args, id_scope)?),
        None => NewIdentity::Device(find::device(args)?),
    };
    if duties.is_empty() {
        duties.push(ask::duty()?);
    }
    let ca_file = args.ca_file.clone().or_else(|| variable(CA_FILE_VARIABLE).map(PathBuf::from));
    let config = args.config.clone();
    Ok(NewConfiguration { who, ca_file, duties, is_simulated: args.simulated, config })
}

/// Inspects the planned configuration, writes it, and says what to do next.
fn finish(plan: &NewConfiguration, args: &InitArgs) -> Result<Exit, Failure> {
    let inspection = plan.inspect();
    if inspection.report.problems() > 0 {
        let report = inspection.report;
        return Err(Failure::usage(anyhow!(
            "nothing was written, because c2d-agent check would refuse it:\n{report}"
        )));
    }
    let files = plan.files()?;
    let mut out = Output::new();
    if args.print {
        for file in &files {
            super::tell(format_args!("would write {file}"));
        }
        out.line(plan.text().trim_end())?;
        out.flush()?;
        return Ok(Exit::Done);
    }
    for file in place::write(&files, args.force)? {
        out.line(&format!("wrote {file}"))?;
    }
    out.flush()?; // before what follows on standard error
    // Inspects again as `check` would: the files that were there before and the environment count, too.
    let report = config::inspect(&plan.config, &|name| std::env::var(name).ok()).report;
    if report.problems() > 0 {
        let sentence = "the files are written, but c2d-agent check refuses them together with files or variables that were there before";
        return Err(Failure::usage(anyhow!("{sentence}:\n{report}")));
    }
    if !report.is_empty() {
        super::tell(&report);
    }
    if plan.has_no_hardware() {
        super::tell(
            "warning: this machine has no /dev/gpiochip*, so the agent cannot switch a pin here; --simulated makes pins without \
             hardware",
        );
    }
    out.line("")?;
    for line in next::lines(plan, args.force) {
        out.line(&line)?;
    }
    out.flush()?;
    Ok(Exit::Done)
}

impl NewIdentity {
    /// The table of the configuration, and the lines in it.
    fn lines(&self) -> (&'static str, String) {
        match self {
            Self::Device(device) => (DEVICE, device.lines()),
            Self::Enrolment(enrolment) => (PROVISIONING, enrolment.lines()),
        }
    }

    /// The same before the files exist.
    fn lines_before_writing(&self) -> (&'static str, String) {
        match self {
            Self::Device(device) => (DEVICE, device.lines_before_writing()),
            Self::Enrolment(enrolment) => (PROVISIONING, enrolment.lines_before_writing()),
        }
    }

    fn connection_string(&self) -> Option<String> {
        match self {
            Self::Device(device) => device.connection_string(),
            Self::Enrolment(_) => None,
        }
    }

    fn enrolment_key(&self) -> Option<String> {
        match self {
            Self::Device(_) => None,
            Self::Enrolment(enrolment) => enrolment.key(),
        }
    }
}

impl NewConfiguration {
    fn text(&self) -> String {
        text::configuration(self, &self.who.lines())
    }

    /// Inspects as `check` would, before the files exist: secrets are read from where they are now.
    fn inspect(&self) -> Inspection {
        let env = |name: &str| {
            let own = match name {
                CONNECTION_STRING_VARIABLE => self.who.connection_string(),
                ENROLMENT_KEY_VARIABLE => self.who.enrolment_key(),
                CA_FILE_VARIABLE => self.ca_file.as_ref().map(|path| path.display().to_string()),
                _ => None,
            };
            // What the environment says besides counts for `check`, too.
            own.or_else(|| variable(name))
        };
        let text = text::configuration(self, &self.who.lines_before_writing());
        config::inspect_text(&text, &self.config, &env)
    }

    /// The files to write. The configuration is the last, because it names the others.
    fn files(&self) -> Result<Vec<NewFile>, Failure> {
        let beside = |name| self.config.with_file_name(name);
        let mut files = match &self.who {
            NewIdentity::Device(NewDevice { proof: DeviceProof::String(text), .. }) => {
                vec![NewFile::secret(beside(device::STRING_FILE), format!("{text}\n").into_bytes())]
            }
            NewIdentity::Enrolment(NewEnrolment { proof: NewProof::Key(key), .. }) => {
                vec![NewFile::secret(beside(ENROLMENT_KEY_FILE), format!("{key}\n").into_bytes())]
            }
            NewIdentity::Device(NewDevice {
                proof: DeviceProof::Certificate { certificate, private_key },
                ..
            })
            | NewIdentity::Enrolment(NewEnrolment {
                proof: NewProof::Certificate { certificate, private_key },
                ..
            }) => vec![
                NewFile::secret(beside(device::CERTIFICATE_FILE), find::read(certificate)?),
                NewFile::secret(beside(device::KEY_FILE), find::read(private_key)?),
            ],
        };
        if let Some(ca_file) = &self.ca_file {
            files.push(NewFile::open(beside(device::ROOT_FILE), find::read_roots(ca_file)?));
        }
        files.push(NewFile::open(self.config.clone(), self.text().into_bytes()));
        Ok(files)
    }

    /// Whether this is the configuration that the package's service reads.
    fn is_of_the_service(&self) -> bool {
        self.config == Path::new(DEFAULT_CONFIG)
    }

    fn has_no_hardware(&self) -> bool {
        let chips = || std::fs::read_dir("/dev").into_iter().flatten().flatten();
        let is_chip = |name: &std::ffi::OsStr| name.to_string_lossy().starts_with("gpiochip");
        !self.is_simulated
            && self.duties.iter().any(Duty::is_pin)
            && !chips().any(|entry| is_chip(&entry.file_name()))
    }
}

/// An environment variable. An empty one counts as unset, as it does for the agent.
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.trim().is_empty())
}
