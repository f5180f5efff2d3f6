//! The files that `init` writes.
//!
//! Owns: owner and mode, and that either all files are written or none. Must not know: what is in the files.

use std::fmt;
use std::fs::{self, DirBuilder, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::anyhow;
use rustix::fs::{Access, Mode, OFlags, access, fchmod, open};
use rustix::process::geteuid;

use crate::trust;

/// A file to write. It will belong to the user who runs `init`.
#[derive(Debug)]
pub(super) struct NewFile {
    path: PathBuf,
    content: Vec<u8>,
    mode: u32,
}

/// `/etc/c2d-agent/config.toml, mode 0644`
impl fmt::Display for NewFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, mode {:04o}", self.path.display(), self.mode)
    }
}

impl NewFile {
    /// A file that only its owner may read.
    pub(super) fn secret(path: PathBuf, content: Vec<u8>) -> Self {
        Self { path, content, mode: 0o600 }
    }

    /// A file that everybody may read.
    pub(super) fn open(path: PathBuf, content: Vec<u8>) -> Self {
        Self { path, content, mode: 0o644 }
    }

    /// The path where the file is first written; it is renamed when all files are complete.
    fn begun(&self) -> PathBuf {
        let mut name = self.path.as_os_str().to_owned();
        name.push(".new");
        name.into()
    }

    /// The file that already exists with this content.
    fn found(&self) -> Option<fs::Metadata> {
        let found = fs::symlink_metadata(&self.path).ok().filter(fs::Metadata::is_file)?;
        let is_equal = found.len() == self.content.len() as u64
            && fs::read(&self.path).is_ok_and(|content| content == self.content);
        is_equal.then_some(found)
    }

    /// Whether it exists as it should be: with this content, and with its owner and mode.
    fn is_there(&self) -> bool {
        let is_ours = |found: fs::Metadata| {
            found.uid() == geteuid().as_raw() && found.permissions().mode() & 0o7777 == self.mode
        };
        self.found().is_some_and(is_ours)
    }

    /// Writes the file under the other name. The mode is set afterwards, because the umask could take rights away that
    /// the agent's user needs.
    fn begin(&self) -> io::Result<()> {
        let mut file = trust::create_anew(&self.begun(), 0o600)?;
        file.write_all(&self.content)?;
        file.set_permissions(Permissions::from_mode(self.mode))?;
        file.sync_all()
    }
}

/// Checks whether the configuration can be written, before the user is asked anything.
///
/// # Errors
/// A sentence with the remedy.
pub(super) fn check(config: &Path, force: bool) -> anyhow::Result<()> {
    check_free(config, force)?;
    let directory = trust::directory_of(config);
    let place = match fs::metadata(directory) {
        Ok(found) if found.is_dir() => directory,
        Ok(_) => {
            return Err(anyhow!(
                "{} is not a directory: name a file in one with --config",
                directory.display()
            ));
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => trust::directory_of(directory),
        Err(error) => return Err(refused(directory, &error)),
    };
    access(place, Access::WRITE_OK | Access::EXEC_OK).map_err(|error| refused(place, &error.into()))
}

/// Checks that a file may be written here.
fn check_free(path: &Path, force: bool) -> anyhow::Result<()> {
    let Ok(found) = fs::symlink_metadata(path) else { return Ok(()) };
    let path = path.display();
    match () {
        () if found.is_dir() => Err(anyhow!("{path} is a directory: name a file in it with --config")),
        () if !found.is_file() => {
            Err(anyhow!("{path} is a link or not a regular file: remove it, or give another --config"))
        }
        () if !force => Err(anyhow!(
            "{path} is there already, and nothing was written: edit it, give another --config, or replace it with --force"
        )),
        () => Ok(()),
    }
}

/// Writes all files that do not exist with this content, and returns them. All files are on disk under another name
/// before the first one gets its own name.
///
/// # Errors
/// A sentence with the reason. The earlier files stay; if a rename fails, those renamed before it are replaced.
pub(super) fn write(files: &[NewFile], force: bool) -> anyhow::Result<Vec<&NewFile>> {
    let files: Vec<&NewFile> = files.iter().filter(|file| !file.is_there()).collect();
    for file in &files {
        // Only owner or mode are wrong where the content is the same: that is put right without asking.
        check_free(&file.path, force || file.found().is_some())?;
    }
    let Some(first) = files.first() else { return Ok(files) };
    let directory = trust::directory_of(&first.path);
    let made = make(directory)?;
    let begun = files.iter().try_for_each(|file| file.begin().map_err(|error| refused(&file.path, &error)));
    let written = begun.and_then(|()| {
        files.iter().try_for_each(|file| {
            fs::rename(file.begun(), &file.path).map_err(|error| {
                let (place, why) = (file.path.display(), trust::in_words(&error));
                anyhow!("cannot replace {place}: {why}; other files may be replaced already, so run it again with --force")
            })
        })
    });
    if let Err(error) = written {
        for file in &files {
            drop(fs::remove_file(file.begun())); // it may not exist
        }
        if made {
            drop(fs::remove_dir(directory)); // fails if another process has put a file there
        }
        return Err(error);
    }
    trust::sync_directory(directory).map_err(|error| refused(directory, &error))?;
    Ok(files)
}

/// Makes the directory, readable for everybody; false if it already exists.
fn make(directory: &Path) -> anyhow::Result<bool> {
    match DirBuilder::new().mode(0o755).create(directory) {
        Ok(()) => {
            // The directory itself: another user may have put a link in its place.
            let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let opened = open(directory, flags, Mode::empty());
            let set = opened.and_then(|opened| fchmod(opened, Mode::from_raw_mode(0o755)));
            set.map(|()| true).map_err(|error| refused(directory, &error.into()))
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(refused(directory, &error)),
    }
}

fn refused(place: &Path, error: &io::Error) -> anyhow::Error {
    let place = place.display();
    match error.kind() {
        io::ErrorKind::PermissionDenied => anyhow!(
            "cannot write to {place}: permission denied; run it with sudo, or name a file in a directory of your own with --config"
        ),
        io::ErrorKind::NotFound => {
            anyhow!("cannot write to {place}: there is no such directory; make it, or give another --config")
        }
        io::ErrorKind::ReadOnlyFilesystem => {
            anyhow!(
                "cannot write to {place}: its file system is read-only; make it writable, or give another --config"
            )
        }
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            anyhow!(
                "cannot write {place}: the disk is full; nothing was changed, so make room and run it again"
            )
        }
        _ => anyhow!("cannot write {place}: {error}"),
    }
}
