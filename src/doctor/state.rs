//! The inbox as the agent will find it: its directory, its disk, its file, its socket.
//!
//! Owns: the verdict on them. Must not know: what is in the inbox.

use std::os::unix::fs::FileTypeExt as _;
use std::path::Path;

use rustix::fs::Access;

use super::user;
use super::{Check, Finding, RunningAgent};
use crate::config::{InboxSettings, counted};
use crate::inbox::{InboxError, InboxFile};
use crate::trust::{self, directory_of};

const MIB: u64 = 1024 * 1024;

pub(super) fn inbox(settings: Option<&InboxSettings>, agent: &RunningAgent) -> Finding {
    let Some(settings) = settings else {
        return Check::Inbox.skipped("the configuration does not say where it is");
    };
    let path = settings.path.display();
    let directory = directory_of(&settings.path);
    // The agent creates at most one directory, not its parents.
    let (place, made) = if directory.exists() {
        (directory, "")
    } else {
        (directory_of(directory), ", whose directory will be created")
    };
    let shown = place.display();
    if !place.is_dir() {
        let remedy = format!(
            "create it for the user of the agent: install -d -m 700 -o {} DIRECTORY",
            user::own_name()
        );
        return Check::Inbox.failed(format!("{path} cannot be created: {shown} is not a directory"), remedy);
    }
    if !user::may(place, Access::WRITE_OK | Access::EXEC_OK) {
        return match rustix::fs::statvfs(place) {
            Ok(disk) if disk.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY) => Check::Inbox.failed(
                format!("{shown} is on a file system that is mounted read-only"),
                "mount it for writing, or set [inbox] path to another one",
            ),
            _ => Check::Inbox.failed(
                format!("{} may not write to {shown}", user::own()),
                format!(
                    "give it to the user of the agent (chown), or set [inbox] path; checked for {}",
                    user::own()
                ),
            ),
        };
    }
    if let Some(problem) = socket(&settings.socket) {
        return problem;
    }
    if let Some(problem) = disk(place, settings.max_size) {
        return problem;
    }
    let free = free(place).map_or(String::new(), |free| format!(", {} MiB free", free / MIB));
    if let Some(problem) = open_to_others(place) {
        return problem;
    }
    let what = if matches!(agent, RunningAgent::Running { .. }) {
        "in use by the running agent".to_owned()
    } else {
        match InboxFile::open(settings) {
            Ok(file) => {
                let counts = file.counts();
                let count = |count: u64, what| counted(usize::try_from(count).unwrap_or(usize::MAX), what);
                format!("{}, {}", count(counts.records, "record"), count(counts.dead, "dead letter"))
            }
            Err(InboxError::Missing(_)) => "will be created".to_owned(),
            Err(InboxError::InUse { holder, .. }) => {
                let socket = settings.socket.display();
                let detail = format!("{path} is in use by {holder}, but nothing listens on {socket}");
                let remedy = "if an agent runs, its log says why it has no control socket; otherwise wait \
                              for the program that has it open";
                return Check::Inbox.warning(detail, remedy);
            }
            Err(error @ InboxError::Corrupt(_)) => return Check::Inbox.warned_of(error),
            Err(error) => return Check::Inbox.failed_with(error),
        }
    };
    Check::Inbox.ok(format!("{path}{made}: {what}{free}"))
}

/// Fails if others can write to the place: they could remove messages, and make the agent act on their own.
fn open_to_others(place: &Path) -> Option<Finding> {
    let foreign = trust::writable(place)?;
    let detail = format!("{} {}", foreign.place.display(), foreign.what());
    Some(Check::Inbox.failed(detail, foreign.remedy()))
}

/// Checks the place of the control socket. The agent runs without its socket, but then no command can ask it.
fn socket(path: &Path) -> Option<Finding> {
    let shown = path.display();
    match path.symlink_metadata() {
        Ok(found) if !found.file_type().is_socket() => {
            let detail = format!("{shown} is where the control socket must be");
            Some(Check::Inbox.warning(detail, "move it away, or set [inbox] socket"))
        }
        Err(_) if directory_of(path).is_dir() && !user::may(directory_of(path), Access::WRITE_OK) => {
            let detail = format!("{} may not make the control socket {shown}", user::own());
            Some(
                Check::Inbox
                    .warning(detail, "give its directory to the user of the agent, or set [inbox] socket"),
            )
        }
        _ => None,
    }
}

fn disk(place: &Path, max_size: u64) -> Option<Finding> {
    // Both files while one is compacted: see docs/src/guides/offline.md.
    let wanted = max_size.saturating_mul(22) / 5;
    let free = free(place)?;
    let remedy = "free some space, set a smaller [inbox] max_size, or set [inbox] path to another disk";
    let detail = format!(
        "{} MiB are free in {}, and the inbox may take {}",
        free / MIB,
        place.display(),
        wanted / MIB
    );
    match free {
        0..MIB => Some(Check::Inbox.failed(detail, remedy)),
        free if free < wanted => Some(Check::Inbox.warning(detail, remedy)),
        _ => None,
    }
}

fn free(place: &Path) -> Option<u64> {
    let disk = rustix::fs::statvfs(place).ok()?;
    Some(disk.f_bavail.saturating_mul(disk.f_frsize))
}
