//! Facts about the machine that runs the tests: its user, its addresses.
#![allow(dead_code)] // Not every feature set uses every part.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU8, Ordering};

use crate::harness::skip;

/// Whether root runs the tests; otherwise says that the test is skipped. Only root can change the owner of a file.
pub(crate) fn is_root_or_skips(test: &str) -> bool {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        skip(test, "only root can give files away");
    }
    is_root
}

/// A loopback address that no other test uses, in this process or another, for peers that dial the standard ports.
pub(crate) fn own_address() -> Ipv4Addr {
    static USED: AtomicU8 = AtomicU8::new(0);
    let [.., high, low] = std::process::id().to_be_bytes();
    Ipv4Addr::new(127, high | 0x80, low, 1 + USED.fetch_add(1, Ordering::Relaxed))
}
