//! The journal: an append-only file of frames, written in batches.
//!
//! Owns: the file's header, the batch that gathers, when a batch is on disk, room before the end. Must not know: what
//! frames mean (`index.rs`), how a file is opened (`replay.rs`), where it is.
//!
//! The file is longer than what is in it: the rest is zeros that were written before. So a batch is one write, and one
//! sync that changes nothing but data. A batch counts as a whole or not at all: its last frame says how many it has.

use std::borrow::Cow;
use std::io;

use bytes::Bytes;

use super::codec;
use super::frame::{self, Frame, HEAD, Kind, Place};
use super::journal_file::{JournalFile, unreadable, write_zeros};
use super::sums::Sums;
use super::trouble::Trouble;
use super::window::Window;

/// The beginning of each inbox.
pub(super) const MAGIC: &[u8; 16] = b"c2d-agent inbox\n";
/// The beginning of inboxes before this format, which were databases.
pub(super) const EARLIER_MAGIC: &[u8] = b"redb";
/// The version of the layout. A file with a higher one is not touched. 1 and 2 were databases.
pub(super) const FORMAT: u32 = 5;
/// The one before, which has no origins. Such a file is read, and copied into one of this version before it is changed:
/// with a frame that the program of that version does not know, it would look damaged to that.
pub(super) const READ_TOO: u32 = 4;
/// Bytes before the first frame: the magic, the format, the salt, the checksum of these, and zeros.
pub(super) const HEADER: u64 = 64;

/// By how much the file is extended at once: little at first, so that a small inbox is a small file.
pub(super) const LEAST_ROOM: u64 = 64 * 1024;
const MOST_ROOM: u64 = 512 * 1024;

/// How much memory the batch that gathers keeps for the next one: enough for a batch of small
/// messages.
const KEPT: usize = 256 * 1024;

/// Bytes of the last frame of a batch at most: there are not that many outcomes.
const MOST_OF_END: u64 = 512;

/// How far a journal is on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct End {
    /// Where the next batch goes.
    pub(super) at: u64,
    /// The number of the next batch.
    pub(super) batch: u32,
}

/// What the header of a file says.
#[derive(Debug, Clone, Copy)]
pub(super) struct HeaderFacts {
    /// Part of each checksum: see `frame.rs`.
    pub(super) salt: u64,
    /// Whether its format is [`READ_TOO`].
    pub(super) is_earlier: bool,
}

#[derive(Debug)]
pub(super) struct Journal {
    file: Box<dyn JournalFile>,
    /// Part of each checksum: see `frame.rs`.
    salt: u64,
    end: End,
    /// The end at the last sync.
    durable: End,
    /// The length of the file.
    length: u64,
    /// Whether the file has no room before its end, because it is not read before it is finished.
    is_unfinished: bool,
    /// Whether its format is [`READ_TOO`].
    is_earlier: bool,
    /// The batch that gathers.
    draft: Vec<u8>,
    frames: u32,
}

impl Journal {
    /// A file whose content up to `end` was read.
    pub(super) fn new(
        file: Box<dyn JournalFile>,
        HeaderFacts { salt, is_earlier }: HeaderFacts,
        end: End,
        length: u64,
    ) -> Self {
        let (draft, frames) = (Vec::new(), 0);
        Self { file, salt, end, durable: end, length, is_unfinished: false, is_earlier, draft, frames }
    }

    /// A file that has a header and nothing else: see [`write_header`].
    /// It gets no room before its end until [`Journal::finish`].
    pub(super) fn empty((file, salt): NewFile) -> Self {
        let end = End { at: HEADER, batch: 0 };
        let header = HeaderFacts { salt, is_earlier: false };
        Self { is_unfinished: true, ..Self::new(file, header, end, LEAST_ROOM) }
    }

    /// From the next batch on, the file has room before its end.
    pub(super) fn finish(&mut self) {
        self.is_unfinished = false;
    }

    /// Gives back a part of a file that is not needed any more. False if nothing is left of it.
    pub(super) fn shrink(&mut self, by: u64) -> io::Result<bool> {
        self.length = self.length.saturating_sub(by);
        self.file.cut(self.length)?;
        self.file.sync()?;
        Ok(self.length > 0)
    }

    /// How much of it is on disk.
    pub(super) fn durable(&self) -> End {
        self.durable
    }

    /// Whether it must be copied before it is changed: see [`READ_TOO`].
    pub(super) fn is_earlier(&self) -> bool {
        self.is_earlier
    }

    /// Bytes that are written.
    pub(super) fn len(&self) -> u64 {
        self.end.at
    }

    /// Appends a frame to the batch that gathers. `write` appends what the frame carries.
    pub(super) fn put(&mut self, kind: Kind, write: impl FnOnce(&mut Vec<u8>)) -> Place {
        self.frames += 1;
        frame::append(&mut self.draft, self.salt, self.end.at, (self.end.batch, kind), write)
    }

    /// Bytes of the batch that gathers.
    pub(super) fn gathered(&self) -> usize {
        self.draft.len()
    }

    /// How much the batch has now: bytes and frames.
    pub(super) fn mark(&self) -> (usize, u32) {
        (self.draft.len(), self.frames)
    }

    /// Takes back what was put after a [`Journal::mark`].
    pub(super) fn take_back(&mut self, (bytes, frames): (usize, u32)) {
        self.draft.truncate(bytes);
        self.frames = frames;
    }

    /// What a frame carries, whether it is on disk or only in the batch that gathers.
    ///
    /// # Errors
    /// When the disk fails, or when it returns other bytes than were written.
    pub(super) fn read(&self, place: Place) -> Result<Bytes, Trouble> {
        let (at, size) = (place.at(), place.size() as usize);
        let bytes = match at.checked_sub(self.end.at).and_then(|from| usize::try_from(from).ok()) {
            Some(from) => Bytes::copy_from_slice(self.draft.get(from..from + size).unwrap_or_default()),
            None => {
                let mut bytes = vec![0; size];
                self.file.read(&mut bytes, at).map_err(unreadable)?;
                bytes.into()
            }
        };
        match frame::read(&bytes, self.salt, at) {
            Some(frame) => Ok(bytes.slice(HEAD..HEAD + frame.payload.len())),
            None => Err(Trouble::Corrupt(format!(
                "the disk returns other data at byte {at} than was written there"
            ))),
        }
    }

    /// Like [`Journal::read`] for a frame that is on disk, by way of a window, for frames that are read in order.
    pub(super) fn read_in_order<'w>(
        &self,
        place: Place,
        window: &'w mut Window,
    ) -> Result<Cow<'w, [u8]>, Trouble> {
        // A window that goes back and forth would read far more than it is asked for. And a sector next to the frame that
        // cannot be read does not matter.
        match window.frame(&*self.file, self.salt, self.end.at, place.at()) {
            Ok(Some(frame)) => Ok(Cow::Borrowed(frame.payload)),
            _ => Ok(Cow::Owned(self.read(place)?.into())),
        }
    }

    /// Ends the batch that gathers, and writes it. It is on disk when this returns. After an error, the journal must
    /// be dropped, and read anew up to [`Journal::durable`].
    pub(super) fn commit(&mut self, sums: &Sums) -> Result<(), Trouble> {
        self.write(sums)?;
        self.sync()
    }

    /// Like [`Journal::commit`], without waiting for the disk.
    pub(super) fn write(&mut self, sums: &Sums) -> Result<(), Trouble> {
        let (frames, next) = (self.frames, self.end.at + self.draft.len() as u64 + MOST_OF_END);
        if next > self.length && !self.is_unfinished {
            self.make_room(next)?;
        }
        let length = self.length;
        self.put(Kind::End, |out| codec::encode_end(out, frames, length, sums));
        let next = self.end.at + self.draft.len() as u64;
        self.file.write(&self.draft, self.end.at).map_err(|error| Trouble::Io("write", error))?;
        self.end = End { at: next, batch: self.end.batch.wrapping_add(1) };
        self.draft.clear();
        // A few large messages must not hold memory for good.
        self.draft.shrink_to(KEPT);
        self.frames = 0;
        Ok(())
    }

    pub(super) fn sync(&mut self) -> Result<(), Trouble> {
        self.file.sync().map_err(|error| Trouble::Io("write", error))?;
        self.durable = self.end;
        Ok(())
    }

    /// Writes zeros from the file's end on, so that `next` and what follows soon is within it. They are on disk before the
    /// batch is written. So if a batch is not whole, the length of its file is nevertheless a multiple of
    /// [`LEAST_ROOM`], unless the file was cut off.
    fn make_room(&mut self, next: u64) -> Result<(), Trouble> {
        let step = (next / 4).clamp(LEAST_ROOM, MOST_ROOM);
        let until = (next + step).next_multiple_of(LEAST_ROOM);
        // The batch itself will be before that.
        let written = write_zeros(&*self.file, self.length.max(next), until);
        written.map_err(|error| Trouble::Io("extend", error))?;
        self.length = until;
        self.file.sync().map_err(|error| Trouble::Io("extend", error))
    }

    /// The frames of the batch that gathers.
    pub(super) fn drafted(&self) -> impl Iterator<Item = Frame<'_>> {
        let mut at = 0;
        std::iter::from_fn(move || {
            let frame = frame::read(self.draft.get(at..)?, self.salt, self.end.at + at as u64)?;
            at += frame::size(frame.payload.len());
            Some(frame)
        })
    }
}

/// A file with nothing but a header, and its salt.
pub(super) type NewFile = (Box<dyn JournalFile>, u64);

/// Makes an empty file an empty journal, and returns its salt. It is on disk when this returns.
pub(super) fn write_header(file: &dyn JournalFile) -> io::Result<u64> {
    let mut header = MAGIC.to_vec();
    let salt = fastrand::u64(..);
    header.extend_from_slice(&FORMAT.to_le_bytes());
    header.extend_from_slice(&salt.to_le_bytes());
    header.extend_from_slice(&crc32c::crc32c(&header).to_le_bytes());
    file.write(&header, 0)?;
    write_zeros(file, header.len() as u64, LEAST_ROOM)?;
    file.sync().map(|()| salt)
}
