//! libFuzzer's way into `targets/emulator_username.rs`.
#![no_main]

#[path = "../targets/emulator_username.rs"]
mod target;

libfuzzer_sys::fuzz_target!(|data: &[u8]| target::run(data));
