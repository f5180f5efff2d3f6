//! Reads the files of a configuration from the disk: the main file, and the drop-ins in `config.d` beside it.
//!
//! Owns: which files count, their order and limits, and who may change them. Must not know: what is in them.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use super::files;
use super::report::{Place, Report};
use super::sources::Sources;
use crate::trust::{self, Foreign, WayToFile};

/// The largest file, and the largest sum of all files.
const MAX_CONFIG_BYTES: usize = 1024 * 1024;
/// Most drop-ins.
const MAX_FILES: usize = 100;
/// The main file of the Debian package's service. Only root can write there.
const OF_THE_SERVICE: &str = "/etc/c2d-agent/config.toml";
/// The directory beside the main file.
const DIRECTORY: &str = "config.d";

/// Reads the main file and its drop-ins, in the order in which they count, without those that have a problem.
pub(super) fn read(main: &Path, report: &mut Report) -> Sources {
    let mut sources = Sources::default();
    match files::read_text(main, MAX_CONFIG_BYTES as u64) {
        Ok(text) => sources.push(main, text),
        Err(reason) => {
            let remedy = match () {
                () if main.is_dir() => "; name a file in it with -c FILE".to_owned(),
                () if !main.exists() => first_steps(main),
                () => String::new(),
            };
            report.problem(Place::Whole, format!("cannot read the configuration: {reason}{remedy}"));
            sources.push(main, "");
            return sources;
        }
    }
    let directory = main.parent().unwrap_or(Path::new("")).join(DIRECTORY);
    let paths = match list(&directory) {
        Ok(paths) => paths,
        Err(error) => {
            let reason = trust::in_words(&error);
            report
                .problem(Place::File(directory), format!("cannot read the directory of drop-ins: {reason}"));
            return sources;
        }
    };
    if paths.len() > MAX_FILES {
        let message =
            format!("there are more than {MAX_FILES} drop-ins here: combine some of them in one file");
        report.problem(Place::File(directory), message);
        return sources;
    }
    for path in paths {
        let text = match files::read_text(&path, MAX_CONFIG_BYTES as u64) {
            Ok(text) => text,
            Err(reason) => {
                report.problem(Place::File(path), format!("cannot read this drop-in: {reason}"));
                continue;
            }
        };
        if sources.bytes() + text.len() > MAX_CONFIG_BYTES {
            let message = format!(
                "with this file the configuration is larger than {MAX_CONFIG_BYTES} bytes; is it the right file?"
            );
            report.problem(Place::File(path), message);
            break;
        }
        sources.push(path, text);
    }
    sources
}

/// What to do if there is no main file.
fn first_steps(main: &Path) -> String {
    let init = match main == Path::new(OF_THE_SERVICE) {
        true => "sudo c2d-agent init".to_owned(),
        false => format!("c2d-agent init -c {}", main.display()),
    };
    format!("; write one with {init}, or name another file with -c FILE")
}

/// The drop-ins, sorted by the bytes of their names. At most one more than allowed, which is enough to report that
/// there are too many; none without the directory.
fn list(directory: &Path) -> io::Result<Vec<PathBuf>> {
    if !files::is_there(directory) {
        return Ok(Vec::new());
    }
    let mut names = Vec::new();
    for entry in fs::read_dir(directory)? {
        let name = entry?.file_name();
        if is_drop_in(&name) {
            names.push(name);
        }
        if names.len() > MAX_FILES {
            break;
        }
    }
    names.sort();
    Ok(names.into_iter().map(|name| directory.join(name)).collect())
}

/// Editors and package managers leave other names, such as `.20-pins.toml.swp` and `20-pins.toml.dpkg-old`.
fn is_drop_in(name: &OsStr) -> bool {
    name.as_bytes().ends_with(b".toml") && !name.as_bytes().starts_with(b".")
}

/// Where other users can change these files or add drop-ins, the main file first. Each place appears once.
pub(super) fn foreign<'a>(paths: impl Iterator<Item = &'a Path>) -> Vec<Foreign> {
    let mut found: Vec<Foreign> = Vec::new();
    let mut add = |foreign: Foreign| {
        if !found.iter().any(|one| one.place == foreign.place) {
            found.push(foreign);
        }
    };
    for (at, path) in paths.enumerate().filter(|(_, path)| path.is_file()) {
        // The real path is how a place is reported, so that no place is reported twice.
        let real = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let directory = trust::directory_of(&real);
        if at == 0 {
            // Drop-ins are read from here.
            [directory, &directory.join(DIRECTORY)].into_iter().filter_map(trust::foreign).for_each(&mut add);
        }
        WayToFile::to(path).foreign.into_iter().for_each(&mut add);
    }
    found
}
