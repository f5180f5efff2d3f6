//! The table of what a query finds.
//!
//! Owns: which columns it has, and how they share the width. Must not know: where rows come from.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::cli::shown::{plain, shorten};

const GAP: usize = 2;
/// A column with less room tells nothing.
const LEAST: usize = 8;
/// No cell is wider, whatever the output is.
const MOST: usize = 1000;
/// The column of rows that are no objects.
const VALUE: &str = "value";

/// The columns of a table and their widths, made from its first rows.
#[derive(Debug)]
pub(super) struct RowsTable {
    /// Each with its width.
    columns: Vec<(String, usize)>,
}

impl RowsTable {
    /// Columns in the order of `first`, then by name. Those at the end that `width` has no room for are left out.
    /// Without a width, the table is as wide as it needs.
    pub(super) fn new(first: &[String], rows: &[Value], width: Option<usize>) -> Self {
        let names: BTreeSet<&str> = rows.iter().flat_map(names).collect();
        let ordered = first.iter().map(String::as_str).filter(|name| names.contains(name));
        let rest = names.iter().copied().filter(|name| !first.iter().any(|own| own == name));
        let widest = |name: &str| {
            let cells = rows.iter().map(|row| cell(row, name).chars().count());
            cells.chain([plain(name).chars().count()]).max().unwrap_or(0)
        };
        let mut columns: Vec<_> =
            ordered.chain(rest).map(|name| (name.to_owned(), widest(name).min(MOST))).collect();
        if let Some(width) = width {
            let fits = |columns: &[(String, usize)]| {
                let least = columns.iter().map(|(_, widest)| (*widest).min(LEAST) + GAP).sum::<usize>();
                least <= width + GAP
            };
            while columns.len() > 1 && !fits(&columns) {
                columns.pop();
            }
            while columns.iter().map(|(_, own)| own + GAP).sum::<usize>() > width + GAP {
                match columns.iter_mut().max_by_key(|(_, own)| *own) {
                    Some((_, own)) if *own > 1 => *own -= 1,
                    _ => break,
                }
            }
        }
        Self { columns }
    }

    /// The names of the columns.
    pub(super) fn heading(&self) -> String {
        self.joined(plain)
    }

    /// A row.
    pub(super) fn line(&self, row: &Value) -> String {
        self.joined(|name| cell(row, name))
    }

    /// The names in a row that are not among the columns.
    pub(super) fn unseen<'r>(&self, row: &'r Value) -> impl Iterator<Item = &'r str> {
        names(row).filter(|name| !self.columns.iter().any(|(own, _)| own == name))
    }

    fn joined(&self, text: impl Fn(&str) -> String) -> String {
        let cells = self.columns.iter().map(|(name, width)| {
            let text = shorten(&text(name), *width);
            format!("{text:width$}")
        });
        cells.collect::<Vec<_>>().join(&" ".repeat(GAP)).trim_end().to_owned()
    }
}

/// The names of a row's values.
fn names(row: &Value) -> impl Iterator<Item = &str> {
    let object = row.as_object();
    let other = object.is_none().then_some(VALUE);
    object.into_iter().flat_map(|object| object.keys().map(String::as_str)).chain(other)
}

/// A value as text on one line; `-` if there is none.
fn cell(row: &Value, name: &str) -> String {
    let value = match row {
        Value::Object(object) => object.get(name),
        other => Some(other).filter(|_| name == VALUE),
    };
    match value {
        None | Some(Value::Null) => "-".to_owned(),
        Some(Value::String(text)) => plain(text),
        Some(other) => plain(&other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn shown(first: &[&str], rows: &[Value], width: Option<usize>) -> Vec<String> {
        let first: Vec<String> = first.iter().map(ToString::to_string).collect();
        let table = RowsTable::new(&first, rows, width);
        std::iter::once(table.heading()).chain(rows.iter().map(|row| table.line(row))).collect()
    }

    #[test]
    fn columns_keep_the_order_of_the_query_and_no_value_drives_the_terminal() {
        let rows = [
            json!({ "site": "a\u{1b}[2J\n", "deviceId": "pump-1", "n": 2 }),
            json!({ "deviceId": "p", "on": true }),
        ];
        assert_eq!(
            shown(&["deviceId", "site", "gone"], &rows, None),
            [
                "deviceId  site          n  on",
                "pump-1    a\\u{1b}[2J\\n  2  -",
                "p         -             -  true",
            ]
        );
        assert_eq!(shown(&[], &[json!(3)], None), ["value", "3"]);
    }

    #[test]
    fn a_table_is_no_wider_than_the_terminal_and_says_what_it_has_not() {
        let rows = [json!({ "deviceId": "x".repeat(100), "b": { "c": "y".repeat(100) }, "e": 1 })];
        let lines = shown(&["deviceId"], &rows, Some(80));
        assert!(lines.iter().all(|line| line.chars().count() <= 80), "{lines:?}");
        assert!(lines[1].contains("x…  {\"c\":\"yyy") && lines[1].ends_with("…  1"), "{lines:?}");
        let many: serde_json::Map<String, Value> =
            (10..40).map(|number| (format!("column{number}"), json!("value"))).collect();
        let rows = [Value::from(many)];
        let table = RowsTable::new(&[], &rows, Some(80));
        assert!(table.line(&rows[0]).chars().count() <= 80);
        assert_eq!(table.unseen(&rows[0]).count(), 22);
    }
}
