//! The notes of running children: a killed agent leaves programs behind, and the next agent ends them.
//!
//! Owns: which child has which line, the thread that writes the lines, and the end of an earlier agent's programs. Must
//! not know: messages, where an inbox is stored, what a line looks like.
//!
//! A line is given to the thread right after the start of its child, and emptied after the end of its group. The thread
//! waits for the disk, so that the agent's loop does not.
//!
//! A child that was started is not noted yet for some microseconds, on a busy machine for milliseconds. If the agent is
//! killed just then, that child stays unknown. The kernel could end a child together with its parent
//! (`PR_SET_PDEATHSIG`), but only the child itself and not its group, and this would need code of ours between fork and
//! exec.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::task::spawn_blocking;
use tokio::time::Instant;

use super::group::{GRACE, Group};
use super::notes::{EarlierNotes, LINE, LeftGroup, MOST, first_line, line};
use crate::processes::{PROC, Process};
use crate::trust;

/// The lines that wait for the disk: a beginning and an end of each child.
const WAITING: usize = 2 * MOST;
/// How long an agent may take to end after it has given up its inbox.
const LAST_ACTS: Duration = Duration::from_secs(2);

/// The number of a child's line, and the line.
type NumberedLine = (usize, [u8; LINE]);

/// The notes of this agent.
#[derive(Debug)]
pub(crate) struct Children {
    /// To the thread, which writes the lines in this order.
    lines: SyncSender<NumberedLine>,
    used: Mutex<[bool; MOST]>,
}

/// The note of one child. Dropping it says that the group has ended.
#[derive(Debug)]
pub(super) struct ChildNote<'a> {
    children: &'a Children,
    slot: usize,
}

/// Ends what an earlier agent with these notes left running, and begins new notes. None if there can be none. `find`
/// says where the notes are; it may wait for the disk.
///
/// The caller must have the claim to the inbox that the notes belong to, so that the earlier agent has ended. On a disk
/// without locks the claim does not say so. There an agent that still runs keeps its notes and its programs.
///
/// # Cancel safety
///
/// If it is dropped, the groups that it has begun to end are killed. The earlier notes stay, unless all groups had
/// ended.
pub(crate) async fn take_over(find: impl FnOnce() -> PathBuf + Send + 'static) -> Option<Children> {
    let find_and_read = move || {
        let path = find();
        let notes = EarlierNotes::read(&path);
        (path, notes)
    };
    // Nothing cancels this but the end of the runtime.
    let (path, notes) = spawn_blocking(find_and_read).await.ok()?;
    let notes = notes.unwrap_or_else(|error| {
        tracing::warn!(
            "{} cannot be used ({}), so programs that an earlier agent left running may go on: look for them with ps",
            path.display(),
            trust::in_words(&error)
        );
        EarlierNotes::default()
    });
    if let Some(writer) = notes.writer
        && writer.runs_until(Instant::now() + LAST_ACTS).await
    {
        tracing::warn!(
            "{} is in use by process {}, so no program is ended, and programs of this agent would go on after a crash of \
             it: end that process first, or give this agent a device and an [inbox] path of its own",
            path.display(),
            writer.id.as_raw_pid()
        );
        return None;
    }
    join_all(notes.groups.into_iter().filter(LeftGroup::runs).map(end)).await;
    spawn_blocking(move || begin(&path)).await.ok()?
}

async fn end(left: LeftGroup) {
    let (rule, group) = (&left.rule, left.id.as_raw_pid());
    tracing::warn!(rule, group, "ending programs that an earlier agent left running");
    Group::of(left.id).end(Instant::now() + GRACE).await;
    if left.runs() {
        tracing::error!(rule, group, "programs that an earlier agent left running did not end");
    }
}

fn begin(path: &Path) -> Option<Children> {
    let begun = Children::begin(path).inspect_err(|error| {
        tracing::warn!(
            "{} cannot be written ({}), so programs of this agent would go on after a crash of it",
            path.display(),
            trust::in_words(error)
        );
    });
    begun.ok()
}

impl Children {
    fn begin(path: &Path) -> io::Result<Self> {
        let mut content = first_line()?.to_vec();
        content.extend(line("").repeat(MOST));
        let mut file = trust::create_anew(path, 0o600)?;
        file.write_all(&content)?;
        let (children, lines) = Self::new();
        thread::Builder::new().name("children".to_owned()).spawn(move || write_out(&file, &lines))?;
        Ok(children)
    }

    fn new() -> (Self, Receiver<NumberedLine>) {
        let (lines, to_write) = sync_channel(WAITING);
        (Self { lines, used: Mutex::new([false; MOST]) }, to_write)
    }

    /// Notes a child that leads its own group and has not been waited for. `rule`: whose program it is. If there can be
    /// no note, the log says so. Waits for no disk.
    pub(super) fn note(&self, child: u32, rule: &str) -> Option<ChildNote<'_>> {
        let noted = self.try_note(child, rule).inspect_err(|why| {
            tracing::warn!(
                rule,
                child,
                "this program is not noted, so it would go on after a crash of the agent: {why}"
            );
        });
        noted.ok()
    }

    /// As [`Children::note`]. The error is a clause with the remedy.
    fn try_note(&self, child: u32, rule: &str) -> Result<ChildNote<'_>, String> {
        let leader = Process::of(Path::new(PROC), child);
        let leader = leader.ok_or("/proc does not say when it began; mount /proc")?;
        let full = || format!("{MOST} programs run; set a smaller max_children in [actions]");
        let slot = self.take_slot().ok_or_else(full)?;
        if let Err(why) = self.write(slot, &format!("{child} {} {rule}", leader.started)) {
            self.used()[slot] = false;
            return Err(why.to_owned());
        }
        Ok(ChildNote { children: self, slot })
    }

    fn take_slot(&self) -> Option<usize> {
        let mut used = self.used();
        let free = used.iter().position(|used| !used)?;
        used[free] = true;
        Some(free)
    }

    fn write(&self, slot: usize, text: &str) -> Result<(), &'static str> {
        // If the thread had ended, so had the process.
        self.lines
            .try_send((slot, line(text)))
            .map_err(|_| "the disk with the notes does not answer; look for its errors in the system log")
    }

    fn used(&self) -> MutexGuard<'_, [bool; MOST]> {
        // A panic ends the process, so no lock is poisoned outside of tests.
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for ChildNote<'_> {
    fn drop(&mut self) {
        // The old note does no harm, because its group has ended. The next note of the slot takes its place.
        if let Err(why) = self.children.write(self.slot, "") {
            tracing::warn!("the end of a program is not noted: {why}");
        }
        self.children.used()[self.slot] = false;
    }
}

/// The body of the thread: writes lines until the notes are dropped.
fn write_out(file: &File, lines: &Receiver<NumberedLine>) {
    for (slot, line) in lines {
        let at = LINE * (slot + 1);
        if let Err(error) = file.write_all_at(&line, at as u64) {
            tracing::warn!(%error, "could not note which programs run: after a crash look for them with ps");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note<'c>(children: &'c Children, rule: &str) -> Result<ChildNote<'c>, String> {
        children.try_note(std::process::id(), rule)
    }

    #[test]
    fn a_note_is_there_while_its_child_runs() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("inbox.children");
        let file = trust::create_anew(&path, 0o600).unwrap();
        file.write_all_at(&first_line().unwrap(), 0).unwrap();
        file.write_all_at(&line("").repeat(MOST), LINE as u64).unwrap();
        let (children, to_write) = Children::new();
        // What is on the disk when the thread has written all that it has got.
        let rules = || {
            let (last, written) = sync_channel(WAITING);
            to_write.try_iter().for_each(|line| last.send(line).unwrap());
            drop(last);
            write_out(&file, &written);
            let groups = EarlierNotes::read(&path).unwrap().groups;
            groups.into_iter().map(|group| group.rule).collect::<Vec<_>>()
        };
        let first = note(&children, "one").unwrap();
        let second = note(&children, "two").unwrap();
        assert_eq!(rules(), ["one", "two"]);
        drop(first);
        assert_eq!(rules(), ["two"]);
        // The end of a note and the next one of the same line come in their order.
        let third = note(&children, "three").unwrap();
        drop(third);
        let third = note(&children, "four").unwrap();
        assert_eq!(rules(), ["four", "two"]);
        drop((second, third));
        assert!(rules().is_empty());
    }

    #[test]
    fn the_thread_writes_what_is_noted() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("inbox.children");
        let children = Children::begin(&path).unwrap();
        let _note = children.note(std::process::id(), "one").unwrap();
        let end = std::time::Instant::now() + Duration::from_secs(10);
        while EarlierNotes::read(&path).unwrap().groups.is_empty() {
            assert!(std::time::Instant::now() < end, "the note is not written");
            thread::park_timeout(Duration::from_millis(1));
        }
        assert_eq!(std::fs::metadata(&path).unwrap().len(), (LINE * (MOST + 1)) as u64);
    }

    #[test]
    fn more_children_than_lines_are_named_and_do_no_harm() {
        let (children, to_write) = Children::new();
        let notes: Vec<_> = (0..MOST).map(|_| note(&children, "one").unwrap()).collect();
        let error = note(&children, "one").unwrap_err();
        assert_eq!(error, "64 programs run; set a smaller max_children in [actions]");
        assert_eq!(to_write.try_iter().count(), MOST);
        drop(notes);
        assert_eq!(to_write.try_iter().count(), MOST);
        note(&children, "one").unwrap();
    }

    #[test]
    fn a_disk_that_does_not_answer_is_named_and_holds_up_nothing() {
        let (children, to_write) = Children::new();
        (0..MOST).for_each(|_| drop(note(&children, "one").unwrap()));
        let error = note(&children, "two").unwrap_err();
        assert_eq!(error, "the disk with the notes does not answer; look for its errors in the system log");
        assert!(children.note(std::process::id(), "two").is_none());
        // The disk answers again.
        assert_eq!(to_write.try_iter().count(), WAITING);
        note(&children, "three").unwrap();
    }

    #[test]
    fn a_child_of_which_proc_says_nothing_is_named() {
        let (children, _to_write) = Children::new();
        // No process has such a number.
        let error = children.try_note(4_194_399, "one").unwrap_err();
        assert_eq!(error, "/proc does not say when it began; mount /proc");
    }
}
