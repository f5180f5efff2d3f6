//! The socket file: open to its owner only, known as stale or alive, removed at the end.
//!
//! Owns: the file, and why it cannot be made. Must not know: what is sent over the socket.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

/// Clients that wait to be accepted. The kernel holds back any more.
const BACKLOG: i32 = 16;

/// Why there is no control socket.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ControlError {
    /// A running agent has it.
    #[error(
        "another agent listens on the control socket {0}: stop that agent, or give this one an [inbox] socket of its own"
    )]
    InUse(String),
    /// Something else has this path. The agent must not remove it.
    #[error("{0} is not a socket: move that file away, or set [inbox] socket to another path")]
    NoSocket(String),
    /// The path is longer than the kernel allows.
    #[error(
        "the path of the control socket {0} is too long: set [inbox] socket to a path of at most 107 bytes"
    )]
    TooLong(String),
    /// The file system or the kernel refuses it.
    #[error("the control socket {path} cannot be made ({source}): {remedy}")]
    Refused { path: String, remedy: &'static str, source: io::Error },
}

impl ControlError {
    pub(super) fn new(path: &Path, source: io::Error) -> Self {
        let remedy = match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => {
                "create its directory, or set [inbox] socket to a path in a directory that exists"
            }
            io::ErrorKind::PermissionDenied => {
                "let the agent's user write to its directory, or set [inbox] socket to another path"
            }
            _ => "set [inbox] socket to a path on another file system, such as one in /run",
        };
        Self::Refused { path: path.display().to_string(), remedy, source }
    }
}

/// The socket file of this process. When this is dropped, the file is removed, unless another agent has replaced it.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    device: u64,
    inode: u64,
}

/// Makes the file and listens. A file that a dead agent left behind is replaced.
pub(super) fn bind(path: &Path) -> Result<(UnixListener, SocketFile), ControlError> {
    let failed = |source: Errno| ControlError::new(path, source.into());
    let address = SocketAddrUnix::new(path).map_err(|_| ControlError::TooLong(path.display().to_string()))?;
    remove_stale(path)?;
    let socket = socket(SocketFlags::NONBLOCK).map_err(failed)?;
    // The kernel makes the file with the mode of the socket, less the umask. So the mode is set first: then there is
    // no moment in which others could connect, and the umask, which the inbox's thread shares, is not changed.
    rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR).map_err(failed)?;
    rustix::net::bind(&socket, &address).map_err(|error| match error {
        Errno::ADDRINUSE => ControlError::InUse(path.display().to_string()),
        error => failed(error),
    })?;
    rustix::net::listen(&socket, BACKLOG).map_err(failed)?;
    let made = fs::symlink_metadata(path).map_err(|error| ControlError::new(path, error))?;
    Ok((socket.into(), SocketFile { path: path.to_owned(), device: made.dev(), inode: made.ino() }))
}

/// Connects. If the listener's queue is full, waits at most `limit`. Without a limit it does not wait.
pub(super) fn connect(path: &Path, limit: Option<Duration>) -> Result<OwnedFd, Errno> {
    let address = SocketAddrUnix::new(path)?;
    let flags = if limit.is_none() { SocketFlags::NONBLOCK } else { SocketFlags::empty() };
    let socket = socket(flags)?;
    if limit.is_some() {
        set_socket_timeout(&socket, Timeout::Send, limit)?;
    }
    rustix::net::connect(&socket, &address)?;
    Ok(socket)
}

fn socket(flags: SocketFlags) -> Result<OwnedFd, Errno> {
    rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags | SocketFlags::CLOEXEC, None)
}

/// Removes a socket that nothing listens on.
fn remove_stale(path: &Path) -> Result<(), ControlError> {
    match fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => {
            return Err(ControlError::NoSocket(path.display().to_string()));
        }
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(ControlError::new(path, error)),
    }
    match connect(path, None) {
        // AGAIN: its queue is full, so some process has it open.
        Ok(_) | Err(Errno::AGAIN) => Err(ControlError::InUse(path.display().to_string())),
        Err(Errno::CONNREFUSED) => match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(ControlError::new(path, error)),
            _ => Ok(()),
        },
        Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(ControlError::new(path, error.into())),
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let own = |found: &fs::Metadata| (found.dev(), found.ino()) == (self.device, self.inode);
        let removed = match fs::symlink_metadata(&self.path) {
            Ok(found) if own(&found) => fs::remove_file(&self.path),
            _ => return, // gone, or another agent's
        };
        if let Err(error) = removed {
            tracing::warn!(path = %self.path.display(), %error, "the control socket could not be removed");
        }
    }
}
