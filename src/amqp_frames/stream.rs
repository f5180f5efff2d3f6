//! A client's stream. The AMQP crate reads from it only what it can decode safely.
//!
//! Owns: what happens to input that the guard refuses. Must not know: links, reconnecting.
//!
//! A message in several frames is handed on in its last frame, and the frames before it are empty. So the crate
//! decodes exactly the bytes that were checked. A refused message is replaced, and the connection goes on.

use std::borrow::Cow;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::guard::{Frame, Guard, GuardError, Limits, MessagePart};
use super::note::note;

/// The largest message. A C2D message has at most 64 KiB, the payload of a method 128 KiB.
const MAX_MESSAGE: usize = 256 * 1024;

/// The largest frame, which the client announces in its Open. It has room for the largest message and its
/// performative.
pub(crate) const MAX_FRAME: u32 = 260 * 1024;

const LIMITS: Limits = Limits { frame: MAX_FRAME, message: MAX_MESSAGE };

/// How many bytes are read at a time.
const CHUNK: usize = 16 * 1024;

/// Set when a stream has failed, to the reason: the crate reports only the end of the stream.
pub(crate) type Failed = Arc<OnceLock<io::Error>>;

/// Reads from `inner` what the guard accepts, and fails after that.
pub(crate) struct Guarded<S> {
    inner: S,
    guard: Guard,
    arrived: Box<[u8]>,
    /// The bytes that may be read, and how many of them were.
    ready: Vec<u8>,
    read: usize,
    refused: Option<GuardError>,
    failed: Failed,
}

impl<S> Guarded<S> {
    pub(crate) fn new(inner: S, failed: Failed) -> Self {
        let arrived = vec![0; CHUNK].into_boxed_slice();
        Self { inner, guard: Guard::new(LIMITS), arrived, ready: Vec::new(), read: 0, refused: None, failed }
    }
}

/// Adds the bytes that replace a frame.
fn hand_on(frame: &Frame<'_>, ready: &mut Vec<u8>) -> Result<(), GuardError> {
    let payload = match &frame.part {
        MessagePart::None => {
            ready.extend_from_slice(frame.bytes);
            return Ok(());
        }
        MessagePart::Begun => Cow::default(),
        MessagePart::Whole(Ok(message)) => Cow::Borrowed(message.as_ref()),
        MessagePart::Whole(Err(flaw)) => Cow::Owned(note(*flaw)),
    };
    let size = frame.head.len() + payload.len();
    let length = u32::try_from(size).ok().filter(|length| *length <= MAX_FRAME);
    let length = length.ok_or(GuardError::FrameSize(size))?;
    ready.extend_from_slice(&length.to_be_bytes());
    ready.extend_from_slice(frame.head.get(4..).unwrap_or_default());
    ready.extend_from_slice(&payload);
    Ok(())
}

impl<S> std::fmt::Debug for Guarded<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Guarded").finish_non_exhaustive()
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Guarded<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Self { inner, guard, arrived, ready, read, refused, failed } = self.get_mut();
        loop {
            let rest = ready.get(*read..).unwrap_or_default();
            if !rest.is_empty() {
                let count = rest.len().min(buffer.remaining());
                buffer.put_slice(rest.get(..count).unwrap_or_default());
                *read += count;
                return Poll::Ready(Ok(()));
            }
            (*ready, *read) = (Vec::new(), 0);
            if let Some(error) = refused {
                let reason = format!("the hub sent {error}");
                drop(failed.set(io::Error::new(io::ErrorKind::InvalidData, reason))); // a later failure is only a consequence
                return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
            }
            let mut chunk = ReadBuf::new(arrived);
            ready!(Pin::new(&mut *inner).poll_read(context, &mut chunk))?;
            if chunk.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
            *refused = guard.feed(chunk.filled(), |frame| hand_on(frame, ready)).err();
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Guarded<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}
