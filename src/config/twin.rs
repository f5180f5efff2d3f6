//! The `[twin]` and `[allow]` tables: whether the twin may set rules, and what these may do.
//!
//! Owns: their keys, and which programs nobody may allow. Must not know: what the twin says. Used by: `config`.
//!
//! The twin is written by whoever holds a key of the hub. So its rules run only programs, and switch only pins, that the
//! owner of the device has listed; and a program that runs whatever its arguments say cannot be listed.

use std::fs;
use std::path::Path;

use super::files;
use super::gpio::unknown_pin;
use super::report::Report;
use super::settings::TwinSettings;
use super::table::{Field, shown};

/// Programs that run what their arguments say, by the last part of their paths without a version at its end. The list cannot be
/// complete; it is there for those that somebody would think of.
#[rustfmt::skip]
const RUN_ANYTHING: &[&str] = &[
    // Shells, and programs that are one among others.
    "sh", "bash", "rbash", "dash", "ash", "ksh", "mksh", "zsh", "fish", "csh", "tcsh", "pwsh", "busybox", "toybox", "coreutils",
    // Programs that run another one.
    "env", "xargs", "parallel", "find", "nohup", "timeout", "time", "watch", "nice", "ionice", "chrt", "taskset", "setsid",
    "stdbuf", "flock", "script", "sudo", "su", "doas", "pkexec", "runuser", "setpriv", "chroot", "unshare", "nsenter",
    "start-stop-daemon", "systemd-run", "ssh", "strace", "ltrace", "gdb", "perf", "valgrind", "prlimit", "setarch", "numactl",
    "capsh", "bwrap", "run-parts", "tini", "dumb-init", "gosu", "su-exec", "tmux", "screen", "crontab", "at",
    "docker", "podman", "nerdctl", "ctr", "crun", "runc", "socat", "ncat", "nc", "dbus-run-session",
    // Programs one of whose options does.
    "tar", "bsdtar", "zip", "rsync", "scp", "sftp", "git", "make", "gmake", "cpio", "split", "sort", "tcpdump", "openssl", "dpkg",
    "apt", "apt-get", "rpm", "dnf", "yum", "apk", "pip", "npm", "sqlite",
    // Editors and pagers.
    "vi", "vim", "nvim", "ed", "ex", "emacs", "nano", "less", "more", "man",
    // Languages whose programs can be arguments.
    "python", "pypy", "perl", "ruby", "node", "nodejs", "deno", "bun", "lua", "luajit", "php", "tclsh", "expect", "guile", "java",
    "awk", "gawk", "mawk", "nawk", "sed",
];

/// The kernel's loader of programs is one, too: its names begin so.
const LOADERS: [&str; 2] = ["ld-linux", "ld.so"];

/// Reads `[twin]` and `[allow]`. `pin_names` are all pins.
pub(super) fn read(
    twin: Option<Field<'_>>,
    allow: Option<Field<'_>>,
    pin_names: &[String],
    report: &mut Report,
) -> TwinSettings {
    let (twin_place, allow_place) = (
        twin.as_ref().map(|field| field.key_place.clone()),
        allow.as_ref().map(|field| field.key_place.clone()),
    );
    let mut settings = TwinSettings::default();
    if let Some(mut table) = twin.and_then(|field| field.table("[twin]", report)) {
        if let Some(accept) = table.take("accept") {
            let words = accept.array(report).unwrap_or_default();
            let words =
                words.iter().map(|word| word.named("a word of accept").word(&[("rules", ())], report));
            settings.accepts_rules = words.flatten().count() > 0;
        }
        table.finish(report);
    }
    if let Some(mut table) = allow.and_then(|field| field.table("[allow]", report)) {
        if let Some(programs) = table.take("programs") {
            let programs = programs.array(report).unwrap_or_default();
            let programs =
                programs.iter().map(|program| read_program(&program.named("a program of [allow]"), report));
            settings.programs = programs.flatten().collect();
        }
        if let Some(pins) = table.take("pins") {
            let pins = pins.array(report).unwrap_or_default();
            let pins = pins.iter().map(|pin| read_pin(&pin.named("a pin of [allow]"), pin_names, report));
            settings.pins = pins.flatten().collect();
        }
        table.finish(report);
    }
    match (settings.accepts_rules, twin_place, allow_place) {
        (true, place, None) => {
            let message = "rules of the twin may run no program and switch no pin, because there is no [allow]: list there \
                           what they may use, such as pins = [\"pump\"]";
            report.warning(place, message);
        }
        (false, _, Some(place)) => {
            let message = "[allow] has no effect, because nothing is taken from the twin: write [twin] accept = [\"rules\"], \
                           or remove [allow]";
            report.warning(place, message);
        }
        _ => {}
    }
    settings
}

fn read_pin(field: &Field<'_>, pin_names: &[String], report: &mut Report) -> Option<String> {
    let name = field.text(report)?;
    if pin_names.iter().any(|pin| pin == name) {
        return Some(name.to_owned());
    }
    field.wrong(unknown_pin(name, pin_names), report)
}

fn read_program(field: &Field<'_>, report: &mut Report) -> Option<String> {
    let path = field.text(report)?;
    if path.contains(['{', '}']) {
        return field.wrong("a program of [allow] is a fixed path, without braces", report);
    }
    if !path.starts_with('/') {
        let message = format!("the program \"{}\" is not an absolute path: write it from / on", shown(path));
        return field.wrong(message, report);
    }
    if let Some(name) = runs_anything(path) {
        let message = format!(
            "{name} runs what its arguments say, so whoever writes the twin would choose the program: allow one of your own \
             that does only what is needed"
        );
        return field.wrong(message, report);
    }
    match files::unfit_program(path) {
        Some(reason) => field.wrong(reason, report),
        None => Some(path.to_owned()),
    }
}

/// The name of the program, its own or the one that a link leads to, when it runs what its arguments say.
fn runs_anything(path: &str) -> Option<String> {
    let path = Path::new(path);
    let real = fs::canonicalize(path).ok();
    let names =
        [Some(path), real.as_deref()].into_iter().flatten().filter_map(|path| path.file_name()?.to_str());
    let is_one = |name: &&str| {
        let bare = name.trim_end_matches(|c: char| c.is_ascii_digit() || matches!(c, '.' | '-'));
        RUN_ANYTHING.contains(&bare) || LOADERS.iter().any(|loader| name.starts_with(loader))
    };
    names.into_iter().find(is_one).map(shown)
}
