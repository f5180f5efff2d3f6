//! The clock of a process that says another time.
//!
//! Owns: faketime. Must not know: what is started with it.
#![allow(dead_code)] // Not every feature set has tests that need it.

use std::process::Command;

use crate::harness::{program, run};

/// What makes the clock of a process say another time, such as `+2h`: its environment. Timers run on. None without faketime.
pub(crate) fn clock_set_to(time: &str) -> Option<Vec<(String, String)>> {
    // The wrapper stays between us and its child, where signals get lost: ask it for its library and do without it.
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
