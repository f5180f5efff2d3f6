//! libFuzzer's way into `targets/connection_string.rs`.
#![no_main]

#[path = "../targets/connection_string.rs"]
mod target;

libfuzzer_sys::fuzz_target!(|data: &[u8]| target::run(data));
