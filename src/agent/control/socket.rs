//! The socket file: open to its owner only, known as stale or alive, removed at the end.
//!
//! Owns: the file. Must not know: what is sent over the socket.

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

use super::ControlError;

/// Clients that wait to be accepted. The kernel holds back any more.
const BACKLOG: i32 = 16;

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
