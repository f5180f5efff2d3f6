//! A file of values by key. A write adds lines for the values that changed, so it costs as much as they do.
//!
//! Owns: the form of the file, a line that a crash cut off, and the time to write the file anew.
//! Must not know: what keys and values mean, when changes are written.
//!
//! The first line is `{"format":N}`. Each other line is `{"key":…,"value":…}`, or `{"key":…}` when the value is gone;
//! the last line of a key counts. Three rules keep the file right whatever happens:
//!
//! - A last line without its end was cut off by a crash. It is ignored, and the next write replaces it.
//! - Any other line that cannot be read is an error that names the line, and the file stays as it is.
//! - When more than half of the file is out of date, the lines that count are copied to `NAME.new`, which then takes
//!   the place of the file. No value is encoded again, so the owner of the values does not notice.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fs::{File, Permissions};
use std::io::{self, BufRead as _, BufReader, BufWriter, Write as _};
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::trust;

/// A smaller file is not written anew.
const SMALL: u64 = 64 * 1024;

/// Values by key, as JSON.
pub(super) type Values = BTreeMap<String, Box<RawValue>>;

/// Changes by key. `None` removes the value.
pub(super) type Changes = BTreeMap<String, Option<Box<RawValue>>>;

/// An open journal.
pub(super) struct Journal {
    path: PathBuf,
    format: u32,
    /// `None` until there is something to write.
    file: Option<File>,
    /// The bytes of the file that are whole lines.
    length: u64,
    live: HashMap<String, Place>,
    /// The bytes of the lines in `live`.
    live_bytes: u64,
    /// After the file could not be written anew, it must first grow to this length.
    patience: u64,
}

/// Where the line of a key is in the file.
#[derive(Clone, Copy)]
struct Place {
    at: u64,
    bytes: u64,
}

/// Why a journal cannot be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum JournalError {
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The text says what is wrong with the file.
    #[error("{0}")]
    Damaged(String),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Head {
    format: u32,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line<'a> {
    #[serde(borrow)]
    key: Cow<'a, str>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    value: Option<&'a RawValue>,
}

impl Journal {
    /// Opens a journal, and reads its values. A missing file has no values, and is made by the first write.
    ///
    /// # Errors
    /// [`JournalError`]; the file has not changed.
    pub(super) fn open(path: &Path, format: u32) -> Result<(Self, Values), JournalError> {
        let mut journal = Self {
            path: path.to_owned(),
            format,
            file: None,
            length: 0,
            live: HashMap::new(),
            live_bytes: 0,
            patience: 0,
        };
        let file = match trust::open(path, OFlags::RDWR) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((journal, Values::new())),
            opened => opened?,
        };
        let metadata = file.metadata()?;
        if metadata.permissions().mode() & 0o077 != 0 {
            // It has keys and messages. A copy that was put here may have been open to others.
            file.set_permissions(Permissions::from_mode(0o600))?;
        }
        let values = journal.read(&file)?;
        journal.file = Some(file);
        Ok((journal, values))
    }

    fn read(&mut self, file: &File) -> Result<Values, JournalError> {
        let mut values = Values::new();
        let mut reader = BufReader::with_capacity(64 * 1024, file);
        let mut text = Vec::new();
        for number in 1_u64.. {
            text.clear();
            let bytes = reader.read_until(b'\n', &mut text)? as u64;
            if text.last() != Some(&b'\n') {
                // The end of the file, or a line that a crash cut off. Without its head, the file was never written.
                break;
            }
            if number == 1 {
                self.check_head(&text)?;
            } else {
                let damaged = |error: serde_json::Error| {
                    // Its own line number is that of the line by itself.
                    let error = error.to_string();
                    let error = error.split(" at line ").next().unwrap_or_default();
                    let words = "if you remove this line, the others can be read";
                    JournalError::Damaged(format!("line {number} is damaged: {error}; {words}"))
                };
                let Line { key, value } = serde_json::from_slice(&text).map_err(damaged)?;
                match value {
                    Some(value) => drop(values.insert(key.to_string(), value.to_owned())),
                    None => drop(values.remove(&*key)),
                }
                self.note(&key, value.map(|_| Place { at: self.length, bytes }));
            }
            self.length += bytes;
        }
        Ok(values)
    }

    fn check_head(&self, text: &[u8]) -> Result<(), JournalError> {
        let Head { format } = serde_json::from_slice(text)
            .map_err(|error| JournalError::Damaged(format!("line 1 is damaged: {error}")))?;
        if format == self.format {
            return Ok(());
        }
        let known = self.format;
        Err(JournalError::Damaged(format!(
            "it has format {format}, and this version of c2d-agent knows format {known}"
        )))
    }

    fn note(&mut self, key: &str, place: Option<Place>) {
        let before = match place {
            Some(place) => {
                self.live_bytes += place.bytes;
                self.live.insert(key.to_owned(), place)
            }
            None => self.live.remove(key),
        };
        self.live_bytes -= before.map_or(0, |place| place.bytes);
    }

    /// Whether the file has a value for this key.
    pub(super) fn has(&self, key: &str) -> bool {
        self.live.contains_key(key)
    }

    /// Writes changes, and returns when they are on disk. The first write makes the file with all of them or not at
    /// all.
    ///
    /// # Errors
    /// What the system says; in this case none of the changes counts, and the next write may repeat them.
    pub(super) fn append(&mut self, changes: &Changes) -> io::Result<()> {
        let mut text = if self.length == 0 { self.head()? } else { Vec::new() };
        let mut places = Vec::new();
        for (key, value) in changes.iter().filter(|(key, value)| value.is_some() || self.has(key)) {
            let at = text.len();
            serde_json::to_writer(&mut text, &Line { key: key.into(), value: value.as_deref() })?;
            text.push(b'\n');
            let place = Place { at: self.length + at as u64, bytes: (text.len() - at) as u64 };
            places.push((key, value.is_some().then_some(place)));
        }
        if places.is_empty() {
            return Ok(());
        }
        match self.file.as_ref().filter(|_| self.length > 0) {
            Some(file) => {
                // Part of a line may be here, from a crash or from a write that failed.
                file.set_len(self.length)?;
                let written = file.write_all_at(&text, self.length).and_then(|()| file.sync_data());
                if let Err(error) = written {
                    // What was refused must not count after a restart. If this fails, too, the next write does it.
                    let _cut = file.set_len(self.length);
                    return Err(error);
                }
            }
            None => self.file = Some(self.replace(|writer| writer.write_all(&text))?),
        }
        self.length += text.len() as u64;
        places.into_iter().for_each(|(key, place)| self.note(key, place));
        if self.length > SMALL.max(2 * self.live_bytes).max(self.patience)
            && let Err(error) = self.write_anew()
        {
            self.patience = self.length * 2;
            let path = self.path.display();
            tracing::warn!("{path} cannot be written anew without what is out of date, so it grows: {error}");
        }
        Ok(())
    }

    /// Writes the lines that count to a new file.
    fn write_anew(&mut self) -> io::Result<()> {
        let Some(present) = &self.file else { return Ok(()) };
        let head = self.head()?;
        let mut length = head.len() as u64;
        let mut lines: Vec<(String, Place)> =
            self.live.iter().map(|(key, place)| (key.clone(), *place)).collect();
        lines.sort_by_key(|(_, place)| place.at);
        let file = self.replace(|writer| {
            writer.write_all(&head)?;
            let mut text = Vec::new();
            for (_, place) in &mut lines {
                // A line was in memory when it was written, so it fits again.
                text.resize(usize::try_from(place.bytes).unwrap_or(usize::MAX), 0);
                present.read_exact_at(&mut text, place.at)?;
                writer.write_all(&text)?;
                place.at = length;
                length += place.bytes;
            }
            Ok(())
        })?;
        (self.file, self.length, self.patience) = (Some(file), length, 0);
        self.live = lines.into_iter().collect();
        Ok(())
    }

    fn head(&self) -> io::Result<Vec<u8>> {
        let mut head = serde_json::to_vec(&Head { format: self.format })?;
        head.push(b'\n');
        Ok(head)
    }

    /// Makes a new file, and puts it in the place of the present one when it is whole and on disk. A part of one is
    /// removed: on a full disk, it would take the room of the next write.
    fn replace(&self, write: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>) -> io::Result<File> {
        let mut begun = self.path.as_os_str().to_owned();
        begun.push(".new");
        let made = self.replace_by(Path::new(&begun), write);
        if made.is_err() {
            let _removed = std::fs::remove_file(&begun);
        }
        made
    }

    fn replace_by(
        &self,
        begun: &Path,
        write: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>,
    ) -> io::Result<File> {
        let mut writer = BufWriter::new(trust::create_anew(begun, 0o600)?);
        write(&mut writer)?;
        let file = writer.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.sync_all()?;
        let directory = File::open(trust::directory_of(&self.path))?;
        std::fs::rename(begun, &self.path)?;
        // The file has its name now, so nothing may fail any more.
        if let Err(error) = directory.sync_all() {
            tracing::warn!("{} may be lost in a power cut: {error}", self.path.display());
        }
        Ok(file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(text: &str) -> Option<Box<RawValue>> {
        Some(RawValue::from_string(text.to_owned()).expect("JSON"))
    }

    fn shown(values: &Values) -> Vec<(&str, &str)> {
        values.iter().map(|(key, value)| (key.as_str(), value.get())).collect()
    }

    fn open(path: &Path) -> (Journal, Values) {
        Journal::open(path, 7).expect("a journal")
    }

    fn refusal(path: &Path) -> String {
        Journal::open(path, 7).err().expect("refused").to_string()
    }

    #[test]
    fn the_last_value_of_a_key_counts_and_a_write_adds_only_what_changed() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("it.jsonl");
        let (mut journal, values) = open(&path);
        assert!(values.is_empty() && !path.exists());
        let many = (0..500).map(|n| (format!("k{n}"), value(r#"{"a":1}"#))).collect();
        journal.append(&many).expect("written");
        let before = std::fs::metadata(&path).expect("there").len();
        let changes = [("k0".to_owned(), value("[2]")), ("k1".to_owned(), None), ("none".to_owned(), None)];
        journal.append(&changes.into()).expect("written");
        let added = "{\"key\":\"k0\",\"value\":[2]}\n{\"key\":\"k1\"}\n";
        assert_eq!(std::fs::metadata(&path).expect("there").len() - before, added.len() as u64);
        assert!(std::fs::read_to_string(&path).expect("text").ends_with(added));
        let (journal, values) = open(&path);
        assert_eq!((values.len(), values["k0"].get(), values.contains_key("k1")), (499, "[2]", false));
        assert!(journal.has("k0") && !journal.has("k1"));
    }

    #[test]
    fn a_file_that_others_could_read_is_closed_to_them() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("it.jsonl");
        std::fs::write(&path, "{\"format\":7}\n{\"key\":\"a\",\"value\":1}\n").expect("written");
        std::fs::set_permissions(&path, Permissions::from_mode(0o644)).expect("set");
        assert_eq!(shown(&open(&path).1), [("a", "1")]);
        assert_eq!(std::fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
    }

    /// A crash can end a file at each byte.
    #[test]
    fn a_file_that_was_cut_anywhere_has_all_its_whole_lines_and_can_be_written_again() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("it.jsonl");
        let (mut journal, _) = open(&path);
        for (key, text) in [("a", value("1")), ("b", value("\"x\"")), ("a", value("2")), ("b", None)] {
            journal.append(&[(key.to_owned(), text)].into()).expect("written");
        }
        drop(journal);
        let whole = std::fs::read(&path).expect("text");
        for cut in 0..=whole.len() {
            std::fs::write(&path, &whole[..cut]).expect("written");
            let lines = whole[..cut].iter().filter(|byte| **byte == b'\n').count();
            let expected: &[(&str, &str)] = match lines {
                0 | 1 => &[],
                2 => &[("a", "1")],
                3 => &[("a", "1"), ("b", "\"x\"")],
                4 => &[("a", "2"), ("b", "\"x\"")],
                _ => &[("a", "2")],
            };
            let (mut journal, values) = open(&path);
            assert_eq!(shown(&values), expected, "cut at {cut}");
            journal.append(&[("c".to_owned(), value("3"))].into()).expect("written");
            let (_, values) = open(&path);
            assert_eq!(shown(&values), [expected, &[("c", "3")]].concat(), "cut at {cut}");
        }
    }

    #[test]
    fn a_file_is_written_anew_when_most_of_it_is_out_of_date_and_nothing_is_lost() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("it.jsonl");
        let (mut journal, _) = open(&path);
        let large = format!("\"{}\"", "x".repeat(1000));
        journal.append(&[("kept".to_owned(), value(&large))].into()).expect("written");
        let mut longest = 0;
        for n in 0..500 {
            journal
                .append(&[("changes".to_owned(), value(&format!("[{n},{large}]")))].into())
                .expect("written");
            longest = longest.max(std::fs::metadata(&path).expect("there").len());
        }
        assert!(longest < SMALL + 2 * 1024, "{longest}");
        let (mut journal, values) = open(&path);
        assert_eq!((values["kept"].get(), values["changes"].get()), (&*large, &*format!("[499,{large}]")));
        // A new file that cannot be made only costs room.
        std::fs::create_dir(dir.path().join("it.jsonl.new")).expect("made");
        for n in 0..200 {
            journal
                .append(&[("changes".to_owned(), value(&format!("[{n},{large}]")))].into())
                .expect("written");
        }
        assert_eq!(open(&path).1["changes"].get(), format!("[199,{large}]"));
    }

    #[test]
    fn a_damaged_line_is_named_and_the_file_stays_as_it_is() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("it.jsonl");
        for (text, part) in [
            ("{\"format\":7}\n{\"key\":\"a\",\"val\n{\"key\":\"b\",\"value\":1}\n", "line 2 is damaged: "),
            ("{\"format\":7}\n{\"key\":\"a\",\"value\":1}\n\u{0}\u{0}\n", "line 3 is damaged: "),
            ("{\"format\":7}\n{\"key\":\"a\",\"other\":1}\n", "line 2 is damaged: unknown field `other`"),
            ("{\"format\":8}\n", "it has format 8, and this version of c2d-agent knows format 7"),
            ("[]\n", "line 1 is damaged: "),
        ] {
            std::fs::write(&path, text).expect("written");
            assert!(refusal(&path).contains(part), "{part}: {}", refusal(&path));
            assert_eq!(std::fs::read_to_string(&path).expect("text"), text);
        }
    }

    #[test]
    fn a_write_that_failed_can_be_repeated() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("it.jsonl");
        let obstacle = dir.path().join("it.jsonl.new");
        std::fs::create_dir(&obstacle).expect("made");
        let (mut journal, _) = open(&path);
        let changes = [("a".to_owned(), value("1"))].into();
        journal.append(&changes).expect_err("the file cannot be made");
        std::fs::remove_dir(&obstacle).expect("removed");
        journal.append(&changes).expect("written");
        assert_eq!(shown(&open(&path).1), [("a", "1")]);
    }
}
