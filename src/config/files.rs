//! What a configuration says about files: paths, secrets, programs.
//!
//! Owns: bounded reading, and what makes a file unsafe. Must not know: the schema.
//! Used by: `config::drop_ins`, `config::device`, `config::steps`.

use std::fs::{self, Metadata};
use std::io::Read as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

/// What systemd gives to one service, all credentials together.
const MAX_CREDENTIAL_BYTES: u64 = 1024 * 1024;
/// Writable by the group or by others.
const FOREIGN_WRITE: u32 = 0o022;
/// In such a directory only the owner can replace a file.
const STICKY: u32 = 0o1000;

/// Reads a text file of at most `limit` bytes.
///
/// # Errors
/// The reason, without the file's name.
pub(super) fn read_text(path: &Path, limit: u64) -> Result<String, String> {
    check_regular(path)?;
    let mut bytes = Vec::new();
    let file = fs::File::open(path).map_err(|error| in_words(&error))?;
    file.take(limit + 1).read_to_end(&mut bytes).map_err(|error| in_words(&error))?;
    if bytes.len() as u64 > limit {
        return Err(format!("it is larger than {limit} bytes; is it the right file?"));
    }
    String::from_utf8(bytes).map_err(|_| "it is not UTF-8 text".to_owned())
}

/// Whether there is a regular file: anything else could block or never end.
///
/// # Errors
/// The reason, without the file's name.
pub(super) fn check_regular(path: &Path) -> Result<(), String> {
    let metadata = fs::metadata(path).map_err(|error| in_words(&error))?;
    if metadata.is_file() { Ok(()) } else { Err("it is not a regular file".to_owned()) }
}

/// Whether this process may open the file for reading. What is not a regular file is not opened: a pipe would block.
pub(super) fn can_open(path: &Path) -> bool {
    check_regular(path).is_ok() && fs::File::open(path).is_ok()
}

/// Whether there is a file with more than white space in it.
pub(super) fn has_text(path: &Path) -> bool {
    read_text(path, MAX_CREDENTIAL_BYTES).is_ok_and(|text| !text.trim().is_empty())
}

/// Whether everyone on the machine can read the file.
pub(super) fn is_world_readable(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|metadata| metadata.permissions().mode() & 0o004 != 0)
}

/// Why `program` must not be run; `None` when it may.
///
/// Whoever can change a program decides what the device does. So neither the file nor the directories in which it and
/// a link to it stand may be writable by the group or by others, nor belong to another user than root and the one who
/// runs this.
pub(super) fn unfit_program(program: &str) -> Option<String> {
    let path = Path::new(program);
    let (real, metadata) = match fs::canonicalize(path)
        .and_then(|real| Ok((real.clone(), fs::metadata(real)?)))
    {
        Ok(found) => found,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Some(format!("the program {program} does not exist: install it, or correct the path"));
        }
        Err(error) => return Some(format!("the program {program} cannot be found: {}", in_words(&error))),
    };
    if !metadata.is_file() {
        return Some(format!("the program {program} is not a file"));
    }
    if mode(&metadata) & 0o111 == 0 {
        return Some(format!("the program {program} is not executable: run chmod +x {program}"));
    }
    if mode(&metadata) & FOREIGN_WRITE != 0 {
        let real = real.display();
        return Some(format!(
            "the program {real} is writable by others than its owner: run chmod go-w {real}"
        ));
    }
    if let Some(owner) = foreign_owner(&metadata) {
        let real = real.display();
        return Some(format!(
            "the program {real} belongs to user {owner}, who could change it: run chown root {real}, or run the agent \
             as that user"
        ));
    }
    let directories: [Option<PathBuf>; 2] = [real.parent(), path.parent()].map(|dir| dir.map(Path::to_owned));
    directories.into_iter().flatten().find_map(|directory| {
        let metadata = fs::metadata(&directory).ok()?;
        let directory = directory.display();
        if mode(&metadata) & FOREIGN_WRITE != 0 && mode(&metadata) & STICKY == 0 {
            return Some(format!(
                "the program {program} stands in {directory}, which is writable by others than its owner: run \
                 chmod go-w {directory}"
            ));
        }
        let owner = foreign_owner(&metadata)?;
        Some(format!(
            "the program {program} stands in {directory}, which belongs to user {owner}, who could replace it: run \
             chown root {directory}, or run the agent as that user"
        ))
    })
}

/// Who else than root and the user who runs this can change the file or directory, and the remedy; `None` for nobody.
pub(super) fn foreign_hands(path: &Path) -> Option<String> {
    let metadata = fs::metadata(path).ok()?;
    let path = path.display();
    if mode(&metadata) & FOREIGN_WRITE != 0 {
        return Some(format!("it is writable by others than its owner: run chmod go-w {path}"));
    }
    let owner = foreign_owner(&metadata)?;
    Some(format!("it belongs to user {owner}: run chown root {path}, or run the agent as that user"))
}

/// The owner, unless that is root or the user who runs this.
fn foreign_owner(metadata: &Metadata) -> Option<u32> {
    let owner = metadata.uid();
    (owner != 0 && owner != rustix::process::geteuid().as_raw()).then_some(owner)
}

/// The reason without the operating system's error number.
pub(super) fn in_words(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::NotADirectory => "it is not a directory".to_owned(),
        std::io::ErrorKind::NotFound => "there is no such file".to_owned(),
        std::io::ErrorKind::PermissionDenied => format!(
            "permission denied to user {}, who runs this: let that user read it, or run this as its owner",
            rustix::process::geteuid().as_raw()
        ),
        _ => error.to_string(),
    }
}

fn mode(metadata: &Metadata) -> u32 {
    metadata.permissions().mode()
}
