//! The table of `inbox list`.
//!
//! Owns: its columns, and how they share the width. Must not know: where records come from.

use std::time::{Duration, SystemTime};

use crate::cli::shown::{clock, plain, shorten};
use crate::inbox::{Record, State};

const GAP: usize = 2;

/// A column: the index of its cell in a row, and its least width when room is short; `None`: it keeps its width.
type Column = (usize, Option<usize>);

const HEADINGS: [&str; 7] = ["NUMBER", "STATE", "RECEIVED (UTC)", "RULE", "MESSAGE ID", "TRIES", "OUTCOME"];
/// The columns of a record on one line. 36 characters keep a UUID whole.
const ONE_LINE: [Column; 7] =
    [(0, None), (1, None), (2, None), (3, Some(20)), (4, Some(36)), (5, None), (6, Some(24))];
/// The columns of a record on two lines.
const UPPER: [Column; 4] = [(0, None), (1, None), (2, None), (4, Some(8))];
const LOWER: [Column; 3] = [(3, Some(8)), (5, None), (6, Some(14))];

type Row = [String; HEADINGS.len()];

/// The table, at most `width` columns wide. A record takes two lines if one line would hide too much. Without a width,
/// the table is as wide as it needs. Empty without records.
pub(super) fn lines(records: &[Record], width: Option<usize>) -> Vec<String> {
    if records.is_empty() {
        return Vec::new();
    }
    let mut rows = vec![HEADINGS.map(str::to_owned)];
    rows.extend(records.iter().map(row));
    let width = width.unwrap_or(usize::MAX);
    let widths = fitted(&rows, &ONE_LINE, width);
    if total(&widths) <= width {
        return rows.iter().map(|row| line(row, &ONE_LINE, &widths)).collect();
    }
    let upper = fitted(&rows, &UPPER, width);
    let indent = upper[0] + GAP;
    let lower = fitted(&rows, &LOWER, width.saturating_sub(indent));
    let both = |row| [line(row, &UPPER, &upper), format!("{:indent$}{}", "", line(row, &LOWER, &lower))];
    rows.iter().flat_map(both).collect()
}

fn row(record: &Record) -> Row {
    let or_dash = |text: Option<&String>| text.map_or("-".to_owned(), |text| plain(text));
    [
        format!("#{}", record.number.0),
        state(record.state).to_owned(),
        clock(time(record.received_ms)),
        or_dash(record.rule.as_ref()),
        or_dash(record.message_id.as_ref()),
        record.attempts.to_string(),
        or_dash(record.outcome.as_ref().map(|outcome| &outcome.text)),
    ]
}

fn line(row: &Row, columns: &[Column], widths: &[usize]) -> String {
    let cell = |(&(cell, _), &width): (&Column, &usize)| format!("{:width$}", shorten(&row[cell], width));
    let cells: Vec<_> = columns.iter().zip(widths).map(cell).collect();
    cells.join(&" ".repeat(GAP)).trim_end().to_owned()
}

/// The width of each column: that of its widest cell. If the total is too wide, the columns that have most to spare
/// become narrower.
fn fitted(rows: &[Row], columns: &[Column], width: usize) -> Vec<usize> {
    let widest = |cell: usize| rows.iter().map(|row| row[cell].chars().count()).max().unwrap_or(0);
    let mut widths: Vec<_> = columns.iter().map(|(cell, _)| widest(*cell)).collect();
    while total(&widths) > width {
        let spare = |(own, (_, least)): (&usize, &Column)| least.map_or(0, |least| own.saturating_sub(least));
        match widths.iter().zip(columns).map(spare).enumerate().max_by_key(|(_, spare)| *spare) {
            Some((widest, 1..)) => widths[widest] -= 1,
            _ => break,
        }
    }
    widths
}

fn total(widths: &[usize]) -> usize {
    widths.iter().sum::<usize>() + GAP * widths.len().saturating_sub(1)
}

pub(super) fn state(state: State) -> &'static str {
    match state {
        State::Accepted => "accepted",
        State::Started => "started",
        State::Finished => "finished",
        State::Dead => "dead",
    }
}

pub(super) fn time(milliseconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_millis(milliseconds)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inbox::{Number, Settled};
    use crate::outcome::{OutcomeKind, OutcomeReport};

    fn record(number: u64, id: Option<&str>, rule: Option<&str>, outcome: Option<&str>) -> Record {
        let outcome = outcome.map(|text| OutcomeReport {
            message_id: None,
            rule: None,
            outcome: OutcomeKind::Failed,
            text: text.into(),
            exit_code: None,
            duration_ms: None,
            attempt: 1,
            ended: String::new(),
            output: String::new(),
            output_end: String::new(),
            output_bytes: 0,
        });
        let state = if outcome.is_some() { State::Dead } else { State::Accepted };
        Record {
            number: Number(number),
            message_id: id.map(str::to_owned),
            rule: rule.map(str::to_owned),
            state,
            settled: Settled::AfterAction,
            received_ms: 1_795_469_405_000 + number,
            attempts: 1,
            started_ms: None,
            retry_on_crash: false,
            abandoned: false,
            outcome,
        }
    }

    #[test]
    fn short_records_are_shown_whole() {
        let records = [record(1, Some("m-1"), Some("pump"), Some("succeeded")), record(12, None, None, None)];
        assert_eq!(
            lines(&records, Some(80)),
            [
                "NUMBER  STATE     RECEIVED (UTC)       RULE  MESSAGE ID  TRIES  OUTCOME",
                "#1      dead      2026-11-23 21:30:05  pump  m-1         1      succeeded",
                "#12     accepted  2026-11-23 21:30:05  -     -           1      -",
            ]
        );
        assert_eq!(lines(&[], Some(80)), Vec::<String>::new());
    }

    #[test]
    fn an_id_stays_whole_and_the_record_takes_two_lines_where_one_would_hide_too_much() {
        let id = "419cfb05-0c2a-4f0e-a001-000000000001";
        let outcome = "failed: run /usr/local/bin/backup: exit code 3";
        let records = [
            record(12_345, Some(id), Some("nightly backup"), Some(outcome)),
            record(12_346, Some("m-1"), None, None),
        ];
        assert_eq!(
            lines(&records, Some(80)),
            [
                "NUMBER  STATE     RECEIVED (UTC)       MESSAGE ID",
                "        RULE            TRIES  OUTCOME",
                "#12345  dead      2026-11-23 21:30:17  419cfb05-0c2a-4f0e-a001-000000000001",
                "        nightly backup  1      failed: run /usr/local/bin/backup: exit code 3",
                "#12346  accepted  2026-11-23 21:30:17  m-1",
                "        -               1      -",
            ]
        );
        let wide = "#12345  dead      2026-11-23 21:30:17  nightly backup  419cfb05-0c2a-4f0e-a001-000000000001  1      failed: run /usr/local/bin/ba";
        assert_eq!(lines(&records, Some(130))[1], format!("{wide}…"));
        for width in [Some(160), None] {
            assert_eq!(lines(&records, width)[1], format!("{wide}ckup: exit code 3"));
        }
        let long = [record(1, Some(&"x".repeat(128)), Some(&"y".repeat(128)), Some(&"z".repeat(128)))];
        for width in [80, 100, 130, 160] {
            assert!(lines(&long, Some(width)).iter().all(|line| line.chars().count() <= width));
        }
    }

    #[test]
    fn what_a_sender_chose_cannot_drive_the_terminal() {
        let records = [record(1, Some("m\x1b[2J\n"), Some("pump"), Some("failed: \u{9b}x"))];
        let table = lines(&records, Some(120));
        assert!(table.iter().all(|line| !line.chars().any(char::is_control)), "{table:?}");
        assert!(table[1].contains("m\\u{1b}[2J\\n"), "{table:?}");
    }
}
