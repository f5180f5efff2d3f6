//! The texts of a configuration, the main file and its drop-ins, in one address space.
//!
//! Owns: which file a place is in. Must not know: TOML, the disk. Used by: `config`, `config::report`.

use std::ops::Range;
use std::path::{Path, PathBuf};

/// All texts in the order in which they count. A place is a range of bytes of all of them, one after the other.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Sources(Vec<Source>);

/// One file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Source {
    pub(super) path: PathBuf,
    pub(super) text: String,
    /// The place of its first byte.
    pub(super) base: usize,
}

impl Sources {
    /// Adds a file behind the others.
    pub(super) fn push(&mut self, path: impl Into<PathBuf>, text: impl Into<String>) {
        // One address stays free between two files, so that the end of one is not the begin of the next.
        let base = self.0.last().map_or(0, |last| last.base + last.text.len() + 1);
        self.0.push(Source { path: path.into(), text: text.into(), base });
    }

    /// The files; the main one is the first.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Source> {
        self.0.iter()
    }

    /// The main file.
    pub(super) fn main(&self) -> Option<&Path> {
        self.0.first().map(|main| main.path.as_path())
    }

    /// Bytes of all texts together.
    pub(super) fn bytes(&self) -> usize {
        self.iter().map(|source| source.text.len()).sum()
    }

    /// The file that a place is in, and the bytes of its own text.
    pub(super) fn find(&self, place: &Range<usize>) -> Option<(&Source, Range<usize>)> {
        let behind = self.0.partition_point(|source| source.base <= place.start);
        let source = self.0.get(behind.checked_sub(1)?)?;
        Some((source, place.start - source.base..place.end.max(place.start) - source.base))
    }
}
