//! Starts a process with another time on its clock.
//!
//! Owns: faketime. Must not know: which programs are started.
#![allow(dead_code)] // Not every feature set has tests that need it.

use std::process::Command;

use crate::harness::{program, run};

/// The environment that shifts the clock of a process, for example by `+2h`. Timers are not changed. `None` without
/// faketime.
pub(crate) fn clock_set_to(time: &str) -> Option<Vec<(String, String)>> {
    // The wrapper would stay between the test and its child, and signals would get lost. So only its library is used.
    let library = run(Command::new(program("faketime")?).args(["-f", "+0", "printenv", "LD_PRELOAD"]));
    let library = String::from_utf8(library.stdout).expect("a path").trim().to_owned();
    let pairs = [
        ("LD_PRELOAD", library.as_str()),
        ("FAKETIME", time),
        ("TZ", "UTC"),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
        ("DONT_FAKE_MONOTONIC", "1"),
    ];
    Some(pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).into())
}
