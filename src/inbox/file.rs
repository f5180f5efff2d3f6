//! The inbox's file on the disk: created for its owner only, opened only if no other user can change it, moved aside
//! if damaged.
//!
//! Owns: permissions, what an inbox looks like from outside, the name of a damaged file, what must reach the disk
//! besides the file's own content. Must not know: what is in it.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use redb::Database;
use redb::backends::FileBackend;
use rustix::fs::{CWD, OFlags, RenameFlags, renameat_with};
use rustix::io::Errno;

use super::holder::Holder;
use super::lock::{Claim, refused_owner};
use super::trouble::Trouble;
use super::watched::Watched;
use crate::trust;

/// redb's page cache. It is small, because the agent should need only a few MB, and the ledger has what is needed
/// often.
const CACHE_BYTES: usize = 512 * 1024;

/// Where the database comes from.
pub(super) trait DatabasePlace {
    /// Opens it, or creates it if it is missing.
    fn open(&mut self) -> Result<Database, Trouble>;

    /// Called when a write failed: later reads must come from the disk.
    fn distrust_cache(&self);

    /// Moves a damaged one aside, and returns where to.
    fn set_aside(&mut self, now: SystemTime) -> Result<PathBuf, Trouble>;

    /// The path to name in sentences.
    fn path(&self) -> &Path;
}

#[derive(Debug)]
pub(super) struct InboxPath {
    claim: Claim,
    path: PathBuf,
    /// Whether to create it.
    create: bool,
    /// Whether the log has a warning about its permissions.
    warned: bool,
}

impl InboxPath {
    pub(super) fn new(path: PathBuf, create: bool) -> Self {
        Self { claim: Claim::new(&path, create), path, create, warned: false }
    }

    /// The file that this process has claimed, or will claim when it can.
    pub(super) fn claimed(claim: Claim) -> Self {
        let path = claim.inbox().to_owned();
        Self { claim, path, create: true, warned: false }
    }

    fn existing(&mut self) -> Result<Option<Database>, Trouble> {
        match trust::open(&self.path, OFlags::RDWR) {
            Ok(file) => {
                self.check(&file)?;
                database(file).map(Some)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::IsADirectory => {
                Err(Trouble::NotAFile("a directory"))
            }
            Err(error) => Err(Trouble::Io("open", error)),
        }
    }

    /// Creates the file under another name first. So a file with the real name is always whole, and one that cannot
    /// be read is damaged.
    fn create(&self) -> Result<Database, Trouble> {
        let failed = |error| Trouble::Io("create", error);
        let mut begun = self.path.clone().into_os_string();
        begun.push(".new");
        let begun = PathBuf::from(begun);
        // No other user can ever read it, because messages may hold secrets.
        let file = trust::create_anew(&begun, 0o600).map_err(failed)?;
        let made = database(file).and_then(|database| {
            name_it(&begun, &self.path).map_err(|error| match error.kind() {
                io::ErrorKind::AlreadyExists => Trouble::InUse(Holder::default()),
                _ => failed(error),
            })?;
            // Without this sync, a power cut may lose the file's name, although its content was synced.
            trust::sync_directory(trust::directory_of(&self.path)).map_err(failed)?;
            Ok(database)
        });
        if made.is_err()
            && let Err(error) = std::fs::remove_file(&begun)
        {
            tracing::debug!("{} cannot be removed: {error}", begun.display());
        }
        made
    }

    /// Refuses a file that another user can change, because that user could make the agent run things. Warns once
    /// about less serious permissions.
    fn check(&mut self, file: &File) -> Result<(), Trouble> {
        let metadata = file.metadata().map_err(|error| Trouble::Io("open", error))?;
        if !metadata.is_file() {
            return Err(Trouble::NotAFile("a device, a pipe or a socket"));
        }
        if let Some((what, remedy)) = refused_owner(&self.path, &metadata, self.create) {
            let path = self.path.display();
            return Err(Trouble::Foreign(format!("the inbox {path} {what}, so it is not read: {remedy}")));
        }
        if self.create && metadata.len() == 0 {
            // An agent did not make it, because an agent's files are whole from the start.
            tracing::warn!(
                "the inbox {} was an empty file: the agent begins a new one, and the records of an earlier \
                 one are lost",
                self.path.display()
            );
        }
        if self.create && !self.warned {
            self.warned = true;
            self.complain(metadata.mode());
        }
        Ok(())
    }

    fn complain(&self, mode: u32) {
        if mode & 0o044 != 0 {
            tracing::warn!(
                "the inbox {} can be read by other users (mode {:04o}): run chmod 600 on it",
                self.path.display(),
                mode & 0o7777
            );
        }
        // Another check, with the configuration, reports if others can write there.
        let directory = trust::directory_of(&self.path);
        if let Some(foreign) = trust::foreign(directory).filter(|foreign| foreign.owner().is_some()) {
            let (directory, what, remedy) = (directory.display(), foreign.what(), foreign.remedy());
            tracing::warn!(
                "the directory {directory} of the inbox {what}, who could replace the inbox: {remedy}"
            );
        }
    }
}

impl DatabasePlace for InboxPath {
    fn open(&mut self) -> Result<Database, Trouble> {
        if !self.create
            && self.path.symlink_metadata().is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
        {
            return Err(Trouble::Missing);
        }
        self.claim.take()?;
        match self.existing()? {
            Some(database) => Ok(database),
            // The link may point to a disk that is not mounted yet.
            None if self.path.is_symlink() => Err(Trouble::NotAFile("a broken link")),
            None if self.create => self.create(),
            None => Err(Trouble::Missing),
        }
    }

    fn distrust_cache(&self) {
        // After a failed write, Linux keeps the pages as if they were written. This is best effort: pages that cannot
        // be dropped are read as they are, and redb's checksums still check them.
        if let Ok(file) = File::open(&self.path)
            && let Err(error) = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)
        {
            tracing::debug!("the cache of the inbox cannot be dropped: {error}");
        }
    }

    fn set_aside(&mut self, now: SystemTime) -> Result<PathBuf, Trouble> {
        let failed = |error| Trouble::Io("move aside", error);
        let stamp = humantime::format_rfc3339_seconds(now).to_string().replace(['-', ':'], "");
        let mut name = self.path.clone().into_os_string();
        name.push(format!(".corrupt-{stamp}"));
        let mut aside = PathBuf::from(&name);
        // Never overwrite an older one. Only this process writes such names, because it holds this inbox.
        let mut count = 1;
        while aside.symlink_metadata().is_ok() {
            count += 1;
            let mut numbered = name.clone();
            numbered.push(format!("-{count}"));
            aside = PathBuf::from(numbered);
        }
        std::fs::rename(&self.path, &aside).map_err(failed)?;
        trust::sync_directory(trust::directory_of(&self.path)).map_err(failed)?;
        Ok(aside)
    }

    fn path(&self) -> &Path {
        &self.path
    }
}

/// Gives a new file its name, but does not replace another one: an agent that started at the same time may have been
/// first.
pub(super) fn name_it(begun: &Path, path: &Path) -> io::Result<()> {
    match renameat_with(CWD, begun, CWD, path, RenameFlags::NOREPLACE) {
        // Not every file system supports NOREPLACE.
        Err(Errno::INVAL | Errno::NOSYS) => std::fs::rename(begun, path),
        renamed => Ok(renamed?),
    }
}

fn database(file: File) -> Result<Database, Trouble> {
    // The check reads the whole file, which is small, and reports damage as an error. Without it, redb trusts a file
    // that was closed properly, and may panic on it later.
    let database = Database::builder()
        .set_cache_size(CACHE_BYTES)
        .set_check_integrity_on_open(true)
        .create_with_backend(Watched::new(FileBackend::new(file)?))?;
    Ok(database)
}
