//! Who runs the doctor: permissions are checked for this user, who may be another one than the agent's.
//!
//! Owns: the names of users, and whether a user may use a file. Must not know: what the files are for.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use rustix::fs::{Access, AtFlags, CWD, accessat};
use rustix::process::geteuid;

use super::{Check, Finding, RunningAgent};
use crate::config::InboxSettings;
use crate::trust;

/// Most of `/etc/passwd` that is read.
const MAX_PASSWD_BYTES: u64 = 1024 * 1024;

/// Checks whether this user is the agent's: the owner of the running process, or else of the inbox.
pub(super) fn user(inbox: Option<&InboxSettings>, agent: &RunningAgent) -> Finding {
    let (whose, what) = match of_agent_with(inbox, agent) {
        Some((whose, _)) if whose == geteuid().as_raw() => return Check::User.ok(own()),
        None => return Check::User.ok(own()),
        Some(found) => found,
    };
    let (detail, agents) = (format!("{}, but {what} {}", own(), named(whose)), name(whose));
    let agents = agents.unwrap_or_else(|| format!("'#{whose}'"));
    Check::User.warning(
        detail,
        format!(
            "permissions are checked for the user who runs doctor: run sudo -u {agents} c2d-agent doctor"
        ),
    )
}

/// The agent's user, as far as that is known.
pub(super) fn of_agent(inbox: Option<&InboxSettings>, agent: &RunningAgent) -> Option<u32> {
    of_agent_with(inbox, agent).map(|(id, _)| id)
}

/// The agent's user, and in words how the doctor knows it.
fn of_agent_with(inbox: Option<&InboxSettings>, agent: &RunningAgent) -> Option<(u32, &'static str)> {
    let process = match agent {
        RunningAgent::Running { pid, .. } => owner(Path::new(&format!("/proc/{pid}"))),
        RunningAgent::NotRunning | RunningAgent::Unknown(_) => None,
    };
    let file = inbox.and_then(|inbox| owner(&inbox.path));
    // Only root takes the directory's owner for the agent's user. Any other user may be the agent's user and not own
    // the directory.
    let directory = inbox.and_then(|inbox| trust::owner_for_root(&inbox.path));
    let running = process.map(|id| (id, "the running agent runs as"));
    let named = file.map(|id| (id, "the inbox belongs to"));
    running.or(named).or(directory.map(|id| (id, "the inbox's directory belongs to")))
}

/// Whether this user has this access to the file.
pub(super) fn may(path: &Path, access: Access) -> bool {
    accessat(CWD, path, access, AtFlags::EACCESS).is_ok()
}

/// This user: `c2d-agent (998)`.
pub(super) fn own() -> String {
    named(geteuid().as_raw())
}

/// This user's name, or the number if the user has no name.
pub(super) fn own_name() -> String {
    let id = geteuid().as_raw();
    name(id).unwrap_or_else(|| id.to_string())
}

/// A user: `c2d-agent (998)`.
pub(super) fn named(id: u32) -> String {
    name(id).map_or_else(|| format!("user {id}"), |name| format!("{name} ({id})"))
}

fn owner(path: &Path) -> Option<u32> {
    path.metadata().ok().map(|found| found.uid())
}

/// The user's name in `/etc/passwd`; users from other sources stay numbers.
fn name(id: u32) -> Option<String> {
    let mut text = String::new();
    File::open("/etc/passwd").ok()?.take(MAX_PASSWD_BYTES).read_to_string(&mut text).ok()?;
    text.lines().find_map(|line| {
        let mut fields = line.split(':');
        let (name, own) = (fields.next()?, fields.nth(1)?.parse::<u32>().ok()?);
        (own == id).then(|| name.to_owned())
    })
}
