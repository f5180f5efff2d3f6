//! Runs every file of the fuzz corpora through the function that the fuzz target runs.
//!
//! Owns: only the walk; the checks are in `fuzz/targets/`. A finding of `scripts/fuzz.sh` is kept if its input goes
//! into `fuzz/corpus/TARGET/` under a name that says what it shows.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

#[path = "../../fuzz/targets/config.rs"]
mod config;
#[path = "../../fuzz/targets/connection_string.rs"]
mod connection_string;
#[path = "../../fuzz/targets/emulator_username.rs"]
mod emulator_username;
#[path = "../../fuzz/targets/property_bag.rs"]
mod property_bag;
#[path = "../../fuzz/targets/sas_token.rs"]
mod sas_token;

#[test]
fn the_property_bag_corpus_holds() {
    each_file("property_bag", property_bag::run);
}

#[test]
fn the_configuration_corpus_holds() {
    each_file("config", config::run);
}

#[test]
fn the_connection_string_corpus_holds() {
    each_file("connection_string", connection_string::run);
}

#[test]
fn the_sas_token_corpus_holds() {
    each_file("sas_token", sas_token::run);
}

#[test]
fn the_emulator_username_corpus_holds() {
    each_file("emulator_username", emulator_username::run);
}

/// Runs every file of a corpus, and names the files that fail.
fn each_file(target: &str, run: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let (mut seen, mut failed) = (0, Vec::new());
    for entry in std::fs::read_dir(&folder).expect("the corpus is there") {
        let path = entry.expect("a readable entry").path();
        let data = std::fs::read(&path).expect("a readable file");
        seen += 1;
        if catch_unwind(AssertUnwindSafe(|| run(&data))).is_err() {
            failed.push(path.display().to_string());
        }
    }
    assert!(seen > 5, "the corpus {} has only {seen} files", folder.display());
    assert!(failed.is_empty(), "{target} fails on (each panic is above):\n{}", failed.join("\n"));
}
