//! The table of `inbox list`.
//!
//! Owns: its columns, and how they share the width. Must not know: where records come from. Used by: `cli::inbox`.

use std::time::{Duration, SystemTime};

use crate::cli::shown::{clock, plain, shorten};
use crate::inbox::{Record, State};

const GAP: usize = 2;

/// Its heading, and how narrow it may become where there is not enough room; none: not at all.
const COLUMNS: [(&str, Option<usize>); 7] = [
    ("NUMBER", None),
    ("STATE", None),
    ("RECEIVED (UTC)", None),
    ("RULE", Some(6)),
    ("MESSAGE ID", Some(8)),
    ("TRIES", None),
    ("OUTCOME", Some(14)),
];

/// The table, at most `width` columns wide; empty without records.
pub(super) fn lines(records: &[Record], width: usize) -> Vec<String> {
    if records.is_empty() {
        return Vec::new();
    }
    let mut rows = vec![COLUMNS.map(|(heading, _)| heading.to_owned())];
    rows.extend(records.iter().map(row));
    let widths = widths(&rows, width);
    rows.iter()
        .map(|row| {
            let cells =
                row.iter().zip(widths).map(|(cell, width)| format!("{:width$}", shorten(cell, width)));
            cells.collect::<Vec<_>>().join(&" ".repeat(GAP)).trim_end().to_owned()
        })
        .collect()
}

fn row(record: &Record) -> [String; COLUMNS.len()] {
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

/// Each column as wide as its widest cell; where that is too much, the widest of those that may give way do.
fn widths(rows: &[[String; COLUMNS.len()]], width: usize) -> [usize; COLUMNS.len()] {
    let mut widths = [0; COLUMNS.len()];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    while widths.iter().sum::<usize>() + GAP * (COLUMNS.len() - 1) > width {
        let spare =
            (0..COLUMNS.len()).map(|at| COLUMNS[at].1.map_or(0, |least| widths[at].saturating_sub(least)));
        match spare.enumerate().max_by_key(|(_, spare)| *spare) {
            Some((widest, 1..)) => widths[widest] -= 1,
            _ => break,
        }
    }
    widths
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
            lines(&records, 80),
            [
                "NUMBER  STATE     RECEIVED (UTC)       RULE  MESSAGE ID  TRIES  OUTCOME",
                "#1      dead      2026-11-23 21:30:05  pump  m-1         1      succeeded",
                "#12     accepted  2026-11-23 21:30:05  -     -           1      -",
            ]
        );
        assert_eq!(lines(&[], 80), Vec::<String>::new());
    }

    #[test]
    fn long_records_are_shortened_to_the_width() {
        let id = "419cfb05-0c2a-4f0e-a001-000000000001";
        let outcome = "failed: run /usr/local/bin/backup: exit code 3";
        let records = [record(12_345, Some(id), Some("nightly backup"), Some(outcome))];
        let shown = |width| lines(&records, width)[1].clone();
        assert_eq!(
            shown(80),
            "#12345  dead   2026-11-23 21:30:17  nightly…  419cfb05-…  1      failed: run /u…"
        );
        assert_eq!(
            shown(120),
            "#12345  dead   2026-11-23 21:30:17  nightly backup  419cfb05-0c2a-4f0e-a001-00…  1      \
             failed: run /usr/local/bin/back…"
        );
    }

    #[test]
    fn what_a_sender_chose_cannot_drive_the_terminal() {
        let records = [record(1, Some("m\x1b[2J\n"), Some("pump"), Some("failed: \u{9b}x"))];
        let table = lines(&records, 120);
        assert!(table.iter().all(|line| !line.chars().any(char::is_control)), "{table:?}");
        assert!(table[1].contains("m\\u{1b}[2J\\n"), "{table:?}");
    }
}
