//! The inbox in redb: opened, read, and changed one transaction at a time.
//!
//! Owns: the file's format version, the scan at each open, commit. Must not know: threads, paths, when
//! the inbox tries again.

use std::collections::{BTreeMap, HashMap};

use redb::{Database, ReadableDatabase as _, ReadableTable as _};

use super::apply::{Notes, Work};
use super::codec::{self, Stored};
use super::ledger::{EARLIER_PROCESS, Ledger, since_ms};
use super::operation::{Op, Written};
use super::record::{Counts, Opened, Record, State, Unfinished, from_millis};
use super::retention;
use super::tables::{
    Circumstances, MESSAGES, META, Numbers, PINS_ON_KEY, RECORDS, REPORTS, SUMS_KEY, Sums, Tables, entry,
};
use super::trouble::Trouble;
use crate::config::InboxSettings;

/// The version of the tables. A file with a higher number is not touched.
const FORMAT: u32 = 2;
const FORMAT_KEY: &str = "format";

/// How far back [`Opened::starts`] goes, and how many starts it has of one rule at most.
const STARTS_MS: u64 = 3_600_000;
const MOST_STARTS: usize = 1_000;

/// The result of a transaction.
#[derive(Debug)]
pub(super) struct Applied {
    pub(super) answers: Vec<Written>,
    pub(super) notes: Notes,
}

/// An open file, and its data in memory.
#[derive(Debug)]
pub(super) struct Store {
    database: Database,
    pub(super) ledger: Ledger,
    pub(super) sums: Sums,
}

impl Store {
    /// Opens a database, and reads what is kept in memory. An empty database gets its tables. New numbers follow
    /// `floor`.
    pub(super) fn open(database: Database, floor: Numbers) -> Result<Self, Trouble> {
        let Some(mut sums) = read_sums(&database)? else {
            let sums = Sums { numbers: floor, ..Sums::default() };
            begin(&database, &sums)?;
            return Ok(Self { database, ledger: Ledger::default(), sums });
        };
        sums.numbers = sums.numbers.max(floor);
        let mut store = Self { database, ledger: Ledger::default(), sums };
        store.fill()?;
        Ok(store)
    }

    fn fill(&mut self) -> Result<(), Trouble> {
        let transaction = self.database.begin_read()?;
        for row in transaction.open_table(RECORDS)?.iter()? {
            let (number, value) = row?;
            let (number, value) = (number.value(), value.value());
            let stored = Stored::decode(number, value).map_err(Trouble::Corrupt)?;
            self.ledger.insert(number, entry(&stored, value.len(), EARLIER_PROCESS));
        }
        for row in transaction.open_table(REPORTS)?.iter()? {
            let (_, value) = row?;
            self.ledger.reports += 1;
            self.ledger.report_bytes += value.value().len() as u64;
        }
        Ok(())
    }

    /// What the agent needs once, at its start.
    pub(super) fn opened(&self, now_ms: u64) -> Result<Opened, Trouble> {
        let transaction = self.database.begin_read()?;
        let messages = transaction.open_table(MESSAGES)?;
        let mut opened = Opened { counts: self.counts(), ..Opened::default() };
        let mut latest: HashMap<String, (u64, Record)> = HashMap::new();
        let mut starts: HashMap<String, Vec<u64>> = HashMap::new();
        let mut last_received = None;
        for row in transaction.open_table(RECORDS)?.iter()? {
            let (number, value) = row?;
            let number = number.value();
            let record = Stored::decode(number, value.value()).map_err(Trouble::Corrupt)?.record;
            last_received = last_received.max(Some(record.received_ms));
            if let (Some(rule), Some(started)) = (&record.rule, record.started_ms) {
                match starts.get_mut(rule) {
                    Some(own) => own.push(started),
                    None => drop(starts.insert(rule.clone(), vec![started])),
                }
            }
            if matches!(record.state, State::Accepted | State::Started) {
                let Some(message) = messages.get(number)? else {
                    return Err(Trouble::Corrupt(format!("the message of record {number} is missing")));
                };
                let message = codec::decode_message(number, message.value()).map_err(Trouble::Corrupt)?;
                opened.unfinished.push(Unfinished { record, message });
            } else if let Some(rule) = record.rule.clone() {
                let since = since_ms(&record);
                if latest.get(&rule).is_none_or(|(newest, _)| *newest <= since) {
                    latest.insert(rule, (since, record));
                }
            }
        }
        for (rule, mut own) in starts {
            own.sort_unstable();
            let old = own.partition_point(|at| at.saturating_add(STARTS_MS) < now_ms);
            // The last start stays, however old it is.
            let first = old.max(own.len().saturating_sub(MOST_STARTS)).min(own.len() - 1);
            opened.starts.extend(own[first..].iter().map(|at| (rule.clone(), from_millis(*at))));
        }
        opened.starts.sort_unstable_by_key(|(_, at)| *at);
        opened.latest = latest.into_values().map(|(_, record)| record).collect();
        opened.latest.sort_by_key(|record| record.number);
        opened.last_received = last_received.map(from_millis);
        if let Some(value) = transaction.open_table(META)?.get(PINS_ON_KEY)? {
            let pins: BTreeMap<String, u64> = read_json(PINS_ON_KEY, value.value())?;
            opened.pins_on = pins.into_iter().map(|(pin, since)| (pin, from_millis(since))).collect();
        }
        Ok(opened)
    }

    /// Applies operations in one transaction. If this fails, the memory does not match the file: the caller must drop
    /// the store and open it again. The file then has all of the batch, if it has the stamp, or nothing.
    ///
    /// `applied` is set before the commit.
    pub(super) fn apply(
        &mut self,
        ops: &[Op],
        circumstances: &Circumstances<'_>,
        applied: &mut Option<Applied>,
    ) -> Result<(), Trouble> {
        self.ledger.begin();
        let transaction = self.database.begin_write()?;
        let mut work =
            Work::new(Tables::open(&transaction)?, &mut self.ledger, &mut self.sums, circumstances);
        let answers = work.all(ops)?;
        let written = work.written();
        if written {
            work.sums.stamp = circumstances.stamp;
            work.tables.put_sums(work.sums)?;
        }
        let notes = work.notes;
        drop(work);
        *applied = Some(Applied { answers, notes });
        // Without a change there is no reason to wait for the disk.
        if written {
            transaction.commit()?
        } else {
            transaction.abort()?
        }
        Ok(())
    }

    /// Whether there are records that are old enough to be removed.
    pub(super) fn has_old(&self, settings: &InboxSettings, now_ms: u64) -> bool {
        !retention::too_old(&self.ledger, settings, now_ms, 1).is_empty()
    }

    pub(super) fn counts(&self) -> Counts {
        Counts {
            records: self.ledger.records(),
            unfinished: self.ledger.unfinished(),
            dead: self.ledger.dead(),
            bytes: self.ledger.bytes(),
            reports: self.ledger.reports,
            reports_dropped: self.sums.reports_dropped,
            totals: self.sums.totals.clone(),
        }
    }
}

/// None if the database is empty.
fn read_sums(database: &Database) -> Result<Option<Sums>, Trouble> {
    let transaction = database.begin_read()?;
    let meta = match transaction.open_table(META) {
        Err(redb::TableError::TableDoesNotExist(_)) => return Ok(None),
        opened => opened?,
    };
    let format: u32 = match meta.get(FORMAT_KEY)? {
        Some(value) => read_json(FORMAT_KEY, value.value())?,
        None => return Err(Trouble::Corrupt(format!("`{FORMAT_KEY}` is missing"))),
    };
    if format < FORMAT {
        return Err(Trouble::Corrupt(format!(
            "its format is {format}, that of a version before the first release"
        )));
    }
    if format > FORMAT {
        return Err(Trouble::Newer(format!("its format is {format}, and this version knows {FORMAT}")));
    }
    match meta.get(SUMS_KEY)? {
        Some(value) => read_json(SUMS_KEY, value.value()).map(Some),
        None => Err(Trouble::Corrupt(format!("`{SUMS_KEY}` is missing"))),
    }
}

fn begin(database: &Database, sums: &Sums) -> Result<(), Trouble> {
    let transaction = database.begin_write()?;
    let mut tables = Tables::open(&transaction)?;
    tables.meta.insert(FORMAT_KEY, FORMAT.to_string().as_bytes())?;
    tables.put_sums(sums)?;
    drop(tables);
    Ok(transaction.commit()?)
}

fn read_json<T: serde::de::DeserializeOwned>(name: &str, value: &[u8]) -> Result<T, Trouble> {
    serde_json::from_slice(value)
        .map_err(|error| Trouble::Corrupt(format!("`{name}` cannot be read: {error}")))
}
