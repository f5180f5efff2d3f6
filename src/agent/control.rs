//! The control socket: how `c2d-agent inbox` and `c2d-agent status` reach the running agent.
//!
//! Owns: the socket, its clients and their limits, requests and answers as JSON lines (`wire.rs`, `view.rs`).
//! Must not know: what the answers are.
//!
//! Whoever can open the socket can run dead letters again and drop messages: it is made for the agent's own user (and
//! root). A task accepts clients and each client is served by a task of its own (`serve.rs`), so that a slow one holds
//! up nobody; they meet the agent in one bounded channel, from which [`Control::next`] takes a request at a time.

use std::io;
use std::path::Path;

use tokio::net::UnixListener;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use super::status::Status;
use crate::inbox::{Query, Reply};

pub(crate) mod client;
mod serve;
mod socket;
pub(crate) mod view;
mod wire;

#[cfg(test)]
mod tests;

pub(crate) use wire::MAX_PAGE;

/// The control socket of this agent. Dropped, its clients are cut off and its file is removed.
#[derive(Debug)]
pub(crate) struct Control {
    requests: mpsc::Receiver<Request>,
    _server: JoinSet<()>,
    _file: socket::SocketFile,
}

/// What a client wants. An answer that nobody waits for any more may be dropped.
#[derive(Debug)]
pub(crate) enum Request {
    Status(oneshot::Sender<Status>),
    Query(Query, oneshot::Sender<Reply>),
}

/// Why there is no control socket.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ControlError {
    /// A living agent has it.
    #[error(
        "another agent listens on the control socket {0}: stop that agent, or give this one an [inbox] socket of its own"
    )]
    InUse(String),
    /// Something else stands there, which is nobody's to remove.
    #[error("{0} is not a socket: move that file away, or set [inbox] socket to another path")]
    NoSocket(String),
    /// More than the kernel takes.
    #[error(
        "the path of the control socket {0} is too long: set [inbox] socket to a path of at most 107 bytes"
    )]
    TooLong(String),
    /// The file system, or the kernel, refuses it.
    #[error("the control socket {path} cannot be made ({source}): {remedy}")]
    Refused { path: String, remedy: &'static str, source: io::Error },
}

impl ControlError {
    fn new(path: &Path, source: io::Error) -> Self {
        let remedy = match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => {
                "create its directory, or set [inbox] socket to a path in a directory that exists"
            }
            io::ErrorKind::PermissionDenied => {
                "let the agent's user write to its directory, or set [inbox] socket to another path"
            }
            _ => "set [inbox] socket to a path on another file system, such as one in /run",
        };
        Self::Refused { path: path.display().to_string(), remedy, source }
    }
}

impl Control {
    /// Makes the socket and begins to serve. The socket of an agent that has died is replaced, that of a living one is
    /// not. Must be called within a runtime.
    ///
    /// # Errors
    /// In a sentence. The socket's directory is the inbox's, which may appear later: trying again is up to the caller.
    pub(crate) fn open(path: &Path) -> Result<Self, ControlError> {
        let (listener, file) = socket::bind(path)?;
        let listener = UnixListener::from_std(listener).map_err(|error| ControlError::new(path, error))?;
        // As many as clients can ask at once: the channel is never full for long.
        let (requests_in, requests) = mpsc::channel(serve::MAX_CLIENTS);
        let mut server = JoinSet::new();
        server.spawn(serve::accept(listener, requests_in));
        Ok(Self { requests, _server: server, _file: file })
    }

    /// The next request. Cancel safe.
    pub(crate) async fn next(&mut self) -> Request {
        match self.requests.recv().await {
            Some(request) => request,
            // Its task never ends by itself; if it did, there would be no more requests.
            None => std::future::pending().await,
        }
    }
}
