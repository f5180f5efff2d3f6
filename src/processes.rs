//! Processes by their number: what the kernel says of them.
//!
//! Owns: how `/proc` is read, where numbers mean the same, and whether a number is free. Must not know: who started a
//! process, signals.

use std::fmt::Display;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::Path;

use rustix::io::Errno;
use rustix::process::{Pid, test_kill_process};

/// Where the kernel says what it knows of processes.
pub(crate) const PROC: &str = "/proc";

/// What `/proc` says about a process.
pub(crate) struct Process {
    /// Whether it has ended, and only waits to be waited for.
    pub(crate) has_ended: bool,
    pub(crate) group: i32,
    pub(crate) session: i32,
    /// When it began, in ticks since the boot.
    pub(crate) started: u64,
}

impl Process {
    /// The process with this id, or `self`. If there is none, [`is_gone`] tells whether there is no such process, or
    /// whether `/proc` could not be read.
    pub(crate) fn of(proc: &Path, id: impl Display) -> Option<Self> {
        Self::read(&proc.join(id.to_string()))
    }

    /// The process of this directory in `/proc`.
    pub(crate) fn read(directory: &Path) -> Option<Self> {
        // The kernel makes the line anew for each read from its beginning, so it is read at once. It never is this
        // long.
        let mut stat = [0; 2048];
        let length = File::open(directory.join("stat")).ok()?.read(&mut stat).ok()?;
        let stat = String::from_utf8_lossy(stat.get(..length)?);
        // `pid (name) state parent group session …`; the name may contain any character, even a parenthesis.
        let mut fields = stat.rsplit(')').next()?.split_ascii_whitespace();
        let has_ended = matches!(fields.next()?, "Z" | "X");
        let (group, session) = (fields.nth(1)?.parse().ok()?, fields.next()?.parse().ok()?);
        Some(Self { has_ended, group, session, started: fields.nth(15)?.parse().ok()? })
    }
}

/// Whether the kernel says that no process has this id.
pub(crate) fn is_gone(id: Pid) -> bool {
    test_kill_process(id) == Err(Errno::SRCH)
}

/// The namespace of process ids of this process, for example `pid:[4026531836]`.
///
/// # Errors
/// `/proc` cannot be read.
pub(crate) fn pid_namespace() -> io::Result<String> {
    Ok(fs::read_link(Path::new(PROC).join("self/ns/pid"))?.display().to_string())
}
