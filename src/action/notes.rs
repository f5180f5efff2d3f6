//! The file of notes: which programs an agent runs, for the agent after it.
//!
//! Owns: what the file looks like, and whether those whom it names still run. Must not know: when a note is written,
//! signals.
//!
//! The file has a first line that says who writes it, and one line for each child that can run at once. All lines have
//! the same size. No write is synced, because the notes must outlive the agent, and not the kernel: after a boot they
//! count for nothing.
//!
//! A process id alone does not say which process it is, because the kernel uses its number again. But the kernel does
//! not do so while the number is still the id of a group. So a noted group is the same one in two cases. Its leader
//! exists, and began when the note says. Or no process has that number any more, and the group still has processes of
//! the session that the noted agent was in. If the leader began at another time, then the noted group had ended before.
//! If the kernel does not say so clearly, the group is not taken for the same one.

use std::fs;
use std::io::{self, Read as _};
use std::path::Path;

use rustix::fs::OFlags;
use rustix::process::{Pid, getpgrp, test_kill_process};
use tokio::time::{Instant, sleep};

use super::group::{LOOK, runs_in_group};
use crate::processes::{PROC, Process, is_gone, pid_namespace};
use crate::trust;

/// As many children as `[actions] max_children` allows.
pub(super) const MOST: usize = 64;
/// The size of a line. A page has a whole number of lines, so that no kill can leave half of one.
pub(super) const LINE: usize = 128;

/// What an earlier agent has noted.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct EarlierNotes {
    /// None if the notes are from another boot or another container: they name no process of here.
    pub(super) writer: Option<NotesWriter>,
    pub(super) groups: Vec<LeftGroup>,
}

/// The agent that wrote the notes.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NotesWriter {
    pub(super) id: Pid,
    /// When it began.
    started: u64,
}

/// A group of an earlier agent.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct LeftGroup {
    pub(super) id: Pid,
    /// When its leader began.
    started: u64,
    /// The session of the earlier agent, which its children are in.
    session: i32,
    pub(super) rule: String,
}

impl EarlierNotes {
    /// Reads the notes. No file is as good as an empty one. Waits for the disk.
    ///
    /// # Errors
    /// Why the notes cannot be used, as the end of a sentence.
    pub(super) fn read(path: &Path) -> io::Result<Self> {
        let file = match trust::open_plain(path, OFlags::RDONLY) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) if trust::is_link(&error) => return Err(io::Error::other("it is a link")),
            opened => opened?,
        };
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(io::Error::other("it is not a file"));
        }
        if let Some(foreign) = trust::foreign_in(path, &metadata) {
            return Err(io::Error::other(foreign.to_string()));
        }
        let mut content = Vec::new();
        file.take((LINE * (MOST + 1)) as u64).read_to_end(&mut content)?;
        Self::parse(&String::from_utf8_lossy(&content), &place()?)
            .ok_or_else(|| io::Error::other("it is damaged"))
    }

    /// None if the notes are damaged.
    fn parse(content: &str, place: &str) -> Option<Self> {
        // A power cut may leave an empty file, or zeros.
        if content.chars().all(|c| c == '\0') {
            return Some(Self::default());
        }
        let (first, rest) = content.split_once('\n')?;
        let first = first.split_ascii_whitespace().collect::<Vec<_>>();
        let [boot, namespace, session, id, started] = first.try_into().ok()?;
        let session = session.parse().ok()?;
        let writer = NotesWriter { id: process_id(id)?, started: started.parse().ok()? };
        if format!("{boot} {namespace}") != place {
            return Some(Self::default());
        }
        let lines = rest.lines().filter(|line| !line.trim_end().is_empty());
        let groups = lines.filter_map(|line| {
            let group = LeftGroup::parse(line, session);
            if group.is_none() {
                tracing::warn!(
                    line,
                    "the note of a program is damaged, so the program may go on: look for it with ps"
                );
            }
            group
        });
        Some(Self { groups: groups.collect(), writer: Some(writer) })
    }
}

impl NotesWriter {
    /// Whether it still runs at `end`, or until it has ended. Cancel safe.
    pub(super) async fn runs_until(&self, end: Instant) -> bool {
        while self.runs() {
            if Instant::now() >= end {
                return true;
            }
            sleep(LOOK).await;
        }
        false
    }

    /// If the kernel does not say so clearly, it runs: then nothing of it is ended.
    fn runs(&self) -> bool {
        match Process::of(Path::new(PROC), self.id.as_raw_pid()) {
            Some(process) => process.started == self.started && !process.has_ended,
            // A process of another user, which /proc may hide, did not write notes of this one.
            None => test_kill_process(self.id).is_ok(),
        }
    }
}

impl LeftGroup {
    fn parse(line: &str, session: i32) -> Option<Self> {
        let mut words = line.trim_end().splitn(3, ' ');
        // A signal to group 1 would go to all processes.
        let id = process_id(words.next()?).filter(|id| !id.is_init())?;
        let started = words.next()?.parse().ok()?;
        // A name may have been blank, and its blanks are those of the line.
        let rule = words.next().unwrap_or_default().to_owned();
        Some(Self { id, started, session, rule })
    }

    /// Whether a process of this very group still runs. If a program of a rule has started the agent itself, the agent
    /// is in that group and leaves it alone.
    pub(super) fn runs(&self) -> bool {
        self.runs_by(Path::new(PROC))
    }

    /// As [`LeftGroup::runs`], by what `proc` says.
    fn runs_by(&self, proc: &Path) -> bool {
        let may_be_it = match Process::of(proc, self.id.as_raw_pid()) {
            Some(leader) => leader.started == self.started,
            None => is_gone(self.id),
        };
        let is_of_session = |process: &Process| process.session == self.session;
        may_be_it && self.id != getpgrp() && runs_in_group(proc, self.id, is_of_session).unwrap_or(false)
    }
}

/// The first line of the notes of this process.
///
/// # Errors
/// `/proc` cannot be read.
pub(super) fn first_line() -> io::Result<[u8; LINE]> {
    let own = Process::of(Path::new(PROC), "self")
        .ok_or_else(|| io::Error::other("/proc says nothing of this process: mount it"))?;
    Ok(line(&format!("{} {} {} {}", place()?, own.session, std::process::id(), own.started)))
}

/// A text that fills a line, cut off where the line ends.
pub(super) fn line(text: &str) -> [u8; LINE] {
    let mut line = [b' '; LINE];
    for (place, byte) in line.iter_mut().zip(text.bytes().take(LINE - 1)) {
        *place = if byte == b'\n' { b' ' } else { byte };
    }
    line[LINE - 1] = b'\n';
    line
}

/// Where process ids mean the same as here: this boot, and this namespace of process ids.
fn place() -> io::Result<String> {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    Ok(format!("{} {}", boot.trim_end(), pid_namespace()?))
}

fn process_id(text: &str) -> Option<Pid> {
    Pid::from_raw(text.parse().ok().filter(|id| *id > 0)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::CommandExt as _;
    use std::process::{Command, Stdio};
    use std::time::Duration;

    const PLACE: &str = "0e4b0d5c-7f0a-4b0e-9d38-5f3c1f6b7a11 pid:[4026531836]";

    fn content(place: &str, lines: &[&str]) -> String {
        let lines =
            std::iter::once(format!("{place} 42 76 1230")).chain(lines.iter().map(|line| (*line).to_owned()));
        lines.map(|text| String::from_utf8_lossy(&line(&text)).into_owned()).collect()
    }

    fn group(id: i32, started: u64, rule: &str) -> LeftGroup {
        LeftGroup { id: Pid::from_raw(id).unwrap(), started, session: 42, rule: rule.to_owned() }
    }

    fn notes(groups: Vec<LeftGroup>) -> Option<EarlierNotes> {
        let writer = NotesWriter { id: Pid::from_raw(76).unwrap(), started: 1230 };
        Some(EarlierNotes { writer: Some(writer), groups })
    }

    #[test]
    fn what_is_noted_is_read_again_except_from_another_boot_or_container() {
        let long = "x".repeat(200);
        let lines = [
            "",
            "77 1234 backup",
            "",
            &format!("78 1235 {long}"),
            "79 1236 two words",
            "80 1237",
            "81 1238   ",
        ];
        let cut = "x".repeat(LINE - 1 - "78 1235 ".len());
        let expected = notes(vec![
            group(77, 1234, "backup"),
            group(78, 1235, &cut),
            group(79, 1236, "two words"),
            group(80, 1237, ""),
            group(81, 1238, ""),
        ]);
        assert_eq!(EarlierNotes::parse(&content(PLACE, &lines), PLACE), expected);
        for other in [PLACE.replace("0e4b", "1e4b"), PLACE.replace("1836", "1837")] {
            assert_eq!(
                EarlierNotes::parse(&content(&other, &lines), PLACE),
                Some(EarlierNotes::default()),
                "{other}"
            );
        }
    }

    #[test]
    fn damaged_notes_name_no_group() {
        for nothing in ["", "\0\0\0"] {
            assert_eq!(EarlierNotes::parse(nothing, PLACE), Some(EarlierNotes::default()));
        }
        let no_writer = [format!("{PLACE} 42\n"), format!("{PLACE} 42 0 5\n"), format!("{PLACE} 42 -7 5\n")];
        let damaged = ["x", "\0\0\n", "one two 3 x 5\n", "one two\n", "\u{fffd} \u{fffd} 7 8\n"];
        for damaged in damaged.into_iter().chain(no_writer.iter().map(String::as_str)) {
            assert_eq!(EarlierNotes::parse(damaged, PLACE), None, "{damaged:?}");
        }
        let lines = ["x", "-5 3 a", "0 3 a", "1 3 a", "5 -3 a", "5", "99999999999 3 a", "\0\0", "5 3 left"];
        assert_eq!(EarlierNotes::parse(&content(PLACE, &lines), PLACE), notes(vec![group(5, 3, "left")]));
    }

    #[test]
    fn a_group_of_which_the_kernel_says_nothing_is_not_taken_for_the_noted_one() {
        let mut command = Command::new("/bin/cat");
        let mut child = command.stdin(Stdio::piped()).process_group(0).spawn().unwrap();
        let process = Process::of(Path::new(PROC), child.id()).unwrap();
        let (id, session) = (Pid::from_child(&child), process.session);
        let group = LeftGroup { id, started: process.started, session, rule: String::new() };
        assert!(group.runs());
        assert!(!group.runs_by(Path::new("/nowhere")));
        // A member of the group can be read, and its leader, which exists, cannot.
        let proc = tempfile::tempdir().unwrap();
        fs::create_dir(proc.path().join("1")).unwrap();
        let member = format!("1 (member) S 1 {} {session} {}5\n", id.as_raw_pid(), "0 ".repeat(15));
        fs::write(proc.path().join("1/stat"), member).unwrap();
        assert_eq!(runs_in_group(proc.path(), id, |_| true), Some(true));
        assert!(!group.runs_by(proc.path()));
        drop(child.stdin.take());
        child.wait().unwrap();
        // Now the kernel says that there is no leader.
        assert!(group.runs_by(proc.path()));
        assert!(!group.runs());
    }

    #[tokio::test]
    async fn the_writer_runs_until_it_has_ended_and_is_no_other_process_of_its_number() {
        let mut child = Command::new("/bin/cat").stdin(Stdio::piped()).spawn().unwrap();
        let started = Process::of(Path::new(PROC), child.id()).unwrap().started;
        let writer = |started| NotesWriter { id: Pid::from_child(&child), started };
        let (same, other) = (writer(started), writer(started - 1));
        assert!(same.runs_until(Instant::now()).await);
        assert!(!other.runs_until(Instant::now()).await);
        // It is a zombie, and then gone.
        drop(child.stdin.take());
        assert!(!same.runs_until(Instant::now() + Duration::from_secs(10)).await);
        child.wait().unwrap();
        assert!(!same.runs_until(Instant::now()).await);
    }
}
