//! One child process, from start to the end of its whole process group.
//!
//! Owns: environment, standard streams, captured output, when a child is ended.
//! Must not know: rules, pins, messages.
//!
//! A child leads its own process group, so that everything it starts can be ended with it. If its time is up or the
//! agent stops, the group gets SIGTERM and, [`GRACE`] later, SIGKILL. If the child ends by itself, the rest of its
//! group is ended in the same way, because an action must be over when it is reported as over. A program that should
//! outlive the action must leave the group (`systemd-run`, `setsid`).

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::pin::{Pin, pin};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{Fuse, FusedFuture};
use rustix::process::Signal;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::process::{Child, ChildStdin, Command};
use tokio::time::{Instant, timeout};

use super::children::Children;
use super::group::{GRACE, Group, KILLED};
use super::limit::{Cut, Limit};
use crate::trust;

/// The only search path that children have.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// How long to read output after the group has ended, if a process that left the group still holds the pipe.
const DRAIN: Duration = Duration::from_millis(200);
/// How many bytes an outcome keeps from the beginning of the output.
const KEPT: usize = 4096;
/// How many bytes it keeps from the end, if the end is not within the beginning.
const KEPT_END: usize = 1024;

/// What to run.
pub(super) struct Program<'a> {
    /// The program's absolute path and its arguments.
    pub(super) argv: &'a [String],
    /// The environment, apart from `PATH`.
    pub(super) environment: &'a [(String, String)],
    /// What the program reads on its standard input.
    pub(super) body: &'a [u8],
    /// Whose program it is, for the notes of running children.
    pub(super) owner: &'a str,
}

/// The beginning and the end of what programs wrote, and how many bytes they wrote in all.
#[derive(Debug, Default)]
pub(super) struct Captured {
    kept: Vec<u8>,
    /// At most twice [`KEPT_END`], so that bytes are not moved at each read.
    end: Vec<u8>,
    total: u64,
}

/// Why there is no exit status.
#[derive(Debug, thiserror::Error)]
pub(super) enum ExecError {
    /// The program could not be started.
    #[error("cannot start it: {0}")]
    NotStarted(String),
    /// It was ended before it finished.
    #[error("stopped")]
    Cut(Cut),
    /// The kernel did not hand over its output or its exit status.
    #[error("cannot watch it: {0}")]
    Lost(io::Error),
}

impl Captured {
    /// The first bytes; the last ones, if there are more; and the count of all bytes.
    pub(super) fn into_parts(mut self) -> (Vec<u8>, Vec<u8>, u64) {
        self.end.drain(..self.end.len().saturating_sub(KEPT_END));
        (self.kept, self.end, self.total)
    }

    fn add(&mut self, bytes: &[u8]) {
        let room = KEPT.saturating_sub(self.kept.len());
        let (first, rest) = bytes.split_at(bytes.len().min(room));
        self.kept.extend_from_slice(first);
        self.end.extend_from_slice(&rest[rest.len().saturating_sub(KEPT_END)..]);
        if self.end.len() > 2 * KEPT_END {
            self.end.drain(..self.end.len() - KEPT_END);
        }
        self.total = self.total.saturating_add(bytes.len() as u64);
    }
}

/// Runs one program until its whole group has ended, and collects what it writes.
///
/// # Errors
///
/// It could not be started, or `limit` was reached.
///
/// # Cancel safety
///
/// Dropping the future kills the group.
pub(super) async fn run(
    program: &Program<'_>,
    limit: &Limit<'_>,
    children: Option<&Children>,
    output: &mut Captured,
) -> Result<ExitStatus, ExecError> {
    limit.check().map_err(ExecError::Cut)?;
    // The path is checked again here, because the configuration may have been read months ago.
    if let Some(reason) = program.argv.first().and_then(|path| trust::foreign_program(path)) {
        return Err(ExecError::NotStarted(reason));
    }
    let (mut child, reader) =
        start(program).map_err(|error| ExecError::NotStarted(why_not_started(program.argv, &error)))?;
    // Noted at once, so that the agent is hardly ever killed in between. It is dropped after the group.
    let _note = children.and_then(|children| children.note(child.id()?, program.owner));
    let group = Group::new(child.id());
    // The pipe becomes one of the runtime's only now, while another core loads the program.
    let reader = pipe::Receiver::from_owned_fd(reader).map_err(ExecError::Lost)?;
    let stdin = child.stdin.take();
    let pipes = async { tokio::join!(feed(stdin, program.body), drain(reader, output)) };
    let mut pipes = pin!(pipes.fuse());

    let first = async {
        tokio::select! {
            biased;
            status = child.wait() => Ok(status),
            cut = limit.reached() => Err(cut),
        }
    };
    let (result, grace_ends) = match serving(pipes.as_mut(), first).await {
        Ok(status) => (status.map_err(ExecError::Lost), Instant::now() + GRACE),
        Err(cut) => {
            let grace_ends = Instant::now() + GRACE;
            group.signal(Signal::TERM);
            if serving(pipes.as_mut(), timeout(GRACE, child.wait())).await.is_err() {
                group.signal(Signal::KILL);
                if serving(pipes.as_mut(), timeout(KILLED, child.wait())).await.is_err() {
                    tracing::error!(
                        program = program.argv[0],
                        pid = child.id(),
                        "killed program did not end"
                    );
                }
            }
            (Err(ExecError::Cut(cut)), grace_ends)
        }
    };
    // Needed even if the child ended by itself, because it may have left processes in its group.
    serving(pipes.as_mut(), group.end(grace_ends)).await;
    if !pipes.is_terminated() && timeout(DRAIN, pipes).await.is_err() {
        tracing::debug!(
            program = program.argv[0],
            "stopped reading output: a process outside the group still holds the pipe"
        );
    }
    result
}

/// How a program ended, in words: `exit code 3`, `killed by signal 9 (SIGKILL)`.
pub(super) fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => match signal_hook::low_level::signal_name(signal) {
            Some(name) => format!("killed by signal {signal} ({name})"),
            None => format!("killed by signal {signal}"),
        },
        (None, None) => status.to_string(),
    }
}

/// Starts the program with both output streams on one pipe, so that its output stays in order.
fn start(program: &Program<'_>) -> io::Result<(Child, OwnedFd)> {
    let (path, arguments) = program.argv.split_first().ok_or(io::ErrorKind::InvalidInput)?;
    let (reader, writer) = io::pipe()?;
    // No code of ours runs between fork and exec, so std uses posix_spawn, which does not copy the page tables.
    let mut command = Command::new(path);
    command
        .args(arguments)
        .env_clear()
        .env("PATH", PATH)
        .envs(program.environment.iter().map(|(name, value)| (name, value)))
        .current_dir("/")
        .process_group(0)
        .stdin(if program.body.is_empty() { Stdio::null() } else { Stdio::piped() })
        .stdout(writer.try_clone()?)
        .stderr(writer)
        .kill_on_drop(true);
    // When this function returns, the command is dropped with our own writing ends. So the pipe closes when the last
    // process ends.
    Ok((command.spawn()?, OwnedFd::from(reader)))
}

/// Writes the body and closes the pipe. A program may ignore it.
async fn feed(stdin: Option<ChildStdin>, body: &[u8]) {
    let Some(mut stdin) = stdin else { return };
    if let Err(error) = stdin.write_all(body).await
        && error.kind() != io::ErrorKind::BrokenPipe
    {
        tracing::warn!(%error, "could not write the message's body to the program");
    }
}

/// Reads to the end, but keeps only parts: a program must never block on a full pipe.
async fn drain(mut reader: pipe::Receiver, output: &mut Captured) {
    let mut buffer = vec![0; 2 * KEPT];
    loop {
        match reader.read(&mut buffer).await {
            Ok(0) => return,
            Ok(length) => output.add(&buffer[..length]),
            Err(error) => {
                tracing::warn!(%error, "could not read the program's output");
                return;
            }
        }
    }
}

/// Waits for `event` while the pipes are served.
async fn serving<P: Future, T>(mut pipes: Pin<&mut Fuse<P>>, event: impl Future<Output = T>) -> T {
    let mut event = pin!(event);
    loop {
        tokio::select! {
            biased;
            value = &mut event => return value,
            _ = &mut pipes => {}
        }
    }
}

/// Why a program was not started: one clause that names it and the remedy.
fn why_not_started(argv: &[String], error: &io::Error) -> String {
    use rustix::io::Errno;
    let path = argv.first().map_or("", String::as_str);
    match Errno::from_io_error(error) {
        Some(Errno::NOENT) if Path::new(path).exists() => {
            format!("{path} exists, but the interpreter in its first line, or its loader, does not")
        }
        Some(Errno::NOENT) => format!("{path} does not exist"),
        Some(Errno::ACCESS | Errno::PERM) => {
            format!(
                "{path} may not be executed by this user; check its mode, its folders' modes and the noexec mount option"
            )
        }
        Some(Errno::NOEXEC) => {
            format!("{path} is neither a program for this machine nor a script that begins with #!")
        }
        Some(Errno::TOOBIG) => {
            format!("the arguments and environment for {path} are larger than the kernel allows")
        }
        Some(Errno::TXTBSY) => format!("{path} is being written to"),
        Some(Errno::AGAIN) => {
            format!("no more processes are allowed to start {path}; raise TasksMax or ulimit -u")
        }
        Some(Errno::MFILE | Errno::NFILE) => {
            format!("no more files may be opened to start {path}; raise LimitNOFILE or ulimit -n")
        }
        _ => format!("{path}: {error}"),
    }
}
