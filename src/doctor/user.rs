//! Who runs the doctor: permissions are checked for this user, who need not be the agent's.
//!
//! Owns: users' names, and whether a file may be used. Must not know: what the files are for.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use rustix::fs::{Access, AtFlags, CWD, accessat};
use rustix::process::geteuid;

use super::{Agent, Check, Finding};
use crate::config::InboxSettings;
use crate::trust;

/// Most of `/etc/passwd` that is read.
const MAX_PASSWD_BYTES: u64 = 1024 * 1024;

/// Whether this user is the agent's: the owner of the process that runs, else of the inbox.
pub(super) fn user(inbox: Option<&InboxSettings>, agent: &Agent) -> Finding {
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
pub(super) fn of_agent(inbox: Option<&InboxSettings>, agent: &Agent) -> Option<u32> {
    of_agent_with(inbox, agent).map(|(id, _)| id)
}

/// The same, with what tells.
fn of_agent_with(inbox: Option<&InboxSettings>, agent: &Agent) -> Option<(u32, &'static str)> {
    let process = match agent {
        Agent::Running { pid, .. } => owner(Path::new(&format!("/proc/{pid}"))),
        Agent::NotRunning | Agent::Unknown(_) => None,
    };
    let file = inbox.and_then(|inbox| owner(&inbox.path));
    // Others than root need not own a directory to write there.
    let directory = inbox.and_then(|inbox| trust::owner_for_root(&inbox.path));
    let running = process.map(|id| (id, "the running agent runs as"));
    let named = file.map(|id| (id, "the inbox belongs to"));
    running.or(named).or(directory.map(|id| (id, "the inbox's directory belongs to")))
}

/// Whether this user may use the file so.
pub(super) fn may(path: &Path, access: Access) -> bool {
    accessat(CWD, path, access, AtFlags::EACCESS).is_ok()
}

/// This user: `c2d-agent (998)`.
pub(super) fn own() -> String {
    named(geteuid().as_raw())
}

/// This user's name, or number where there is none.
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

/// Of `/etc/passwd`; users from elsewhere stay numbers.
fn name(id: u32) -> Option<String> {
    let mut text = String::new();
    File::open("/etc/passwd").ok()?.take(MAX_PASSWD_BYTES).read_to_string(&mut text).ok()?;
    text.lines().find_map(|line| {
        let mut fields = line.split(':');
        let (name, own) = (fields.next()?, fields.nth(1)?.parse::<u32>().ok()?);
        (own == id).then(|| name.to_owned())
    })
}
