//! What `c2d-feedback` prints: aligned lines for people, or one JSON object per record.
//!
//! Owns: the form of a record, here and in the spool; standard output; the note at the end. Must not know: how records
//! travel, exit codes.

use std::io::{ErrorKind, Write as _};

use anyhow::Context as _;
use serde::Serialize;

use super::reader::BatchReader;
use crate::cli::shown::{json, plain};
use crate::cli::tell;
use crate::feedback::{FeedbackRecord, FeedbackStatus};
use crate::message::{format_time, parse_time};
use crate::service::FeedbackBatch;

/// How each line of the spool begins.
pub(super) const BEGINNING: &str = r#"{"event":"feedback","#;

/// The width of the longest status.
const STATUS_WIDTH: usize = FeedbackStatus::DeliveryCountExceeded.as_str().len();

/// Most characters of any column but the last.
const MAX_COLUMN: usize = 40;

/// Prints records as they come.
pub(super) struct FeedbackOutput {
    json: bool,
    device: Option<String>,
    keeps: bool,
    device_width: usize,
    printed: u64,
    /// How many records of other devices were consumed.
    consumed: u64,
    open: bool,
}

/// A line of `--json` and of the spool: stable for scripts; fields are added, never renamed.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct FeedbackLine<'a> {
    event: &'static str,
    message_id: &'a str,
    device_id: &'a str,
    status: FeedbackStatus,
    description: &'a str,
    enqueued_time_utc: &'a str,
    device_generation_id: &'a str,
    /// The batch's id. It does not change when the batch comes again.
    batch: &'a str,
    /// The record's place in the batch, from 1.
    record: usize,
    /// How many records the batch has.
    records: usize,
    batch_enqueued_time_utc: Option<String>,
}

/// The records of a batch as lines of JSON; with a device, only those of that device.
///
/// # Errors
/// No error is known: the text is made of strings and numbers.
pub(super) fn lines(batch: &FeedbackBatch, device: Option<&str>) -> anyhow::Result<String> {
    let mut text = String::new();
    let records = batch.records.len();
    for (record, number) in batch.records.iter().zip(1..) {
        if device.is_some_and(|device| device != record.device_id) {
            continue;
        }
        let line = FeedbackLine {
            event: "feedback",
            message_id: &record.original_message_id,
            device_id: &record.device_id,
            status: record.status_code,
            description: &record.description,
            enqueued_time_utc: &record.enqueued_time_utc,
            device_generation_id: &record.device_generation_id,
            batch: &batch.id,
            record: number,
            records,
            batch_enqueued_time_utc: batch.enqueued.map(format_time),
        };
        text.push_str(&json(&line)?);
        text.push('\n');
    }
    Ok(text)
}

impl BatchReader for FeedbackOutput {
    /// It is no error if the reader of standard output has gone.
    fn print(&mut self, batch: &FeedbackBatch) -> anyhow::Result<()> {
        let text = if self.json { lines(batch, self.device.as_deref())? } else { self.table(batch) };
        let mut out = std::io::stdout().lock();
        match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
            Err(error) if error.kind() == ErrorKind::BrokenPipe => self.open = false,
            written => written.context("standard output cannot be written")?,
        }
        let wanted = batch.records.iter().filter(|record| self.wants(record)).count();
        self.printed = self.printed.saturating_add(wanted as u64);
        Ok(())
    }

    fn consumed(&mut self, batch: &FeedbackBatch) {
        let others = batch.records.iter().filter(|record| !self.wants(record)).count();
        self.consumed = self.consumed.saturating_add(others as u64);
    }

    fn printed(&self) -> u64 {
        self.printed
    }

    fn is_open(&self) -> bool {
        self.open
    }

    fn note(&self, line: &str) {
        tell(line);
    }
}

impl FeedbackOutput {
    /// Prints the records of `device`, or all. `keeps` says whether there is also a spool.
    pub(super) fn new(json: bool, device: Option<String>, keeps: bool) -> Self {
        Self { json, device, keeps, device_width: 0, printed: 0, consumed: 0, open: true }
    }

    /// Says how many records were consumed and neither printed nor kept.
    pub(super) fn last_words(&self) {
        if self.consumed == 0 || self.keeps {
            return;
        }
        let records = match self.consumed {
            1 => "1 record of another device was read and will not come again".to_owned(),
            n => format!("{n} records of other devices were read and will not come again"),
        };
        tell(format_args!("{records}; --spool FILE keeps them"));
    }

    fn wants(&self, record: &FeedbackRecord) -> bool {
        self.device.as_ref().is_none_or(|device| *device == record.device_id)
    }

    fn table(&mut self, batch: &FeedbackBatch) -> String {
        let width = |record: &FeedbackRecord| plain(&record.device_id).chars().count().min(MAX_COLUMN);
        let widest = batch.records.iter().filter(|record| self.wants(record)).map(width).max();
        // The width only grows, so that the columns of a long watch seldom move.
        self.device_width = self.device_width.max(widest.unwrap_or(0));
        let mut text = String::new();
        for record in batch.records.iter().filter(|record| self.wants(record)) {
            let time = match parse_time(&record.enqueued_time_utc) {
                Some(time) => humantime::format_rfc3339_millis(time).to_string(),
                None => plain(&record.enqueued_time_utc),
            };
            let status = match record.status_code {
                FeedbackStatus::Unknown => plain(&record.description),
                status => status.as_str().to_owned(),
            };
            let id = match record.original_message_id.as_str() {
                "" => "(no message id)".to_owned(),
                id => plain(id),
            };
            let device = plain(&record.device_id);
            let device_width = self.device_width;
            text.push_str(&format!("{time:24}  {status:STATUS_WIDTH$}  {device:device_width$}  {id}\n"));
        }
        text
    }
}
