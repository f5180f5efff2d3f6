//! The lock of an inbox: one process has it, and the others learn which one.
//!
//! Owns: the lock file beside the inbox, its holder, whose files are refused. Must not know: how an inbox is stored, how long a process waits.
//!
//! The kernel holds the lock and releases it when the process ends, however it ends. So a lock file that is left
//! behind does no harm. It is beside the file to which `[inbox] path` leads, so that a link or another spelling of
//! the path gives the same lock. It is never removed: a process that opened it before would hold a lock that others
//! do not see. If it exists, an inbox has been here. So if the present file is not an inbox, it is a damaged one.

use std::fs::{self, DirBuilder, File, Metadata};
use std::io::{self, Read as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, fchown};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::process::geteuid;

use super::holder::{Holder, note};
use super::journal::{EARLIER_MAGIC, MAGIC};
use super::trouble::{InboxError, Trouble};
use crate::trust::{self, directory_of, foreign_in, sync_directory};

/// What is wrong with the owner and the permissions of a file, and the remedy; `None` if the file may be used. With
/// `creates`, an agent asks. Else it is the command line, which may run as root.
pub(super) fn refused_owner(path: &Path, metadata: &Metadata, creates: bool) -> Option<(String, String)> {
    let foreign = foreign_in(path, metadata)?;
    let is_refused = creates || foreign.is_writable() || !geteuid().is_root();
    is_refused.then(|| (foreign.what(), foreign.remedy()))
}

/// Why a file is not an inbox. `None` also for what a power cut has left of one: nothing, or zeros at its beginning.
fn not_an_inbox(file: &File) -> io::Result<Option<Trouble>> {
    let mut beginning = Vec::new();
    file.take(MAGIC.len() as u64).read_to_end(&mut beginning)?;
    let is_inbox = MAGIC.starts_with(&beginning) || beginning.iter().all(|byte| *byte == 0);
    let why = if beginning.starts_with(EARLIER_MAGIC) { Trouble::Earlier } else { Trouble::NotAnInbox };
    Ok((!is_inbox).then_some(why))
}

/// This process's claim to an inbox. Clones are the same claim. The last one to be dropped releases the inbox.
#[derive(Debug, Clone)]
pub(crate) struct Claim {
    inbox: PathBuf,
    /// Whether missing files are created: an agent does this, the command line does not.
    create: bool,
    held: Arc<Mutex<Option<HeldLock>>>,
}

/// This process has the inbox, as long as the file is open.
#[derive(Debug)]
enum HeldLock {
    Locked {
        _file: File,
    },
    /// The file system has no locks.
    Trusted,
}

impl Claim {
    pub(super) fn new(inbox: &Path, create: bool) -> Self {
        Self { inbox: inbox.to_owned(), create, held: Arc::default() }
    }

    /// The path of the inbox.
    pub(super) fn inbox(&self) -> &Path {
        &self.inbox
    }

    /// Takes the claim, unless this process has it already.
    ///
    /// # Errors
    /// [`InboxError::InUse`] while another process has the inbox, [`InboxError::Foreign`] if that cannot be known, or
    /// the fault of the disk.
    pub(crate) fn make_good(&self) -> Result<(), InboxError> {
        self.take().map_err(|failure| failure.into_error(&self.inbox))
    }

    /// Takes the lock, unless this claim has it. Never waits for another process, but the disk may take long.
    pub(super) fn take(&self) -> Result<(), Trouble> {
        let mut held = self.held();
        if held.is_none() {
            *held = Some(self.lock()?);
        }
        Ok(())
    }

    /// Releases the inbox, so that [`Claim::take`] takes the lock of the file that has its path then.
    pub(super) fn release(&self) {
        *self.held() = None;
    }

    fn held(&self) -> MutexGuard<'_, Option<HeldLock>> {
        // A panic ends the process, so no lock is poisoned outside of tests.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> Result<HeldLock, Trouble> {
        let path = self.lock_path()?;
        let file = self.open(&path)?;
        match file.try_lock() {
            Ok(()) => {
                note(&file);
                Ok(HeldLock::Locked { _file: file })
            }
            Err(fs::TryLockError::WouldBlock) => Err(Trouble::InUse(Holder::read(&file))),
            Err(fs::TryLockError::Error(error)) if knows_no_locks(&error) => {
                // It is better to run without a lock than not at all, because nothing else is wrong with such a disk.
                tracing::warn!(
                    "the file system of {} has no locks, so a second agent with this inbox is not detected: \
                     let only one run",
                    path.display()
                );
                Ok(HeldLock::Trusted)
            }
            Err(fs::TryLockError::Error(error)) => Err(Trouble::Io("lock", error)),
        }
    }

    /// The path of the lock: beside the inbox itself, wherever links lead. Creates the directory if the claim allows
    /// it.
    fn lock_path(&self) -> Result<PathBuf, Trouble> {
        let failed = |error| Trouble::Io("lock", error);
        let mut path = match fs::canonicalize(&self.inbox) {
            Ok(real) if real.is_dir() => return Err(Trouble::NotAFile("a directory")),
            Ok(real) => real,
            // The link may point to a disk that is not mounted yet.
            Err(_) if self.inbox.is_symlink() => return Err(Trouble::NotAFile("a broken link")),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let directory = directory_of(&self.inbox);
                // If more than the last directory is missing, the next step fails and says so.
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

    fn open(&self, path: &Path) -> Result<File, Trouble> {
        let opened = match trust::open_plain(path, OFlags::RDWR) {
            // A lock needs no write permission.
            Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => {
                trust::open_plain(path, OFlags::RDONLY)
            }
            opened => opened,
        };
        match opened {
            Ok(file) => {
                let metadata = file.metadata().map_err(|error| Trouble::Io("lock", error))?;
                let Some((what, remedy)) = refused_owner(path, &metadata, self.create) else {
                    return Ok(file);
                };
                let path = path.display();
                Err(Trouble::Foreign(format!("the lock {path} {what}, so it is not used: {remedy}")))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.make(path),
            Err(error) if trust::is_link(&error) => Err(Trouble::Foreign(format!(
                "the lock {} is a link, so it is not used: remove it",
                path.display()
            ))),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                let (path, own) = (path.display(), geteuid().as_raw());
                Err(Trouble::Foreign(format!(
                    "the lock {path} cannot be opened by user {own}, so it is not known whether another agent runs: run \
                     this as the user of that agent, or give its directory to this one (chown -R)"
                )))
            }
            Err(error) => Err(Trouble::Io("lock", error)),
        }
    }

    fn make(&self, path: &Path) -> Result<File, Trouble> {
        let failed = |error| Trouble::Io("lock", error);
        let inbox = fs::metadata(&self.inbox).ok();
        if inbox.is_some() {
            let inbox =
                trust::open(&self.inbox, OFlags::RDONLY).map_err(|error| Trouble::Io("open", error))?;
            if let Some(why) = not_an_inbox(&inbox).map_err(|error| Trouble::Io("read", error))? {
                return Err(why);
            }
        }
        let file = match trust::create_exclusive(path, 0o600) {
            // Another process created it first.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                trust::open_plain(path, OFlags::RDWR)
            }
            made => made,
        }
        .map_err(failed)?;
        // If root's command line made it, the agent must still be able to open it.
        if let Some(inbox) = inbox.filter(|_| geteuid().is_root()) {
            fchown(&file, Some(inbox.uid()), Some(inbox.gid())).map_err(failed)?;
        }
        Ok(file)
    }
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
}
