//! Checks shells in `run`: a message must not fill in their commands, and the message's body must not become a script.
//!
//! Owns: which programs are shells, and the one form of arguments that allows values. Must not know: TOML, messages.
//!
//! Shells read their options in many ways, and each way can turn a value into a command. So this does not search for
//! dangerous forms. It knows one safe form and refuses all others: options without arguments, `-c`, a fixed text, and
//! then the values, which are `$0`, `$1` and so on to that text.

use std::fs;
use std::path::Path;

use crate::rules::Template;

/// Names without the version at their end.
#[rustfmt::skip]
const SHELLS: [&str; 30] = [
    "sh", "bash", "rbash", "dash", "ash", "hush", "ksh", "rksh", "mksh", "lksh", "oksh", "pdksh", "zsh", "rzsh", "yash", "posh",
    "sash", "bosh", "mrsh", "osh", "ysh", "rc", "es", "csh", "bsd-csh", "tcsh", "fish", "elvish", "nu", "pwsh",
];
/// Shells whose `-c` takes everything after it as its text, or for which that is possible.
const TEXT_TO_THE_END: [&str; 3] = ["elvish", "nu", "pwsh"];
/// Programs that run the program in their arguments, which may be a shell. The list cannot be complete;
/// docs/src/guides/rules.md says so.
const RUNNERS: [&str; 11] =
    ["busybox", "toybox", "env", "sudo", "doas", "nice", "ionice", "nohup", "setsid", "stdbuf", "xargs"];
/// Endings of the names of some shells' builds.
const BUILDS: [&str; 3] = ["-static", ".static", ".distrib"];
/// Options that take no argument in any shell.
const PLAIN: &str = "aefhiluvx";

const FORM: &str = "a message may fill in an argument of a shell only after -c and a fixed text: write \
                    [\"/bin/sh\", \"-c\", \"logger -- \\\"$1\\\"\", \"sh\", \"{text}\"], or run a script by \
                    its own path, without the shell";
const CHOOSES: &str =
    "a message would choose the program here: write the program's name, and fill in only arguments after it";
const BODY: &str = "a shell without -c and without a script runs its standard input, which is the body of \
                    the message: give a script, or write shell = \"…\"";

/// A way in which a message could make a shell run commands.
pub(super) struct Misuse {
    /// The argument at fault; `None` if one is missing.
    pub(super) argument: Option<usize>,
    /// Why, and the remedy.
    pub(super) message: &'static str,
}

/// Looks for a shell in a command, and checks its arguments.
pub(super) fn misuse(program: &str, arguments: &[Template]) -> Option<Misuse> {
    let is_runner = RUNNERS.contains(&bare(program));
    let is_filled = |argument: &Template| argument.literal().is_none();
    if is_runner && arguments.first().is_some_and(is_filled) {
        return Some(Misuse { argument: Some(0), message: CHOOSES });
    }
    let (at, shell) = match shell(program) {
        Some(shell) => (0, shell),
        None if is_runner => {
            let named = |argument: &Template| argument.literal().and_then(shell);
            let at = arguments.iter().position(|argument| named(argument).is_some())?;
            (at + 1, named(arguments.get(at)?)?)
        }
        None => return None,
    };
    let own = arguments.get(at..)?;
    match own.iter().position(is_filled) {
        Some(_) if !TEXT_TO_THE_END.contains(&shell.as_str()) && is_behind_a_text(own) => None,
        Some(filled) => Some(Misuse { argument: Some(at + filled), message: FORM }),
        // Behind the first argument, the name of a shell may be just a value and not a program to run.
        None if at <= 1 && reads_commands(own) => Some(Misuse { argument: None, message: BODY }),
        None => None,
    }
}

/// The shell at a path: known by its own name, or by the name of the file that its links lead to.
fn shell(path: &str) -> Option<String> {
    let known = |path: &str| SHELLS.contains(&bare(path)).then(|| bare(path).to_owned());
    let real = || fs::canonicalize(path).ok().filter(|_| path.starts_with('/'));
    known(path).or_else(|| known(real()?.to_str()?))
}

/// The file name of a path, without version and build.
fn bare(path: &str) -> &str {
    let version = |c: char| c.is_ascii_digit() || matches!(c, '.' | '-' | '+');
    let name = Path::new(path).file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let name = name.trim_end_matches(version);
    let build = BUILDS.iter().find_map(|build| name.strip_suffix(build));
    build.unwrap_or(name).trim_end_matches(version)
}

/// Whether the arguments begin with plain options, `-c` and a fixed text, so that later arguments are values for that
/// text.
fn is_behind_a_text(arguments: &[Template]) -> bool {
    let plain = |text: &str| {
        let letters = text.strip_prefix('-').filter(|letters| !letters.is_empty())?;
        letters.chars().all(|c| c == 'c' || PLAIN.contains(c)).then_some(letters.contains('c'))
    };
    let mut arguments = arguments.iter().map(Template::literal);
    loop {
        match arguments.next().flatten().and_then(plain) {
            Some(true) => break,
            Some(false) => {}
            None => return false,
        }
    }
    // A text that looks like an option is taken as one, and the next argument would be the text.
    arguments.next().flatten().is_some_and(|text| !text.starts_with(['-', '+']))
}

/// Whether a shell with these fixed arguments has neither a text nor a script, so that it reads commands from its
/// input.
fn reads_commands(arguments: &[Template]) -> bool {
    let mut arguments = arguments.iter().filter_map(Template::literal);
    while let Some(argument) = arguments.next() {
        if argument.starts_with("--") {
            continue;
        }
        match argument.strip_prefix(['-', '+']) {
            None => return false,
            Some(letters) if letters.contains('c') => return false,
            Some(letters) if letters.contains('s') => return true,
            Some(letters) if letters.contains(['o', 'O']) => drop(arguments.next()),
            Some(_) => {}
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at_fault(command: &[&str]) -> Option<Option<usize>> {
        let (program, arguments) = command.split_first().expect("a program");
        let template = |text: &&str| Template::parse(text).expect("a template");
        let arguments: Vec<_> = arguments.iter().map(template).collect();
        misuse(program, &arguments).map(|misuse| misuse.argument)
    }

    #[test]
    fn shells_are_known_by_any_of_their_names() {
        for shell in [
            "/bin/sh",
            "/bin/rbash",
            "/usr/bin/ksh93",
            "/usr/bin/bash-5.2",
            "/usr/local/bin/zsh-5.9",
            "/bin/zsh5",
            "/bin/bash-static",
            "/bin/zsh5-static",
            "/bin/sh.distrib",
            "/bin/bsd-csh",
            "/bin/fish",
            "/usr/bin/pwsh",
        ] {
            assert_eq!(at_fault(&[shell, "{x}"]), Some(Some(0)), "{shell}");
            assert_eq!(at_fault(&[shell, "-c", "{x}"]), Some(Some(1)), "{shell}");
        }
        for other in
            ["/usr/bin/ssh", "/opt/backup.sh", "/sbin/rc-service", "/opt/fish-feeder", "/opt/publish"]
        {
            assert_eq!(at_fault(&[other, "-c", "{x}"]), None, "{other}");
        }
    }

    #[test]
    fn a_link_to_a_shell_is_a_shell() {
        let dir = tempfile::tempdir().expect("a directory");
        let link = dir.path().join("runner");
        std::os::unix::fs::symlink("/bin/sh", &link).expect("a link");
        assert_eq!(at_fault(&[link.to_str().expect("UTF-8"), "{x}"]), Some(Some(0)));
        assert_eq!(at_fault(&["/usr/bin/env", link.to_str().expect("UTF-8"), "{x}"]), Some(Some(1)));
    }

    #[test]
    fn a_shell_among_the_programs_of_busybox_is_a_shell() {
        assert_eq!(at_fault(&["/bin/busybox", "sh", "-c", "{x}"]), Some(Some(2)));
        assert_eq!(at_fault(&["/bin/busybox", "{x}"]), Some(Some(0)));
        assert_eq!(at_fault(&["/bin/busybox.static", "ash"]), Some(None));
        assert_eq!(at_fault(&["/bin/busybox", "logger", "{x}"]), None);
        assert_eq!(at_fault(&["/bin/busybox", "sh", "-c", "logger -- \"$1\"", "sh", "{x}"]), None);
    }

    #[test]
    fn a_shell_that_takes_all_of_its_arguments_for_commands_takes_no_value() {
        assert_eq!(at_fault(&["/usr/bin/pwsh", "-c", "Write-Host", "{x}"]), Some(Some(2)));
    }
}
