//! The journal of a run: a file with the whole run, and what the hub said to each of its messages.
//!
//! Owns: the form of the file, when it is on disk, the lock against a second sender. Must not know: the hub.
//!
//! Each line is a JSON object. The run and its entries come first, and are on disk before anything is sent. Then comes a
//! line for each message that the hub accepted or refused. A message without such a line has not been settled: it is
//! sent when the run is resumed, with the same id, because it is not known whether the hub has it.

use std::collections::HashSet;
use std::fs::{File, TryLockError};
use std::io::{self, BufRead as _, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};

use super::{Entry, MessageTemplate, Naming, Run};
use crate::trust;

/// The form of the file. A version that changes it must change this.
const FORMAT: u32 = 2;
/// More than any line that is written: a line of a list has 512 KiB, and its quotes are escaped.
const LONGEST_LINE: usize = 8 * 1024 * 1024;

/// What the hub said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub(crate) enum Settlement {
    /// The message is in the device's queue.
    Accepted,
    /// It is not, and is not sent again.
    Refused {
        /// The hub's error condition.
        condition: String,
        /// What it means, in a sentence.
        error: String,
    },
}

#[derive(Serialize, Deserialize)]
#[serde(tag = "line", rename_all = "kebab-case")]
enum JournalLine {
    Run {
        format: u32,
        id: String,
        hub: String,
        naming: Naming,
        template: MessageTemplate,
        entries: usize,
    },
    Entry {
        device: String,
        /// The text of the JSON, so that no number in it changes.
        #[serde(skip_serializing_if = "Option::is_none")]
        row: Option<Box<str>>,
    },
    Ready,
    Settled {
        number: usize,
        device: String,
        at: String,
        #[serde(flatten)]
        settlement: Settlement,
    },
}

/// A run, and what is settled of each of its entries. Of each condition, only the first refusal has its error: that one is
/// shown, and all of them would need more memory than the run.
pub(crate) type BegunRun = (Run, Vec<Option<Settlement>>);

/// Why a journal cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum JournalError {
    #[error("the journal {0} exists already: go on with it by --resume, or give --journal another file")]
    Exists(PathBuf),
    #[error("the journal {path} cannot be opened: {}; check the path", trust::in_words(.error))]
    Open { path: PathBuf, error: io::Error },
    #[error("the journal {0} is in use by another c2d-send: end that one first")]
    InUse(PathBuf),
    #[error(
        "the journal {path} cannot be written ({}): make room, then go on with --resume {path}; what is sent until \
         then and not in it is sent again with the same id",
        trust::in_words(.error)
    )]
    Write { path: PathBuf, error: io::Error },
    #[error(
        "the journal {path} cannot be written ({}), so nothing was sent: make room, or give --journal another file",
        trust::in_words(.error)
    )]
    Unmade { path: PathBuf, error: io::Error },
    #[error(
        "the journal {0} was not finished before its run began, so nothing of it was sent: remove it, and start anew"
    )]
    NotReady(PathBuf),
    #[error(
        "the journal {path} has format {format}, and this version of c2d-send knows {FORMAT}: use the version that wrote it"
    )]
    Format { path: PathBuf, format: u32 },
    #[error(
        "{path}, line {line} is no line of a journal: check that it is the right file; it was not changed"
    )]
    Line { path: PathBuf, line: usize },
}

/// The file, open and locked until this is dropped.
#[derive(Debug)]
pub(crate) struct RunJournal {
    file: File,
    path: PathBuf,
    /// The length of all that is known to be whole.
    length: u64,
    /// Of the first message that was settled.
    first_settled: Option<SystemTime>,
}

impl RunJournal {
    /// Makes the file. On return it is on disk with the whole run. Blocks.
    ///
    /// # Errors
    /// When there is such a file, or it cannot be written.
    pub(crate) fn create(path: &Path, run: &Run) -> Result<Self, JournalError> {
        // Messages may be confidential.
        let file = trust::create_exclusive(path, 0o600).map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => JournalError::Exists(path.to_owned()),
            _ => JournalError::Open { path: path.to_owned(), error },
        })?;
        let mut journal = Self { file, path: path.to_owned(), length: 0, first_settled: None };
        journal.lock()?;
        let written = journal.write_run(run).and_then(|()| trust::sync_directory(trust::directory_of(path)));
        if let Err(error) = written {
            // Nothing was sent, so half a journal would only be in the way of the next attempt.
            if let Err(error) = std::fs::remove_file(path) {
                tracing::warn!(path = %path.display(), %error, "remove this journal, which is not whole");
            }
            return Err(JournalError::Unmade { path: path.to_owned(), error });
        }
        Ok(journal)
    }

    /// Opens the journal of a run that was begun, and returns the run with what was settled of it. A last line that is
    /// not whole is cut off. Blocks.
    ///
    /// # Errors
    /// When the file cannot be used. It is not changed then.
    pub(crate) fn resume(path: &Path) -> Result<(Self, BegunRun), JournalError> {
        let failed = |error| JournalError::Open { path: path.to_owned(), error };
        let file = trust::open(path, OFlags::RDWR).map_err(failed)?;
        let mut journal = Self { file, path: path.to_owned(), length: 0, first_settled: None };
        journal.lock()?;
        let begun = journal.read().map_err(failed)??;
        journal.file.set_len(journal.length).map_err(failed)?;
        Ok((journal, begun))
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// When the first message of a resumed run was settled, if one was.
    pub(crate) fn first_settled(&self) -> Option<SystemTime> {
        self.first_settled
    }

    /// Appends what was settled, and returns when it is on disk. Blocks.
    ///
    /// # Errors
    /// When it cannot be written. Then the file is as it was before.
    pub(crate) fn settle(
        &mut self,
        settled: &[(&Entry, &Settlement)],
        at: SystemTime,
    ) -> Result<(), JournalError> {
        let at = humantime::format_rfc3339_seconds(at).to_string();
        let mut text = Vec::new();
        let written = settled.iter().try_for_each(|(entry, settlement)| {
            let (device, settlement) = (entry.device_id.clone(), (*settlement).clone());
            put(&mut text, &JournalLine::Settled { number: entry.number, device, at: at.clone(), settlement })
        });
        let written = written.and_then(|()| {
            io::Seek::seek(&mut self.file, io::SeekFrom::Start(self.length))?;
            self.file.write_all(&text)?;
            self.file.sync_data()
        });
        match written {
            Ok(()) => {
                self.length += text.len() as u64;
                Ok(())
            }
            Err(error) => {
                // Half a line must not be in front of the next one. If this fails, too, resuming cuts it off.
                if let Err(error) = self.file.set_len(self.length) {
                    tracing::debug!(%error, "the journal keeps half a line");
                }
                Err(JournalError::Write { path: self.path.clone(), error })
            }
        }
    }

    fn lock(&self) -> Result<(), JournalError> {
        self.file.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => JournalError::InUse(self.path.clone()),
            TryLockError::Error(error) => JournalError::Open { path: self.path.clone(), error },
        })
    }

    fn write_run(&mut self, run: &Run) -> io::Result<()> {
        let Run { id, hub, naming, template, entries } = run;
        let mut file = BufWriter::new(&self.file);
        let (id, hub, template) = (id.clone(), hub.clone(), template.clone());
        put(
            &mut file,
            &JournalLine::Run { format: FORMAT, id, hub, naming: *naming, template, entries: entries.len() },
        )?;
        for entry in entries {
            let (device, row) = (entry.device_id.clone(), entry.row.clone());
            put(&mut file, &JournalLine::Entry { device, row })?;
        }
        put(&mut file, &JournalLine::Ready)?;
        file.flush()?;
        drop(file);
        self.file.sync_all()?;
        self.length = self.file.metadata()?.len();
        Ok(())
    }

    /// Reads the whole lines.
    fn read(&mut self) -> io::Result<Result<BegunRun, JournalError>> {
        let path = self.path.clone();
        let mut reader = BufReader::new(&self.file);
        let mut text = Vec::new();
        let mut run: Option<(Run, usize)> = None;
        let mut settled = Vec::new();
        let mut conditions = HashSet::new();
        let (mut length, mut first_settled) = (0, None);
        for line in 1.. {
            text.clear();
            let most = LONGEST_LINE as u64 + 1;
            io::Read::take(&mut reader, most).read_until(b'\n', &mut text)?;
            if text.last() != Some(&b'\n') {
                if text.len() > LONGEST_LINE {
                    return Ok(Err(JournalError::Line { path, line }));
                }
                break;
            }
            length += text.len() as u64;
            // Another version's first line may have other fields, so its format is read first.
            if line == 1
                && let Some(format) = format_of(&text).filter(|format| *format != FORMAT)
            {
                return Ok(Err(JournalError::Format { path, format }));
            }
            match (serde_json::from_slice(&text), &mut run) {
                (Ok(JournalLine::Run { id, hub, naming, template, entries, .. }), None) => {
                    run = Some((Run { id, hub, naming, template, entries: Vec::new() }, entries));
                }
                (Ok(JournalLine::Entry { device, row }), Some((run, entries)))
                    if run.entries.len() < *entries =>
                {
                    run.entries.push(Entry { number: run.entries.len() + 1, device_id: device, row });
                }
                (Ok(JournalLine::Ready), Some((run, entries)))
                    if run.entries.len() == *entries && settled.is_empty() =>
                {
                    settled = vec![None; *entries];
                }
                (Ok(JournalLine::Settled { number, device, at, mut settlement }), Some((run, _))) => {
                    first_settled = first_settled.or_else(|| humantime::parse_rfc3339(&at).ok());
                    if let Settlement::Refused { condition, error } = &mut settlement
                        && !conditions.insert(condition.clone())
                    {
                        *error = String::new();
                    }
                    let entry =
                        run.entries.get(number.wrapping_sub(1)).filter(|entry| entry.device_id == device);
                    match (entry, settled.get_mut(number.wrapping_sub(1))) {
                        (Some(_), Some(state)) => *state = Some(settlement),
                        _ => return Ok(Err(JournalError::Line { path, line })),
                    }
                }
                _ => return Ok(Err(JournalError::Line { path, line })),
            }
        }
        drop(reader);
        (self.length, self.first_settled) = (length, first_settled);
        Ok(match run {
            Some((run, _)) if !settled.is_empty() => Ok((run, settled)),
            _ => Err(JournalError::NotReady(path)),
        })
    }
}

fn format_of(text: &[u8]) -> Option<u32> {
    #[derive(Deserialize)]
    struct Format {
        format: u32,
    }
    serde_json::from_slice(text).map(|Format { format }| format).ok()
}

fn put(writer: &mut impl Write, line: &JournalLine) -> io::Result<()> {
    serde_json::to_writer(&mut *writer, line)?;
    writer.write_all(b"\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::EntryList;

    const LIST: &str = "{\"deviceId\": \"a\", \"x\": [1,  2]}\n{\"deviceId\":\"b\"}\n{\"deviceId\":\"c\"}";

    fn run() -> Run {
        let entries = EntryList::of_devices(LIST.as_bytes(), "l").expect("a list").entries;
        let template = MessageTemplate { body: b"hello".to_vec(), ..MessageTemplate::default() };
        Run { id: "r".into(), hub: "h".into(), naming: Naming::ByDevice, template, entries }
    }

    fn refused() -> Settlement {
        Settlement::Refused { condition: "amqp:not-found".into(), error: "no such device".into() }
    }

    fn folder() -> tempfile::TempDir {
        tempfile::tempdir().expect("a folder")
    }

    #[test]
    fn a_run_comes_back_with_what_was_settled() {
        let (folder, run) = (folder(), run());
        let path = folder.path().join("run.jsonl");
        let mut journal = RunJournal::create(&path, &run).expect("a journal");
        let settled = [(&run.entries[0], &Settlement::Accepted), (&run.entries[2], &refused())];
        journal.settle(&settled, SystemTime::UNIX_EPOCH).expect("written");
        assert!(matches!(RunJournal::resume(&path), Err(JournalError::InUse(_))), "while it is open");
        drop(journal);
        let (mut journal, (read, settled)) = RunJournal::resume(&path).expect("a journal");
        assert_eq!((read, settled), (run.clone(), vec![Some(Settlement::Accepted), None, Some(refused())]));
        journal.settle(&[(&run.entries[1], &Settlement::Accepted)], SystemTime::UNIX_EPOCH).expect("written");
        drop(journal);
        let (_, (_, settled)) = RunJournal::resume(&path).expect("a journal");
        assert!(settled.iter().all(Option::is_some));
        assert!(matches!(RunJournal::create(&path, &run), Err(JournalError::Exists(_))));
    }

    #[test]
    fn quotes_that_are_escaped_still_fit_into_a_line() {
        let list = format!("{{\"deviceId\":\"a\",\"x\":[{}0]}}", "\"\",".repeat(170_000));
        let entries = EntryList::of_devices(list.as_bytes(), "l").expect("a list").entries;
        let (folder, run) = (folder(), Run { entries, ..run() });
        let path = folder.path().join("run.jsonl");
        drop(RunJournal::create(&path, &run).expect("a journal"));
        assert!(std::fs::metadata(&path).expect("a file").len() > 800 * 1024);
        assert_eq!(RunJournal::resume(&path).expect("a journal").1.0, run);
    }

    #[test]
    fn each_cut_loses_only_what_was_not_whole() {
        let (folder, run) = (folder(), run());
        let path = folder.path().join("run.jsonl");
        let mut journal = RunJournal::create(&path, &run).expect("a journal");
        let begun = journal.length;
        for entry in &run.entries {
            journal.settle(&[(entry, &Settlement::Accepted)], SystemTime::UNIX_EPOCH).expect("written");
        }
        drop(journal);
        let whole = std::fs::read(&path).expect("a file");
        for cut in 0..=whole.len() {
            std::fs::write(&path, &whole[..cut]).expect("cut");
            let lines = whole[..cut].iter().filter(|byte| **byte == b'\n').count();
            match RunJournal::resume(&path) {
                Ok((journal, (read, settled))) => {
                    assert!(cut as u64 >= begun);
                    assert_eq!((read, settled.iter().flatten().count()), (run.clone(), lines - 5));
                    assert_eq!(journal.length, std::fs::metadata(&path).expect("a file").len());
                }
                Err(JournalError::NotReady(_)) => assert!((cut as u64) < begun),
                Err(error) => panic!("{cut}: {error}"),
            }
        }
    }

    #[test]
    fn a_file_that_is_no_journal_of_this_version_is_not_changed() {
        let folder = folder();
        let path = folder.path().join("run.jsonl");
        drop(RunJournal::create(&path, &run()).expect("a journal"));
        let text = std::fs::read_to_string(&path).expect("a file");
        for (content, said) in [
            (text.replace("\"format\":2", "\"format\":3,\"more\":1"), "has format 3, and this version"),
            (text.replace("{\"line\":\"ready\"}", "{\"line\":\"steady\"}"), "line 5 is no line of a journal"),
            (text.replace("\"entries\":3", "\"entries\":4"), "line 5 is no line of a journal"),
            (
                format!(
                    "{text}{{\"line\":\"settled\",\"number\":4,\"device\":\"d\",\"at\":\"\",\"state\":\"accepted\"}}\n"
                ),
                "line 6",
            ),
            (
                format!(
                    "{text}{{\"line\":\"settled\",\"number\":1,\"device\":\"b\",\"at\":\"\",\"state\":\"accepted\"}}\n"
                ),
                "line 6",
            ),
            (format!("{text}{{\"line\":\"ready\"}}\n"), "line 6 is no line of a journal"),
            ("a list\nof ids\n".to_owned(), "line 1 is no line of a journal"),
            (
                String::new(),
                "was not finished before its run began, so nothing of it was sent: remove it, and",
            ),
        ] {
            std::fs::write(&path, &content).expect("written");
            let error = RunJournal::resume(&path).map(drop).expect_err("refused").to_string();
            assert!(error.contains(said), "{error}");
            assert_eq!(std::fs::read_to_string(&path).expect("a file"), content);
        }
    }
}
