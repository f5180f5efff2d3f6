//! The AMQP 1.0 side: one connection of a back end or of a device.
//!
//! Owns: the connection from its first byte to its end: header, SASL, sessions, the kill switch.
//! Must not know: accepting and TLS (`emulator::listener`), who may sign in (`emulator::registry`), the service client.
//!
//! Wire reference 2.1 to 2.4, 2.7, 4.1 to 4.4 and 8 (lines 11 and 13 to 20). Modules are not served over AMQP: the
//! emulator refuses their addresses and says why. The rules about the AMQP crate in comments were found by tests
//! against the Python and Node SDKs.

use std::net::SocketAddr;
use std::sync::Arc;

use fe2o3_amqp::acceptor::{ConnectionAcceptor, ListenerConnectionHandle, SessionAcceptor};
use fe2o3_amqp::connection::OpenError;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::hubs::Hubs;
use super::listener::ARRIVAL_TIMEOUT;
use super::provisioning::Reception;
use super::registry::Thumbprint;
use claims::Claims;
use frames::{Breach, FrameStream, MAX_FRAME, OpenedHost};

mod address;
mod batch;
mod c2d_link;
mod cbs;
mod claims;
mod condition;
mod consumer_link;
mod convert;
mod device_link;
mod device_message;
mod ending;
mod enrollee;
mod event_message;
mod events_link;
mod feedback_link;
mod frames;
mod management;
mod method_link;
mod registration_link;
mod requests;
mod sasl;
mod selector;
mod session;
mod silent_link;
mod twin_link;

/// Most sessions of one connection. SDKs open one or two.
const MAX_SESSIONS: usize = 16;

/// The emulator's container name in the Open performative.
const CONTAINER: &str = "c2d-agent-emulator";

/// The first eight bytes of AMQP without SASL, and the first five with it. Source: AMQP 1.0, 2.2.
const PLAIN_AMQP: [u8; 8] = *b"AMQP\x00\x01\x00\x00";
const WITH_SASL: &[u8] = b"AMQP\x03";

/// How a connection ended, if the client must be told outside AMQP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum AmqpEnd {
    /// The connection was open and has ended.
    Done,
    /// The client broke a rule of AMQP; the text says which.
    Breach(String),
    /// The client may not sign in; the text says why.
    Refused(String),
}

/// Serves one connection until the client leaves, breaks a rule, or `stop` is cancelled. `certificate` is the one that
/// the client has shown. `reception` is for clients of the provisioning service.
pub(super) async fn serve_connection<S>(
    stream: S,
    certificate: Option<Thumbprint>,
    reception: Reception,
    peer: SocketAddr,
    hubs: Hubs,
    stop: CancellationToken,
) -> AmqpEnd
where
    S: AsyncRead + AsyncWrite + std::fmt::Debug + Send + Unpin + 'static,
{
    // The crate offers no way to cut a connection, and its engines run in their own tasks. So the stream is cut
    // instead.
    let kill = stop.child_token();
    let (claims, breach) = (Claims::new(hubs, certificate, reception, kill.clone()), Breach::default());
    let opening = open(stream, &claims, &breach, kill.clone());
    let opened = tokio::select! {
        () = stop.cancelled() => return AmqpEnd::Done,
        // Without this branch, the crate would wait for the client to close.
        () = breach.told() => Ok(Err(ArrivalError::Guard)),
        opened = tokio::time::timeout(ARRIVAL_TIMEOUT, opening) => opened,
    };
    let end = match opened {
        Err(_) => {
            tracing::info!(%peer, "dropped an AMQP client that did not open its connection in time");
            AmqpEnd::Breach("no AMQP connection was opened in time".to_owned())
        }
        Ok(Err(error)) => {
            tracing::info!(%peer, %error, "an AMQP client could not open its connection");
            error.end()
        }
        Ok(Ok(connection)) => {
            tracing::info!(%peer, "opened an AMQP connection");
            let mut sessions = JoinSet::new();
            run(connection, &mut sessions, peer, &claims).await;
            kill.cancel();
            claims.disconnect();
            // The stream of these sessions is dead, so they end by themselves.
            while sessions.join_next().await.is_some() {}
            tracing::info!(%peer, "ended an AMQP connection");
            AmqpEnd::Done
        }
    };
    kill.cancel();
    breach.reason().map_or(end, |reason| AmqpEnd::Breach(reason.to_owned()))
}

/// Why a connection was not established.
#[derive(Debug, thiserror::Error)]
enum ArrivalError {
    #[error("the first bytes cannot be read: {0}")]
    Io(#[from] std::io::Error),
    #[error("the first bytes are not those of AMQP 1.0")]
    NotAmqp,
    #[error("what came was refused")]
    Guard,
    #[error(transparent)]
    Open(#[from] OpenError),
}

impl ArrivalError {
    fn end(&self) -> AmqpEnd {
        match self {
            Self::Open(OpenError::SaslError { .. }) => {
                AmqpEnd::Refused("the sign-in was refused: check the user name and the token".to_owned())
            }
            Self::Io(_) => AmqpEnd::Breach("no AMQP header came".to_owned()),
            Self::NotAmqp => AmqpEnd::Breach(self.to_string()),
            Self::Open(_) | Self::Guard => {
                AmqpEnd::Breach("the first frames are not those of an AMQP connection".to_owned())
            }
        }
    }
}

async fn open<S>(
    mut stream: S,
    claims: &Arc<Claims>,
    breach: &Breach,
    kill: CancellationToken,
) -> Result<ListenerConnectionHandle, ArrivalError>
where
    S: AsyncRead + AsyncWrite + std::fmt::Debug + Send + Unpin + 'static,
{
    let mut header = [0; 8];
    stream.read_exact(&mut header).await?;
    let has_sasl = header.starts_with(WITH_SASL);
    if !has_sasl && header != PLAIN_AMQP {
        // The standard requires this: send the header that the server understands, then close.
        stream.write_all(&PLAIN_AMQP).await?;
        stream.shutdown().await?;
        return Err(ArrivalError::NotAmqp);
    }
    let opened = OpenedHost::default();
    let told = (opened.clone(), breach.clone());
    let stream = FrameStream::new(header, stream, told, claims.answers.clone(), kill);
    // The emulator advertises no idle time-out: the crate enforces it strictly, and the Python SDK sends nothing
    // between two messages.
    let highest_channel = u16::try_from(MAX_SESSIONS - 1).unwrap_or(u16::MAX);
    let builder = ConnectionAcceptor::builder()
        .container_id(CONTAINER)
        .max_frame_size(MAX_FRAME)
        .channel_max(highest_channel);
    let accepted = if has_sasl {
        builder.sasl_acceptor(sasl::Sasl::new(Arc::clone(claims))).build().accept(stream).await
    } else {
        builder.build().accept(stream).await
    };
    let accepted = accepted?;
    if let Some(host) = opened.get() {
        claims.opened(host);
    }
    Ok(accepted)
}

/// Accepts sessions until the connection ends. The handle must live until then: dropping it ends the connection.
async fn run(
    mut connection: ListenerConnectionHandle,
    sessions: &mut JoinSet<()>,
    peer: SocketAddr,
    claims: &Arc<Claims>,
) {
    let pairs = twin_link::Pairs::default();
    let acceptor = SessionAcceptor::builder().handle_max(session::HIGHEST_HANDLE).build();
    loop {
        let begun = tokio::select! {
            Some(_ended) = sessions.join_next() => continue,
            begun = connection.next_incoming_session() => begun,
        };
        let Some(begun) = begun else { return };
        if sessions.len() >= MAX_SESSIONS {
            tracing::warn!(%peer, "closed an AMQP connection: it has {MAX_SESSIONS} sessions already");
            return;
        }
        match acceptor.accept_incoming_session(begun, &mut connection).await {
            Ok(handle) => drop(sessions.spawn(session::run(handle, Arc::clone(claims), pairs.clone(), peer))),
            Err(error) => tracing::info!(%peer, %error, "a session could not begin"),
        }
    }
}

#[cfg(test)]
mod tests;
