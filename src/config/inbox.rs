//! The `[inbox]` and `[actions]` tables.
//!
//! Owns: their keys, defaults and limits. Must not know: what is in the inbox, how actions run. Used by: `config`.

use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use toml::de::DeValue;

use super::report::{Place, Report};
use super::settings::{InboxSettings, KnownBy};
use super::table::{Field, shown};
use crate::trust;

const MIB: u64 = 1024 * 1024;
const DAY: Duration = Duration::from_secs(24 * 3600);

const KEEP: (Duration, Duration) = (Duration::from_secs(60), DAY.saturating_mul(30));
const KEEP_AT_LEAST: (u64, u64) = (0, 1_000_000);
const MAX_SIZE: (u64, u64) = (MIB, 1024 * MIB);
const DIGEST_WINDOW: (Duration, Duration) = (Duration::ZERO, Duration::from_secs(3600));
const MAX_REPORTS: (u64, u64) = (1, 100_000);
/// What a record without output takes, at the very least.
const RECORD_BYTES: u64 = 200;
/// What the kernel takes as the path of a Unix socket.
const MAX_SOCKET_BYTES: usize = 107;

/// Directories in memory.
const LOST_AT_BOOT: [&str; 3] = ["/run", "/var/run", "/dev/shm"];

const MAX_CHILDREN: (u64, u64) = (1, 64);
/// Programs that run at once unless `[actions]` says another number.
pub(super) const DEFAULT_MAX_CHILDREN: usize = 4;

/// Reads `[inbox]`; relative paths are taken from `directory`. A key with a problem has its default, but none takes the
/// place of a path with a problem: that would be another inbox.
pub(super) fn read(field: Option<Field<'_>>, directory: &Path, report: &mut Report) -> Option<InboxSettings> {
    let Some(field) = field else {
        let settings = InboxSettings::default();
        check_directory(&settings, None, report);
        return Some(settings);
    };
    let problems = report.problems();
    let mut table = field.table("[inbox]", report)?;
    let path = table.take("path");
    let mut settings = match path.as_ref().and_then(|field| read_file(field, directory, report)) {
        Some(path) => InboxSettings::at(path),
        None => InboxSettings::default(),
    };
    let socket = table.take("socket");
    if let Some(path) = socket.as_ref().and_then(|field| read_file(field, directory, report)) {
        settings.socket = path;
    }
    check_paths(&settings, path.as_ref(), socket.as_ref(), report);
    check_directory(&settings, path.as_ref(), report);
    let is_known = report.problems() == problems;
    if let Some(keep) = table.take("keep").and_then(|field| field.duration(KEEP, report)) {
        settings.keep = keep;
    }
    let keep_at_least = table.take("keep_at_least");
    if let Some(count) = keep_at_least.as_ref().and_then(|field| field.whole(KEEP_AT_LEAST, report)) {
        settings.keep_at_least = count;
    }
    if let Some(bytes) = table.take("max_size").and_then(|field| read_size(&field, MAX_SIZE, report)) {
        settings.max_size = bytes;
    }
    let ways = [("auto", KnownBy::Auto), ("delivery", KnownBy::Delivery), ("id", KnownBy::Id)];
    if let Some(known_by) = table.take("known_by").and_then(|field| field.word(&ways, report)) {
        settings.known_by = known_by;
    }
    if let Some(window) = table.take("digest_window").and_then(|field| field.duration(DIGEST_WINDOW, report))
    {
        settings.digest_window = window;
    }
    if let Some(count) = table.take("max_reports").and_then(|field| field.whole(MAX_REPORTS, report)) {
        settings.max_reports = count;
    }
    table.finish(report);
    let room = settings.max_size / RECORD_BYTES;
    if let Some(field) = keep_at_least.filter(|_| settings.keep_at_least > room) {
        let message = format!(
            "max_size has room for {room} records at most, so the oldest of these {} go before their time: set a \
             larger max_size, or a smaller keep_at_least",
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
    let count = table.take("max_children").and_then(|field| field.whole(MAX_CHILDREN, report));
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
        // This machine need not be the one where the agent will run.
        let message = format!(
            "neither {} nor the directory above it is there: the agent creates only the last one, so create it",
            directory.display()
        );
        report.warning(field.value.place.clone(), message);
    }
    if let Some(field) = path
        && let Some(lost) = LOST_AT_BOOT.iter().find(|lost| settings.path.starts_with(lost))
    {
        let message =
            format!("{lost} is empty after a power cut: put the inbox on a disk, as in /var/lib/c2d-agent/");
        report.warning(field.value.place.clone(), message);
    }
    let Some(field) = socket.or(path) else { return };
    let place = field.value.place.clone();
    let bytes = settings.socket.as_os_str().as_bytes().len();
    if settings.socket == settings.path {
        report.problem(
            place,
            "the socket would be the inbox's own file: name another one, such as socket = \"inbox.sock\"",
        );
    } else if bytes > MAX_SOCKET_BYTES {
        let message = format!(
            "the path of the socket, {}, has {bytes} bytes, and the kernel takes {MAX_SOCKET_BYTES} at most: set a \
             shorter socket, such as \"/run/c2d-agent.sock\"",
            settings.socket.display()
        );
        report.problem(place, message);
    }
}

/// Whoever owns it: root's `check` cannot tell who the agent will be.
fn check_directory(settings: &InboxSettings, path: Option<&Field<'_>>, report: &mut Report) {
    let Some(foreign) = trust::writable(trust::directory_of(&settings.path)) else { return };
    let (directory, what, remedy) = (foreign.place.display(), foreign.what(), foreign.remedy());
    let message = format!(
        "{directory}, where the inbox is, {what}, so that others can take messages away or have others acted on: {remedy}"
    );
    report.warning(path.map_or(Place::Whole, |field| field.value.place.clone().into()), message);
}

fn is_missing(directory: &Path) -> bool {
    !directory.as_os_str().is_empty() && !directory.exists()
}

/// A number of bytes, or a text such as `"16MiB"`.
fn read_size(field: &Field<'_>, limits: (u64, u64), report: &mut Report) -> Option<u64> {
    let (bytes, written) = match field.value.value {
        DeValue::String(text) => (parse_size(text), format!("\"{}\"", shown(text))),
        DeValue::Integer(integer) => {
            (field.value.integer().and_then(|bytes| u64::try_from(bytes).ok()), integer.to_string())
        }
        _ => return field.wrong_type("a number of bytes, or a text such as \"16MiB\"", report),
    };
    if bytes.is_some_and(|bytes| (limits.0..=limits.1).contains(&bytes)) {
        return bytes;
    }
    let [least, most] = [limits.0, limits.1].map(format_size);
    let message = format!("{} is {written}: it must be from {least} to {most}, such as \"16MiB\"", field.key);
    field.wrong(message, report)
}

const UNITS: [(&str, u64); 3] = [("GiB", 1024 * MIB), ("MiB", MIB), ("KiB", 1024)];

fn parse_size(text: &str) -> Option<u64> {
    let unit = UNITS.iter().find_map(|(unit, bytes)| Some((text.strip_suffix(unit)?, *bytes)));
    let (number, bytes) = unit.unwrap_or((text, 1));
    number.trim_end().parse::<u64>().ok()?.checked_mul(bytes)
}

/// `16MiB`; the number alone where no unit divides it.
fn format_size(bytes: u64) -> String {
    let unit = UNITS.iter().find(|(_, size)| bytes >= *size && bytes.is_multiple_of(*size));
    unit.map_or(bytes.to_string(), |(unit, size)| format!("{}{unit}", bytes / size))
}
