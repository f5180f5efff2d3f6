//! `doctor`: finds out why this gateway cannot reach its hub.
//!
//! Owns: its arguments, how findings are shown, the exit code, the question to a running agent. Must not know: what is
//! checked.

use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::Serialize;

use crate::agent::control::client::{Client, ClientError};
use crate::agent::status::{ConnectionState, ConnectionStatus};
use crate::config::{self, counted};
use crate::doctor::{self, Case, Check, Finding, RunningAgent, Standing};

use super::shown::{Output, plain, width, wrapped};
use super::{DEFAULT_CONFIG, Exit, Failure};

/// How long a running agent may take to answer.
const ASK_LIMIT: Duration = Duration::from_secs(5);
/// The variable with the directory where systemd puts the secrets that the unit loads.
const CREDENTIALS: &str = "CREDENTIALS_DIRECTORY";
/// The widths of the first and the second column: their longest words and two spaces.
const STANDING: usize = "warning".len() + 2;
const LABEL: usize = "configuration".len() + 2;

/// Find out why this gateway cannot reach its hub: one line for each check, and what to do if it is not ok.
///
/// It checks the configuration, the secrets, the network, TLS, the clock, the inbox, the programs of rules and the
/// pins, and it signs in as the device. It claims no pin and receives no message. A hub keeps one connection per
/// device, so signing in disconnects a running agent. While an agent runs, doctor therefore skips the sign-in;
/// --sign-in forces it. The agent then signs in again by itself.
///
/// For an IoT Edge module it checks the network to the gateway instead, the socket of the workload API, its trust
/// bundle, and whether it signs for this deployment. Run it in the module's container: docker exec NAME c2d-agent
/// doctor. If a device and a module sign in side by side, each has its own checks.
///
/// For a device that is enrolled through the provisioning service it also checks the way to that service. Without an
/// assignment it asks the service, as the agent would, and keeps nothing.
///
/// Permissions are checked for the user who runs doctor. For the agent's user: sudo -u c2d-agent c2d-agent doctor. It
/// takes at most 30 seconds.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Exit codes: 0 all is ok, or there are only warnings and checks that were skipped; 1 a check failed, \
    also that of the configuration; 2 the command line is wrong."
)]
pub(super) struct DoctorArgs {
    /// The configuration file.
    #[arg(short, long, value_name = "FILE", default_value = DEFAULT_CONFIG)]
    config: PathBuf,
    /// Do not use the network. The workload API of an edge device is on this machine and is still checked.
    #[arg(long)]
    offline: bool,
    /// Sign in even while an agent runs; this disconnects the agent for a moment.
    #[arg(long, conflicts_with = "offline")]
    sign_in: bool,
    /// Print one JSON object: {"ok", "checks": [{"check", "subject", "status", "detail", "remedy"}, …]}. If a device
    /// and a module sign in, the checks of a connection also have "connection", which says whose it is.
    #[arg(long)]
    json: bool,
    /// The hub's HTTPS port, which tells the time; for the emulator, see its ready line.
    #[arg(long, value_name = "PORT", env = "C2D_HTTPS_PORT", default_value_t = 443, value_parser = clap::value_parser!(u16).range(1..))]
    https_port: u16,
}

/// The object of `--json`: stable for scripts; fields are added, never renamed.
#[derive(Serialize)]
struct DoctorReport<'a> {
    ok: bool,
    checks: &'a [Finding],
}

/// Examines everything and prints the findings.
///
/// # Errors
/// When standard output cannot be written.
pub(super) fn run(args: &DoctorArgs) -> Result<Exit, Failure> {
    let inspection = config::inspect(&args.config, &|name| {
        std::env::var(name)
            .ok()
            .or_else(|| (name == CREDENTIALS).then(|| credentials(&args.config)).flatten())
    });
    let socket = inspection.inbox.as_ref().map(|inbox| inbox.socket.clone());
    super::block_on(async {
        let case = Case {
            inspection,
            agent: agent(socket).await,
            offline: args.offline,
            sign_in: args.sign_in,
            https_port: args.https_port,
            clock: SystemTime::now,
        };
        let mut page = Page::new();
        let mut written = Ok(());
        let mut findings = Vec::new();
        doctor::examine(case, |finding| {
            if !args.json && written.is_ok() {
                written = page.add(&finding);
            }
            findings.push(finding);
        })
        .await;
        written?;
        let ok = findings.iter().all(|finding| finding.status != Standing::Failed);
        if args.json {
            page.out.json(&DoctorReport { ok, checks: &findings })?;
        } else {
            page.sum_up(&findings)?;
        }
        page.out.flush()?;
        Ok(if ok { Exit::Done } else { Exit::Error })
    })
}

/// The secrets that the unit loads.
const SECRETS: [&str; 3] = ["device.connection-string", "device.key", "device.key.pem"];

/// The directory from which the unit loads the secrets. Root has no copies by systemd when it runs the doctor by hand,
/// but it can read the originals.
fn credentials(config: &Path) -> Option<String> {
    let directory = config.parent()?;
    let can_open = SECRETS.iter().any(|name| std::fs::File::open(directory.join(name)).is_ok());
    directory.to_str().filter(|_| can_open).map(str::to_owned)
}

/// Asks the running agent, if there is one. Another thread asks, because an agent that hangs must not hold up the
/// doctor for longer than [`ASK_LIMIT`].
async fn agent(socket: Option<PathBuf>) -> RunningAgent {
    let Some(socket) = socket else {
        let sentence = "the configuration does not say where its control socket is: correct [inbox]";
        return RunningAgent::Unknown(sentence.to_owned());
    };
    let shown = socket.display().to_string();
    let asked = tokio::task::spawn_blocking(move || ask(&socket));
    match tokio::time::timeout(ASK_LIMIT, asked).await {
        Ok(Ok(agent)) => agent,
        Ok(Err(error)) => RunningAgent::Unknown(error.to_string()),
        Err(_elapsed) => RunningAgent::Unknown(ClientError::Silent(shown).to_string()),
    }
}

fn ask(socket: &Path) -> RunningAgent {
    match Client::connect(socket).and_then(|mut client| client.status()) {
        Ok(status) => {
            let mut away: Vec<_> = why_away(status.connection).into_iter().collect();
            if let Some(module) = status.module {
                away.extend(why_away(module.connection).map(|why| format!("module {}: {why}", module.id)));
            }
            RunningAgent::Running {
                pid: status.pid,
                disconnected: (!away.is_empty()).then(|| away.join("; ")),
            }
        }
        Err(ClientError::NotRunning(_)) => RunningAgent::NotRunning,
        Err(error) => RunningAgent::Unknown(error.to_string()),
    }
}

/// Why the agent has no connection; `None` if it has one.
fn why_away(connection: ConnectionStatus) -> Option<String> {
    match connection.state {
        ConnectionState::Connected => None,
        ConnectionState::Connecting | ConnectionState::Disconnected => {
            Some(connection.reason.unwrap_or_else(|| "it is connecting".to_owned()))
        }
    }
}

/// The findings on standard output, each printed as it comes.
struct Page {
    out: Output,
    width: usize,
    coloured: bool,
}

impl Page {
    fn new() -> Self {
        // As https://no-color.org says: any value but an empty one turns colours off.
        let plain = std::env::var_os("NO_COLOR").is_some_and(|text| !text.is_empty());
        Self { out: Output::new(), width: width(), coloured: std::io::stdout().is_terminal() && !plain }
    }

    fn add(&mut self, finding: &Finding) -> anyhow::Result<()> {
        for line in lines(finding, self.width) {
            let line = if self.coloured { coloured(finding.status, &line) } else { line };
            self.out.line(&line)?;
        }
        self.out.flush()
    }

    fn sum_up(&mut self, findings: &[Finding]) -> anyhow::Result<()> {
        let count = |status| findings.iter().filter(|finding| finding.status == status).count();
        let (ok, skipped) = (count(Standing::Ok), count(Standing::Skipped));
        let (warnings, failed) = (counted(count(Standing::Warning), "warning"), count(Standing::Failed));
        self.out.line("")?;
        self.out.line(&format!("{ok} ok, {warnings}, {failed} failed, {skipped} skipped"))
    }
}

/// A finding in three columns, with the remedy below.
fn lines(finding: &Finding, width: usize) -> Vec<String> {
    let (label, about) = label(finding);
    // A finding about the identity already names the connection.
    let of = finding.connection.as_ref().filter(|_| finding.check != Check::Identity);
    let of = of.map_or(String::new(), |name| format!("{name}: "));
    let detail = plain(&format!("{of}{about}{}", finding.detail));
    let room = width.saturating_sub(STANDING + LABEL);
    let mut lines = Vec::new();
    let mut head = format!("{:STANDING$}{label:LABEL$}", word(finding.status));
    for part in wrapped(&detail, room) {
        lines.push(format!("{head}{part}"));
        head = " ".repeat(STANDING + LABEL);
    }
    let mut arrow = "→ ";
    for part in finding.remedy.iter().flat_map(|remedy| wrapped(&plain(remedy), room.saturating_sub(2))) {
        lines.push(format!("{head}{arrow}{part}"));
        arrow = "  ";
    }
    lines
}

fn word(status: Standing) -> &'static str {
    match status {
        Standing::Ok => "ok",
        Standing::Warning => "warning",
        Standing::Failed => "FAILED",
        Standing::Skipped => "skipped",
    }
}

/// The first line of a finding with its first word, the standing, in colour.
fn coloured(status: Standing, line: &str) -> String {
    let colour = match status {
        Standing::Ok => "32",
        Standing::Warning => "33",
        Standing::Failed => "1;31",
        Standing::Skipped => "2",
    };
    let word = word(status);
    line.strip_prefix(word).map_or(line.to_owned(), |rest| format!("\x1b[{colour}m{word}\x1b[0m{rest}"))
}

/// The label for the second column, and the part of the subject that is shown before the detail.
fn label(finding: &Finding) -> (String, String) {
    let subject = finding.subject.as_deref().unwrap_or_default();
    let label = match finding.check {
        Check::Configuration => "configuration",
        Check::Identity => "identity",
        Check::SecretFile => "secret file",
        Check::Token => "SAS token",
        Check::DeviceCertificate => "device cert",
        Check::Agent => "agent",
        Check::WorkloadApi => "workload API",
        Check::NameLookup => "name lookup",
        Check::MqttPort | Check::HttpsPort => return (format!("port {subject}"), String::new()),
        Check::Tls => "TLS",
        Check::ServerCertificate => "server cert",
        Check::Clock => "clock",
        Check::TrustBundle => "trust bundle",
        Check::Generation => "generation",
        Check::Registration => "registration",
        Check::SignIn => "sign-in",
        Check::User => "user",
        Check::Inbox => "inbox",
        Check::Program => "program",
        Check::Shell => "shell",
        Check::Gpio => "GPIO",
        Check::Pin if !subject.is_empty() => return ("pin".to_owned(), format!("{subject}: ")),
        Check::Pin => "pin",
    };
    (label.to_owned(), String::new())
}
