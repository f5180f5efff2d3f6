//! Where a run keeps its files: its journal, and the lists of what it has not done.
//!
//! Owns: which place is taken when none is given, and whether a file can be made there. Must not know: what is in the
//! files.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow};

use super::back_end;
use crate::trust;

/// The place of a file beside the list that a run was given: the name of the list and `ending`. Without a list, or with
/// one that has no place of its own, such as standard input or a pipe, it is `own` in the folder of the user's state,
/// which is made.
///
/// # Errors
/// When there is no such folder and it cannot be made.
pub(super) fn beside(list: Option<&Path>, ending: &str, own: &str) -> anyhow::Result<PathBuf> {
    // If there is no such list, its reader says so.
    let has_place = |list: &&Path| {
        // Such as /dev/stdin, which may lead to a regular file.
        let is_open_file = list.starts_with("/dev") || list.starts_with("/proc");
        let is_regular = fs::metadata(list).map_or(true, |metadata| metadata.is_file());
        list.as_os_str() != "-" && !is_open_file && is_regular
    };
    if let Some(list) = list.filter(has_place) {
        let mut name = list.as_os_str().to_owned();
        name.push(ending);
        return Ok(name.into());
    }
    let folder = back_end::state_folder()?.join("runs");
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    Ok(folder.join(own))
}

/// Makes sure that a list can be written there later, and leaves what is there as it is. It makes and removes a file
/// beside it, because the mode of a folder does not say everything.
///
/// # Errors
/// When no file can be made there.
pub(super) fn check_is_writable(list: &Path) -> anyhow::Result<()> {
    let mut probe = list.as_os_str().to_owned();
    probe.push(".new");
    let made = match fs::metadata(list) {
        Ok(found) if !found.is_file() => Err(std::io::Error::other("it is no regular file")),
        _ => trust::create_anew(Path::new(&probe), 0o600).and_then(|_| fs::remove_file(&probe)),
    };
    made.map_err(|error| {
        anyhow!(
            "the devices at which it fails could not be written to {}: {}; name another file with --failed",
            list.display(),
            trust::in_words(&error)
        )
    })
}
