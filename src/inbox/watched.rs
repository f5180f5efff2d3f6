//! A file in which no block changes without an error from redb's view.
//!
//! Owns: a checksum of each block that was read or written since the file was opened. Must not know: what the blocks
//! mean.
//!
//! redb checks a file when it is opened and trusts it from then on. If the disk later returns other data for a block,
//! redb can panic while it cleans up after a panic. That ends the process, with its pins. With this backend, such a
//! block is a read error, and the file is then opened and checked again.

use std::collections::HashMap;
use std::io;
use std::ops::Bound;
use std::sync::{Mutex, MutexGuard, PoisonError};

use redb::{BackendError, StorageBackend};

/// redb's page size. It reads and writes whole pages, except for the file's header.
const BLOCK: usize = 4096;

/// A backend that remembers the checksum of each block.
#[derive(Debug)]
pub(super) struct Watched<B> {
    inner: B,
    /// Checksums by block number. They take 16 bytes for each 4 KiB of the file.
    sums: Mutex<HashMap<u64, u64>>,
}

impl<B> Watched<B> {
    pub(super) fn new(inner: B) -> Self {
        Self { inner, sums: Mutex::default() }
    }

    fn sums(&self) -> MutexGuard<'_, HashMap<u64, u64>> {
        // A panic cannot leave a half-made change in the map.
        self.sums.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<B: StorageBackend> StorageBackend for Watched<B> {
    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.inner.read(offset, out)?;
        let mut sums = self.sums();
        for (number, block) in blocks(offset, out) {
            let sum = sum(block);
            if *sums.entry(number).or_insert(sum) != sum {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "the disk returned other data than was written",
                ));
            }
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.inner.set_len(len)?;
        self.sums().retain(|number, _| number.saturating_add(1).saturating_mul(BLOCK as u64) <= len);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.inner.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut sums = self.sums();
        // Forget all blocks of this write, because a block may be written only in part, and the write may fail.
        let end = offset.saturating_add(data.len() as u64).div_ceil(BLOCK as u64);
        for number in offset / BLOCK as u64..end {
            sums.remove(&number);
        }
        self.inner.write(offset, data)?;
        sums.extend(blocks(offset, data).map(|(number, block)| (number, sum(block))));
        Ok(())
    }

    fn close(&self) -> io::Result<()> {
        self.inner.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.inner.try_lock_range(start, end)
    }

    fn try_lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.inner.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.inner.lock_range(start, end)
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.inner.lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.inner.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.inner.query_lock_range(start, end)
    }
}

/// The whole blocks in `data`, which is at `offset`, with their numbers.
fn blocks(offset: u64, data: &[u8]) -> impl Iterator<Item = (u64, &[u8])> {
    let first = offset.div_ceil(BLOCK as u64);
    let before = usize::try_from(first * BLOCK as u64 - offset).unwrap_or(usize::MAX);
    (first..).zip(data.get(before..).unwrap_or_default().chunks_exact(BLOCK))
}

/// A checksum that always differs if one word differs. It protects against a disk that errs, not against forgery.
fn sum(block: &[u8]) -> u64 {
    const ODD: u64 = 0x9e37_79b9_7f4a_7c15;
    let (words, _) = block.as_chunks::<8>();
    words.iter().fold(0, |sum: u64, word| (sum.rotate_left(5) ^ u64::from_le_bytes(*word)).wrapping_mul(ODD))
}

#[cfg(test)]
mod tests {
    use super::*;
    use redb::backends::InMemoryBackend;

    #[test]
    fn a_block_that_comes_back_otherwise_is_an_error() {
        let watched = Watched::new(InMemoryBackend::new());
        watched.set_len(4 * BLOCK as u64).expect("a length");
        watched.write(BLOCK as u64, &[1; 2 * BLOCK]).expect("written");
        let mut out = vec![0; 3 * BLOCK];
        watched.read(0, &mut out).expect("as it was written");
        watched.inner.write(2 * BLOCK as u64 + 7, &[2]).expect("damaged");
        watched.read(0, &mut out[..2 * BLOCK]).expect("not that block");
        assert_eq!(watched.read(0, &mut out).expect_err("that block").kind(), io::ErrorKind::InvalidData);
        // A block that was written only in part is not checked any more.
        watched.write(2 * BLOCK as u64, &[3; 9]).expect("written");
        watched.read(0, &mut out).expect("read");
    }

    #[test]
    fn only_whole_blocks_count() {
        let numbers =
            |offset, len| blocks(offset, &vec![0; len]).map(|(number, _)| number).collect::<Vec<_>>();
        assert_eq!(numbers(0, 2 * BLOCK), [0, 1]);
        assert_eq!(numbers(1, 2 * BLOCK), [1]);
        assert_eq!(numbers(0, 320), [0u64; 0]);
        assert_eq!(numbers(BLOCK as u64 - 1, BLOCK), [0u64; 0]);
    }
}
