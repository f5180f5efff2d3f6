//! Opens the inbox for a command: through the running agent, or its file when no agent runs.
//!
//! Owns: the choice between agent and file. Must not know: what is asked.

use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use anyhow::anyhow;

use crate::agent::control::client::{Client, ClientError};
use crate::config::{self, InboxSettings};
use crate::inbox::{InboxError, InboxFile, Query, Reply};

use super::Failure;

/// How long the file may be in use while no agent answers on the socket: an agent may be starting, or another
/// `c2d-agent inbox` may run.
const PATIENCE: Duration = Duration::from_secs(3);
const PAUSE: Duration = Duration::from_millis(50);

/// What answers for the inbox.
#[derive(Debug)]
pub(super) enum Reached {
    /// The agent, which has the inbox open.
    Agent(Client),
    /// The file, which only this process has open.
    File(Box<InboxFile>),
}

/// Where the inbox is, as the configuration says. Problems in other parts of the configuration do not matter.
///
/// # Errors
/// When the file cannot be read, or `[inbox]` has problems.
pub(super) fn settings(config: &Path) -> Result<InboxSettings, Failure> {
    let inspection = config::inspect(config, &|name| std::env::var(name).ok());
    inspection.inbox.ok_or_else(|| {
        let report = inspection.report;
        Failure::usage(anyhow!("the configuration does not say where the inbox is:\n{report}"))
    })
}

/// Connects to the agent, or else opens the file.
///
/// # Errors
/// When neither is possible.
pub(super) fn reach(settings: &InboxSettings) -> anyhow::Result<Reached> {
    let end = Instant::now() + PATIENCE;
    loop {
        match Client::connect(&settings.socket) {
            Ok(client) => return Ok(Reached::Agent(client)),
            Err(ClientError::NotRunning(_)) => {}
            Err(error) => return Err(error.into()),
        }
        match InboxFile::open(settings) {
            Ok(file) => return Ok(Reached::File(Box::new(file))),
            // Poll, because neither a file nor a socket has an event to wait for with a deadline.
            Err(InboxError::InUse { .. }) if Instant::now() < end => std::thread::park_timeout(PAUSE),
            Err(InboxError::InUse { path, holder }) => {
                return Err(anyhow!(
                    "the inbox {path} is in use by {holder}, but nothing listens on {}: if an agent runs, its log says why it has \
                     no control socket; otherwise wait for the other program that has the inbox open",
                    settings.socket.display()
                ));
            }
            Err(error) => return Err(error.into()),
        }
    }
}

impl Reached {
    /// Whether an agent runs, which acts at once.
    pub(super) fn is_agent(&self) -> bool {
        matches!(self, Self::Agent(_))
    }

    /// Asks the inbox.
    ///
    /// # Errors
    /// When the inbox does not answer. A refusal is an answer.
    pub(super) fn query(&mut self, query: Query) -> anyhow::Result<Reply> {
        match self {
            Self::Agent(client) => Ok(client.query(query)?),
            Self::File(file) => Ok(file.query(query, SystemTime::now())?),
        }
    }
}
