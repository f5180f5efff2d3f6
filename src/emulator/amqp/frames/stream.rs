//! A stream whose first bytes were already read, with a kill switch, a guard over the client's frames, and keep-alive
//! frames.
//!
//! Owns: replaying the header, cutting the connection, when the emulator's own frames are sent. Must not know: AMQP
//! beyond its eight bytes.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use super::answers::{Answers, list};
use super::outgoing::{Outgoing, ROOM};
use super::seen::{PEER_MAX_FRAME, Seen};
use crate::amqp_frames::values::Flaw;
use crate::amqp_frames::{Frame, Guard, GuardError, Limits, MessagePart};

/// Largest frame of a client; the emulator announces it in its Open. Some clients make frames as large as they are told
/// and cannot send them: uamqp fails above this. UNVERIFIED: what the hub announces.
pub(in super::super) const MAX_FRAME: u32 = 64 * 1024;

/// Largest D2C message or batch, as the hub limits it: with everything around the body. The crate detaches a link that
/// exceeds it. Source: quotas of IoT Hub.
pub(in super::super) const MAX_D2C: usize = 256 * 1024;

/// Largest message; the crate detaches a link that exceeds it. It is well above the hub's own limit, so that a message
/// that is too large for the hub is only rejected, and the link stays. Source: wire reference 2.1.
pub(in super::super) const MAX_MESSAGE: usize = 1024 * 1024;

const LIMITS: Limits = Limits { frame: MAX_FRAME, message: MAX_MESSAGE };

/// The smallest frame size that a client may ask for. Source: AMQP 1.0, 2.4.1.
const SMALLEST_FRAME: u64 = 512;

/// Most bytes that wait to be written while the client does not read.
const MAX_UNWRITTEN: usize = 512 * 1024;

/// The shortest time between empty frames, even if the client asks for more of them.
const SHORTEST_BEAT: Duration = Duration::from_millis(100);

/// The breach that the guard has found, if any.
#[derive(Clone, Default)]
pub(in super::super) struct Breach {
    reason: Arc<OnceLock<String>>,
    told: CancellationToken,
}

impl Breach {
    /// Why the connection must end, in words.
    pub(in super::super) fn reason(&self) -> Option<&str> {
        self.reason.get().map(String::as_str)
    }

    /// Waits until the guard has found a breach.
    pub(in super::super) async fn told(&self) {
        self.told.cancelled().await;
    }

    fn tell(&self, reason: String) {
        self.reason.get_or_init(|| reason);
        self.told.cancel();
    }
}

/// The host name of the client's Open, once it has come.
pub(in super::super) type OpenedHost = Arc<OnceLock<String>>;

/// Reads `header` and then the bytes of `inner` that the guard allows. After a kill, reads and writes fail.
pub(in super::super) struct FrameStream<S> {
    header: [u8; 8],
    replayed: usize,
    inner: S,
    guard: Guard,
    /// Whole frames that the crate has not read yet, and how many bytes of them it has.
    arrived: Vec<u8>,
    handed_on: usize,
    opened: OpenedHost,
    breach: Breach,
    answers: Answers,
    outgoing: Outgoing,
    /// Half the client's idle time-out. The crate only sends a frame after the full time-out, which is too late.
    /// Source: AMQP 1.0, 2.4.5.
    beat: Option<Interval>,
    /// Whether own frames were added that are not flushed yet.
    owed: bool,
    kill: CancellationToken,
    killed: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl<S> FrameStream<S> {
    pub(in super::super) fn new(
        header: [u8; 8],
        inner: S,
        (opened, breach): (OpenedHost, Breach),
        answers: Answers,
        kill: CancellationToken,
    ) -> Self {
        let killed = Box::pin(kill.clone().cancelled_owned());
        let outgoing = Outgoing::new(answers.clone());
        Self {
            header,
            replayed: 0,
            inner,
            guard: Guard::new(LIMITS),
            arrived: Vec::new(),
            handed_on: 0,
            opened,
            breach,
            answers,
            outgoing,
            beat: None,
            owed: false,
            kill,
            killed,
        }
    }

    fn check(&self) -> io::Result<()> {
        if self.kill.is_cancelled() { Err(io::ErrorKind::ConnectionReset.into()) } else { Ok(()) }
    }
}

impl<S> FrameStream<S> {
    /// Inspects the bytes that the client has sent, acts on its frames, and hands them on.
    fn look_at(&mut self, bytes: &[u8]) -> Result<(), GuardError> {
        let (mut all, mut arrived) = (Vec::new(), std::mem::take(&mut self.arrived));
        let looked_at = self.guard.feed(bytes, |frame| {
            all.extend(Seen::of(frame));
            readable(frame)?;
            match smaller_open(frame) {
                Some(open) => arrived.extend(open),
                None => arrived.extend_from_slice(frame.bytes),
            }
            Ok(())
        });
        self.arrived = arrived;
        for seen in all {
            match seen {
                Seen::Open { host, max_frame, idle } => {
                    if let Some(host) = host {
                        self.opened.get_or_init(|| host);
                    }
                    let max_frame = max_frame.and_then(|size| usize::try_from(size).ok());
                    self.outgoing.max_frame = max_frame.unwrap_or(usize::MAX);
                    self.beat = idle.filter(|idle| *idle > 0).map(|idle| {
                        let period = (Duration::from_millis(idle) / 2).max(SHORTEST_BEAT);
                        let mut beat = interval_at(Instant::now() + period, period);
                        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
                        beat
                    });
                }
                Seen::Decided { channel, first, last, settled } => {
                    self.answers.decided(channel, first..=last, settled);
                }
                Seen::End { channel } => self.answers.ended(channel),
            }
        }
        looked_at
    }
}

/// An Open with a smaller frame size than the client's, so that what the crate sends has room for corrections.
fn smaller_open(frame: &Frame<'_>) -> Option<Vec<u8>> {
    let Some(Seen::Open { max_frame: Some(largest), .. }) = Seen::of(frame) else { return None };
    let smaller = u32::try_from(largest.checked_sub(ROOM).filter(|size| *size >= SMALLEST_FRAME)?).ok()?;
    let size = [&[0x70][..], &smaller.to_be_bytes()].concat();
    let mut fields = frame.fields.clone();
    *fields.get_mut(PEER_MAX_FRAME)? = &size;
    let body = [&b"\x00\x53\x10"[..], &list(&fields)].concat();
    let length = u32::try_from(8 + body.len()).ok()?.to_be_bytes();
    Some([&length[..], frame.bytes.get(4..8)?, &body].concat())
}

/// Ends the connection if a message cannot be decoded. A message that is too large only ends its link, and the crate
/// does that.
fn readable(frame: &Frame<'_>) -> Result<(), GuardError> {
    match &frame.part {
        MessagePart::Whole(Err(Flaw::TooLarge(_)))
        | MessagePart::None
        | MessagePart::Begun
        | MessagePart::Whole(Ok(_)) => Ok(()),
        MessagePart::Whole(Err(flaw)) => Err(GuardError::Message(*flaw)),
    }
}

impl<S: AsyncWrite + Unpin> FrameStream<S> {
    /// Writes complete frames as far as the client accepts them.
    fn poll_frames(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.outgoing.ready.is_empty() {
            let written = ready!(Pin::new(&mut self.inner).poll_write(context, &self.outgoing.ready))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.outgoing.ready.drain(..written);
        }
        Poll::Ready(Ok(()))
    }

    /// Adds the emulator's own frames between the crate's, if there are any. The crate is always reading, so this is
    /// polled when a frame is due.
    fn poll_own_frames(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        if self.outgoing.ready.len() < MAX_UNWRITTEN {
            let mut own = Vec::new();
            self.owed |= self.answers.take(context, &mut own);
            self.outgoing.ready.append(&mut own);
            if self.beat.as_mut().is_some_and(|beat| beat.poll_tick(context).is_ready()) {
                self.outgoing.beat();
                self.owed = true;
                // Polls again to register for the next tick. It is never due at once.
                let _pending = self.beat.as_mut().map(|beat| beat.poll_tick(context));
            }
        }
        if !self.owed {
            return Ok(());
        }
        if let Poll::Ready(written) = self.poll_frames(context) {
            written?;
            if let Poll::Ready(flushed) = Pin::new(&mut self.inner).poll_flush(context) {
                self.owed = false;
                flushed?;
            }
        }
        Ok(())
    }
}

impl<S: AsyncRead + Unpin> FrameStream<S> {
    /// Hands on whole frames. The space of `buffer` is also what the client's bytes are read into.
    fn poll_arrived(&mut self, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            let arrived = self.arrived.get(self.handed_on..).unwrap_or_default();
            if !arrived.is_empty() {
                let count = arrived.len().min(buffer.remaining());
                buffer.put_slice(arrived.get(..count).unwrap_or_default());
                self.handed_on += count;
                return Poll::Ready(Ok(()));
            }
            (self.arrived, self.handed_on) = (Vec::new(), 0);
            let before = buffer.filled().len();
            ready!(Pin::new(&mut self.inner).poll_read(context, buffer))?;
            let bytes = buffer.filled().get(before..).unwrap_or_default().to_vec();
            buffer.set_filled(before);
            if bytes.is_empty() {
                return Poll::Ready(Ok(()));
            }
            if let Err(error) = self.look_at(&bytes) {
                let reason = format!("the client sent {error}");
                tracing::warn!("dropped an AMQP connection: {reason}");
                self.breach.tell(reason);
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, error)));
            }
        }
    }
}

impl<S> std::fmt::Debug for FrameStream<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FrameStream").field("replayed", &self.replayed).finish_non_exhaustive()
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for FrameStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // Polling registers the waker, so that a kill wakes a read that waits.
        if self.killed.as_mut().poll(context).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        if let Some(reason) = self.breach.reason() {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, reason)));
        }
        self.poll_own_frames(context)?;
        let start = self.replayed;
        let rest = self.header.get(start..).unwrap_or_default();
        if rest.is_empty() {
            return self.poll_arrived(context, buffer);
        }
        let count = rest.len().min(buffer.remaining());
        buffer.put_slice(rest.get(..count).unwrap_or_default());
        self.replayed = start + count;
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for FrameStream<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.check()?;
        if self.outgoing.ready.len() >= MAX_UNWRITTEN {
            ready!(self.poll_frames(context))?;
        }
        self.outgoing.push(bytes);
        if let Poll::Ready(written) = self.poll_frames(context) {
            written?;
        }
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check()?;
        ready!(self.poll_frames(context))?;
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check()?;
        ready!(self.poll_frames(context))?;
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};

    fn replayed(header: [u8; 8], near: DuplexStream, kill: CancellationToken) -> FrameStream<DuplexStream> {
        FrameStream::new(header, near, Default::default(), Answers::default(), kill)
    }

    #[tokio::test]
    async fn the_header_comes_first_in_whatever_pieces_it_is_read() {
        let (near, mut far) = tokio::io::duplex(64);
        far.write_all(b"\x00\x00\x00\x08\x02\x00\x00\x00\x00\x00").await.expect("written");
        drop(far);
        let mut stream = replayed(*b"AMQP\x00\x01\x00\x00", near, CancellationToken::new());
        let mut three = [0; 3];
        stream.read_exact(&mut three).await.expect("read");
        let mut others = Vec::new();
        stream.read_to_end(&mut others).await.expect("read");
        let whole = b"AMQP\x00\x01\x00\x00\x00\x00\x00\x08\x02\x00\x00\x00";
        assert_eq!([&three[..], &others].concat(), whole, "only whole frames");
    }

    #[tokio::test]
    async fn the_crate_hears_of_a_smaller_frame_size_than_the_client_has() {
        for (theirs, seen) in [(65_536_u32, 65_472), (576, 512), (575, 575), (512, 512)] {
            let open = |size: u32| {
                let inside = [&b"\xa1\x01c\x40\x70"[..], &size.to_be_bytes()].concat();
                let list = [&[0xc0, 10, 3][..], &inside].concat();
                let body = [&b"\x02\x00\x00\x00\x00\x53\x10"[..], &list].concat();
                [&u32::try_from(4 + body.len()).expect("short").to_be_bytes()[..], &body].concat()
            };
            let (near, mut far) = tokio::io::duplex(64);
            far.write_all(&open(theirs)).await.expect("written");
            drop(far);
            let mut stream = replayed(*b"AMQP\x00\x01\x00\x00", near, CancellationToken::new());
            let mut read = Vec::new();
            stream.read_to_end(&mut read).await.expect("read");
            assert_eq!(read.get(8..), Some(&open(seen)[..]), "{theirs}");
            assert_eq!(stream.outgoing.max_frame, theirs as usize);
        }
    }

    #[tokio::test]
    async fn what_the_guard_refuses_is_not_read() {
        let (near, mut far) = tokio::io::duplex(64);
        far.write_all(b"\x00\x00\x00\x07").await.expect("written");
        let mut stream = replayed([0; 8], near, CancellationToken::new());
        let mut bytes = [0; 12];
        let error = stream.read_exact(&mut bytes).await.expect_err("refused");
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }

    #[tokio::test]
    async fn a_kill_ends_a_read_that_waits() {
        let (near, _far) = tokio::io::duplex(64);
        let kill = CancellationToken::new();
        let mut stream = replayed([0; 8], near, kill.clone());
        let mut header = [0; 8];
        stream.read_exact(&mut header).await.expect("the header");
        let (read, ()) = tokio::join!(stream.read_u8(), async { kill.cancel() });
        assert_eq!(read.expect_err("killed").kind(), io::ErrorKind::ConnectionReset);
    }
}
