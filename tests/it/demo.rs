//! The demo as a user sees it: every line, except for ports and times.
//!
//! Owns: nothing that ships. Must not know: how the demo works.

use std::time::{Duration, Instant};

use crate::harness::{Process, binary};

/// The text without ports and times, which change from run to run.
fn filtered(text: &str) -> String {
    let mut filtered = String::new();
    let mut words = text.split_inclusive([' ', '\n', ',']).peekable();
    while let Some(word) = words.next() {
        let bare = word.trim_end_matches([' ', '\n', ',']);
        let end = &word[bare.len()..];
        let is_time = words.peek().is_some_and(|next| matches!(next.trim(), "ms" | "ms:" | "s"));
        match bare.strip_prefix("127.0.0.1:") {
            Some(_) => filtered.push_str("127.0.0.1:PORT"),
            None if is_time => filtered.push_str("TIME"),
            None => filtered.push_str(bare),
        }
        filtered.push_str(end);
    }
    filtered
}

fn demo(folder: &std::path::Path) -> Process {
    Process::spawn(binary().arg("demo").env("TMPDIR", folder))
}

#[test]
fn the_demo_tells_its_whole_story_in_five_seconds_and_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let started = Instant::now();
    let demo = demo(folder.path());
    let status = demo.wait_exit();
    let took = started.elapsed();
    assert_eq!((demo.stderr.text().as_str(), status.code()), ("", Some(0)));
    insta::assert_snapshot!(filtered(&demo.stdout.text()));
    assert!(demo.stdout.all().iter().all(|line| line.chars().count() <= 80));
    assert!(took < Duration::from_secs(5), "it took {took:?}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn a_demo_that_is_stopped_by_a_signal_says_so_and_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let demo = demo(folder.path());
    demo.stdout.wait_for("1. ");
    assert_eq!(demo.terminate(), Some(1));
    assert_eq!(demo.stderr.text(), "c2d-agent: stopped by a signal before the end");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn a_demo_without_a_directory_to_write_to_says_what_to_do() {
    let demo = demo(std::path::Path::new("/does/not/exist"));
    assert_eq!(demo.wait_exit().code(), Some(1));
    let line = demo.stderr.text();
    assert!(line.starts_with("c2d-agent: cannot make /does/not/exist/c2d-agent-demo-"), "{line}");
    assert!(
        line.ends_with(": set TMPDIR to a writable directory: No such file or directory (os error 2)"),
        "{line}"
    );
}
