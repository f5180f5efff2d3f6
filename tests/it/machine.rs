//! Facts about the machine that runs the tests: its user, its addresses.
#![allow(dead_code)] // Not every feature set uses every part.

use std::net::{Ipv4Addr, TcpListener};
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};

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

/// A free port below the range from which the system gives clients theirs: no client takes it while its server restarts.
pub(crate) fn lasting_port() -> u16 {
    const RANGE: std::ops::Range<u32> = 10_000..30_000;
    static USED: AtomicU32 = AtomicU32::new(0);
    loop {
        let step = std::process::id().wrapping_mul(199).wrapping_add(USED.fetch_add(1, Ordering::Relaxed));
        let port = u16::try_from(RANGE.start + step % (RANGE.end - RANGE.start)).expect("a port");
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
}
