//! A part of a journal's file in memory: frames that are read in order cost few reads.
//!
//! Owns: what is read at once. Must not know: what frames mean.

use super::frame::{self, Frame, HEAD, Head};
use super::journal_file::{JournalFile, unreadable};
use super::trouble::Trouble;

/// How much is read at once.
const CHUNK: usize = 128 * 1024;

/// The part that was read last.
#[derive(Debug, Default)]
pub(super) struct Window {
    start: u64,
    bytes: Vec<u8>,
}

impl Window {
    /// `len` bytes from `at` on, of a file with this length: fewer if the file ends before.
    pub(super) fn bytes(
        &mut self,
        file: &dyn JournalFile,
        length: u64,
        at: u64,
        len: usize,
    ) -> Result<&[u8], Trouble> {
        let wanted = length.saturating_sub(at).min(len as u64);
        let is_there = at >= self.start && at + wanted <= self.start + self.bytes.len() as u64;
        if !is_there {
            let size = length.saturating_sub(at).min(len.max(CHUNK) as u64);
            self.bytes.resize(usize::try_from(size).unwrap_or(CHUNK), 0);
            self.start = at;
            file.read(&mut self.bytes, at).inspect_err(|_| self.bytes.clear()).map_err(unreadable)?;
        }
        let from = usize::try_from(at - self.start).unwrap_or(usize::MAX);
        let bytes = self.bytes.get(from..).unwrap_or_default();
        Ok(bytes.get(..len).unwrap_or(bytes))
    }

    /// The frame at `at`. None if there is no whole one, or if it is before the window, which only moves on.
    pub(super) fn frame(
        &mut self,
        file: &dyn JournalFile,
        salt: u64,
        length: u64,
        at: u64,
    ) -> Result<Option<Frame<'_>>, Trouble> {
        if at < self.start {
            return Ok(None);
        }
        let Some(head) = Head::read(self.bytes(file, length, at, HEAD)?, salt, at) else { return Ok(None) };
        Ok(frame::read(self.bytes(file, length, at, head.size())?, salt, at))
    }
}
