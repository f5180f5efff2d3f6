//! The lock of an inbox: one process has it, and the others are told which.
//!
//! Owns: the lock file beside the inbox, who holds it. Must not know: what an inbox is kept in, how long anybody waits.
//!
//! The kernel keeps the lock and lets it go with the process, however that ends: a file that is left behind means nothing. It
//! stands beside the file to which `[inbox] path` leads, so that a link and another spelling of the path come to the same lock. It
//! is never removed: whoever opened it before would hold a lock that others do not see. That it is there says one more thing: an
//! inbox has been here, and what is here now is a damaged one if it is none.

use std::fmt;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Read as _};
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, MetadataExt as _, fchown};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::process::geteuid;

use super::file::is_inbox;
use super::trouble::{Failure, InboxError};
use crate::trust::{self, directory_of, foreign_in, sync_directory};

/// Most of a lock file that is read.
const MAX_BYTES: u64 = 64;

/// Who has the inbox, as far as that is known.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Holder {
    pid: Option<u32>,
    /// The number counts in another container.
    is_elsewhere: bool,
}

/// `process 123`
impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.pid {
            Some(pid) if self.is_elsewhere => write!(f, "process {pid} of another container"),
            Some(pid) => write!(f, "process {pid}"),
            None => f.write_str("another process"),
        }
    }
}

/// This process's claim to an inbox. Clones are the same claim; the inbox is let go with the last one.
#[derive(Debug, Clone)]
pub(crate) struct Claim {
    inbox: PathBuf,
    /// Whether what is missing is made: an agent does, the command line does not.
    create: bool,
    held: Arc<Mutex<Option<Held>>>,
}

/// The inbox is this process's, as long as the file is open.
#[derive(Debug)]
enum Held {
    Locked {
        _file: File,
    },
    /// The file system knows no locks.
    Trusted,
}

impl Claim {
    pub(super) fn new(inbox: &Path, create: bool) -> Self {
        Self { inbox: inbox.to_owned(), create, held: Arc::default() }
    }

    /// Where the inbox is.
    pub(super) fn inbox(&self) -> &Path {
        &self.inbox
    }

    /// Makes the claim good, unless it is.
    ///
    /// # Errors
    /// [`InboxError::InUse`] while another process has the inbox, [`InboxError::Foreign`] when that cannot be known, or what is
    /// wrong with the disk.
    pub(crate) fn make_good(&self) -> Result<(), InboxError> {
        self.take().map_err(|failure| failure.into_error(&self.inbox))
    }

    /// Takes the lock, unless this claim has it. Never waits for another process, but the disk may take its time.
    pub(super) fn take(&self) -> Result<(), Failure> {
        let mut held = self.held();
        if held.is_none() {
            *held = Some(self.lock()?);
        }
        Ok(())
    }

    fn held(&self) -> MutexGuard<'_, Option<Held>> {
        // It is written in one step.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> Result<Held, Failure> {
        let path = self.lock_path()?;
        let file = self.open(&path)?;
        match file.try_lock() {
            Ok(()) => {
                note(&file);
                Ok(Held::Locked { _file: file })
            }
            Err(fs::TryLockError::WouldBlock) => Err(Failure::InUse(Holder::read(&file))),
            Err(fs::TryLockError::Error(error)) if knows_no_locks(&error) => {
                // Better than no agent: nothing else is wrong with such a disk.
                tracing::warn!(
                    "the file system of {} has no locks, so a second agent with this inbox is not detected: \
                     let only one run",
                    path.display()
                );
                Ok(Held::Trusted)
            }
            Err(fs::TryLockError::Error(error)) => Err(Failure::Io("lock", error)),
        }
    }

    /// Beside the inbox itself, wherever links lead. Its directory is made where that is to be done.
    fn lock_path(&self) -> Result<PathBuf, Failure> {
        let failed = |error| Failure::Io("lock", error);
        let mut path = match fs::canonicalize(&self.inbox) {
            Ok(real) if real.is_dir() => return Err(Failure::NotAFile("a directory")),
            Ok(real) => real,
            // What it points to may be on a disk that is not mounted yet.
            Err(_) if self.inbox.is_symlink() => return Err(Failure::NotAFile("a broken link")),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let directory = directory_of(&self.inbox);
                // Where more than the last directory is missing, what follows tells.
                if self.create && DirBuilder::new().mode(0o700).create(directory).is_ok() {
                    sync_directory(directory_of(directory)).map_err(failed)?;
                }
                let directory = fs::canonicalize(directory).map_err(failed)?;
                directory.join(self.inbox.file_name().unwrap_or_default())
            }
            Err(error) => return Err(failed(error)),
        }
        .into_os_string();
        path.push(".lock");
        Ok(path.into())
    }

    fn open(&self, path: &Path) -> Result<File, Failure> {
        let opened = match trust::open_plain(path, OFlags::RDWR) {
            // A lock needs no right to write.
            Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => {
                trust::open_plain(path, OFlags::RDONLY)
            }
            opened => opened,
        };
        match opened {
            Ok(file) => {
                let metadata = file.metadata().map_err(|error| Failure::Io("lock", error))?;
                match foreign_in(path, &metadata) {
                    // The command line may well be root's.
                    Some(foreign) if self.create || foreign.is_writable() || !geteuid().is_root() => {
                        let (path, what, remedy) = (path.display(), foreign.what(), foreign.remedy());
                        Err(Failure::Foreign(format!("the lock {path} {what}, so it is not used: {remedy}")))
                    }
                    _ => Ok(file),
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.make(path),
            Err(error) if trust::is_link(&error) => Err(Failure::Foreign(format!(
                "the lock {} is a link, so it is not used: remove it",
                path.display()
            ))),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                let (path, own) = (path.display(), geteuid().as_raw());
                Err(Failure::Foreign(format!(
                    "the lock {path} cannot be opened by user {own}, so it is not known whether another agent runs: run \
                     this as the user of that agent, or give its directory to this one (chown -R)"
                )))
            }
            Err(error) => Err(Failure::Io("lock", error)),
        }
    }

    fn make(&self, path: &Path) -> Result<File, Failure> {
        let failed = |error| Failure::Io("lock", error);
        let inbox = fs::metadata(&self.inbox).ok();
        if inbox.is_some() {
            let inbox =
                trust::open(&self.inbox, OFlags::RDONLY).map_err(|error| Failure::Io("open", error))?;
            if !is_inbox(&inbox).map_err(|error| Failure::Io("read", error))? {
                return Err(Failure::NotAnInbox);
            }
        }
        let file = match trust::create_exclusive(path, 0o600) {
            // Another process was faster.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                trust::open_plain(path, OFlags::RDWR)
            }
            made => made,
        }
        .map_err(failed)?;
        // Made by root's command line, the agent must be able to open it.
        if let Some(inbox) = inbox.filter(|_| geteuid().is_root()) {
            fchown(&file, Some(inbox.uid()), Some(inbox.gid())).map_err(failed)?;
        }
        Ok(file)
    }
}

impl Holder {
    /// As the one who has the lock has noted it.
    fn read(file: &File) -> Self {
        let mut text = String::new();
        if let Err(error) = file.take(MAX_BYTES).read_to_string(&mut text) {
            tracing::debug!(%error, "the lock of the inbox does not say which process has it");
        }
        let mut words = text.split_whitespace();
        let pid = words.next().and_then(|pid| pid.parse::<u32>().ok());
        let is_elsewhere = words.next() != Some(&pid_namespace());
        // One that has the lock and has not noted it yet leaves the number of one before.
        let is_gone = |pid: &u32| {
            Path::new("/proc/self").exists() && !Path::new("/proc").join(pid.to_string()).exists()
        };
        Self { pid: pid.filter(|pid| is_elsewhere || !is_gone(pid)), is_elsewhere }
    }
}

/// Notes who has the lock, for others to tell. Without it, the lock holds all the same.
fn note(file: &File) {
    let text = format!("{} {}\n", std::process::id(), pid_namespace());
    let noted = file.set_len(0).and_then(|()| file.write_all_at(text.as_bytes(), 0));
    if let Err(error) = noted {
        tracing::debug!(%error, "this process could not write its id to the lock of the inbox");
    }
}

/// Where process numbers count: `pid:[4026531836]`.
fn pid_namespace() -> String {
    fs::read_link("/proc/self/ns/pid").map(|name| name.display().to_string()).unwrap_or_default()
}

fn knows_no_locks(error: &io::Error) -> bool {
    let errno = Errno::from_io_error(error);
    error.kind() == io::ErrorKind::Unsupported || matches!(errno, Some(Errno::NOLCK | Errno::INVAL))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_says_that_a_file_system_has_no_locks_is_known() {
        for (number, expected) in [(37, true), (38, true), (95, true), (22, true), (5, false), (13, false)] {
            assert_eq!(knows_no_locks(&io::Error::from_raw_os_error(number)), expected, "{number}");
        }
    }

    #[test]
    fn the_one_who_has_it_is_named_as_far_as_it_is_known() {
        let told = |text: &str| {
            let dir = tempfile::tempdir().expect("a directory");
            let path = dir.path().join("lock");
            fs::write(&path, text).expect("written");
            Holder::read(&File::open(&path).expect("open")).to_string()
        };
        let own = std::process::id();
        assert_eq!(told(&format!("{own} {}\n", pid_namespace())), format!("process {own}"));
        assert_eq!(told("7 pid:[1]\n"), "process 7 of another container");
        // No process has such a number: it is left of an earlier one.
        assert_eq!(told(&format!("4194399 {}\n", pid_namespace())), "another process");
        for text in ["", "\n", "-1 x", "\u{0}\u{0}"] {
            assert_eq!(told(text), "another process", "{text:?}");
        }
    }
}
