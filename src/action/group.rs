//! A process group: everything that one child has started.
//!
//! Owns: signals to a group, grace periods, whether anything still runs in it. Must not know: which program leads it.

use std::fs;
use std::path::Path;
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitOptions};
use tokio::time::{Instant, sleep};

use crate::processes::{PROC, Process};

/// The time from SIGTERM to SIGKILL.
pub(super) const GRACE: Duration = Duration::from_secs(2);
/// How long a killed child may take to end. If it hangs in the kernel, it may never end.
pub(super) const KILLED: Duration = Duration::from_secs(1);
/// How often to check whether something has ended.
pub(super) const LOOK: Duration = Duration::from_millis(20);

/// The child's process group, while any process is in it. When it is dropped, the remaining processes are killed.
pub(super) struct Group {
    id: Option<Pid>,
}

impl Group {
    pub(super) fn new(leader: Option<u32>) -> Self {
        Self { id: leader.and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw) }
    }

    /// The group with this id, which no child of this process leads.
    pub(super) fn of(id: Pid) -> Self {
        Self { id: Some(id) }
    }

    /// Whether there was a process to signal.
    ///
    /// The number cannot belong to another group. The kernel does not reuse it while a process is in the group, or
    /// while its leader has not been waited for. After that, freed numbers are reused last.
    pub(super) fn signal(&self, signal: Signal) -> bool {
        self.id.is_some_and(|id| rustix::process::kill_process_group(id, signal).is_ok())
    }

    /// Ends the rest of the group: SIGTERM, and SIGKILL after the grace period. If a child of this process leads the
    /// group, it must have been waited for.
    pub(super) async fn end(mut self, grace_ends: Instant) {
        if self.signal(Signal::TERM) {
            self.wait_until(grace_ends).await;
            // Sent in any case: a process that was started while the others were looked at may have been overlooked.
            if self.signal(Signal::KILL) {
                self.wait_until(grace_ends + KILLED).await;
            }
        }
        self.id = None;
    }

    /// Waits until nothing runs in the group any more, or until `end`.
    async fn wait_until(&self, end: Instant) {
        while self.is_alive() && Instant::now() < end {
            sleep(LOOK).await;
        }
    }

    /// Whether a process still runs in the group. As process 1 of a container, the agent inherits orphans. It must
    /// wait for the ended ones of this group, because no other process does. Orphans that another process inherits
    /// stay in the group until that process waits for them. They have ended, so they do not count.
    fn is_alive(&self) -> bool {
        let Some(id) = self.id else { return false };
        while let Ok(Some(_)) = rustix::process::waitpgid(id, WaitOptions::NOHANG) {}
        // If `/proc` cannot be read, a zombie counts, too: the grace period ends that wait.
        let runs = || runs_in_group(Path::new(PROC), id, |_| true).unwrap_or(true);
        rustix::process::test_kill_process_group(id).is_ok() && runs()
    }
}

/// Whether a process of the group for which `is` holds is more than a zombie. None if `proc`, which is `/proc` outside
/// of tests, cannot be read.
pub(super) fn runs_in_group(proc: &Path, group: Pid, is: impl Fn(&Process) -> bool) -> Option<bool> {
    let processes = fs::read_dir(proc).ok()?;
    let mut found = processes.flatten().filter_map(|process| Process::read(&process.path()));
    Some(found.any(|process| process.group == group.as_raw_pid() && !process.has_ended && is(&process)))
}

impl Drop for Group {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::process::{WaitId, WaitIdOptions};
    use std::os::unix::process::CommandExt as _;
    use std::process::Stdio;

    #[test]
    fn a_zombie_does_not_keep_its_group_alive() {
        let mut command = std::process::Command::new("/bin/cat");
        let mut child = command.stdin(Stdio::piped()).process_group(0).spawn().unwrap();
        let group = Pid::from_child(&child);
        let runs = || runs_in_group(Path::new(PROC), group, |_| true);
        assert_eq!(runs(), Some(true));
        drop(child.stdin.take());
        let ended = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        rustix::process::waitid(WaitId::Pid(group), ended).unwrap();
        assert!(rustix::process::test_kill_process_group(group).is_ok(), "it has not been waited for");
        assert_eq!(runs(), Some(false));
        assert_eq!(runs_in_group(Path::new("/nowhere"), group, |_| true), None);
        child.wait().unwrap();
    }
}
