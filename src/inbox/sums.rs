//! What the inbox counts beside its records.
//!
//! Owns: the shapes. Must not know: how they are stored.

use crate::config::InboxSettings;
use crate::outcome::Totals;

/// The last number of a record, and of a report.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Numbers {
    pub(super) last_record: u64,
    pub(super) last_report: u64,
}

impl Numbers {
    pub(super) fn max(self, other: Self) -> Self {
        Self {
            last_record: self.last_record.max(other.last_record),
            last_report: self.last_report.max(other.last_report),
        }
    }
}

/// Counters that only go up. Each batch ends with them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Sums {
    pub(super) numbers: Numbers,
    pub(super) reports_dropped: u64,
    pub(super) totals: Totals,
}

/// What a batch needs besides its operations.
#[derive(Debug, Clone, Copy)]
pub(super) struct Circumstances<'c> {
    pub(super) settings: &'c InboxSettings,
    pub(super) now_ms: u64,
}
