//! The files of the state directory on disk.
//!
//! Owns: permissions, the lock, and the sentence of what cannot be read or written. Must not know: what a file says.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use crate::emulator::journal::JournalError;
use crate::trust;

/// The file with the certificate authority.
pub(in crate::emulator) const AUTHORITY: &str = "ca.pem";

/// What to do about a file that cannot be used.
fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "make room on that disk",
        _ => "give a directory of your own with --state-dir",
    }
}

/// Why the state directory cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StateDirError {
    /// A file or directory cannot be read or written.
    #[error("cannot {verb} {path}: {reason}; {}", remedy(.reason), path = .path.display())]
    Io {
        /// The operation that failed.
        verb: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// Why it failed.
        reason: io::Error,
    },
    /// Another emulator uses the directory.
    #[error(
        "{path} is in use by another emulator: stop that one, or give a directory of your own with --state-dir",
        path = .0.display()
    )]
    InUse(PathBuf),
    /// The file with an earlier hub's state cannot be read.
    #[error(
        "{path} cannot be used ({reason}): restore a copy, or move it away: the hub then begins with empty \
         queues and twins",
        path = .path.display()
    )]
    Hub {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The file of the provisioning service cannot be read.
    #[error(
        "{path} cannot be used ({reason}): restore a copy, or move it away: the provisioning service then begins with \
         the enrolments of the command line, with new keys and without registrations",
        path = .path.display()
    )]
    Provisioning {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Another program has changed the file of secrets.
    #[error(
        "{path} is damaged ({reason}): restore a copy, or remove it: the emulator then makes new keys and \
         certificates",
        path = .path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A certificate or a key could not be made.
    #[error("cannot make a certificate for \"{name}\": {reason}")]
    Certificate {
        /// The name in the certificate.
        name: String,
        /// The reason.
        reason: String,
    },
}

impl StateDirError {
    /// The error about the file with the hub's state.
    pub(in crate::emulator) fn of_hub(path: &Path, error: JournalError) -> Self {
        let path = path.to_owned();
        match error {
            JournalError::Io(reason) => Self::Io { verb: "read", path, reason },
            JournalError::Damaged(reason) => Self::Hub { path, reason },
        }
    }

    /// The error about the file of the provisioning service.
    pub(in crate::emulator) fn of_provisioning(path: &Path, error: JournalError) -> Self {
        let path = path.to_owned();
        match error {
            JournalError::Io(reason) => Self::Io { verb: "read", path, reason },
            JournalError::Damaged(reason) => Self::Provisioning { path, reason },
        }
    }

    /// The error about the file with the devices.
    pub(super) fn of_devices(path: &Path, error: JournalError) -> Self {
        match error {
            JournalError::Io(reason) => Self::Io { verb: "read", path: path.to_owned(), reason },
            JournalError::Damaged(reason) => damaged(path, &reason),
        }
    }
}

/// Locks the directory: two emulators would overwrite each other's connection strings. The lock is that of a directory
/// in it, because an agent locks the directory of its inbox for a moment, and that may be this one: see
/// [`trust::replace_as`].
pub(super) fn lock(root: &Path) -> Result<fs::File, StateDirError> {
    let failed = |reason| StateDirError::Io { verb: "lock", path: root.to_owned(), reason };
    let directory = fs::File::open(root.join("devices")).map_err(failed)?;
    match directory.try_lock() {
        Ok(()) => Ok(directory),
        Err(fs::TryLockError::WouldBlock) => Err(StateDirError::InUse(root.to_owned())),
        Err(fs::TryLockError::Error(error)) => Err(failed(error)),
    }
}

/// Makes a directory that only its owner may enter, if it is missing.
pub(super) fn make_directory(path: &Path) -> Result<(), StateDirError> {
    let error = |verb| move |reason| StateDirError::Io { verb, path: path.to_owned(), reason };
    if path.is_dir() {
        return Ok(());
    }
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(error("create"))
}

/// Writes a file that only its owner may read, completely or not at all. If the file already has this text, it is not
/// written.
pub(in crate::emulator) fn write_private(path: &Path, text: &[u8]) -> Result<(), StateDirError> {
    write_by(path, text, trust::replace)
}

/// As [`write_private`], for a file that the next start makes again if it is not right: this does not wait for the
/// disk.
pub(super) fn write_derived(path: &Path, text: &[u8]) -> Result<(), StateDirError> {
    write_by(path, text, trust::replace_soon)
}

fn write_by(
    path: &Path,
    text: &[u8],
    replace: fn(&Path, &[u8]) -> io::Result<()>,
) -> Result<(), StateDirError> {
    let error = |reason| StateDirError::Io { verb: "write", path: path.to_owned(), reason };
    let found = fs::symlink_metadata(path).ok().filter(fs::Metadata::is_file);
    if let Some(found) = found.filter(|_| fs::read(path).is_ok_and(|present| present == text)) {
        return match found.permissions().mode() & 0o7777 {
            0o600 => Ok(()),
            _ => fs::set_permissions(path, Permissions::from_mode(0o600)).map_err(error),
        };
    }
    replace(path, text).map_err(error)
}

/// The error about a file that another program has changed.
pub(super) fn damaged(path: &Path, reason: &dyn std::fmt::Display) -> StateDirError {
    StateDirError::Damaged { path: path.to_owned(), reason: reason.to_string() }
}
