//! A process group: everything that one child has started.
//!
//! Owns: signals to a group, grace periods, whether anything still runs in it. Must not know: which program leads it.

use std::time::Duration;

use rustix::process::{Pid, Signal, WaitOptions};
use tokio::time::{Instant, sleep};

/// The time from SIGTERM to SIGKILL.
pub(super) const GRACE: Duration = Duration::from_secs(2);
/// How long a killed child may take to end. If it hangs in the kernel, it may never end.
pub(super) const KILLED: Duration = Duration::from_secs(1);
/// How often to check a group in its grace period.
const LOOK: Duration = Duration::from_millis(20);

/// The child's process group, while any process is in it. When it is dropped, the remaining processes are killed.
pub(super) struct Group {
    id: Option<Pid>,
}

impl Group {
    pub(super) fn new(leader: Option<u32>) -> Self {
        Self { id: leader.and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw) }
    }

    /// Whether there was a process to signal.
    ///
    /// The number cannot belong to another group. The kernel does not reuse it while a process is in the group, or
    /// while its leader has not been waited for. After that, freed numbers are reused last.
    pub(super) fn signal(&self, signal: Signal) -> bool {
        self.id.is_some_and(|id| rustix::process::kill_process_group(id, signal).is_ok())
    }

    /// Ends the rest of the group: SIGTERM, and SIGKILL after the grace period. The leader must have been waited for.
    pub(super) async fn end(mut self, grace_ends: Instant) {
        if self.signal(Signal::TERM) {
            while self.is_alive() && Instant::now() < grace_ends {
                sleep(LOOK).await;
            }
            self.signal(Signal::KILL);
            self.is_alive();
        }
        self.id = None;
    }

    /// Whether a process still runs in the group. As process 1 of a container, the agent inherits orphans. It must
    /// wait for the ended ones of this group, because no other process does. Orphans that another process inherits
    /// stay in the group until that process waits for them. They have ended, so they do not count.
    fn is_alive(&self) -> bool {
        let Some(id) = self.id else { return false };
        while let Ok(Some(_)) = rustix::process::waitpgid(id, WaitOptions::NOHANG) {}
        rustix::process::test_kill_process_group(id).is_ok() && runs_in_group(id)
    }
}

/// Whether any process of the group is more than a zombie. If `/proc` cannot be read, the answer is true.
fn runs_in_group(group: Pid) -> bool {
    let Ok(processes) = std::fs::read_dir("/proc") else { return true };
    let group = group.as_raw_nonzero().to_string();
    processes.flatten().any(|process| {
        // `pid (name) state parent group …`; the name may contain any character, even a parenthesis.
        let stat = std::fs::read_to_string(process.path().join("stat")).unwrap_or_default();
        let mut fields = stat.rsplit(')').next().unwrap_or_default().split_ascii_whitespace();
        let state = fields.next();
        fields.nth(1) == Some(group.as_str()) && !matches!(state, Some("Z" | "X"))
    })
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
        assert!(runs_in_group(group));
        drop(child.stdin.take());
        let ended = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        rustix::process::waitid(WaitId::Pid(group), ended).unwrap();
        assert!(rustix::process::test_kill_process_group(group).is_ok(), "it has not been waited for");
        assert!(!runs_in_group(group));
        child.wait().unwrap();
    }
}
