//! Opening a journal: reading its batches up to the first that is not whole, and telling its end from damage.
//!
//! Owns: which part of a file counts. Must not know: what frames mean (`index.rs`), where the file is.
//!
//! A batch is written only after the one before is on disk. So after a power cut, at most the last batch is not whole,
//! and it was never answered: the file ends before it. If a frame of a later batch is whole, then the bytes before it were
//! on disk, and have changed since: the file is damaged.
//!
//! A last batch that is whole may be in the memory of the kernel only: its sync has failed, or the process was killed before
//! it. So it is written once more before anything follows it.

use super::codec;
use super::frame::{self, Frame, HEAD, Kind, Place, UNIT};
use super::index::Index;
use super::journal::{EARLIER_MAGIC, End, FORMAT, HEADER, HeaderFacts, Journal, LEAST_ROOM, MAGIC, READ_TOO};
use super::journal_file::{JournalFile, ZEROS, unreadable, write_zeros};
use super::trouble::Trouble;
use super::window::Window;

/// How many frames a batch has at most. More are not worth the memory.
const MOST_FRAMES: usize = 1 << 18;

/// A journal that was read, and from which byte on a batch was left out because it is not whole.
pub(super) type OpenJournal = (Journal, Index, Option<u64>);

/// Reads a journal. With `until`, only so far: what comes after it was never on disk.
///
/// # Errors
/// When the disk fails, or when the file is damaged, or not an inbox of this version.
pub(super) fn open(file: Box<dyn JournalFile>, until: Option<End>) -> Result<OpenJournal, Trouble> {
    let length = file.len().map_err(|error| Trouble::Io("read", error))?;
    let header = check_header(&*file, length)?;
    let mut reader = Reader { file: &*file, salt: header.salt, length, window: Window::default() };
    let mut index = Index::default();
    let mut batch = WaitingBatch::default();
    let mut end = End { at: HEADER, batch: 0 };
    let (mut at, mut begin, mut recorded) = (end.at, end.at, LEAST_ROOM);
    while until.is_none_or(|until| until.at > at)
        && let Some(frame) = reader.frame(at)?.filter(|frame| frame.batch == end.batch)
    {
        let place = Place::new(at, frame.payload.len());
        at += frame::size(frame.payload.len()) as u64;
        if frame.kind != Kind::End {
            batch.add(&frame, place);
            if batch.frames.len() > MOST_FRAMES {
                return Err(damaged(at));
            }
            continue;
        }
        let Some(last) =
            codec::decode_end(frame.payload).filter(|last| last.frames as usize == batch.frames.len())
        else {
            break; // what is left of a longer batch that was not whole
        };
        if last.length > length {
            return Err(cut_off(length));
        }
        batch.add(&frame, place);
        batch.replay(&mut index).map_err(Trouble::Corrupt)?;
        (begin, recorded) = (end.at, last.length.max(at));
        end = End { at, batch: end.batch.wrapping_add(1) };
    }
    index.correct_numbers();
    let mut cut = None;
    match until {
        Some(until) if until == end => reader.clear(end.at, recorded)?,
        Some(until) => return Err(damaged(at.min(until.at))),
        None if reader.has_later_frame(end)? => return Err(damaged(at)),
        None => {
            cut = (!reader.is_clear_after(end.at)?).then_some(end.at);
            // A batch goes beyond the room that was there only after that was extended, as a whole.
            if cut.is_some() && !length.is_multiple_of(LEAST_ROOM) && !reader.is_clear_after(recorded)? {
                return Err(cut_off(length));
            }
            reader.write_again(begin, end.at)?;
            // One byte is enough to have the length of the file on disk.
            reader.clear(
                if cut.is_some() { end.at } else { recorded.saturating_sub(1).max(end.at) },
                recorded,
            )?;
        }
    }
    Ok((Journal::new(file, header, end, recorded), index, cut))
}

/// Checks a file's header, and returns what it says.
///
/// # Errors
/// What is wrong with it.
fn check_header(file: &dyn JournalFile, length: u64) -> Result<HeaderFacts, Trouble> {
    let mut header = [0; MAGIC.len() + 16];
    let there = header.len().min(usize::try_from(length).unwrap_or(usize::MAX));
    file.read(header.get_mut(..there).unwrap_or_default(), 0).map_err(unreadable)?;
    let (checked, sum) = header.split_at(MAGIC.len() + 12);
    if checked.starts_with(EARLIER_MAGIC) {
        return Err(Trouble::Earlier);
    }
    if length < LEAST_ROOM {
        return Err(cut_off(length));
    }
    let Some(rest) = checked.strip_prefix(MAGIC) else {
        return Err(Trouble::Corrupt("it does not begin as an inbox does".to_owned()));
    };
    if crc32c::crc32c(checked).to_le_bytes() != sum {
        return Err(Trouble::Corrupt("its header is damaged".to_owned()));
    }
    let format = rest.first_chunk().map(|bytes| u32::from_le_bytes(*bytes)).unwrap_or_default();
    match format {
        FORMAT | READ_TOO => {
            let salt = rest.last_chunk().map(|bytes| u64::from_le_bytes(*bytes)).unwrap_or_default();
            Ok(HeaderFacts { salt, is_earlier: format == READ_TOO })
        }
        newer if newer > FORMAT => {
            Err(Trouble::Newer(format!("its format is {newer}, and this version knows {FORMAT}")))
        }
        // Its checksum is right, so an earlier version wrote it.
        _ => Err(Trouble::Earlier),
    }
}

fn damaged(at: u64) -> Trouble {
    Trouble::Corrupt(format!("the data at byte {at} is not what was written there"))
}

fn cut_off(length: u64) -> Trouble {
    Trouble::Corrupt(format!("it was cut off at byte {length}"))
}

/// The frames of a batch whose end was not read yet, with what they carry as far as it is needed.
#[derive(Debug, Default)]
struct WaitingBatch {
    frames: Vec<(Kind, Place, std::ops::Range<usize>)>,
    payloads: Vec<u8>,
}

impl WaitingBatch {
    fn add(&mut self, frame: &Frame<'_>, place: Place) {
        // Of messages and reports only the number is needed.
        let needed = match frame.kind {
            Kind::Message | Kind::Report => frame.payload.get(..8).unwrap_or(frame.payload),
            _ => frame.payload,
        };
        let from = self.payloads.len();
        self.payloads.extend_from_slice(needed);
        self.frames.push((frame.kind, place, from..self.payloads.len()));
    }

    fn replay(&mut self, index: &mut Index) -> Result<(), String> {
        for (kind, place, range) in self.frames.drain(..) {
            index.replay(kind, self.payloads.get(range).unwrap_or_default(), place)?;
        }
        self.payloads.clear();
        Ok(())
    }
}

/// A file that is read from its beginning to its end.
struct Reader<'f> {
    file: &'f dyn JournalFile,
    salt: u64,
    length: u64,
    window: Window,
}

impl Reader<'_> {
    fn bytes(&mut self, at: u64, len: usize) -> Result<&[u8], Trouble> {
        self.window.bytes(self.file, self.length, at, len)
    }

    fn frame(&mut self, at: u64) -> Result<Option<Frame<'_>>, Trouble> {
        self.window.frame(self.file, self.salt, self.length, at)
    }

    /// Whether there is a whole frame of a batch after the one that would follow `end`.
    fn has_later_frame(&mut self, end: End) -> Result<bool, Trouble> {
        let mut at = end.at;
        while at < self.length {
            let bytes = self.bytes(at, ZEROS.len())?;
            let zeros = if ZEROS.starts_with(bytes) { bytes.len() } else { leading_zeros(bytes) };
            if zeros >= UNIT {
                // No head begins with so many zeros.
                at += (zeros / UNIT * UNIT) as u64;
                continue;
            }
            // Counted modulo 2^32, as batches are. Each batch before it takes at least a head.
            let most = (at - end.at) / HEAD as u64;
            let is_later = |batch: u32| u64::from(batch.wrapping_sub(end.batch).wrapping_sub(1)) < most;
            if self.frame(at)?.is_some_and(|frame| is_later(frame.batch)) {
                return Ok(true);
            }
            at += UNIT as u64;
        }
        Ok(false)
    }

    /// Whether there are only zeros after `end`.
    fn is_clear_after(&mut self, end: u64) -> Result<bool, Trouble> {
        let mut at = end;
        while at < self.length {
            let bytes = self.bytes(at, ZEROS.len())?;
            if !ZEROS.starts_with(bytes) {
                return Ok(false);
            }
            at += bytes.len() as u64;
        }
        Ok(true)
    }

    /// Writes what is there once more, so that it is on disk after the next sync, whatever became of the last one.
    fn write_again(&mut self, from: u64, until: u64) -> Result<(), Trouble> {
        let mut at = from;
        while at < until {
            let bytes = self.window.bytes(self.file, until, at, ZEROS.len())?;
            self.file.write(bytes, at).map_err(|error| Trouble::Io("write", error))?;
            at += bytes.len() as u64;
        }
        Ok(())
    }

    /// Overwrites what is left of a batch with zeros, so that it is never taken for more, takes away what an extension that
    /// was not finished has left, and waits until all is on disk.
    fn clear(&mut self, from: u64, room: u64) -> Result<(), Trouble> {
        let cleared = || {
            if self.length > room {
                self.file.cut(room)?;
            }
            write_zeros(self.file, from, room)?;
            self.file.sync()
        };
        cleared().map_err(|error| Trouble::Io("write", error))
    }
}

fn leading_zeros(bytes: &[u8]) -> usize {
    bytes.iter().position(|byte| *byte != 0).unwrap_or(bytes.len())
}
