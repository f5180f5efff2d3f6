//! A WebSocket for a client that can only dial a socket: a local socket of this process carries its bytes.
//!
//! Owns: the socket, the task that carries bytes, the WebSocket. Must not know: MQTT packets.
//!
//! rumqttc dials by itself. Its own WebSockets have no limits, and do not have our words for what failed. So it gets
//! the name of an abstract Unix socket. Such a socket has no file, and no other process can use its name while it is
//! open. Another process that dials the name is refused by its process id. Linux has abstract sockets, and gateways
//! run Linux.

use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener as StdListener};
use std::sync::{Arc, OnceLock};

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::session::dial::{ANSWER_LIMIT, Dial};
use crate::session::failure::{self, Fault};
use crate::websocket::{self, Target};

/// How many bytes are read at a time, in each direction.
const BUFFER: usize = 16 * 1024;

/// A socket that waits for one connection.
pub(super) struct Bridge {
    listener: UnixListener,
    name: String,
}

/// Set when the far side has failed, to the reason.
pub(super) type FarFailure = Arc<OnceLock<io::Error>>;

/// Makes the WebSocket of `dial`; a task in `tasks` then carries its bytes.
///
/// # Errors
/// Why there is no WebSocket.
pub(super) async fn cross(
    bridge: io::Result<Bridge>,
    dial: &Dial,
    tasks: &mut JoinSet<()>,
) -> Result<FarFailure, Fault> {
    let Dial { host, port, tls, proxy, .. } = dial;
    let no_socket =
        |error| Fault::Network { reason: format!("there is no socket for its WebSocket: {error}") };
    let bridge = bridge.map_err(no_socket)?;
    let (path, subprotocol) = (websocket::HUB_PATH, websocket::MQTT);
    let target = Target { host, port: *port, path, subprotocol, tls, proxy: proxy.as_ref() };
    let dialled = timeout(ANSWER_LIMIT, websocket::dial(target)).await;
    let dialled = dialled.map_err(|_elapsed| Fault::Unanswered { within: ANSWER_LIMIT })?;
    let far = dialled.map_err(|error| failure::of_websocket(error.into_io(), host))?;
    Ok(bridge.carry(far, tasks))
}

impl Bridge {
    /// Opens the socket. Call it within a runtime.
    ///
    /// # Errors
    /// When the system gives no socket.
    pub(super) fn open() -> io::Result<Self> {
        let name = format!("c2d-agent-{}-{:016x}", std::process::id(), fastrand::u64(..));
        let listener = StdListener::bind_addr(&SocketAddr::from_abstract_name(&name)?)?;
        listener.set_nonblocking(true)?;
        Ok(Self { listener: UnixListener::from_std(listener)?, name })
    }

    /// The form in which tokio takes an abstract name: with a zero byte before it.
    pub(super) fn path(&self) -> String {
        format!("\0{}", self.name)
    }

    /// Carries bytes between the client and `far`, in a task of `tasks`, until either side ends.
    pub(super) fn carry<S>(self, mut far: S, tasks: &mut JoinSet<()>) -> FarFailure
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let failed = FarFailure::default();
        let told = Arc::clone(&failed);
        tasks.spawn(async move {
            let carried = async {
                let mut near = self.accept().await?;
                tokio::io::copy_bidirectional_with_sizes(&mut near, &mut far, BUFFER, BUFFER).await
            };
            if let Err(error) = carried.await {
                tracing::debug!(%error, "a WebSocket failed");
                // This cannot fail: only this task sets it.
                drop(told.set(error));
            }
        });
        failed
    }

    /// Accepts the connection of this process.
    async fn accept(&self) -> io::Result<UnixStream> {
        loop {
            let (stream, _) = self.listener.accept().await?;
            let own = i32::try_from(std::process::id()).ok();
            match stream.peer_cred()?.pid() {
                pid if pid.is_some() && pid == own => return Ok(stream),
                pid => {
                    tracing::warn!(?pid, "refused another process that connected to a socket of this process")
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    #[tokio::test]
    async fn bytes_are_carried_both_ways_and_the_end_of_either_side_ends_the_other() {
        let (far, mut hub) = tokio::io::duplex(64);
        let (bridge, mut tasks) = (Bridge::open().expect("a socket"), JoinSet::new());
        let path = bridge.path();
        let failed = bridge.carry(far, &mut tasks);
        let mut client = UnixStream::connect(path).await.expect("connected");
        client.write_all(b"ask").await.expect("written");
        let mut three = [0; 3];
        hub.read_exact(&mut three).await.expect("read");
        assert_eq!(&three, b"ask");
        hub.write_all(b"answer").await.expect("written");
        drop(hub);
        let mut rest = String::new();
        client.read_to_string(&mut rest).await.expect("the end");
        assert_eq!(rest, "answer");
        drop(client);
        tasks.join_next().await.expect("a task").expect("ended");
        assert!(failed.get().is_none_or(|error| error.kind() == io::ErrorKind::BrokenPipe));
    }
}
