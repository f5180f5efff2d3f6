//! The programs that rules run, and those that rules of the twin may run, as the agent's user will find them.
//!
//! Owns: whether a program can be started, and whether the agent would start it. Must not know: what a program does.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use rustix::fs::Access;

use super::user;
use super::{Check, Finding};
use crate::config::TwinSettings;
use crate::rules::{Rule, Rules};
use crate::trust;

const SHELL: &str = "/bin/sh";
/// The kernel reads no more of a script's first line.
const MAX_FIRST_LINE: u64 = 256;

/// One finding for each program, and one for the shell if a rule needs it.
pub(super) fn programs(rules: Option<&Rules>, twin: &TwinSettings) -> Vec<Finding> {
    let Some(rules) = rules else {
        return vec![Check::Program.skipped("the rules could not be read")];
    };
    let programs: BTreeSet<&str> = rules.iter().flat_map(Rule::programs).chain(twin.programs()).collect();
    let mut found: Vec<_> = programs.iter().map(|path| program(Check::Program, path).about(path)).collect();
    if rules.iter().any(Rule::has_shell) {
        found.push(program(Check::Shell, SHELL));
    }
    if found.is_empty() {
        found.push(Check::Program.skipped("no rule runs one"));
    }
    found
}

fn program(check: Check, path: &str) -> Finding {
    let file = Path::new(path);
    if !file.is_file() {
        return check.failed(format!("{path} is not there"), "install it, or use an image that has it");
    }
    if !user::may(file, Access::EXEC_OK) {
        let detail = format!("{} may not run {path}", user::own());
        return check.failed(
            detail,
            format!("give the user of the agent the right to (chmod, chgrp); checked for {}", user::own()),
        );
    }
    if let Some(sentence) = trust::foreign_program(path) {
        return check.failed_with(sentence);
    }
    match interpreter(file) {
        Some(needed) if !needed.is_file() => check.failed(
            format!("{path} needs the interpreter {}, which is not there", needed.display()),
            "install that, or correct the first line of the program (also its line ending)",
        ),
        _ => check.ok(format!("{path} can be run")),
    }
}

/// The interpreter that the first line of a script names.
fn interpreter(script: &Path) -> Option<PathBuf> {
    let mut first = Vec::new();
    File::open(script).ok()?.take(MAX_FIRST_LINE).read_to_end(&mut first).ok()?;
    let line = first.strip_prefix(b"#!")?.split(|byte| *byte == b'\n').next()?;
    let line = std::str::from_utf8(line).ok()?;
    line.trim_start_matches([' ', '\t']).split([' ', '\t']).next().map(PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn found(text: &str, mode: u32) -> (String, Finding) {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("program");
        std::fs::write(&path, text).expect("written");
        std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).expect("a mode");
        let path = path.display().to_string();
        let finding = program(Check::Program, &path);
        (path, finding)
    }

    #[test]
    fn a_script_whose_interpreter_is_missing_is_told() {
        let (path, finding) = found("#! /bin/sh -e\n", 0o755);
        assert_eq!(finding, Check::Program.ok(format!("{path} can be run")));
        let (path, finding) = found("#!/no/such/shell\n", 0o755);
        assert_eq!(
            finding.detail,
            format!("{path} needs the interpreter /no/such/shell, which is not there")
        );
        // The script was written on another system, so the interpreter's name ends with a carriage return.
        let (_, finding) = found("#!/bin/sh\r\n", 0o755);
        assert_eq!(finding.status, super::super::Standing::Failed);
    }

    #[test]
    fn a_program_that_nobody_may_run_is_told() {
        let (path, finding) = found("", 0o644);
        assert!(finding.detail.ends_with(&format!(" may not run {path}")), "{finding:?}");
    }
}
