//! The configuration: TOML text to a typed, checked [`Config`], every problem with its position.
//!
//! Owns: the file's schema, its defaults and limits. Must not know: tokio, sockets, pins' hardware.
//! Used by: `agent`, `action` (pin settings), `cli`.
//!
//! Relative paths in the file are taken from the file's own directory.

use std::path::{Path, PathBuf};
use std::time::Duration;

use toml::de::DeTable;

use crate::credentials::DeviceIdentity;
use crate::rules::{Reports, Rules};

mod conditions;
mod device;
mod files;
mod gpio;
mod inbox;
mod interlock;
mod policy;
mod report;
mod rule;
mod settings;
mod steps;
mod table;

pub use report::Report;
pub(crate) use report::counted;
pub use settings::{
    ActiveLevel, GpioBackend, GpioSettings, InboxSettings, Line, OnDisconnect, OnExit, PinSettings,
};

/// Largest configuration file.
const MAX_CONFIG_BYTES: u64 = 1024 * 1024;

/// A configuration without a problem.
#[derive(Debug, Clone)]
pub struct Config {
    /// Who signs in.
    pub identity: DeviceIdentity,
    /// A private root beside the system's.
    pub ca_file: Option<PathBuf>,
    /// How long a SAS token is good.
    pub token_lifetime: Duration,
    /// The pins.
    pub gpio: GpioSettings,
    /// The rules.
    pub rules: Rules,
    /// The durable record of messages.
    pub inbox: InboxSettings,
    /// How many programs may run at once.
    pub max_children: usize,
    /// Where the outcomes of messages are reported that no rule takes; for rules see their policy.
    pub reports: Reports,
    /// What is doubtful but does not keep the agent from running; often empty.
    pub warnings: Report,
}

/// A configuration as far as it could be read, for `check`: a part is absent when it has a problem.
#[derive(Debug)]
pub struct Inspection {
    /// Who signs in.
    pub identity: Option<DeviceIdentity>,
    /// The pins that have no problem.
    pub gpio: GpioSettings,
    /// The rules, when none of them has a problem.
    pub rules: Option<Rules>,
    /// Where the inbox is: `inbox` and `status` need it even when the rest has problems. Absent when the file cannot be
    /// read, or does not say where.
    pub inbox: Option<InboxSettings>,
    /// Problems and warnings.
    pub report: Report,
    max_children: usize,
    reports: Reports,
    ca_file: Option<PathBuf>,
    token_lifetime: Duration,
}

/// Reads a configuration file. `env` looks a variable of the environment up: `C2D_DEVICE_CONNECTION_STRING` names the
/// device when the file does not, and `C2D_CA_FILE` goes before `ca_file`.
///
/// # Errors
/// All problems at once.
pub fn load(path: &Path, env: &dyn Fn(&str) -> Option<String>) -> Result<Config, Report> {
    inspect(path, env).into_config()
}

/// Reads a configuration file as far as possible.
pub fn inspect(path: &Path, env: &dyn Fn(&str) -> Option<String>) -> Inspection {
    match files::read_text(path, MAX_CONFIG_BYTES) {
        Ok(text) => inspect_text(&text, path, env),
        Err(reason) => {
            let mut report = Report::new(path.display(), "");
            report.problem(None, format!("cannot read the configuration: {reason}"));
            Inspection::unreadable(report)
        }
    }
}

/// Reads the text of the configuration file `path`, which itself is not touched; files that the text names are.
pub fn inspect_text(text: &str, path: &Path, env: &dyn Fn(&str) -> Option<String>) -> Inspection {
    let mut report = Report::new(path.display(), text);
    let (root, errors) = DeTable::parse_recoverable(text);
    if !errors.is_empty() {
        for error in &errors {
            report.problem(error.span(), error.message());
        }
        report.sort();
        return Inspection::unreadable(report);
    }
    let directory = path.parent().unwrap_or(Path::new(""));
    let mut root = table::Table::new("the configuration", 0..0, root.get_ref());
    let device = device::read(root.take("device"), directory, env, &mut report);
    let inbox = inbox::read(root.take("inbox"), directory, &mut report);
    let max_children = inbox::read_max_children(root.take("actions"), &mut report);
    let reports = policy::read_default_reports(root.take("report"), &mut report);
    let (gpio, pin_names) = gpio::read(root.take("gpio"), directory, &mut report);
    let scope = rule::Scope { gpio: &gpio, pin_names: &pin_names, reports };
    let rules = rule::read(root.take("rule"), &scope, &mut report);
    root.finish(&mut report);
    if report.problems() == 0 && rules.as_ref().is_some_and(Rules::is_empty) {
        let message = "there is no [[rule]]: every message would be completed and logged, and nothing done";
        report.warning(None, message);
    }
    report.sort();
    Inspection {
        identity: device.identity,
        gpio,
        rules,
        inbox,
        max_children,
        reports,
        report,
        ca_file: device.ca_file,
        token_lifetime: device.token_lifetime,
    }
}

impl Inspection {
    /// The configuration, when there is no problem at all.
    ///
    /// # Errors
    /// All problems and warnings.
    pub fn into_config(self) -> Result<Config, Report> {
        match (self.identity, self.rules, self.inbox) {
            (Some(identity), Some(rules), Some(inbox)) if self.report.problems() == 0 => Ok(Config {
                identity,
                ca_file: self.ca_file,
                token_lifetime: self.token_lifetime,
                gpio: self.gpio,
                rules,
                inbox,
                max_children: self.max_children,
                reports: self.reports,
                warnings: self.report,
            }),
            _ => Err(self.report),
        }
    }

    fn unreadable(report: Report) -> Self {
        Self {
            identity: None,
            gpio: GpioSettings::default(),
            rules: None,
            inbox: None,
            max_children: inbox::DEFAULT_MAX_CHILDREN,
            reports: Reports::default(),
            report,
            ca_file: None,
            token_lifetime: Duration::ZERO,
        }
    }
}

#[cfg(test)]
mod tests;
