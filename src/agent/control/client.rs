//! The client of the control socket: asks a running agent.
//!
//! Owns: one connection, its time-outs, its errors in words. Must not know: what is asked for, and how it is shown.
//! It blocks, because the command line has nothing else to do.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use rustix::io::Errno;

use super::socket;
use super::wire::{ANSWER_LIMIT, ControlAnswer, ControlCall, MAX_ANSWER_BYTES, line};
use crate::agent::status::Status;
use crate::inbox::{Query, Reply};

/// How long the agent may take to accept a client, and to take a request.
const SEND_LIMIT: Duration = Duration::from_secs(5);
/// How long the agent may be silent. It gives up itself a little earlier.
const SILENCE_LIMIT: Duration = ANSWER_LIMIT.saturating_add(Duration::from_secs(5));

/// A connection to a running agent.
#[derive(Debug)]
pub(crate) struct Client {
    stream: BufReader<UnixStream>,
    path: String,
}

/// Why a running agent cannot be asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    /// There is no socket, or nothing listens on it.
    #[error("no agent runs: nothing listens on {0}")]
    NotRunning(String),
    /// The socket belongs to another user.
    #[error(
        "the control socket {0} belongs to another user: run this as the user who runs the agent, or as root"
    )]
    Forbidden(String),
    /// The agent refused, in one sentence.
    #[error("the agent says: {0}")]
    Agent(String),
    /// It did not accept the client, or it hangs.
    #[error("the agent that listens on {0} does not answer: look at its log, and restart it if it hangs")]
    Silent(String),
    /// Something else listens, or an agent of another version.
    #[error(
        "what listens on {path} speaks another version ({reason}): use the program that the agent was \
         started from"
    )]
    Foreign { path: String, reason: String },
    /// The connection broke.
    #[error("the connection to the agent on {path} broke ({source}): it may be stopping; try again")]
    Broken { path: String, source: io::Error },
}

impl Client {
    /// Connects to the agent that listens on `path`.
    ///
    /// # Errors
    /// [`ClientError::NotRunning`] if no agent runs.
    pub(crate) fn connect(path: &Path) -> Result<Self, ClientError> {
        let shown = path.display().to_string();
        let stream = match socket::connect(path, Some(SEND_LIMIT)) {
            Ok(socket) => UnixStream::from(socket),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::CONNREFUSED) => {
                return Err(ClientError::NotRunning(shown));
            }
            Err(Errno::ACCESS | Errno::PERM) => return Err(ClientError::Forbidden(shown)),
            Err(Errno::AGAIN) => return Err(ClientError::Silent(shown)),
            Err(error) => return Err(ClientError::Broken { path: shown, source: error.into() }),
        };
        let limited = stream
            .set_read_timeout(Some(SILENCE_LIMIT))
            .and_then(|()| stream.set_write_timeout(Some(SEND_LIMIT)));
        match limited {
            Ok(()) => Ok(Self { stream: BufReader::new(stream), path: shown }),
            Err(source) => Err(ClientError::Broken { path: shown, source }),
        }
    }

    /// The agent's status.
    ///
    /// # Errors
    /// If it does not answer, or not as it should.
    pub(crate) fn status(&mut self) -> Result<Status, ClientError> {
        match self.ask(&ControlCall::Status {})? {
            ControlAnswer::Status(status) => Ok(*status),
            ControlAnswer::Error(sentence) => Err(ClientError::Agent(sentence)),
            ControlAnswer::Reply(_) => Err(self.foreign("an answer to another question")),
        }
    }

    /// The answer of the agent's inbox.
    ///
    /// # Errors
    /// If the agent does not answer, or not as it should.
    pub(crate) fn query(&mut self, query: Query) -> Result<Reply, ClientError> {
        match self.ask(&ControlCall::Query(query))? {
            ControlAnswer::Reply(view) => Reply::try_from(*view).map_err(|error| self.foreign(error)),
            ControlAnswer::Error(sentence) => Err(ClientError::Agent(sentence)),
            ControlAnswer::Status(_) => Err(self.foreign("an answer to another question")),
        }
    }

    fn ask(&mut self, call: &ControlCall) -> Result<ControlAnswer, ClientError> {
        let sent = self.stream.get_mut().write_all(&line(call));
        let mut text = Vec::new();
        // Read even if nothing could be sent: if there are too many clients, the agent says so and closes the
        // connection.
        let read = self.stream.by_ref().take(MAX_ANSWER_BYTES).read_until(b'\n', &mut text);
        if text.last() == Some(&b'\n') {
            return serde_json::from_slice(&text).map_err(|error| self.foreign(error));
        }
        if text.len() as u64 == MAX_ANSWER_BYTES {
            return Err(self.foreign("its answer is too long"));
        }
        let source = match (sent, read) {
            (Err(error), _) | (Ok(()), Err(error)) => error,
            (Ok(()), Ok(_)) => io::ErrorKind::UnexpectedEof.into(),
        };
        let path = self.path.clone();
        Err(match source.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => ClientError::Silent(path),
            _ => ClientError::Broken { path, source },
        })
    }

    fn foreign(&self, reason: impl ToString) -> ClientError {
        ClientError::Foreign { path: self.path.clone(), reason: reason.to_string() }
    }
}
