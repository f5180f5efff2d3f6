//! The inbox's file on the disk: created for its owner only, opened, moved aside when it is damaged.
//!
//! Owns: permissions, the name of a damaged file, what must reach the disk besides the file's own content.
//! Must not know: what is in it. Used by: `inbox::{keeper, worker}`.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use redb::Database;
use redb::backends::FileBackend;
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

use super::trouble::Failure;
use super::watched::Watched;

/// redb's page cache. The whole agent is to stay within a few MB; what is needed at once is in the ledger.
const CACHE_BYTES: usize = 512 * 1024;

/// Where the database comes from.
pub(super) trait Place {
    /// Opens it, or creates it where it is missing.
    fn open(&mut self) -> Result<Database, Failure>;

    /// A write failed: what is read from now on must come from the disk.
    fn distrust_cache(&self);

    /// Moves a damaged one aside; tells where to.
    fn set_aside(&mut self, now: SystemTime) -> Result<PathBuf, Failure>;

    /// For sentences.
    fn path(&self) -> &Path;
}

/// A file.
#[derive(Debug)]
pub(super) struct InboxPath {
    path: PathBuf,
    /// Whether to create it.
    create: bool,
    /// Whether its permissions were complained of.
    warned: bool,
}

impl InboxPath {
    pub(super) fn new(path: PathBuf, create: bool) -> Self {
        Self { path, create, warned: false }
    }

    fn existing(&mut self) -> Result<Option<Database>, Failure> {
        match OpenOptions::new().read(true).write(true).open(&self.path) {
            Ok(file) => {
                self.check(&file)?;
                database(file).map(Some)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::IsADirectory => {
                Err(Failure::NotAFile("a directory"))
            }
            Err(error) => Err(Failure::Io("open", error)),
        }
    }

    /// Begins under another name: a file of this name is always whole, so that one which cannot be read is damaged.
    fn create(&self) -> Result<Database, Failure> {
        let failed = |error| Failure::Io("create", error);
        let directory = directory_of(&self.path);
        // Where more than the last directory is missing, opening the file tells.
        if DirBuilder::new().mode(0o700).create(directory).is_ok() {
            sync_directory(directory_of(directory)).map_err(failed)?;
        }
        let mut begun = self.path.clone().into_os_string();
        begun.push(format!(".new-{}", std::process::id()));
        let begun = PathBuf::from(begun);
        // From its first instant on nobody else can read it: messages may hold secrets.
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true).mode(0o600);
        let file = match options.open(&begun) {
            // Left by a crash of a process with the same number, as in a container.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                std::fs::remove_file(&begun).and_then(|()| options.open(&begun))
            }
            opened => opened,
        };
        let made = database(file.map_err(failed)?).and_then(|database| {
            name_it(&begun, &self.path).map_err(|error| match error.kind() {
                io::ErrorKind::AlreadyExists => Failure::InUse,
                _ => failed(error),
            })?;
            // Else the file's name may be gone after a power cut, although its content was synced.
            sync_directory(directory).map_err(failed)?;
            Ok(database)
        });
        if made.is_err()
            && let Err(error) = std::fs::remove_file(&begun)
        {
            tracing::debug!("{} cannot be removed: {error}", begun.display());
        }
        made
    }

    /// Complains once of who else can write it: whoever can makes the agent run things.
    fn check(&mut self, file: &File) -> Result<(), Failure> {
        let metadata = file.metadata().map_err(|error| Failure::Io("open", error))?;
        if !metadata.is_file() {
            return Err(Failure::NotAFile("a device, a pipe or a socket"));
        }
        if self.create && metadata.len() == 0 {
            // Not made by an agent, whose files are whole from the beginning.
            tracing::warn!(
                "the inbox {} was an empty file: a new one is begun, and what an earlier one knew is lost",
                self.path.display()
            );
        }
        if let Some(complaint) =
            complaint(metadata.uid(), metadata.mode(), rustix::process::geteuid().as_raw())
            // The command line may well be root's.
            && self.create
            && !self.warned
        {
            self.warned = true;
            tracing::warn!("the inbox {} {complaint}", self.path.display());
        }
        Ok(())
    }
}

/// What is wrong with the file's owner or permissions.
pub(super) fn complaint(owner: u32, mode: u32, own: u32) -> Option<String> {
    if owner != own {
        return Some(format!(
            "belongs to user {owner}, and this process runs as user {own}: give it to the user of the agent (chown)"
        ));
    }
    let others = mode & 0o777 & !0o700;
    (others != 0).then(|| {
        let what = if others & 0o022 != 0 { "written" } else { "read" };
        format!("can be {what} by other users (mode {:04o}): take that from them (chmod 600)", mode & 0o7777)
    })
}

impl Place for InboxPath {
    fn open(&mut self) -> Result<Database, Failure> {
        match self.existing()? {
            Some(database) => Ok(database),
            // What it points to may be on a disk that is not mounted yet.
            None if self.path.is_symlink() => Err(Failure::NotAFile("a link to nothing")),
            None if self.create => self.create(),
            None => Err(Failure::Missing),
        }
    }

    fn distrust_cache(&self) {
        // After a failed write Linux keeps the pages as if they were written. Best effort: what cannot be dropped is
        // read as it is, and checked by its checksums all the same.
        if let Ok(file) = File::open(&self.path)
            && let Err(error) = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)
        {
            tracing::debug!("the cache of the inbox cannot be dropped: {error}");
        }
    }

    fn set_aside(&mut self, now: SystemTime) -> Result<PathBuf, Failure> {
        let failed = |error| Failure::Io("move aside", error);
        let stamp = humantime::format_rfc3339_seconds(now).to_string().replace(['-', ':'], "");
        let mut name = self.path.clone().into_os_string();
        name.push(format!(".corrupt-{stamp}"));
        let mut aside = PathBuf::from(&name);
        // Never over another one. Only this process writes such names, as it holds the directory's inbox.
        let mut count = 1;
        while aside.symlink_metadata().is_ok() {
            count += 1;
            let mut numbered = name.clone();
            numbered.push(format!("-{count}"));
            aside = PathBuf::from(numbered);
        }
        std::fs::rename(&self.path, &aside).map_err(failed)?;
        sync_directory(directory_of(&self.path)).map_err(failed)?;
        Ok(aside)
    }

    fn path(&self) -> &Path {
        &self.path
    }
}

/// Gives a new file its name, but not over another one: an agent that started at the same time may have been first.
pub(super) fn name_it(begun: &Path, path: &Path) -> io::Result<()> {
    match renameat_with(CWD, begun, CWD, path, RenameFlags::NOREPLACE) {
        // Not every file system can do that.
        Err(Errno::INVAL | Errno::NOSYS) => std::fs::rename(begun, path),
        renamed => Ok(renamed?),
    }
}

fn database(file: File) -> Result<Database, Failure> {
    // The check reads all of the file, which is small, and finds damage as an error. Without it, redb trusts a file
    // that was closed in good order, and may panic on it later.
    let database = Database::builder()
        .set_cache_size(CACHE_BYTES)
        .set_check_integrity_on_open(true)
        .create_with_backend(Watched::new(FileBackend::new(file)?))?;
    Ok(database)
}

fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}
