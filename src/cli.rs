//! The command line: one small file per subcommand.
//!
//! Owns: arguments, exit codes, where errors are turned into one sentence.
//! Must not know: protocols.

use std::ffi::OsString;
use std::future::Future;
use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::error::{ContextKind, ContextValue};
use clap::{CommandFactory as _, Parser, Subcommand, ValueEnum};

use crate::features::{self, Feature};

#[cfg(feature = "full")]
mod auth;
#[cfg(feature = "full")]
mod back_end;
#[cfg(feature = "full")]
mod c2d_feedback;
#[cfg(feature = "full")]
mod c2d_purge;
#[cfg(feature = "full")]
mod c2d_send;
mod check;
#[cfg(feature = "emulator")]
mod demo;
#[cfg(feature = "full")]
mod devices;
#[cfg(feature = "full")]
mod doctor;
#[cfg(feature = "emulator")]
mod emulator;
#[cfg(feature = "full")]
mod event_watch;
#[cfg(feature = "full")]
mod found;
mod healthcheck;
#[cfg(feature = "full")]
mod hub_size;
mod inbox;
mod init;
#[cfg(feature = "full")]
mod invoke_method;
#[cfg(feature = "full")]
mod jobs;
mod logging;
#[cfg(feature = "manual")]
mod manual;
#[cfg(feature = "full")]
mod many_devices;
#[cfg(feature = "full")]
mod monitor;
mod panic;
mod provision;
#[cfg(feature = "full")]
mod query;
mod reach;
#[cfg(feature = "full")]
mod rows;
mod run;
#[cfg(feature = "full")]
mod run_files;
#[cfg(any(feature = "full", feature = "manual"))]
mod schema;
mod shown;
mod status;
#[cfg(feature = "full")]
mod transport;
#[cfg(feature = "full")]
mod twin;

/// The configuration file that the program reads without `--config`.
const DEFAULT_CONFIG: &str = "/etc/c2d-agent/config.toml";

/// The commands that a smaller build lacks.
const OPTIONAL: [(&str, Feature); 15] = [
    ("doctor", features::FULL),
    ("schema", features::SCHEMA),
    ("c2d-send", features::FULL),
    ("c2d-feedback", features::FULL),
    ("c2d-purge", features::FULL),
    ("invoke-method", features::FULL),
    ("twin", features::FULL),
    ("devices", features::FULL),
    ("query", features::FULL),
    ("jobs", features::FULL),
    ("auth", features::FULL),
    ("monitor", features::FULL),
    ("emulator", features::EMULATOR),
    ("demo", features::EMULATOR),
    ("manual", features::MANUAL),
];

/// The end of the program's help: twenty commands in a list do not say where a newcomer begins.
const BEGIN: &str = if features::EMULATOR.is_built() {
    "Where to begin:
  anywhere         c2d-agent demo: all of it on this machine, without Azure
  on a gateway     c2d-agent init, then check, then run
  at the back end  c2d-agent auth: who would sign in; then c2d-send
  with a fleet     c2d-agent provision --help"
} else {
    "Where to begin: c2d-agent init, then check, then run."
};

/// Act on Azure IoT Hub cloud-to-device messages: switch GPIO outputs and run commands.
#[derive(Debug, Parser)]
#[command(name = "c2d-agent", version, about, propagate_version = true, after_help = BEGIN)]
pub struct Cli {
    /// How much to log to standard error: off, error, warn, info, debug, trace, or targets such as c2d_agent=debug.
    /// [default: info; demo: warn; doctor: off]
    #[arg(long, global = true, env = "C2D_LOG", value_name = "LEVEL", help_heading = "Logging")]
    log_level: Option<String>,
    /// Format of the log.
    #[arg(
        long,
        global = true,
        env = "C2D_LOG_FORMAT",
        value_enum,
        default_value_t = LogFormat::Text,
        value_name = "SHAPE",
        help_heading = "Logging"
    )]
    log_format: LogFormat,
    #[command(subcommand)]
    command: Command,
}

/// Format of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum LogFormat {
    /// One readable line per event.
    Text,
    /// One JSON object per event.
    Json,
}

#[derive(Debug, Subcommand)]
enum Command {
    Init(Box<init::InitArgs>),
    Run(run::RunArgs),
    Check(check::CheckArgs),
    Inbox(inbox::InboxArgs),
    Status(status::StatusArgs),
    Provision(provision::ProvisionArgs),
    #[cfg(feature = "full")]
    Doctor(doctor::DoctorArgs),
    Healthcheck(healthcheck::HealthcheckArgs),
    #[cfg(any(feature = "full", feature = "manual"))]
    Schema(schema::SchemaArgs),
    #[cfg(feature = "full")]
    C2dSend(Box<c2d_send::SendArgs>),
    #[cfg(feature = "full")]
    C2dFeedback(c2d_feedback::FeedbackArgs),
    #[cfg(feature = "full")]
    C2dPurge(c2d_purge::PurgeArgs),
    #[cfg(feature = "full")]
    InvokeMethod(Box<invoke_method::InvokeArgs>),
    #[cfg(feature = "full")]
    Twin(Box<twin::TwinArgs>),
    #[cfg(feature = "full")]
    Devices(devices::DevicesArgs),
    #[cfg(feature = "full")]
    Query(query::QueryArgs),
    #[cfg(feature = "full")]
    Jobs(jobs::JobsArgs),
    #[cfg(feature = "full")]
    Auth(auth::AuthArgs),
    #[cfg(feature = "full")]
    Monitor(monitor::MonitorArgs),
    #[cfg(feature = "emulator")]
    Emulator(Box<emulator::EmulatorArgs>),
    #[cfg(feature = "emulator")]
    Demo(demo::DemoArgs),
    #[cfg(feature = "manual")]
    Manual(manual::ManualArgs),
}

impl Command {
    /// The log level when the user gives none.
    fn default_log_level(&self) -> &'static str {
        match self {
            #[cfg(feature = "emulator")]
            Self::Demo(_) => demo::LOG_LEVEL,
            // The findings are the output; log lines would only repeat them.
            #[cfg(feature = "full")]
            Self::Doctor(_) => "off",
            _ => "info",
        }
    }

    /// Whether the command waits for the reader of its log. The agent does not wait: its relays matter more.
    fn patience(&self) -> logging::Patience {
        match self {
            Self::Run(_) => logging::Patience::Goes,
            _ => logging::Patience::Waits,
        }
    }
}

/// How the program ends. docs/src/reference/exit-codes.md describes the codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
#[allow(dead_code)]
enum Exit {
    /// Done. With `--wait`, the message was delivered. With `--wait-outcome`, the action succeeded. A called method
    /// answered with a status from 200 to 299.
    Done = 0,
    /// The command failed.
    Error = 1,
    /// The command line or the configuration is wrong.
    Usage = 2,
    /// A negative answer. Feedback: the message was not delivered. A method call: it did not reach its device. `check`:
    /// no rule matches the sample message, the result is not as expected, or a rule test failed.
    NegativeFeedback = 3,
    /// Feedback, the outcome (with `--wait-outcome`) or the answer of a method did not come in time.
    NoFeedback = 4,
    /// The message was delivered, but its action did not succeed. Or a method answered with another status.
    ActionFailed = 5,
}

/// An error with its exit code; [`run()`] prints it as one sentence.
#[derive(Debug)]
struct Failure {
    exit: Exit,
    error: anyhow::Error,
}

#[allow(dead_code)]
impl Failure {
    /// The command line or the configuration is wrong: exit code 2.
    fn usage(error: impl Into<anyhow::Error>) -> Self {
        Self { exit: Exit::Usage, error: error.into() }
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self { exit: Exit::Error, error }
    }
}

/// Parses the command line, runs the subcommand, and returns the exit code. A panic in any thread ends the process from
/// then on.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments: Vec<_> = arguments.into_iter().collect();
    let cli = match Cli::try_parse_from(&arguments) {
        Ok(cli) => cli,
        Err(error) => match lacking(&error) {
            Some(sentence) => {
                tell(format_args!("c2d-agent: {sentence}"));
                return ExitCode::from(Exit::Usage as u8);
            }
            // clap's error would show the secret.
            None if error.use_stderr() && error.to_string().contains("SharedAccess") => {
                tell(
                    "c2d-agent: an argument holds a connection string, and every user of this machine can read arguments: write \
                     it to a file, or set the environment variable that --help names",
                );
                return ExitCode::from(Exit::Usage as u8);
            }
            None => with_whole_usage(error, &arguments).exit(),
        },
    };
    let given = cli.log_level.as_deref().filter(|level| !level.is_empty());
    let log_level = given.unwrap_or_else(|| cli.command.default_log_level());
    let log = match logging::install(log_level, cli.log_format, cli.command.patience()) {
        Ok(log) => log,
        Err(failure) => {
            tell(last_word(&failure));
            return ExitCode::from(failure.exit as u8);
        }
    };
    panic::install(log.clone());
    let result = match cli.command {
        Command::Init(args) => init::run(&args),
        Command::Run(args) => run::run(&args),
        Command::Check(args) => check::run(&args),
        Command::Inbox(args) => inbox::run(&args),
        Command::Status(args) => status::run(&args),
        Command::Provision(args) => provision::run(&args),
        #[cfg(feature = "full")]
        Command::Doctor(args) => doctor::run(&args),
        Command::Healthcheck(args) => healthcheck::run(&args),
        #[cfg(any(feature = "full", feature = "manual"))]
        Command::Schema(args) => schema::run(&args),
        #[cfg(feature = "full")]
        Command::C2dSend(args) => c2d_send::run(&args),
        #[cfg(feature = "full")]
        Command::C2dFeedback(args) => c2d_feedback::run(&args),
        #[cfg(feature = "full")]
        Command::C2dPurge(args) => c2d_purge::run(&args),
        #[cfg(feature = "full")]
        Command::InvokeMethod(args) => invoke_method::run(&args),
        #[cfg(feature = "full")]
        Command::Twin(args) => twin::run(&args),
        #[cfg(feature = "full")]
        Command::Devices(args) => devices::run(&args),
        #[cfg(feature = "full")]
        Command::Query(args) => query::run(&args),
        #[cfg(feature = "full")]
        Command::Jobs(args) => jobs::run(&args),
        #[cfg(feature = "full")]
        Command::Auth(args) => auth::run(&args),
        #[cfg(feature = "full")]
        Command::Monitor(args) => monitor::run(&args),
        #[cfg(feature = "emulator")]
        Command::Emulator(args) => emulator::run(*args),
        #[cfg(feature = "emulator")]
        Command::Demo(args) => demo::run(&args),
        #[cfg(feature = "manual")]
        Command::Manual(args) => manual::run(&args),
    };
    log.end(result.as_ref().err().map(last_word));
    let exit: Exit = result.unwrap_or_else(|failure: Failure| failure.exit);
    ExitCode::from(exit as u8)
}

/// The sentence for a command that is not in this build.
fn lacking(error: &clap::Error) -> Option<String> {
    let Some(ContextValue::String(name)) = error.get(ContextKind::InvalidSubcommand) else { return None };
    let (command, part) = OPTIONAL.iter().find(|(command, part)| command == name && !part.is_built())?;
    Some(part.lacks(command))
}

/// The error with the usage of its command. That of clap repeats what was given, also by a variable of the environment,
/// and does not say what else may be.
fn with_whole_usage(mut error: clap::Error, given: &[OsString]) -> clap::Error {
    if error.get(ContextKind::Usage).is_some() {
        let mut program = Cli::command();
        program.build();
        let of =
            given.iter().fold(&program, |command, word| command.find_subcommand(word).unwrap_or(command));
        error.insert(ContextKind::Usage, ContextValue::StyledStr(of.clone().render_usage()));
    }
    error
}

fn last_word(failure: &Failure) -> String {
    format!("c2d-agent: {}", sentence(&failure.error))
}

/// An error and its causes as one text. A cause that the text already contains is not repeated.
fn sentence(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

/// Writes a line for people to standard error. If that fails (a full disk, a closed pipe), the line is dropped: the
/// work and its exit code must not suffer. `eprintln!` would panic.
fn tell(line: impl std::fmt::Display) {
    drop(writeln!(std::io::stderr(), "{line}"));
}

/// Refuses a secret where `option` expects a file name: an error about that file would repeat it.
fn check_is_no_secret(option: &str, path: &std::path::Path) -> Result<(), anyhow::Error> {
    anyhow::ensure!(
        !crate::config::holds_a_secret(&path.to_string_lossy()),
        "{option} has the secret itself, and every user of this machine can read arguments: write it to a file and \
         name that"
    );
    Ok(())
}

/// A duration such as `10m`.
fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|_| "use a number with a unit, such as 30s, 10m or 2h".to_owned())
}

/// Runs a subcommand that talks to a network; one thread is enough. At the end it does not wait for a name look-up that
/// hangs in the system's resolver: the runtime would wait, and the exit could take half a minute.
fn block_on<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let built = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = built.context("the runtime cannot start")?;
    let result = runtime.block_on(work);
    runtime.shutdown_background();
    result
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn a_command_that_is_not_built_in_is_told_with_its_feature_and_where_to_get_it() {
        for (command, part) in OPTIONAL {
            let given = [vec!["c2d-agent", command], vec!["c2d-agent", "help", command]];
            // A command of this build may need no argument: then there is no error.
            for told in given.map(|given| Cli::try_parse_from(given).err().and_then(|error| lacking(&error)))
            {
                assert_eq!(told.is_some(), !part.is_built(), "{command}: {told:?}");
                let words = format!("{command} is not in this program: ");
                assert!(told.is_none_or(|told| told.starts_with(&words) && told.contains("its Cargo feature is ")));
            }
        }
        let unknown = Cli::try_parse_from(["c2d-agent", "send"]).expect_err("unknown");
        assert_eq!(lacking(&unknown), None);
    }

    /// The commands as [`Command`] lists them, and for each whether a smaller build may lack it.
    fn listed() -> Vec<(String, bool)> {
        let (_, list) = include_str!("cli.rs").split_once("enum Command {\n").expect("the commands");
        let (list, _) = list.split_once("\n}\n").expect("their end");
        let (mut found, mut is_optional) = (Vec::new(), false);
        for line in list.lines().map(str::trim) {
            is_optional |= line.starts_with("#[cfg(");
            if let Some((variant, _)) = line.split_once('(').filter(|_| !line.starts_with(['#', '/'])) {
                let name = variant
                    .chars()
                    .flat_map(|c| c.is_ascii_uppercase().then_some('-').into_iter().chain([c]));
                let name: String = name.collect();
                found.push((name.trim_start_matches('-').to_ascii_lowercase(), is_optional));
                is_optional = false;
            }
        }
        found
    }

    #[test]
    fn every_command_that_a_build_may_lack_has_its_part_and_the_documents_list_the_others() {
        let listed = listed();
        assert!(listed.len() > 10, "{listed:?}");
        for (name, is_optional) in &listed {
            assert_eq!(OPTIONAL.iter().any(|(command, _)| command == name), *is_optional, "{name}");
        }
        let mut always: Vec<String> = listed
            .iter()
            .filter(|(_, is_optional)| !is_optional)
            .map(|(name, _)| format!("`{name}`"))
            .collect();
        let last = always.pop().expect("commands");
        let sentence = format!("has {} and {last}", always.join(", "));
        for document in [
            include_str!("../README.md"),
            include_str!("../docs/src/reference/builds.md"),
            include_str!("../docs/src/start/raspberry-pi.md"),
        ] {
            let text = document.split_whitespace().collect::<Vec<_>>().join(" ");
            assert!(text.contains(&sentence), "the small image {sentence}, which is not in {text}");
        }
    }

    #[test]
    fn a_name_look_up_that_hangs_does_not_hold_up_the_exit() {
        let (_held, never) = mpsc::sync_channel::<()>(1);
        let (tell_done, done) = mpsc::sync_channel(1);
        std::thread::spawn(move || {
            let result = block_on(async {
                let (tell_begun, begun) = tokio::sync::oneshot::channel();
                let look_up = tokio::task::spawn_blocking(move || {
                    tell_begun.send(()).expect("somebody waits");
                    never.recv()
                });
                begun.await.expect("it began");
                drop(look_up);
                Ok(Exit::Done)
            });
            tell_done.send(result.is_ok()).expect("the test waits");
        });
        assert_eq!(done.recv_timeout(Duration::from_secs(10)), Ok(true));
    }
}
