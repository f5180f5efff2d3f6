//! A WebSocket as a stream of bytes: it carries MQTT and AMQP if only port 443 is open.
//!
//! Owns: the limits of a WebSocket, its binary messages as bytes, how it is closed and why. Must not know: MQTT, AMQP.
//!
//! - `dial` gets to the hub's HTTPS port through TCP or a `tunnel`, and TLS. For a WebSocket it also does the upgrade.
//!
//! Both protocols may be cut into binary messages at any byte: one message may have a part of a packet, or several
//! packets.
//! Sources: RFC 6455; MQTT 3.1.1, chapter 6; OASIS AMQP WebSocket Binding 1.0, chapter 2.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Sink, SinkExt as _, Stream};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::error::ProtocolError;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message};

mod dial;
mod socket;
mod tunnel;

#[allow(unused_imports)] // Not every feature set dials.
pub(crate) use dial::{DialError, HubStream, SecureStream, Target, dial, secure};

/// The path of the hub's WebSockets for devices and back ends. Source: wire reference 1.1 and 2.1.
pub(crate) const HUB_PATH: &str = "/$iothub/websocket";

/// The path of the WebSockets of an Event Hubs endpoint. Source: `_configuration.py` of azure-eventhub 5.15
/// for Python.
#[allow(dead_code)] // Not every feature set has AMQP.
pub(crate) const SERVICE_BUS_PATH: &str = "/$servicebus/websocket";

/// The subprotocol of MQTT 3.1.1. Source: MQTT 3.1.1, 6.0.
pub(crate) const MQTT: &str = "mqtt";

/// The subprotocol of AMQP 1.0. Source: wire reference 2.1.
#[allow(dead_code)] // Not every feature set has AMQP.
pub(crate) const AMQP: &str = "AMQPWSB10";

/// The largest message and frame that is accepted. The largest packet of either protocol has 256 KiB here.
const MAX_MESSAGE: usize = 512 * 1024;

/// Most bytes of a message to be sent.
const CHUNK: usize = 64 * 1024;

/// How much is collected before a write, and how much at most if the peer does not read.
const WRITE_BUFFER: usize = 2 * CHUNK;
const MAX_WRITE_BUFFER: usize = 8 * CHUNK;

/// The longest reason in a close frame, in bytes. Source: RFC 6455, 5.5.
const MAX_REASON: usize = 123;

/// Why a server closes a WebSocket. Source of the codes: RFC 6455, 7.4.1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Farewell {
    /// The protocol inside has ended (1000).
    Done,
    /// The server stops (1001).
    GoingAway,
    /// The client broke the rules of the protocol inside: a sentence that says which (1002).
    Breach(String),
    /// The client is not accepted: a sentence that says why (1008).
    Refused(String),
}

/// The bytes of a WebSocket's binary messages, in order.
///
/// A text message, a message above 512 KiB and a breach of the protocol end the stream: a close frame tells the peer
/// (1003, 1009 or 1002), and the read fails with [`io::ErrorKind::InvalidData`] and a sentence. A shutdown sends a
/// close frame; after a breach it then reads until the peer has closed. The caller must limit the time of a shutdown.
pub(crate) struct ByteStream<S> {
    inner: WebSocketStream<S>,
    /// Data that has arrived and was not read yet.
    arrived: Bytes,
    /// Why the stream ends. Set while the peer is being told.
    ending: Option<Ending>,
}

impl Farewell {
    fn frame(self) -> CloseFrame {
        let (code, mut reason) = match self {
            Self::Done => (CloseCode::Normal, String::new()),
            Self::GoingAway => (CloseCode::Away, String::new()),
            Self::Breach(reason) => (CloseCode::Protocol, reason),
            Self::Refused(reason) => (CloseCode::Policy, reason),
        };
        let ends = reason.char_indices().map(|(at, c)| at + c.len_utf8());
        reason.truncate(ends.take_while(|end| *end <= MAX_REASON).last().unwrap_or_default());
        CloseFrame { code, reason: reason.into() }
    }
}

struct Ending {
    /// The close frame, until it is buffered.
    frame: Option<Message>,
    reason: String,
}

impl<S: AsyncRead + AsyncWrite + Unpin> ByteStream<S> {
    /// The server's end of an upgraded connection.
    pub(crate) async fn accepted(stream: S) -> Self {
        Self::new(WebSocketStream::from_raw_socket(stream, Role::Server, Some(config())).await)
    }

    fn new(inner: WebSocketStream<S>) -> Self {
        Self { inner, arrived: Bytes::new(), ending: None }
    }

    /// Closes the stream as a server, within `patience`. It sends a close frame, if the peer was not told already, and
    /// then ends the connection. Then it reads until the peer has closed, too: a close with unread data would reset
    /// the connection, and the reason would be lost.
    pub(crate) async fn close(mut self, farewell: Farewell, patience: Duration) {
        let closing = async {
            let told = match self.ending {
                None => self.inner.send(Message::Close(Some(farewell.frame()))).await,
                Some(_) => self.inner.flush().await,
            };
            if let Err(error) = told {
                tracing::debug!(%error, "the peer of a WebSocket has closed it before");
            }
            let raw = self.inner.get_mut();
            raw.shutdown().await?;
            let mut unread = [0; 4 * 1024];
            while raw.read(&mut unread).await? > 0 {}
            io::Result::Ok(())
        };
        match tokio::time::timeout(patience, closing).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::debug!(%error, "the peer of a WebSocket was gone before it was closed")
            }
            Err(_) => tracing::debug!("dropped a WebSocket whose peer did not close it in time"),
        }
    }

    /// Waits until `arrived` has data, or the stream has ended.
    fn poll_arrival(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.arrived.is_empty() {
            if self.ending.is_some() {
                return self.poll_ending(context);
            }
            match ready!(Pin::new(&mut self.inner).poll_next(context)) {
                None => break,
                Some(Ok(Message::Binary(bytes))) => self.arrived = bytes,
                Some(Ok(Message::Text(_)) | Err(Error::Utf8(_))) => {
                    self.end(
                        CloseCode::Unsupported,
                        "a text message came, but only binary messages are allowed",
                    );
                }
                // The crate answers pings itself, and it ends the stream after a close frame.
                Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Close(_) | Message::Frame(_))) => {}
                Some(Err(Error::Capacity(_))) => {
                    self.end(CloseCode::Size, &format!("a message above {} KiB came", MAX_MESSAGE / 1024));
                }
                Some(Err(Error::Io(error))) => return Poll::Ready(Err(error)),
                // There was no close frame: for the protocol inside, the connection was cut.
                Some(Err(Error::Protocol(ProtocolError::ResetWithoutClosingHandshake))) => break,
                Some(Err(error)) => self.end(CloseCode::Protocol, &error.to_string()),
            }
        }
        Poll::Ready(Ok(()))
    }

    fn end(&mut self, code: CloseCode, reason: &str) {
        tracing::debug!(reason, "closing a WebSocket");
        let frame = Some(Message::Close(Some(CloseFrame { code, reason: reason.into() })));
        self.ending = Some(Ending { frame, reason: reason.to_owned() });
    }

    /// Tells the peer why, then fails. A failure to tell the peer is only logged, because the reason matters more.
    fn poll_ending(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(Ending { frame, reason }) = &mut self.ending else { return Poll::Ready(Ok(())) };
        let mut inner = Pin::new(&mut self.inner);
        let told = if frame.is_some() { ready!(inner.as_mut().poll_ready(context)) } else { Ok(()) };
        let told = told.and_then(|()| frame.take().map_or(Ok(()), |frame| inner.as_mut().start_send(frame)));
        let told = match told {
            Ok(()) => ready!(inner.poll_flush(context)),
            failed => failed,
        };
        if let Err(error) = told {
            tracing::debug!(%error, "the peer could not be told why its WebSocket is closed");
        }
        Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, reason.clone())))
    }
}

impl<S> fmt::Debug for ByteStream<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ByteStream").field("arrived", &self.arrived.len()).finish_non_exhaustive()
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for ByteStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        ready!(self.poll_arrival(context))?;
        let count = self.arrived.len().min(buffer.remaining());
        buffer.put_slice(&self.arrived.split_to(count));
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for ByteStream<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut inner = Pin::new(&mut self.inner);
        ready!(inner.as_mut().poll_ready(context)).map_err(broken)?;
        let chunk = bytes.get(..CHUNK).unwrap_or(bytes);
        inner.start_send(Message::Binary(Bytes::copy_from_slice(chunk))).map_err(broken)?;
        Poll::Ready(Ok(chunk.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context).map_err(broken)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let closed = ready!(Pin::new(&mut self.inner).poll_close(context)).map_err(broken);
        if self.ending.is_none() {
            return Poll::Ready(closed);
        }
        // The peer may still be sending the refused message. A close with unread data would reset the connection, and
        // the reason would be lost.
        let mut unread = [0; 4 * 1024];
        loop {
            let mut unread = ReadBuf::new(&mut unread);
            match ready!(Pin::new(self.inner.get_mut()).poll_read(context, &mut unread)) {
                Ok(()) if unread.filled().is_empty() => return Poll::Ready(Ok(())),
                Ok(()) => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

fn config() -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(CHUNK)
        .write_buffer_size(WRITE_BUFFER)
        .max_write_buffer_size(MAX_WRITE_BUFFER)
        .max_message_size(Some(MAX_MESSAGE))
        .max_frame_size(Some(MAX_MESSAGE))
}

fn broken(error: Error) -> io::Error {
    match error {
        Error::Io(error) => error,
        Error::ConnectionClosed | Error::AlreadyClosed | Error::Protocol(ProtocolError::SendAfterClosing) => {
            io::ErrorKind::BrokenPipe.into()
        }
        error => io::Error::other(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::StreamExt as _;
    use tokio::io::DuplexStream;

    async fn pair(room: usize) -> (ByteStream<DuplexStream>, WebSocketStream<DuplexStream>) {
        let (near, far) = tokio::io::duplex(room);
        let far = WebSocketStream::from_raw_socket(far, Role::Client, None).await;
        (ByteStream::accepted(near).await, far)
    }

    #[tokio::test]
    async fn messages_are_one_stream_however_they_are_cut_and_pings_are_answered() {
        let (mut near, mut far) = pair(4 * 1024).await;
        let sending = async {
            for part in [&b"one"[..], b"", b" two"] {
                far.send(Message::binary(part)).await.expect("sent");
                far.send(Message::Ping(Bytes::from_static(b"?"))).await.expect("sent");
            }
            far.close(None).await.expect("closed");
            far
        };
        let mut text = String::new();
        let (read, mut far) = tokio::join!(near.read_to_string(&mut text), sending);
        read.expect("read to the end");
        assert_eq!(text, "one two");
        drop(near);
        let mut pongs = 0;
        while let Some(Ok(message)) = far.next().await {
            pongs += usize::from(message.is_pong());
        }
        assert!(pongs >= 1, "the last ping at least is answered");
    }

    #[tokio::test]
    async fn what_is_written_goes_out_in_bounded_binary_messages() {
        let (mut near, mut far) = pair(4 * 1024).await;
        let sent: Vec<u8> = (0..=255).cycle().take(3 * CHUNK + 5).collect();
        let writing = async {
            near.write_all(&sent).await.expect("written");
            near.shutdown().await.expect("shut down");
        };
        let reading = async {
            let (mut all, mut closed) = (Vec::new(), false);
            while let Some(Ok(message)) = far.next().await {
                match message {
                    Message::Binary(part) => {
                        assert!(part.len() <= CHUNK);
                        all.extend_from_slice(&part);
                    }
                    other => closed |= other.is_close(),
                }
                if closed {
                    break;
                }
            }
            (all, closed)
        };
        let ((), (all, closed)) = tokio::join!(writing, reading);
        assert!(all == sent && closed);
    }

    /// Sends `message`, and returns why the read failed and the code of the close frame.
    async fn refused(message: Message) -> (String, u16) {
        let (mut near, mut far) = pair(2 * MAX_MESSAGE).await;
        let mut byte = [0];
        let far = async {
            far.send(message).await.expect("sent");
            loop {
                match far.next().await {
                    Some(Ok(Message::Close(Some(frame)))) => return u16::from(frame.code),
                    Some(Ok(_)) => {}
                    other => panic!("no close frame: {other:?}"),
                }
            }
        };
        let (read, code) = tokio::join!(near.read(&mut byte), far);
        let error = read.expect_err("refused");
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        (error.to_string(), code)
    }

    #[tokio::test]
    async fn text_and_oversize_messages_end_it_and_the_peer_is_told() {
        let (reason, code) = refused(Message::text("hello")).await;
        assert!(reason.contains("a text message") && code == 1003, "{reason} {code}");
        let (reason, code) = refused(Message::binary(vec![0; MAX_MESSAGE + 1])).await;
        assert!(reason.contains("above 512 KiB") && code == 1009, "{reason} {code}");
    }

    #[tokio::test]
    async fn bytes_that_are_no_frames_end_it() {
        let (near, mut far) = tokio::io::duplex(1024);
        let mut near = ByteStream::accepted(near).await;
        // The frame is not masked, but a client's frames must be.
        far.write_all(&[0x82, 1, 0]).await.expect("written");
        let error = near.read_u8().await.expect_err("refused");
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        let mut close = [0; 4];
        far.read_exact(&mut close).await.expect("a close frame");
        assert_eq!((close[0], u16::from_be_bytes([close[2], close[3]])), (0x88, 1002));
    }
}
