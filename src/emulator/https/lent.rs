//! A stream that returns to its owner when its borrower drops it. The AMQP crate drops its stream at any time, but a
//! WebSocket must still be closed in order.
//!
//! Owns: lending and giving back. Must not know: the bytes on the stream.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::oneshot;

/// A lent stream. Its shutdown only flushes it, because the owner closes it. Its drop gives it back.
pub(super) struct Lent<S>(Option<(S, oneshot::Sender<S>)>);

/// Lends `stream`. The receiver gets it back.
pub(super) fn lend<S>(stream: S) -> (Lent<S>, oneshot::Receiver<S>) {
    let (give_back, back) = oneshot::channel();
    (Lent(Some((stream, give_back))), back)
}

impl<S: Unpin> Lent<S> {
    /// The stream is present until the drop.
    fn stream(self: Pin<&mut Self>) -> io::Result<Pin<&mut S>> {
        let there = self.get_mut().0.as_mut();
        there.map(|(stream, _)| Pin::new(stream)).ok_or_else(|| io::ErrorKind::NotConnected.into())
    }
}

impl<S> Drop for Lent<S> {
    fn drop(&mut self) {
        if let Some((stream, give_back)) = self.0.take() {
            // If the owner does not wait, it does not need the stream.
            drop(give_back.send(stream));
        }
    }
}

impl<S> std::fmt::Debug for Lent<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Lent(…)")
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Lent<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.stream() {
            Ok(stream) => stream.poll_read(context, buffer),
            Err(error) => Poll::Ready(Err(error)),
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Lent<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.stream() {
            Ok(stream) => stream.poll_write(context, bytes),
            Err(error) => Poll::Ready(Err(error)),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.stream() {
            Ok(stream) => stream.poll_flush(context),
            Err(error) => Poll::Ready(Err(error)),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_flush(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    #[tokio::test]
    async fn what_is_lent_works_and_comes_back_open() {
        let (near, mut far) = tokio::io::duplex(64);
        let (mut lent, back) = lend(near);
        far.write_all(b"in").await.expect("written");
        let mut two = [0; 2];
        lent.read_exact(&mut two).await.expect("read");
        lent.write_all(b"out").await.expect("written");
        lent.shutdown().await.expect("flushed");
        // The AMQP crate does this, too.
        drop(tokio::io::split(lent));
        let mut near = back.await.expect("back");
        near.write_all(b" and on").await.expect("still open");
        drop(near);
        let mut all = String::new();
        far.read_to_string(&mut all).await.expect("read");
        assert_eq!((&two, all.as_str()), (b"in", "out and on"));
    }
}
