//! What can be wrong with the inbox's file, in one sentence with the file's name and the remedy.
//!
//! Owns: the classes of failures and their sentences. Must not know: when the inbox tries again.

use std::io;
use std::path::Path;

use super::holder::Holder;

/// Why the inbox's file cannot be used. Each sentence names the file and the remedy.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum InboxError {
    /// Another process has the inbox open.
    #[error("the inbox {path} is in use by {holder}")]
    InUse { path: String, holder: Holder },
    /// There is no inbox.
    #[error("there is no inbox at {0}: it is created when the agent first runs")]
    Missing(String),
    /// The permissions do not allow it.
    #[error("{0}")]
    Denied(String),
    /// Another user can change it or its lock.
    #[error("{0}")]
    Foreign(String),
    /// It is damaged. It stays where it is. The agent moves it aside when it runs.
    #[error("{0}")]
    Corrupt(String),
    /// A newer version of this program wrote it.
    #[error("{0}")]
    Newer(String),
    /// The disk fails.
    #[error("{0}")]
    Disk(String),
}

/// Why the file could not be opened, read or written.
#[derive(Debug)]
pub(super) enum Trouble {
    /// Another process has it: this one.
    InUse(Holder),
    Missing,
    /// What it is instead of a file.
    NotAFile(&'static str),
    /// It is a file of another program.
    NotAnInbox,
    /// It is an inbox of an earlier version, in another format.
    Earlier,
    /// Another user can change the file. The sentence names the file, the fault and the remedy.
    Foreign(String),
    /// A newer version wrote it.
    Newer(String),
    /// Only moving it aside helps.
    Corrupt(String),
    /// The step that failed, and how.
    Io(&'static str, io::Error),
    /// A state that should never occur.
    Defect(String),
}

impl Trouble {
    pub(super) fn sentence(&self, path: &Path) -> String {
        let path = path.display();
        match self {
            Self::InUse(holder) => {
                format!("the inbox {path} is in use by {holder}: let only one agent run with it")
            }
            Self::Missing => format!("there is no inbox at {path}: it is created when the agent first runs"),
            Self::NotAFile(what) => {
                format!("the inbox {path} is {what} and not a file: move it away, or set [inbox] path")
            }
            Self::NotAnInbox => format!(
                "the file {path} is not an inbox of c2d-agent and was not changed: set [inbox] path to \
                 another file, or move this one away"
            ),
            Self::Earlier => format!(
                "the file {path} is an inbox of an earlier version of c2d-agent, in another format, and was not \
                 changed: set [inbox] path to another file, or move this one away"
            ),
            Self::Foreign(sentence) => sentence.clone(),
            Self::Newer(reason) => format!(
                "the inbox {path} was written by a newer version of c2d-agent ({reason}): install that version, or \
                 move the file away"
            ),
            Self::Corrupt(reason) => format!("the inbox {path} is damaged ({reason})"),
            Self::Io(doing, error) => {
                let remedy = remedy(error);
                format!("cannot {doing} the inbox {path}: {error}: {remedy}")
            }
            Self::Defect(reason) => format!(
                "the inbox {path} cannot be used because of a defect in c2d-agent ({reason}): please report it"
            ),
        }
    }

    /// The error for the command line.
    pub(super) fn into_error(self, path: &Path) -> InboxError {
        let sentence = self.sentence(path);
        match self {
            Self::InUse(holder) => InboxError::InUse { path: path.display().to_string(), holder },
            Self::Missing => InboxError::Missing(path.display().to_string()),
            Self::Io(_, error) if error.kind() == io::ErrorKind::PermissionDenied => {
                InboxError::Denied(sentence)
            }
            Self::Corrupt(_) => InboxError::Corrupt(format!(
                "{sentence}: the agent moves it away and begins a new one when it runs"
            )),
            Self::Newer(_) => InboxError::Newer(sentence),
            Self::Foreign(_) => InboxError::Foreign(sentence),
            Self::NotAFile(_) | Self::NotAnInbox | Self::Earlier | Self::Io(..) | Self::Defect(_) => {
                InboxError::Disk(sentence)
            }
        }
    }
}

/// The remedy for an error of the system.
fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "free some space, or set [inbox] path to another disk"
        }
        io::ErrorKind::ReadOnlyFilesystem => {
            "mount the file system for writing, or set [inbox] path to another one"
        }
        io::ErrorKind::PermissionDenied => "give the file and its directory to the user of the agent",
        io::ErrorKind::ResourceBusy | io::ErrorKind::CrossesDevices => {
            "mount the directory of the inbox, not the file alone"
        }
        io::ErrorKind::FileTooLarge => "raise the file size limit of the process (LimitFSIZE, ulimit -f)",
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => {
            "create the directory for the user of the agent, or set [inbox] path"
        }
        _ => "look in the system log for errors of the disk",
    }
}
