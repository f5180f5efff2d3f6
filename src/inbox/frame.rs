//! One frame of the journal: a length, a kind, a batch, a checksum, and what it carries.
//!
//! Owns: the layout and the check of a frame. Must not know: what is in it, files.
//!
//! | Bytes | Value (little-endian) |
//! |---|---|
//! | 4 | the length of what it carries |
//! | 1 | its kind |
//! | 3 | the first bytes of the CRC32C over the file's salt (u64), its place in the file (u64), length, kind and batch |
//! | 4 | its batch, counted up |
//! | 4 | CRC32C over salt and place, the 12 bytes before, and what it carries |
//! | … | what it carries, and zeros up to a multiple of 8 |
//!
//! The place is part of the checksum, so a frame that the disk moved to another place is not whole. The salt is random,
//! so neither what an earlier file left on the disk nor what a message carries can be taken for a frame. A head has a
//! checksum of its own, so that a message full of forged heads costs a search for frames no more than other bytes.
//!
//! A file with another kind of frame, or another code in `codec.rs`, needs another format version: this one would take it
//! for a batch that is not whole.

use crc32c::{crc32c, crc32c_append};

/// Bytes before what a frame carries.
pub(super) const HEAD: usize = 16;
/// Frames begin at multiples of this.
pub(super) const UNIT: usize = 8;
/// The most that a frame carries. A packet of the hub has at most 256 KiB.
pub(super) const MOST: usize = 1 << 20;

const CHECKED: usize = 12;

/// What a frame says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    /// A record, new or changed: see `codec.rs`.
    Record = 1,
    /// The message of a record.
    Message = 2,
    /// The completions of records are confirmed.
    Confirmed = 3,
    /// Records were removed.
    Removed = 4,
    /// A report that waits for the hub.
    Report = 5,
    /// Reports no longer wait.
    ReportsDone = 6,
    /// Since when pins are on.
    PinsOn = 7,
    /// The end of a batch: how many frames it has, and the sums.
    End = 8,
    /// Where C2D messages came from: see `origins.rs`. Replaces what was told before.
    Origins = 9,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Self> {
        use Kind::{Confirmed, End, Message, Origins, PinsOn, Record, Removed, Report, ReportsDone};
        let kinds = [Record, Message, Confirmed, Removed, Report, ReportsDone, PinsOn, End, Origins];
        kinds.into_iter().find(|kind| *kind as u8 == byte)
    }
}

/// Where a frame is, and how much it carries. 8 bytes, because each record in memory has four of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Place {
    /// In [`UNIT`]s from the beginning of the file: up to 32 GiB.
    unit: u32,
    len: u32,
}

impl Place {
    /// No frame.
    pub(super) const NONE: Self = Self { unit: 0, len: 0 };

    /// A place beyond what can be told is none.
    pub(super) fn new(at: u64, len: usize) -> Self {
        match (u32::try_from(at / UNIT as u64), u32::try_from(len)) {
            (Ok(unit), Ok(len)) => Self { unit, len },
            _ => Self::NONE,
        }
    }

    pub(super) fn is_some(self) -> bool {
        self != Self::NONE
    }

    pub(super) fn at(self) -> u64 {
        u64::from(self.unit) * UNIT as u64
    }

    /// Bytes of the whole frame. 0 for none.
    pub(super) fn size(self) -> u32 {
        if self.is_some() { u32::try_from(size(self.len as usize)).unwrap_or(u32::MAX) } else { 0 }
    }
}

/// Bytes of a frame that carries `len` bytes.
pub(super) fn size(len: usize) -> usize {
    (HEAD + len).next_multiple_of(UNIT)
}

/// A whole frame that was read.
#[derive(Debug, Clone, Copy)]
pub(super) struct Frame<'b> {
    pub(super) kind: Kind,
    pub(super) batch: u32,
    pub(super) payload: &'b [u8],
}

/// What the head of a frame says. What the frame carries is not checked yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Head {
    kind: Kind,
    /// How much the frame carries.
    len: usize,
    batch: u32,
    sum: u32,
}

impl Head {
    /// None if these bytes, which are at `at` in the file, are no head of a frame.
    pub(super) fn read(bytes: &[u8], salt: u64, at: u64) -> Option<Self> {
        let [l0, l1, l2, l3, kind, h0, h1, h2, b0, b1, b2, b3, c0, c1, c2, c3] =
            *bytes.first_chunk::<HEAD>()?;
        let len = usize::try_from(u32::from_le_bytes([l0, l1, l2, l3])).ok().filter(|len| *len <= MOST)?;
        let (batch, sum) = (u32::from_le_bytes([b0, b1, b2, b3]), u32::from_le_bytes([c0, c1, c2, c3]));
        let head = Self { kind: Kind::from_byte(kind)?, len, batch, sum };
        (head_sum(salt, at, len, head.kind, batch) == [h0, h1, h2]).then_some(head)
    }

    /// Bytes of the frame without the zeros after it.
    pub(super) fn size(self) -> usize {
        HEAD + self.len
    }
}

/// Reads the frame at the beginning of `bytes`, which are at `at` in the file. None if there is no whole frame.
pub(super) fn read(bytes: &[u8], salt: u64, at: u64) -> Option<Frame<'_>> {
    let head = Head::read(bytes, salt, at)?;
    let (checked, payload) = (bytes.first_chunk()?, bytes.get(HEAD..head.size())?);
    let Head { kind, batch, sum: expected, .. } = head;
    (sum(salt, at, checked, payload) == expected).then_some(Frame { kind, batch, payload })
}

/// Appends a frame to `buffer`, whose first byte is at `start` in the file. `write` appends what it carries.
pub(super) fn append(
    buffer: &mut Vec<u8>,
    salt: u64,
    start: u64,
    (batch, kind): (u32, Kind),
    write: impl FnOnce(&mut Vec<u8>),
) -> Place {
    let from = buffer.len();
    buffer.extend_from_slice(&[0; HEAD]);
    write(buffer);
    let len = buffer.len() - from - HEAD;
    buffer.resize(from + size(len), 0);
    let at = start + from as u64;
    let [l0, l1, l2, l3] = u32::try_from(len).unwrap_or(u32::MAX).to_le_bytes();
    let [h0, h1, h2] = head_sum(salt, at, len, kind, batch);
    let [b0, b1, b2, b3] = batch.to_le_bytes();
    let head = [l0, l1, l2, l3, kind as u8, h0, h1, h2, b0, b1, b2, b3];
    let sum = sum(salt, at, &head, buffer.get(from + HEAD..from + HEAD + len).unwrap_or_default());
    if let Some(place) = buffer.get_mut(from..from + HEAD) {
        let (checked, checksum) = place.split_at_mut(CHECKED);
        checked.copy_from_slice(&head);
        checksum.copy_from_slice(&sum.to_le_bytes());
    }
    Place::new(at, len)
}

fn sum(salt: u64, at: u64, head: &[u8; CHECKED], payload: &[u8]) -> u32 {
    crc32c_append(crc32c_append(place_sum(salt, at), head), payload)
}

fn head_sum(salt: u64, at: u64, len: usize, kind: Kind, batch: u32) -> [u8; 3] {
    let sum = crc32c_append(place_sum(salt, at), &(len as u64).to_le_bytes());
    let [h0, h1, h2, _] =
        crc32c_append(crc32c_append(sum, &[kind as u8]), &batch.to_le_bytes()).to_le_bytes();
    [h0, h1, h2]
}

fn place_sum(salt: u64, at: u64) -> u32 {
    crc32c_append(crc32c(&salt.to_le_bytes()), &at.to_le_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(at: u64, payload: &[u8]) -> Vec<u8> {
        let mut buffer = Vec::new();
        let place = append(&mut buffer, 5, at, (7, Kind::Report), |out| out.extend_from_slice(payload));
        assert_eq!((place.at(), place.size() as usize), (at, buffer.len()));
        buffer
    }

    #[test]
    fn a_frame_is_read_as_it_was_written_and_only_at_its_place() {
        let bytes = one(64, b"four");
        assert_eq!(bytes.len(), 24);
        let frame = read(&bytes, 5, 64).expect("whole");
        assert_eq!((frame.kind, frame.batch, frame.payload), (Kind::Report, 7, b"four".as_slice()));
        assert!(read(&bytes, 5, 72).is_none(), "elsewhere");
        assert!(read(&bytes, 6, 64).is_none(), "in another file");
        assert!((0..20).all(|len| read(&bytes[..len], 5, 64).is_none()), "cut");
        assert!(read(&bytes[..20], 5, 64).is_some(), "the zeros after it do not count");
    }

    #[test]
    fn any_bit_that_changes_is_noticed() {
        let bytes = one(8, b"a report");
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(read(&damaged, 5, 8).is_none(), "bit {bit}");
        }
        assert!(read(&[0; 64], 0, 0).is_none(), "zeros");
        assert!(read(&[0xff; 64], 0, 0).is_none(), "4 GiB");
    }
}
