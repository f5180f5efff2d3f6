//! Which process has an inbox.
//!
//! Owns: what a lock file says of its holder. Must not know: when it is locked.

use std::fmt;
use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use crate::processes::pid_namespace;

/// How much of a lock file is read at most.
const MAX_BYTES: u64 = 64;

/// The process that has the inbox, as far as it is known.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Holder {
    pid: Option<u32>,
    /// Whether the process id is from another container.
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

impl Holder {
    /// Reads what the process with the lock has written.
    pub(super) fn read(file: &File) -> Self {
        let mut text = String::new();
        if let Err(error) = file.take(MAX_BYTES).read_to_string(&mut text) {
            tracing::debug!(%error, "the lock of the inbox does not say which process has it");
        }
        let mut words = text.split_whitespace();
        let pid = words.next().and_then(|pid| pid.parse::<u32>().ok());
        let is_elsewhere = words.next() != Some(&own_namespace());
        // A process that has just taken the lock may not have written its id yet. Then the file has the id of an
        // earlier one.
        let is_gone = |pid: &u32| {
            Path::new("/proc/self").exists() && !Path::new("/proc").join(pid.to_string()).exists()
        };
        Self { pid: pid.filter(|pid| is_elsewhere || !is_gone(pid)), is_elsewhere }
    }
}

/// Writes which process has the lock, for others to read. The lock holds even if this fails.
pub(super) fn note(file: &File) {
    let text = format!("{} {}\n", std::process::id(), own_namespace());
    let noted = file.set_len(0).and_then(|()| file.write_all_at(text.as_bytes(), 0));
    if let Err(error) = noted {
        tracing::debug!(%error, "this process could not write its id to the lock of the inbox");
    }
}

/// Empty without `/proc`.
fn own_namespace() -> String {
    pid_namespace().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_one_who_has_it_is_named_as_far_as_it_is_known() {
        let told = |text: &str| {
            let dir = tempfile::tempdir().expect("a directory");
            let path = dir.path().join("lock");
            std::fs::write(&path, text).expect("written");
            Holder::read(&File::open(&path).expect("open")).to_string()
        };
        let own = std::process::id();
        assert_eq!(told(&format!("{own} {}\n", own_namespace())), format!("process {own}"));
        assert_eq!(told("7 pid:[1]\n"), "process 7 of another container");
        // No process has such a number, so it is left over from an earlier one.
        assert_eq!(told(&format!("4194399 {}\n", own_namespace())), "another process");
        for text in ["", "\n", "-1 x", "\u{0}\u{0}"] {
            assert_eq!(told(text), "another process", "{text:?}");
        }
    }
}
