//! The lists of what a run has not brought to its end, beside its journal: each can be sent to again.
//!
//! Owns: their names, and writing them. Must not know: what belongs on which list.

use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use crate::cli::shown::plain;
use crate::fleet::Run;
use crate::trust;

/// Writes the lines of these entries to a list beside the journal. Without any, a list of an earlier attempt is removed:
/// who sends to it once more has the devices act twice. `None` says that nothing is known of the list.
pub(super) fn write(
    run: &Run,
    journal: &Path,
    name: &str,
    entries: Option<&[usize]>,
) -> anyhow::Result<Option<PathBuf>> {
    let Some(entries) = entries else { return Ok(None) };
    let mut path = journal.as_os_str().to_owned();
    path.push(format!(".{name}"));
    let path = PathBuf::from(path);
    if entries.is_empty() {
        return match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error).with_context(|| {
                format!("nothing is left for the list {}: remove it", plain(&path.display().to_string()))
            }),
            _ => Ok(None),
        };
    }
    let mut entries = entries.to_vec();
    entries.sort_unstable();
    let written = trust::create_anew(&path, 0o600).and_then(|file| {
        let mut file = BufWriter::new(file);
        for entry in entries.into_iter().filter_map(|entry| run.entries.get(entry)) {
            writeln!(file, "{}", run.line(entry))?;
        }
        file.flush()
    });
    written.with_context(|| {
        format!(
            "the list {} cannot be written: make room; the journal has what was refused",
            plain(&path.display().to_string())
        )
    })?;
    Ok(Some(path))
}
