//! The doctor: finds out what keeps this gateway from its hub, before or after something went wrong.
//!
//! Owns: the order of the checks, their limits, and the verdict on what they find. The doctor claims no pin, receives
//! no message, and only reads the inbox.
//! Must not know: arguments, how findings are shown, the agent (facts about a running one are passed in).
//!
//! Each check is a function that returns a [`Finding`]. Slow checks run side by side. Findings are told in a fixed
//! order, each as soon as those before it are there.

use std::time::{Duration, SystemTime};

use tokio::time::{Instant, timeout_at};

use crate::config::{Inspection, counted};
use crate::rules::Rules;

mod certificate;
mod clock;
mod connections;
mod finding;
mod identity;
mod network;
mod outputs;
mod programs;
mod registration;
mod server;
mod signin;
mod state;
mod subject;
mod user;
mod workload;

use connections::SharedFacts;
pub use finding::{Check, Finding, Standing};

/// How long a check of the network or of the workload API may take. At most four of them run one after another.
const CHECK_LIMIT: Duration = Duration::from_secs(5);
/// How long the checks of secret files may take, and how long all other checks of this machine. After that, the doctor
/// does not wait for a disk that hangs.
const FILES_LIMIT: Duration = Duration::from_secs(5);
const MACHINE_LIMIT: Duration = Duration::from_secs(10);

/// The gateway to examine, and how.
#[derive(Debug)]
pub struct Case {
    /// The configuration as far as it could be read.
    pub inspection: Inspection,
    /// The agent that runs with this configuration.
    pub agent: RunningAgent,
    /// Whether to make no use of the network.
    pub offline: bool,
    /// Whether to sign in even if that disconnects a running agent.
    pub sign_in: bool,
    /// The hub's port for HTTPS.
    pub https_port: u16,
    /// Where the time comes from.
    pub clock: fn() -> SystemTime,
}

/// What is known of a running agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RunningAgent {
    /// No process listens on the agent's control socket.
    NotRunning,
    /// The agent answers.
    Running {
        /// The agent's process id.
        pid: u32,
        /// Why the agent has no connection; `None` while it has one.
        disconnected: Option<String>,
    },
    /// An agent may run, but could not be asked, for this reason.
    Unknown(String),
}

/// Examines everything, and tells each finding in order. Takes at most 25 seconds.
pub async fn examine(case: Case, mut tell: impl FnMut(Finding)) {
    let Case { inspection, agent, offline, sign_in, https_port, clock } = case;
    let began = Instant::now();
    let (identities, secret_file) = (inspection.identities(), inspection.secret_file.clone());
    let provisioning = inspection.provisioning.clone();
    let secrets = {
        let (inbox, agent) = (inspection.inbox.clone(), agent.clone());
        let is_device_wanted = inspection.identity_problem.is_some();
        tokio::task::spawn_blocking(move || {
            let mut found = vec![user::user(inbox.as_ref(), &agent)];
            found.extend(identity::secrets(
                identities.as_ref(),
                is_device_wanted,
                secret_file.as_deref(),
                provisioning.as_ref(),
                clock(),
            ));
            found
        })
    };
    let machine = {
        let (gpio, inbox) = (inspection.gpio.clone(), inspection.inbox.clone());
        let (rules, twin, agent) = (inspection.rules.clone(), inspection.twin.clone(), agent.clone());
        tokio::task::spawn_blocking(move || {
            let mut found = vec![state::inbox(inbox.as_ref(), &agent)];
            found.extend(programs::programs(rules.as_ref(), &twin));
            found.extend(outputs::outputs(&gpio, &agent));
            found
        })
    };

    tell(configuration(&inspection, &agent));
    identity::identity(&inspection).into_iter().for_each(&mut tell);
    for finding in finished(began + FILES_LIMIT, Check::User, secrets).await {
        tell(finding);
    }
    tell(running(&agent, inspection.inbox.is_some()));
    let connections = connections::of(&inspection);
    let token_lifetime = inspection.token_lifetime;
    let circumstances = SharedFacts { agent, token_lifetime, offline, sign_in, https_port, clock };
    connections::examine(&connections, &circumstances, &mut tell).await;
    for finding in finished(began + MACHINE_LIMIT, Check::Inbox, machine).await {
        tell(finding);
    }
}

/// The findings of a thread; a failure if a file or a device blocks the thread until `end`.
async fn finished(end: Instant, first: Check, found: tokio::task::JoinHandle<Vec<Finding>>) -> Vec<Finding> {
    match timeout_at(end, found).await {
        Ok(Ok(findings)) => findings,
        // A panic has ended the process, and nothing aborts such a thread.
        Ok(Err(_)) | Err(_) => {
            let detail =
                "a file or a device does not answer, so this check and the checks after it could not run";
            vec![first.failed(detail, "look in the system log for a disk or a network share that hangs")]
        }
    }
}

fn configuration(inspection: &Inspection, agent: &RunningAgent) -> Finding {
    let report = &inspection.report;
    let remedy = "run c2d-agent check, which shows the place of each";
    if let Some(problem) = report.first_problem() {
        let problems = counted(report.problems(), "problem");
        return Check::Configuration.failed(format!("{problems}: {problem}"), remedy);
    }
    // If root runs the doctor, a file of the agent's user is foreign, but right.
    let agents = || user::of_agent(inspection.inbox.as_ref(), agent);
    let foreign = inspection.foreign.iter().find(|one| one.owner().is_none() || one.owner() != agents());
    if let Some(foreign) = foreign {
        let detail = format!("{} {}", foreign.place.display(), foreign.what());
        return Check::Configuration.failed(detail, foreign.remedy());
    }
    let rules = counted(inspection.rules.as_ref().map_or(0, Rules::len), "rule");
    let pins = counted(inspection.gpio.pins.len(), "pin");
    match report.first_warning() {
        Some(warning) => Check::Configuration.warning(format!("{rules}, {pins}; {warning}"), remedy),
        None => Check::Configuration.ok(format!("{rules}, {pins}")),
    }
}

fn running(agent: &RunningAgent, socket_is_known: bool) -> Finding {
    match agent {
        _ if !socket_is_known => {
            Check::Agent.skipped("the configuration does not say where its control socket is")
        }
        RunningAgent::NotRunning => Check::Agent.ok("none runs with this configuration"),
        RunningAgent::Running { pid, disconnected: None } => {
            Check::Agent.ok(format!("runs as process {pid}, and is connected"))
        }
        RunningAgent::Running { pid, disconnected: Some(reason) } => Check::Agent.warning(
            format!("runs as process {pid}, and is not connected: {reason}"),
            "see the checks below",
        ),
        RunningAgent::Unknown(sentence) => Check::Agent.warned_of(sentence),
    }
}
