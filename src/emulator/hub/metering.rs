//! Counts what back ends and devices ask, for a hub whose size is emulated.
//!
//! Owns: that nothing is counted without a size. Must not know: rates (`throttle`), protocols.

use std::time::SystemTime;

use super::state::Hub;
use super::throttle::{HubSize, Metered, TooSoon};

impl Hub {
    /// From now on the hub throttles as one of this size does.
    pub fn throttle_as(&mut self, size: HubSize) {
        self.throttle.set(size);
    }

    /// Counts one request of a kind; a method counts by the bytes of its payload.
    ///
    /// # Errors
    /// [`TooSoon`]: the request must be refused, and was not counted.
    pub fn meter(&mut self, kind: Metered, bytes: usize, now: SystemTime) -> Result<(), TooSoon> {
        self.throttle.take(kind, bytes, now)
    }
}
