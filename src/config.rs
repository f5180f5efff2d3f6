//! The configuration: turns TOML text into a typed, checked [`Config`], and reports every problem with its position.
//!
//! Owns: the file's schema, its defaults and limits. Must not know: tokio, sockets, pins' hardware.
//!
//! A configuration is a main file and the drop-ins in `config.d` beside it. Relative paths in all of them start at the
//! directory of the main file.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::credentials::{DeviceIdentity, ModuleEnvironment, Route, Transport};
use crate::rules::{ReportTo, Rules, Unmatched};
use crate::trust::Foreign;

use key::{Absent, Form, Key};
use report::Place;
use sources::Sources;

mod conditions;
mod device;
mod drop_ins;
mod enrolled;
mod field;
mod files;
mod gpio;
mod identities;
mod inbox;
mod interlock;
mod key;
mod merge;
mod metrics;
mod pin_names;
mod policy;
mod provisioning;
#[cfg(any(feature = "full", feature = "manual"))]
pub(crate) mod reference;
mod report;
mod rule;
mod rule_tests;
mod rule_texts;
#[cfg(any(feature = "full", feature = "manual"))]
pub(crate) mod schema;
mod secret_files;
mod settings;
mod shells;
mod sources;
mod steps;
mod syntax;
mod table;
mod transport;
mod twin;
mod twin_rules;
mod with_twin;

pub use enrolled::Provisioning;
pub use identities::Identities;
pub(crate) use inbox::RECORD_BYTES;
pub use report::Report;
pub(crate) use report::counted;
pub(crate) use report::holds_a_secret;
pub use rule::TwinRule;
pub use rule_tests::{RuleTest, read_tests};
pub use settings::{
    ActiveLevel, GpioBackend, GpioSettings, InboxSettings, KnownBy, LineName, MetricsSettings, OnDisconnect,
    OnExit, PinSettings, TwinSettings,
};
pub use twin_rules::{TwinRules, version_of};
pub use with_twin::{Remote, Texts, TwinPart, inspect_with, load_with};

const DEVICE: Key<Form> = table("device");
const PROVISIONING: Key<Form> = table("provisioning");
const INBOX: Key<Form> = table("inbox");
const METRICS: Key<Form> = table("metrics");
const REPORT: Key<Form> = table("report");
const ACTIONS: Key<Form> = table("actions");
const TWIN: Key<Form> = table("twin");
const ALLOW: Key<Form> = table("allow");
const GPIO: Key<Form> = table("gpio");
const RULE: Key<Form> = table("rule");
const TEST: Key<Form> = table("test");

/// A key at the top that begins a table, which the reference describes as a section.
const fn table(name: &'static str) -> Key<Form> {
    Key { name, kind: Form("a table", name), absent: Absent::Nothing, about: "" }
}

/// A configuration without a problem.
#[derive(Debug, Clone)]
pub struct Config {
    /// Who signs in.
    pub identities: Identities,
    /// How the device is enrolled, if it is.
    pub provisioning: Option<Provisioning>,
    /// A private root for the device, trusted in addition to the system's.
    pub ca_file: Option<PathBuf>,
    /// How long a SAS token is valid.
    pub token_lifetime: Duration,
    /// The protocol between the agent and the hub.
    pub transport: Transport,
    /// How to get to the hub.
    pub route: Route,
    /// The pins.
    pub gpio: GpioSettings,
    /// The rules; the twin's rules are the last ones.
    pub rules: Rules,
    /// Which of the rules are the twin's, in their order.
    pub twin_rules: Vec<TwinRule>,
    /// What the twin may set.
    pub twin: TwinSettings,
    /// The durable record of messages.
    pub inbox: InboxSettings,
    /// Where metrics are served; absent: they are not served.
    pub metrics: Option<MetricsSettings>,
    /// How many programs may run at once.
    pub max_children: usize,
    /// Where the outcomes of messages that match no rule are reported. For rules see their policy.
    pub reports: ReportTo,
    /// What happens to a message that no rule matches.
    pub unmatched: Unmatched,
    /// The main file, then the drop-ins in the order in which they count.
    pub files: Vec<PathBuf>,
    /// The texts that it was made from.
    pub texts: Texts,
    /// What is doubtful but does not stop the agent; often empty.
    pub warnings: Report,
}

impl Config {
    /// The device is enrolled like this now.
    pub fn enrol(&mut self, provisioning: Provisioning) {
        self.identities = self.identities.clone().with_device(provisioning.identity(self.transport));
        self.provisioning = Some(provisioning);
    }

    /// Reads again what came of the enrolment, and returns what is doubtful about it. Nothing happens if the files are
    /// still the same.
    pub fn read_enrolment_again(&mut self) -> Report {
        let mut report = Report::default();
        if let Some(before) = &self.provisioning {
            let now = before.read_again(&self.inbox.path, &mut report);
            if now != *before {
                self.enrol(now);
                return report;
            }
        }
        Report::default()
    }

    /// Keeps the assignment of the configuration in force, unless the device is another one or the file has a newer one.
    pub fn keep_assignment(&mut self, present: Option<&Provisioning>) {
        if let Some(mut provisioning) = self.provisioning.clone() {
            provisioning.or_present(present);
            self.enrol(provisioning);
        }
    }
}

/// A configuration as far as it could be read, for `check` and `doctor`. A part with a problem is absent.
#[derive(Debug)]
pub struct Inspection {
    /// The device that signs in.
    pub identity: Option<DeviceIdentity>,
    /// How the device is enrolled, if it is.
    pub provisioning: Option<Provisioning>,
    /// The module that signs in.
    pub module: Option<ModuleEnvironment>,
    /// The first problem with the device that signs in, or with the lack of one; none without a problem.
    pub identity_problem: Option<String>,
    /// The first problem with the module, whose environment is wrong; none without a problem.
    pub module_problem: Option<String>,
    /// The file that holds the device's key, token or private key; absent if that is in the environment.
    pub secret_file: Option<PathBuf>,
    /// A private root, trusted in addition to the system's.
    pub ca_file: Option<PathBuf>,
    /// How long a SAS token is valid.
    pub token_lifetime: Duration,
    /// The protocol between the agent and the hub.
    pub transport: Transport,
    /// How to get to the hub.
    pub route: Route,
    /// The pins that have no problem.
    pub gpio: GpioSettings,
    /// The rules; absent if one of them has a problem.
    pub rules: Option<Rules>,
    /// Which of the rules are the twin's, in their order; the rules of the files stand before them.
    pub twin_rules: Vec<TwinRule>,
    /// What the twin may set.
    pub twin: TwinSettings,
    /// Where the inbox is: `inbox` and `status` need it even if other parts have problems. Absent if the file cannot
    /// be read, or does not say where the inbox is.
    pub inbox: Option<InboxSettings>,
    /// The main file, then the drop-ins that could be read, in the order in which they count.
    pub files: Vec<PathBuf>,
    /// A sentence for each value that a drop-in replaced, with both places. A long list is cut off.
    pub replaced: Vec<String>,
    /// The places where other users can change the files; the report has a warning for each.
    #[allow(dead_code)] // Only the doctor reads it, and not every build has the doctor.
    pub(crate) foreign: Vec<Foreign>,
    /// Problems and warnings.
    pub report: Report,
    metrics: Option<MetricsSettings>,
    max_children: usize,
    reports: ReportTo,
    /// What happens to a message that no rule matches.
    pub unmatched: Unmatched,
    texts: Texts,
}

/// Reads a configuration file and its drop-ins from the disk. `env` returns a variable of the environment.
/// `C2D_DEVICE_CONNECTION_STRING` names the device if the files do not, and `C2D_CA_FILE` takes precedence over
/// `ca_file`. With `transport`, `C2D_HTTPS_PORT`, `HTTPS_PROXY` and `NO_PROXY` are used, too.
///
/// # Errors
/// All problems at once.
pub fn load(path: &Path, env: &dyn Fn(&str) -> Option<String>) -> Result<Config, Report> {
    inspect(path, env).into_config()
}

/// Reads a configuration file and its drop-ins as far as possible.
pub fn inspect(path: &Path, env: &dyn Fn(&str) -> Option<String>) -> Inspection {
    let mut report = Report::default();
    let sources = drop_ins::read(path, &mut report);
    let foreign = drop_ins::foreign(sources.iter().map(|source| source.path.as_path()));
    for one in &foreign {
        let message = format!("{one} (anyone who can write here decides what the agent runs)");
        report.warning(Place::File(one.place.clone()), message);
    }
    Inspection { foreign, ..inspect_sources(sources, report, env) }
}

/// Reads the text of the configuration file `path` alone. It does not read that file, but the files that the text
/// names.
pub fn inspect_text(text: &str, path: &Path, env: &dyn Fn(&str) -> Option<String>) -> Inspection {
    inspect_texts(&[(path, text)], env)
}

/// Reads texts with their paths as the main file and its drop-ins. It does not read these files.
pub fn inspect_texts(texts: &[(&Path, &str)], env: &dyn Fn(&str) -> Option<String>) -> Inspection {
    let mut sources = Sources::default();
    for (path, text) in texts {
        sources.push(*path, *text);
    }
    inspect_sources(sources, Report::default(), env)
}

/// Reads the texts. `report` has the findings so far.
fn inspect_sources(sources: Sources, mut report: Report, env: &dyn Fn(&str) -> Option<String>) -> Inspection {
    let sources = Arc::new(sources);
    report.set_sources(Arc::clone(&sources));
    let files = sources.iter().map(|source| source.path.clone()).collect();
    let merge::Merged { root, rules, replaced } = merge::read(&sources, &mut report);
    if report.problems() > 0 {
        report.sort();
        return Inspection::unreadable(files, replaced, report);
    }
    let directory = sources.main().and_then(Path::parent).unwrap_or(Path::new(""));
    let mut root = table::Table::new("the configuration", 0..0, &root);
    let problems = report.problems();
    let module = identities::read_module(env, &mut report);
    let module_problem = report.problem_after(problems);
    let is_module = module.is_some() || module_problem.is_some();
    let problems = report.problems();
    let places = secret_files::Places::new(directory, env);
    let provisioning = root.take(&PROVISIONING);
    let is_enrolled = provisioning::is_wanted(provisioning.as_ref(), env);
    let enrolled_at = provisioning.as_ref().map(|field| field.key_place.clone());
    let elsewhere = match (is_enrolled, is_module) {
        (true, _) => Some(device::Elsewhere::Provisioning),
        (false, true) => Some(device::Elsewhere::Module),
        (false, false) => None,
    };
    let (enrolment, secret_file) = provisioning::read(provisioning, &places, env, &mut report).unzip();
    let device = device::read(root.take(&DEVICE), &places, env, elsewhere, &mut report);
    if is_enrolled && device.identity.is_some() {
        // A variable enrols as well as the table does: the message must not name a table that no file has.
        let (scope, string) = (provisioning::ID_SCOPE_VARIABLE, device::CONNECTION_STRING_VARIABLE);
        let (by, and_by, remedy) = match (enrolled_at.is_some(), device.is_of_environment) {
            (true, true) => ("[provisioning]", string, "unset the variable, or remove [provisioning]"),
            (true, false) => ("[provisioning]", "[device]", "keep one"),
            (false, true) => (scope, string, "unset one of the variables"),
            (false, false) => (scope, "[device]", "unset the variable, or remove the device from [device]"),
        };
        let message = format!("the device is named twice, by {by} and by {and_by}: {remedy}");
        report.problem(enrolled_at, message);
    }
    let identity_problem = report.problem_after(problems);
    let inbox = inbox::read(root.take(&INBOX), directory, &mut report);
    let provisioning = enrolment.zip(inbox.as_ref());
    let provisioning =
        provisioning.map(|(enrolment, inbox)| Provisioning::kept(enrolment, &inbox.path, &mut report));
    let enrolled = provisioning.as_ref().map(|provisioning| provisioning.identity(device.transport));
    let identity = device.identity.or(enrolled);
    let metrics = metrics::read(root.take(&METRICS), &mut report);
    let unmatched = policy::read_unmatched(root.take(&policy::UNMATCHED), &mut report);
    let RulePart { max_children, gpio, twin, reports, rules, twin_rules } =
        read_rules(&mut root, &rules, directory, &sources, &mut report);
    // A mistake in a test must not stop an agent, so only `check` reads tests: see `read_tests`.
    root.take(&TEST);
    forms(&mut root, &mut report);
    root.finish(&mut report);
    let idle = rules.as_ref().is_some_and(Rules::is_empty) && !twin.accepts_rules;
    if report.problems() == 0 && idle {
        let message = "there is no [[rule]]: the agent would complete, log and record every message, and do \
                       nothing else";
        report.warning(Place::Whole, message);
    }
    report.sort();
    Inspection {
        identity,
        provisioning,
        module,
        identity_problem,
        module_problem,
        secret_file: device.secret_file.or(secret_file.flatten()),
        ca_file: device.ca_file,
        token_lifetime: device.token_lifetime,
        transport: device.transport,
        route: device.route,
        gpio,
        rules,
        twin_rules,
        twin,
        inbox,
        metrics,
        max_children,
        reports,
        unmatched,
        files,
        replaced,
        foreign: Vec::new(),
        report,
        texts: Texts(sources),
    }
}

/// Explains how a table is written if it has another form or stands elsewhere.
fn forms(root: &mut table::Table<'_>, report: &mut Report) {
    let rules = root.take_unlisted("rules").map(|field| (field, rule::FORM));
    let tests = root.take_unlisted("tests").map(|field| (field, rule_tests::FORM));
    let pins = root.take_unlisted("pins").map(|field| (field, "write [gpio.pins.NAME] for each pin"));
    for (field, form) in rules.into_iter().chain(tests).chain(pins) {
        report.problem(field.key_place, format!("the configuration has no key \"{}\": {form}", field.key));
    }
}

/// The rules, and what they refer to.
struct RulePart {
    max_children: usize,
    gpio: GpioSettings,
    twin: TwinSettings,
    reports: ReportTo,
    rules: Option<Rules>,
    twin_rules: Vec<TwinRule>,
}

/// Reads the rules and what they refer to; relative paths start at `directory`.
fn read_rules(
    root: &mut table::Table<'_>,
    rule_texts: &[rule_texts::RuleText<'_>],
    directory: &Path,
    sources: &Sources,
    report: &mut Report,
) -> RulePart {
    let max_children = inbox::read_max_children(root.take(&ACTIONS), report);
    let reports = policy::read_default_reports(root.take(&REPORT), report);
    let (gpio, pin_names) = gpio::read(root.take(&GPIO), directory, report);
    let twin::ReadTwin { settings: twin, idle } =
        twin::read(root.take(&TWIN), root.take(&ALLOW), &pin_names, max_children, report);
    let scope = rule::RuleScope { gpio: &gpio, pin_names: &pin_names, reports, twin: &twin, sources };
    let rules = rule::read(root.take(&RULE), rule_texts, &scope, report);
    let (rules, twin_rules) = rules.map_or((None, Vec::new()), |(rules, twin)| (Some(rules), twin));
    if let Some(place) = idle
        && rules.as_ref().is_some_and(|rules| !rules.iter().any(|rule| rule.has_command()))
    {
        twin::warn_of_idle(place, report);
    }
    RulePart { max_children, gpio, twin, reports, rules, twin_rules }
}

impl Inspection {
    /// Leaves only what the user who runs this has kept of the enrolment: see [`Provisioning`].
    fn keep_own_files(&mut self) {
        let Some((provisioning, inbox)) = self.provisioning.take().zip(self.inbox.as_ref()) else { return };
        let provisioning = provisioning.of_own_files(&inbox.path, &mut self.report);
        self.identity = Some(provisioning.identity(self.transport));
        self.provisioning = Some(provisioning);
    }

    /// Who signs in, as far as that could be read.
    pub fn identities(&self) -> Option<Identities> {
        Identities::of(self.identity.clone(), self.module.clone())
    }

    /// The rules of the files without the twin's; `None` if one of them has a problem.
    pub fn own_rules(&self) -> Option<Rules> {
        self.rules.as_ref().map(|rules| with_twin::own(rules, &self.twin_rules))
    }

    /// The configuration, if it has no problem.
    ///
    /// # Errors
    /// All problems and warnings.
    pub fn into_config(self) -> Result<Config, Report> {
        match (self.identities(), self.rules, self.inbox) {
            (Some(identities), Some(rules), Some(inbox)) if self.report.problems() == 0 => Ok(Config {
                identities,
                provisioning: self.provisioning,
                ca_file: self.ca_file,
                token_lifetime: self.token_lifetime,
                transport: self.transport,
                route: self.route,
                gpio: self.gpio,
                rules,
                twin_rules: self.twin_rules,
                twin: self.twin,
                inbox,
                metrics: self.metrics,
                max_children: self.max_children,
                reports: self.reports,
                unmatched: self.unmatched,
                files: self.files,
                texts: self.texts,
                warnings: self.report,
            }),
            _ => Err(self.report),
        }
    }

    fn unreadable(files: Vec<PathBuf>, replaced: Vec<String>, report: Report) -> Self {
        Self {
            identity: None,
            provisioning: None,
            module: None,
            identity_problem: None,
            module_problem: None,
            secret_file: None,
            ca_file: None,
            token_lifetime: device::DEFAULT_TOKEN_LIFETIME,
            transport: Transport::default(),
            route: Route::default(),
            gpio: GpioSettings::default(),
            rules: None,
            twin_rules: Vec::new(),
            twin: TwinSettings::default(),
            inbox: None,
            metrics: None,
            max_children: inbox::DEFAULT_MAX_CHILDREN,
            reports: ReportTo::default(),
            unmatched: Unmatched::default(),
            files,
            replaced,
            foreign: Vec::new(),
            report,
            texts: Texts::default(),
        }
    }
}

#[cfg(test)]
mod tests;
