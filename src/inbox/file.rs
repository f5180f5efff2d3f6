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

use rustix::fs::{CWD, OFlags, RenameFlags, renameat_with};
use rustix::io::Errno;

use super::holder::Holder;
use super::journal::{NewFile, write_header};
use super::journal_file::JournalFile;
use super::lock::{Claim, refused_owner};
use super::trouble::Trouble;
use crate::trust;

/// Where the journal's file comes from.
pub(super) trait JournalPlace {
    /// Opens it, or creates it if it is missing. Its name survives a power cut from then on.
    fn open(&mut self) -> Result<Box<dyn JournalFile>, Trouble>;

    /// Creates an empty journal beside it.
    fn begin(&mut self) -> Result<NewFile, Trouble>;

    /// Gives the begun journal the name of the present one, which is gone then.
    fn replace(&mut self) -> Result<(), Trouble>;

    /// Waits until the last change of names is on disk.
    fn sync_name(&mut self) -> Result<(), Trouble>;

    /// Removes a begun journal.
    fn discard(&mut self);

    /// Moves a damaged one aside, and returns where to.
    fn set_aside(&mut self, now: SystemTime) -> Result<PathBuf, Trouble>;

    /// The path to name in sentences.
    fn path(&self) -> &Path;
}

#[derive(Debug)]
pub(super) struct InboxPath {
    claim: Claim,
    path: PathBuf,
    /// Where links lead.
    real: PathBuf,
    /// Whether to create it.
    create: bool,
    /// Whether the log has a warning about its permissions.
    warned: bool,
}

impl InboxPath {
    pub(super) fn new(path: PathBuf, create: bool) -> Self {
        Self { claim: Claim::new(&path, create), real: path.clone(), path, create, warned: false }
    }

    /// The file that this process has claimed, or will claim when it can.
    pub(super) fn claimed(claim: Claim) -> Self {
        let path = claim.inbox().to_owned();
        Self { claim, real: path.clone(), path, create: true, warned: false }
    }

    fn existing(&mut self) -> Result<Option<File>, Trouble> {
        match trust::open(&self.path, OFlags::RDWR) {
            Ok(file) => {
                self.check(&file)?;
                self.real = std::fs::canonicalize(&self.path).map_err(|error| Trouble::Io("open", error))?;
                Ok(Some(file))
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
    fn create(&mut self) -> Result<File, Trouble> {
        let (file, _) = self.begun()?;
        let named = name_it(&self.begun_path(), &self.path).map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => Trouble::InUse(Holder::default()),
            _ => Trouble::Io("create", error),
        });
        named.inspect_err(|_| self.discard())?;
        Ok(file)
    }

    fn begun_path(&self) -> PathBuf {
        let mut begun = self.real.clone().into_os_string();
        begun.push(".new");
        begun.into()
    }

    /// Creates an empty journal under another name. No other user can ever read it, because messages may hold secrets.
    fn begun(&mut self) -> Result<(File, u64), Trouble> {
        let made = trust::create_anew(&self.begun_path(), 0o600)
            .and_then(|file| write_header(&file).map(|salt| (file, salt)));
        made.map_err(|error| Trouble::Io("create", error)).inspect_err(|_| self.discard())
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

impl JournalPlace for InboxPath {
    fn open(&mut self) -> Result<Box<dyn JournalFile>, Trouble> {
        if !self.create
            && self.path.symlink_metadata().is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
        {
            return Err(Trouble::Missing);
        }
        self.claim.take()?;
        let file = match self.existing()? {
            Some(file) if JournalFile::len(&file).is_ok_and(|len| len == 0) => {
                write_header(&file).map_err(|error| Trouble::Io("create", error))?;
                file
            }
            Some(file) => file,
            // The link may point to a disk that is not mounted yet.
            None if self.path.is_symlink() => return Err(Trouble::NotAFile("a broken link")),
            None if self.create => self.create()?,
            None => return Err(Trouble::Missing),
        };
        if self.create {
            // What a crash in the middle of a compaction has left.
            self.discard();
        }
        // Without this, a power cut may lose the file's name, or bring back an earlier file.
        self.sync_name()?;
        Ok(Box::new(file))
    }

    fn begin(&mut self) -> Result<NewFile, Trouble> {
        let (file, salt) = self.begun()?;
        Ok((Box::new(file), salt))
    }

    fn replace(&mut self) -> Result<(), Trouble> {
        std::fs::rename(self.begun_path(), &self.real).map_err(|error| Trouble::Io("replace", error))
    }

    fn sync_name(&mut self) -> Result<(), Trouble> {
        trust::sync_directory(trust::directory_of(&self.real)).map_err(|error| Trouble::Io("create", error))
    }

    fn discard(&mut self) {
        match std::fs::remove_file(self.begun_path()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!("{} cannot be removed: {error}", self.begun_path().display());
            }
            _ => {}
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
        let is_link = self.path.is_symlink();
        std::fs::rename(&self.path, &aside).map_err(failed)?;
        if is_link {
            // The next file stands here, and no longer where the link led, and so does its lock.
            self.real.clone_from(&self.path);
            self.claim.release();
        }
        // The name is on disk when the next file is opened, before anything is answered.
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
