//! Who can change a file: root and the user who runs this alone, or others as well.
//!
//! Owns: what makes a file, a directory or a link one that others can change, in words with the remedy; how a file is opened and
//! made so that nothing which others have put there is taken for it. Must not know: what a file is for, but for programs.
//!
//! A file counts as the owner's when it belongs to root or to the user who runs this, and when neither its group nor others may
//! write to it. An access list that lets somebody else write shows in the group's bits. In a sticky directory others can add
//! files, but can neither replace nor remove those of somebody else.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

/// Writable by the group or by others.
const FOREIGN_WRITE: u32 = 0o022;
const STICKY: u32 = 0o1000;
/// As the kernel.
const MOST_LINKS: usize = 40;

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
    /// Writable by others than its owner.
    Writable,
    /// The same of a directory that is meant to be, such as `/tmp`.
    Shared,
    /// Belongs to this user.
    Owner(u32),
}

impl Foreign {
    /// Whether its mode lets others write, whoever owns it.
    pub(crate) fn is_writable(&self) -> bool {
        matches!(self.hands, Hands::Writable | Hands::Shared)
    }

    /// The user to whom it belongs, when that is what is wrong with it.
    pub(crate) fn owner(&self) -> Option<u32> {
        match self.hands {
            Hands::Writable | Hands::Shared => None,
            Hands::Owner(owner) => Some(owner),
        }
    }

    /// Behind "it": `is writable by others than its owner`.
    pub(crate) fn what(&self) -> String {
        match self.hands {
            Hands::Writable | Hands::Shared => "is writable by users other than its owner".to_owned(),
            Hands::Owner(owner) => format!("belongs to user {owner}"),
        }
    }

    /// What to do about it.
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

/// `it is writable by others than its owner: run chmod go-w /x`
impl fmt::Display for Foreign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "it {}: {}", self.what(), self.remedy())
    }
}

/// Whether others can change this file, or add something to this directory: there, being sticky does not help.
pub(crate) fn foreign(path: &Path) -> Option<Foreign> {
    foreign_in(path, &fs::metadata(path).ok()?)
}

/// The same of a file whose metadata is known, best from the open file itself.
pub(crate) fn foreign_in(path: &Path, metadata: &Metadata) -> Option<Foreign> {
    let hands = match metadata.mode() {
        mode if mode & FOREIGN_WRITE == 0 => Hands::Owner(foreign_owner(metadata)?),
        mode if mode & STICKY != 0 && metadata.is_dir() => Hands::Shared,
        _ => Hands::Writable,
    };
    Some(Foreign { place: path.to_owned(), hands, is_link: false })
}

/// The first place, of a directory and those above it, where others can add something to it or replace it, whoever owns what.
pub(crate) fn writable(directory: &Path) -> Option<Foreign> {
    let above = Way::to(directory).foreign.into_iter();
    above.chain(foreign(directory)).find(Foreign::is_writable)
}

/// To whom a directory belongs in which this file is, as root is told: root looks at files of users who run things.
pub(crate) fn owner_for_root(path: &Path) -> Option<u32> {
    let directory = fs::metadata(directory_of(path)).ok().filter(|_| rustix::process::geteuid().is_root())?;
    Some(directory.uid())
}

/// The owner, unless that is root or the user who runs this.
fn foreign_owner(metadata: &Metadata) -> Option<u32> {
    let owner = metadata.uid();
    (owner != 0 && owner != rustix::process::geteuid().as_raw()).then_some(owner)
}

/// Everything on the way to a file through which others can have another file found under its path: directories, links, the file
/// itself.
#[derive(Debug)]
pub(crate) struct Way {
    /// From the root on.
    pub(crate) foreign: Vec<Foreign>,
    /// Where the way ends, without a link in it; or why it does not.
    pub(crate) real: io::Result<PathBuf>,
}

impl Way {
    /// Goes the way, and looks at each step.
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
        // What stands in it can be replaced by its owner still.
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

/// Who else decides what `program` does, and the remedy; `None` for nobody, and when there is no such program.
///
/// Others can write to the program or to a directory on the way to it, so that they can put another one in its place; or one of
/// these belongs to another user. The same goes for links on the way.
pub(crate) fn foreign_program(program: &str) -> Option<String> {
    let way = Way::to(Path::new(program));
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

/// Opens a file that is there. A link is followed only when it belongs to root or to the user who runs this, and opening never
/// waits for another process.
///
/// # Errors
/// What the system says, or that a link is somebody else's.
pub(crate) fn open(path: &Path, access: OFlags) -> io::Result<File> {
    let mut path = path.to_owned();
    for _ in 0..=MOST_LINKS {
        match open_plain(&path, access) {
            Err(error) if is_link(&error) => {}
            opened => return opened,
        }
        // The link that is looked at is the one that is followed: a path may lead to another one the next time.
        let link = rustix::fs::open(&path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
        let link = File::from(link);
        let metadata = link.metadata()?;
        if let Some(owner) = foreign_owner(&metadata) {
            let link = path.display();
            let sentence = format!("the link {link} belongs to user {owner}, who could change its target");
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, sentence));
        }
        if !metadata.is_symlink() {
            continue; // it was one a moment ago
        }
        let target = rustix::fs::readlinkat(&link, "", Vec::new())?;
        let target = PathBuf::from(OsString::from_vec(target.into_bytes()));
        path = directory_of(&path).join(target);
    }
    Err(Errno::LOOP.into())
}

/// Opens a file that is there and no link; never waits for another process.
///
/// # Errors
/// What the system says; [`is_link`] knows when it is a link.
pub(crate) fn open_plain(path: &Path, access: OFlags) -> io::Result<File> {
    let own = OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    Ok(File::from(rustix::fs::open(path, access | own, Mode::empty())?))
}

/// Whether that is why [`open_plain`] did not open a file.
pub(crate) fn is_link(error: &io::Error) -> bool {
    Errno::from_io_error(error) == Some(Errno::LOOP)
}

/// Makes a new file. What has this name already is removed, and never written to: it may be a link, or others may have it open.
///
/// # Errors
/// What the system says; also when others put something there in that very moment.
pub(crate) fn create_anew(path: &Path, mode: u32) -> io::Result<File> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    create_exclusive(path, mode)
}

/// Makes a new file where nothing is, not even a link that leads nowhere.
///
/// # Errors
/// What the system says.
pub(crate) fn create_exclusive(path: &Path, mode: u32) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create_new(true).mode(mode).open(path)
}

/// Writes a file whole or not at all, for its owner alone: it is begun under another name, `NAME.new`. When this has returned,
/// its content survives a power cut; that its directory knows it takes [`sync_directory`].
///
/// # Errors
/// What the system says; then the earlier file is there still.
pub(crate) fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut begun = path.as_os_str().to_owned();
    begun.push(".new");
    let mut file = create_anew(Path::new(&begun), 0o600)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&begun, path)
}

/// Waits until what was made, renamed or removed in a directory is on disk.
///
/// # Errors
/// What the system says.
pub(crate) fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

/// The directory in which a file stands.
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
