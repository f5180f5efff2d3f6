//! Who can change a file: only root and the user who runs this program, or also others.
//!
//! Owns: when others can change a file, a directory or a link, in words and with the remedy; how to open and make a
//! file so that a file or link of another user is not taken for it. Must not know: what a file is for, except programs.
//!
//! A file is safe if it belongs to root or to the user who runs this program, and if neither its group nor others may
//! write to it. If an access list lets others write, the group's bits show it. In a sticky directory others can add
//! files, but they can neither replace nor remove files of another user.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::{self, File, Metadata, OpenOptions, TryLockError};
use std::io::{self, Read as _, Write as _};
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

/// Writable by the group or by others.
const FOREIGN_WRITE: u32 = 0o022;
const STICKY: u32 = 0o1000;
/// The same limit as the kernel's.
const MOST_LINKS: usize = 40;

/// How long to wait for another process that writes in the same directory. It holds the lock for one small file.
const HOLD_ATTEMPTS: u32 = 500;
const HOLD_PAUSE: Duration = Duration::from_millis(10);

/// A place that others can change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Foreign {
    /// The file, directory or link.
    pub(crate) place: PathBuf,
    hands: Hands,
    is_link: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hands {
    /// The place is writable by others than its owner.
    Writable,
    /// The place is a directory for everybody, such as `/tmp`: writable by others, and sticky.
    Shared,
    /// The place belongs to this user.
    Owner(u32),
}

impl Foreign {
    /// Whether the mode of the place lets others write. The owner does not matter.
    pub(crate) fn is_writable(&self) -> bool {
        matches!(self.hands, Hands::Writable | Hands::Shared)
    }

    /// The user who owns the place, if the owner is the problem.
    pub(crate) fn owner(&self) -> Option<u32> {
        match self.hands {
            Hands::Writable | Hands::Shared => None,
            Hands::Owner(owner) => Some(owner),
        }
    }

    /// The problem as the end of a sentence: `is writable by users other than its owner`.
    pub(crate) fn what(&self) -> String {
        match self.hands {
            Hands::Writable | Hands::Shared => "is writable by users other than its owner".to_owned(),
            Hands::Owner(owner) => format!("belongs to user {owner}"),
        }
    }

    /// What to do about the place.
    pub(crate) fn remedy(&self) -> String {
        let place = self.place.display();
        match self.hands {
            Hands::Writable => format!("run chmod go-w {place}"),
            Hands::Shared => "use a directory to which only its owner can write".to_owned(),
            Hands::Owner(_) if self.is_link => {
                format!("run chown -h root {place}, or run the agent as that user")
            }
            Hands::Owner(_) => format!("run chown root {place}, or run the agent as that user"),
        }
    }
}

/// The problem and the remedy: `it is writable by users other than its owner: run chmod go-w /x`
impl fmt::Display for Foreign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "it {}: {}", self.what(), self.remedy())
    }
}

/// Whether others can change this file, or add files to this directory; a sticky directory lets them add files, too.
pub(crate) fn foreign(path: &Path) -> Option<Foreign> {
    foreign_in(path, &fs::metadata(path).ok()?)
}

/// As [`foreign`], for a file whose metadata is known. Metadata of the open file itself is best.
pub(crate) fn foreign_in(path: &Path, metadata: &Metadata) -> Option<Foreign> {
    let hands = match metadata.mode() {
        mode if mode & FOREIGN_WRITE == 0 => Hands::Owner(foreign_owner(metadata)?),
        mode if mode & STICKY != 0 && metadata.is_dir() => Hands::Shared,
        _ => Hands::Writable,
    };
    Some(Foreign { place: path.to_owned(), hands, is_link: false })
}

/// The first directory, on the way to this one or itself, that others can write to. Owners do not matter here.
pub(crate) fn writable(directory: &Path) -> Option<Foreign> {
    let above = WayToFile::to(directory).foreign.into_iter();
    above.chain(foreign(directory)).find(Foreign::is_writable)
}

/// The owner of the file's directory; `None` if this program does not run as root. Root may examine files of a service
/// that runs as another user.
pub(crate) fn owner_for_root(path: &Path) -> Option<u32> {
    let directory = fs::metadata(directory_of(path)).ok().filter(|_| rustix::process::geteuid().is_root())?;
    Some(directory.uid())
}

/// The owner, unless it is root or the user who runs this program.
fn foreign_owner(metadata: &Metadata) -> Option<u32> {
    let owner = metadata.uid();
    (owner != 0 && owner != rustix::process::geteuid().as_raw()).then_some(owner)
}

/// The places on the way to a file through which others can put another file under its path: directories, links, the
/// file itself.
#[derive(Debug)]
pub(crate) struct WayToFile {
    /// The places that others can change, from the root on.
    pub(crate) foreign: Vec<Foreign>,
    /// The path of the file without links, or why there is no such file.
    pub(crate) real: io::Result<PathBuf>,
}

impl WayToFile {
    /// Follows the path, and checks each step.
    pub(crate) fn to(path: &Path) -> Self {
        let mut foreign = Vec::new();
        let real = walk(path, &mut foreign);
        Self { foreign, real }
    }
}

fn walk(path: &Path, found: &mut Vec<Foreign>) -> io::Result<PathBuf> {
    let mut left = steps(&std::path::absolute(path)?);
    let mut real = PathBuf::from("/");
    let mut links = 0;
    note(&real, &fs::symlink_metadata(&real)?, found);
    while let Some(next) = left.pop() {
        // `real` has no links, so its parent is what `..` means.
        if next == ".." {
            real.pop();
            continue;
        }
        let place = real.join(&next);
        let metadata = fs::symlink_metadata(&place)?;
        if !metadata.is_symlink() {
            note(&place, &metadata, found);
            real = place;
            continue;
        }
        links += 1;
        if links > MOST_LINKS {
            return Err(Errno::LOOP.into());
        }
        if let Some(owner) = foreign_owner(&metadata) {
            found.push(Foreign { place: place.clone(), hands: Hands::Owner(owner), is_link: true });
        }
        let target = fs::read_link(&place)?;
        if target.is_absolute() {
            real = PathBuf::from("/");
        }
        left.extend(steps(&target));
    }
    Ok(real)
}

/// The parts of a path, the last one first.
fn steps(path: &Path) -> Vec<OsString> {
    let parts = path.components().filter_map(|part| match part {
        Component::Normal(name) => Some(name),
        Component::ParentDir => Some(OsStr::new("..")),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    });
    parts.map(OsStr::to_owned).rev().collect()
}

fn note(place: &Path, metadata: &Metadata, found: &mut Vec<Foreign>) {
    let Some(foreign) = foreign_in(place, metadata) else { return };
    if foreign.hands == Hands::Shared {
        // The owner of the directory can still replace its files.
        let owner = foreign_owner(metadata);
        found.extend(owner.map(|owner| Foreign { hands: Hands::Owner(owner), ..foreign }));
    } else {
        found.push(foreign);
    }
}

/// Why `program` must not be run; `None` when it may.
pub(crate) fn unfit_program(program: &str) -> Option<String> {
    let path = Path::new(program);
    let metadata = match fs::metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let remedy = match program.split_once(' ') {
                Some((name, _)) if Path::new(name).is_file() => {
                    format!(
                        "write the program and each argument as separate texts, as in [\"{name}\", \"…\"]"
                    )
                }
                _ => "install it, or correct the path".to_owned(),
            };
            return Some(format!("the program {program} does not exist: {remedy}"));
        }
        Err(error) => return Some(format!("the program {program} cannot be found: {}", in_words(&error))),
    };
    if !metadata.is_file() {
        return Some(format!("the program {program} is not a file"));
    }
    if metadata.mode() & 0o111 == 0 {
        return Some(format!("the program {program} is not executable: run chmod +x {program}"));
    }
    foreign_program(program)
}

/// Which other user can change what `program` does, and the remedy. `None` if there is no such user or no such program.
///
/// That user can write to the program or to a directory on the way to it, and so put another program in its place. Or
/// the user owns the program, a directory or a link on the way.
pub(crate) fn foreign_program(program: &str) -> Option<String> {
    let way = WayToFile::to(Path::new(program));
    let foreign = way.foreign.first()?;
    let (place, what, remedy) = (foreign.place.display(), foreign.what(), foreign.remedy());
    Some(match way.real {
        Ok(real) if real == foreign.place && foreign.is_writable() => {
            format!("the program {place} {what}: {remedy}")
        }
        Ok(real) if real == foreign.place => {
            format!("the program {place} {what}, who could change it: {remedy}")
        }
        _ if foreign.is_link => {
            format!(
                "the program {program} is found by the link {place}, which {what}, who could change it: {remedy}"
            )
        }
        _ if foreign.is_writable() => {
            format!("the program {program} is in {place}, which {what}: {remedy}")
        }
        _ => format!("the program {program} is in {place}, which {what}, who could replace it: {remedy}"),
    })
}

/// Opens a file that exists. Follows a link only if it belongs to root or to the user who runs this program. Never
/// waits for another process.
///
/// # Errors
/// What the system says, or that a link belongs to another user.
pub(crate) fn open(path: &Path, access: OFlags) -> io::Result<File> {
    let mut path = path.to_owned();
    for _ in 0..=MOST_LINKS {
        match open_plain(&path, access) {
            Err(error) if is_link(&error) => {}
            opened => return opened,
        }
        // The link is checked and read through one descriptor: its path could lead to another link the next time.
        let link = rustix::fs::open(&path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
        let link = File::from(link);
        let metadata = link.metadata()?;
        if let Some(owner) = foreign_owner(&metadata) {
            let link = path.display();
            let sentence = format!("the link {link} belongs to user {owner}, who could change its target");
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, sentence));
        }
        if !metadata.is_symlink() {
            continue; // the link has been replaced by something else
        }
        let target = rustix::fs::readlinkat(&link, "", Vec::new())?;
        let target = PathBuf::from(OsString::from_vec(target.into_bytes()));
        path = directory_of(&path).join(target);
    }
    Err(Errno::LOOP.into())
}

/// Opens a file that exists and is no link. Never waits for another process.
///
/// # Errors
/// What the system says; [`is_link`] tells whether the reason is a link.
pub(crate) fn open_plain(path: &Path, access: OFlags) -> io::Result<File> {
    let own = OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    Ok(File::from(rustix::fs::open(path, access | own, Mode::empty())?))
}

/// The text of a file that this program keeps; `None` if there is none. A file that other users can change is not read.
/// Apart from root and the user who runs this, `owner` may own it.
///
/// # Errors
/// Why it does not count, without its name.
pub(crate) fn read_own(path: &Path, limit: u64, owner: Option<u32>) -> Result<Option<String>, String> {
    let opened = match open_plain(path, OFlags::RDONLY) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened.and_then(|opened| Ok((opened.metadata()?, opened))),
    };
    let (metadata, opened) = opened.map_err(|error| in_words(&error))?;
    if !metadata.is_file() {
        return Err("it is not a regular file: remove it".to_owned());
    }
    let foreign = foreign_in(path, &metadata);
    if let Some(foreign) = foreign.filter(|foreign| foreign.owner().is_none() || foreign.owner() != owner) {
        return Err(format!("it {}: remove it, or {}", foreign.what(), foreign.remedy()));
    }
    let mut text = String::new();
    opened.take(limit + 1).read_to_string(&mut text).map_err(|error| in_words(&error))?;
    if text.len() as u64 > limit { Err(format!("it is larger than {limit} bytes")) } else { Ok(Some(text)) }
}

/// Whether [`open_plain`] failed because the file is a link.
pub(crate) fn is_link(error: &io::Error) -> bool {
    Errno::from_io_error(error) == Some(Errno::LOOP)
}

/// Makes a new file. A file of this name is removed and never written to: it may be a link, or others may have it open.
///
/// # Errors
/// What the system says; also if others make a file of this name at that moment.
pub(crate) fn create_anew(path: &Path, mode: u32) -> io::Result<File> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    create_exclusive(path, mode)
}

/// Makes a new file if the name is free: even a link that leads nowhere is an error.
///
/// # Errors
/// What the system says.
pub(crate) fn create_exclusive(path: &Path, mode: u32) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create_new(true).mode(mode).open(path)
}

/// Writes a file whole or not at all, readable only by its owner. It writes to `NAME.new` first, and then renames it.
/// The content survives a power cut after this returns; the rename survives one after [`sync_directory`].
///
/// # Errors
/// What the system says; the earlier file stays.
pub(crate) fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    replace_after(path, content, File::sync_all)
}

/// As [`replace`], but after a power cut the file may be empty. For files that can be made again: not to wait for the
/// disk is faster by far where there are thousands of them.
///
/// # Errors
/// What the system says; the earlier file stays.
#[allow(dead_code)] // Only the emulator uses it, which needs the feature `emulator`.
pub(crate) fn replace_soon(path: &Path, content: &[u8]) -> io::Result<()> {
    replace_after(path, content, |_| Ok(()))
}

/// As [`replace`], for a file that the agent and a command beside it may write; it belongs to `owner`, if one is given.
///
/// # Errors
/// As [`replace`]; only root can give a file to another user.
pub(crate) fn replace_as(path: &Path, content: &[u8], owner: Option<u32>) -> io::Result<()> {
    // Both have the same `NAME.new`.
    let _held = hold(directory_of(path))?;
    replace_after(path, content, |file| {
        if let Some(owner) = owner {
            std::os::unix::fs::fchown(file, Some(owner), None)?;
        }
        file.sync_all()
    })
}

/// Waits until no other process writes with [`replace_as`] in a directory, at most five seconds. The lock ends with the
/// file.
fn hold(directory: &Path) -> io::Result<File> {
    let held = File::open(directory)?;
    for _ in 0..HOLD_ATTEMPTS {
        match held.try_lock() {
            // A lock has no event to wait for with a deadline.
            Err(TryLockError::WouldBlock) => std::thread::park_timeout(HOLD_PAUSE),
            // A file system without locks is no reason not to write.
            Ok(()) | Err(TryLockError::Error(_)) => break,
        }
    }
    // A writer needs a moment. What holds the lock for longer is none: any user who may read the directory can lock it.
    Ok(held)
}

fn replace_after(
    path: &Path,
    content: &[u8],
    finish: impl FnOnce(&File) -> io::Result<()>,
) -> io::Result<()> {
    let mut begun = path.as_os_str().to_owned();
    begun.push(".new");
    let mut file = create_anew(Path::new(&begun), 0o600)?;
    let written =
        file.write_all(content).and_then(|()| finish(&file)).and_then(|()| fs::rename(&begun, path));
    if written.is_err() {
        // On a full disk, it would only take room.
        drop(fs::remove_file(&begun));
    }
    written
}

/// Waits until all new, renamed and removed names in a directory are on disk.
///
/// # Errors
/// What the system says.
pub(crate) fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

/// The directory of a file.
pub(crate) fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// The reason without the operating system's error number.
pub(crate) fn in_words(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotADirectory => "it is not a directory".to_owned(),
        io::ErrorKind::NotFound => "there is no such file".to_owned(),
        io::ErrorKind::PermissionDenied if error.raw_os_error().is_some() => format!(
            "permission denied to user {}, who runs this: let that user read it, or run this as its owner",
            rustix::process::geteuid().as_raw()
        ),
        io::ErrorKind::IsADirectory => "it is a directory".to_owned(),
        io::ErrorKind::InvalidData if error.raw_os_error().is_none() => "it is not UTF-8 text".to_owned(),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests;
