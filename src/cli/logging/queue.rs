//! The queue: log lines on their way to standard error, so that the program never waits for the reader.
//!
//! Owns: the lines that wait, the thread that writes them, how many were lost. Must not know: what is logged.
//!
//! A write to standard error takes as long as its reader needs: for ever, if it is a pipe to a journal that is stuck.
//! The agent's only loop must go on, and so must a shutdown. Lines that have no room in the queue are lost and counted,
//! and the log says so when it can be written again.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd as _;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Most bytes that wait; as many more may be in the hands of the thread that writes.
const MOST_BYTES: usize = 1024 * 1024;
/// How long to wait before another write, if standard error is non-blocking and not ready.
const NOT_READY_PAUSE: Duration = Duration::from_millis(50);

/// The entry to the queue. A write to it never fails and never waits for the reader.
#[derive(Clone, Default)]
pub(super) struct Queue(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: Mutex<Backlog>,
    changed: Condvar,
}

#[derive(Default)]
struct Backlog {
    waiting: Vec<u8>,
    /// The thread has taken lines and has not finished writing them.
    writing: bool,
    /// How many lines were lost since the log last said so.
    lost: usize,
    /// The last write failed. A line about lost lines would be lost, too.
    failing: bool,
}

impl Queue {
    /// Starts the thread that writes to standard error.
    ///
    /// # Errors
    /// When the descriptor cannot be duplicated or the thread cannot start.
    pub(super) fn to_stderr() -> io::Result<Self> {
        // The thread needs its own descriptor: with `io::stderr` it would hold the lock while it waits for the reader.
        let stderr = File::from(io::stderr().as_fd().try_clone_to_owned()?);
        let queue = Self::default();
        let own = queue.clone();
        let thread = std::thread::Builder::new().name("log".to_owned());
        thread.spawn(move || own.write_out(stderr))?;
        Ok(queue)
    }

    /// Waits until everything is written, but at most for `limit`.
    pub(super) fn flush(&self, limit: Duration) {
        let is_busy = |state: &mut Backlog| state.writing || !state.waiting.is_empty();
        // Lines that are not written by then are lost, and there is no other place to say so.
        drop(self.0.changed.wait_timeout_while(self.lock(), limit, is_busy));
    }

    /// The body of the thread: writes the lines that wait, for ever.
    fn write_out(&self, mut out: impl Write) {
        loop {
            let (lines, lost) = self.take();
            if lost > 0 {
                // This line goes to the queue, which is empty now: so the line stands where the lost lines would be.
                tracing::warn!(
                    lines = lost,
                    "log lines were lost, because standard error was not read or could not be written"
                );
            }
            let unwritten = write_all(&mut out, &lines);
            let mut state = self.lock();
            (state.writing, state.failing) = (false, unwritten > 0);
            state.lost += unwritten;
            drop(state);
            self.0.changed.notify_all();
        }
    }

    /// Waits for lines to write. Also returns how many lines were lost; 0 while writing fails.
    fn take(&self) -> (Vec<u8>, usize) {
        let idle = |state: &mut Backlog| state.waiting.is_empty() && (state.failing || state.lost == 0);
        let waited = self.0.changed.wait_while(self.lock(), idle);
        let mut state = waited.unwrap_or_else(PoisonError::into_inner);
        state.writing = true;
        let lost = if state.failing { 0 } else { std::mem::take(&mut state.lost) };
        (std::mem::take(&mut state.waiting), lost)
    }

    /// Ignores poison: no code here can panic while it holds the lock, so the state is sound.
    fn lock(&self) -> MutexGuard<'_, Backlog> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Write for Queue {
    /// Takes whole lines: the subscriber writes no parts of lines.
    fn write(&mut self, lines: &[u8]) -> io::Result<usize> {
        let mut state = self.lock();
        if state.waiting.len() + lines.len() <= MOST_BYTES {
            state.waiting.extend_from_slice(lines);
        } else {
            state.lost += count(lines);
        }
        drop(state);
        self.0.changed.notify_all();
        Ok(lines.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes lines, and returns how many were not written.
fn write_all(out: &mut impl Write, mut lines: &[u8]) -> usize {
    while !lines.is_empty() {
        match out.write(lines) {
            Ok(0) => break,
            Ok(written) => lines = lines.get(written..).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                std::thread::park_timeout(NOT_READY_PAUSE);
            }
            Err(_) => break,
        }
    }
    count(lines)
}

fn count(lines: &[u8]) -> usize {
    lines.iter().filter(|byte| **byte == b'\n').count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

    /// Sends what is written to the test. Each write waits until the test has taken it.
    struct Reader(SyncSender<String>);

    impl Write for Reader {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let text = String::from_utf8(bytes.to_vec()).expect("text");
            self.0.send(text).map_err(|_| io::ErrorKind::BrokenPipe)?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn queue() -> (Queue, Receiver<String>) {
        let (sender, written) = sync_channel(0);
        let queue = Queue::default();
        let own = queue.clone();
        std::thread::spawn(move || own.write_out(Reader(sender)));
        (queue, written)
    }

    const LIMIT: Duration = Duration::from_secs(10);

    #[test]
    fn a_reader_that_does_not_read_holds_up_nobody_and_the_queue_stays_small() {
        let (mut queue, written) = queue();
        let line = [vec![b'x'; 999], vec![b'\n']].concat();
        queue.write_all(&line).expect("never fails");
        while !queue.lock().writing {
            std::thread::yield_now(); // until the thread waits for the reader with the first line
        }
        for _ in 1..10_000 {
            queue.write_all(&line).expect("never fails");
        }
        assert!(queue.lock().waiting.len() <= MOST_BYTES);
        let begun = std::time::Instant::now();
        queue.flush(Duration::from_millis(50));
        assert!(begun.elapsed() < LIMIT / 2, "the flush took {:?}", begun.elapsed());
        let (mut read, expected) = (0, 10_000 - queue.lock().lost);
        while read < expected {
            read += written.recv_timeout(LIMIT).expect("the next lines").lines().count();
        }
        assert_eq!(read, expected, "what was not lost came whole");
        assert!(expected < 10_000, "some were lost");
    }

    #[test]
    fn a_write_that_fails_is_counted_and_the_next_one_is_tried() {
        struct Full(u8);
        impl Write for Full {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.0 += 1;
                match self.0 {
                    1 => Err(io::ErrorKind::Interrupted.into()),
                    2 => Err(io::ErrorKind::WouldBlock.into()),
                    3 => Ok(bytes.len().min(4)),
                    _ => Err(io::ErrorKind::StorageFull.into()),
                }
            }

            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        assert_eq!(write_all(&mut Full(0), b"one\ntwo\nthree\n"), 2);
        assert_eq!(write_all(&mut Full(9), b"one\n"), 1);
    }
}
