//! The file that keeps feedback: whole lines, on disk before the hub forgets them.
//!
//! Owns: appending with fsync, the lock against a second writer, the repair of what a crash left at the end. Must not
//! know: the hub, what a record says.
//!
//! A batch is completed at the hub only after [`Spool::append`]. So a last line that is not whole belongs to a batch
//! that was not completed. The line is cut off, and the hub sends its batch again.

use std::fs::{File, TryLockError};
use std::io::{self, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::OFlags;

use super::output::BEGINNING;
use crate::trust;

/// Longer than any line: a feedback record has ids of at most 128 characters and a few words.
const LONGEST_LINE: u64 = 64 * 1024;

/// Why the spool cannot be used.
#[derive(Debug, thiserror::Error)]
pub(in crate::cli) enum SpoolError {
    /// The file could not be opened at the start.
    #[error("the spool {path} cannot be opened: {}; create its directory, or give another file", trust::in_words(.error))]
    Open { path: PathBuf, error: io::Error },
    /// A pipe or a device cannot keep anything.
    #[error("the spool {0} is not a regular file: give the path of a file that keeps what is written")]
    NotAFile(PathBuf),
    /// Two writers would cut each other's lines.
    #[error("the spool {0} is in use by another c2d-feedback: end that one, or give this one another file")]
    InUse(PathBuf),
    /// Only a line of this program may be cut off.
    #[error(
        "the spool {0} does not end with a line of c2d-feedback: it was not changed; check that it is the \
         right file"
    )]
    Foreign(PathBuf),
    /// A batch could not be written while watching.
    #[error(
        "the spool {path} cannot be written ({error}): its batch stays at the hub for up to an hour; make room, then \
         start again"
    )]
    Write { path: PathBuf, error: io::Error },
}

/// The file, open and locked until this is dropped.
#[derive(Debug)]
pub(in crate::cli) struct Spool {
    file: Arc<File>,
    path: PathBuf,
    end: SpoolEnd,
}

/// How the file ended when it was opened.
#[derive(Debug, PartialEq, Eq)]
enum SpoolEnd {
    Whole,
    /// Only the newline was missing, and has been added.
    Completed,
    /// This many bytes of a line that was not whole were cut off.
    Cut(u64),
    Foreign,
}

impl Spool {
    /// Opens or creates the file and mends its end.
    ///
    /// # Errors
    /// When the file cannot be used. A file that is not a spool is not changed.
    pub(in crate::cli) fn open(path: &Path) -> Result<Self, SpoolError> {
        let failed = |error| SpoolError::Open { path: path.to_owned(), error };
        let found = std::fs::metadata(path);
        if found.as_ref().is_ok_and(|found| !found.is_file()) {
            return Err(SpoolError::NotAFile(path.to_owned()));
        }
        let file = if found.is_ok() {
            trust::open(path, OFlags::RDWR | OFlags::APPEND)
        } else {
            // Everybody may read the file, as far as the umask allows: its reader may be another user than its writer.
            trust::create_exclusive(path, 0o666).and_then(|file| {
                rustix::fs::fcntl_setfl(&file, OFlags::APPEND)?;
                Ok(file)
            })
        };
        let file = file.map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(SpoolError::InUse(path.to_owned())),
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
        if found.is_err() {
            let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
            let parent = File::open(parent.unwrap_or(Path::new(".")));
            parent.and_then(|parent| parent.sync_all()).map_err(failed)?;
        }
        let end = mend(&file).map_err(failed)?;
        if end == SpoolEnd::Foreign {
            return Err(SpoolError::Foreign(path.to_owned()));
        }
        Ok(Self { file: Arc::new(file), path: path.to_owned(), end })
    }

    /// What was mended, for people.
    pub(in crate::cli) fn note(&self) -> Option<String> {
        let path = self.path.display();
        match self.end {
            SpoolEnd::Whole | SpoolEnd::Foreign => None,
            SpoolEnd::Completed => Some(format!("the last line of {path} had no newline, which was added")),
            SpoolEnd::Cut(bytes) => Some(format!(
                "the last line of {path} was incomplete: its {bytes} bytes were removed, and the hub sends \
                 its batch again"
            )),
        }
    }

    /// Appends whole lines, and waits until they are on disk. A thread does the work, because the disk may be slow.
    ///
    /// # Errors
    /// When the lines are not on disk. Then the file is as it was, or ends with a line that the next start cuts off.
    ///
    /// # Cancel safety
    /// When the future is dropped, the lines may or may not be appended.
    pub(super) async fn append(&self, lines: String) -> Result<(), SpoolError> {
        let file = Arc::clone(&self.file);
        let appended = tokio::task::spawn_blocking(move || append(&file, lines.as_bytes())).await;
        appended
            .unwrap_or_else(|error| Err(io::Error::other(error)))
            .map_err(|error| SpoolError::Write { path: self.path.clone(), error })
    }
}

fn append(mut file: &File, lines: &[u8]) -> io::Result<()> {
    let before = file.metadata()?.len();
    let written = file.write_all(lines).and_then(|()| file.sync_data());
    if written.is_err()
        && let Err(error) = file.set_len(before)
    {
        tracing::debug!(%error, "part of a batch was written and could not be removed");
    }
    written
}

/// Makes the file end with a whole line. After a power cut the file may also end with zeros that no program wrote.
fn mend(mut file: &File) -> io::Result<SpoolEnd> {
    let length = file.metadata()?.len();
    let mut tail = vec![0; usize::try_from(length.min(LONGEST_LINE)).unwrap_or_default()];
    let from = length - tail.len() as u64;
    file.read_exact_at(&mut tail, from)?;
    let written = tail.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    let (text, zeros) = tail.split_at(written);
    // Only the bytes after the last newline can be a line that a crash cut.
    let line = match text.iter().rposition(|byte| *byte == b'\n') {
        Some(end) => &text[end + 1..],
        None if from == 0 => text,
        // No line of the spool is that long.
        None => return Ok(SpoolEnd::Foreign),
    };
    if line.is_empty() && zeros.is_empty() {
        return Ok(SpoolEnd::Whole);
    }
    let is_object = serde_json::from_slice::<serde_json::Map<_, serde_json::Value>>(line).is_ok();
    if is_object && zeros.is_empty() {
        file.write_all(b"\n").and_then(|()| file.sync_data())?;
        return Ok(SpoolEnd::Completed);
    }
    if !(line.starts_with(BEGINNING.as_bytes()) || BEGINNING.as_bytes().starts_with(line)) {
        return Ok(SpoolEnd::Foreign);
    }
    let cut = (line.len() + zeros.len()) as u64;
    file.set_len(length - cut).and_then(|()| file.sync_data())?;
    Ok(SpoolEnd::Cut(cut))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str = "{\"event\":\"feedback\",\"messageId\":\"m-1\"}\n";

    fn mended(content: &[u8]) -> (Result<SpoolEnd, String>, Vec<u8>) {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("spool");
        std::fs::write(&path, content).expect("written");
        let opened = Spool::open(&path).map(|spool| spool.end).map_err(|error| error.to_string());
        (opened, std::fs::read(&path).expect("read"))
    }

    #[test]
    fn a_file_that_was_cut_anywhere_ends_with_a_whole_line_and_loses_none() {
        let whole = LINE.repeat(2);
        for length in 0..=whole.len() {
            let (end, after) = mended(&whole.as_bytes()[..length]);
            let lines = length / LINE.len();
            let rest = length % LINE.len();
            let expected = match rest {
                0 => (SpoolEnd::Whole, lines),
                rest if rest == LINE.len() - 1 => (SpoolEnd::Completed, lines + 1),
                rest => (SpoolEnd::Cut(rest as u64), lines),
            };
            assert_eq!((end, after), (Ok(expected.0), LINE.repeat(expected.1).into_bytes()), "{length}");
        }
    }

    #[test]
    fn zeros_of_a_power_cut_are_cut_off() {
        for rest in ["", "{\"eve", LINE.trim_end()] {
            let content = format!("{LINE}{rest}{}", "\0".repeat(100));
            let (end, after) = mended(content.as_bytes());
            assert_eq!((end, after), (Ok(SpoolEnd::Cut(rest.len() as u64 + 100)), LINE.as_bytes().to_vec()));
        }
    }

    #[test]
    fn what_is_not_ours_is_refused_and_left_as_it_is() {
        let long = "x".repeat(100_000);
        for content in ["my notes", "{\"event\":\"other\"", &long, "my notes\0\0"] {
            let (end, after) = mended(content.as_bytes());
            assert!(end.is_err_and(|error| error.contains("it was not changed")), "{content}");
            assert_eq!(after, content.as_bytes());
        }
    }

    #[tokio::test]
    async fn one_writer_at_a_time_appends() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("spool");
        let spool = Spool::open(&path).expect("new");
        let second = Spool::open(&path).expect_err("locked").to_string();
        assert!(second.contains("in use by another c2d-feedback"), "{second}");
        for _ in 0..2 {
            spool.append(LINE.to_owned()).await.expect("appended");
        }
        drop(spool);
        assert_eq!(Spool::open(&path).expect("again").end, SpoolEnd::Whole);
        assert_eq!(std::fs::read_to_string(&path).expect("read"), LINE.repeat(2));
    }

    #[test]
    fn what_keeps_nothing_is_refused() {
        let error = Spool::open(Path::new("/dev/full")).expect_err("a device").to_string();
        assert!(error.contains("/dev/full is not a regular file"), "{error}");
        let error = Spool::open(Path::new("/nowhere/spool")).expect_err("no folder").to_string();
        assert!(error.starts_with("the spool /nowhere/spool cannot be opened: "), "{error}");
    }
}
