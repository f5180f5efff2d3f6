//! Reads the `[inbox]` and `[actions]` tables.
//!
//! Owns: their keys, defaults and limits. Must not know: what is in the inbox, how actions run.

use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::field::{Field, shown};
use super::key::{Absent, FilePath, Key, Size, Span, Whole, Words};
use super::report::{Place, Report};
use super::settings::{InboxSettings, KnownBy};
use crate::trust;

const MIB: u64 = 1024 * 1024;
const DAY: Duration = Duration::from_secs(24 * 3600);

pub(super) const PATH: Key<FilePath> = Key {
    name: "path",
    kind: FilePath,
    absent: Absent::Means("/var/lib/c2d-agent/inbox.journal"),
    about: "the file; its directory is created when only that is missing. See [Where the inbox is](#where-the-inbox-is)",
};
pub(super) const SOCKET: Key<FilePath> = Key {
    name: "socket",
    kind: FilePath,
    absent: Absent::Nothing,
    about: "where `c2d-agent inbox` and `status` reach the running agent, default the inbox's name with `.sock`; at most 107 bytes",
};
pub(super) const KEEP: Key<Span> = Key {
    name: "keep",
    kind: Span(Duration::from_secs(60), DAY.saturating_mul(30)),
    absent: Absent::Means("48h"),
    about: "how long ended messages are remembered. A message that the hub sends again later than that would run again; the hub \
            keeps one for 48 hours at most",
};
pub(super) const KEEP_AT_LEAST: Key<Whole> = Key {
    name: "keep_at_least",
    kind: Whole(0, 1_000_000),
    absent: Absent::Means("1000"),
    about: "how many are remembered even if they are older",
};
pub(super) const MAX_SIZE: Key<Size> = Key {
    name: "max_size",
    kind: Size(MIB, 1024 * MIB),
    absent: Absent::Means("16MiB"),
    about: "records, messages and reports together; when it is reached, the oldest ended ones are removed \
            early; if that is not enough, no message is accepted",
};
pub(super) const KNOWN_BY: Key<Words<KnownBy>> = Key {
    name: "known_by",
    kind: Words(&[("auto", KnownBy::Auto), ("delivery", KnownBy::Delivery), ("id", KnownBy::Id)]),
    absent: Absent::Means("auto"),
    about: "how a message is known again: `auto` by an id that is or contains a UUID (not the one of zeros), else by all that was \
            delivered; `delivery` by all that was delivered, whatever its id; `id` by each id. See [How a message is known \
            again](../concepts/delivery.md#how-a-message-is-known-again)",
};
pub(super) const DIGEST_WINDOW: Key<Span> = Key {
    name: "digest_window",
    kind: Span(Duration::ZERO, Duration::from_secs(3600)),
    absent: Absent::Means("2m"),
    about: "how long a message that is equal to a completed one counts as the same message when it comes on \
            another connection; `0s` means never",
};
pub(super) const MAX_REPORTS: Key<Whole> = Key {
    name: "max_reports",
    kind: Whole(1, 100_000),
    absent: Absent::Means("1000"),
    about: "outcome reports that wait for the hub; the oldest are dropped first",
};
/// What a record counts towards `max_size` at the very least, because the index keeps about 200 bytes of memory for it.
pub(crate) const RECORD_BYTES: u64 = 512;
/// The longest path of a Unix socket that the kernel accepts.
const MAX_SOCKET_BYTES: usize = 107;

/// Directories in memory: a restart empties them.
const LOST_AT_BOOT: [&str; 3] = ["/run", "/var/run", "/dev/shm"];

pub(super) const MAX_CHILDREN: Key<Whole> = Key {
    name: "max_children",
    kind: Whole(1, 64),
    absent: Absent::Means("4"),
    about: "programs that run at once; 2 or more where rules of the twin may use `[allow.commands]`",
};
/// How many programs run at once if `[actions]` does not say.
pub(super) const DEFAULT_MAX_CHILDREN: usize = 4;

/// Reads `[inbox]`; relative paths start at `directory`. A key with a problem gets its default. A path with a problem
/// gets none, because that would be another inbox.
pub(super) fn read(field: Option<Field<'_>>, directory: &Path, report: &mut Report) -> Option<InboxSettings> {
    let Some(field) = field else {
        let settings = InboxSettings::default();
        check_directory(&settings, None, report);
        return Some(settings);
    };
    let problems = report.problems();
    let mut table = field.table("[inbox]", report)?;
    let path = table.take(&PATH);
    let mut settings = match path.as_ref().and_then(|field| read_file(field, directory, report)) {
        Some(path) => InboxSettings::at(path),
        None => InboxSettings::default(),
    };
    let socket = table.take(&SOCKET);
    if let Some(path) = socket.as_ref().and_then(|field| read_file(field, directory, report)) {
        settings.socket = path;
    }
    check_paths(&settings, path.as_ref(), socket.as_ref(), report);
    check_directory(&settings, path.as_ref(), report);
    let is_known = report.problems() == problems;
    if let Some(keep) = table.read(&KEEP, report) {
        settings.keep = keep;
    }
    let keep_at_least = table.take(&KEEP_AT_LEAST);
    if let Some(count) = keep_at_least.as_ref().and_then(|field| KEEP_AT_LEAST.read(field, report)) {
        settings.keep_at_least = count;
    }
    if let Some(bytes) = table.read(&MAX_SIZE, report) {
        settings.max_size = bytes;
    }
    if let Some(known_by) = table.read(&KNOWN_BY, report) {
        settings.known_by = known_by;
    }
    if let Some(window) = table.read(&DIGEST_WINDOW, report) {
        settings.digest_window = window;
    }
    if let Some(count) = table.read(&MAX_REPORTS, report) {
        settings.max_reports = count;
    }
    table.finish(report);
    let room = settings.max_size / RECORD_BYTES;
    if let Some(field) = keep_at_least.filter(|_| settings.keep_at_least > room) {
        let message = format!(
            "max_size has room for at most {room} records, so it cannot hold these {}: set a larger max_size \
             or a smaller keep_at_least",
            settings.keep_at_least
        );
        report.warning(field.value.place, message);
    }
    is_known.then_some(settings)
}

/// Reads `[actions]`: how many programs may run at once.
pub(super) fn read_max_children(field: Option<Field<'_>>, report: &mut Report) -> usize {
    let Some(mut table) = field.and_then(|field| field.table("[actions]", report)) else {
        return DEFAULT_MAX_CHILDREN;
    };
    let count = table.read(&MAX_CHILDREN, report);
    table.finish(report);
    count.and_then(|count| usize::try_from(count).ok()).unwrap_or(DEFAULT_MAX_CHILDREN)
}

fn read_file(field: &Field<'_>, directory: &Path, report: &mut Report) -> Option<PathBuf> {
    let text = field.text(report)?;
    let path = directory.join(text);
    if text.ends_with('/') || path.is_dir() {
        let message =
            format!("{} is \"{}\", which is a directory: name a file in it", field.key, shown(text));
        return field.wrong(message, report);
    }
    Some(path)
}

fn check_paths(
    settings: &InboxSettings,
    path: Option<&Field<'_>>,
    socket: Option<&Field<'_>>,
    report: &mut Report,
) {
    if let Some(field) = path
        && let Some(directory) = settings.path.parent().filter(|directory| is_missing(directory))
        && directory.parent().is_some_and(is_missing)
    {
        // The agent may run on another machine than this one.
        let message = format!(
            "neither {} nor the directory above it exists, and the agent creates only the last directory: \
             create it",
            directory.display()
        );
        report.warning(field.value.place.clone(), message);
    }
    if let Some(field) = path
        && let Some(lost) = LOST_AT_BOOT.iter().find(|lost| settings.path.starts_with(lost))
    {
        let message = format!(
            "{lost} is empty after a power cut: put the inbox on a disk, such as in \
                     /var/lib/c2d-agent/"
        );
        report.warning(field.value.place.clone(), message);
    }
    let Some(field) = socket.or(path) else { return };
    let place = field.value.place.clone();
    let bytes = settings.socket.as_os_str().as_bytes().len();
    if settings.socket == settings.path {
        report.problem(
            place,
            "the socket has the path of the inbox itself: set another one, such as socket = \"inbox.sock\"",
        );
    } else if bytes > MAX_SOCKET_BYTES {
        let message = format!(
            "the path of the socket, {}, has {bytes} bytes, but the kernel accepts at most \
             {MAX_SOCKET_BYTES}: set a shorter socket, such as \"/run/c2d-agent.sock\"",
            settings.socket.display()
        );
        report.problem(place, message);
    }
}

/// Warns of a directory that other users can write to. It does not look at the owner, because `check` as root cannot
/// know which user the agent will be.
fn check_directory(settings: &InboxSettings, path: Option<&Field<'_>>, report: &mut Report) {
    let Some(foreign) = trust::writable(trust::directory_of(&settings.path)) else { return };
    let (directory, what, remedy) = (foreign.place.display(), foreign.what(), foreign.remedy());
    let message = format!(
        "{directory}, where the inbox is, {what}, so other users can remove messages or add messages to act \
         on: {remedy}"
    );
    report.warning(path.map_or(Place::Whole, |field| field.value.place.clone().into()), message);
}

fn is_missing(directory: &Path) -> bool {
    !directory.as_os_str().is_empty() && !directory.exists()
}
