//! libFuzzer's way into `targets/property_bag.rs`.
#![no_main]

#[path = "../targets/property_bag.rs"]
mod target;

libfuzzer_sys::fuzz_target!(|data: &[u8]| target::run(data));
