//! TCP, TLS and the AMQP connection over them.
//!
//! Owns: a stream that can be cut, since the crate's tasks outlive their handles. Must not know: links.
//! Used by: `session::amqp`.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use fe2o3_amqp::Connection;
use fe2o3_amqp::connection::{ConnectionHandle, OpenError};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use crate::session::failure::{self, Fault};
use crate::session::mqtt::Dial;

use super::fault;

/// Largest frame. A C2D message has at most 64 KiB and comes in several frames otherwise.
const MAX_FRAME: u32 = 64 * 1024;
/// A peer that is silent for so long is gone; it is told to let half of it pass at most. Source: wire reference 2.1.
const IDLE_MS: u32 = 240_000;

/// Connects, and checks the certificate against the name. The caller bounds the time.
pub(super) async fn dial(dial: &Dial, cut: CancellationToken) -> Result<Cuttable, Fault> {
    let host = dial.host.as_str();
    let name = ServerName::try_from(host.to_owned())
        .map_err(|_| Fault::Tls { sentence: format!("\"{host}\" is not a host name that TLS can check") })?;
    let of_io = |error: io::Error| match failure::from_io(&error, host) {
        Fault::Closed => Fault::ClosedBeforeSignIn,
        fault => fault,
    };
    let stream = TcpStream::connect((host, dial.port)).await.map_err(of_io)?;
    stream.set_nodelay(true).map_err(of_io)?;
    let stream = TlsConnector::from(dial.tls.clone()).connect(name, stream).await.map_err(of_io)?;
    Ok(Cuttable { stream, killed: Box::pin(cut.clone().cancelled_owned()), cut })
}

/// Opens AMQP without SASL: a token follows, or the certificate was enough. Source: wire reference 2.2.
pub(super) async fn open(dial: &Dial, stream: Cuttable) -> Result<ConnectionHandle<()>, Fault> {
    let opened = Connection::builder()
        .container_id(uuid::Uuid::new_v4().to_string())
        .hostname(dial.hub.as_str())
        // TLS is done: with "amqps" the crate would start its own.
        .scheme("amqp")
        .max_frame_size(MAX_FRAME)
        .idle_time_out(IDLE_MS)
        .open_with_stream(stream)
        .await;
    opened.map_err(|error| match error {
        OpenError::Io(error) => match failure::from_io(&error, &dial.host) {
            Fault::Closed => Fault::ClosedBeforeSignIn,
            fault => fault,
        },
        OpenError::RemoteClosedWithError(error) => fault::of_error(&error, (dial.clock)()),
        OpenError::ProtocolHeaderMismatch(_) => {
            Fault::Protocol { reason: "it does not answer with AMQP".into() }
        }
        error => Fault::Protocol { reason: error.to_string() },
    })
}

/// A TLS stream that fails once it is cut.
pub(super) struct Cuttable {
    stream: TlsStream<TcpStream>,
    cut: CancellationToken,
    killed: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl std::fmt::Debug for Cuttable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cuttable").finish_non_exhaustive()
    }
}

impl Cuttable {
    fn check(&self) -> io::Result<()> {
        if self.cut.is_cancelled() { Err(io::ErrorKind::ConnectionReset.into()) } else { Ok(()) }
    }
}

impl AsyncRead for Cuttable {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // Registers the waker, so that a cut reaches a read that waits.
        if self.killed.as_mut().poll(context).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Cuttable {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.check()?;
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check()?;
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check()?;
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
