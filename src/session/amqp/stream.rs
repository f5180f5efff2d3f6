//! TCP and TLS, or a WebSocket, and the AMQP connection over them.
//!
//! Owns: a stream that can be cut, because the crate's tasks outlive their handles. Must not know: links.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use fe2o3_amqp::Connection;
use fe2o3_amqp::connection::{ConnectionHandle, OpenError};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use crate::amqp_frames::{Failed, Guarded, MAX_FRAME};
use crate::session::carrier::Carrier;
use crate::session::dial::Dial;
use crate::session::failure::{self, Fault};
use crate::websocket::{self, Target};

use super::fault;

/// The stream that AMQP runs on.
pub(super) type HubLink = Guarded<Cuttable>;

/// Connects, and checks the certificate against the name. The caller limits the time.
pub(super) async fn dial(dial: &Dial, cut: CancellationToken) -> Result<(HubLink, Failed), Fault> {
    let stream: Box<dyn RawStream> = match dial.carrier {
        Carrier::Tls => Box::new(over_tls(dial).await?),
        Carrier::WebSocket => Box::new(over_websocket(dial).await?),
    };
    let failed = Failed::default();
    let killed = Box::pin(cut.clone().cancelled_owned());
    let patience = dial.keep_alive * 2;
    let silence = Box::pin(tokio::time::sleep(patience));
    let cuttable = Cuttable { stream, cut, killed, failed: Arc::clone(&failed), patience, silence };
    Ok((Guarded::new(cuttable, Arc::clone(&failed)), failed))
}

async fn over_websocket(dial: &Dial) -> Result<websocket::HubStream, Fault> {
    let Dial { host, port, tls, proxy, .. } = dial;
    let (path, subprotocol) = (websocket::HUB_PATH, websocket::AMQP);
    let target = Target { host, port: *port, path, subprotocol, tls, proxy: proxy.as_ref() };
    websocket::dial(target).await.map_err(|error| failure::of_websocket(error.into_io(), host))
}

async fn over_tls(dial: &Dial) -> Result<TlsStream<TcpStream>, Fault> {
    let host = dial.host.as_str();
    let name = ServerName::try_from(host.to_owned())
        .map_err(|_| Fault::Tls { sentence: format!("\"{host}\" is not a host name that TLS can check") })?;
    let of_io = |error: io::Error| match failure::from_io(&error, host) {
        Fault::Closed => Fault::ClosedBeforeSignIn,
        fault => fault,
    };
    let stream = TcpStream::connect((host, dial.port)).await.map_err(of_io)?;
    stream.set_nodelay(true).map_err(of_io)?;
    TlsConnector::from(dial.tls.clone()).connect(name, stream).await.map_err(of_io)
}

/// Opens AMQP without SASL: a token follows, or the certificate was enough. Source: wire reference 2.2.
pub(super) async fn open(
    dial: &Dial,
    stream: HubLink,
    failed: &Failed,
) -> Result<ConnectionHandle<()>, Fault> {
    let opened = Connection::builder()
        .container_id(uuid::Uuid::new_v4().to_string())
        .hostname(dial.hub.as_str())
        // TLS is done already; for "amqps" the crate would start its own.
        .scheme("amqp")
        .max_frame_size(MAX_FRAME)
        // The crate announces half of it to the peer, which is the keep-alive. Its own limit is longer than that of
        // the stream.
        .idle_time_out(u32::try_from(dial.keep_alive.as_millis() * 2).unwrap_or(u32::MAX))
        .open_with_stream(stream)
        .await;
    let of_io = |error: &io::Error| match failure::from_io(error, &dial.host) {
        Fault::Closed => Fault::ClosedBeforeSignIn,
        fault => fault,
    };
    opened.map_err(|error| match (error, failed.get()) {
        (OpenError::RemoteClosedWithError(error), _) => fault::of_error(&error, (dial.clock)()),
        (OpenError::ProtocolHeaderMismatch(_), _) => {
            Fault::Protocol { reason: "it does not answer with AMQP".into() }
        }
        (_, Some(error)) => of_io(error),
        (OpenError::Io(error), None) => of_io(&error),
        (error, None) => Fault::Protocol { reason: error.to_string() },
    })
}

/// A stream that AMQP can run on.
trait RawStream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> RawStream for S {}

/// A stream that fails when it is cut or when the peer is silent for too long, and keeps the first failure.
pub(super) struct Cuttable {
    stream: Box<dyn RawStream>,
    failed: Failed,
    cut: CancellationToken,
    killed: Pin<Box<WaitForCancellationFutureOwned>>,
    /// How long the peer may be silent, and how much of that time is left.
    patience: Duration,
    silence: Pin<Box<Sleep>>,
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

    /// Fails a wait for a peer that was silent for too long.
    fn patient<T>(&mut self, context: &mut Context<'_>, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        let gone = polled.is_pending() && self.silence.as_mut().poll(context).is_ready();
        self.noted(if gone { Poll::Ready(Err(io::ErrorKind::TimedOut.into())) } else { polled })
    }

    /// Keeps the first failure, and hands it on in the form that the crate needs.
    fn noted<T>(&self, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        polled.map_err(|error| {
            let kind = error.kind();
            drop(self.failed.set(error)); // a later failure is only a consequence
            kind.into()
        })
    }
}

impl AsyncRead for Cuttable {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // This poll registers the waker, so that a cut reaches a read that waits.
        if self.killed.as_mut().poll(context).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        let polled = Pin::new(&mut self.stream).poll_read(context, buffer);
        if polled.is_ready() {
            let until = Instant::now() + self.patience;
            self.silence.as_mut().reset(until);
        }
        self.patient(context, polled)
    }
}

impl AsyncWrite for Cuttable {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.check()?;
        let polled = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.patient(context, polled)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check()?;
        let polled = Pin::new(&mut self.stream).poll_flush(context);
        self.patient(context, polled)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check()?;
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
