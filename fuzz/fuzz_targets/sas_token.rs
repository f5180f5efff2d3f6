//! libFuzzer's way into `targets/sas_token.rs`.
#![no_main]

#[path = "../targets/sas_token.rs"]
mod target;

libfuzzer_sys::fuzz_target!(|data: &[u8]| target::run(data));
