//! The doctor: what keeps this gateway from its hub, looked for before or after something went wrong.
//!
//! Owns: the order of the checks, their limits, and what is good or bad about what they find. No pin is claimed, no message
//! received, and the inbox only looked at.
//! Must not know: arguments, how findings are shown, the agent (what is known of a running one is passed in).
//! Used by: `cli::doctor`.
//!
//! Each check is a function that answers with a [`Finding`]. What takes its time runs side by side; findings are told in a
//! fixed order, each as soon as those before it are there.

use std::time::{Duration, SystemTime};

use tokio::time::{Instant, timeout_at};

use crate::config::{Identities, Inspection, counted};
use crate::credentials::{Route, Transport};
use crate::rules::Rules;

mod certificate;
mod clock;
mod finding;
mod identity;
mod network;
mod outputs;
mod programs;
mod server;
mod signin;
mod state;
mod user;
mod workload;

pub use finding::{Check, Finding, Standing};

/// How long a check of the network may take. There are five after one another at most.
const CHECK_LIMIT: Duration = Duration::from_secs(5);
/// How long the files of the secrets, and how long everything else on this machine may take. A disk that hangs is left alone.
const FILES_LIMIT: Duration = Duration::from_secs(5);
const MACHINE_LIMIT: Duration = Duration::from_secs(10);

/// What to examine.
#[derive(Debug)]
pub struct Case {
    /// The configuration as far as it could be read.
    pub inspection: Inspection,
    /// The agent that runs with it.
    pub agent: Agent,
    /// Whether the network is left alone.
    pub offline: bool,
    /// Whether to sign in although that displaces a running agent.
    pub sign_in: bool,
    /// Where the hub answers HTTPS.
    pub https_port: u16,
    /// Where the time comes from.
    pub clock: fn() -> SystemTime,
}

/// What is known of an agent that runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Agent {
    /// Nobody listens on its control socket.
    NotRunning,
    /// It answers.
    Running {
        /// Its process.
        pid: u32,
        /// Why it has no connection; none while it has one.
        disconnected: Option<String>,
    },
    /// One may run; why it cannot be asked.
    Unknown(String),
}

/// Examines everything, and tells each finding in its turn. Takes at most 25 seconds.
pub async fn examine(case: Case, mut tell: impl FnMut(Finding)) {
    let Case { inspection, agent, offline, sign_in, https_port, clock } = case;
    let began = Instant::now();
    let (identities, secret_file) = (inspection.identities(), inspection.secret_file.clone());
    let own: Vec<_> = identities.iter().flat_map(Identities::iter).cloned().collect();
    let secrets = {
        let (inbox, agent) = (inspection.inbox.clone(), agent.clone());
        tokio::task::spawn_blocking(move || {
            let mut found = vec![user::user(inbox.as_ref(), &agent)];
            found.push(identity::secret_file(secret_file.as_deref()));
            found.extend(own.iter().filter_map(|identity| identity::proof(identity, clock())));
            found
        })
    };
    let machine = {
        let (gpio, inbox) = (inspection.gpio.clone(), inspection.inbox.clone());
        let (rules, agent) = (inspection.rules.clone(), agent.clone());
        tokio::task::spawn_blocking(move || {
            let mut found = vec![state::inbox(inbox.as_ref(), &agent)];
            found.extend(programs::programs(rules.as_ref()));
            found.extend(outputs::outputs(&gpio, &agent));
            found
        })
    };

    tell(configuration(&inspection));
    identity::identities(&inspection, identities.as_ref()).into_iter().for_each(&mut tell);
    for finding in finished(began + FILES_LIMIT, Check::User, secrets).await {
        tell(finding);
    }
    tell(running(&agent, inspection.inbox.is_some()));
    let asked = Asked { offline, sign_in, https_port, clock };
    ways(&inspection, identities.as_ref(), &agent, &asked, &mut tell).await;
    for finding in finished(began + MACHINE_LIMIT, Check::Inbox, machine).await {
        tell(finding);
    }
}

/// How the network is to be looked at; see [`Case`].
struct Asked {
    offline: bool,
    sign_in: bool,
    https_port: u16,
    clock: fn() -> SystemTime,
}

/// The way to the hub, and whether it lets in whoever signs in there.
async fn ways(
    inspection: &Inspection,
    identities: Option<&Identities>,
    agent: &Agent,
    asked: &Asked,
    tell: &mut impl FnMut(Finding),
) {
    let Asked { offline, sign_in, https_port, clock } = *asked;
    let device = network::Subject {
        identity: inspection.identity.as_ref(),
        ca_file: inspection.ca_file.as_deref(),
        bundle: None,
        token_lifetime: inspection.token_lifetime,
        transport: inspection.transport,
        route: &inspection.route,
        offline,
        https_port,
        clock,
    };
    let Some(module) = identities.and_then(Identities::module) else {
        let reached = network::examine(&device, tell).await;
        return tell(signin::sign_in(&device, agent, sign_in, reached).await);
    };
    let mut bundle = None;
    if let Some((finding, given)) = workload::workload(&module.identity, offline, clock()).await {
        tell(finding);
        bundle = given;
    }
    // As the agent speaks as a module.
    let route = Route { keep_alive: inspection.route.keep_alive, ..Route::default() };
    let module = network::Subject {
        identity: Some(&module.identity),
        ca_file: module.ca_file.as_deref(),
        bundle: bundle.as_deref(),
        transport: Transport::Mqtt,
        route: &route,
        ..device
    };
    if inspection.identity.is_none() {
        let reached = network::examine(&module, tell).await;
        return tell(signin::sign_in(&module, agent, sign_in, reached).await);
    }
    // The way to the gateway is looked at by the sign-in alone, so that there is one line for each check of the network.
    let reached = network::examine(&device, tell).await;
    let of_device = signin::sign_in(&device, agent, sign_in, reached);
    let (of_device, of_module) = tokio::join!(of_device, signin::sign_in(&module, agent, sign_in, true));
    tell(of_device);
    tell(of_module);
}

/// What a thread found, unless a file or a device keeps it from ending.
async fn finished(end: Instant, first: Check, found: tokio::task::JoinHandle<Vec<Finding>>) -> Vec<Finding> {
    match timeout_at(end, found).await {
        Ok(Ok(findings)) => findings,
        Ok(Err(error)) => std::panic::resume_unwind(error.into_panic()),
        Err(_elapsed) => {
            let detail =
                "a file or a device does not answer, so that this and what follows could not be looked at";
            vec![first.failed(detail, "look into the system's log for a disk or a network share that hangs")]
        }
    }
}

fn configuration(inspection: &Inspection) -> Finding {
    let report = &inspection.report;
    let remedy = "run c2d-agent check, which shows each with its place";
    if let Some(problem) = report.first_problem() {
        let problems = counted(report.problems(), "problem");
        return Check::Configuration.failed(format!("{problems}: {problem}"), remedy);
    }
    let rules = counted(inspection.rules.as_ref().map_or(0, Rules::len), "rule");
    let pins = counted(inspection.gpio.pins.len(), "pin");
    match report.first_warning() {
        Some(warning) => Check::Configuration.warning(format!("{rules}, {pins}; {warning}"), remedy),
        None => Check::Configuration.ok(format!("{rules}, {pins}")),
    }
}

fn running(agent: &Agent, socket_is_known: bool) -> Finding {
    match agent {
        _ if !socket_is_known => {
            Check::Agent.skipped("the configuration does not tell where its control socket is")
        }
        Agent::NotRunning => Check::Agent.ok("none runs with this configuration"),
        Agent::Running { pid, disconnected: None } => {
            Check::Agent.ok(format!("runs as process {pid}, and is connected"))
        }
        Agent::Running { pid, disconnected: Some(reason) } => Check::Agent.warning(
            format!("runs as process {pid}, and is not connected: {reason}"),
            "see the checks below",
        ),
        Agent::Unknown(sentence) => Check::Agent.warned_of(sentence),
    }
}
