//! The notes of running children: a killed agent leaves programs behind, and the next agent ends them.
//!
//! Owns: the file of notes, and whether a noted group is still the same one. Must not know: messages, where an inbox
//! is stored.
//!
//! The file has one line of fixed size for each child that can run at once. A line is written right after the start of
//! its child, and emptied after the end of its group. No write is synced, because the notes must outlive the agent, and
//! not the kernel: after a boot they count for nothing.
//!
//! A process id alone does not say which process it is, because the kernel uses its number again. But the kernel does
//! not do so while the number is still the id of a group. So a noted group is the same one in two cases. Its leader
//! exists, and began when the note says. Or no process has that number any more, and the group still has processes of
//! the session that the noted agent was in. If the leader began at another time, then the noted group had ended before.
//!
//! A child that was started is not noted yet for some microseconds, on a busy machine for milliseconds. If the agent is
//! killed just then, that child stays unknown. The kernel could end a child together with its parent (`PR_SET_PDEATHSIG`), but only the child itself and
//! not its group, and this would need code of ours between fork and exec.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use futures_util::future::join_all;
use rustix::fs::OFlags;
use rustix::process::{Pid, getpgrp};
use tokio::time::Instant;

use super::group::{GRACE, Group, Process, runs_in_group};
use crate::trust;

/// As many children as `[actions] max_children` allows.
const MOST: usize = 64;
/// The size of a line. A page has a whole number of lines, so that no kill can leave half of one.
const LINE: usize = 128;

/// The notes of this agent.
#[derive(Debug)]
pub(crate) struct Children {
    file: File,
    used: Mutex<[bool; MOST]>,
}

/// The note of one child. Dropping it says that the group has ended.
#[derive(Debug)]
pub(super) struct ChildNote<'a> {
    children: &'a Children,
    slot: usize,
}

/// Ends what an earlier agent with these notes left running, and begins new notes. None if there can be none.
///
/// The caller must have the claim to the inbox that the notes belong to, so that the earlier agent has ended.
///
/// # Cancel safety
///
/// If it is dropped, the groups that it has begun to end are killed, and the earlier notes stay.
pub(crate) async fn take_over(path: PathBuf) -> Option<Children> {
    let left = read(&path).unwrap_or_else(|error| {
        tracing::warn!(
            "{} cannot be used ({}), so programs that an earlier agent left running may go on: look for them with ps",
            path.display(),
            trust::in_words(&error)
        );
        Vec::new()
    });
    join_all(left.into_iter().filter(LeftGroup::runs).map(LeftGroup::end)).await;
    Children::begin(&path)
        .inspect_err(|error| {
            tracing::warn!(
                "{} cannot be written ({}), so programs of this agent would go on after a crash of it",
                path.display(),
                trust::in_words(error)
            );
        })
        .ok()
}

impl Children {
    fn begin(path: &Path) -> io::Result<Self> {
        let session = Process::read(Path::new("/proc/self")).map_or(0, |own| own.session);
        let mut content = line(&format!("{} {session}", place()?)).to_vec();
        content.extend(line("").repeat(MOST));
        let mut file = trust::create_anew(path, 0o600)?;
        file.write_all(&content)?;
        Ok(Self { file, used: Mutex::new([false; MOST]) })
    }

    /// Notes a child that leads its own group and has not been waited for. `rule`: whose program it is.
    pub(super) fn note(&self, child: u32, rule: &str) -> Option<ChildNote<'_>> {
        let leader = Process::of(child)?;
        let slot = {
            let mut used = self.used();
            let free = used.iter().position(|used| !used)?;
            used[free] = true;
            free
        };
        let note = ChildNote { children: self, slot };
        self.write(slot, &format!("{child} {} {rule}", leader.started));
        Some(note)
    }

    fn write(&self, slot: usize, text: &str) {
        let at = LINE * (slot + 1);
        if let Err(error) = self.file.write_all_at(&line(text), at as u64) {
            tracing::warn!(%error, "could not note which programs run");
        }
    }

    fn used(&self) -> MutexGuard<'_, [bool; MOST]> {
        // A panic ends the process, so no lock is poisoned outside of tests.
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for ChildNote<'_> {
    fn drop(&mut self) {
        self.children.write(self.slot, "");
        self.children.used()[self.slot] = false;
    }
}

/// A group of an earlier agent.
#[derive(Debug, PartialEq, Eq)]
struct LeftGroup {
    id: Pid,
    /// When its leader began.
    started: u64,
    /// The session of the earlier agent, which its children are in.
    session: i32,
    rule: String,
}

impl LeftGroup {
    fn parse(line: &str, session: i32) -> Option<Self> {
        let mut words = line.trim_end().splitn(3, ' ');
        let [id, started, rule] = [words.next()?, words.next()?, words.next()?];
        // 0 and 1 stand for other things than a group where a signal goes.
        let id = id.parse().ok().filter(|id| *id > 1)?;
        Some(Self { id: Pid::from_raw(id)?, started: started.parse().ok()?, session, rule: rule.to_owned() })
    }

    /// Whether a process of this very group still runs. If a program of a rule has started the agent itself, the agent
    /// is in that group and leaves it alone.
    fn runs(&self) -> bool {
        let may_be_it = Process::of(self.id.as_raw_pid()).is_none_or(|leader| leader.started == self.started);
        may_be_it && self.id != getpgrp() && runs_in_group(self.id, |process| process.session == self.session)
    }

    async fn end(self) {
        let (rule, group) = (&self.rule, self.id.as_raw_pid());
        tracing::warn!(rule, group, "ending programs that an earlier agent left running");
        Group::of(self.id).end(Instant::now() + GRACE).await;
        if self.runs() {
            tracing::error!(rule, group, "programs that an earlier agent left running did not end");
        }
    }
}

/// The groups in the notes of an earlier agent.
fn read(path: &Path) -> io::Result<Vec<LeftGroup>> {
    let file = match trust::open_plain(path, OFlags::RDONLY) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
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
    parse(&String::from_utf8_lossy(&content), &place()?).ok_or_else(|| io::Error::other("it is damaged"))
}

/// None if the notes are damaged. Notes from another boot, or from another container, name no process of here.
fn parse(content: &str, place: &str) -> Option<Vec<LeftGroup>> {
    // A power cut may leave an empty file, or zeros.
    if content.chars().all(|c| c == '\0') {
        return Some(Vec::new());
    }
    let (first, rest) = content.split_once('\n')?;
    let [boot, namespace, session] = first.split_ascii_whitespace().collect::<Vec<_>>().try_into().ok()?;
    let session = session.parse().ok()?;
    if format!("{boot} {namespace}") != place {
        return Some(Vec::new());
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
    Some(groups.collect())
}

/// Where process ids mean the same as here: this boot, and this namespace of process ids.
fn place() -> io::Result<String> {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    let namespace = fs::read_link("/proc/self/ns/pid")?;
    Ok(format!("{} {}", boot.trim_end(), namespace.display()))
}

/// A text that fills a line, cut off where the line ends.
fn line(text: &str) -> [u8; LINE] {
    let mut line = [b' '; LINE];
    for (place, byte) in line.iter_mut().zip(text.bytes().take(LINE - 1)) {
        *place = if byte == b'\n' { b' ' } else { byte };
    }
    line[LINE - 1] = b'\n';
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLACE: &str = "0e4b0d5c-7f0a-4b0e-9d38-5f3c1f6b7a11 pid:[4026531836]";

    fn content(place: &str, lines: &[&str]) -> String {
        let lines = std::iter::once(format!("{place} 42")).chain(lines.iter().map(|line| (*line).to_owned()));
        lines.map(|text| String::from_utf8_lossy(&line(&text)).into_owned()).collect()
    }

    fn group(id: i32, started: u64, rule: &str) -> LeftGroup {
        LeftGroup { id: Pid::from_raw(id).unwrap(), started, session: 42, rule: rule.to_owned() }
    }

    #[test]
    fn what_is_noted_is_read_again_except_from_another_boot_or_container() {
        let long = "x".repeat(200);
        let lines = ["", "77 1234 backup", "", &format!("78 1235 {long}"), "79 1236 two words"];
        let cut = "x".repeat(LINE - 1 - "78 1235 ".len());
        let expected = vec![group(77, 1234, "backup"), group(78, 1235, &cut), group(79, 1236, "two words")];
        assert_eq!(parse(&content(PLACE, &lines), PLACE), Some(expected));
        for other in [PLACE.replace("0e4b", "1e4b"), PLACE.replace("1836", "1837")] {
            assert_eq!(parse(&content(&other, &lines), PLACE), Some(Vec::new()), "{other}");
        }
    }

    #[test]
    fn damaged_notes_name_no_group() {
        for nothing in ["", "\0\0\0"] {
            assert_eq!(parse(nothing, PLACE), Some(Vec::new()));
        }
        for damaged in ["x", "\0\0\n", "one two three\n", "one two\n", "\u{fffd} \u{fffd} 7 8\n"] {
            assert_eq!(parse(damaged, PLACE), None, "{damaged:?}");
        }
        let lines = ["x", "-5 3 a", "0 3 a", "1 3 a", "5 -3 a", "5 3", "99999999999 3 a", "\0\0", "5 3 left"];
        assert_eq!(parse(&content(PLACE, &lines), PLACE), Some(vec![group(5, 3, "left")]));
    }

    #[test]
    fn a_note_is_there_while_its_child_runs() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("inbox.children");
        let children = Children::begin(&path).unwrap();
        let own = std::process::id();
        let first = children.note(own, "one").unwrap();
        let second = children.note(own, "two").unwrap();
        let rules = || read(&path).unwrap().into_iter().map(|group| group.rule).collect::<Vec<_>>();
        assert_eq!(rules(), ["one", "two"]);
        drop(first);
        assert_eq!(rules(), ["two"]);
        let third = children.note(own, "three").unwrap();
        assert_eq!(rules(), ["three", "two"]);
        drop((second, third));
        assert!(rules().is_empty());
        assert_eq!(fs::metadata(&path).unwrap().len(), (LINE * (MOST + 1)) as u64);
    }

    #[test]
    fn more_children_than_lines_are_not_noted_and_do_no_harm() {
        let dir = tempfile::tempdir().unwrap();
        let children = Children::begin(&dir.path().join("inbox.children")).unwrap();
        let notes: Vec<_> = (0..=MOST).filter_map(|_| children.note(std::process::id(), "one")).collect();
        assert_eq!(notes.len(), MOST);
    }
}
