//! Reads the files that a configuration names: paths, secrets, programs.
//!
//! Owns: limits for reading. Must not know: the schema, who may write where (`trust`).

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use crate::trust::in_words;

/// The limit of systemd for all credentials of one service together.
const MAX_CREDENTIAL_BYTES: u64 = 1024 * 1024;

/// Reads a text file of at most `limit` bytes.
///
/// # Errors
/// The reason, without the file's name.
pub(super) fn read_text(path: &Path, limit: u64) -> Result<String, String> {
    check_regular(path)?;
    let file = File::open(path).map_err(|error| in_words(&error))?;
    text_of(file, limit)
}

/// Reads an open text file of at most `limit` bytes.
///
/// # Errors
/// The reason, without the file's name.
pub(super) fn text_of(file: File, limit: u64) -> Result<String, String> {
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes).map_err(|error| in_words(&error))?;
    if bytes.len() as u64 > limit {
        return Err(format!("it is larger than {limit} bytes; is it the right file?"));
    }
    String::from_utf8(bytes).map_err(|_| "it is not UTF-8 text: save it as UTF-8".to_owned())
}

/// Whether something is at the path. A link counts by itself, because a link to a missing file is a mistake.
pub(super) fn is_there(path: &Path) -> bool {
    !fs::symlink_metadata(path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
}

/// Whether the path is a regular file. Reading anything else could block or never end.
///
/// # Errors
/// The reason, without the file's name.
pub(super) fn check_regular(path: &Path) -> Result<(), String> {
    let metadata = fs::metadata(path).map_err(|error| in_words(&error))?;
    match () {
        () if metadata.is_file() => Ok(()),
        () if metadata.is_dir() => Err("it is a directory".to_owned()),
        () => Err("it is not a regular file".to_owned()),
    }
}

/// Whether this process may open the file for reading. Only a regular file is opened, because a pipe would block.
pub(super) fn can_open(path: &Path) -> bool {
    check_regular(path).is_ok() && File::open(path).is_ok()
}

/// Whether the file exists and has more than white space.
pub(super) fn has_text(path: &Path) -> bool {
    read_text(path, MAX_CREDENTIAL_BYTES).is_ok_and(|text| !text.trim().is_empty())
}

/// Whether everyone on the machine can read the file.
pub(super) fn is_world_readable(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|metadata| metadata.permissions().mode() & 0o004 != 0)
}
