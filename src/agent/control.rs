//! The control socket: how `c2d-agent inbox` and `c2d-agent status` reach the running agent.
//!
//! Owns: the socket, its clients and their limits, requests and answers as JSON lines (`wire.rs`, `view.rs`). Must
//! not know: what the answers say.
//!
//! A client that can open the socket can run dead letters again and drop messages, so only the agent's own user (and
//! root) may open it. One task accepts clients, and each client has a task of its own (`serve.rs`), so that a slow
//! client delays no other. All of them send to the agent through one bounded channel, from which [`Control::next`]
//! takes one request at a time.

use std::path::Path;

use tokio::net::UnixListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

pub(crate) mod client;
mod serve;
mod socket;
pub(crate) mod view;
mod wire;

#[cfg(test)]
mod tests;

pub(crate) use serve::ControlRequest;
use socket::ControlError;
pub(crate) use wire::MAX_PAGE;

/// The control socket of this agent. When it is dropped, its clients are cut off and its file is removed.
#[derive(Debug)]
pub(crate) struct Control {
    requests: mpsc::Receiver<ControlRequest>,
    _server: JoinSet<()>,
    _file: socket::SocketFile,
}

impl Control {
    /// Makes the socket and begins to serve. It replaces the socket of a dead agent, but not that of a running one.
    /// Must be called within a runtime.
    ///
    /// # Errors
    /// Each is one sentence. The socket is in the inbox's directory, which may appear later, so the caller should try
    /// again.
    pub(crate) fn open(path: &Path) -> Result<Self, ControlError> {
        let (listener, file) = socket::bind(path)?;
        let listener = UnixListener::from_std(listener).map_err(|error| ControlError::new(path, error))?;
        // One place for each client, which asks one question at a time, so the channel is never full for long.
        let (requests_in, requests) = mpsc::channel(serve::MAX_CLIENTS);
        let mut server = JoinSet::new();
        server.spawn(serve::accept(listener, requests_in));
        Ok(Self { requests, _server: server, _file: file })
    }

    /// The next request. Cancel safe.
    pub(crate) async fn next(&mut self) -> ControlRequest {
        match self.requests.recv().await {
            Some(request) => request,
            // The server task never ends by itself. If it did, there would be no more requests.
            None => std::future::pending().await,
        }
    }
}
