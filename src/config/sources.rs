//! The texts of a configuration (the main file, its drop-ins and the twin's texts) in one address space.
//!
//! Owns: which file a place is in. Must not know: TOML, the disk.

use std::ops::Range;
use std::path::{Path, PathBuf};

/// All texts in the order in which they count. A place is a range of bytes in all texts, put one after the other.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Sources(Vec<SourceFile>);

/// One file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SourceFile {
    pub(super) path: PathBuf,
    pub(super) text: String,
    /// The place of its first byte.
    pub(super) base: usize,
    /// The text is the twin's, so its content is restricted.
    pub(super) is_remote: bool,
}

impl Sources {
    /// Adds a file after the others.
    pub(super) fn push(&mut self, path: impl Into<PathBuf>, text: impl Into<String>) {
        self.add(path.into(), text.into(), false);
    }

    /// Adds a text of the twin after all others.
    pub(super) fn push_remote(&mut self, name: &str, text: impl Into<String>) {
        self.add(format!("twin:{name}").into(), text.into(), true);
    }

    fn add(&mut self, path: PathBuf, text: String, is_remote: bool) {
        // One address stays free between two files, so that the end of one is not the beginning of the next.
        let base = self.0.last().map_or(0, |last| last.base + last.text.len() + 1);
        self.0.push(SourceFile { path, text, base, is_remote });
    }

    /// The sources without the twin's texts.
    pub(super) fn local(&self) -> Self {
        Self(self.iter().filter(|source| !source.is_remote).cloned().collect())
    }

    /// The name of the twin's text that has this place; `None` for a place in a file.
    pub(super) fn remote(&self, place: &Range<usize>) -> Option<String> {
        let (source, _) = self.find(place)?;
        source.is_remote.then(|| source.path.display().to_string())
    }

    /// The files; the main one is the first.
    pub(super) fn iter(&self) -> impl Iterator<Item = &SourceFile> {
        self.0.iter()
    }

    /// The main file.
    pub(super) fn main(&self) -> Option<&Path> {
        self.0.first().map(|main| main.path.as_path())
    }

    /// The number of bytes of all texts.
    pub(super) fn bytes(&self) -> usize {
        self.iter().map(|source| source.text.len()).sum()
    }

    /// The file that has this place, and the range in its own text.
    pub(super) fn find(&self, place: &Range<usize>) -> Option<(&SourceFile, Range<usize>)> {
        let behind = self.0.partition_point(|source| source.base <= place.start);
        let source = self.0.get(behind.checked_sub(1)?)?;
        Some((source, place.start - source.base..place.end.max(place.start) - source.base))
    }
}
