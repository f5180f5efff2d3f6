//! The tables of the inbox in redb, and what is counted beside the records.
//!
//! Owns: names and types of the tables. Must not know: when they are read or written.
//!
//! | Table | Key | Value |
//! |---|---|---|
//! | `records` | number | see `codec.rs` |
//! | `messages` | number | see `codec.rs`; only while the message may have to be run |
//! | `reports` | number | the report as the agent made it |
//! | `meta` | `format`, `sums`, `pins-on` | JSON |

use redb::{Table, TableDefinition, WriteTransaction};
use serde::{Deserialize, Serialize};

use super::codec::Stored;
use super::ledger::{LedgerEntry, since_ms};
use super::record::State;
use super::trouble::Trouble;
use crate::config::InboxSettings;
use crate::outcome::{OutcomeKind, Totals};

pub(super) const RECORDS: TableDefinition<u64, &[u8]> = TableDefinition::new("records");
pub(super) const MESSAGES: TableDefinition<u64, &[u8]> = TableDefinition::new("messages");
pub(super) const REPORTS: TableDefinition<u64, &[u8]> = TableDefinition::new("reports");
pub(super) const META: TableDefinition<&str, &[u8]> = TableDefinition::new("meta");

pub(super) const SUMS_KEY: &str = "sums";
pub(super) const PINS_ON_KEY: &str = "pins-on";

/// The last number of a record, and of a report.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
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

/// Counters that only go up. They are written with every transaction.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Sums {
    pub(super) numbers: Numbers,
    pub(super) reports_dropped: u64,
    pub(super) totals: Totals,
    /// The stamp of the last transaction. It shows whether a transaction with an unknown result is in the file.
    pub(super) stamp: u64,
}

/// The tables of a transaction that writes.
pub(super) struct Tables<'t> {
    pub(super) records: Table<'t, u64, &'static [u8]>,
    pub(super) messages: Table<'t, u64, &'static [u8]>,
    pub(super) reports: Table<'t, u64, &'static [u8]>,
    pub(super) meta: Table<'t, &'static str, &'static [u8]>,
}

impl<'t> Tables<'t> {
    pub(super) fn open(transaction: &'t WriteTransaction) -> Result<Self, Trouble> {
        Ok(Self {
            records: transaction.open_table(RECORDS)?,
            messages: transaction.open_table(MESSAGES)?,
            reports: transaction.open_table(REPORTS)?,
            meta: transaction.open_table(META)?,
        })
    }

    pub(super) fn put_sums(&mut self, sums: &Sums) -> Result<(), Trouble> {
        let json = serde_json::to_vec(sums).map_err(|error| Trouble::Defect(error.to_string()))?;
        self.meta.insert(SUMS_KEY, json.as_slice())?;
        Ok(())
    }
}

/// What an apply needs besides the operations.
#[derive(Debug, Clone, Copy)]
pub(super) struct Circumstances<'c> {
    pub(super) settings: &'c InboxSettings,
    pub(super) now_ms: u64,
    /// Recorded with the transaction.
    pub(super) stamp: u64,
}

/// The ledger's entry for a record that takes `value_len` bytes without its message.
pub(super) fn entry(stored: &Stored, value_len: usize, connection: u64) -> LedgerEntry {
    let record = &stored.record;
    LedgerEntry {
        delivery: stored.delivery,
        id: stored.id,
        sequence: stored.sequence,
        since_ms: since_ms(record),
        connection,
        size: u32::try_from(value_len).unwrap_or(u32::MAX).saturating_add(stored.message_len),
        state: record.state,
        unmatched: record.state == State::Dead
            && record.outcome.as_ref().is_some_and(|outcome| outcome.outcome == OutcomeKind::Unmatched),
        settled: record.settled,
        confirmed: stored.confirmed,
    }
}
