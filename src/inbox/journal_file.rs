//! What a journal needs of a file.
//!
//! Owns: reading, writing and syncing at a place; zeros. Must not know: what is in the file, where it is.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use super::trouble::Trouble;

/// A page of zeros.
pub(super) static ZEROS: [u8; 4096] = [0; 4096];

/// What the journal needs of a file. All places are from its beginning.
pub(super) trait JournalFile: fmt::Debug + Send {
    fn len(&self) -> io::Result<u64>;
    /// Fills `out`, or fails with `UnexpectedEof`.
    fn read(&self, out: &mut [u8], at: u64) -> io::Result<()>;
    fn write(&self, data: &[u8], at: u64) -> io::Result<()>;
    /// Makes the file shorter.
    fn cut(&self, length: u64) -> io::Result<()>;
    /// When this returns, all that was written is on disk. After an error, nothing is known of what was written since
    /// the last sync, not even by reading it again.
    fn sync(&self) -> io::Result<()>;
}

impl JournalFile for File {
    fn len(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read(&self, out: &mut [u8], at: u64) -> io::Result<()> {
        self.read_exact_at(out, at)
    }

    fn write(&self, data: &[u8], at: u64) -> io::Result<()> {
        self.write_all_at(data, at)
    }

    fn cut(&self, length: u64) -> io::Result<()> {
        self.set_len(length)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }
}

/// Page by page, because Linux handles what was written in one call as one piece, and would count all of it as written
/// with each batch. `until` is the end of a page.
pub(super) fn write_zeros(file: &dyn JournalFile, from: u64, until: u64) -> io::Result<()> {
    let mut at = from;
    while at < until {
        let some = ZEROS.len() - usize::try_from(at % ZEROS.len() as u64).unwrap_or_default();
        file.write(ZEROS.get(..some).unwrap_or(&ZEROS), at)?;
        at += some as u64;
    }
    Ok(())
}

/// A file that ends too early is damaged. Any other fault is the disk's.
pub(super) fn unreadable(error: io::Error) -> Trouble {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => Trouble::Corrupt("it is shorter than it was".to_owned()),
        _ => Trouble::Io("read", error),
    }
}
